package stack

import (
	"encoding/binary"
	"math/rand"
	"runtime"
	"sync"
	"time"

	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"penstock/pipeline"
)

// In a simulation netstack does the same things in the same order in each run:
// its time and its timers are the simulation's, its secrets come from the seed,
// and of its goroutines one works at a time: the worker's waits after each
// segment and each timer until the others have nothing left to do.

// simulate takes chance away from netstack.
func (s *Stack) simulate(o *nstack.Options) {
	src := &seeded{src: rand.New(rand.NewSource(int64(s.env.Simulation.Seed)))}
	o.RandSource, o.SecureRNG = src, src
}

// nextConn numbers the connections: of the process, in a simulation of the
// worker.
func (s *Stack) nextConn() uint64 {
	if s.env.Simulation == nil {
		return pipeline.NewConnID()
	}
	s.simConns++
	return uint64(s.env.Worker)<<48 | s.simConns
}

// restWait bounds how long netstack's goroutines may take, in real time.
const restWait = 10 * time.Second

// quiesce returns when netstack's goroutines have done what there is to do. It
// does nothing outside simulations.
func (s *Stack) quiesce() {
	if s.env.Simulation == nil || s.closed {
		return
	}
	var end time.Time
	for ; ; runtime.Gosched() {
		// A processor pauses when its queue is empty.
		s.net.Pause()
		s.net.Resume()
		if !s.shakingBusy() {
			return
		}
		if end.IsZero() {
			end = time.Now().Add(restWait)
		} else if time.Now().After(end) {
			s.env.Log.Error("netstack does not come to rest: this simulation is not repeatable", "after", restWait)
			return
		}
	}
}

// shakingBusy reports whether a goroutine that waits for a handshake has
// something else to do: to begin, or to pass on how it ended.
func (s *Stack) shakingBusy() bool {
	s.mu.Lock()
	ids := s.simIDs[:0]
	for id := range s.shaking {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	s.simIDs = ids
	for _, id := range ids {
		ep := s.find(id)
		if ep == nil {
			return true
		}
		// It is made locked and unlocked when its SYN-ACK is out.
		ep.LockUser()
		state := ep.EndpointState()
		ep.UnlockUser()
		if state != tcp.StateSynRecv {
			return true
		}
	}
	return false
}

// seeded is both of netstack's sources of chance.
type seeded struct {
	mu  sync.Mutex
	src *rand.Rand
}

// Int63 implements rand.Source.
func (r *seeded) Int63() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.src.Int63()
}

// Seed implements rand.Source; there is one seed.
func (*seeded) Seed(int64) {}

// Read implements io.Reader.
func (r *seeded) Read(b []byte) (int, error) {
	var word [8]byte
	for i := 0; i < len(b); i += len(word) {
		binary.LittleEndian.PutUint64(word[:], uint64(r.Int63()))
		copy(b[i:], word[:])
	}
	return len(b), nil
}
