package flowtab_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"penstock/internal/flowtab"
	"penstock/internal/wire"
)

// value is about as large as what a stage keeps for a flow.
type value struct {
	packets uint64
	_       [7]uint64
}

func BenchmarkTable(b *testing.B) {
	for _, size := range []int{1e3, 1e4, 1e5, 1e6} {
		flows := make([]wire.Flow, size)
		rng := rand.New(rand.NewPCG(1, uint64(size)))
		for i := range flows {
			flows[i] = flow(i)
		}
		order := make([]wire.Flow, size)
		for i, j := range rng.Perm(size) {
			order[i] = flows[j]
		}
		full := func() *flowtab.Table[value] {
			t := flowtab.New[value](size)
			for i, f := range flows {
				if _, ok := t.Insert(f, int64(i)); !ok {
					b.Fatal("full")
				}
			}
			return t
		}
		b.Run(fmt.Sprintf("Get/%d", size), func(b *testing.B) {
			t := full()
			b.ReportAllocs()
			i, now := 0, int64(size)
			for b.Loop() {
				now++
				v, ok := t.Get(order[i], now)
				if !ok {
					b.Fatal("missing")
				}
				v.packets++
				if i++; i == size {
					i = 0
				}
			}
		})
		b.Run(fmt.Sprintf("GetMissing/%d", size), func(b *testing.B) {
			t := full()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				f := order[i]
				f.Proto = 17
				if _, ok := t.Peek(f); ok {
					b.Fatal("found")
				}
				if i++; i == size {
					i = 0
				}
			}
		})
		b.Run(fmt.Sprintf("DeleteInsert/%d", size), func(b *testing.B) {
			t := full()
			b.ReportAllocs()
			i, now := 0, int64(size)
			for b.Loop() {
				now++
				if !t.Delete(order[i]) {
					b.Fatal("missing")
				}
				if _, ok := t.Insert(order[i], now); !ok {
					b.Fatal("full")
				}
				if i++; i == size {
					i = 0
				}
			}
		})
		b.Run(fmt.Sprintf("GoMapGet/%d", size), func(b *testing.B) { // what a map costs, without ages and bounds
			m := make(map[wire.Flow]*value, size)
			for _, f := range flows {
				m[f] = new(value)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				m[order[i]].packets++
				if i++; i == size {
					i = 0
				}
			}
		})
	}
}

// BenchmarkGetTurn is what a worker does: some flows come up again and again, the clock is read once a turn.
func BenchmarkGetTurn(b *testing.B) {
	const size, hot = 100000, 64
	t := flowtab.New[value](size)
	for i := range size {
		t.Insert(flow(i), int64(i))
	}
	b.ReportAllocs()
	i, now := 0, int64(size)
	for b.Loop() {
		if i++; i%32 == 0 {
			now += 1000
		}
		v, _ := t.Get(flow(i%hot*991), now)
		v.packets++
	}
}

func BenchmarkExpire(b *testing.B) {
	const size = 100000
	t := flowtab.New[value](size)
	for i := range size {
		t.Insert(flow(i), int64(i))
	}
	idle := func(*value) time.Duration { return time.Hour }
	b.ReportAllocs()
	for b.Loop() {
		t.Expire(size, idle, 64, nil)
	}
}
