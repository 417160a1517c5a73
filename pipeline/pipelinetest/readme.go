package pipelinetest

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"penstock/internal/config"
	"penstock/pipeline"
)

// sections are the headings that the README of every stage has, in this
// order. Others may stand between them.
var sections = []string{
	"What it reads and changes", "Configuration", "Evaluation order", "Drop reasons", "Counters", "Examples", "Limits",
}

// twoPorts stands in front of examples that name no ports of their own.
const twoPorts = `[[port]]
name = "lan"
interface = "eth1"
[[port]]
name = "wan"
interface = "eth2"
`

// README checks a stage's manual against its code: the title is the kind, the
// sections are there, the Configuration table names exactly the keys of the
// Config, the Drop reasons table exactly Kind.Reasons, and each fenced toml
// block is a configuration that loads; chains of packet stages in them are run
// through the conformance suite. A block may leave out the ports; they are
// then called lan and wan. A block that names a kind which reg does not have
// is skipped, and said so.
func README(t *testing.T, reg *pipeline.Registry, kind *pipeline.Kind) {
	t.Helper()
	text := kind.README
	if !strings.HasPrefix(text, "# "+kind.Name+"\n") {
		t.Errorf("the README does not begin with %q", "# "+kind.Name)
	}
	if kind.Summary == "" || strings.Contains(kind.Summary, "\n") {
		t.Errorf("the summary is %q, want one sentence", kind.Summary)
	}
	body, order := split(text)
	at := 0
	for _, s := range sections {
		i := slices.Index(order, s)
		if i < 0 {
			t.Errorf("the README has no section %q", s)
		} else if i < at {
			t.Errorf("section %q comes too early; the order is %q", s, sections)
		}
		at = max(at, i)
	}
	checkKeys(t, kind, body["Configuration"])
	checkReasons(t, kind, body["Drop reasons"])
	checkExamples(t, reg, kind, text, body["Counters"])
}

// split returns the text under each "## " heading, and the headings in order.
func split(text string) (body map[string]string, order []string) {
	body = map[string]string{}
	current, fenced := "", false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		if title, ok := strings.CutPrefix(line, "## "); ok && !fenced {
			current = strings.TrimSpace(title)
			order = append(order, current)
			continue
		}
		body[current] += line
	}
	return body, order
}

var (
	firstCell = regexp.MustCompile("(?m)^\\| *`([^`]+)`")
	quoted    = regexp.MustCompile("`([^`\n]+)`")
	fence     = regexp.MustCompile("(?ms)^```toml\n(.*?)^```")
	kindNamed = regexp.MustCompile(`(?m)\bkind\s*=\s*"([^"]*)"`)
	upper     = regexp.MustCompile(`[A-Z]+`)
	digits    = regexp.MustCompile(`[0-9]+`)
)

// cells returns what stands in backquotes in the first column of tables.
func cells(section string) (list []string) {
	for _, m := range firstCell.FindAllStringSubmatch(section, -1) {
		list = append(list, m[1])
	}
	return list
}

func checkKeys(t *testing.T, kind *pipeline.Kind, section string) {
	t.Helper()
	inCode := tomlKeys(reflect.TypeOf(kind.NewConfig()), map[reflect.Type]bool{})
	inTable := cells(section)
	for _, k := range inCode {
		if !slices.Contains(inTable, k) {
			t.Errorf("key %q is not in a table of the section Configuration", k)
		}
	}
	for _, k := range inTable {
		if !slices.Contains(inCode, k) {
			t.Errorf("the section Configuration has a key %q, the Config does not", k)
		}
	}
}

// tomlKeys returns the toml tags of a struct and of the structs inside it.
func tomlKeys(typ reflect.Type, seen map[reflect.Type]bool) (keys []string) {
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct || seen[typ] {
		return nil
	}
	seen[typ] = true
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		if !f.IsExported() || name == "-" || name == "" && f.Type.Kind() != reflect.Struct {
			continue
		}
		if name != "" && !slices.Contains(keys, name) {
			keys = append(keys, name)
		}
		for _, k := range tomlKeys(f.Type, seen) {
			if !slices.Contains(keys, k) {
				keys = append(keys, k)
			}
		}
	}
	return keys
}

