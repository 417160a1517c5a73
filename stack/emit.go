package stack

import (
	"encoding/binary"
	"time"

	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"penstock/internal/wire"
	"penstock/pipeline"
)

const (
	// txTurn is how many frames leave in a turn at most: what fits into the
	// transmit rings, so that netstack's bursts wait here and are not lost there.
	txTurn = 128
	// synSpacing is the least time between two SYNs of one dial, unless a reset
	// was sent in between. Netstack answers a challenge ACK with a reset and
	// then repeats its SYN every few microseconds.
	synSpacing = int64(200 * time.Millisecond)
)

// transmit writes what netstack has sent into frames.
func (s *Stack) transmit(now int64) (busy bool) {
	for budget := txTurn; budget > 0; {
		if s.txAt == len(s.tx) {
			s.txAt = 0
			if s.tx = s.link.take(s.tx[:0]); len(s.tx) == 0 {
				break
			}
		}
		frames, done := s.emit(&s.tx[s.txAt], budget, now)
		budget -= frames
		busy = busy || done || frames > 0
		if !done {
			if budget > 0 {
				s.n.txNoFrame.Add(1)
			}
			break
		}
		s.releaseTx()
	}
	return s.emitHeld(now) || busy
}

// releaseTx is done with the packet at the head of the queue.
func (s *Stack) releaseTx() {
	s.link.release(&s.tx[s.txAt])
	s.txAt++
	s.txOff = 0
}

// emit writes one of netstack's packets into at most max frames and returns how
// many. done says that nothing is left of it.
func (s *Stack) emit(o *outgoing, max int, now int64) (frames int, done bool) {
	if len(o.seg) < wire.TCPLen || o.leg == nil && len(o.ip) < wire.IPv4Len {
		s.n.txOrphan.Add(1) // not TCP: netstack's own ICMP, which nobody asked for
		return 0, true
	}
	t, l := wire.TCP(o.seg), o.leg
	flags := t.Flags()
	if l == nil {
		l = s.lookup(o.ip, t)
	}
	// What netstack answers to a segment of a connection that is over is for its
	// end to hear: it may not know.
	late := l != nil && o.leg == nil && l.f.state == stateClosed && flags&wire.FlagRST != 0
	if l == nil || l.mute && !late || flags.Has(wire.FlagSYN|wire.FlagACK) && !l.shaking(t) {
		s.n.txOrphan.Add(1)
		return 0, true
	}
	if flags.Has(wire.FlagSYN|wire.FlagACK) && l.f.cookie != nil {
		s.heardCookie(l, t)
		return 0, true
	}
	if flags&(wire.FlagSYN|wire.FlagACK) == wire.FlagSYN {
		if !l.toServer {
			return 0, true // accept has it cross the client's
		}
		if !l.spaced(now) {
			s.n.synRepeats.Add(1)
			return 0, true
		}
	}
	if flags&wire.FlagRST != 0 {
		l.lastSYN = 0
	}
	if o.len == 0 && flags == wire.FlagACK && s.hold(l, o, t) {
		return 0, true
	}
	if l.held.pkt != nil && !s.settle(l, t, flags) {
		return 0, false
	}
	step := o.len
	if mss := int(o.pkt.GSOOptions.MSS); o.pkt.GSOOptions.Type != nstack.GSONone && mss > 0 {
		step = min(o.len, mss)
	}
	for frames < max {
		n := min(o.len-s.txOff, step)
		if !s.frame(l, o.pkt, t, s.txOff, n, s.txOff+n == o.len) {
			return frames, false
		}
		frames++
		s.txOff += n
		if s.txOff == o.len {
			return frames, true
		}
	}
	return frames, false
}

// lookup finds the leg that a packet without an owner goes out by: a reset.
func (s *Stack) lookup(ip []byte, t wire.TCP) *leg {
	f := wire.Flow{Proto: wire.ProtoTCP, SrcPort: t.SrcPort(), DstPort: t.DstPort()}
	if ip[0]>>4 == 4 {
		f.Src[10], f.Src[11], f.Dst[10], f.Dst[11] = 0xff, 0xff, 0xff, 0xff
		copy(f.Src[12:], wire.IPv4(ip).Src())
		copy(f.Dst[12:], wire.IPv4(ip).Dst())
	} else {
		f.V6 = true
		copy(f.Src[:], wire.IPv6(ip).Src())
		copy(f.Dst[:], wire.IPv6(ip).Dst())
	}
	key, reversed := f.Canonical()
	v, ok := s.flows.Peek(key)
	if !ok {
		return nil
	}
	if reversed == (*v).rev {
		return &(*v).server
	}
	return &(*v).client
}

// shaking reports whether a SYN-ACK belongs to the handshake under way, and not
// to one that was given up.
func (l *leg) shaking(t wire.TCP) bool {
	return !l.toServer && l.f.state == stateAccepting && t.Ack() == l.isn+1
}

// spaced reports whether a SYN may go out.
func (l *leg) spaced(now int64) bool {
	if l.lastSYN != 0 && now-l.lastSYN < synSpacing {
		return false
	}
	l.lastSYN = now
	return true
}

