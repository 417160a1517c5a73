package latency

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Every duration is in a bucket whose ceiling is not below it and at most an
// eighth above it, and the next bucket begins right behind.
func TestBuckets(t *testing.T) {
	for i := range buckets - 1 {
		most := ceiling(i)
		if bucket(most) != i || bucket(most+1) != i+1 {
			t.Fatalf("bucket %d ends at %d, which is in %d, and the next is in %d", i, most, bucket(most), bucket(most+1))
		}
		if i > 0 {
			if least := ceiling(i-1) + 1; most-least > least/8 {
				t.Errorf("bucket %d is from %d to %d", i, least, most)
			}
		}
	}
	for _, ns := range []uint64{1 << 40, 1 << 50, 1<<63 - 1} {
		if got := bucket(ns); got != buckets-1 {
			t.Errorf("%d ns is in bucket %d", ns, got)
		}
	}
}

func TestQuantiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var a, b Histogram
	var all []int64
	for i := range 20000 {
		ns := int64(1) << rng.IntN(35)
		ns += rng.Int64N(ns)
		all = append(all, ns)
		if i%3 == 0 {
			a.Observe(ns)
		} else {
			b.Observe(ns)
		}
	}
	slices.Sort(all)
	s := a.Snapshot()
	s.Add(b.Snapshot())
	if s.Count != uint64(len(all)) {
		t.Fatalf("%d counted, want %d", s.Count, len(all))
	}
	var sum int64
	for _, ns := range all {
		sum += ns
	}
	if int64(s.Sum) != sum {
		t.Errorf("sum %d, want %d", s.Sum, sum)
	}
	for _, q := range []float64{0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.9999, 1} {
		exact := all[max(int(q*float64(len(all))+0.999999)-1, 0)]
		if got := int64(s.Quantile(q)); got < exact || got > exact+exact/8+1 {
			t.Errorf("quantile %v is %d, want %d or a little more", q, got, exact)
		}
	}
}

func TestEmptyAndNegative(t *testing.T) {
	var h Histogram
	s := h.Snapshot()
	if s.Quantile(0.5) != 0 {
		t.Error("the median of nothing")
	}
	h.Observe(-5)
	s = h.Snapshot()
	if s.Count != 1 || s.Quantile(1) != 0 || s.Sum != 0 {
		t.Errorf("got %+v", s)
	}
	if n := testing.AllocsPerRun(100, func() { h.Observe(12345) }); n != 0 {
		t.Errorf("Observe allocates %v times", n)
	}
}

func TestSummary(t *testing.T) {
	var h Histogram
	for range 3 {
		h.Observe(int64(15 * time.Millisecond))
	}
	s := h.Snapshot()
	got := s.Summary()
	if got.Count != 3 || got.Mean != 0.015 || got.P50 < 0.015 || got.P50 > 0.017 || got.P50 != got.Max || got.P99 != got.Max {
		t.Errorf("got %+v", got)
	}
}

func BenchmarkObserve(b *testing.B) {
	var h Histogram
	for i := range b.N {
		h.Observe(int64(i))
	}
}
