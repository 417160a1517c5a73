package rewritetest

import (
	"encoding/binary"

	"penstock/internal/wire"
)

// options appends a TCP option list: a multiple of 4 bytes, at most 40.
func (g *Generator) options() {
	var room [64]byte
	o := room[:0]
	nop2 := []byte{wire.OptNop, wire.OptNop}
	switch p := g.rng.IntN(100); {
	case p < 10: // none
	case p < 40:
		o = g.ts(append(o, nop2...))
	case p < 50:
		o = g.sack(append(o, nop2...), 1+g.rng.IntN(4))
	case p < 60:
		o = g.sack(append(g.ts(append(o, nop2...)), nop2...), 1+g.rng.IntN(3))
	case p < 65:
		o = g.ts(append(g.sack(append(o, nop2...), 1+g.rng.IntN(3)), nop2...))
	case p < 67: // nothing but NOPs
		for range 4 * (1 + g.rng.IntN(10)) {
			o = append(o, wire.OptNop)
		}
	default:
		for len(o) < 40 && g.chance(85) {
			o = g.option(o)
		}
		for len(o)%4 != 0 {
			o = append(o, pick[byte](g, wire.OptNop, wire.OptEnd, wire.OptEnd, byte(g.rng.Uint32())))
		}
		o = o[:min(len(o), 40)] // may cut the last one
	}
	g.add(o...)
}

func (g *Generator) ts(o []byte) []byte {
	o = append(o, wire.OptTimestamps, 10)
	o = binary.BigEndian.AppendUint32(o, g.n32())
	return binary.BigEndian.AppendUint32(o, g.n32())
}

func (g *Generator) sack(o []byte, blocks int) []byte {
	o = append(o, wire.OptSACK, byte(2+8*blocks))
	for range 2 * blocks {
		o = binary.BigEndian.AppendUint32(o, g.n32())
	}
	return o
}

// option appends any option, sound or not.
func (g *Generator) option(o []byte) []byte {
	switch g.rng.IntN(14) {
	case 0, 1, 2, 3:
		return append(o, wire.OptNop)
	case 4, 5:
		return g.ts(o)
	case 6, 7:
		return g.sack(o, g.rng.IntN(4))
	case 8:
		return append(o, wire.OptMSS, 4, 5, 0xb4)
	case 9:
		return append(o, wire.OptWindowScale, 3, 7)
	case 10:
		return append(o, wire.OptSACKPermitted, 2)
	case 11:
		size := 2 + g.rng.IntN(8)
		return g.appendRandom(append(o, pick[byte](g, wire.OptMD5, wire.OptMPTCP, wire.OptFastOpen, 253, 77), byte(size)), size-2)
	case 12: // a length that is wrong for its kind
		size := g.rng.IntN(14)
		o = append(o, pick[byte](g, wire.OptTimestamps, wire.OptSACK, 253), byte(size))
		return g.appendRandom(o, max(size-2, 0))
	default:
		if g.chance(50) {
			return append(o, wire.OptEnd)
		}
		return append(o, byte(g.rng.Uint32()), byte(g.rng.Uint32()))
	}
}
