package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"penstock/pipeline"
)

// head is what the rules of these tests are about.
type head struct {
	name    string
	alpn    []string
	path    string
	ech     bool
	headers fieldList
	conn    *pipeline.Conn
}

type fieldList [][2][]byte

func (f fieldList) Len() int                      { return len(f) }
func (f fieldList) At(i int) (name, value []byte) { return f[i][0], f[i][1] }

func fields(list ...string) (f fieldList) {
	for i := 0; i < len(list); i += 2 {
		f = append(f, [2][]byte{[]byte(list[i]), []byte(list[i+1])})
	}
	return f
}

var testEnv = &pipeline.Env{Ports: []pipeline.PortInfo{{Name: "lan"}, {Name: "wan"}}}

var testVars = append([]Var[head]{
	String("tls.sni", 253, func(h *head) string { return h.name }, "the name"),
	Strings("tls.alpn", 16, 255, func(h *head) []string { return h.alpn }, "the protocols"),
	Bool("tls.ech", func(h *head) bool { return h.ech }, "whether it hides"),
	String("http.path", 65536, func(h *head) string { return h.path }, "the path"),
	Map("http.headers", 256, 1024, func(h *head) Fields { return h.headers }, "the headers"),
}, FlowVars(func(h *head) (*pipeline.Env, *pipeline.Conn) { return testEnv, h.conn })...)

