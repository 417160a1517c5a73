package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"penstock/bpf"
	"penstock/internal/control"
	"penstock/internal/tap"
	"penstock/internal/wire"
	"penstock/pipeline"
)

const (
	// maxCaptures is how many run at once.
	maxCaptures = 4
	// maxPulled is how many offloaded flows come up for one.
	maxPulled = 8192
	// captureLinger is how long packets may be under way that XDP sent up before it
	// got their flows back.
	captureLinger = 100 * time.Millisecond
)

// captures are those that run.
type captures struct {
	mu    sync.Mutex
	list  []*liveCapture
	last  int // ID
	ended bool
}

type liveCapture struct {
	*tap.Capture
	info  control.Capture // as it began
	began time.Time
}

func (l *liveCapture) describe() control.Capture {
	c, s := l.info, l.Stats()
	c.Seconds = time.Since(l.began).Seconds()
	c.Packets, c.Bytes, c.Dropped, c.HeldFlows, c.LostFlows, c.End = s.Packets, s.Bytes, s.Dropped, s.Held, c.LostFlows+s.NotHeld, s.Why
	return c
}

func (cs *captures) add(l *liveCapture) error {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.ended {
		return errors.New("begin capture: the appliance ends")
	}
	if len(cs.list) == maxCaptures {
		return control.Refused(fmt.Errorf("begin capture: %d run, and no more may at once; penstock capture --list shows them, --stop ID ends one", maxCaptures))
	}
	cs.last++
	l.info.ID = cs.last
	cs.list = append(cs.list, l)
	return nil
}

func (cs *captures) remove(l *liveCapture) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.list = slices.DeleteFunc(cs.list, func(o *liveCapture) bool { return o == l })
}

// end ends all of them, and lets no more begin.
func (cs *captures) end() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.ended = true
	for _, l := range cs.list {
		l.Stop("the appliance ends")
	}
}

// Captures implements control.Source.
func (a *appliance) Captures() (all []control.Capture, err error) {
	a.captures.mu.Lock()
	defer a.captures.mu.Unlock()
	for _, l := range a.captures.list {
		all = append(all, l.describe())
	}
	return all, nil
}

// StopCapture implements control.Source.
func (a *appliance) StopCapture(id int) error {
	a.captures.mu.Lock()
	defer a.captures.mu.Unlock()
	for _, l := range a.captures.list {
		if l.info.ID == id {
			l.Stop("it was stopped")
			return nil
		}
	}
	return control.Unknown(fmt.Errorf("stop capture %d: there is none of this number; penstock capture --list shows those that run", id))
}

// Capture implements control.Source.
func (a *appliance) Capture(ctx context.Context, ask control.CaptureAsk, begun func(control.Capture) io.Writer) (end control.Capture, err error) {
	o, err := a.captureOptions(&ask)
	if err != nil {
		return end, control.Wrong(err)
	}
	c, err := tap.New(o)
	if err != nil {
		return end, control.Wrong(err)
	}
	l := &liveCapture{Capture: c, began: time.Now(), info: control.Capture{Filter: ask.Filter}}
	for _, p := range o.Points {
		l.info.At = append(l.info.At, p.Name)
	}
	if err := a.captures.add(l); err != nil {
		return end, err
	}
	defer a.captures.remove(l)
	a.log.Info("capture begins", "id", l.info.ID, "filter", ask.Filter, "at", l.info.At)
	detach := sync.OnceFunc(func() { a.detach(l) })
	defer detach()
	err = a.onWorkers(func(i int, w *pipeline.Worker) error { w.AddTap(c.Spec(i)); return nil })
	if err == nil {
		err = a.pullUp(l)
	}
	if err != nil {
		return end, fmt.Errorf("begin capture: %w", err)
	}
	if ask.ForSeconds > 0 {
		over := time.AfterFunc(time.Duration(ask.ForSeconds*float64(time.Second)), func() { c.Stop("its time is over") })
		defer over.Stop()
	}
	err = c.Write(ctx, begun(l.describe()), detach)
	end = l.describe()
	a.log.Info("capture has ended", "id", end.ID, "why", end.End, "packets", end.Packets, "dropped", end.Dropped)
	return end, err
}

