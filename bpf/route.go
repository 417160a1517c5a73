package bpf

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// RouteMetaSize is how many bytes stand before the metadata (MetaSize) of a packet in router mode: see ReadRoute.
const RouteMetaSize = 8

// RouteState is what the kernel's tables say of a packet (bpf/include/types.h).
type RouteState uint8

const (
	RouteDone   = RouteState(steerRouteStateROUTE_DONE)   // addressed to the next hop, TTL less one: it can leave by its port
	RouteKernel = RouteState(steerRouteStateROUTE_KERNEL) // untouched: the kernel can forward it, the program cannot
	RouteWait   = RouteState(steerRouteStateROUTE_WAIT)   // untouched: the next hop's address on the link is not known
	RoutePass   = RouteState(steerRouteStateROUTE_PASS)   // untouched: the kernel answers or drops it
)

// Hop is a next hop: an address on the link of an interface.
type Hop struct {
	Addr    netip.Addr
	Ifindex int
}

// Answer is what Route found.
type Answer struct {
	State  RouteState
	Reason Reason // unless RouteDone
	Hop    Hop    // if RouteDone or RouteWait
	Port   int    // if RouteDone: by which it leaves
	MTU    int    // if RouteDone: of the route, the largest IP packet
}

// router is what DefaultRoute needs besides.
type router struct {
	macs, hops, answers *ebpf.Map
	injected            [8]byte // source address of frames given to the kernel: secret, and 2 bytes of padding

	mu     sync.Mutex      // route programs share one answer
	route  []*ebpf.Program // by port
	inject *ebpf.Program
}

// setRouter sets the constants of router mode.
func (s *Steerer) setRouter(spec *ebpf.CollectionSpec) error {
	if s.opts.Default != DefaultRoute {
		return nil
	}
	r := &s.router
	for r.injected[0] == 0 {
		if _, err := rand.Read(r.injected[:6]); err != nil {
			return err
		}
		r.injected[0] = r.injected[0]&^1 | 2 // one station's, locally administered
	}
	var ifindex [MaxPorts]uint32
	for i, p := range s.opts.Ports {
		ifindex[i] = uint32(p.Ifindex)
	}
	return errors.Join(
		spec.Variables["port_count"].Set(uint32(len(s.opts.Ports))),
		spec.Variables["port_ifindex"].Set(ifindex),
		spec.Variables["injected_mac"].Set(r.injected),
	)
}

