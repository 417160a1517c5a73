package wire

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"strconv"
)

// Flow names one direction of a conversation: addresses, ports, protocol and VLAN ids. It is comparable and has no
// pointers, so it serves as a map key. IPv4 addresses are v4-mapped (::ffff:a.b.c.d).
//
// A priority tag (VLAN id 0) is the same as no tag, as 802.1Q has it.
type Flow struct {
	Src, Dst         [16]byte
	SrcPort, DstPort uint16           // ICMP echo: the identifier, twice; other ICMP: 0
	VLAN             [MaxVLANs]uint16 // 12-bit ids, outermost first; 0 where there is no tag
	Proto            uint8
	V6               bool
}

const (
	v4MappedWord = 0xffff_0000_0000 // the second half of a v4-mapped address, without the IPv4 address
	vlanIDMask   = 0x0fff
)

// Flow returns the flow of the frame h was parsed from; ok is false where there is no transport header (h.HasL4).
func (h *Headers) Flow(frame []byte) (f Flow, ok bool) {
	ok = h.ReadFlow(frame, &f)
	return f, ok
}

// ReadFlow is Flow into the caller's memory, which spares copying it. *f is left alone where there is no flow.
func (h *Headers) ReadFlow(frame []byte, f *Flow) bool {
	if !h.HasL4 {
		return false
	}
	// Addresses are written in words of 8 bytes, the size in which Hash and comparisons read them back: the processor
	// forwards a store to a load of the same size only.
	if h.IPVersion == 4 {
		ip := frame[h.L3 : h.L3+IPv4Len]
		binary.BigEndian.PutUint64(f.Src[:8], 0)
		binary.BigEndian.PutUint64(f.Src[8:], v4MappedWord|uint64(binary.BigEndian.Uint32(ip[12:])))
		binary.BigEndian.PutUint64(f.Dst[:8], 0)
		binary.BigEndian.PutUint64(f.Dst[8:], v4MappedWord|uint64(binary.BigEndian.Uint32(ip[16:])))
		f.V6 = false
	} else {
		ip := frame[h.L3 : h.L3+IPv6Len]
		binary.LittleEndian.PutUint64(f.Src[:8], binary.LittleEndian.Uint64(ip[8:]))
		binary.LittleEndian.PutUint64(f.Src[8:], binary.LittleEndian.Uint64(ip[16:]))
		binary.LittleEndian.PutUint64(f.Dst[:8], binary.LittleEndian.Uint64(ip[24:]))
		binary.LittleEndian.PutUint64(f.Dst[8:], binary.LittleEndian.Uint64(ip[32:]))
		f.V6 = true
	}
	f.Proto = h.Proto
	f.VLAN[0], f.VLAN[1] = h.VLAN[0]&vlanIDMask, h.VLAN[1]&vlanIDMask
	l4 := frame[h.L4 : h.L4+8]
	switch {
	case h.Proto == ProtoTCP || h.Proto == ProtoUDP:
		f.SrcPort = binary.BigEndian.Uint16(l4)
		f.DstPort = binary.BigEndian.Uint16(l4[2:])
	case isEcho(h.Proto, l4[0]):
		f.SrcPort = binary.BigEndian.Uint16(l4[4:])
		f.DstPort = f.SrcPort
	default:
		f.SrcPort, f.DstPort = 0, 0
	}
	return true
}

// isEcho reports whether an ICMP or ICMPv6 type is an echo request or reply.
func isEcho(proto, icmpType uint8) bool {
	if proto == ProtoICMP {
		return icmpType == ICMPEchoRequest || icmpType == ICMPEchoReply
	}
	return icmpType == ICMPv6EchoRequest || icmpType == ICMPv6EchoReply
}

// QuotedHeaders fills q with the headers of the packet quoted in an ICMP or ICMPv6 error; q's offsets count from the
// start of the frame, like h's. It returns false where h is no such error or the quote names no flow (too short, a
// later fragment, another protocol).
//
// A quote is a packet's beginning: q.HasL4 promises 8 bytes of TCP, UDP or ICMP only, q.Payload and q.End may lie
// before the header's or the packet's end, and q's checksums cannot be verified. q's VLAN tags are h's.
func (h *Headers) QuotedHeaders(frame []byte, q *Headers) bool {
	*q = Headers{}
	if !h.HasL4 || h.Frag != FragNone {
		return false
	}
	version := h.IPVersion
	icmp := ICMP(frame[h.L4:h.End])
	if h.Proto == ProtoICMP {
		if !icmp.QuotesIPv4() {
			return false
		}
	} else if h.Proto != ProtoICMPv6 || !icmp.QuotesIPv6() {
		return false
	}
	q.VLANs, q.VLAN, q.EtherType = h.VLANs, h.VLAN, h.EtherType
	off, end := int(h.L4)+ICMPLen, int(h.End)
	q.stopAt(off, end)
	if version == 4 {
		q.parse4(frame, off, end, quoted)
	} else {
		q.parse6(frame, off, end, quoted)
	}
	return q.HasL4
}

// QuotedFlow returns the flow quoted in an ICMP or ICMPv6 error, in the direction of the quoted packet (the reverse of
// the error's own way), with the VLAN ids of the packet that carries the error.
func (h *Headers) QuotedFlow(frame []byte) (f Flow, ok bool) {
	var q Headers
	if !h.QuotedHeaders(frame, &q) {
		return Flow{}, false
	}
	return q.Flow(frame)
}

