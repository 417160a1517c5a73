package pipeline

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
)

// StageSpec is one stage of a chain, decoded and validated.
type StageSpec struct {
	Kind   *Kind
	Config any // from Kind.NewConfig
	Shared *Shared
}

// ChainSpec is a chain as configured: a passive blueprint, from which each
// worker builds its own Chain.
type ChainSpec struct {
	Name   string
	Stages []StageSpec
	// KeepFlows keeps flows in user space also when no stage wants them
	// (offload = "never").
	KeepFlows bool
}

// Affinity reports whether both directions of a flow must meet in one worker.
func (s *ChainSpec) Affinity() bool {
	for _, st := range s.Stages {
		if st.Kind.Affinity {
			return true
		}
	}
	return false
}

// Holder returns the first stage that never lets go of a flow, and why; "" if
// flows leave user space.
func (s *ChainSpec) Holder() (stage, why string) {
	if s.KeepFlows {
		return "chain", `offload = "never"`
	}
	for _, st := range s.Stages {
		if d, _, _ := s.Depth(); st.Kind.Layer == BoundaryLayer && d < DepthTerminate {
			continue // what holds a connection that it terminates does not hold others
		}
		if why := st.Kind.Holds(st.Config); why != "" {
			return st.Kind.Name, why
		}
	}
	return "", ""
}

// Need returns the most that the chain's stream stages do with connections, the
// first stage that needs so much, and why.
func (s *ChainSpec) Need() (n Need, stage, why string) {
	for _, st := range s.Stages {
		if sn, w := st.Kind.Needs(st.Config); sn > n {
			n, stage, why = sn, st.Kind.Name, w
		}
	}
	return n, stage, why
}

// Depth returns the depth of the chain's flows, the stage that forces it, and
// why.
func (s *ChainSpec) Depth() (d Depth, stage, why string) {
	d, stage, why = DepthForward, "", "packet stages only"
	need, forcing, because := s.Need()
	for _, st := range s.Stages {
		sd, w := st.Kind.Depth(st.Config, need)
		switch {
		case sd <= d:
		case w != "":
			d, stage, why = sd, st.Kind.Name, w
		case need == NeedNothing:
			d, stage, why = sd, st.Kind.Name, "no stage is behind it"
		default:
			d, stage, why = sd, forcing, because
		}
	}
	return d, stage, why
}

// Resumes reports whether the chain can go on with flows whose beginning it has
// not seen.
func (s *ChainSpec) Resumes() bool {
	d, _, _ := s.Depth()
	for _, st := range s.Stages {
		if st.Kind.Layer == BoundaryLayer && (d > DepthInspect || st.Kind.resumes == nil || !st.Kind.resumes(st.Config)) {
			return false
		}
	}
	return true
}

// Chain is one worker's instance of a chain.
type Chain struct {
	Name      string
	keepFlows bool
	stages    []stageSlot
	packets   atomic.Uint64
	bytes     atomic.Uint64
	timer     func() int64 // while a turn is timed, else nil
	taps      *chainTaps   // nil while there are none

	pollers   []poller
	tickers   []Ticker
	drainers  []Drainer
	observers []Observer
	listers   []FlowLister
	enders    []FlowEnder
	wakers    []Waker
	closers   []Closer
}

type poller struct {
	Poller
	slot *stageSlot
}

type stageSlot struct {
	kind     string
	stage    Stage // nil for a stream stage: the boundary stage calls it
	counters *CounterSet
	verdicts [Consume + 1]atomic.Uint64
	packets  atomic.Uint64
	bytes    atomic.Uint64

	timedPackets, timedNanos atomic.Uint64
}

// Build makes a worker's instance of the chain. env is the prototype: Build
// fills in what differs between stages.
func (s *ChainSpec) Build(env Env) (*Chain, error) {
	c := &Chain{Name: s.Name, keepFlows: s.KeepFlows, stages: make([]stageSlot, len(s.Stages))}
	if holder, _ := s.Holder(); holder != "" {
		env.Offload, env.Splicer = false, nil
	}
	env.Depth, _, _ = s.Depth()
	env.Need, _, _ = s.Need()
	var streams []StreamStage
	var names []string
	// From the last to the first: the boundary needs the stream stages built.
	for i := len(s.Stages) - 1; i >= 0; i-- {
		spec, slot := s.Stages[i], &c.stages[i]
		slot.kind, slot.counters = spec.Kind.Name, &CounterSet{}
		e := env
		e.Chain, e.Index, e.Kind, e.Counters, e.Shared = s.Name, i, spec.Kind.Name, slot.counters, spec.Shared
		if e.Log == nil {
			e.Log = slog.New(slog.DiscardHandler)
		}
		e.Log = e.Log.With("chain", s.Name, "stage", spec.Kind.Name)
		var err error
		var built any
		switch spec.Kind.Layer {
		case StreamLayer:
			var st StreamStage
			st, err = spec.Kind.buildStream(spec.Config, &e)
			streams, names = append([]StreamStage{st}, streams...), append([]string{spec.Kind.Name}, names...)
			built = st
		case BoundaryLayer:
			slot.stage, err = spec.Kind.buildBound(spec.Config, &e, streams, names)
			built = slot.stage
		default:
			slot.stage, err = spec.Kind.build(spec.Config, &e)
			built = slot.stage
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("build chain %q, stage %d (%s): %w", s.Name, i+1, spec.Kind.Name, err), c.Close())
		}
		c.adopt(built, slot)
	}
	return c, nil
}

