package route

import (
	"sync/atomic"

	"penstock/pipeline"
)

// parcel is a frame on its way between a worker and the router, as a copy.
type parcel struct {
	buf     []byte
	n       int
	in, out pipeline.PortID
	chain   pipeline.ChainID
	hash    uint32
	routing pipeline.Routing
	mtu     uint16
	leaves  bool // by out, without a chain
}

func (p *parcel) frame() []byte { return p.buf[:p.n] }

// set makes p a copy of q in p's own memory.
func (p *parcel) set(q *parcel) {
	buf := p.buf
	*p = *q
	p.buf, p.n = buf, copy(buf, q.frame())
}

// queue holds a bounded number of parcels, with one producer and one consumer.
type queue struct {
	slots      []parcel
	head, tail atomic.Uint32
}

// newQueue returns a queue of n parcels of size bytes each; n is a power of two.
func newQueue(n, size int) *queue {
	q := &queue{slots: make([]parcel, n)}
	for i := range q.slots {
		q.slots[i].buf = make([]byte, size)
	}
	return q
}

// room returns the parcel that push hands over, or nil if there is no room.
func (q *queue) room() *parcel {
	t := q.tail.Load()
	if t-q.head.Load() == uint32(len(q.slots)) {
		return nil
	}
	return &q.slots[t%uint32(len(q.slots))]
}

func (q *queue) push() { q.tail.Add(1) }

// next returns the parcel that pop is done with, or nil if there is none.
func (q *queue) next() *parcel {
	h := q.head.Load()
	if h == q.tail.Load() {
		return nil
	}
	return &q.slots[h%uint32(len(q.slots))]
}

func (q *queue) pop() { q.head.Add(1) }
