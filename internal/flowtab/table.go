package flowtab

import (
	"hash/maphash"
	"iter"
	"math/bits"
	"time"

	"penstock/internal/wire"
)

// Table maps flows to values of type V. Its places are allocated by New and never move, so a *V stays valid until its
// entry is deleted, expired or evicted; the place is then zeroed and used again.
//
// The hash has a secret seed per table: whoever chooses addresses and ports cannot choose collisions.
type Table[V any] struct {
	seed    maphash.Seed
	mask    uint64
	buckets []uint32 // hash -> first node of the chain, 0 = none
	nodes   []node   // nodes[0] is the anchor of the age ring; free nodes are chained by next
	values  []V      // values[i] belongs to nodes[i]
	free    uint32   // first free node, 0 = full
	len     int

	latest    int64  // the latest time given; an earlier one counts as this
	cursor    uint32 // where Expire goes on; 0 = at the oldest
	passStart int64  // when Expire's pass over the table began
}

// node is one cache line. older and newer link the age ring: anchor.newer is the oldest, anchor.older the newest.
type node struct {
	key          wire.Flow
	next         uint32 // in the bucket's chain, or in the free list
	older, newer uint32
	seen         int64
}

// nodeFree in older marks a free place.
const nodeFree = ^uint32(0)

// New returns an empty table with the given number of places, at least 1. It allocates all memory the table will ever
// use: about 72 bytes + the size of V for each place.
func New[V any](capacity int) *Table[V] {
	capacity = max(capacity, 1)
	size := 1 << bits.Len(uint(capacity-1))
	t := &Table[V]{
		seed:    maphash.MakeSeed(),
		mask:    uint64(size - 1),
		buckets: make([]uint32, size),
		nodes:   make([]node, capacity+1),
		values:  make([]V, capacity+1),
	}
	for i := capacity; i >= 1; i-- {
		t.nodes[i].next = t.free
		t.nodes[i].older = nodeFree
		t.free = uint32(i)
	}
	return t
}

// Len returns the number of entries.
func (t *Table[V]) Len() int { return t.len }

// Cap returns the number of places.
func (t *Table[V]) Cap() int { return len(t.nodes) - 1 }

// Get returns the entry of k and makes it the newest, seen at now.
func (t *Table[V]) Get(k wire.Flow, now int64) (v *V, ok bool) {
	i, _ := t.find(&k)
	if i == 0 {
		return nil, false
	}
	t.touch(i, now)
	return &t.values[i], true
}

// Peek returns the entry of k and leaves its age alone.
func (t *Table[V]) Peek(k wire.Flow) (v *V, ok bool) {
	i, _ := t.find(&k)
	if i == 0 {
		return nil, false
	}
	return &t.values[i], true
}

// Insert returns a new, zero entry for k, seen at now. If k has an entry already, that one is returned unchanged but
// for its age. ok is false if the table is full; the caller counts that, or makes room with EvictOldest.
func (t *Table[V]) Insert(k wire.Flow, now int64) (v *V, ok bool) {
	i, bucket := t.find(&k)
	if i != 0 {
		t.touch(i, now)
		return &t.values[i], true
	}
	i = t.free
	if i == 0 {
		return nil, false
	}
	n := &t.nodes[i]
	t.free = n.next
	n.key = k
	n.next = *bucket
	*bucket = i
	n.seen = t.clock(now)
	t.link(i)
	t.len++
	return &t.values[i], true
}

// Delete removes the entry of k; false if there is none.
func (t *Table[V]) Delete(k wire.Flow) bool {
	i, _ := t.find(&k)
	if i == 0 {
		return false
	}
	t.detach(i)
	t.release(i)
	return true
}

// LastSeen returns when k was last seen, on the caller's clock.
func (t *Table[V]) LastSeen(k wire.Flow) (at int64, ok bool) {
	i, _ := t.find(&k)
	if i == 0 {
		return 0, false
	}
	return t.nodes[i].seen, true
}

