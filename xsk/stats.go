package xsk

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// counter has one writer and any number of readers.
type counter struct{ v atomic.Uint64 }

// add is no atomic addition: only the one writer calls it, and a store is
// cheaper where the architecture has plain release stores.
func (c *counter) add(n uint64) { c.v.Store(c.v.Load() + n) }
func (c *counter) load() uint64 { return c.v.Load() }

// Stats are counts since the socket was opened.
type Stats struct {
	// Frames through the four rings.
	Filled      uint64 // given to the kernel by Fill
	Received    uint64 // handed out by Receive
	Transmitted uint64 // given to the kernel by Transmit
	Completed   uint64 // handed out by Complete

	// Descriptors refused, by this package.
	FillInvalid       uint64 // Fill: outside the UMEM, or not held by the caller
	TxInvalid         uint64 // Transmit: not inside a frame, empty, or unknown options
	TxNotHeld         uint64 // Transmit: frame not held by the caller
	RxInvalid         uint64 // the kernel announced a packet in a frame it was not given
	CompletionInvalid uint64 // the kernel completed a frame it was not given

	// System calls.
	Kicks     uint64 // calls to send
	KickAgain uint64 // of these, EAGAIN: more left, or no room now
	KickDrops uint64 // packets the device dropped (EBUSY), for example without carrier
	NoBuffers uint64 // ENOBUFS
	KickFails uint64 // any other error
	Wakeups   uint64 // calls to receive
	LinkDowns uint64 // calls that found the link down

	Kernel KernelStats
}

// KernelStats are the kernel's own counts (XDP_STATISTICS, Linux 5.9).
type KernelStats struct {
	RxDropped      uint64 // for other reasons: too long for a frame, no buffer
	RxInvalidDescs uint64 // bad entries in the fill ring
	TxInvalidDescs uint64 // bad entries in the TX ring
	RxRingFull     uint64 // dropped because the RX ring was full
	FillRingEmpty  uint64 // the fill ring had no frame
	TxRingEmpty    uint64 // the TX ring had nothing to send
}

// Stats reads the counters. After Close the kernel's are lost, and the error is
// [ErrClosed]; the others stay. Safe from any goroutine.
func (s *Socket) Stats() (Stats, error) {
	rx, tx := &s.rx, &s.tx
	st := Stats{
		Filled: rx.filled.load(), Received: rx.received.load(),
		Transmitted: tx.transmitted.load(), Completed: tx.completed.load(),
		FillInvalid: rx.fillInvalid.load(), RxInvalid: rx.rxInvalid.load(),
		TxInvalid: tx.txInvalid.load(), TxNotHeld: tx.txTwice.load(), CompletionInvalid: tx.cqInvalid.load(),
		Kicks: tx.kicks.load(), KickAgain: tx.again.load(), KickDrops: tx.dropped.load(),
		NoBuffers: tx.noBuffers.load(), KickFails: tx.failed.load(),
		Wakeups: rx.wakeups.load(), LinkDowns: rx.linkDown.load() + tx.linkDown.load(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return st, ErrClosed
	}
	var k unix.XDPStatistics
	if _, err := getsockopt(s.fd, unix.XDP_STATISTICS, &k); err != nil {
		return st, fmt.Errorf("read statistics of queue %d: %w", s.queue, err)
	}
	st.Kernel = KernelStats{
		RxDropped: k.Rx_dropped, RxInvalidDescs: k.Rx_invalid_descs, TxInvalidDescs: k.Tx_invalid_descs,
		RxRingFull: k.Rx_ring_full, FillRingEmpty: k.Rx_fill_ring_empty_descs, TxRingEmpty: k.Tx_ring_empty_descs,
	}
	return st, nil
}

// InKernel says how many frames the kernel holds and where: waiting to receive
// (fill ring and driver), received, to be sent (TX ring and driver), sent. The
// sum is exact, the split is a snapshot: with a worker's pool and the frames it
// holds itself, the sums of its sockets always make up all its frames. For the
// goroutine that owns the socket; after Close it counts what Reclaim will give.
func (s *Socket) InKernel() (fill, rx, tx, completion int) {
	rx = s.rx.ring.unconsumed()
	fill = int(s.rx.filled.load()-s.rx.received.load()) - rx
	completion = s.tx.completion.unconsumed() + len(s.tx.returned)
	tx = int(s.tx.transmitted.load()-s.tx.completed.load()) - completion
	return fill, rx, tx, completion
}
