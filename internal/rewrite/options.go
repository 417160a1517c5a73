package rewrite

import (
	"encoding/binary"

	"penstock/internal/wire"
)

// MaxOptions is how many steps the walk over a TCP option list takes: each NOP is one, each other option is one, and so
// is the end-of-options mark. The verifier wants a bound; with a larger one, lists of many NOPs cost instructions that
// no real packet has a use for.
const MaxOptions = 16

// options says where in an option list the options are that change: offsets of the kind byte plus 1, 0 for none.
type options struct {
	ts, sack uint8
	blocks   uint8 // SACK blocks, at most 4
}

// find walks an option list (0..40 bytes) and notes what a rule may change.
func (o *options) find(opts []byte) Result {
	if len(opts) == 12 && binary.BigEndian.Uint32(opts) == 0x0101080a {
		o.ts = 3 // NOP, NOP, timestamps: what almost every segment has (RFC 7323, appendix A)
		return Done
	}
	off := 0
	for range MaxOptions {
		if off == len(opts) {
			return Done
		}
		kind := opts[off]
		if kind == wire.OptEnd {
			return Done
		}
		if kind == wire.OptNop {
			off++
			continue
		}
		if off+2 > len(opts) {
			return SlowOddOptions
		}
		size := int(opts[off+1])
		if size < 2 || off+size > len(opts) {
			return SlowOddOptions
		}
		switch kind {
		case wire.OptTimestamps:
			if size != 10 || o.ts != 0 {
				return SlowOddOptions
			}
			o.ts = uint8(off + 1)
		case wire.OptSACK:
			if size%8 != 2 || o.sack != 0 {
				return SlowOddOptions
			}
			o.sack, o.blocks = uint8(off+1), uint8(size/8)
		}
		off += size
	}
	if off == len(opts) {
		return Done
	}
	return SlowTooManyOptions
}

// writeFound changes the options that find noted in opts.
func (r *Rule) writeFound(opts []byte, o *options, hasAck bool, c *change) {
	if o.ts != 0 && r.Flags&AddTS != 0 {
		r.writeTS(opts, int(o.ts)+1, hasAck, c)
	}
	if o.sack != 0 && r.Flags&AddAck != 0 && hasAck {
		r.writeSACK(opts, int(o.sack)+1, int(o.blocks), c)
	}
}

// writeTS changes the timestamps at offset at of an option list.
func (r *Rule) writeTS(opts []byte, at int, hasAck bool, c *change) {
	c.addTo(opts, at, r.TSVal)
	if hasAck && binary.BigEndian.Uint32(opts[at+4:]) != 0 {
		c.addTo(opts, at+4, r.TSEcr)
	}
}

// writeSACK changes the edges of SACK blocks, the first of which is at offset at of an option list.
func (r *Rule) writeSACK(opts []byte, at, blocks int, c *change) {
	for range 2 * blocks {
		c.addTo(opts, at, r.Ack)
		at += 4
	}
}

// addTo adds delta to the number at offset at, which may be odd.
func (c *change) addTo(b []byte, at int, delta uint32) {
	field := b[at : at+4]
	old := binary.BigEndian.Uint32(field)
	c.add32At(at, old, old+delta)
	binary.BigEndian.PutUint32(field, old+delta)
}
