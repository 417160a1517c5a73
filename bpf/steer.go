package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Limits of the program (bpf/include/types.h).
const (
	MaxPorts  = 32
	MaxQueues = 256 // per port
	MaxRules  = 256 // after flattening, see CompileRules
)

// DefaultMaxFlows is the size of the flow table unless Options say otherwise.
const DefaultMaxFlows = 131072

// DefaultMaxRewrites is how many flows can be rewritten unless Options say otherwise.
const DefaultMaxRewrites = 65536

// Port is an interface that the program is attached to.
type Port struct {
	Name    string // as in the configuration: used in errors and in the names of pins
	Ifindex int    // in the network namespace of the thread that calls Attach
	Mode    Mode
	// Headroom gives frames that XDP redirects to the port the room in front that its driver wants (virtio_net) and those from a
	// zero-copy queue have not; without it the driver drops these, and nothing but a tracepoint tells. It costs such a frame two
	// copies, and any other one a few nanoseconds.
	Headroom bool
}

// Default says what happens to packets that no chain wants.
type Default int

const (
	DefaultBridge Default = iota // to the peer port: ports 0 and 1 are peers, 2 and 3, and so on
	DefaultPass                  // to this host's kernel
	// DefaultRoute is to this host's kernel, which routes; steered packets are routed by the program, by the kernel's tables. What
	// the program cannot route itself goes to the kernel: see Route and Inject.
	DefaultRoute
)

// Midstream says what happens to a TCP segment of a flow that nobody saw begin.
type Midstream int

const (
	MidstreamBypass  Midstream = iota // default action
	MidstreamInspect                  // the rules decide, as if it began the flow
	MidstreamDrop
)

// OnExit says what happens to a chain's packets while nobody listens on their queue.
type OnExit int

const (
	OnExitOpen   OnExit = iota // default action
	OnExitClosed               // drop
)

// Malformed says what happens to packets that cannot be parsed.
type Malformed int

const (
	MalformedBypass Malformed = iota // default action: what is not understood is not touched
	MalformedDrop
)

// Options describe a Steerer. Name and Ports are required; the zero value of the rest is the default.
type Options struct {
	Name      string // of the instance: letters, digits, '-' and '_'; names its pins
	Ports     []Port // DefaultBridge: an even number. Port{}: there is none of this number
	Rules     []Rule
	Default   Default
	Midstream Midstream
	OnExit    OnExit
	Malformed Malformed

	// Events are what ReadEvents tells of; none: nothing is, at no cost.
	Events []EventKind

	// Silence is how long a worker may go without a Beat before its socket counts as gone; 0: for ever.
	Silence time.Duration

	// MaxFlows is how many flows can be steered to chains at once; 0 is DefaultMaxFlows. The memory, about 320 bytes a flow (two
	// entries), is taken at load.
	MaxFlows uint32

	// Chains are those that the rules name, by number: for who inherits flows. They may be left out.
	Chains []Chain

	// MaxRewrites is how many offloaded flows can have a rewrite (OffloadFlow.Rewrite) or replies under another key at once; 0 is
	// DefaultMaxRewrites, or MaxFlows if that is less. 256 bytes each are taken at load.
	MaxRewrites uint32

	// GateEntries is how many prefixes of each IP version the gate has room for (0: DefaultGateEntries), and GateSources of how many
	// sources at once it keeps the rates (0: DefaultGateSources). 35 MB are taken whatever the number.
	GateEntries, GateSources uint32

	// PinRoot is a folder on a bpffs (EnsureBPFFS) below which maps and links are pinned, so that the wire stays connected
	// when this process dies, and the next instance of the name can take over. "": nothing is pinned.
	PinRoot string
	// LinksLate pins links by Leave only: the program goes with a process that dies, but can be handed over.
	LinksLate bool
}

// Steerer is the loaded program, one copy a port, with its maps. Methods may be called from any goroutine; after Close or Leave they
// return an error that wraps os.ErrClosed.
type Steerer struct {
	opts Options

	// work is held by who changes ports: what takes its time is done under it, and not under mu, which workers take.
	work sync.Mutex

	mu       sync.RWMutex // guards what follows; the maps, which do their own locking, against being closed while in use
	ports    []attachment
	active   uint32 // which of the two lists in rules counts
	closed   bool
	claimed  bool           // what a dead instance of this name had left is ours
	leftover map[int]string // its links, by interface index

	will      will        // what we would leave
	heritage  *will       // what stands in the maps that are inherited; nil: none are
	inherited Inheritance // what became of it

	flows, frags, rules, rulesActive, sockets, beats, peers, counters, events, eventStates, eventWants *ebpf.Map

	beatMemory *ebpf.Memory // that of beats

	makeHeadroom *ebpf.Program // for the values of peers

	router  router
	table   table
	cookies cookies

	gateMaps map[string]*ebpf.Map
	gate     gate
}

