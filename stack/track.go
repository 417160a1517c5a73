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
	takes  uint32 // how many bytes its end has said it takes, counted from the first of the stream
	turn   uint32 // rcvMax when it was its end's turn to send: all was at rest, and the other end had said something
	answer uint32 // and the other leg's rcvMax then
}

// begins notes the SYN or SYN-ACK of the leg's end.
func (k *track) begins(t wire.TCP, shift uint8) {
	k.rcvMax = t.Seq() + 1
	k.edge, k.wanted = k.rcvMax, k.rcvMax
	k.shift = shift
	k.window = t.Window() >> shift // that of a SYN is not scaled
	k.takes, k.turn = uint32(t.Window()), k.rcvMax
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
	if takes := t.Ack() - (l.iss + 1) + uint32(t.Window())<<l.shift; t.Flags()&wire.FlagACK != 0 && int32(l.acked-t.Ack()) >= 0 && int32(takes-l.takes) > 0 {
		l.takes = takes
		if o := l.other(); int32(o.edge-o.rcvMax) < l.room()/2 {
			l.f.s.widen(o)
		}
	}
	if int32(end-l.rcvMax) > 0 {
		if o := l.other(); o.rcvMax != l.answer && l.f.atRest() {
			l.turn, l.answer = l.rcvMax, o.rcvMax
		}
		l.rcvMax = end
		l.finIn = l.finIn || fin
	}
}

// offers notes, and bounds, the window in a segment that goes out.
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
		l.wanted, l.edge = edge, ack+min(edge-ack, l.other().takes)
		seg.SetWindow(uint16(l.edge - ack))
		return
	case int32(edge-l.wanted) > 0:
		l.wanted = edge
	}
	if int32(edge-l.edge) <= 0 {
		return
	}
	if bound := l.bound(edge); int32(edge-bound) > 0 {
		edge = ack + uint32(max(int32(bound-ack), 0))>>scale<<scale
		seg.SetWindow(uint16((edge - ack) >> scale))
	}
	if int32(edge-l.edge) > 0 {
		l.edge = edge
	}
}

// bound returns how far the leg's end may be told to send at most, where netstack
// would have it send up to edge.
//
// What it was promised cannot be taken back, and once the flow is spliced only the
// other end's own window counts: Linux drops a segment that reaches beyond it,
// with what it would have taken (tcp_sequence in net/ipv4/tcp_input.c), and the
// sender hears of it from its timer. So an end is promised more than the other one
// takes only while it makes use of that: in its turn it has sent half of what the other
// one takes, or more. While the flow is to be spliced it is promised nothing more at all,
// and comes to rest; unless that has to wait for the other end, which was promised too
// much and may have nothing to send.
func (l *leg) bound(edge uint32) uint32 {
	o := l.other()
	switch {
	case l.f.wish.capping && o.excess() == 0:
		return l.edge
	case l.f.wish.made: // between two tries: what is too much gets less
	case int32(l.rcvMax-l.turn) >= o.room()/2 && !l.f.atRest():
		return edge
	}
	takes := l.isn + 1 + o.takes
	if int32(takes-l.edge) < 0 {
		return l.edge
	}
	if int32(edge-takes) < 0 {
		return edge
	}
	return takes
}

// widen tells the leg's end that it may send more, if it was told less than netstack
// would have it send.
func (s *Stack) widen(l *leg) {
	if edge := l.bound(l.wanted); l.ep != nil && l.firstSent && int32(edge-l.edge) > 0 {
		l.edge = edge
		s.sendACK(l, l.ackSent, uint16(min(uint32(max(int32(edge-l.ackSent), 0))>>l.scale, 65535)))
	}
}

// room returns how many bytes the leg's end takes beyond what it has acknowledged.
func (l *leg) room() int32 {
	if !l.firstSent {
		return int32(l.takes)
	}
	return max(int32(l.takes-(l.acked-(l.iss+1))), 0)
}

// excess returns how many bytes more than the other end takes the leg's end may
// still send.
func (l *leg) excess() int32 {
	if l.finIn {
		return 0
	}
	return max(int32(l.edge-(l.isn+1)-l.other().takes), 0)
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
