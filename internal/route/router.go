package route

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// State is what the kernel's tables say of a frame.
type State uint8

// The states.
const (
	Pass   State = iota // the kernel answers or drops it
	Done                // it has been made ready to leave by a port
	Kernel              // the kernel can forward it, XDP cannot
	Wait                // the address of the next hop on its link is not known
)

// Hop is a next hop: an address on the link of an interface.
type Hop struct {
	Addr    netip.Addr
	Ifindex int
}

// Way is an answer of the kernel's tables.
type Way struct {
	State State
	Hop   Hop // if Done or Wait
	Port  int // if Done
	MTU   int // if Done
}

// Tables are the kernel's, as XDP sees them. Only the router's goroutines call
// them.
type Tables interface {
	// Route says where a frame goes that came in by a port, and makes it ready
	// to leave if it can.
	Route(port int, frame []byte) (Way, error)
	// Inject gives a frame to the kernel as if it had come in by a port.
	Inject(port int, frame []byte) error
	// SetMAC tells XDP the address of a port.
	SetMAC(port int, mac net.HardwareAddr) error
	// Hops lists the next hops of forwarded packets and how long ago they were
	// used; those for which fn returns false are forgotten.
	Hops(fn func(h Hop, unused time.Duration) bool) error
}

// Options describe a Router.
type Options struct {
	Tables    Tables
	Ifindex   []int // of the ports
	Frame     int   // bytes of the largest frame
	Log       *slog.Logger
	Neighbors Neighbors // nil: the kernel's, by netlink
}

// Neighbors is the kernel's table of neighbours.
type Neighbors interface {
	// Use has the kernel find a next hop, or find out whether it is still there,
	// as if it had a packet for it.
	Use(h Hop) error
}

const (
	waitTime   = 4 * time.Second // longer than the kernel looks for a neighbour
	waitHops   = 256             // that are looked for at once
	waitPerHop = 64              // packets
	waitAll    = 1024
	tooSoon    = time.Second // to have looked in vain: somebody has deleted the entry
	keepEvery  = 2 * time.Second
	keepUsed   = 10 * time.Second // a hop that was used so lately is kept alive
	keepKnown  = time.Minute      // and forgotten after this time
)

// Router answers the ports.
type Router struct {
	o     Options
	state pipeline.Router
	ports []*Port
	bell  chan struct{}
	news  chan news

	mu   sync.Mutex
	macs []net.HardwareAddr // guarded by mu: of the ports

	waiting map[Hop]*search
	parked  int
	spare   []*parcel

	injected, injectFailed, waited, resolved, unreachable, waitFull, lost, rerouted atomic.Uint64
	failing                                                                         bool // said so
}

// search is a next hop that is looked for, and the packets that wait for it.
type search struct {
	since   time.Time
	parcels []*parcel
	ports   []*Port // of parcels
}

// news is what has become of a neighbour.
type news struct {
	hop    Hop
	failed bool
}

// New returns a router. kernel is the PortID of its ports.
func New(o Options, kernel pipeline.PortID) *Router {
	if o.Neighbors == nil {
		o.Neighbors = kernelNeighbors{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Router{
		o: o, bell: make(chan struct{}, 1), news: make(chan news, 1024), macs: make([]net.HardwareAddr, len(o.Ifindex)),
		waiting: map[Hop]*search{},
	}
	r.state.Kernel = kernel
	return r
}

// State is what workers and stages get to know of the router.
func (r *Router) State() *pipeline.Router { return &r.state }

// Port makes a worker's port. wake makes the worker look. All ports are made
// before Run.
func (r *Router) Port(worker int, pool *pipeline.Pool, wake func()) *Port {
	p := &Port{
		r: r, pool: pool, wake: wake, up: newQueue(queueLen, r.o.Frame), down: newQueue(queueLen, r.o.Frame),
		info: pipeline.PortInfo{ID: r.state.Kernel, Name: "(kernel)", Queue: worker, Mode: "memory"},
	}
	r.ports = append(r.ports, p)
	return p
}

// ring has the router look at what workers have sent.
func (r *Router) ring() {
	select {
	case r.bell <- struct{}{}:
	default:
	}
}

// Run answers until ctx ends.
func (r *Router) Run(ctx context.Context) {
	keep, look := time.NewTicker(keepEvery), time.NewTicker(100*time.Millisecond)
	defer keep.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.bell:
			r.collect()
		case n := <-r.news:
			r.heard(n)
		case <-keep.C:
			r.keep()
		case now := <-look.C:
			r.overdue(now)
		}
	}
}

