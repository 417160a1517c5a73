package config

import (
	"maps"
	"net/netip"
	"slices"

	"penstock/internal/policy"
)

// MaxSets is how many [set] tables there may be.
const MaxSets = 256

// sets resolves the named sets, so that stages can use them.
func (c *checker) sets() {
	c.config.Sets = make(map[string][]netip.Prefix, len(c.doc.Set))
	for i, name := range slices.Sorted(maps.Keys(c.doc.Set)) {
		path := child("set", name)
		if i == MaxSets {
			c.addIn(path, "", "want at most %d [set] tables, got %d", MaxSets, len(c.doc.Set))
			return
		}
		if problem := policy.SetNameProblem(name); problem != "" {
			c.add(path, "%s", problem)
			continue
		}
		t := c.doc.Set[name]
		if len(t.Prefixes) == 0 && !c.isBad(path+".prefixes") {
			c.add(path, `prefixes is missing: want a list such as ["10.0.0.0/8", "fd00::/8"]`)
		}
		c.config.Sets[name] = c.prefixList(path+".prefixes", t.Prefixes)
	}
}
