package stack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// icmp handles ICMP and ICMPv6. Errors about connections that are terminated
// are about packets that netstack sent: their end would not recognise them.
func (s *Stack) icmp(p *pipeline.Packet, now int64) {
	b := p.Bytes()
	var q wire.Headers
	if !p.QuotedHeaders(b, &q) || q.Proto != wire.ProtoTCP {
		p.Continue()
		return
	}
	quoted, ok := q.Flow(b)
	if !ok {
		p.Continue()
		return
	}
	key, reversed := tableKey(quoted)
	v, ok := s.flows.Peek(key)
	if !ok || (*v).conn.Flow.VLAN != quoted.VLAN || (*v).state >= stateClosed {
		p.Continue()
		return
	}
	f := *v
	l := &f.client // netstack sent the quoted packet by this leg
	if reversed == f.rev {
		l = &f.server
	}
	if p.In != l.out && p.Routing == pipeline.Bridged {
		p.Continue()
		return
	}
	if !wire.VerifyL4(b, &p.Headers) {
		p.Drop(pipeline.ReasonL4Checksum)
		return
	}
	if f.state == stateSpliced {
		s.spliceError(f, p, l.toServer)
		return
	}
	if !l.inFlight(binary.BigEndian.Uint32(b[q.L4+4:]) - l.wireSeq()) {
		p.Drop(ReasonICMPQuote)
		return
	}
	m := wire.ICMP(b[p.L4:p.End])
	mtu, tooBig := packetTooBig(m, p.IPVersion == 6)
	switch {
	case tooBig:
		s.n.icmpMTU.Add(1)
		p.Consume()
		if l.ep != nil {
			// What netstack wants is the size without the IP header.
			l.ep.HandleError(mtuError(mtu-int(q.L4-q.L3)), nil)
		}
	case f.state == stateDialing && endsDial(m, p.IPVersion == 6):
		s.n.dialUnreachable.Add(1)
		if f.cookie != nil { // its SYN is answered: an error about it would say nothing to the client
			p.Consume()
			s.kill(f, now)
			return
		}
		s.n.icmpTranslated.Add(1)
		copy(b[q.L4:min(q.End, p.End)], f.syn.original[:f.syn.size])
		wire.FillL4(b, &p.Headers)
		s.kill(f, now)
		p.Forward(p.Out)
	default:
		s.n.icmpIgnored.Add(1)
		p.Consume()
	}
}

// The least MTUs that an ICMP error may ask for. Below, it is a forgery or a
// mistake (RFC 5927 7.2); Linux has the same floors.
const (
	minMTU4 = 552
	minMTU6 = 1280
)

// packetTooBig returns the MTU that an error reports, if it reports one.
func packetTooBig(m wire.ICMP, v6 bool) (mtu int, ok bool) {
	if v6 {
		return max(int(m.MTU6()), minMTU6), m.Type() == wire.ICMPv6PacketTooBig
	}
	return max(int(m.MTU()), minMTU4), m.Type() == wire.ICMPUnreachable && m.Code() == wire.ICMPCodeFragNeeded
}

// endsDial reports whether the client should hear of this error, and give up or
// try again as it sees fit.
func endsDial(m wire.ICMP, v6 bool) bool {
	if v6 {
		return m.Type() == wire.ICMPv6Unreachable || m.Type() == wire.ICMPv6TimeExceeded || m.Type() == wire.ICMPv6ParamProblem
	}
	return m.Type() == wire.ICMPUnreachable || m.Type() == wire.ICMPTimeExceeded || m.Type() == wire.ICMPParamProblem
}

// mtuError tells a TCP endpoint that a packet was too big: the value is the
// size of the largest IP payload that gets through.
type mtuError uint32

var _ nstack.TransportError = mtuError(0)

// Kind implements stack.TransportError.
func (mtuError) Kind() nstack.TransportErrorKind { return nstack.PacketTooBigTransportError }

// Origin implements tcpip.SockErrorCause.
func (mtuError) Origin() tcpip.SockErrOrigin { return tcpip.SockExtErrorOriginICMP }

// Type implements tcpip.SockErrorCause.
func (mtuError) Type() uint8 { return wire.ICMPUnreachable }

// Code implements tcpip.SockErrorCause.
func (mtuError) Code() uint8 { return wire.ICMPCodeFragNeeded }

// Info implements tcpip.SockErrorCause.
func (e mtuError) Info() uint32 { return uint32(e) }
