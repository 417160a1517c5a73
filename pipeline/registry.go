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
	// or "" if they release flows (Packet.Release, StreamRelease). nil: they
	// never do. For NewBoundary it says so of connections that are terminated, and
	// nil means that the streams decide.
	Holds func(c C) string

	// Releases says when a stage that does not hold flows lets go of one; for
	// people.
	Releases func(c C) string

	// Describe returns lines about what a configuration comes to, such as its
	// rules; for people. nil: there is nothing to say.
	Describe func(c C) []string

	// Needs returns what a stage with this configuration does with connections,
	// and why; only for NewStream. nil: NeedDeny.
	Needs func(c C) (Need, string)

	// Depth returns the depth that flows of a chain with this stage have if the
	// stream stages behind it need n at most, and why; "" if that follows from n.
	// Only for NewBoundary.
	Depth func(c C, n Need) (Depth, string)

	// Resumes reports whether a stage that inspects goes on with connections whose
	// beginning it has not seen; only for NewBoundary. nil: it does not.
	Resumes func(c C) bool

	// Suits adds the problems of a configuration whose stream stages need n,
	// because of the stage of that name; only for NewBoundary. nil: all suits.
	Suits func(c C, n Need, stage, why string, issues *Issues)
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
	depth       func(any, Need) (Depth, string)
	holds       func(any) string
	releases    func(any) string
	describe    func(any) []string
	needs       func(any) (Need, string)
	resumes     func(any) bool
	suits       func(any, Need, string, string, *Issues)
}

// NewConfig returns a pointer to a Config with the defaults set.
func (k *Kind) NewConfig() any { return k.newConfig() }

// Validate adds the problems of config, which NewConfig made.
func (k *Kind) Validate(config any, issues *Issues) {
	if k.validate != nil {
		k.validate(config, issues)
	}
}

// Depth returns the depth that a stage of this kind brings its flows to if the
// stream stages behind it need n, and why; "" if that follows from n. Packet
// stages need no more than forward.
func (k *Kind) Depth(config any, n Need) (Depth, string) {
	if k.depth == nil {
		return DepthForward, ""
	}
	return k.depth(config, n)
}

// Suits adds the problems that a stage of this kind has with what the stream
// stages behind it need.
func (k *Kind) Suits(config any, n Need, stage, why string, issues *Issues) {
	if k.suits != nil {
		k.suits(config, n, stage, why, issues)
	}
}

// Needs returns what a stream stage of this kind does with connections, and why.
func (k *Kind) Needs(config any) (Need, string) {
	switch {
	case k.Layer != StreamLayer:
		return NeedNothing, ""
	case k.needs == nil:
		return NeedDeny, "may deny connections"
	}
	return k.needs(config)
}

// Releases says when a stage of this kind lets go of a flow, or "".
func (k *Kind) Releases(config any) string {
	if k.releases == nil {
		return ""
	}
	return k.releases(config)
}

// Describe returns lines about what a configuration comes to, for people.
func (k *Kind) Describe(config any) []string {
	if k.describe == nil {
		return nil
	}
	return k.describe(config)
}

// Holds returns why a stage of this kind never lets go of a flow, or "".
func (k *Kind) Holds(config any) string {
	switch {
	case k.holds != nil:
		return k.holds(config)
	case k.Layer == BoundaryLayer:
		return "" // its depth and the stages behind it decide
	case k.Layer == StreamLayer:
		return "looks at every byte"
	}
	return "looks at every packet"
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
		k.depth = func(c any, n Need) (Depth, string) { return d.Depth(*c.(*C), n) }
	}
	if d.Needs != nil {
		k.needs = func(c any) (Need, string) { return d.Needs(*c.(*C)) }
	}
	if d.Suits != nil {
		k.suits = func(c any, n Need, stage, why string, i *Issues) { d.Suits(*c.(*C), n, stage, why, i) }
	}
	if d.Resumes != nil {
		k.resumes = func(c any) bool { return d.Resumes(*c.(*C)) }
	}
	if d.Releases != nil {
		k.releases = func(c any) string { return d.Releases(*c.(*C)) }
	}
	if d.Describe != nil {
		k.describe = func(c any) []string { return d.Describe(*c.(*C)) }
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
