// Package hostname matches the names of hosts against lists of names and
// wildcards, the same way for every protocol that carries names.
//
// Its one trap: Match takes names as Normal returns them; a name with
// capitals or a trailing dot is another name to them.
package hostname

import (
	"fmt"
	"strings"

	"penstock/pipeline"
)

// maxName is the longest name in DNS, in characters (RFC 1035 2.3.4).
const maxName = 253

// Valid reports whether name may be the name or the address of a host: letters,
// digits, '-', '_', for IPv6 addresses ':', and single dots between them.
func Valid(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	last := byte('.')
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == ':':
		case c == '.' && last != '.':
		default:
			return false
		}
		last = name[i]
	}
	return last != '.'
}

// Normal returns name in lower case and without a trailing dot: the form that
// Set.Match takes. It reports false for what is not Valid.
func Normal(name string) (string, bool) {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	return name, Valid(name)
}

// ValidPatterns adds an issue for each element of the list under key that is
// neither a name, nor "*.example.com", nor "*".
func ValidPatterns(key string, patterns []string, issues *pipeline.Issues) {
	for i, p := range patterns {
		if p != "*" && !Valid(strings.TrimSuffix(strings.TrimPrefix(p, "*."), ".")) {
			issues.Add(fmt.Sprintf("%s[%d]", key, i), `want a host name, "*.example.com" or "*", got %q`, p)
		}
	}
}

// Set is a list of names and wildcards: "example.com" is that name,
// "*.example.com" every name below it, not itself, and "*" everything, also the
// absence of a name. A Set does not change and may be shared.
type Set struct {
	all      bool
	exact    map[string]bool
	suffixes map[string]bool // "example.com" for "*.example.com"
}

// NewSet returns the set of patterns that ValidPatterns has no issue with.
func NewSet(patterns []string) *Set {
	s := &Set{exact: map[string]bool{}, suffixes: map[string]bool{}}
	for _, p := range patterns {
		p = strings.TrimSuffix(strings.ToLower(p), ".")
		switch suffix, wild := strings.CutPrefix(p, "*."); {
		case p == "*":
			s.all = true
		case wild:
			s.suffixes[suffix] = true
		default:
			s.exact[p] = true
		}
	}
	return s
}

// Match reports whether the set holds name, which Normal returned. It does not
// allocate; it takes a map lookup for each label of the name.
func (s *Set) Match(name string) bool {
	if s.all || s.exact[name] {
		return true
	}
	if len(s.suffixes) == 0 {
		return false
	}
	for rest := name; ; {
		_, after, ok := strings.Cut(rest, ".")
		if !ok {
			return false
		}
		if s.suffixes[after] {
			return true
		}
		rest = after
	}
}
