package pipeline

import (
	"context"
	"errors"
	"io"
	"runtime"
)

// Run takes turns until ctx ends or every port is at its end. Between turns it
// yields, so that goroutines that the stages have woken come next.
func (w *Worker) Run(ctx context.Context) error {
	empty := 0
	for ctx.Err() == nil {
		busy, err := w.Turn()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		again := w.o.Waiter == nil
		if busy {
			// A turn that has emptied the ports and left nothing to do may be the last
			// before a wait, which ends at once if something has come since: another
			// turn would find that out for the price of a turn.
			empty = 0
			again = again || w.more || w.o.SpinTurns > 0
		} else {
			w.idle.Add(1)
			empty++
			again = again || empty <= w.o.SpinTurns
		}
		if again {
			runtime.Gosched()
			continue
		}
		w.waitCount.Add(1)
		w.o.Waiter.Wait(w.untilTick())
	}
	return nil
}

// untilTick returns how long the worker may sleep: for ever (-1) if no stage has
// timers and nobody wants a sign of life.
func (w *Worker) untilTick() int64 {
	next := int64(-1)
	if w.o.Beat != nil {
		next = max(w.lastBeat+int64(BeatInterval)-w.clock(), 0)
	}
	for _, c := range w.active {
		if len(c.tickers) > 0 {
			tick := max(w.lastTick+int64(TickInterval)-w.clock(), 0)
			if next < 0 || tick < next {
				next = tick
			}
			break
		}
	}
	return next
}
