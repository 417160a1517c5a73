package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Action is what a rule asks for.
type Action uint8

const (
	ToChain Action = iota // both directions of the flow go to the AF_XDP socket, marked with Rule.Chain
	Bypass                // default action
	Drop

	// Passed is what some flows are, and no rule asks for: as Bypass, but it was not the chain that let the flow go. It began, or went on, while
	// the worker was silent; or it is remembered only so that what follows is not taken for midstream (NoChain).
	Passed
)

// NoChain is the FlowEntry.Chain of a flow that no rule has sent to a chain: with MidstreamDrop, TCP connections that are bypassed.
const NoChain = 0xffff

// Depth is what a chain does with TCP connections. It decides what becomes of them while its worker is silent (Options.Silence) and OnExit
// is open.
type Depth uint8

const (
	Forwards   Depth = iota // their packets pass, and the chain goes on with them later
	Inspects                // their packets pass, and they are bypassed from then on
	Terminates              // their packets are dropped, but for the SYN of one that has not begun, which is bypassed from then on
)

// Protocol numbers with a meaning of their own in rules.
const (
	ProtoICMP   = 1 // stands for ICMPv4 and ICMPv6 alike
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// PortRange is a range of TCP or UDP ports, both ends included.
type PortRange struct{ Lo, Hi uint16 }

// Rule decides on flows by their first packet. Empty lists match everything. A rule with port ranges matches TCP and UDP only.
type Rule struct {
	From     int   // port index the first packet arrives at, -1: any
	Proto    uint8 // IP protocol, 0: any
	Src, Dst []netip.Prefix
	SrcPorts []PortRange
	DstPorts []PortRange
	Action   Action
	Chain    uint16 // for ToChain
	Depth    Depth  // of the chain
}

// Entry is one flattened rule, as the program reads it.
type Entry = steerRule

// CompileRules flattens rules for a Steerer with the given number of ports: one entry for each combination of source, destination,
// source port range and destination port range, in order. It returns all problems at once; more than MaxRules entries are one.
func CompileRules(rules []Rule, ports int) ([]Entry, error) {
	var entries []Entry
	var problems []error
	for i, r := range rules {
		e, err := r.compile(ports)
		if err != nil {
			problems = append(problems, fmt.Errorf("rule %d: %w", i+1, err))
		}
		entries = append(entries, e...)
	}
	if len(entries) > MaxRules {
		problems = append(problems, fmt.Errorf("%d rules make %d entries (combinations of addresses and ports), the limit is %d",
			len(rules), len(entries), MaxRules))
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return entries, nil
}

func (r *Rule) compile(ports int) ([]Entry, error) {
	if r.From < -1 || r.From >= ports {
		return nil, fmt.Errorf("want a port from 0 to %d or -1, got %d", ports-1, r.From)
	}
	if r.Chain > maxChain {
		return nil, fmt.Errorf("want a chain from 0 to %d, got %d", maxChain, r.Chain)
	}
	if r.Action > Drop {
		return nil, fmt.Errorf("unknown action %d", r.Action)
	}
	if r.Depth > Terminates {
		return nil, fmt.Errorf("unknown depth %d", r.Depth)
	}
	hasPorts := len(r.SrcPorts)+len(r.DstPorts) > 0
	if hasPorts && r.Proto != 0 && r.Proto != ProtoTCP && r.Proto != ProtoUDP {
		return nil, fmt.Errorf("ports go with TCP and UDP only, got protocol %d", r.Proto)
	}
	srcs, err := prefixes(r.Src)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	dsts, err := prefixes(r.Dst)
	if err != nil {
		return nil, fmt.Errorf("destination: %w", err)
	}
	sports, err := ranges(r.SrcPorts)
	if err != nil {
		return nil, fmt.Errorf("source port: %w", err)
	}
	dports, err := ranges(r.DstPorts)
	if err != nil {
		return nil, fmt.Errorf("destination port: %w", err)
	}
	n := len(srcs) * len(dsts) * len(sports) * len(dports)
	if n > 1<<20 {
		return nil, fmt.Errorf("makes %d entries, the limit is %d", n, MaxRules)
	}
	entries := make([]Entry, 0, n)
	for _, src := range srcs {
		for _, dst := range dsts {
			for _, family := range families(src, dst, r.Proto) {
				for _, sp := range sports {
					for _, dp := range dports {
						entries = append(entries, r.entry(family, src, dst, sp, dp, hasPorts))
					}
				}
			}
		}
	}
	if len(entries) == 0 {
		return nil, errors.New("no source and destination of the same IP version")
	}
	return entries, nil
}

func (r *Rule) entry(family uint8, src, dst netip.Prefix, sp, dp PortRange, hasPorts bool) Entry {
	e := Entry{Chain: r.Chain, Action: uint8(r.Action), Depth: uint8(r.Depth), SportLo: sp.Lo, SportHi: sp.Hi, DportLo: dp.Lo, DportHi: dp.Hi}
	if r.From >= 0 {
		e.From, e.FromMask = uint16(r.From), 0xffff
	}
	if r.Proto != 0 {
		e.Proto, e.ProtoMask = r.Proto, 0xff
		if r.Proto == ProtoICMP && family == 6 {
			e.Proto = ProtoICMPv6
		}
	}
	if family != 0 {
		e.Family, e.FamilyMask = family, 0xff
	}
	if hasPorts {
		e.Ports = 1
	}
	e.Src, e.SrcMask = addrWords(src.Addr()), maskWords(src)
	e.Dst, e.DstMask = addrWords(dst.Addr()), maskWords(dst)
	return e
}

// families returns the IP versions (4, 6, or 0 for either) that entries are needed for. The zero prefix stands for any address.
func families(src, dst netip.Prefix, proto uint8) []uint8 {
	version := func(p netip.Prefix) uint8 {
		switch {
		case !p.IsValid():
			return 0
		case p.Addr().Is4():
			return 4
		}
		return 6
	}
	s, d := version(src), version(dst)
	switch {
	case s != 0 && d != 0 && s != d:
		return nil
	case s|d != 0:
		return []uint8{s | d}
	case proto == ProtoICMP:
		return []uint8{4, 6} // its number depends on the version
	}
	return []uint8{0}
}

func prefixes(list []netip.Prefix) ([]netip.Prefix, error) {
	if len(list) == 0 {
		return []netip.Prefix{{}}, nil
	}
	out := make([]netip.Prefix, len(list))
	for i, p := range list {
		if !p.IsValid() {
			return nil, fmt.Errorf("invalid prefix at place %d", i+1)
		}
		if p.Addr().Is4In6() {
			if p.Bits() < 96 {
				return nil, fmt.Errorf("prefix %s is half IPv4, half IPv6", p)
			}
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		out[i] = p.Masked()
	}
	return out, nil
}

func ranges(list []PortRange) ([]PortRange, error) {
	if len(list) == 0 {
		return []PortRange{{0, 0xffff}}, nil
	}
	for _, r := range list {
		if r.Lo > r.Hi {
			return nil, fmt.Errorf("range %d-%d is empty", r.Lo, r.Hi)
		}
	}
	return list, nil
}

// addrWords is an address as it stands in the maps: network byte order, IPv4 in the first word. The zero Addr is zeros.
func addrWords(a netip.Addr) (w [4]uint32) {
	var b [16]byte
	copy(b[:], a.AsSlice())
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func maskWords(p netip.Prefix) (w [4]uint32) {
	var b [16]byte
	for i := range max(p.Bits(), 0) {
		b[i/8] |= 0x80 >> (i % 8)
	}
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

// wordsAddr is the reverse of addrWords.
func wordsAddr(w [4]uint32, family uint8) netip.Addr {
	var b [16]byte
	for i := range w {
		binary.NativeEndian.PutUint32(b[4*i:], w[i])
	}
	if family == 4 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}