// Load checks o and loads one program for each port; nothing is attached yet, no packet touched, and nothing pinned. If an instance
// of the same name has left its maps, and they fit, the flows in them will be ours: offloaded ones never notice.
// Inherited tells. The instance may still live; it must be dead, or have left, when the first port is attached, which makes
// this the instance of that name. That is not checked: the caller holds a lock.
//
// Needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or root. An error of the kernel's verifier wraps *ebpf.VerifierError, which
// prints the whole log under %+v.
func Load(o Options) (*Steerer, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("load steer program: %w", err)
	}
	if o.PinRoot != "" && !onBPFFS(o.PinRoot) {
		return nil, fmt.Errorf("load steer program: %s is not on a bpf file system; mend: mount -t bpf bpf %s", o.PinRoot, DefaultBPFFS)
	}
	if o.MaxFlows == 0 {
		o.MaxFlows = DefaultMaxFlows
	}
	if o.MaxRewrites == 0 {
		o.MaxRewrites = min(DefaultMaxRewrites, o.MaxFlows)
	}
	s := &Steerer{opts: o, ports: make([]attachment, len(o.Ports))}
	if err := s.load(); err != nil {
		s.release()
		return nil, fmt.Errorf("load steer program: %w", explainLoad(err))
	}
	if err := s.SetRules(o.Rules); err != nil {
		s.release()
		return nil, fmt.Errorf("load steer program: %w", err)
	}
	return s, nil
}

func (o *Options) check() error {
	if !validName(o.Name) {
		return fmt.Errorf("name %q: want 1 to 64 letters, digits, '-' or '_'", o.Name)
	}
	if n := len(o.Ports); n == 0 || n > MaxPorts {
		return fmt.Errorf("want 1 to %d ports, got %d", MaxPorts, n)
	} else if o.Default == DefaultBridge && n%2 != 0 {
		return fmt.Errorf("bridge wants ports in pairs, got %d", n)
	}
	names, ifaces := map[string]bool{}, map[int]string{}
	for _, p := range o.Ports {
		if p == (Port{}) { // removed
			continue
		}
		if p.Ifindex <= 0 {
			return fmt.Errorf("port %q: want an interface index, got %d", p.Name, p.Ifindex)
		}
		if p.Name == "" || names[p.Name] {
			return fmt.Errorf("port name %q is empty or used twice", p.Name)
		}
		if other, dup := ifaces[p.Ifindex]; dup {
			return fmt.Errorf("ports %q and %q are the same interface %d", other, p.Name, p.Ifindex)
		}
		names[p.Name], ifaces[p.Ifindex] = true, p.Name
	}
	if o.Silence < 0 {
		return fmt.Errorf("want a silence of 0 or more, got %v", o.Silence)
	}
	if o.GateEntries > 1<<24 || o.GateSources > 1<<24 {
		return fmt.Errorf("want at most %d entries and sources of the gate, got %d and %d", 1<<24, o.GateEntries, o.GateSources)
	}
	if o.MaxFlows > 1<<24 {
		return fmt.Errorf("want at most %d flows, got %d", 1<<24, o.MaxFlows)
	}
	if o.MaxRewrites > maxRewrites {
		return fmt.Errorf("want at most %d rewrites, got %d", maxRewrites, o.MaxRewrites)
	}
	_, err := CompileRules(o.Rules, len(o.Ports))
	return err
}

func validName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// spec is the collection with the constants of a port. A program is specialised to its port by them (port_id and the options): the
// verifier drops what cannot happen, and no packet pays for finding out where it came in. Maps have room for all ports that may come.
func (s *Steerer) spec(port int) (*ebpf.CollectionSpec, error) {
	spec, err := loadSteer()
	if err != nil {
		return nil, err
	}
	spec.Maps["flows"].MaxEntries = 2 * s.opts.MaxFlows
	spec.Maps["rewrites"].MaxEntries = 2 * (1 + s.opts.MaxRewrites)
	spec.Maps["gate_list4"].MaxEntries = cmp.Or(s.opts.GateEntries, DefaultGateEntries)
	spec.Maps["gate_list6"].MaxEntries = cmp.Or(s.opts.GateEntries, DefaultGateEntries)
	spec.Maps["gate_sources"].MaxEntries = gateSets(cmp.Or(s.opts.GateSources, DefaultGateSources))
	for name, v := range map[string]any{
		"port_id":        uint32(port),
		"default_action": uint32(s.opts.Default),
		"midstream":      uint32(s.opts.Midstream),
		"on_exit":        uint32(s.opts.OnExit),
		"malformed":      uint32(s.opts.Malformed),
		"silence_ns":     uint64(s.opts.Silence),
		"cookie_helpers": s.cookies.constant(),
	} {
		if err := spec.Variables[name].Set(v); err != nil {
			return nil, err
		}
	}
	return spec, s.setRouter(spec)
}

