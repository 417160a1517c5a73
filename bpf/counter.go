package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// Reason says why the program did what it did with a packet. The list is bpf/include/reasons.h; README.md explains each.
type Reason uint32

// Verdict says where a packet went.
type Verdict uint32

const (
	VerdictPass   = Verdict(steerVerdictVERDICT_PASS)   // to this host's kernel
	VerdictPeer   = Verdict(steerVerdictVERDICT_PEER)   // out of the peer port
	VerdictSocket = Verdict(steerVerdictVERDICT_SOCKET) // to the AF_XDP socket of its queue
	VerdictDrop   = Verdict(steerVerdictVERDICT_DROP)
	VerdictTX     = Verdict(steerVerdictVERDICT_TX) // back out of the port it came in by: the program has answered it
)

const (
	reasonCount  = uint32(steerReasonREASON_COUNT)
	verdictCount = uint32(steerVerdictVERDICT_COUNT)
	counterSlots = reasonCount * verdictCount // per port
)

// Counter is how many packets of a port met one fate for one reason. Every packet that arrives is in exactly one counter.
//
// VerdictPeer and VerdictSocket say that the packet was handed over, not that it arrived: a full ring or a target that is down
// shows in the tracepoints xdp:xdp_redirect_err and xdp:xdp_devmap_xmit and in the socket's own statistics.
type Counter struct {
	Port    int
	Reason  Reason
	Verdict Verdict
	Packets uint64
	Bytes   uint64 // frame lengths, from the Ethernet header on; VerdictTX: of the answers
}

// Counters returns all counters that are not zero, by port, reason and verdict.
func (s *Steerer) Counters() ([]Counter, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, fmt.Errorf("read counters: %w", os.ErrClosed)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	n := len(s.opts.Ports) * int(counterSlots)
	keys, values := make([]uint32, n), make([]steerCounter, n*cpus)
	var cursor ebpf.MapBatchCursor
	got, err := s.counters.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	var out []Counter
	for i := range got {
		k := keys[i]
		c := Counter{
			Port:    int(k / counterSlots),
			Reason:  Reason(k / verdictCount % reasonCount),
			Verdict: Verdict(k % verdictCount),
		}
		for _, v := range values[i*cpus : (i+1)*cpus] {
			c.Packets += v.Packets
			c.Bytes += v.Bytes
		}
		if c.Packets > 0 {
			out = append(out, c)
		}
	}
	return out, nil
}

// names reads the enums from the object's type information, so that C and Go cannot disagree.
var names = sync.OnceValue(func() (n struct{ reasons, verdicts []string }) {
	spec, err := loadSteer()
	if err != nil {
		panic(err) // the object is compiled in
	}
	for name, list := range map[string]*[]string{"reason": &n.reasons, "verdict": &n.verdicts} {
		var e *btf.Enum
		if err := spec.Types.TypeByName(name, &e); err != nil {
			panic(err)
		}
		for _, v := range e.Values[:len(e.Values)-1] { // the last one is the count
			_, word, _ := strings.Cut(v.Name, "_")
			*list = append(*list, strings.ToLower(word))
		}
	}
	return n
})

// Reasons returns all reasons in order.
func Reasons() []Reason {
	out := make([]Reason, reasonCount)
	for i := range out {
		out[i] = Reason(i)
	}
	return out
}

// String returns the reason's name in metrics and documents, such as "flow_known".
func (r Reason) String() string {
	if n := names().reasons; int(r) < len(n) {
		return n[r]
	}
	return fmt.Sprintf("reason_%d", uint32(r))
}

// String returns "pass", "peer", "socket", "drop" or "tx".
func (v Verdict) String() string {
	if n := names().verdicts; int(v) < len(n) {
		return n[v]
	}
	return fmt.Sprintf("verdict_%d", uint32(v))
}
