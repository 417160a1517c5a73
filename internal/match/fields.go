package match

import (
	"fmt"
	"slices"
	"strings"

	"penstock/internal/units"
	"penstock/internal/wire"
	"penstock/pipeline"
)

// Fields are the conditions of one rule. A packet meets the rule if it meets every field that is given; a list is met
// by any of its elements. A rule without any field is met by every packet.
type Fields struct {
	Src      []units.Prefix    `toml:"src"`      // the packet's own source address; IPv4 and IPv6 may be mixed
	Dst      []units.Prefix    `toml:"dst"`      // the packet's own destination address
	SrcPort  []units.PortRange `toml:"src_port"` // TCP or UDP source port; never met by a later fragment
	DstPort  []units.PortRange `toml:"dst_port"` // TCP or UDP destination port; never met by a later fragment
	Proto    Proto             `toml:"proto"`    // "tcp", "udp", "icmp", "icmpv6", "any" or a number
	Flags    Flags             `toml:"flags"`    // TCP flags that must be set or clear: "syn,!ack"; never met by a later fragment
	VLAN     []VLANRange       `toml:"vlan"`     // id of the outermost VLAN tag; 0 = none
	From     string            `toml:"from"`     // name of the port by which the packet came
	Fragment *bool             `toml:"fragment"` // true: later fragments only; false: all but later fragments
}

// Validate adds the problems of one rule, whose path is given ("rules[2]"). Where issues does not know which ports
// there are, Compile looks at From.
func (f *Fields) Validate(path string, issues *pipeline.Issues) {
	if path != "" {
		path += "."
	}
	src, dst := checkPrefixes(f.Src, path+"src", issues), checkPrefixes(f.Dst, path+"dst", issues)
	if src&dst == 0 {
		issues.Add(path+"dst", "no packet can meet this rule: src has addresses of one IP version only, dst of the other")
	}
	for _, c := range []struct {
		proto   uint8
		version ipVersions
		text    string
	}{
		{wire.ProtoICMP, v6, `"icmp" is the protocol of IPv4, and the addresses are IPv6: want "icmpv6"`},
		{wire.ProtoICMPv6, v4, `"icmpv6" is the protocol of IPv6, and the addresses are IPv4: want "icmp"`},
	} {
		if f.Proto.Set && f.Proto.Number == c.proto && src&dst == c.version {
			issues.Add(path+"proto", "%s", c.text)
		}
	}
	checkPorts(f.SrcPort, path+"src_port", issues)
	checkPorts(f.DstPort, path+"dst_port", issues)
	if f.hasPorts() && !f.Proto.is(wire.ProtoTCP) && !f.Proto.is(wire.ProtoUDP) {
		issues.Add(path+"proto", `must be "tcp", "udp" or "any" in a rule with ports, got %q`, f.Proto)
	}
	if f.Flags.Set&f.Flags.Clear != 0 {
		issues.Add(path+"flags", "a flag cannot be both set and clear")
	}
	if !f.Flags.any() && !f.Proto.is(wire.ProtoTCP) {
		issues.Add(path+"proto", `must be "tcp" in a rule with TCP flags, got %q`, f.Proto)
	}
	for i, r := range f.VLAN {
		if r.First > r.Last || r.Last > maxVLAN {
			issues.Add(fmt.Sprintf("%svlan[%d]", path, i), "want VLAN ids from 0 to %d, the lower one first, got %s", maxVLAN, r)
		}
	}
	if f.From != "" && issues.Ports != nil && !slices.Contains(issues.Ports, f.From) {
		issues.Add(path+"from", "want the name of a port (%s), got %q", strings.Join(issues.Ports, ", "), f.From)
	}
	if f.Fragment != nil && *f.Fragment && (f.hasPorts() || !f.Flags.any()) {
		issues.Add(path+"fragment", "no packet can meet this rule: later fragments have neither ports nor flags")
	}
}

func (f *Fields) hasPorts() bool { return len(f.SrcPort) > 0 || len(f.DstPort) > 0 }

// ipVersions is a set of IP versions.
type ipVersions uint8

const (
	v4 ipVersions = 1 << iota
	v6
)

// checkPrefixes returns the IP versions that can meet the list: both if it is empty or wrong.
func checkPrefixes(list []units.Prefix, path string, issues *pipeline.Issues) (versions ipVersions) {
	ok := len(list) > 0
	for i, p := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		switch {
		case !p.IsValid():
			issues.Add(at, `want an address or a prefix such as "10.0.0.0/8"`)
		case p.Masked() != p.Prefix:
			issues.Add(at, "prefix %s has bits beyond its length: want %s", p.Prefix, p.Masked())
		case p.Addr().Is4In6():
			issues.Add(at, "%s is an IPv4 prefix in IPv6 notation, which no packet carries: want it in IPv4 notation", p.Prefix)
		case p.Addr().Is4():
			versions |= v4
			continue
		default:
			versions |= v6
			continue
		}
		ok = false
	}
	if !ok {
		return v4 | v6
	}
	return versions
}

func checkPorts(list []units.PortRange, path string, issues *pipeline.Issues) {
	for i, r := range list {
		if r.First == 0 || r.First > r.Last {
			issues.Add(fmt.Sprintf("%s[%d]", path, i), "want a port from 1 to 65535 or a range, the lower one first, got %s", r)
		}
	}
}
