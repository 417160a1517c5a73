package llm

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"penstock/internal/policy"
	"penstock/pipeline"
)

// sendAll sends b in pieces of n bytes and returns what passes, and why it was
// denied.
func (c *talk) sendAll(d pipeline.Direction, b string, n int) (passed, why string) {
	for len(b) > 0 {
		k := min(n, len(b))
		got, v := c.s.Data(d, []byte(b[:k]), c.r.now)
		passed += b[:got]
		if v.Action == pipeline.StreamDeny {
			c.verdict = v
			return passed, v.Reason.String()
		}
		if got != k {
			c.t.Fatalf("%d of %d bytes pass", got, k)
		}
		b = b[k:]
	}
	return passed, ""
}

// TestRules: each variable has what the request says, and a request that is
// refused never passes whole, however it is cut.
func TestRules(t *testing.T) {
	chat := func(body string) string { return post("/v1/chat/completions", body) }
	gzipped := squeeze(false, `{"model":"gpt-x"}`)
	inChunks := "POST /v1/messages HTTP/1.1\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"mod\r\nc\r\nel\":\"gpt-x\"}\r\n"
	for _, row := range []struct {
		expr, in, want string
	}{
		{`llm.model == "gpt-x"`, chat(`{"model":"gpt-x","messages":[{"model":"b"}]}`), "llm_rule_denied"},
		{`llm.model == "gpt-x"`, chat(`{"messages":[{"content":"a"}],"model":"gpt-x"}`), "llm_rule_denied"},
		{`llm.model == "gpt-x"`, chat(`{"model":"other"}`), ""},
		{`llm.model == ""`, chat(`{"messages":[]}`), "llm_rule_denied"},
		{`llm.model == ""`, chat(``), "llm_rule_denied"},
		{`llm.model == "gpt-x"`, inChunks, "llm_rule_denied"}, // before the last chunk
		{`llm.model == "gpt-x"`, strings.Replace(chat(gzipped), "Host", "Content-Encoding: gzip\r\nHost", 1), "llm_rule_denied"},
		{`llm.stream && llm.dialect == "openai_chat"`, chat(`{"model":"a","stream":true}`), "llm_rule_denied"},
		{`llm.stream`, post("/api/chat", `{"model":"a"}`), "llm_rule_denied"},
		{`llm.stream`, post("/api/chat", `{"model":"a","stream":false}`), ""},
		{`llm.provider == "anthropic" && llm.operation == "chat" && llm.host == "api.example" && llm.path == "/v1/messages"`, post("/v1/messages?beta=true", `{"model":"a"}`), "llm_rule_denied"},
		{`size(llm.identity) == 24 && flow.src in office && flow.dst_port == 80`, chat(`{}`), "llm_rule_denied"},
		{`true`, "GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n", ""},
		{`true`, post("/other", `{"model":"a"}`), ""},
		{`int(llm.model) > 3`, chat(`{"model":"x"}`), "llm_rule_failed"},
		{`llm.model == "a"`, chat(`{"model":"` + strings.Repeat("a", 200) + `"}`), "llm_rule_failed"},
		{`llm.model == "b"`, chat(`{"model":"a","model":"b"}`), "llm_ambiguous"},
		{`llm.stream`, chat(`{"stream":true,"stream":false}`), "llm_ambiguous"},
		{`llm.model == "b"`, chat(`{"model":"a"`), "llm_unread"},
		{`llm.model == "b"`, chat(`{"model":"a"} {"model":"b"}`), "llm_unread"},
		{`llm.model == "b"`, strings.Replace(chat("x"), "Host", "Content-Encoding: br\r\nHost", 1), "llm_unread"},
		{`llm.model == "b"`, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "llm_not_followed"},
		{`llm.model == "b"`, "\x16\x03\x01\x02\x00", "llm_not_followed"},
		{`llm.model == "b"`, "POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", "llm_not_followed"},
	} {
		for _, n := range []int{1 << 20, 1, 7} {
			r := newRig(t, func(c *Config) { c.Rules = []policy.Rule{{If: row.expr, Action: "deny", Name: "test"}} })
			c := r.open(t)
			passed, why := c.sendAll(pipeline.ToServer, row.in, n)
			if why != row.want {
				t.Errorf("%s of %.80q, pieces of %d: got %q, want %q", row.expr, row.in, n, why, row.want)
			}
			if row.want == "" && passed != row.in || row.want != "" && len(passed) == len(row.in) {
				t.Errorf("%s of %.80q, pieces of %d: %q passes", row.expr, row.in, n, passed)
			}
			if _, body, _ := strings.Cut(passed, "\r\n\r\n"); row.want == "llm_rule_denied" && json.Valid([]byte(body)) {
				t.Errorf("%s of %.80q, pieces of %d: a whole text passes: %q", row.expr, row.in, n, passed)
			}
			c.close()
			r.settled(t)
			if strings.HasPrefix(why, "llm_rule") {
				want := fmt.Sprintf(`"action":"denied","reason":"%s","rules":["test"]`, why)
				if len(r.rec.lines) != 1 || !strings.Contains(r.rec.lines[0], want) {
					t.Errorf("%s: recorded %s", row.expr, r.rec.lines)
				}
			}
		}
	}
}

