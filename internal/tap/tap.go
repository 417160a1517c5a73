package tap

import (
	"sync/atomic"
	"time"

	"penstock/internal/flowtab"
	"penstock/internal/packetring"
	"penstock/internal/wire"
	"penstock/pipeline"
)

// bufferSize is the memory of each worker for packets that are not written yet, and maxHeld how many flows it holds.
const (
	bufferSize = 4 << 20
	maxHeld    = 8192
	// overFor is how long a connection that has ended is held.
	overFor = 5 * time.Second
)

// workerTap is the pipeline.Tap of one worker.
type workerTap struct {
	c       *Capture
	ring    *packetring.Ring
	held    *flowtab.Table[heldFlow]
	closing atomic.Bool

	dropped [maxPoints]atomic.Uint64 // there was no room
	holding atomic.Uint64            // flows
	notHeld atomic.Uint64
}

// heldFlow is a flow that would be offloaded.
type heldFlow struct {
	drop   bool
	pulled bool  // it was, before
	fins   uint8 // by direction
	over   bool
}

var _ pipeline.Tap = (*workerTap)(nil)

func newWorkerTap(c *Capture) *workerTap {
	return &workerTap{c: c, ring: packetring.New(bufferSize), held: flowtab.New[heldFlow](maxHeld)}
}

// Show implements pipeline.Tap.
func (t *workerTap) Show(point int, p *pipeline.Packet, now int64) int {
	if t.closing.Load() || !t.c.o.Filter.Match(p.Bytes(), int(p.VLANs)) {
		return -1
	}
	data := p.Bytes()
	data = data[:min(len(data), t.c.o.SnapLen)]
	at, ok := t.ring.Reserve(len(data))
	if !ok {
		t.dropped[point].Add(1)
		return -1
	}
	t.ring.PutAt(at, p, data, now, point)
	return int(at)
}

// Decide implements pipeline.Tap.
func (t *workerTap) Decide(record int, o pipeline.Outcome) { t.ring.Decide(uint64(record), o) }

// EndTurn implements pipeline.Tap.
func (t *workerTap) EndTurn() {
	t.ring.Publish()
	t.c.kick()
}

// Hold implements pipeline.Tap.
func (t *workerTap) Hold(f *wire.Flow, drop bool, now int64) bool {
	if t.closing.Load() || !t.c.o.Filter.MayMatch(f) {
		return false
	}
	return t.hold(f, heldFlow{drop: drop}, now)
}

func (t *workerTap) hold(f *wire.Flow, h heldFlow, now int64) bool {
	key, _ := f.Canonical()
	v, ok := t.held.Insert(key, now)
	if !ok {
		t.held.Expire(now, lifetime, 64, nil)
		if v, ok = t.held.Insert(key, now); !ok {
			t.notHeld.Add(1)
			return false
		}
	}
	*v = h
	t.holding.Store(uint64(t.held.Len()))
	return true
}

func lifetime(h *heldFlow) time.Duration {
	if h.over {
		return overFor
	}
	return 1 << 62
}

// Pass implements pipeline.Tap.
func (t *workerTap) Pass(p *pipeline.Packet) (held, drop bool) {
	key, reversed := p.Flow.Canonical()
	h, ok := t.held.Get(key, p.Time)
	if !ok {
		return false, false
	}
	if p.Proto == wire.ProtoTCP && p.HasL4 {
		flags := wire.TCP(p.Bytes()[p.L4:p.End]).Flags()
		if p.Cookie || flags&(wire.FlagSYN|wire.FlagACK) == wire.FlagSYN {
			t.held.Delete(key) // another connection, which the stages see
			return false, false
		}
		if flags.Has(wire.FlagFIN) {
			if reversed {
				h.fins |= 2
			} else {
				h.fins |= 1
			}
		}
		h.over = h.over || flags.Has(wire.FlagRST) || h.fins == 3
	}
	return true, h.drop
}
