package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Sizes of the gate unless Options say otherwise.
const (
	DefaultGateEntries = 262144 // of each IP version
	DefaultGateSources = 65536
)

// GateList is one of the gate's lists. A source on GateAllow is not looked up on GateDeny, and has no rates.
type GateList uint8

// The lists (enum gate_list).
const (
	GateDeny GateList = iota
	GateAllow
)

// GateKey is a prefix on a list.
type GateKey struct {
	Prefix netip.Prefix // masked; IPv4 as such, not mapped
	List   GateList
}

// GateEntry is an entry of a list.
type GateEntry struct {
	GateKey
	Expires time.Duration // CLOCK_MONOTONIC (Now); 0: never
	Hits    uint64        // packets that this entry, the longest one that counted, has decided on
}

// GateScreens are checks that need no list. Each drops packets under the reason of its name.
type GateScreens uint32

// The screens (enum gate_flag).
const (
	ScreenLand      GateScreens = 1 << (5 + iota) // gate_land
	ScreenFlags                                   // gate_tcp_flags
	ScreenSource                                  // gate_source
	ScreenFragments                               // gate_tiny_fragment
	ScreenLengths                                 // gate_length
	ScreenOptions                                 // gate_ip_options
)

// The other flags of the settings (enum gate_flag).
const (
	gateList4       = 1 << 0
	gateList6       = 1 << 1
	gateRatePackets = 1 << 2 // and the two after it: bytes, SYNs
)

// GateRates limit each source: a prefix of its address. A rate of 0 is none.
type GateRates struct {
	Packets, Bytes, SYNs float64       // a second; at least 1 packet, 1000 bytes, 1 SYN
	Burst                time.Duration // how long's worth of its rate a source may use at once; 0: one second
	Prefix4, Prefix6     int           // 0: 32 and 64
}

// GateSettings are all of the gate but the lists.
type GateSettings struct {
	Screens GateScreens
	Rates   GateRates
}

// GateChange is what changes at once: every packet sees all of it or nothing.
type GateChange struct {
	Settings *GateSettings // nil: as they are
	Add      []GateEntry   // Hits do not count. An entry that is there gets the new expiry
	Remove   []GateKey     // what is not there is no error

	// Commit, if there is one, is called when nothing of the change can fail any more and no packet has seen it. An error takes the
	// change back.
	Commit func() error
}

// gate is the part of a Steerer that keeps the gate's maps.
type gate struct {
	mu       sync.Mutex // one change at a time
	epoch    uint64
	seed     uint64
	settings GateSettings
	have     map[GateKey]time.Duration // all entries, with their expiry
	count    [2]int                    // of them, IPv4 and IPv6
	index    gateIndex
	limit    int    // entries of an IP version
	sets     uint32 // of sources, less one

	epochs, options, list4, list6 *ebpf.Map
}

// gateMaps returns the gate's maps by their names in the object.
func gateMaps(m *steerMaps) map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		"gate_epoch": m.GateEpoch, "gate_options": m.GateOptions, "gate_list4": m.GateList4, "gate_list6": m.GateList6,
		"gate_dir4": m.GateDir4, "gate_codes": m.GateCodes, "gate_slots6": m.GateSlots6, "gate_sources": m.GateSources,
	}
}

// open takes the maps over as they are: new ones are empty, others have what an earlier process put in them.
func (g *gate) open(obj *steerMaps) error {
	g.epochs, g.options, g.list4, g.list6 = obj.GateEpoch, obj.GateOptions, obj.GateList4, obj.GateList6
	g.limit, g.sets = int(g.list4.MaxEntries()), obj.GateSources.MaxEntries()-1
	g.have, g.seed = map[GateKey]time.Duration{}, rand.Uint64()
	if err := g.epochs.Lookup(uint32(0), &g.epoch); err != nil {
		return fmt.Errorf("read gate: %w", err)
	}
	if err := g.index.open(obj.GateDir4, obj.GateCodes, obj.GateSlots6); err != nil {
		return fmt.Errorf("read gate: %w", err)
	}
	// A change that was cut short: what was to be added never counted, what was to go counts no more.
	var cut []GateKey
	err := g.each(func(k GateKey, v *steerGateEntry) {
		if v.Born > g.epoch || v.Dead != 0 && v.Dead <= g.epoch {
			cut = append(cut, k)
			return
		}
		g.have[k] = time.Duration(v.Expires)
		g.count[version(k)]++
		g.index.add(k)
	})
	if err != nil {
		return fmt.Errorf("read gate: %w", err)
	}
	if err := errors.Join(g.delete(cut), g.index.flush()); err != nil {
		return fmt.Errorf("read gate: %w", err)
	}
	return nil
}

