package pipeline

import (
	"reflect"
	"testing"
)

func TestHistogram(t *testing.T) {
	var a, b CounterSet
	bounds := []float64{1, 10}
	h := a.Histogram("x", "", bounds, Label{"model", "m"})
	if a.Histogram("x", "", bounds, Label{"model", "m"}) != h || a.Histogram("x", "", bounds, Label{"model", "n"}) == h {
		t.Error("a series is not found again, or is another's")
	}
	for _, v := range []float64{0, 1, 1.5, 10, 11} {
		h.Observe(v)
	}
	b.Histogram("x", "", bounds, Label{"model", "m"}).Observe(4)
	var sum ChainStats
	for _, s := range []*CounterSet{&a, &b} {
		sum.Add(ChainStats{Stages: []StageStats{{Histograms: s.Histograms()}}})
	}
	got := sum.Stages[0].Histograms
	if len(got) != 2 || !reflect.DeepEqual(got[0].Counts, []uint64{2, 3, 1}) || got[0].Sum != 27.5 || got[0].Count() != 6 || got[1].Count() != 0 {
		t.Errorf("%+v", got)
	}
	if s := h.Stats(); s.Count() != 5 {
		t.Error("adding has changed a snapshot's source")
	}
	if n := testing.AllocsPerRun(100, func() { h.Observe(3) }); n != 0 {
		t.Errorf("%v allocations an observation", n)
	}
}
