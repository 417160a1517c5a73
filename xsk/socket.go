package xsk

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A queue stays occupied for a moment after its last socket was closed: the
	// kernel releases it from a work queue (net/xdp/xsk_buff_pool.c, xp_put_pool).
	busyRetries = 20
	busyDelay   = 10 * time.Millisecond
)

// Socket is an AF_XDP socket bound to one queue of one interface.
type Socket struct {
	umem    *UMEM
	fd      int
	ifindex int
	queue   int
	mode    Mode
	slot    int
	mu      sync.Mutex // orders Stats and Err after or before Close
	closed  bool
	gone    atomic.Bool // the interface was unregistered
	wakeup  bool        // XDP_USE_NEED_WAKEUP is in force
	busy    bool        // busy polling: the wakeup calls drive the queue
	maps    [][]byte
	poller  *Poller // made by the first Poll

	reclaimable bool // closed, and the kernel is done with the frames
	reclaimed   int  // frames below this number have been looked at

	_  [64]byte // the two sides may run on different cores
	rx rxSide
	_  [64]byte
	tx txSide
}

// Open makes a socket on a queue of an interface. The first socket registers
// the UMEM with the kernel, the later ones share it (XDP_SHARED_UMEM). A UMEM
// takes one socket per interface and queue.
//
// Needs CAP_NET_RAW. Packets arrive once the caller has put FD into the XSKMAP
// of an XDP program on the interface; sending needs no program. Frames of
// Prefill belong to the kernel if err is nil, else still to the caller.
// Errors to tell apart: [ErrNoZeroCopy], [ErrQueueBusy], [ErrLockedMemory].
func (u *UMEM) Open(ifindex, queue int, o *SocketOptions) (*Socket, error) {
	var opts SocketOptions
	if o != nil {
		opts = *o
	}
	fail := func(err error) (*Socket, error) {
		return nil, fmt.Errorf("open socket on interface %d, queue %d: %w", ifindex, queue, err)
	}
	if err := opts.complete(); err != nil {
		return fail(err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.mem == nil {
		return fail(ErrClosed)
	}
	for _, s := range u.sockets {
		if s != nil && s.ifindex == ifindex && s.queue == queue {
			return fail(fmt.Errorf("%w: one of the same umem", ErrQueueBusy))
		}
	}
	first := u.anySocket() == nil
	if !first && opts.Mode != Auto && opts.Mode != u.mode {
		return fail(fmt.Errorf("asked for %s, but the umem's open sockets are in %s mode", opts.Mode, u.mode))
	}
	slot, err := u.reserveSlot()
	if err != nil {
		return fail(err)
	}
	s, err := u.openRetrying(ifindex, queue, slot, &opts)
	if err != nil {
		return fail(err)
	}
	u.sockets[slot] = s
	u.mode = s.mode
	u.releaseHeld(ifindex, queue)
	return s, nil
}

// openRetrying opens without need_wakeup where the kernel has none, and waits a
// moment for a queue that is being released.
func (u *UMEM) openRetrying(ifindex, queue, slot int, o *SocketOptions) (*Socket, error) {
	var err error
	for range busyRetries {
		var s *Socket
		s, err = u.open(ifindex, queue, slot, o)
		if errors.Is(err, unix.EINVAL) && !o.NoNeedWakeup && u.anySocket() == nil {
			plain := *o
			plain.NoNeedWakeup = true
			if s, e := u.open(ifindex, queue, slot, &plain); e == nil {
				return s, nil
			}
		}
		if err == nil || !errors.Is(err, ErrQueueBusy) {
			return s, err
		}
		time.Sleep(busyDelay) // set-up only; the kernel offers nothing to wait on
	}
	return nil, err
}

func (u *UMEM) open(ifindex, queue, slot int, o *SocketOptions) (s *Socket, err error) {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		switch {
		case errors.Is(err, unix.EPERM):
			err = fmt.Errorf("%w (CAP_NET_RAW is needed)", err)
		case errors.Is(err, unix.EAFNOSUPPORT):
			err = fmt.Errorf("%w (the kernel is built without CONFIG_XDP_SOCKETS)", err)
		}
		return nil, fmt.Errorf("create socket: %w", err)
	}
	s = &Socket{umem: u, fd: fd, ifindex: ifindex, queue: queue, slot: slot,
		wakeup: !o.NoNeedWakeup, busy: o.BusyPoll.Duration > 0}
	s.tx.returned = make([]uint64, 0, returnedMax)
	defer func() {
		if err != nil {
			s.release()
			s.disown()
			s = nil
		}
	}()
	sharer := u.anySocket()
	if sharer == nil {
		if err := s.register(); err != nil {
			return s, err
		}
	} else {
		s.wakeup = sharer.wakeup
	}
	if err := s.mapRings(o); err != nil {
		return s, err
	}
	if err := s.tune(o); err != nil {
		return s, err
	}
	if n := s.Fill(o.Prefill); n != len(o.Prefill) || s.rx.fillInvalid.load() > 0 {
		return s, fmt.Errorf("prefill: %d frames given, %d accepted, %d not the caller's to give", len(o.Prefill), n, s.rx.fillInvalid.load())
	}
	if err := s.bind(o.Mode, sharer); err != nil {
		return s, err
	}
	zc, err := isZeroCopy(fd)
	if err != nil {
		return s, err
	}
	s.mode = Copy
	if zc {
		s.mode = ZeroCopy
	}
	if o.Mode == ZeroCopy && !zc {
		return s, ErrNoZeroCopy
	}
	return s, nil
}

// register pins the UMEM, raising the soft locked-memory limit if that helps.
func (s *Socket) register() error {
	err := registerUMEM(s.fd, s.umem)
	if errors.Is(err, unix.ENOBUFS) && raiseMemlock(uint64(len(s.umem.mem))) {
		err = registerUMEM(s.fd, s.umem)
	}
	if err != nil {
		return explainRegister(err, len(s.umem.mem))
	}
	return nil
}

// raiseMemlock makes room for n more bytes, as far as the process is allowed,
// and says whether it could do anything.
func raiseMemlock(n uint64) bool {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &r) != nil {
		return false
	}
	// What other processes of the user have pinned counts too, and cannot be
	// read: ask for more than the hard limit, or else for all of it.
	if more := r.Max + n; more > r.Max { // needs CAP_SYS_RESOURCE
		if unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: more, Max: more}) == nil {
			return true
		}
	}
	return r.Cur < r.Max && unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: r.Max, Max: r.Max}) == nil
}

