package pipeline

import (
	"runtime"
	"testing"
	"time"
)

// TestRingBetweenThreads hands packets through one ring and back through another, as
// workers do with those of each other: each side reads what the other has written
// into them, and writes itself.
func TestRingBetweenThreads(t *testing.T) {
	const packets, turns = 5, 50000
	there, back := newRing(packets), newRing(2) // which is often full
	for range packets {
		if !there.push(&Packet{}) {
			t.Fatalf("a ring for %d packets has room for less", packets)
		}
	}
	deadline := time.Now().Add(time.Minute)
	next := func(r *ring) *Packet {
		for {
			if n := r.length(); n < 0 || n > len(r.buf) {
				t.Errorf("%d packets in a ring of %d", n, len(r.buf))
				return nil
			}
			if p := r.pop(); p != nil {
				return p
			}
			if time.Now().After(deadline) {
				t.Error("no packet comes any more")
				return nil
			}
			runtime.Gosched()
		}
	}
	put := func(r *ring, p *Packet) {
		for !r.push(p) && time.Now().Before(deadline) {
			runtime.Gosched()
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range turns {
			p := next(there)
			if p == nil {
				return
			}
			if p.Time != int64(i/packets) {
				t.Errorf("turn %d: the packet was handed over %d times, its note says %d", i, i/packets, p.Time)
				return
			}
			p.Hash = uint32(i)
			put(back, p)
		}
	}()
	for i := range turns {
		p := next(back)
		if p == nil {
			break
		}
		if p.Hash != uint32(i) {
			t.Errorf("turn %d: the packet comes back with the note of turn %d", i, p.Hash)
			break
		}
		p.Time++
		put(there, p)
	}
	<-done
}
