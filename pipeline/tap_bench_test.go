package pipeline

import (
	"testing"

	"penstock/internal/wire"
)

// nothing is a tap that nothing concerns.
type nothing struct{}

func (nothing) Show(int, *Packet, int64) int      { return -1 }
func (nothing) Decide(int, Outcome)               {}
func (nothing) EndTurn()                          {}
func (nothing) Hold(*wire.Flow, bool, int64) bool { return false }
func (nothing) Pass(*Packet) (held, drop bool)    { return false, false }

// BenchmarkTaps is what taps add to a turn; BenchmarkTurn is without.
func BenchmarkTaps(b *testing.B) {
	for _, taps := range []string{"removed", "nothing_matches"} {
		b.Run(taps, func(b *testing.B) {
			w := newBench(b, 1024, stageFunc(func(b *Batch) {
				for p := range b.Live() {
					p.Continue()
				}
			}))
			w.o.Ports[0], w.o.Ports[1] = &loopPort{pool: w.pool, frame: udp(5, 22)}, nil
			w.o.Ports = w.o.Ports[:1]
			w.o.Default = 0
			spec := &TapSpec{Tap: nothing{}, Points: everyPoint}
			if w.AddTap(spec); taps == "removed" {
				w.RemoveTap(spec)
			}
			b.ReportAllocs()
			for b.Loop() {
				w.Turn()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(w.Stats().Totals.Packets), "ns/packet")
		})
	}
}
