package stack

import (
	"math"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// flowState is how far a connection has come. It only grows.
type flowState uint8

const (
	stateDialing   flowState = iota // our SYN is out, the server has not answered
	stateAccepting                  // the server has answered, netstack shakes hands with the client
	stateOpen                       // bytes are relayed
	stateClosing                    // both ends are done; the last FINs are being acknowledged
	stateSpliced                    // its packets are translated and forwarded; netstack is out of it
	stateClosed                     // only remembered
	stateGone                       // out of the table
)

var stateNames = [...]string{"dialing", "accepting", "established", "closing", "spliced", "closed", "gone"}

func (s flowState) String() string { return stateNames[s] }

// flow is one terminated connection. The worker owns it; netstack's goroutines
// touch only what is named at the fields.
type flow struct {
	s     *Stack
	conn  pipeline.Conn
	key   wire.Flow // in the table: canonical, without VLAN
	state flowState
	rev   bool // key is the reverse of the client's direction

	client, server leg
	dir            [2]direction // by pipeline.Direction
	streams        []openStream
	watching       int // streams that have not released the connection

	syn      *pendingSYN // until the handshakes are over
	deadline int64       // while dialing, accepting, closing or resetting; 0: none
	timed    int         // index in Stack.timed plus one; 0: not there
	// resetting is the leg that has to be reset once what the other one has
	// sent before its own reset is out.
	resetting *leg
	owing     bool     // in Stack.owing
	wish      wish     // to be spliced
	splice    *spliced // stateSpliced
	cookie    *cookie  // nil: it began with a SYN
	stamps    bool     // both connections have timestamps
	every     bool     // service looks at both directions, whatever the events
	denying   bool     // the client is being told why, the server is gone

	queued  atomic.Bool // in Stack.ready; also set by netstack's goroutines
	packets uint64
}

// pendingSYN is what is kept of the client's SYN until it is delivered.
type pendingSYN struct {
	offered  synOptions
	accepted synOptions // what the server's SYN-ACK had
	original [60]byte   // the TCP header as the client sent it
	size     int        // its length
	packet   []byte     // IP and TCP header, to be delivered
}

// leg is one of the two TCP connections: the client's or the server's. It has
// what frames toward that end look like, and what was seen of its sequence
// numbers.
type leg struct {
	f        *flow
	toServer bool // the server's leg: it is the source of what goes to the client

	ep    *tcp.Endpoint // nil: netstack has made none yet, or we have given it up
	id    nstack.TransportEndpointID
	queue waiter.Queue
	entry waiter.Entry
	// events is what netstack has notified of since the last service.
	events atomic.Uint32

	way       // to its end
	l2        [wire.EthernetLen + wire.MaxVLANs*wire.VLANTagLen]byte
	l2len     uint8
	l3len     uint8
	l3        [wire.IPv6Len]byte // IP header: addresses, and what is always the same
	ttl       uint8              // this and the next two are of the other end's last packet
	dscp      uint8              // in its place in the octet; ECN bits 0
	label     uint32
	offered   synOptions // by the other end: what a SYN toward this one may hold
	scale     uint8      // of the windows in what goes out (RFC 7323)
	mute      bool       // nothing goes out any more
	lastSYN   int64      // when our last SYN went out; 0: none, or a reset since
	gotFIN    bool       // its end has finished, and the relay has read everything
	sentFIN   bool       // netstack was told to finish
	closed    bool       // and to keep nothing for us
	firstSent bool       // iss is known
	asked     bool       // the endpoint is closed, and was asked whether by an error
	failed    bool       // it was

	track
	iss     uint32 // ours
	isn     uint32 // its end's
	sndMax  uint32 // one beyond the highest sequence number that went out
	acked   uint32 // highest acknowledgment that came in
	ackSent uint32 // acknowledgment in the last segment that went out
	written uint32 // bytes the relay gave to netstack, modulo 2^32

	waitFrom  int64  // since when acked is waitAcked
	waitAcked uint32 //
	waiting   bool   // there are bytes that the end has not acknowledged

	stamp      uint32 // of its end's last segment in order (TS.Recent of RFC 7323)
	stamped    bool   // stamp is known
	stampedAt  int64  // when stamp came
	challenged int64  // when its end was last told where we stand; 0: never

	gro      *nstack.PacketBuffer // segments to be given to netstack together
	groTail  *buffer.View         // payload that is still to be appended to gro
	groNext  uint32               // sequence number that would continue them
	groBytes int
	held     outgoing // a pure ACK that a later segment may replace; held.pkt nil: none
	unacked  uint8    // segments with data or FIN since an ACK went out
	heldTill int64    // until when it may wait; 0: for the end of the turn
}

// way is how frames reach the end of a leg. In bridge mode it is a port for
// good; a router learns it from the packets that go there.
type way struct {
	out     pipeline.PortID  // where its end is
	routing pipeline.Routing // of frames
	from    pipeline.PortID  // where packets of that direction come in
	mtu     uint16           // of the route; 0: not known
	epoch   uint32           // of the router, when it was learned
}

// learnWay takes over where a packet of the other end goes.
func (l *leg) learnWay(p *pipeline.Packet) {
	l.out, l.from, l.routing = p.Out, p.In, p.Routing
	l.epoch = l.f.s.env.Router.Epoch.Load()
	if p.RouteMTU != 0 {
		l.mtu = p.RouteMTU
	}
}

// send lets a frame go.
func (l *leg) send(p *pipeline.Packet) {
	p.Out = l.out
	if l.routing != pipeline.Bridged {
		p.Routing, p.In = l.routing, l.from
		if r := l.f.s.env.Router; l.routing == pipeline.Routed && r.Lost(l.epoch) {
			p.Out, p.Routing = r.Kernel, pipeline.Reroute
		}
	}
	l.f.s.env.Emitter.Emit(p)
}

// routeMSS is the largest segment of an offer that the route to the leg's end
// takes.
func (l *leg) routeMSS(offered uint16) uint16 {
	head := uint16(wire.IPv4Len + wire.TCPLen)
	if l.f.conn.Flow.V6 {
		head = wire.IPv6Len + wire.TCPLen
	}
	if l.mtu > head {
		return min(offered, l.mtu-head)
	}
	return offered
}

// KUID and KGID make a leg the owner of the packets that its endpoint sends,
// by which emit knows them again.
func (*leg) KUID() uint32 { return 0 }

// KGID implements tcpip.PacketOwner.
func (*leg) KGID() uint32 { return 0 }

var (
	_ tcpip.PacketOwner    = (*leg)(nil)
	_ waiter.EventListener = (*leg)(nil)
)

// events is what a leg wants to hear of from netstack.
const events = waiter.ReadableEvents | waiter.WritableEvents | waiter.EventHUp | waiter.EventErr

// NotifyEvent implements waiter.EventListener. Netstack calls it with the
// endpoint locked, on any goroutine: it only says that the flow wants service.
func (l *leg) NotifyEvent(mask waiter.EventMask) {
	if m := uint32(mask); l.events.Load()&m != m {
		l.events.Or(m)
	}
	l.f.s.enqueue(l.f)
}

// towards returns the direction whose bytes go out by this leg.
func (l *leg) towards() pipeline.Direction {
	if l.toServer {
		return pipeline.ToServer
	}
	return pipeline.ToClient
}

// state returns what netstack says of the endpoint.
func (l *leg) state() tcp.EndpointState {
	if l.ep == nil {
		return tcp.StateClose
	}
	return l.ep.EndpointState()
}

// over reports whether netstack keeps nothing of the connection but, perhaps,
// TIME_WAIT.
func (l *leg) over() bool {
	switch l.state() {
	case tcp.StateClose, tcp.StateError, tcp.StateTimeWait:
		return true
	}
	return false
}

// finished reports whether both ends have sent their FIN and ours is
// acknowledged, as seen on the wire. Netstack may not know: when it repeats a FIN
// it goes from LAST_ACK back to FIN_WAIT1, and then waits for one that it has.
func (l *leg) finished() bool { return l.gotFIN && l.sentFIN && l.acked == l.iss+l.written+2 }

// dead reports whether the connection ended otherwise than by both FINs.
//
// A closed endpoint is not dead if netstack has sent our FIN: what its end has
// sent can still be read, after TIME_WAIT too. But a reset that meets
// CLOSE_WAIT closes the endpoint as well, with an error.
func (l *leg) dead() bool {
	switch l.state() {
	case tcp.StateError:
		return true
	case tcp.StateClose:
		if l.ep == nil || !l.sentFIN {
			return !l.gotFIN || !l.sentFIN
		}
		if !l.asked {
			l.asked = true
			l.failed = l.ep.LastError() != nil
		}
		return l.failed
	}
	return false
}

// sentAll reports whether everything that the relay wrote has left at least
// once.
func (l *leg) sentAll() bool { return int32(l.sndMax-(l.iss+1)-l.written) >= 0 }

// abort resets the connection of the leg, silently if mute, and forgets the
// endpoint.
func (l *leg) abort(mute bool) {
	l.dropGRO()
	if l.ep == nil {
		return
	}
	l.mute = l.mute || mute
	ep := l.ep
	l.ep = nil
	ep.Abort()
	ep.Close() // frees what an endpoint in error keeps for its reader
}

func (l *leg) dropGRO() {
	if l.gro != nil {
		l.appendTail()
		l.gro.DecRef()
		l.gro = nil
	}
}

// saw notes what a segment that came in tells about the leg. The checksum was
// right.
func (l *leg) saw(t wire.TCP) {
	if (len(t) > t.DataOffset() || t.Flags()&wire.FlagFIN != 0) && l.unacked < math.MaxUint8 {
		l.unacked++
	}
	if t.Flags()&wire.FlagACK != 0 && l.firstSent {
		if a := t.Ack(); int32(a-l.acked) > 0 && int32(l.sndMax-a) >= 0 {
			l.acked = a
			if l.f.state == stateClosing && l.finished() {
				l.f.s.revisit(l.f)
			}
		}
	}
}

// inFlight reports whether seq is a sequence number that this leg's end may
// not have acknowledged yet.
func (l *leg) inFlight(seq uint32) bool {
	return l.firstSent && int32(seq-l.acked) >= 0 && int32(l.sndMax-seq) > 0
}

// netProto returns netstack's number of the IP version.
func netProto(v6 bool) tcpip.NetworkProtocolNumber {
	if v6 {
		return header.IPv6ProtocolNumber
	}
	return header.IPv4ProtocolNumber
}

// address converts an address of a wire.Flow.
func address(a *[16]byte, v6 bool) tcpip.Address {
	if v6 {
		return tcpip.AddrFrom16(*a)
	}
	return tcpip.AddrFrom4([4]byte(a[12:]))
}

// setDeadline puts the flow on the list that Tick looks through, or takes it
// off.
func (f *flow) setDeadline(now int64, d time.Duration) {
	s := f.s
	if d <= 0 {
		f.deadline = 0
		if f.timed == 0 {
			return
		}
		last := s.timed[len(s.timed)-1]
		s.timed[f.timed-1] = last
		last.timed = f.timed
		s.timed[len(s.timed)-1] = nil
		s.timed = s.timed[:len(s.timed)-1]
		f.timed = 0
		return
	}
	f.deadline = now + int64(d)
	if f.timed == 0 {
		s.timed = append(s.timed, f)
		f.timed = len(s.timed)
	}
}
