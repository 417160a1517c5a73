package config

import (
	"fmt"
	"maps"
	"reflect"

	"penstock/pipeline"
)

// reserved are the targets of a steer rule that are not chains.
var reserved = []string{"bypass", "drop"}

func (c *checker) chains() {
	seen := map[string]string{}
	c.doc.Chain = atMost(c, "chain", "[[chain]] tables", c.doc.Chain, MaxChains)
	for i, t := range c.doc.Chain {
		path := element("chain", i)
		if t.Name == reserved[0] || t.Name == reserved[1] {
			c.add(path+".name", "%q is what a rule says to send flows past all chains: want another name", t.Name)
		}
		c.name(seen, path, t.Name, "the chain's name, for use in rules and figures")
		chain := Chain{Name: t.Name, Offload: t.Offload, Line: c.ix.line(path), Spec: pipeline.ChainSpec{Name: t.Name, KeepFlows: t.Offload == "never"}}
		if n := len(t.Stage); n > MaxStages {
			c.addIn(element(path+".stage", MaxStages), path, "want at most %d stages in a chain, got %d", MaxStages, n)
			t.Stage = t.Stage[:MaxStages]
		}
		problems := len(c.problems)
		chain.Spec.Stages = c.stages(path+".stage", t.Stage)
		if len(c.problems) == problems {
			c.suits(path+".stage", &chain.Spec)
		}
		c.config.Chains = append(c.config.Chains, chain)
	}
}

// stages decodes the stages of a chain, each by the configuration type of its
// kind, and checks that packets come before the boundary and streams after.
func (c *checker) stages(path string, tables []map[string]any) []pipeline.StageSpec {
	specs := make([]pipeline.StageSpec, 0, len(tables))
	kinds := make([]*pipeline.Kind, len(tables))
	boundary, unknown := -1, false
	for i, t := range tables {
		kinds[i] = c.kind(element(path, i), t)
		if kinds[i] == nil {
			unknown = true
			continue
		}
		if kinds[i].Layer == pipeline.BoundaryLayer && boundary < 0 {
			boundary = i
		}
		specs = append(specs, c.stage(element(path, i), kinds[i], t))
	}
	for i, k := range kinds {
		if k == nil {
			continue
		}
		at := element(path, i) + ".kind"
		first := func() string {
			return fmt.Sprintf("stage %d (%s) in line %d", boundary+1, kinds[boundary].Name, c.ix.line(element(path, boundary)))
		}
		switch {
		case k.Layer == pipeline.StreamLayer && boundary < 0 && unknown:
			// The stage that was not understood may be the boundary.
		case k.Layer == pipeline.StreamLayer && boundary < 0:
			c.addIn(at, element(path, i), "a stage for streams needs a %s stage before it, and the chain has none", choiceOf(c.boundaries()))
		case k.Layer == pipeline.StreamLayer && i < boundary:
			c.addIn(at, element(path, i), "a stage for streams must come after %s", first())
		case k.Layer == pipeline.PacketLayer && boundary >= 0 && i > boundary:
			c.addIn(at, element(path, i), "a stage for packets must come before %s: behind it there are only streams", first())
		case k.Layer == pipeline.BoundaryLayer && i > boundary:
			c.addIn(at, element(path, i), "a chain has one stage of this kind, and it is %s", first())
		}
	}
	return specs
}

// suits checks that the boundary can give the stream stages what they need.
func (c *checker) suits(path string, spec *pipeline.ChainSpec) {
	need, stage, why := spec.Need()
	for i, st := range spec.Stages {
		issues := pipeline.Issues{Ports: c.portNames()}
		st.Kind.Suits(st.Config, need, stage, why, &issues)
		for _, is := range issues.List {
			c.issue(element(path, i), is)
		}
	}
}

// kind returns the kind that a stage's table names, or nil.
func (c *checker) kind(path string, t map[string]any) *pipeline.Kind {
	if c.isBad(path) {
		return nil // not a table
	}
	v, ok := t["kind"]
	if !ok {
		c.add(path, "kind is missing: want %s", choice(c.kindNames()))
		return nil
	}
	name, ok := v.(string)
	if !ok {
		c.add(path+".kind", "want a string, got %s", describe(v))
		return nil
	}
	k := c.reg.Lookup(name)
	if k == nil {
		c.addIn(path+".kind", path, "unknown stage kind %q: %s", shorten(name), meant(name, c.kindNames()))
	}
	return k
}

// stage decodes and validates a stage's own keys.
func (c *checker) stage(path string, k *pipeline.Kind, t map[string]any) pipeline.StageSpec {
	own := maps.Clone(t)
	delete(own, "kind")
	spec := pipeline.StageSpec{Kind: k, Config: k.NewConfig(), Shared: new(pipeline.Shared)}
	c.value(path, own, reflect.ValueOf(spec.Config).Elem(), "")
	issues := pipeline.Issues{Ports: c.portNames(), Sets: c.config.Sets}
	k.Validate(spec.Config, &issues)
	for _, is := range issues.List {
		c.issue(path, is)
	}
	return spec
}

// portNames is nil if there are no ports: that is a problem of its own.
func (c *checker) portNames() (names []string) {
	for _, p := range c.config.Ports {
		names = append(names, p.Name)
	}
	return names
}

func (c *checker) kindNames() (names []string) {
	for _, k := range c.reg.Kinds() {
		names = append(names, k.Name)
	}
	return names
}

func (c *checker) boundaries() (names []string) {
	for _, k := range c.reg.Kinds() {
		if k.Layer == pipeline.BoundaryLayer {
			names = append(names, k.Name)
		}
	}
	return names
}

func choiceOf(names []string) string {
	if len(names) == 1 {
		return names[0]
	}
	return choice(names)
}
