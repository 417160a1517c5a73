package bpf

import (
	"encoding/binary"
	"time"
)

// Beat says that the worker behind the socket of a port's queue works; now is Now, or a little older. If it does not come for longer
// than Options.Silence, packets for the socket go the way OnExit says, as if there were none: so it is with a process that is
// stopped, starved or stuck, whose sockets are still there.
//
// It writes into memory that it shares with the program: no system call, no lock, no allocation. Port and queue must be ones that
// SetSocket would take.
func (s *Steerer) Beat(port, queue int, now time.Duration) {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], uint64(now))
	// A copy of eight aligned bytes is one store on all machines that Go runs on, or its garbage collector would not work.
	_, _ = s.beatMemory.WriteAt(b[:], int64(port*MaxQueues+queue)*8)
}
