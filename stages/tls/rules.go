package tls

import (
	"penstock/internal/policy"
	"penstock/internal/tlshello"
	"penstock/pipeline"
)

// facts is what rules are asked about.
type facts struct {
	env   *pipeline.Env
	conn  *pipeline.Conn
	hello *tlshello.ClientHello
	name  string
	// Of the first hello; "": no rule asks for it.
	ja3, ja4 string
}

const maxALPN = 64

var ruleVars = append([]policy.Var[facts]{
	policy.String("tls.sni", 253, func(f *facts) string { return f.name }, "the server name, in lower case, `\"\"` without one"),
	policy.Strings("tls.alpn", maxALPN, 255, func(f *facts) (list []string) {
		for p := range f.hello.ALPN() {
			list = append(list, string(p))
		}
		return list
	}, "the protocols that the client offers, in its order"),
	policy.String("tls.version", 4, func(f *facts) string { return shortVersion(f.hello.MaxVersion) }, "the highest version that the client offers: `\"1.0\"` to `\"1.3\"`, `\"\"` for one before TLS"),
	policy.String("tls.ja3", 32, func(f *facts) string { return f.ja3 }, "the hash of the client's JA3"),
	policy.String("tls.ja4", tlshello.JA4Size, func(f *facts) string { return f.ja4 }, "the client's JA4"),
	policy.Bool("tls.ech", func(f *facts) bool { return f.hello.ECH || f.hello.ESNI }, "whether it hides its server name, or pretends to"),
}, policy.FlowVars(func(f *facts) (*pipeline.Env, *pipeline.Conn) { return f.env, f.conn })...)

// shortVersion is a version as min_version has it.
func shortVersion(v uint16) string {
	for name, known := range versions {
		if v == known && name != "" {
			return name
		}
	}
	if v > tlshello.VersionTLS13 {
		return "1.4" // one that does not exist yet
	}
	return ""
}

// askRules asks the rules about a hello. A second hello is asked for other things
// than the first, but is of the same client.
func (c *stream) askRules(h *tlshello.ClientHello, name string) pipeline.Reason {
	s := c.s
	if s.rules == nil {
		return pipeline.ReasonNone
	}
	f := &c.facts
	if c.hellos == 0 {
		*f = facts{env: s.env, conn: c.conn}
		if s.rules.Uses("tls.ja4") {
			f.ja4 = string(s.ja4)
		}
		if s.rules.Uses("tls.ja3") {
			s.ja3 = h.AppendJA3(s.ja3[:0])
			f.ja3 = string(tlshello.AppendMD5(nil, s.ja3))
		}
	}
	f.hello, f.name = h, name
	v := s.rules.Judge(f)
	f.hello = nil
	if len(v.Rules) > 0 {
		c.applied = v.Rules
	}
	switch {
	case v.Failed:
		return reasonRuleFailed
	case v.Deny:
		return reasonRule
	}
	return pipeline.ReasonNone
}
