package inspect

import (
	"penstock/internal/wire"
	"penstock/pipeline"
)

// accept decides on a segment with an ACK of a connection whose handshake has
// been answered. What the receiver may take differently than it was shown does
// not pass (RFC 9293 3.10.7.4 is the order of the checks).
func (s *Inspector) accept(f *flow, d pipeline.Direction, p *pipeline.Packet, t wire.TCP, now int64) {
	h, o := &f.half[d], &f.half[1-d]
	flags := t.Flags()
	fin := flags.Has(wire.FlagFIN)
	body := t.Payload()
	if h.unsynced {
		h.origin, h.unsynced = t.Seq(), len(body) == 0
	}
	pos := h.pos(t.Seq())
	end := pos + int64(len(body))
	last := end
	if fin {
		last++
	}
	if flags.Has(wire.FlagURG) {
		s.inline(p, t)
	}
	if last <= h.acked && (last > pos || pos < h.acked) {
		// The receiver has it all: it discards the segment, and answers.
		s.n.repeated.Add(1)
		p.Continue()
		return
	}
	// A sender may probe a closed window with one byte.
	if pos > h.edge || end > h.edge+1 {
		p.Drop(ReasonWindow)
		return
	}
	if last > pos && (h.fin >= 0 && (end > h.fin || fin && end != h.fin) || fin && h.fin < 0 && end < h.top) {
		s.conflict(f, p)
		return
	}
	if !s.acknowledge(f, o, h, p, t) {
		return
	}
	if f.state == stateSYNACK && d == pipeline.ToServer {
		f.state = stateOpen
		s.n.accepted.Add(1)
	}
	if last == pos {
		p.Continue() // nothing but an acknowledgement
		s.finished(f)
		s.settle(f, p)
		return
	}
	if f.state == stateSYNACK {
		p.Drop(pipeline.ReasonOutOfState) // the server speaks before it has been heard
		return
	}
	if !s.take(f, d, p, pos, body) {
		return
	}
	if fin && h.fin < 0 {
		h.fin = end
		h.top = max(h.top, end)
	}
	if !s.show(f, d, p, pos, body) {
		return
	}
	s.pass(f, d, p, pos, end, fin)
	s.finished(f)
	s.settle(f, p)
}

// acknowledge takes what a segment says about the other direction o: what its
// receiver has, and how much more it takes. False: the packet was decided on.
func (s *Inspector) acknowledge(f *flow, o, h *half, p *pipeline.Packet, t wire.TCP) bool {
	if o.unsynced {
		o.origin = t.Ack()
	}
	ack := o.pos(t.Ack())
	switch gone := o.gone(); {
	case ack > gone && (f.state == stateSYNACK || len(o.held) > 0 && ack <= o.next+1):
		p.Drop(pipeline.ReasonOutOfState) // it cannot have what has not passed
		return false
	case ack > gone && ack > o.edge+1:
		p.Drop(ReasonWindow)
		return false
	case ack > gone, ack > o.next && !(o.finSent && ack == o.fin+1):
		s.blind(f, p, ReasonGap)
		return false
	case ack < 0 && f.state == stateSYNACK:
		p.Drop(pipeline.ReasonOutOfState)
		return false
	}
	if o.finSent && ack == o.fin+1 {
		if !o.finAcked {
			o.finAcked = true
			if !h.finAcked {
				s.n.halfClosed.Add(1)
			}
		}
		ack--
	}
	if ack > o.acked {
		o.acked = ack
		if ack == o.next && o.bytes.loose == 0 {
			s.memory.drop(&o.bytes, 0, true)
		} else {
			s.memory.drop(&o.bytes, ack, false)
		}
	}
	if ack >= 0 && o.edge < anywhere {
		o.edge = max(o.edge, ack+int64(t.Window())<<h.scale)
	}
	return true
}

// take remembers the bytes of a segment, or finds them to be what is known
// already. False: the packet was decided on.
func (s *Inspector) take(f *flow, d pipeline.Direction, p *pipeline.Packet, pos int64, body []byte) bool {
	h := &f.half[d]
	end := pos + int64(len(body))
	if pos < h.acked { // of these the receiver has its own
		body = body[min(h.acked-pos, int64(len(body))):]
		pos = min(h.acked, end)
	}
	if pos < h.next {
		n := min(h.next, end) - pos
		if !s.memory.equal(&h.bytes, pos, body[:n]) {
			s.conflict(f, p)
			return false
		}
		body, pos = body[n:], pos+n
	}
	if len(body) == 0 {
		s.n.repeated.Add(1)
		return true
	}
	ok := true
	if h.bytes.loose == 0 && pos == h.next {
		ok = s.memory.append(&h.bytes, pos, body, s.most)
	} else {
		if !s.memory.agrees(&h.bytes, pos, body) {
			s.conflict(f, p)
			return false
		}
		ok = s.memory.put(&h.bytes, pos, body, s.most)
	}
	if !ok {
		s.blind(f, p, ReasonMemory)
		return false
	}
	h.top = max(h.top, end)
	return true
}

