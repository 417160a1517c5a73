package pipeline

import "sync/atomic"

// ring is a bounded queue with one producer and one consumer.
type ring struct {
	buf  []*Packet
	mask uint64
	_    [40]byte // keeps the two indices on cache lines of their own
	head atomic.Uint64
	_    [56]byte
	tail atomic.Uint64
	_    [56]byte
}

// newRing returns a ring that holds at least n packets.
func newRing(n int) *ring {
	size := 1
	for size < n {
		size <<= 1
	}
	return &ring{buf: make([]*Packet, size), mask: uint64(size - 1)}
}

// push reports whether the packet was taken.
func (r *ring) push(p *Packet) bool {
	t := r.tail.Load()
	if t-r.head.Load() == uint64(len(r.buf)) {
		return false
	}
	r.buf[t&r.mask] = p
	r.tail.Store(t + 1)
	return true
}

// pop returns nil when the ring is empty.
func (r *ring) pop() *Packet {
	h := r.head.Load()
	if h == r.tail.Load() {
		return nil
	}
	p := r.buf[h&r.mask]
	r.buf[h&r.mask] = nil
	r.head.Store(h + 1)
	return p
}

// length may be called from any goroutine.
func (r *ring) length() int {
	h := r.head.Load() // before tail: the difference is never negative
	return int(r.tail.Load() - h)
}
