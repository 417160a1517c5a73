package stack

import (
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// open gives a leg an endpoint that connects to its end under the other one's
// name. Its SYN leaves at the end of the turn.
func (s *Stack) open(l *leg) tcpip.Error {
	e, err := s.net.NewEndpoint(tcp.ProtocolNumber, netProto(l.f.conn.Flow.V6), &l.queue)
	if err != nil {
		return err
	}
	ep := e.(*tcp.Endpoint)
	ep.SetOwner(l)
	// Named and not bound: a reservation of the port would keep nobody out, as
	// every server may be dialled from it, and takes time and memory. What finds
	// endpoints is the names of both ends.
	ep.ID.LocalAddress, ep.ID.LocalPort = l.id.LocalAddress, l.id.LocalPort
	l.ep = ep
	l.entry.Init(l, events)
	l.queue.EventRegister(&l.entry)
	err = ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: l.id.RemoteAddress, Port: l.id.RemotePort})
	if _, started := err.(*tcpip.ErrConnectStarted); err != nil && !started {
		return err
	}
	return nil
}

// accept has netstack shake hands with the client. The endpoint connects, as the
// server's does, and to it the client's SYN crosses its own (simultaneous open:
// RFC 9293, section 3.5), which goes nowhere: so it answers with a SYN-ACK.
// Netstack's listeners and forwarders would keep a goroutine waiting for each
// handshake.
func (s *Stack) accept(f *flow) tcpip.Error {
	l := &f.client
	if err := s.open(l); err != nil {
		return err
	}
	b := f.syn.deliverable(l.routeMSS(f.syn.offered.mss))
	pkt := nstack.NewPacketBuffer(nstack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	head := wire.IPv4Len
	if f.conn.Flow.V6 {
		head = wire.IPv6Len
	}
	l.parse(pkt, head, len(b)-head)
	s.fed++
	s.queue(l, pkt)
	pkt.DecRef()
	return nil
}

// checkAccept looks what became of the handshake with a client.
func (s *Stack) checkAccept(f *flow, now int64) {
	switch f.client.state() {
	case tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv:
		s.giveHeld(f)
		return
	case tcp.StateError, tcp.StateClose:
		s.n.handshakeFailed.Add(1)
		s.kill(f, now)
		return
	}
	s.keepAlive(f.client.ep)
	s.keepAlive(f.server.ep)
	f.state, f.syn = stateOpen, nil
	f.setDeadline(now, 0)
	s.pending--
	s.n.accepted.Add(1)
	for _, st := range s.o.Streams {
		if stream := st.Open(&f.conn); stream != nil {
			f.streams = append(f.streams, openStream{s: stream})
		}
	}
	f.watching = len(f.streams)
	for d := range f.dir {
		f.dir[d].d = pipeline.Direction(d)
	}
	s.wantSplice(f, now)
	s.revisit(f)
}

// orphan is what netstack asks about segments for which it has no endpoint. A
// SYN among them is no longer wanted; to any other it answers with a reset.
func (*Stack) orphan(_ nstack.TransportEndpointID, pkt *nstack.PacketBuffer) bool {
	return wire.TCP(pkt.TransportHeader().Slice()).Flags()&(wire.FlagSYN|wire.FlagACK|wire.FlagRST) == wire.FlagSYN
}
