package pipeline

import (
	"net/netip"
	"sync/atomic"

	"penstock/internal/wire"
)

// Direction is a direction of a connection.
type Direction uint8

// The two directions of a connection.
const (
	ToServer Direction = iota
	ToClient
)

// String returns "to_server" or "to_client".
func (d Direction) String() string {
	if d == ToServer {
		return "to_server"
	}
	return "to_client"
}

// Depth says how deep a flow is in user space (DESIGN.md section 1).
type Depth uint8

// The depths, lowest cost first.
const (
	DepthOffload Depth = iota
	DepthForward
	DepthInspect
	DepthTerminate
)

var depthNames = [...]string{"offload", "forward", "inspect", "terminate"}

// String returns the depth's name in configuration and figures.
func (d Depth) String() string {
	if int(d) < len(depthNames) {
		return depthNames[d]
	}
	return "unknown"
}

// Need says what a stream stage does with the connections it is shown. The
// boundary picks the depth from what the stages behind it need.
type Need uint8

// The needs, the least first.
const (
	NeedNothing Need = iota // no stream stage is there
	NeedObserve             // it reads: bytes may pass while it looks at them
	NeedDeny                // it may end a connection: bytes wait until it lets them pass
	NeedChange              // it answers in an end's place, or changes bytes: only DepthTerminate
)

var needNames = [...]string{"nothing", "observe", "deny", "change"}

// String returns "nothing", "observe", "deny" or "change".
func (n Need) String() string {
	if int(n) < len(needNames) {
		return needNames[n]
	}
	return "unknown"
}

// Conn is what stream stages know of the TCP connection they are shown.
type Conn struct {
	ID             uint64 // unique within the process: NewConnID
	Flow           wire.Flow
	Client, Server netip.AddrPort
	In             PortID // port on the client's side
	Depth          Depth  // DepthInspect or DepthTerminate
	Start          int64  // ns since the epoch: when the client's SYN came
	// Midstream says that the connection was open before it was seen: its
	// streams begin anywhere, Start is when the first packet came, and which
	// end is the client is a guess by the ports.
	Midstream bool
}

var connIDs atomic.Uint64

// NewConnID returns the next Conn.ID.
func NewConnID() uint64 { return connIDs.Add(1) }

// StreamStage is a step behind the tcp stage: it is shown connections as two
// ordered streams of bytes instead of packets.
type StreamStage interface {
	// Open returns what looks at this connection, or nil if the stage has no
	// interest in it.
	Open(c *Conn) Stream
}

// Stream looks at one connection. It runs on the worker's goroutine and must
// not block. It stays the same at inspect and at terminate depth.
type Stream interface {
	// Data shows the bytes of direction d that have not been passed on yet,
	// oldest first, and returns how many of them may go on now. What it holds
	// back it is shown again, with more behind it if more has come, whenever
	// there is news in either direction; how much can be held is bounded, and
	// a stream that holds more is denied with a reason. b is valid only during
	// the call and must not be changed.
	Data(d Direction, b []byte, now int64) (pass int, v StreamVerdict)

	// End says that the sender of direction d has finished and all its bytes
	// were shown. Bytes that are held still are passed on afterwards, unless
	// the verdict denies.
	End(d Direction, now int64) StreamVerdict

	// Close says that the connection is over, for whatever cause. It is called
	// exactly once, also for a stream that was released or has denied.
	Close(now int64)
}

// SightLoser is a Stream that wants to know that its sight ends while the
// connection goes on: at DepthInspect packets may pass where nobody can look at
// them. LoseSight is called at most once, before Close, and no Data or End
// comes after it.
type SightLoser interface {
	LoseSight(why Reason, now int64)
}

// StreamAction is what a Stream wants to happen to its connection.
type StreamAction uint8

// The actions. StreamContinue is the zero value: go on showing bytes.
const (
	StreamContinue StreamAction = iota
	StreamRelease               // no further interest: all bytes pass from here on
	StreamDeny                  // the connection ends here
)

// StreamVerdict is a Stream's decision.
type StreamVerdict struct {
	Action StreamAction
	Reason Reason // why it was denied
	// Reply is sent to the client before the connection is closed in good
	// order; only at terminate depth. Without a reply the connection is reset.
	Reply []byte
}

// Reasons that connections and their packets end for at either depth.
var (
	ReasonFlowLimit  = DefineReason("tcp_flow_limit", "a new TCP connection beyond max_flows, with on_limit = \"drop\"")
	ReasonOutOfState = DefineReason("tcp_out_of_state", "a segment that makes no sense in the state of its connection")
	ReasonHoldFull   = DefineReason("stream_hold_full", "a stream stage held back more than it may")
)
