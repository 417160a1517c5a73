package pipeline

import (
	"sync/atomic"

	"penstock/internal/latency"
	"penstock/internal/wire"
)

// ReleasedFlow is a flow that no stage wants any more.
type ReleasedFlow struct {
	Flow wire.Flow // of the packet that released it: one of its directions
	Drop bool      // both directions are dropped from now on; else forwarded
}

// Offloader takes flows out of user space.
type Offloader interface {
	// Offload hands flows over, and returns how many it took: both directions of
	// each, or none. What it does not take stays in user space. It is called on
	// the worker's goroutine, at most once a turn, and must not keep the slice.
	Offload(flows []ReleasedFlow) (taken int)
}

const (
	// maxReleases bounds how many flows are handed over in one turn; others
	// release themselves again with their next packet.
	maxReleases = 256
	// releaseSlots and releaseAgain keep the packets of a flow that were under
	// way already from handing it over again and again.
	releaseSlots = 4096
	releaseAgain = int64(100e6) // ns
)

// releases collects the released flows of a turn.
type releases struct {
	to     Offloader
	clock  func() int64
	flows  []ReleasedFlow
	at     []int64         // when each was released
	recent []recentRelease // by hash
	taken  atomic.Uint64
	failed atomic.Uint64 // refused, and those beyond maxReleases
	delay  latency.Histogram
}

type recentRelease struct {
	hash uint32
	at   int64
}

func newReleases(to Offloader, clock func() int64) *releases {
	if to == nil {
		return nil
	}
	return &releases{
		to: to, clock: clock, flows: make([]ReleasedFlow, 0, maxReleases), at: make([]int64, 0, maxReleases),
		recent: make([]recentRelease, releaseSlots),
	}
}

// note takes a packet whose verdict is final and whose flow is released.
func (r *releases) note(p *Packet, now int64) {
	if !p.HasFlow || p.Frag != wire.FragNone || p.verdict == Consume {
		return
	}
	slot := &r.recent[p.Hash%releaseSlots]
	if slot.hash == p.Hash && now-slot.at < releaseAgain {
		return
	}
	if len(r.flows) == cap(r.flows) {
		r.failed.Add(1)
		return
	}
	*slot = recentRelease{p.Hash, now}
	r.flows = append(r.flows, ReleasedFlow{Flow: p.Flow, Drop: p.verdict == Drop})
	r.at = append(r.at, r.clock())
}

// flush hands the flows over. It runs after transmission: what the worker still
// held of them has left before XDP forwards what comes behind.
func (r *releases) flush() {
	if len(r.flows) == 0 {
		return
	}
	n := r.to.Offload(r.flows)
	r.taken.Add(uint64(n))
	r.failed.Add(uint64(len(r.flows) - n))
	done := r.clock()
	for _, at := range r.at {
		r.delay.Observe(done - at)
	}
	r.flows, r.at = r.flows[:0], r.at[:0]
}