func testSets() map[string][]netip.Prefix {
	return map[string][]netip.Prefix{
		"office": {netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.9.9.9/32"), netip.MustParsePrefix("2001:db8:1::/48")},
		"none":   nil,
		"all":    {netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
	}
}

func newHead(src string) *head {
	h := &head{name: "git.corp.example", alpn: []string{"h2", "http/1.1"}, path: "/a/b", headers: fields("User-Agent", "curl/8", "X-A", "1", "x-a", "2")}
	h.conn = &pipeline.Conn{Client: netip.MustParseAddrPort(src), Server: netip.MustParseAddrPort("192.0.2.1:443")}
	h.conn.Flow.VLAN[0] = 0x2064 // priority 1, VLAN 100
	return h
}

func compile(t testing.TB, rules ...Rule) (*Rules[head], []pipeline.Issue) {
	t.Helper()
	issues := pipeline.Issues{Sets: testSets()}
	r := Compile(testVars, rules, "rules", &issues)
	return r, issues.List
}

func mustCompile(t testing.TB, rules ...Rule) *Rules[head] {
	t.Helper()
	r, issues := compile(t, rules...)
	for _, i := range issues {
		t.Fatalf("%s: %d: %s", i.Path, i.Char, i.Text)
	}
	return r
}

func TestExpressions(t *testing.T) {
	inside, outside, six := newHead("10.1.2.3:1000"), newHead("10.2.0.1:1000"), newHead("[2001:db8:1::7]:1000")
	mapped := newHead("[::ffff:10.1.2.3]:1000")
	for _, row := range []struct {
		expr string
		h    *head
		want bool
	}{
		{`tls.sni.endsWith(".corp.example") && !(flow.src in office)`, inside, false},
		{`tls.sni.endsWith(".corp.example") && !(flow.src in office)`, outside, true},
		{`flow.src in office`, six, true},
		{`flow.src in office`, mapped, true},
		{`flow.src in none`, inside, false},
		{`flow.src in all && flow.dst in all`, six, true},
		{`flow.dst == ip("192.0.2.1")`, inside, true},
		{`cidr("192.0.2.0/24").containsIP(flow.dst)`, inside, true},
		{`flow.src.family() == flow.ip_version`, inside, true},
		{`flow.src_port == 1000 && flow.dst_port in [443, 8443]`, inside, true},
		{`flow.vlan == 100 && flow.from == "lan"`, inside, true},
		{`"h2" in tls.alpn`, inside, true},
		{`tls.alpn.exists(p, p.startsWith("http/"))`, inside, true},
		{`tls.alpn[0] == "h2" && size(tls.alpn) == 2`, inside, true},
		{`tls.sni.matches("^[a-z]+\\.corp\\.")`, inside, true},
		{`tls.ech || http.path.contains("/x")`, inside, false},
		{`http.headers["user-agent"].startsWith("curl")`, inside, true},
		{`http.headers["x-a"] == "1, 2" && http.headers["X-A"] == "1, 2"`, inside, true},
		{`http.headers["no"] == ""`, inside, true},
		{`"x-a" in http.headers && !("no" in http.headers)`, inside, true},
		{`http.headers.exists(n, n == "x-a") && size(http.headers) == 2`, inside, true},
		{`http.headers.all(n, http.headers[n] != "")`, inside, true},
		{`http.headers == {"x-a": "1, 2", "user-agent": "curl/8"}`, inside, true},
		{"tls.sni == 'git.corp.example' // a comment\n&& true", inside, true},
	} {
		r := mustCompile(t, Rule{If: row.expr, Action: "deny"})
		var set pipeline.CounterSet
		v := r.NewJudge(&set).Judge(row.h)
		if v.Failed || v.Deny != row.want {
			t.Errorf("%s: got %+v, want %v", row.expr, v, row.want)
		}
	}
}

func TestOrder(t *testing.T) {
	r := mustCompile(t,
		Rule{If: `tls.sni == "log.example"`, Action: "log", Name: "seen"},
		Rule{If: `flow.src in office`, Action: "allow", Name: "office"},
		Rule{If: `tls.sni == "log.example"`, Action: "log"},
		Rule{If: `true`, Action: "deny", Name: "rest"},
	)
	var set pipeline.CounterSet
	j := r.NewJudge(&set)
	for _, row := range []struct {
		src, name string
		deny      bool
		rules     []string
	}{
		{"10.1.0.1:1", "a.example", false, []string{"office"}},
		{"10.1.0.1:1", "log.example", false, []string{"seen", "office"}},
		{"10.2.0.1:1", "log.example", true, []string{"seen", "rules[2]", "rest"}},
		{"10.2.0.1:1", "a.example", true, []string{"rest"}},
	} {
		h := newHead(row.src)
		h.name = row.name
		v := j.Judge(h)
		if v.Deny != row.deny || v.Failed || !slices.Equal(v.Rules, row.rules) {
			t.Errorf("%s %s: got %+v", row.src, row.name, v)
		}
	}
	got := fmt.Sprint(j.hits[0].Load(), j.hits[1].Load(), j.hits[3].Load(), j.failed.Load())
	if want := "2 2 2 0"; got != want {
		t.Errorf("counters: got %s, want %s", got, want)
	}
	if len(r.sets) != 1 || r.sets["office"] == nil || !j.Uses("tls.sni") || !j.Uses("flow.src") || j.Uses("http.path") || j.Uses("tls.alpn") {
		t.Errorf("uses %v", r.used)
	}
	if lines := Describe(testVars, rulesOf(r), r.sets); len(lines) != 4 || lines[1] != "office: allow if flow.src in office (cost at most 3)" {
		t.Errorf("%q", lines)
	}
}

func rulesOf(r *Rules[head]) (list []Rule) {
	for i := range r.list {
		list = append(list, r.list[i].Rule)
	}
	return list
}

// TestFails: what cannot be evaluated refuses, unless it only logs.
func TestFails(t *testing.T) {
	h := newHead("10.1.0.1:1")
	h.name = "x"
	for _, row := range []struct {
		action string
		deny   bool
	}{{"deny", true}, {"allow", true}, {"log", false}} {
		for _, expr := range []string{`int(tls.sni) > 0`, `tls.alpn[7] == "x"`, `1 / size(http.path) > 0`} {
			h.path = ""
			var set pipeline.CounterSet
			j := mustCompile(t, Rule{If: expr, Action: row.action, Name: "r"}).NewJudge(&set)
			v := j.Judge(h)
			if v.Deny != row.deny || v.Failed != row.deny || j.failed.Load() != 1 || j.hits[0].Load() != 0 {
				t.Errorf("%s %s: got %+v", row.action, expr, v)
			}
		}
	}
}

// TestTooLong: a field that is longer than the cost was estimated for refuses.
func TestTooLong(t *testing.T) {
	for expr, change := range map[string]func(*head){
		`tls.sni == "a"`:      func(h *head) { h.name = strings.Repeat("x", 254) },
		`size(tls.alpn) == 9`: func(h *head) { h.alpn = make([]string, 17) },
		`"x" in tls.alpn`:     func(h *head) { h.alpn = []string{strings.Repeat("x", 256)} },
	} {
		var set pipeline.CounterSet
		j := mustCompile(t, Rule{If: expr, Action: "allow"}).NewJudge(&set)
		h := newHead("10.1.0.1:1")
		if v := j.Judge(h); v.Deny {
			t.Errorf("%s: got %+v", expr, v)
		}
		change(h)
		if v := j.Judge(h); !v.Deny || !v.Failed || j.failed.Load() != 1 {
			t.Errorf("%s: got %+v", expr, v)
		}
	}
}

// TestCostLimit: fields that are larger than they may be cannot make a rule run on.
func TestCostLimit(t *testing.T) {
	h := newHead("10.1.0.1:1")
	big := strings.Repeat("x", 4<<20)
	h.headers = fields("a", big, "b", big)
	var set pipeline.CounterSet
	j := mustCompile(t, Rule{If: `http.headers.exists(n, http.headers[n].contains("y"))`, Action: "deny"}).NewJudge(&set)
	if v := j.Judge(h); !v.Deny || !v.Failed || j.failed.Load() != 1 {
		t.Errorf("got %+v", v)
	}
}

func TestProblems(t *testing.T) {
	for _, row := range []struct {
		expr, want string
		char       int // from 1
	}{
		{`tls.snn == "x"`, `unknown name "tls.snn": want tls.sni, tls.alpn or tls.ech`, 1},
		{`tls.sni == "x" && flow.src in ofice`, `unknown name "ofice": want tls.*, http.*, flow.*, the set`, 31},
		{`tls.sni`, `want an expression that is true or false, got one of type string`, 1},
		{"tls.ech ||\n  tls.sni == 5", `"==" does not take these types: got (string, int)`, 22},
		{`flow.src in ["10.0.0.1"]`, `"in" does not take these types: got (net.IP, list(string))`, 10},
		{`tls.sni.endsWith(5)`, `"endsWith" does not take these types: got string.(int)`, 17},
		{`tls.ech || has(http.headers.nothing)`, `want "nothing" in a map instead of has()`, 15},
		{`tls.sni == `, `syntax error: want a value or a variable, got mismatched input '<EOF>'`, 12},
		{`(tls.ech`, `syntax error: `, 9},
		{`ip("10.0.0.999") == flow.src`, `invalid ip argument`, 4},
		{`tls.sni.matches("(")`, `matches`, 17},
		{`tls.sni.matches(http.path)`, `matches wants a pattern that is written here`, 0},
		{`"ü" == tls.sni && nope`, `unknown name "nope"`, 19},
		{``, `if is missing`, 0},
		{`http.headers.all(a, http.headers.all(b, http.headers[a].contains(http.headers[b])))`, `want an expression whose cost is at most 100000, got `, 1},
		{strings.Repeat("(", 100) + "true" + strings.Repeat(")", 100), ``, -1},
		{strings.Repeat("!", 5000) + "true", ``, -1},
		{`nofunction(tls.sni)`, `unknown name "nofunction"`, -1},
	} {
		r, issues := compile(t, Rule{If: row.expr, Action: "deny"})
		if r != nil || len(issues) == 0 {
			t.Errorf("%s: accepted", row.expr)
			continue
		}
		i := issues[0]
		if !strings.Contains(i.Text, row.want) || row.char > 0 && i.Char != row.char {
			t.Errorf("%.60s: got %s:%d %s", row.expr, i.Path, i.Char, i.Text)
		}
	}
	for _, row := range []struct {
		rules []Rule
		want  string
	}{
		{[]Rule{{If: "true"}}, `rules[0]: action is missing: want "deny", "allow" or "log"`},
		{[]Rule{{If: "true", Action: "drop"}}, `rules[0].action: want "deny", "allow" or "log", got "drop"`},
		{[]Rule{{If: "true", Action: "deny", Name: "A"}}, `rules[0].name: must be up to 40`},
		{[]Rule{{If: "true", Action: "deny", Name: "a"}, {If: "true", Action: "deny", Name: "a"}}, `rules[1].name: "a" is taken already by rules[0]`},
		{make([]Rule, MaxRules+1), `rules[64]: want at most 64 rules, got 65`},
		{slices.Repeat([]Rule{{If: `http.path.contains("abc")`, Action: "deny"}}, 20), `rules: want rules that cost at most 100000 together`},
	} {
		_, issues := compile(t, row.rules...)
		if len(issues) == 0 || !strings.Contains(issues[0].Path+": "+issues[0].Text, row.want) {
			t.Errorf("got %v, want %s", issues, row.want)
		}
	}
}

// FuzzCompile: whatever stands in a configuration compiles or has a problem at a
// character that it has.
func FuzzCompile(f *testing.F) {
	for _, s := range []string{`tls.sni.endsWith(".x") && !(flow.src in office)`, `http.headers.exists(k, k == "a")`, "\"\"\"a\nb\"\"\" == tls.sni", "a.b.c(", "tls.alpn.map(x, x+x)[0] == ''", `ip("1")`} {
		f.Add(s, "a\xff", "b")
	}
	f.Fuzz(func(t *testing.T, expr, a, b string) {
		issues := pipeline.Issues{Sets: testSets()}
		r := Compile(testVars, []Rule{{If: expr, Action: "deny"}}, "rules", &issues)
		for _, i := range issues.List {
			if i.Char < 0 || i.Char > len([]rune(expr))+1 {
				t.Fatalf("%q: problem at character %d: %s", expr, i.Char, i.Text)
			}
		}
		if (r == nil) == (len(issues.List) == 0) {
			t.Fatalf("%q: %v with %v", expr, r, issues.List)
		}
		if r != nil {
			var set pipeline.CounterSet
			h := newHead("10.0.0.1:1")
			h.name, h.path, h.headers = a, b, append(h.headers, fields(a, b)...)
			r.NewJudge(&set).Judge(h)
		}
	})
}

// FuzzJudge: fields are foreign bytes.
func FuzzJudge(f *testing.F) {
	r, issues := compile(f,
		Rule{If: `tls.sni.matches("^(a+)+$") || size(tls.sni) > 300`, Action: "log"},
		Rule{If: `int(http.path) > 3 || tls.alpn[1] == http.headers["a"]`, Action: "log"},
		Rule{If: `http.headers.exists(n, n == tls.sni || http.headers[n] < http.path || bytes(n) == b"x")`, Action: "deny"})
	if r == nil {
		f.Fatal(issues)
	}
	f.Add("a\xff", "9999999999999999999999", "\x00", "é")
	f.Fuzz(func(t *testing.T, name, path, field, text string) {
		var set pipeline.CounterSet
		h := newHead("10.0.0.1:1")
		h.name, h.path, h.alpn = name, path, []string{text, field}
		h.headers = fields(field, text, text, name, field, path)
		j := r.NewJudge(&set)
		one, two := j.Judge(h), j.Judge(h)
		if one.Deny != two.Deny || one.Failed != two.Failed {
			t.Fatalf("%+v and %+v", one, two)
		}
	})
}

func BenchmarkJudge(b *testing.B) {
	h := newHead("10.2.0.1:1")
	for _, row := range []struct {
		name string
		expr string
	}{
		{"port", `flow.dst_port == 80`},
		{"sni_and_set", `tls.sni.endsWith(".corp.example") && !(flow.src in all)`},
		{"sni_list", `tls.sni in ["a.example", "b.example", "c.example"]`},
		{"regex", `tls.sni.matches("^[a-z]+\\.corpx\\.")`},
		{"header", `http.headers["user-agent"].startsWith("x")`},
		{"any_alpn", `tls.alpn.exists(p, p == "h3")`},
	} {
		b.Run(row.name, func(b *testing.B) {
			var set pipeline.CounterSet
			j := mustCompile(b, Rule{If: row.expr, Action: "deny"}).NewJudge(&set)
			b.ReportAllocs()
			for b.Loop() {
				if j.Judge(h).Deny {
					b.Fatal("denied")
				}
			}
		})
	}
	b.Run("most_that_is_allowed", func(b *testing.B) {
		var set pipeline.CounterSet
		j := mustCompile(b, Rule{If: `http.headers.exists(n, http.headers[n].contains("y"))`, Action: "log"}).NewJudge(&set)
		h := newHead("10.2.0.1:1")
		h.headers = nil
		for i := range 256 {
			h.headers = append(h.headers, fields(fmt.Sprintf("header-%d", i), strings.Repeat("x", 1024))...)
		}
		b.ReportAllocs()
		for b.Loop() {
			j.Judge(h)
		}
	})
}
