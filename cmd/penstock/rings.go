package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"penstock/bpf"
	"penstock/internal/watchdog"
)

// rings is the watch over the ways of packets through drivers, which have no
// counter of their own for packets that stay on the way. It reads what others count,
// once a second; the packet path knows nothing of it.
type rings struct {
	mu    sync.Mutex
	ports []portRings // nil until XDP is attached
}

type portRings struct {
	tx      []watchdog.Passage // by worker: frames to the driver, and back
	sockets watchdog.Passage   // from XDP to the sockets
	xdp     watchdog.Passage   // from the NIC to XDP
}

// ringTick is how often rings are looked at.
const ringTick = time.Second

// nicRate is from how many packets a second on it matters that XDP sees none of
// those that a NIC counts: some count pause frames, too.
const nicRate = 10

// watchRings begins the watch.
func (a *appliance) watchRings() error {
	a.rings.ports = make([]portRings, len(a.nics))
	for i := range a.rings.ports {
		a.rings.ports[i].tx = make([]watchdog.Passage, len(a.queues[i]))
		a.rings.ports[i].xdp.Rate = nicRate
	}
	a.running.Go(func() {
		tick := time.NewTicker(ringTick)
		defer tick.Stop()
		for {
			select {
			case <-a.ended:
				return
			case <-tick.C:
				a.lookAtRings()
			}
		}
	})
	return nil
}

func (a *appliance) lookAtRings() {
	if a.isDraining() { // a successor may have XDP already
		return
	}
	counters, err := a.steerer.Counters()
	if err != nil {
		return // closed
	}
	seen, steered := make([]uint64, len(a.nics)), make([]uint64, len(a.nics))
	for _, c := range counters {
		seen[c.Port] += c.Packets
		if c.Verdict == bpf.VerdictSocket {
			steered[c.Port] += c.Packets
		}
	}
	a.rings.mu.Lock()
	defer a.rings.mu.Unlock()
	for i, n := range a.nics {
		r := &a.rings.ports[i]
		up, arrived := false, uint64(0)
		if l, err := netlink.LinkByIndex(n.ifindex); err == nil {
			o := l.Attrs()
			up = o.OperState == netlink.OperUp || o.OperState == netlink.OperUnknown
			if s := o.Statistics; s != nil {
				arrived = s.RxPackets + s.RxMissedErrors
			}
		}
		look := func(p *watchdog.Passage, in, out uint64, says func() (found, mend string)) {
			if !up {
				p.Forget(in, out)
				return
			}
			switch p.Look(in, out) {
			case watchdog.Stuck:
				found, mend := says()
				a.log.Warn(found, "mend", mend)
			case watchdog.Moving:
				found, _ := says()
				a.log.Info("packets come through again", "was", found)
			}
		}
		var received uint64
		for w, q := range a.queues[i] {
			p := q.Progress()
			received += p.Received + p.Lost
			look(&r.tx[w], p.Sent, p.Returned, func() (string, string) { return a.txStall(i, w) })
		}
		look(&r.sockets, steered[i], received, func() (string, string) { return a.socketStall(i) })
		look(&r.xdp, arrived, seen[i], func() (string, string) { return a.xdpStall(i) })
	}
}

func (a *appliance) isDraining() bool {
	a.places.mu.RLock()
	defer a.places.mu.RUnlock()
	return a.places.draining
}

func (a *appliance) txStall(port, w int) (found, mend string) {
	name := a.nics[port].name
	return fmt.Sprintf("port %q: what is sent on queue %d of %s stays in its ring: frames go in, and none comes back",
			a.cfg.Ports[port].Name, a.nics[port].queues[w], name),
		fmt.Sprintf("ip link set dev %s down, then up; if it comes again, zero_copy = \"off\" in its [[port]]", name)
}

func (a *appliance) socketStall(port int) (found, mend string) {
	name := a.nics[port].name
	return fmt.Sprintf("port %q: XDP gives packets of %s to sockets, and none arrives", a.cfg.Ports[port].Name, name),
		fmt.Sprintf("ip link set dev %s down, then up; if it comes again, zero_copy = \"off\" in its [[port]]", name)
}

func (a *appliance) xdpStall(port int) (found, mend string) {
	name := a.nics[port].name
	return fmt.Sprintf("port %q: %s receives packets, and XDP sees none of them", a.cfg.Ports[port].Name, name),
		"penstock doctor FILE, which says whether the program is still attached; restart the appliance"
}

// stalls are how often each way of a port's packets has been stalled, and a
// sentence for each that is.
func (a *appliance) stalls(port int) (counts map[string]uint64, warnings []string) {
	a.rings.mu.Lock()
	defer a.rings.mu.Unlock()
	if a.rings.ports == nil {
		return nil, nil
	}
	counts = map[string]uint64{}
	r := &a.rings.ports[port]
	add := func(name string, p *watchdog.Passage, says func() (found, mend string)) {
		counts[name] += p.Stalls
		if stalled, seconds, packets := p.Stalled(); stalled {
			found, mend := says()
			warnings = append(warnings, fmt.Sprintf("%s, for %d s and %d packets; mend: %s", found, seconds, packets, mend))
		}
	}
	for w := range r.tx {
		add("tx", &r.tx[w], func() (string, string) { return a.txStall(port, w) })
	}
	add("sockets", &r.sockets, func() (string, string) { return a.socketStall(port) })
	add("xdp", &r.xdp, func() (string, string) { return a.xdpStall(port) })
	return counts, warnings
}
