package http

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"penstock/internal/hostname"
	"penstock/internal/http1"
	"penstock/pipeline"
)

// policy is the lists of a configuration.
type policy struct {
	denyHosts, allowHosts     *hostname.Set // allow: nil if there is no list
	denyMethods, allowMethods []string
	denyPaths, allowPaths     []string
	fields                    []fieldRule
	rules                     http1.Rules // for requests
	responses                 http1.Rules
	judged                    map[string]bool // hosts, and whether the lists refuse them
	denied                    bool            // of the head that is being parsed: a rule refuses a header
	kept                      fieldList       // of that head, if rules want headers
}

// request is a head that was understood.
type request struct {
	http1.Head
	fieldDenied bool      // a rule refuses a header
	fields      fieldList // for rules; they lie in the head
}

// fieldRule refuses headers of a name, and a value if there is a pattern.
type fieldRule struct {
	name    string // lower case
	pattern string // lower case, with * for any bytes; "*": every value
}

func newPolicy(c *Config) *policy {
	p := &policy{
		judged: map[string]bool{}, denyHosts: hostname.NewSet(c.DenyHosts), denyMethods: c.DenyMethods, allowMethods: c.AllowMethods,
		denyPaths: c.DenyPaths, allowPaths: c.AllowPaths, rules: http1.Rules{MaxFields: c.MaxHeaders, RefuseH2C: c.enforces() && !c.HTTP2, Strings: http1.NewStrings()},
	}
	p.responses.Strings = p.rules.Strings
	if len(c.AllowHosts) > 0 {
		p.allowHosts = hostname.NewSet(c.AllowHosts)
	}
	for _, h := range c.DenyHeaders {
		p.fields = append(p.fields, parseFieldRule(h))
	}
	if len(p.fields) > 0 {
		p.rules.Field = func(name, value []byte) { p.denied = p.denied || p.deniesField(name, value) }
	}
	return p
}

// parse reads a complete request head into h. A reason other than ReasonNone says
// why it is refused.
func (p *policy) parse(b []byte, h *request) pipeline.Reason {
	p.denied, p.kept = false, p.kept[:0]
	var bad http1.Fault
	h.Head, bad = http1.ParseRequest(b, &p.rules)
	h.fieldDenied, h.fields = p.denied, p.kept
	return faultReasons[bad]
}

// keepFields makes parse keep the headers.
func (p *policy) keepFields() {
	judge := p.rules.Field
	p.rules.Field = func(name, value []byte) {
		p.kept = append(p.kept, field{name, value})
		if judge != nil {
			judge(name, value)
		}
	}
}

func parseFieldRule(s string) fieldRule {
	name, pattern, has := strings.Cut(strings.ToLower(s), ":")
	pattern = strings.TrimSpace(pattern)
	if !has || pattern == "" {
		pattern = "*"
	}
	return fieldRule{name, pattern}
}

// judge returns why a request is refused, ReasonNone if it is not.
func (p *policy) judge(h *request) pipeline.Reason {
	switch {
	case p.deniesHost(h.Host):
		return reasonHost
	case slices.Contains(p.denyMethods, h.Method) || len(p.allowMethods) > 0 && !slices.Contains(p.allowMethods, h.Method):
		return reasonMethod
	case h.fieldDenied:
		return reasonField
	case len(p.denyPaths)+len(p.allowPaths) == 0 || h.Method == "CONNECT" || h.Target == "*":
		return pipeline.ReasonNone
	}
	path, ok := normalPath(h.Target)
	switch {
	case !ok:
		return reasonBadPath
	case matchPath(p.denyPaths, path) || len(p.allowPaths) > 0 && !matchPath(p.allowPaths, path):
		return reasonPath
	}
	return pipeline.ReasonNone
}

// judgedHosts bounds how many hosts are remembered.
const judgedHosts = 1024

// deniesHost asks the lists of hosts, or remembers what they said.
func (p *policy) deniesHost(host string) bool {
	denied, ok := p.judged[host]
	if !ok {
		denied = p.denyHosts.Match(host) || p.allowHosts != nil && !p.allowHosts.Match(host)
		if len(p.judged) < judgedHosts {
			p.judged[strings.Clone(host)] = denied
		}
	}
	return denied
}

