package inspect

import (
	"penstock/internal/wire"
	"penstock/pipeline"
)

// show shows the streams what a segment, whose body is at pos, has made
// contiguous. False: the packet was decided on.
func (s *Inspector) show(f *flow, d pipeline.Direction, p *pipeline.Packet, pos int64, body []byte) bool {
	h := &f.half[d]
	from := h.next
	var fresh []byte
	if end := pos + int64(len(body)); pos <= from && end > from {
		fresh = body[from-pos:]
		h.next = end
		if h.bytes.loose > 0 {
			// These count as loose too; run takes them out again, and with them
			// what had come ahead.
			h.next = s.memory.run(&h.bytes, from)
		}
	}
	s.shown[d] += uint64(h.next - from)
	if f.watching == 0 || h.next == from && !h.finishing() {
		return true
	}
	s.current = f
	verdict := s.look(f, d, fresh, from+int64(len(fresh)))
	for at := from + int64(len(fresh)); verdict == lookOn && at < h.next; {
		b := s.memory.view(&h.bytes, at, h.next)
		at += int64(len(b))
		verdict = s.look(f, d, b, at)
	}
	s.current = nil
	switch {
	case verdict == lookFull && s.o.Hold:
		s.n.holdFull.Add(1)
		s.deny(f, p, pipeline.ReasonHoldFull)
	case verdict == lookFull:
		s.n.holdFull.Add(1)
		s.blind(f, p, pipeline.ReasonHoldFull)
	case verdict == lookDenied:
		p.Drop(f.why)
	default:
		return true
	}
	return false
}

// finishing reports whether the streams are to hear that all bytes were shown.
func (h *half) finishing() bool { return h.fin == h.next && !h.ended }

// looked is what came of showing bytes.
type looked uint8

const (
	lookOn looked = iota
	lookDenied
	lookFull // a stream holds back more than it may
)

// look shows the streams bytes that end at position end, behind what they have
// not let go yet, and then what is kept of the other direction: there is news.
func (s *Inspector) look(f *flow, d pipeline.Direction, b []byte, end int64) looked {
	h := &f.half[d]
	view, from := b, end-int64(len(b))
	if len(h.look) > 0 {
		h.look = append(h.look, b...)
		view, from = h.look, h.from
	}
	final := h.finishing() && end == h.next
	h.ended = h.ended || final
	watching := f.watching
	if !s.round(f, d, view, from, final, false) {
		return lookDenied
	}
	s.keep(f, d, view, from)
	for again := 1 - d; len(f.half[again].look) > 0 && f.watching > 0; again = 1 - again {
		if again == d && f.watching == watching {
			break // nothing has changed for this direction
		}
		watching = f.watching
		a := &f.half[again]
		if !s.round(f, again, a.look, a.from, false, true) {
			return lookDenied
		}
		s.keep(f, again, a.look, a.from)
	}
	if f.watching > 0 && len(h.look) >= s.o.HoldBytes {
		return lookFull
	}
	return lookOn
}

// round shows bytes at from to the streams, in order: each sees what the ones
// before it let go. again says that they may have seen them all before. False:
// the connection was denied.
func (s *Inspector) round(f *flow, d pipeline.Direction, view []byte, from int64, final, again bool) bool {
	limit := from + int64(len(view))
	for i := range f.streams {
		st := &f.streams[i]
		if !st.released && (limit > st.shown[d] || again && limit > st.passed[d]) {
			at := max(st.passed[d], from)
			n, v := st.s.Data(d, view[at-from:limit-from:limit-from], f.last)
			st.shown[d] = limit
			st.passed[d] = at + min(max(int64(n), 0), limit-at)
			if !s.obey(f, st, v) {
				return false
			}
		}
		if final && !st.released {
			st.ended[d] = true
			if !s.obey(f, st, st.s.End(d, f.last)) {
				return false
			}
		}
		if st.released || st.ended[d] {
			st.passed[d], st.shown[d] = limit, limit
		}
		limit = st.passed[d]
	}
	f.half[d].passed = limit
	return true
}

// obey carries out a stream's verdict. False: the connection was denied.
func (s *Inspector) obey(f *flow, st *openStream, v pipeline.StreamVerdict) bool {
	switch v.Action {
	case pipeline.StreamRelease:
		st.released = true
		f.watching--
	case pipeline.StreamDeny:
		s.deny(f, nil, v.Reason)
		return false
	}
	return true
}

