package stack

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"penstock/internal/flowtab"
	"penstock/internal/wire"
	"penstock/pipeline"
)

// nicID is netstack's only interface: which port a packet leaves by is known
// from its connection.
const nicID tcpip.NICID = 1

// Stack terminates the connections of one worker.
type Stack struct {
	o   Options
	env *pipeline.Env
	n   counters

	net      *nstack.Stack
	proto    segmentQueuer
	stats    tcpip.Stats
	link     *link
	clock    *clock
	active   int
	pending  int
	draining bool
	closed   bool
	fed      int // segments that netstack was given since the last Poll

	flows     *flowtab.Table[*flow]
	frags     *flowtab.Table[struct{}] // datagrams whose first fragment was ours
	bypassed  *flowtab.Table[uint32]   // sequence numbers of SYNs that were not taken
	timed     []*flow                  // those with a deadline
	lingering []*flow                  // those that are only remembered, oldest first
	lingerAt  int                      // first of them
	resetting []*flow                  // those whose end waits for data to leave
	wishes    []*flow                  // those that are to be spliced
	clients   clients
	owing     []*flow // those with bytes that an end has not acknowledged
	owingAt   int     // the one that Tick looks at next
	denials   map[pipeline.Reason]*pipeline.Counter

	tx    []outgoing // taken from link, from txAt on still to be sent
	txAt  int
	txOff int    // payload bytes of tx[txAt] that are out already
	held  []*leg // those that hold an ACK until the end of the turn
	// ACKs that wait for longer, from delayedAt on, soonest first. The timer
	// wakes the worker for the first of them.
	delayed   []delayed
	delayedAt int
	ackTimer  tcpip.Timer
	ackWake   atomic.Bool // the timer runs
	gro       []*leg
	work      []*flow // taken from ready, from workAt on still to be serviced
	workAt    int
	// current is the flow that is being serviced. If it is set when a Poll
	// begins, a stream stage panicked in the last one.
	current *flow
	buf     []byte // what a relay reads into
	spare   [][]byte
	reader  payload

	simConns   uint64 // connections begun in a simulation
	splices    bool   // flows that nobody needs to see are spliced
	syns       synSwitch
	evictAt    int                 // in timed: the one that evictHalfOpen looked at last
	quietTimes *pipeline.Histogram // from the wish to the splice, seconds

	signalled atomic.Bool // the worker is awake or was woken: no need to again

	mu    sync.Mutex
	ready []*flow // guarded by mu: want service
}

// segmentQueuer is what netstack's TCP offers besides what its interface has: a
// segment for an endpoint that is known already.
type segmentQueuer interface {
	QueuePacket(nstack.TransportEndpoint, nstack.TransportEndpointID, *nstack.PacketBuffer)
}

// New makes the netstack of a worker. It allocates the flow table: about 100
// bytes for each of MaxFlows.
func New(env *pipeline.Env, o Options) (*Stack, error) {
	s := &Stack{
		o: o, env: env, n: newCounters(env.Counters),
		// Connections that are only remembered must not keep new ones out.
		flows:    flowtab.New[*flow](o.MaxFlows + max(o.MaxFlows/2, 64)),
		frags:    flowtab.New[struct{}](fragCapacity),
		bypassed: flowtab.New[uint32](bypassCapacity),
		clients:  clients{},
		denials:  make(map[pipeline.Reason]*pipeline.Counter),
		buf:      make([]byte, relayChunk),

		quietTimes: env.Counters.Histogram("penstock_stage_splice_wait_seconds",
			"From the moment that no stage wants a terminated connection any more to its splice: how long it took to be quiet.", spliceBounds),
		splices: o.Splice && env.Splicer != nil,
	}
	mtu, err := usableMTU(env)
	if err != nil {
		return nil, err
	}
	logTo(env.Log)
	s.clock = newClock(env.Now)
	s.clock.sim, s.clock.quiesce = env.Simulation, s.quiesce
	s.link = &link{mtu: uint32(mtu), wake: s.wake, dropped: s.n.txDropped}
	if o.RACK {
		s.link.clock = s.clock
	}
	s.ackTimer = s.clock.AfterFunc(time.Hour, func() { s.ackWake.Store(false); s.wake() })
	s.ackTimer.Stop()
	no := nstack.Options{
		Clock:              s.clock,
		NetworkProtocols:   []nstack.NetworkProtocolFactory{bypassIP(ipv4.NewProtocol, s.link), bypassIP(ipv6.NewProtocol, s.link)},
		TransportProtocols: []nstack.TransportProtocolFactory{tcp.NewProtocol},
		// HandleLocal stays off: the addresses of live connections count as
		// local, and a dial to one of them would never leave the stack.
	}
	if env.Simulation != nil {
		s.simulate(&no)
	}
	s.net = nstack.New(no)
	s.stats = s.net.Stats()
	if err := s.configure(); err != nil {
		s.net.Destroy()
		return nil, err
	}
	s.proto = s.net.TransportProtocolInstance(tcp.ProtocolNumber).(segmentQueuer)
	s.net.SetTransportProtocolHandler(tcp.ProtocolNumber, s.orphan)
	if o.SYNCookies == CookiesOn {
		s.answerSYNs(true, env.Now())
	}
	return s, nil
}

