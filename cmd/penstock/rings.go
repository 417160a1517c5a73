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
	mu sync.Mutex // guards the portRings of all ports
	on bool       // XDP is attached
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
	a.rings.mu.Lock()
	a.rings.on = true
	a.rings.mu.Unlock()
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
	seen, steered := map[int]uint64{}, map[int]uint64{}
	for _, c := range counters {
		seen[c.Port] += c.Packets
		if c.Verdict == bpf.VerdictSocket {
			steered[c.Port] += c.Packets
		}
	}
	a.rings.mu.Lock()
	defer a.rings.mu.Unlock()
	for port := range a.eachPort() {
		i, n, r := port.id, port.nic, &port.rings
		if port.leaves() {
			continue
		}
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
		for w, q := range port.queues {
			p := q.Progress()
			received += p.Received + p.Lost
			look(&r.tx[w], p.Sent, p.Returned, func() (string, string) { return port.txStall(w) })
		}
		look(&r.sockets, steered[i], received, func() (string, string) { return port.socketStall() })
		look(&r.xdp, arrived, seen[i], func() (string, string) { return port.xdpStall() })
	}
}

func (a *appliance) isDraining() bool {
	a.places.mu.RLock()
	defer a.places.mu.RUnlock()
	return a.places.draining
}

func (p *port) txStall(w int) (found, mend string) {
	name := p.nic.name
	return fmt.Sprintf("port %q: what is sent on queue %d of %s stays in its ring: frames go in, and none comes back",
			p.conf.Name, p.nic.queues[w], name),
		fmt.Sprintf("ip link set dev %s down, then up; if it comes again, zero_copy = \"off\" in its [[port]]", name)
}

func (p *port) socketStall() (found, mend string) {
	name := p.nic.name
	return fmt.Sprintf("port %q: XDP gives packets of %s to sockets, and none arrives", p.conf.Name, name),
		fmt.Sprintf("ip link set dev %s down, then up; if it comes again, zero_copy = \"off\" in its [[port]]", name)
}

func (p *port) xdpStall() (found, mend string) {
	name := p.nic.name
	return fmt.Sprintf("port %q: %s receives packets, and XDP sees none of them", p.conf.Name, name),
		"penstock doctor FILE, which says whether the program is still attached; restart the appliance"
}

// stalls are how often each way of a port's packets has been stalled, and a
// sentence for each that is.
func (a *appliance) stalls(port *port) (counts map[string]uint64, warnings []string) {
	a.rings.mu.Lock()
	defer a.rings.mu.Unlock()
	if !a.rings.on {
		return nil, nil
	}
	counts = map[string]uint64{}
	r := &port.rings
	add := func(name string, p *watchdog.Passage, says func() (found, mend string)) {
		counts[name] += p.Stalls
		if stalled, seconds, packets := p.Stalled(); stalled {
			found, mend := says()
			warnings = append(warnings, fmt.Sprintf("%s, for %d s and %d packets; mend: %s", found, seconds, packets, mend))
		}
	}
	for w := range r.tx {
		add("tx", &r.tx[w], func() (string, string) { return port.txStall(w) })
	}
	add("sockets", &r.sockets, func() (string, string) { return port.socketStall() })
	add("xdp", &r.xdp, func() (string, string) { return port.xdpStall() })
	return counts, warnings
}
