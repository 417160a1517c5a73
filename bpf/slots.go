package bpf

import (
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

// maxRewrites is how many slots a decision can name: DECISION_REWRITE_MASK in bpf/include/types.h, two elements a slot.
const maxRewrites = 1<<23 - 1

// restWithoutBarrier is how long a slot rests if the kernel does not say when the packets that may still read it are gone.
const restWithoutBarrier = 10 * time.Second

// slots says which slots of the rewrites map are in use: 1 to the number of generations. A slot that a flow gives back rests until no
// packet under way can still read it, and comes back with another generation, since a fragment may remember the old one for longer.
type slots struct {
	generation []uint32 // by slot - 1: of its present or last use
	fresh      uint32   // slots above this one were never used
	free       []uint32
	dropped    []uint32 // since settle was called last
	resting    []uint32
	since      time.Duration // when the youngest of resting was dropped
}

func newSlots(n uint32) slots {
	s := slots{generation: make([]uint32, n)}
	// What an earlier process left in fragments names no slot of ours, or one in 16 million.
	first := rand.Uint32()
	for i := range s.generation {
		s.generation[i] = first & 0xffffff
	}
	return s
}

// take returns a slot and its generation. ok is false if all are in use or resting.
func (s *slots) take() (slot, generation uint32, ok bool) {
	if n := len(s.free); n > 0 {
		slot = s.free[n-1]
		s.free = s.free[:n-1]
	} else if int(s.fresh) < len(s.generation) {
		s.fresh++
		slot = s.fresh
	} else {
		return 0, 0, false
	}
	g := &s.generation[slot-1]
	*g = max(1, (*g+1)&0xffffff) // 0 is what an element has before its first use
	return slot, *g, true
}

// giveBack is for a slot that no flow ever named.
func (s *slots) giveBack(slot uint32) { s.free = append(s.free, slot) }

// drop is for the slot of a decision that no flow has any more, if it has one.
func (s *slots) drop(decision uint64) {
	slot, generation := slotOf(decision)
	if slot != 0 && int(slot) <= len(s.generation) && s.generation[slot-1] == generation {
		s.dropped = append(s.dropped, slot)
	}
}

// adopt marks the slot of a decision that is in the table already as used. finishAdoption comes when all are marked.
func (s *slots) adopt(decision uint64) {
	if slot, generation := slotOf(decision); slot != 0 && int(slot) <= len(s.generation) {
		s.generation[slot-1] = generation
		s.fresh = max(s.fresh, slot)
		s.resting = append(s.resting, slot)
	}
}

func (s *slots) finishAdoption() {
	used := make(map[uint32]bool, len(s.resting))
	for _, slot := range s.resting {
		used[slot] = true
	}
	s.resting = nil
	for slot := uint32(1); slot <= s.fresh; slot++ {
		if !used[slot] {
			s.free = append(s.free, slot)
		}
	}
}

// rest says which slots are waiting for a barrier, and since when.
func (s *slots) rest(now time.Duration) (any bool) {
	if len(s.dropped) > 0 {
		s.resting = append(s.resting, s.dropped...)
		s.dropped = s.dropped[:0]
		s.since = now
	}
	return len(s.resting) > 0
}

// wake frees what was resting n slots ago.
func (s *slots) wake(n int) {
	s.free = append(s.free, s.resting[:n]...)
	s.resting = s.resting[:copy(s.resting, s.resting[n:])]
}

// slotOf returns the slot and generation of a decision, slot 0 if it has none.
func slotOf(decision uint64) (slot, generation uint32) {
	return uint32(decision>>decisionRewrite&0xffffff) / 2, uint32(decision >> decisionGeneration)
}

// barrier waits until every XDP program that runs now has ended: membarrier(2) waits for an RCU grace period, and XDP runs in one
// read-side section. A kernel with nohz_full CPUs refuses.
func barrier() error {
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	if _, _, err := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); err != 0 {
		return err
	}
	return nil
}