// Expire removes entries that were not seen for as long as idle says for each, oldest first, and returns how many. It
// looks at no more than limit entries and goes on there the next time, so a table with different idle times is gone
// through in bounded steps; the oldest entry is looked at in every call.
//
// evict, which may be nil, is called for each removed entry after it left the table and before its place is zeroed; v is not valid
// afterwards. Both functions may use the table.
func (t *Table[V]) Expire(now int64, idle func(v *V) time.Duration, limit int, evict func(k wire.Flow, v *V)) int {
	now = t.clock(now)
	removed := 0
	for ; limit > 0; limit-- {
		i := t.nodes[0].newer
		if i == 0 || !t.expireOne(i, now, idle, evict) {
			break
		}
		removed++
	}
	for ; limit > 0; limit-- {
		if t.cursor == 0 {
			t.cursor, t.passStart = t.nodes[0].newer, now
		}
		i := t.cursor
		// What was seen since the pass began is at the young end: the pass is over.
		if i == 0 || t.nodes[i].seen >= t.passStart {
			t.cursor = 0
			break
		}
		t.cursor = t.nodes[i].newer
		if t.expireOne(i, now, idle, evict) {
			removed++
		}
	}
	return removed
}

// expireOne removes entry i if it was idle for too long.
func (t *Table[V]) expireOne(i uint32, now int64, idle func(*V) time.Duration, evict func(wire.Flow, *V)) bool {
	if now-t.nodes[i].seen < int64(idle(&t.values[i])) {
		return false
	}
	t.remove(i, evict)
	return true
}

// EvictOldest removes the entry that was not seen for the longest time; false if the table is empty. evict is as for
// Expire.
func (t *Table[V]) EvictOldest(evict func(k wire.Flow, v *V)) bool {
	i := t.nodes[0].newer
	if i == 0 {
		return false
	}
	t.remove(i, evict)
	return true
}

// Oldest returns the entry that was not seen for the longest time, and when it was.
func (t *Table[V]) Oldest() (k wire.Flow, v *V, seen int64, ok bool) {
	i := t.nodes[0].newer
	if i == 0 {
		return wire.Flow{}, nil, 0, false
	}
	return t.nodes[i].key, &t.values[i], t.nodes[i].seen, true
}

// All yields every entry once, in no particular order. The table may be changed meanwhile: an entry deleted before its
// turn is not yielded, one inserted meanwhile may be.
func (t *Table[V]) All() iter.Seq2[wire.Flow, *V] {
	return func(yield func(wire.Flow, *V) bool) {
		for i := 1; i < len(t.nodes); i++ {
			if t.nodes[i].older != nodeFree && !yield(t.nodes[i].key, &t.values[i]) {
				return
			}
		}
	}
}

// clock returns now, but never goes back: the age ring stays sorted.
func (t *Table[V]) clock(now int64) int64 {
	t.latest = max(t.latest, now)
	return t.latest
}

// find returns the node of k, 0 if none, and the head of its chain.
func (t *Table[V]) find(k *wire.Flow) (i uint32, bucket *uint32) {
	bucket = &t.buckets[maphash.Comparable(t.seed, *k)&t.mask]
	for i = *bucket; i != 0; i = t.nodes[i].next {
		if t.nodes[i].key == *k {
			break
		}
	}
	return i, bucket
}

// touch makes entry i the newest.
func (t *Table[V]) touch(i uint32, now int64) {
	t.nodes[i].seen = t.clock(now)
	if t.nodes[0].older != i {
		t.unlink(i)
		t.link(i)
	}
}

// link puts i at the young end of the age ring.
func (t *Table[V]) link(i uint32) {
	newest := t.nodes[0].older
	t.nodes[i].older, t.nodes[i].newer = newest, 0
	t.nodes[newest].newer = i
	t.nodes[0].older = i
}

// unlink takes i out of the age ring; Expire goes on behind it.
func (t *Table[V]) unlink(i uint32) {
	older, newer := t.nodes[i].older, t.nodes[i].newer
	t.nodes[older].newer = newer
	t.nodes[newer].older = older
	if t.cursor == i {
		t.cursor = newer
	}
}

// detach takes i out of its chain and of the age ring.
func (t *Table[V]) detach(i uint32) {
	n := &t.nodes[i]
	at := &t.buckets[maphash.Comparable(t.seed, n.key)&t.mask]
	for *at != i {
		at = &t.nodes[*at].next
	}
	*at = n.next
	t.unlink(i)
	n.older = nodeFree
	t.len--
}

// release zeroes the place and puts it on the free list.
func (t *Table[V]) release(i uint32) {
	var zero V
	t.values[i] = zero
	t.nodes[i].next = t.free
	t.free = i
}

func (t *Table[V]) remove(i uint32, evict func(wire.Flow, *V)) {
	t.detach(i)
	if evict != nil {
		evict(t.nodes[i].key, &t.values[i])
	}
	t.release(i)
}
