package bpf

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"penstock/internal/rewrite"
)

// Where things are in the memory that is shared with the programs of bpf/include/table.h; a test compares with the object.
const (
	maxOffloadJobs = 256
	maxEndJobs     = 16384

	offloadHeader  = 8
	offloadJobSize = 376
	jobResult      = 44  // in struct offload_job and struct end_job
	jobBefore      = 112 // in struct offload_job

	endFrom     = 72 // in struct end_work, behind now and the timeouts
	endCount    = 84
	endHeader   = 88
	endJobSize  = 224
	endOther    = 48 // in struct end_job
	endFlow     = 96
	endCounting = endHeader + maxEndJobs*endJobSize // behind the jobs
	endFlows    = endCounting + 4                   // [maxCountedChains][numActions]uint32
	endSize     = endFlows + maxCountedChains*numActions*4 + 4

	maxCountedChains = 1024
	numActions       = 4
)

// Shifts in a decision (bpf/include/types.h).
const (
	decisionEgress     = 8
	decisionRewrite    = 16
	decisionGeneration = 40
)

var le = binary.LittleEndian

// table is how this process changes the flow table.
type table struct {
	rewrites, offloadJobs, endJobs *ebpf.Map
	offload, find, end             *ebpf.Program
	jobs, ends                     *ebpf.Memory

	mu      sync.Mutex // held while offload or end runs; guards what follows, and the memory of jobs
	slots   slots
	buf     []byte
	results [NumOffloadResults]uint64

	ending sync.Mutex // held by Expire and Evict, before mu; guards the memory of ends, and endBuf
	endBuf []byte

	counts  atomic.Pointer[FlowCounts] // of the last whole walk that counted; nil: none yet
	asked   atomic.Int64               // when somebody last wanted to know, by Now
	counted time.Duration              // when a walk last counted
}

// tablePrograms are the programs of bpf/include/table.h.
type tablePrograms struct {
	OffloadFlows  *ebpf.Program `ebpf:"offload_flows"`
	FindIdleFlows *ebpf.Program `ebpf:"find_idle_flows"`
	EndFlows      *ebpf.Program `ebpf:"end_flows"`
}

func (t *table) open(maps *steerMaps, progs *tablePrograms, slots uint32) (err error) {
	t.rewrites, t.offloadJobs, t.endJobs = maps.Rewrites, maps.OffloadJobs, maps.EndJobs
	t.offload, t.find, t.end = progs.OffloadFlows, progs.FindIdleFlows, progs.EndFlows
	t.slots = newSlots(slots)
	t.buf = make([]byte, 0, offloadJobSize)
	t.endBuf = make([]byte, max(maxOffloadJobs*endJobSize, maxCountedChains*numActions*4))
	if t.jobs, err = t.offloadJobs.Memory(); err != nil {
		return fmt.Errorf("map memory of offload jobs: %w", err)
	}
	if t.ends, err = t.endJobs.Memory(); err != nil {
		return fmt.Errorf("map memory of end jobs: %w", err)
	}
	return nil
}

func (t *table) close() {
	for _, p := range []*ebpf.Program{t.offload, t.find, t.end} {
		if p != nil {
			p.Close()
		}
	}
}

// adopt takes the flows that are in the table already for our own, those of an earlier process: their slots are in use.
func (t *table) adopt(flows func(func(*steerFlowKey, *steerFlow) bool) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := flows(func(_ *steerFlowKey, v *steerFlow) bool {
		t.slots.adopt(v.Decision)
		return true
	})
	t.slots.finishAdoption()
	return err
}

// settle makes slots free that no packet can read any more. It takes tens of milliseconds when there are any, without holding
// a lock.
func (t *table) settle(now time.Duration) {
	t.mu.Lock()
	any, n, since := t.slots.rest(now), len(t.slots.resting), t.slots.since
	t.mu.Unlock()
	if !any || barrier() != nil && now-since < restWithoutBarrier {
		return
	}
	t.mu.Lock()
	t.slots.wake(n)
	t.mu.Unlock()
}

func readUint32(m *ebpf.Memory, at int64) (uint32, error) {
	var b [4]byte
	_, err := m.ReadAt(b[:], at)
	return le.Uint32(b[:]), err
}

func readUint64(m *ebpf.Memory, at int64) (uint64, error) {
	var b [8]byte
	_, err := m.ReadAt(b[:], at)
	return le.Uint64(b[:]), err
}

func appendFlowKey(b []byte, k *steerFlowKey) []byte {
	for _, w := range k.Src {
		b = le.AppendUint32(b, w)
	}
	for _, w := range k.Dst {
		b = le.AppendUint32(b, w)
	}
	b = le.AppendUint16(b, k.Sport)
	b = le.AppendUint16(b, k.Dport)
	b = append(b, k.Proto, k.Family, 0, 0)
	b = le.AppendUint16(b, k.Vlan[0])
	return le.AppendUint16(b, k.Vlan[1])
}

func readFlowKey(b []byte) (k steerFlowKey) {
	for i := range k.Src {
		k.Src[i], k.Dst[i] = le.Uint32(b[4*i:]), le.Uint32(b[16+4*i:])
	}
	k.Sport, k.Dport = le.Uint16(b[32:]), le.Uint16(b[34:])
	k.Proto, k.Family = b[36], b[37]
	k.Vlan = [2]uint16{le.Uint16(b[40:]), le.Uint16(b[42:])}
	return k
}

// readFlow reads struct flow.
func readFlow(b []byte) (f steerFlow) {
	f.Decision, f.Start, f.LastSeen = le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:])
	f.Packets, f.Bytes = le.Uint64(b[24:]), le.Uint64(b[32:])
	f.Hash, f.TcpFlags = le.Uint32(b[40:]), le.Uint32(b[44:])
	f.Chain, f.InPort, f.Reply = le.Uint16(b[48:]), le.Uint16(b[50:]), b[52]
	return f
}

// appendRewrite appends struct rewrite.
func appendRewrite(b []byte, r *rewrite.Rule, generation uint32, other *steerFlowKey) []byte {
	src, srcFamily := rawAddr(&r.Src)
	dst, dstFamily := rawAddr(&r.Dst)
	b = le.AppendUint32(b, generation)
	b = le.AppendUint16(b, uint16(r.Flags))
	b = append(b, r.VLANs, byte(r.WindowShift))
	b = append(b, r.SrcMAC[:]...)
	b = append(b, r.DstMAC[:]...)
	b = le.AppendUint16(b, r.VLAN[0])
	b = le.AppendUint16(b, r.VLAN[1])
	b = append(b, srcFamily, dstFamily)
	b = binary.BigEndian.AppendUint16(b, r.SrcPort)
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	b = binary.BigEndian.AppendUint16(b, r.DstPort)
	b = append(b, 0, 0, 0, 0, 0, 0)
	for _, n := range [...]uint32{r.Seq, r.Ack, r.TSVal, r.TSEcr} {
		b = le.AppendUint32(b, n)
	}
	return appendFlowKey(b, other)
}

// rawAddr is an address as it stands in a packet, an IPv4 one in the first 4 bytes.
func rawAddr(a *[16]byte) (raw [16]byte, family uint8) {
	if [12]byte(a[:12]) == [12]byte{10: 0xff, 11: 0xff} {
		copy(raw[:4], a[12:])
		return raw, 4
	}
	return *a, 6
}
