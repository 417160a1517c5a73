package pipeline

import (
	"errors"
	"fmt"
	"slices"
)

// SetChains gives the worker its chain instances, by ChainID; affinity says
// for which of them a flow belongs to one worker. An instance may stand at
// several places, and nil where there is none: packets that come for it are
// dropped. What was there before and is no more is not closed. Before Run, or
// from Call; the slices are the worker's.
func (w *Worker) SetChains(chains []*Chain, affinity []bool) {
	var active []*Chain
	for _, c := range chains {
		if c != nil && !slices.Contains(active, c) {
			active = append(active, c)
		}
	}
	w.chains, w.affinity, w.active = chains, affinity, active
	w.shown.Store(&active)
	if w.taps != nil {
		w.setTaps(w.taps.specs)
	}
}

// SetDefault changes WorkerOptions.Default. Before Run, or from Call.
func (w *Worker) SetDefault(id ChainID) { w.o.Default = id }

// Chains returns the chain instances by ChainID. Only from Call.
func (w *Worker) Chains() []*Chain { return w.chains }

// Active returns the chain instances, each once. Only from Call.
func (w *Worker) Active() []*Chain { return w.active }

// Drain asks the stages to finish what they hold and returns how many
// connections are left. Only from Call or while the worker does not run.
func (w *Worker) Drain() (left int) {
	now := w.clock()
	for _, c := range w.active {
		left += c.Drain(now)
	}
	return left
}

// CloseChain closes a chain that SetChains has taken away. What its stages send
// last leaves at the end of the turn. Only from Call.
func (w *Worker) CloseChain(c *Chain) (err error) {
	if !w.guard(c, func() bool { err = c.Close(); return true }) {
		err = fmt.Errorf("close chain %q: a stage panicked", c.Name)
	}
	return err
}

// Close closes the chains and gives back packets that were handed over. Call
// it after Run has returned, on all workers, before the ports are closed.
func (w *Worker) Close() error {
	var err error
	for _, c := range w.active {
		err = errors.Join(err, c.Close())
	}
	for _, r := range w.inbox {
		if r == nil {
			continue
		}
		for p := r.pop(); p != nil; p = r.pop() {
			p.Drop(ReasonStopped)
			w.finish(p)
		}
	}
	// What stages send when they close, resets of connections say, goes out.
	for i, port := range w.o.Ports {
		if port != nil {
			w.transmitForwarded(i)
			w.transmitEmitted(i)
			port.Flush()
		}
	}
	if w.o.Flush != nil {
		w.o.Flush()
	}
	w.o.Pool.publish()
	return err
}