// TestRulesThatLog: they refuse nothing, hold nothing, and need no more than sight.
func TestRulesThatLog(t *testing.T) {
	c := defaults()
	c.Rules = []policy.Rule{{If: `llm.model == "a"`, Action: "log", Name: "seen"}}
	if need, _ := c.needs(); need != pipeline.NeedObserve {
		t.Errorf("needs %v", need)
	}
	r := newRig(t, func(own *Config) { own.Rules = c.Rules })
	talk := r.open(t)
	talk.send(pipeline.ToServer, post("/v1/messages", `{"model":"a"}`)+post("/v1/messages", `{"model":"a","model":"b"}`)+post("/v1/messages", `{`))
	talk.send(pipeline.ToServer, "nonsense\r\n\r\n")
	talk.close()
	r.settled(t)
	if all := strings.Join(r.rec.lines, "\n"); len(r.rec.lines) != 3 || strings.Count(all, `"rules":["seen"]`) != 1 || strings.Count(all, `"action":"allowed"`) != 3 {
		t.Errorf("recorded %s", all)
	}
}

// TestRefusal: at terminate depth the client reads why, unless an earlier answer is
// still to come.
func TestRefusal(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Rules = []policy.Rule{{If: `llm.model == "a"`, Action: "deny"}} })
	for _, row := range []struct {
		depth pipeline.Depth
		in    string
		reply bool
	}{
		{pipeline.DepthInspect, post("/v1/messages", `{"model":"a"}`), false},
		{pipeline.DepthTerminate, post("/v1/messages", `{"model":"a"}`), true},
		{pipeline.DepthTerminate, post("/v1/messages", `{"model":"b"}`) + post("/v1/messages", `{"model":"a"}`), false},
	} {
		c := &talk{r: r, t: t, s: r.Open(&pipeline.Conn{Depth: row.depth})}
		_, why := c.sendAll(pipeline.ToServer, row.in, 1<<20)
		reply := string(c.verdict.Reply)
		if why != "llm_rule_denied" || (reply != "") != row.reply || row.reply && !strings.Contains(reply, `"code":"llm_rule_denied"`) {
			t.Errorf("%v: %q, reply %q", row.depth, why, reply)
		}
		c.close()
	}
	r.settled(t)
}

// TestVariables: docs/policy.md has the variables of rules as they are.
func TestVariables(t *testing.T) {
	text, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	c := defaults()
	for _, v := range ruleVars(&c) {
		row := "| `" + v.Name + "` | " + v.Type() + " | " + v.Help + " |"
		if !strings.Contains(string(text), row) {
			t.Errorf("want the row %s", row)
		}
	}
}
