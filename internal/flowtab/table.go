package flowtab

import (
	"iter"
	"math/bits"
	"time"

	"penstock/internal/wire"
)

// Table maps flows to values of type V. Its places are allocated by New and never move, so a *V stays valid until its
// entry is deleted, expired or evicted; the place is then zeroed and used again for another flow.
type Table[V any] struct {
	secret  secret
	mask    uint64
	buckets []uint32   // hash -> first place of the chain, 0 = none
	places  []place[V] // places[0] is the anchor of the age ring, and holds no entry
	free    uint32     // first free place, 0 = full
	high    uint32     // no place beyond this was ever used
	len     int

	latest    int64  // the latest time given; an earlier one counts as this
	cursor    uint32 // where Expire goes on; 0 = at the oldest
	passStart int64  // when Expire's pass over the table began
}

// place holds one entry: a cache line, and the value behind it.
type place[V any] struct {
	key  wire.Flow
	next uint32 // in the bucket's chain, or in the list of free places
	// The age ring: the anchor's newer is the oldest entry, its older the newest.
	older, newer uint32
	seen         int64
	value        V
}

// isFree in a place's older says that it holds no entry.
const isFree = ^uint32(0)

// New returns an empty table for capacity flows, at least 1 and below 2^31. It allocates all the memory the table will
// ever use: about 64 bytes, 8 to 16 for the index, and the size of V for each flow.
func New[V any](capacity int) *Table[V] {
	capacity = max(capacity, 1)
	// Half full at most, so that most chains have one entry.
	size := 2 << bits.Len(uint(capacity-1))
	t := &Table[V]{
		secret:  newSecret(),
		mask:    uint64(size - 1),
		buckets: make([]uint32, size),
		places:  make([]place[V], capacity+1),
	}
	for i := capacity; i >= 1; i-- {
		t.places[i].next = t.free
		t.places[i].older = isFree
		t.free = uint32(i)
	}
	return t
}

// Len returns the number of entries.
func (t *Table[V]) Len() int { return t.len }

// Cap returns the number of entries the table can hold.
func (t *Table[V]) Cap() int { return len(t.places) - 1 }

// Get returns the entry of k and makes it the newest one, seen at now (nanoseconds of a monotonic clock; earlier than
// an earlier call's counts as that).
func (t *Table[V]) Get(k wire.Flow, now int64) (v *V, ok bool) {
	i, _ := t.find(&k)
	if i == 0 {
		return nil, false
	}
	t.touch(i, now)
	return &t.places[i].value, true
}

// Peek returns the entry of k and leaves its age alone.
func (t *Table[V]) Peek(k wire.Flow) (v *V, ok bool) {
	i, _ := t.find(&k)
	if i == 0 {
		return nil, false
	}
	return &t.places[i].value, true
}

// Insert returns a new entry for k with a zero value, seen at now. If k has an entry already, that one is returned, as
// Get would. ok is false if the table is full; the caller counts that, or makes room with EvictOldest.
func (t *Table[V]) Insert(k wire.Flow, now int64) (v *V, ok bool) {
	i, bucket := t.find(&k)
	if i != 0 {
		t.touch(i, now)
		return &t.places[i].value, true
	}
	i = t.free
	if i == 0 {
		return nil, false
	}
	p := &t.places[i]
	t.free = p.next
	t.high = max(t.high, i)
	p.key = k
	p.next = *bucket
	*bucket = i
	p.seen = t.clock(now)
	t.link(i)
	t.len++
	return &p.value, true
}

// Delete removes the entry of k; false if there is none.
func (t *Table[V]) Delete(k wire.Flow) bool {
	i, _ := t.find(&k)
	if i == 0 {
		return false
	}
	t.remove(i, nil)
	return true
}

// LastSeen returns when k was last seen: the time of its last Get or Insert.
func (t *Table[V]) LastSeen(k wire.Flow) (at int64, ok bool) {
	i, _ := t.find(&k)
	if i == 0 {
		return 0, false
	}
	return t.places[i].seen, true
}

