package closedloop

import (
	"sync/atomic"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// cable is one of the two wires: a port of the worker with an end of each
// connection at its other side. Frames take a while in each direction.
type cable struct {
	w    *world
	side int
	info pipeline.PortInfo
	in   queue // toward the worker
	out  queue // toward the ends

	rxPackets, rxBytes, txPackets, txBytes atomic.Uint64
}

var _ pipeline.Port = (*cable)(nil)

// transit is a frame on its way.
type transit struct {
	frame []byte
	due   int64
}

// queue is first in, first out.
type queue struct {
	list []transit
	head int
}

func (q *queue) push(t transit) { q.list = append(q.list, t) }

// pop returns the next frame that is due.
func (q *queue) pop(now int64) []byte {
	if q.head == len(q.list) || q.list[q.head].due > now {
		return nil
	}
	f := q.list[q.head].frame
	q.list[q.head].frame = nil
	if q.head++; q.head == len(q.list) {
		q.list, q.head = q.list[:0], 0
	} else if q.head > 1024 && q.head > len(q.list)/2 {
		n := copy(q.list, q.list[q.head:])
		clear(q.list[n:])
		q.list, q.head = q.list[:n], 0
	}
	return f
}

// next returns when the next frame is due.
func (q *queue) next() (int64, bool) {
	if q.head == len(q.list) {
		return 0, false
	}
	return q.list[q.head].due, true
}

// Info implements pipeline.Port.
func (c *cable) Info() pipeline.PortInfo { return c.info }

// Receive implements pipeline.Port.
func (c *cable) Receive(b *pipeline.Batch) (n int, err error) {
	for b.Room() > 0 {
		if due, ok := c.in.next(); !ok || due > c.w.now {
			break
		}
		p := c.w.pool.Get()
		if p == nil {
			break
		}
		f := c.in.pop(c.w.now)
		if !p.SetView(p.Offset(), len(f)) {
			c.w.pool.Put(p) // ends keep to the MTU
			continue
		}
		copy(p.Bytes(), f)
		p.Time = c.w.now
		c.w.free(f)
		c.rxPackets.Add(1)
		c.rxBytes.Add(uint64(p.Len()))
		b.Add(p)
		n++
	}
	return n, nil
}

// Transmit implements pipeline.Port. It accepts everything.
func (c *cable) Transmit(pkts []*pipeline.Packet) (accepted int) {
	for _, p := range pkts {
		f := append(c.w.buffer(), p.Bytes()...)
		c.out.push(transit{f, c.w.now + c.w.latency})
		c.txPackets.Add(1)
		c.txBytes.Add(uint64(len(f)))
		c.w.pool.Put(p)
	}
	return len(pkts)
}

// Flush implements pipeline.Port.
func (c *cable) Flush() {}

// Stats implements pipeline.Port.
func (c *cable) Stats() pipeline.PortStats {
	return pipeline.PortStats{
		RxPackets: c.rxPackets.Load(), RxBytes: c.rxBytes.Load(), TxPackets: c.txPackets.Load(), TxBytes: c.txBytes.Load(), LinkUp: true,
	}
}

// Close implements pipeline.Port.
func (c *cable) Close() error { return nil }

// deliver gives the frames that are due to their ends.
func (c *cable) deliver() (any bool) {
	for f := c.out.pop(c.w.now); f != nil; f = c.out.pop(c.w.now) {
		c.w.record(c.side, f)
		c.w.arrive(c.side, f)
		c.w.free(f)
		any = true
	}
	return any
}

// segment builds a segment of an end and puts it on its cable: with n bytes of
// payload from position at of its stream, acknowledging up to position ack of
// the other's.
func (w *world) segment(e *end, flags wire.TCPFlags, at, ack, n uint64, payload []byte) {
	f := &e.s.c.flow
	src, dst, from, to := &f.Src, &f.Dst, f.SrcPort, f.DstPort
	if e.side == server {
		src, dst, from, to = dst, src, to, from
	}
	b := append(w.buffer(), e.look.link...)
	l3 := len(b)
	head := wire.IPv4Len
	if f.V6 {
		head = wire.IPv6Len
	}
	b = append(b, w.zeros[:head+wire.TCPLen]...)
	b = e.options(b, flags)
	for (len(b)-l3-head)%4 != 0 {
		b = append(b, wire.OptEnd)
	}
	tcpLen := len(b) - l3 - head
	b = append(b, payload[:n]...)
	ip, seg := b[l3:], b[l3+head:]
	if f.V6 {
		h := wire.IPv6(ip)
		ip[0] = 6 << 4
		h.SetTrafficClass(e.look.tos)
		h.SetPayloadLen(len(seg))
		h.SetNextHeader(wire.ProtoTCP)
		h.SetHopLimit(e.look.ttl)
		h.SetSrc(*src)
		h.SetDst(*dst)
	} else {
		h := wire.IPv4(ip)
		ip[0], ip[6], ip[9] = 4<<4|wire.IPv4Len/4, 0x40, wire.ProtoTCP
		h.SetTOS(e.look.tos)
		h.SetTTL(e.look.ttl)
		h.SetTotalLen(len(ip))
		w.ipID++
		h.SetID(w.ipID)
		h.SetSrc([4]byte(src[12:]))
		h.SetDst([4]byte(dst[12:]))
		h.FillChecksum()
	}
	t := wire.TCP(seg)
	t.SetSrcPort(from)
	t.SetDstPort(to)
	if flags&wire.FlagSYN != 0 {
		at = 0
	}
	t.SetSeq(e.own.isn + uint32(at))
	if flags&wire.FlagACK != 0 {
		t.SetAck(e.irs + uint32(ack))
		if flags&wire.FlagSYN != 0 || e.state == refusing {
			t.SetAck(e.irs + 1)
		}
	}
	t.SetDataOffset(tcpLen)
	t.SetFlags(flags)
	t.SetWindow(e.window(flags))
	srcBytes, dstBytes := ip[12:16], ip[16:20]
	if f.V6 {
		srcBytes, dstBytes = ip[8:24], ip[24:40]
	}
	t.SetChecksum(0)
	t.SetChecksum(wire.Checksum(seg, wire.PseudoHeader(srcBytes, dstBytes, wire.ProtoTCP, len(seg))))
	c := w.cables[e.side]
	w.record(e.side, b)
	c.in.push(transit{b, w.now + w.latency})
	e.s.packets[e.side][0]++
}
