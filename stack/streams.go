package stack

import "penstock/pipeline"

// openStream is one stream stage's view of a connection.
type openStream struct {
	s        pipeline.Stream
	released bool
	shown    [2]uint64 // by direction: position up to where it has seen bytes
	passed   [2]uint64 // position up to where it lets them go
	ended    [2]bool   // it knows that no more will come
}

// inspect shows the streams what is new in a direction, in order: each sees
// what the ones before it let go. final says that the sender has finished.
// False: the connection was denied.
func (s *Stack) inspect(f *flow, d pipeline.Direction, final bool, now int64) bool {
	again := false
	for {
		released, ok := s.inspectOnce(f, d, again, final, now)
		if !ok {
			return false
		}
		// What is held in the other direction is shown again: there is news.
		// What a stream that has just released held there is new to those
		// behind it, and may go on.
		other := &f.dir[1-d]
		if !released && other.passed == other.end() {
			break
		}
		passed := other.passed
		released, ok = s.inspectOnce(f, 1-d, true, other.ended, now)
		if !ok {
			return false
		}
		if other.passed != passed {
			s.revisit(f)
		}
		if !released {
			break
		}
		again = true
	}
	dir := &f.dir[d]
	if f.watching > 0 && dir.end()-dir.passed >= uint64(s.o.HoldBytes) {
		s.n.holdFull.Add(1)
		s.deny(f, pipeline.StreamVerdict{Action: pipeline.StreamDeny, Reason: ReasonHoldFull}, now)
		return false
	}
	return true
}

// inspectOnce shows each stream what is new to it in a direction; again says
// that there is news elsewhere, so that it is also shown what it held back.
func (s *Stack) inspectOnce(f *flow, d pipeline.Direction, again, final bool, now int64) (released, ok bool) {
	dir := &f.dir[d]
	limit := dir.end()
	for i := range f.streams {
		st := &f.streams[i]
		if st.released {
			st.passed[d] = limit
			continue
		}
		from := max(st.passed[d], dir.base)
		if limit > st.shown[d] || again && limit > from && !st.ended[d] {
			n, v := st.s.Data(d, dir.buf[from-dir.base:limit-dir.base:limit-dir.base], now)
			st.shown[d] = limit
			st.passed[d] = from + uint64(min(max(n, 0), int(limit-from)))
			if !s.obey(f, st, v, now) {
				return released, false
			}
		}
		if final && !st.released && !st.ended[d] {
			st.ended[d] = true
			if !s.obey(f, st, st.s.End(d, now), now) {
				return released, false
			}
			st.passed[d] = limit
		}
		if st.ended[d] {
			st.passed[d] = limit
		}
		if st.released {
			st.passed[d] = limit
			released = true
		}
		limit = st.passed[d]
	}
	dir.passed = limit
	return released, true
}

// obey carries out a stream's verdict. False: the connection was denied.
func (s *Stack) obey(f *flow, st *openStream, v pipeline.StreamVerdict, now int64) bool {
	switch v.Action {
	case pipeline.StreamRelease:
		st.released = true
		f.watching--
		s.wantSplice(f, now)
	case pipeline.StreamDeny:
		s.deny(f, v, now)
		return false
	}
	return true
}

// deny ends a connection that a stream stage does not want. The server is
// reset; the client is told why, if the stage says so, or reset too.
func (s *Stack) deny(f *flow, v pipeline.StreamVerdict, now int64) {
	s.n.denied.Add(1)
	s.denial(v.Reason).Add(1)
	if sim := s.env.Simulation; sim != nil && sim.Denied != nil {
		sim.Denied(&f.conn, v.Reason)
	}
	if len(v.Reply) == 0 || f.client.sentFIN || f.client.dead() {
		s.kill(f, now)
		return
	}
	defer s.endStreams(f, now)
	s.n.deniedReply.Add(1)
	f.denying = true
	f.server.abort(false)
	up, down := &f.dir[pipeline.ToServer], &f.dir[pipeline.ToClient]
	s.dropStore(up)
	up.base, up.passed, up.cut = up.end(), up.end(), true
	// What the streams let go comes before the reply, what they held does not.
	down.buf = down.buf[:down.passed-down.base]
	s.keep(down, v.Reply)
	down.passed = down.end()
	down.eof, down.ended = true, true
	f.server.sentFIN = true
	f.setDeadline(now, s.o.CloseTimeout)
	s.revisit(f)
}

// denial returns the counter of a reason. Reasons are few, and so are the
// first times.
func (s *Stack) denial(r pipeline.Reason) *pipeline.Counter {
	c := s.denials[r]
	if c == nil {
		name := r.String()
		if r == pipeline.ReasonNone {
			name = "unnamed"
		}
		c = s.env.Counters.Counter("denied_"+name, r.Help())
		s.denials[r] = c
	}
	return c
}

// endStreams tells the streams, once, that the connection is over.
func (s *Stack) endStreams(f *flow, now int64) {
	streams := f.streams
	f.streams, f.watching = nil, 0
	closeStreams(streams, now)
}

func closeStreams(streams []openStream, now int64) {
	for i := range streams {
		streams[i].s.Close(now)
	}
}
