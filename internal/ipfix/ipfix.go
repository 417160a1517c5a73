// Package ipfix tells a collector of flows: IPFIX (RFC 7011)
// over UDP or TCP, both directions of a flow in one record (RFC 5103).
//
// An Exporter has a bounded queue and a goroutine of its own. Export never
// blocks: when the collector cannot follow, flows are dropped and counted.
//
// Its one trap: UDP does not say what arrived. Sent is what the kernel took.
package ipfix

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Spec describes a collector.
type Spec struct {
	To        string        // "udp:HOST:PORT" or "tcp:HOST:PORT"
	Domain    uint32        // observation domain
	Templates time.Duration // how often templates are sent again over UDP
	// ActiveTimeout is after what time a flow that goes on is told of, and again; 0: only
	// of its end. It is for who calls Export.
	ActiveTimeout time.Duration
	MessageSize   int // bytes of a message at most, MinMessage to MaxMessage; a path that carries less has less
}

// Bounds of Spec.MessageSize. Templates need the least.
const (
	MinMessage = 512
	MaxMessage = 65507 // of a UDP datagram over IPv4
)

// CheckTarget says what is wrong with the To of a Spec, without opening it.
func CheckTarget(to string) error {
	_, _, err := splitTarget(to)
	return err
}

func splitTarget(to string) (network, addr string, err error) {
	network, addr, _ = strings.Cut(to, ":")
	host, port, err := net.SplitHostPort(addr)
	if network != "udp" && network != "tcp" || err != nil || host == "" {
		return "", "", fmt.Errorf(`want "udp:HOST:PORT" or "tcp:HOST:PORT", such as "udp:192.0.2.9:4739", got %q`, to)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Errorf("want a port from 1 to 65535, got %q", port)
	}
	return network, addr, nil
}

// Options are what tests change. The zero value is what an appliance runs with.
type Options struct {
	Queue     int           // flows that wait; 0: 8192
	Linger    time.Duration // how long a message waits for more flows; 0: 100 ms
	Retry     time.Duration // first pause before the collector is dialled again; 0: 100 ms; doubles up to 5 s
	CloseWait time.Duration // how long Close waits for the queue to empty; 0: 2 s
	WriteWait time.Duration // how long a write to a TCP collector may take; 0: 5 s
}

// Stats are the figures of an exporter. Every flow that was given to Export is
// in one of Sent, Dropped, Failed and Queued.
type Stats struct {
	To      string
	Sent    uint64
	Dropped uint64 // the queue was full, or the exporter was closed
	Failed  uint64 // could not be sent
	Queued  uint64
	Up      bool
	Error   string // the last one
}

// Exporter sends flows to one collector. Its methods may be called from any
// goroutine.
type Exporter struct {
	spec          Spec
	network, addr string
	log           *slog.Logger
	o             Options

	queue  chan Flow
	quit   context.Context // done: finish what is queued
	finish context.CancelFunc
	end    context.Context // done: at once
	abort  context.CancelFunc
	done   chan struct{}

	closed                        atomic.Bool
	accepted, sent, failed, drops atomic.Uint64
	down                          atomic.Bool
	lastErr                       atomic.Pointer[string]

	session
}

// Open starts an exporter. The collector may be absent.
func Open(spec Spec, log *slog.Logger, o Options) (*Exporter, error) {
	network, addr, err := splitTarget(spec.To)
	if err != nil {
		return nil, fmt.Errorf("open exporter: %w", err)
	}
	if spec.MessageSize < MinMessage || spec.MessageSize > MaxMessage {
		return nil, fmt.Errorf("open exporter %q: want messages of %d to %d bytes, got %d", spec.To, MinMessage, MaxMessage, spec.MessageSize)
	}
	if spec.Templates <= 0 {
		return nil, fmt.Errorf("open exporter %q: want an interval of templates above 0, got %v", spec.To, spec.Templates)
	}
	o.Queue = orDefault(o.Queue, 8192)
	o.Linger = orDefault(o.Linger, 100*time.Millisecond)
	o.Retry = orDefault(o.Retry, 100*time.Millisecond)
	o.CloseWait = orDefault(o.CloseWait, 2*time.Second)
	o.WriteWait = orDefault(o.WriteWait, 5*time.Second)
	e := &Exporter{
		spec: spec, network: network, addr: addr, log: log.With("collector", spec.To), o: o,
		queue: make(chan Flow, o.Queue), done: make(chan struct{}),
	}
	e.end, e.abort = context.WithCancel(context.Background())
	e.quit, e.finish = context.WithCancel(e.end)
	go e.run()
	return e, nil
}

func orDefault[T int | time.Duration](v, other T) T {
	if v == 0 {
		return other
	}
	return v
}

// Export queues a flow or drops it; it never blocks.
func (e *Exporter) Export(f *Flow) {
	if e.closed.Load() || f.Src.Is4() != f.Dst.Is4() || !f.Src.IsValid() {
		e.drops.Add(1)
		return
	}
	e.accepted.Add(1)
	select {
	case e.queue <- *f:
	default:
		e.accepted.Add(^uint64(0))
		e.drops.Add(1)
	}
}

// Stats returns the exporter's figures.
func (e *Exporter) Stats() Stats {
	// Finished flows are read before the accepted ones: Queued is never below
	// zero.
	s := Stats{To: e.spec.To, Sent: e.sent.Load(), Failed: e.failed.Load(), Up: !e.down.Load()}
	s.Queued = e.accepted.Load() - s.Sent - s.Failed
	s.Dropped = e.drops.Load()
	if text := e.lastErr.Load(); text != nil {
		s.Error = *text
	}
	return s
}

// Close sends what is queued, for at most Options.CloseWait. What could not be
// sent in that time counts as dropped, which is an error.
func (e *Exporter) Close() error {
	e.closed.Store(true)
	before := e.drops.Load()
	e.finish()
	timer := time.AfterFunc(e.o.CloseWait, e.abort)
	defer timer.Stop()
	<-e.done
	e.abort()
	if n := e.drops.Load() - before; n > 0 {
		return fmt.Errorf("close exporter %q: %d flows were not sent in time", e.spec.To, n)
	}
	return nil
}

// trouble notes an error and logs the first of a row.
func (e *Exporter) trouble(err error) {
	var oe *net.OpError
	if errors.As(err, &oe) {
		err = oe.Err // the addresses are known
	}
	text := err.Error()
	e.lastErr.Store(&text)
	if !e.down.Swap(true) {
		e.log.Warn("flows are not exported", "error", err)
	}
}

func (e *Exporter) well() {
	if e.down.Swap(false) {
		e.log.Info("flows are exported again")
	}
}
