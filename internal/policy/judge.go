package policy

import (
	"errors"
	"net/netip"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"penstock/pipeline"
)

// Verdict is what the rules make of one T.
type Verdict struct {
	Deny bool
	// Failed says that it is denied because a rule could not be evaluated.
	Failed bool
	// Rules are the labels of the rules that applied, in their order: those that
	// log, and the one that decided. Not the caller's to change.
	Rules []string
}

// Judge evaluates rules for one worker. It must not be copied.
type Judge[T any] struct {
	rules  *Rules[T]
	hits   []*pipeline.Counter // nil: a rule without a name
	failed *pipeline.Counter

	// Of one judgement.
	about  *T
	values []ref.Val
}

// Load returns the judge of a stage's instance, nil if it has no rules. Instances
// of one stage share what is compiled. Rules and sets are those that Check had no
// issue with.
func Load[T any](env *pipeline.Env, vars []Var[T], rules []Rule, sets map[string][]netip.Prefix) (*Judge[T], error) {
	if len(rules) == 0 {
		return nil, nil
	}
	var err error
	build := func() any {
		var r *Rules[T]
		r, err = New(vars, rules, sets)
		return r
	}
	if env.Shared == nil {
		r := build().(*Rules[T])
		return r.NewJudge(env.Counters), err
	}
	r := env.Shared.Get("rules", build).(*Rules[T])
	if err == nil && r == nil {
		err = errors.New("compile rules: another instance could not")
	}
	return r.NewJudge(env.Counters), err
}

// NewJudge returns a judge, or nil if there are no rules. It makes its counters:
// rule_NAME for each rule with a name, and rule_failed.
func (r *Rules[T]) NewJudge(set *pipeline.CounterSet) *Judge[T] {
	if r.Len() == 0 {
		return nil
	}
	j := &Judge[T]{rules: r, values: make([]ref.Val, len(r.vars)), hits: make([]*pipeline.Counter, len(r.list))}
	j.failed = set.Counter("rule_failed", "judgements of a rule that could not be evaluated, or cost too much: they deny")
	for i := range r.list {
		if name := r.list[i].Name; name != "" {
			j.hits[i] = set.Counter("rule_"+name, "judgements in which the rule applied")
		}
	}
	return j
}

// Uses reports whether any rule asks for the variable.
func (j *Judge[T]) Uses(name string) bool { return j != nil && j.rules.used[name] }

// Judge asks the rules, in order, about t. The first that applies and does not
// only log decides; without one t is allowed. A rule that cannot be evaluated
// denies, one that only logs does not apply then. A nil Judge allows.
func (j *Judge[T]) Judge(t *T) (v Verdict) {
	if j == nil {
		return Verdict{}
	}
	j.about = t
	for i := range j.rules.list {
		r := &j.rules.list[i]
		out, _, err := r.program.Eval(j)
		switch {
		case err != nil || out == nil:
			j.failed.Add(1)
			if r.Action == actionLog {
				continue
			}
			v.Failed = true
		case out != types.True:
			continue
		}
		v.Rules = append(v.Rules, r.label)
		if c := j.hits[i]; c != nil && !v.Failed {
			c.Add(1)
		}
		if r.Action != actionLog {
			v.Deny = v.Failed || r.Action == actionDeny
			break
		}
	}
	j.about = nil
	clear(j.values) // they may refer to bytes that are valid only now
	return v
}

var _ cel.Activation = (*Judge[int])(nil)

// ResolveName implements cel.Activation: the value of a variable, which is made
// when the first rule asks for it.
func (j *Judge[T]) ResolveName(name string) (any, bool) {
	i, ok := j.rules.index[name]
	if !ok {
		return nil, false
	}
	if j.values[i] == nil {
		j.values[i] = j.rules.vars[i].get(j.about)
	}
	return j.values[i], true
}

// Parent implements cel.Activation.
func (j *Judge[T]) Parent() cel.Activation { return nil }
