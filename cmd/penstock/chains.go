package main

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"penstock/bpf"
	"penstock/internal/config"
	"penstock/internal/control"
	"penstock/pipeline"
)

// placeState is where a chain is in its life.
type placeState uint8

const (
	placeCurrent placeState = iota // new flows go to it
	placeLeaving                   // a reload has changed or removed it; its flows finish
	placeGone                      // closed; flows in XDP's table may still name its number
)

// place is a number of a chain, which is what packets and flows in XDP's table
// name it by. A chain that changes gets another number, so that a flow keeps the
// chain that it began in.
type place struct {
	id    pipeline.ChainID
	conf  config.Chain
	depth pipeline.Depth
	built []*pipeline.Chain // by worker; nil: gone

	// What follows is guarded by appliance.placesMu.
	state  placeState
	since  time.Time // it leaves, or is gone
	flows  control.Depths
	unseen time.Time // gone: since when no flow names it
}

// places are the chains that there are. Readers hold mu; who changes them holds
// appliance.changing besides.
type places struct {
	mu       sync.RWMutex
	cfg      *config.Config                  // as of the last reload
	byID     []*place                        // nil: free
	current  []*place                        // in the order of the configuration
	former   map[string]*pipeline.ChainStats // of closed instances, by name
	drained  map[string]bool
	passing  []*pipeline.Chain // by worker: where flows of chains that have no successor go
	reloads  control.Reloads
	draining bool // the appliance leaves
}

const (
	// maxLeaving bounds how many chains of earlier configurations live at once.
	maxLeaving = 64
	// placeRest is for how long a number must be named by no flow before another
	// chain gets it: longer than XDP remembers fragments.
	placeRest = time.Minute
	// maxPlaces is how many numbers XDP's metadata has.
	maxPlaces = 1 << 12
	// callWait is how long a worker may take to answer.
	callWait = 5 * time.Second
)

// live is the configuration as of the last reload.
func (a *appliance) live() *config.Config {
	a.places.mu.RLock()
	defer a.places.mu.RUnlock()
	return a.places.cfg
}

// placeOf returns the chain of a number, or nil. Its configuration does not
// change.
func (a *appliance) placeOf(id int) *place {
	a.places.mu.RLock()
	defer a.places.mu.RUnlock()
	if id < 0 || id >= len(a.places.byID) {
		return nil
	}
	return a.places.byID[id]
}

// newPlace builds a chain for every worker. Nobody runs it yet.
func (a *appliance) newPlace(id pipeline.ChainID, conf config.Chain) (*place, error) {
	p := &place{id: id, conf: conf}
	p.depth, _, _ = conf.Spec.Depth()
	var err error
	p.built, err = a.buildChain(&p.conf.Spec, id)
	return p, err
}

func (a *appliance) buildChain(spec *pipeline.ChainSpec, id pipeline.ChainID) (built []*pipeline.Chain, err error) {
	syns := &chainSYNs{steerer: a.steerer, chain: int(id)}
	ports := a.chainPorts()
	for i, w := range a.workers {
		env := w.Env()
		env.Recorder, env.ChainID, env.SYNs, env.Ports = a.recorder(i), id, &workerSYNs{chainSYNs: syns}, ports
		c, err := spec.Build(env)
		if err != nil {
			for _, c := range built {
				err = errors.Join(err, c.Close())
			}
			return nil, err
		}
		built = append(built, c)
	}
	return built, nil
}

// firstPlaces builds the chains that the appliance starts with.
func (a *appliance) firstPlaces() error {
	p := &a.places
	p.cfg, p.former, p.drained = a.cfg, map[string]*pipeline.ChainStats{}, map[string]bool{}
	var err error
	// A chain without stages: its flows leave user space with their next packet.
	if p.passing, err = a.buildChain(&pipeline.ChainSpec{Name: "bypass"}, pipeline.NoChain); err != nil {
		return err
	}
	for i, c := range a.cfg.Chains {
		pl, err := a.newPlace(pipeline.ChainID(i), c)
		if err != nil {
			return err
		}
		p.byID, p.current = append(p.byID, pl), append(p.current, pl)
	}
	for i, w := range a.workers {
		chains, affinity, unmarked := a.set(i, p.byID, p.current)
		w.SetChains(chains, affinity)
		w.SetDefault(unmarked)
	}
	return nil
}

// set is what worker w runs: the chains by number, whether their flows belong to
// one worker, and the chain of packets that come without metadata.
func (a *appliance) set(w int, byID, current []*place) (chains []*pipeline.Chain, affinity []bool, unmarked pipeline.ChainID) {
	chains, affinity = make([]*pipeline.Chain, len(byID)), make([]bool, len(byID))
	for id, p := range byID {
		if p == nil {
			continue
		}
		if p.state == placeGone {
			if p = heir(p, current); p == nil {
				chains[id] = a.places.passing[w]
				continue
			}
		}
		chains[id], affinity[id] = p.built[w], p.conf.Spec.Affinity()
	}
	// The driver has no room for metadata: with one chain there is no doubt.
	unmarked = pipeline.NoChain
	if len(current) == 1 {
		unmarked = current[0].id
	}
	return chains, affinity, unmarked
}

// heir is the chain that goes on under the name of another one.
func heir(p *place, current []*place) *place {
	for _, c := range current {
		if c.conf.Name == p.conf.Name {
			return c
		}
	}
	return nil
}

