package main

import (
	"context"
	"errors"
	"time"

	"penstock/bpf"
	"penstock/internal/control"
	"penstock/pipeline"
)

const (
	// tendEvery is how often it is looked whether chains that leave have flows,
	// restEvery whether numbers of chains that are gone can be used again.
	tendEvery = 500 * time.Millisecond
	restEvery = 10 * time.Second
)

// tendPlaces closes the chains that reloads have changed or removed, when their
// last flow has ended, or the time for it is over.
func (a *appliance) tendPlaces(ctx context.Context) {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	var rested time.Time
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		rest := now.Sub(rested) >= restEvery
		if rest {
			rested = now
		}
		err := a.tend(ctx, now, rest)
		if err != nil && !failing && ctx.Err() == nil {
			a.log.Error("chains or ports of earlier configurations are not closed", "err", err)
		}
		failing = err != nil
	}
}

// tend looks at the chains that leave, and if rest is set, at those that are
// gone.
func (a *appliance) tend(ctx context.Context, now time.Time, rest bool) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	if ctx.Err() != nil {
		return nil // the workers may have stopped
	}
	if err := a.tendWires(ctx, now); err != nil {
		return err
	}
	look := map[int]*place{}
	for _, p := range a.places.byID {
		if p != nil && (p.state == placeLeaving || p.state == placeGone && rest) {
			look[int(p.id)] = p
		}
	}
	if len(look) == 0 {
		return nil
	}
	list, err := a.seen(func(id int) bool { return look[id] != nil })
	if err != nil {
		return err
	}
	flows := map[*place][]*seenFlow{}
	for _, f := range list {
		p := look[f.id]
		flows[p] = append(flows[p], f)
	}
	drain := time.Duration(a.places.cfg.Appliance.Drain)
	for _, p := range look {
		if p.state == placeGone {
			a.rest(p, len(flows[p]), now)
		} else {
			err = errors.Join(err, a.finish(p, flows[p], now, drain))
		}
	}
	return err
}

// rest makes the number of a chain that is gone free when no flow has named it
// for long enough.
func (a *appliance) rest(p *place, flows int, now time.Time) {
	a.places.mu.Lock()
	defer a.places.mu.Unlock()
	switch {
	case flows > 0:
		p.unseen = time.Time{}
	case p.unseen.IsZero():
		p.unseen = now
	case now.Sub(p.unseen) >= placeRest:
		// Workers keep it until the next set comes: no packet names it any more.
		a.places.byID[p.id] = nil
	}
}

// finish closes a chain whose flows have ended, or whose time is over: then
// packet stages go on under the same name or are bypassed, what is inspected is
// bypassed, and what is terminated is reset.
func (a *appliance) finish(p *place, flows []*seenFlow, now time.Time, drain time.Duration) error {
	a.places.mu.Lock()
	p.flows = control.Depths{}
	var live []*seenFlow
	for _, f := range flows {
		add(&p.flows, f, p.depth)
		if !f.over() && f.action == bpf.ToChain {
			live = append(live, f)
		}
	}
	left := p.flows
	a.places.mu.Unlock()
	late := now.Sub(p.since) >= drain
	connections := 0
	if !late {
		if len(live) > 0 || left.Spliced > 0 {
			return nil
		}
		var err error
		if connections, err = a.connections(p); err != nil || connections > 0 {
			return err // an end is still to be told what the other one said
		}
	}
	var err error
	moved, bypassed := 0, 0
	if next := heir(p, a.places.current); p.depth == pipeline.DepthForward && next != nil && next.depth == pipeline.DepthForward {
		moved = len(live)
	} else if p.depth < pipeline.DepthTerminate {
		bypassed, err = a.bypass(live)
	}
	a.places.mu.Lock()
	p.state, p.since = placeGone, now
	a.places.mu.Unlock()
	err = errors.Join(err, a.install(a.places.byID, a.places.current, p.built))
	a.places.mu.Lock()
	a.places.keep(p)
	a.places.mu.Unlock()
	reset := 0
	if p.depth == pipeline.DepthTerminate && len(live) > 0 {
		// Their ends have been told. What still comes is midstream.
		keys := make([]bpf.FlowKey, len(live))
		for i, f := range live {
			keys[i] = f.key
		}
		e := a.newEnded()
		var everr error
		reset, everr = a.steerer.Evict(keys, e.add)
		e.done()
		err = errors.Join(err, everr)
	}
	a.log.Info("chain of an earlier configuration is closed", "chain", p.conf.Name, "number", p.id, "in_time", !late,
		"moved", moved, "bypassed", bypassed, "reset", reset, "left_to_xdp", left.Offloaded+left.Spliced)
	return err
}

// connections is how many connections a chain's stages terminate.
func (a *appliance) connections(p *place) (n int, err error) {
	left := make([]int, len(a.workers))
	err = a.onWorkers(func(i int, _ *pipeline.Worker) error {
		p.built[i].Flows(func(f pipeline.FlowInfo) {
			if f.Depth == pipeline.DepthTerminate {
				left[i]++
			}
		})
		return nil
	})
	for _, l := range left {
		n += l
	}
	return n, err
}
