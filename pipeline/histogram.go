package pipeline

import (
	"math"
	"slices"
	"sync/atomic"
)

// Label is a name and a value that tell series of one histogram apart.
type Label struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Histogram counts how often a quantity lay in which range. It is one series of
// its name. Its worker observes, anyone may read.
type Histogram struct {
	Name, Help string // Name as metrics show it, whole
	Labels     []Label
	bounds     []float64 // upper ends of the buckets, ascending
	counts     []atomic.Uint64
	sum        atomic.Uint64 // a float64; one goroutine writes
}

// Observe counts v.
func (h *Histogram) Observe(v float64) {
	i, _ := slices.BinarySearch(h.bounds, v)
	h.counts[i].Add(1)
	h.sum.Store(math.Float64bits(math.Float64frombits(h.sum.Load()) + v))
}

// Stats may be called from any goroutine.
func (h *Histogram) Stats() HistogramStats {
	s := HistogramStats{Name: h.Name, Help: h.Help, Labels: h.Labels, Bounds: h.bounds, Counts: make([]uint64, len(h.counts))}
	for i := range h.counts {
		s.Counts[i] = h.counts[i].Load()
	}
	s.Sum = math.Float64frombits(h.sum.Load())
	return s
}

// HistogramStats is a snapshot of a Histogram.
type HistogramStats struct {
	Name   string    `json:"name"`
	Help   string    `json:"-"`
	Labels []Label   `json:"labels"`
	Bounds []float64 `json:"bounds"`
	Counts []uint64  `json:"counts"` // of each bucket by itself; one more than Bounds: what lies above them all
	Sum    float64   `json:"sum"`
}

// Count returns how many values were counted.
func (s *HistogramStats) Count() (n uint64) {
	for _, c := range s.Counts {
		n += c
	}
	return n
}

// addHistograms adds more to sum, series by series.
func addHistograms(sum, more []HistogramStats) []HistogramStats {
	for _, m := range more {
		i := slices.IndexFunc(sum, func(s HistogramStats) bool { return s.Name == m.Name && slices.Equal(s.Labels, m.Labels) })
		if i < 0 {
			m.Counts = slices.Clone(m.Counts)
			sum = append(sum, m)
			continue
		}
		if len(m.Counts) != len(sum[i].Counts) {
			continue // of another configuration
		}
		for j, n := range m.Counts {
			sum[i].Counts[j] += n
		}
		sum[i].Sum += m.Sum
	}
	return sum
}

// Histogram returns the series of that name and with these labels, and makes it
// at the first call. All series of a name have the same bounds, and the same
// names of labels in one order; how many there are is the caller's to bound.
func (s *CounterSet) Histogram(name, help string, bounds []float64, labels ...Label) *Histogram {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.histograms {
		if h.Name == name && slices.Equal(h.Labels, labels) {
			return h
		}
	}
	h := &Histogram{Name: name, Help: help, Labels: labels, bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
	s.histograms = append(s.histograms, h)
	return h
}

// Histograms returns the snapshots of all, in order of creation.
func (s *CounterSet) Histograms() (all []HistogramStats) {
	s.mu.Lock()
	list := slices.Clone(s.histograms)
	s.mu.Unlock()
	for _, h := range list {
		all = append(all, h.Stats())
	}
	return all
}
