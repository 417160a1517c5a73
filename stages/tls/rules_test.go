package tls

import (
	stdtls "crypto/tls"
	"net/netip"
	"strings"
	"testing"

	"penstock/internal/config"
	"penstock/internal/dnsseen"
	"penstock/internal/policy"
	"penstock/pipeline"
	"penstock/stages/tcp"
)

// TestRules: each variable has what the hello says, whole and byte by byte.
func TestRules(t *testing.T) {
	hello := transcript(t, nil)
	noName := transcript(t, func(c, _ *stdtls.Config) { c.ServerName, c.NextProtos = "", nil })
	old := transcript(t, func(c, _ *stdtls.Config) { c.MaxVersion = stdtls.VersionTLS12 })
	retried := transcript(t, helloRetry)
	facts := only(t, newRig(t, nil), hello).TLS
	for _, row := range []struct {
		expr string
		in   []piece
		want bool
	}{
		{`tls.sni == "www.good.example"`, hello, true},
		{`tls.sni == ""`, noName, true},
		{`tls.sni.endsWith(".good.example") && !(flow.src in office)`, hello, false},
		{`tls.sni.endsWith(".good.example") && !(flow.src in servers)`, hello, true},
		{`flow.dst in servers && flow.dst_port == 443 && flow.src_port == 40000 && flow.ip_version == 4 && flow.vlan == 0`, hello, true},
		{`tls.alpn == ["h2", "http/1.1"]`, hello, true},
		{`"h2" in tls.alpn`, noName, false},
		{`tls.version == "1.3"`, hello, true},
		{`tls.version < "1.3" && tls.version > "1.1"`, old, true},
		{`tls.ech`, hello, false},
		{`tls.ja4 == "` + string(facts.JA4) + `" && tls.ja3 == "` + string(facts.JA3.Hash) + `"`, hello, true},
		{`tls.ja4 == ""`, retried, false},
		{`tls.version == "1.3"`, retried, true},
	} {
		for seed := range uint64(2) {
			r := newRig(t, func(c *Config) {
				c.Rules = []policy.Rule{{If: row.expr, Action: "deny", Name: "test"}}
				c.Log = seed == 0 // what is not recorded is judged all the same
			})
			want := ""
			if row.want {
				want = "tls_rule_denied"
			}
			if got := r.run(server4, row.in, seed).reason(); got != want {
				t.Errorf("%s: got %q, want %q", row.expr, got, want)
			}
			if seed > 0 {
				continue
			}
			e := r.rec.events(t)[0]
			if row.want != (len(e.Rules) == 1 && e.Rules[0] == "test") || e.Reason != want {
				t.Errorf("%s: recorded %+v", row.expr, e)
			}
		}
	}
}

func TestRuleOutcomes(t *testing.T) {
	hello := transcript(t, nil)
	for _, row := range []struct {
		name    string
		rules   []policy.Rule
		deny    []string
		want    string
		applied string
	}{
		{"allow before deny", []policy.Rule{{If: `"h2" in tls.alpn`, Action: "allow", Name: "h2"}, {If: "true", Action: "deny"}}, nil, "", "h2"},
		{"allow does not undo a list", []policy.Rule{{If: "true", Action: "allow"}}, []string{"*.good.example"}, "tls_sni_denied", ""},
		{"log", []policy.Rule{{If: "true", Action: "log", Name: "a"}, {If: "true", Action: "log"}}, nil, "", "a rules[1]"},
		{"fails", []policy.Rule{{If: `tls.alpn[9] == "x"`, Action: "deny"}}, nil, "tls_rule_failed", "rules[0]"},
		{"log fails", []policy.Rule{{If: `tls.alpn[9] == "x"`, Action: "log"}}, nil, "", ""},
	} {
		r := newRig(t, func(c *Config) { c.Rules, c.DenySNI = row.rules, row.deny })
		if got := r.run(server4, hello, 0).reason(); got != row.want {
			t.Errorf("%s: got %q, want %q", row.name, got, row.want)
		}
		if e := r.rec.events(t)[0]; strings.Join(e.Rules, " ") != row.applied {
			t.Errorf("%s: recorded %+v", row.name, e)
		}
	}
	// Rules that only log need no connection to wait, but see it.
	c := defaults()
	c.Rules, c.Log = []policy.Rule{{If: "true", Action: "log"}}, false
	if need, _ := needs(c); need != pipeline.NeedObserve {
		t.Errorf("needs %v", need)
	}
	r := newRig(t, func(own *Config) { *own = c })
	if r.Open(&pipeline.Conn{}) == nil {
		t.Error("no interest")
	}
}

