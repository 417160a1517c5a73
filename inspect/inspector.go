package inspect

import (
	"time"

	"penstock/internal/flowtab"
	"penstock/internal/wire"
	"penstock/pipeline"
)

// Inspector follows the connections of one worker.
type Inspector struct {
	o   Options
	env *pipeline.Env
	n   counters

	flows    *flowtab.Table[*flow]
	memory   memory
	most     int      // chunks of one direction
	spare    []*flow  // ended ones, for the next that begins
	released [2]flow  // stand for all that are released, by reversed
	frames   [][]byte // for packets that wait
	looks    [][]byte // for bytes that streams have not let go
	heldLen  int      // packets that wait, of all connections
	waiting  []*flow  // those with packets that wait
	denials  map[pipeline.Reason]*pipeline.Counter
	lost     map[pipeline.Reason]*pipeline.Counter
	active   int
	shown    [2]uint64 // bytes, by direction, that are not counted yet
	draining bool
	closed   bool
	// current is the flow whose streams are being called. If it is set when
	// the worker comes again, one of them has panicked.
	current *flow
}

var (
	_ pipeline.Stage      = (*Inspector)(nil)
	_ pipeline.Poller     = (*Inspector)(nil)
	_ pipeline.Ticker     = (*Inspector)(nil)
	_ pipeline.Drainer    = (*Inspector)(nil)
	_ pipeline.FlowLister = (*Inspector)(nil)
	_ pipeline.Waker      = (*Inspector)(nil)
	_ pipeline.Closer     = (*Inspector)(nil)
)

// New makes the Inspector of a worker. It allocates the flow table: about 100
// bytes for each of MaxFlows.
func New(env *pipeline.Env, o Options) *Inspector {
	s := &Inspector{
		o: o, env: env, n: newCounters(env.Counters), flows: flowtab.New[*flow](o.MaxFlows),
		most:    max(o.FlowMemory/chunkSize, 1),
		denials: make(map[pipeline.Reason]*pipeline.Counter), lost: make(map[pipeline.Reason]*pipeline.Counter),
	}
	s.memory.limit = max(o.Memory/chunkSize, 1)
	for i := range s.released {
		s.released[i].state, s.released[i].reversed = stateReleased, i == 1
	}
	return s
}

// Process implements pipeline.Stage.
func (s *Inspector) Process(b *pipeline.Batch) {
	now := s.env.Now()
	s.recover(now)
	for p := range b.Live() {
		if p.Proto == wire.ProtoTCP && p.HasFlow {
			s.segment(p, now)
		} else {
			p.Continue()
		}
	}
	// Once for a batch: an atomic operation waits for all that was written before.
	if n := s.shown[pipeline.ToServer]; n > 0 {
		s.n.bytesUp.Add(n)
	}
	if n := s.shown[pipeline.ToClient]; n > 0 {
		s.n.bytesDown.Add(n)
	}
	s.shown = [2]uint64{}
}

// segment decides on a packet with a TCP header.
func (s *Inspector) segment(p *pipeline.Packet, now int64) {
	t := wire.TCP(p.Bytes()[p.L4:p.End])
	key, reversed := p.Flow.Canonical()
	v, ok := s.flows.Get(key, now)
	if !ok {
		s.unknown(p, t, key, reversed, now)
		return
	}
	f := *v
	before := f.state
	d := pipeline.ToClient
	if reversed == f.reversed {
		d = pipeline.ToServer
	}
	if p.In != f.half[d].in && f.state != stateReleased && p.Routing == pipeline.Bridged {
		s.n.wrongPort.Add(1)
		p.Continue()
		return
	}
	if p.Frag != wire.FragNone && f.state < stateReleased {
		s.blind(f, p, ReasonFragment)
		return
	}
	if !s.o.ChecksumsSettled && p.Frag == wire.FragNone && !verified(p) {
		p.Drop(pipeline.ReasonL4Checksum)
		return
	}
	if p.Routing == pipeline.Routed && f.state != stateReleased { // routes change
		f.half[d].learn(p)
	}
	f.last = p.Time
	f.packets++
	f.bytes += uint64(p.Len())
	flags := t.Flags()
	switch {
	case flags.Has(wire.FlagSYN) && !flags.Has(wire.FlagRST):
		s.syn(f, d, p, t, now)
	case f.state == stateReleased:
		p.Continue()
		p.Release()
	case f.state >= stateReset:
		s.afterEnd(f, d, p, t)
	case flags.Has(wire.FlagRST):
		s.reset(f, d, p, t)
	case !flags.Has(wire.FlagACK):
		p.Drop(pipeline.ReasonOutOfState)
	case f.state == stateSYN:
		s.unanswered(f, d, p, t)
	default:
		s.accept(f, d, p, t, now)
	}
	if f.state == stateReleased && before != stateReleased {
		s.shrink(f, now)
	}
}

// verified reports whether the checksums of a whole TCP packet are right.
func verified(p *pipeline.Packet) bool {
	b := p.Bytes()
	if p.IPVersion == 4 && !wire.VerifyIPv4(b[p.L3:]) {
		return false
	}
	return wire.VerifyL4(b, &p.Headers)
}

// recover ends the connection whose stream has panicked. Its streams are not
// called again.
func (s *Inspector) recover(now int64) {
	f := s.current
	if f == nil {
		return
	}
	s.current = nil
	s.n.panicked.Add(1)
	f.streams, f.watching = nil, 0
	s.deny(f, nil, pipeline.ReasonStagePanic)
}

