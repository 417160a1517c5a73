package match

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"penstock/internal/units"
	"penstock/internal/wire"
	"penstock/pipeline"
)

// Bounds of a Set. Without the second one, rules whose ranges all overlap would need memory with the square of their
// number.
const (
	MaxRules = 16384
	MaxBytes = 64 << 20
)

// Compile returns the set of the rules. ports are those that From may name, by PortID. The rules must have passed
// Validate; what remains is an unknown port, or more rules than the bounds allow.
func Compile(rules []Fields, ports []pipeline.PortInfo) (*Set, error) {
	from := make([]pipeline.PortID, len(rules))
	for i := range rules {
		if rules[i].From == "" {
			continue
		}
		at := slices.IndexFunc(ports, func(p pipeline.PortInfo) bool { return p.Name == rules[i].From })
		if at < 0 {
			return nil, fmt.Errorf("compile rule %d: from: want the name of a port%s, got %q", i+1, nameList(ports), rules[i].From)
		}
		from[i] = ports[at].ID
	}
	return compile(rules, from)
}

// Check adds an issue at path if the rules, each of which is valid, exceed the bounds of a Set.
func Check(rules []Fields, path string, issues *pipeline.Issues) {
	if len(rules) > MaxRules {
		issues.Add(path, "must have at most %d rules, got %d", MaxRules, len(rules))
		return
	}
	// Which ports they are does not matter here, but that rules about different ones differ.
	names := map[string]pipeline.PortID{}
	from := make([]pipeline.PortID, len(rules))
	for i := range rules {
		if _, known := names[rules[i].From]; !known {
			names[rules[i].From] = pipeline.PortID(len(names))
		}
		from[i] = names[rules[i].From]
	}
	if _, err := compile(rules, from); err != nil {
		issues.Add(path, "%v", err)
	}
}

func nameList(ports []pipeline.PortInfo) string {
	var b strings.Builder
	for i, p := range ports {
		b.WriteString([]string{": ", ", "}[min(i, 1)])
		fmt.Fprintf(&b, "%q", p.Name)
	}
	return b.String()
}

func compile(rules []Fields, from []pipeline.PortID) (*Set, error) {
	if len(rules) > MaxRules {
		return nil, fmt.Errorf("compile rules: want at most %d, got %d", MaxRules, len(rules))
	}
	s := &Set{rules: len(rules)}
	place := s.arrange(rules)
	c := &compiler{Set: s, rules: rules, place: place, known: map[uint64][]setRef{}, active: newBitset(64 * s.sums)}
	s.arena = make([]uint64, 2*s.sums, 8*s.sums) // the empty set
	for which, list := range [2]func(*Fields) []units.Prefix{
		func(f *Fields) []units.Prefix { return f.Src },
		func(f *Fields) []units.Prefix { return f.Dst },
	} {
		c.sweep(&s.addr[which][0], prefixes(list, true))
		c.sweep(&s.addr[which][1], prefixes(list, false))
	}
	for which, list := range [2]func(*Fields) []units.PortRange{
		func(f *Fields) []units.PortRange { return f.SrcPort },
		func(f *Fields) []units.PortRange { return f.DstPort },
	} {
		c.sweep(&s.port[which], func(f *Fields, add func(first, last key)) {
			for _, r := range list(f) {
				add(portKey(r.First), fill48(r.Last))
			}
		})
	}
	c.sweep(&s.vlan, func(f *Fields, add func(first, last key)) {
		for _, r := range f.VLAN {
			add(vlanKey(r.First), fill48(r.Last))
		}
	})
	s.proto = c.table(dimProto, 256, func(i, v int) bool { return rules[i].Proto.Number == uint8(v) })
	s.flags = c.table(dimFlags, int(allFlags)+1, func(i, v int) bool { return rules[i].Flags.met(wire.TCPFlags(v)) })
	s.from = c.table(dimFrom, int(slices.Max(append(from, 0)))+1, func(i, v int) bool { return from[i] == pipeline.PortID(v) })
	copy(s.fragment[:], c.table(dimFragment, 2, func(i, v int) bool { return *rules[i].Fragment == (v == 1) }))
	if c.over {
		return nil, fmt.Errorf("compile rules: want what fits into %d MiB: fewer rules whose ranges overlap one another", MaxBytes>>20)
	}
	s.arena = slices.Clip(s.arena)
	return s, nil
}

