package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// marked takes the marks «path» out of a document and returns where each stood.
func marked(t *testing.T, doc string) (src string, at map[string]int) {
	at = map[string]int{}
	for {
		before, rest, ok := strings.Cut(doc, "«")
		src += before
		if !ok {
			return src, at
		}
		path, after, ok := strings.Cut(rest, "»")
		if !ok {
			t.Fatalf("mark without end in %q", rest)
		}
		at[path] = len(src)
		doc = after
	}
}

func TestIndex(t *testing.T) {
	for name, doc := range map[string]string{
		"pairs":              "«a»a = 1\n  «b»b=2 # c = 3\n\t«d-e_1»d-e_1 = 'x'",
		"dotted":             "«a»a . «a.b»b.«a.b.c»c = 1\n a.b.«a.b.d»d = 2",
		"quoted":             "«\"x y\"»\"x y\" = 1\n«\"a.b\"»'a.b'.«\"a.b\".c»c = 1\n«\"é\\n\"»\"\\u00e9\\n\" = 1\n«\"\"»\"\" = 1",
		"quoted bare":        "«a»\"a\" = 1\n«x»['x']\n",
		"headers":            "«a»[a]\n«a.x»x = 1\n«b»[ b . c ] # [d]\n«b.c.x»x = 1\n[b]\n«b.x»x = 1",
		"tables":             "«a»[[a]]\n«a[0].x»x = 1\n  «a[0].b»[[a.b]]\n  «a[0].b[0].y»y = 1\n  «a[0].b[1]»[[a.b]]\n «a[0].b[1].c»[a.b.c]\n «a[0].b[1].c.z»z = 1\n«a[1]»[[a]]\n«a[1].b»[[a.b]]\n«a[1].b[0].y»y = 1",
		"tables under table": "«a»[a]\n«a.b»[[a.b]]\n«a.b[0].x»x = 1\n«a.b[1]»[[a.b]]\n",
		"arrays":             "«a»a = [«a[0]»1, «a[1]»\"x,]\", «a[2]»[«a[2][0]»1,], # ]\n «a[3]»'y' ]\n«b»b = []",
		"inline":             "«a»a = { «a.x»x = 1, «a.y»y.«a.y.z»z = { «a.y.z.q»\"q\" = \"}\" } }\n«b»b = [ «b[0]»{ «b[0].x»x = 1 }, «b[1]»{} ]",
		"inline lines":       "«a»a = {\n  «a.x»x = 1, # }\n  «a.y»y = 2,\n}\n«b»b = 1",
		"strings":            "«a»a = \"\\\"\\\\\"\n«b»b = '\\'\n«c»c = \"\"\"x\n\"y\"\" \\\"\"\" z = 1\n\"\"\"\"\"\n«d»d = '''\n' ''x = 1''''\n«e»e = \"\"\n«f»f = ''",
		"scalars":            "«a»a = 1979-05-27 07:32:00Z # x = 1\n«b»b = [«b[0]»+1_000, «b[1]»inf, «b[2]»0xff]\n«c»c = true\r\n«d»d = 1",
	} {
		t.Run(name, func(t *testing.T) {
			src, want := marked(t, doc)
			root, _, problem := parseTOML(src)
			if problem != "" {
				t.Fatalf("the case is not TOML: %s", problem)
			}
			ix := newIndex(src)
			for path, offset := range want {
				if got, ok := ix.at[path]; !ok || got != offset {
					t.Errorf("%s is at %d (%v), want %d", path, got, ok, offset)
				}
			}
			sameAsTree(t, src, root)
		})
	}
}

// sameAsTree checks that the index holds the paths of the library's tree, all
// of them and no others, and that the keys stand where it says.
func sameAsTree(t *testing.T, src string, root map[string]any) {
	t.Helper()
	ix := newIndex(src)
	if ix.tooDeep >= 0 || ix.twice >= 0 {
		return
	}
	seen := map[string]bool{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		if path != "" {
			seen[path] = true
			if _, ok := ix.at[path]; !ok {
				t.Errorf("%s is not in the index of %q", path, src)
				return
			}
		}
		if list, ok := asList(v); ok {
			for i, e := range list {
				walk(element(path, i), e)
			}
		}
		if m, ok := v.(map[string]any); ok {
			for k, e := range m {
				walk(child(path, k), e)
			}
		}
	}
	walk("", root)
	for path, offset := range ix.at {
		if !seen[path] {
			t.Errorf("%s at %d of %q is not in the tree", path, offset, src)
		}
		if strings.IndexByte(" \t\r\n=,]}#", src[offset]) >= 0 {
			t.Errorf("%s is said to be at %d of %q, where no key, value or header begins", path, offset, src)
		}
	}
}

func TestPosition(t *testing.T) {
	ix := newIndex("a = 1\nü = 2\n\n  b")
	for _, c := range []struct{ offset, line, col int }{
		{-5, 1, 1}, {0, 1, 1}, {5, 1, 6}, {6, 2, 1}, {8, 2, 2}, {12, 2, 6}, {13, 3, 1}, {14, 4, 1}, {16, 4, 3}, {17, 4, 4}, {99, 4, 4},
	} {
		if line, col := ix.position(c.offset); line != c.line || col != c.col {
			t.Errorf("offset %d is %d:%d, want %d:%d", c.offset, line, col, c.line, c.col)
		}
	}
}

