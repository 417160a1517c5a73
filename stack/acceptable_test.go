package stack

import (
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// TestAcceptableStamp: a timestamp from the past is refused, but after 24 days of
// silence any may be from the future (RFC 7323 5.5).
func TestAcceptableStamp(t *testing.T) {
	s := &Stack{o: DefaultOptions(), n: newCounters(&pipeline.CounterSet{})}
	f := &flow{s: s, state: stateOpen}
	l := &f.client
	l.f, l.firstSent, l.ackSent = f, true, 100
	f.client.offered.stamps = true
	seg := make(wire.TCP, wire.TCPLen+12)
	seg.SetDataOffset(len(seg))
	seg.SetFlags(wire.FlagACK)
	seg.SetSeq(100)
	copy(seg[wire.TCPLen:], []byte{wire.OptNop, wire.OptNop, wire.OptTimestamps, 10})
	l.challenged = int64(time.Hour) // nobody is to be told
	for _, tc := range []struct {
		after time.Duration
		stamp byte
		want  bool
	}{{0, 50, true}, {time.Second, 40, false}, {time.Second, 60, true}, {25 * 24 * time.Hour, 10, true}, {0, 5, false}, {0, 10, true}} {
		now := l.challenged + int64(tc.after)
		l.challenged = now
		seg[wire.TCPLen+7] = tc.stamp
		if got := s.acceptable(l, &pipeline.Packet{}, seg, now); got != tc.want {
			t.Errorf("stamp %d, %v later: %v, want %v", tc.stamp, tc.after, got, tc.want)
		}
	}
}
