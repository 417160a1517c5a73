package http1

import (
	"net/netip"
	"strings"

	"penstock/internal/hostname"
)

// NormalHost takes the host out of a Host field or an authority: without port,
// in lower case, without a trailing dot. It reports false for what is neither a
// name nor an address (RFC 9110 7.2, RFC 3986 3.2.2).
func NormalHost(authority string) (host string, ok bool) {
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
	return hostname.Normal(host)
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
