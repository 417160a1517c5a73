package afxdp

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"penstock/pipeline"
)

// Waiter lets an idle worker sleep until one of its ports has packets.
//
// It sleeps in the Go runtime's own poller: the sockets are in an epoll set of
// ours, and that set is a file in the runtime's. A worker that waits so holds
// neither a thread nor a processor, and the goroutines that netstack runs
// continue on the same thread; poll(2) would park a thread at each turn and
// cost two context switches more.
type Waiter struct {
	ports []*Port
	file  *os.File
	raw   syscall.RawConn
	ready func(uintptr) bool // done
	woken atomic.Bool
	began time.Time
	timed bool          // a read deadline is set
	until time.Duration // it, since began; 0: it has passed, or may have
}

var _ pipeline.Waiter = (*Waiter)(nil)

// NewWaiter returns a waiter for the ports of one worker. Close it after the
// worker has stopped.
func NewWaiter(ports []*Port) (*Waiter, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll set: %w", err)
	}
	for _, p := range ports {
		if err := watch(ep, p); err != nil {
			unix.Close(ep)
			return nil, err
		}
	}
	if err := unix.SetNonblock(ep, true); err != nil { // or the runtime does not poll it
		unix.Close(ep)
		return nil, fmt.Errorf("set epoll set to non-blocking: %w", err)
	}
	w := &Waiter{ports: ports, file: os.NewFile(uintptr(ep), "afxdp"), began: time.Now()}
	w.ready = w.done
	if err := w.file.SetReadDeadline(time.Time{}); err != nil {
		w.file.Close()
		return nil, fmt.Errorf("add epoll set to the runtime's poller: %w", err)
	}
	if w.raw, err = w.file.SyscallConn(); err != nil {
		w.file.Close()
		return nil, fmt.Errorf("add epoll set to the runtime's poller: %w", err)
	}
	return w, nil
}

func watch(ep int, p *Port) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, p.FD(), &ev); err != nil {
		return fmt.Errorf("watch queue %d of port %q: %w", p.info.Queue, p.info.Name, err)
	}
	return nil
}

// Add has the waiter look at a port, too. Only on the worker's goroutine.
func (w *Waiter) Add(p *Port) (err error) {
	cerr := w.raw.Control(func(ep uintptr) { err = watch(int(ep), p) })
	if err = errors.Join(cerr, err); err == nil {
		w.ports = append(slices.Clone(w.ports), p)
	}
	return err
}

// Remove has the waiter look at a port no more. Only on the worker's goroutine; the
// port is closed afterwards.
func (w *Waiter) Remove(p *Port) {
	w.ports = slices.DeleteFunc(slices.Clone(w.ports), func(o *Port) bool { return o == p })
	// A socket that is closed leaves the set by itself.
	_ = w.raw.Control(func(ep uintptr) { _ = unix.EpollCtl(int(ep), unix.EPOLL_CTL_DEL, p.FD(), nil) })
}

var past = time.Unix(1, 0)

// lateWait is how much later than it was asked to a wait may end.
const lateWait = 100 * time.Microsecond

// Wait implements pipeline.Waiter.
func (w *Waiter) Wait(ns int64) {
	if w.done(0) { // no sleep: the other goroutines have their turn at least
		if w.woken.Swap(false) {
			w.timed, w.until = true, 0 // Wake has set a deadline, or is about to
		}
		runtime.Gosched()
		return
	}
	for _, p := range w.ports {
		if p.sock.Pending() > 0 && (ns < 0 || ns > int64(txRetry)) {
			ns = int64(txRetry)
		}
	}
	w.limit(ns)
	// A Wake before the deadline is set leaves the flag; one after it moves
	// the deadline into the past.
	if !w.woken.Load() && w.raw.Read(w.ready) != nil {
		w.timed, w.until = true, 0 // a deadline has passed: ours, or a late one of Wake
	}
	if w.woken.Swap(false) {
		w.timed, w.until = true, 0
	}
}

// limit sets the read deadline. One that is set already and comes in time stays:
// a worker that sleeps a thousand times between two of its ticks would move a
// timer of the runtime as often.
func (w *Waiter) limit(ns int64) {
	if ns < 0 {
		if w.timed {
			_ = w.file.SetReadDeadline(time.Time{})
			w.timed, w.until = false, 0
		}
		return
	}
	now := time.Since(w.began)
	want := now + time.Duration(ns)
	if w.timed && w.until > now && w.until <= want+lateWait {
		return
	}
	_ = w.file.SetReadDeadline(w.began.Add(want))
	w.timed, w.until = true, want
}

// done is called by the runtime before it sleeps and after each event.
func (w *Waiter) done(uintptr) bool {
	if w.woken.Load() {
		return true
	}
	for _, p := range w.ports {
		if p.ready() {
			return true
		}
	}
	return false
}

// Wake implements pipeline.Waiter.
func (w *Waiter) Wake() {
	if !w.woken.Swap(true) {
		_ = w.file.SetReadDeadline(past)
	}
}

// Close releases the epoll set; Wake does nothing from then on.
func (w *Waiter) Close() error { return w.file.Close() }
