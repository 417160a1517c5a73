package inspect

import (
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// unknown decides on a segment of no connection that is known.
func (s *Inspector) unknown(p *pipeline.Packet, t wire.TCP, key wire.Flow, reversed bool, now int64) {
	flags := t.Flags()
	switch {
	case isSYN(flags):
		s.begin(p, t, key, reversed, now)
	case s.o.Midstream == MidstreamDrop && !flags.Has(wire.FlagRST):
		p.Drop(ReasonMidstream)
	case s.o.Midstream == MidstreamInspect && flags&(wire.FlagACK|wire.FlagSYN|wire.FlagRST) == wire.FlagACK && p.Frag == wire.FragNone:
		s.pickUp(p, t, key, reversed, now)
	default:
		s.n.midstream.Add(1)
		p.Continue()
	}
}

// begin makes a connection of a client's SYN.
func (s *Inspector) begin(p *pipeline.Packet, t wire.TCP, key wire.Flow, reversed bool, now int64) {
	switch {
	case p.Frag != wire.FragNone:
		s.n.fragmentedSYN.Add(1)
		refuse(p, s.o.OnUnsupported, ReasonFragment)
		return
	case !s.o.ChecksumsSettled && !verified(p):
		p.Drop(pipeline.ReasonL4Checksum)
		return
	case s.draining:
		s.n.draining.Add(1)
		refuse(p, Bypass, 0)
		return
	}
	f, fits := s.make(p, key, reversed, false, now)
	if f == nil {
		if fits {
			p.Continue() // no stage is interested
			p.Release()
			return
		}
		s.n.flowLimit.Add(1)
		refuse(p, s.o.OnLimit, pipeline.ReasonFlowLimit)
		return
	}
	h := &f.half[pipeline.ToServer]
	h.begin(t.Seq()+1, p)
	h.scale, h.scaled = windowScale(t)
	f.half[pipeline.ToClient].begin(t.Ack(), p)
	f.half[pipeline.ToClient].unheard(p, s.env.Router)
	f.half[pipeline.ToClient].edge = int64(t.Window()) // of a SYN: never scaled
	f.state = stateSYN
	s.pure(p)
	p.Continue()
}

// refuse lets go of a connection that is not to be followed, or drops its
// packet.
func refuse(p *pipeline.Packet, how Refusal, why pipeline.Reason) {
	if how == Drop {
		p.Drop(why)
		return
	}
	p.Continue()
	p.Release()
}

// make enters a new flow into the table and opens its streams. Without a flow,
// fits says that there was room, and no stream stage wants to see it.
func (s *Inspector) make(p *pipeline.Packet, key wire.Flow, reversed, midstream bool, now int64) (f *flow, fits bool) {
	v, ok := s.flows.Insert(key, now)
	if !ok {
		// Connections that are only remembered do not keep new ones out.
		s.flows.Expire(now, func(f **flow) time.Duration { return pressed(*f) }, 64, func(_ wire.Flow, f **flow) { s.forget(*f, now) })
		if v, ok = s.flows.Insert(key, now); !ok {
			return nil, false
		}
	}
	if n := len(s.spare); n > 0 {
		f = s.spare[n-1]
		s.spare = s.spare[:n-1]
		*f = flow{half: f.half, streams: f.streams[:0]}
	} else {
		f = &flow{}
	}
	f.key, f.reversed = key, reversed
	f.conn = pipeline.Conn{
		ID: pipeline.NewConnID(), Flow: p.Flow, Client: p.Flow.SrcAddr(), Server: p.Flow.DstAddr(),
		In: p.In, Depth: pipeline.DepthInspect, Start: p.Time, Midstream: midstream,
	}
	if c := &f.conn; midstream && p.Flow.SrcPort < p.Flow.DstPort { // servers have the lower port
		f.reversed = !reversed
		c.Flow, c.Client, c.Server, c.In = p.Flow.Reverse(), c.Server, c.Client, p.Out
	}
	if !s.open(f) {
		s.flows.Delete(key)
		s.spare = append(s.spare, f)
		return nil, true
	}
	*v = f
	s.active++
	return f, true
}

// pressed is how long a flow may stay when there is no room for another one.
func pressed(f *flow) time.Duration {
	if f.state.over() {
		return 0
	}
	return never
}

// open asks the stream stages who wants to see the connection.
func (s *Inspector) open(f *flow) bool {
	for i, stage := range s.o.Streams {
		if st := stage.Open(&f.conn); st != nil {
			f.streams = append(f.streams, openStream{s: st, name: s.o.Names[i]})
		}
	}
	f.watching = len(f.streams)
	return f.watching > 0
}

// pickUp begins to follow a connection in its middle. Neither end's window is
// known.
func (s *Inspector) pickUp(p *pipeline.Packet, t wire.TCP, key wire.Flow, reversed bool, now int64) {
	if s.draining || !s.o.ChecksumsSettled && !verified(p) {
		p.Continue()
		return
	}
	f, fits := s.make(p, key, reversed, true, now)
	if f == nil {
		if fits {
			p.Continue()
			p.Release()
			return
		}
		s.n.flowLimit.Add(1)
		refuse(p, s.o.OnLimit, pipeline.ReasonFlowLimit)
		return
	}
	s.n.midstreamInspected.Add(1)
	d := pipeline.ToServer
	if f.reversed != reversed {
		d = pipeline.ToClient
	}
	h, o := &f.half[d], &f.half[1-d]
	h.begin(t.Seq(), p)
	o.begin(t.Ack(), p)
	o.unheard(p, s.env.Router)
	h.edge, o.edge = anywhere, anywhere
	h.unsynced, o.unsynced = true, true
	f.state = stateOpen
	f.packets, f.bytes, f.last = 1, uint64(p.Len()), p.Time
	s.accept(f, d, p, t, now)
}

// syn decides on a SYN or SYN-ACK of a connection that is known.
func (s *Inspector) syn(f *flow, d pipeline.Direction, p *pipeline.Packet, t wire.TCP, now int64) {
	flags := t.Flags()
	up, down := &f.half[pipeline.ToServer], &f.half[pipeline.ToClient]
	switch {
	case d == pipeline.ToServer && !isSYN(flags), d == pipeline.ToClient && isSYN(flags):
		switch {
		case isSYN(flags) && f.state.over():
			s.restart(f, p, t, now) // the other end begins
		case f.state == stateReleased:
			p.Continue()
		default:
			// A split handshake or a simultaneous open would be read differently
			// by either end.
			p.Drop(pipeline.ReasonOutOfState)
		}
	case d == pipeline.ToServer && f.state.over():
		s.restart(f, p, t, now)
	case d == pipeline.ToServer && f.state == stateSYN:
		if t.Seq()+1 != up.origin { // the client has given up and begun again
			up.origin = t.Seq() + 1
			up.scale, up.scaled = windowScale(t)
			down.edge = int64(t.Window())
		}
		s.pure(p)
		p.Continue()
	case d == pipeline.ToServer:
		// RFC 5961: an end that knows better challenges it; one that does not
		// answers with a SYN-ACK, and then it is another connection.
		if t.Seq()+1 != up.origin {
			f.again, f.againISN = true, t.Seq()
		}
		s.pure(p)
		p.Continue()
	case flags&(wire.FlagACK|wire.FlagFIN) != wire.FlagACK:
		p.Drop(pipeline.ReasonOutOfState)
	case f.again && t.Ack() == f.againISN+1 && f.state != stateSYN:
		s.succeed(f, p, t, now)
	case f.state == stateReleased:
		p.Continue()
	case t.Ack() != up.origin:
		p.Drop(pipeline.ReasonOutOfState)
	case f.state == stateSYN:
		s.answered(f, p, t)
	case t.Seq()+1 == down.origin && f.state <= stateOpen:
		s.pure(p) // repeated
		p.Continue()
	default:
		p.Drop(pipeline.ReasonOutOfState)
	}
}

// answered takes the server's SYN-ACK.
func (s *Inspector) answered(f *flow, p *pipeline.Packet, t wire.TCP) {
	up, down := &f.half[pipeline.ToServer], &f.half[pipeline.ToClient]
	edge := down.edge
	down.begin(t.Seq()+1, p)
	down.edge = edge
	down.scale, down.scaled = windowScale(t)
	if !up.scaled || !down.scaled { // RFC 7323 2.2: both or neither
		up.scale, down.scale = 0, 0
	}
	up.edge = int64(t.Window())
	f.state = stateSYNACK
	s.pure(p)
	p.Continue()
}

// unanswered decides on a segment with an ACK between a SYN and its answer. A
// server that remembers an earlier connection challenges the SYN with one, and
// the client resets that (RFC 9293 3.5.1). A client that sends one has been
// answered where nobody saw it.
func (s *Inspector) unanswered(f *flow, d pipeline.Direction, p *pipeline.Packet, t wire.TCP) {
	switch {
	case d == pipeline.ToServer:
		s.blind(f, p, ReasonGap)
	case len(t.Payload()) == 0 && !t.Flags().Has(wire.FlagFIN):
		p.Continue()
	default:
		p.Drop(pipeline.ReasonOutOfState)
	}
}

// restart begins a new connection on the addresses and ports of one that is
// over.
func (s *Inspector) restart(f *flow, p *pipeline.Packet, t wire.TCP, now int64) {
	s.n.reused.Add(1)
	key, reversed := p.Flow.Canonical()
	s.flows.Delete(key)
	s.forget(f, now)
	s.unknown(p, t, key, reversed, now)
}

// succeed begins the connection that the server has answered a repeated SYN
// for, in the place of the one that it has forgotten.
func (s *Inspector) succeed(f *flow, p *pipeline.Packet, t wire.TCP, now int64) {
	s.n.reused.Add(1)
	conn, isn := f.conn, f.againISN
	up := f.half[pipeline.ToServer]
	s.endStreams(f, now)
	s.clear(f)
	if f.state.over() {
		s.active++
	}
	conn.ID, conn.Start, conn.Midstream = pipeline.NewConnID(), p.Time, false
	f.conn, f.again, f.streams = conn, false, f.streams[:0]
	h := &f.half[pipeline.ToServer]
	*h = half{origin: isn + 1, way: up.way, fin: -1, look: h.look[:0], held: h.held[:0], islands: h.islands[:0], l2: up.l2, l2len: up.l2len, ttl: up.ttl, scale: up.scale, scaled: up.scaled}
	f.half[pipeline.ToClient].edge = 65535
	s.open(f)
	s.answered(f, p, t)
	if f.watching == 0 {
		s.letGo(f, p)
	}
}

// windowScale returns the window scale that a SYN offers.
func windowScale(t wire.TCP) (shift uint8, ok bool) {
	for it := t.OptionIter(); it.Next(); {
		if shift, ok = it.WindowScale(); ok {
			return shift, true
		}
	}
	return 0, false
}

// pure takes out of a SYN what would carry bytes past the streams: its payload,
// which its sender repeats after the handshake, Fast Open, and Multipath TCP,
// with which both ends fall back to plain TCP.
func (s *Inspector) pure(p *pipeline.Packet) {
	b := p.Bytes()
	t := wire.TCP(b[p.L4:p.End])
	opts := t.Options()
	changed, signed := false, false
	for it := t.OptionIter(); it.Next(); {
		switch it.Kind {
		case wire.OptMD5, wire.OptAO:
			signed = true
		case wire.OptMPTCP, wire.OptFastOpen:
			if !signed {
				for i := range len(it.Value) + 2 {
					opts[it.Offset+i] = wire.OptNop
				}
				changed = true
			}
		}
	}
	if changed {
		s.n.optionsRemoved.Add(1)
	}
	if n := int(p.End - p.Payload); n > 0 {
		s.n.synData.Add(1)
		changed = true
		ip := b[p.L3:]
		if p.IPVersion == 4 {
			wire.IPv4(ip).SetTotalLen(wire.IPv4(ip).TotalLen() - n)
			wire.IPv4(ip).FillChecksum()
		} else {
			wire.IPv6(ip).SetPayloadLen(wire.IPv6(ip).PayloadLen() - n)
		}
		p.SetView(p.Offset(), int(p.Payload))
		p.Parse()
	}
	if changed {
		wire.FillL4(p.Bytes(), &p.Headers)
	}
}
