package rewritetest

import (
	"encoding/binary"

	"penstock/internal/wire"
)

// fragment says how an IP packet is fragmented: offset in units of 8 bytes.
type fragment struct {
	offset uint16
	more   bool
}

func (g *Generator) fragment() (f fragment) {
	switch g.rng.IntN(3) {
	case 0:
		f.more = true // the first one
	case 1:
		f.offset, f.more = uint16(2+g.rng.IntN(100)), true
	case 2:
		f.offset = uint16(2 + g.rng.IntN(100))
	}
	return f
}

func (g *Generator) ttl() byte {
	return pick(g, 0, 1, 2, 64, 64, 64, 64, 128, 128, 255, 255, byte(g.rng.Uint32()))
}

// packet4 appends an IPv4 packet. icmp is the ICMP message in it, if not nil; else it is what chance says.
func (g *Generator) packet4(icmp []byte) {
	g.l3 = len(g.buf)
	options := 0 // words
	if g.chance(5) {
		options = 1 + g.rng.IntN(10)
	}
	var f fragment
	if icmp == nil && g.chance(5) {
		f = g.fragment()
	}
	g.add(0x40|byte(5+options), byte(g.rng.Uint32()), 0, 0)
	g.add16(g.n16())
	flags := f.offset | uint16(g.rng.IntN(2))<<14
	if f.more {
		flags |= 0x2000
	}
	g.add16(flags)
	g.add(g.ttl(), 0, 0, 0)
	g.add32(g.n32())
	g.add32(g.n32())
	g.addRandom(4 * options)
	l4 := len(g.buf)
	proto := g.transport(l4, 4, f, icmp)
	ip := g.buf[g.l3:]
	ip[9] = proto
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	g.finishL4(l4, proto)
	g.finish(ip[:l4-g.l3], 10, 4, 0)
}

// packet6 is packet4 for IPv6 and ICMPv6.
func (g *Generator) packet6(icmp []byte) {
	g.l3 = len(g.buf)
	g.add32(6<<28 | g.rng.Uint32()>>4)
	g.add(0, 0, 0, g.ttl())
	for range 8 {
		g.add32(g.n32())
	}
	next := g.l3 + 6 // where the kind of what follows goes
	var f fragment
	if icmp == nil && g.chance(10) {
		next, f = g.extensions(next)
	}
	l4 := len(g.buf)
	proto := g.transport(l4, 6, f, icmp)
	g.buf[next] = proto
	binary.BigEndian.PutUint16(g.buf[g.l3+4:], uint16(len(g.buf)-g.l3-wire.IPv6Len))
	g.finishL4(l4, proto)
}

// extensions appends one to three IPv6 extension headers; next is where the first one's kind goes. It returns where the
// kind of what follows goes.
func (g *Generator) extensions(next int) (int, fragment) {
	var f fragment
	n := 1 + g.rng.IntN(3)
	for i := range n {
		kind := pick[byte](g, wire.ProtoDestOpts, wire.ProtoRouting, wire.ProtoFragment, wire.ProtoFragment, wire.ProtoAH)
		if i == 0 && g.chance(25) {
			kind = wire.ProtoHopByHop
		}
		g.buf[next] = kind
		next = len(g.buf)
		switch kind {
		case wire.ProtoFragment:
			if f == (fragment{}) && g.chance(50) { // else atomic, or a second one, which is an error
				f = g.fragment()
			}
			field := f.offset << 3
			if f.more {
				field |= 1
			}
			g.add(0, 0)
			g.add16(field)
			g.add32(g.rng.Uint32())
			if f.offset != 0 {
				return next, f
			}
		case wire.ProtoRouting:
			g.add(0, 0, pick[byte](g, 0, 2, 4), pick[byte](g, 0, 0, 1), 0, 0, 0, 0)
		case wire.ProtoAH:
			g.add(0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1)
		default:
			size := 8 * (1 + g.rng.IntN(3))
			g.add(0, byte(size/8-1), 1, byte(size-4)) // PadN
			g.add(make([]byte, size-4)...)
		}
	}
	return next, f
}