func version(k GateKey) int {
	if k.Prefix.Addr().Is4() {
		return 0
	}
	return 1
}

// ChangeGate makes a change of the gate: all of it or, with an error, nothing. It waits until no packet is under way that has
// seen the gate as it was before (some ten milliseconds).
func (s *Steerer) ChangeGate(c GateChange) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return fmt.Errorf("change gate: %w", os.ErrClosed)
	}
	if err := s.gate.change(&c); err != nil {
		return fmt.Errorf("change gate: %w", err)
	}
	return nil
}

func (g *gate) change(c *GateChange) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	settings := g.settings
	if c.Settings != nil {
		settings = *c.Settings
		if err := settings.Rates.check(); err != nil {
			return err
		}
	}
	fresh, changed, err := g.sort(c.Add)
	if err != nil {
		return err
	}
	var gone []GateKey
	for _, k := range c.Remove {
		if _, there := g.have[k]; there {
			gone = append(gone, k)
		}
	}
	undo := func(err error) error {
		for _, e := range fresh {
			g.index.remove(e.GateKey)
		}
		return errors.Join(err, g.delete(keysOf(fresh)), g.mark(gone, 0), g.index.flush())
	}
	for _, e := range fresh {
		g.index.add(e.GateKey)
	}
	if err := g.index.flush(); err != nil {
		return undo(err)
	}
	if err := g.insert(fresh); err != nil {
		return undo(err)
	}
	if err := g.mark(gone, g.epoch+1); err != nil {
		return undo(err)
	}
	count := g.count
	for _, e := range fresh {
		count[version(e.GateKey)]++
	}
	for _, k := range gone {
		count[version(k)]--
	}
	raw := settings.raw(g, count)
	if err := g.options.Put(uint32(g.epoch+1)&1, &raw); err != nil {
		return undo(err)
	}
	if c.Commit != nil {
		if err := c.Commit(); err != nil {
			return undo(err)
		}
	}
	if err := g.epochs.Put(uint32(0), g.epoch+1); err != nil {
		return undo(err)
	}

	// It counts now. What follows is tidying, which open would do as well.
	g.epoch++
	g.settings, g.count = settings, count
	for _, e := range fresh {
		g.have[e.GateKey] = e.Expires
	}
	errs := []error{gracePeriod()}
	for _, e := range changed {
		g.have[e.GateKey] = e.Expires
		errs = append(errs, g.update(e.GateKey, func(v *steerGateEntry) { v.Expires = uint64(e.Expires) }))
	}
	for _, k := range gone {
		delete(g.have, k)
		g.index.remove(k)
	}
	return errors.Join(append(errs, g.delete(gone), g.index.flush())...)
}

// sort tells new entries from those that only get another expiry, each once.
func (g *gate) sort(list []GateEntry) (fresh, changed []GateEntry, err error) {
	seen := make(map[GateKey]bool, len(list))
	count := g.count
	for _, e := range list {
		p := e.Prefix
		if !p.IsValid() || p.Masked() != p || p.Addr().Is4In6() || e.List > GateAllow || e.Expires < 0 {
			return nil, nil, fmt.Errorf("want a masked prefix, not mapped, and an expiry of 0 or later, got %v on list %d until %v", p, e.List, e.Expires)
		}
		if seen[e.GateKey] {
			continue
		}
		seen[e.GateKey] = true
		if at, there := g.have[e.GateKey]; !there {
			fresh = append(fresh, e)
			count[version(e.GateKey)]++
		} else if at != e.Expires {
			changed = append(changed, e)
		}
	}
	if n := max(count[0], count[1]); n > g.limit {
		return nil, nil, fmt.Errorf("the lists would have %d entries of one IP version, old and new together, and have room for %d", n, g.limit)
	}
	return fresh, changed, nil
}

