// Package latency counts how long things take, cheaply enough for the packet
// path: an observation is one atomic addition.
//
// Buckets are log-linear: eight for each power of two, so that a quantile read
// back is at most an eighth too high. That is why there is a second kind of
// histogram beside pipeline.Histogram, whose few bounds a stage chooses, as metrics
// want them: from those no quantile can be told. Its one trap: a snapshot taken while others
// observe is not one moment's.
package latency

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	perOctave = 8
	// buckets: 0..15 ns have one each, and then 8 an octave up to 2^40 ns (18 min).
	buckets = 2*perOctave + (40-4)*perOctave
)

// Histogram counts durations from 0 to some 18 minutes; longer ones count as
// that. The zero value is ready. Its methods may be called from any goroutine.
type Histogram struct {
	count [buckets]atomic.Uint64
	sum   atomic.Uint64 // ns
}

// Observe counts a duration of ns nanoseconds; a negative one counts as 0.
func (h *Histogram) Observe(ns int64) {
	ns = max(ns, 0)
	h.count[bucket(uint64(ns))].Add(1)
	h.sum.Add(uint64(ns))
}

func bucket(ns uint64) int {
	if ns < 2*perOctave {
		return int(ns)
	}
	octave := bits.Len64(ns) - 4 // 1 for 16..31
	return min(octave*perOctave+int(ns>>octave), buckets-1)
}

// ceiling is the largest duration that a bucket counts.
func ceiling(i int) uint64 {
	if i < 2*perOctave {
		return uint64(i)
	}
	octave := i/perOctave - 1
	return (uint64(i-octave*perOctave)+1)<<octave - 1
}

// Snapshot returns what was counted so far.
func (h *Histogram) Snapshot() Snapshot {
	s := Snapshot{Sum: time.Duration(h.sum.Load())}
	for i := range h.count {
		if n := h.count[i].Load(); n > 0 {
			s.Buckets = append(s.Buckets, Bucket{Most: time.Duration(ceiling(i)), Count: n})
			s.Count += n
		}
	}
	return s
}

// Bucket is how many durations lay above the bucket before and at most at Most.
type Bucket struct {
	Most  time.Duration
	Count uint64
}

// Snapshot is the contents of a Histogram: its buckets that are not empty, in
// order.
type Snapshot struct {
	Count   uint64
	Sum     time.Duration
	Buckets []Bucket
}

// Add adds what another histogram has counted.
func (s *Snapshot) Add(o Snapshot) {
	s.Count += o.Count
	s.Sum += o.Sum
	merged := make([]Bucket, 0, len(s.Buckets)+len(o.Buckets))
	a, b := s.Buckets, o.Buckets
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].Most < b[0].Most:
			merged, a = append(merged, a[0]), a[1:]
		case len(a) == 0 || b[0].Most < a[0].Most:
			merged, b = append(merged, b[0]), b[1:]
		default:
			merged = append(merged, Bucket{a[0].Most, a[0].Count + b[0].Count})
			a, b = a[1:], b[1:]
		}
	}
	s.Buckets = merged
}

// Quantile returns a duration that at least the share q (0 to 1) of what was
// counted did not exceed; 0 if nothing was.
func (s *Snapshot) Quantile(q float64) time.Duration {
	if s.Count == 0 {
		return 0
	}
	rank := max(uint64(q*float64(s.Count)+0.999999), 1)
	for _, b := range s.Buckets {
		if rank <= b.Count {
			return b.Most
		}
		rank -= b.Count
	}
	return s.Buckets[len(s.Buckets)-1].Most
}

// Summary is a Snapshot in a few figures, in seconds.
type Summary struct {
	Count uint64  `json:"count"`
	Mean  float64 `json:"mean_seconds"`
	P50   float64 `json:"p50_seconds"`
	P99   float64 `json:"p99_seconds"`
	Max   float64 `json:"max_seconds"`
}

// Summary returns the figures that people ask for.
func (s *Snapshot) Summary() Summary {
	v := Summary{Count: s.Count, P50: s.Quantile(0.5).Seconds(), P99: s.Quantile(0.99).Seconds(), Max: s.Quantile(1).Seconds()}
	if s.Count > 0 {
		v.Mean = s.Sum.Seconds() / float64(s.Count)
	}
	return v
}
