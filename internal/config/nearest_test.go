package config

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	known := []string{"acl", "http", "llm", "ratelimit", "tcp", "tls", "dst_port", "src_port", "on_exit"}
	for name, want := range map[string]string{
		"htpp": "http", "http2": "http", "HTTP": "http", "rate-limit": "ratelimit", "ratelimiter": "ratelimit", "ratlimt": "ratelimit",
		"tpc": "tcp", "alc": "acl", "llms": "llm", "dst-port": "dst_port", "dst_ports": "dst_port", "onexit": "on_exit", "tl": "tls",
		"": "", "x": "", "quic": "", "udp": "", "proxy": "", "ö": "", strings.Repeat("ratelimit", 100): "",
	} {
		if got := Nearest(name, known); got != want {
			t.Errorf("nearest to %q is %q, want %q", name, got, want)
		}
	}
	if got := Nearest("a", nil); got != "" {
		t.Errorf("nearest of none is %q", got)
	}
	if got := Nearest("b", []string{"a", "c"}); got != "" {
		t.Errorf("nearest to b is %q, which has no letter in common", got)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"a", "", 1}, {"", "abc", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abcd", "badc", 2},
		{"kitten", "sitting", 3}, {"ca", "abc", 3}, {"größe", "grosse", 3},
	} {
		if got := distance([]rune(c.a), []rune(c.b), make([]int, 60)); got != c.want {
			t.Errorf("distance of %q and %q is %d, want %d", c.a, c.b, got, c.want)
		}
		if got := distance([]rune(c.b), []rune(c.a), make([]int, 60)); got != c.want {
			t.Errorf("distance of %q and %q is %d, want %d", c.b, c.a, got, c.want)
		}
	}
}

func TestChoice(t *testing.T) {
	for want, names := range map[string][]string{"": nil, `"a"`: {"a"}, `"a" or "b"`: {"a", "b"}, `"a", "b" or "c"`: {"a", "b", "c"}} {
		if got := choice(names); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestLowerSnake(t *testing.T) {
	for in, want := range map[string]string{"Rate": "rate", "DenyHosts": "deny_hosts", "MaxURL": "max_url", "URLMax": "url_max", "IP": "ip", "I8": "i8"} {
		if got := lowerSnake(in); got != want {
			t.Errorf("%s becomes %s, want %s", in, got, want)
		}
	}
}
