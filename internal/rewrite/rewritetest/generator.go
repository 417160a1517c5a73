package rewritetest

import (
	"encoding/binary"
	"math/rand/v2"

	"penstock/internal/rewrite"
	"penstock/internal/wire"
)

// Generator makes frames and rules at random: the same ones for the same seed. About one frame in twenty is broken, and
// each thing that sends a packet the slow way happens often enough to be met a few times in 10,000 frames.
type Generator struct {
	rng *rand.Rand
	buf []byte
	l3  int // where the IP header of the frame under construction starts
}

// New returns a generator.
func New(seed uint64) *Generator {
	return &Generator{rng: rand.New(rand.NewPCG(seed, 0x70656e73746f636b)), buf: make([]byte, 0, 4096)}
}

// chance is true in percent of 100 cases.
func (g *Generator) chance(percent int) bool { return g.rng.IntN(100) < percent }

// n32 returns a number, often one at an edge.
func (g *Generator) n32() uint32 {
	if g.chance(70) {
		return g.rng.Uint32()
	}
	return pick[uint32](g, 0, 1, 0xff, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffff0000, 0xfffffffe, 0xffffffff)
}

// n16 is n32 for 16 bits.
func (g *Generator) n16() uint16 {
	if g.chance(70) {
		return uint16(g.rng.Uint32())
	}
	return pick[uint16](g, 0, 1, 0xff, 0x100, 0x7fff, 0x8000, 0xfffe, 0xffff)
}

func pick[T any](g *Generator, from ...T) T { return from[g.rng.IntN(len(from))] }

func (g *Generator) add(b ...byte)   { g.buf = append(g.buf, b...) }
func (g *Generator) add16(v uint16)  { g.buf = binary.BigEndian.AppendUint16(g.buf, v) }
func (g *Generator) add32(v uint32)  { g.buf = binary.BigEndian.AppendUint32(g.buf, v) }
func (g *Generator) addRandom(n int) { g.buf = g.appendRandom(g.buf, n) }

func (g *Generator) appendRandom(b []byte, n int) []byte {
	for ; n >= 8; n -= 8 {
		b = binary.LittleEndian.AppendUint64(b, g.rng.Uint64())
	}
	for ; n > 0; n-- {
		b = append(b, byte(g.rng.Uint32()))
	}
	return b
}

// Frame returns an Ethernet frame, which the next call overwrites. It has at least 14 bytes, and at most 2048.
func (g *Generator) Frame() []byte {
	g.buf = g.buf[:0]
	g.addRandom(12)
	tags := 0
	for range 3 { // the third one is more than wire and XDP read
		if !g.chance(20 + 15*tags) {
			break
		}
		g.add16(pick[uint16](g, wire.EtherTypeVLAN, wire.EtherTypeVLAN, wire.EtherTypeQinQ))
		g.add16(g.n16())
		tags++
	}
	switch p := g.rng.IntN(100); {
	case p < 2:
		g.add16(pick[uint16](g, wire.EtherTypeARP, 0x8847, 0x88cc, 60))
		g.addRandom(28 + g.rng.IntN(40))
		return g.buf
	case p < 53:
		g.add16(wire.EtherTypeIPv4)
		g.packet4(nil)
	default:
		g.add16(wire.EtherTypeIPv6)
		g.packet6(nil)
	}
	if n := 60 - len(g.buf); n > 0 && g.chance(50) {
		g.addRandom(n) // Ethernet padding, which nobody promises to be zero
	} else if g.chance(3) {
		g.addRandom(1 + g.rng.IntN(9))
	}
	switch p := g.rng.IntN(100); {
	case p < 2: // cut
		g.buf = g.buf[:wire.EthernetLen+g.rng.IntN(len(g.buf)-wire.EthernetLen)]
	case p < 4: // a bit flipped somewhere in the headers
		at := g.rng.IntN(min(len(g.buf), 100))
		g.buf[at] ^= 1 << g.rng.IntN(8)
	}
	return g.buf
}