func keysOf(list []GateEntry) []GateKey {
	out := make([]GateKey, len(list))
	for i := range list {
		out[i] = list[i].GateKey
	}
	return out
}

func (k GateKey) raw4() steerGateKey4 {
	return steerGateKey4{Addr: addrWords(k.Prefix.Addr())[0], Len: uint8(k.Prefix.Bits()), List: uint8(k.List)}
}

func (k GateKey) raw6() steerGateKey6 {
	return steerGateKey6{Addr: addrWords(k.Prefix.Addr()), Len: uint8(k.Prefix.Bits()), List: uint8(k.List)}
}

// split returns the keys as the two hashes have them.
func split(list []GateKey) (four []steerGateKey4, six []steerGateKey6) {
	for _, k := range list {
		if version(k) == 0 {
			four = append(four, k.raw4())
		} else {
			six = append(six, k.raw6())
		}
	}
	return four, six
}

func (g *gate) insert(list []GateEntry) error {
	values := [2][]steerGateEntry{}
	for _, e := range list {
		values[version(e.GateKey)] = append(values[version(e.GateKey)], steerGateEntry{Expires: uint64(e.Expires), Born: g.epoch + 1})
	}
	four, six := split(keysOf(list))
	return errors.Join(batch(g.list4, four, values[0]), batch(g.list6, six, values[1]))
}

func batch[K any](m *ebpf.Map, keys []K, values []steerGateEntry) error {
	if len(keys) == 0 {
		return nil
	}
	_, err := m.BatchUpdate(keys, values, nil)
	return err
}

// delete removes entries, those that are there.
func (g *gate) delete(list []GateKey) error {
	four, six := split(list)
	var errs []error
	for i := range four {
		errs = append(errs, ignoreMissing(g.list4.Delete(&four[i])))
	}
	for i := range six {
		errs = append(errs, ignoreMissing(g.list6.Delete(&six[i])))
	}
	return errors.Join(errs...)
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// mark says from which epoch on entries count no more; 0: they do.
func (g *gate) mark(list []GateKey, dead uint64) error {
	var errs []error
	for _, k := range list {
		errs = append(errs, g.update(k, func(v *steerGateEntry) { v.Dead = dead }))
	}
	return errors.Join(errs...)
}

// update replaces an entry's value in one step; a hit in between is not counted.
func (g *gate) update(k GateKey, change func(*steerGateEntry)) error {
	var v steerGateEntry
	m, key := g.list4, any(nil)
	if version(k) == 0 {
		raw := k.raw4()
		key = &raw
	} else {
		raw := k.raw6()
		m, key = g.list6, &raw
	}
	if err := m.Lookup(key, &v); err != nil {
		return err
	}
	change(&v)
	return m.Put(key, &v)
}

// gracePeriod waits until every program that was running has ended. Programs run inside an RCU read-side critical section, and
// MEMBARRIER_CMD_GLOBAL is synchronize_rcu (kernel/sched/membarrier.c).
func gracePeriod() error {
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, 1, 0, 0)
	if errno == 0 {
		return nil
	}
	// EINVAL: a kernel with nohz_full CPUs. Programs run for microseconds.
	time.Sleep(20 * time.Millisecond)
	return nil
}

