package bpf

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// FlowKey is one direction of a flow.
type FlowKey struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16 // ICMP echo: the identifier, twice; protocols without ports: 0
	Proto            uint8
	VLAN             [2]uint16 // identifiers, outermost first; 0: no tag
}

// Reverse is the other direction.
func (k FlowKey) Reverse() FlowKey {
	k.Src, k.Dst = k.Dst, k.Src
	k.SrcPort, k.DstPort = k.DstPort, k.SrcPort
	return k
}

// FlowEntry is one direction of a flow that belongs to a chain. Times are CLOCK_MONOTONIC, as Now returns it.
type FlowEntry struct {
	FlowKey
	Chain    uint16 // or NoChain
	Hash     uint32 // FlowHash: equal in both directions
	Action   Action // ToChain; Bypass or Drop if the flow is offloaded; Passed
	Rewrites bool   // it was offloaded with a rewrite
	Reply    bool   // not the direction that began the flow
	InPort   int    // port the last packet of this direction arrived at, -1: none did yet
	TCPFlags uint8  // OR of all flag bytes of this direction, but for FIN and RST that its receiver would not believe
	Packets  uint64
	Bytes    uint64        // frame lengths
	Start    time.Duration // when the flow began
	LastSeen time.Duration // last packet of this direction, or Start
}

// Now is the clock of FlowEntry and Expire: CLOCK_MONOTONIC, the time since boot without suspends.
func Now() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return time.Duration(ts.Nano())
}

// FlowHash is the hash the program computes for a flow and puts before its packets: the same for both directions.
//
//	a = XOR of all 32-bit words of both addresses, read as big-endian numbers (IPv4 has one word an address)
//	b = (source port XOR destination port) << 16 | protocol
//	hash = fmix32(fmix32(a) XOR b), with fmix32 from MurmurHash3
//
// It has no key: enough to spread flows, not enough for a hash table that an attacker may fill.
func FlowHash(k FlowKey) uint32 {
	var a uint32
	for _, addr := range []netip.Addr{k.Src, k.Dst} {
		for _, w := range addrWords(addr) {
			a ^= w
		}
	}
	return fmix32(fmix32(bits.ReverseBytes32(a)) ^ (uint32(k.SrcPort^k.DstPort)<<16 | uint32(k.Proto)))
}

func fmix32(h uint32) uint32 {
	h ^= h >> 16
	h *= 0x85ebca6b
	h ^= h >> 13
	h *= 0xc2b2ae35
	h ^= h >> 16
	return h
}

// Flows calls fn for every entry (two a flow) until it returns false; fn must not call the Steerer. While packets arrive the view is not one moment's: a flow
// that begins or ends meanwhile may be missing or half there, and if the map is changed heavily an entry may come twice.
func (s *Steerer) Flows(fn func(FlowEntry) bool) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	err := s.eachFlow(func(k *steerFlowKey, v *steerFlow) bool { return fn(entryOf(k, v)) })
	if err != nil {
		return fmt.Errorf("read flows: %w", err)
	}
	return nil
}

// flowBatch is how many entries one system call reads.
const flowBatch = 4096

// eachFlow wants s.mu held.
func (s *Steerer) eachFlow(fn func(*steerFlowKey, *steerFlow) bool) error {
	if s.closed {
		return os.ErrClosed
	}
	var cursor ebpf.MapBatchCursor
	keys, values := make([]steerFlowKey, flowBatch), make([]steerFlow, flowBatch)
	for {
		n, err := s.flows.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range n {
			if !fn(&keys[i], &values[i]) {
				return nil
			}
		}
		if err != nil {
			return nil
		}
	}
}

// flow returns an entry, or nil if there is none.
func (s *Steerer) flow(k *steerFlowKey) (*steerFlow, error) {
	var v steerFlow
	err := s.flows.Lookup(k, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	return &v, err
}

func entryOf(k *steerFlowKey, v *steerFlow) FlowEntry {
	e := FlowEntry{
		FlowKey: k.key(),
		Chain:   v.Chain, Hash: v.Hash, Action: Action(uint8(v.Decision)), Rewrites: v.Decision>>decisionRewrite != 0, Reply: v.Reply != 0, InPort: int(v.InPort), TCPFlags: uint8(v.TcpFlags),
		Packets: v.Packets, Bytes: v.Bytes,
		Start: time.Duration(v.Start), LastSeen: time.Duration(v.LastSeen),
	}
	if v.InPort == noPort {
		e.InPort = -1
	}
	return e
}

// raw is the key as it stands in the map.
func (k FlowKey) raw() steerFlowKey {
	r := steerFlowKey{
		Src: addrWords(k.Src), Dst: addrWords(k.Dst), Sport: swap16(k.SrcPort), Dport: swap16(k.DstPort),
		Proto: k.Proto, Family: 6, Vlan: k.VLAN,
	}
	if k.Src.Is4() {
		r.Family = 4
	}
	return r
}

// key is the inverse of raw.
func (k *steerFlowKey) key() FlowKey {
	return FlowKey{
		Src: wordsAddr(k.Src, k.Family), Dst: wordsAddr(k.Dst, k.Family), SrcPort: swap16(k.Sport), DstPort: swap16(k.Dport),
		Proto: k.Proto, VLAN: k.Vlan,
	}
}

const noPort = 0xffff

// swap16 converts between network and host byte order: the object is for little-endian machines, and so is this package.
func swap16(v uint16) uint16 { return bits.ReverseBytes16(v) }