// restricts returns the dimensions that the rule is about.
func (f *Fields) restricts() (s dimSet) {
	for d, is := range [numDims]bool{
		dimSrc: len(f.Src) > 0, dimDst: len(f.Dst) > 0,
		dimSrcPort: len(f.SrcPort) > 0, dimDstPort: len(f.DstPort) > 0,
		dimProto: f.Proto.Set, dimFlags: !f.Flags.any(),
		dimVLAN: len(f.VLAN) > 0, dimFrom: f.From != "", dimFragment: f.Fragment != nil,
	} {
		if is {
			s |= 1 << d
		}
	}
	return s
}

// arrange numbers the rules by shape and returns the new number of each rule.
func (s *Set) arrange(rules []Fields) (place []int32) {
	byDims := map[dimSet][]int32{}
	var shapes []dimSet // by their first rule
	for i := range rules {
		d := rules[i].restricts()
		if byDims[d] == nil {
			shapes = append(shapes, d)
		}
		byDims[d] = append(byDims[d], int32(i))
		s.used |= d
	}
	place = make([]int32, len(rules))
	for _, d := range shapes {
		members := byDims[d]
		sh := shape{first: int32(len(s.order) / 64), best: members[0]}
		for k := range numDims {
			if d.has(k) {
				sh.dims = append(sh.dims, k)
			}
		}
		for _, rule := range members {
			place[rule] = int32(len(s.order))
			s.order = append(s.order, rule)
		}
		for len(s.order)%64 != 0 {
			s.order = append(s.order, -1)
		}
		sh.last = int32(len(s.order) / 64)
		s.shapes = append(s.shapes, sh)
	}
	s.sums = max((len(s.order)/64+63)/64, 1)
	return place
}

// compiler makes the sets of a Set.
type compiler struct {
	*Set
	rules   []Fields
	place   []int32
	known   map[uint64][]setRef // sets by their hash
	active  bitset
	scratch []uint64
	over    bool // beyond MaxBytes
}

// event is where a rule's interval begins or the place behind its end.
type event struct {
	at    key
	place int32
	begin bool
}

// sweep fills a table: ranges calls add for each interval of a rule, which may overlap.
func (c *compiler) sweep(t *intervals, ranges func(f *Fields, add func(first, last key))) {
	var events []event
	for i := range c.rules {
		at := c.place[i]
		ranges(&c.rules[i], func(first, last key) {
			events = append(events, event{first, at, true})
			if end, ok := last.next(); ok {
				events = append(events, event{end, at, false})
			}
		})
	}
	slices.SortFunc(events, func(a, b event) int {
		switch {
		case a.at.less(b.at):
			return -1
		case b.at.less(a.at):
			return 1
		}
		return 0
	})
	c.active.clear()
	depth := make([]int32, len(c.order)) // intervals of a rule that are open
	t.starts, t.sets = []key{{}}, []setRef{0}
	for i := 0; i < len(events) && !c.over; {
		at := events[i].at
		for ; i < len(events) && events[i].at == at; i++ {
			e := &events[i]
			if e.begin {
				if depth[e.place]++; depth[e.place] == 1 {
					c.active.flip(e.place)
				}
			} else if depth[e.place]--; depth[e.place] == 0 {
				c.active.flip(e.place)
			}
		}
		ref, last := c.intern(), len(t.starts)-1
		switch {
		case t.sets[last] == ref:
		case t.starts[last] == at:
			t.sets[last] = ref // the lowest key
		default:
			t.starts, t.sets = append(t.starts, at), append(t.sets, ref)
		}
	}
	t.buildIndex()
	c.check()
}