// conflict ends a connection, or drops the segment: it is not what has passed.
func (s *Inspector) conflict(f *flow, p *pipeline.Packet) {
	s.n.conflicts.Add(1)
	if s.o.DenyConflict && f.judged() {
		s.deny(f, p, ReasonConflict)
		return
	}
	p.Drop(ReasonConflict)
}

// pass lets a packet go whose bytes have been shown, or keeps a copy of it
// until they may pass.
func (s *Inspector) pass(f *flow, d pipeline.Direction, p *pipeline.Packet, pos, end int64, fin bool) {
	h := &f.half[d]
	if f.state >= stateReset {
		return // decided
	}
	holding := s.o.Hold && !s.o.Recorded && f.watching > 0
	switch {
	case pos > h.next:
		// Ahead of others: its receiver keeps it until those have come.
		s.n.outOfOrder.Add(1)
		if holding && !h.addIsland(pos, end) {
			p.Drop(pipeline.ReasonHoldFull) // as if it had been lost
			return
		}
		h.ahead = max(h.ahead, end)
		if fin {
			h.finSent = true
		}
		p.Continue()
		return
	case len(h.held) > 0 && h.holds(pos, end, fin):
		s.n.heldRepeated.Add(1)
		p.Consume()
		if p.Time-h.heldAt >= int64(repeatWait) && end > h.owed {
			h.owed = end
			s.n.heldGone.Add(1)
			s.flush(f, d)
		}
		return
	case holding && end > h.sent && !h.may(end), len(h.held) > 0 && end > h.sent:
		s.hold(f, d, p, pos, end, fin)
		return
	}
	h.left(end, fin, holding)
	p.Continue()
}

// finished notices that both ends have finished and know of each other.
func (s *Inspector) finished(f *flow) {
	if f.state == stateOpen && f.half[0].finAcked && f.half[1].finAcked {
		s.n.closed.Add(1)
		s.endStreams(f, f.last)
		f.state = stateFinished
		s.active--
	}
}

// reset decides on a segment with RST. It counts where its receiver may believe
// it (RFC 5961 3.2); then nothing but resets passes any more. Where only a
// careless receiver would, it passes, and the connection goes on.
func (s *Inspector) reset(f *flow, d pipeline.Direction, p *pipeline.Packet, t wire.TCP) {
	h, o := &f.half[d], &f.half[1-d]
	pos := h.pos(t.Seq())
	switch {
	case f.state == stateSYN && d == pipeline.ToClient:
		// RFC 9293 3.10.7.3: only what acknowledges the SYN.
		if !t.Flags().Has(wire.FlagACK) || t.Ack() != o.origin {
			p.Drop(pipeline.ReasonOutOfState)
			return
		}
	case f.state == stateSYN:
		if pos < -1 || pos > 0 {
			p.Continue() // of an earlier connection, of which the server has reminded it
			return
		}
	default:
		if pos < h.acked || pos > max(h.edge, h.gone()) {
			p.Drop(ReasonWindow)
			return
		}
		if len(h.held) > 0 && pos > h.sent && pos <= h.next+1 {
			// Its receiver is to believe it without the bytes that wait.
			t.SetSeq(h.seq(h.sent))
			wire.FillL4(p.Bytes(), &p.Headers)
			pos = h.sent
		}
		if pos > max(h.sent, h.gone()) {
			p.Continue()
			return
		}
	}
	s.n.resets.Add(1)
	s.end(f, stateReset)
	p.Continue()
}

// afterEnd decides on a segment of a connection that was reset or denied: an
// end that sends on has not heard of it.
func (s *Inspector) afterEnd(f *flow, d pipeline.Direction, p *pipeline.Packet, t wire.TCP) {
	if t.Flags().Has(wire.FlagRST) {
		p.Continue()
		return
	}
	if t.Flags().Has(wire.FlagACK) {
		s.sendReset(f, 1-d, t.Ack(), 0, false)
	}
	if f.state == stateDenied {
		p.Drop(f.why)
		return
	}
	p.Drop(ReasonAfterReset)
}

// inline takes the urgent pointer out: receivers differ on what it does to the
// stream (RFC 6093).
func (s *Inspector) inline(p *pipeline.Packet, t wire.TCP) {
	s.n.urgent.Add(1)
	t.SetFlags(t.Flags() &^ wire.FlagURG)
	t.SetUrgent(0)
	wire.FillL4(p.Bytes(), &p.Headers)
}
