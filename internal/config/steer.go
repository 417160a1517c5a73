package config

import (
	"net/netip"
	"slices"

	"penstock/internal/units"
	"penstock/pipeline"
)

func (c *checker) steers() {
	entries := 0
	for i, t := range atMost(c, "steer", "[[steer]] tables", c.doc.Steer, MaxRules) {
		path := element("steer", i)
		s := Steer{From: c.from(path, t.From), Proto: t.Proto, Src: t.Src, Dst: t.Dst, SrcPort: t.SrcPort, DstPort: t.DstPort, To: c.target(path, t.To), Line: c.ix.line(path)}
		c.empty(path+".src", t.Src != nil && len(t.Src) == 0)
		c.empty(path+".dst", t.Dst != nil && len(t.Dst) == 0)
		c.empty(path+".src_port", t.SrcPort != nil && len(t.SrcPort) == 0)
		c.empty(path+".dst_port", t.DstPort != nil && len(t.DstPort) == 0)
		if t.Proto == "icmp" {
			for _, key := range []string{"src_port", "dst_port"} {
				if c.has(path, key) {
					c.add(child(path, key), `proto is "icmp", which has no ports: want "tcp", "udp" or "any"`)
				}
			}
		}
		if !c.isBad(path+".src") && !c.isBad(path+".dst") {
			n := pairs(t.Src, t.Dst) * max(len(t.SrcPort), 1) * max(len(t.DstPort), 1)
			if n == 0 {
				c.add(path+".dst", "src and dst have no address family in common, so the rule matches nothing")
			}
			if entries <= MaxRules && entries+n > MaxRules {
				c.add(path, "the rules up to this one take %d entries in XDP (one for each combination of prefixes and port ranges): want at most %d", entries+n, MaxRules)
			}
			entries += n
		}
		c.config.Steer = append(c.config.Steer, s)
	}
}

func (c *checker) empty(path string, isEmpty bool) {
	if isEmpty {
		c.add(path, "the list is empty, so the rule matches nothing: leave the key out to match any")
	}
}

// pairs returns in how many ways a source and a destination of one address
// family can be chosen; an absent list is one choice.
func pairs(src, dst []units.Prefix) int {
	if src == nil || dst == nil {
		return max(len(src), 1) * max(len(dst), 1)
	}
	s4, d4 := count4(src), count4(dst)
	return s4*d4 + (len(src)-s4)*(len(dst)-d4)
}

// count4 returns how many of the prefixes are IPv4.
func count4(list []units.Prefix) (n int) {
	for _, p := range list {
		if p.Addr().Is4() {
			n++
		}
	}
	return n
}

// from resolves the name of a port.
func (c *checker) from(path, name string) pipeline.PortID {
	if !c.has(path, "from") || c.isBad(path+".from") {
		return pipeline.NoPort
	}
	var names []string
	for i, p := range c.doc.Port {
		if p.Name == name && name != "" && i < int(pipeline.NoPort) {
			return pipeline.PortID(i)
		}
		if p.Name != "" {
			names = append(names, p.Name)
		}
	}
	c.add(path+".from", "no port is named %q: %s", shorten(name), meant(name, names))
	return pipeline.NoPort
}

// target resolves the name of a chain, or a reserved word.
func (c *checker) target(path, name string) Target {
	t := Target{Action: ToDrop, Chain: pipeline.NoChain}
	names := slices.Clone(reserved)
	if c.missing(path, "to", `the name of a chain, "bypass" or "drop"`) || c.isBad(path+".to") {
		return t
	}
	switch name {
	case "bypass":
		t.Action = ToBypass
		return t
	case "drop":
		return t
	}
	for i, ch := range c.doc.Chain {
		if ch.Name == name && name != "" && i < int(pipeline.NoChain) {
			return Target{Action: ToChain, Chain: pipeline.ChainID(i)}
		}
		if ch.Name != "" {
			names = append(names, ch.Name)
		}
	}
	c.add(path+".to", "no chain is named %q: %s", shorten(name), meant(name, names))
	return t
}

// warnings looks for what is allowed and probably not meant. It runs on a
// Config without problems.
func (c *checker) warnings() {
	cfg := c.config
	for i, p := range cfg.Ports {
		if p.Fault != nil {
			c.warn.add(element("port", i)+".fault", "FAULTS ARE ON: port %q harms traffic on purpose (%v); remove the table where this is no rehearsal", p.Name, p.Fault)
		}
	}
	reached := make([]bool, len(cfg.Chains))
	for i, s := range cfg.Steer {
		path := element("steer", i)
		if s.To.Action == ToChain {
			reached[s.To.Chain] = true
			ch := &cfg.Chains[s.To.Chain]
			if b := boundaryOf(&ch.Spec); b != "" && (s.Proto == "udp" || s.Proto == "icmp") {
				c.warn.add(path+".to", "chain %q has a %s stage, which lets %s pass unseen", ch.Name, b, s.Proto)
			}
		}
		for j := range i {
			if cfg.Steer[j].covers(&s) {
				c.warn.add(path, "never matches: steer %d in line %d takes all its flows", j+1, cfg.Steer[j].Line)
				break
			}
		}
	}
	for i, ok := range reached {
		if !ok {
			c.warn.add(element("chain", i), "no steer rule leads to it")
		}
	}
}

func boundaryOf(s *pipeline.ChainSpec) string {
	for _, st := range s.Stages {
		if st.Kind.Layer == pipeline.BoundaryLayer {
			return st.Kind.Name
		}
	}
	return ""
}

// covers reports whether s matches everything that o matches. It may miss
// cases in which several ranges together cover one.
func (s *Steer) covers(o *Steer) bool {
	if s.From != pipeline.NoPort && s.From != o.From {
		return false
	}
	ports := s.SrcPort != nil || s.DstPort != nil
	switch {
	case s.Proto == o.Proto:
	case s.Proto == "any" && (!ports || o.Proto == "tcp" || o.Proto == "udp"):
	default:
		return false
	}
	return coversPrefixes(s.Src, o.Src) && coversPrefixes(s.Dst, o.Dst) &&
		coversPorts(s.SrcPort, o.SrcPort) && coversPorts(s.DstPort, o.DstPort)
}

func coversPrefixes(a, b []units.Prefix) bool {
	if a == nil {
		return true
	}
	return b != nil && !slices.ContainsFunc(b, func(p units.Prefix) bool {
		return !slices.ContainsFunc(a, func(q units.Prefix) bool { return contains(q.Prefix, p.Prefix) })
	})
}

func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

func coversPorts(a, b []units.PortRange) bool {
	if a == nil {
		return true
	}
	return b != nil && !slices.ContainsFunc(b, func(p units.PortRange) bool {
		return !slices.ContainsFunc(a, func(q units.PortRange) bool { return q.First <= p.First && p.Last <= q.Last })
	})
}
