package pipeline

import (
	"errors"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"penstock/internal/wire"
)

// WorkerOptions configure a Worker.
type WorkerOptions struct {
	ID      int
	Ports   []Port     // by PortID; nil where this worker has no queue. The slice is the worker's
	Infos   []PortInfo // of all ports, by PortID
	Pool    *Pool
	Waiter  Waiter       // nil: an idle worker yields its processor instead of sleeping
	Clock   func() int64 // nil: the system's, made monotonic
	Log     *slog.Logger
	Default ChainID // chain of packets that nobody steered; NoChain: they go to the peer port
	// VerifyChecksums drops packets with a wrong checksum. Captures want it;
	// on a wire the end hosts and the netstack do it anyway.
	VerifyChecksums bool
	// Offloader takes released flows; nil: they stay in user space.
	Offloader Offloader
	// Beat, if there is one, is called on the worker's goroutine at least every
	// BeatInterval as long as the worker takes turns: a sign of life.
	Beat func()
	// Flush, if there is one, is called at the end of each turn, and of Close.
	Flush func()
	// Passer, if there is one, knows what goes past the worker when Beat was not
	// called for longer than Silence.
	Passer  Passer
	Silence time.Duration
	// TimeStages has one turn of timedTurns timed, stage by stage.
	TimeStages bool
	// Router is what stages get to know of it in router mode; nil: bridge mode.
	Router *Router
	// SpinTurns is how many empty turns a worker takes before it waits.
	SpinTurns int
	// Simulation is the world of the stages where time is not the system's.
	Simulation *Simulation
}

// Worker runs chains over the packets of its ports: it receives a batch, runs
// the chain, transmits, and begins again. One goroutine owns it.
//
// A turn, in order: receive from each port and from the rings of the other
// workers, run the chains, poll the stages, transmit, recycle and refill, tick.
type Worker struct {
	o        WorkerOptions
	clock    func() int64
	chains   []*Chain // by ChainID
	affinity []bool
	active   []*Chain // those of chains, each once
	eof      []bool
	batch    *Batch // received
	run      *Batch // packets of one chain, in a row
	out      [][]*Packet
	emitted  [][]*Packet
	releases *releases // nil: no offload
	taps     *taps     // nil: nobody captures
	lastTick int64
	lastBeat int64
	doubt    int64 // until then what comes may be of connections that are bypassed
	turnTime int64
	more     bool // the last turn may have left something to do

	peers []*Worker // all workers by ID, itself included
	inbox []*ring   // by sender
	woken []bool    // peers that were handed something this turn

	callMu sync.Mutex
	calls  []func()
	called atomic.Bool

	shown atomic.Pointer[[]*Chain] // active, for other goroutines

	turns, idle            atomic.Uint64
	packets, bytes         atomic.Uint64
	forwarded, consumed    atomic.Uint64
	emits, emitLost        atomic.Uint64
	handedOver, badIPSum   atomic.Uint64
	badL4Sum               atomic.Uint64
	dropped                [MaxReasons]atomic.Uint64
	lastTurn               atomic.Int64
	panicLogged, waitCount atomic.Uint64
}

// BeatInterval is how often a worker shows that it works (WorkerOptions.Beat).
const BeatInterval = 50 * time.Millisecond

// timedTurns is how often a turn is timed. A clock is read twice for each stage of
// it: less than a nanosecond for each packet that goes by meanwhile.
const timedTurns = 64

func (w *Worker) timeStages(on bool) {
	for _, c := range w.active {
		c.timer = nil
		if on {
			c.timer = w.clock
		}
	}
}

// emitCap bounds how many packets wait in the worker for one port; beyond it
// they are given to the port at once.
const emitCap = 4 * BatchSize

