// Package arch holds the rules of the house that a reviewer would otherwise
// have to repeat: which package may import which, that every package says what
// it is for, and that every stage is documented.
//
// Its one trap: it reads the work tree, so a file that is not committed counts.
package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "penstock"

// pkg is a package of the module: a folder with Go files.
type pkg struct {
	dir     string              // relative to the module's root
	imports map[string][]string // of production code: import path to files
	doc     string              // package comment
	docs    int                 // how many files have one
	main    bool
	lines   map[string]int // production files
}

func load(t *testing.T) map[string]*pkg {
	t.Helper()
	pkgs := map[string]*pkg{}
	fset := token.NewFileSet()
	err := filepath.WalkDir("../..", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") {
			return nil
		}
		dir := filepath.ToSlash(filepath.Dir(strings.TrimPrefix(file, "../../")))
		p := pkgs[dir]
		if p == nil {
			p = &pkg{dir: dir, imports: map[string][]string{}, lines: map[string]int{}}
			pkgs[dir] = p
		}
		f, err := parser.ParseFile(fset, file, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		p.main = p.main || f.Name.Name == "main"
		if f.Doc != nil && !ast.IsGenerated(f) && !strings.HasSuffix(f.Name.Name, "_test") {
			p.docs++
			p.doc = f.Doc.Text()
		}
		if strings.HasSuffix(file, "_test.go") {
			return nil
		}
		if !ast.IsGenerated(f) {
			p.lines[path.Base(file)] = fset.File(f.Pos()).LineCount()
		}
		for _, i := range f.Imports {
			name := strings.Trim(i.Path.Value, `"`)
			p.imports[name] = append(p.imports[name], path.Base(file))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return pkgs
}

// allowed lists, for each package of the module, which others its production
// code may import. "stages/*" stands for each folder below stages. A new edge
// needs an ADR.
var allowed = map[string][]string{
	"internal/latency":             {},
	"internal/units":               {},
	"internal/wire":                {},
	"internal/flowtab":             {"internal/wire"},
	"internal/rewrite":             {"internal/wire"},
	"internal/rewrite/rewritetest": {"internal/rewrite", "internal/wire"},
	"internal/hostname":            {"pipeline"},
	"internal/h2":                  {},
	"internal/http1":               {"internal/hostname"},
	"internal/tlshello":            {},
	"internal/dnsseen":             {},
	"internal/policy":              {"pipeline"},
	"internal/match":               {"internal/wire", "internal/units", "pipeline"},
	"pipeline":                     {"internal/latency", "internal/rewrite", "internal/wire"},
	"pipeline/afxdp":               {"pipeline", "xsk"},
	"pipeline/fault":               {"pipeline", "internal/wire", "internal/units"},
	"pipeline/pipelinetest":        {"pipeline", "pcap", "internal/config", "internal/wire", "internal/units"},
	"pcap":                         {"pipeline", "pipeline/fault", "internal/wire", "internal/flowtab"},
	"pcap/closedloop":              {"pipeline", "pipeline/fault", "pcap", "internal/wire"},
	"inspect":                      {"pipeline", "internal/wire", "internal/flowtab"},
	"stack":                        {"pipeline", "internal/wire", "internal/flowtab", "internal/rewrite"},
	"stages":                       {"pipeline", "stages/*"},
	"stages/*":                     {"pipeline", "internal/wire", "internal/flowtab", "internal/units", "internal/match"},
	"stages/dns":                   {"pipeline", "internal/units", "internal/wire", "internal/dnsseen"},
	"stages/http":                  {"pipeline", "internal/record", "internal/units", "internal/policy", "internal/hostname", "internal/http1", "internal/h2"},
	"stages/llm":                   {"pipeline", "internal/units", "internal/policy", "internal/http1"},
	"stages/tcp":                   {"pipeline", "internal/units", "internal/wire", "stack", "inspect"},
	"stages/tls":                   {"pipeline", "internal/record", "internal/units", "internal/policy", "internal/hostname", "internal/tlshello", "internal/dnsseen"},
	"stages/capture":               {"pipeline", "internal/wire", "internal/units", "internal/match", "internal/packetring", "pcap"},
	"bpf":                          {"internal/rewrite"},
	"xsk":                          {},
	"configs":                      {},
	"internal/gate":                {"internal/units"},
	"internal/config":              {"internal/gate", "internal/policy", "pipeline", "pipeline/fault", "internal/units", "internal/record", "internal/ipfix", "internal/otlp"},
	"internal/record":              {"pipeline"},
	"internal/ipfix":               {},
	"internal/otlp":                {},
	"internal/control":             {"pipeline", "internal/latency"},
	"internal/doctor":              {"bpf", "internal/config", "internal/control"},
	"internal/lab":                 {},
	"internal/notify":              {},
	"internal/packetring":          {"pipeline"},
	"internal/privilege":           {},
	"internal/tap":                 {"internal/flowtab", "internal/packetring", "internal/wire", "pcap", "pipeline"},
	"internal/watchdog":            {},
	"internal/route":               {"pipeline", "internal/wire"},
	"internal/lab/labtest":         {"internal/lab"},
	"internal/lab/traffic":         {"internal/lab"},
	"cmd/penstock": {
		"pipeline", "pipeline/afxdp", "pipeline/fault", "xsk", "bpf", "pcap", "pcap/closedloop", "stages", "configs", "internal/config", "internal/control", "internal/doctor", "internal/gate",
		"internal/record", "internal/ipfix", "internal/otlp", "internal/route", "internal/lab", "internal/lab/traffic", "internal/notify", "internal/privilege", "internal/tap", "internal/units", "internal/watchdog", "internal/wire",
	},
	"docs/gen":      {"bpf", "internal/control", "pipeline", "stages"},
	"dist":          {},
	"test/arch":     {},
	"test/e2e":      {},
	"test/vm":       {},
	"test/vm/guest": {"pcap"},
}

// onlyIn says which packages alone may import a library in production code, and
// why.
var onlyIn = []struct {
	library string
	dirs    []string
	why     string
}{
	{"gvisor.dev/gvisor", []string{"stack"}, "netstack is behind one boundary: the one that copies"},
	{"github.com/cilium/ebpf", []string{"bpf", "test/bench"}, "XDP programs and maps have one home"},
	{"github.com/BurntSushi/toml", []string{"internal/config"}, "there is one reader of configurations"},
	{"github.com/prometheus", []string{"internal/control", "internal/otlp"}, "metrics are rendered from Status alone, and sent on as they are"},
	{"go.opentelemetry.io", []string{"internal/otlp"}, "one package speaks OTLP"},
	{"github.com/gopacket/gopacket", []string{"pcap", "pipeline/pipelinetest"}, "the packet path has its own header views"},
	{"cel.dev/cel-go", []string{"internal/policy"}, "there is one language for expressions, with one bound on its cost"},
	{"kernel.org/pub/linux/libs/security/libcap", []string{"internal/privilege", "cmd/penstock"}, "privileges are given up in one place, for all threads"},
	{"github.com/asavie/xdp", nil, "it is the yardstick, never the tool"},
	{"unsafe", []string{"xsk", "bpf"}, "and there in *_unsafe.go only"},
}

func TestImports(t *testing.T) {
	for dir, p := range load(t) {
		rules, known := allowed[dir]
		if !known && path.Dir(dir) == "stages" {
			rules, known = allowed["stages/*"], true
		}
		bench := strings.HasPrefix(dir, "test/bench")
		if !known && !bench {
			t.Errorf("%s: no rule says what it may import: add one to test/arch, with an ADR", dir)
			continue
		}
		for name, files := range p.imports {
			if rest, ours := strings.CutPrefix(name, module+"/"); ours && !bench {
				if !slices.ContainsFunc(rules, func(r string) bool {
					return r == rest || strings.HasSuffix(r, "/*") && path.Dir(rest) == strings.TrimSuffix(r, "/*")
				}) {
					t.Errorf("%s imports %s (%s): not allowed", dir, rest, strings.Join(files, ", "))
				}
			}
			for _, o := range onlyIn {
				if (name == o.library || strings.HasPrefix(name, o.library+"/")) && !slices.Contains(o.dirs, dir) && !bench {
					t.Errorf("%s imports %s (%s): only %v may: %s", dir, name, strings.Join(files, ", "), o.dirs, o.why)
				}
			}
		}
		for _, f := range p.imports["unsafe"] {
			if !strings.HasSuffix(f, "_unsafe.go") {
				t.Errorf("%s/%s uses unsafe: that belongs into a file *_unsafe.go", dir, f)
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	for dir, p := range load(t) {
		onlyTests := len(p.lines) == 0
		switch {
		case p.docs == 0 && !onlyTests:
			t.Errorf("%s has no package comment: what is it for, and what is its one trap?", dir)
		case p.docs > 1:
			t.Errorf("%s has %d package comments", dir, p.docs)
		}
	}
}

func TestForbiddenNames(t *testing.T) {
	bad := regexp.MustCompile(`(^|/)(utils?|common|helpers?|managers?|misc)(/|$)`)
	for dir := range load(t) {
		if bad.MatchString(dir) {
			t.Errorf("%s: a name that says nothing", dir)
		}
	}
}

func TestFileLengths(t *testing.T) {
	for dir, p := range load(t) {
		for file, n := range p.lines {
			if n > 520 {
				t.Errorf("%s/%s has %d lines: is it still one idea?", dir, file, n)
			}
		}
	}
}

// TestNoExit: only commands end the process.
func TestNoExit(t *testing.T) {
	bad := regexp.MustCompile(`\bos\.Exit\(|\blog\.Fatal`)
	for dir, p := range load(t) {
		if p.main {
			continue
		}
		for file := range p.lines {
			b, err := os.ReadFile(filepath.Join("../..", dir, file))
			if err != nil {
				t.Fatal(err)
			}
			if m := bad.Find(b); m != nil {
				t.Errorf("%s/%s calls %s: only a command may end the process", dir, file, m)
			}
		}
	}
}

// TestStageFolders: a stage is a folder with code, Config, README and tests.
func TestStageFolders(t *testing.T) {
	sections := []string{"## What it reads and changes", "## Configuration", "## Evaluation order", "## Drop reasons", "## Counters", "## Examples", "## Limits"}
	entries, err := os.ReadDir("../../stages")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join("../../stages", e.Name())
		readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
		if err != nil {
			t.Errorf("stage %s: %v", e.Name(), err)
			continue
		}
		text := strings.ToLower(string(readme))
		for _, s := range sections {
			if !strings.Contains(text, strings.ToLower(s)) {
				t.Errorf("stages/%s/README.md has no section %q", e.Name(), s)
			}
		}
		for _, want := range []string{"config.go", e.Name() + "_test.go"} {
			if _, err := os.Stat(filepath.Join(dir, want)); err != nil {
				t.Errorf("stage %s: %v", e.Name(), err)
			}
		}
	}
}
