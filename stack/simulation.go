package stack

import (
	"encoding/binary"
	"math/rand"
	"sync"

	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"

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

// quiesce returns when netstack's goroutines have done what there is to do. It
// does nothing outside simulations.
func (s *Stack) quiesce() {
	if s.env.Simulation == nil || s.closed {
		return
	}
	// A processor pauses when its queue is empty.
	s.net.Pause()
	s.net.Resume()
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
