package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"penstock/bpf"
	"penstock/internal/config"
	"penstock/internal/doctor"
	"penstock/internal/privilege"
	"penstock/pipeline"
	"penstock/pipeline/fault"
)

// wireChange is what a reload does to the wires of a bridge: pairs of ports. Those
// that come are made whole before anything else changes, but for XDP, which sends
// them no packet until the rules are there. Those that go stay until their flows have
// ended: see tendWires.
type wireChange struct {
	a     *appliance
	come  [][2]*port
	goes  []*port
	stays []*port // left before, and are back
}

// portPrivileges are those that adding a port takes, besides what is kept in effect.
var portPrivileges = []cap.Value{cap.NET_RAW, cap.PERFMON}

// refusesPorts says why the wires of next cannot be taken.
func (a *appliance) refusesPorts(next *config.Config) string {
	live := a.live()
	gone, come := config.PairChanges(live.Ports, next.Ports)
	if len(gone)+len(come) == 0 {
		return ""
	}
	take := "start another process, which takes over from this one: penstock run " + a.cfg.File
	for _, pair := range gone {
		for _, c := range pair {
			if p := a.portNamed(c.Name); p != nil && p.zeroCopy() {
				return fmt.Sprintf("port %q is in zero-copy mode, where the NIC does not say when it has let go of packet memory: %s", c.Name, take)
			}
		}
	}
	there := 0
	for p := range a.eachPort() {
		there++
		for _, pair := range come {
			for _, c := range pair {
				if p.leaves() && (c.Name == p.conf.Name || c.Interface == p.conf.Interface) && !a.returns(pair) {
					return fmt.Sprintf("port %q of an earlier configuration still has %s: wait until penstock status does not show it any more, or reload with a shorter drain in [appliance] first",
						p.conf.Name, p.conf.Interface)
				}
			}
		}
	}
	fresh := 0
	for _, pair := range come {
		if !a.returns(pair) {
			fresh += len(pair)
		}
	}
	switch room := a.roomForPorts() - there; {
	case fresh == 0:
	case a.cfg.Appliance.SparePorts == 0:
		return "ports can be added only if spare_ports in [appliance] was set at the start, since it takes packet memory and privileges: set it, and " + take
	case fresh > room:
		return fmt.Sprintf("there is packet memory for %d more ports, not for %d: set spare_ports in [appliance], and %s", max(room, 0), fresh, take)
	}
	return ""
}

// leavingPair are the ports of a wire that leaves and is the same as pair, or nil.
func (a *appliance) leavingPair(pair config.Pair) []*port {
	list := *a.ports.Load()
	for i := 0; i+1 < len(list); i += 2 {
		if list[i] == nil || !list[i].leaves() {
			continue
		}
		if gone, _ := config.PairChanges([]config.Port{list[i].conf, list[i+1].conf}, pair[:]); len(gone) == 0 {
			return list[i : i+2]
		}
	}
	return nil
}

func (a *appliance) returns(pair config.Pair) bool { return a.leavingPair(pair) != nil }

// prepareWires makes the ports that next has besides, and marks those that it does
// not have. It returns nil if wires stay as they are.
func (a *appliance) prepareWires(next *config.Config) (_ *wireChange, err error) {
	gone, come := config.PairChanges(a.live().Ports, next.Ports)
	if len(gone)+len(come) == 0 || a.router != nil {
		return nil, nil
	}
	w := &wireChange{a: a}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.discard())
		}
	}()
	for _, pair := range come {
		if back := a.leavingPair(pair); back != nil {
			w.stays = append(w.stays, back...)
			continue
		}
		if err := a.addWire(w, pair); err != nil {
			return nil, err
		}
	}
	for _, pair := range gone {
		for _, c := range pair {
			w.goes = append(w.goes, a.portNamed(c.Name))
		}
	}
	now := time.Now().UnixNano()
	for _, p := range w.goes {
		p.leaving.Store(now)
	}
	for _, p := range w.stays {
		p.leaving.Store(0)
	}
	return w, nil
}

