package record

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Change is an exchange of a recorder's sinks, in steps: Prepare opens what is new;
// Commit and a Take for each lane have everybody write to the new set; Finish closes
// what nobody writes to any more. A sink that stays is not touched, and so loses
// nothing and writes nothing twice. One Change at a time.
type Change struct {
	r      *Recorder
	next   *routes
	tables map[*Lane]*laneTable
	opened []*sink
	gone   []*sink
}

// Prepare opens the sinks of specs that r does not have. Sinks are told apart by
// where they write to. Unlike with Open, a socket must be there. After an error
// everything is as it was, but for files that were made.
func (r *Recorder) Prepare(specs []Spec) (*Change, error) {
	now := r.routes.Load()
	c := &Change{r: r, tables: map[*Lane]*laneTable{}}
	var sinks []*sink
	for _, spec := range specs {
		if i := slices.IndexFunc(now.sinks, func(s *sink) bool { return s.to == spec.To }); i >= 0 {
			sinks = append(sinks, now.sinks[i])
			continue
		}
		s, err := newSink(spec, r.log, r.o, true)
		if err != nil {
			return nil, errors.Join(err, c.Discard())
		}
		go s.run()
		sinks, c.opened = append(sinks, s), append(c.opened, s)
	}
	for _, s := range now.sinks {
		if !slices.Contains(sinks, s) {
			c.gone = append(c.gone, s)
		}
	}
	c.next = newRoutes(specs, sinks)
	r.figures.mu.Lock()
	defer r.figures.mu.Unlock()
	for _, l := range r.lanes {
		c.tables[l] = newLaneTable(c.next, l.table.Load())
	}
	return c, nil
}

// Discard closes what Prepare has opened. It is for who does not Commit.
func (c *Change) Discard() error { return closeSinks(c.opened, c.r.o.CloseWait) }

// Commit has the recorder itself write to the new sinks. When it returns, only lanes
// write to those that go.
func (c *Change) Commit() {
	c.r.figures.mu.Lock()
	c.r.leaving = append(c.r.leaving, c.gone...)
	c.r.figures.mu.Unlock()
	c.r.mu.Lock()
	c.r.routes.Store(c.next)
	c.r.mu.Unlock()
}

// Take has a lane write to the new sinks. It is called on the lane's goroutine, and
// neither locks nor allocates.
func (c *Change) Take(l *Lane) {
	l.Flush() // a sink that goes comes for it now, or never
	l.table.Store(c.tables[l])
}

// Finish writes what the sinks that go have queued, for at most Options.CloseWait,
// and closes them. It is called after all lanes have taken the new ones.
func (c *Change) Finish() error {
	err := closeSinks(c.gone, c.r.o.CloseWait)
	c.r.settle(c.gone)
	if err != nil {
		return fmt.Errorf("remove event sinks: %w", err)
	}
	return nil
}

// figures are what is known of sinks that there are no more.
type figures struct {
	mu      sync.Mutex
	leaving []*sink              // until they are closed
	former  map[string]SinkStats // by where they wrote to
	rest    SinkStats            // of those that former has no room for
}

// maxFormer bounds figures.former.
const maxFormer = 64

func (f *figures) leavingSinks() []*sink {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.leaving)
}

// settle keeps the figures of closed sinks.
func (f *figures) settle(gone []*sink) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leaving = slices.DeleteFunc(f.leaving, func(s *sink) bool { return slices.Contains(gone, s) })
	if f.former == nil {
		f.former = map[string]SinkStats{}
	}
	for _, s := range gone {
		st := s.Stats()
		if was, there := f.former[s.to]; there || len(f.former) < maxFormer {
			f.former[s.to] = was.plus(st)
		} else {
			f.rest = f.rest.plus(st)
		}
	}
}

// plus adds the counts of another sink.
func (s SinkStats) plus(o SinkStats) SinkStats {
	s.Written += o.Written
	s.Dropped += o.Dropped
	s.Failed += o.Failed
	s.Queued += o.Queued
	return s
}

// Stats returns the figures of each sink, in the order of the specs. They go on
// where a former sink to the same place has ended.
func (r *Recorder) Stats() []SinkStats {
	sinks := r.routes.Load().sinks
	r.figures.mu.Lock()
	defer r.figures.mu.Unlock()
	all := make([]SinkStats, len(sinks))
	for i, s := range sinks {
		all[i] = s.Stats().plus(r.former[s.to])
	}
	return all
}

// Removed returns the sum over sinks that there are no more.
func (r *Recorder) Removed() SinkStats {
	sinks := r.routes.Load().sinks
	r.figures.mu.Lock()
	defer r.figures.mu.Unlock()
	sum := r.rest
	for _, s := range r.leaving {
		sum = sum.plus(s.Stats())
	}
	for to, st := range r.former {
		if !slices.ContainsFunc(sinks, func(s *sink) bool { return s.to == to }) {
			sum = sum.plus(st)
		}
	}
	return sum
}
