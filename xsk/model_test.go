package xsk

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

// memorySocket is a socket whose rings lie in ordinary memory, with a model of
// the kernel on the other side, so that every hand-over can be checked without
// privileges.
type memorySocket struct {
	*Socket
	filled []uint64 // frames the model took from the fill ring
	queued []uint64 // packets it took from the TX ring
}

func memoryRing[T any](size int, start uint32) ring[T] {
	r := ring[T]{entries: make([]T, size), mask: uint32(size - 1), own: start, seen: start,
		producer: new(atomic.Uint32), consumer: new(atomic.Uint32), flags: new(atomic.Uint32)}
	r.producer.Store(start)
	r.consumer.Store(start)
	return r
}

func newMemorySocket(u *UMEM, slot, size int, start uint32) *memorySocket {
	s := &Socket{umem: u, fd: -1, slot: slot, mode: Copy}
	s.rx.fill, s.rx.ring = memoryRing[uint64](size, start), memoryRing[Desc](size, start)
	s.tx.ring, s.tx.completion = memoryRing[Desc](size, start), memoryRing[uint64](size, start)
	s.tx.returned = make([]uint64, 0, returnedMax)
	return &memorySocket{Socket: s}
}

// kernelTakes moves up to n entries from a ring that the program produces into.
func kernelTakes[T any](r *ring[T], n int) (got []T) {
	c := r.consumer.Load()
	for ; n > 0 && c != r.producer.Load(); n-- {
		got = append(got, r.entries[c&r.mask])
		c++
	}
	r.consumer.Store(c)
	return got
}

// kernelGives puts an entry into a ring that the program consumes from.
func kernelGives[T any](r *ring[T], v T) bool {
	p := r.producer.Load()
	if p-r.consumer.Load() == uint32(len(r.entries)) {
		return false
	}
	r.entries[p&r.mask] = v
	r.producer.Store(p + 1)
	return true
}

// step is one move of the kernel.
func (m *memorySocket) step(op, n byte) {
	switch op % 4 {
	case 0:
		m.filled = append(m.filled, kernelTakes(&m.rx.fill, int(n%8))...)
	case 1:
		if len(m.filled) > 0 && kernelGives(&m.rx.ring, Desc{Addr: m.filled[0] + 256, Len: 60 + uint32(n)}) {
			m.filled = m.filled[1:]
		}
	case 2:
		for _, d := range kernelTakes(&m.tx.ring, int(n%8)) {
			m.queued = append(m.queued, d.Addr)
		}
	case 3:
		// Skbs may be freed in any order.
		if k := len(m.queued); k > 0 && kernelGives(&m.tx.completion, m.queued[int(n)%k]) {
			m.queued[int(n)%k] = m.queued[k-1]
			m.queued = m.queued[:k-1]
		}
	}
}

// runModel interprets ops: calls of the program with good and bad arguments on
// two sockets of one UMEM, and moves of the kernel. After each, every frame is
// in exactly one place.
func runModel(t *testing.T, start uint32, ops []byte) {
	const frames = 24
	u, err := NewUMEM(UMEMOptions{Frames: frames, TxMetadataLen: 24})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	pool := u.NewPool(0, frames)
	sockets := [2]*memorySocket{newMemorySocket(u, 0, 8, start), newMemorySocket(u, 1, 4, start)}
	held := map[uint64]bool{} // frames of the program, by base address
	gain := func(op string, a uint64) {
		t.Helper()
		if a%u.size != 0 || a >= frames*u.size || held[a] {
			t.Fatalf("%s handed out %d, held already: %v", op, a, held[a])
		}
		held[a] = true
	}
	var addrs [8]uint64
	var descs [8]Desc
	for len(ops) >= 3 {
		op, x, y := ops[0], ops[1], ops[2]
		ops = ops[3:]
		s := sockets[op>>7]
		n := int(x % 9)
		// Arguments: some frames of the program's, some wild addresses.
		for i := range addrs {
			a := (uint64(x)*7 + uint64(i)*uint64(y|1)) % (frames + 1) * u.size
			if y%11 == 3 && i == 2 {
				a = uint64(y) << 56
			}
			addrs[i] = a + uint64(x)%u.size
			descs[i] = Desc{Addr: a + 256, Len: uint32(y) * 9, Options: uint32(x) & 3 & uint32(y)}
		}
		switch op & 0x7f % 9 {
		case 0:
			for _, a := range addrs[:pool.Alloc(addrs[:n])] {
				gain("alloc", a)
			}
		case 1:
			pool.Free(addrs[:n]...)
			for _, a := range addrs[:n] {
				delete(held, a&^u.mask)
			}
		case 2:
			for _, a := range addrs[:s.Fill(addrs[:n])] {
				delete(held, a&^u.mask)
			}
		case 3:
			k := s.Receive(descs[:n])
			for _, d := range descs[:k] {
				gain("receive", d.Addr&^u.mask)
				if u.Data(d) == nil {
					t.Fatalf("received %+v", d)
				}
			}
		case 4:
			for _, d := range descs[:s.Transmit(descs[:n])] {
				delete(held, d.Addr&^u.mask)
			}
		case 5:
			for _, a := range addrs[:s.Complete(addrs[:n])] {
				gain("complete", a)
			}
		case 6: // a kernel gone mad announces frames it was not given, or twice
			if y%5 == 0 {
				kernelGives(&s.rx.ring, Desc{Addr: addrs[0], Len: uint32(y) << 8})
				kernelGives(&s.tx.completion, addrs[1])
			}
		default:
			s.step(x, y)
		}
		sum := pool.Len() + len(held)
		for _, s := range sockets {
			f, r, x, c := s.InKernel()
			sum += f + r + x + c
		}
		if sum != frames {
			t.Fatalf("after op %d: %d frames of %d", op, sum, frames)
		}
		for f, o := range u.owners {
			if (o == ownerCaller) != held[uint64(f)*u.size] {
				t.Fatalf("after op %d: frame %d has owner %d, the program holds it: %v", op, f, o, held[uint64(f)*u.size])
			}
		}
	}
}

func TestModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 60 {
		ops := make([]byte, 3*2000)
		for i := range ops {
			ops[i] = byte(rng.Uint32())
		}
		runModel(t, rng.Uint32(), ops)
	}
	ops := make([]byte, 3*20000)
	for i := range ops {
		ops[i] = byte(rng.Uint32())
	}
	runModel(t, 1<<32-100, ops) // across the end of the index space
}

func FuzzModel(f *testing.F) {
	f.Add(uint32(1<<32-3), []byte{0, 8, 1, 2, 8, 1, 7, 0, 8, 7, 1, 8, 3, 8, 1, 4, 8, 60})
	f.Fuzz(func(t *testing.T, start uint32, ops []byte) {
		runModel(t, start, ops[:min(len(ops), 600)])
	})
}
