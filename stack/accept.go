package stack

import (
	"sync/atomic"
	"time"

	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"penstock/pipeline"
)

// accepted is how a handshake with a client ended.
type accepted struct {
	f  *flow
	ep *tcp.Endpoint // nil: it failed
}

// shakers are goroutines that wait for handshakes. Netstack starts one for each,
// and it blocks until its handshake is over; there is no way around that. But one
// that has grown its stack once can be used again: growing costs more than the
// handshake.
type shakers struct {
	jobs chan *tcp.ForwarderRequest
	quit chan struct{}
	idle atomic.Int32
	live atomic.Int32 // goroutines that run
}

// idleShakers is how many goroutines may wait for work.
const idleShakers = 256

func newShakers() *shakers {
	return &shakers{jobs: make(chan *tcp.ForwarderRequest), quit: make(chan struct{})}
}

// run returns what netstack starts for each handshake: it passes the request on
// to a goroutine that waits, or serves it and others after it.
func (h *shakers) run(shake func(*tcp.ForwarderRequest)) func(*tcp.ForwarderRequest) {
	return func(r *tcp.ForwarderRequest) {
		h.live.Add(1)
		defer h.live.Add(-1)
		select {
		case h.jobs <- r:
			return
		default:
		}
		for {
			shake(r)
			if h.idle.Add(1) > idleShakers {
				h.idle.Add(-1)
				return
			}
			select {
			case r = <-h.jobs:
				h.idle.Add(-1)
			case <-h.quit:
				return
			}
		}
	}
}

// stop ends the goroutines, once none of them has a handshake to wait for. It
// counts those that run and not the SYNs that netstack's forwarder has taken: of
// those it drops repeated ones and those beyond its limit without a word.
func (h *shakers) stop() {
	close(h.quit)
	for end := time.Now().Add(closeWait); h.live.Load() > 0 && time.Now().Before(end); {
		time.Sleep(100 * time.Microsecond)
	}
}

// shake performs the handshake with a client. MaxPending bounds how many there
// are at once.
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
	s.keepAlive(f.server.ep)
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
	s.wantSplice(f, now)
	s.revisit(f)
}
