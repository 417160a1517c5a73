package inspect

import (
	"time"

	"penstock/pipeline"
)

// Refusal says what happens to what cannot be inspected.
type Refusal uint8

// The refusals.
const (
	Bypass Refusal = iota // packets pass, and no stream stage sees them
	Drop                  // packets are dropped with the reason
)

// Midstream says what happens to connections whose SYN was not seen.
type Midstream uint8

// The choices.
const (
	MidstreamBypass  Midstream = iota // they pass, unseen
	MidstreamInspect                  // their streams begin where they are
	MidstreamDrop                     // their packets are dropped
)

// Options configure an Inspector. DefaultOptions has a value for each.
type Options struct {
	Streams []pipeline.StreamStage // in the order in which bytes pass them
	Names   []string               // of their kinds

	MaxFlows      int     // connections at once
	OnLimit       Refusal // new ones beyond
	OnUnsupported Refusal // connections whose SYN cannot be read whole
	Midstream     Midstream

	Hold         bool          // packets wait until the streams let their bytes pass
	HoldBytes    int           // payload bytes of one direction that wait at most; with Hold off, that are kept for a stream
	HoldTime     time.Duration // how long a packet waits at most
	DenyConflict bool          // a connection with conflicting bytes is denied; else the later ones are dropped
	DenyBlind    bool          // a connection that can be looked at no longer is denied; else it passes unseen

	Memory     int // bytes of packets not acknowledged yet, of all connections
	FlowMemory int // of one direction of one connection

	OpenTimeout       time.Duration // until the server has answered, and until the client has answered that
	IdleTimeout       time.Duration // without any packet; 0: never
	HalfClosedTimeout time.Duration // the same once one end has finished; 0: never
	CloseTimeout      time.Duration // how long a connection that is over is remembered

	// ChecksumsSettled says that packets with wrong checksums were dropped
	// before, or are to be taken as they are.
	ChecksumsSettled bool
	// Recorded says that the packets are a recording: what the ends did with
	// them is part of it, so none waits, also with Hold.
	Recorded bool
}

// DefaultOptions returns the options as the tcp stage has them when nothing is
// configured.
func DefaultOptions() Options {
	return Options{
		MaxFlows: 65536, HoldBytes: 8 << 10, HoldTime: 10 * time.Second, DenyConflict: true,
		Memory: 256 << 20, FlowMemory: 8 << 20,
		OpenTimeout: 30 * time.Second, IdleTimeout: time.Hour, HalfClosedTimeout: 5 * time.Minute, CloseTimeout: 30 * time.Second,
	}
}

// What packets are dropped for, connections are denied for, and sight ends for.
var (
	ReasonMidstream   = pipeline.DefineReason("tcp_midstream", "a segment of a connection whose SYN was not seen, with midstream = \"drop\"")
	ReasonWindow      = pipeline.DefineReason("tcp_out_of_window", "a segment outside of the window that its receiver has offered")
	ReasonConflict    = pipeline.DefineReason("tcp_conflict", "bytes, or an end of bytes, that differ from what has passed at the same place")
	ReasonAfterReset  = pipeline.DefineReason("tcp_after_reset", "a segment of a connection that was reset")
	ReasonGap         = pipeline.DefineReason("tcp_gap", "the receiver has bytes that never came by")
	ReasonMemory      = pipeline.DefineReason("tcp_memory_limit", "more bytes are on their way than memory or flow_memory allow to remember")
	ReasonFragment    = pipeline.DefineReason("tcp_fragmented", "a segment in IP fragments, which are not put together at this depth")
	ReasonSilent      = pipeline.DefineReason("worker_silent", "packets of the connection went past the worker while that was silent; it is bypassed")
	ReasonHoldTimeout = pipeline.DefineReason("stream_hold_timeout", "a packet waited longer than hold_time for the stream stages")
)

// Reasons lists what packets and connections may end for.
func Reasons() []pipeline.Reason {
	return []pipeline.Reason{
		ReasonMidstream, ReasonWindow, ReasonConflict, ReasonAfterReset, ReasonGap, ReasonMemory, ReasonFragment, ReasonHoldTimeout, ReasonSilent,
		pipeline.ReasonFlowLimit, pipeline.ReasonOutOfState, pipeline.ReasonL4Checksum, pipeline.ReasonHoldFull,
	}
}
