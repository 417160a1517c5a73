package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"penstock/internal/gate"
	"penstock/internal/units"
)

// Gate is the [gate] table. Without it, nothing is screened or limited.
type Gate struct {
	Deny, Allow          []netip.Prefix // masked, IPv4 not mapped, each once
	Screens              []string       // of the names in Screens
	Packets, Bytes, SYNs float64        // of each source, a second; 0: no limit
	Burst                time.Duration
	Prefix4, Prefix6     int
	State                string // file of what is denied at run time, "" for none
	MaxEntries           int
	MaxSources           int
}

// Screens are the names of the gate's screens.
var Screens = []string{"land", "flags", "source", "fragments", "lengths", "options"}

// gateTable is [gate] as decoded.
type gateTable struct {
	Deny        []string       `toml:"deny" type:"list of prefixes and files" help:"sources whose packets are dropped: prefixes, or \"file:PATH\" with one a line"`
	Allow       []string       `toml:"allow" type:"list of prefixes and files" help:"sources that are never denied and have no rates; allow wins over deny"`
	Screens     []string       `toml:"screens" help:"checks of every packet: land, flags, source, fragments, lengths, options"`
	RatePackets *units.Rate    `toml:"rate_packets" type:"rate" help:"packets that each source may send, such as \"20000pkt/s\"; absent: any"`
	RateBytes   *units.Rate    `toml:"rate_bytes" type:"rate" help:"bytes that each source may send, such as \"100Mbit/s\"; absent: any"`
	RateSYNs    *units.Rate    `toml:"rate_syns" type:"rate" help:"TCP connections that each source may begin, such as \"200pkt/s\"; absent: any"`
	RateBurst   units.Duration `toml:"rate_burst" help:"how long's worth of its rates a source may use at once"`
	RatePrefix4 int            `toml:"rate_prefix4" min:"1" max:"32" help:"how many bits of an IPv4 address make a source"`
	RatePrefix6 int            `toml:"rate_prefix6" min:"1" max:"128" help:"how many bits of an IPv6 address make a source"`
	State       string         `toml:"state" help:"file that keeps what is denied at run time over a restart; \"\" keeps nothing"`
	MaxEntries  int            `toml:"max_entries" min:"16" max:"16777216" help:"prefixes of each IP version in both lists, old and new together while they change"`
	MaxSources  int            `toml:"max_sources" min:"16" max:"16777216" help:"sources whose rates are kept at once"`
}

func defaultGate(name string) gateTable {
	return gateTable{
		Screens:     []string{"land", "flags", "source", "fragments"},
		RateBurst:   units.Duration(time.Second),
		RatePrefix4: 32,
		RatePrefix6: 64,
		State:       "/var/lib/" + name + "/gate.jsonl",
		MaxEntries:  262144,
		MaxSources:  65536,
	}
}

func (c *checker) gate() {
	t := &c.doc.Gate
	g := Gate{
		Burst: time.Duration(t.RateBurst), Prefix4: t.RatePrefix4, Prefix6: t.RatePrefix6,
		State: t.State, MaxEntries: t.MaxEntries, MaxSources: t.MaxSources,
	}
	if _, there := c.root["gate"]; there {
		g.Screens = t.Screens
	}
	for i, s := range t.Screens {
		if !slices.Contains(Screens, s) {
			c.add(element("gate.screens", i), "no screen is named %q: %s", shorten(s), meant(s, Screens))
		}
	}
	g.Deny = c.prefixList("gate.deny", t.Deny)
	g.Allow = c.prefixList("gate.allow", t.Allow)
	four := 0
	for _, p := range append(slices.Clone(g.Deny), g.Allow...) {
		if p.Addr().Is4() {
			four++
		}
	}
	if n := max(four, len(g.Deny)+len(g.Allow)-four); n > g.MaxEntries && !c.isBad("gate.max_entries") {
		c.add("gate", "deny and allow have %d prefixes of one IP version and max_entries is %d: want more, and twice as many where lists are exchanged", n, g.MaxEntries)
	}
	g.Packets = c.rate("gate.rate_packets", t.RatePackets, true, 1)
	g.Bytes = c.rate("gate.rate_bytes", t.RateBytes, false, 1000)
	g.SYNs = c.rate("gate.rate_syns", t.RateSYNs, true, 1)
	if (g.Burst < 10*time.Millisecond || g.Burst > time.Hour) && !c.isBad("gate.rate_burst") {
		c.add("gate.rate_burst", `want a duration from "10ms" to "1h", got %q`, t.RateBurst)
	}
	if p := pathProblem(t.State, 4000); p != "" && !c.isBad("gate.state") {
		c.add("gate.state", "%s", p)
	}
	c.config.Gate = g
}