// collect takes what the workers have sent.
func (r *Router) collect() {
	for _, p := range r.ports {
		for i := 0; i < queueLen; i++ {
			from := p.up.next()
			if from == nil {
				break
			}
			if int(from.in) < len(r.o.Ifindex) {
				r.take(p, from)
			} else {
				r.lost.Add(1)
			}
			p.up.pop()
		}
		if p.up.next() != nil {
			r.ring()
		}
	}
}

func (r *Router) take(p *Port, from *parcel) {
	switch from.routing {
	case pipeline.KernelRouted, pipeline.Bridged:
		r.inject(from)
		return
	case pipeline.Reroute:
		if !r.readdress(from) {
			r.lost.Add(1)
			return
		}
		r.rerouted.Add(1)
	}
	r.resolve(p, from)
}

// readdress makes a frame that is ready to leave look as if it had just come in.
func (r *Router) readdress(from *parcel) bool {
	r.mu.Lock()
	mac := r.macs[from.in]
	r.mu.Unlock()
	b := from.frame()
	if len(mac) != 6 || len(b) < wire.EthernetLen+wire.IPv4Len {
		return false
	}
	copy(b, mac)
	switch ip := b[wire.EthernetLen:]; {
	case ip[0]>>4 == 4:
		h := wire.IPv4(ip)
		h.SetTTL(max(h.TTL()+1, h.TTL()))
		h.FillChecksum()
	case len(ip) >= wire.IPv6Len:
		h := wire.IPv6(ip)
		h.SetHopLimit(max(h.HopLimit()+1, h.HopLimit()))
	default:
		return false
	}
	return true
}

// resolve sends a frame on, or has it wait.
func (r *Router) resolve(p *Port, from *parcel) {
	way, err := r.o.Tables.Route(int(from.in), from.frame())
	if err != nil {
		r.fail(err)
		return
	}
	switch {
	case way.State == Done:
		r.giveBack(p, from, pipeline.Routed, pipeline.PortID(way.Port), uint16(way.MTU))
	case way.State == Wait:
		r.park(p, from, way.Hop)
	case way.State == Kernel && from.routing == pipeline.Unresolved:
		r.giveBack(p, from, pipeline.KernelRouted, r.state.Kernel, 0)
	default:
		r.inject(from)
	}
}

// giveBack returns a frame to its worker: to the chain, or what a stage has sent
// to the port by which it leaves.
func (r *Router) giveBack(p *Port, from *parcel, routing pipeline.Routing, out pipeline.PortID, mtu uint16) {
	to := p.down.room()
	if to == nil {
		r.lost.Add(1)
		return
	}
	to.set(from)
	to.leaves = from.routing == pipeline.Reroute
	to.routing, to.out, to.mtu = routing, out, mtu
	p.down.push()
	p.wake()
}

func (r *Router) inject(from *parcel) {
	if err := r.o.Tables.Inject(int(from.in), from.frame()); err != nil {
		r.fail(err)
		return
	}
	r.injected.Add(1)
}

func (r *Router) fail(err error) {
	r.injectFailed.Add(1)
	if !r.failing && !errors.Is(err, os.ErrClosed) { // the appliance ends
		r.failing = true
		r.o.Log.Error("packets are not routed", "err", err)
	}
}

