package stack

import (
	"encoding/binary"

	"penstock/internal/wire"
)

// synOptions is what one end offered in its SYN or SYN-ACK.
type synOptions struct {
	mss       uint16 // 0: not offered
	scale     bool
	shift     uint8 // of scale
	sack      bool
	stamps    bool
	signed    bool // TCP-MD5 or TCP-AO: covers addresses, ports and sequence numbers
	malformed bool
}

// parseSYN reads the options of a SYN or SYN-ACK.
func parseSYN(t wire.TCP) (o synOptions) {
	it := t.OptionIter()
	for it.Next() {
		switch it.Kind {
		case wire.OptMSS:
			if v, ok := it.MSS(); ok {
				o.mss = max(v, 1)
			}
		case wire.OptWindowScale:
			o.shift, o.scale = it.WindowScale()
			o.shift = min(o.shift, 14)
		case wire.OptSACKPermitted:
			o.sack = len(it.Value) == 0
		case wire.OptTimestamps:
			_, _, o.stamps = it.Timestamps()
		case wire.OptMD5, wire.OptAO:
			o.signed = true
		}
	}
	o.malformed = it.Malformed
	return o
}

// mirror leaves in a SYN or SYN-ACK only the options that the other end
// offered, and no larger segment size than it did: the rest becomes NOPs, so
// that no length changes. Whatever netstack does not speak (Multipath TCP, Fast
// Open) goes too, and the ends fall back to plain TCP. The checksum is left
// alone. It returns the window scale that is left.
func mirror(t wire.TCP, offered synOptions) (scale uint8) {
	opts := t.Options()
	it := wire.IterTCPOptions(opts)
	for it.Next() {
		keep := false
		switch it.Kind {
		case wire.OptMSS:
			if mss, ok := it.MSS(); ok && offered.mss != 0 {
				keep = true
				if mss > offered.mss {
					binary.BigEndian.PutUint16(it.Value, offered.mss)
				}
			}
		case wire.OptWindowScale:
			v, ok := it.WindowScale()
			if keep = ok && offered.scale; keep {
				scale = min(v, 14)
			}
		case wire.OptSACKPermitted:
			keep = len(it.Value) == 0 && offered.sack
		case wire.OptTimestamps:
			_, _, ok := it.Timestamps()
			keep = ok && offered.stamps
		}
		if !keep {
			nop(opts[it.Offset : it.Offset+2+len(it.Value)])
		}
	}
	return scale
}

func nop(b []byte) {
	for i := range b {
		b[i] = wire.OptNop
	}
}
