package http

import (
	"strings"
	"testing"

	rules "penstock/internal/policy"
	"penstock/pipeline"
)

// TestRules: each variable has what the request says, whole and byte by byte.
func TestRules(t *testing.T) {
	get := func(target string, headers ...string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: WWW.Shop.example:80\r\n" + strings.Join(append(headers, ""), "\r\n") + "\r\n"
	}
	for _, row := range []struct {
		expr, in, want string
	}{
		{`http.host == "www.shop.example" && http.method == "GET"`, get("/"), "http_rule_denied"},
		{`http.path == "/a/b"`, get("/x/../a//b;v=1?q"), "http_rule_denied"},
		{`http.path == "/a"`, get("/a%2fb"), "http_bad_path"},
		{`http.target == "/a%2fb?q=1"`, get("/a%2fb?q=1"), "http_rule_denied"},
		{`http.path == "" && http.target == "*"`, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "http_rule_denied"},
		{`http.headers["user-agent"].startsWith("curl/")`, get("/", "User-Agent: curl/8"), "http_rule_denied"},
		{`http.headers["X-A"] == "1, 2"`, get("/", "x-a: 1", "b: c", "X-A:2"), "http_rule_denied"},
		{`http.headers["x-a"] == ""`, get("/"), "http_rule_denied"},
		{`!("x-a" in http.headers)`, get("/", "X-A:"), ""},
		{`http.headers.exists(n, n.startsWith("x-forwarded-"))`, get("/", "X-Forwarded-For: 10.0.0.1"), "http_rule_denied"},
		{`http.path.startsWith("/admin/") && !(flow.src in office)`, get("/admin/"), ""},
		{`flow.src in office && flow.dst_port == 80`, get("/"), "http_rule_denied"},
		{`int(http.headers["n"]) > 3`, get("/", "N: x"), "http_rule_failed"},
	} {
		for _, pieces := range []int{1, len(row.in)} {
			r := newRig(func(c *Config) { c.Rules = []rules.Rule{{If: row.expr, Action: "deny", Name: "test"}} })
			c := r.open()
			for i := 0; i < len(row.in); i += len(row.in) / pieces {
				c.send(pipeline.ToServer, row.in[i:min(i+len(row.in)/pieces, len(row.in))])
			}
			got := ""
			if c.verdict.Action == pipeline.StreamDeny {
				got = c.verdict.Reason.String()
				if row.want != "" && len(c.passed[0]) > 0 {
					t.Errorf("%s: %q has passed", row.expr, c.passed[0])
				}
			}
			if got != row.want {
				t.Errorf("%s, %d pieces: got %q, want %q", row.expr, pieces, got, row.want)
			}
			c.s.Close(1)
			if applied := strings.Contains(r.rec.lines[0], `"rules":["test"]`); applied != strings.HasPrefix(got, "http_rule") {
				t.Errorf("%s: recorded %s", row.expr, r.rec.lines)
			}
		}
	}
}

// TestRuleOfEachRequest: requests on one connection are judged one by one, also
// when they come at once; what only logs refuses nothing.
func TestRuleOfEachRequest(t *testing.T) {
	r := newRig(func(c *Config) {
		c.Rules = []rules.Rule{
			{If: `"x-seen" in http.headers`, Action: "log", Name: "seen"},
			{If: `http.path == "/secret"`, Action: "deny", Name: "secret"},
		}
	})
	c := r.open()
	one := "GET /1 HTTP/1.1\r\nHost: a\r\nX-Seen: 1\r\n\r\n"
	c.send(pipeline.ToServer, one+"GET /secret HTTP/1.1\r\nHost: a\r\n\r\n")
	if c.verdict.Action != pipeline.StreamDeny || string(c.passed[0]) != one {
		t.Fatalf("%+v after %q", c.verdict, c.passed[0])
	}
	c.s.Close(1)
	all := strings.Join(r.rec.lines, "\n")
	if len(r.rec.lines) != 2 || strings.Count(all, `"rules":["seen"]`) != 1 || strings.Count(all, `"reason":"http_rule_denied","rules":["secret"]`) != 1 {
		t.Errorf("recorded %s", all)
	}

	only := defaults()
	only.Rules = []rules.Rule{{If: `http.path == "/x"`, Action: "log"}}
	if need, _ := only.needs(); need != pipeline.NeedObserve {
		t.Errorf("needs %v", need)
	}
	r = newRig(func(c *Config) { c.Rules = only.Rules })
	c = r.open()
	c.send(pipeline.ToServer, "GET /a%2f HTTP/1.1\r\nHost: a\r\n\r\n")
	if c.verdict.Action != pipeline.StreamContinue {
		t.Errorf("%+v", c.verdict)
	}
}