// program loads a port's program, when the maps are there, and the programs that user space runs on them.
func (s *Steerer) program(port int, shared map[string]*ebpf.Map) (*ebpf.Program, error) {
	spec, err := s.spec(port)
	if err != nil {
		return nil, err
	}
	var obj struct {
		Steer *ebpf.Program `ebpf:"steer"`
	}
	err = spec.LoadAndAssign(&obj, &ebpf.CollectionOptions{MapReplacements: shared})
	return obj.Steer, err
}

// load makes the maps with the first program and shares them with the others.
func (s *Steerer) load() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	s.cookies.usable = haveCookieHelpers()
	spec, err := s.spec(0)
	if err != nil {
		return err
	}
	inherited := s.inherit(spec)
	defer closeMaps(inherited)
	var obj struct {
		Steer        *ebpf.Program `ebpf:"steer"`
		MakeHeadroom *ebpf.Program `ebpf:"make_headroom"`
		steerMaps
		tablePrograms
	}
	if err := spec.LoadAndAssign(&obj, &ebpf.CollectionOptions{MapReplacements: inherited}); err != nil {
		return err
	}
	s.ports[0].prog, s.makeHeadroom = obj.Steer, obj.MakeHeadroom
	obj.FrameCopies.Close() // make_headroom has it; else some garbage collection closes it, at a time of its own
	s.flows, s.frags, s.rules, s.rulesActive = obj.Flows, obj.Fragments, obj.Rules, obj.RulesActive
	s.sockets, s.beats, s.peers, s.counters = obj.Sockets, obj.Beats, obj.Peers, obj.Counters
	s.router.macs, s.router.hops, s.router.answers = obj.PortMacs, obj.Hops, obj.RouteAnswers
	s.events, s.eventStates, s.eventWants = obj.Events, obj.EventStates, obj.EventWants
	if err := s.putEvents(s.opts.Events); err != nil {
		return err
	}
	if s.beatMemory, err = s.beats.Memory(); err != nil {
		return fmt.Errorf("map memory of heartbeats: %w", err)
	}
	if err := s.cookies.open(&obj.steerMaps); err != nil {
		return err
	}
	s.gateMaps = gateMaps(&obj.steerMaps)
	if err := s.gate.open(&obj.steerMaps); err != nil {
		return err
	}
	if err := s.table.open(&obj.steerMaps, &obj.tablePrograms, s.opts.MaxRewrites); err != nil {
		return err
	}
	shared := s.maps()
	if !s.has(0) { // it has made the maps
		s.ports[0].prog.Close()
		s.ports[0].prog = nil
	}
	for i := 1; i < len(s.opts.Ports); i++ {
		if !s.has(i) {
			continue
		}
		if s.ports[i].prog, err = s.program(i, shared); err != nil {
			return err
		}
	}
	if s.opts.Default == DefaultRoute {
		return s.loadRouter(shared)
	}
	for i := range s.opts.Ports {
		if !s.has(i) {
			continue
		}
		if err := s.setPeerOf(i); err != nil {
			return err
		}
	}
	return nil
}

// setPeerOf says where packets of a port go by default.
func (s *Steerer) setPeerOf(port int) error {
	peer := port
	if s.opts.Default == DefaultBridge {
		peer = port ^ 1
	}
	if err := s.setPeer(port, s.opts.Ports[peer]); err != nil {
		return fmt.Errorf("set peer of port %q to %s: %w", s.opts.Ports[port].Name, ifaceName(s.opts.Ports[peer].Ifindex), err)
	}
	return nil
}

// setPeer says by which port the frames leave that XDP redirects to an entry of peers.
func (s *Steerer) setPeer(entry int, p Port) error {
	v := struct{ Ifindex, Program uint32 }{Ifindex: uint32(p.Ifindex)} // struct bpf_devmap_val; no program: 0
	if p.Headroom {
		v.Program = uint32(s.makeHeadroom.FD())
	}
	return s.peers.Put(uint32(entry), v)
}

