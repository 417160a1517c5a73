package config

import (
	"strings"
	"testing"
)

// TestNeverMatches: which second rule the first one leaves nothing.
func TestNeverMatches(t *testing.T) {
	for _, c := range []struct {
		first, second string
		never         bool
	}{
		{``, ``, true},
		{``, `from = "lan"; proto = "tcp"; src = ["::1"]; dst_port = [80]`, true},
		{`from = "lan"`, ``, false},
		{`from = "lan"`, `from = "lan"`, true},
		{`from = "lan"`, `from = "wan"`, false},
		{`proto = "tcp"`, `proto = "udp"`, false},
		{`proto = "tcp"`, ``, false},
		{`dst_port = [80]`, `proto = "udp"; dst_port = [80]`, true},
		{`dst_port = [80]`, `proto = "icmp"`, false},
		{`dst_port = [80]`, ``, false},
		{`dst_port = ["80-90", 443]`, `proto = "tcp"; dst_port = [443, "81-82"]`, true},
		{`dst_port = ["80-90", 443]`, `proto = "tcp"; dst_port = [443, "81-91"]`, false},
		{`src_port = ["1-10"]`, `src_port = [5]; dst_port = [5]`, true},
		{`src = ["10.0.0.0/8"]`, `src = ["10.1.0.0/16", "10.2.3.4"]`, true},
		{`src = ["10.0.0.0/8"]`, `src = ["10.1.0.0/16", "11.2.3.4"]`, false},
		{`src = ["10.0.0.0/8"]`, `src = ["::/0"]`, false},
		{`src = ["10.1.0.0/16"]`, `src = ["10.0.0.0/8"]`, false},
		{`src = ["0.0.0.0/0", "::/0"]`, `src = ["10.0.0.0/8", "fd00::/8"]`, true},
		{`src = ["10.0.0.0/8"]`, ``, false},
		{`dst = ["10.0.0.0/8"]`, `src = ["10.0.0.0/8"]`, false},
	} {
		rule := func(s string) string {
			return "[[steer]]\nto = \"drop\"\n" + strings.ReplaceAll(s, "; ", "\n") + "\n"
		}
		cfg := mustParse(t, "f", ports+rule(c.first)+rule(c.second))
		got := strings.Contains(cfg.Warnings.Error(), "steer 2: never matches")
		if got != c.never {
			t.Errorf("%s then %s: never matches is %v, want %v (%v)", c.first, c.second, got, c.never, cfg.Warnings)
		}
	}
}

// TestRuleEntries: the bound is on the entries that the XDP program needs.
func TestRuleEntries(t *testing.T) {
	rule := func(src4, src6, dst4, ports int) string {
		return "[[steer]]\nto = \"drop\"\nproto = \"tcp\"\nsrc = [" + numbered(src4, `"10.0.#.0/24",`) + numbered(src6, `"fd00:#::/32",`) +
			"]\ndst = [" + numbered(dst4, `"10.1.#.0/24",`) + "]\ndst_port = [" + numbered(ports, `"1-2",`) + "]\n"
	}
	for _, c := range []struct {
		src4, src6, dst4, ports int
		fits                    bool
	}{
		{16, 100, 8, 2, true}, // families that cannot meet take no entry
		{16, 0, 8, 3, false},
		{1, 0, 1, 200, true},
	} {
		_, problems := Parse("f", []byte(ports+rule(c.src4, c.src6, c.dst4, c.ports)), testRegistry())
		if fits := len(problems) == 0; fits != c.fits {
			t.Errorf("%+v: %v", c, problems)
		}
	}
}
