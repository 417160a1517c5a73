package stack

import (
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"

	"penstock/pipeline"
)

// clock is netstack's clock. It stands still within a turn: netstack asks for
// the time a dozen times for each segment, and what happens in one turn is as
// good as simultaneous. A timer that fires sets it right first.
//
// With RACK it takes a step after each segment that is sent. Of segments that
// were sent at the same time, netstack takes those behind one that was
// acknowledged for older ones, which RACK then holds to be lost
// (rackControl.detectLoss has the last comparison of RFC 8985, section 6.2,
// step 5 the wrong way round).
type clock struct {
	env func() int64
	sim *pipeline.Simulation // nil: timers are the system's
	// quiesce is called after each timer of a simulation.
	quiesce func()
	now     atomic.Pointer[instant]
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

// step moves the clock on by the least there is.
func (c *clock) step() {
	c.advance(c.now.Load().ns + 1)
}

// Now implements tcpip.Clock.
func (c *clock) Now() time.Time { return time.Unix(0, c.now.Load().ns) }

// NowMonotonic implements tcpip.Clock.
func (c *clock) NowMonotonic() tcpip.MonotonicTime { return c.now.Load().mono }

// leastTimer is the shortest time that a timer runs, as Linux has it for the
// timers of loss detection (TCP_TIMEOUT_MIN, two jiffies). Netstack sets them to
// fractions and small multiples of the round-trip time. Between machines of a
// room that is less than either end may be kept from its processor, and whatever
// was under way then would be sent again.
const leastTimer = 4 * time.Millisecond

// AfterFunc implements tcpip.Clock.
func (c *clock) AfterFunc(d time.Duration, f func()) tcpip.Timer {
	if c.sim != nil {
		t := &simTimer{c: c, f: f}
		t.Reset(d)
		return t
	}
	return timer{time.AfterFunc(max(d, leastTimer), func() {
		c.advance(c.env())
		f()
	})}
}

type timer struct{ *time.Timer }

// Reset implements tcpip.Timer.
func (t timer) Reset(d time.Duration) { t.Timer.Reset(max(d, leastTimer)) }

// simTimer is a timer of a simulation. Netstack stops and resets it with locks
// held that fn takes; fn runs between two turns, when nobody holds any.
type simTimer struct {
	c    *clock
	f    func()
	stop func() bool
}

var _ tcpip.Timer = (*simTimer)(nil)

// Stop implements tcpip.Timer.
func (t *simTimer) Stop() bool { return t.stop() }

// Reset implements tcpip.Timer.
func (t *simTimer) Reset(d time.Duration) {
	if t.stop != nil {
		t.stop()
	}
	t.stop = t.c.sim.AfterFunc(max(d, leastTimer), func() {
		t.c.advance(t.c.env())
		t.f()
		t.c.quiesce()
	})
}