// NewWorker returns a worker without chains: SetChains gives it some.
func NewWorker(o WorkerOptions) *Worker {
	w := &Worker{
		o: o, clock: o.Clock,
		eof:     make([]bool, len(o.Ports)),
		batch:   NewBatch(BatchSize),
		run:     NewBatch(BatchSize),
		out:     make([][]*Packet, len(o.Ports)),
		emitted: make([][]*Packet, len(o.Ports)),
	}
	if w.clock == nil {
		w.clock = Clock()
	}
	w.releases = newReleases(o.Offloader, w.clock)
	if w.o.Log == nil {
		w.o.Log = slog.New(slog.DiscardHandler)
	}
	for i := range w.out {
		w.out[i] = make([]*Packet, 0, emitCap)
		w.emitted[i] = make([]*Packet, 0, emitCap)
	}
	w.peers, w.inbox, w.woken = []*Worker{w}, make([]*ring, 1), make([]bool, 1)
	if o.ID != 0 {
		w.peers, w.inbox, w.woken = nil, nil, nil // Link makes them
	}
	return w
}

// Clock returns a clock in ns since the epoch that starts at the system's time
// and from there on only follows the monotonic clock: it never jumps.
func Clock() func() int64 {
	start := time.Now()
	base := start.UnixNano()
	return func() int64 { return base + int64(time.Since(start)) }
}

// Env returns the prototype of the environment in which stages for this worker
// are built.
func (w *Worker) Env() Env {
	wake := func() {}
	if w.o.Waiter != nil {
		wake = w.o.Waiter.Wake
	}
	var splicer Splicer
	if w.releases != nil {
		splicer = w.releases
	}
	return Env{
		Log: w.o.Log, Splicer: splicer, Worker: w.o.ID, Workers: max(len(w.peers), 1), Ports: w.o.Infos,
		Emitter: w, Recorder: discard{}, Wake: wake, Now: w.clock, Offload: w.releases != nil,
		Simulation: w.o.Simulation, Router: w.o.Router, FrameRoom: w.o.Pool.room(),
	}
}

type discard struct{}

func (discard) Enabled(string) bool { return false }
func (discard) Record(string, any)  {}

// Alloc implements Emitter.
func (w *Worker) Alloc() *Packet { return w.o.Pool.Get() }

// Release implements Emitter.
func (w *Worker) Release(p *Packet) { w.o.Pool.Put(p) }

// Emit implements Emitter.
func (w *Worker) Emit(p *Packet) {
	if int(p.Out) >= len(w.o.Ports) || w.o.Ports[p.Out] == nil {
		w.emitLost.Add(1)
		w.o.Pool.Put(p)
		return
	}
	if len(w.emitted[p.Out]) == emitCap {
		w.transmitForwarded(int(p.Out)) // keeps the order: forwarded before emitted
		w.transmitEmitted(int(p.Out))
	}
	w.emitted[p.Out] = append(w.emitted[p.Out], p)
}

// Call runs fn on the worker's goroutine in its next turn.
func (w *Worker) Call(fn func()) {
	w.callMu.Lock()
	w.calls = append(w.calls, fn)
	w.callMu.Unlock()
	w.called.Store(true)
	if w.o.Waiter != nil {
		w.o.Waiter.Wake()
	}
}