// maps returns the maps by their names in the object; nil ones if loading did not come so far.
func (s *Steerer) maps() map[string]*ebpf.Map {
	all := map[string]*ebpf.Map{
		"flows": s.flows, "fragments": s.frags, "rules": s.rules, "rules_active": s.rulesActive,
		"sockets": s.sockets, "beats": s.beats, "peers": s.peers, "counters": s.counters,
		"port_macs": s.router.macs, "hops": s.router.hops, "route_answers": s.router.answers,
		"rewrites": s.table.rewrites, "offload_jobs": s.table.offloadJobs, "end_jobs": s.table.endJobs,
		"events": s.events, "event_states": s.eventStates, "event_wants": s.eventWants,
		"cookie_chains": s.cookies.chains, "cookie_works": s.cookies.works,
	}
	maps.Copy(all, s.gateMaps)
	return all
}

// SetRules replaces the rules: a packet is judged by the old list or by the new one. Flows that belong to a chain stay with it.
func (s *Steerer) SetRules(rules []Rule) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	flat, err := CompileRules(rules, len(s.opts.Ports))
	if err != nil {
		return fmt.Errorf("set rules: %w", err)
	}
	if s.closed {
		return fmt.Errorf("set rules: %w", os.ErrClosed)
	}
	list := steerRuleList{Count: uint32(len(flat))}
	copy(list.Rule[:], flat)
	idle := s.active ^ 1
	if err := s.rules.Put(idle, &list); err != nil {
		return fmt.Errorf("set rules: %w", err)
	}
	if err := s.rulesActive.Put(uint32(0), idle); err != nil {
		return fmt.Errorf("set rules: %w", err)
	}
	s.active = idle
	return nil
}

// SetSocket sends a chain's packets that arrive on a queue of a port to an AF_XDP socket, which is bound to that queue. The kernel
// removes the entry when the socket is closed. fd -1 removes it now; removing what is not there is no error.
func (s *Steerer) SetSocket(port, queue, fd int) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.has(port) || queue < 0 || queue >= MaxQueues {
		return fmt.Errorf("set socket: want port 0 to %d and queue 0 to %d, got port %d, queue %d",
			len(s.opts.Ports)-1, MaxQueues-1, port, queue)
	}
	if s.closed {
		return fmt.Errorf("set socket: %w", os.ErrClosed)
	}
	at := uint32(port*MaxQueues + queue)
	var err error
	if fd < 0 {
		if err = s.sockets.Delete(at); errors.Is(err, ebpf.ErrKeyNotExist) {
			err = nil
		}
	} else {
		err = s.sockets.Put(at, uint32(fd))
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTSOCK) {
		err = fmt.Errorf("file descriptor %d is not an AF_XDP socket: %w", fd, err)
	}
	if err != nil {
		return fmt.Errorf("set socket of %s, queue %d: %w", s.portName(port), queue, err)
	}
	return nil
}

func (s *Steerer) portName(port int) string {
	p := s.opts.Ports[port]
	return fmt.Sprintf("%s (%s)", p.Name, ifaceName(p.Ifindex))
}

// ifaceName is the interface's name, or its index if it is gone.
func ifaceName(ifindex int) string {
	i, err := net.InterfaceByIndex(ifindex)
	if err != nil {
		return fmt.Sprintf("interface %d", ifindex)
	}
	return i.Name
}

// release closes this process's descriptors.
func (s *Steerer) release() {
	for i := range s.ports {
		a := &s.ports[i]
		if a.link != nil {
			a.link.Close()
		}
		if a.prog != nil {
			a.prog.Close()
		}
		a.link, a.prog = nil, nil
	}
	s.makeHeadroom.Close() // nil: nothing to do
	s.router.release()
	s.table.close()
	closeMaps(s.maps())
	s.closed = true
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		m.Close() // nil: nothing to do
	}
}

// grant is how to give a program that is not root what it needs.
const grant = "mend: run as root, or: setcap cap_bpf,cap_perfmon,cap_net_admin,cap_net_raw+ep FILE"

// explainLoad says what to do about the errors that have a known cure.
func explainLoad(err error) error {
	var v *ebpf.VerifierError
	switch {
	case errors.As(err, &v) && !hasPerfmon():
		return fmt.Errorf("the kernel's verifier refuses it without CAP_PERFMON; %s: %w", grant, err)
	case errors.As(err, &v):
		return fmt.Errorf("the kernel's verifier refuses it; mend: run Linux 6.1 or later: %w", err)
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return fmt.Errorf("no permission; %s: %w", grant, err)
	case errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("no memory for the maps; mend: a lower MaxFlows or MaxRewrites: %w", err)
	}
	return err
}

// hasPerfmon: without it the verifier forbids to subtract pointers, among other things.
func hasPerfmon() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return true
	}
	has := func(c uint) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	return has(unix.CAP_PERFMON) || has(unix.CAP_SYS_ADMIN)
}
