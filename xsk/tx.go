package xsk

import (
	"golang.org/x/sys/unix"
)

// txSide is what Transmit, Complete and Kick use: one goroutine.
type txSide struct {
	ring       ring[Desc]
	completion ring[uint64]
	returned   []uint64 // frames of refused descriptors, handed out by Complete

	transmitted counter // frames given to the kernel
	completed   counter // frames it gave back
	txInvalid   counter
	txTwice     counter
	cqInvalid   counter
	kicks       counter
	again       counter
	dropped     counter
	noBuffers   counter
	linkDown    counter
	failed      counter
}

const (
	// kickLimit bounds the system calls of one Kick. What is left in the ring
	// then is sent by the next one.
	kickLimit = 64

	// returnedMax bounds the list of refused frames; Transmit stops there
	// until Complete is called.
	returnedMax = 256
)

// Transmit queues packets to be sent, in order, and returns how many of d it
// has dealt with, from the front; the caller keeps the rest (the ring is full).
// In copy mode nothing leaves before Kick.
//
// A descriptor that does not lie in one frame, is empty or has options set that
// the UMEM is not prepared for is refused: it is counted (Stats.TxInvalid) and
// its frame comes back through Complete. One whose frame the caller does not
// hold, because it was transmitted or filled already, is counted
// (Stats.TxNotHeld) and left where it is.
func (s *Socket) Transmit(d []Desc) int {
	r := &s.tx.ring
	n := r.space(uint32(min(len(d), maxRingSize)))
	if n == 0 {
		return 0
	}
	u := s.umem
	owners, shift, mask, size := u.owners, u.shift, u.mask, u.size
	meta := uint64(u.metadata)
	var options uint32
	if meta > 0 {
		options = unix.XDP_TX_METADATA
	}
	own := txOwner(s.slot)
	at, put := r.own, uint32(0)
	for i := range d[:n] {
		e := d[i]
		f, off := e.Addr>>(shift&63), e.Addr&mask
		if f >= uint64(len(owners)) || owners[f] != ownerCaller {
			s.refuse(e)
			continue
		}
		if e.Len == 0 || off < meta || off+uint64(e.Len) > size || e.Options&^options != 0 {
			if len(s.tx.returned) == returnedMax {
				n = uint32(i)
				break
			}
			s.refuse(e)
			continue
		}
		owners[f] = own
		r.entries[(at+put)&r.mask] = e
		put++
	}
	if put > 0 {
		s.tx.transmitted.add(uint64(put))
		r.produced(put)
	}
	return int(n)
}

// refuse counts a descriptor that must not reach the kernel.
func (s *Socket) refuse(e Desc) {
	f := e.Addr >> s.umem.shift
	switch {
	case f >= uint64(len(s.umem.owners)):
		s.tx.txInvalid.add(1) // names no frame: there is nothing to give back
	case s.umem.owners[f] != ownerCaller:
		s.tx.txTwice.add(1)
	default:
		s.tx.txInvalid.add(1)
		s.umem.owners[f] = txOwner(s.slot)
		s.tx.transmitted.add(1)
		s.tx.returned = append(s.tx.returned, e.Addr&^s.umem.mask)
	}
}

// Complete takes back frames whose packets have been sent (or dropped by the
// kernel on the way), up to len(addrs), writes the addresses of their first
// bytes and returns how many. They belong to the caller now.
func (s *Socket) Complete(addrs []uint64) int {
	got := 0
	owners, shift, mask := s.umem.owners, s.umem.shift, s.umem.mask
	if k := len(s.tx.returned); k > 0 {
		got = copy(addrs, s.tx.returned)
		for _, a := range addrs[:got] {
			owners[a>>(shift&63)] = ownerCaller
		}
		s.tx.returned = s.tx.returned[:copy(s.tx.returned, s.tx.returned[got:])]
	}
	r := &s.tx.completion
	n := r.ready(uint32(min(len(addrs)-got, maxRingSize)))
	if n > 0 {
		own := txOwner(s.slot)
		at := r.own
		for i := range n {
			a := r.entries[(at+i)&r.mask]
			f := a >> (shift & 63)
			if f >= uint64(len(owners)) || owners[f] != own {
				s.tx.cqInvalid.add(1)
				continue
			}
			owners[f] = ownerCaller
			addrs[got] = a &^ mask
			got++
		}
		r.consumed(n)
	}
	if got > 0 {
		s.tx.completed.add(uint64(got))
	}
	return got
}

// Pending is the number of packets in the TX ring that the kernel has not taken
// yet. While it is not 0, Kick must be called again; do not wait long.
func (s *Socket) Pending() int { return s.tx.ring.unconsumed() }

// Kick makes the kernel send what Transmit has queued, if it needs to be told.
// It does nothing if there is nothing to send. Packets may be left in the ring
// (see Pending): the device or the send buffer is full, or the completion ring
// is: call Complete, and Kick again in the next turn.
//
// It returns nil, [ErrLinkDown], [ErrLinkGone], [ErrClosed], or an errno that
// the kernel is not known to return. After each of them the socket is sound,
// and the packets are still queued.
func (s *Socket) Kick() error {
	t := &s.tx
	r := &t.ring
	if len(r.entries) == 0 {
		if s.closed {
			return ErrClosed
		}
		return nil
	}
	if s.mode == ZeroCopy {
		return s.kickDriver()
	}
	taken := r.consumer.Load()
	// A raw system call: it does not wait, it works, for some 20 us and more. As
	// an ordinary one the Go scheduler would take its processor away meanwhile
	// and give it back, which costs more than it is worth.
	for range kickLimit {
		if taken == r.own {
			return nil
		}
		t.kicks.add(1)
		_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
		was := taken
		taken = r.consumer.Load()
		switch e {
		case 0, unix.EINTR:
		case unix.EAGAIN:
			// The budget of one call is used up, and there is more to do; or
			// nothing can be done now: no room in the completion ring, the
			// send buffer or the device queue.
			t.again.add(1)
			if taken == was {
				return nil
			}
		case unix.EBUSY:
			t.dropped.add(1) // one packet was consumed and dropped
		case unix.ENOBUFS:
			t.noBuffers.add(1)
			return nil
		case unix.ENETDOWN, unix.ENXIO:
			t.linkDown.add(1)
			return s.down(e)
		default:
			t.failed.add(1)
			return e
		}
	}
	return nil
}

// kickDriver is Kick for zero-copy, where the call only wakes the driver.
func (s *Socket) kickDriver() error {
	t := &s.tx
	if t.transmitted.load() == t.completed.load() && !s.busy {
		return nil
	}
	if s.wakeup && !t.ring.needWakeup() && !s.busy {
		return nil
	}
	for range 4 {
		t.kicks.add(1)
		_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			return nil
		case unix.EINTR:
			continue
		case unix.EAGAIN, unix.EBUSY:
			t.again.add(1)
			return nil
		case unix.ENOBUFS:
			t.noBuffers.add(1)
			return nil
		case unix.ENETDOWN, unix.ENXIO:
			t.linkDown.add(1)
			return s.down(e)
		default:
			t.failed.add(1)
			return e
		}
	}
	return nil
}
