package config

import (
	"slices"
	"strings"
	"testing"
)

const diffBase = ports + `
[gate]
deny = ["192.0.2.0/24"]
[[steer]]
proto = "tcp"
dst_port = [80]
to = "web"
[[chain]]
name = "web"
  [[chain.stage]]
  kind = "acl"
  rules = [{ action = "drop", src = ["10.9.0.0/16"] }]
[[chain]]
name = "rest"
`

// TestDiff: what is different, in words, and what a running appliance cannot
// change.
func TestDiff(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     []string // "!" begins what needs a restart
	}{
		{"", "", nil},
		{"[gate]", "[appliance]\ndrain = \"1s\"\n[gate]", []string{`appliance: drain: "10m0s" -> "1s"`}},
		{"[gate]", "[appliance]\nmax_flows = 100\n[gate]", []string{"!appliance: max_flows: 65536 -> 100"}},
		{`deny = ["192.0.2.0/24"]`, `deny = ["192.0.2.0/25", "2001:db8::/32"]`, []string{"gate: deny: - 192.0.2.0/24", "gate: deny: + 192.0.2.0/25, 2001:db8::/32"}},
		{`[gate]`, "[gate]\nrate_syns = \"5pkt/s\"\nmax_sources = 99", []string{"gate: rate_syns: 0 -> 5", "!gate: max_sources: 65536 -> 99"}},
		{`dst_port = [80]`, `dst_port = [80, "8000-8001"]`, []string{`steer: - tcp dst_port [80] to "web"`, `steer: + tcp dst_port [80, 8000-8001] to "web"`}},
		{`10.9.0.0/16`, `10.8.0.0/16`, []string{`chain "web", stage 1 (acl): rules: [{action = "drop", src = ["10.9.0.0/16"]}] -> [{action = "drop", src = ["10.8.0.0/16"]}]`}},
		{`name = "rest"`, "name = \"rest\"\noffload = \"never\"", []string{`chain "rest": offload: auto -> never`}},
		{`name = "rest"`, `name = "others"`, []string{`chain "rest": - no stages`, `chain "others": + no stages`}},
		{`name = "rest"`, "name = \"rest\"\n[[chain.stage]]\nkind = \"acl\"", []string{`chain "rest": stages: no stages -> acl`}},
		{`name = "rest"`, "name = \"rest\"\n[[record]]\nto = \"stdout\"", []string{`record: + all to stdout`}},
		{`name = "rest"`, "name = \"rest\"\n[[ipfix]]\nto = \"udp:a:4739\"", []string{`!ipfix: + udp:a:4739: domain 0, templates 1m0s, active_timeout 1m0s, message_size 1400`}},
		{`name = "rest"`, "name = \"rest\"\n[otlp]\nendpoint = \"http://a:4318\"\nheaders = [\"a: secret\"]", []string{`!otlp: + http://a:4318: metrics every 1m0s, traces of http, llm (100%), timeout 10s`}},
		{`interface = "eth1"`, `interface = "eth7"`, []string{
			`!port: - "lan": interface eth1, queues all, xdp auto, zero_copy auto`, `!port: - "wan": interface eth2, queues all, xdp auto, zero_copy auto`,
			`!port: + "lan": interface eth7, queues all, xdp auto, zero_copy auto`, `!port: + "wan": interface eth2, queues all, xdp auto, zero_copy auto`}},
		{"[gate]", "[[port]]\nname = \"a\"\ninterface = \"eth3\"\n[[port]]\nname = \"b\"\ninterface = \"eth4\"\n[gate]", []string{
			`port: + "a": interface eth3, queues all, xdp auto, zero_copy auto`, `port: + "b": interface eth4, queues all, xdp auto, zero_copy auto`}},
		{"[gate]", "[appliance]\nspare_ports = 2\n[gate]", []string{"!appliance: spare_ports: 0 -> 2"}},
	} {
		if !strings.Contains(diffBase, c.from) {
			t.Fatalf("%q is not there", c.from)
		}
		old, next := mustParse(t, "f", diffBase), mustParse(t, "f", strings.Replace(diffBase, c.from, c.to, 1))
		var got []string
		for _, d := range Diff(old, next) {
			text := d.String()
			if d.Restart {
				text = "!" + text
			}
			got = append(got, text)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%q to %q:\ngot  %q\nwant %q", c.from, c.to, got, c.want)
		}
		for i := range next.Chains {
			same := false
			for j := range old.Chains {
				same = same || SameChain(&old.Chains[j], &next.Chains[i])
			}
			changed := slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, title("chain", i, next.Chains[i].Name)) })
			if same == changed {
				t.Errorf("%q to %q: chain %q is the same: %v", c.from, c.to, next.Chains[i].Name, same)
			}
		}
	}
}
