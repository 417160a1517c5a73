package rewrite_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"penstock/internal/rewrite"
	"penstock/internal/wire"
)

// packet is what the frames of the tables are built from. The zero value is an empty ACK over IPv4.
type packet struct {
	vlans   []uint16 // TCIs
	v6      bool
	ipOpts  []byte // IPv4 options, or whole IPv6 extension headers of which first is the kind
	first   uint8
	frag    uint16 // the IPv4 flags and offset word
	ttl     uint8  // 0: 64
	proto   uint8  // 0: TCP
	flags   wire.TCPFlags
	window  uint16
	opts    []byte // TCP options
	l4      []byte // the whole transport segment of other protocols
	payload string
	noSum   bool
}

var (
	client4, server4 = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.0.2.80")
	client6, server6 = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("2001:db8::80")
)

const (
	seq0, ack0 = 0xfffffff0, 0x01020304
	tsv0, tse0 = 0x10203040, 0x50607080
)

func (p packet) bytes() []byte {
	f := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}
	for _, tci := range p.vlans {
		f = binary.BigEndian.AppendUint16(append(f, 0x81, 0), tci)
	}
	proto, ttl := p.proto, p.ttl
	if proto == 0 {
		proto = wire.ProtoTCP
	}
	if ttl == 0 {
		ttl = 64
	}
	seg := p.l4
	if seg == nil {
		flags := p.flags
		if flags == 0 {
			flags = wire.FlagACK
		}
		seg = []byte{0x9c, 0x40, 0, 80}
		seg = binary.BigEndian.AppendUint32(seg, seq0)
		seg = binary.BigEndian.AppendUint32(seg, ack0)
		seg = append(seg, byte(20+len(p.opts))<<2, byte(flags))
		seg = binary.BigEndian.AppendUint16(seg, p.window)
		seg = append(seg, 0, 0, 0, 0)
		seg = append(append(seg, p.opts...), p.payload...)
	}
	if p.v6 {
		f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0)
		f = binary.BigEndian.AppendUint16(f, uint16(len(p.ipOpts)+len(seg)))
		next := proto
		if p.ipOpts != nil {
			next = p.first
		}
		f = append(f, next, ttl)
		f = append(append(f, client6.AsSlice()...), server6.AsSlice()...)
	} else {
		f = append(f, 0x08, 0x00, 0x45+byte(len(p.ipOpts)/4), 0)
		f = binary.BigEndian.AppendUint16(f, uint16(20+len(p.ipOpts)+len(seg)))
		f = append(f, 0, 7)
		f = binary.BigEndian.AppendUint16(f, p.frag)
		f = append(f, ttl, proto, 0, 0)
		f = append(append(f, client4.AsSlice()...), server4.AsSlice()...)
	}
	f = append(append(f, p.ipOpts...), seg...)
	var h wire.Headers
	h.Parse(f)
	if h.IPVersion == 4 && h.Fault == wire.FaultNone {
		wire.IPv4(f[h.L3:]).FillChecksum()
	}
	if !p.noSum {
		wire.FillL4(f, &h)
	}
	return f
}

// ts is the timestamps option.
func ts(val, ecr uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte{8, 10}, val), ecr)
}

// sack is a SACK option with these edges.
func sack(edges ...uint32) []byte {
	b := []byte{5, byte(2 + 4*len(edges))}
	for _, e := range edges {
		b = binary.BigEndian.AppendUint32(b, e)
	}
	return b
}

func nops(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = wire.OptNop
	}
	return b
}

func join(parts ...[]byte) []byte {
	b := []byte{}
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// padded fills an option list up with NOPs to a multiple of 4.
func padded(opts []byte) []byte { return join(opts, nops((4-len(opts)%4)%4)) }

func parse(t testing.TB, frame []byte) *wire.Headers {
	t.Helper()
	h := new(wire.Headers)
	if f := h.Parse(frame); f != wire.FaultNone {
		t.Fatalf("parse packet: %v: %x", f, frame)
	}
	return h
}

// The rules of the tables.
var (
	splice = rewrite.Rule{
		Flags: rewrite.AddSeq | rewrite.AddAck | rewrite.AddTS | rewrite.ShiftWindow,
		Seq:   0x1000, Ack: 0xfeedf00d, TSVal: 0x01010101, TSEcr: 0xfffffffe, WindowShift: 2,
	}
	nat4 = rewrite.Rule{
		Flags: rewrite.SetSrc | rewrite.SetDst | rewrite.SetSrcPort | rewrite.SetDstPort,
		Src:   netip.MustParseAddr("172.16.254.9").As16(), Dst: netip.MustParseAddr("10.255.0.3").As16(), SrcPort: 1, DstPort: 8080,
	}
	nat6 = rewrite.Rule{
		Flags: nat4.Flags,
		Src:   netip.MustParseAddr("2001:db8:ffff::9").As16(), Dst: netip.MustParseAddr("fd12:3456:789a::3").As16(), SrcPort: 1, DstPort: 8080,
	}
	macs = rewrite.Rule{Flags: rewrite.SetSrcMAC | rewrite.SetDstMAC, SrcMAC: [6]byte{1, 2, 3, 4, 5, 6}, DstMAC: [6]byte{7, 8, 9, 10, 11, 12}}
	ttl1 = rewrite.Rule{Flags: rewrite.DecTTL}
)

// both returns a rule that does what a and b do; their flags must not overlap.
func both(a, b rewrite.Rule) rewrite.Rule {
	r := a
	r.Flags |= b.Flags
	if b.Flags&rewrite.SetSrcMAC != 0 {
		r.SrcMAC, r.DstMAC = b.SrcMAC, b.DstMAC
	}
	if b.Flags&rewrite.SetSrc != 0 {
		r.Src, r.Dst, r.SrcPort, r.DstPort = b.Src, b.Dst, b.SrcPort, b.DstPort
	}
	if b.Flags&rewrite.SetVLAN != 0 {
		r.VLAN, r.VLANs = b.VLAN, b.VLANs
	}
	if b.Flags&rewrite.AddSeq != 0 {
		r.Seq, r.Ack, r.TSVal, r.TSEcr, r.WindowShift = b.Seq, b.Ack, b.TSVal, b.TSEcr, b.WindowShift
	}
	return r
}

// only returns a rule with some of the flags of r.
func only(r rewrite.Rule, flags rewrite.Flags) rewrite.Rule {
	r.Flags = flags
	return r
}

func vlanRule(ids ...uint16) rewrite.Rule {
	r := rewrite.Rule{Flags: rewrite.SetVLAN, VLANs: uint8(len(ids))}
	copy(r.VLAN[:], ids)
	return r
}
