package stack

import (
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// clock is netstack's clock. It stands still within a turn: netstack asks for
// the time a dozen times for each segment, and what happens in one turn is as
// good as simultaneous. A timer that fires sets it right first.
type clock struct {
	env func() int64
	now atomic.Int64 // ns, as env counts them
}

var _ tcpip.Clock = (*clock)(nil)

func newClock(env func() int64) *clock {
	c := &clock{env: env}
	c.now.Store(env())
	return c
}

// advance sets the clock to now, and never back.
func (c *clock) advance(now int64) {
	for {
		old := c.now.Load()
		if now <= old || c.now.CompareAndSwap(old, now) {
			return
		}
	}
}

// Now implements tcpip.Clock.
func (c *clock) Now() time.Time { return time.Unix(0, c.now.Load()) }

// NowMonotonic implements tcpip.Clock.
func (c *clock) NowMonotonic() tcpip.MonotonicTime {
	return tcpip.MonotonicTime{}.Add(time.Duration(c.now.Load()))
}

// AfterFunc implements tcpip.Clock.
func (c *clock) AfterFunc(d time.Duration, f func()) tcpip.Timer {
	return tcpip.NewStdTimer(time.AfterFunc(d, func() {
		c.advance(c.env())
		f()
	}))
}
