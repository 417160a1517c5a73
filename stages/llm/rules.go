package llm

import (
	"strconv"
	"unicode/utf8"

	"penstock/internal/policy"
	"penstock/pipeline"
)

// Why a connection ends at this stage: only with rules that refuse.
var (
	reasonRule       = pipeline.DefineReason("llm_rule_denied", "one of the rules refuses the request; the record says which")
	reasonRuleFailed = pipeline.DefineReason("llm_rule_failed", "one of the rules could not be evaluated, or cost too much: it refuses then")
	reasonUnread     = pipeline.DefineReason("llm_unread", "a request to a model whose body cannot be read, and rules that refuse")
	reasonAmbiguous  = pipeline.DefineReason("llm_ambiguous", "a request to a model that names it twice, and rules that refuse")
	reasonLost       = pipeline.DefineReason("llm_not_followed", "a connection that cannot be followed as HTTP/1, and rules that refuse")
)

func reasons() []pipeline.Reason {
	return []pipeline.Reason{reasonRule, reasonRuleFailed, reasonUnread, reasonAmbiguous, reasonLost}
}

// facts is what rules are asked about.
type facts struct {
	env  *pipeline.Env
	conn *pipeline.Conn
	e    *exchange
}

// maxModel is the longest name of which it is sure that it is whole.
const maxModel = maxText - utf8.UTFMax

func ruleVars(c *Config) []policy.Var[facts] {
	name := func(get func(d dialect) string) func(f *facts) string {
		return func(f *facts) string { return get(f.e.dialect) }
	}
	head := int(c.MaxHead)
	return append([]policy.Var[facts]{
		policy.String("llm.model", maxModel, func(f *facts) string { return f.e.model }, "the model that is asked for, `\"\"` if the request does not say"),
		policy.Bool("llm.stream", func(f *facts) bool { return f.e.wantsStream() }, "whether the answer is to be a stream"),
		policy.String("llm.dialect", 32, name(func(d dialect) string { return dialects[d].name }), "the dialect, such as `\"openai_chat\"`"),
		policy.String("llm.provider", 32, name(func(d dialect) string { return dialects[d].provider }), "whose dialect it is: `\"openai\"`, `\"anthropic\"`, `\"ollama\"`"),
		policy.String("llm.operation", 32, name(func(d dialect) string { return dialects[d].operation }), "`\"chat\"`, `\"text_completion\"` or `\"embeddings\"`"),
		policy.String("llm.identity", 32, func(f *facts) string { return f.e.identity }, "the keyed hash of the credential, as records have it; `\"\"` without one"),
		policy.String("llm.host", 253, func(f *facts) string { return f.e.host }, "the host that is asked, in lower case, without port"),
		policy.String("llm.path", head, func(f *facts) string { return f.e.path }, "the path, without query"),
	}, policy.FlowVars(func(f *facts) (*pipeline.Env, *pipeline.Conn) { return f.env, f.conn })...)
}

// wantsStream is what the request says, or what its dialect does without a word.
func (e *exchange) wantsStream() bool {
	return e.stream || !e.streamSaid && (e.dialect == ollamaChat || e.dialect == ollamaGenerate)
}

// judge asks the rules about a request of which all is known, or that cannot be
// read. Bytes before its last have passed: a server can make nothing of a JSON text
// that does not end.
func (c *stream) judge(e *exchange) {
	s := c.s
	switch {
	case s.rules == nil || e.dialect == noDialect:
		return
	case s.refuses && e.requestUnread: // also if a text was judged that more comes behind
		c.denied = reasonUnread
		return
	case e.judged:
		return
	case s.refuses && e.again:
		c.denied = reasonAmbiguous
		return
	}
	e.judged = true
	v := s.rules.Judge(&facts{env: s.env, conn: c.conn, e: e})
	e.rules = v.Rules
	switch {
	case v.Failed:
		c.denied = reasonRuleFailed
	case v.Deny:
		c.denied = reasonRule
	}
}

// deny ends the connection with the reason in c.denied.
func (c *stream) deny(now int64) pipeline.StreamVerdict {
	c.s.n.denied.Add(1)
	v := pipeline.StreamVerdict{Action: pipeline.StreamDeny, Reason: c.denied}
	if len(c.pending) > 0 {
		e := c.pending[len(c.pending)-1]
		e.denied = c.denied
		// A reply in the middle of earlier responses would be taken for theirs.
		if c.conn.Depth == pipeline.DepthTerminate && len(c.pending) == 1 && e.firstByte == 0 {
			v.Reply = denial(c.denied)
		}
	}
	c.end(now)
	return v
}

// denial is the answer to a request that is refused, in the form that the client
// libraries of all dialects know.
func denial(why pipeline.Reason) []byte {
	body := `{"type":"error","error":{"type":"permission_error","code":"` + why.String() + `","message":"refused by policy: ` + why.String() + `"}}`
	return []byte("HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\nConnection: close\r\n\r\n" + body)
}
