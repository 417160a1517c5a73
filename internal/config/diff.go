package config

import (
	"cmp"
	"encoding"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"penstock/pipeline"
)

// Change is one difference between two configurations.
type Change struct {
	What string `json:"what"`          // `chain "web", stage 2 (http)`, "appliance", "gate", `port "lan"`, "steer"
	Key  string `json:"key,omitempty"` // "" for the whole of it
	Old  string `json:"old,omitempty"` // as it would be written; "" for what was not there
	New  string `json:"new,omitempty"`
	// Restart says that a running appliance cannot change this: another process
	// has to take over from it.
	Restart bool `json:"restart,omitempty"`
}

// String returns "what: key: old -> new".
func (c Change) String() string {
	text := c.What
	if c.Key != "" {
		text += ": " + c.Key
	}
	switch {
	case c.Old == "" && c.New == "":
		return text
	case c.Old == "":
		return text + ": + " + c.New
	case c.New == "":
		return text + ": - " + c.Old
	}
	return text + ": " + c.Old + " -> " + c.New
}

// live are the keys of [appliance] and [gate] that a running appliance can
// change; [[steer]], [[chain]] and [[record]] it can change as a whole.
var live = map[string]bool{
	"appliance.drain": true, "appliance.drain_timeout": true,
	"gate.deny": true, "gate.allow": true, "gate.screens": true, "gate.rate_packets": true, "gate.rate_bytes": true,
	"gate.rate_syns": true, "gate.rate_burst": true, "gate.rate_prefix4": true, "gate.rate_prefix6": true,
}

// Diff returns what is different in next, in the order of a file. Chains and
// ports are told apart by their names.
func Diff(old, next *Config) []Change {
	d := &differ{}
	d.keys("appliance", reflect.ValueOf(old.Appliance), reflect.ValueOf(next.Appliance), func(key string) bool { return !live["appliance."+key] })
	d.gate(&old.Gate, &next.Gate)
	d.sets(old.Sets, next.Sets)
	d.ports(old, next)
	d.steer(old, next)
	d.chains(old.Chains, next.Chains)
	d.list("record", recordLines(old), recordLines(next), false)
	d.list("ipfix", ipfixLines(old), ipfixLines(next), true)
	d.otlp(old.OTLP, next.OTLP)
	return d.changes
}

type differ struct{ changes []Change }

func (d *differ) add(what, key, old, next string, restart bool) {
	if old != next {
		d.changes = append(d.changes, Change{What: what, Key: key, Old: old, New: next, Restart: restart})
	}
}

// keys compares the fields of two structs that have a name in TOML.
func (d *differ) keys(what string, old, next reflect.Value, restart func(key string) bool) {
	for _, f := range fieldsOf(old.Type(), nil) {
		a, b := old.FieldByIndex(f.index), next.FieldByIndex(f.index)
		if reflect.DeepEqual(a.Interface(), b.Interface()) {
			continue
		}
		x, y := written(a), written(b)
		if x == y { // what is not written in the same way is too long to be written
			x, y = "", ""
			d.changes = append(d.changes, Change{What: what, Key: f.name, Restart: restart(f.name)})
			continue
		}
		d.add(what, f.name, x, y, restart(f.name))
	}
}

func (d *differ) gate(old, next *Gate) {
	key := func(name string, a, b any) {
		if !reflect.DeepEqual(a, b) {
			d.add("gate", name, fmt.Sprint(a), fmt.Sprint(b), !live["gate."+name])
		}
	}
	d.prefixes("gate", "deny", old.Deny, next.Deny)
	d.prefixes("gate", "allow", old.Allow, next.Allow)
	key("screens", old.Screens, next.Screens)
	key("rate_packets", old.Packets, next.Packets)
	key("rate_bytes", old.Bytes, next.Bytes)
	key("rate_syns", old.SYNs, next.SYNs)
	key("rate_burst", old.Burst, next.Burst)
	key("rate_prefix4", old.Prefix4, next.Prefix4)
	key("rate_prefix6", old.Prefix6, next.Prefix6)
	key("state", strconv.Quote(old.State), strconv.Quote(next.State))
	key("max_entries", old.MaxEntries, next.MaxEntries)
	key("max_sources", old.MaxSources, next.MaxSources)
}

// mostListed is how many prefixes of a list are written.
const mostListed = 8

func (d *differ) sets(old, next map[string][]netip.Prefix) {
	names := slices.Collect(maps.Keys(old))
	names = slices.AppendSeq(names, maps.Keys(next))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		d.prefixes("set", name, old[name], next[name])
	}
}

