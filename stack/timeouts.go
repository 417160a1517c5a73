package stack

import (
	"math"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// timeout ends a flow whose deadline has passed.
func (s *Stack) timeout(f *flow, now int64) {
	switch f.state {
	case stateDialing:
		s.n.dialTimeout.Add(1)
	case stateAccepting:
		s.n.handshakeTimeout.Add(1)
	case stateClosing:
		if c, v := &f.client, &f.server; (c.over() || c.finished()) && (v.over() || v.finished()) {
			s.n.closed.Add(1)
		} else {
			s.n.closeTimeout.Add(1)
		}
	case stateSpliced: // it has ended
		s.forget(f, now)
		return
	default:
		if f.resetting == nil {
			s.n.closeTimeout.Add(1)
		}
	}
	s.kill(f, now)
}

// never is longer than any flow lives.
const never = time.Duration(math.MaxInt64)

// idleLimit is how long a flow may be without packets. States with a deadline
// of their own are not the table's concern.
func (s *Stack) idleLimit(f *flow) time.Duration {
	d := time.Duration(0)
	if f.state == stateSpliced {
		if f.splice.taken {
			return never // XDP knows
		}
		d = s.o.IdleTimeout
	}
	if f.state == stateOpen && f.resetting == nil && !f.denying {
		if f.client.gotFIN != f.server.gotFIN && s.o.HalfClosedTimeout > 0 {
			d = s.o.HalfClosedTimeout
		} else {
			d = s.o.IdleTimeout
		}
	}
	if d <= 0 {
		return never
	}
	return d
}

// idle ends a flow that the table has just dropped.
func (s *Stack) idle(f *flow, now int64) {
	if f.client.gotFIN != f.server.gotFIN && s.o.HalfClosedTimeout > 0 {
		s.n.halfClosedTimeout.Add(1)
	} else {
		s.n.idleTimeout.Add(1)
	}
	streams := s.shut(f)
	f.erase()
	closeStreams(streams, now)
}

// kill ends a connection at once: both ends are reset, where they know of it,
// and the flow is remembered for a while.
func (s *Stack) kill(f *flow, now int64) {
	switch f.state {
	case stateClosed, stateGone:
	case stateDialing:
		if f.cookie != nil {
			s.refuseClient(f)
		}
		s.forget(f, now)
	default:
		if f.cookie != nil && !f.client.firstSent {
			s.refuseClient(f)
		}
		s.linger(f, now)
	}
}

// CutPorts resets the connections that go by one of some ports, which are about to
// be taken away, and forgets those that XDP has. It returns how many there were.
func (s *Stack) CutPorts(gone func(pipeline.PortID) bool, now int64) (n int) {
	for _, p := range s.flows.All() {
		f := *p
		if !gone(f.client.out) && !gone(f.server.out) {
			continue
		}
		switch f.state {
		case stateClosed, stateGone:
		case stateSpliced:
			s.forget(f, now)
			n++
		default:
			s.kill(f, now)
			n++
		}
	}
	return n
}

// supersede makes room for a new connection of the same name. The client has
// forgotten the old one; the server is told, if it may not know.
func (s *Stack) supersede(f *flow, now int64) {
	f.client.mute = true
	if f.server.state() == tcp.StateTimeWait {
		f.server.mute = true
	}
	s.forget(f, now)
}

// forget ends a connection and takes it out of the table.
func (s *Stack) forget(f *flow, now int64) {
	streams := s.shut(f)
	s.flows.Delete(f.key)
	f.erase()
	closeStreams(streams, now)
}

// erase ends TIME_WAIT too: netstack must know nothing of the name any more.
func (f *flow) erase() {
	f.client.abort(true)
	f.server.abort(true)
	f.state = stateGone
}

// linger ends a connection and keeps its name for what is under way still.
func (s *Stack) linger(f *flow, now int64) {
	streams := s.shut(f)
	f.state = stateClosed
	f.deadline = now + int64(s.o.TimeWait) + int64(time.Second)
	s.lingering = append(s.lingering, f)
	closeStreams(streams, now)
}

// shut ends what is left of a connection: endpoints, buffers. It returns the
// streams, to be closed when all else is done: they are not our code.
func (s *Stack) shut(f *flow) (streams []openStream) {
	f.setDeadline(0, 0)
	if f.state >= stateSpliced {
		return nil
	}
	s.dropWish(f)
	s.active--
	s.count(&f.conn.Flow, -1)
	if f.state <= stateAccepting {
		s.pending--
	}
	streams, f.streams, f.watching = f.streams, nil, 0
	for d := range f.dir {
		s.dropStore(&f.dir[d])
	}
	for _, l := range [...]*leg{&f.client, &f.server} {
		s.urge(l)
		switch {
		case l.state() == tcp.StateTimeWait: // goes on while the flow is remembered
		case l.closed && l.over():
			l.dropGRO()
			l.ep = nil // netstack has let go of it
		default:
			l.abort(l.over() || l.finished())
		}
	}
	f.syn = nil
	return streams
}

// forgetLingering drops the connections that were remembered long enough.
func (s *Stack) forgetLingering(now int64) {
	for f := s.oldestLingering(); f != nil && now >= f.deadline; f = s.oldestLingering() {
		s.forget(f, now)
	}
}

// evictLingering drops the connection that was remembered longest.
func (s *Stack) evictLingering(now int64) {
	if f := s.oldestLingering(); f != nil {
		s.forget(f, now)
	}
}

// oldestLingering returns the connection that was remembered longest, or nil.
func (s *Stack) oldestLingering() *flow {
	for s.lingerAt < len(s.lingering) {
		if f := s.lingering[s.lingerAt]; f.state == stateClosed {
			return f
		}
		s.lingering[s.lingerAt] = nil // replaced meanwhile
		s.lingerAt++
		if s.lingerAt > len(s.lingering)/2 && s.lingerAt >= 64 {
			n := copy(s.lingering, s.lingering[s.lingerAt:])
			clear(s.lingering[n:])
			s.lingering, s.lingerAt = s.lingering[:n], 0
		}
	}
	s.lingering, s.lingerAt = s.lingering[:0], 0
	return nil
}

// Woke forgets the connections that are dialled for clients which have found their
// way to the server past this worker, while it was silent. Neither end hears of it.
func (s *Stack) Woke(passed func(wire.Flow) bool, now int64) {
	s.recover(now)
	for i := 0; i < len(s.timed); {
		f := s.timed[i]
		if f.state != stateDialing || f.cookie != nil || !passed(f.conn.Flow) {
			i++
			continue
		}
		f.client.mute, f.server.mute = true, true
		s.n.passed.Add(1)
		s.forget(f, now) // puts another flow at i
	}
}
