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
	now atomic.Pointer[instant]
}

// instant is a time, also as netstack wants it: it takes longer to make that
// than to ask for it.
type instant struct {
	ns   int64 // as env counts them
	mono tcpip.MonotonicTime
}

var _ tcpip.Clock = (*clock)(nil)

func newClock(env func() int64) *clock {
	c := &clock{env: env}
	c.now.Store(newInstant(env()))
	return c
}

func newInstant(ns int64) *instant {
	return &instant{ns, tcpip.MonotonicTime{}.Add(time.Duration(ns))}
}

// advance sets the clock to now, and never back.
func (c *clock) advance(now int64) {
	var next *instant
	for {
		old := c.now.Load()
		if now <= old.ns {
			return
		}
		if next == nil {
			next = newInstant(now)
		}
		if c.now.CompareAndSwap(old, next) {
			return
		}
	}
}

// Now implements tcpip.Clock.
func (c *clock) Now() time.Time { return time.Unix(0, c.now.Load().ns) }

// NowMonotonic implements tcpip.Clock.
func (c *clock) NowMonotonic() tcpip.MonotonicTime { return c.now.Load().mono }

// AfterFunc implements tcpip.Clock.
func (c *clock) AfterFunc(d time.Duration, f func()) tcpip.Timer {
	return tcpip.NewStdTimer(time.AfterFunc(d, func() {
		c.advance(c.env())
		f()
	}))
}
