package match

import (
	"encoding/binary"
	"math/bits"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// dim is a dimension: a field that rules can restrict.
type dim uint8

const (
	dimSrc dim = iota
	dimDst
	dimSrcPort
	dimDstPort
	dimProto
	dimFlags
	dimVLAN
	dimFrom
	dimFragment
	numDims
)

// dimSet is a set of dimensions.
type dimSet uint16

func (s dimSet) has(d dim) bool { return s>>d&1 != 0 }

// Set is a compiled list of rules. It does not change, and may be used by any number of goroutines.
//
// Rules are numbered anew: those that restrict the same dimensions (a shape) stand together, each shape in the order of
// the configuration and from a word of 64 on. Within a shape no dimension is a wildcard, so that the sets of single
// values are small, and only their few words that are not zero are kept and intersected.
type Set struct {
	rules  int
	used   dimSet // dimensions that any rule restricts
	shapes []shape
	order  []int32 // rule by its new number; -1 between shapes

	// The sets of rules by value. A set lists only rules that restrict the dimension.
	addr     [2][2]intervals // source, destination; IPv4, IPv6
	port     [2]intervals    // source, destination
	vlan     intervals
	proto    []setRef // by protocol number
	flags    []setRef // by TCP flags
	from     []setRef // by PortID
	fragment [2]setRef

	sums  int      // words in the summary of a set
	arena []uint64 // all sets; see setRef
}

// shape is the rules that restrict the same dimensions.
type shape struct {
	dims        []dim
	first, last int32 // words, last not included
	best        int32 // its first rule
}

// setRef is the place of a set in Set.arena: for each 64 words of the set, a summary word that has a bit for each word
// that is not zero, and the number of such words before; then those words. 0 is the empty set.
type setRef uint32

// Len returns the number of rules.
func (s *Set) Len() int { return s.rules }

// Bytes returns about how much memory the set takes.
func (s *Set) Bytes() int {
	n := 8*cap(s.arena) + 4*cap(s.order) + 4*(cap(s.proto)+cap(s.flags)+cap(s.from)) + s.vlan.bytes()
	for i := range 2 {
		n += s.port[i].bytes() + s.addr[i][0].bytes() + s.addr[i][1].bytes()
	}
	return n
}

// PerFlow reports whether all packets of a direction of a flow meet the same rule: none looks at TCP flags or at
// fragments.
func (s *Set) PerFlow() bool { return !s.used.has(dimFlags) && !s.used.has(dimFragment) }

// Match returns the first rule that p meets, or -1. p has been parsed. It neither changes nor keeps p.
func (s *Set) Match(p *pipeline.Packet) int { return s.match(p, p.In, 0) }

// MatchReply returns the first rule that a reply to p would meet: addresses and ports exchanged, come in by port in.
func (s *Set) MatchReply(p *pipeline.Packet, in pipeline.PortID) int { return s.match(p, in, 1) }

// match looks at p, with source and destination exchanged if swap is 1.
func (s *Set) match(p *pipeline.Packet, in pipeline.PortID, swap int) int {
	var sets [numDims]setRef // of the rules that p meets in each dimension
	s.classify(p, in, swap, &sets)
	best := int32(s.rules)
	for i := range s.shapes {
		sh := &s.shapes[i]
		if sh.best >= best {
			break // as all behind it are
		}
		if r := s.first(sh, &sets, best); r < best {
			best = r
		}
	}
	if int(best) == s.rules {
		return -1
	}
	return int(best)
}

// classify looks up the packet's value in each dimension that is used.
func (s *Set) classify(p *pipeline.Packet, in pipeline.PortID, swap int, sets *[numDims]setRef) {
	if s.used.has(dimFrom) && int(in) < len(s.from) {
		sets[dimFrom] = s.from[in]
	}
	if s.used.has(dimVLAN) {
		sets[dimVLAN] = s.vlan.lookup(vlanKey(p.VLAN[0] & 0x0fff))
	}
	if p.IPVersion == 0 {
		return // it meets only rules about nothing above Ethernet
	}
	b := p.Bytes()
	if s.used.has(dimSrc) {
		sets[dimSrc] = s.lookupAddr(0, swap, p, b)
	}
	if s.used.has(dimDst) {
		sets[dimDst] = s.lookupAddr(1, 1-swap, p, b)
	}
	if s.used.has(dimProto) {
		sets[dimProto] = s.proto[p.Proto]
	}
	if s.used.has(dimFragment) {
		later := 0
		if p.Frag == wire.FragLater {
			later = 1
		}
		sets[dimFragment] = s.fragment[later]
	}
	if !p.HasL4 || p.Proto != wire.ProtoTCP && p.Proto != wire.ProtoUDP {
		return
	}
	l4 := b[p.L4:]
	if s.used.has(dimSrcPort) {
		sets[dimSrcPort] = s.port[0].lookup(portKey(binary.BigEndian.Uint16(l4[2*swap:])))
	}
	if s.used.has(dimDstPort) {
		sets[dimDstPort] = s.port[1].lookup(portKey(binary.BigEndian.Uint16(l4[2-2*swap:])))
	}
	if s.used.has(dimFlags) && p.Proto == wire.ProtoTCP {
		sets[dimFlags] = s.flags[wire.TCP(l4).Flags()]
	}
}

// lookupAddr looks up, as source (0) or destination (1), the address that stands in the source's (0) or the
// destination's (1) place.
func (s *Set) lookupAddr(which, place int, p *pipeline.Packet, b []byte) setRef {
	if p.IPVersion == 4 {
		at := int(p.L3) + 12 + 4*place
		return s.addr[which][0].lookup(key{hi: uint64(binary.BigEndian.Uint32(b[at:])) << 32})
	}
	at := int(p.L3) + 8 + 16*place
	return s.addr[which][1].lookup(key{binary.BigEndian.Uint64(b[at:]), binary.BigEndian.Uint64(b[at+8:])})
}

func portKey(port uint16) key { return key{hi: uint64(port) << 48} }
func vlanKey(id uint16) key   { return key{hi: uint64(id) << 48} }

// first returns the first rule of a shape that is in the sets of all its dimensions; or some rule not before best.
func (s *Set) first(sh *shape, sets *[numDims]setRef, best int32) int32 {
	if len(sh.dims) == 0 {
		return sh.best // no conditions
	}
	for _, d := range sh.dims {
		if sets[d] == 0 {
			return int32(s.rules)
		}
	}
	for sum := int(sh.first) / 64; sum <= int(sh.last-1)/64; sum++ {
		common := ^uint64(0)
		for _, d := range sh.dims {
			common &= s.arena[int(sets[d])+2*sum]
		}
		// Only the words of this shape.
		if low := int(sh.first) - 64*sum; low > 0 {
			common &= ^uint64(0) << low
		}
		if high := int(sh.last) - 64*sum; high < 64 {
			common &= 1<<high - 1
		}
		for ; common != 0; common &= common - 1 {
			bit := bits.TrailingZeros64(common)
			word := ^uint64(0)
			for _, d := range sh.dims {
				head := s.arena[int(sets[d])+2*sum:]
				nth := int(head[1]) + bits.OnesCount64(head[0]&(1<<bit-1))
				word &= s.arena[int(sets[d])+2*s.sums+nth]
			}
			at := 64 * (64*sum + bit)
			if word != 0 {
				return s.order[at+bits.TrailingZeros64(word)]
			}
			if s.order[at] >= best {
				return best
			}
		}
	}
	return int32(s.rules)
}