func (d *differ) prefixes(what, key string, old, next []netip.Prefix) {
	gone, come := without(old, next), without(next, old)
	text := func(list []netip.Prefix) string {
		words := make([]string, 0, mostListed)
		for _, p := range list[:min(len(list), mostListed)] {
			words = append(words, p.String())
		}
		if n := len(list) - mostListed; n > 0 {
			words = append(words, fmt.Sprintf("and %d more", n))
		}
		return strings.Join(words, ", ")
	}
	d.add(what, key, text(gone), "", false)
	d.add(what, key, "", text(come), false)
}

// without returns what of a is not in b, in a's order.
func without[T comparable](a, b []T) (out []T) {
	there := make(map[T]bool, len(b))
	for _, v := range b {
		there[v] = true
	}
	for _, v := range a {
		if !there[v] {
			out = append(out, v)
		}
	}
	return out
}

// portLine is all of a port in words.
func portLine(p *Port) string {
	q := "all"
	if !p.Queues.All {
		q = fmt.Sprint(p.Queues.List)
	}
	line := fmt.Sprintf("%q: interface %s, queues %s, xdp %s, zero_copy %s", p.Name, p.Interface, q, p.XDP, p.ZeroCopy)
	if p.Fault != nil {
		line += fmt.Sprintf(", fault %+v", *p.Fault)
	}
	return line
}

// Pair are the two ends of a wire in bridge mode.
type Pair [2]Port

func (p Pair) lines() [2]string { return [2]string{portLine(&p[0]), portLine(&p[1])} }

// PairsOf are the wires of a bridge.
func PairsOf(list []Port) (pairs []Pair) {
	for i := 0; i+1 < len(list); i += 2 {
		pairs = append(pairs, Pair{list[i], list[i+1]})
	}
	return pairs
}

// PairChanges returns the wires that next does not have, and those that it has
// besides, in the order of the files. The place of a wire among the others does not
// matter.
func PairChanges(old, next []Port) (gone, come []Pair) {
	missing := func(from, in []Pair) (list []Pair) {
		for _, p := range from {
			if !slices.ContainsFunc(in, func(q Pair) bool { return p.lines() == q.lines() }) {
				list = append(list, p)
			}
		}
		return list
	}
	a, b := PairsOf(old), PairsOf(next)
	return missing(a, b), missing(b, a)
}

// ports compares bridges by wires: one can come or go as a whole. What is done to an
// interface that stays takes a restart, and so does everything in a router, where the
// order of ports is their number.
func (d *differ) ports(old, next *Config) {
	if old.Appliance.Mode == ModeBridge && next.Appliance.Mode == ModeBridge {
		gone, come := PairChanges(old.Ports, next.Ports)
		// An interface, or a name, that both have: its port would be made anew.
		both := func(p Port, others []Pair) bool {
			return slices.ContainsFunc(others, func(o Pair) bool {
				return slices.ContainsFunc(o[:], func(q Port) bool { return q.Interface == p.Interface || q.Name == p.Name })
			})
		}
		restart := func(p Pair, others []Pair) bool { return both(p[0], others) || both(p[1], others) }
		for _, p := range gone {
			for i := range p {
				d.add("port", "", portLine(&p[i]), "", restart(p, come))
			}
		}
		for _, p := range come {
			for i := range p {
				d.add("port", "", "", portLine(&p[i]), restart(p, gone))
			}
		}
		return
	}
	for i := range max(len(old.Ports), len(next.Ports)) {
		var x, y string
		if i < len(old.Ports) {
			x = portLine(&old.Ports[i])
		}
		if i < len(next.Ports) {
			y = portLine(&next.Ports[i])
		}
		d.add("port", "", x, y, true)
	}
}

func (d *differ) steer(old, next *Config) { d.list("steer", steerLines(old), steerLines(next), false) }

// list compares lists whose elements are lines.
func (d *differ) list(what string, old, next []string, restart bool) {
	if slices.Equal(old, next) {
		return
	}
	gone, come := without(old, next), without(next, old)
	for _, l := range gone {
		d.add(what, "", l, "", restart)
	}
	for _, l := range come {
		d.add(what, "", "", l, restart)
	}
	if len(gone)+len(come) == 0 {
		d.changes = append(d.changes, Change{What: what, Key: "the order", Restart: restart})
	}
}