// Turn does one round of work and reports whether there was any. It returns
// io.EOF when no port will ever deliver again, and other errors of ports.
func (w *Worker) Turn() (busy bool, err error) {
	now := w.clock()
	w.turnTime = now
	w.lastTurn.Store(now)
	if turn := w.turns.Add(1); w.o.TimeStages && turn%timedTurns <= 1 {
		w.timeStages(turn%timedTurns == 0)
	}
	if w.o.Beat != nil && now-w.lastBeat >= int64(BeatInterval) {
		w.beat(now)
	}
	w.more = false
	open, empty := 0, true
	for i, port := range w.o.Ports {
		if port == nil || w.eof[i] {
			continue
		}
		open++
		w.batch.Reset()
		n, rerr := port.Receive(w.batch)
		if n > 0 {
			busy = true
			empty = empty && n < BatchSize
			w.admit(now, PortID(i))
		}
		if errors.Is(rerr, io.EOF) {
			w.eof[i] = true
			open--
		} else if rerr != nil {
			err = errors.Join(err, rerr)
		}
	}
	if len(w.peers) > 1 && w.receiveHandovers() {
		w.more = true
	}
	for _, c := range w.active {
		if len(c.pollers) > 0 && w.guard(c, func() bool { return c.poll(now) }) {
			w.more = true
		}
	}
	if w.called.Load() {
		w.more = true
		w.runCalls()
	}
	for i, port := range w.o.Ports {
		if port != nil {
			w.transmitForwarded(i)
			w.transmitEmitted(i)
			port.Flush()
		}
	}
	if w.releases != nil {
		w.releases.flush(empty)
		w.more = w.more || len(w.releases.waits) > 0
	}
	if w.doubt > now && !empty { // what has waited is not all worked on
		w.doubt = max(w.doubt, now+int64(doubtTime))
	}
	busy = busy || w.more
	w.more = w.more || !empty
	if now-w.lastTick >= int64(TickInterval) {
		w.lastTick, w.more = now, true // what tickers emit goes with the next turn
		for _, c := range w.active {
			if len(c.tickers) > 0 {
				w.guard(c, func() bool { c.tick(now); return true })
			}
		}
	}
	for i, wake := range w.woken {
		if wake {
			w.woken[i] = false
			if o := w.peers[i].o.Waiter; o != nil {
				o.Wake()
			}
		}
	}
	if w.taps != nil {
		w.taps.endTurn()
	}
	if w.o.Flush != nil {
		w.o.Flush()
	}
	w.o.Pool.publish()
	if open == 0 && !busy && err == nil {
		err = io.EOF
	}
	return busy, err
}

// admit takes the packets of a batch that has just been received by port in:
// parses them, drops what is malformed, hands over what another worker owns,
// and runs the rest through their chains, in the order they came.
func (w *Worker) admit(now int64, in PortID) {
	var bytes uint64
	pkts := w.batch.All()
	out := peer(len(w.o.Ports), in)
	for _, p := range pkts {
		bytes += uint64(p.len)
		switch {
		case p.Routing != Bridged: // the port knows
			if p.In == NoPort {
				p.In = in
			}
		case p.In == NoPort:
			p.In, p.Out = in, out
		default:
			p.Out = peer(len(w.o.Ports), p.In)
		}
		if p.Time == 0 {
			p.Time = now
		}
		fault := p.Parse()
		if fault != wire.FaultNone {
			r := FaultReason(fault)
			if p.Wire > p.len {
				r = ReasonCapturedCut
			}
			p.Drop(r)
		} else if w.o.VerifyChecksums && p.IPVersion != 0 {
			w.verify(p)
		}
	}
	w.packets.Add(uint64(len(pkts)))
	w.bytes.Add(bytes)
	if now < w.doubt {
		w.pass(pkts)
	}
	w.dispatch(pkts, true)
}

func (w *Worker) verify(p *Packet) {
	b := p.Bytes()
	if p.IPVersion == 4 && !wire.VerifyIPv4(b[p.L3:]) {
		w.badIPSum.Add(1)
		p.Drop(ReasonIPChecksum)
	} else if p.HasL4 && p.Frag == wire.FragNone && !wire.VerifyL4(b, &p.Headers) {
		w.badL4Sum.Add(1)
		p.Drop(ReasonL4Checksum)
	}
}

