package pipeline

import (
	"fmt"
	"strings"
	"testing"
)

// TestTop: frequent keys are found among many rare ones, and the bounds hold.
func TestTop(t *testing.T) {
	var set CounterSet
	top := set.Top("hosts", "")
	if set.Top("hosts", "") != top {
		t.Error("a list is not found again")
	}
	want := map[string]uint64{}
	rare := 0
	for i := range 30_000 {
		key := "often"
		switch {
		case i%2 == 1:
			rare++
			key = fmt.Sprintf("rare-%d", rare)
		case i%8 == 0:
			key = "second"
		}
		want[key]++
		top.Observe(key)
	}
	top.Observe("")
	got := top.Entries()
	if len(got) != topKeys || got[0].Key != "often" || got[1].Key != "second" {
		t.Fatalf("%d entries, the first are %+v", len(got), got[:3])
	}
	for _, e := range got {
		if n := want[e.Key]; n > e.Count || n < e.Count-e.Over {
			t.Errorf("%s was seen %d times, the list says %d to %d", e.Key, n, e.Count-e.Over, e.Count)
		}
	}
	if n := testing.AllocsPerRun(100, func() { top.Observe("often") }); n != 0 {
		t.Errorf("%v allocations an observation", n)
	}
	for range topHalve {
		top.Observe("new")
	}
	if e := top.Entries()[0]; e.Key != "new" || e.Count > topHalve {
		t.Errorf("what is new does not get ahead: %+v", e)
	}
	top.Observe(strings.Repeat("x", 1000))
	for _, e := range top.Entries() {
		if len(e.Key) > topKeyLen {
			t.Errorf("a key of %d bytes is kept", len(e.Key))
		}
	}
}

func TestAddTops(t *testing.T) {
	one := []TopStats{{"web", "http", "hosts", []TopEntry{{"a", 5, 0}, {"b", 2, 1}}}}
	two := []TopStats{{"web", "http", "hosts", []TopEntry{{"b", 9, 2}, {"c", 1, 0}}}, {"web", "tls", "hosts", nil}}
	got := AddTops(AddTops(nil, one, 2), two, 2)
	if fmt.Sprint(got) != "[{web http hosts [{b 11 3} {a 5 0}]} {web tls hosts []}]" {
		t.Errorf("got %v", got)
	}
	if fmt.Sprint(one) != "[{web http hosts [{a 5 0} {b 2 1}]}]" {
		t.Errorf("adding has changed what was added: %v", one)
	}
}

// TestTimedTurns: one turn of some is timed, stage by stage, if that is asked for.
func TestTimedTurns(t *testing.T) {
	for _, on := range []bool{false, true} {
		b := newBench(t, 1, stageFunc(func(b *Batch) {
			for p := range b.Live() {
				p.Consume()
			}
		}))
		b.o.Default, b.o.TimeStages = 0, on
		now := int64(1000)
		b.clock = func() int64 { now += 7; return now }
		for range 3 * timedTurns {
			b.lan.Inject(udp(1, 1))
			b.turn(t)
		}
		s := b.Stats().Chains[0].Stages[0]
		packets, ns := uint64(0), uint64(0)
		if on {
			packets, ns = 3, 21
		}
		if s.TimedPackets != packets || s.TimedNanoseconds != ns || s.Packets != 3*timedTurns {
			t.Errorf("timing %v: %d ns for %d of %d packets, want %d ns for %d", on, s.TimedNanoseconds, s.TimedPackets, s.Packets, ns, packets)
		}
		b.check(t)
	}
}
