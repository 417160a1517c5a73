package closedloop

import (
	"penstock/pipeline"
)

const (
	// stallAfter is how long both ends may wait for each other before the order
	// of the capture is given up: it has what one end sent before it knew of
	// what the other did.
	stallAfter = int64(5e9)
	// resetAfter is how long a reset waits for what comes before it: it would
	// destroy it, and over bad wires that takes its time.
	resetAfter = int64(90e9)
	// giveUpAfter is how long nothing at all may happen.
	giveUpAfter = int64(180e9)
	stallCheck  = int64(1e9)
	// remember is how long ends answer what comes late.
	remember = int64(20e9)
)

// session is a conversation that is played.
type session struct {
	w         *world
	c         *conversation
	ends      [2]*end
	start     int64
	last      int64 // when something came forward
	relaxed   int   // times that the order of the capture was given up
	resets    int
	over      bool
	stalled   bool
	isDenied  bool
	denied    pipeline.Reason
	dropStage string // the packet stage that dropped its packets first
	dropped   pipeline.Reason
	drops     uint64
	packets   [2][2]uint64 // by wire, by direction: from the end, to the end
}

func (s *session) progress() { s.last = s.w.now }

// dueAt returns when a step may begin by the capture's timing.
func (s *session) dueAt(st *step) int64 {
	if s.w.o.Speed <= 0 {
		return s.start
	}
	return s.start + int64(float64(st.time)/s.w.o.Speed)
}

func (s *session) due(st *step) bool { return s.w.now >= s.dueAt(st) }

// refusedTwice reports whether enough resets were sent.
func (s *session) refusedTwice() bool { return s.resets >= maxRetries }

// begin opens the connection.
func (s *session) begin() {
	s.start, s.last = s.w.now, s.w.now
	s.ends[client].open()
	s.w.after(stallCheck, s.watch)
}

// watch looks now and then whether the session still moves.
func (s *session) watch() {
	if s.over {
		return
	}
	now := s.w.now
	switch {
	case now-s.last > giveUpAfter:
		s.stalled = true
		s.finish()
		return
	case now-s.last > stallAfter:
		s.relax()
	}
	s.w.after(stallCheck, s.watch)
}

// relax lets the next step of the capture begin without what it waits for.
func (s *session) relax() {
	var next *end
	for _, e := range s.ends {
		if e.state != established || e.at >= len(e.steps) {
			continue
		}
		st := &e.steps[e.at]
		if !s.due(st) {
			s.last = s.w.now // it waits for the clock, not for the other end
			return
		}
		if st.rst && s.w.now-s.last < resetAfter {
			continue
		}
		if next == nil || st.order < next.steps[next.at].order {
			next = e
		}
	}
	if next == nil {
		return
	}
	st := &next.steps[next.at]
	next.excused, next.hasty = max(next.excused, st.need), next.hasty || st.rst
	s.relaxed++
	s.ends[client].touch()
	s.ends[server].touch()
}

// checkOver ends the session when both ends have.
func (s *session) checkOver() {
	if s.ends[client].terminal() && s.ends[server].terminal() {
		s.finish()
	}
}

// finish tells the result. The ends go on answering for a while.
func (s *session) finish() {
	if s.over {
		return
	}
	s.over = true
	s.w.finished(s)
}
