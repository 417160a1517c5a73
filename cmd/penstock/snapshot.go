package main

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"penstock/bpf"
	"penstock/internal/control"
	"penstock/internal/record"
	"penstock/internal/wire"
	"penstock/pipeline"
)

var _ control.Source = (*appliance)(nil)

// Status implements control.Source.
func (a *appliance) Status() control.Status {
	n, err := a.steerer.CountFlows()
	s := a.sample(n)
	if err != nil {
		s.Warnings = append(s.Warnings, err.Error())
	}
	return s
}

// Sample implements control.Source.
func (a *appliance) Sample() control.Status { return a.sample(a.steerer.LastCount()) }

func (a *appliance) sample(flows bpf.FlowCounts) control.Status {
	s := control.Status{
		Name: a.cfg.Appliance.Name, Version: versionText(), PID: os.Getpid(), Config: a.cfg.File,
		Mode: a.cfg.Appliance.Mode, OnExit: a.cfg.Appliance.OnExit, Started: a.started.UTC().Truncate(time.Second),
		UptimeSeconds: time.Since(a.started).Seconds(), Goroutines: runtime.NumGoroutine(), Warnings: slices.Clone(a.warnings),
	}
	s.Ports = a.portStatus(&s)
	for _, w := range a.workers {
		ws := w.Stats()
		s.Workers = append(s.Workers, ws)
		s.Totals.Add(ws.Totals)
		s.Frames.Total += ws.Pool.Total
		s.Frames.Free += ws.Pool.Free
	}
	a.chainStatus(&s)
	s.Inherited = a.inherited()
	s.Frames.Size, s.Frames.HugePages = a.memory.Arena.FrameSize(), a.memory.UMEM.HugePages()
	for _, p := range s.Ports {
		for _, q := range p.Queues {
			s.Frames.InFlight += q.InFlight
		}
	}
	if a.router != nil {
		s.Router = a.router.Counters()
	}
	s.Flows.Limit = a.cfg.Appliance.MaxFlows
	s.Flows.Steered = flows.Flows
	for _, f := range flows.ByChain {
		s.Flows.Offloaded += f.Bypass + f.Dropped
		p := a.placeOf(f.Chain)
		if p == nil {
			continue
		}
		for i := range s.Chains {
			if c := &s.Chains[i]; c.Name == p.conf.Name {
				if c.Flows == nil {
					c.Flows = map[string]int{}
				}
				c.Flows[p.depth.String()] += f.ToChain
				c.Flows[pipeline.DepthOffload.String()] += f.Bypass
				c.Flows["drop"] += f.Dropped
			}
		}
	}
	for i := range s.Chains {
		s.Flows.Terminated += s.Chains[i].Terminated()
	}
	s.OffloadResults = map[string]uint64{}
	for i, n := range a.steerer.OffloadResults() {
		s.OffloadResults[bpf.OffloadResult(i).String()] = n
	}
	if n, err := a.steerer.LostEvents(); err == nil {
		s.LostEvents = n
	}
	for _, r := range a.record.Stats() {
		s.Records = append(s.Records, control.Record{To: r.To, Written: r.Written, Dropped: r.Dropped, Failed: r.Failed, Queued: r.Queued, Error: r.Error})
	}
	if r := a.record.Removed(); r != (record.SinkStats{}) {
		s.RemovedRecords = &control.Record{To: "removed", Written: r.Written, Dropped: r.Dropped, Failed: r.Failed, Queued: r.Queued}
	}
	s.Exports = a.exportStatus()
	return s
}

