package watchdog

import "testing"

// TestPassage: what each second of in and out makes of it. A letter is a change.
func TestPassage(t *testing.T) {
	const same, stuck, moving = Same, Stuck, Moving
	type tick struct {
		in, out uint64
		want    Change
	}
	// repeat is n ticks in which in grows by step.
	repeat := func(n int, in, step, out uint64) (list []tick) {
		for i := range uint64(n) {
			list = append(list, tick{in + (i+1)*step, out, same})
		}
		return list
	}
	join := func(lists ...[]tick) (all []tick) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	for _, c := range []struct {
		name   string
		rate   uint64
		ticks  []tick
		stalls uint64
	}{
		{"idle", 0, repeat(100, 7, 0, 7), 0},
		{"busy", 0, []tick{{10, 9, same}, {20, 19, same}, {30, 29, same}, {40, 40, same}, {40, 40, same}}, 0},
		{"already stuck when it is first seen", 0, join(repeat(5, 50, 1, 0), []tick{{56, 0, stuck}, {57, 0, same}}), 1},
		{"stuck and mended, twice", 0, join(
			[]tick{{0, 0, same}}, repeat(4, 0, 9, 0), []tick{{45, 0, stuck}, {50, 0, same}, {50, 3, moving}, {50, 50, same}},
			repeat(4, 50, 9, 50), []tick{{99, 50, stuck}, {99, 50, same}, {99, 99, moving}}), 2},
		{"stuck stays so when nobody sends", 0, join([]tick{{0, 0, same}}, repeat(4, 0, 1, 0), []tick{{5, 0, stuck}}, repeat(100, 5, 0, 0), []tick{{5, 5, moving}}), 1},
		{"the last frame comes back with the next", 0, join([]tick{{1, 0, same}}, repeat(30, 1, 0, 0), []tick{{2, 1, same}}, repeat(30, 2, 0, 1)), 0},
		{"tries that are far apart", 0, []tick{
			{1, 0, same}, {2, 0, same}, {2, 0, same}, {3, 0, same}, {3, 0, same}, {3, 0, same}, {3, 0, same}, {4, 0, stuck},
		}, 1},
		{"too few to matter", 10, join([]tick{{0, 0, same}}, repeat(100, 0, 9, 0)), 0},
		{"a few for long, then many", 10, join([]tick{{0, 0, same}}, repeat(20, 0, 1, 0), []tick{{100, 0, same}, {200, 0, same}, {300, 0, stuck}}), 1},
	} {
		p := Passage{Rate: c.rate}
		for i, k := range c.ticks {
			if got := p.Look(k.in, k.out); got != k.want {
				t.Errorf("%s: tick %d (%d in, %d out): got %d, want %d", c.name, i, k.in, k.out, got, k.want)
			}
		}
		if p.Stalls != c.stalls {
			t.Errorf("%s: %d stalls, want %d", c.name, p.Stalls, c.stalls)
		}
	}
}

// TestPassageForget: nothing is expected of a link that is down.
func TestPassageForget(t *testing.T) {
	p := Passage{}
	for i := range uint64(6) {
		p.Look(i, 0)
	}
	if stalled, ticks, packets := p.Stalled(); !stalled || ticks != 5 || packets != 5 {
		t.Fatalf("%t, %d, %d", stalled, ticks, packets)
	}
	p.Forget(6, 0)
	for i := range uint64(5) {
		if c := p.Look(7+i, 0); c != Same && i < 4 {
			t.Errorf("%d after %d ticks", c, i)
		}
	}
	if p.Stalls != 2 {
		t.Errorf("%d stalls, want 2", p.Stalls)
	}
}
