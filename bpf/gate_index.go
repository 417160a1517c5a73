package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// lengths is a set of prefix lengths for each list: bit n is length n.
type lengths = steerGateLengths

// gateIndex says which lengths of prefixes are worth a look for an address (bpf/include/gate.h). add and remove are exact in pairs; they
// reach the kernel with flush, but for the directory of IPv4, whose bytes are written where XDP reads them: a length too many is
// harmless, so additions come before what they are for, removals after it.
type gateIndex struct {
	dir    *ebpf.Memory // of gate_dir4: a code for each /24
	codes  *ebpf.Map
	slots  *ebpf.Map
	sets   []lengths // by code; 0: nothing
	codeOf map[lengths]uint16
	any    lengths          // what anyCode stands for
	refs   map[uint64]int32 // how many entries want a bit: of a /24 (IPv4), or of a slot (IPv6)
	slot   map[uint32]lengths
	moved  map[uint32]bool // slots to be written
	short  lengths         // IPv6, lengths 0 to 15
	groups [5]int          // IPv6: entries in each group
	buf    []byte
}

// anyCode is for sets of lengths that found no code: all lengths that there are. So many sets take a list made for the purpose.
const anyCode = 1<<16 - 1

// The groups of IPv6 lengths: the shortest of each.
var groupBase = [5]int{16, 32, 48, 64, 128}

func (x *gateIndex) open(dir, codes, slots *ebpf.Map) (err error) {
	if x.dir, err = dir.Memory(); err != nil {
		return fmt.Errorf("map memory of the directory: %w", err)
	}
	x.codes, x.slots = codes, slots
	x.buf = make([]byte, 1<<16)
	x.refs, x.slot, x.moved = map[uint64]int32{}, map[uint32]lengths{}, map[uint32]bool{}
	x.sets, x.codeOf = make([]lengths, 1, 256), map[lengths]uint16{{}: 0}
	// Of an earlier process: codes stay what they are; what was in the slots and is not added again is a length too many.
	for i := uint32(1); i < anyCode; i++ {
		var l lengths
		if err := codes.Lookup(i, &l); err != nil {
			return fmt.Errorf("read codes: %w", err)
		}
		if l == (lengths{}) {
			break
		}
		x.codeOf[l] = uint16(i)
		x.sets = append(x.sets, l)
	}
	return codes.Lookup(uint32(anyCode), &x.any)
}

func (x *gateIndex) add(k GateKey)    { x.count(k, 1) }
func (x *gateIndex) remove(k GateKey) { x.count(k, -1) }

func (x *gateIndex) count(k GateKey, by int32) {
	n := k.Prefix.Bits()
	if version(k) == 0 {
		b := k.Prefix.Addr().As4()
		at := binary.BigEndian.Uint32(b[:]) >> 8
		if n > 24 && !x.ref(uint64(at), n, k.List, by) {
			return
		}
		x.code(at, 1<<max(0, 24-n), k.List, n, by > 0)
		return
	}
	if n < 16 {
		// A length of this list is there while one entry has it.
		if x.ref(1<<40, n, k.List, by) {
			x.short.set(k.List, n, by > 0)
		}
		return
	}
	group := len(groupBase) - 1
	for groupBase[group] > n {
		group--
	}
	x.groups[group] += int(by)
	at := slot6(addrWords(k.Prefix.Addr()), groupBase[group])
	if bit := n - groupBase[group]; x.ref(1<<41|uint64(at), bit, k.List, by) {
		l := x.slot[at]
		l.set(k.List, bit, by > 0)
		if x.slot[at] = l; l == (lengths{}) {
			delete(x.slot, at)
		}
		x.moved[at] = true
	}
}

// ref counts an entry that wants a bit, and says whether the bit changes: with the first one to come and the last one to go.
func (x *gateIndex) ref(at uint64, bit int, list GateList, by int32) bool {
	key := at<<8 | uint64(list)<<7 | uint64(bit)
	n := x.refs[key] + by
	if n == 0 {
		delete(x.refs, key)
	} else {
		x.refs[key] = n
	}
	return n == 0 || by > 0 && n == 1
}

