package xsk

import (
	"errors"
	"fmt"
	"math/bits"
	"time"
)

// Mode says whether packets are copied between UMEM and driver.
type Mode uint8

const (
	Auto     Mode = iota // zero-copy if driver and queue can, else copy; never the mode of an open socket
	Copy                 // the kernel copies each packet once
	ZeroCopy             // the NIC reads and writes the UMEM
)

func (m Mode) String() string {
	switch m {
	case Copy:
		return "copy"
	case ZeroCopy:
		return "zero-copy"
	}
	return "auto"
}

const (
	defaultRingSize = 2048
	maxRingSize     = 1 << 20

	// NoRing as a ring size leaves the RX or TX ring out.
	NoRing = -1
)

// SocketOptions are the options of one socket. nil and the zero value mean the
// defaults.
type SocketOptions struct {
	// Ring sizes in entries, powers of two; 0 is 2048. RxSize or TxSize may be
	// NoRing. CompletionSize defaults to TxSize: with a smaller one sending
	// stops until Complete has made room.
	RxSize, TxSize, FillSize, CompletionSize int

	// Mode of the first socket on a UMEM; the later ones inherit it, and asking
	// them for another one is an error.
	Mode Mode

	// Prefill are frames for the fill ring, put there before the socket is
	// bound, so that the first packet finds one. At most FillSize.
	Prefill []uint64

	// NoNeedWakeup turns XDP_USE_NEED_WAKEUP off. Then every Kick is a system
	// call, and drivers spin.
	NoNeedWakeup bool

	// TxBudget is how many packets one system call may send in copy mode
	// (XDP_MAX_TX_SKB_BUDGET, Linux 6.17; without it always 32). 0 is 256, or
	// TxSize if that is less; at least 32.
	TxBudget int

	// SndBuf is the socket's send buffer in bytes: copy mode charges packets
	// on their way out to it. 0 is enough for a full TX ring.
	SndBuf int

	// BusyPoll drives the NIC's queue from Kick, WakeRx and Poll instead of
	// from interrupts. It also wants napi_defer_hard_irqs and
	// gro_flush_timeout set on the interface. Off by default; veth has none.
	BusyPoll BusyPoll
}

// BusyPoll are the busy-polling options (Linux 5.11).
type BusyPoll struct {
	Duration time.Duration // how long to poll at most in one call, in whole microseconds; 0 = off
	Budget   int           // packets per poll; 0 is 64
}

// complete fills in defaults and checks the rest.
func (o *SocketOptions) complete() error {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.RxSize, defaultRingSize)
	def(&o.TxSize, defaultRingSize)
	def(&o.FillSize, defaultRingSize)
	def(&o.CompletionSize, max(o.TxSize, 64))
	for _, r := range []struct {
		name string
		size int
		none bool
	}{
		{"rx", o.RxSize, true}, {"tx", o.TxSize, true}, {"fill", o.FillSize, false}, {"completion", o.CompletionSize, false},
	} {
		if r.none && r.size == NoRing {
			continue
		}
		if r.size < 1 || r.size > maxRingSize || bits.OnesCount(uint(r.size)) != 1 {
			return fmt.Errorf("%s ring: size must be a power of two up to %d, got %d", r.name, maxRingSize, r.size)
		}
	}
	if o.RxSize == NoRing && o.TxSize == NoRing {
		return errors.New("the socket needs an rx or a tx ring, got neither")
	}
	if len(o.Prefill) > o.FillSize {
		return fmt.Errorf("prefill: the fill ring takes %d frames, got %d", o.FillSize, len(o.Prefill))
	}
	if o.Mode > ZeroCopy {
		return fmt.Errorf("mode must be Auto, Copy or ZeroCopy, got %d", o.Mode)
	}
	if o.TxBudget < 0 || o.SndBuf < 0 || o.BusyPoll.Duration < 0 || o.BusyPoll.Budget < 0 {
		return errors.New("tx budget, send buffer and busy poll options must not be negative")
	}
	def(&o.TxBudget, 256)
	o.TxBudget = max(32, min(o.TxBudget, o.TxSize))
	// An skb costs more than its bytes; 4 KiB covers a 2 KiB packet's truesize.
	def(&o.SndBuf, min(max(o.TxSize, 64)*4096, 1<<30))
	def(&o.BusyPoll.Budget, 64)
	return nil
}
