package pipeline

import (
	"fmt"
	"slices"
	"strings"
)

// Descriptor describes a kind of stage to the registry. C is its Config. Kind
// is the folder, the TOML kind and the metric label: one lower-case word. One
// of New, NewStream and NewBoundary is set; it is called once for each worker.
type Descriptor[C any] struct {
	Kind    string
	Summary string // one sentence
	README  string // the stage's manual, Markdown
	Reasons []Reason

	// Affinity says that both directions of a flow must come to one instance.
	Affinity bool

	Default  func() C
	Validate func(c *C, issues *Issues) // adds every problem it finds, not the first

	New         func(c C, env *Env) (Stage, error)                                        // a packet stage
	NewStream   func(c C, env *Env) (StreamStage, error)                                  // a stream stage, behind tcp
	NewBoundary func(c C, env *Env, streams []StreamStage, names []string) (Stage, error) // tcp: packets before it, streams behind

	// Holds returns why stages with this configuration never let go of a flow,
	// or "" if they release flows (Packet.Release). nil: they never do.
	Holds func(c C) string

	// Depth returns the depth that flows of a chain with this stage have, and
	// why; only for NewBoundary.
	Depth func(c C) (Depth, string)
}

// Layer says what a stage is shown.
type Layer uint8

// The layers.
const (
	PacketLayer   Layer = iota // packets
	BoundaryLayer              // packets in, streams out: everything behind it is StreamLayer
	StreamLayer                // ordered bytes of connections
)

// Kind is a registered stage kind with its Config's type erased.
type Kind struct {
	Name, Summary, README string
	Layer                 Layer
	Reasons               []Reason
	Affinity              bool

	newConfig   func() any
	validate    func(any, *Issues)
	build       func(any, *Env) (Stage, error)
	buildStream func(any, *Env) (StreamStage, error)
	buildBound  func(any, *Env, []StreamStage, []string) (Stage, error)
	depth       func(any) (Depth, string)
	holds       func(any) string
}

// NewConfig returns a pointer to a Config with the defaults set.
func (k *Kind) NewConfig() any { return k.newConfig() }

// Validate adds the problems of config, which NewConfig made.
func (k *Kind) Validate(config any, issues *Issues) {
	if k.validate != nil {
		k.validate(config, issues)
	}
}

// Depth returns the depth that a stage of this kind brings its flows to, and
// why. Packet stages need no more than forward.
func (k *Kind) Depth(config any) (Depth, string) {
	if k.depth == nil {
		return DepthForward, ""
	}
	return k.depth(config)
}

// Holds returns why a stage of this kind never lets go of a flow, or "".
func (k *Kind) Holds(config any) string {
	switch {
	case k.Layer == StreamLayer:
		return "" // it sees connections: the boundary before it holds their flows
	case k.holds == nil:
		return "looks at every packet"
	}
	return k.holds(config)
}

// Registry holds the stage kinds that a configuration may name.
type Registry struct {
	kinds map[string]*Kind
}

// Register adds a kind. It panics on a duplicate or incomplete descriptor: a
// program that has one does not start.
func Register[C any](r *Registry, d Descriptor[C]) {
	k := &Kind{Name: d.Kind, Summary: d.Summary, README: d.README, Reasons: d.Reasons, Affinity: d.Affinity}
	k.newConfig = func() any {
		c := new(C)
		if d.Default != nil {
			*c = d.Default()
		}
		return c
	}
	if d.Validate != nil {
		k.validate = func(c any, i *Issues) { d.Validate(c.(*C), i) }
	}
	constructors := 0
	if d.New != nil {
		constructors++
		k.Layer = PacketLayer
		k.build = func(c any, e *Env) (Stage, error) { return d.New(*c.(*C), e) }
	}
	if d.NewStream != nil {
		constructors++
		k.Layer = StreamLayer
		k.buildStream = func(c any, e *Env) (StreamStage, error) { return d.NewStream(*c.(*C), e) }
	}
	if d.NewBoundary != nil {
		constructors++
		k.Layer = BoundaryLayer
		k.buildBound = func(c any, e *Env, s []StreamStage, n []string) (Stage, error) {
			return d.NewBoundary(*c.(*C), e, s, n)
		}
	}
	if d.Depth != nil {
		k.depth = func(c any) (Depth, string) { return d.Depth(*c.(*C)) }
	}
	if d.Holds != nil {
		k.holds = func(c any) string { return d.Holds(*c.(*C)) }
	}
	if d.Kind == "" || constructors != 1 {
		panic(fmt.Sprintf("pipeline: stage kind %q needs a name and exactly one constructor", d.Kind))
	}
	if r.kinds == nil {
		r.kinds = make(map[string]*Kind)
	}
	if r.kinds[d.Kind] != nil {
		panic(fmt.Sprintf("pipeline: stage kind %q is registered twice", d.Kind))
	}
	r.kinds[d.Kind] = k
}

// Lookup returns the kind of that name, or nil.
func (r *Registry) Lookup(name string) *Kind { return r.kinds[name] }

// Kinds returns all kinds, sorted by name.
func (r *Registry) Kinds() []*Kind {
	all := make([]*Kind, 0, len(r.kinds))
	for _, k := range r.kinds {
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b *Kind) int { return strings.Compare(a.Name, b.Name) })
	return all
}
