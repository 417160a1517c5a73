// Package ratelimit is the packet stage that drops what exceeds a rate: a token bucket for each source, destination or
// flow, or one for all, shared by all workers.
//
// Its one trap: a limit by source is none against forged sources.
package ratelimit

import (
	_ "embed"
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"

	"penstock/internal/match"
	"penstock/internal/wire"
	"penstock/pipeline"
)

//go:embed README.md
var readme string

// Descriptor describes the stage to the registry.
func Descriptor() pipeline.Descriptor[Config] {
	return pipeline.Descriptor[Config]{
		Kind:     "ratelimit",
		Summary:  "drops what exceeds a rate, for each source, destination or flow, or for all together",
		README:   readme,
		Reasons:  []pipeline.Reason{reasonLimited, reasonFull},
		Default:  defaults,
		Validate: validate,
		Holds:    func(Config) string { return "counts every packet" },
		New:      func(c Config, env *pipeline.Env) (pipeline.Stage, error) { return newStage(c, env) },
	}
}

type stage struct {
	*shared
	by             keyBy
	mask4          uint32
	maskHi, maskLo uint64
	packets        bool // the rate is one of packets
	dropFull       bool
	latest         int64 // ns: the latest time seen
	swept          int64 // ns: since when all buckets' times are known to be near

	unmatched, noEntry *pipeline.Counter
	entries            *pipeline.Counter // nil on all workers but the first
}

// keyBy is Config.By.
type keyBy uint8

const (
	keyAll keyBy = iota
	keySrc
	keyDst
	keyFlow
)

var keysBy = map[string]keyBy{byAll: keyAll, bySrc: keySrc, byDst: keyDst, byFlow: keyFlow}

// shared is what all workers have in common.
type shared struct {
	users atomic.Int32
	table *table
	set   *match.Set // nil: all packets
	seed  maphash.Seed
	err   error
}

var (
	_ pipeline.Ticker = (*stage)(nil)
	_ pipeline.Closer = (*stage)(nil)
)

func newStage(c Config, env *pipeline.Env) (*stage, error) {
	sh := env.Shared.Get("buckets", func() any {
		s := &shared{seed: maphash.MakeSeed()}
		if len(c.Match) > 0 {
			s.set, s.err = match.Compile(c.Match, env.Ports)
		}
		entries := c.MaxEntries
		if c.By == byAll {
			entries = 1
		}
		s.table = newTable(newPace(c.Rate.PerSecond, c.burst()), entries)
		return s
	}).(*shared)
	if sh.err != nil {
		return nil, sh.err
	}
	s := &stage{
		shared: sh, by: keysBy[c.By], packets: c.Rate.Packets, dropFull: c.OnFull == fullDrop,
		mask4:     ^uint32(0) << (32 - c.V4Prefix),
		maskHi:    ^(^uint64(0) >> min(c.V6Prefix, 64)),
		maskLo:    ^(^uint64(0) >> max(c.V6Prefix-64, 0)),
		unmatched: env.Counters.Counter("unmatched", "packets that meet no match"),
		noEntry:   env.Counters.Counter("no_entry", "packets whose key found no place"),
	}
	if entries := env.Counters.Gauge("entries", "keys that are remembered now, of all workers"); env.Worker == 0 {
		s.entries = entries
	}
	sh.users.Add(1)
	return s, nil
}

// Close implements pipeline.Closer. When the last worker ends, the buckets are forgotten: who builds the stage anew may
// live in another time.
func (s *stage) Close() error {
	if s.users.Add(-1) == 0 {
		s.table.reset()
	}
	return nil
}

// Process implements pipeline.Stage.
func (s *stage) Process(b *pipeline.Batch) {
	var unmatched, noEntry uint64
	for p := range b.Live() {
		if p.IPVersion == 0 || s.set != nil && s.set.Match(p) < 0 {
			unmatched++
			p.Continue()
			continue
		}
		n := int64(1)
		if !s.packets {
			n = int64(min(max(int(p.Wire), p.Len()), maxLen))
		}
		s.advance(p.Time)
		switch s.table.take(s.key(p), s.latest, n) {
		case within:
			p.Continue()
		case exceeded:
			p.Drop(reasonLimited)
		case noPlace:
			noEntry++
			if s.dropFull {
				p.Drop(reasonFull)
			} else {
				p.Continue()
			}
		}
	}
	if unmatched > 0 {
		s.unmatched.Add(unmatched)
	}
	if noEntry > 0 {
		s.noEntry.Add(noEntry)
	}
}

// Tick implements pipeline.Ticker.
func (s *stage) Tick(now int64) {
	s.advance(now)
	s.swept = s.latest
	s.table.sweep(s.latest, pipeline.TickInterval)
	if s.entries != nil {
		s.entries.Set(uint64(s.table.entries.Load()))
	}
}

// advance sets the clock. Ticks come often enough for buckets' times to stay comparable (see pace), but not in a replay
// of a capture with hours between its packets.
func (s *stage) advance(now int64) {
	if now <= s.latest {
		return
	}
	switch {
	case s.latest == 0:
		s.swept = now
	case now-s.latest > int64(maxRefill):
		s.table.reset() // all are full
		s.swept = now
	case now-s.swept > int64(maxRefill):
		s.table.sweepAll(now)
		s.swept = now
	}
	s.latest = now
}

// network is the key by source or destination.
type network struct {
	hi, lo uint64
	vlan   [wire.MaxVLANs]uint16
	v6     bool
}

// key returns the hash of the packet's key, which is an IP packet.
func (s *stage) key(p *pipeline.Packet) uint64 {
	switch s.by {
	case keySrc:
		return maphash.Comparable(s.seed, s.network(p, 12, 8))
	case keyDst:
		return maphash.Comparable(s.seed, s.network(p, 16, 24))
	case keyFlow:
		f := p.Flow
		if !p.HasFlow {
			f = portless(p)
		}
		f, _ = f.Canonical()
		return maphash.Comparable(s.seed, f)
	}
	return 1
}

// network returns the address at an offset of the IPv4 or IPv6 header, cut to its prefix.
func (s *stage) network(p *pipeline.Packet, at4, at6 int32) network {
	k := network{vlan: [2]uint16{p.VLAN[0] & 0x0fff, p.VLAN[1] & 0x0fff}}
	b := p.Bytes()
	if p.IPVersion == 4 {
		k.hi = uint64(binary.BigEndian.Uint32(b[p.L3+at4:]) & s.mask4)
		return k
	}
	k.v6 = true
	k.hi = binary.BigEndian.Uint64(b[p.L3+at6:]) & s.maskHi
	k.lo = binary.BigEndian.Uint64(b[p.L3+at6+8:]) & s.maskLo
	return k
}

// portless returns the flow of a packet whose transport header is not here or not known: with ports 0.
func portless(p *pipeline.Packet) (f wire.Flow) {
	b := p.Bytes()[p.L3:]
	f.Proto, f.VLAN = p.Proto, [2]uint16{p.VLAN[0] & 0x0fff, p.VLAN[1] & 0x0fff}
	if p.IPVersion == 4 {
		f.Src[10], f.Src[11], f.Dst[10], f.Dst[11] = 0xff, 0xff, 0xff, 0xff
		copy(f.Src[12:], b[12:16])
		copy(f.Dst[12:], b[16:20])
		return f
	}
	f.V6 = true
	copy(f.Src[:], b[8:24])
	copy(f.Dst[:], b[24:40])
	return f
}
