package policy

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/checker"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/ext"

	"penstock/pipeline"
)

// Bounds of what rules may be.
const (
	MaxRules = 64
	maxChars = 4096 // of an expression
	maxDepth = 64   // of its nesting
	maxRegex = 2000 // instructions of a compiled pattern
	maxName  = 40
	// MaxCost is what the rules of a stage may cost together for one judgement,
	// in CEL's units: about one for each step, and one for ten characters that a
	// step reads.
	MaxCost = 100_000
)

// Rule is a rule in the configuration.
type Rule struct {
	// An expression that is true where the rule applies.
	If string `toml:"if"`
	// "deny", "allow" (no later rule is asked), or "log" (the record says so, and
	// the next rule is asked).
	Action string `toml:"action"`
	// Names the rule in records and gives it a counter, rule_NAME.
	Name string `toml:"name"`
}

const (
	actionDeny  = "deny"
	actionAllow = "allow"
	actionLog   = "log"
)

// Rules is a compiled list of rules about a T. It does not change and may be
// shared by any number of workers. The zero value and nil have no rules.
type Rules[T any] struct {
	vars  []Var[T]
	index map[string]int // by a variable's name
	list  []rule
	used  map[string]bool
	sets  map[string][]netip.Prefix // that are used
}

type rule struct {
	Rule
	label   string // its name, else "rules[2]"
	program cel.Program
	cost    uint64 // at most
}

// Len returns the number of rules.
func (r *Rules[T]) Len() int {
	if r == nil {
		return 0
	}
	return len(r.list)
}

// Refuse reports whether any of the rules may deny: also one that allows does, if
// it cannot be evaluated.
func Refuse(rules []Rule) bool {
	return slices.ContainsFunc(rules, func(r Rule) bool { return r.Action != actionLog })
}

// Describe returns a line for each rule that Check had no issue with: what it
// does, and what it costs at most.
func Describe[T any](vars []Var[T], rules []Rule, sets map[string][]netip.Prefix) (lines []string) {
	r, err := New(vars, rules, sets)
	if err != nil || r == nil {
		return nil
	}
	for i := range r.list {
		c := &r.list[i]
		lines = append(lines, fmt.Sprintf("%s: %s if %s (cost at most %d)", c.label, c.Action, strings.Join(strings.Fields(c.If), " "), c.cost))
	}
	return lines
}

// Check compiles the rules under key, for what is wrong with them, and returns the
// sets of the configuration that they use. These and the rules are plain values,
// so that two configurations can be compared.
func Check[T any](vars []Var[T], rules []Rule, key string, issues *pipeline.Issues) map[string][]netip.Prefix {
	if r := Compile(vars, rules, key, issues); r != nil {
		return r.sets
	}
	return nil
}

// New returns rules that Check had no issue with, with the sets that it returned.
func New[T any](vars []Var[T], rules []Rule, sets map[string][]netip.Prefix) (*Rules[T], error) {
	issues := pipeline.Issues{Sets: sets}
	r := Compile(vars, rules, "rules", &issues)
	if len(issues.List) > 0 {
		return nil, fmt.Errorf("compile %s: %s", issues.List[0].Path, issues.List[0].Text)
	}
	return r, nil
}

// Compile compiles the rules under key and adds an issue for everything that is
// wrong with them, at its character of the expression. The named sets of the
// configuration come with issues.
func Compile[T any](vars []Var[T], rules []Rule, key string, issues *pipeline.Issues) *Rules[T] {
	if len(rules) == 0 {
		return nil
	}
	r := &Rules[T]{vars: vars, index: map[string]int{}, used: map[string]bool{}, sets: map[string][]netip.Prefix{}}
	for i := range vars {
		r.index[vars[i].Name] = i
	}
	if len(rules) > MaxRules {
		issues.Add(fmt.Sprintf("%s[%d]", key, MaxRules), "want at most %d rules, got %d", MaxRules, len(rules))
		return nil
	}
	env, err := newEnv(vars, issues.Sets)
	if err != nil {
		issues.Add(key, "make expressions: %v", err)
		return nil
	}
	before, total, names := len(issues.List), uint64(0), map[string]int{}
	for i, one := range rules {
		path := fmt.Sprintf("%s[%d]", key, i)
		c := rule{Rule: one, label: one.Name}
		if one.Name == "" {
			c.label = path
		} else {
			validateName(one.Name, i, path, key, names, issues)
		}
		switch one.Action {
		case actionDeny, actionAllow, actionLog:
		case "":
			issues.Add(path, `action is missing: want "deny", "allow" or "log"`)
		default:
			issues.Add(path+".action", `want "deny", "allow" or "log", got %q`, one.Action)
		}
		r.compile(env, &c, path, issues)
		total = satAdd(total, c.cost)
		r.list = append(r.list, c)
	}
	if len(issues.List) == before && total > MaxCost {
		issues.Add(key, "want rules that cost at most %d together for one judgement, got %d", MaxCost, total)
	}
	if len(issues.List) > before {
		return nil
	}
	return r
}

