package main

import (
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"

	"penstock/bpf"
	"penstock/internal/config"
	"penstock/internal/watchdog"
	"penstock/pipeline"
	"penstock/pipeline/afxdp"
)

// port is a [[port]] of the configuration with its number, which is what packets, the
// XDP program and its maps name it by. Ports keep their numbers as long as they are
// there; those of a wire, in bridge mode, differ in the lowest bit.
type port struct {
	id     int
	conf   config.Port
	nic    *nic
	queues []*afxdp.Port   // by worker
	wires  []pipeline.Port // the same, behind their faults where a rehearsal has some
	rings  portRings       // guarded by appliance.rings.mu

	xdp     atomic.Int64 // bpf.Mode, as attached
	leaving atomic.Int64 // since when, ns since the epoch; 0: it stays
	off     bool         // XDP knows nothing of it any more; guarded by appliance.changing
}

func (p *port) mode() bpf.Mode { return bpf.Mode(p.xdp.Load()) }

// leaves reports whether a reload has removed the port, and its flows finish.
func (p *port) leaves() bool { return p.leaving.Load() != 0 }

// steered is the port as XDP takes it.
func (p *port) steered() bpf.Port {
	return bpf.Port{Name: p.conf.Name, Mode: xdpModes[p.conf.XDP], Ifindex: p.nic.ifindex, Headroom: p.nic.driver == "virtio_net"}
}

func (p *port) info(queue int) pipeline.PortInfo {
	return pipeline.PortInfo{ID: pipeline.PortID(p.id), Name: p.conf.Name, Interface: p.nic.name, Queue: queue, MTU: p.nic.mtu}
}

func (p *port) tell(log *slog.Logger) {
	var modes []string
	for _, q := range p.queues {
		modes = append(modes, q.Info().Mode)
	}
	log.Info("port is open", "port", p.conf.Name, "interface", p.nic.name, "xdp", p.mode(), "queues", len(p.nic.queues), "sockets", strings.Join(modes, ","))
}

// eachPort yields the ports that there are, by number, those included that leave.
func (a *appliance) eachPort() iter.Seq[*port] {
	return func(yield func(*port) bool) {
		list := a.ports.Load()
		if list == nil {
			return
		}
		for _, p := range *list {
			if p != nil && !yield(p) {
				return
			}
		}
	}
}

// portOf returns the port of a number, or nil.
func (a *appliance) portOf(id int) *port {
	if list := *a.ports.Load(); id >= 0 && id < len(list) {
		return list[id]
	}
	return nil
}

// portNamed returns the port of a name that stays, or nil.
func (a *appliance) portNamed(name string) *port {
	for p := range a.eachPort() {
		if p.conf.Name == name && !p.leaves() {
			return p
		}
	}
	return nil
}

// portInfos are the ports by number, as stages know them; nameless where there is none.
func (a *appliance) portInfos() []pipeline.PortInfo {
	infos := make([]pipeline.PortInfo, len(*a.ports.Load()))
	for p := range a.eachPort() {
		infos[p.id] = p.info(p.nic.queues[0])
	}
	return infos
}

// chainPorts are those that a chain is built for: in router mode with the kernel's.
func (a *appliance) chainPorts() []pipeline.PortInfo {
	if a.router != nil {
		return a.workers[0].Env().Ports // they do not change
	}
	return a.portInfos()
}

// placePorts gives the ports of the configuration their numbers: those that an
// instance before this one has used, whose flows name them, else one after the other.
func (a *appliance) placePorts() []int {
	ids := make([]int, len(a.cfg.Ports))
	for i := range ids {
		ids[i] = i
	}
	left := bpf.LeftPorts(a.cfg.Appliance.Pins, a.cfg.Appliance.Name)
	if a.cfg.Appliance.Mode != config.ModeBridge || len(left) > bpf.MaxPorts {
		return ids
	}
	placed := make([]int, len(ids))
	there := 0
	for _, name := range left {
		if name != "" {
			there++
		}
	}
	for i := 0; i < len(ids); i += 2 {
		at := slices.Index(left, a.cfg.Ports[i].Name)
		if at < 0 || at%2 != 0 || at+1 >= len(left) || left[at+1] != a.cfg.Ports[i+1].Name {
			return ids // not the same ports: nothing can be taken over
		}
		placed[i], placed[i+1] = at, at+1
	}
	if there != len(ids) {
		return ids
	}
	return placed
}

// roomForPorts is for how many ports there is packet memory.
func (a *appliance) roomForPorts() int {
	n := len(a.cfg.Ports)
	if a.cfg.Appliance.Mode == config.ModeBridge {
		n += a.cfg.Appliance.SparePorts
	}
	return n
}

// numbered are rules whose ports, by their places in the configuration of the start,
// are named by their numbers.
func (a *appliance) numbered(rules []bpf.Rule) []bpf.Rule { return a.numberedIn(a.cfg, rules) }

func (a *appliance) numberedIn(cfg *config.Config, rules []bpf.Rule) []bpf.Rule {
	rules = slices.Clone(rules)
	for i := range rules {
		if rules[i].From >= 0 {
			rules[i].From = a.portNamed(cfg.Ports[rules[i].From].Name).id
		}
	}
	return rules
}

// steerTo are the rules of cfg, by the numbers of chains and ports. New flows of
// ports that leave are bypassed.
func (a *appliance) steerTo(cfg *config.Config, current []*place, drained map[string]bool) []bpf.Rule {
	var list []bpf.Rule
	for p := range a.eachPort() {
		if p.leaves() {
			list = append(list, bpf.Rule{From: p.id, Action: bpf.Bypass})
		}
	}
	return append(list, a.numberedIn(cfg, rules(cfg, current, drained))...)
}

// openQueue opens worker w's socket of a port. prefill is nil if no worker runs.
func (a *appliance) openQueue(p *port, w int, prefill []uint64) error {
	if p.queues == nil {
		n := len(p.nic.queues)
		p.queues, p.wires = make([]*afxdp.Port, n), make([]pipeline.Port, n)
		p.rings.tx, p.rings.xdp.Rate = make([]watchdog.Passage, n), nicRate
	}
	o := a.queueOptions(p, w)
	o.Prefill = prefill
	q, err := afxdp.Open(a.memory, o)
	if err != nil {
		return err
	}
	p.queues[w], p.wires[w] = q, q
	return a.steerer.SetSocket(p.id, p.nic.queues[w], q.FD())
}

func (a *appliance) queueOptions(p *port, w int) afxdp.Options {
	return afxdp.Options{
		Info: p.info(p.nic.queues[w]), Ifindex: p.nic.ifindex, Worker: w, Mode: p.nic.socketMode(p.conf.ZeroCopy), RingSize: a.cfg.Appliance.RingSize,
		Router: a.routing(),
	}
}

// attachPort puts XDP on a port's interface.
func (a *appliance) attachPort(p *port) error {
	// A router takes what is addressed to it.
	if a.router == nil {
		if err := p.nic.setPromisc(true); err != nil {
			return err
		}
	}
	mode, err := a.steerer.Attach(p.id)
	if err != nil {
		return err
	}
	p.xdp.Store(int64(mode))
	// That instance had turned it on, as far as can be known now.
	p.nic.promisc = p.nic.promisc || a.router == nil && a.steerer.After(p.id)
	return nil
}

// zeroCopy reports whether one of the port's sockets is of that mode.
func (p *port) zeroCopy() bool {
	return slices.ContainsFunc(p.queues, func(q *afxdp.Port) bool { return q.Info().Mode == "zero_copy" })
}
