package flowtab_test

import (
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
