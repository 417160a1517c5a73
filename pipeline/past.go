package pipeline

import (
	"time"

	"penstock/internal/wire"
)

// Passer knows what has gone past workers while they were silent: took no turn for
// longer than a limit, so that nothing waited for them.
type Passer interface {
	// PastWorkers says whether packets have gone past a silent worker since the
	// worker of this number last asked. It is asked after a Beat, and answers when no
	// more can go past that worker.
	PastWorkers(worker int) bool
	// Passed reports whether the connection of f, either direction, is bypassed since then.
	Passed(f wire.Flow) bool
}

// Waker is a Stage that keeps connections. Woke is called on the worker's goroutine
// when some may be bypassed since a worker was silent, before it takes packets
// again. Those that passed reports are their ends' alone: the stage forgets them and
// sends nothing more for them.
type Waker interface {
	Woke(passed func(f wire.Flow) bool, now int64)
}

// woke tells the stages. Only on the worker's goroutine.
func (c *Chain) woke(passed func(wire.Flow) bool, now int64) {
	for _, s := range c.wakers {
		s.Woke(passed, now)
	}
}

// beat shows that the worker works, and looks whether it had been silent: whoever
// has the sign of life may have been let go of the processor before writing it.
func (w *Worker) beat(now int64) {
	before := w.lastBeat
	w.lastBeat = now
	w.o.Beat()
	if w.o.Passer == nil || before == 0 {
		return
	}
	silent := w.clock() - before
	if silent <= int64(w.o.Silence) {
		return
	}
	w.lastBeat = w.clock()
	w.o.Beat()
	if !w.o.Passer.PastWorkers(w.o.ID) {
		return
	}
	w.o.Log.Warn("the worker was silent, and packets went past it", "worker", w.o.ID, "for", time.Duration(silent).Round(time.Millisecond))
	w.lookBack()
	for _, p := range w.peers {
		if p != w { // the flow may be another worker's, whatever queue it comes in by
			p.Call(p.lookBack)
		}
	}
}

// doubtTime is more than the worker takes to come to what has waited for it.
const doubtTime = time.Second

// lookBack finds out which connections are bypassed since a worker was silent. Of
// others the first packets lie in rings still: for doubtTime they are looked at one
// by one.
func (w *Worker) lookBack() {
	w.doubt = w.clock() + int64(doubtTime)
	asked := 0
	passed := func(f wire.Flow) bool {
		if asked++; asked%1024 == 0 { // thousands of questions take their time
			w.lastBeat = w.clock()
			w.o.Beat()
		}
		return w.o.Passer.Passed(f)
	}
	now := w.clock()
	for _, c := range w.active {
		if len(c.wakers) > 0 {
			w.guard(c, func() bool { c.woke(passed, now); return true })
		}
	}
}

// pass lets those packets go by that would begin a connection which is bypassed.
func (w *Worker) pass(pkts []*Packet) {
	for _, p := range pkts {
		if p.Proto != wire.ProtoTCP || !p.HasFlow || !p.Live() {
			continue
		}
		if wire.TCP(p.Bytes()[p.L4:p.End]).Flags()&(wire.FlagSYN|wire.FlagACK) == wire.FlagSYN && w.o.Passer.Passed(p.Flow) {
			p.Forward(p.Out)
		}
	}
}
