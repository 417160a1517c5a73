package http

import (
	"fmt"
	"net/netip"
	"strings"
)

func indexed(key string, i int) string { return fmt.Sprintf("%s[%d]", key, i) }

// hostSet matches host names against exact names and "*.suffix" wildcards.
type hostSet struct {
	all      bool
	exact    map[string]bool
	suffixes map[string]bool // "example.com" for "*.example.com"
}

func newHostSet(hosts []string) *hostSet {
	s := &hostSet{exact: map[string]bool{}, suffixes: map[string]bool{}}
	for _, h := range hosts {
		h = strings.TrimSuffix(strings.ToLower(h), ".")
		switch suffix, wild := strings.CutPrefix(h, "*."); {
		case h == "*":
			s.all = true
		case wild:
			s.suffixes[suffix] = true
		default:
			s.exact[h] = true
		}
	}
	return s
}

// match reports whether the set holds host, which normalHost returned.
func (s *hostSet) match(host string) bool {
	if s.all || s.exact[host] {
		return true
	}
	if len(s.suffixes) == 0 {
		return false
	}
	for rest := host; ; {
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

// normalHost takes the host out of a Host field or an authority: without port,
// in lower case, without a trailing dot. It reports false for what is neither a
// name nor an address (RFC 9110 7.2, RFC 3986 3.2.2).
func normalHost(authority string) (host string, ok bool) {
	if strings.HasPrefix(authority, "[") { // an IPv6 address
		end := strings.IndexByte(authority, ']')
		if end < 0 || !validPort(authority[end+1:]) {
			return "", false
		}
		a, err := netip.ParseAddr(authority[1:end])
		return a.String(), err == nil && a.Is6()
	}
	host, port, hasPort := strings.Cut(authority, ":")
	if hasPort && !validPort(":"+port) {
		return "", false
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return host, validHost(host)
}

func validPort(s string) bool {
	if s == "" || s == ":" {
		return true
	}
	if s[0] != ':' || len(s) > 6 {
		return false
	}
	for _, c := range s[1:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}
