// Package dnsseen remembers which names led to an address, by the DNS answers that
// went by: what a client may call a server that it connects to.
//
// Its one trap: it knows what was seen, not what is true. An address that nobody
// asked for, that was pushed out, or that has too many names is Unknown, and
// whoever refuses the unknown refuses those.
package dnsseen

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
)

// Bounds of a Table.
const (
	MaxAddrs = 16384 // addresses that are remembered
	MaxNames = 32    // names of an address; with more, it is Unknown
	ways     = 4
)

// Table is safe for any number of goroutines; it takes no lock. The zero value is
// empty.
type Table struct {
	slots   [MaxAddrs]atomic.Pointer[entry]
	evicted atomic.Uint64
}

// entry is what is known of an address. It does not change.
type entry struct {
	addr  netip.Addr
	until int64 // ns; of the name that stays longest
	names []name
	over  bool // it had more names than are kept
}

type name struct {
	text  string
	until int64
}

// Answer is what is known of a name at an address.
type Answer uint8

// The answers.
const (
	Unknown Answer = iota // nothing is known of the address
	Seen                  // the name led there
	Other                 // only other names did
)

var (
	seed      = maphash.MakeSeed()
	appliance Table
)

// Appliance returns the table of this process: stages that learn and stages that
// ask stand in different chains, and a reload must not lose it.
func Appliance() *Table { return &appliance }

func (t *Table) set(a netip.Addr) []atomic.Pointer[entry] {
	i := int(maphash.Comparable(seed, a)%(MaxAddrs/ways)) * ways
	return t.slots[i : i+ways]
}

// Ask returns what is known. n is in lower case, without a final dot. It does not
// allocate.
func (t *Table) Ask(n string, a netip.Addr, now int64) Answer {
	a = a.Unmap()
	for i := range t.set(a) {
		e := t.set(a)[i].Load()
		if e == nil || e.addr != a || e.until <= now {
			continue
		}
		if e.over {
			return Unknown
		}
		for _, known := range e.names {
			if known.until > now && known.text == n {
				return Seen
			}
		}
		return Other
	}
	return Unknown
}

// Learn notes that n led to a, until a time. What is nearest to its end makes room.
func (t *Table) Learn(n string, a netip.Addr, until, now int64) {
	a = a.Unmap()
	set := t.set(a)
	for range 64 { // others may be at it: each time round, one of them got on
		at, old := &set[0], set[0].Load()
		for i := range set {
			e := set[i].Load()
			if e != nil && e.addr == a {
				at, old = &set[i], e
				break
			}
			if old != nil && (e == nil || e.until < old.until) {
				at, old = &set[i], e
			}
		}
		if at.CompareAndSwap(old, old.with(n, a, until, now)) {
			if old != nil && old.addr != a && old.until > now {
				t.evicted.Add(1)
			}
			return
		}
	}
}

// Evicted returns how many addresses were pushed out before their time.
func (t *Table) Evicted() uint64 { return t.evicted.Load() }

// with returns an entry for a that has n and what e has of a.
func (e *entry) with(n string, a netip.Addr, until, now int64) *entry {
	next := &entry{addr: a, until: until, names: []name{{n, until}}}
	if e == nil || e.addr != a || e.until <= now {
		return next
	}
	next.over = e.over
	for _, known := range e.names {
		switch {
		case known.until <= now:
		case known.text == n:
			next.names[0].until = max(until, known.until)
		case len(next.names) == MaxNames:
			next.over = true
		default:
			next.names = append(next.names, known)
		}
	}
	next.until = max(until, e.until)
	return next
}