// configure sets netstack up. Its errors are names without a cause.
func (s *Stack) configure() error {
	o := &s.o
	set := func(what string, err tcpip.Error) error {
		if err != nil {
			return fmt.Errorf("set up netstack: %s: %s", what, err)
		}
		return nil
	}
	recovery := tcpip.TCPRecovery(0)
	if o.RACK {
		recovery = tcpip.TCPRACKLossDetection
	}
	// Netstack's CUBIC has no lower bound for its target (RFC 9438, section 4.2;
	// cubicState.getCwnd). After two timeouts in a row wMax is 0.85, the target
	// 0.6, and two ACKs later the window int(0.6) = 0: nothing is under way, no
	// timer runs, and the connection never sends again. Reno does not do that.
	cc := tcpip.CongestionControlOption("reno")
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	timeWait := tcpip.TCPTimeWaitTimeoutOption(o.TimeWait)
	linger := tcpip.TCPLingerTimeoutOption(o.CloseTimeout)
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: o.SendBuffer, Max: o.SendBufferMax}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: o.ReceiveBuffer, Max: o.ReceiveBufferMax}
	for what, opt := range map[string]tcpip.SettableTransportProtocolOption{
		"loss detection": &recovery, "congestion control": &cc, "SACK": &sack, "receive buffer growth": &moderate,
		"TIME_WAIT": &timeWait, "linger time": &linger, "send buffer": &send, "receive buffer": &receive,
	} {
		if err := set(what, s.net.SetTransportProtocolOption(tcp.ProtocolNumber, opt)); err != nil {
			return err
		}
	}
	if err := set("interface", s.net.CreateNIC(nicID, s.link)); err != nil {
		return err
	}
	// Any destination is ours, and any source.
	if err := set("promiscuous mode", s.net.SetPromiscuousMode(nicID, true)); err != nil {
		return err
	}
	if err := set("spoofing", s.net.SetSpoofing(nicID, true)); err != nil {
		return err
	}
	s.net.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	return nil
}

// usableMTU returns the largest IP packet that every port carries and a frame
// holds.
func usableMTU(env *pipeline.Env) (int, error) {
	mtu := 65535
	for _, p := range env.Ports {
		if p.MTU > 0 {
			mtu = min(mtu, p.MTU)
		}
	}
	mtu = min(mtu, env.FrameRoom-len(leg{}.l2))
	if mtu < header.IPv6MinimumMTU {
		return 0, fmt.Errorf("set up netstack: ports and frames carry IP packets of %d bytes, IPv6 needs %d", mtu, header.IPv6MinimumMTU)
	}
	return mtu, nil
}

// wake makes the worker take a turn, once for as many calls as come before it
// does.
func (s *Stack) wake() {
	// To look is cheaper than to write.
	if !s.signalled.Load() && !s.signalled.Swap(true) {
		s.env.Wake()
	}
}

// enqueue lists a flow for service, unless it is listed already. Netstack's
// goroutines call it too.
func (s *Stack) enqueue(f *flow) {
	if f.queued.Load() || f.queued.Swap(true) {
		return
	}
	s.mu.Lock()
	s.ready = append(s.ready, f)
	s.mu.Unlock()
	s.wake()
}

// revisit has the whole of a flow serviced again in the next turn.
func (s *Stack) revisit(f *flow) {
	f.every = true
	s.enqueue(f)
}

// fewSegments is below what a worker receives when it is busy. Then what came
// before is at hand to be worked on, and what came now is the next turn's.
const fewSegments = 32

