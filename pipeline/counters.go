package pipeline

import (
	"sync"
	"sync/atomic"
)

// Counter counts one thing of one stage instance. Its worker adds, anyone may
// read.
type Counter struct {
	Name, Help string
	gauge      bool
	v          atomic.Uint64
}

// Add adds n.
func (c *Counter) Add(n uint64) { c.v.Add(n) }

// Load returns the value.
func (c *Counter) Load() uint64 { return c.v.Load() }

// Gauge reports whether the value also falls.
func (c *Counter) Gauge() bool { return c.gauge }

// Set replaces the value: that of a gauge, or of a counter that something else
// counts.
func (c *Counter) Set(n uint64) { c.v.Store(n) }

// CounterSet is the named counters of one stage instance.
type CounterSet struct {
	mu         sync.Mutex
	list       []*Counter
	histograms []*Histogram
	tops       []*Top
}

// Counter returns the counter of that name, and makes it at the first call.
// Call it while the stage is built, not on the packet path.
func (s *CounterSet) Counter(name, help string) *Counter { return s.counter(name, help, false) }

// Gauge is Counter for what also falls: a number of things that are there now.
func (s *CounterSet) Gauge(name, help string) *Counter { return s.counter(name, help, true) }

func (s *CounterSet) counter(name, help string, gauge bool) *Counter {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.list {
		if c.Name == name {
			return c
		}
	}
	c := &Counter{Name: name, Help: help, gauge: gauge}
	s.list = append(s.list, c)
	return c
}

// All returns the counters in order of creation.
func (s *CounterSet) All() []*Counter {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Counter(nil), s.list...)
}

// Shared is state common to all instances of one stage of the configuration.
type Shared struct {
	mu sync.Mutex
	m  map[string]any
}

// Get returns the value of key, made by build at the first call.
func (s *Shared) Get(key string, build func() any) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.m[key]; ok {
		return v
	}
	if s.m == nil {
		s.m = make(map[string]any)
	}
	v := build()
	s.m[key] = v
	return v
}

// StageStats are the engine's figures of one stage: what it was shown and what
// it decided.
type StageStats struct {
	Kind      string            `json:"kind"`
	Packets   uint64            `json:"packets"`
	Bytes     uint64            `json:"bytes"`
	Continued uint64            `json:"continued"`
	Dropped   uint64            `json:"dropped"`
	Forwarded uint64            `json:"forwarded"`
	Consumed  uint64            `json:"consumed"`
	Counters  map[string]uint64 `json:"counters,omitempty"`
	Gauges    map[string]bool   `json:"-"` // which of the counters also fall

	// What some of the turns took, and how many packets the stage was shown in
	// them (WorkerOptions.TimeStages). The time of stream stages is in that of the
	// stage which shows them connections.
	TimedPackets     uint64 `json:"timed_packets,omitempty"`
	TimedNanoseconds uint64 `json:"timed_ns,omitempty"`

	Histograms []HistogramStats `json:"histograms,omitempty"`
}

// ChainStats are the figures of one chain, of one worker or summed.
type ChainStats struct {
	Name    string       `json:"name"`
	Packets uint64       `json:"packets"`
	Bytes   uint64       `json:"bytes"`
	Stages  []StageStats `json:"stages"`
}

// Add adds the figures of another instance of the same chain.
func (c *ChainStats) Add(o ChainStats) {
	c.Name = o.Name
	c.Packets += o.Packets
	c.Bytes += o.Bytes
	if c.Stages == nil {
		c.Stages = make([]StageStats, len(o.Stages))
	}
	for i, s := range o.Stages {
		t := &c.Stages[i]
		t.Kind = s.Kind
		t.Packets += s.Packets
		t.Bytes += s.Bytes
		t.Continued += s.Continued
		t.Dropped += s.Dropped
		t.Forwarded += s.Forwarded
		t.Consumed += s.Consumed
		t.TimedPackets += s.TimedPackets
		t.TimedNanoseconds += s.TimedNanoseconds
		if t.Counters == nil {
			t.Counters = make(map[string]uint64)
		}
		for name, n := range s.Counters {
			t.Counters[name] += n
		}
		for name := range s.Gauges {
			if t.Gauges == nil {
				t.Gauges = make(map[string]bool)
			}
			t.Gauges[name] = true
		}
		t.Histograms = addHistograms(t.Histograms, s.Histograms)
	}
}

// AddFormer adds the figures of an instance that had another configuration.
// Stages are matched by their kinds, in order; one that there is no more counts in
// the figures of the chain only.
func (c *ChainStats) AddFormer(o ChainStats) {
	match := ChainStats{Name: o.Name, Packets: o.Packets, Bytes: o.Bytes, Stages: make([]StageStats, len(c.Stages))}
	if c.Stages == nil {
		match.Stages = o.Stages
	}
	at := 0
	for _, s := range o.Stages {
		for i := at; i < len(c.Stages); i++ {
			if c.Stages[i].Kind == s.Kind {
				match.Stages[i], at = s, i+1
				break
			}
		}
	}
	for i := range c.Stages {
		match.Stages[i].Kind = c.Stages[i].Kind
	}
	name := c.Name
	if c.Add(match); name != "" {
		c.Name = name
	}
}

// Totals account for every packet: Packets = Forwarded + Consumed + the sum of
// Dropped. Emitted packets are the stages' own; of those, EmitLost did not find
// room in a transmit ring.
type Totals struct {
	Packets   uint64            `json:"packets"`
	Bytes     uint64            `json:"bytes"`
	Forwarded uint64            `json:"forwarded"`
	Consumed  uint64            `json:"consumed"`
	Dropped   map[string]uint64 `json:"dropped"`
	Emitted   uint64            `json:"emitted"`
	EmitLost  uint64            `json:"emit_lost"`
}

// Add adds o to t.
func (t *Totals) Add(o Totals) {
	t.Packets += o.Packets
	t.Bytes += o.Bytes
	t.Forwarded += o.Forwarded
	t.Consumed += o.Consumed
	t.Emitted += o.Emitted
	t.EmitLost += o.EmitLost
	if t.Dropped == nil {
		t.Dropped = make(map[string]uint64)
	}
	for k, v := range o.Dropped {
		t.Dropped[k] += v
	}
}

// DroppedTotal returns the sum of the drops of all reasons.
func (t Totals) DroppedTotal() (n uint64) {
	for _, v := range t.Dropped {
		n += v
	}
	return n
}

// Balanced reports whether nothing has disappeared.
func (t Totals) Balanced() bool {
	return t.Packets == t.Forwarded+t.Consumed+t.DroppedTotal()
}
