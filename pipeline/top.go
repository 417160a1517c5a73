package pipeline

import (
	"cmp"
	"slices"
	"strings"
)

// Top finds the most frequent keys among any number of them, in bounded memory: a
// new key takes the place of the rarest one that is kept, and its count, as a
// bound of what may have been missed (Metwally, Agrawal, El Abbadi: Efficient
// Computation of Frequent and Top-k Elements in Data Streams, 2005). What is long
// ago counts for less: all counts are halved now and then. Only its worker uses it.
type Top struct {
	Name, Help string
	entries    []TopEntry
	index      map[string]int
	seen       uint32
}

const (
	topKeys   = 128
	topKeyLen = 255     // longer keys are cut
	topHalve  = 1 << 16 // observations
)

// TopEntry is a key and how often it was seen, of late: at least Count - Over
// times, at most Count.
type TopEntry struct {
	Key   string `json:"key"`
	Count uint64 `json:"count"`
	Over  uint64 `json:"over,omitempty"`
}

// TopStats are the most frequent keys that a stage has seen, most frequent first.
type TopStats struct {
	Chain   string     `json:"chain"`
	Stage   string     `json:"stage"`
	Name    string     `json:"name"`
	Entries []TopEntry `json:"entries"`
}

// Top returns the list of that name, and makes it at the first call.
func (s *CounterSet) Top(name, help string) *Top {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tops {
		if t.Name == name {
			return t
		}
	}
	t := &Top{Name: name, Help: help, index: make(map[string]int, topKeys)}
	s.tops = append(s.tops, t)
	return t
}

// Observe counts key, unless it is empty. Only a key that was not kept allocates.
func (t *Top) Observe(key string) {
	if key == "" {
		return
	}
	key = key[:min(len(key), topKeyLen)]
	if t.seen++; t.seen == topHalve {
		t.seen = 0
		for i := range t.entries {
			t.entries[i].Count /= 2
			t.entries[i].Over /= 2
		}
	}
	if i, ok := t.index[key]; ok {
		t.entries[i].Count++
		return
	}
	key = strings.Clone(key)
	if len(t.entries) < topKeys {
		t.index[key] = len(t.entries)
		t.entries = append(t.entries, TopEntry{Key: key, Count: 1})
		return
	}
	least := 0
	for i := range t.entries {
		if t.entries[i].Count < t.entries[least].Count {
			least = i
		}
	}
	e := &t.entries[least]
	delete(t.index, e.Key)
	*e = TopEntry{Key: key, Count: e.Count + 1, Over: e.Count}
	t.index[key] = least
}

// Entries returns a copy of what is kept, most frequent first.
func (t *Top) Entries() []TopEntry {
	list := slices.Clone(t.entries)
	sortTop(list)
	return list
}

func sortTop(list []TopEntry) {
	slices.SortFunc(list, func(a, b TopEntry) int {
		return cmp.Or(cmp.Compare(b.Count-b.Over, a.Count-a.Over), cmp.Compare(b.Count, a.Count), strings.Compare(a.Key, b.Key))
	})
}

// Tops returns what the chain's stages have found to be frequent. Only from
// Worker.Call.
func (c *Chain) Tops() (all []TopStats) {
	for i := range c.stages {
		slot := &c.stages[i]
		for _, t := range slot.counters.tops {
			all = append(all, TopStats{Chain: c.Name, Stage: slot.kind, Name: t.Name, Entries: t.Entries()})
		}
	}
	return all
}

// AddTops adds more, what another worker has, to sum, and keeps the first n keys
// of each list.
func AddTops(sum, more []TopStats, n int) []TopStats {
	for _, m := range more {
		i := slices.IndexFunc(sum, func(s TopStats) bool { return s.Chain == m.Chain && s.Stage == m.Stage && s.Name == m.Name })
		if i < 0 {
			i = len(sum)
			sum = append(sum, TopStats{Chain: m.Chain, Stage: m.Stage, Name: m.Name})
		}
		s := &sum[i]
		for _, e := range m.Entries {
			if j := slices.IndexFunc(s.Entries, func(o TopEntry) bool { return o.Key == e.Key }); j >= 0 {
				s.Entries[j].Count += e.Count
				s.Entries[j].Over += e.Over
			} else {
				s.Entries = append(s.Entries, e)
			}
		}
		sortTop(s.Entries)
		s.Entries = s.Entries[:min(len(s.Entries), n)]
	}
	return sum
}
