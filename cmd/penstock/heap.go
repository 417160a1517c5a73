package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// leastHeap is how many bytes the heap may grow by before they are collected,
// however little of it is alive. Connections that come and go leave 12 KB each:
// with Go's own rule, twice what is alive, an appliance that holds a few MiB
// collects several times a second and spends a tenth of its time on it.
const leastHeap = 64 << 20

// defaultGCPercent is Go's own.
const defaultGCPercent = 100

// keepHeap sees to it, from each collection to the next, until stop is called.
// Who has set GOGC has decided otherwise. A memory limit (GOMEMLIMIT) still
// holds.
func keepHeap() (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	k := &heapKeeper{}
	k.adjust()
	k.arm()
	return k.stop
}

type heapKeeper struct {
	mu      sync.Mutex
	stopped bool // guarded by mu
	percent int  // guarded by mu
}

// arm has adjust called after the next collection: then the object that nobody
// holds is gone.
func (k *heapKeeper) arm() {
	type object struct{ _ [64]byte } // not of the kind that shares a block with others
	runtime.AddCleanup(new(object), func(k *heapKeeper) {
		if k.adjust() {
			k.arm()
		}
	}, k)
}

// adjust sets the percentage for what is alive now.
func (k *heapKeeper) adjust() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped {
		return false
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	want := gcPercent(live[0].Value.Uint64())
	// To set it stops the world: not for a little.
	if d := want - k.percent; 8*max(d, -d) > k.percent {
		k.percent = want
		debug.SetGCPercent(want)
	}
	return true
}

func (k *heapKeeper) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopped = true
	debug.SetGCPercent(defaultGCPercent)
}

// gcPercent is by how much a heap may grow of which so much is alive.
func gcPercent(live uint64) int {
	// Go multiplies this by the percentage, and never collects below (runtime/mgcpacer.go).
	const least = 4 << 20
	return max(defaultGCPercent, int(100*leastHeap/max(live, least)))
}
