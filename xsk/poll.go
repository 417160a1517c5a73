package xsk

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// pendingWait bounds a wait while packets are still to be sent: nothing wakes
// the waiter when the device has room again.
const pendingWait = time.Millisecond

// Poller waits until one of several sockets has received something, or until
// another goroutine calls Wake.
//
// It is built on edge-triggered epoll, because poll(2) on a copy-mode socket
// sends what is in its TX ring, each time (net/xdp/xsk.c, xsk_poll). With epoll
// the kernel looks at a socket, and may send packets that Kick has left over,
// only in the first wait after something has arrived.
type Poller struct {
	epfd    int
	wakefd  int
	sockets []*Socket
	events  []unix.EpollEvent
	count   [8]byte // of calls to Wake
}

// wakeOnce is what a call to Wake adds: not zero, whatever the byte order.
var wakeOnce = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// NewPoller makes a poller of sockets. Close it before or after them.
func NewPoller(sockets ...*Socket) (*Poller, error) {
	p := &Poller{epfd: -1, wakefd: -1, sockets: sockets, events: make([]unix.EpollEvent, len(sockets)+1)}
	var err error
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if p.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("create poller: %w", err)
	}
	if p.wakefd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("create poller: %w", err)
	}
	if err = p.add(p.wakefd); err != nil {
		return nil, err
	}
	for _, s := range sockets {
		if err = p.add(s.fd); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *Poller) add(fd int) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}
	if err := unix.EpollCtl(p.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("add descriptor %d to poller: %w", fd, err)
	}
	return nil
}

// Wait returns when a socket has packets, when Wake was called, or after
// timeout (negative: never); it may also return early for no reason, and does
// so after a millisecond while a socket has packets waiting for Kick. It must
// be called by the goroutine that receives from the sockets. It returns nil or
// [ErrClosed].
func (p *Poller) Wait(timeout time.Duration) error {
	if p.epfd < 0 {
		return ErrClosed
	}
	for _, s := range p.sockets {
		if s.rx.ring.ready(1) > 0 {
			return nil
		}
		if s.Pending() > 0 && (timeout < 0 || timeout > pendingWait) {
			timeout = pendingWait
		}
	}
	n, err := epollWait(p.epfd, p.events, timeout)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for packets: %w", err)
	}
	for i := range max(n, 0) {
		if p.events[i].Fd == int32(p.wakefd) {
			_, _ = unix.Read(p.wakefd, p.count[:])
		}
	}
	return nil
}

// Wake makes the current or next Wait return. Safe from any goroutine, until
// Close.
func (p *Poller) Wake() {
	_, _ = unix.Write(p.wakefd, wakeOnce)
}

// Close ends the poller; Wait must not be running.
func (p *Poller) Close() error {
	var err error
	for _, fd := range []*int{&p.epfd, &p.wakefd} {
		if *fd >= 0 {
			err = errors.Join(err, unix.Close(*fd))
			*fd = -1
		}
	}
	return err
}

// Poll waits up to timeout (negative: for ever) until a packet has been
// received. It is a [Poller] of one socket. It returns nil, whether there is a packet or not, or [ErrClosed].
func (s *Socket) Poll(timeout time.Duration) error {
	if s.closed {
		return ErrClosed
	}
	if s.poller == nil {
		p, err := NewPoller(s)
		if err != nil {
			return err
		}
		s.poller = p
	}
	return s.poller.Wait(timeout)
}
