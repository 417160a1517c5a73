package route

import (
	"sync/atomic"

	"penstock/pipeline"
)

// queueLen is how many packets wait between a worker and the router, each way.
const queueLen = 256

// Port is a worker's door to the kernel. What a worker transmits by it is
// routed by the kernel, or comes back when its next hop is known.
type Port struct {
	r        *Router
	info     pipeline.PortInfo
	pool     *pipeline.Pool
	wake     func()
	up, down *queue

	tx, txBytes, rx, rxBytes, refused atomic.Uint64
}

var _ pipeline.Port = (*Port)(nil)

// Info implements pipeline.Port.
func (p *Port) Info() pipeline.PortInfo { return p.info }

// Transmit implements pipeline.Port. It copies.
func (p *Port) Transmit(pkts []*pipeline.Packet) (accepted int) {
	for i, pk := range pkts {
		to := p.up.room()
		if to == nil || pk.Len() > len(to.buf) {
			for _, lost := range pkts[i:] {
				p.pool.Put(lost)
			}
			p.refused.Add(uint64(len(pkts) - i))
			break
		}
		to.n = copy(to.buf, pk.Bytes())
		to.in, to.out, to.chain, to.hash, to.routing = pk.In, pk.Out, pk.Chain, pk.Hash, pk.Routing
		p.tx.Add(1)
		p.txBytes.Add(uint64(to.n))
		p.up.push()
		p.pool.Put(pk)
		accepted++
	}
	if accepted > 0 {
		p.r.ring()
	}
	return accepted
}

// Receive implements pipeline.Port.
func (p *Port) Receive(b *pipeline.Batch) (n int, err error) {
	for b.Room() > 0 {
		from := p.down.next()
		if from == nil {
			break
		}
		pk := p.pool.Get()
		if pk == nil {
			break
		}
		if !pk.SetView(pk.Offset(), from.n) {
			p.pool.Put(pk) // larger than a frame: it did not come in one
			p.down.pop()
			continue
		}
		copy(pk.Bytes(), from.frame())
		pk.In, pk.Out, pk.Chain, pk.Hash, pk.Routing, pk.RouteMTU = from.in, from.out, from.chain, from.hash, from.routing, from.mtu
		if from.leaves {
			pk.Forward(from.out)
		}
		p.rx.Add(1)
		p.rxBytes.Add(uint64(from.n))
		p.down.pop()
		b.Add(pk)
		n++
	}
	return n, nil
}

// Flush implements pipeline.Port.
func (p *Port) Flush() {}

// Stats implements pipeline.Port. It holds no frames: it copies.
func (p *Port) Stats() pipeline.PortStats {
	return pipeline.PortStats{
		RxPackets: p.rx.Load(), RxBytes: p.rxBytes.Load(), TxPackets: p.tx.Load(), TxBytes: p.txBytes.Load(),
		TxRefused: p.refused.Load(), LinkUp: true,
	}
}

// Close implements pipeline.Port.
func (p *Port) Close() error { return nil }
