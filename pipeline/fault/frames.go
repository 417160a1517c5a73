package fault

import (
	"encoding/binary"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// corrupt flips one bit of an IP packet. What lies in front of it is the
// concern of the wire, whose own checksum nobody sees here.
func corrupt(pkt *pipeline.Packet, where uint64, fix bool) bool {
	var h wire.Headers
	n := ipLen(pkt, &h)
	if n == 0 {
		return false
	}
	b := pkt.Bytes()
	at := int(h.L3)
	if fix && h.HasL4 && h.End > h.Payload {
		at, n = int(h.Payload), int(h.End-h.Payload) // what only the ends can tell
	} else if fix {
		return false
	}
	bit := int(where % uint64(n*8))
	b[at+bit/8] ^= 1 << (bit % 8)
	if fix && h.Frag == wire.FragNone {
		wire.FillL4(b, &h)
	}
	return true
}

const (
	quote4 = 576  // RFC 1812 section 4.3.2.3: an ICMP error is no longer than this
	quote6 = 1280 // RFC 4443 section 2.4 (c)
)

// tooBig makes of reply what a router would answer to pkt: "fragmentation
// needed" (RFC 1191 section 4) or "packet too big" (RFC 4443 section 3.2). The
// answer comes from the packet's receiver. False: a packet that may be
// fragmented or an ICMP error is answered with silence.
func tooBig(reply, pkt *pipeline.Packet, mtu int) bool {
	var h wire.Headers
	if ipLen(pkt, &h) == 0 || h.Frag == wire.FragLater {
		return false
	}
	b := pkt.Bytes()
	ip := b[h.L3:h.End]
	v6 := h.IPVersion == 6
	if h.HasL4 && h.Proto == wire.ProtoICMP && !answerable(b[h.L4], 8, 0) ||
		h.HasL4 && h.Proto == wire.ProtoICMPv6 && b[h.L4] < 128 {
		return false
	}
	head, most := wire.IPv4Len, quote4
	if v6 {
		head, most = wire.IPv6Len, quote6
	} else if ip[6]&0x40 == 0 {
		return false
	}
	quoted := ip[:min(len(ip), most-head-8)]
	if !reply.SetView(reply.Offset(), int(h.L3)+head+8+len(quoted)) {
		return false
	}
	r := reply.Bytes()
	clear(r[:int(h.L3)+head+8])
	copy(r, b[:h.L3])
	copy(r[:6], b[6:12])
	copy(r[6:12], b[:6])
	copy(r[int(h.L3)+head+8:], quoted)
	out, icmp := r[h.L3:], r[int(h.L3)+head:]
	if v6 {
		w, from := wire.IPv6(out), wire.IPv6(ip)
		out[0] = 6 << 4
		w.SetNextHeader(wire.ProtoICMPv6)
		w.SetHopLimit(64)
		w.SetPayloadLen(len(icmp))
		w.SetSrc([16]byte(from.Dst()))
		w.SetDst([16]byte(from.Src()))
		icmp[0] = 2
		binary.BigEndian.PutUint32(icmp[4:], uint32(max(mtu, quote6)))
	} else {
		w, from := wire.IPv4(out), wire.IPv4(ip)
		out[0], out[9] = 4<<4|wire.IPv4Len/4, wire.ProtoICMP
		w.SetTTL(64)
		w.SetTotalLen(len(out))
		w.SetSrc([4]byte(from.Dst()))
		w.SetDst([4]byte(from.Src()))
		w.FillChecksum()
		icmp[0], icmp[1] = wire.ICMPUnreachable, wire.ICMPCodeFragNeeded
		binary.BigEndian.PutUint16(icmp[6:], uint16(mtu))
	}
	var own wire.Headers
	if own.Parse(r) != wire.FaultNone {
		return false
	}
	wire.FillL4(r, &own)
	return true
}

// answerable reports whether an ICMP packet is a request or a reply.
func answerable(kind byte, kinds ...byte) bool {
	for _, k := range kinds {
		if kind == k {
			return true
		}
	}
	return false
}
