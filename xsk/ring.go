package xsk

import "sync/atomic"

// A ring is shared with the kernel: a power-of-two array and two indices that
// run from 0 to 2^32-1 and wrap; index modulo size is the slot. The side that
// writes entries publishes with a release store of producer, the side that
// reads them gives slots back with a release store of consumer, and each loads
// the other's index with acquire (Documentation/networking/af_xdp.rst,
// net/xdp/xsk_queue.h). Go's atomics are at least that strong.
//
// Each side keeps a copy of its own index and of the last value seen of the
// other's, and touches the shared words once per batch only.
type ring[T any] struct {
	entries  []T // nil: the socket has no such ring, or is closed
	mask     uint32
	own      uint32 // our index: producer of fill and TX, consumer of RX and completion
	seen     uint32 // the kernel's index when last loaded
	producer *atomic.Uint32
	consumer *atomic.Uint32
	flags    *atomic.Uint32
}

// space is how many entries, up to want, we may produce.
func (r *ring[T]) space(want uint32) uint32 {
	size := uint32(len(r.entries))
	if size == 0 {
		return 0
	}
	free := size - (r.own - r.seen)
	if free < want {
		r.seen = r.consumer.Load()
		used := r.own - r.seen
		if used > size { // not possible with a sound kernel: it is full
			r.seen = r.own - size
			return 0
		}
		free = size - used
	}
	return min(free, want)
}

// produced publishes n entries written at own, own+1, ...
func (r *ring[T]) produced(n uint32) {
	r.own += n
	r.producer.Store(r.own)
}

// ready is how many entries, up to want, we may consume.
func (r *ring[T]) ready(want uint32) uint32 {
	size := uint32(len(r.entries))
	if size == 0 {
		return 0
	}
	n := r.seen - r.own
	if n < want {
		r.seen = r.producer.Load()
		n = r.seen - r.own
		if n > size { // not possible with a sound kernel: it is empty
			r.seen = r.own
			return 0
		}
	}
	return min(n, want)
}

// consumed gives n slots back to the kernel.
func (r *ring[T]) consumed(n uint32) {
	r.own += n
	r.consumer.Store(r.own)
}

// unconsumed is how many published entries the consumer has not taken. It is
// safe from any goroutine.
func (r *ring[T]) unconsumed() int {
	if len(r.entries) == 0 {
		return 0
	}
	// Consumer first: read the other way round, entries produced and consumed
	// in between would make the difference negative.
	c := r.consumer.Load()
	return int(min(r.producer.Load()-c, uint32(len(r.entries))))
}

// needWakeup says whether the kernel sleeps and must be called.
func (r *ring[T]) needWakeup() bool {
	return r.flags.Load()&needWakeupFlag != 0
}
