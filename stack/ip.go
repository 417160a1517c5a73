package stack

import (
	"gvisor.dev/gvisor/pkg/tcpip"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"penstock/internal/wire"
)

// bypassIP makes an IP protocol of netstack whose output our connections pass
// by: what it would put in front of a segment, emit writes into the frame, and
// its filters, routes and fragments are of no use to us. That is a tenth of the
// time of a request. What comes in, and what no connection of ours sends, goes
// the usual way.
func bypassIP(make nstack.NetworkProtocolFactory, l *link) nstack.NetworkProtocolFactory {
	return func(s *nstack.Stack) nstack.NetworkProtocol { return &ipProtocol{make(s), l} }
}

type ipProtocol struct {
	nstack.NetworkProtocol
	link *link
}

// NewEndpoint implements stack.NetworkProtocol.
func (p *ipProtocol) NewEndpoint(nic nstack.NetworkInterface, d nstack.TransportDispatcher) nstack.NetworkEndpoint {
	ep := p.NetworkProtocol.NewEndpoint(nic, d)
	return &ipEndpoint{ep, ep.(nstack.AddressableEndpoint), p.link}
}

// addressable is a stack.AddressableEndpoint under a name that does not collide.
type addressable = nstack.AddressableEndpoint

type ipEndpoint struct {
	nstack.NetworkEndpoint
	addressable
	link *link
}

var (
	_ nstack.NetworkEndpoint     = (*ipEndpoint)(nil)
	_ nstack.AddressableEndpoint = (*ipEndpoint)(nil)
)

// WritePacket implements stack.NetworkEndpoint.
func (e *ipEndpoint) WritePacket(r *nstack.Route, params nstack.NetworkHeaderParams, pkt *nstack.PacketBuffer) tcpip.Error {
	l, ours := pkt.Owner.(*leg)
	if !ours {
		return e.NetworkEndpoint.WritePacket(r, params, pkt)
	}
	if !e.link.send(outgoing{pkt: pkt, leg: l}) {
		return &tcpip.ErrNoBufferSpace{}
	}
	return nil
}

// fillIP writes the IP header of packets toward the leg's end, but for what
// differs from one to the next. IPv4 packets are atomic (RFC 6864): not to be
// fragmented, and without an identification.
func (l *leg) fillIP() {
	f := &l.f.conn.Flow
	from, to := &f.Src, &f.Dst
	if !l.toServer {
		from, to = to, from
	}
	if f.V6 {
		h := wire.IPv6(l.l3[:])
		h[0] = 6 << 4
		h.SetNextHeader(wire.ProtoTCP)
		h.SetSrc(*from)
		h.SetDst(*to)
		l.l3len = wire.IPv6Len
		return
	}
	h := wire.IPv4(l.l3[:])
	h[0], h[6], h[9] = 4<<4|wire.IPv4Len/4, 0x40, wire.ProtoTCP
	h.SetSrc([4]byte(from[12:]))
	h.SetDst([4]byte(to[12:]))
	l.l3len = wire.IPv4Len
}