// MakeFlow builds an untagged flow. Both addresses must be of one family; an IPv4 address may be given v4-mapped.
func MakeFlow(proto uint8, src, dst netip.AddrPort) Flow {
	s, d := src.Addr().Unmap(), dst.Addr().Unmap()
	return Flow{
		Src: s.As16(), Dst: d.As16(),
		SrcPort: src.Port(), DstPort: dst.Port(),
		Proto: proto, V6: !s.Is4(),
	}
}

// Reverse returns the flow of the replies.
func (f Flow) Reverse() Flow {
	f.Src, f.Dst = f.Dst, f.Src
	f.SrcPort, f.DstPort = f.DstPort, f.SrcPort
	return f
}

// Canonical returns the one of f and f.Reverse() that has the lower address and port first, and whether that is the
// reverse of f. Both directions have the same canonical flow, so that one table entry serves both.
func (f Flow) Canonical() (c Flow, reversed bool) {
	reversed = f.canonicalize()
	return f, reversed
}

// canonicalize is Canonical in place: Canonical can then be inlined, which saves copies.
func (f *Flow) canonicalize() (reversed bool) {
	if f.srcAfterDst() {
		*f = f.Reverse()
		return true
	}
	return false
}

func (f *Flow) srcAfterDst() bool {
	if s, d := binary.BigEndian.Uint64(f.Src[:8]), binary.BigEndian.Uint64(f.Dst[:8]); s != d {
		return s > d
	}
	if s, d := binary.BigEndian.Uint64(f.Src[8:]), binary.BigEndian.Uint64(f.Dst[8:]); s != d {
		return s > d
	}
	return f.SrcPort > f.DstPort
}

// Hash returns a 32-bit hash that is equal for both directions, for spreading flows over workers. It is a fixed
// function; the XDP program computes the same one (bpf/include/flow.h) and puts it before the packets it hands up:
//
//	a = XOR of the eight 32-bit words of Src and Dst, read as big-endian numbers (for IPv4, of the two addresses:
//	    the v4-mapped prefixes cancel out)
//	b = (SrcPort XOR DstPort) << 16 | Proto
//	hash = fmix32(fmix32(a) XOR b), with fmix32 from MurmurHash3
//
// The VLAN ids are left out, so that a flow whose tags are rewritten on the way keeps its worker. It has no secret:
// whoever chooses addresses chooses the hash. Use it for spreading, not as the hash of a table.
func (f Flow) Hash() uint32 {
	// XOR does not care about byte order: swap once, at the end.
	w := binary.LittleEndian.Uint64(f.Src[:]) ^ binary.LittleEndian.Uint64(f.Src[8:]) ^
		binary.LittleEndian.Uint64(f.Dst[:]) ^ binary.LittleEndian.Uint64(f.Dst[8:])
	a := bits.ReverseBytes32(uint32(w>>32) ^ uint32(w))
	return fmix32(fmix32(a) ^ (uint32(f.SrcPort^f.DstPort)<<16 | uint32(f.Proto)))
}

func fmix32(x uint32) uint32 {
	x = (x ^ x>>16) * 0x85ebca6b
	x = (x ^ x>>13) * 0xc2b2ae35
	return x ^ x>>16
}

// SrcAddr returns the source address and port; an IPv4 address is 4 bytes long.
func (f Flow) SrcAddr() netip.AddrPort { return netip.AddrPortFrom(f.addr(&f.Src), f.SrcPort) }

// DstAddr returns the destination address and port; an IPv4 address is 4 bytes long.
func (f Flow) DstAddr() netip.AddrPort { return netip.AddrPortFrom(f.addr(&f.Dst), f.DstPort) }

func (f *Flow) addr(b *[16]byte) netip.Addr {
	a := netip.AddrFrom16(*b)
	if !f.V6 {
		return a.Unmap()
	}
	return a
}

// Client returns the source as "addr:port" or "[addr]:port". It is the client's if f is the direction of the flow's
// first packet.
func (f Flow) Client() string { return f.SrcAddr().String() }

// Server returns the destination as "addr:port" or "[addr]:port".
func (f Flow) Server() string { return f.DstAddr().String() }

// String returns "tcp 10.0.0.1:1234 > 10.0.0.2:80", with " vlan 10" or " vlan 10.20" after it where there are tags.
func (f Flow) String() string {
	b := make([]byte, 0, 96)
	b = append(b, ProtoName(f.Proto)...)
	b = append(b, ' ')
	b = f.SrcAddr().AppendTo(b)
	b = append(b, " > "...)
	b = f.DstAddr().AppendTo(b)
	if f.VLAN != [MaxVLANs]uint16{} {
		b = append(b, " vlan "...)
		b = strconv.AppendUint(b, uint64(f.VLAN[0]), 10)
		if f.VLAN[1] != 0 {
			b = append(b, '.')
			b = strconv.AppendUint(b, uint64(f.VLAN[1]), 10)
		}
	}
	return string(b)
}

// ProtoName returns "tcp", "udp", "icmp", "icmpv6", or the number as "ip-proto-N".
func ProtoName(proto uint8) string {
	switch proto {
	case ProtoTCP:
		return "tcp"
	case ProtoUDP:
		return "udp"
	case ProtoICMP:
		return "icmp"
	case ProtoICMPv6:
		return "icmpv6"
	}
	return "ip-proto-" + strconv.Itoa(int(proto))
}
