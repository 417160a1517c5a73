package pipeline

import (
	"sync/atomic"

	"penstock/internal/latency"
	"penstock/internal/rewrite"
	"penstock/internal/wire"
)

// ReleasedFlow is a flow that no stage wants any more.
type ReleasedFlow struct {
	Flow wire.Flow // of the packet that released it: one of its directions
	Drop bool      // both directions are dropped from now on; else forwarded
	// Rules, by Direction, say how the packets of a spliced connection are
	// changed; Flow is that of ToServer. Nil: they stay as they are.
	Rules *[2]rewrite.Rule

	Taken bool // set by the Offloader
}

// Offloader takes flows out of user space.
type Offloader interface {
	// Offload hands flows over: both directions of each, or none, and sets Taken.
	// What it does not take stays in user space. It is called on the worker's
	// goroutine, at most once a turn, and must not keep the slice.
	Offload(flows []ReleasedFlow)
}

// Splice is a terminated connection whose two halves become one again.
type Splice struct {
	Flow  wire.Flow        // from client to server
	Rules *[2]rewrite.Rule // by Direction; must not change any more
	// Done is called on the worker's goroutine when the flow is with the
	// Offloader, or stays in user space.
	Done func(taken bool)
}

// Splicer takes connections that a stage has spliced out of user space. A stage
// goes on translating what still comes up, by the same rules.
type Splicer interface {
	Splice(s Splice)
}

const (
	// maxReleases bounds how many flows are handed over in one turn; others
	// release themselves again with their next packet.
	maxReleases = 256
	// releaseSlots and releaseAgain keep the packets of a flow that were under
	// way already from handing it over again and again.
	releaseSlots = 4096
	releaseAgain = int64(100e6) // ns
	// spliceTurns is how many turns a splice waits for the ports to be empty.
	spliceTurns = 16
)

// releases collects the released flows of a turn.
type releases struct {
	to     Offloader
	clock  func() int64
	flows  []ReleasedFlow
	at     []int64         // when each was released
	recent []recentRelease // by hash
	waits  []waitingSplice
	done   []func(bool) // of the splices among flows, which are the last of them
	taken  atomic.Uint64
	failed atomic.Uint64 // refused, and those beyond maxReleases
	delay  latency.Histogram
}

type recentRelease struct {
	hash uint32
	at   int64
}

type waitingSplice struct {
	Splice
	at    int64
	turns int
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

// Splice implements Splicer.
func (r *releases) Splice(s Splice) {
	r.waits = append(r.waits, waitingSplice{s, r.clock(), 0})
}

// flush hands the flows over. It runs after transmission: what the worker still
// held of them has left before XDP forwards what comes behind. Splices wait for a
// turn in which the ports were found empty, or what lies there would come
// behind what XDP forwards.
func (r *releases) flush(empty bool) {
	if len(r.waits) > 0 {
		r.join(empty)
	}
	if len(r.flows) == 0 {
		return
	}
	r.to.Offload(r.flows)
	done, taken := r.clock(), uint64(0)
	first := len(r.flows) - len(r.done)
	for i := range r.flows {
		r.delay.Observe(done - r.at[i])
		if r.flows[i].Taken {
			taken++
		}
	}
	r.taken.Add(taken)
	r.failed.Add(uint64(len(r.flows)) - taken)
	for i, fn := range r.done {
		fn(r.flows[first+i].Taken)
		r.done[i] = nil
	}
	clear(r.flows)
	r.flows, r.at, r.done = r.flows[:0], r.at[:0], r.done[:0]
}

// join puts splices that need not wait any longer behind the released flows.
func (r *releases) join(empty bool) {
	keep := r.waits[:0]
	for _, w := range r.waits {
		if w.turns++; !empty && w.turns < spliceTurns || len(r.flows) == cap(r.flows) {
			keep = append(keep, w)
			continue
		}
		r.flows = append(r.flows, ReleasedFlow{Flow: w.Flow, Rules: w.Rules})
		r.at = append(r.at, w.at)
		r.done = append(r.done, w.Done)
	}
	clear(r.waits[len(keep):])
	r.waits = keep
}
