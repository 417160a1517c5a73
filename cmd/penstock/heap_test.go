package main

import (
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

// TestKeepHeap: little garbage is not collected, and what is alive is never
// held twice over.
func TestKeepHeap(t *testing.T) {
	t.Setenv("GOGC", "")
	stop := keepHeap()
	t.Cleanup(stop)
	collections := func() uint32 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.NumGC
	}
	percent := func(what string, ok func(int) bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
			runtime.GC() // what is left of the last one is cleaned up
			p := goGC()
			if ok(p) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: the heap may grow by %d %%", what, p)
			}
		}
	}
	percent("a small heap", func(p int) bool { return p >= 200 })
	before := collections()
	for range (leastHeap - 8<<20) / 4096 {
		garbage = make([]byte, 4096)
	}
	if n := collections() - before; n > 3 { // ten and more of 4 MiB, if they were
		t.Errorf("%d collections for %d MiB", n, leastHeap>>20)
	}
	held := make([]byte, 4*leastHeap)
	percent("a large heap", func(p int) bool { return p == defaultGCPercent })
	runtime.KeepAlive(held)
	held = nil
	percent("a small heap again", func(p int) bool { return p >= 200 })
	stop()
	if p := goGC(); p != defaultGCPercent {
		t.Errorf("%d %% are left behind", p)
	}
}

var garbage []byte

// goGC is by how many percent the heap may grow now.
func goGC() int {
	m := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(m)
	return int(m[0].Value.Uint64())
}

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 1600, 4 << 20: 1600, 16 << 20: 400, 64 << 20: 100, 1 << 30: 100} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d MiB: got %d, want %d", live>>20, got, want)
		}
	}
}