// transport appends a transport header and payload, with the checksum field at zero, and returns the protocol.
func (g *Generator) transport(l4 int, version uint8, f fragment, icmp []byte) (proto uint8) {
	icmpProto := uint8(wire.ProtoICMP)
	if version == 6 {
		icmpProto = wire.ProtoICMPv6
	}
	switch p := g.rng.IntN(100); {
	case icmp != nil:
		g.add(icmp...)
		return icmpProto
	case f.offset != 0:
		proto = pick[uint8](g, wire.ProtoTCP, wire.ProtoUDP, icmpProto)
		g.addRandom(8 * (1 + g.rng.IntN(10)))
		return proto
	case p < 65:
		proto = wire.ProtoTCP
		g.tcp()
	case p < 82:
		proto = wire.ProtoUDP
		g.add16(g.n16())
		g.add16(g.n16())
		g.add(0, 0, 0, 0)
	case p < 95:
		proto = icmpProto
		kind := pick[byte](g, wire.ICMPEchoRequest, wire.ICMPEchoReply)
		if version == 6 {
			kind = pick[byte](g, wire.ICMPv6EchoRequest, wire.ICMPv6EchoReply)
		}
		if g.chance(30) {
			kind = byte(g.rng.Uint32())
		}
		g.add(kind, 0, 0, 0)
		g.add16(g.n16())
		g.add16(g.n16())
	default: // ICMP of the other family among them: a protocol like any other
		proto = pick[uint8](g, wire.ProtoICMP, wire.ProtoICMPv6, wire.ProtoESP, wire.ProtoNone, 47, 132, 51)
		if proto == icmpProto {
			proto = 47
		}
		g.addRandom(12)
	}
	size := g.rng.IntN(24)
	if g.chance(5) {
		size = g.rng.IntN(1400)
	}
	g.addRandom(size)
	if f.more { // all but the last one are multiples of 8 bytes
		g.addRandom((8 - (len(g.buf)-l4)%8) % 8)
	}
	if proto == wire.ProtoUDP {
		n := len(g.buf) - l4
		if f.more {
			n += 8 * (1 + g.rng.IntN(100))
		} else if size > 0 && g.chance(5) {
			n -= 1 + g.rng.IntN(size) // the IP packet is longer than the datagram
		}
		binary.BigEndian.PutUint16(g.buf[l4+4:], uint16(n))
	}
	return proto
}

// tcp appends a TCP header.
func (g *Generator) tcp() {
	at := len(g.buf)
	g.add16(g.n16())
	g.add16(g.n16())
	g.add32(g.n32())
	g.add32(g.n32())
	var flags uint16
	switch p := g.rng.IntN(100); {
	case p < 75:
		flags = uint16(wire.FlagACK) | uint16(g.rng.Uint32())&uint16(wire.FlagPSH|wire.FlagFIN|wire.FlagURG|wire.FlagECE|wire.FlagCWR|wire.FlagAE)
	case p < 80:
		flags = uint16(wire.FlagRST)
	case p < 85:
		flags = uint16(wire.FlagRST | wire.FlagACK)
	case p < 90:
		flags = uint16(wire.FlagSYN)
	default:
		flags = uint16(g.rng.Uint32()) & 0xfff // reserved bits, too
	}
	g.add16(flags)
	g.add16(g.n16())
	g.add16(0)
	g.add16(g.n16())
	g.options()
	g.buf[at+12] |= byte((len(g.buf)-at)/4) << 4
}

// finishL4 stores the checksum of the packet's transport header at l4. What it stores in fragments is nonsense, as it is
// for whoever sees one of them alone.
func (g *Generator) finishL4(l4 int, proto uint8) {
	seg := g.buf[l4:]
	switch {
	case proto == wire.ProtoTCP && len(seg) >= wire.TCPLen:
		g.finish(seg, 16, 18, pseudoHeader(g.buf[g.l3:], proto, len(seg)))
	case proto == wire.ProtoUDP && len(seg) >= wire.UDPLen:
		if n := wire.UDP(seg).Len(); n >= wire.UDPLen && n < len(seg) {
			seg = seg[:n]
		}
		if g.chance(10) {
			return // none
		}
		g.finish(seg, 6, 0, pseudoHeader(g.buf[g.l3:], proto, len(seg)))
		if seg[6] == 0 && seg[7] == 0 {
			seg[6], seg[7] = 0xff, 0xff
		}
	case proto == wire.ProtoICMP && g.buf[g.l3]>>4 == 4 && len(seg) >= wire.ICMPLen:
		g.finish(seg, 2, 6, 0)
	case proto == wire.ProtoICMPv6 && g.buf[g.l3]>>4 == 6 && len(seg) >= wire.ICMPLen:
		g.finish(seg, 2, 6, pseudoHeader(g.buf[g.l3:], proto, len(seg)))
	}
}

// finish stores the checksum of b, with initial added, at offset at: most often the right one. In some packets it first
// sets the word at offset free so that the checksum becomes 0, and stores either of its two forms.
func (g *Generator) finish(b []byte, at, free int, initial uint64) {
	b[at], b[at+1] = 0, 0
	switch p := g.rng.IntN(100); {
	case p < 88:
		binary.BigEndian.PutUint16(b[at:], checksum(b, initial))
	case p < 93:
		b[free], b[free+1] = 0, 0
		binary.BigEndian.PutUint16(b[free:], checksum(b, initial))
		binary.BigEndian.PutUint16(b[at:], pick[uint16](g, 0, 0xffff))
	default:
		binary.BigEndian.PutUint16(b[at:], g.n16())
	}
}
