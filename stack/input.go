package stack

import (
	"gvisor.dev/gvisor/pkg/buffer"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// Input decides on one packet: what belongs to a connection that is terminated
// is copied and consumed; a SYN may begin one; all else continues. It may
// change the bytes of what it consumes. What it gives to netstack may wait for
// Flush.
func (s *Stack) Input(p *pipeline.Packet, now int64) {
	switch {
	case p.Proto == wire.ProtoTCP && p.HasFlow:
		s.segment(p, now)
	case p.Frag == wire.FragLater && p.Proto == wire.ProtoTCP:
		s.laterFragment(p, now)
	case p.HasFlow && (p.Proto == wire.ProtoICMP || p.Proto == wire.ProtoICMPv6):
		s.icmp(p, now)
	default:
		p.Continue()
	}
}

// segment handles a packet with a TCP header.
func (s *Stack) segment(p *pipeline.Packet, now int64) {
	t := wire.TCP(p.Bytes()[p.L4:p.End])
	flags := t.Flags()
	isSYN := flags&(wire.FlagSYN|wire.FlagACK|wire.FlagRST|wire.FlagFIN) == wire.FlagSYN
	key, reversed := tableKey(p.Flow)
	v, ok := s.flows.Get(key, now)
	if !ok {
		if isSYN && !s.closed {
			s.begin(p, t, key, reversed, now)
			return
		}
		if p.Cookie {
			s.beginCookie(p, t, key, reversed, now)
			return
		}
		s.midstream(p)
		return
	}
	f := *v
	if f.conn.Flow.VLAN != p.Flow.VLAN && !(isSYN && f.state == stateClosed) {
		// Netstack has no place for a VLAN in an endpoint's name. Nor is the flow
		// released: who takes it may not tell the two apart either.
		switch {
		case !isSYN:
			s.midstream(p)
		case s.o.OnUnsupported == Drop:
			s.n.vlanClash.Add(1)
			p.Drop(ReasonUnsupported)
		default:
			s.n.vlanClash.Add(1)
			p.Continue()
		}
		return
	}
	fromClient := reversed == f.rev
	l, to := &f.client, &f.server
	if !fromClient {
		l, to = to, l
	}
	if f.state != stateClosed && p.In != l.out && p.Routing == pipeline.Bridged {
		s.n.wrongPort.Add(1)
		p.Continue()
		return
	}
	if p.Cookie && (s.replaceable(f, fromClient) || f.state == stateSpliced && f.splice.over()) {
		// XDP has forgotten the connection before this one.
		s.n.reused.Add(1)
		s.supersede(f, now)
		s.beginCookie(p, t, key, reversed, now)
		return
	}
	cookied := f.cookie != nil && fromClient && f.state != stateSpliced
	if p.Frag != wire.FragNone {
		if cookied {
			s.cookieFragment(f, p, now)
			return
		}
		if f.state == stateSpliced {
			s.frags.Delete(fragKey(p)) // the later ones follow as they are
			s.translate(f, p, now)
			return
		}
		s.firstFragment(p, now)
		return
	}
	if !verified(p) {
		p.Drop(pipeline.ReasonL4Checksum)
		return
	}
	if f.state == stateSpliced {
		if flags&wire.FlagSYN != 0 {
			s.splicedSYN(f, p, t, fromClient, key, reversed, now)
		} else {
			s.translate(f, p, now)
		}
		return
	}
	if isSYN && s.syn(p, t, f, fromClient, key, reversed, now) {
		return
	}
	if cookied && !s.fromCookie(f, p, t) {
		return
	}
	f.packets++
	if f.state != stateDialing && l.near(t) {
		to.learn(p)
	}
	l.saw(t)
	if f.state == stateDialing && !s.whileDialing(p, t, f, fromClient, now) {
		return
	}
	if (f.state == stateAccepting || f.state == stateOpen) && !s.acceptable(l, p, t, now) {
		p.Consume()
		return
	}
	if s.splices && flags&wire.FlagSYN == 0 {
		if s.trySplice(f, l, p, t, now) {
			return
		}
		l.received(t)
	}
	p.Consume()
	s.deliver(l, p, t)
}

// midstream passes on a packet of a connection that is not terminated.
func (s *Stack) midstream(p *pipeline.Packet) {
	s.n.midstream.Add(1)
	if p.Frag == wire.FragFirst {
		s.frags.Delete(fragKey(p)) // its later fragments are to follow it
	}
	p.Continue()
}

// syn decides on a SYN of a connection that is known. False: netstack is to
// see it.
func (s *Stack) syn(p *pipeline.Packet, t wire.TCP, f *flow, fromClient bool, key wire.Flow, reversed bool, now int64) bool {
	switch {
	case s.replaceable(f, fromClient):
		s.n.reused.Add(1)
		s.supersede(f, now)
		s.begin(p, t, key, reversed, now)
	case !fromClient && f.state < stateOpen:
		// Simultaneous open and its relatives would show the stream stages
		// another connection than the one the ends have.
		p.Drop(ReasonOutOfState)
	case f.state <= stateAccepting && t.Seq() != f.client.isn:
		// The client has given up and begun again.
		s.n.dialAborted.Add(1)
		s.supersede(f, now)
		s.begin(p, t, key, reversed, now)
	case f.state <= stateAccepting:
		p.Consume() // repeated; netstack has timers of its own
	default:
		// RFC 5961: netstack challenges it. An end that has lost its connection
		// answers with a reset, and a client repeats the SYN.
		return false
	}
	return true
}

// replaceable reports whether a SYN may take the place of f: nothing is lost
// with it that an end still waits for.
func (s *Stack) replaceable(f *flow, fromClient bool) bool {
	if f.state == stateClosed {
		return true
	}
	if f.state < stateOpen || !fromClient {
		return false
	}
	c := &f.client
	switch c.state() {
	case tcp.StateTimeWait, tcp.StateClose, tcp.StateError:
		return true
	case tcp.StateLastAck, tcp.StateClosing:
		return c.acked == c.sndMax-1 // only our FIN is not acknowledged
	}
	return false
}

// learn takes over what a packet of the other end looks like, for the frames
// toward this one.
func (l *leg) learn(p *pipeline.Packet) {
	b := p.Bytes()
	switch {
	case p.Routing == pipeline.KernelRouted && l.routing == pipeline.Routed:
		return // too large for the route, say: what we send fits
	case p.Routing != pipeline.Bridged:
		l.learnWay(p)
	}
	if n := int(p.L3); n <= len(l.l2) {
		copy(l.l2[:n], b[:n])
		l.l2len = uint8(n)
	}
	if p.IPVersion == 4 {
		ip := wire.IPv4(b[p.L3:])
		l.dscp, l.ttl = ip.TOS()&^3, ip.TTL()
		return
	}
	ip := wire.IPv6(b[p.L3:])
	l.dscp, l.ttl, l.label = ip.TrafficClass()&^3, ip.HopLimit(), ip.FlowLabel()
}

// nearBy is how far from what is expected of an end its sequence numbers may be
// for its packets to be learned from.
const nearBy = 4 << 20

// near reports whether a segment may be of the leg's end. Of a packet that
// somebody invents nothing is learned: a hop limit of 1 would silence the other
// direction.
func (l *leg) near(t wire.TCP) bool {
	d := int32(t.Seq() - l.ackSent)
	return -nearBy < d && d < nearBy
}

// tableKey returns the name of a flow in the table.
func tableKey(f wire.Flow) (key wire.Flow, reversed bool) {
	f.VLAN = [wire.MaxVLANs]uint16{}
	return f.Canonical()
}

// verified reports whether the checksums of a whole TCP packet are right.
func verified(p *pipeline.Packet) bool {
	b := p.Bytes()
	if p.IPVersion == 4 && !wire.VerifyIPv4(b[p.L3:]) {
		return false
	}
	return wire.VerifyL4(b, &p.Headers)
}

// deliver gives a segment to the leg's endpoint.
func (s *Stack) deliver(l *leg, p *pipeline.Packet, t wire.TCP) {
	if l.ep == nil {
		s.inject(p.Bytes()[p.L3:p.End], p.IPVersion == 6, true)
		return
	}
	s.fed++
	if l.gro != nil && l.append(t) {
		s.n.rxMerged.Add(1)
		return
	}
	s.flushLeg(l)
	b := p.Bytes()
	pkt := nstack.NewPacketBuffer(nstack.PacketBufferOptions{Payload: buffer.MakeWithData(b[p.L3:p.End])})
	l.parse(pkt, int(p.L4-p.L3), int(p.Payload-p.L4))
	l.gro, l.groNext, l.groBytes = pkt, t.Seq()+uint32(p.End-p.Payload), int(p.End-p.Payload)
	if l.groBytes == 0 || t.Flags()&^wire.FlagPSH != wire.FlagACK {
		s.flushLeg(l)
		return
	}
	s.gro = append(s.gro, l)
}

// groMax bounds how many bytes are given to netstack as one segment.
const groMax = 60 << 10

// groView is how many bytes netstack's buffers for merged segments hold: one for
// each segment would cost more than the copy into it.
const groView = 16 << 10

// append adds a segment to those that wait, if it continues them and says the
// same otherwise.
func (l *leg) append(t wire.TCP) bool {
	have := wire.TCP(l.gro.TransportHeader().Slice())
	body := t.Payload()
	if t.Seq() != l.groNext || len(body) == 0 || l.groBytes+len(body) > groMax ||
		t.Flags()&^wire.FlagPSH != wire.FlagACK || t.Ack() != have.Ack() || t.Window() != have.Window() ||
		string(t.Options()) != string(have[wire.TCPLen:]) {
		return false
	}
	have[13] |= t[13] & byte(wire.FlagPSH)
	if l.groTail == nil || l.groTail.AvailableSize() < len(body) {
		l.appendTail()
		size := groView
		if l.groBytes < groView/4 {
			size = groView / 4 // a few segments are more common than many
		}
		l.groTail = buffer.NewView(max(size, len(body)))
	}
	l.groTail.Write(body) // it fits
	l.groNext += uint32(len(body))
	l.groBytes += len(body)
	return true
}

// appendTail adds the bytes that wait in groTail to the segment.
func (l *leg) appendTail() {
	if l.groTail != nil {
		l.gro.Data().AppendView(l.groTail)
		l.groTail = nil
	}
}

func (s *Stack) flushLeg(l *leg) {
	if l.gro == nil {
		return
	}
	l.appendTail()
	pkt := l.gro
	l.gro = nil
	s.queue(l, pkt)
	pkt.DecRef()
}

// parse marks the headers of a packet for the leg's endpoint, whose checksums
// are known to be right.
func (l *leg) parse(pkt *nstack.PacketBuffer, ip, head int) {
	pkt.NICID = nicID
	pkt.RXChecksumValidated = true
	pkt.NetworkProtocolNumber = netProto(l.f.conn.Flow.V6)
	pkt.TransportProtocolNumber = tcp.ProtocolNumber
	pkt.NetworkHeader().Consume(ip)
	pkt.TransportHeader().Consume(head)
}

// queue gives the leg's endpoint a packet that was parsed.
func (s *Stack) queue(l *leg, pkt *nstack.PacketBuffer) {
	if l.ep != nil {
		s.proto.QueuePacket(l.ep, l.id, pkt)
		s.quiesce()
	}
}

// Flush gives to netstack what Input has kept back to merge it.
func (s *Stack) Flush() {
	for i, l := range s.gro {
		s.flushLeg(l)
		s.gro[i] = nil
	}
	s.gro = s.gro[:0]
}

// inject gives an IP packet to netstack's network layer, which looks for the
// endpoint itself. verified says that its checksums are known to be right.
func (s *Stack) inject(ip []byte, v6, verified bool) {
	pkt := nstack.NewPacketBuffer(nstack.PacketBufferOptions{Payload: buffer.MakeWithData(ip)})
	pkt.RXChecksumValidated = verified
	s.fed++
	s.link.dispatcher.DeliverNetworkPacket(netProto(v6), pkt)
	pkt.DecRef()
	s.quiesce()
}