// Run shows the batch to each stage in turn. Afterwards every packet has a
// final verdict: what the last stage lets continue is forwarded to the peer
// port, which the caller has put into Out.
func (c *Chain) Run(b *Batch) {
	pkts := b.pkts
	var bytes uint64
	for _, p := range pkts {
		bytes += uint64(p.len)
	}
	c.packets.Add(uint64(len(pkts)))
	c.bytes.Add(bytes)
	live := len(pkts)
	for i := range c.stages {
		slot := &c.stages[i]
		if slot.stage == nil || live == 0 {
			break // stream stages are called by the boundary before them
		}
		var shown, shownBytes uint64
		for _, p := range pkts {
			if p.verdict <= Continue {
				p.verdict = verdictNone
				p.stage = uint8(i)
				shown++
				shownBytes += uint64(p.len)
			}
		}
		if c.taps != nil {
			c.taps.batch(c.taps.before[i], pkts, i, true)
		}
		if c.timer == nil {
			slot.stage.Process(b)
		} else {
			began := c.timer()
			slot.stage.Process(b)
			slot.took(c.timer()-began, shown)
		}
		var n [Consume + 1]uint64
		for _, p := range pkts {
			if int(p.stage) != i {
				continue
			}
			if p.verdict == verdictNone {
				p.Drop(ReasonNoVerdict)
			}
			n[p.verdict]++
		}
		if c.taps != nil {
			c.taps.batch(c.taps.after[i], pkts, i, false)
		}
		live = int(n[Continue])
		slot.packets.Add(shown)
		slot.bytes.Add(shownBytes)
		for v := Continue; v <= Consume; v++ {
			if n[v] != 0 {
				slot.verdicts[v].Add(n[v])
			}
		}
	}
	if live == 0 {
		return
	}
	for _, p := range pkts {
		if p.verdict <= Continue {
			p.verdict = Forward
			if len(c.stages) == 0 {
				p.released = 1 // nobody is there who could want the flow
			}
		}
	}
}

// adopt finds out, once, which optional interfaces a stage has.
func (c *Chain) adopt(stage any, slot *stageSlot) {
	if s, ok := stage.(Poller); ok {
		c.pollers = append(c.pollers, poller{s, slot})
	}
	if s, ok := stage.(Ticker); ok {
		c.tickers = append(c.tickers, s)
	}
	if s, ok := stage.(Drainer); ok {
		c.drainers = append(c.drainers, s)
	}
	if s, ok := stage.(Observer); ok {
		c.observers = append(c.observers, s)
	}
	if s, ok := stage.(FlowLister); ok {
		c.listers = append(c.listers, s)
	}
	if s, ok := stage.(FlowEnder); ok {
		c.enders = append(c.enders, s)
	}
	if s, ok := stage.(Waker); ok {
		c.wakers = append(c.wakers, s)
	}
	if s, ok := stage.(Closer); ok {
		c.closers = append(c.closers, s)
	}
}

func (c *Chain) observe(b *Batch) {
	for _, o := range c.observers {
		o.Observe(b)
	}
}

func (c *Chain) poll(now int64) (busy bool) {
	for _, p := range c.pollers {
		began := now
		if c.timer != nil {
			began = c.timer()
		}
		if p.Poll(now) {
			busy = true
		}
		if c.timer != nil {
			p.slot.took(c.timer()-began, 0)
		}
	}
	return busy
}

func (s *stageSlot) took(ns int64, packets uint64) {
	s.timedNanos.Add(uint64(max(ns, 0)))
	s.timedPackets.Add(packets)
}

func (c *Chain) tick(now int64) {
	for _, t := range c.tickers {
		t.Tick(now)
	}
}

// Drain asks the stages to finish what they hold, and returns how many
// connections are left. Only from Worker.Call.
func (c *Chain) Drain(now int64) (left int) {
	for _, d := range c.drainers {
		left += d.Drain(now)
	}
	return left
}

// Close closes the stages that hold resources. From Worker.Call, if the worker
// has run the chain: what the stages send last leaves at the end of the turn.
func (c *Chain) Close() error {
	var err error
	for _, cl := range c.closers {
		err = errors.Join(err, cl.Close())
	}
	c.closers = nil
	return err
}

// Stats may be called from any goroutine.
func (c *Chain) Stats() ChainStats {
	s := ChainStats{Name: c.Name, Packets: c.packets.Load(), Bytes: c.bytes.Load()}
	for i := range c.stages {
		slot := &c.stages[i]
		st := StageStats{
			Kind:      slot.kind,
			Packets:   slot.packets.Load(),
			Bytes:     slot.bytes.Load(),
			Continued: slot.verdicts[Continue].Load(),
			Dropped:   slot.verdicts[Drop].Load(),
			Forwarded: slot.verdicts[Forward].Load(),
			Consumed:  slot.verdicts[Consume].Load(),
			Counters:  map[string]uint64{},

			TimedPackets: slot.timedPackets.Load(), TimedNanoseconds: slot.timedNanos.Load(),

			Histograms: slot.counters.Histograms(),
		}
		for _, ctr := range slot.counters.All() {
			st.Counters[ctr.Name] = ctr.Load()
			if ctr.Gauge() {
				if st.Gauges == nil {
					st.Gauges = map[string]bool{}
				}
				st.Gauges[ctr.Name] = true
			}
		}
		s.Stages = append(s.Stages, st)
	}
	return s
}
