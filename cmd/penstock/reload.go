package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"penstock/bpf"
	"penstock/internal/config"
	"penstock/internal/control"
	"penstock/pipeline"
	"penstock/stages"
)

// Reload implements control.Source: it reads the configuration again, and
// changes what is different, or nothing. Files of records are opened again.
func (a *appliance) Reload(dryRun bool) (control.Reload, error) {
	r, err := a.reload(dryRun)
	if r.Applied {
		select {
		case a.reloaded <- struct{}{}:
		default:
		}
	}
	return r, err
}

func (a *appliance) reload(dryRun bool) (control.Reload, error) {
	a.changing.Lock()
	defer a.changing.Unlock()
	start := time.Now()
	if !dryRun {
		if err := a.record.Reopen(); err != nil {
			a.log.Error("records are not reopened", "err", err)
		}
	}
	r := control.Reload{Config: a.cfg.File, Changes: []control.Change{}}
	next, problems := config.Load(a.cfg.File, stages.Builtin())
	for _, p := range problems {
		r.Problems = append(r.Problems, p.String())
	}
	if len(problems) == 0 {
		for _, w := range next.Warnings {
			r.Warnings = append(r.Warnings, w.String())
		}
		for _, c := range config.Diff(a.live(), next) {
			r.Changes = append(r.Changes, control.Change{What: c.What, Key: c.Key, Old: c.Old, New: c.New, Restart: c.Restart, Text: c.String()})
		}
		r.Refused = a.refuses(next, r.Changes)
	}
	var err error
	if !dryRun && len(r.Problems) == 0 && r.Refused == "" {
		err = a.apply(next, &r)
	}
	r.Seconds = time.Since(start).Seconds()
	if !dryRun {
		a.tellReload(&r, err)
	}
	return r, err
}

// refuses says why a configuration that holds together cannot be taken.
func (a *appliance) refuses(next *config.Config, changes []control.Change) string {
	var keys []string
	for _, c := range changes {
		if !c.Restart {
			continue
		}
		key := c.What
		if c.Key != "" {
			key = fmt.Sprintf("%s in [%s]", c.Key, c.What)
		} else {
			key = "[[" + key + "]]"
		}
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	if len(keys) > 0 {
		return fmt.Sprintf("%s cannot change while it runs: start another process, which takes over from this one: penstock run %s",
			strings.Join(keys, ", "), a.cfg.File)
	}
	if why := a.refusesPorts(next); why != "" {
		return why
	}
	a.places.mu.RLock()
	defer a.places.mu.RUnlock()
	if a.places.draining {
		return "the appliance is about to leave"
	}
	leaving := 0
	for _, p := range a.places.byID {
		if p != nil && p.state == placeLeaving {
			leaving++
		}
	}
	for _, p := range a.places.current {
		if sameIn(next, &p.conf) < 0 {
			leaving++
		}
	}
	if leaving > maxLeaving {
		return fmt.Sprintf("%d chains of this and earlier configurations would still have flows, at most %d may: wait, or reload with a shorter drain in [appliance] first",
			leaving, maxLeaving)
	}
	return ""
}

// sameIn returns the place in cfg of a chain that is the same as c, or -1.
func sameIn(cfg *config.Config, c *config.Chain) int {
	return slices.IndexFunc(cfg.Chains, func(n config.Chain) bool { return config.SameChain(c, &n) })
}

// apply changes the appliance to next, whose steer rules are known to fit. An
// error, or what it refuses in r, leaves everything as it was.
func (a *appliance) apply(next *config.Config, r *control.Reload) (err error) {
	p := &a.places
	old, byID := p.current, slices.Clone(p.byID)
	current := make([]*place, len(next.Chains))
	var built, leaving []*place
	records, err := a.prepareRecords(next)
	if err != nil {
		r.Refused = err.Error()
		return nil
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.discard(built), records.discard())
		}
	}()
	wires, err := a.prepareWires(next)
	if err != nil {
		r.Refused = err.Error()
		return records.discard()
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, wires.discard())
		}
	}()
	for _, pl := range old {
		if i := sameIn(next, &pl.conf); i >= 0 {
			current[i] = pl
			next.Chains[i] = pl.conf // with what its instances share
			r.Kept = append(r.Kept, pl.conf.Name)
		} else {
			leaving = append(leaving, pl)
			r.Leaving = append(r.Leaving, pl.conf.Name)
		}
	}
	for i, c := range next.Chains {
		if current[i] != nil {
			continue
		}
		id, err := free(byID)
		if err != nil {
			return err
		}
		pl, err := a.newPlace(pipeline.ChainID(id), c)
		if err != nil {
			return err
		}
		built = append(built, pl)
		if id == len(byID) {
			byID = append(byID, nil)
		}
		byID[id], current[i] = pl, pl
		r.Built = append(r.Built, c.Name)
	}
	// From the last to be reached to the first: workers know a chain, and a
	// successor its name, before a flow can be steered to it.
	if err := a.install(byID, current, nil); err != nil {
		return err
	}
	back := func(err error) error { return errors.Join(err, a.install(p.byID, old, nil)) }
	if err := a.steerer.SetChains(names(byID)); err != nil {
		return back(err)
	}
	before := a.live().Gate
	if err := a.setGate(&next.Gate); err != nil {
		return back(err)
	}
	drained := map[string]bool{}
	for _, c := range current {
		drained[c.conf.Name] = p.drained[c.conf.Name]
	}
	if err := a.steerer.SetRules(a.steerTo(next, current, drained)); err != nil {
		return back(errors.Join(err, a.setGate(&before)))
	}
	if err := wires.attach(); err != nil {
		err = errors.Join(err, wires.discard())
		wires = nil // once is enough
		return back(errors.Join(err, a.steerer.SetRules(a.steerTo(p.cfg, old, p.drained)), a.setGate(&before)))
	}

	p.mu.Lock()
	for _, pl := range leaving {
		pl.state, pl.since = placeLeaving, time.Now()
	}
	p.cfg, p.byID, p.current, p.drained = next, byID, current, drained
	p.mu.Unlock()
	records.commit()
	wires.commit()
	r.Applied = true
	return nil
}

