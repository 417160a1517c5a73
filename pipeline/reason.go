package pipeline

import (
	"fmt"
	"sync"

	"penstock/internal/wire"
)

// Reason is the named cause of a drop. The names are lower_snake and stable:
// they are metric labels, JSON keys and words in the documentation.
type Reason uint16

// MaxReasons bounds how many reasons a process may define, and so the size of
// every per-reason counter table.
const MaxReasons = 256

var reasons struct {
	sync.RWMutex
	list []reasonInfo
	byID map[string]Reason
}

type reasonInfo struct{ name, help string }

// DefineReason adds a reason and is meant for package-level variables, as
// errors.New is. It panics on a duplicate or malformed name, so that a clash
// is seen when the program starts and never on the packet path.
func DefineReason(name, help string) Reason {
	reasons.Lock()
	defer reasons.Unlock()
	if reasons.byID == nil {
		reasons.byID = make(map[string]Reason)
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			panic(fmt.Sprintf("pipeline: reason %q is not lower_snake", name))
		}
	}
	if _, dup := reasons.byID[name]; dup || name == "" {
		panic(fmt.Sprintf("pipeline: reason %q is empty or defined twice", name))
	}
	if len(reasons.list) == MaxReasons {
		panic("pipeline: more than MaxReasons reasons")
	}
	r := Reason(len(reasons.list))
	reasons.list = append(reasons.list, reasonInfo{name, help})
	reasons.byID[name] = r
	return r
}

// String returns the reason's name.
func (r Reason) String() string {
	reasons.RLock()
	defer reasons.RUnlock()
	if int(r) < len(reasons.list) {
		return reasons.list[r].name
	}
	return "unknown"
}

// Help returns one sentence that says what the reason means.
func (r Reason) Help() string {
	reasons.RLock()
	defer reasons.RUnlock()
	if int(r) < len(reasons.list) {
		return reasons.list[r].help
	}
	return ""
}

// Reasons returns all reasons defined so far, in order of definition.
func Reasons() []Reason {
	reasons.RLock()
	defer reasons.RUnlock()
	all := make([]Reason, len(reasons.list))
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// The engine's own reasons. ReasonNone is zero and never counted.
var (
	ReasonNone         = DefineReason("none", "not dropped")
	ReasonNoVerdict    = DefineReason("no_verdict", "a stage returned without deciding; the engine fails closed")
	ReasonTxFull       = DefineReason("tx_full", "the transmit ring of the egress port had no room")
	ReasonNoPort       = DefineReason("no_port", "the packet was forwarded to a port that this worker does not have")
	ReasonHandoverFull = DefineReason("handover_full", "the ring to the worker that owns the flow had no room")
	ReasonNoChain      = DefineReason("no_chain", "the packet was steered to a chain that does not exist")
	ReasonIPChecksum   = DefineReason("bad_ip_checksum", "the IPv4 header checksum is wrong")
	ReasonL4Checksum   = DefineReason("bad_l4_checksum", "the TCP, UDP or ICMP checksum is wrong")
	ReasonCapturedCut  = DefineReason("captured_short", "the capture holds fewer bytes than were on the wire, and headers reach beyond them")
	ReasonStagePanic   = DefineReason("stage_panic", "a stage panicked while it looked at the batch; a bug, and logged")
	ReasonStopped      = DefineReason("stopped", "the packet was between two workers when they stopped")
)

// faultReasons maps what internal/wire says of a packet to the reason it is
// dropped with: the same name.
var faultReasons = func() (t [wire.NumFaults]Reason) {
	for f := range t {
		if wire.Fault(f) != wire.FaultNone {
			t[f] = DefineReason(wire.Fault(f).String(), "malformed packet")
		}
	}
	return t
}()

// FaultReason returns the drop reason of a parse fault.
func FaultReason(f wire.Fault) Reason {
	if int(f) < len(faultReasons) {
		return faultReasons[f]
	}
	return ReasonNone
}