// loadRouter loads the programs that Route and Inject run, and fills the maps.
func (s *Steerer) loadRouter(shared map[string]*ebpf.Map) error {
	r := &s.router
	r.route = make([]*ebpf.Program, len(s.opts.Ports))
	for i, p := range s.opts.Ports {
		spec, err := loadSteer()
		if err != nil {
			return err
		}
		for name, m := range shared {
			spec.Maps[name].MaxEntries = m.MaxEntries()
		}
		if err := errors.Join(s.setRouter(spec), spec.Variables["port_id"].Set(uint32(i))); err != nil {
			return err
		}
		var obj struct {
			Route  *ebpf.Program `ebpf:"route"`
			Inject *ebpf.Program `ebpf:"inject"`
		}
		if err := spec.LoadAndAssign(&obj, &ebpf.CollectionOptions{MapReplacements: shared}); err != nil {
			return err
		}
		r.route[i] = obj.Route
		if r.inject == nil {
			r.inject = obj.Inject
		} else {
			obj.Inject.Close()
		}
		if err := s.setPeer(i, p); err != nil {
			return fmt.Errorf("set interface of port %q: %w", p.Name, err)
		}
		if l, err := net.InterfaceByIndex(p.Ifindex); err == nil && len(l.HardwareAddr) == 6 {
			if err := s.setMAC(i, l.HardwareAddr); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *router) release() {
	for _, p := range append(r.route, r.inject) {
		if p != nil {
			p.Close()
		}
	}
	r.route, r.inject = nil, nil
}

// SetMAC tells the program the address on the link of a port: in router mode it routes only frames that are sent to it. Load reads
// it once; call this when it changes.
func (s *Steerer) SetMAC(port int, mac net.HardwareAddr) error {
	if port < 0 || port >= len(s.opts.Ports) || len(mac) != 6 {
		return fmt.Errorf("set address of port: want port 0 to %d and 6 bytes, got port %d and %v", len(s.opts.Ports)-1, port, mac)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return fmt.Errorf("set address of port: %w", os.ErrClosed)
	}
	return s.setMAC(port, mac)
}

func (s *Steerer) setMAC(port int, mac net.HardwareAddr) error {
	if err := s.router.macs.Put(uint32(port), &steerPortMac{Mac: [6]uint8(mac)}); err != nil {
		return fmt.Errorf("set address of %s: %w", s.portName(port), err)
	}
	return nil
}

// xdpMD is struct xdp_md of linux/bpf.h.
type xdpMD struct {
	Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

// Route asks the kernel's tables, as the program does, where a frame goes that has come in by a port. If the answer is RouteDone it
// makes the frame ready to leave: MAC addresses and TTL. DefaultRoute only; one call at a time runs, for some microseconds.
func (s *Steerer) Route(port int, frame []byte) (a Answer, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := &s.router
	if s.closed || port < 0 || port >= len(r.route) {
		return a, fmt.Errorf("route packet of port %d: %w", port, os.ErrClosed)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	md := xdpMD{DataEnd: uint32(len(frame)), IngressIfindex: uint32(s.opts.Ports[port].Ifindex)}
	if _, err := r.route[port].Run(&ebpf.RunOptions{Data: frame, DataOut: frame, Context: md}); err != nil {
		return a, fmt.Errorf("route packet of %s: %w", s.portName(port), err)
	}
	var raw steerRouteAnswer
	if err := r.answers.Lookup(uint32(0), &raw); err != nil {
		return a, fmt.Errorf("route packet of %s: %w", s.portName(port), err)
	}
	a = Answer{State: RouteState(raw.State), Reason: Reason(raw.Reason), Port: int(raw.Port), MTU: int(raw.Mtu)}
	if raw.Hop.Family != 0 {
		a.Hop = hopOf(raw.Hop)
	}
	return a, nil
}

// Inject gives a frame to the kernel as if it had come in by a port and no program were there: the kernel routes, answers or drops
// it. The frame's source address is overwritten. DefaultRoute only; it takes Linux 5.18 and some tens of microseconds.
func (s *Steerer) Inject(port int, frame []byte) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := &s.router
	if s.closed || r.inject == nil || port < 0 || port >= len(s.opts.Ports) || len(frame) < 14 {
		return fmt.Errorf("give packet of port %d to the kernel: %w", port, os.ErrClosed)
	}
	copy(frame[6:12], r.injected[:6])
	md := xdpMD{DataEnd: uint32(len(frame)), IngressIfindex: uint32(s.opts.Ports[port].Ifindex)}
	if _, err := r.inject.Run(&ebpf.RunOptions{Data: frame, Context: md, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES}); err != nil {
		return fmt.Errorf("give packet of %s to the kernel (Linux 5.18 or later is needed): %w", s.portName(port), err)
	}
	return nil
}

// Hops calls fn for every next hop in use: when the program last noted it, on the clock of Now. Those for which fn returns false are
// forgotten.
func (s *Steerer) Hops(fn func(h Hop, used time.Duration) bool) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return fmt.Errorf("read next hops: %w", os.ErrClosed)
	}
	var k steerHopKey
	var v steerHop
	var gone []steerHopKey
	it := s.router.hops.Iterate()
	for it.Next(&k, &v) {
		if !fn(hopOf(k), time.Duration(v.Used)) {
			gone = append(gone, k)
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("read next hops: %w", err)
	}
	for i := range gone {
		if err := s.router.hops.Delete(&gone[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget next hop: %w", err)
		}
	}
	return nil
}

func hopOf(k steerHopKey) Hop {
	return Hop{Addr: wordsAddr(k.Addr, uint8(k.Family)), Ifindex: int(k.Ifindex)}
}