// captureOptions is what a capture is to be, in the words of this appliance.
func (a *appliance) captureOptions(ask *control.CaptureAsk) (o tap.Options, err error) {
	if ask.ForSeconds < 0 || ask.ForSeconds > math.MaxInt64/1e9 || ask.Limit < 0 || ask.SnapLen < 0 {
		return o, errors.New("begin capture: want a time, a limit and a snaplen of at least 0")
	}
	o = tap.Options{
		SnapLen: ask.SnapLen, Limit: ask.Limit, Count: ask.Count, Workers: len(a.workers), Ports: a.portInfos(),
		Comment: "filter " + ask.Filter,
		Chain: func(id pipeline.ChainID) (string, int) {
			if p := a.placeOf(int(id)); p != nil {
				return p.conf.Name, len(p.conf.Spec.Stages)
			}
			return "", 0
		},
	}
	if len(ask.Program) > 0 {
		program := make([]tap.Instruction, len(ask.Program))
		for i, n := range ask.Program {
			if len(n) != 4 || n[0] > math.MaxUint16 || n[1] > math.MaxUint8 || n[2] > math.MaxUint8 {
				return o, fmt.Errorf("load filter: instruction %d, %v, is not of classic BPF", i, n)
			}
			program[i] = tap.Instruction{Op: uint16(n[0]), Jt: uint8(n[1]), Jf: uint8(n[2]), K: n[3]}
		}
		if o.Filter, err = tap.NewFilter(program, ask.Tagged); err != nil {
			return o, err
		}
	} else {
		o.Comment = ""
	}
	var chains []tap.Chain
	a.places.mu.RLock()
	for _, p := range a.places.current {
		c := tap.Chain{Name: p.conf.Name}
		for _, s := range p.conf.Spec.Stages {
			c.Stages = append(c.Stages, tap.Stage{Kind: s.Kind.Name, Stream: s.Kind.Layer == pipeline.StreamLayer})
		}
		chains = append(chains, c)
	}
	a.places.mu.RUnlock()
	o.Points, err = tap.ParsePoints(ask.At, o.Ports, chains)
	return o, err
}

// pullUp brings offloaded flows that may match up into user space. Workers know
// of each before it comes.
func (a *appliance) pullUp(l *liveCapture) error {
	type flow struct {
		key  bpf.FlowKey
		drop bool
	}
	var flows []flow
	spliced, lost, pulled := 0, uint64(0), 0
	defer func() {
		a.captures.mu.Lock()
		defer a.captures.mu.Unlock()
		l.info.SplicedFlows, l.info.LostFlows, l.info.PulledFlows = spliced, lost, pulled
	}()
	err := a.steerer.Flows(func(e bpf.FlowEntry) bool {
		f := wireFlow(e.FlowKey)
		switch {
		case e.Reply || e.Action == bpf.ToChain || e.Action == bpf.Passed || !l.Wants(&f):
		case e.Rewrites:
			spliced++
		case len(flows) == maxPulled:
			lost++
		default:
			flows = append(flows, flow{e.FlowKey, e.Action == bpf.Drop})
		}
		return true
	})
	if err != nil || len(flows) == 0 {
		return err
	}
	err = a.onWorkers(func(i int, w *pipeline.Worker) error {
		now := w.Env().Now()
		for _, f := range flows {
			l.Hold(i, wireFlow(f.key), f.drop, now)
		}
		return nil
	})
	if err != nil {
		return err
	}
	list := make([]bpf.OffloadFlow, len(flows))
	for i, f := range flows {
		list[i] = bpf.OffloadFlow{Key: f.key, Stay: true}
	}
	pulled, err = a.steerer.Offload(list)
	return err
}

// detach ends what the workers show to a capture, and gives the flows that it
// holds back to XDP.
func (a *appliance) detach(l *liveCapture) {
	held := make([][]tap.Flow, len(a.workers))
	err := a.onWorkers(func(i int, w *pipeline.Worker) error {
		held[i] = slices.DeleteFunc(l.GiveBack(i), func(f tap.Flow) bool { return w.HandOn(l.Spec(i), &f.Flow, f.Drop) })
		return nil
	})
	var list []bpf.OffloadFlow
	if err == nil { // else a worker may still write to its list
		seen := map[wire.Flow]int{}
		for _, flows := range held {
			for _, f := range flows {
				// Where one of the workers has seen a new connection begin, the flow is
				// the chain's.
				if seen[f.Flow]++; f.Pulled && seen[f.Flow] == len(a.workers) || !f.Pulled && seen[f.Flow] == 1 {
					list = append(list, bpf.OffloadFlow{Key: bpfKey(f.Flow), Drop: f.Drop})
				}
			}
		}
		_, err = a.steerer.Offload(list)
	}
	if err == nil && len(list) > 0 {
		select {
		case <-time.After(captureLinger):
		case <-a.ended:
		}
	}
	err = errors.Join(err, a.onWorkers(func(i int, w *pipeline.Worker) error { w.RemoveTap(l.Spec(i)); return nil }))
	if err != nil {
		a.log.Error("capture is not detached; flows that it held may stay in user space", "id", l.info.ID, "err", err)
	}
}