// code sets or clears a length in the codes of n /24s.
func (x *gateIndex) code(at uint32, n int, list GateList, length int, on bool) {
	if n == 1 {
		b := x.buf[:2]
		_, _ = x.dir.ReadAt(b, 2*int64(at)) // in bounds: a /24 has 24 bits
		binary.NativeEndian.PutUint16(b, x.changed(binary.NativeEndian.Uint16(b), list, length, on))
		_, _ = x.dir.WriteAt(b, 2*int64(at))
		return
	}
	known := map[uint16]uint16{}
	var from, to uint16
	look := true
	for n > 0 {
		b := x.buf[:min(2*n, len(x.buf))]
		_, _ = x.dir.ReadAt(b, 2*int64(at))
		for i := 0; i < len(b); i += 2 {
			if c := binary.NativeEndian.Uint16(b[i:]); c != from || look {
				look = false
				if _, ok := known[c]; !ok {
					known[c] = x.changed(c, list, length, on)
				}
				from, to = c, known[c]
			}
			binary.NativeEndian.PutUint16(b[i:], to)
		}
		_, _ = x.dir.WriteAt(b, 2*int64(at))
		at, n = at+uint32(len(b)/2), n-len(b)/2
	}
}

// changed is the code for the lengths of another one with one more, or one less. It is in the map before it is returned.
func (x *gateIndex) changed(code uint16, list GateList, length int, on bool) uint16 {
	if on && x.any.List[list]>>length&1 == 0 {
		x.any.set(list, length, true)
		_ = x.codes.Put(uint32(anyCode), &x.any) // an array: every index is there
	}
	if code == anyCode {
		return anyCode // which lengths it stood for is not known
	}
	l := x.sets[code]
	l.set(list, length, on)
	if c, ok := x.codeOf[l]; ok {
		return c
	}
	if len(x.sets) == anyCode {
		return anyCode
	}
	c := uint16(len(x.sets))
	x.sets = append(x.sets, l)
	x.codeOf[l] = c
	_ = x.codes.Put(uint32(c), &l)
	return c
}

func (l *lengths) set(list GateList, n int, on bool) {
	if on {
		l.List[list] |= 1 << n
	} else {
		l.List[list] &^= 1 << n
	}
}

// groups6 is gate_settings.groups6.
func (x *gateIndex) groups6() (mask uint32) {
	for i, n := range x.groups {
		if n > 0 {
			mask |= 1 << i
		}
	}
	return mask
}

// flush writes the slots that have changed.
func (x *gateIndex) flush() error {
	if len(x.moved) == 0 {
		return nil
	}
	keys, values := make([]uint32, 0, len(x.moved)), make([]lengths, 0, len(x.moved))
	for at := range x.moved {
		keys, values = append(keys, at), append(values, x.slot[at])
	}
	if _, err := x.slots.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("write slots: %w", err)
	}
	clear(x.moved)
	return nil
}

func mix(h, word uint32) uint32 {
	h = (h ^ word) * 0x85ebca6b
	return h ^ h>>15
}

// slot6 is where gate_lists6 looks for prefixes of a group. a is in network byte order, as in the maps.
func slot6(a [4]uint32, base int) uint32 {
	upper := maskWords(netip.PrefixFrom(netip.IPv6Unspecified(), 16))[0]
	var h uint32
	switch base {
	case 16:
		h = mix(16, a[0]&upper)
	case 32:
		h = mix(32, a[0])
	case 48:
		h = mix(mix(32, a[0]), a[1]&upper)
	case 64:
		h = mix(mix(32, a[0]), a[1])
	case 128:
		h = mix(mix(mix(mix(32, a[0]), a[1]), a[2]), a[3])
	}
	return h * 0xc2b2ae35 >> (32 - gateSlotBits6)
}

// gateSlotBits6 is GATE_SLOT_BITS6.
const gateSlotBits6 = 18
