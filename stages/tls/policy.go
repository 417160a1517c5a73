package tls

import (
	"net/netip"

	"penstock/internal/hostname"
	"penstock/internal/tlshello"
	"penstock/pipeline"
)

// lists is a Config, but for its rules, as it is asked for each hello.
type lists struct {
	denySNI, allowSNI *hostname.Set // nil: no list
	denyJA4, allowJA4 []string
	places            []place
	minVersion        uint16
	denyECH           bool
}

// place is an entry of require_sni_match.
type place struct {
	names *hostname.Set
	dst   []netip.Prefix
}

func newLists(c *Config) lists {
	p := lists{denyJA4: c.DenyJA4, allowJA4: c.AllowJA4, minVersion: versions[c.MinVersion], denyECH: c.DenyECH}
	if len(c.DenySNI) > 0 {
		p.denySNI = hostname.NewSet(c.DenySNI)
	}
	if len(c.AllowSNI) > 0 {
		p.allowSNI = hostname.NewSet(c.AllowSNI)
	}
	for _, m := range c.RequireSNIMatch {
		pl := place{names: hostname.NewSet(m.SNI)}
		for _, d := range m.Dst {
			pl.dst = append(pl.dst, d.Prefix)
		}
		p.places = append(p.places, pl)
	}
	return p
}

// asksJA4 reports whether fingerprints decide anything.
func (p *lists) asksJA4() bool { return len(p.denyJA4)+len(p.allowJA4) > 0 }

// judge returns why a hello with this server name ("": none) to this destination
// is refused, or ReasonNone. ja4 is nil for a second hello: it differs from the
// first in ways that the server asked for.
func (p *lists) judge(h *tlshello.ClientHello, name string, dst netip.Addr, ja4 []byte) pipeline.Reason {
	switch {
	case p.denySNI != nil && p.denySNI.Match(name), p.allowSNI != nil && !p.allowSNI.Match(name):
		return reasonSNI
	case len(p.places) > 0 && !p.placed(name, dst):
		return reasonMismatch
	case p.denyECH && (h.ECH || h.ESNI):
		return reasonECH
	case h.MaxVersion < p.minVersion:
		return reasonVersion
	case ja4 != nil && (matchAny(p.denyJA4, ja4) || len(p.allowJA4) > 0 && !matchAny(p.allowJA4, ja4)):
		return reasonJA4
	}
	return pipeline.ReasonNone
}

// placed asks the first entry that has the name.
func (p *lists) placed(name string, dst netip.Addr) bool {
	dst = dst.Unmap()
	for i := range p.places {
		if !p.places[i].names.Match(name) {
			continue
		}
		for _, prefix := range p.places[i].dst {
			if prefix.Contains(dst) {
				return true
			}
		}
		return false
	}
	return false
}

func matchAny(patterns []string, s []byte) bool {
	for _, p := range patterns {
		if glob(p, s) {
			return true
		}
	}
	return false
}

// glob reports whether s is the pattern, in which * stands for any run of
// characters. When characters differ it goes back to the last *, which takes
// one more: the product of the lengths bounds the steps.
func glob(pattern string, s []byte) bool {
	star, mark := -1, 0
	i, k := 0, 0
	for k < len(s) {
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, mark = i, k
			i++
		case i < len(pattern) && pattern[i] == s[k]:
			i++
			k++
		case star >= 0:
			mark++
			i, k = star+1, mark
		default:
			return false
		}
	}
	for i < len(pattern) && pattern[i] == '*' {
		i++
	}
	return i == len(pattern)
}