// keep keeps of view, which begins at from, what some stream has not let go.
func (s *Inspector) keep(f *flow, d pipeline.Direction, view []byte, from int64) {
	h := &f.half[d]
	end := from + int64(len(view))
	low := end
	for i := range f.streams {
		if st := &f.streams[i]; !st.released {
			low = min(low, st.passed[d])
		}
	}
	rest := view[max(low-from, 0):]
	h.from = low
	switch {
	case len(rest) == 0:
		s.freeLook(h)
	case len(h.look) > 0: // view is h.look
		h.look = h.look[:copy(h.look, rest)]
	default:
		if n := len(s.looks); n > 0 {
			h.look = s.looks[n-1]
			s.looks = s.looks[:n-1]
		} else {
			h.look = make([]byte, 0, s.o.HoldBytes+chunkSize)
		}
		h.look = append(h.look[:0], rest...)
	}
}

// spareLooks bounds how many empty buffers are kept.
const spareLooks = 256

func (s *Inspector) freeLook(h *half) {
	if cap(h.look) > 0 && len(s.looks) < spareLooks {
		s.looks = append(s.looks, h.look[:0])
	}
	h.look = nil
}

// settle lets go of a connection that every stream has released, once both ends have
// what was decided on. The streams hear at once that it is over.
func (s *Inspector) settle(f *flow, p *pipeline.Packet) {
	if f.watching > 0 || f.state != stateOpen {
		return
	}
	if len(f.streams) > 0 {
		for d := range f.half {
			h := &f.half[d]
			h.decided = h.next
			s.freeLook(h)
		}
		s.endStreams(f, f.last)
	}
	if f.settled() {
		s.letGo(f, p)
	}
}

// letGo ends the interest in a connection that every stream has released.
func (s *Inspector) letGo(f *flow, p *pipeline.Packet) {
	s.n.released.Add(1)
	s.release(f)
	if p.Live() {
		p.Release()
	}
}

// release lets the packets of f pass from now on; those that wait go first.
func (s *Inspector) release(f *flow) {
	s.endStreams(f, f.last)
	if !f.state.over() {
		s.active--
	}
	f.state = stateReleased
	for d := range f.half {
		s.memory.drop(&f.half[d].bytes, 0, true)
		s.freeLook(&f.half[d])
	}
}

// blind ends the sight of a connection that can be followed no longer, and
// decides on the packet that shows it.
func (s *Inspector) blind(f *flow, p *pipeline.Packet, why pipeline.Reason) {
	if s.o.DenyBlind && f.judged() {
		s.deny(f, p, why)
		return
	}
	switch {
	case f.watching > 0:
		s.loseSight(f, why)
	case f.state == stateOpen:
		s.n.released.Add(1)
		s.release(f)
	}
	p.Continue()
	p.Release()
}

func (s *Inspector) loseSight(f *flow, why pipeline.Reason) {
	s.n.sightLost.Add(1)
	s.counter(s.lost, "sight_lost_", why).Add(1)
	for i := range f.streams {
		if l, ok := f.streams[i].s.(pipeline.SightLoser); ok && !f.streams[i].released {
			l.LoseSight(why, f.last)
		}
	}
	s.release(f)
}

// Woke implements pipeline.Waker. What waits of connections that are bypassed has
// been sent again, and passed: to deny them now would break what goes on, since a
// silent worker is to be as if it were not there.
func (s *Inspector) Woke(passed func(wire.Flow) bool, now int64) {
	s.recover(now)
	for _, p := range s.flows.All() {
		f := *p
		if f.state.over() || !passed(f.conn.Flow) {
			continue
		}
		for d := range f.half {
			s.dropHeld(&f.half[d])
		}
		s.loseSight(f, ReasonSilent)
	}
}

// endStreams tells the streams, once, that the connection is over.
func (s *Inspector) endStreams(f *flow, now int64) {
	streams := f.streams
	f.streams, f.watching = f.streams[:0], 0
	for i := range streams {
		streams[i].s.Close(now)
		streams[i] = openStream{}
	}
}

// counter returns the counter of a reason. Reasons are few, and so are the
// first times.
func (s *Inspector) counter(set map[pipeline.Reason]*pipeline.Counter, prefix string, r pipeline.Reason) *pipeline.Counter {
	c := set[r]
	if c == nil {
		name := r.String()
		if r == pipeline.ReasonNone {
			name = "unnamed"
		}
		c = s.env.Counters.Counter(prefix+name, r.Help())
		set[r] = c
	}
	return c
}
