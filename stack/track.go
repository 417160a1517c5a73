package stack

import (
	"encoding/binary"

	"penstock/internal/wire"
)

// track is what has to be known of a leg when the connection is spliced. All
// of it is seen on the wire.
type track struct {
	rcvMax uint32 // one beyond the highest sequence number that its end has sent, FIN included
	edge   uint32 // the right edge of the largest window that its end was offered
	wanted uint32 // the same, as netstack would have it; beyond edge while the window is capped
	tsIn   uint32 // TSval of its end
	tsOut  uint32 // TSval of what went out to it last
	window uint16 // its end's, as its last segment had it, scaled
	shift  uint8  // by how much its end scales it
	finIn  bool   // its end has finished
}

// begins notes the SYN or SYN-ACK of the leg's end.
func (k *track) begins(t wire.TCP, shift uint8) {
	k.rcvMax = t.Seq() + 1
	k.edge, k.wanted = k.rcvMax, k.rcvMax
	k.shift = shift
	k.window = t.Window() >> shift // that of a SYN is not scaled
	if val, _, ok := timestamps(t); ok {
		k.tsIn = val
	}
}

// received notes a later segment of the leg's end.
func (l *leg) received(t wire.TCP) {
	n, fin := uint32(len(t.Payload())), t.Flags()&wire.FlagFIN != 0
	if fin {
		n++
	}
	seq := t.Seq()
	end := seq + n
	if int32(end-l.edge) > 0 && n > 0 || int32(seq-l.edge) > 0 || !l.firstSent {
		return // outside of the window
	}
	// A timestamp counts if the segment reaches what was acknowledged: RFC 7323,
	// section 4.3. An older one is no harm: the sum of it and a constant only
	// has to grow.
	if val, _, ok := timestamps(t); ok && int32(val-l.tsIn) > 0 && int32(seq-l.ackSent) <= 0 && int32(end-l.ackSent) >= 0 {
		l.tsIn = val
	}
	if t.Flags()&wire.FlagACK != 0 && t.Ack() == l.acked && int32(end-l.rcvMax) >= 0 {
		l.window = t.Window()
	}
	if int32(end-l.rcvMax) > 0 {
		l.rcvMax = end
		l.finIn = l.finIn || fin
	}
}

// offers notes, and while the flow is to be spliced caps, the window in a
// segment that goes out. An end that may send no more than it was promised comes
// to rest.
func (l *leg) offers(seg wire.TCP) {
	flags := seg.Flags()
	if val, _, ok := timestamps(seg); ok {
		l.tsOut = val
	}
	if flags&wire.FlagACK == 0 {
		return
	}
	scale := l.scale
	if flags&wire.FlagSYN != 0 {
		scale = 0
	}
	ack := seg.Ack()
	edge := ack + uint32(seg.Window())<<scale
	switch {
	case flags&wire.FlagSYN != 0:
		l.edge, l.wanted = edge, edge
		return
	case int32(edge-l.wanted) > 0:
		l.wanted = edge
	}
	if int32(edge-l.edge) <= 0 {
		return
	}
	if !l.f.wish.capping {
		l.edge = edge
		return
	}
	seg.SetWindow(uint16(uint32(max(int32(l.edge-ack), 0)) >> scale))
}

// capped reports whether the leg's end was offered less than netstack would.
func (l *leg) capped() bool { return int32(l.wanted-l.edge) > 0 }

// timestamps returns the timestamps of a segment.
func timestamps(t wire.TCP) (val, ecr uint32, ok bool) {
	o := t.Options()
	// As everybody sends it: RFC 7323, appendix A.
	if len(o) >= 12 && binary.BigEndian.Uint32(o) == 0x0101080a {
		return binary.BigEndian.Uint32(o[4:]), binary.BigEndian.Uint32(o[8:]), true
	}
	it := wire.IterTCPOptions(o)
	for it.Next() {
		if val, ecr, ok = it.Timestamps(); ok {
			return val, ecr, true
		}
	}
	return 0, 0, false
}

// echo sets which timestamp a segment echoes, if it has one.
func echo(seg wire.TCP, ecr uint32) {
	it := wire.IterTCPOptions(seg.Options())
	for it.Next() {
		if it.Kind == wire.OptTimestamps && len(it.Value) == 8 {
			binary.BigEndian.PutUint32(it.Value[4:], ecr)
		}
	}
}
