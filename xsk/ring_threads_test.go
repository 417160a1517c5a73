package xsk

import (
	"math"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// TestRingBetweenThreads has two rings on the same memory, one at either end, each
// with a goroutine of its own, and a third that looks on. What an entry names is
// ordinary memory too, as a frame is: an entry that is seen before its frame was written, or
// a slot that is taken again before it was read, is found here on a processor
// that reorders, and on all by the race detector.
func TestRingBetweenThreads(t *testing.T) {
	const entries = 20000
	deadline := time.Now().Add(time.Minute)
	for _, size := range []int{1, 4, 64} {
		start := uint32(math.MaxUint32 - entries/2) // the index wraps half way
		near := ring[uint64]{
			entries: make([]uint64, size), mask: uint32(size - 1), own: start, seen: start,
			producer: new(atomic.Uint32), consumer: new(atomic.Uint32), flags: new(atomic.Uint32),
		}
		near.producer.Store(start)
		near.consumer.Store(start)
		far, onlooker := near, near
		frames := make([]uint64, size)

		var stop atomic.Bool
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for !stop.Load() {
				if n := onlooker.unconsumed(); n < 0 || n > size {
					t.Errorf("size %d: %d entries are unconsumed", size, n)
					return
				}
				runtime.Gosched()
			}
		}()
		produced := make(chan struct{})
		go func() {
			defer close(produced)
			for i := uint64(0); i < entries && !stop.Load(); {
				n := near.space(uint32(min(1+i%7, entries-i)))
				if n == 0 {
					runtime.Gosched()
					continue
				}
				for k := range n {
					slot := (near.own + k) & near.mask
					frames[slot] = ^i
					near.entries[slot] = i
					i++
				}
				near.produced(n)
			}
		}()
		for i := uint64(0); i < entries; {
			n := far.ready(uint32(1 + i%5))
			if n == 0 {
				if time.Now().After(deadline) {
					t.Errorf("size %d: only %d entries of %d have come", size, i, entries)
					break
				}
				runtime.Gosched()
				continue
			}
			for k := range n {
				slot := (far.own + k) & far.mask
				if e, f := far.entries[slot], frames[slot]; e != i || f != ^i {
					t.Errorf("size %d: entry %d read as %d, its frame as %#x", size, i, e, f)
				}
				i++
			}
			if t.Failed() {
				break
			}
			far.consumed(n)
		}
		stop.Store(true)
		<-produced
		<-stopped
		if t.Failed() {
			return
		}
		if n := onlooker.unconsumed(); n != 0 {
			t.Errorf("size %d: %d entries are left", size, n)
		}
	}
}
