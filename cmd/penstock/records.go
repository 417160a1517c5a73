package main

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"penstock/bpf"
	"penstock/internal/config"
	"penstock/internal/record"
)

// recordChange is an exchange of the sinks of records, by a reload.
type recordChange struct {
	a      *appliance
	sinks  *record.Change
	before []bpf.EventKind // that XDP told of
	wants  []bpf.EventKind
}

// prepareRecords opens the sinks that next has besides, and has XDP tell of what
// they want. Nobody writes to them yet. It returns nil if records stay as they are.
func (a *appliance) prepareRecords(next *config.Config) (*recordChange, error) {
	old, specs := recordSpecs(a.live()), recordSpecs(next)
	if slices.EqualFunc(old, specs, func(x, y record.Spec) bool { return x.To == y.To && slices.Equal(x.Events, y.Events) }) {
		return nil, nil
	}
	c := &recordChange{a: a, before: xdpEvents(old), wants: xdpEvents(specs)}
	var err error
	if c.sinks, err = a.record.Prepare(specs); err != nil {
		return nil, err
	}
	if err := a.steerer.SetEvents(c.wants); err != nil {
		return nil, errors.Join(err, c.sinks.Discard())
	}
	return c, nil
}

// discard undoes prepareRecords.
func (c *recordChange) discard() error {
	if c == nil {
		return nil
	}
	return errors.Join(c.a.steerer.SetEvents(c.before), c.sinks.Discard())
}

// commit has everybody write to the new sinks, and closes those that are no more.
// The workers take them between two turns.
func (c *recordChange) commit() {
	if c == nil {
		return
	}
	a := c.a
	a.eventReader.want(a, len(c.wants) > 0)
	c.sinks.Commit()
	done := make(chan struct{})
	var left atomic.Int64
	left.Store(int64(len(a.workers)))
	for i, w := range a.workers {
		w.Call(func() {
			c.sinks.Take(a.lanes[i])
			if left.Add(-1) == 0 {
				close(done)
			}
		})
	}
	finish := func() {
		if err := c.sinks.Finish(); err != nil {
			a.log.Warn(err.Error())
		}
	}
	late := time.NewTimer(callWait)
	defer late.Stop()
	select {
	case <-done:
		finish()
	case <-a.ended: // they are closed with the others
	case <-late.C:
		a.log.Warn("a worker does not answer; sinks of records that are removed stay open until it does", "within", callWait)
		a.running.Go(func() {
			select {
			case <-done:
				finish()
			case <-a.ended:
			}
		})
	}
}

// eventReader is the goroutine that reads what XDP tells of, if somebody wants it.
type eventReader struct {
	ctx  context.Context    // of the workers
	stop context.CancelFunc // nil: there is none
	done chan struct{}
}

// want begins or ends the reading. One goroutine calls it at a time.
func (r *eventReader) want(a *appliance, on bool) {
	switch {
	case on && r.stop == nil:
		ctx, stop := context.WithCancel(r.ctx)
		r.stop, r.done = stop, make(chan struct{})
		done := r.done
		a.running.Go(func() {
			defer close(done)
			a.readEvents(ctx)
		})
	case !on && r.stop != nil:
		r.stop()
		<-r.done
		r.stop = nil
	}
}