// dispatch runs packets through their chains, in rows of the same chain.
func (w *Worker) dispatch(pkts []*Packet, mayHandOver bool) {
	w.run.Reset()
	current := NoChain
	for _, p := range pkts {
		id := p.Chain
		if id == NoChain {
			id = w.o.Default
		}
		if w.taps != nil && w.taps.first(p, id, mayHandOver) {
			w.finish(p)
			continue
		}
		if !p.Live() {
			w.finish(p)
			continue
		}
		if id == NoChain || p.IPVersion == 0 {
			p.Forward(p.Out)
			w.finish(p)
			continue
		}
		if int(id) >= len(w.chains) || w.chains[id] == nil {
			p.Drop(ReasonNoChain)
			w.finish(p)
			continue
		}
		if mayHandOver && len(w.peers) > 1 && w.affinity[id] {
			if owner := int(p.Hash % uint32(len(w.peers))); owner != w.o.ID {
				w.handOver(p, id, owner)
				continue
			}
		}
		if id != current && w.run.Len() > 0 {
			w.runChain(w.chains[current])
		}
		current = id
		if !w.run.Add(p) {
			w.runChain(w.chains[current])
			w.run.Add(p)
		}
	}
	if w.run.Len() > 0 {
		w.runChain(w.chains[current])
	}
	if w.taps != nil {
		w.taps.pending = w.taps.pending[:0]
	}
}

// runChain runs w.run through c, accounts for every packet, and empties it.
func (w *Worker) runChain(c *Chain) {
	if !w.guard(c, func() bool { c.Run(w.run); c.observe(w.run); return true }) {
		for _, p := range w.run.All() {
			if p.Live() {
				p.Drop(ReasonStagePanic)
			}
		}
	}
	offload := w.releases != nil && !c.keepFlows
	for _, p := range w.run.All() {
		if offload && p.Released() && (w.taps == nil || !w.taps.hold(p, w.turnTime)) {
			w.releases.note(p, w.turnTime)
		}
		w.finish(p)
	}
	w.run.Reset()
}

// guard runs fn and turns a panic of a stage into a count and a log line: a bug
// in one stage must not take the wire down.
func (w *Worker) guard(c *Chain, fn func() bool) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			ok = false
			if w.panicLogged.Add(1) <= 10 {
				w.o.Log.Error("stage panicked", "chain", c.Name, "panic", r, "stack", string(debug.Stack()))
			}
		}
	}()
	return fn()
}

// finish accounts for a packet whose verdict is final and passes it on.
func (w *Worker) finish(p *Packet) {
	if p.verdict == Forward && (int(p.Out) >= len(w.out) || w.o.Ports[p.Out] == nil) {
		p.Drop(ReasonNoPort)
	}
	if w.taps != nil {
		w.taps.decided(p)
	}
	switch p.verdict {
	case Forward:
		if len(w.out[p.Out]) == cap(w.out[p.Out]) {
			w.transmitForwarded(int(p.Out))
		}
		w.out[p.Out] = append(w.out[p.Out], p)
	case Consume:
		w.consumed.Add(1)
		w.o.Pool.Put(p)
	default:
		w.dropped[p.reason%MaxReasons].Add(1)
		w.o.Pool.Put(p)
	}
}

func (w *Worker) transmitForwarded(i int) {
	if n := len(w.out[i]); n > 0 {
		sent := w.transmit(i, w.out[i], false)
		w.forwarded.Add(uint64(sent))
		if sent < n {
			w.dropped[ReasonTxFull].Add(uint64(n - sent))
		}
		w.out[i] = w.out[i][:0]
	}
}

func (w *Worker) transmitEmitted(i int) {
	if n := len(w.emitted[i]); n > 0 {
		sent := w.transmit(i, w.emitted[i], true)
		w.emits.Add(uint64(sent))
		w.emitLost.Add(uint64(n - sent))
		w.emitted[i] = w.emitted[i][:0]
	}
}

func (w *Worker) transmit(i int, pkts []*Packet, made bool) (sent int) {
	if w.taps != nil {
		return w.taps.transmit(i, pkts, made)
	}
	return w.o.Ports[i].Transmit(pkts)
}

func (w *Worker) runCalls() {
	w.called.Store(false)
	w.callMu.Lock()
	calls := w.calls
	w.calls = nil
	w.callMu.Unlock()
	for _, fn := range calls {
		fn()
	}
}
