// Package gate keeps the lists of the gate: what the configuration denies and
// allows, and what was denied at run time, with how long and why. XDP has the
// prefixes (a Table); the texts, and what must survive a restart, are here.
//
// Its one trap: a prefix may be denied by the configuration and at run time at
// once. XDP knows it once, until the later of the two ends.
package gate

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Entry is a prefix for a Table.
type Entry struct {
	Prefix netip.Prefix // masked, IPv4 not mapped
	Allow  bool         // else deny
	Until  time.Time    // zero: for good
}

// Change is what a Table changes at once. Until counts for Add only; an entry
// that is there gets it as its new end.
type Change struct {
	Add, Remove []Entry
	Commit      func() error // called before any packet sees the change; an error takes it back
}

// Table is where packets are judged.
type Table interface {
	Change(Change) error
	// Hits is how many packets each entry of the deny list has dropped.
	Hits() (map[netip.Prefix]uint64, error)
}

// Deny is a prefix that is denied at run time.
type Deny struct {
	Prefix netip.Prefix
	Until  time.Time // zero: for good
	Added  time.Time
	Why    string
}

func (d Deny) expired(now time.Time) bool { return !d.Until.IsZero() && !now.Before(d.Until) }

// Listed is an entry of the deny list as it is shown.
type Listed struct {
	Deny
	Config bool // by the configuration, and not at run time
	Hits   uint64
}

// MaxWhy is how long the text of a deny may be, in bytes.
const MaxWhy = 256

// Gate keeps a Table in step with the lists. Its methods may be called from
// any goroutine.
type Gate struct {
	mu          sync.Mutex
	table       Table
	journal     journal
	deny, allow map[netip.Prefix]bool // of the configuration
	runtime     map[netip.Prefix]Deny
	now         func() time.Time
}

// Open reads what was denied at run time from the file at path ("": nothing is
// kept) and fills an empty table with that and the configuration's lists.
func Open(path string, table Table, deny, allow []netip.Prefix, now func() time.Time) (*Gate, error) {
	g := &Gate{table: table, now: now}
	var err error
	if g.runtime, err = g.journal.open(path, now()); err != nil {
		return nil, err
	}
	var c Change
	for _, d := range g.runtime {
		c.Add = append(c.Add, Entry{Prefix: d.Prefix, Until: d.Until})
	}
	if err := g.configure(c, deny, allow); err != nil {
		return nil, errors.Join(err, g.journal.close())
	}
	return g, nil
}

// Close closes the file. The table stays as it is.
func (g *Gate) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.journal.close()
}

// Configure puts other lists in the place of the configuration's, at once.
func (g *Gate) Configure(deny, allow []netip.Prefix) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.configure(Change{}, deny, allow)
}

func (g *Gate) configure(c Change, deny, allow []netip.Prefix) error {
	set := func(list []netip.Prefix) map[netip.Prefix]bool {
		m := make(map[netip.Prefix]bool, len(list))
		for _, p := range list {
			m[p] = true
		}
		return m
	}
	newDeny, newAllow := set(deny), set(allow)
	// What begins as denied at run time (of Open) and is in the configuration too is for good.
	c.Add = slices.DeleteFunc(c.Add, func(e Entry) bool { return newDeny[e.Prefix] })
	for p := range newDeny {
		if !g.deny[p] {
			c.Add = append(c.Add, Entry{Prefix: p})
		}
	}
	for p := range g.deny {
		if newDeny[p] {
			continue
		}
		if d, there := g.runtime[p]; there {
			c.Add = append(c.Add, Entry{Prefix: p, Until: d.Until})
		} else {
			c.Remove = append(c.Remove, Entry{Prefix: p})
		}
	}
	for p := range newAllow {
		if !g.allow[p] {
			c.Add = append(c.Add, Entry{Prefix: p, Allow: true})
		}
	}
	for p := range g.allow {
		if !newAllow[p] {
			c.Remove = append(c.Remove, Entry{Prefix: p, Allow: true})
		}
	}
	if err := g.table.Change(c); err != nil {
		return err
	}
	g.deny, g.allow = newDeny, newAllow
	return nil
}

