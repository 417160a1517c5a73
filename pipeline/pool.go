package pipeline

import (
	"fmt"
	"sync/atomic"
)

// Arena is packet memory: frames of one size, a Packet for each, divided
// between the pools of several workers. The memory is the caller's (a UMEM, a
// slice) and must outlive the arena.
type Arena struct {
	packets   []Packet
	pools     []*Pool
	frameSize int
	headroom  int
}

// NewArena divides mem into frames of frameSize bytes, gives each worker an
// equal share as its Pool, and leaves headroom bytes in front of the packets
// that stages make (ports set their own view).
func NewArena(mem []byte, frameSize, headroom, workers int) (*Arena, error) {
	if frameSize <= headroom || workers < 1 || len(mem)/max(frameSize, 1) < workers {
		return nil, fmt.Errorf("make arena: %d bytes do not hold frames of %d bytes (%d headroom) for %d workers",
			len(mem), frameSize, headroom, workers)
	}
	n := len(mem) / frameSize
	per := n / workers
	a := &Arena{packets: make([]Packet, per*workers), frameSize: frameSize, headroom: headroom}
	for w := range workers {
		p := &Pool{arena: a, id: uint16(w), free: make([]*Packet, 0, per), total: per}
		for i := w * per; i < (w+1)*per; i++ {
			pk := &a.packets[i]
			pk.frame = mem[i*frameSize : (i+1)*frameSize : (i+1)*frameSize]
			pk.index, pk.home, pk.free = uint32(i), uint16(w), true
			p.free = append(p.free, pk)
		}
		p.published.Store(int64(per))
		a.pools = append(a.pools, p)
	}
	for _, p := range a.pools {
		p.homeward = make([]*ring, workers)
		for w := range workers {
			if w != int(p.id) {
				// As large as the destination's whole pool: it cannot overflow.
				p.homeward[w] = newRing(per)
			}
		}
	}
	return a, nil
}

// Pools returns the pools, by worker.
func (a *Arena) Pools() []*Pool { return a.pools }

// Pool returns worker w's pool.
func (a *Arena) Pool(w int) *Pool { return a.pools[w] }

// Frames returns the number of frames in all pools together.
func (a *Arena) Frames() int { return len(a.packets) }

// FrameSize returns the size of a frame in bytes.
func (a *Arena) FrameSize() int { return a.frameSize }

// At returns the packet of frame number i, or nil where there is none.
func (a *Arena) At(i uint64) *Packet {
	if i >= uint64(len(a.packets)) {
		return nil
	}
	return &a.packets[i]
}

// room is how many bytes a packet that Get returns can have.
func (p *Pool) room() int {
	if p == nil {
		return 0
	}
	return p.arena.frameSize - p.arena.headroom
}

// Pool is one worker's packets. It has a single owner and takes no lock; a
// packet of another worker's pool that ends here travels home through a ring.
type Pool struct {
	arena       *Arena
	id          uint16
	free        []*Packet
	homeward    []*ring // by destination pool; this pool is the only producer
	total       int
	doubleFrees atomic.Uint64
	published   atomic.Int64
}

// Get takes a packet out of the pool, or returns nil when none is free. Its
// view is empty and starts behind the headroom.
func (p *Pool) Get() *Packet {
	if len(p.free) == 0 {
		p.collect()
		if len(p.free) == 0 {
			return nil
		}
	}
	pk := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	pk.free = false
	pk.reset(p.arena.headroom)
	return pk
}

// Put gives a packet back, whichever pool it came from. Giving one back twice
// is a bug of the caller: it is counted and otherwise ignored, since a frame
// in two places would corrupt traffic.
func (p *Pool) Put(pk *Packet) {
	if pk.free {
		p.doubleFrees.Add(1)
		return
	}
	if pk.home != p.id {
		p.homeward[pk.home].push(pk)
		return
	}
	pk.free = true
	p.free = append(p.free, pk)
}

// collect brings home the packets that other workers are done with.
func (p *Pool) collect() {
	for _, other := range p.arena.pools {
		if other == p {
			continue
		}
		for pk := other.homeward[p.id].pop(); pk != nil; pk = other.homeward[p.id].pop() {
			pk.free = true
			p.free = append(p.free, pk)
		}
	}
}

// Free returns how many packets are free now. Only the owner may call it.
func (p *Pool) Free() int {
	p.collect()
	return len(p.free)
}

// Total returns how many packets the pool has.
func (p *Pool) Total() int { return p.total }

// Headroom returns the bytes in front of a fresh packet.
func (p *Pool) Headroom() int { return p.arena.headroom }

// Arena returns the arena that the pool is a part of.
func (p *Pool) Arena() *Arena { return p.arena }

// publish makes the number of free packets visible to Stats.
func (p *Pool) publish() { p.published.Store(int64(len(p.free))) }

// PoolStats is a snapshot of a pool, as of its owner's last turn.
type PoolStats struct {
	Total       int    `json:"total"`
	Free        int    `json:"free"`
	DoubleFrees uint64 `json:"double_frees"`
}

// Stats may be called from any goroutine. Packets on their way home count as
// free: an idle worker has not collected them yet.
func (p *Pool) Stats() PoolStats {
	s := PoolStats{Total: p.total, Free: int(p.published.Load()), DoubleFrees: p.doubleFrees.Load()}
	for _, other := range p.arena.pools {
		if other != p {
			s.Free += other.homeward[p.id].length()
		}
	}
	return s
}