// discard closes chains that no flow has come to.
func (a *appliance) discard(built []*place) error {
	if len(built) == 0 {
		return nil
	}
	return a.onWorkers(func(i int, w *pipeline.Worker) (err error) {
		for _, pl := range built {
			err = errors.Join(err, w.CloseChain(pl.built[i]))
		}
		return err
	})
}

// setGate puts the lists and settings of the gate in the place of those there
// are.
func (a *appliance) setGate(g *config.Gate) error {
	before := a.table.set(g)
	if err := a.gate.Configure(g.Deny, g.Allow); err != nil {
		a.table.settings.Store(before)
		return err
	}
	return nil
}

// tellReload logs a reload and keeps what status says of it.
func (a *appliance) tellReload(r *control.Reload, err error) {
	why := r.Refused
	if len(r.Problems) > 0 {
		why = strings.Join(r.Problems, "; ")
	} else if err != nil {
		why = err.Error()
	}
	a.places.mu.Lock()
	s := &a.places.reloads
	if s.At, s.LastError = time.Now().UTC().Truncate(time.Second), why; r.Applied {
		s.Applied++
	} else {
		s.Refused++
	}
	a.places.mu.Unlock()
	for _, p := range r.Problems {
		a.log.Error("configuration is wrong", "problem", p)
	}
	for _, w := range r.Warnings {
		a.log.Warn("configuration is doubtful", "warning", w)
	}
	if !r.Applied {
		a.log.Error("configuration is not reloaded: everything stays as it was", "why", why)
		return
	}
	for _, c := range r.Changes {
		a.log.Info("configuration changes", "change", c.Text)
	}
	a.log.Info("configuration is reloaded", "config", r.Config, "changes", len(r.Changes), "chains_kept", len(r.Kept), "chains_built", len(r.Built),
		"chains_leaving", len(r.Leaving), "took", time.Duration(r.Seconds*float64(time.Second)).Round(time.Microsecond))
}

// Drain implements control.Source: new flows of a chain, or of all, are bypassed,
// or no more.
func (a *appliance) Drain(d control.DrainAsk) ([]control.Drain, error) {
	a.changing.Lock()
	defer a.changing.Unlock()
	p := &a.places
	if !d.Undo && a.cfg.Appliance.Midstream == config.MidstreamDrop {
		return nil, control.Refused(errors.New(`drain: with midstream = "drop", XDP drops flows that it has let pass by a rule: new flows would be cut, not bypassed; set midstream in [appliance] to "bypass"`))
	}
	drained, found := map[string]bool{}, d.Chain == ""
	var have []string
	for _, c := range p.current {
		name := c.conf.Name
		drained[name] = p.drained[name]
		if d.Chain == "" || d.Chain == name {
			drained[name], found = !d.Undo, true
		}
		have = append(have, fmt.Sprintf("%q", name))
	}
	if !found {
		return nil, control.Unknown(fmt.Errorf("drain chain %q: there is none of that name; there are %s", d.Chain, strings.Join(have, ", ")))
	}
	if err := a.steerer.SetRules(a.steerTo(p.cfg, p.current, drained)); err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.drained = drained
	p.mu.Unlock()
	a.log.Info("new flows are bypassed", "chain", d.Chain, "undone", d.Undo)
	return a.Drains()
}

// Drains implements control.Source.
func (a *appliance) Drains() ([]control.Drain, error) {
	byID, _, err := a.depths()
	if err != nil {
		return nil, err
	}
	a.places.mu.RLock()
	defer a.places.mu.RUnlock()
	list := []control.Drain{}
	for _, c := range a.places.current {
		d := control.Drain{Chain: c.conf.Name, Drained: a.places.drained[c.conf.Name]}
		for _, p := range a.places.byID {
			if p != nil && p.conf.Name == c.conf.Name {
				d.Flows = sum(d.Flows, byID[int(p.id)])
			}
		}
		list = append(list, d)
	}
	return list, nil
}

func sum(a, b control.Depths) control.Depths {
	a.Forwarded += b.Forwarded
	a.Inspected += b.Inspected
	a.Terminated += b.Terminated
	a.Spliced += b.Spliced
	a.Offloaded += b.Offloaded
	return a
}

// bypass gives flows to XDP, which forwards them from now on.
func (a *appliance) bypass(flows []*seenFlow) (taken int, err error) {
	list := make([]bpf.OffloadFlow, len(flows))
	for i, f := range flows {
		list[i].Key = f.key
	}
	return a.steerer.Offload(list)
}
