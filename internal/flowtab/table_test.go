package flowtab_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"penstock/internal/flowtab"
	"penstock/internal/wire"
)

func TestTable(t *testing.T) {
	tab := flowtab.New[int](3)
	if tab.Len() != 0 || tab.Cap() != 3 {
		t.Fatalf("new table: %d of %d", tab.Len(), tab.Cap())
	}
	if _, ok := tab.Get(flow(1), 0); ok {
		t.Fatal("an empty table has an entry")
	}
	if _, _, _, ok := tab.Oldest(); ok || tab.EvictOldest(nil) || tab.Delete(flow(1)) {
		t.Fatal("an empty table gives something away")
	}
	for i := range 3 {
		v, ok := tab.Insert(flow(i), int64(i))
		if !ok || *v != 0 {
			t.Fatalf("insert %d: %v, %v", i, v, ok)
		}
		*v = 10 + i
	}
	if v, ok := tab.Insert(flow(3), 3); ok || v != nil {
		t.Fatal("a full table took a fourth entry")
	}
	v, ok := tab.Insert(flow(1), 4) // is there: not full for this one
	if !ok || *v != 11 || tab.Len() != 3 {
		t.Fatalf("insert again: %v, %v, %d entries", v, ok, tab.Len())
	}
	if at, ok := tab.LastSeen(flow(1)); !ok || at != 4 {
		t.Errorf("last seen %d, %v", at, ok)
	}
	if v, ok := tab.Peek(flow(2)); !ok || *v != 12 {
		t.Errorf("peek %v, %v", v, ok)
	}
	if k, v, at, ok := tab.Oldest(); !ok || k != flow(0) || *v != 10 || at != 0 {
		t.Errorf("oldest %v, %d, %d", k, *v, at)
	}
	if v, ok := tab.Get(flow(0), 5); !ok || *v != 10 {
		t.Errorf("get %v, %v", v, ok)
	}
	if !tab.Delete(flow(1)) || tab.Delete(flow(1)) || tab.Len() != 2 {
		t.Error("delete")
	}
	if v, ok := tab.Insert(flow(7), 6); !ok || *v != 0 {
		t.Errorf("a place that was used before: %d", *v)
	}
	var left []int
	for k := range tab.OldestFirst() {
		left = append(left, int(k.SrcPort)-1024)
	}
	if !slices.Equal(left, []int{2, 0, 7}) {
		t.Errorf("oldest first: %v", left)
	}
	if tab := flowtab.New[int](-1); tab.Cap() != 1 {
		t.Errorf("capacity -1 became %d", tab.Cap())
	}
}

// TestKeys: flows that differ in one bit of any field are different, those that differ in none are equal.
func TestKeys(t *testing.T) {
	base := wire.Flow{Proto: 6, V6: true}
	var all []wire.Flow
	add := func(change func(*wire.Flow)) {
		f := base
		change(&f)
		all = append(all, f)
	}
	add(func(*wire.Flow) {})
	for i := range 128 {
		add(func(f *wire.Flow) { f.Src[i/8] ^= 1 << (i % 8) })
		add(func(f *wire.Flow) { f.Dst[i/8] ^= 1 << (i % 8) })
	}
	for i := range 16 {
		add(func(f *wire.Flow) { f.SrcPort ^= 1 << i })
		add(func(f *wire.Flow) { f.DstPort ^= 1 << i })
		add(func(f *wire.Flow) { f.VLAN[0] ^= 1 << i })
		add(func(f *wire.Flow) { f.VLAN[1] ^= 1 << i })
	}
	for i := range 8 {
		add(func(f *wire.Flow) { f.Proto ^= 1 << i })
	}
	add(func(f *wire.Flow) { f.V6 = false })
	tab := flowtab.New[int](len(all))
	for i, f := range all {
		v, ok := tab.Insert(f, 0)
		if !ok || *v != 0 {
			t.Fatalf("flow %d: %v, %d", i, ok, *v)
		}
		*v = i + 1
	}
	for i, f := range all {
		if v, ok := tab.Peek(f); !ok || *v != i+1 {
			t.Fatalf("flow %d not found, or another one", i)
		}
	}
}

