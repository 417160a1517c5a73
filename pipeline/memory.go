package pipeline

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// MemoryPort is a Port over slices: what Inject queues is received, what is
// transmitted is kept for Sent. Inject and Sent may be called from any
// goroutine. It is for tests and for embedding; its queues are bounded.
type MemoryPort struct {
	info  PortInfo
	pool  *Pool
	limit int

	mu     sync.Mutex
	in     [][]byte
	sent   [][]byte
	closed bool
	waiter Waiter

	rxPackets, rxBytes, txPackets, txBytes, refused atomic.Uint64
}

var _ Port = (*MemoryPort)(nil)

// NewMemoryPort returns a port whose packets come from pool and whose queues
// hold at most limit packets each way.
func NewMemoryPort(info PortInfo, pool *Pool, limit int) *MemoryPort {
	info.Mode = "memory"
	return &MemoryPort{info: info, pool: pool, limit: limit}
}

// SetWaiter makes Inject wake the worker.
func (m *MemoryPort) SetWaiter(w Waiter) {
	m.mu.Lock()
	m.waiter = w
	m.mu.Unlock()
}

// Inject queues a copy of frame for Receive and reports whether there was room.
func (m *MemoryPort) Inject(frame []byte) bool {
	m.mu.Lock()
	ok := len(m.in) < m.limit && !m.closed
	if ok {
		m.in = append(m.in, append([]byte(nil), frame...))
	}
	w := m.waiter
	m.mu.Unlock()
	if ok && w != nil {
		w.Wake()
	}
	return ok
}

// Finish makes Receive return io.EOF once the queue is empty.
func (m *MemoryPort) Finish() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
}

// Sent returns what was transmitted since the last call; the caller's to keep.
func (m *MemoryPort) Sent() [][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sent
	m.sent = nil
	return s
}

// Info implements Port.
func (m *MemoryPort) Info() PortInfo { return m.info }

// Receive implements Port.
func (m *MemoryPort) Receive(b *Batch) (n int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.in) > 0 && b.Room() > 0 {
		p := m.pool.Get()
		if p == nil {
			return n, nil
		}
		f := m.in[0]
		m.in = m.in[1:]
		if !p.SetView(p.Offset(), len(f)) {
			m.pool.Put(p) // does not fit into a frame: as on a wire with a smaller MTU
			m.refused.Add(1)
			continue
		}
		copy(p.Bytes(), f)
		m.rxPackets.Add(1)
		m.rxBytes.Add(uint64(len(f)))
		b.Add(p)
		n++
	}
	if n == 0 && m.closed && len(m.in) == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Transmit implements Port.
func (m *MemoryPort) Transmit(pkts []*Packet) (accepted int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range pkts {
		if len(m.sent) < m.limit {
			m.sent = append(m.sent, append([]byte(nil), p.Bytes()...))
			m.txPackets.Add(1)
			m.txBytes.Add(uint64(p.Len()))
			accepted++
		} else {
			m.refused.Add(1)
		}
		m.pool.Put(p)
	}
	return accepted
}

// Flush implements Port.
func (m *MemoryPort) Flush() {}

// Stats implements Port.
func (m *MemoryPort) Stats() PortStats {
	return PortStats{
		RxPackets: m.rxPackets.Load(), RxBytes: m.rxBytes.Load(), TxPackets: m.txPackets.Load(),
		TxBytes: m.txBytes.Load(), TxRefused: m.refused.Load(), LinkUp: true,
	}
}

// Close implements Port.
func (m *MemoryPort) Close() error {
	m.Finish()
	return nil
}

// ChanWaiter is a Waiter for workers whose ports have no file descriptor.
type ChanWaiter struct{ c chan struct{} }

// NewChanWaiter returns a waiter.
func NewChanWaiter() *ChanWaiter { return &ChanWaiter{c: make(chan struct{}, 1)} }

// Wait implements Waiter.
func (w *ChanWaiter) Wait(ns int64) {
	if ns < 0 {
		<-w.c
		return
	}
	t := time.NewTimer(time.Duration(ns))
	defer t.Stop()
	select {
	case <-w.c:
	case <-t.C:
	}
}

// Wake implements Waiter.
func (w *ChanWaiter) Wake() {
	select {
	case w.c <- struct{}{}:
	default:
	}
}
