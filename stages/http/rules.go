package http

import (
	rules "penstock/internal/policy"
	"penstock/pipeline"
)

// facts is what rules are asked about.
type facts struct {
	env  *pipeline.Env
	conn *pipeline.Conn
	req  *request
	path string
}

// field is a header, as it lies in the head.
type field struct{ name, value []byte }

type fieldList []field

func (l fieldList) Len() int                      { return len(l) }
func (l fieldList) At(i int) (name, value []byte) { return l[i].name, l[i].value }

// headerSize is what rules are priced for as the size of a header. Longer ones
// are held against their cost when they run.
const headerSize = 1024

// ruleVars are the variables of rules. Strings are as long as heads may be.
func ruleVars(c *Config) []rules.Var[facts] {
	head := int(c.MaxHead)
	return append([]rules.Var[facts]{
		rules.String("http.host", 253, func(f *facts) string { return f.req.Host }, "the host that is asked, in lower case, without port"),
		rules.String("http.method", head, func(f *facts) string { return f.req.Method }, "the method"),
		rules.String("http.path", head, func(f *facts) string { return f.path }, "the path as `deny_paths` sees it, without query; `\"\"` for CONNECT and `*`"),
		rules.String("http.target", head, func(f *facts) string { return f.req.Target }, "the request target as it was sent, with query"),
		rules.Map("http.headers", c.MaxHeaders, headerSize, func(f *facts) rules.Fields { return f.req.fields }, "the headers by name, in any case; several of one name are joined with `, `, one that is not there is `\"\"`"),
	}, rules.FlowVars(func(f *facts) (*pipeline.Env, *pipeline.Conn) { return f.env, f.conn })...)
}

// judge asks the lists, then the rules, and notes in e which rules applied.
func (c *stream) judge(h *request, e *exchange) pipeline.Reason {
	why := c.s.policy.judge(h)
	if why != pipeline.ReasonNone || c.s.rules == nil {
		return why
	}
	f := &c.s.facts
	*f = facts{env: c.s.env, conn: c.conn, req: h}
	if c.s.rules.Uses("http.path") && h.Method != "CONNECT" && h.Target != "*" {
		path, ok := normalPath(h.Target)
		if !ok && rules.Refuse(c.s.cfg.Rules) {
			return reasonBadPath
		}
		f.path = path
	}
	v := c.s.rules.Judge(f)
	e.rules = v.Rules
	switch {
	case v.Failed:
		return reasonRuleFailed
	case v.Deny:
		return reasonRule
	}
	return pipeline.ReasonNone
}
