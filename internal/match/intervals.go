package match

import "math/bits"

// key is a value of a field as a 128-bit number: an IPv6 address; an IPv4 address, a port or a VLAN id in the upper
// bits of hi.
type key struct{ hi, lo uint64 }

func (k key) less(o key) bool { return k.hi < o.hi || k.hi == o.hi && k.lo < o.lo }

// next returns k + 1; ok is false for the highest key.
func (k key) next() (n key, ok bool) {
	lo, carry := bits.Add64(k.lo, 1, 0)
	hi, over := bits.Add64(k.hi, 0, carry)
	return key{hi, lo}, over == 0
}

// intervals is a table from keys to sets: interval i reaches from starts[i] to the next start, the first one begins at
// the lowest key.
//
// An index over the bits behind those that all starts (but the first) have in common narrows each search to a few
// steps, also where all prefixes lie within 10.0.0.0/8 or 2001:db8::/32.
type intervals struct {
	starts []key
	sets   []setRef
	index  []uint32 // by those bits: where to begin; entry i+1: where to end
	skip   uint     // bits in common
	width  uint     // bits that the index uses
}

// maxIndexBits bounds the index to 256 KiB.
const maxIndexBits = 16

// buildIndex is called once, when starts is complete.
func (t *intervals) buildIndex() {
	n := len(t.starts)
	if n < 4 {
		return
	}
	first, last := t.starts[1].hi, t.starts[n-1].hi
	t.skip = uint(bits.LeadingZeros64(first ^ last))
	t.width = uint(min(bits.Len(uint(n)), maxIndexBits, 64-int(t.skip)))
	t.index = make([]uint32, 1<<t.width+1)
	at := 1
	for i := range t.index {
		// The first start whose bits are i or more: the interval before it holds the lowest key of bucket i.
		for at < n && t.bucket(t.starts[at]) < uint64(i) {
			at++
		}
		t.index[i] = uint32(at - 1)
	}
}

func (t *intervals) bucket(k key) uint64 { return k.hi << t.skip >> (64 - t.width) }

// lookup returns the set of the interval that k lies in.
func (t *intervals) lookup(k key) setRef {
	n := len(t.starts)
	if n == 1 || k.less(t.starts[1]) {
		return t.sets[0]
	}
	if !k.less(t.starts[n-1]) {
		return t.sets[n-1]
	}
	lo, hi := uint32(1), uint32(n-2)
	if t.index != nil {
		i := t.bucket(k)
		lo, hi = t.index[i], t.index[i+1]
	}
	for lo < hi {
		mid := (lo + hi + 1) / 2
		if k.less(t.starts[mid]) {
			hi = mid - 1
		} else {
			lo = mid
		}
	}
	return t.sets[lo]
}

// bytes returns the memory of the table.
func (t *intervals) bytes() int { return 16*cap(t.starts) + 4*cap(t.sets) + 4*cap(t.index) }