// park has a frame wait for its next hop.
func (r *Router) park(p *Port, from *parcel, h Hop) {
	s := r.waiting[h]
	if r.parked >= waitAll || s == nil && len(r.waiting) >= waitHops || s != nil && len(s.parcels) >= waitPerHop {
		r.waitFull.Add(1)
		return
	}
	if s == nil {
		if err := r.o.Neighbors.Use(h); err != nil {
			r.unreachable.Add(1)
			r.fail(err)
			return
		}
		s = &search{since: time.Now()}
		r.waiting[h] = s
	}
	to := &parcel{}
	if n := len(r.spare); n > 0 {
		to, r.spare = r.spare[n-1], r.spare[:n-1]
	} else {
		to.buf = make([]byte, r.o.Frame)
	}
	to.set(from)
	s.parcels, s.ports = append(s.parcels, to), append(s.ports, p)
	r.parked++
	r.waited.Add(1)
}

// unpark ends a search and calls fn for each packet that waited.
func (r *Router) unpark(h Hop, fn func(p *Port, from *parcel)) {
	s := r.waiting[h]
	delete(r.waiting, h)
	for i, from := range s.parcels {
		r.parked--
		fn(s.ports[i], from)
		r.spare = append(r.spare, from)
	}
}

func (r *Router) heard(n news) {
	s := r.waiting[n.hop]
	if s == nil {
		return
	}
	if n.failed {
		if time.Since(s.since) > tooSoon {
			r.giveUp(n.hop)
		} else if err := r.o.Neighbors.Use(n.hop); err != nil {
			r.fail(err)
		}
		return
	}
	r.retry(n.hop)
}

// retry sends on what waited for a hop, if it is known now.
func (r *Router) retry(h Hop) {
	s := r.waiting[h]
	first := s.parcels[0]
	way, err := r.o.Tables.Route(int(first.in), append([]byte(nil), first.frame()...))
	if err == nil && way.State == Wait && way.Hop == h {
		return
	}
	r.unpark(h, func(p *Port, from *parcel) {
		r.resolved.Add(1)
		r.resolve(p, from)
	})
}

// giveUp lets the kernel tell the senders. It looks for the hop once more and
// then says unreachable; should it find it now, nothing must get round the
// chains: what it is given is of no use to a receiver.
func (r *Router) giveUp(h Hop) {
	r.unpark(h, func(_ *Port, from *parcel) {
		r.unreachable.Add(1)
		if from.routing == pipeline.Unresolved && spoil(from.frame()) {
			r.inject(from)
		}
	})
}

// spoil breaks the checksum of what an IP packet carries. False: it has none.
func spoil(b []byte) bool {
	var h wire.Headers
	if h.Parse(b) != wire.FaultNone || !h.HasL4 {
		return false
	}
	at := int(h.L4)
	switch h.Proto {
	case wire.ProtoTCP:
		at += 16
	case wire.ProtoUDP:
		at += 6
		if binary.BigEndian.Uint16(b[at:]) == 0 {
			return false
		}
	case wire.ProtoICMP, wire.ProtoICMPv6:
		at += 2
	default:
		return false
	}
	b[at] ^= 0x55
	b[at+1] ^= 0xaa
	return true
}

func (r *Router) overdue(now time.Time) {
	for h, s := range r.waiting {
		if now.Sub(s.since) > waitTime {
			r.giveUp(h)
		} else {
			r.retry(h)
		}
	}
}

// keep uses the neighbours that XDP forwards to, so that the kernel finds out in
// time when one is gone or has another address.
func (r *Router) keep() {
	err := r.o.Tables.Hops(func(h Hop, unused time.Duration) bool {
		if unused < keepUsed {
			_ = r.o.Neighbors.Use(h) // gone with its interface: the next packet will tell
		}
		return unused < keepKnown
	})
	if err != nil && !r.failing && !errors.Is(err, os.ErrClosed) {
		r.failing = true
		r.o.Log.Error("neighbours are not kept alive", "err", err)
	}
}

// Counters returns what the router did, by name.
func (r *Router) Counters() map[string]uint64 {
	return map[string]uint64{
		"to_kernel": r.injected.Load(), "failed": r.injectFailed.Load(), "waited": r.waited.Load(), "resolved": r.resolved.Load(),
		"unreachable": r.unreachable.Load(), "wait_full": r.waitFull.Load(), "lost": r.lost.Load(), "rerouted": r.rerouted.Load(),
		"changes": uint64(r.state.Epoch.Load()),
	}
}