// Expire removes entries that have not been seen for as long as idle says for each (it may say something else each
// time), oldest first, and returns how many it removed. It looks at no more than limit entries (at least 2) and goes on
// where it stopped in the next call, so that entries with a short idle time are found behind older ones with a long
// one: the oldest gets its turn in every call, any other one after at most 2*Len()/(limit-1)+2 calls.
//
// evict, which may be nil, is called for each removed entry, after it left the table and before its value is zeroed: v
// is not valid afterwards. Both functions may use the table; the place of an entry being evicted is free only
// when evict has returned.
func (t *Table[V]) Expire(now int64, idle func(v *V) time.Duration, limit int, evict func(k wire.Flow, v *V)) (removed int) {
	now = t.clock(now)
	limit = max(limit, 2)
	for ; limit > 0; limit-- {
		i := t.places[0].newer
		if i == 0 {
			return removed
		}
		if !t.isIdle(i, now, idle) {
			limit--
			break
		}
		t.remove(i, evict)
		removed++
	}
	for ; limit > 0; limit-- {
		if t.cursor == 0 {
			t.cursor, t.passStart = t.places[0].newer, now
		}
		i := t.cursor
		// The ring is sorted by time: if this one was seen since the pass began, so was all that follows.
		if i == 0 || t.places[i].seen >= t.passStart {
			t.cursor = 0
			break
		}
		t.cursor = t.places[i].newer
		if t.isIdle(i, now, idle) {
			t.remove(i, evict)
			removed++
		}
	}
	return removed
}

func (t *Table[V]) isIdle(i uint32, now int64, idle func(*V) time.Duration) bool {
	p := &t.places[i]
	return now-p.seen >= int64(idle(&p.value))
}

// EvictOldest removes the entry that has not been seen for the longest time; false if the table is empty. evict is as
// for Expire.
func (t *Table[V]) EvictOldest(evict func(k wire.Flow, v *V)) bool {
	i := t.places[0].newer
	if i == 0 {
		return false
	}
	t.remove(i, evict)
	return true
}

// Oldest returns the entry that has not been seen for the longest time, and when it was.
func (t *Table[V]) Oldest() (k wire.Flow, v *V, seen int64, ok bool) {
	i := t.places[0].newer
	if i == 0 {
		return wire.Flow{}, nil, 0, false
	}
	p := &t.places[i]
	return p.key, &p.value, p.seen, true
}

// All yields every entry once, in no particular order. The table may be changed meanwhile: an entry deleted before its
// turn is not yielded, one inserted meanwhile may be.
func (t *Table[V]) All() iter.Seq2[wire.Flow, *V] {
	return func(yield func(wire.Flow, *V) bool) {
		for i := uint32(1); i <= t.high; i++ {
			if p := &t.places[i]; p.older != isFree && !yield(p.key, &p.value) {
				return
			}
		}
	}
}

// OldestFirst yields every entry once, by age. Of the changes to the table, only Delete of the entry just yielded is
// allowed meanwhile.
func (t *Table[V]) OldestFirst() iter.Seq2[wire.Flow, *V] {
	return func(yield func(wire.Flow, *V) bool) {
		for i := t.places[0].newer; i != 0; {
			p := &t.places[i]
			i = p.newer
			if !yield(p.key, &p.value) {
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

// find returns the place of k, 0 if it has none, and the head of the chain it belongs to.
func (t *Table[V]) find(k *wire.Flow) (i uint32, bucket *uint32) {
	bucket = &t.buckets[t.secret.hash(k)&t.mask]
	for i = *bucket; i != 0; i = t.places[i].next {
		if t.places[i].key == *k {
			break
		}
	}
	return i, bucket
}

// touch makes entry i the newest one.
func (t *Table[V]) touch(i uint32, now int64) {
	t.places[i].seen = t.clock(now)
	if t.places[0].older != i {
		t.unlink(i)
		t.link(i)
	}
}

// link puts i at the young end of the age ring.
func (t *Table[V]) link(i uint32) {
	newest := t.places[0].older
	t.places[i].older, t.places[i].newer = newest, 0
	t.places[newest].newer = i
	t.places[0].older = i
}

// unlink takes i out of the age ring. If Expire was to go on with it, it goes on behind it.
func (t *Table[V]) unlink(i uint32) {
	older, newer := t.places[i].older, t.places[i].newer
	t.places[older].newer = newer
	t.places[newer].older = older
	if t.cursor == i {
		t.cursor = newer
	}
}

// remove takes entry i out of the table, shows it to evict if there is one, and frees its place.
func (t *Table[V]) remove(i uint32, evict func(wire.Flow, *V)) {
	p := &t.places[i]
	at := &t.buckets[t.secret.hash(&p.key)&t.mask]
	for *at != i {
		at = &t.places[*at].next
	}
	*at = p.next
	t.unlink(i)
	p.older = isFree
	t.len--
	if evict != nil {
		evict(p.key, &p.value)
	}
	var zero V
	p.value = zero
	p.next = t.free
	t.free = i
}