// Error returns an ICMP or ICMPv6 error that quotes the IP packet, or its beginning. Like Frame's, the bytes are the
// generator's. packet must not share them.
func (g *Generator) Error(version uint8, packet []byte) []byte {
	quote := packet
	switch {
	case g.chance(30) && version == 4: // RFC 792: 8 bytes behind the IP header
		quote = packet[:min(len(packet), wire.IPv4(packet).HeaderLen()+8)]
	case g.chance(50):
		quote = packet[:g.rng.IntN(len(packet)+1)]
	}
	g.buf = g.buf[:0]
	g.addRandom(12)
	if g.chance(20) {
		g.add16(wire.EtherTypeVLAN)
		g.add16(g.n16())
	}
	body := append([]byte{0, 0, 0, 0, 0, 0, byte(g.rng.Uint32()), byte(g.rng.Uint32())}, quote...)
	if version == 4 {
		body[0] = pick[byte](g, wire.ICMPUnreachable, wire.ICMPUnreachable, wire.ICMPTimeExceeded, wire.ICMPParamProblem, wire.ICMPSourceQuench)
		body[1] = byte(g.rng.IntN(5))
		g.add16(wire.EtherTypeIPv4)
		g.packet4(body)
	} else {
		body[0] = byte(1 + g.rng.IntN(4))
		g.add16(wire.EtherTypeIPv6)
		g.packet6(body)
	}
	return g.buf
}

// Rule returns a rule for a packet with these headers. Most rules fit the packet's family and number of tags.
func (g *Generator) Rule(h *wire.Headers) rewrite.Rule {
	const tcp = rewrite.AddSeq | rewrite.AddAck | rewrite.AddTS | rewrite.ShiftWindow
	const nat = rewrite.SetSrc | rewrite.SetDst | rewrite.SetSrcPort | rewrite.SetDstPort
	const link = rewrite.SetSrcMAC | rewrite.SetDstMAC | rewrite.SetVLAN
	const all = tcp | nat | link | rewrite.DecTTL
	r := rewrite.Rule{VLANs: h.VLANs, Seq: g.n32(), Ack: g.n32(), TSVal: g.n32(), TSEcr: g.n32()}
	switch p := g.rng.IntN(100); {
	case p < 20:
		r.Flags = tcp
	case p < 35:
		r.Flags = tcp | link
	case p < 45:
		r.Flags = nat
	case p < 50:
		r.Flags = link | rewrite.DecTTL
	case p < 55:
		r.Flags = all
	default:
		r.Flags = rewrite.Flags(g.rng.Uint32()) & all
	}
	if h.Proto != wire.ProtoTCP && g.chance(80) {
		r.Flags &^= tcp
	}
	if (h.Proto == wire.ProtoICMP || h.Proto == wire.ProtoICMPv6) && g.chance(80) {
		r.Flags &^= rewrite.SetSrcPort | rewrite.SetDstPort
	}
	copy(r.SrcMAC[:], g.appendRandom(r.SrcMAC[:0], 6))
	copy(r.DstMAC[:], g.appendRandom(r.DstMAC[:0], 6))
	r.VLAN = [2]uint16{g.n16(), g.n16()}
	if g.chance(3) {
		r.VLANs = uint8(g.rng.IntN(4))
	}
	r.Src, r.Dst = g.address(h.IPVersion), g.address(h.IPVersion)
	r.SrcPort, r.DstPort = g.n16(), g.n16()
	r.WindowShift = int8(g.rng.IntN(29) - 14)
	if g.chance(3) {
		r.WindowShift = int8(g.rng.Uint32())
	}
	return r
}

// address returns an address of the family, or seldom of the other one.
func (g *Generator) address(version uint8) (a [16]byte) {
	binary.BigEndian.PutUint32(a[12:], g.n32())
	if (version == 4) != g.chance(2) {
		a[10], a[11] = 0xff, 0xff
		return a
	}
	for i := 0; i < 12; i += 4 {
		binary.BigEndian.PutUint32(a[i:], g.n32())
	}
	if g.chance(2) { // nearly v4-mapped
		a = [16]byte{10: 0xff, 11: 0xfe, 15: 1}
	}
	return a
}