// each calls fn for every entry in the maps.
func (g *gate) each(fn func(GateKey, *steerGateEntry)) error {
	err := eachEntry(g.list4, func(k *steerGateKey4, v *steerGateEntry) {
		a := wordsAddr([4]uint32{k.Addr}, 4)
		fn(GateKey{netip.PrefixFrom(a, int(k.Len)), GateList(k.List)}, v)
	})
	if err != nil {
		return err
	}
	return eachEntry(g.list6, func(k *steerGateKey6, v *steerGateEntry) {
		fn(GateKey{netip.PrefixFrom(wordsAddr(k.Addr, 6), int(k.Len)), GateList(k.List)}, v)
	})
}

func eachEntry[K any](m *ebpf.Map, fn func(*K, *steerGateEntry)) error {
	const most = 4096
	keys, values := make([]K, most), make([]steerGateEntry, most)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range n {
			fn(&keys[i], &values[i])
		}
		if err != nil {
			return nil
		}
	}
}

// GateEntries returns the lists, sorted, with what each entry has hit. An entry that has expired is still there until it is removed.
func (s *Steerer) GateEntries() ([]GateEntry, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, fmt.Errorf("read gate: %w", os.ErrClosed)
	}
	g := &s.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]GateEntry, 0, len(g.have))
	err := g.each(func(k GateKey, v *steerGateEntry) {
		if v.Born <= g.epoch && v.Dead == 0 {
			out = append(out, GateEntry{GateKey: k, Expires: time.Duration(v.Expires), Hits: v.Hits})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read gate: %w", err)
	}
	slices.SortFunc(out, func(a, b GateEntry) int {
		return cmp.Or(cmp.Compare(a.List, b.List), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return out, nil
}

// maxFrame is what the program takes a packet to have at most, in bytes.
const maxFrame = 1 << 16

func (r *GateRates) check() error {
	least := func(what string, v, low float64) error {
		if v != 0 && !(v >= low && v <= 1e12) {
			return fmt.Errorf("%s: want a rate from %g to 1e12 a second, or 0 for none, got %g", what, low, v)
		}
		return nil
	}
	if r.Burst < 0 || r.Burst > time.Hour {
		return fmt.Errorf("want a burst from 0 to 1h, got %v", r.Burst)
	}
	if r.Prefix4 < 0 || r.Prefix4 > 32 || r.Prefix6 < 0 || r.Prefix6 > 128 {
		return fmt.Errorf("want prefix lengths up to 32 and 128, got %d and %d", r.Prefix4, r.Prefix6)
	}
	return errors.Join(least("packets", r.Packets, 1), least("bytes", r.Bytes, 1000), least("SYNs", r.SYNs, 1))
}

// raw is the settings as the program reads them.
func (s *GateSettings) raw(g *gate, count [2]int) (raw steerGateSettings) {
	raw.Flags = uint32(s.Screens)
	if count[0] > 0 {
		raw.Flags |= gateList4
	}
	if count[1] > 0 {
		raw.Flags |= gateList6
	}
	raw.Groups6, raw.Short6 = g.index.groups6(), g.index.short
	raw.Seed, raw.Sets = g.seed, g.sets
	burst := cmp.Or(s.Rates.Burst, time.Second)
	for i, rate := range []float64{s.Rates.Packets, s.Rates.Bytes, s.Rates.SYNs} {
		if rate == 0 {
			continue
		}
		raw.Flags |= gateRatePackets << i
		cost := math.Max(1, 16e9/rate*65536)
		raw.Rate[i].Cost = uint64(cost)
		// What is asked for at once always fits: one packet, of any size.
		units := 1.0
		if i == 1 {
			units = maxFrame
		}
		raw.Rate[i].Burst = max(16*uint64(burst), uint64(cost*units/65536)+1)
	}
	raw.Mask4 = maskWords(netip.PrefixFrom(netip.IPv4Unspecified(), cmp.Or(s.Rates.Prefix4, 32)))[0]
	raw.Mask6 = maskWords(netip.PrefixFrom(netip.IPv6Unspecified(), cmp.Or(s.Rates.Prefix6, 64)))
	return raw
}

// gateSets is how many sets hold that many sources: a power of two, of 4 each.
func gateSets(sources uint32) uint32 { return 1 << bits.Len32((max(sources, 4)-1)/4) }
