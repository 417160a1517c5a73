package bpf

import (
	"encoding/binary"
	"time"

	"github.com/cilium/ebpf"
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

// Past returns how many packets went past silent workers, with OnExitOpen. It waits until no packet is under way that could be one of them
// although its worker has called Beat before: some ten milliseconds.
func (s *Steerer) Past() (packets uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0
	}
	_ = barrier() // without it, what comes in the same moment is not seen
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return 0
	}
	each := make([]steerCounter, cpus)
	for port := range s.opts.Ports {
		for _, v := range []Verdict{VerdictPass, VerdictPeer} {
			i := uint32(port)*counterSlots + uint32(steerReasonREASON_WORKER_SILENT_OPEN)*verdictCount + uint32(v)
			if s.counters.Lookup(i, &each) != nil {
				continue
			}
			for _, c := range each {
				packets += c.Packets
			}
		}
	}
	return packets
}

// Passed reports whether a TCP connection, named by either direction, is bypassed because it began, or went on, while its worker was silent.
func (s *Steerer) Passed(k FlowKey) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return false
	}
	raw := k.raw()
	f, err := s.flow(&raw)
	return err == nil && f != nil && Action(uint8(f.Decision)) == Passed
}
