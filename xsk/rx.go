package xsk

import "golang.org/x/sys/unix"

// rxSide is what Fill, Receive, WakeRx and Poll use: one goroutine.
type rxSide struct {
	fill ring[uint64]
	ring ring[Desc]

	filled      counter // frames given to the kernel
	received    counter // frames it gave back
	fillInvalid counter
	rxInvalid   counter
	wakeups     counter
	linkDown    counter
	touched     byte // so that the loads are not optimised away
}

// Fill gives frames to the kernel to receive packets into, each named by any
// address inside it. It returns how many of addrs it has dealt with, from the
// front; the caller keeps the rest (the ring is full). Frames that are outside
// the UMEM or not held by the caller are dealt with by counting them
// (Stats.FillInvalid) and otherwise left alone.
func (s *Socket) Fill(addrs []uint64) int {
	r := &s.rx.fill
	n := r.space(uint32(min(len(addrs), maxRingSize)))
	if n == 0 {
		return 0
	}
	owners, shift, mask := s.umem.owners, s.umem.shift, s.umem.mask
	own := rxOwner(s.slot)
	at, put := r.own, uint32(0)
	for _, a := range addrs[:n] {
		f := a >> (shift & 63)
		if f >= uint64(len(owners)) || owners[f] != ownerCaller {
			s.rx.fillInvalid.add(1)
			continue
		}
		owners[f] = own
		r.entries[(at+put)&r.mask] = a &^ mask
		put++
	}
	if put > 0 {
		s.rx.filled.add(uint64(put))
		r.produced(put)
	}
	return int(n)
}

// Receive takes packets that have arrived, in order, up to len(d), and returns
// how many. The frames belong to the caller now.
func (s *Socket) Receive(d []Desc) int {
	r := &s.rx.ring
	n := r.ready(uint32(min(len(d), maxRingSize)))
	if n == 0 {
		return 0
	}
	u := s.umem
	owners, shift, mask, size := u.owners, u.shift, u.mask, u.size
	own := rxOwner(s.slot)
	at, got := r.own, 0
	for i := range n {
		e := r.entries[(at+i)&r.mask]
		f := e.Addr >> (shift & 63)
		if f >= uint64(len(owners)) || owners[f] != own || e.Addr&mask+uint64(e.Len) > size {
			s.rx.rxInvalid.add(1)
			continue
		}
		owners[f] = ownerCaller
		d[got] = e
		got++
	}
	r.consumed(n)
	s.rx.received.add(uint64(got))
	s.touch(d[:got])
	return got
}

// touch loads the first two cache lines of each packet. They were written by
// another CPU or the NIC; fetched here, in one tight loop, the misses overlap,
// and whoever reads the headers next (the caller, or the kernel's copy on the
// way out, which reads a line ahead) does not wait for each in turn.
func (s *Socket) touch(d []Desc) {
	const line = 64
	area, mask := s.umem.area, s.umem.mask
	var x byte
	for i := range d {
		a := d[i].Addr
		if a >= uint64(len(area)) { // never: Receive has checked
			continue
		}
		x |= area[a]
		if b := a + line; b&mask >= line && b < uint64(len(area)) { // same frame
			x |= area[b]
		}
	}
	s.rx.touched = x
}

// WakeRx calls the driver if it sleeps for want of frames in the fill ring
// (zero-copy) or if busy polling is on; else it does nothing. Call it after
// Fill. It returns nil, [ErrLinkDown], [ErrLinkGone] or [ErrClosed].
func (s *Socket) WakeRx() error {
	r := &s.rx.fill
	if len(r.entries) == 0 {
		return ErrClosed
	}
	if !s.busy && !(s.wakeup && r.needWakeup()) {
		return nil
	}
	for range 4 {
		s.rx.wakeups.add(1)
		_, _, e := unix.Syscall6(unix.SYS_RECVFROM, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case unix.EINTR:
			continue
		case unix.ENETDOWN, unix.ENXIO:
			s.rx.linkDown.add(1)
			return s.down(e)
		}
		// EAGAIN, EBUSY, ENOBUFS: the driver is at it or will be asked again.
		return nil
	}
	return nil
}
