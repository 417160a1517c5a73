// Package acl is the packet stage that filters by header fields: it drops, forwards or lets continue each packet by the
// first rule that it meets. It keeps no state.
//
// Its one trap: rules are about packets, not connections. What a client sends has its address in src, what it is sent
// has it in dst.
package acl

import (
	_ "embed"
	"fmt"

	"penstock/internal/match"
	"penstock/internal/wire"
	"penstock/pipeline"
)

//go:embed README.md
var readme string

// Descriptor describes the stage to the registry.
func Descriptor() pipeline.Descriptor[Config] {
	return pipeline.Descriptor[Config]{
		Kind:     "acl",
		Summary:  "drops, forwards or lets continue each packet by the first rule that it meets",
		README:   readme,
		Reasons:  []pipeline.Reason{reasonDenied, reasonDefault},
		Default:  defaults,
		Validate: validate,
		New:      newStage,
		Releases: func(Config) string { return "with the first packet, if both directions share a fate" },
		Holds: func(c Config) string {
			for i := range c.Rules {
				if f := &c.Rules[i].Fields; f.Flags.Set|f.Flags.Clear != 0 || f.Fragment != nil {
					return fmt.Sprintf("rule %d looks at TCP flags or fragments, which differ from packet to packet", i+1)
				}
			}
			return ""
		},
	}
}

type stage struct {
	set         *match.Set
	rules       []rule
	dropDefault bool
	env         *pipeline.Env

	unmatched, laterFragments *pipeline.Counter
}

// rule is what to do for a rule of the set.
type rule struct {
	act  action
	hits *pipeline.Counter // nil: not counted
}

type action uint8

const (
	doContinue action = iota
	doDrop
	doForward
)

var actions = map[string]action{actionContinue: doContinue, actionDrop: doDrop, actionForward: doForward}

// compiled is the result of match.Compile, which all workers share.
type compiled struct {
	set *match.Set
	err error
}

func newStage(c Config, env *pipeline.Env) (pipeline.Stage, error) {
	shared := env.Shared.Get("rules", func() any {
		set, err := match.Compile(c.fields(), env.Ports)
		return compiled{set, err}
	}).(compiled)
	if shared.err != nil {
		return nil, shared.err
	}
	s := &stage{
		set: shared.set, rules: make([]rule, len(c.Rules)), dropDefault: c.Default == actionDrop, env: env,
		unmatched:      env.Counters.Counter("unmatched", "packets that met no rule"),
		laterFragments: env.Counters.Counter("later_fragments", "packets that were later fragments, which no rule with ports or flags can meet"),
	}
	for i, r := range c.Rules {
		s.rules[i].act = actions[r.Action]
		if r.Name != "" {
			s.rules[i].hits = env.Counters.Counter("hits_"+r.Name, "packets for which the rule of that name decided")
		}
	}
	return s, nil
}

// Process implements pipeline.Stage.
func (s *stage) Process(b *pipeline.Batch) {
	var unmatched, later uint64
	for p := range b.Live() {
		if p.Frag == wire.FragLater {
			later++
		}
		i := s.set.Match(p)
		if s.env.Offload && p.HasFlow && s.drops(i) == s.drops(s.set.MatchReply(p, p.Out)) {
			p.Release() // all packets of the flow have the same fate
		}
		if i < 0 {
			unmatched++
			if s.dropDefault {
				p.Drop(reasonDefault)
			} else {
				p.Continue()
			}
			continue
		}
		r := &s.rules[i]
		if r.hits != nil {
			r.hits.Add(1)
		}
		switch r.act {
		case doDrop:
			p.Drop(reasonDenied)
		case doForward:
			p.Forward(p.Out)
		default:
			p.Continue()
		}
	}
	if unmatched > 0 {
		s.unmatched.Add(unmatched)
	}
	if later > 0 {
		s.laterFragments.Add(later)
	}
}

// drops reports whether rule i drops; -1 is the default.
func (s *stage) drops(i int) bool {
	if i < 0 {
		return s.dropDefault
	}
	return s.rules[i].act == doDrop
}