func satAdd(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

func validateName(name string, i int, path, key string, names map[string]int, issues *pipeline.Issues) {
	if len(name) > maxName || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		issues.Add(path+".name", `must be up to %d lower-case letters, digits and "_", got %q`, maxName, name)
	} else if first, dup := names[name]; dup {
		issues.Add(path+".name", "%q is taken already by %s[%d]", name, key, first)
	} else {
		names[name] = i
	}
}

// newEnv makes the language: CEL's own functions, those for addresses, the
// variables and the sets.
func newEnv[T any](vars []Var[T], sets map[string][]netip.Prefix) (*cel.Env, error) {
	opts := []cel.EnvOption{
		cel.ParserExpressionSizeLimit(maxChars), cel.ParserRecursionLimit(maxDepth), cel.ExpressionNestingDepthLimit(2 * maxDepth),
		cel.ParserErrorRecoveryLimit(1), cel.RegexProgramSizeLimit(maxRegex),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals()),
		ext.Network(), cel.Types(setType),
		// The implementation is that of every container: set.Contains.
		cel.Function(operators.In, cel.Overload("ip_in_prefixes", []*cel.Type{ext.IPType, setType}, cel.BoolType)),
	}
	for i := range vars {
		opts = append(opts, cel.Variable(vars[i].Name, vars[i].typ))
	}
	for name, prefixes := range sets {
		opts = append(opts, cel.Constant(name, setType, newSet(prefixes)))
	}
	return cel.NewEnv(opts...)
}

// compile compiles one rule.
func (r *Rules[T]) compile(env *cel.Env, c *rule, path string, issues *pipeline.Issues) {
	if strings.TrimSpace(c.If) == "" {
		issues.Add(path, `if is missing: want an expression such as 'flow.dst_port == 443'`)
		return
	}
	at := func(line, col int, text string) {
		issues.AddAt(path+".if", offset(c.If, line, col), "%s", text)
	}
	checked, found := env.Compile(c.If)
	if found.Err() != nil {
		for _, e := range found.Errors() {
			line, col := e.Location.Line(), e.Location.Column()
			at(line, col, r.explain(e.Message, c.If, offset(c.If, line, col), env))
		}
		return
	}
	if out := checked.OutputType(); out != cel.BoolType {
		at(1, 0, fmt.Sprintf("want an expression that is true or false, got one of type %s", out))
		return
	}
	native := checked.NativeRep()
	ok, watched := true, false
	ast.PostOrderVisit(native.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.ComprehensionKind:
			watched = true
		case ast.IdentKind:
			// "tls.sni" is one identifier when it has been checked.
			if i, known := r.index[e.AsIdent()]; known {
				r.used[e.AsIdent()] = true
				watched = watched || r.vars[i].typ.Kind() == cel.MapKind
			}
			if prefixes, known := issues.Sets[e.AsIdent()]; known {
				r.sets[e.AsIdent()] = prefixes
			}
		case ast.SelectKind:
			if sel := e.AsSelect(); sel.IsTestOnly() {
				// A field that is not there is "", so has() would always be true.
				where := native.SourceInfo().GetStartLocation(e.ID())
				at(where.Line(), where.Column(), fmt.Sprintf("want %q in a map instead of has(), got has() of %q", sel.FieldName(), sel.FieldName()))
				ok = false
			}
		case ast.CallKind:
			call := e.AsCall()
			if call.FunctionName() != overloads.Matches {
				return
			}
			if pattern := call.Args()[len(call.Args())-1]; pattern.Kind() != ast.LiteralKind {
				where := native.SourceInfo().GetStartLocation(e.ID())
				at(where.Line(), where.Column(), "matches wants a pattern that is written here, got one that is computed")
				ok = false
			}
		}
	}))
	if !ok {
		return
	}
	estimate, err := env.EstimateCost(checked, sizes[T]{r})
	if err != nil {
		at(1, 0, "estimate cost: "+err.Error())
		return
	}
	if c.cost = estimate.Max; c.cost > MaxCost {
		got := fmt.Sprint(c.cost)
		if c.cost == math.MaxUint64 {
			got = "one without bound"
		}
		at(1, 0, fmt.Sprintf("want an expression whose cost is at most %d, got %s: compare fewer or shorter fields, and nest no loops", MaxCost, got))
		return
	}
	opts := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if watched {
		// The cost of all others is known: their fields have largest sizes. To
		// watch it while they run would take several times as long as they do.
		opts = append(opts, cel.CostLimit(MaxCost))
	}
	c.program, err = env.Program(checked, opts...)
	if err != nil {
		at(1, 0, err.Error())
	}
}