// TestRuleProblems: a problem of an expression stands where it is in the file.
func TestRuleProblems(t *testing.T) {
	reg := &pipeline.Registry{}
	pipeline.Register(reg, Descriptor())
	pipeline.Register(reg, tcp.Descriptor())
	src := `[set.office]
prefixes = ["10.1.0.0/16"]
[set.tls]
prefixes = ["10.1.0.0/16"]
[[port]]
name = "lan"
interface = "eth1"
[[port]]
name = "wan"
interface = "eth2"
[[chain]]
name = "tls"
  [[chain.stage]]
  kind = "tcp"
  [[chain.stage]]
  kind = "tls"
  rules = [
    { if = "tls.sni == \"\u00e9\" && tls.snn == ''", action = "deny" },
    { action = "deny", if = '''
      tls.ech ||
      flow.src in ofice''' },
    { if = 'tls.sni', action = "deny" },
    { if = 'flow.src in office', action = "drop" },
  ]
`
	want := []string{
		`x.toml:3:1: set: tls: "tls" means something else in expressions: want another name`,
		`x.toml:18:38: chain "tls", stage 2 (tls): rules[0].if: unknown name "tls.snn": want tls.sni, tls.alpn, tls.version, tls.ja3, tls.ja4 or tls.ech`,
		`x.toml:21:19: chain "tls", stage 2 (tls): rules[1].if: unknown name "ofice": want tls.*, flow.* or the set office`,
		`x.toml:22:13: chain "tls", stage 2 (tls): rules[2].if: want an expression that is true or false, got one of type string`,
		`x.toml:23:34: chain "tls", stage 2 (tls): rules[3].action: want "deny", "allow" or "log", got "drop"`,
	}
	_, problems := config.Parse("x.toml", []byte(src), reg)
	if got := problems.Error(); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func officeSets() map[string][]netip.Prefix {
	return map[string][]netip.Prefix{"office": {netip.MustParsePrefix("10.0.0.0/16")}, "servers": {netip.MustParsePrefix("192.0.2.0/24")}}
}

// TestRequireDNS: what is seen, what is other, and what is unknown, by mode.
func TestRequireDNS(t *testing.T) {
	hello := transcript(t, nil)
	noName := transcript(t, func(c, _ *stdtls.Config) { c.ServerName = "" })
	dst := netip.MustParseAddrPort(server4).Addr()
	for _, row := range []struct {
		mode, unknown, learnt string
		in                    []piece
		want, word            string
	}{
		{"deny", "allow", "www.good.example", hello, "", "seen"},
		{"deny", "allow", "www.bad.example", hello, "tls_sni_not_in_dns", "other"},
		{"deny", "allow", "www.good.example", noName, "tls_sni_not_in_dns", "other"},
		{"deny", "allow", "", hello, "", "unknown"},
		{"deny", "deny", "", hello, "tls_sni_not_in_dns", "unknown"},
		{"log", "deny", "www.bad.example", hello, "", "other"},
		{"off", "deny", "www.bad.example", hello, "", ""},
	} {
		r := newRig(t, func(c *Config) { c.RequireDNS, c.DNSUnknown = row.mode, row.unknown })
		r.seen = &dnsseen.Table{}
		if row.learnt != "" {
			r.seen.Learn(row.learnt, dst, 1000, 0)
		}
		if got := r.run(server4, row.in, 0).reason(); got != row.want {
			t.Errorf("%+v: got %q", row.mode+" "+row.unknown+" "+row.learnt, got)
		}
		if e := r.rec.events(t)[0]; e.TLS.DNS != row.word {
			t.Errorf("%s %s %s: recorded %+v", row.mode, row.unknown, row.learnt, e.TLS)
		}
	}
}