// Poll does what netstack and the flows have asked for since the last call:
// handshakes that ended, bytes that can be relayed, packets to be sent.
func (s *Stack) Poll(now int64) (busy bool) {
	s.signalled.Store(true)
	s.clock.advance(now)
	s.Flush()
	if s.fed > 0 && s.fed < fewSegments && s.env.Simulation == nil {
		// Netstack's goroutines come first: what they make of the segments is
		// looked at and sent in this turn.
		runtime.Gosched()
	}
	s.fed = 0
	s.recover(now)
	s.take()
	for s.workAt < len(s.work) {
		f := s.work[s.workAt]
		s.work[s.workAt] = nil
		s.workAt++
		s.current = f
		f.queued.Store(false)
		if s.service(f, now) {
			s.revisit(f)
		}
		busy = true
	}
	s.current = nil
	if s.transmit(now) {
		busy = true
	}
	if s.finishResets(now) && s.transmit(now) {
		busy = true
	}
	// From here on whoever queues something wakes the worker; what was queued
	// before is looked at now.
	s.signalled.Store(false)
	s.mu.Lock()
	more := len(s.ready) > 0
	s.mu.Unlock()
	return busy || more || s.link.waiting() || s.txAt < len(s.tx) || s.unsentACKs()
}

// take takes over what was queued, unless a panic has left something to do.
func (s *Stack) take() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.workAt == len(s.work) {
		s.ready, s.work, s.workAt = s.work[:0], s.ready, 0
	}
}

// recover ends the connection in which a stream stage has panicked. Its streams
// are not called again.
func (s *Stack) recover(now int64) {
	f := s.current
	if f == nil {
		return
	}
	s.current = nil
	s.n.panicked.Add(1)
	f.streams, f.watching = nil, 0
	s.kill(f, now)
}

// expireStep is how many flows one Tick looks at for having been idle.
const expireStep = 4096

// Tick ends what has waited for too long.
func (s *Stack) Tick(now int64) {
	for i := 0; i < len(s.timed); {
		f := s.timed[i]
		if now < f.deadline {
			i++
			continue
		}
		f.setDeadline(now, 0) // puts another flow at i
		s.timeout(f, now)
	}
	s.checkWishes(now)
	s.checkCookies(now)
	s.flows.Expire(now, func(f **flow) time.Duration { return s.idleLimit(*f) }, expireStep,
		func(_ wire.Flow, f **flow) { s.idle(*f, now) })
	s.endStalled(now)
	s.bypassed.Expire(now, func(*uint32) time.Duration { return bypassTime }, expireStep, nil)
	s.forgetLingering(now)
	s.n.active.Set(uint64(s.active))
	s.n.pending.Set(uint64(s.pending))
	s.n.lingering.Set(uint64(len(s.lingering) - s.lingerAt))
	n := &s.stats.TCP
	s.n.retransmits.Set(n.Retransmits.Value())
	s.n.timeouts.Set(n.Timeouts.Value())
	s.n.recoveries.Set(n.FastRecovery.Value() + n.SACKRecovery.Value())
	s.n.txQueued.Set(uint64(s.link.queued()))
}

// Drain makes the stack refuse new connections, which are bypassed, and
// returns how many are left.
func (s *Stack) Drain(now int64) (left int) {
	s.answerSYNs(false, now)
	s.draining = true
	return s.active
}

// Flows yields the connections that are terminated now.
func (s *Stack) Flows(yield func(pipeline.FlowInfo)) {
	now := s.env.Now()
	for _, p := range s.flows.All() {
		f := *p
		if f.state >= stateClosed {
			continue
		}
		if f.state == stateSpliced {
			yield(f.splice.info(f))
			continue
		}
		yield(pipeline.FlowInfo{
			Flow: f.conn.Flow, Depth: pipeline.DepthTerminate, State: f.state.String(),
			Why: f.why(s, now), Start: f.conn.Start, Packets: f.packets,
			Bytes: f.dir[pipeline.ToServer].bytes + f.dir[pipeline.ToClient].bytes,
		})
	}
}

// Close resets every connection and stops netstack. What is sent last is
// emitted; it is up to the worker whether it leaves.
func (s *Stack) Close() error {
	if s.closed {
		return nil
	}
	now := s.env.Now()
	s.answerSYNs(false, now)
	s.closed, s.draining = true, true
	for _, p := range s.flows.All() {
		s.kill(*p, now)
	}
	s.ackTimer.Stop()
	s.transmit(now)
	for s.txAt < len(s.tx) {
		s.releaseTx()
	}
	s.net.Destroy()
	for _, o := range s.link.take(nil) {
		s.link.release(&o)
	}
	s.Tick(now)
	return nil
}