// install gives the workers their chains, and closes those of a place that they
// do not run any more.
func (a *appliance) install(byID, current []*place, closing []*pipeline.Chain) error {
	type set struct {
		chains   []*pipeline.Chain
		affinity []bool
		unmarked pipeline.ChainID
	}
	sets := make([]set, len(a.workers))
	for i := range sets {
		sets[i].chains, sets[i].affinity, sets[i].unmarked = a.set(i, byID, current)
	}
	return a.onWorkers(func(i int, w *pipeline.Worker) error {
		w.SetChains(sets[i].chains, sets[i].affinity)
		w.SetDefault(sets[i].unmarked)
		if closing != nil {
			return w.CloseChain(closing[i])
		}
		return nil
	})
}

// onWorkers runs fn on the goroutine of every worker, between two turns, and
// waits for all of them.
func (a *appliance) onWorkers(fn func(i int, w *pipeline.Worker) error) error {
	answers := make(chan error, len(a.workers))
	for i, w := range a.workers {
		w.Call(func() { answers <- fn(i, w) })
	}
	limit := time.NewTimer(callWait)
	defer limit.Stop()
	var err error
	for range a.workers {
		select {
		case aerr := <-answers:
			err = errors.Join(err, aerr)
		case <-a.ended:
			return errors.Join(err, errors.New("the appliance ends"))
		case <-limit.C:
			return errors.Join(err, fmt.Errorf("a worker has not answered within %v", callWait))
		}
	}
	return err
}

// names are the chains by number, for XDP and who inherits from it.
func names(byID []*place) []bpf.Chain {
	list := make([]bpf.Chain, len(byID))
	for i, p := range byID {
		if p != nil {
			list[i] = bpf.Chain{Name: p.conf.Name, Resume: p.conf.Spec.Resumes(), Pass: p.depth == pipeline.DepthInspect}
		}
	}
	return list
}

// rules are the steer rules of cfg, by the numbers that its chains have.
func rules(cfg *config.Config, current []*place, drained map[string]bool) []bpf.Rule {
	list := steerRules(cfg)
	for i := range list {
		if list[i].Action != bpf.ToChain {
			continue
		}
		p := current[list[i].Chain]
		list[i].Chain = uint16(p.id)
		if drained[p.conf.Name] {
			list[i].Action, list[i].Chain = bpf.Bypass, 0
		}
	}
	return list
}

// seenFlow is a flow of XDP's table, both directions.
type seenFlow struct {
	key      bpf.FlowKey // as its client's packets have it
	id       int
	action   bpf.Action
	rewrites bool
	flags    [2]uint8
}

const (
	flagFIN = 1 << 0
	flagRST = 1 << 2
)

// over reports whether XDP has seen a connection's end.
func (f *seenFlow) over() bool {
	return f.key.Proto == bpf.ProtoTCP && ((f.flags[0]|f.flags[1])&flagRST != 0 || f.flags[0]&f.flags[1]&flagFIN != 0)
}

// seen reads the flows of the chains that want says.
func (a *appliance) seen(want func(id int) bool) ([]*seenFlow, error) {
	return a.seenIn(func(e *bpf.FlowEntry) bool { return want(int(e.Chain)) })
}

// seenIn reads the flows of the entries that want says.
func (a *appliance) seenIn(want func(*bpf.FlowEntry) bool) ([]*seenFlow, error) {
	found := map[bpf.FlowKey]*seenFlow{}
	err := a.steerer.Flows(func(e bpf.FlowEntry) bool {
		if !want(&e) {
			return true
		}
		key, way := e.FlowKey, 0
		if e.Reply {
			key, way = key.Reverse(), 1
		}
		f := found[key]
		if f == nil {
			f = &seenFlow{key: key, id: int(e.Chain), action: e.Action, rewrites: e.Rewrites}
			found[key] = f
		}
		f.flags[way] |= e.TCPFlags
		return true
	})
	list := make([]*seenFlow, 0, len(found))
	for _, f := range found {
		list = append(list, f)
	}
	return list, err
}

// add counts a flow of a chain that brings flows to depth d.
func add(n *control.Depths, f *seenFlow, d pipeline.Depth) {
	switch {
	case f.over():
	case f.action != bpf.ToChain && f.rewrites:
		n.Spliced++
	case f.action != bpf.ToChain:
		n.Offloaded++
	case d == pipeline.DepthTerminate:
		n.Terminated++
	case d == pipeline.DepthInspect:
		n.Inspected++
	default:
		n.Forwarded++
	}
}

// depths counts the flows of all chains, by number.
func (a *appliance) depths() (byID map[int]control.Depths, all control.Depths, err error) {
	list, err := a.seen(func(id int) bool { return id != bpf.NoChain })
	byID = map[int]control.Depths{}
	for _, f := range list {
		d := pipeline.DepthForward
		if p := a.placeOf(f.id); p != nil {
			d = p.depth
		}
		n := byID[f.id]
		add(&n, f, d)
		byID[f.id] = n
		add(&all, f, d)
	}
	return byID, all, err
}

// keep notes what a closed chain has counted, and lets go of it.
func (p *places) keep(pl *place) {
	f := p.former[pl.conf.Name]
	if f == nil {
		f = &pipeline.ChainStats{}
		p.former[pl.conf.Name] = f
	}
	for _, c := range pl.built {
		s := c.Stats()
		for _, st := range s.Stages {
			for name := range st.Gauges {
				delete(st.Counters, name) // nothing is there any more
			}
		}
		f.AddFormer(s)
	}
	pl.built = nil
}

// free is the lowest number that no chain has.
func free(byID []*place) (int, error) {
	if i := slices.Index(byID, nil); i >= 0 {
		return i, nil
	}
	if len(byID) == maxPlaces {
		return 0, fmt.Errorf("all %d numbers of chains are in use; restart the appliance", maxPlaces)
	}
	return len(byID), nil
}