func TestParentAndFind(t *testing.T) {
	for path, want := range map[string]string{
		"a": "", "a.b": "a", "a[0]": "a", "a[0].b": "a[0]", "a[0][1]": "a[0]", `a."b.c[0]"`: "a", `a."b\".c".d`: `a."b\".c"`, "": "",
	} {
		if got := parent(path); got != want {
			t.Errorf("the parent of %s is %s, want %s", path, got, want)
		}
	}
	ix := newIndex("\n[[a]]\n  x = [1,\n   2]\n")
	for path, want := range map[string][2]int{
		"a[0].x": {3, 3}, "a[0].x[1]": {4, 4}, "a[0].x[7].y": {3, 3}, "a[0].missing": {2, 1}, "b.c": {1, 1}, "": {1, 1},
	} {
		if line, col := ix.find(path); [2]int{line, col} != want {
			t.Errorf("%s is at %d:%d, want %v", path, line, col, want)
		}
	}
}

// TestTwice: what TOML forbids to define twice, also where the library does
// not object, and what may look like it.
func TestTwice(t *testing.T) {
	for src, want := range map[string]string{
		"a = 1\nb = 2\na = 3":                             "3:1: a is defined already, in line 1",
		"[a]\nx = 1\n[a]\ny = 2":                          "3:1: a is defined already, in line 1",
		"[[a]]\n[a]":                                      "2:1: a is defined already, in line 1",
		"[a]\n[[a]]":                                      "2:1: a is defined already, in line 1",
		"a = []\n[[a]]":                                   "2:1: a is defined already, in line 1",
		"a.b = 1\n[a]":                                    "2:1: a is defined already, in line 1",
		"a = {b = 1}\n[a.c]":                              "2:1: a is defined already, in line 1",
		"a = {b = 1, b = 2}":                              "1:13: a.b is defined already, in line 1",
		"a = {b = {c = 1}, b.d = 2}":                      "1:19: a.b is defined already, in line 1",
		"a = 1\na.b = 2":                                  "2:1: a is defined already, in line 1",
		"[a.b]\nx = 1\n[a]\nb.y = 2":                      "4:1: a.b is defined already, in line 1",
		"[[a]]\nx = 1\nx = 2":                             "3:1: a.x is defined already, in line 2",
		"[[a.b]]\n[a]\nb.c = 1":                           "3:1: a.b is defined already, in line 1",
		"[a]\nb.c = 1\n[a.b]":                             "3:1: a.b is defined already, in line 2",
		"[a.b]\n[a]\n[a.c]\nx = 1\n[b.c.d]\n[b]\n[b.c]":   "",
		"[[a]]\nx = 1\n[[a]]\nx = 1\n[a.b]\n[[a]]\n[a.b]": "",
		"a.b = 1\na.c = 1\n[d]\ne.f = 1\n[d.e.g]":         "",
		"a = [{b = 1}, {b = 1}]\nc = {d.e = 1, d.f = 2}":  "",
	} {
		_, problems := Parse("f", []byte(src), testRegistry())
		got := strings.TrimPrefix(problems[0].String(), "f:")
		isTwice := strings.Contains(got, "is defined already")
		if want != "" && got != want || want == "" && isTwice {
			t.Errorf("%q: got %q, want %q", src, got, want)
		}
	}
}

// seeds returns documents for fuzzing: those of the golden cases.
func seeds(f *testing.F) {
	files, err := filepath.Glob("testdata/*/*.txt")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds (%v)", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		src, _, _ := strings.Cut(string(b), "\n---\n")
		f.Add([]byte(src))
	}
}

// FuzzIndex compares the index with the library's tree wherever the library
// accepts the document.
func FuzzIndex(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<12 || strings.HasPrefix(string(b), "\ufeff") {
			return
		}
		src := string(b)
		ix := newIndex(src)
		if ix.tooDeep >= 0 {
			return
		}
		root, _, problem := parseTOML(src)
		if problem == "" {
			sameAsTree(t, src, root)
		}
	})
}

// FuzzParse: any bytes give a Config or problems, never both, never neither,
// and the same ones each time.
func FuzzParse(f *testing.F) {
	seeds(f)
	reg := testRegistry()
	f.Fuzz(func(t *testing.T, b []byte) {
		c, problems := Parse("fuzz.toml", b, reg)
		if (c == nil) != (len(problems) > 0) {
			t.Fatalf("config %v, problems %v", c, problems)
		}
		lines := strings.Count(string(b), "\n") + 1
		for _, p := range problems {
			if p.Line < 1 || p.Line > lines || p.Col < 1 || strings.ContainsAny(p.String(), "\n\r") || p.Text == "" {
				t.Errorf("a problem is not one line with a place in the file: %+v", p)
			}
		}
		if _, again := Parse("fuzz.toml", b, reg); !reflect.DeepEqual(problems, again) {
			t.Errorf("problems differ:\n%v\n%v", problems, again)
		}
		if c != nil {
			var b strings.Builder
			c.Explain(&b)
			if c.Appliance.Mode == ModeBridge && len(c.Ports) != 2 || len(c.Ports) == 0 || b.Len() == 0 {
				t.Errorf("accepted a configuration that explains as %q", b.String())
			}
		}
	})
}
