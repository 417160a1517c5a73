package stack

import (
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"penstock/pipeline"
)

// accepted is how a handshake with a client ended.
type accepted struct {
	f  *flow
	ep *tcp.Endpoint // nil: it failed
}

// shake performs the handshake with a client. Netstack runs it on a goroutine
// of its own, and there is no way around that; MaxPending bounds their number.
func (s *Stack) shake(r *tcp.ForwarderRequest) {
	id := r.ID()
	s.mu.Lock()
	f := s.shaking[id]
	closing := s.closing
	s.mu.Unlock()
	var ep *tcp.Endpoint
	if f != nil && !closing && !f.gone.Load() {
		if e, err := r.CreateEndpoint(&f.client.queue); err == nil {
			ep = e.(*tcp.Endpoint)
		}
	}
	r.Complete(false)
	s.mu.Lock()
	delete(s.shaking, id)
	s.accepted = append(s.accepted, accepted{f, ep})
	s.mu.Unlock()
	s.wake()
}

// maxShaking bounds the goroutines that shake hands. Those of connections that
// were given up meanwhile need a moment to end, hence more than MaxPending.
func (s *Stack) maxShaking() int { return 2 * s.o.MaxPending }

// handler is what netstack asks about segments for which it has no endpoint.
// It runs on the worker's goroutine, inside inject.
func (s *Stack) handler(id nstack.TransportEndpointID, pkt *nstack.PacketBuffer) bool {
	ok := s.forward.HandlePacket(id, pkt)
	s.launched = s.launched || ok
	return ok
}

// finishHandshake takes over a connection that a client has acknowledged.
func (s *Stack) finishHandshake(a accepted, now int64) {
	f := a.f
	if f == nil || f.state != stateAccepting {
		if a.ep != nil {
			a.ep.Abort()
			a.ep.Close()
		}
		return
	}
	if a.ep == nil {
		s.n.handshakeFailed.Add(1)
		s.kill(f, now)
		return
	}
	l := &f.client
	l.ep = a.ep
	l.ep.LockUser() // its own goroutine sends already
	l.ep.SetOwner(l)
	l.ep.UnlockUser()
	s.keepAlive(l.ep)
	l.listen()
	f.state, f.syn = stateOpen, nil
	f.setDeadline(now, 0)
	s.pending--
	s.n.accepted.Add(1)
	for _, st := range s.o.Streams {
		if stream := st.Open(&f.conn); stream != nil {
			f.streams = append(f.streams, openStream{s: stream})
		}
	}
	f.watching = len(f.streams)
	for d := range f.dir {
		f.dir[d].d = pipeline.Direction(d)
	}
	s.revisit(f)
}
