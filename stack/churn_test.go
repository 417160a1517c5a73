package stack_test

import (
	"os"
	"runtime"
	"testing"
	"time"

	"penstock/internal/wire"
)

// TestChurn opens and closes connections while others stay open and idle. When
// all are over, nothing is left of them: memory, goroutines, frames, netstack's
// endpoints. PENSTOCK_LONG=1 does it with 100,000 and 10,000 of them.
func TestChurn(t *testing.T) {
	short, idle := 600, 300
	if os.Getenv("PENSTOCK_LONG") == "1" {
		short, idle = 100_000, 10_000
	}
	if underRace {
		short, idle = 300, 50
	}
	// Goroutines that wait for handshakes are kept for the next ones, so many.
	most := runtime.NumGoroutine() + 16
	r := newRote(t, load{request: 128, response: 384, close: true})
	defer func() {
		r.over = true
		if err := r.worker.Close(); err != nil {
			t.Error(err)
		}
	}()
	settle := func(what string) usage {
		r.until(func() bool {
			r.bed.stage.Tick(time.Now().UnixNano())
			return r.bed.count("flows_active")+r.bed.count("flows_lingering") == 0
		})
		u := r.usage()
		t.Logf("%s: %+v", what, u)
		return u
	}
	// What is made once and kept is made now: pools, shakers, lists.
	r.churn(short/10, 64)
	r.idle(idle)
	r.leave()
	before := settle("before")

	r.idle(idle)
	with := r.usage()
	t.Logf("%d idle: %+v, %d bytes each", idle, with, (with.heap-before.heap)/idle)
	r.churn(short, 64)
	r.leave()
	after := settle("after")

	if after.endpoints > before.endpoints || after.goroutines > most || after.frames != before.frames {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if after.heap > before.heap+before.heap/4+1<<20 {
		t.Errorf("%d bytes in use after, %d before", after.heap, before.heap)
	}
	if each := (with.heap - before.heap) / idle; each > 16<<10 {
		t.Errorf("an idle connection takes %d bytes, want at most 16 KiB", each)
	}
}

// usage is what the process and the stack hold.
type usage struct {
	heap, goroutines, endpoints, frames int
}

func (r *rote) usage() usage {
	runtime.GC()
	runtime.GC() // pools let go of what they hold at the second one
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{int(m.HeapAlloc), runtime.NumGoroutine(), r.bed.stage.Endpoints(), r.ports[0].pool.Free()}
}

// churn opens and closes n connections, several at once.
func (r *rote) churn(n, atOnce int) {
	open := len(r.conns)
	r.done, r.reopen = 0, true
	for range atOnce {
		r.open()
	}
	r.until(func() bool { return r.done >= n-atOnce })
	r.reopen = false
	r.until(func() bool { return len(r.conns) == open })
}

// idle opens n connections that carry nothing.
func (r *rote) idle(n int) {
	l := r.load
	r.load.request = 0
	from, accepted := len(r.conns), r.bed.count("accepted")
	for i := range n {
		r.open()
		// No more at once than may be pending.
		r.until(func() bool { return r.bed.count("accepted")+512 > accepted+uint64(i) })
	}
	r.until(func() bool { return r.bed.count("accepted") == accepted+uint64(n) })
	if got := len(r.conns) - from; got != n {
		r.b.Fatalf("%d connections open, want %d", got, n)
	}
	r.load = l
}

// leave ends all connections, the client first.
func (r *rote) leave() {
	r.reopen = false
	for _, c := range r.conns {
		c.send(0, wire.FlagFIN|wire.FlagACK, 0)
	}
	r.until(func() bool { return len(r.conns) == 0 })
}
