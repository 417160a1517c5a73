package xsk

import (
	"math"
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

// fakeKernel is the other side of a ring, on ordinary memory: a plain queue
// with indices of 64 bits that never wrap, so that it cannot make the same
// mistakes.
type fakeKernel struct {
	r        ring[uint64]
	produced uint64 // by whichever side produces
	consumed uint64
	offset   uint64 // 64-bit index = offset + entries so far
}

func newFakeKernel(size int, start uint32) *fakeKernel {
	k := &fakeKernel{offset: uint64(start)}
	k.r = ring[uint64]{
		entries: make([]uint64, size), mask: uint32(size - 1), own: start, seen: start,
		producer: new(atomic.Uint32), consumer: new(atomic.Uint32), flags: new(atomic.Uint32),
	}
	k.r.producer.Store(start)
	k.r.consumer.Store(start)
	return k
}

func (k *fakeKernel) queued() int { return int(k.produced - k.consumed) }

func (k *fakeKernel) slot(n uint64) *uint64 {
	return &k.r.entries[(k.offset+n)%uint64(len(k.r.entries))]
}

// stepProduce is one move on a ring we produce into: ours if ops is odd, else
// the kernel's.
func (k *fakeKernel) stepProduce(t *testing.T, op byte) {
	t.Helper()
	want := int(op >> 1)
	if op&1 == 1 {
		room := len(k.r.entries) - k.queued()
		n := int(k.r.space(uint32(want)))
		if n != min(room, want) {
			t.Fatalf("space(%d) = %d with %d of %d queued", want, n, k.queued(), len(k.r.entries))
		}
		at := k.r.own
		for i := range n {
			k.r.entries[(at+uint32(i))&k.r.mask] = k.produced + uint64(i)
		}
		k.r.produced(uint32(n))
		k.produced += uint64(n)
		return
	}
	for range min(want, k.queued()) {
		if got := *k.slot(k.consumed); got != k.consumed {
			t.Fatalf("entry %d read as %d", k.consumed, got)
		}
		k.consumed++
	}
	k.r.consumer.Store(uint32(k.offset + k.consumed))
}

// stepConsume is the same on a ring we consume from.
func (k *fakeKernel) stepConsume(t *testing.T, op byte) {
	t.Helper()
	want := int(op >> 1)
	if op&1 == 1 {
		n := int(k.r.ready(uint32(want)))
		if n != min(k.queued(), want) {
			t.Fatalf("ready(%d) = %d with %d queued", want, n, k.queued())
		}
		for i := range n {
			if got := k.r.entries[(k.r.own+uint32(i))&k.r.mask]; got != k.consumed+uint64(i) {
				t.Fatalf("entry %d read as %d", k.consumed+uint64(i), got)
			}
		}
		k.r.consumed(uint32(n))
		k.consumed += uint64(n)
		return
	}
	for range min(want, len(k.r.entries)-k.queued()) {
		*k.slot(k.produced) = k.produced
		k.produced++
	}
	k.r.producer.Store(uint32(k.offset + k.produced))
}

func runRing(t *testing.T, size int, start uint32, ops []byte) {
	p, c := newFakeKernel(size, start), newFakeKernel(size, start)
	for _, op := range ops {
		p.stepProduce(t, op)
		c.stepConsume(t, op)
		if got := p.r.unconsumed(); got != p.queued() {
			t.Fatalf("unconsumed = %d with %d queued", got, p.queued())
		}
	}
}

// TestRingWraps runs rings across the end of the 32-bit index space.
func TestRingWraps(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{1, 2, 8, 64} {
		for _, start := range []uint32{0, math.MaxUint32, math.MaxUint32 - 100, 1<<31 - 50} {
			ops := make([]byte, 4000)
			for i := range ops {
				ops[i] = byte(rng.IntN(2 * 2 * (size + 2)))
			}
			runRing(t, size, start, ops)
		}
	}
}

func FuzzRing(f *testing.F) {
	f.Add(uint8(3), uint32(math.MaxUint32-3), []byte{9, 8, 9, 8, 7, 6, 255, 254})
	f.Fuzz(func(t *testing.T, log2 uint8, start uint32, ops []byte) {
		runRing(t, 1<<(log2%10), start, ops[:min(len(ops), 256)])
	})
}

// TestRingInsaneKernel: an index out of range takes or gives nothing, it does
// not read or write beyond the ring.
func TestRingInsaneKernel(t *testing.T) {
	k := newFakeKernel(8, 5)
	for range 2 {
		k.r.consumer.Store(6) // it took an entry that was never there
		if n := k.r.space(100); n != 0 {
			t.Errorf("space = %d with the consumer ahead of us", n)
		}
		k.r.consumer.Store(5)
		if n := k.r.space(100); n != 8 {
			t.Errorf("space = %d with a sound index again, want 8", n)
		}
	}
	k = newFakeKernel(8, 5)
	k.r.producer.Store(5 + 9)
	if n := k.r.ready(100); n != 0 {
		t.Errorf("ready = %d with 9 entries announced in a ring of 8", n)
	}
	k.r.producer.Store(5 + 8)
	if n := k.r.ready(100); n != 8 {
		t.Errorf("ready = %d with a sound index again, want 8", n)
	}
	k.r.consumed(8)
	k.r.producer.Store(12)
	if n := k.r.ready(100); n != 0 {
		t.Errorf("ready = %d with the producer behind us", n)
	}
}

// TestNoRing: a socket without a ring, or closed.
func TestNoRing(t *testing.T) {
	var r ring[uint64]
	if r.space(1) != 0 || r.ready(1) != 0 || r.unconsumed() != 0 {
		t.Error("the zero ring has room or entries")
	}
}