// chainStatus shows each chain with what its former configurations have counted.
func (a *appliance) chainStatus(s *control.Status) {
	p := &a.places
	p.mu.RLock()
	defer p.mu.RUnlock()
	s.Draining, s.Reloads = p.draining, p.reloads
	index := map[string]int{}
	for i, pl := range p.current {
		d, stage, why := pl.conf.Spec.Depth()
		if stage != "" {
			why = fmt.Sprintf("%s: %s", stage, why)
		}
		c := control.Chain{Depth: d.String(), Why: why, Drained: p.drained[pl.conf.Name]}
		for _, b := range pl.built {
			c.Add(b.Stats())
		}
		s.Chains = append(s.Chains, c)
		index[pl.conf.Name] = i
	}
	former := func(name string, f pipeline.ChainStats) {
		if i, there := index[name]; there {
			s.Chains[i].AddFormer(f)
			return
		}
		s.Removed.Packets += f.Packets
		s.Removed.Bytes += f.Bytes
	}
	drain := time.Duration(p.cfg.Appliance.Drain)
	for _, pl := range p.byID {
		if pl == nil || slices.Contains(p.current, pl) {
			continue
		}
		for _, b := range pl.built {
			former(pl.conf.Name, b.Stats())
		}
		if pl.state == placeLeaving {
			s.Leaving = append(s.Leaving, control.Leaving{
				Chain: pl.conf.Name, ID: int(pl.id), Flows: pl.flows,
				ForSeconds: time.Since(pl.since).Seconds(), LeftSeconds: max(drain-time.Since(pl.since), 0).Seconds(),
			})
		}
	}
	for name, f := range p.former {
		former(name, *f)
	}
	for _, b := range p.passing {
		c := b.Stats()
		s.Removed.Packets += c.Packets
		s.Removed.Bytes += c.Bytes
	}
}

// inherited says what became of the flows of an instance before this one.
func (a *appliance) inherited() *control.Inherited {
	i := a.steerer.Inherited()
	if i == (bpf.Inheritance{}) && a.before == nil {
		return nil
	}
	return &control.Inherited{
		Offloaded: i.Offloaded, Resumed: i.Resumed, Bypassed: i.Passed, Forgotten: i.Forgotten, Refused: i.Refused, Before: a.before,
	}
}

func (a *appliance) portStatus(s *control.Status) (ports []control.Port) {
	counters, err := a.steerer.Counters()
	if err != nil {
		s.Warnings = append(s.Warnings, err.Error())
	}
	for port := range a.eachPort() {
		i, n := port.id, port.nic
		up, exists := linkState(n.ifindex)
		p := control.Port{
			Name: port.conf.Name, Interface: n.name, Ifindex: n.ifindex, MTU: n.mtu, XDP: port.mode().String(), Leaving: port.leaves(),
			LinkUp: up, Reasons: map[string]control.Count{}, Verdicts: map[string]map[string]control.Count{},
		}
		switch {
		case !exists:
			s.Warnings = append(s.Warnings, fmt.Sprintf("port %q: interface %s is gone; restart the appliance when it is back", p.Name, n.name))
		case !up:
			s.Warnings = append(s.Warnings, fmt.Sprintf("port %q: the link of %s is down", p.Name, n.name))
		}
		var warnings []string
		p.Stalls, warnings = a.stalls(port)
		s.Warnings = append(s.Warnings, warnings...)
		for _, q := range port.wires {
			p.Queues = append(p.Queues, control.Queue{PortInfo: q.Info(), PortStats: q.Stats()})
		}
		for _, c := range counters {
			if c.Port == i && c.Packets > 0 {
				by := p.Verdicts[c.Verdict.String()]
				if by == nil {
					by = map[string]control.Count{}
					p.Verdicts[c.Verdict.String()] = by
				}
				by[c.Reason.String()] = control.Count{Packets: c.Packets, Bytes: c.Bytes}
				sum := p.Reasons[c.Reason.String()]
				sum.Packets += c.Packets
				sum.Bytes += c.Bytes
				p.Reasons[c.Reason.String()] = sum
			}
		}
		ports = append(ports, p)
	}
	return ports
}

// Tops implements control.Source.
func (a *appliance) Tops() (all []pipeline.TopStats) {
	answers := make(chan []pipeline.TopStats, len(a.workers))
	for _, w := range a.workers {
		w.Call(func() {
			var mine []pipeline.TopStats
			for _, c := range w.Chains() {
				if c != nil {
					mine = append(mine, c.Tops()...)
				}
			}
			answers <- mine
		})
	}
	late := time.After(topsWait)
	for range a.workers {
		select {
		case mine := <-answers:
			all = pipeline.AddTops(all, mine, shownTops)
		case <-late:
			return all
		}
	}
	return all
}