// deniesField reports whether a rule refuses a header.
func (p *policy) deniesField(name, value []byte) bool {
	for i := range p.fields {
		if r := &p.fields[i]; http1.EqualFold(name, r.name) && (r.pattern == "*" || wild(r.pattern, bytes.ToLower(value))) {
			return true
		}
	}
	return false
}

// wild matches s against a pattern in which * stands for any bytes.
func wild(pattern string, s []byte) bool {
	first, rest, more := strings.Cut(pattern, "*")
	if !more {
		return string(s) == pattern
	}
	if len(s) < len(first) || string(s[:len(first)]) != first {
		return false
	}
	s = s[len(first):]
	for {
		part, after, more := strings.Cut(rest, "*")
		if !more {
			return len(s) >= len(part) && string(s[len(s)-len(part):]) == part
		}
		i := bytes.Index(s, []byte(part))
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], after
	}
}

// matchPath looks for a path in a list of paths, in which "/x/*" is everything
// below /x, and /x itself.
func matchPath(list []string, path string) bool {
	for _, p := range list {
		if below, wild := strings.CutSuffix(p, "/*"); wild {
			if rest, ok := strings.CutPrefix(path, below); ok && (rest == "" || rest[0] == '/') {
				return true
			}
		} else if p == path {
			return true
		}
	}
	return false
}

// normalPath returns the path of a request target as most servers see it:
// without query, percent-decoded once, with "//" as "/" and without dot segments
// (RFC 3986 5.2.4). It reports false where servers differ on what it is: an
// escape that is malformed, that decodes to a separator, to a control character
// or to another escape, or a backslash.
func normalPath(target string) (path string, ok bool) {
	if target[0] != '/' { // absolute form
		_, after, _ := strings.Cut(target, "://")
		i := strings.IndexAny(after, "/?#")
		if i < 0 {
			return "/", true
		}
		target = after[i:]
	}
	if i := strings.IndexAny(target, "?#"); i >= 0 {
		target = target[:i]
	}
	var b []byte
	for i := 0; i < len(target); i++ {
		c := target[i]
		if c == '%' {
			if i+2 >= len(target) || http1.HexValue(target[i+1]) < 0 || http1.HexValue(target[i+2]) < 0 {
				return "", false
			}
			c = byte(http1.HexValue(target[i+1])<<4 | http1.HexValue(target[i+2]))
			i += 2
			if c < ' ' || c == 0x7f || c == '/' || c == '%' {
				return "", false
			}
		}
		if c == '\\' {
			return "", false
		}
		b = append(b, c)
	}
	segments := strings.Split(string(b), "/")
	kept := segments[:0]
	for i, s := range segments {
		// "/a;x/b": some servers take ";x" for a parameter of the segment.
		s, _, _ = strings.Cut(s, ";")
		switch {
		case s == "..":
			kept = kept[:max(len(kept)-1, 0)]
		case s != "." && s != "" || s == "" && i == len(segments)-1:
			kept = append(kept, s)
		}
	}
	return "/" + strings.Join(kept, "/"), true
}

func validateLists(c *Config, issues *pipeline.Issues) {
	for key, list := range map[string][]string{"deny_methods": c.DenyMethods, "allow_methods": c.AllowMethods} {
		for i, m := range list {
			if !http1.IsToken([]byte(m)) {
				issues.Add(fmt.Sprintf("%s[%d]", key, i), `want a method such as "GET", got %q`, m)
			}
		}
	}
	for key, list := range map[string][]string{"deny_paths": c.DenyPaths, "allow_paths": c.AllowPaths} {
		for i, p := range list {
			plain := strings.TrimSuffix(p, "/*")
			normal, ok := plain, true
			if plain != "" && plain[0] == '/' {
				normal, ok = normalPath(plain)
			}
			if p == "" || p[0] != '/' || !ok || normal != plain || strings.Contains(plain, "*") {
				issues.Add(fmt.Sprintf("%s[%d]", key, i), `want a path such as "/admin", or "/admin/*" for all below, without escapes, "//", ";" and dots, got %q`, p)
			}
		}
	}
	for i, h := range c.DenyHeaders {
		if name, _, _ := strings.Cut(h, ":"); !http1.IsToken([]byte(name)) {
			issues.Add(fmt.Sprintf("deny_headers[%d]", i), `want a header's name, or "Name: pattern" with * for anything, got %q`, h)
		}
	}
}