// Poll implements pipeline.Poller: what waits and may go goes.
func (s *Inspector) Poll(now int64) (busy bool) {
	s.recover(now)
	for i := 0; i < len(s.waiting); {
		f := s.waiting[i]
		for d := range f.half {
			if s.flush(f, pipeline.Direction(d)) {
				busy = true
			}
		}
		if len(f.half[0].held)+len(f.half[1].held) > 0 {
			i++
			continue
		}
		f.waiting = false
		s.waiting[i] = s.waiting[len(s.waiting)-1]
		s.waiting[len(s.waiting)-1] = nil
		s.waiting = s.waiting[:len(s.waiting)-1]
		if f.state == stateReleased {
			s.shrink(f, now)
		}
	}
	return busy
}

// expireStep is how many flows one Tick looks at for having been idle.
const expireStep = 4096

// Tick implements pipeline.Ticker.
func (s *Inspector) Tick(now int64) {
	s.recover(now)
	for _, f := range s.waiting {
		for d := range f.half {
			if h := &f.half[d]; len(h.held) > 0 && now-h.heldAt >= int64(s.o.HoldTime) && !f.state.over() {
				s.deny(f, nil, ReasonHoldTimeout)
			}
		}
	}
	s.flows.Expire(now, func(f **flow) time.Duration { return s.idleLimit(*f) }, expireStep,
		func(_ wire.Flow, f **flow) { s.idle(*f, now) })
	s.n.active.Set(uint64(s.active))
	s.n.memory.Set(uint64(s.memory.used) * chunkSize)
}

// never is an idle time that does not come.
const never = time.Duration(1<<63 - 1)

func (s *Inspector) idleLimit(f *flow) time.Duration {
	limit := s.o.IdleTimeout
	switch f.state {
	case stateSYN, stateSYNACK:
		return s.o.OpenTimeout
	case stateFinished, stateReset, stateDenied:
		return s.o.CloseTimeout
	case stateOpen:
		if s.o.HalfClosedTimeout > 0 && (f.half[0].finAcked || f.half[1].finAcked) {
			limit = s.o.HalfClosedTimeout
		}
	}
	if limit <= 0 {
		return never
	}
	return limit
}

// idle forgets a flow that has left the table.
func (s *Inspector) idle(f *flow, now int64) {
	switch {
	case f.state != stateOpen:
	case f.half[0].finAcked || f.half[1].finAcked:
		s.n.halfClosedTimeout.Add(1)
	default:
		s.n.idleTimeout.Add(1)
	}
	s.forget(f, now)
}

// shrink keeps of a released flow, which nobody calls by its name any more, that it
// is one: there may be as many as the table has room for.
func (s *Inspector) shrink(f *flow, now int64) {
	if f.waiting || f.again {
		return
	}
	if v, ok := s.flows.Get(f.key, now); ok && *v == f {
		*v = &s.released[0]
		if f.reversed {
			*v = &s.released[1]
		}
		s.keepFlow(f)
	}
}

func (s *Inspector) keepFlow(f *flow) {
	if len(s.spare) < spareFlows {
		s.spare = append(s.spare, f)
	}
}

// forget ends a flow that is not in the table any more.
func (s *Inspector) forget(f *flow, now int64) {
	if f == &s.released[0] || f == &s.released[1] {
		return
	}
	if !f.state.over() {
		s.active--
	}
	s.endStreams(f, now)
	s.clear(f)
	if f.waiting {
		for i, w := range s.waiting {
			if w == f {
				s.waiting[i] = s.waiting[len(s.waiting)-1]
				s.waiting = s.waiting[:len(s.waiting)-1]
				break
			}
		}
		f.waiting = false
	}
	s.keepFlow(f)
}

const spareFlows = 1024

// Drain implements pipeline.Drainer: new connections pass unseen, and none has
// to be waited for, since none ends with us.
func (s *Inspector) Drain(int64) (left int) {
	s.draining = true
	return 0
}

// CutPorts implements pipeline.PortCutter: the flows are forgotten. What waits is
// dropped. Of those that nobody looks into any more nothing is kept but the name,
// until it is idle.
func (s *Inspector) CutPorts(gone func(pipeline.PortID) bool, now int64) (n int) {
	for key, p := range s.flows.All() {
		if f := *p; f != &s.released[0] && f != &s.released[1] && (gone(f.half[0].in) || gone(f.half[0].out)) {
			s.flows.Delete(key)
			s.forget(f, now)
			n++
		}
	}
	return n
}

// Flows implements pipeline.FlowLister.
func (s *Inspector) Flows(yield func(pipeline.FlowInfo)) {
	for _, p := range s.flows.All() {
		f := *p
		if f.state.over() {
			continue
		}
		yield(pipeline.FlowInfo{
			Flow: f.conn.Flow, Depth: pipeline.DepthInspect, State: f.state.String(), Why: f.holder(),
			Start: f.conn.Start, Packets: f.packets, Bytes: f.bytes,
		})
	}
}

// Close implements pipeline.Closer. Connections go on without us; what waits is
// dropped, and their senders send it again.
func (s *Inspector) Close() error {
	if s.closed {
		return nil
	}
	s.closed, s.draining = true, true
	now := s.env.Now()
	for key, p := range s.flows.All() {
		f := *p
		s.flows.Delete(key)
		s.forget(f, now)
	}
	s.Tick(now)
	return nil
}
