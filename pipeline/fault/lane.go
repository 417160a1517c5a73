package fault

import (
	"math/rand/v2"
	"sync/atomic"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// lane is one direction of a Port.
type lane struct {
	p     *Port
	on    bool
	rng   *rand.Rand
	ready []*pipeline.Packet // to be passed on now
	held  heldQueue          // by when they are due
	late  []late             // those that wait to be overtaken, in order
	seq   uint64             // packets taken

	inFlight                                                 atomic.Int64
	lost, duplicated, noFrame, reordered, delayed, corrupted counter
	tooBigs, told, holdFull, refused, stopped                counter
}

// held is a packet that takes its time.
type held struct {
	p   *pipeline.Packet
	due int64
	seq uint64
}

// late is a packet that waits to be overtaken by those up to number until, or
// for time due.
type late struct {
	p     *pipeline.Packet
	until uint64
	due   int64
}

func (l *lane) init(p *Port, stream uint64, on bool) {
	l.p, l.on = p, on
	l.rng = rand.New(rand.NewPCG(uint64(p.faults.Seed), stream))
}

// take lets a packet meet its faults. For each packet the generator is asked
// the same number of times, so that one fault's share does not change where
// the others strike.
func (l *lane) take(pkt *pipeline.Packet, now int64) {
	if !l.on {
		l.pass(pkt)
		return
	}
	f := &l.p.faults
	lose, twice, swap, hurt := l.rng.Float64(), l.rng.Float64(), l.rng.Float64(), l.rng.Float64()
	where, more := l.rng.Uint64(), [2]float64{l.rng.Float64(), l.rng.Float64()}
	l.seq++
	if f.MTU > 0 {
		var h wire.Headers
		if ipLen(pkt, &h) > f.MTU {
			l.tooBigs.Add(1)
			l.p.tell(l, pkt)
			pkt.Drop(ReasonMTU)
			l.p.o.Pool.Put(pkt)
			return
		}
	}
	if lose < float64(f.Loss) {
		l.lost.Add(1)
		pkt.Drop(ReasonLoss)
		l.p.o.Pool.Put(pkt)
		return
	}
	var twin *pipeline.Packet
	if twice < float64(f.Duplicate) {
		twin = l.copy(pkt)
	}
	if hurt < float64(f.Corrupt) && corrupt(pkt, where, f.FixChecksum) {
		l.corrupted.Add(1)
	}
	l.hold(pkt, now, swap < float64(f.Reorder), more[0])
	if twin != nil {
		l.hold(twin, now, false, more[1])
	}
}

// hold passes a packet on now or later.
func (l *lane) hold(pkt *pipeline.Packet, now int64, swap bool, more float64) {
	f := &l.p.faults
	wait := int64(f.Delay) + int64(more*float64(f.Jitter))
	switch {
	case !swap && wait == 0:
		l.pass(pkt)
		return
	case len(l.held)+len(l.late) >= f.Hold:
		l.holdFull.Add(1)
		l.pass(pkt)
		return
	case swap:
		l.reordered.Add(1)
		l.late = append(l.late, late{pkt, l.seq + uint64(f.ReorderGap), now + wait + int64(reorderWait)})
	default:
		l.delayed.Add(1)
		l.held.push(held{pkt, now + wait, l.seq})
	}
	l.inFlight.Add(1)
}

// pass appends a packet to those that go on.
func (l *lane) pass(pkt *pipeline.Packet) {
	l.ready = append(l.ready, pkt)
	l.inFlight.Add(1)
}

// release lets go of the packets that are due. One that waits to be overtaken
// goes after those that overtake it.
func (l *lane) release(now int64) {
	for len(l.held) > 0 && l.held[0].due <= now {
		l.ready = append(l.ready, l.held.pop().p)
	}
	keep := l.late[:0]
	for _, w := range l.late {
		if l.seq >= w.until || now >= w.due {
			l.ready = append(l.ready, w.p)
		} else {
			keep = append(keep, w)
		}
	}
	clear(l.late[len(keep):])
	l.late = keep
}

// shift takes the first n packets off the ready ones.
func (l *lane) shift(n int) {
	if n == 0 {
		return
	}
	left := copy(l.ready, l.ready[n:])
	clear(l.ready[left:])
	l.ready = l.ready[:left]
	l.inFlight.Add(-int64(n))
}

func (l *lane) holding() int { return len(l.ready) + len(l.held) + len(l.late) }

// next returns when the first packet is due; 0 if one is now.
func (l *lane) next() (due int64, ok bool) {
	if len(l.ready) > 0 {
		return 0, true
	}
	if len(l.held) > 0 {
		due, ok = l.held[0].due, true
	}
	for _, w := range l.late {
		if !ok || w.due < due {
			due, ok = w.due, true
		}
	}
	return due, ok
}

// copy returns a second packet with the same bytes, or nil if no frame is free.
func (l *lane) copy(pkt *pipeline.Packet) *pipeline.Packet {
	twin := l.p.o.Pool.Get()
	if twin == nil {
		l.noFrame.Add(1)
		return nil
	}
	if !twin.SetView(twin.Offset(), pkt.Len()) {
		l.p.o.Pool.Put(twin)
		l.noFrame.Add(1)
		return nil
	}
	copy(twin.Bytes(), pkt.Bytes())
	twin.Wire, twin.In, twin.Out, twin.Chain, twin.Hash, twin.Time = pkt.Wire, pkt.In, pkt.Out, pkt.Chain, pkt.Hash, pkt.Time
	twin.Routing, twin.RouteMTU = pkt.Routing, pkt.RouteMTU
	if l.p.o.Copied != nil {
		l.p.o.Copied(pkt, twin)
	}
	l.duplicated.Add(1)
	return twin
}

// drop gives back everything that is held.
func (l *lane) drop() {
	for _, h := range l.held {
		l.ready = append(l.ready, h.p)
	}
	for _, w := range l.late {
		l.ready = append(l.ready, w.p)
	}
	for _, pkt := range l.ready {
		l.p.o.Pool.Put(pkt)
	}
	l.stopped.Add(uint64(len(l.ready)))
	l.shift(len(l.ready))
	l.held, l.late = nil, nil
}

func (l *lane) count(c *counter, n int) {
	if n > 0 {
		c.Add(uint64(n))
	}
}

func (l *lane) counts() Counts {
	return Counts{
		Lost: l.lost.Load(), Duplicated: l.duplicated.Load(), NoFrame: l.noFrame.Load(), Reordered: l.reordered.Load(),
		Delayed: l.delayed.Load(), Corrupted: l.corrupted.Load(), TooBig: l.tooBigs.Load(), Told: l.told.Load(),
		HoldFull: l.holdFull.Load(), Refused: l.refused.Load(), Stopped: l.stopped.Load(),
	}
}

// figures adds what has happened to m.
func (l *lane) figures(m map[string]uint64, prefix string) {
	c := l.counts()
	for _, f := range [...]struct {
		name string
		n    uint64
	}{
		{ReasonLoss.String(), c.Lost}, {ReasonMTU.String(), c.TooBig}, {ReasonTxRefused.String(), c.Refused}, {ReasonStopped.String(), c.Stopped},
		{"fault_duplicate", c.Duplicated}, {"fault_duplicate_no_frame", c.NoFrame}, {"fault_reorder", c.Reordered},
		{"fault_delay", c.Delayed}, {"fault_corrupt", c.Corrupted}, {"fault_packet_too_big", c.Told}, {"fault_hold_full", c.HoldFull},
	} {
		if f.n > 0 {
			m[prefix+f.name] = f.n
		}
	}
}

// heldQueue is a heap: the one that is due first is at its head. (container/heap
// would allocate for each packet.)
type heldQueue []held

func (q heldQueue) before(i, j int) bool {
	return q[i].due < q[j].due || q[i].due == q[j].due && q[i].seq < q[j].seq
}

func (q *heldQueue) push(h held) {
	*q = append(*q, h)
	for i := len(*q) - 1; i > 0 && q.before(i, (i-1)/2); i = (i - 1) / 2 {
		(*q)[i], (*q)[(i-1)/2] = (*q)[(i-1)/2], (*q)[i]
	}
}

func (q *heldQueue) pop() held {
	old := *q
	first, last := old[0], len(old)-1
	old[0], old[last] = old[last], held{}
	*q = old[:last]
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < last; c++ {
			if q.before(c, least) {
				least = c
			}
		}
		if least == i {
			return first
		}
		old[i], old[least] = old[least], old[i]
		i = least
	}
}