func (s *Socket) mapRings(o *SocketOptions) error {
	for _, r := range []struct {
		name         string
		option, size int
	}{
		{"fill", unix.XDP_UMEM_FILL_RING, o.FillSize},
		{"completion", unix.XDP_UMEM_COMPLETION_RING, o.CompletionSize},
		{"rx", unix.XDP_RX_RING, o.RxSize},
		{"tx", unix.XDP_TX_RING, o.TxSize},
	} {
		if r.size == NoRing {
			continue
		}
		if err := unix.SetsockoptInt(s.fd, unix.SOL_XDP, r.option, r.size); err != nil {
			return fmt.Errorf("create %s ring of %d: %w", r.name, r.size, err)
		}
	}
	off, err := ringOffsets(s.fd)
	if err != nil {
		return err
	}
	if s.rx.fill, err = mapRing[uint64](s, "fill", unix.XDP_UMEM_PGOFF_FILL_RING, off.Fr, o.FillSize); err != nil {
		return err
	}
	if s.tx.completion, err = mapRing[uint64](s, "completion", unix.XDP_UMEM_PGOFF_COMPLETION_RING, off.Cr, o.CompletionSize); err != nil {
		return err
	}
	if s.rx.ring, err = mapRing[Desc](s, "rx", unix.XDP_PGOFF_RX_RING, off.Rx, o.RxSize); err != nil {
		return err
	}
	s.tx.ring, err = mapRing[Desc](s, "tx", unix.XDP_PGOFF_TX_RING, off.Tx, o.TxSize)
	return err
}

func mapRing[T uint64 | Desc](s *Socket, name string, pgoff int64, off unix.XDPRingOffset, size int) (ring[T], error) {
	if size == NoRing {
		return ring[T]{}, nil
	}
	mem, err := unix.Mmap(s.fd, pgoff, ringBytes[T](off, size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return ring[T]{}, fmt.Errorf("map %s ring: %w", name, err)
	}
	s.maps = append(s.maps, mem)
	return mappedRing[T](mem, off, size), nil
}

// tune sets the options that help and are no reason to fail, and those that
// were asked for and are.
func (s *Socket) tune(o *SocketOptions) error {
	if o.TxSize != NoRing {
		// Without CAP_NET_ADMIN the plain option sets what wmem_max allows.
		if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, o.SndBuf) != nil {
			_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, o.SndBuf)
		}
		_ = unix.SetsockoptInt(s.fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, o.TxBudget)
	}
	if !s.busy {
		return nil
	}
	for _, opt := range []struct{ name, value int }{
		{unix.SO_PREFER_BUSY_POLL, 1},
		{unix.SO_BUSY_POLL, int(o.BusyPoll.Duration / time.Microsecond)},
		{unix.SO_BUSY_POLL_BUDGET, o.BusyPoll.Budget},
	} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, opt.name, opt.value); err != nil {
			return fmt.Errorf("turn on busy polling: %w", err)
		}
	}
	return nil
}

func (s *Socket) bind(mode Mode, sharer *Socket) error {
	sa := unix.SockaddrXDP{Ifindex: uint32(s.ifindex), QueueID: uint32(s.queue)}
	if sharer != nil {
		// No other flag may be given: the rest is inherited (xsk_bind).
		sa.Flags, sa.SharedUmemFD = unix.XDP_SHARED_UMEM, uint32(sharer.fd)
	} else {
		if s.wakeup {
			sa.Flags |= unix.XDP_USE_NEED_WAKEUP
		}
		switch mode {
		case Copy:
			sa.Flags |= unix.XDP_COPY
		case ZeroCopy:
			sa.Flags |= unix.XDP_ZEROCOPY
		}
	}
	err := unix.Bind(s.fd, &sa)
	zeroCopy := mode == ZeroCopy || sharer != nil && sharer.mode == ZeroCopy
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", ErrQueueBusy, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("no such interface: %w", err)
	case errors.Is(err, unix.EINVAL) && !zeroCopy:
		return fmt.Errorf("bind: %w (is there a queue %d? see ethtool -l)", err, s.queue)
	case zeroCopy && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)):
		err = fmt.Errorf("%w: %w", ErrNoZeroCopy, err)
		if sharer != nil {
			err = fmt.Errorf("%w (the umem's first socket is in zero-copy mode, which binds all; open that one with Copy)", err)
		}
		return err
	}
	return fmt.Errorf("bind: %w", err)
}

// FD is the socket's descriptor, for the XSKMAP and for polling. It belongs to
// the socket.
func (s *Socket) FD() int { return s.fd }

// Queue is the queue the socket is bound to.
func (s *Socket) Queue() int { return s.queue }

// Ifindex is the interface the socket is bound to.
func (s *Socket) Ifindex() int { return s.ifindex }

// Mode is Copy or ZeroCopy, as the kernel reported after bind.
func (s *Socket) Mode() Mode { return s.mode }

// UMEM is the memory the socket uses.
func (s *Socket) UMEM() *UMEM { return s.umem }
