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