// table fills a table of n values: met says whether rule i, which restricts d, is met by value v.
func (c *compiler) table(d dim, n int, met func(i, v int) bool) []setRef {
	if !c.used.has(d) {
		return nil
	}
	var about []int
	for i := range c.rules {
		if c.rules[i].restricts().has(d) {
			about = append(about, i)
		}
	}
	t := make([]setRef, n)
	for v := range t {
		c.active.clear()
		for _, i := range about {
			if met(i, v) {
				c.active.flip(c.place[i])
			}
		}
		t[v] = c.intern()
	}
	c.check()
	return t
}

// intern returns the place of the active set in the arena; equal sets have one place.
func (c *compiler) intern() setRef {
	if c.active.hash == 0 && c.active.empty() {
		return 0
	}
	words := c.active.words
	c.scratch = append(c.scratch[:0], make([]uint64, 2*c.sums)...)
	for sum, summary := range c.active.summary {
		c.scratch[2*sum], c.scratch[2*sum+1] = summary, uint64(len(c.scratch)-2*c.sums)
		for ; summary != 0; summary &= summary - 1 {
			c.scratch = append(c.scratch, words[64*sum+bits.TrailingZeros64(summary)])
		}
	}
	for _, ref := range c.known[c.active.hash] {
		if rest := c.arena[ref:]; len(rest) >= len(c.scratch) && slices.Equal(rest[:len(c.scratch)], c.scratch) {
			return ref
		}
	}
	ref := setRef(len(c.arena))
	c.arena = append(c.arena, c.scratch...)
	c.known[c.active.hash] = append(c.known[c.active.hash], ref)
	c.check()
	return ref
}

func (c *compiler) check() {
	if 8*len(c.arena) > MaxBytes || c.Bytes() > 2*MaxBytes {
		c.over = true
	}
}

// bitset is a set of rules by their new numbers, with a summary as in setRef and a hash that flips with each member.
type bitset struct {
	words, summary []uint64
	hash           uint64
}

func newBitset(words int) bitset {
	return bitset{words: make([]uint64, words), summary: make([]uint64, words/64)}
}

func (b *bitset) clear() {
	clear(b.words)
	clear(b.summary)
	b.hash = 0
}

func (b *bitset) empty() bool {
	for _, s := range b.summary {
		if s != 0 {
			return false
		}
	}
	return true
}

func (b *bitset) flip(i int32) {
	w := i / 64
	b.words[w] ^= 1 << (i % 64)
	b.summary[w/64] &^= 1 << (w % 64)
	if b.words[w] != 0 {
		b.summary[w/64] |= 1 << (w % 64)
	}
	// SplitMix64's finalizer.
	h := uint64(i+1) * 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	b.hash ^= h ^ h>>31
}

// prefixes adds the intervals of a rule's IPv4 or IPv6 prefixes.
func prefixes(list func(*Fields) []units.Prefix, want4 bool) func(f *Fields, add func(first, last key)) {
	return func(f *Fields, add func(first, last key)) {
		for _, p := range list(f) {
			if p.Addr().Is4() != want4 {
				continue
			}
			first, last := span(p)
			add(first, last)
		}
	}
}

// span returns the lowest and the highest key of a prefix.
func span(p units.Prefix) (first, last key) {
	n := p.Bits()
	if p.Addr().Is4() {
		a := p.Addr().As4()
		first.hi = uint64(a[0])<<56 | uint64(a[1])<<48 | uint64(a[2])<<40 | uint64(a[3])<<32
	} else {
		a := p.Addr().As16()
		for i := range 8 {
			first.hi, first.lo = first.hi<<8|uint64(a[i]), first.lo<<8|uint64(a[i+8])
		}
	}
	return first, key{first.hi | ^uint64(0)>>min(n, 64), first.lo | ^uint64(0)>>max(n-64, 0)}
}

// fill48 returns the highest key of a 16-bit value.
func fill48(v uint16) key { return key{uint64(v)<<48 | (1<<48 - 1), ^uint64(0)} }
