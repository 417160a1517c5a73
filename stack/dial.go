package stack

import (
	"math"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// begin decides on the SYN of a connection that is not known, and dials the
// server if it is to be terminated.
func (s *Stack) begin(p *pipeline.Packet, t wire.TCP, key wire.Flow, reversed bool, now int64) {
	if why := s.cannotTerminate(p); why != nil {
		s.unsupported(p, why)
		return
	}
	if !verified(p) {
		p.Drop(pipeline.ReasonL4Checksum)
		return
	}
	offered := parseSYN(t)
	if s.o.MSSClamp > 0 {
		offered.mss = min(offered.mss, s.o.MSSClamp)
	}
	switch {
	case offered.malformed:
		p.Drop(ReasonBadOptions)
		return
	case offered.signed:
		s.unsupported(p, s.n.signed)
		return
	case s.wasBypassed(p, t):
		s.n.bypassedAgain.Add(1)
		s.bypass(p, t, now)
		return
	case s.draining:
		s.n.draining.Add(1)
		s.bypass(p, t, now)
		return
	case s.active >= s.o.MaxFlows:
		s.limit(p, t, now, s.n.flowLimit, ReasonFlowLimit)
		return
	case s.pending >= s.o.MaxPending:
		s.limit(p, t, now, s.n.pendingLimit, ReasonPendingLimit)
		return
	case s.full(&p.Flow):
		s.limit(p, t, now, s.n.clientLimit, ReasonClientLimit)
		return
	}
	place, ok := s.flows.Insert(key, now)
	if !ok {
		s.evictLingering(now)
		if place, ok = s.flows.Insert(key, now); !ok {
			s.limit(p, t, now, s.n.flowLimit, ReasonFlowLimit)
			return
		}
	}
	f := s.newFlow(p, t, offered, now)
	f.key, f.rev = key, reversed
	*place = f
	s.active++
	s.count(&p.Flow, 1)
	s.pending++
	s.crowded(now)
	if err := s.open(&f.server); err != nil {
		// Nothing has been sent yet: the ends can still do without us.
		s.n.dialFailed.Add(1)
		s.forget(f, now)
		s.bypass(p, t, now)
		return
	}
	s.n.dials.Add(1)
	f.setDeadline(now, s.o.DialTimeout)
	p.Consume()
}

// cannotTerminate returns the counter of the cause for which the connection of
// this SYN cannot be terminated without being changed, or nil.
func (s *Stack) cannotTerminate(p *pipeline.Packet) *pipeline.Counter {
	f := &p.Flow
	src, dst := f.SrcAddr(), f.DstAddr()
	plain := int32(wire.IPv6Len)
	if p.IPVersion == 4 {
		plain = wire.IPv4Len
	}
	switch {
	case p.Frag != wire.FragNone:
		return s.n.fragmentedSYN
	case p.L4-p.L3 != plain:
		return s.n.ipOptions
	case p.Routing == pipeline.KernelRouted:
		return s.n.offPort
	case !usable(src.Addr()) || !usable(dst.Addr()) || src.Port() == 0 || dst.Port() == 0 || src == dst:
		return s.n.unusable
	}
	return nil
}

// usable reports whether TCP, and netstack, can use the address.
func usable(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.Is4In6() && a != broadcast4
}

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// unsupported refuses a connection that can never be terminated.
func (s *Stack) unsupported(p *pipeline.Packet, why *pipeline.Counter) {
	why.Add(1)
	if s.o.OnUnsupported == Drop {
		p.Drop(ReasonUnsupported)
		return
	}
	p.Continue()
	p.Release()
}

// limit refuses a connection that is one too many now.
func (s *Stack) limit(p *pipeline.Packet, t wire.TCP, now int64, which *pipeline.Counter, r pipeline.Reason) {
	which.Add(1)
	if s.o.OnLimit == Drop {
		p.Drop(r)
		return
	}
	s.bypass(p, t, now)
}

const (
	// bypassCapacity is how many bypassed SYNs are remembered; the oldest make
	// room for new ones.
	bypassCapacity = 4096
	// bypassTime is how long: as long as they are repeated.
	bypassTime = 60 * time.Second
)

// bypass lets a connection pass that might have been terminated. If its SYN is
// repeated, it is bypassed again: by then the server may have answered the first
// one.
func (s *Stack) bypass(p *pipeline.Packet, t wire.TCP, now int64) {
	p.Continue()
	p.Release()
	isn, ok := s.bypassed.Insert(p.Flow, now)
	if !ok {
		s.bypassed.EvictOldest(nil)
		isn, _ = s.bypassed.Insert(p.Flow, now)
	}
	*isn = t.Seq()
}

// wasBypassed reports whether this SYN was bypassed before.
func (s *Stack) wasBypassed(p *pipeline.Packet, t wire.TCP) bool {
	if s.bypassed.Len() == 0 {
		return false
	}
	isn, ok := s.bypassed.Peek(p.Flow)
	if ok && *isn != t.Seq() {
		s.bypassed.Delete(p.Flow)
		return false
	}
	return ok
}

// newFlow makes the record of the connection that a SYN begins.
func (s *Stack) newFlow(p *pipeline.Packet, t wire.TCP, offered synOptions, now int64) *flow {
	f := &flow{s: s, state: stateDialing}
	src, dst := p.Flow.SrcAddr(), p.Flow.DstAddr()
	f.conn = pipeline.Conn{
		ID: s.nextConn(), Flow: p.Flow, Client: src, Server: dst,
		In: p.In, Depth: pipeline.DepthTerminate, Start: now,
	}
	f.packets = 1
	v6 := p.Flow.V6
	ca, sa := address(&p.Flow.Src, v6), address(&p.Flow.Dst, v6)
	f.client.f, f.server.f = f, f
	f.server.toServer = true
	f.client.id = nstack.TransportEndpointID{LocalAddress: sa, LocalPort: dst.Port(), RemoteAddress: ca, RemotePort: src.Port()}
	f.server.id = nstack.TransportEndpointID{LocalAddress: ca, LocalPort: src.Port(), RemoteAddress: sa, RemotePort: dst.Port()}
	f.client.out, f.server.out = p.In, p.Out
	f.client.fillIP()
	f.server.fillIP()
	f.client.isn = t.Seq()
	f.client.begins(t, offered.shift)
	f.server.learn(p)
	f.server.offered = offered
	// Until the server is heard of, what comes from it looks like an answer.
	f.client.learn(p)
	eth := f.client.l2[:]
	var mac [6]byte
	copy(mac[:], eth[:6])
	copy(eth[:6], eth[6:12])
	copy(eth[6:12], mac[:])
	if r := s.env.Router; r != nil {
		// Until the server is heard of, nobody knows the way to the client.
		f.client.way = way{out: r.Kernel, routing: pipeline.Reroute, from: p.Out}
	}

	syn := &pendingSYN{offered: offered, size: t.DataOffset()}
	copy(syn.original[:], t[:syn.size])
	b := p.Bytes()
	syn.packet = append(syn.packet, b[p.L3:p.Payload]...) // data in a SYN is not ours to take: it comes again
	f.syn = syn
	return f
}

// keepAlive has an endpoint probe its end. Netstack starts the timer only on an
// endpoint that is connected.
func (s *Stack) keepAlive(ep *tcp.Endpoint) {
	if s.o.KeepAlive <= 0 || ep == nil {
		return
	}
	idle := tcpip.KeepaliveIdleOption(s.o.KeepAlive)
	interval := tcpip.KeepaliveIntervalOption(min(s.o.KeepAlive, 75*time.Second))
	ep.SetSockOpt(&idle)
	ep.SetSockOpt(&interval)
	ep.SocketOptions().SetKeepAlive(true)
}

// whileDialing handles a segment that comes in while the server has not
// answered. True: netstack is to see it.
func (s *Stack) whileDialing(p *pipeline.Packet, t wire.TCP, f *flow, fromClient bool, now int64) bool {
	flags := t.Flags()
	if fromClient {
		if flags&wire.FlagRST != 0 && (t.Seq() == f.client.isn || t.Seq() == f.client.isn+1) {
			s.n.dialAborted.Add(1)
			if f.cookie != nil {
				f.cookie.told = true
			}
			s.kill(f, now)
			p.Consume()
			return false
		}
		p.Drop(ReasonOutOfState)
		return false
	}
	answers := flags&wire.FlagACK != 0 && f.server.firstSent && t.Ack() == f.server.iss+1
	if answers {
		f.client.learn(p)
	}
	if answers && flags&(wire.FlagSYN|wire.FlagRST) == wire.FlagSYN {
		// Netstack must not see what the client did not ask for: a server that
		// offers it unasked would be believed.
		offered := f.syn.offered
		if offered.mss == 0 { // a segment size is announced, not negotiated
			if offered.mss = s.o.MSSClamp; offered.mss == 0 {
				offered.mss = math.MaxUint16
			}
		}
		offered.mss = f.server.routeMSS(offered.mss)
		server := parseSYN(t)
		mirror(t, offered)
		f.syn.accepted = parseSYN(t)
		f.server.isn = t.Seq()
		f.server.begins(t, f.syn.accepted.shift)
		f.stamps = f.syn.accepted.stamps && f.syn.offered.stamps
		f.client.offered = f.syn.accepted
		if !f.syn.accepted.scale {
			f.server.scale = 0
			if f.cookie == nil {
				f.client.shift = 0
			}
		}
		if f.cookie != nil {
			f.compareCookie(server, s.synAnswer())
		}
	}
	return true
}

// checkDial looks what became of a dial.
func (s *Stack) checkDial(f *flow, now int64) {
	switch f.server.state() {
	case tcp.StateSynSent, tcp.StateSynRecv, tcp.StateConnecting:
		return
	case tcp.StateError, tcp.StateClose:
		_, refused := f.server.ep.LastError().(*tcpip.ErrConnectionRefused)
		if refused {
			s.n.dialRefused.Add(1)
			s.refuseClient(f)
		} else {
			s.n.dialTimeout.Add(1)
		}
		s.kill(f, now)
		return
	}
	f.state = stateAccepting
	f.setDeadline(now, s.o.HandshakeTimeout)
	if err := s.accept(f); err != nil {
		s.n.handshakeFailed.Add(1)
		s.kill(f, now)
	}
}

// deliverable returns the client's SYN as netstack is to see it: with the
// options that the server accepted, segments of at most mss, and without data.
func (y *pendingSYN) deliverable(mss uint16) []byte {
	var h wire.Headers
	b := y.packet
	// The lengths first: the parser checks them.
	if b[0]>>4 == 4 {
		wire.IPv4(b).SetTotalLen(len(b))
		wire.IPv4(b).FillChecksum()
	} else {
		wire.IPv6(b).SetPayloadLen(len(b) - wire.IPv6Len)
	}
	h.ParseIP(b)
	t := wire.TCP(b[h.L4:])
	t.SetFlags(wire.FlagSYN) // no ECN: netstack does not speak it
	accepted := y.accepted
	accepted.mss = mss // what the client takes, whatever the server does
	mirror(t, accepted)
	wire.FillL4(b, &h)
	return b
}

// refuseClient answers the client's SYN as the server did: with a reset.
func (s *Stack) refuseClient(f *flow) {
	if c := f.cookie; c != nil { // it has had a SYN-ACK
		if !c.told {
			s.sendBare(&f.client, c.iss+1-c.seq, f.client.isn+1, wire.FlagRST|wire.FlagACK)
		}
		c.told = true
		return
	}
	s.sendBare(&f.client, 0, f.client.isn+1, wire.FlagRST|wire.FlagACK)
}
