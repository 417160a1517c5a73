package pipeline

import "penstock/internal/wire"

// PortID names a port within one appliance: the index of its [[port]] table.
type PortID uint8

// NoPort is the PortID of no port.
const NoPort PortID = 0xff

// ChainID is the index of a [[chain]] table.
type ChainID uint16

// NoChain marks a packet that nobody has steered: the worker's default chain
// takes it.
const NoChain ChainID = 0xffff

// Verdict is a stage's decision on one packet. The zero value is no decision:
// the engine drops such a packet with ReasonNoVerdict (it fails closed).
type Verdict uint8

// The verdicts.
const (
	verdictNone Verdict = iota
	Continue            // the next stage looks at it; after the last one it is forwarded
	Drop                // it ends here, with a reason
	Forward             // it leaves by port Out now; later stages do not see it
	Consume             // its bytes were copied out; the frame is recycled
)

var verdictNames = [...]string{"none", "continue", "drop", "forward", "consume"}

// String returns the verdict as it stands in documentation and captures.
func (v Verdict) String() string {
	if int(v) < len(verdictNames) {
		return verdictNames[v]
	}
	return "unknown"
}

// Packet is one frame of a Pool with the parsed view of the bytes in it. It is
// valid for a stage only during Process.
//
//	frame:  | headroom ........ | bytes, len of them | tailroom |
//	                            ^ off
type Packet struct {
	wire.Headers           // where the headers are; set by Parse
	Flow         wire.Flow // valid iff HasFlow
	Hash         uint32    // symmetric hash of Flow, from XDP or from Parse
	In, Out      PortID    // arrival port; port that Forward sends it to
	Chain        ChainID   // chain it was steered to, or NoChain
	HasFlow      bool
	Anew         bool  // a SYN after the end of the connection that had its addresses and ports; from XDP
	Cookie       bool  // a segment that gives back a good SYN cookie (SYNAnswerer); from XDP
	CookieSize   uint8 // which of the kernel's four segment sizes that stands for
	Routing      Routing
	RouteMTU     uint16 // if Routed: the largest IP packet that its route takes; 0: not known
	Time         int64  // receive time, ns since the epoch, never going back; the capture's own on replay
	Wire         int32  // length on the wire where a capture cut it; else equal to Len

	verdict  Verdict
	reason   Reason
	stage    uint8 // index of the stage that decided
	released uint8 // how many stages have let go of the flow
	tapped   int32 // its first record, while there are taps; else 0
	free     bool
	home     uint16 // pool it belongs to
	index    uint32 // frame number in the arena
	off      int32
	len      int32
	frame    []byte // the whole chunk; fixed for the life of the arena
}

// Bytes returns the frame's bytes from the Ethernet header on. They may be
// changed in place; they are not the caller's after the packet has moved on.
func (p *Packet) Bytes() []byte { return p.frame[p.off : p.off+p.len : p.off+p.len] }

// Len returns the number of bytes in the packet.
func (p *Packet) Len() int { return int(p.len) }

// Offset returns where in its frame the bytes begin.
func (p *Packet) Offset() int { return int(p.off) }

// Frame returns the whole chunk, headroom and tailroom included.
func (p *Packet) Frame() []byte { return p.frame }

// Index returns the frame's number in its arena.
func (p *Packet) Index() uint32 { return p.index }

// SetView makes n bytes at offset off of the frame the packet's bytes. It
// reports whether they lie inside the frame and changes nothing if not.
func (p *Packet) SetView(off, n int) bool {
	if off < 0 || n < 0 || off+n > len(p.frame) {
		return false
	}
	p.off, p.len, p.Wire = int32(off), int32(n), int32(n)
	return true
}

// Prepend grows the packet by n bytes at its front, out of headroom, and
// returns them. It reports false, and changes nothing, where headroom lacks.
func (p *Packet) Prepend(n int) ([]byte, bool) {
	if n < 0 || int(p.off) < n {
		return nil, false
	}
	p.off -= int32(n)
	p.len += int32(n)
	p.Wire += int32(n)
	return p.frame[p.off : int(p.off)+n], true
}

// Parse reads the headers and sets Headers, Flow, HasFlow and, where the port
// has not brought it along from XDP, Hash.
func (p *Packet) Parse() wire.Fault {
	b := p.Bytes()
	f := p.Headers.Parse(b)
	p.HasFlow = false
	if f == wire.FaultNone && p.IPVersion != 0 {
		p.Flow, p.HasFlow = p.Headers.Flow(b)
		if p.HasFlow && p.Hash == 0 {
			p.Hash = p.Flow.Hash()
		}
	}
	return f
}

// Verdict returns the decision that stands, and for Drop its reason.
func (p *Packet) Verdict() (Verdict, Reason) { return p.verdict, p.reason }

// Stage returns the index in the chain of the stage that decided.
func (p *Packet) Stage() int { return int(p.stage) }

// Live reports whether no stage has ended the packet yet.
func (p *Packet) Live() bool { return p.verdict <= Continue }

// Continue hands the packet to the next stage.
func (p *Packet) Continue() { p.verdict = Continue }

// Drop ends the packet here.
func (p *Packet) Drop(r Reason) { p.verdict, p.reason = Drop, r }

// Forward sends the packet out by port out now.
func (p *Packet) Forward(out PortID) { p.verdict, p.Out = Forward, out }

// Consume says that the stage has copied what it wanted.
func (p *Packet) Consume() { p.verdict = Consume }

// Release says that the stage has no further interest in the packet's flow, in
// either direction: it would treat every later packet as it treats this one.
// When every stage that saw the packet has released it, the flow leaves user
// space: it is forwarded, or dropped, by XDP from then on.
func (p *Packet) Release() { p.released++ }

// Released reports whether all stages that saw the packet have let go of its
// flow. It is valid after the chain has run.
func (p *Packet) Released() bool { return int(p.released) > int(p.stage) }

func (p *Packet) reset(headroom int) {
	p.verdict, p.reason, p.stage, p.released = verdictNone, ReasonNone, 0, 0
	p.In, p.Out, p.Chain, p.HasFlow, p.Hash = NoPort, NoPort, NoChain, false, 0
	p.Anew, p.Cookie, p.CookieSize = false, false, 0
	p.Routing, p.RouteMTU, p.tapped = Bridged, 0, 0
	p.off, p.len, p.Wire, p.Time = int32(headroom), 0, 0, 0
}
