package rewrite

import (
	"encoding/binary"

	"penstock/internal/wire"
)

// change is by how much a ones' complement sum changes: the sum over the changed words of ~old + new (RFC 1624,
// eqn. 3), not folded. A rule changes fewer than 64 words, so it does not overflow.
//
// 2^16 is 1 modulo 0xffff: a 32-bit word may be added as it is instead of in halves, and a word at an odd offset, whose
// bytes fall into the other halves of the words that are summed, counts 256 times as much.
type change uint64

func (c *change) add16(old, new uint16) { *c += change(^old) + change(new) }

func (c *change) add32(old, new uint32) { *c += change(^old) + change(new) }

// add32At is add32 for a word at an offset that may be odd.
func (c *change) add32At(at int, old, new uint32) {
	*c += (change(^old) + change(new)) << (8 * (at & 1))
}

// applyTo returns the checksum after the change. Where nothing changed it is the old one, bit by bit; else it is never
// 0xffff, which is what computing it anew never gives either.
func (c change) applyTo(sum uint16) uint16 {
	s := uint64(c)
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	if s == 0 || s == 0xffff {
		return sum
	}
	return wire.UpdateChecksum16(sum, 0xffff, uint16(s))
}

// update applies the change to the checksum stored at the start of field.
func (c change) update(field []byte) {
	binary.BigEndian.PutUint16(field, c.applyTo(binary.BigEndian.Uint16(field)))
}

// updateUDP is update for a UDP checksum: 0 (there is none) stays, and what comes out as 0 is sent as 0xffff.
func (c change) updateUDP(field []byte) {
	if sum := binary.BigEndian.Uint16(field); sum != 0 {
		binary.BigEndian.PutUint16(field, wire.UDPChecksum(c.applyTo(sum)))
	}
}

// set16, set32 and set128 store a word at an even offset and account for it.

func (c *change) set16(field []byte, new uint16) {
	c.add16(binary.BigEndian.Uint16(field), new)
	binary.BigEndian.PutUint16(field, new)
}

func (c *change) set32(field []byte, new uint32) {
	c.add32(binary.BigEndian.Uint32(field), new)
	binary.BigEndian.PutUint32(field, new)
}

func (c *change) set128(field, new *[16]byte) {
	for i := 0; i < 16; i += 4 {
		c.add32(binary.BigEndian.Uint32(field[i:]), binary.BigEndian.Uint32(new[i:]))
	}
	*field = *new
}
