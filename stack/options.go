package stack

import (
	"time"

	"penstock/pipeline"
)

// Refusal says what happens to the first packet of a connection that cannot
// be terminated.
type Refusal uint8

// The refusals.
const (
	Bypass Refusal = iota // its packets pass untouched, and no stream stage sees them
	Drop                  // its packets are dropped with the reason
)

// Options configure a Stack. DefaultOptions has a value for each.
type Options struct {
	Streams []pipeline.StreamStage // in the order in which bytes pass them

	MaxFlows   int // connections at once
	MaxPending int // connections being established at once
	// MaxFlowsPerClient bounds the connections at once of an IPv4 address, or of
	// an IPv6 /64; 0: nothing does.
	MaxFlowsPerClient int

	OnLimit       Refusal    // beyond either
	SYNCookies    CookieMode // needs Env.SYNs
	OnUnsupported Refusal    // connections that cannot be terminated without being changed

	DialTimeout       time.Duration // until the server has answered
	HandshakeTimeout  time.Duration // until the client has acknowledged our SYN-ACK
	IdleTimeout       time.Duration // without any packet; 0: never
	HalfClosedTimeout time.Duration // the same once one end has finished; 0: never
	StallTimeout      time.Duration // without the end taking any of the bytes for it; 0: never
	CloseTimeout      time.Duration // until the last bytes and FINs are acknowledged
	TimeWait          time.Duration // how long a closed connection is remembered
	KeepAlive         time.Duration // idle time after which both ends are probed; 0: never

	// Splice takes connections that no stream stage needs out of netstack: their
	// packets are translated by constants, in XDP if Env.Splicer takes them.
	Splice bool

	MSSClamp uint16        // no end is announced a larger segment size; 0: as the ends say
	AckDelay time.Duration // how long an ACK of little waits for data to carry it; 0: not at all

	SendBuffer, SendBufferMax       int // bytes of one leg: at the start, and grown to at most
	ReceiveBuffer, ReceiveBufferMax int // half of it is advertised as window
	HoldBytes                       int // bytes of one direction that stream stages may hold back
	// RACK detects losses by time too (RFC 8985), not by SACK alone (RFC 6675). Off
	// by default: once netstack has had to wait for its timer, RACK makes it hold
	// for lost what it then counts as under way (sender.SetPipe), and a burst that
	// was lost at the end of a transfer comes again by two segments to a timeout.
	RACK bool
}

// DefaultOptions returns the options as the tcp stage has them when nothing is
// configured.
func DefaultOptions() Options {
	return Options{
		MaxFlows:          65536,
		MaxPending:        1024,
		DialTimeout:       30 * time.Second,
		HandshakeTimeout:  10 * time.Second,
		IdleTimeout:       time.Hour,
		HalfClosedTimeout: 5 * time.Minute,
		StallTimeout:      time.Hour,
		CloseTimeout:      30 * time.Second,
		TimeWait:          500 * time.Millisecond,
		Splice:            true,
		AckDelay:          10 * time.Millisecond,
		SendBuffer:        256 << 10,
		SendBufferMax:     4 << 20,
		ReceiveBuffer:     512 << 10,
		ReceiveBufferMax:  4 << 20,
		HoldBytes:         64 << 10,
	}
}

// What this package drops packets for. Those that a stream stage denies a
// connection for are the stage's own, but for one.
var (
	ReasonFlowLimit    = pipeline.ReasonFlowLimit
	ReasonPendingLimit = pipeline.DefineReason("tcp_pending_limit", "a new TCP connection beyond max_pending, with on_limit = \"drop\"")
	ReasonClientLimit  = pipeline.DefineReason("tcp_client_limit", "a new TCP connection beyond max_flows_per_client, with on_limit = \"drop\"")
	ReasonUnsupported  = pipeline.DefineReason("tcp_unsupported", "a TCP connection that cannot be terminated without changing it, with on_unsupported = \"drop\"")
	ReasonBadOptions   = pipeline.DefineReason("tcp_bad_options", "a SYN whose option list is malformed")
	ReasonOutOfState   = pipeline.ReasonOutOfState
	ReasonICMPQuote    = pipeline.DefineReason("tcp_icmp_bad_quote", "an ICMP error that quotes a sequence number which was not in flight")
	ReasonHoldFull     = pipeline.ReasonHoldFull
	ReasonSplice       = pipeline.DefineReason("tcp_not_translated", "a packet of a spliced connection that cannot be translated")
)

// Reasons lists what packets and connections may end for.
func Reasons() []pipeline.Reason {
	return []pipeline.Reason{
		ReasonFlowLimit, ReasonPendingLimit, ReasonClientLimit, ReasonUnsupported, ReasonBadOptions,
		ReasonOutOfState, ReasonICMPQuote, pipeline.ReasonL4Checksum, ReasonHoldFull, ReasonSplice,
	}
}