// addWire makes two ports that XDP is not attached to yet.
func (a *appliance) addWire(w *wireChange, pair config.Pair) error {
	s := subject(a.cfg)
	s.Ports = pair[:]
	facts := doctor.LookForStart(s)
	facts.Caps |= 1<<cap.NET_RAW | 1<<cap.PERFMON | 1<<cap.IPC_LOCK // With says what is missing; packet memory is locked already
	warnings, err := doctor.Start(facts)
	if err != nil {
		return err
	}
	for _, text := range warnings {
		a.log.Warn(text)
	}
	var ports [2]*port
	for i, f := range facts.Interfaces {
		p := &port{conf: pair[i], nic: nicOf(f)}
		if n := len(p.nic.queues); n != len(a.workers) {
			return fmt.Errorf("port %q has %d queues, and there are %d workers, one for each queue of every port; mend: ethtool -L %s combined %d, or queues in its [[port]]",
				p.conf.Name, n, len(a.workers), p.nic.name, len(a.workers))
		}
		for o := range a.eachPort() {
			if p.nic.mtu < o.nic.mtu {
				return fmt.Errorf("port %q carries packets of %d bytes, port %q of %d, and chains make such; mend: ip link set dev %s mtu %d",
					p.conf.Name, p.nic.mtu, o.conf.Name, o.nic.mtu, p.nic.name, o.nic.mtu)
			}
		}
		ports[i] = p
	}
	return privilege.With(portPrivileges, func() error {
		first, err := a.steerer.AddPair(ports[0].steered(), ports[1].steered())
		if err != nil {
			return err
		}
		for i, p := range ports {
			p.id = first + i
		}
		w.come = append(w.come, ports)
		for _, p := range ports {
			if err := a.openLive(p); err != nil {
				return err
			}
		}
		return a.giveToWorkers(ports[:])
	})
}

// openLive opens the sockets of a port while the workers run, whose frames
// they hand out.
func (a *appliance) openLive(p *port) error {
	prefill := make([][]uint64, len(a.workers))
	err := a.onWorkers(func(i int, _ *pipeline.Worker) error {
		prefill[i] = a.memory.Prefill(a.queueOptions(p, i))
		return nil
	})
	if err != nil {
		return err // the appliance ends, or a worker is stuck: then so does it
	}
	for i := range a.workers {
		if err := a.openQueue(p, i, prefill[i]); err != nil {
			from := i
			if p.queues[i] != nil {
				from++ // the socket has them
			}
			return errors.Join(err, a.onWorkers(func(i int, _ *pipeline.Worker) error {
				if i >= from {
					a.memory.GiveBack(i, prefill[i])
				}
				return nil
			}))
		}
	}
	return nil
}

// giveToWorkers has the workers serve ports. They beat for them from here on.
func (a *appliance) giveToWorkers(ports []*port) error {
	list := slices.Clone(*a.ports.Load())
	for _, p := range ports {
		list = append(list, make([]*port, max(p.id+1-len(list), 0))...)
		list[p.id] = p
		for w, worker := range a.workers {
			if f := p.conf.Fault; f != nil {
				p.wires[w] = fault.Wrap(p.wires[w], *f, fault.PortOptions{Pool: a.memory.Arena.Pool(w), Clock: worker.Env().Now, Wake: a.waiters[w].Wake})
			}
		}
	}
	a.ports.Store(&list)
	return a.onWorkers(func(i int, w *pipeline.Worker) (err error) {
		for _, p := range ports {
			w.SetPort(pipeline.PortID(p.id), p.wires[i])
			err = errors.Join(err, a.waiters[i].Add(p.queues[i]))
		}
		a.beat(i)
		return err
	})
}

// attach has XDP send packets to the wires that come.
func (w *wireChange) attach() error {
	if w == nil {
		return nil
	}
	for _, pair := range w.come {
		for _, p := range pair {
			if err := w.a.attachPort(p); err != nil {
				return err
			}
		}
	}
	if len(w.come) > 0 {
		if err := w.a.steerer.CheckPeers(); err != nil {
			w.a.log.Warn(err.Error())
		}
	}
	return nil
}

// commit says what has become of the wires.
func (w *wireChange) commit() {
	if w == nil {
		return
	}
	for _, pair := range w.come {
		for _, p := range pair {
			p.tell(w.a.log)
		}
	}
	for _, p := range w.goes {
		w.a.log.Info("port leaves when its flows have ended", "port", p.conf.Name, "interface", p.nic.name)
	}
}

// discard undoes prepareWires.
func (w *wireChange) discard() error {
	if w == nil {
		return nil
	}
	var errs []error
	for _, p := range w.goes {
		p.leaving.Store(0)
	}
	for _, p := range w.stays {
		p.leaving.Store(time.Now().UnixNano())
	}
	for _, pair := range w.come {
		errs = append(errs, w.a.removeWire(pair[:]))
	}
	return errors.Join(errs...)
}

