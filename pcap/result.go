package pcap

import (
	"io"
	"log/slog"
	"time"

	"penstock/pipeline"
	"penstock/pipeline/fault"
)

// ReplayOptions configure a Replay.
type ReplayOptions struct {
	Name  string              // of the capture; Open takes it if In is nil
	In    io.Reader           // the capture itself
	Out   io.Writer           // pcapng of the packets that left, by egress port; may be nil
	Chain *pipeline.ChainSpec // nil: no stages
	Ports [2]string           // names; "client" and "server" if empty

	// AcceptBadChecksums takes packets with wrong checksums as they are:
	// captures of hosts that leave checksums to the NIC have them.
	AcceptBadChecksums bool

	// Speed is 0 for as fast as possible, 1 for the capture's own timing, 2
	// for twice as fast. The result does not depend on it.
	Speed float64

	// Faults strike what comes from the capture and what leaves, at each port.
	// Result.Packets and Added together are what the workers received and what
	// was lost before they could.
	Faults fault.Options

	// Workers is how many instances of the chain share the flows, as they do
	// on a NIC with as many queues; 1 if 0. They take turns on one goroutine,
	// so that the result depends on nothing but capture and chain.
	Workers int

	Clock    *Clock            // shows the capture's time; may be nil
	Recorder pipeline.Recorder // takes events; may be nil
	Log      *slog.Logger      // of the stages; may be nil
	Progress func(Progress)    // called now and then, and at the end; may be nil
	Outcome  func(o *Outcome)  // called for every packet; may be nil
}

// Progress says how far a replay has come.
type Progress struct {
	Packets uint64
	Offset  int64     // bytes of the capture read
	Time    time.Time // of the latest packet
}

// Outcome is what became of one packet. Packet and its bytes are as the chain
// has left them and must not be kept.
type Outcome struct {
	Number  uint64 // of the packet in the capture, from 1; 0 for one that a stage made
	Time    int64  // as captured, ns since the epoch
	Packet  *pipeline.Packet
	Verdict pipeline.Verdict
	Reason  pipeline.Reason // valid iff Verdict is Drop
}

// Result is what a replay did. Packets + Added = Forwarded + Consumed + the sum of
// Dropped. Two replays of the same capture through the same chain differ in
// Seconds only.
type Result struct {
	Packets   uint64            `json:"packets"` // read from the capture
	Bytes     uint64            `json:"bytes"`   // of those, on the wire
	Forwarded uint64            `json:"forwarded"`
	Consumed  uint64            `json:"consumed"`
	Dropped   map[string]uint64 `json:"dropped"`
	Flows     uint64            `json:"flows"`   // 5-tuples, both directions together
	Seconds   float64           `json:"seconds"` // it took

	Added         uint64                       `json:"added,omitempty"`  // packets that faults made: copies and ICMP errors
	Faults        map[string]map[string]uint64 `json:"faults,omitempty"` // by port
	Emitted       uint64                       `json:"emitted"`          // packets of the stages' own making
	EmitLost      uint64                       `json:"emit_lost"`
	BadChecksums  uint64                       `json:"bad_checksums"`
	CapturedShort uint64                       `json:"captured_short"` // packets that were longer on the wire
	First         string                       `json:"first,omitempty"`
	Last          string                       `json:"last,omitempty"` // RFC 3339, UTC
	SpanSeconds   float64                      `json:"span_seconds"`   // from First to Last
	Chain         *pipeline.ChainStats         `json:"chain,omitempty"`
	Error         string                       `json:"error,omitempty"` // why the capture was not read to its end
}

func (r *Result) accounted() uint64 {
	return pipeline.Totals{Dropped: r.Dropped}.DroppedTotal() + r.Forwarded + r.Consumed
}

func (r *replay) result() Result {
	res := Result{
		Packets: r.feed.packets, Bytes: r.feed.bytes, Forwarded: r.totals.Forwarded, Consumed: r.totals.Consumed,
		Dropped: r.totals.Dropped, Flows: r.feed.Flows(), Emitted: r.totals.Emitted, EmitLost: r.totals.EmitLost,
		BadChecksums: r.badSums, CapturedShort: r.feed.short, Chain: r.chain,
	}
	if res.Dropped == nil {
		res.Dropped = map[string]uint64{}
	}
	r.addFaults(&res)
	if res.Packets > 0 {
		res.First, res.Last = stamp(r.feed.first), stamp(r.feed.last)
		res.SpanSeconds = float64(r.feed.last-r.feed.first) / 1e9
	}
	return res
}

// addFaults takes over what the faults of the ports did.
func (r *replay) addFaults(res *Result) {
	for i, p := range r.faults {
		name := r.feed.o.Names[i%2]
		if res.Faults == nil {
			res.Faults = map[string]map[string]uint64{}
		}
		if res.Faults[name] == nil {
			res.Faults[name] = map[string]uint64{}
		}
		for k, n := range p.Stats().Extra {
			res.Faults[name][k] += n
		}
		in, out := p.Received(), p.Transmitted()
		for reason, n := range map[pipeline.Reason]uint64{
			fault.ReasonLoss: in.Lost, fault.ReasonMTU: in.TooBig, fault.ReasonStopped: in.Stopped,
		} {
			if n > 0 {
				res.Dropped[reason.String()] += n
			}
		}
		res.Added += in.Duplicated + out.Told // the answer to what is too big to leave comes in
	}
}

func stamp(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }
