package pipeline

import (
	"io"
	"log/slog"
	"time"
)

// Stage is one step of a chain. A worker has its own instance and is the only
// caller, so a stage needs no lock for what it owns.
type Stage interface {
	// Process gives every live packet of b a verdict. It must not block,
	// allocate, or keep a packet or its bytes after it returns. The bytes may
	// be changed in place if the checksums are kept right.
	Process(b *Batch)
}

// Poller is a Stage that has work beyond the packets of a batch: bytes that a
// TCP stack wants to send, say. Poll is called once a turn, after all batches,
// and reports whether it did anything.
type Poller interface {
	Poll(now int64) (busy bool)
}

// Observer is a Stage that wants to know what became of the packets it saw.
// Observe is called after the last stage, with the same batch and every verdict
// final; like Process, it must not block or keep packets.
type Observer interface {
	Observe(b *Batch)
}

// Ticker is a Stage with timers. Tick is called about ten times a second.
type Ticker interface {
	Tick(now int64)
}

// Drainer is a Stage that holds connections. Drain asks it to finish; it
// returns how many are left. It is called again until that is zero or time
// is up.
type Drainer interface {
	Drain(now int64) (left int)
}

// Closer is what a Stage implements that holds resources. It is called once,
// on the worker's goroutine, after the last turn.
type Closer = io.Closer

// Emitter sends packets of a stage's own making. Only the worker's goroutine
// may use it: in Process, Poll or Tick.
type Emitter interface {
	// Alloc returns an empty packet with headroom in front, or nil when no
	// frame is free. The stage owns it until Emit or Release.
	Alloc() *Packet
	// Emit sends p by p.Out at the end of the turn. The packet is the worker's
	// from here on. Packets leave in the order in which they were emitted,
	// after the packets that the batch forwarded.
	Emit(p *Packet)
	// Release gives an unused packet back.
	Release(p *Packet)
}

// Recorder takes events: what happened to a flow, a request, a handshake. It
// never blocks; when the sink cannot follow, the event is dropped and counted.
type Recorder interface {
	// Enabled reports whether anyone wants events of this kind, so that a
	// stage can spare itself the work of making them.
	Enabled(event string) bool
	// Record hands over an event. fields may be encoded as JSON on another
	// goroutine: it must not change afterwards, unless it is Borrowed.
	Record(event string, fields any)
}

// Borrowed are fields of an event that their stage fills again for the next one.
// A Recorder encodes them before Record returns, or keeps a copy.
type Borrowed interface {
	// Keep returns a copy that does not change.
	Keep() any
}

// Env is what a stage instance gets to know of the place it runs in.
type Env struct {
	Log     *slog.Logger
	Chain   string     // the chain's name
	ChainID ChainID    //
	Index   int        // the stage's index in the chain
	Kind    string     //
	Worker  int        // which worker this instance belongs to
	Workers int        // how many there are
	Ports   []PortInfo // by PortID
	Emitter Emitter
	// FrameRoom is how many bytes a packet of Emitter.Alloc can have. A chain may
	// be built while the worker runs: New must not call the Emitter.
	FrameRoom int
	Recorder  Recorder
	Depth     Depth // of the chain's flows
	Need      Need  // the most that the chain's stream stages do with connections
	// ChecksumsSettled says that packets with wrong checksums were dropped
	// before the chain, or are to be taken as they are.
	ChecksumsSettled bool
	// Recorded says that the packets come from a capture: the ends have
	// answered them, whatever happens to them here.
	Recorded bool
	Offload  bool         // flows that all stages release leave user space; if false, a stage can spare itself the work
	Splicer  Splicer      // nil: flows cannot leave user space
	SYNs     SYNAnswerer  // of the chain; nil: SYNs cannot be answered before they come here
	Wake     func()       // makes the worker take a turn soon; safe from any goroutine
	Now      func() int64 // ns since the epoch, never going back; for goroutines other than the worker's
	Router   *Router      // nil: bridge mode
	Counters *CounterSet  // the stage's own counters
	Shared   *Shared      // one per stage of the configuration, common to its instances on all workers
	// Simulation is nil where time is the system's.
	Simulation *Simulation
}

// Simulation is the world of a worker whose time is not the system's: Env.Now
// stands still until the owner of the worker moves it on, between two turns.
// What a stage would leave to chance or to other goroutines, it does in an order
// that depends on nothing but its input, the time and Seed.
type Simulation struct {
	Seed uint64
	// AfterFunc calls fn when d has passed, on the worker's goroutine, between
	// two turns. stop reports whether it was in time to prevent that.
	AfterFunc func(d time.Duration, fn func()) (stop func() bool)
	// Denied is told of each connection that a stream stage denies.
	Denied func(c *Conn, r Reason)
}

// Peer returns the port on the other side of p: what comes in by one of the
// two ports of a wire leaves by the other.
func (e *Env) Peer(p PortID) PortID { return peer(len(e.Ports), p) }

// peer is the other end of a wire: ports 0 and 1 are one, 2 and 3, and so on.
func peer(ports int, p PortID) PortID {
	if q := p ^ 1; int(q) < ports {
		return q
	}
	return p
}

// TickInterval is how often a Ticker is called.
const TickInterval = 100 * time.Millisecond