// TestBothDirections is the use that wire.Flow.Canonical is for.
func TestBothDirections(t *testing.T) {
	tab := flowtab.New[int](10)
	f := flow(5)
	key, reversed := f.Canonical()
	v, _ := tab.Insert(key, 0)
	*v = 42
	back, backReversed := f.Reverse().Canonical()
	if got, ok := tab.Get(back, 1); !ok || *got != 42 || got != v || reversed == backReversed {
		t.Errorf("the reply finds %v, %v; reversed %v and %v", got, ok, reversed, backReversed)
	}
}

func TestPointersStay(t *testing.T) {
	const n = 1000
	tab := flowtab.New[int](n)
	ptr := map[int]*int{}
	rng := rand.New(rand.NewPCG(1, 1))
	for now := range int64(20000) {
		i := rng.IntN(n * 2)
		if p := ptr[i]; p != nil {
			if v, ok := tab.Get(flow(i), now); !ok || v != p || *p != i+1 {
				t.Fatalf("entry %d moved, or holds %d", i, *p)
			}
			if rng.IntN(4) == 0 {
				tab.Delete(flow(i))
				if *p != 0 {
					t.Fatalf("place of a deleted entry holds %d", *p)
				}
				delete(ptr, i)
			}
		} else if v, ok := tab.Insert(flow(i), now); ok {
			*v, ptr[i] = i+1, v
		} else if len(ptr) != n {
			t.Fatalf("full with %d entries", len(ptr))
		}
	}
}

// TestExpireSameIdle: with one idle time, a call removes all that are due, and nothing else, and no more than its limit.
func TestExpireSameIdle(t *testing.T) {
	tab := flowtab.New[int](100)
	for i := range 100 {
		tab.Insert(flow(i), int64(i))
	}
	idle := func(*int) time.Duration { return 150 }
	var gone []int
	evict := func(k wire.Flow, _ *int) { gone = append(gone, int(k.SrcPort)-1024) }
	if n := tab.Expire(149, idle, 1000, evict); n != 0 {
		t.Errorf("expired %d before their time", n)
	}
	tab.Get(flow(3), 200)
	if n := tab.Expire(300, idle, 30, evict); n != 30 || tab.Len() != 70 {
		t.Errorf("expired %d of at most 30", n)
	}
	if n := tab.Expire(300, idle, 1000, evict); n != 69 || tab.Len() != 1 {
		t.Errorf("expired %d, %d left", n, tab.Len())
	}
	want := append([]int{0, 1, 2}, make([]int, 96)...)
	for i := range 96 {
		want[3+i] = i + 4
	}
	if !slices.Equal(gone, want) {
		t.Errorf("expired in the order %v", gone)
	}
	if n := tab.Expire(349, idle, 1000, evict); n != 0 {
		t.Error("expired a nanosecond early")
	}
	if n := tab.Expire(350, idle, 1000, evict); n != 1 || tab.Len() != 0 {
		t.Error("not expired when due")
	}
	if n := tab.Expire(1000, idle, 1000, evict); n != 0 {
		t.Error("expired from an empty table")
	}
	// A clock that goes back stands still.
	tab.Insert(flow(1), 5)
	if at, _ := tab.LastSeen(flow(1)); at != 1000 {
		t.Errorf("seen at %d", at)
	}
}

