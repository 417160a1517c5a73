package inspect

import (
	"math"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// state is where a connection stands.
type state uint8

const (
	stateSYN      state = iota // the client's SYN has passed
	stateSYNACK                // the server's answer has passed
	stateOpen                  // the client has acknowledged that
	stateFinished              // both ends have finished and know of each other
	stateReleased              // nobody looks any more: packets pass
	stateReset                 // one end has reset it
	stateDenied                // it was denied
)

var stateNames = [...]string{"syn", "syn_ack", "established", "finished", "released", "reset", "denied"}

func (s state) String() string { return stateNames[s] }

// over reports whether the connection is only remembered.
func (s state) over() bool { return s >= stateFinished }

// way is where packets of a direction come in and go out.
type way struct {
	in, out pipeline.PortID
	routing pipeline.Routing
}

func wayOf(p *pipeline.Packet) way { return way{p.In, p.Out, p.Routing} }

// take lets a packet of ours go this way.
func (w way) take(p *pipeline.Packet) {
	p.Out = w.out
	if w.routing != pipeline.Bridged {
		p.In, p.Routing = w.in, w.routing
	}
}

// half is one direction of a connection: what one end sends. Positions count
// its bytes from 0, behind the SYN; the SYN is at -1.
type half struct {
	origin uint32 // sequence number of position 0
	way
	scale  uint8 // window scale that its sender has announced
	scaled bool

	next  int64 // everything before is known
	sent  int64 // everything before has passed
	ahead int64 // end of the farthest byte that has passed
	top   int64 // end of the farthest byte that is known
	acked int64 // everything before is acknowledged by the receiver
	edge  int64 // the receiver's window reaches to here
	fin   int64 // position of the FIN, -1: none yet
	bytes store

	finSent  bool // the FIN has passed
	finAcked bool
	ended    bool // the streams know
	unsynced bool // midstream: position 0 is not known yet

	decided int64  // up to here the streams have judged a connection that they released
	passed  int64  // up to here the streams let bytes go
	owed    int64  // up to here they go anyway: their sender waits for their acknowledgment
	from    int64  // position of look[0]
	look    []byte // what some stream has not let go yet, up to next
	held    []held
	islands []span // with packets that wait: what has passed ahead of sent, in order
	heldAt  int64  // since when the first one waits

	l2    [wire.EthernetLen + wire.MaxVLANs*wire.VLANTagLen]byte // link header of the sender's packets
	l2len uint8
	ttl   uint8
}

// pos returns the position of a sequence number: the one nearest to what is
// known.
func (h *half) pos(seq uint32) int64 {
	return h.next + int64(int32(seq-h.seq(h.next)))
}

// seq returns the sequence number of a position.
func (h *half) seq(pos int64) uint32 { return h.origin + uint32(pos) }

// gone returns the end of all that has passed, the FIN included.
func (h *half) gone() int64 {
	if h.finSent {
		return max(h.ahead, h.fin+1)
	}
	return h.ahead
}

// begin makes h the direction whose bytes begin at sequence number origin.
func (h *half) begin(origin uint32, p *pipeline.Packet) {
	*h = half{origin: origin, fin: -1, look: h.look[:0], held: h.held[:0], islands: h.islands[:0]}
	h.learn(p)
}

// unheard is for a direction of which nothing has been seen yet, when a packet
// of the other one has.
func (h *half) unheard(p *pipeline.Packet, r *pipeline.Router) {
	h.way, h.l2len = way{in: p.Out, out: p.In}, 0
	if r != nil {
		h.out, h.routing = r.Kernel, pipeline.Reroute
	}
}

// learn takes over what packets of the sender look like, for resets in its
// name.
func (h *half) learn(p *pipeline.Packet) {
	b := p.Bytes()
	h.way = wayOf(p)
	if n := int(p.L3); n <= len(h.l2) {
		copy(h.l2[:n], b[:n])
		h.l2len = uint8(n)
	}
	if p.IPVersion == 4 {
		h.ttl = wire.IPv4(b[p.L3:]).TTL()
	} else {
		h.ttl = wire.IPv6(b[p.L3:]).HopLimit()
	}
}

// anywhere is the edge of a window that is not known.
const anywhere = math.MaxInt64 / 2

// flow is one connection.
type flow struct {
	conn     pipeline.Conn
	key      wire.Flow // canonical
	reversed bool      // the client's packets carry the reverse of key
	state    state
	half     [2]half // by direction
	streams  []openStream
	watching int // streams that have not released it
	packets  uint64
	bytes    uint64
	last     int64           // time of the latest packet
	waiting  bool            // it is in Inspector.waiting
	why      pipeline.Reason // denied for
	again    bool            // a SYN has passed on a connection that is open:
	againISN uint32          // the answer tells whether it begins a new one
}

// openStream is one stream stage's view of a connection.
type openStream struct {
	s        pipeline.Stream
	name     string
	released bool
	shown    [2]int64 // position up to where it has seen bytes
	passed   [2]int64 // position up to where it lets them go
	ended    [2]bool
}

// holder names the first stream that has not released the flow.
func (f *flow) holder() string {
	for i := range f.streams {
		if !f.streams[i].released {
			return f.streams[i].name + " looks at it"
		}
	}
	if f.judged() {
		return "what was looked at is not acknowledged"
	}
	return ""
}

// settled reports whether the receivers have what the streams have decided on: until
// then others could come in its place.
func (f *flow) settled() bool {
	return f.half[0].acked >= f.half[0].decided && f.half[1].acked >= f.half[1].decided
}

// judged reports whether it matters what passes: to the streams, or because of what
// they have decided.
func (f *flow) judged() bool { return f.watching > 0 || f.state == stateOpen && !f.settled() }

// isSYN reports whether flags begin a connection.
func isSYN(f wire.TCPFlags) bool {
	return f&(wire.FlagSYN|wire.FlagACK|wire.FlagRST|wire.FlagFIN) == wire.FlagSYN
}
