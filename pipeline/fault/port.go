package fault

import (
	"errors"
	"io"
	"maps"
	"sync/atomic"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// What becomes of packets. The names are the keys of PortStats.Extra, with
// "rx_" or "tx_" in front for the direction.
var (
	ReasonLoss      = pipeline.DefineReason("fault_loss", "a fault port lost the packet")
	ReasonMTU       = pipeline.DefineReason("fault_mtu", "the packet was larger than the MTU of a fault port")
	ReasonTxRefused = pipeline.DefineReason("fault_tx_refused", "the port behind a fault port had no room for a packet that was held back or repeated")
	ReasonStopped   = pipeline.DefineReason("fault_stopped", "a fault port held the packet when it was closed")
)

// PortOptions configure a Port besides its faults.
type PortOptions struct {
	Pool  *pipeline.Pool // of the port's worker
	Clock func() int64   // the worker's: ns
	// Wake makes the worker take a turn; the port calls it when a packet that
	// it holds is due. nil: the caller sees to it, by Next.
	Wake func()
	// Copied is told of each repeated packet; may be nil.
	Copied func(original, twin *pipeline.Packet)
}

// Port is a port behind a bad wire.
type Port struct {
	inner   pipeline.Port
	o       PortOptions
	faults  Options
	rx, tx  lane
	scratch *pipeline.Batch
	ended   bool // the inner port is at its end
	timer   *time.Timer
	armed   int64 // when timer fires; 0: not set
}

var _ pipeline.Port = (*Port)(nil)

// Wrap returns port with faults. What f leaves out is as Default has it.
func Wrap(port pipeline.Port, f Options, o PortOptions) *Port {
	def := Default()
	if f.ReorderGap < 1 {
		f.ReorderGap = def.ReorderGap
	}
	if f.Hold < 1 {
		f.Hold = def.Hold
	}
	p := &Port{inner: port, o: o, faults: f, scratch: pipeline.NewBatch(pipeline.BatchSize)}
	info := port.Info()
	stream := uint64(info.ID)<<32 | uint64(uint32(info.Queue))<<1
	p.rx.init(p, stream, f.On != OnTransmit)
	p.tx.init(p, stream|1, f.On != OnReceive)
	if o.Wake != nil {
		p.timer = time.AfterFunc(time.Hour, o.Wake)
		p.timer.Stop()
	}
	return p
}

// Info implements pipeline.Port.
func (p *Port) Info() pipeline.PortInfo { return p.inner.Info() }

// Receive implements pipeline.Port. It reports the end of the wrapped port when
// everything that was held has been received.
func (p *Port) Receive(b *pipeline.Batch) (n int, err error) {
	now := p.o.Clock()
	if len(p.rx.ready) < pipeline.BatchSize && !p.ended {
		p.scratch.Reset()
		_, err = p.inner.Receive(p.scratch)
		for _, pkt := range p.scratch.All() {
			p.rx.take(pkt, now)
		}
		if errors.Is(err, io.EOF) {
			p.ended, err = true, nil
		}
	}
	p.rx.release(now)
	for b.Room() > 0 && n < len(p.rx.ready) {
		b.Add(p.rx.ready[n])
		n++
	}
	p.rx.shift(n)
	if n == 0 && err == nil && p.ended && p.rx.holding() == 0 {
		err = io.EOF
	}
	return n, err
}

// Transmit implements pipeline.Port. What it holds back or loses counts as
// accepted: the wire has it.
func (p *Port) Transmit(pkts []*pipeline.Packet) (accepted int) {
	now := p.o.Clock()
	for _, pkt := range pkts {
		p.tx.take(pkt, now)
	}
	refused := p.pass(now)
	accepted = max(len(pkts)-refused, 0)
	p.tx.count(&p.tx.refused, refused-(len(pkts)-accepted))
	return accepted
}

// pass transmits what is due and returns how much of it was refused.
func (p *Port) pass(now int64) (refused int) {
	p.tx.release(now)
	n := len(p.tx.ready)
	if n == 0 {
		return 0
	}
	refused = n - p.inner.Transmit(p.tx.ready)
	p.tx.shift(n)
	return refused
}

// Flush implements pipeline.Port.
func (p *Port) Flush() {
	if p.tx.holding() > 0 {
		p.tx.count(&p.tx.refused, p.pass(p.o.Clock()))
	}
	p.inner.Flush()
	if p.timer == nil {
		return
	}
	if due, ok := p.Next(); ok && due != p.armed {
		p.armed = due
		p.timer.Reset(time.Duration(max(due-p.o.Clock(), 0)))
	}
}

// Next returns when the first of the packets that are held is due. Only its
// worker's goroutine may call it.
func (p *Port) Next() (due int64, ok bool) {
	a, aok := p.rx.next()
	b, bok := p.tx.next()
	switch {
	case aok && bok:
		return min(a, b), true
	case aok:
		return a, true
	}
	return b, bok
}

// Stats implements pipeline.Port: those of the wrapped port, with what was held
// back among the packets in flight and the faults among the extra figures.
func (p *Port) Stats() pipeline.PortStats {
	s := p.inner.Stats()
	extra := make(map[string]uint64, len(s.Extra)+16)
	maps.Copy(extra, s.Extra)
	p.rx.figures(extra, "rx_")
	p.tx.figures(extra, "tx_")
	s.Extra = extra
	s.InFlight += int(p.rx.inFlight.Load() + p.tx.inFlight.Load())
	return s
}

// Counts are the faults that a port has made so far.
type Counts struct {
	Lost, Duplicated, NoFrame, Reordered, Delayed, Corrupted, TooBig, Told, HoldFull, Refused, Stopped uint64
}

// Received returns the faults of packets that were received, Transmitted of
// those that were transmitted.
func (p *Port) Received() Counts { return p.rx.counts() }

// Transmitted is Received for the other direction.
func (p *Port) Transmitted() Counts { return p.tx.counts() }

// Close implements pipeline.Port. Packets that are held return to the pool.
func (p *Port) Close() error {
	if p.timer != nil {
		p.timer.Stop()
	}
	p.rx.drop()
	p.tx.drop()
	return p.inner.Close()
}

// tell answers a packet that is too big, by the lane of the other direction.
func (p *Port) tell(l *lane, pkt *pipeline.Packet) {
	if !p.faults.PacketTooBig {
		return
	}
	reply := p.o.Pool.Get()
	if reply == nil {
		l.noFrame.Add(1)
		return
	}
	if !tooBig(reply, pkt, p.faults.MTU) {
		p.o.Pool.Put(reply)
		return
	}
	l.told.Add(1)
	back := &p.tx
	if l == &p.tx {
		back = &p.rx
	}
	back.pass(reply)
}

// ipLen returns the length of the IP packet in pkt, 0 if there is none.
func ipLen(pkt *pipeline.Packet, h *wire.Headers) int {
	if h.Parse(pkt.Bytes()) != wire.FaultNone || h.IPVersion == 0 {
		return 0
	}
	return int(h.End - h.L3)
}

type counter = atomic.Uint64
