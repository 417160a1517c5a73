package pipeline

import (
	"fmt"
	"testing"

	"penstock/internal/rewrite"
)

// portOffloader is an Offloader that looks at a port when it is given flows.
type portOffloader struct {
	offloader
	port    *MemoryPort
	waiting []bool
}

func (o *portOffloader) Offload(flows []ReleasedFlow) {
	o.waiting = append(o.waiting, o.port.Waiting())
	o.offloader.Offload(flows)
}

// TestSpliceAfterWhatLiesInThePorts: packets that come while the worker takes its turn
// are not overtaken by what XDP forwards. Not for ever: there is always something on a
// wire that is busy.
func TestSpliceAfterWhatLiesInThePorts(t *testing.T) {
	for _, row := range []struct {
		arrivals int // turns in which packets come behind those that are received
		late     int // the turn in which it is late
		waiting  bool
	}{
		{0, 0, false},
		{3, 0, false},
		{lateTurns + 10, lateTurns, false},
		{spliceTurns + 10, lateTurns, true},
	} {
		t.Run(fmt.Sprintf("%d turns", row.arrivals), func(t *testing.T) {
			var b *bench
			turn, late, done := 0, 0, 0
			b = newBench(t, 64, stageFunc(func(batch *Batch) {
				for p := range batch.Live() {
					p.Continue()
				}
				if turn++; turn == 1 {
					b.releases.Splice(Splice{Rules: new([2]rewrite.Rule), Late: func() { late = turn }, Done: func(bool) { done = turn }})
				}
				if turn <= row.arrivals {
					b.lan.Inject(udp(1, 10))
				}
			}))
			o := &portOffloader{offloader: offloader{take: 1}, port: b.lan}
			b.o.Default, b.releases = 0, newReleases(o, func() int64 { return 1 })
			b.lan.Inject(udp(1, 10))
			for range row.arrivals + 5 {
				b.turn(t)
			}
			if fmt.Sprint(o.waiting) != fmt.Sprint([]bool{row.waiting}) {
				t.Errorf("packets waited when flows were handed over: %v, want %v", o.waiting, []bool{row.waiting})
			}
			if want := min(spliceTurns, row.arrivals+1); done != want || late != row.late {
				t.Errorf("done in turn %d, late in %d; want %d and %d", done, late, want, row.late)
			}
		})
	}
}
