package pipeline

import "iter"

// BatchSize is the number of packets a worker takes from a port at once.
const BatchSize = 64

// Batch is a vector of packets, the unit in which stages work. Each worker has
// one, allocated once.
type Batch struct {
	pkts []*Packet
}

// NewBatch returns an empty batch that holds up to n packets.
func NewBatch(n int) *Batch { return &Batch{pkts: make([]*Packet, 0, n)} }

// Add appends p and reports whether there was room.
func (b *Batch) Add(p *Packet) bool {
	if len(b.pkts) == cap(b.pkts) {
		return false
	}
	b.pkts = append(b.pkts, p)
	return true
}

// Room returns how many more packets fit.
func (b *Batch) Room() int { return cap(b.pkts) - len(b.pkts) }

// Len returns the number of packets, ended ones included.
func (b *Batch) Len() int { return len(b.pkts) }

// All returns the packets, ended ones included. The slice is the batch's own.
func (b *Batch) All() []*Packet { return b.pkts }

// Reset empties the batch without touching the packets.
func (b *Batch) Reset() { b.pkts = b.pkts[:0] }

// Live yields the packets that no earlier stage has ended.
func (b *Batch) Live() iter.Seq[*Packet] {
	return func(yield func(*Packet) bool) {
		for _, p := range b.pkts {
			if p.Live() && !yield(p) {
				return
			}
		}
	}
}
