package pcap

import (
	"sync/atomic"
	"time"
)

// Clock shows the time of a replay to whoever is not part of it: what writes
// records, say. Before a replay has begun it is the system's.
type Clock struct{ ns atomic.Int64 }

// Set sets the clock to ns since the epoch.
func (c *Clock) Set(ns int64) { c.ns.Store(ns) }

// Now returns the time.
func (c *Clock) Now() time.Time {
	if ns := c.ns.Load(); ns != 0 {
		return time.Unix(0, ns).UTC()
	}
	return time.Now()
}
