package flowtab_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"penstock/internal/flowtab"
	"penstock/internal/wire"
)

// model is the table as one would write it without a thought for speed.
type model struct {
	capacity int
	entries  []modelEntry // oldest first
}

type modelEntry struct {
	key   wire.Flow
	value int
	seen  int64
}

func (m *model) find(k wire.Flow) int {
	return slices.IndexFunc(m.entries, func(e modelEntry) bool { return e.key == k })
}

func (m *model) touch(i int, now int64) {
	e := m.entries[i]
	e.seen = now
	m.entries = append(slices.Delete(m.entries, i, i+1), e)
}

// play runs the operations that data encodes on a table and on the model, and compares every result.
func play(t *testing.T, data []byte) {
	if len(data) == 0 {
		return
	}
	capacity := 1 + int(data[0]%40)
	tab := flowtab.New[int](capacity)
	m := &model{capacity: capacity}
	given, latest := int64(1000), int64(0)
	clock := func() int64 { // a clock that goes back stands still
		latest = max(latest, given)
		return latest
	}
	serial := 0
	// The idle time depends on the value, so that the model can say who is due.
	idleOf := func(v int) time.Duration { return []time.Duration{20, 60, 1 << 62}[v%3] }
	for n := 1; n+1 < len(data); n += 2 {
		op, arg := data[n], int(data[n+1])
		key := flow(arg % 64)
		at := m.find(key)
		switch op % 8 {
		case 0, 1:
			v, ok := tab.Get(key, given)
			if ok != (at >= 0) {
				t.Fatalf("get: %v, model %v", ok, at >= 0)
			}
			if ok {
				if *v != m.entries[at].value {
					t.Fatalf("get: %d, model %d", *v, m.entries[at].value)
				}
				m.touch(at, clock())
			}
		case 2, 3:
			v, ok := tab.Insert(key, given)
			switch {
			case at >= 0:
				if !ok || *v != m.entries[at].value {
					t.Fatalf("insert of what is there: %v", ok)
				}
				m.touch(at, clock())
			case len(m.entries) == capacity:
				if ok {
					t.Fatal("insert into a full table")
				}
			default:
				if !ok || *v != 0 {
					t.Fatalf("insert: %v", ok)
				}
				serial++
				*v = serial
				m.entries = append(m.entries, modelEntry{key, serial, clock()})
			}
		case 4:
			if ok := tab.Delete(key); ok != (at >= 0) {
				t.Fatalf("delete: %v", ok)
			}
			if at >= 0 {
				m.entries = slices.Delete(m.entries, at, at+1)
			}
		case 5:
			ok := tab.EvictOldest(func(k wire.Flow, v *int) {
				if len(m.entries) == 0 || k != m.entries[0].key || *v != m.entries[0].value {
					t.Fatalf("evicted %v, %d", k, *v)
				}
			})
			if ok != (len(m.entries) > 0) {
				t.Fatalf("evict: %v", ok)
			}
			if ok {
				m.entries = m.entries[1:]
			}
		case 6:
			given += int64(arg%32) - 4 // goes back now and then
		case 7:
			looked, now := 0, clock()
			limit := 2 + arg%8
			removed := tab.Expire(given, func(v *int) time.Duration { looked++; return idleOf(*v) }, limit, func(k wire.Flow, v *int) {
				i := m.find(k)
				if i < 0 || m.entries[i].value != *v || now-m.entries[i].seen < int64(idleOf(*v)) {
					t.Fatalf("expired %v, %d", k, *v)
				}
				m.entries = slices.Delete(m.entries, i, i+1)
			})
			if looked > limit || removed > looked {
				t.Fatalf("looked at %d, removed %d, limit %d", looked, removed, limit)
			}
			if len(m.entries) > 0 && removed < limit {
				if e := m.entries[0]; now-e.seen >= int64(idleOf(e.value)) {
					t.Fatal("the oldest is due and was left, though the limit was not reached")
				}
			}
			if arg >= 128 { // enough calls to find all that are due
				for range 2*capacity + 3 {
					tab.Expire(given, func(v *int) time.Duration { return idleOf(*v) }, 2, func(k wire.Flow, _ *int) {
						i := m.find(k)
						m.entries = slices.Delete(m.entries, i, i+1)
					})
				}
				for _, e := range m.entries {
					if now-e.seen >= int64(idleOf(e.value)) {
						t.Fatal("an entry is due and was not found")
					}
				}
			}
		}
		if tab.Len() != len(m.entries) {
			t.Fatalf("%d entries, model %d", tab.Len(), len(m.entries))
		}
	}
	check(t, tab)
	i := 0
	for k, v := range tab.OldestFirst() {
		if e := m.entries[i]; k != e.key || *v != e.value {
			t.Fatalf("entry %d by age: %v, model %v", i, k, e.key)
		}
		i++
	}
	if k, v, seen, ok := tab.Oldest(); ok && (k != m.entries[0].key || *v != m.entries[0].value || seen != m.entries[0].seen) {
		t.Fatalf("oldest: %v seen at %d, model %v", k, seen, m.entries[0])
	}
}

func TestAgainstModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	data := make([]byte, 2000)
	for range 200 {
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		play(t, data)
	}
}

func FuzzTable(f *testing.F) {
	f.Add([]byte{3, 2, 1, 2, 2, 0, 1, 5, 0, 6, 31, 7, 255})
	f.Add([]byte{0, 2, 1, 2, 2, 4, 1, 2, 2, 7, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4096 {
			return
		}
		play(t, data)
	})
}
