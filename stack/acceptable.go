package stack

import (
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// What netstack does not check of a segment is checked here: acknowledgments of
// what was never sent (RFC 5961 5.2), and timestamps from the past (PAWS, RFC
// 7323 5.3). Without the first, who guesses a sequence number may put bytes into
// a connection; without the second, so may a segment of 4 GB ago.

// acceptable reports whether netstack may see a segment of a connection with
// an end that knows of it.
// If not, the segment becomes one that netstack answers by saying where it
// stands, as often as it thinks fit (RFC 5961 7).
func (s *Stack) acceptable(l *leg, p *pipeline.Packet, t wire.TCP, now int64) bool {
	flags := t.Flags()
	if flags&(wire.FlagRST|wire.FlagSYN) != 0 || !l.firstSent {
		return true
	}
	if l.f.state == stateAccepting && !l.toServer && flags&wire.FlagACK != 0 && t.Ack() != l.sndMax {
		s.n.badAck.Add(1)
		s.sendBare(l, t.Ack(), 0, wire.FlagRST) // RFC 9293 3.10.7.4, in SYN-RECEIVED
		return false
	}
	if flags&wire.FlagACK != 0 {
		if ack := t.Ack(); int32(ack-l.sndMax) > 0 || int32(ack-l.acked) < -int32(s.o.SendBufferMax) {
			s.n.badAck.Add(1)
			s.challenge(l, p, t, now)
			return false
		}
	}
	if !l.f.client.offered.stamps {
		return true
	}
	val, _, ok := timestamps(t)
	if !ok {
		return true // as Linux has it
	}
	switch {
	case l.stamped && int32(val-l.stamp) < 0 && now-l.stampedAt < stampLife:
		s.n.oldStamp.Add(1)
		s.challenge(l, p, t, now)
		return false
	case !l.stamped || int32(t.Seq()-l.ackSent) <= 0:
		l.stamp, l.stampedAt, l.stamped = val, now, true
	}
	return true
}

// stampLife is how long a timestamp says what is older: a clock that ticks each
// millisecond looks older than itself after that (RFC 7323 5.5).
const stampLife = int64(24 * 24 * time.Hour)

// challengeSpacing is the least time between two segments that netstack is to
// answer. It would drop those between, but its queue would be full of them.
const challengeSpacing = int64(500 * time.Millisecond)

// challenge makes of a segment one that lies before the window and has no bytes.
func (s *Stack) challenge(l *leg, p *pipeline.Packet, t wire.TCP, now int64) {
	if l.challenged != 0 && now-l.challenged < challengeSpacing {
		return
	}
	l.challenged = now
	head := t[:t.DataOffset()]
	head.SetFlags(wire.FlagACK)
	head.SetSeq(l.ackSent - 1)
	head.SetAck(l.acked)
	p.End = p.Payload
	s.flushLeg(l)
	s.deliver(l, p, head)
}
