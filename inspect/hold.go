package inspect

import (
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// held is a copy of a packet that waits for the streams.
type held struct {
	frame    []byte
	way      way
	pos, end int64
	fin      bool
	at       int64
}

const (
	maxHeld     = 256  // packets of one direction that wait
	maxHeldAll  = 8192 // of all connections
	spareFrames = 1024
	heldFrame   = 2048 // room of a copy, if that is enough
)

// repeatWait is after what time a packet that comes again while it waits is let
// go: then its sender's timer has expired, and it sends nothing else until it has an
// acknowledgment (RFC 5681 3.1). What the streams wait for would never come. They
// have the rest to decide on, as that waits: of what they deny, the receiver gets
// a part. Linux's timer takes 200 ms at least; what is doubled on the way comes at once.
const repeatWait = 100 * time.Millisecond

// span is a range of positions.
type span struct{ pos, end int64 }

// maxIslands bounds the ranges that have passed ahead of others.
const maxIslands = 64

// addIsland notes that a range has passed ahead of what is in front of it.
// False: there are too many.
func (h *half) addIsland(pos, end int64) bool {
	i := 0
	for i < len(h.islands) && h.islands[i].end < pos {
		i++
	}
	if i == len(h.islands) || end < h.islands[i].pos {
		if len(h.islands) == maxIslands {
			return false
		}
		h.islands = append(h.islands, span{})
		copy(h.islands[i+1:], h.islands[i:])
		h.islands[i] = span{pos, end}
		return true
	}
	at := &h.islands[i]
	at.pos, at.end = min(at.pos, pos), max(at.end, end)
	n := i + 1
	for n < len(h.islands) && h.islands[n].pos <= at.end {
		at.end = max(at.end, h.islands[n].end)
		n++
	}
	h.islands = h.islands[:i+1+copy(h.islands[i+1:], h.islands[n:])]
	return true
}

// reach returns up to where the receiver has everything once it has what ends
// at end.
func (h *half) reach(end int64) int64 {
	for _, is := range h.islands {
		if is.pos <= end {
			end = max(end, is.end)
		}
	}
	return end
}

// may reports whether a packet that ends at end may pass: what its receiver has
// then, the streams have let go.
func (h *half) may(end int64) bool { return max(h.passed, h.owed) >= h.reach(end) }

// left notes that a packet up to end has passed. Without holding everything has
// that is known.
func (h *half) left(end int64, fin, holding bool) {
	h.ahead = max(h.ahead, end)
	if fin {
		h.finSent = true
	}
	if !holding {
		h.sent = max(h.sent, h.next)
		return
	}
	h.sent = max(h.sent, h.reach(end))
	n := 0
	for n < len(h.islands) && h.islands[n].end <= h.sent {
		n++
	}
	h.islands = h.islands[:copy(h.islands, h.islands[n:])]
}

// holds reports whether a packet that waits has these bytes.
func (h *half) holds(pos, end int64, fin bool) bool {
	for i := range h.held {
		if q := &h.held[i]; q.pos <= pos && end <= q.end && (q.fin || !fin) {
			return true
		}
	}
	return false
}

// hold keeps a copy of a packet until it may pass.
func (s *Inspector) hold(f *flow, d pipeline.Direction, p *pipeline.Packet, pos, end int64, fin bool) {
	h := &f.half[d]
	if len(h.held) >= maxHeld || s.heldLen >= maxHeldAll {
		// As if it had been lost: its sender sends it again.
		p.Drop(pipeline.ReasonHoldFull)
		return
	}
	b := p.Bytes()
	var frame []byte
	if n := len(s.frames); n > 0 && len(b) <= heldFrame {
		frame = s.frames[n-1]
		s.frames = s.frames[:n-1]
	} else {
		frame = make([]byte, 0, max(len(b), heldFrame))
	}
	if len(h.held) == 0 {
		h.heldAt = p.Time
	}
	h.held = append(h.held, held{frame: append(frame[:0], b...), way: wayOf(p), pos: pos, end: end, fin: fin, at: p.Time})
	s.heldLen++
	s.n.held.Add(1)
	if !f.waiting {
		f.waiting = true
		s.waiting = append(s.waiting, f)
	}
	p.Consume()
}

// flush sends the packets of a direction that wait no longer, in order, and
// reports whether there were any.
func (s *Inspector) flush(f *flow, d pipeline.Direction) (any bool) {
	h := &f.half[d]
	n := 0
	for ; n < len(h.held); n++ {
		q := &h.held[n]
		if f.watching > 0 && s.o.Hold && !h.may(q.end) {
			break
		}
		if !s.emit(q.frame, q.way) {
			s.n.noFrames.Add(1)
			break
		}
		h.left(q.end, q.fin, true)
		s.freeHeld(q)
		any = true
	}
	if n == 0 {
		return false
	}
	h.held = h.held[:copy(h.held, h.held[n:])]
	if len(h.held) > 0 {
		h.heldAt = h.held[0].at
	}
	return any
}

// emit sends a copy of a frame on its way. False: no frame is free.
func (s *Inspector) emit(frame []byte, w way) bool {
	p := s.env.Emitter.Alloc()
	if p == nil {
		return false
	}
	off := min(p.Offset(), len(p.Frame())-len(frame))
	if !p.SetView(off, len(frame)) {
		s.env.Emitter.Release(p)
		return true // larger than what frames hold: it did not come in one
	}
	copy(p.Bytes(), frame)
	w.take(p)
	s.env.Emitter.Emit(p)
	return true
}

func (s *Inspector) freeHeld(q *held) {
	s.heldLen--
	if cap(q.frame) == heldFrame && len(s.frames) < spareFrames {
		s.frames = append(s.frames, q.frame)
	}
	*q = held{}
}

func (s *Inspector) dropHeld(h *half) {
	s.n.heldDropped.Add(uint64(len(h.held)))
	for i := range h.held {
		s.freeHeld(&h.held[i])
	}
	h.held = h.held[:0]
}

// clear gives back what a connection holds.
func (s *Inspector) clear(f *flow) {
	for d := range f.half {
		h := &f.half[d]
		s.dropHeld(h)
		s.memory.drop(&h.bytes, 0, true)
		s.freeLook(h)
	}
}

// end ends the interest in a connection that is over.
func (s *Inspector) end(f *flow, how state) {
	s.endStreams(f, f.last)
	s.clear(f)
	if !f.state.over() {
		s.active--
	}
	f.state = how
}

// deny ends a connection: both ends are reset, and what they send afterwards is
// dropped. p, which may be nil, is the packet at hand.
func (s *Inspector) deny(f *flow, p *pipeline.Packet, why pipeline.Reason) {
	s.n.denied.Add(1)
	s.counter(s.denials, "denied_", why).Add(1)
	if sim := s.env.Simulation; sim != nil && sim.Denied != nil {
		sim.Denied(&f.conn, why)
	}
	f.why = why
	for d := range f.half {
		h, o := &f.half[d], &f.half[1-d]
		seq, ack := h.seq(h.sent), o.seq(o.sent)
		if h.finSent && h.sent == h.fin {
			seq++
		}
		if o.finSent && o.sent == o.fin {
			ack++
		}
		s.sendReset(f, pipeline.Direction(d), seq, ack, true)
	}
	s.end(f, stateDenied)
	if p != nil {
		p.Drop(why)
	}
}

// sendReset resets the receiver of direction d, in the name of its sender.
func (s *Inspector) sendReset(f *flow, d pipeline.Direction, seq, ack uint32, withAck bool) {
	h, o := &f.half[d], &f.half[1-d]
	p := s.env.Emitter.Alloc()
	if p == nil {
		return // the next segment is answered
	}
	l2, n := &h.l2, int(h.l2len)
	swapped := n == 0
	if swapped {
		l2, n = &o.l2, int(o.l2len)
	}
	size := wire.IPv4Len
	if f.conn.Flow.V6 {
		size = wire.IPv6Len
	}
	if n == 0 || !p.SetView(p.Offset(), n+size+wire.TCPLen) {
		s.env.Emitter.Release(p)
		return
	}
	b := p.Bytes()
	copy(b, l2[:n])
	if swapped {
		copy(b[:6], l2[6:12])
		copy(b[6:12], l2[:6])
	}
	flow := f.conn.Flow
	if d == pipeline.ToClient {
		flow = flow.Reverse()
	}
	ttl := h.ttl
	if ttl == 0 {
		ttl = 64
	}
	ip := b[n:]
	clear(ip)
	if flow.V6 {
		h6 := wire.IPv6(ip)
		ip[0] = 0x60
		h6.SetPayloadLen(wire.TCPLen)
		h6.SetNextHeader(wire.ProtoTCP)
		h6.SetHopLimit(ttl)
		h6.SetSrc(flow.Src)
		h6.SetDst(flow.Dst)
	} else {
		h4 := wire.IPv4(ip)
		ip[0] = 0x45
		h4.SetTotalLen(size + wire.TCPLen)
		ip[6] = 0x40 // DF
		h4.SetTTL(ttl)
		ip[9] = wire.ProtoTCP
		h4.SetSrc([4]byte(flow.Src[12:]))
		h4.SetDst([4]byte(flow.Dst[12:]))
		h4.FillChecksum()
	}
	t := wire.TCP(ip[size:])
	t.SetSrcPort(flow.SrcPort)
	t.SetDstPort(flow.DstPort)
	t.SetSeq(seq)
	t.SetDataOffset(wire.TCPLen)
	t.SetFlags(wire.FlagRST)
	if withAck {
		t.SetAck(ack)
		t.SetFlags(wire.FlagRST | wire.FlagACK)
	}
	if p.Parse() != wire.FaultNone {
		s.env.Emitter.Release(p)
		return
	}
	wire.FillL4(b, &p.Headers)
	h.take(p)
	s.n.resetsSent.Add(1)
	s.env.Emitter.Emit(p)
}
