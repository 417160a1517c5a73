package xsk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// down tells a link that is down from one that no longer exists. When the
// device is unregistered the kernel unbinds the socket (ENXIO from then on) and
// leaves ENETDOWN in SO_ERROR (xsk_notifier); drivers return ENXIO of their own
// while they reset a queue.
func (s *Socket) down(e unix.Errno) error {
	if e == unix.ENXIO && s.unregistered() {
		return ErrLinkGone
	}
	return ErrLinkDown
}

// Err returns [ErrLinkGone] if the interface no longer exists, [ErrClosed] after
// Close, else nil. It is one system call. Nothing else tells a socket that only
// receives: poll reports no such event. Safe from any goroutine.
func (s *Socket) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if s.unregistered() {
		return ErrLinkGone
	}
	return nil
}

// unregistered reads SO_ERROR, which forgets it, and remembers.
func (s *Socket) unregistered() bool {
	if !s.gone.Load() {
		v, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && unix.Errno(v) == unix.ENETDOWN {
			s.gone.Store(true)
		}
	}
	return s.gone.Load()
}

// Close unbinds the socket and unmaps its rings; the kernel takes its entry out
// of the XSKMAP, and packets still in the TX ring are not sent. It must not run
// beside Fill, Receive, WakeRx, Poll, Transmit, Complete or Kick of the socket,
// which do nothing afterwards. Frames that the kernel held come back through
// Reclaim.
func (s *Socket) Close() error {
	u := s.umem
	u.mu.Lock()
	defer u.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	err := s.release()
	if s.poller != nil {
		err = errors.Join(err, s.poller.Close())
	}
	u.sockets[s.slot] = nil
	if s.mode == ZeroCopy && !s.gone.Load() {
		u.held = append(u.held, s)
	} else {
		s.reclaimable = true
	}
	if err != nil {
		return fmt.Errorf("close socket on interface %d, queue %d: %w", s.ifindex, s.queue, err)
	}
	return nil
}

// Reclaim hands out, after Close, the frames that the kernel held then, up to
// len(addrs) at a time; 0 means there are no more.
//
// In copy mode they are free at once. In zero-copy mode the driver tears its
// queue down some time after Close, and the NIC may write into the frames until
// then: Reclaim returns 0 until a socket of the same UMEM has been opened on the
// same interface and queue, which shows that it is over. Closing the UMEM is
// safe at any time: the kernel holds the pages until it is done. Other sockets may
// work meanwhile.
func (s *Socket) Reclaim(addrs []uint64) int {
	u := s.umem
	u.mu.Lock()
	defer u.mu.Unlock()
	if !s.closed || !s.reclaimable {
		return 0
	}
	got := 0
	for got < len(addrs) {
		f := u.heldBy(s.slot, s.reclaimed)
		s.reclaimed = f + 1
		if f >= len(u.owners) {
			s.reclaimed = f
			break
		}
		if u.owners[f] == rxOwner(s.slot) {
			s.rx.received.add(1)
		} else {
			s.tx.completed.add(1)
		}
		u.owners[f] = ownerCaller
		addrs[got] = uint64(f) << u.shift
		got++
	}
	return got
}

// releaseHeld lets the frames of closed sockets on a queue go, when a new
// socket has been bound to it.
func (u *UMEM) releaseHeld(ifindex, queue int) {
	rest := u.held[:0]
	for _, s := range u.held {
		if s.ifindex == ifindex && s.queue == queue {
			s.reclaimable = true
		} else {
			rest = append(rest, s)
		}
	}
	u.held = rest
}

// release closes the descriptor and unmaps the rings.
func (s *Socket) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	err := unix.Close(s.fd)
	s.fd = -1
	s.rx.fill, s.rx.ring = ring[uint64]{}, ring[Desc]{}
	s.tx.ring, s.tx.completion = ring[Desc]{}, ring[uint64]{}
	s.tx.returned = nil
	for _, m := range s.maps {
		err = errors.Join(err, unix.Munmap(m))
	}
	s.maps = nil
	return err
}

// disown gives the frames of a socket that was never bound back to the caller.
func (s *Socket) disown() {
	for f := s.umem.heldBy(s.slot, 0); f < len(s.umem.owners); f = s.umem.heldBy(s.slot, f+1) {
		s.umem.owners[f] = ownerCaller
	}
}