func checkReasons(t *testing.T, kind *pipeline.Kind, section string) {
	t.Helper()
	inTable := cells(section)
	for _, r := range kind.Reasons {
		if !slices.Contains(inTable, r.String()) {
			t.Errorf("reason %q is not in the table of the section Drop reasons", r)
		}
		if r.Help() == "" {
			t.Errorf("reason %q says nothing about itself", r)
		}
	}
	for _, name := range inTable {
		if !slices.ContainsFunc(kind.Reasons, func(r pipeline.Reason) bool { return r.String() == name }) {
			t.Errorf("the section Drop reasons has %q, Descriptor.Reasons does not", name)
		}
	}
}

// checkExamples loads the toml blocks and runs their chains.
func checkExamples(t *testing.T, reg *pipeline.Registry, kind *pipeline.Kind, text, counters string) {
	t.Helper()
	blocks := fence.FindAllStringSubmatch(text, -1)
	if len(blocks) == 0 {
		t.Error("the README has no example: a block fenced as toml")
	}
	for i, block := range blocks {
		src := block[1]
		if foreign := foreignKind(reg, src); foreign != "" {
			t.Logf("example %d needs stage %q and is not loaded here", i+1, foreign)
			continue
		}
		if !strings.Contains(src, "[[port]]") {
			src = twoPorts + src
		}
		cfg, problems := config.Parse("README.md", []byte(src), reg)
		for _, p := range problems {
			t.Errorf("example %d (lines count from the top of the block, ports included): %v", i+1, p)
		}
		if cfg == nil {
			continue
		}
		for _, w := range cfg.Warnings {
			t.Logf("example %d: warning: %v", i+1, w)
		}
		for _, c := range cfg.Chains {
			runExample(t, &c.Spec, kind, counters)
		}
	}
}

// foreignKind returns a stage kind of the example that reg does not have.
func foreignKind(reg *pipeline.Registry, src string) string {
	for _, m := range kindNamed.FindAllStringSubmatch(src, -1) {
		if reg.Lookup(m[1]) == nil {
			return m[1]
		}
	}
	return ""
}

func runExample(t *testing.T, spec *pipeline.ChainSpec, kind *pipeline.Kind, counters string) {
	t.Helper()
	for _, s := range spec.Stages {
		if s.Kind.Layer != pipeline.PacketLayer {
			return
		}
	}
	t.Run("example "+spec.Name, func(t *testing.T) {
		conform(t, func() *pipeline.ChainSpec {
			fresh := *spec
			fresh.Stages = slices.Clone(spec.Stages)
			for i := range fresh.Stages {
				fresh.Stages[i].Shared = &pipeline.Shared{}
			}
			return &fresh
		})
		b := newBench(t, spec)
		for _, s := range b.worker.Stats().Chains[0].Stages {
			if s.Kind != kind.Name {
				continue
			}
			for name := range s.Counters {
				if !documented(name, counters) {
					t.Errorf("counter %q is not in the section Counters", name)
				}
			}
		}
		b.end()
	})
}

// documented reports whether the section names the counter in backquotes.
// Capitals there stand for a part that the configuration gives (hits_NAME),
// and digits for any digits (status_2xx).
func documented(counter, section string) bool {
	for _, m := range quoted.FindAllStringSubmatch(section, -1) {
		pattern := upper.ReplaceAllString(regexp.QuoteMeta(m[1]), ".+")
		pattern = digits.ReplaceAllString(pattern, "[0-9]+")
		if ok, err := regexp.MatchString("^"+pattern+"$", counter); err == nil && ok {
			return true
		}
	}
	return false
}
