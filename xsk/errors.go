package xsk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrLinkDown says that the interface is down, or that the driver has
	// taken the queue away for a while. Frames already handed to Transmit
	// stay where they are; they leave when the link comes back and Kick is
	// called again.
	ErrLinkDown = errors.New("link is down")

	// ErrLinkGone says that the interface no longer exists: the kernel has
	// unbound the socket for good. It is an ErrLinkDown for errors.Is. Close
	// the socket and Reclaim its frames.
	ErrLinkGone = fmt.Errorf("interface is gone: %w", ErrLinkDown)

	// ErrClosed is returned by operations on a closed socket, UMEM or poller.
	ErrClosed = errors.New("xsk: closed")

	// ErrNoZeroCopy says that ZeroCopy was asked for, or that the UMEM is in
	// zero-copy mode already, and that the driver or queue cannot do it.
	ErrNoZeroCopy = errors.New("no zero-copy AF_XDP on this interface and queue")

	// ErrQueueBusy says that another AF_XDP socket holds the queue.
	ErrQueueBusy = errors.New("queue already has an AF_XDP socket")

	// ErrLockedMemory says that pinning the UMEM would exceed RLIMIT_MEMLOCK.
	ErrLockedMemory = errors.New("locked-memory limit is too low")
)

// explainRegister turns the errno of XDP_UMEM_REG into an error that says what
// to do. The kernel reports a locked-memory shortage as ENOBUFS
// (net/xdp/xdp_umem.c, xdp_umem_account_pages).
func explainRegister(err error, size int) error {
	if !errors.Is(err, unix.ENOBUFS) {
		return fmt.Errorf("register umem: %w", err)
	}
	limit := "unknown"
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &r) == nil {
		limit = fmt.Sprintf("%d bytes", r.Cur)
	}
	return fmt.Errorf("register umem: %w: need %d bytes, limit is %s; raise it (ulimit -l unlimited, LimitMEMLOCK=infinity in a systemd unit) or grant CAP_IPC_LOCK",
		ErrLockedMemory, size, limit)
}
