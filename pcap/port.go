package pcap

import (
	"io"
	"sync/atomic"

	"penstock/pipeline"
)

// Port is one of the two ports of a Feed.
type Port struct {
	feed   *Feed
	queue  int
	info   pipeline.PortInfo
	queued []*pipeline.Packet // delivered; from head on not received yet
	head   int
	ended  bool

	rxPackets, rxBytes, txPackets, txBytes atomic.Uint64
	inFlight                               atomic.Int64
}

var _ pipeline.Port = (*Port)(nil)

// Info implements pipeline.Port.
func (p *Port) Info() pipeline.PortInfo { return p.info }

// Receive implements pipeline.Port. Port 0 delivers the packets of both
// directions, so that they come in the order in which they were captured, with
// In set to the port that each came in by. Port 1 is at its end at once.
//
// Where the capture is damaged the error is a *ReadError, after everything
// before was delivered. An error of the output comes out here, too.
func (p *Port) Receive(b *pipeline.Batch) (n int, err error) {
	f := p.feed
	switch {
	case p.ended, p.info.ID != clientPort && f.auto:
		return 0, io.EOF
	case p.info.ID != clientPort:
		return 0, nil
	}
	if f.outErr != nil {
		return 0, f.outErr
	}
	for b.Room() > 0 {
		pkt := p.next()
		if pkt == nil {
			break
		}
		b.Add(pkt)
		in := f.ports[p.queue][pkt.In]
		in.rxPackets.Add(1)
		in.rxBytes.Add(uint64(pkt.Len()))
		n++
	}
	if n == 0 && f.auto && f.err != nil {
		return 0, f.err
	}
	return n, nil
}

// next returns the next packet, or nil if none is due.
func (p *Port) next() *pipeline.Packet {
	f := p.feed
	if !f.auto {
		if len(p.queued) == 0 {
			return nil
		}
		pkt := p.queued[p.head]
		if p.head++; p.head == len(p.queued) {
			p.queued, p.head = p.queued[:0], 0
		}
		p.inFlight.Add(-1)
		return pkt
	}
	t, err := f.peek()
	if err != nil || f.due(t) > 0 {
		return nil
	}
	pkt := f.o.Pool.Get()
	if pkt != nil {
		f.take(pkt)
	}
	return pkt
}

// Transmit implements pipeline.Port. It accepts everything.
func (p *Port) Transmit(pkts []*pipeline.Packet) (accepted int) {
	for _, pkt := range pkts {
		p.txPackets.Add(1)
		p.txBytes.Add(uint64(pkt.Len()))
		p.feed.send(p, pkt)
	}
	p.inFlight.Add(int64(len(pkts)))
	return len(pkts)
}

// Flush implements pipeline.Port.
func (p *Port) Flush() {
	if p.feed.auto {
		p.feed.flush()
	}
}

// Stats implements pipeline.Port.
func (p *Port) Stats() pipeline.PortStats {
	return pipeline.PortStats{
		RxPackets: p.rxPackets.Load(), RxBytes: p.rxBytes.Load(), TxPackets: p.txPackets.Load(),
		TxBytes: p.txBytes.Load(), InFlight: int(p.inFlight.Load()), LinkUp: true,
	}
}

// Close implements pipeline.Port. It writes what is still to be written, but
// closes neither capture.
func (p *Port) Close() error {
	f := p.feed
	f.flush()
	for _, pkt := range p.queued[p.head:] {
		f.o.Pool.Put(pkt)
		p.inFlight.Add(-1)
	}
	p.queued, p.head, p.ended = nil, 0, true
	if f.o.Writer != nil && f.outErr == nil {
		f.outErr = f.o.Writer.Flush()
	}
	return f.outErr
}