// TestExpireMixedIdle: few entries with a short idle time among many old ones with a long one are found within the
// promised number of calls, while packets keep moving entries about.
func TestExpireMixedIdle(t *testing.T) {
	for _, r := range []struct{ limit, traffic int }{{-1, 0}, {2, 0}, {2, 5}, {3, 1}, {10, 5}, {64, 20}, {5000, 5}} {
		limit := r.limit
		t.Run(fmt.Sprint(r), func(t *testing.T) {
			const n = 1000
			tab := flowtab.New[int](n)
			for i := range n {
				v, _ := tab.Insert(flow(i), int64(i))
				*v = i
			}
			calls := 0
			idle := func(v *int) time.Duration {
				calls++
				if *v%100 == 99 {
					return 5000
				}
				return time.Hour
			}
			rng := rand.New(rand.NewPCG(2, 2))
			now := int64(7000) // those with the short time are due now
			allowed := 2*n/(max(limit, 2)-1) + 2
			gone := 0
			for range allowed {
				calls = 0
				gone += tab.Expire(now, idle, limit, nil)
				if calls > max(limit, 2) {
					t.Fatalf("looked at %d entries", calls)
				}
				now++
				for range r.traffic {
					if i := rng.IntN(n); i%100 != 99 {
						tab.Get(flow(i), now)
					}
				}
			}
			if gone != n/100 || tab.Len() != n-n/100 {
				t.Errorf("%d of %d entries expired in %d calls, %d left", gone, n/100, allowed, tab.Len())
			}
		})
	}
}

// TestExpireYoung: entries seen since the pass began are not looked at; a busy table costs little.
func TestExpireYoung(t *testing.T) {
	tab := flowtab.New[int](100)
	for i := range 100 {
		tab.Insert(flow(i), 500)
	}
	looked := 0
	idle := func(*int) time.Duration { looked++; return time.Hour }
	tab.Expire(500, idle, 64, nil)
	if looked != 1 {
		t.Errorf("looked at %d of 100 entries seen just now, want only the oldest", looked)
	}
}

// TestExpireIdleChanges: a flow whose idle time becomes shorter (it closed) is found too.
func TestExpireIdleChanges(t *testing.T) {
	const n = 500
	tab := flowtab.New[int](n)
	for i := range n {
		tab.Insert(flow(i), int64(i))
	}
	idle := func(v *int) time.Duration {
		if *v == 1 {
			return 100
		}
		return time.Hour
	}
	for range 20 {
		if tab.Expire(1000, idle, 50, nil) != 0 {
			t.Fatal("expired too early")
		}
	}
	for i := 250; i < 260; i++ {
		v, _ := tab.Peek(flow(i))
		*v = 1
	}
	gone := 0
	for range 2*n/49 + 2 {
		gone += tab.Expire(1000, idle, 50, nil)
	}
	if gone != 10 {
		t.Errorf("%d of 10 expired", gone)
	}
}

// TestEvictUsesTable: the callbacks may look up, insert and delete.
func TestEvictUsesTable(t *testing.T) {
	const n = 64
	tab := flowtab.New[int](n)
	fill := func() {
		for i := range n {
			v, _ := tab.Insert(flow(i), int64(i))
			*v = i
		}
	}
	fill()
	evicted := 0
	idle := func(v *int) time.Duration {
		tab.Get(flow(*v^1), 1000) // moves a neighbour
		return 10
	}
	evict := func(k wire.Flow, v *int) {
		evicted++
		if _, ok := tab.Peek(k); ok {
			t.Errorf("entry %d is in the table while it is evicted", *v)
		}
		if tab.Delete(k) {
			t.Errorf("entry %d deleted while it is evicted", *v)
		}
		tab.Delete(flow((*v + 7) % n))       // another one, perhaps the next in turn
		tab.Insert(flow(1000+evicted), 1000) // takes the place of the one just deleted, if any
		tab.EvictOldest(func(wire.Flow, *int) { evicted++ })
	}
	for range 200 {
		tab.Expire(1000, idle, 10, evict)
		check(t, tab)
	}
	if tab.Len() > n || evicted < n/3 {
		t.Errorf("%d entries left, %d evicted", tab.Len(), evicted)
	}
	// In a full table the place of the one being evicted is not free yet.
	tab = flowtab.New[int](n)
	fill()
	tab.EvictOldest(func(k wire.Flow, v *int) {
		if _, ok := tab.Insert(flow(500), 1); ok {
			t.Error("the place of an entry is used while it is evicted")
		}
		if *v != 0 || k != flow(0) {
			t.Errorf("evicted %v, %d", k, *v)
		}
	})
	if _, ok := tab.Insert(flow(500), 1); !ok {
		t.Error("no room after evicting")
	}
}