// frame writes one segment into a frame and emits it: n payload bytes of pkt
// from off on, behind the header t. False: no frame was free.
func (s *Stack) frame(l *leg, pkt *nstack.PacketBuffer, t wire.TCP, off, n int, last bool) bool {
	p := s.env.Emitter.Alloc()
	if p == nil {
		return false
	}
	l2, l3 := int(l.l2len), int(l.l3len)
	head := l2 + l3 + len(t)
	if !p.SetView(p.Offset(), head+n) {
		s.env.Emitter.Release(p) // netstack keeps to the MTU, and frames hold that
		return true
	}
	b := p.Bytes()
	copy(b, l.l2[:l2])
	copy(b[l2:], l.l3[:l3])
	copy(b[l2+l3:], t)
	if n > 0 {
		copyPayload(b[head:], pkt, off)
	}
	seg := wire.TCP(b[l2+l3:])
	flags := seg.Flags()
	if off > 0 {
		seg.SetSeq(t.Seq() + uint32(off))
	}
	if !last {
		flags &^= wire.FlagFIN | wire.FlagPSH
		seg.SetFlags(flags)
	}
	if flags&wire.FlagSYN != 0 {
		l.scale = mirror(seg, l.offered)
		if flags&wire.FlagACK != 0 {
			echo(seg, l.tsIn) // netstack repeats the options of the SYN that went nowhere
		}
		if !l.firstSent { // else a repetition, which may come after the answer
			l.iss, l.firstSent = seg.Seq(), true
			l.sndMax, l.acked = l.iss+1, l.iss
		}
	}
	l.sent(seg, n)
	if s.splices {
		l.offers(seg)
	}
	l.address(b[l2:], seg)
	l.send(p)
	return true
}

// sent notes what a segment that goes out says.
func (l *leg) sent(seg wire.TCP, n int) {
	flags := seg.Flags()
	if flags&wire.FlagRST != 0 {
		return
	}
	end := seg.Seq() + uint32(n)
	if flags&wire.FlagFIN != 0 {
		end++
	}
	if flags&wire.FlagSYN == 0 && int32(end-l.sndMax) > 0 {
		l.sndMax = end
	}
	if flags&wire.FlagACK != 0 {
		l.ackSent, l.unacked = seg.Ack(), 0
	}
}

// address makes an IP packet of netstack's look as if it came from the other
// end, and computes its lengths and checksums. ip has the whole packet.
func (l *leg) address(ip []byte, seg wire.TCP) {
	if c := l.f.cookie; c != nil && !l.toServer {
		c.out(seg)
	}
	var pseudo uint32
	if ip[0]>>4 == 4 {
		h := wire.IPv4(ip)
		h.SetTotalLen(len(ip))
		h.SetTTL(l.ttl)
		h.SetTOS(l.dscp)
		h.FillChecksum()
		pseudo = wire.PseudoHeader(h.Src(), h.Dst(), wire.ProtoTCP, len(seg))
	} else {
		h := wire.IPv6(ip)
		binary.BigEndian.PutUint32(ip, 6<<28|uint32(l.dscp)<<20|l.label)
		h.SetPayloadLen(len(ip) - wire.IPv6Len)
		h.SetHopLimit(l.ttl)
		pseudo = wire.PseudoHeader(h.Src(), h.Dst(), wire.ProtoTCP, len(seg))
	}
	seg.SetChecksum(0)
	seg.SetChecksum(wire.Checksum(seg, pseudo))
}

// copyPayload fills b with the packet's payload from off on.
func copyPayload(b []byte, pkt *nstack.PacketBuffer, off int) {
	views, skip := pkt.AsViewList()
	skip += pkt.HeaderSize() + off
	for v := views.Front(); v != nil && len(b) > 0; v = v.Next() {
		part := v.AsSlice()
		if skip >= len(part) {
			skip -= len(part)
			continue
		}
		n := copy(b, part[skip:])
		b, skip = b[n:], 0
	}
}

// sendACK sends an acknowledgment of our own making, with timestamps if the
// connection has them.
func (s *Stack) sendACK(l *leg, ack uint32, window uint16) {
	size := wire.TCPLen
	if l.f.stamps {
		size += 12
	}
	p, seg := s.bare(l, size)
	if p == nil {
		return
	}
	seg.SetSeq(l.sndMax)
	seg.SetAck(ack)
	seg.SetFlags(wire.FlagACK)
	seg.SetWindow(window)
	if l.f.stamps {
		o := seg.Options()
		binary.BigEndian.PutUint32(o, 0x0101080a)
		binary.BigEndian.PutUint32(o[4:], l.tsOut)
		binary.BigEndian.PutUint32(o[8:], l.tsIn)
	}
	l.ackSent, l.unacked = ack, 0
	s.emitBare(l, p, seg)
}

// sendBare sends a segment of our own making, without options or payload.
func (s *Stack) sendBare(l *leg, seq, ack uint32, flags wire.TCPFlags) {
	p, seg := s.bare(l, wire.TCPLen)
	if p == nil {
		return
	}
	seg.SetSeq(seq)
	seg.SetAck(ack)
	seg.SetFlags(flags)
	s.emitBare(l, p, seg)
}

// bare returns a frame with a TCP header of that size, all of it zero but for
// ports and size; nil: no frame was free.
func (s *Stack) bare(l *leg, size int) (*pipeline.Packet, wire.TCP) {
	p := s.env.Emitter.Alloc()
	if p == nil {
		s.n.txDropped.Add(1)
		return nil, nil
	}
	l2, l3 := int(l.l2len), int(l.l3len)
	if !p.SetView(p.Offset(), l2+l3+size) {
		s.env.Emitter.Release(p)
		return nil, nil
	}
	b := p.Bytes()
	copy(b, l.l2[:l2])
	copy(b[l2:], l.l3[:l3])
	seg := wire.TCP(b[l2+l3:])
	clear(seg)
	seg.SetSrcPort(l.id.LocalPort)
	seg.SetDstPort(l.id.RemotePort)
	seg.SetDataOffset(size)
	return p, seg
}

func (s *Stack) emitBare(l *leg, p *pipeline.Packet, seg wire.TCP) {
	l.address(p.Bytes()[l.l2len:], seg)
	l.send(p)
}
