package stack

import (
	"time"

	"penstock/internal/wire"
)

// hold keeps a pure ACK back, for a segment to carry it: until the end of the
// turn, or for ackDelay. Only one that acknowledges more than the last one did:
// repeated ACKs are signals.
func (s *Stack) hold(l *leg, o *outgoing, t wire.TCP) bool {
	if len(t.Options()) > 12 {
		return false // SACK blocks
	}
	if l.held.pkt != nil {
		if int32(t.Ack()-wire.TCP(l.held.seg).Ack()) <= 0 {
			return false
		}
		l.held.pkt.DecRef()
		s.n.acksMerged.Add(1)
	} else {
		if !l.firstSent || int32(t.Ack()-l.ackSent) <= 0 {
			return false // not new
		}
		l.heldTill = 0
		s.held = append(s.held, l)
	}
	l.held = *o
	l.held.pkt.IncRef()
	if !l.mayDelay() {
		s.urge(l)
	}
	return true
}

const (
	// sendNow stands in heldTill for an ACK that waits no longer.
	sendNow = -1
	// delayBelow is how many bytes may be unacknowledged for as long as ackDelay:
	// less than a full segment, a request or a short answer. RFC 1122, section
	// 4.2.3.2, allows two full ones and half a second.
	delayBelow = 1024
	// delayWindow is the least window, in bytes, with which an ACK may wait: below
	// it the end may wait for the window.
	delayWindow = 16 << 10
)

// mayDelay reports whether the ACK that the leg holds may wait for a segment to
// carry it. The one that completes a handshake does not: a server may have the
// first word. Nor does that of a second segment: Linux would probe for it after
// two round trips and some milliseconds.
func (l *leg) mayDelay() bool {
	t := wire.TCP(l.held.seg)
	return l.f.state == stateOpen && l.unacked < 2 && t.Ack()-l.ackSent < delayBelow && int(t.Window())<<l.scale >= delayWindow
}

// urge has an ACK that was to wait sent at the end of this turn.
func (s *Stack) urge(l *leg) {
	if l.held.pkt != nil && l.heldTill > 0 {
		l.heldTill = sendNow
		s.held = append(s.held, l)
	}
}

// settle gets the ACK that a leg holds out of the way of a segment after it:
// carried by it, or sent before it. False: no frame was free.
func (s *Stack) settle(l *leg, t wire.TCP, flags wire.TCPFlags) bool {
	if flags&wire.FlagACK == 0 || int32(t.Ack()-wire.TCP(l.held.seg).Ack()) < 0 {
		return s.sendHeld(l)
	}
	s.n.acksMerged.Add(1)
	l.dropHeld()
	return true
}

// sendHeld sends the ACK that a leg holds. False: no frame was free.
func (s *Stack) sendHeld(l *leg) bool {
	if !l.mute && !s.frame(l, l.held.pkt, l.held.seg, 0, 0, true) {
		return false
	}
	l.dropHeld()
	return true
}

func (l *leg) dropHeld() {
	l.held.pkt.DecRef()
	l.held = outgoing{}
}

// delayed is an ACK that may wait for a while. It is stale if the leg holds none
// any more, or one that waits for longer.
type delayed struct {
	leg  *leg
	till int64
}

// emitHeld sends the ACKs that nothing has carried, and lets those wait that may.
func (s *Stack) emitHeld(now int64) (busy bool) {
	s.overdue(now)
	keep := s.held[:0]
	for _, l := range s.held {
		switch {
		case l.held.pkt == nil || l.heldTill > 0:
		case l.heldTill == 0 && s.o.AckDelay > 0 && l.mayDelay():
			l.heldTill = now + int64(s.o.AckDelay)
			s.delayed = append(s.delayed, delayed{l, l.heldTill})
		case s.sendHeld(l):
			busy = true
		default:
			keep = append(keep, l)
		}
	}
	clear(s.held[len(keep):])
	s.held = keep
	if s.delayedAt < len(s.delayed) && !s.ackWake.Swap(true) {
		s.ackTimer.Reset(time.Duration(max(s.delayed[s.delayedAt].till-now, 1)))
	}
	return busy
}

// unsentACKs reports whether the next turn has to look after ACKs: no frame was
// free for one, or the timer for those that wait has run out since.
func (s *Stack) unsentACKs() bool {
	return len(s.held) > 0 || s.delayedAt < len(s.delayed) && !s.ackWake.Load()
}

// overdue takes those ACKs that have waited for long enough out of the list.
func (s *Stack) overdue(now int64) {
	for ; s.delayedAt < len(s.delayed); s.delayedAt++ {
		d := &s.delayed[s.delayedAt]
		if d.leg.held.pkt == nil || d.leg.heldTill != d.till {
			// stale
		} else if d.till > now {
			break
		} else {
			s.urge(d.leg)
			s.n.acksDelayed.Add(1)
		}
		*d = delayed{}
	}
	if s.delayedAt == len(s.delayed) {
		s.delayed, s.delayedAt = s.delayed[:0], 0
	} else if s.delayedAt > len(s.delayed)/2 && s.delayedAt >= 64 {
		n := copy(s.delayed, s.delayed[s.delayedAt:])
		clear(s.delayed[n:])
		s.delayed, s.delayedAt = s.delayed[:n], 0
	}
}