// check asserts that all ways to list a table agree, and that ages are in order.
func check(t *testing.T, tab *flowtab.Table[int]) {
	t.Helper()
	all := map[wire.Flow]*int{}
	for k, v := range tab.All() {
		if all[k] != nil {
			t.Fatalf("All yields %v twice", k)
		}
		all[k] = v
	}
	last, n := int64(-1<<63), 0
	for k, v := range tab.OldestFirst() {
		at, ok := tab.LastSeen(k)
		if !ok || at < last || all[k] != v {
			t.Fatalf("OldestFirst yields %v seen at %d after one seen at %d, found = %v", k, at, last, ok)
		}
		last = at
		n++
	}
	if n != tab.Len() || len(all) != n {
		t.Fatalf("%d entries by age, %d by place, Len %d", n, len(all), tab.Len())
	}
}

func TestIterate(t *testing.T) {
	tab := flowtab.New[int](100)
	fill := func() {
		for i := range 100 {
			v, _ := tab.Insert(flow(i), int64(i))
			*v = i
		}
	}
	fill()
	for k := range tab.All() { // delete all while at it
		if !tab.Delete(k) {
			t.Fatal("All yields what is not there")
		}
	}
	check(t, tab)
	if tab.Len() != 0 {
		t.Fatalf("%d left", tab.Len())
	}
	fill()
	n := 0
	for _, v := range tab.All() { // delete others while at it
		n++
		tab.Delete(flow((*v + 1) % 100))
		tab.Delete(flow((*v + 50) % 100))
	}
	if n+tab.Len() < 50 || n > 67 {
		t.Errorf("%d yielded, %d left", n, tab.Len())
	}
	check(t, tab)
	fill()
	order := []int{}
	for k, v := range tab.OldestFirst() {
		order = append(order, *v)
		if *v%3 == 0 {
			tab.Delete(k)
		}
	}
	if len(order) != 100 || tab.Len() != 66 {
		t.Errorf("%d yielded, %d left", len(order), tab.Len())
	}
	for range tab.All() {
		break
	}
	for range tab.OldestFirst() {
		break
	}
}

func TestNoAllocation(t *testing.T) {
	const n = 256
	tab := flowtab.New[int](n)
	keys := make([]wire.Flow, n*2)
	for i := range keys {
		keys[i] = flow(i)
	}
	i, now := 0, int64(0)
	idle := func(*int) time.Duration { return 300 }
	evict := func(wire.Flow, *int) {}
	allocs := testing.AllocsPerRun(5000, func() {
		k := keys[i*7%len(keys)]
		i++
		now++
		if _, ok := tab.Get(k, now); !ok {
			if _, ok := tab.Insert(k, now); !ok {
				tab.EvictOldest(evict)
				tab.Insert(k, now)
			}
		}
		tab.Peek(k)
		tab.LastSeen(k)
		tab.Oldest()
		tab.Expire(now, idle, 8, evict)
		if i%5 == 0 {
			tab.Delete(keys[i*3%len(keys)])
		}
		if i%100 == 0 {
			for range tab.All() {
				break
			}
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations a run", allocs)
	}
}

// TestValuesAreReleased: the place of a removed entry holds no pointer that would keep memory alive.
func TestValuesAreReleased(t *testing.T) {
	tab := flowtab.New[[]byte](4)
	for i, remove := range []func(){
		func() { tab.Delete(flow(0)) },
		func() { tab.EvictOldest(nil) },
		func() { tab.Expire(1<<40, func(*[]byte) time.Duration { return 1 }, 10, nil) },
	} {
		v, _ := tab.Insert(flow(0), 0)
		*v = make([]byte, 10)
		remove()
		if *v != nil || tab.Len() != 0 {
			t.Errorf("way %d: the place still holds %v", i, *v)
		}
	}
}
