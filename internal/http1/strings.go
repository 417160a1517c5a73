package http1

import "hash/maphash"

// Strings keeps strings that heads have again and again, methods, hosts, agents,
// so that they are not allocated for each. One goroutine uses it. It holds some
// 100 KiB at most, whatever the ends send.
type Strings struct {
	seed  maphash.Seed
	kept  [512]string
	hosts [128]struct{ written, normal string }
}

// longestKept bounds the strings that are kept.
const longestKept = 128

// NewStrings returns an empty one.
func NewStrings() *Strings { return &Strings{seed: maphash.MakeSeed()} }

// get returns b as a string. s may be nil.
func (s *Strings) get(b []byte) string {
	switch string(b) {
	case "GET":
		return "GET"
	case "POST":
		return "POST"
	case "/":
		return "/"
	}
	if s == nil || len(b) > longestKept {
		return string(b)
	}
	p := &s.kept[maphash.Bytes(s.seed, b)%uint64(len(s.kept))]
	if *p != string(b) {
		*p = string(b)
	}
	return *p
}

// host is NormalHost. s may be nil.
func (s *Strings) host(authority []byte) (host string, ok bool) {
	if s == nil || len(authority) > longestKept {
		return NormalHost(string(authority))
	}
	p := &s.hosts[maphash.Bytes(s.seed, authority)%uint64(len(s.hosts))]
	if p.written == string(authority) {
		return p.normal, true
	}
	written := string(authority)
	if host, ok = NormalHost(written); ok {
		p.written, p.normal = written, host
	}
	return host, ok
}