// removeWire takes XDP off the two ports of a wire, and closes them: their frames are
// back in the workers' pools then.
func (a *appliance) removeWire(ports []*port) error {
	errs := []error{a.evictPorts(ports)}
	if !ports[0].off {
		errs = append(errs, a.steerer.RemovePair(ports[0].id))
	}
	for _, p := range ports {
		p.off = true
		if _, exists := linkState(p.nic.ifindex); exists {
			errs = append(errs, p.nic.setPromisc(false))
		}
	}
	// What came between the two, and what the workers have made of it since.
	errs = append(errs, a.evictPorts(ports))
	err := a.onWorkers(func(i int, w *pipeline.Worker) error {
		for _, p := range ports {
			w.SetPort(pipeline.PortID(p.id), nil)
			if i < len(p.queues) && p.queues[i] != nil {
				a.waiters[i].Remove(p.queues[i])
			}
		}
		return nil
	})
	if err != nil { // a worker may use the sockets still: tendWires tries again
		return errors.Join(append(errs, err)...)
	}
	// The kernel takes its time to let go of a queue, which workers have not.
	for _, p := range ports {
		for _, q := range p.queues {
			if q != nil {
				errs = append(errs, q.Detach())
			}
		}
	}
	errs = append(errs, a.onWorkers(func(i int, w *pipeline.Worker) (err error) {
		for _, p := range ports {
			if i < len(p.wires) && p.wires[i] != nil {
				err = errors.Join(err, p.wires[i].Close())
			}
		}
		return err
	}))
	list := slices.Clone(*a.ports.Load())
	for _, p := range ports {
		if p.id < len(list) {
			list[p.id] = nil
		}
	}
	for len(list) > 0 && list[len(list)-1] == nil {
		list = list[:len(list)-1]
	}
	a.ports.Store(&list)
	return errors.Join(errs...)
}

// evictPorts forgets the flows whose packets have come in by some ports.
func (a *appliance) evictPorts(ports []*port) error {
	flows, err := a.flowsOf(ports)
	if err != nil || len(flows) == 0 {
		return err
	}
	keys := make([]bpf.FlowKey, len(flows))
	for i, f := range flows {
		keys[i] = f.key
	}
	e := a.newEnded()
	_, err = a.steerer.Evict(keys, e.add)
	e.done()
	return err
}

// flowsOf reads the flows whose packets have come in by some ports.
func (a *appliance) flowsOf(ports []*port) ([]*seenFlow, error) {
	return a.seenIn(func(e *bpf.FlowEntry) bool {
		return slices.ContainsFunc(ports, func(p *port) bool { return p.id == e.InPort })
	})
}

// tendWires removes the wires that leave, when their last flow has ended, or the time
// for it is over: then connections that are terminated are reset, and the others cut
// with the wire. It wants changing held.
func (a *appliance) tendWires(ctx context.Context, now time.Time) error {
	list := *a.ports.Load()
	var errs []error
	for i := 0; i+1 < len(list) && ctx.Err() == nil; i += 2 {
		if list[i] == nil || !list[i].leaves() {
			continue
		}
		ports := list[i : i+2]
		flows, err := a.flowsOf(ports)
		if err != nil {
			return err
		}
		live := 0
		for _, f := range flows {
			if !f.over() {
				live++
			}
		}
		late := now.UnixNano()-list[i].leaving.Load() >= int64(a.places.cfg.Appliance.Drain)
		if live > 0 && !late {
			continue
		}
		cut := make([]int, len(a.workers))
		gone := func(id pipeline.PortID) bool { return int(id)&^1 == i }
		err = a.onWorkers(func(n int, w *pipeline.Worker) error { cut[n] = w.CutPorts(gone); return nil })
		if err == nil {
			// What they were told last has left with that turn.
			err = a.onWorkers(func(int, *pipeline.Worker) error { return nil })
		}
		errs = append(errs, err, a.removeWire(ports))
		var names []string
		for _, p := range ports {
			names = append(names, fmt.Sprintf("%s (%s)", p.conf.Name, p.nic.name))
		}
		total := 0
		for _, c := range cut {
			total += c
		}
		a.log.Info("ports of an earlier configuration are closed", "ports", strings.Join(names, ", "), "in_time", !late, "flows_left", live, "connections_cut", total)
	}
	return errors.Join(errs...)
}
