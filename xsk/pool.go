package xsk

import "fmt"

// owner says who holds a frame. Every hand-over checks and changes it, so that
// no frame is ever in two places: the kernel does not check that, and a frame
// in two rings is silent corruption.
type owner uint16

const (
	ownerCaller owner = iota // the program holds it
	ownerPool                // it lies in a Pool
	ownerFirst               // the kernel holds it: two values per socket, RX and TX side
)

const maxSockets = (1<<16 - int(ownerFirst)) / 2

func rxOwner(slot int) owner { return ownerFirst + owner(2*slot) }
func txOwner(slot int) owner { return ownerFirst + owner(2*slot) + 1 }

// Pool holds the free frames of one owner, usually one worker: last in, first
// out, so that the frame handed out next is the one most likely in cache. It
// is not safe for concurrent use.
type Pool struct {
	umem     *UMEM
	free     []uint64
	rejected uint64
}

// NewPool makes a pool of the frames first to first+n-1. It panics if these
// are not all in the UMEM and held by nobody (a pool, a socket): that is a
// mistake in the program, like an index out of range.
func (u *UMEM) NewPool(first, n int) *Pool {
	if first < 0 || n < 0 || first > u.Frames() || n > u.Frames()-first {
		panic(fmt.Sprintf("xsk: pool of frames %d..%d out of %d", first, first+n, u.Frames()))
	}
	for i := first; i < first+n; i++ {
		if u.owners[i] != ownerCaller {
			panic(fmt.Sprintf("xsk: frame %d is already in a pool or a ring", i))
		}
	}
	// Room for all frames there are: frames of other pools may come here too
	// (received by one worker, sent by another), and Free never grows it.
	p := &Pool{umem: u, free: make([]uint64, 0, u.Frames())}
	for i := first + n - 1; i >= first; i-- {
		u.owners[i] = ownerPool
		p.free = append(p.free, uint64(i)<<u.shift)
	}
	return p
}

// Alloc moves up to len(dst) frames from the pool to the caller, writes their
// addresses into dst and returns how many they are.
func (p *Pool) Alloc(dst []uint64) int {
	n := min(len(dst), len(p.free))
	rest := len(p.free) - n
	owners, shift := p.umem.owners, p.umem.shift
	for i := range n {
		a := p.free[len(p.free)-1-i]
		owners[a>>shift] = ownerCaller
		dst[i] = a
	}
	p.free = p.free[:rest]
	return n
}

// Free gives frames back, each named by any address inside it. A frame that
// the caller does not hold (freed twice, still in a ring, outside the UMEM) is
// left alone and counted: see [Pool.Rejected].
func (p *Pool) Free(addrs ...uint64) {
	owners, shift, mask := p.umem.owners, p.umem.shift, p.umem.mask
	for _, a := range addrs {
		f := a >> shift
		if f >= uint64(len(owners)) || owners[f] != ownerCaller {
			p.rejected++
			continue
		}
		owners[f] = ownerPool
		p.free = append(p.free, a&^mask)
	}
}

// Len is the number of frames in the pool.
func (p *Pool) Len() int { return len(p.free) }

// Rejected counts frames that Free refused because the caller did not hold
// them. Anything but zero is a mistake in the program.
func (p *Pool) Rejected() uint64 { return p.rejected }
