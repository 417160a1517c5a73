package ratelimit

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// table is the buckets of all workers: a hash table of fixed size in which nobody waits for anybody.
//
// A key is its 64-bit hash with a secret seed: two of a million keys at a time share a bucket with a probability of
// 1 in 10^7. Each key has two sets of eight slots to be in. A slot has a key, 0 if it is free, and a bucket. The bucket
// changes by compare-and-swap only, and whoever changes it has seen the key in between, so that the swap can only
// succeed on the bucket of that key.
//
//	free:    key 0, freshBucket
//	claim:   key 0 -> k by swap
//	take:    load bucket, check key, bucket -> bucket' by swap
//	release: bucket -> deadBucket by swap, only if it has been full for a second; key -> 0; bucket -> freshBucket
type table struct {
	pace pace
	sets []set
	max  int64 // entries

	entries atomic.Int64
	swept   atomic.Int64 // ns: when the latest part was
	next    atomic.Int64 // set at which the next part begins
}

const ways = 8

// set is two cache lines.
type set struct {
	key    [ways]atomic.Uint64
	bucket [ways]atomic.Uint64
}

const (
	freshBucket uint64 = iota // full, and never used
	deadBucket                // being released
)

// sweepSets is how many sets a tick looks at: those of 65,536 entries, in about 0.1 ms.
const sweepSets = 1 << 14

// slack is how long a bucket stays after it was full: longer than the clocks of two workers, or the ages of the batches
// they are at, can differ.
const slack = int64(time.Second)

// newTable returns a table for entries keys. Twice as many slots make it all but impossible that both sets of a key are
// full before the table is.
func newTable(p pace, entries int) *table {
	sets := 1 << bits.Len(uint(max(2*entries-1, 1)/ways))
	return &table{pace: p, sets: make([]set, sets), max: int64(entries)}
}

// outcome of a take.
type outcome uint8

const (
	within outcome = iota
	exceeded
	noPlace
)

// take takes n tokens from the bucket of key at now (ns).
func (t *table) take(key uint64, now, n int64) outcome {
	key = max(key, 1)
	for range 8 {
		s, i := t.find(key)
		if s == nil {
			if s, i = t.claim(key); s == nil {
				return noPlace
			}
		}
		for {
			old := s.bucket[i].Load()
			if old == deadBucket || s.key[i].Load() != key {
				break // released meanwhile: look again
			}
			after, ok := t.pace.take(old, now, n)
			if !ok {
				return exceeded
			}
			if s.bucket[i].CompareAndSwap(old, after) {
				return within
			}
		}
	}
	// Another thread was stopped in the middle of releasing the slot, which it does only to full buckets.
	return within
}

// pair returns the two sets that a key may be in.
func (t *table) pair(key uint64) [2]*set {
	mask := uint64(len(t.sets) - 1)
	return [2]*set{&t.sets[key&mask], &t.sets[key>>32&mask]}
}

// find returns the key's slot, or nil.
func (t *table) find(key uint64) (*set, int) {
	for _, s := range t.pair(key) {
		for i := range s.key {
			if s.key[i].Load() == key {
				return s, i
			}
		}
	}
	return nil, 0
}

// claim returns a new slot for the key, or nil if there is none.
func (t *table) claim(key uint64) (*set, int) {
	if t.entries.Add(1) > t.max {
		t.entries.Add(-1)
		return nil, 0
	}
	pair := t.pair(key)
	if pair[1].free() > pair[0].free() {
		pair[0], pair[1] = pair[1], pair[0]
	}
	for _, s := range pair {
		for i := range s.key {
			if s.key[i].Load() != 0 || s.bucket[i].Load() != freshBucket || !s.key[i].CompareAndSwap(0, key) {
				continue
			}
			// If another worker has claimed one for the same key, both go on with the one that find sees first.
			if first, at := t.find(key); first != nil && (first != s || at != i) {
				t.release(s, i, freshBucket)
				return first, at
			}
			return s, i
		}
	}
	t.entries.Add(-1)
	return nil, 0
}

func (s *set) free() (n int) {
	for i := range s.key {
		if s.key[i].Load() == 0 {
			n++
		}
	}
	return n
}

// release frees a slot if its bucket is still as given.
func (t *table) release(s *set, i int, bucket uint64) {
	if bucket != deadBucket && s.bucket[i].CompareAndSwap(bucket, deadBucket) {
		s.key[i].Store(0)
		s.bucket[i].Store(freshBucket)
		t.entries.Add(-1)
	}
}

// sweep frees places whose buckets have been full for a second. It looks at a part of the table, at most every interval;
// whichever worker comes first does it. After a longer pause it looks at all of it.
func (t *table) sweep(now int64, interval time.Duration) {
	last := t.swept.Load()
	if t.entries.Load() == 0 || now-last < int64(interval) || !t.swept.CompareAndSwap(last, now) {
		return
	}
	if now-last > int64(time.Minute) {
		t.sweepAll(now)
		return
	}
	n := min(len(t.sets), sweepSets)
	from := int(t.next.Load())
	t.next.Store(int64((from + n) & (len(t.sets) - 1)))
	for s := range n {
		t.sweepSet(&t.sets[(from+s)&(len(t.sets)-1)], now)
	}
}

func (t *table) sweepAll(now int64) {
	for s := range t.sets {
		t.sweepSet(&t.sets[s], now)
	}
}

func (t *table) sweepSet(s *set, now int64) {
	for i := range s.key {
		if s.key[i].Load() == 0 {
			continue
		}
		if b := s.bucket[i].Load(); t.pace.lacks(b, now-slack) == 0 {
			t.release(s, i, b)
		}
	}
}

// reset frees all places.
func (t *table) reset() {
	for s := range t.sets {
		for i := range t.sets[s].key {
			if t.sets[s].key[i].Load() != 0 {
				t.release(&t.sets[s], i, t.sets[s].bucket[i].Load())
			}
		}
	}
}
