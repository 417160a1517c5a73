package ratelimit

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"penstock/pipeline"
)

const t0 = int64(1_700_000_000_000_000_000)

func TestTableIsBoundedAndForgets(t *testing.T) {
	// 10 a second, burst 5: full again after half a second.
	tb := newTable(newPace(10, 5), 100)
	for k := range uint64(100) {
		if got := tb.take(hash(k), t0, 1); got != within {
			t.Fatalf("key %d: %d", k, got)
		}
	}
	if got := tb.take(hash(1000), t0, 1); got != noPlace {
		t.Errorf("key beyond the bound: %d, want no place", got)
	}
	if got := tb.take(hash(7), t0, 1); got != within {
		t.Errorf("known key while the table is full: %d, want within", got)
	}
	if n := tb.entries.Load(); n != 100 {
		t.Errorf("%d entries", n)
	}
	// Full after 0.1 s, key 7 after 0.2 s; both stay for a second more.
	tb.sweep(t0+1.05e9, pipeline.TickInterval)
	if n := tb.entries.Load(); n != 100 {
		t.Errorf("%d entries after 1.05 s, want 100", n)
	}
	tb.sweep(t0+1.15e9, pipeline.TickInterval)
	if n := tb.entries.Load(); n != 1 {
		t.Errorf("%d entries after 1.15 s, want 1", n)
	}
	tb.sweep(t0+1.2e9, pipeline.TickInterval) // too early for another
	if n := tb.entries.Load(); n != 1 {
		t.Errorf("%d entries after an early sweep, want 1", n)
	}
	tb.sweep(t0+1.25e9, pipeline.TickInterval)
	if n := tb.entries.Load(); n != 0 {
		t.Errorf("%d entries after 1.25 s, want 0", n)
	}
	for k := range uint64(100) {
		if got := tb.take(hash(k+2000), t0+2e9, 1); got != within {
			t.Fatalf("new key %d: %d", k, got)
		}
	}
	tb.reset()
	if n := tb.entries.Load(); n != 0 {
		t.Errorf("%d entries after a reset", n)
	}
	for s := range tb.sets {
		for i := range tb.sets[s].key {
			if tb.sets[s].key[i].Load() != 0 || tb.sets[s].bucket[i].Load() != freshBucket {
				t.Fatal("a slot is not free after a reset")
			}
		}
	}
}

// hash stands in for a seeded hash.
func hash(k uint64) uint64 {
	k = (k + 1) * 0x9e3779b97f4a7c15
	k = (k ^ k>>30) * 0xbf58476d1ce4e5b9
	k = (k ^ k>>27) * 0x94d049bb133111eb
	return k ^ k>>31
}

// TestFullMeansFull fills tables with random keys and replaces half of them many times: a key must never find its two
// sets full while the table is not.
func TestFullMeansFull(t *testing.T) {
	for _, size := range []int{1, 2, 3, 7, 8, 9, 100, 1000, 65536} {
		for seed := range uint64(1 + 4000/(size+1000)) {
			r := rand.New(rand.NewPCG(seed, uint64(size)))
			tb := newTable(newPace(1, 1), size)
			now := t0
			for round := range 6 {
				for tb.entries.Load() < int64(size) {
					if got := tb.take(r.Uint64(), now, 1); got != within {
						t.Fatalf("size %d, seed %d, round %d: no place with %d entries", size, seed, round, tb.entries.Load())
					}
				}
				for s := range tb.sets {
					for i := range tb.sets[s].key {
						if r.IntN(2) == 0 && tb.sets[s].key[i].Load() != 0 {
							tb.release(&tb.sets[s], i, tb.sets[s].bucket[i].Load())
						}
					}
				}
			}
		}
	}
}

// TestWorkersShareBuckets lets several workers spend the same buckets at the same moment.
func TestWorkersShareBuckets(t *testing.T) {
	const workers, keys, burst = 4, 50, 1000
	tb := newTable(newPace(1, burst), keys)
	for k := range uint64(keys) {
		tb.take(hash(k), t0, 1)
	}
	var passed [keys]atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range 2 * burst * keys / workers {
				if k := r.IntN(keys); tb.take(hash(uint64(k)), t0, 1) == within {
					passed[k].Add(1)
				}
			}
		})
	}
	wg.Wait()
	for k := range passed {
		// Each key was tried about 2,000 times.
		if n := passed[k].Load(); n != burst-1 {
			t.Errorf("key %d: %d passed, want %d", k, n, burst-1)
		}
	}
}

// TestWorkersClaimAndRelease has workers meet new keys, and sweep, all at once. Nothing may be lost or counted twice.
func TestWorkersClaimAndRelease(t *testing.T) {
	const workers, keys, burst = 4, 64, 3
	tb := newTable(newPace(1000, burst), keys)
	var clock atomic.Int64
	clock.Store(t0)
	var passed atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 2))
			for range 20000 {
				now := clock.Add(20_000)
				if tb.take(hash(uint64(r.IntN(keys))), now, 1) == within {
					passed.Add(1)
				}
				tb.sweep(now, 0)
			}
		})
	}
	wg.Wait()
	seconds := float64(clock.Load()-t0) / 1e9
	// Every key is tried 50,000/64 = 781 times a second of this clock, below its rate of 1,000: almost all pass.
	if n := passed.Load(); float64(n) < 0.7*workers*20000 {
		t.Errorf("%d of %d passed in %.1f s", n, workers*20000, seconds)
	}
	occupied := int64(0)
	for s := range tb.sets {
		for i := range tb.sets[s].key {
			if tb.sets[s].key[i].Load() != 0 {
				occupied++
			}
			if tb.sets[s].bucket[i].Load() == deadBucket {
				t.Error("a slot was left half released")
			}
		}
	}
	if n := tb.entries.Load(); n != occupied {
		t.Errorf("%d entries are counted, %d slots are taken", n, occupied)
	}
	tb.sweepAll(clock.Load() + 10e9)
	if n := tb.entries.Load(); n != 0 {
		t.Errorf("%d entries are left when all buckets are full", n)
	}
}

func BenchmarkTake(b *testing.B) {
	for _, c := range []struct {
		name string
		keys uint64
	}{{"one key", 1}, {"1k keys", 1000}, {"60k keys", 60000}} {
		b.Run(c.name, func(b *testing.B) {
			tb := newTable(newPace(1e6, 1000), 65536)
			i, now := uint64(0), t0
			for b.Loop() {
				now += 100
				tb.take(hash(i%c.keys), now, 1)
				i++
			}
		})
	}
}

func BenchmarkSweep(b *testing.B) {
	tb := newTable(newPace(1, 1), 65536)
	for k := range uint64(65536) {
		tb.take(hash(k), t0, 1)
	}
	now := t0
	for b.Loop() {
		now++
		tb.sweep(now, 0)
	}
}