// rate returns a rate in packets or bytes a second.
func (c *checker) rate(path string, r *units.Rate, packets bool, least float64) float64 {
	switch {
	case r == nil || c.isBad(path):
		return 0
	case r.Packets != packets && packets:
		c.add(path, `want a rate of packets such as "2000pkt/s", got %q`, r)
	case r.Packets != packets:
		c.add(path, `want a rate of bits or bytes such as "10Mbit/s", got %q`, r)
	case r.PerSecond < least || r.PerSecond > 1e12:
		c.add(path, "want a rate from %s to %s, got %q",
			units.Rate{PerSecond: least, Packets: packets}, units.Rate{PerSecond: 1e12, Packets: packets}, r)
	}
	return r.PerSecond
}

// prefixList returns the prefixes of a list, those in files too, each once.
func (c *checker) prefixList(path string, list []string) (out []netip.Prefix) {
	seen := map[netip.Prefix]bool{}
	put := func(p netip.Prefix) {
		if p = gate.Unmap(p); !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	for i, s := range list {
		at := element(path, i)
		if file, ok := strings.CutPrefix(s, "file:"); ok {
			for _, p := range c.prefixFile(at, file) {
				put(p)
			}
			continue
		}
		var p units.Prefix
		if err := p.UnmarshalText([]byte(s)); err != nil {
			c.add(at, "%s, or \"file:PATH\"", oneLine(err.Error()))
			continue
		}
		put(p.Prefix)
	}
	return out
}

// prefixFile reads a list; a relative path begins where the configuration is.
func (c *checker) prefixFile(path, file string) []netip.Prefix {
	if file == "" {
		c.add(path, `want the path of a file behind "file:", got nothing`)
		return nil
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(filepath.Dir(c.file), file)
	}
	f, err := os.Open(file)
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		c.add(path, "open %s: %v", file, err)
		return nil
	}
	defer f.Close()
	list, problems, err := gate.ReadList(f)
	if err != nil {
		c.add(path, "read %s: %v", file, err)
	}
	for _, p := range problems {
		c.elsewhere = append(c.elsewhere, Problem{File: file, Line: p.Line, Col: p.Col, Text: p.Text})
	}
	return list
}

func (c *Config) explainGate(b *strings.Builder) {
	g := &c.Gate
	var rows table
	if n := len(g.Deny) + len(g.Allow); n > 0 {
		rows = append(rows, []string{"lists", fmt.Sprintf("%d denied, %d allowed", len(g.Deny), len(g.Allow))})
	}
	if len(g.Screens) > 0 {
		rows = append(rows, []string{"screens", strings.Join(g.Screens, ", ")})
	}
	var rates []string
	for _, r := range []struct {
		rate    float64
		packets bool
		what    string
	}{{g.Packets, true, ""}, {g.Bytes, false, ""}, {g.SYNs, true, " of SYNs"}} {
		if r.rate > 0 {
			rates = append(rates, units.Rate{PerSecond: r.rate, Packets: r.packets}.String()+r.what)
		}
	}
	if len(rates) > 0 {
		rows = append(rows, []string{"rates", fmt.Sprintf("%s for each /%d and /%d, bursts of %v", strings.Join(rates, ", "), g.Prefix4, g.Prefix6, g.Burst)})
	}
	if len(rows) > 0 {
		b.WriteString("\ngate: before everything else\n")
		rows.write(b)
	}
}
