package main

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"penstock/bpf"
	"penstock/internal/config"
	"penstock/internal/control"
	"penstock/internal/gate"
)

var screens = map[string]bpf.GateScreens{
	"land": bpf.ScreenLand, "flags": bpf.ScreenFlags, "source": bpf.ScreenSource, "fragments": bpf.ScreenFragments,
	"lengths": bpf.ScreenLengths, "options": bpf.ScreenOptions,
}

func gateSettings(g *config.Gate) bpf.GateSettings {
	s := bpf.GateSettings{Rates: bpf.GateRates{
		Packets: g.Packets, Bytes: g.Bytes, SYNs: g.SYNs, Burst: g.Burst, Prefix4: g.Prefix4, Prefix6: g.Prefix6,
	}}
	for _, name := range g.Screens {
		s.Screens |= screens[name]
	}
	return s
}

// gateTable is XDP as the gate's lists see it.
type gateTable struct {
	steerer  *bpf.Steerer
	settings atomic.Pointer[bpf.GateSettings]
}

// set has the next change bring the settings of g with it, and returns those
// that there were.
func (t *gateTable) set(g *config.Gate) (before *bpf.GateSettings) {
	s := gateSettings(g)
	return t.settings.Swap(&s)
}

// Change implements gate.Table.
func (t *gateTable) Change(c gate.Change) error {
	wall, mono := time.Now(), bpf.Now()
	change := bpf.GateChange{Settings: t.settings.Load(), Commit: c.Commit}
	for _, e := range c.Add {
		b := bpf.GateEntry{GateKey: gateKey(e)}
		if !e.Until.IsZero() {
			b.Expires = max(1, mono+e.Until.Sub(wall))
		}
		change.Add = append(change.Add, b)
	}
	for _, e := range c.Remove {
		change.Remove = append(change.Remove, gateKey(e))
	}
	return t.steerer.ChangeGate(change)
}

func gateKey(e gate.Entry) bpf.GateKey {
	k := bpf.GateKey{Prefix: e.Prefix}
	if e.Allow {
		k.List = bpf.GateAllow
	}
	return k
}

// Hits implements gate.Table.
func (t *gateTable) Hits() (map[netip.Prefix]uint64, error) {
	list, err := t.steerer.GateEntries()
	hits := make(map[netip.Prefix]uint64, len(list))
	for _, e := range list {
		if e.List == bpf.GateDeny {
			hits[e.Prefix] = e.Hits
		}
	}
	return hits, err
}

// openGate fills the gate before XDP is attached, so that no packet finds it
// open.
func (a *appliance) openGate() (err error) {
	g := &a.cfg.Gate
	a.table = &gateTable{steerer: a.steerer}
	a.table.set(g)
	a.gate, err = gate.Open(g.State, a.table, g.Deny, g.Allow, time.Now)
	return err
}

// sweepGate forgets denies that have expired.
func (a *appliance) sweepGate(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := a.gate.Sweep()
		if err != nil && !failing {
			a.log.Error("expired denies are not removed", "err", err)
		}
		failing = err != nil
	}
}

// DenyAdd implements control.Source.
func (a *appliance) DenyAdd(d control.DenyAdd) (int, error) {
	return a.gate.Add(d.Prefixes, time.Duration(d.ForSeconds*float64(time.Second)), d.Why)
}

// DenyDel implements control.Source.
func (a *appliance) DenyDel(prefixes []netip.Prefix) error {
	err := a.gate.Remove(prefixes)
	if absent := (*gate.AbsentError)(nil); errors.As(err, &absent) {
		return control.Unknown(err)
	}
	return err
}

// DenyList implements control.Source.
func (a *appliance) DenyList() ([]control.Deny, error) {
	list, err := a.gate.List()
	if err != nil {
		return nil, err
	}
	out := make([]control.Deny, len(list))
	for i, l := range list {
		out[i] = control.Deny{Prefix: l.Prefix, Origin: "runtime", Hits: l.Hits, Why: l.Why, Added: l.Added}
		if l.Config {
			out[i].Origin = "config"
		}
		if !l.Until.IsZero() {
			out[i].ExpiresSeconds = time.Until(l.Until).Seconds()
		}
	}
	return out, nil
}