// explain puts a message of the compiler into the words of a user.
func (r *Rules[T]) explain(msg, text string, at int, env *cel.Env) string {
	if rest, ok := strings.CutPrefix(msg, "undeclared reference to '"); ok {
		name, _, _ := strings.Cut(rest, "'")
		if full := nameAt(text, at); strings.HasPrefix(full, name+".") {
			name = full
		}
		return fmt.Sprintf("unknown name %q: want %s", name, r.namesLike(name, env))
	}
	if rest, ok := strings.CutPrefix(msg, "found no matching overload for '"); ok {
		what, got, _ := strings.Cut(rest, "' applied to '")
		what = strings.Trim(strings.TrimSuffix(what, "'"), "_@")
		return fmt.Sprintf("%q does not take these types: got %s", what, strings.TrimSuffix(got, "'"))
	}
	if rest, ok := strings.CutPrefix(msg, "Syntax error: "); ok {
		got, want, ok := strings.Cut(rest, " expecting ")
		if ok && len(want) > 60 { // all that an expression may begin with
			want = "a value or a variable"
		}
		if ok {
			return fmt.Sprintf("syntax error: want %s, got %s", want, got)
		}
		return "syntax error: " + rest
	}
	return msg
}

// nameAt returns the dotted name that stands at character i of text.
func nameAt(text string, i int) string {
	chars := []rune(text)
	end := min(i, len(chars))
	for end < len(chars) && (chars[end] == '_' || chars[end] == '.' || chars[end] >= '0' && chars[end] <= '9' || chars[end] >= 'a' && chars[end] <= 'z' || chars[end] >= 'A' && chars[end] <= 'Z') {
		end++
	}
	return string(chars[min(i, len(chars)):end])
}

// namesLike returns the variables with the same first word, or all first words
// and sets.
func (r *Rules[T]) namesLike(name string, env *cel.Env) string {
	var names, roots []string
	root, _, _ := strings.Cut(name, ".")
	for i := range r.vars {
		first, _, _ := strings.Cut(r.vars[i].Name, ".")
		if first == root {
			names = append(names, r.vars[i].Name)
		} else if first += ".*"; !slices.Contains(roots, first) {
			roots = append(roots, first)
		}
	}
	if len(names) == 0 {
		names = roots
		for _, v := range env.Variables() {
			if v.Type() == setType {
				names = append(names, "the set "+v.Name())
			}
		}
		if len(names) == len(roots) {
			names = append(names, "a set that a table such as [set.office] makes")
		}
	}
	if len(names) == 1 {
		return names[0]
	}
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}

// offset returns the character of text at a line, from 1, and column, from 0.
func offset(text string, line, col int) int {
	n := 0
	for i, l := range strings.Split(text, "\n") {
		size := len([]rune(l))
		if i+1 >= line {
			return n + min(max(col, 0), size)
		}
		n += size + 1
	}
	return 0
}

// sizes tells the cost estimate how large variables may be.
type sizes[T any] struct{ r *Rules[T] }

// EstimateSize implements checker.CostEstimator.
func (s sizes[T]) EstimateSize(n checker.AstNode) *checker.SizeEstimate {
	path := n.Path()
	if len(path) == 0 {
		return nil
	}
	i, ok := s.r.index[path[0]]
	if !ok {
		return nil
	}
	size := s.r.vars[i].size
	if len(path) > 1 {
		size = s.r.vars[i].elem
	}
	return &checker.SizeEstimate{Min: 0, Max: size}
}

// EstimateCallCost implements checker.CostEstimator.
func (s sizes[T]) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}

// reserved are the words that an expression cannot use for a set.
var reserved = []string{
	"true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop",
	"package", "namespace", "return", "var", "void", "while",
	"bool", "bytes", "double", "duration", "dyn", "int", "list", "map", "null_type", "string", "timestamp", "type", "uint", "prefixes",
	"tls", "http", "llm", "flow", "net", "cel", "ip", "cidr",
}

// SetNameProblem says why a set cannot have this name in expressions, or "".
func SetNameProblem(name string) string {
	switch {
	case slices.Contains(reserved, name):
		return fmt.Sprintf("%q means something else in expressions: want another name", name)
	case name == "" || len(name) > 32 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" || name[0] < 'a' || name[0] > 'z':
		return fmt.Sprintf(`want a name of up to 32 lower-case letters, digits and "_" that begins with a letter, got %q`, name)
	}
	return ""
}