const (
	topsWait  = 200 * time.Millisecond
	shownTops = 20
)

// Flows implements control.Source: what XDP steers, and what the stages say of
// the flows that they keep.
func (a *appliance) Flows() ([]control.Flow, error) {
	kept := make(map[wire.Flow]pipeline.FlowInfo)
	for _, w := range a.workers {
		for _, f := range ask(w, listFlows) {
			key, _ := f.Flow.Canonical()
			kept[key] = f
		}
	}
	now, wall := bpf.Now(), time.Now().UnixNano()
	var flows []control.Flow
	index := make(map[bpf.FlowKey]int)
	err := a.steerer.Flows(func(e bpf.FlowEntry) bool {
		if e.Chain == bpf.NoChain {
			return true
		}
		client := e.FlowKey
		if e.Reply {
			client = client.Reverse()
		}
		i, ok := index[client]
		if !ok {
			i = len(flows)
			index[client] = i
			f := a.describeFlow(client, int(e.Chain))
			f.AgeSeconds = (now - e.Start).Seconds()
			key, _ := wireFlow(client).Canonical()
			if info, ok := kept[key]; ok {
				f.Depth, f.State, f.Why = info.Depth.String(), info.State, info.Why
				f.AgeSeconds = float64(wall-info.Start) / 1e9
				if info.Since > 0 {
					f.DepthSeconds = float64(wall-info.Since) / 1e9
				}
			}
			switch e.Action {
			case bpf.Bypass:
				f.Depth, f.Why = pipeline.DepthOffload.String(), ""
			case bpf.Passed:
				f.Depth, f.State, f.Why = pipeline.DepthOffload.String(), "passed", ""
			case bpf.Drop:
				f.Depth, f.State, f.Why = pipeline.DepthOffload.String(), "dropped", ""
			}
			flows = append(flows, f)
		}
		flows[i].Packets += e.Packets
		flows[i].Bytes += e.Bytes
		return true
	})
	return flows, err
}

func (a *appliance) describeFlow(k bpf.FlowKey, chain int) control.Flow {
	f := control.Flow{
		Client: netip.AddrPortFrom(k.Src, k.SrcPort).String(), Server: netip.AddrPortFrom(k.Dst, k.DstPort).String(),
		Proto: protoName(k.Proto), Chain: fmt.Sprintf("chain %d", chain), Depth: pipeline.DepthForward.String(),
	}
	for _, id := range k.VLAN {
		if id != 0 {
			f.VLAN = append(f.VLAN, int(id))
		}
	}
	if p := a.placeOf(chain); p != nil {
		spec := &p.conf.Spec
		depth, stage, why := spec.Depth()
		if depth == pipeline.DepthForward {
			if stage, why = spec.Holder(); stage == "" {
				why = "its stages have not released it"
			}
		}
		f.Chain, f.Depth, f.Why = spec.Name, depth.String(), why
		if stage != "" {
			f.Why = stage + ": " + why
		}
	}
	return f
}

func protoName(p uint8) string {
	switch p {
	case wire.ProtoTCP:
		return "tcp"
	case wire.ProtoUDP:
		return "udp"
	case wire.ProtoICMP, wire.ProtoICMPv6:
		return "icmp"
	}
	return strconv.Itoa(int(p))
}

func wireFlow(k bpf.FlowKey) wire.Flow {
	return wire.Flow{
		Src: k.Src.As16(), Dst: k.Dst.As16(), SrcPort: k.SrcPort, DstPort: k.DstPort, VLAN: k.VLAN, Proto: k.Proto, V6: k.Src.Is6(),
	}
}

func listFlows(w *pipeline.Worker) (all []pipeline.FlowInfo) {
	for _, c := range w.Active() {
		c.Flows(func(f pipeline.FlowInfo) { all = append(all, f) })
	}
	return all
}