// Add denies prefixes at run time, all of them or, with an error, none; hold is
// for how long, 0: for good. One that is denied at run time already gets the
// new end and text. It returns how many were new.
func (g *Gate) Add(prefixes []netip.Prefix, hold time.Duration, why string) (added int, err error) {
	if len(prefixes) == 0 {
		return 0, errors.New("want at least one prefix, got none")
	}
	if hold < 0 {
		return 0, fmt.Errorf("want a time that is not negative, got %v", hold)
	}
	if len(why) > MaxWhy {
		return 0, fmt.Errorf("want a text of at most %d bytes, got %d", MaxWhy, len(why))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now().Round(0).UTC() // of the wall, as it is kept
	d := Deny{Added: now, Why: strings.ToValidUTF8(why, "?")}
	if hold > 0 {
		d.Until = now.Add(hold)
	}
	c := Change{}
	seen := make(map[netip.Prefix]bool, len(prefixes))
	list := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		if !p.IsValid() {
			return 0, errors.New("want prefixes, got an empty one")
		}
		p = Unmap(p.Masked())
		if seen[p] {
			continue
		}
		seen[p] = true
		list = append(list, p)
		if !g.deny[p] {
			c.Add = append(c.Add, Entry{Prefix: p, Until: d.Until})
		}
	}
	c.Commit = func() error {
		r := newRecord(d)
		r.Add = list
		return g.journal.append(*r)
	}
	if err := g.table.Change(c); err != nil {
		return 0, err
	}
	for _, p := range list {
		if old, there := g.runtime[p]; !there || old.expired(now) {
			added++
		}
		d.Prefix = p
		g.runtime[p] = d
	}
	return added, g.compact()
}

// AbsentError says what cannot be removed, since it is not denied at run time.
type AbsentError struct{ text string }

// Error implements error.
func (e *AbsentError) Error() string { return e.text }

// Remove ends denies of run time, all of them or, with an error, none. What is
// not denied, or by the configuration only, is an error.
func (g *Gate) Remove(prefixes []netip.Prefix) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var c Change
	var list []netip.Prefix
	var problems []string
	seen := make(map[netip.Prefix]bool, len(prefixes))
	now := g.now()
	for _, p := range prefixes {
		if p.IsValid() {
			p = Unmap(p.Masked())
		}
		d, there := g.runtime[p]
		switch {
		case seen[p]:
			continue
		case (!there || d.expired(now)) && g.deny[p]:
			problems = append(problems, fmt.Sprintf("%s is denied by the configuration: change it there and reload", p))
		case !there || d.expired(now):
			problems = append(problems, fmt.Sprintf("%s is not denied", p))
		case !g.deny[p]:
			c.Remove = append(c.Remove, Entry{Prefix: p})
		}
		seen[p] = true
		list = append(list, p)
	}
	if n := len(problems); n > 0 {
		if n > 5 {
			problems = append(problems[:5], fmt.Sprintf("and %d more", n-5))
		}
		return &AbsentError{fmt.Sprintf("%s; `penstock deny list` shows what is", strings.Join(problems, ", "))}
	}
	if len(list) == 0 {
		return errors.New("want at least one prefix, got none")
	}
	c.Commit = func() error { return g.journal.append(record{Del: list}) }
	if err := g.table.Change(c); err != nil {
		return err
	}
	for _, p := range list {
		delete(g.runtime, p)
	}
	return g.compact()
}

// Sweep forgets what has expired. XDP has not waited for that.
func (g *Gate) Sweep() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var c Change
	var gone []netip.Prefix
	now := g.now()
	for p, d := range g.runtime {
		if d.expired(now) {
			gone = append(gone, p)
			if !g.deny[p] {
				c.Remove = append(c.Remove, Entry{Prefix: p})
			}
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if len(c.Remove) > 0 {
		if err := g.table.Change(c); err != nil {
			return err
		}
	}
	for _, p := range gone {
		delete(g.runtime, p)
	}
	g.journal.lines += len(gone) // so that they leave the file at some time
	return g.compact()
}

// compact writes the file anew when most of it is of the past.
func (g *Gate) compact() error {
	if g.journal.file == nil || len(g.runtime) > 0 && g.journal.lines <= 1000+2*len(g.runtime) {
		return nil
	}
	return g.journal.rewrite(g.runtime)
}

// List returns the deny list, sorted by prefix, without what has expired.
func (g *Gate) List() ([]Listed, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	hits, err := g.table.Hits()
	if err != nil {
		return nil, err
	}
	list := make([]Listed, 0, len(g.runtime)+len(g.deny))
	now := g.now()
	for p, d := range g.runtime {
		if !d.expired(now) {
			list = append(list, Listed{Deny: d, Hits: hits[p]})
		}
	}
	for p := range g.deny {
		if d, there := g.runtime[p]; !there || d.expired(now) {
			list = append(list, Listed{Deny: Deny{Prefix: p}, Config: true, Hits: hits[p]})
		}
	}
	slices.SortFunc(list, func(a, b Listed) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return list, nil
}