func steerLines(c *Config) (lines []string) {
	for _, s := range c.Steer {
		var w []string
		if s.From != pipeline.NoPort {
			w = append(w, "from "+c.Ports[s.From].Name)
		}
		w = append(w, s.Proto)
		for _, p := range []struct {
			name string
			v    any
			n    int
		}{{"src", s.Src, len(s.Src)}, {"src_port", s.SrcPort, len(s.SrcPort)}, {"dst", s.Dst, len(s.Dst)}, {"dst_port", s.DstPort, len(s.DstPort)}} {
			if p.n > 0 {
				w = append(w, p.name+" "+written(reflect.ValueOf(p.v)))
			}
		}
		to := map[Action]string{ToBypass: "bypass", ToDrop: "drop"}[s.To.Action]
		if s.To.Action == ToChain {
			to = strconv.Quote(c.Chains[s.To.Chain].Spec.Name)
		}
		lines = append(lines, strings.Join(w, " ")+" to "+to)
	}
	return lines
}

func recordLines(c *Config) (lines []string) {
	for _, r := range c.Record {
		lines = append(lines, strings.Join(r.Events, ", ")+" to "+r.To)
	}
	return lines
}

func (d *differ) chains(old, next []Chain) {
	find := func(list []Chain, name string) *Chain {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
		return nil
	}
	for i := range old {
		if find(next, old[i].Name) == nil {
			d.add(title("chain", i, old[i].Name), "", stageNames(&old[i]), "", false)
		}
	}
	for i := range next {
		b := &next[i]
		what := title("chain", i, b.Name)
		a := find(old, b.Name)
		if a == nil {
			d.add(what, "", "", stageNames(b), false)
			continue
		}
		d.add(what, "offload", a.Offload, b.Offload, false)
		if x, y := stageNames(a), stageNames(b); x != y {
			d.add(what, "stages", x, y, false)
			continue
		}
		for j := range b.Spec.Stages {
			sa, sb := a.Spec.Stages[j], b.Spec.Stages[j]
			if reflect.DeepEqual(sa.Config, sb.Config) {
				continue
			}
			stage := fmt.Sprintf("%s, stage %d (%s)", what, j+1, sb.Kind.Name)
			n := len(d.changes)
			d.keys(stage, reflect.ValueOf(sa.Config).Elem(), reflect.ValueOf(sb.Config).Elem(), func(string) bool { return false })
			if len(d.changes) == n {
				d.changes = append(d.changes, Change{What: stage})
			}
		}
	}
}

func stageNames(c *Chain) string {
	names := make([]string, len(c.Spec.Stages))
	for i, s := range c.Spec.Stages {
		names[i] = s.Kind.Name
	}
	return cmp.Or(strings.Join(names, ", "), "no stages")
}

// SameChain reports whether two chains are the same, whatever their places: an
// instance of one can stand for the other.
func SameChain(a, b *Chain) bool {
	if a.Name != b.Name || a.Offload != b.Offload || stageNames(a) != stageNames(b) {
		return false
	}
	for i := range a.Spec.Stages {
		if !reflect.DeepEqual(a.Spec.Stages[i].Config, b.Spec.Stages[i].Config) {
			return false
		}
	}
	return true
}

// mostWritten is how long a value may be to be written in a Change.
const mostWritten = 200

// written is a value about as a file has it.
func written(v reflect.Value) string {
	text := "none"
	switch x, _ := v.Interface().(encoding.TextMarshaler); {
	case v.Kind() == reflect.Pointer && v.IsNil():
	case x != nil:
		b, err := x.MarshalText()
		text = strconv.Quote(string(b))
		if err != nil {
			text = fmt.Sprint(v.Interface())
		}
	case v.Kind() == reflect.Pointer:
		return written(v.Elem())
	case v.Kind() == reflect.Slice:
		words := make([]string, v.Len())
		for i := range words {
			words[i] = written(v.Index(i))
		}
		text = "[" + strings.Join(words, ", ") + "]"
	case v.Kind() == reflect.String:
		text = strconv.Quote(v.String())
	case v.Kind() == reflect.Struct:
		if s, ok := v.Interface().(fmt.Stringer); ok {
			return s.String()
		}
		var words []string
		for _, f := range fieldsOf(v.Type(), nil) {
			if field := v.FieldByIndex(f.index); !field.IsZero() {
				words = append(words, f.name+" = "+written(field))
			}
		}
		text = "{" + strings.Join(words, ", ") + "}"
	default:
		text = fmt.Sprint(v.Interface())
	}
	if r := []rune(text); len(r) > mostWritten {
		text = string(r[:mostWritten]) + "..."
	}
	return text
}
