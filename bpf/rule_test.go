package bpf

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

func nets(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestCompileRules(t *testing.T) {
	many := make([]PortRange, 17)
	for i := range many {
		many[i] = PortRange{uint16(i), uint16(i)}
	}
	addrs := nets("10.0.0.0/8", "fd00::/8", "192.0.2.1/32")
	for _, c := range []struct {
		name  string
		rules []Rule
		n     int    // entries
		err   string // or an error that contains this
	}{
		{"none", nil, 0, ""},
		{"everything", []Rule{{From: -1}}, 1, ""},
		{"ICMP of either version", []Rule{{From: -1, Proto: ProtoICMP}}, 2, ""},
		{"ICMP from IPv6", []Rule{{From: -1, Proto: ProtoICMP, Src: nets("fd00::/8")}}, 1, ""},
		{"cross product", []Rule{{From: 0, Proto: ProtoTCP, Src: nets("10.0.0.0/8", "10.1.0.0/16"), Dst: nets("0.0.0.0/0"), DstPorts: many[:3], SrcPorts: many[:2]}}, 12, ""},
		{"mixed versions pair up", []Rule{{From: -1, Src: addrs, Dst: addrs}}, 5, ""},
		{"mapped IPv4", []Rule{{From: -1, Src: nets("::ffff:10.0.0.0/104"), Dst: nets("10.0.0.0/8")}}, 1, ""},
		{"at the limit", []Rule{{From: -1, SrcPorts: many[:16], DstPorts: many[:16]}}, 256, ""},
		{"over the limit", []Rule{{From: -1, SrcPorts: many[:16], DstPorts: many[:16]}, {From: -1}}, 0, "2 rules make 257 entries (combinations of addresses and ports), the limit is 256"},
		{"no pair", []Rule{{From: -1, Src: nets("10.0.0.0/8"), Dst: nets("fd00::/8")}}, 0, "rule 1: no source and destination of the same IP version"},
		{"port index", []Rule{{From: 2}}, 0, "rule 1: want a port from 0 to 1 or -1, got 2"},
		{"ports of ICMP", []Rule{{From: -1, Proto: ProtoICMP, DstPorts: many[:1]}}, 0, "ports go with TCP and UDP only, got protocol 1"},
		{"empty range", []Rule{{From: -1, DstPorts: []PortRange{{9, 8}}}}, 0, "destination port: range 9-8 is empty"},
		{"invalid prefix", []Rule{{From: -1, Dst: []netip.Prefix{{}}}}, 0, "destination: invalid prefix at place 1"},
		{"half mapped", []Rule{{From: -1, Src: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("::ffff:1.2.3.4"), 90)}}}, 0, "half IPv4, half IPv6"},
		{"unknown action", []Rule{{From: -1, Action: 9}}, 0, "unknown action 9"},
		{"all problems at once", []Rule{{From: 7}, {From: -1}, {From: -1, Action: 9}}, 0, "rule 1: want a port from 0 to 1 or -1, got 7\nrule 3: unknown action 9"},
	} {
		got, err := CompileRules(c.rules, 2)
		if c.err == "" && (err != nil || len(got) != c.n) {
			t.Errorf("%s: %d entries, error %v; want %d", c.name, len(got), err, c.n)
		}
		if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || got != nil) {
			t.Errorf("%s: %d entries, error %v; want %q", c.name, len(got), err, c.err)
		}
	}
}

func TestRules(t *testing.T) {
	v4, v6 := eth(layers.EthernetTypeIPv4), eth(layers.EthernetTypeIPv6)
	icmp := build(t, v4, ip4(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 53}, payload(8))
	ip := ip6(layers.IPProtocolICMPv6)
	echo := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
	_ = echo.SetNetworkLayerForChecksum(ip)
	icmp6 := build(t, v6, ip, echo, payload(20))
	gre := build(t, v4, ip4(47), payload(20))
	syn4, syn6, dns := tcp4(t, "S", 0), tcp6(t, "S", 0), udp4(t, 10) // 40000 > 80, 40000 > 80, 40000 > 53

	type verdicts map[string]fate
	var (
		none   = fate{VerdictPeer, "no_rule"}
		bypass = fate{VerdictPeer, "rule_bypass"}
		drop   = fate{VerdictDrop, "rule_drop"}
	)
	packets := map[string][]byte{"tcp4": syn4, "tcp6": syn6, "dns": dns, "icmp": icmp, "icmp6": icmp6, "gre": gre}
	r := newRig(t, nil)
	for _, c := range []struct {
		name  string
		rules []Rule
		from  int
		want  verdicts // what is not named has no rule
	}{
		{"none", nil, 0, nil},
		{"any", all, 0, verdicts{"tcp4": toSocket, "tcp6": toSocket, "dns": toSocket, "icmp": toSocket, "icmp6": toSocket, "gre": toSocket}},
		{"from this port", []Rule{{From: 1}}, 1, verdicts{"tcp4": toSocket, "tcp6": toSocket, "dns": toSocket, "icmp": toSocket, "icmp6": toSocket, "gre": toSocket}},
		{"from another port", []Rule{{From: 1}}, 0, nil},
		{"TCP", []Rule{{From: -1, Proto: ProtoTCP}}, 0, verdicts{"tcp4": toSocket, "tcp6": toSocket}},
		{"UDP", []Rule{{From: -1, Proto: ProtoUDP}}, 0, verdicts{"dns": toSocket}},
		{"ICMP", []Rule{{From: -1, Proto: ProtoICMP}}, 0, verdicts{"icmp": toSocket, "icmp6": toSocket}},
		{"GRE", []Rule{{From: -1, Proto: 47}}, 0, verdicts{"gre": toSocket}},
		{"drop", []Rule{{From: -1, Action: Drop}}, 0, verdicts{"tcp4": drop, "tcp6": drop, "dns": drop, "icmp": drop, "icmp6": drop, "gre": drop}},
		{"bypass", []Rule{{From: -1, Proto: ProtoTCP, Action: Bypass}}, 0, verdicts{"tcp4": bypass, "tcp6": bypass}},
		{"first match wins", []Rule{{From: -1, Proto: ProtoUDP, Action: Drop}, {From: -1, Src: nets("10.0.0.0/8"), Action: Bypass}, {From: -1}}, 0,
			verdicts{"dns": drop, "tcp4": bypass, "icmp": bypass, "gre": bypass, "tcp6": toSocket, "icmp6": toSocket}},
		{"source", []Rule{{From: -1, Src: nets("10.0.0.1/32")}}, 0, verdicts{"tcp4": toSocket, "dns": toSocket, "icmp": toSocket, "gre": toSocket}},
		{"source, one bit off", []Rule{{From: -1, Src: nets("10.0.0.0/32", "10.0.0.2/31", "11.0.0.0/8")}}, 0, nil},
		{"source, odd length", []Rule{{From: -1, Src: nets("10.0.0.0/31")}}, 0, verdicts{"tcp4": toSocket, "dns": toSocket, "icmp": toSocket, "gre": toSocket}},
		{"source of the other version", []Rule{{From: -1, Src: nets("::/0")}}, 0, verdicts{"tcp6": toSocket, "icmp6": toSocket}},
		{"all of IPv4", []Rule{{From: -1, Dst: nets("0.0.0.0/0"), Proto: ProtoTCP}}, 0, verdicts{"tcp4": toSocket}},
		{"destination", []Rule{{From: -1, Dst: nets("192.0.2.0/24", "2001:db8::/64")}}, 0, verdicts{"tcp4": toSocket, "tcp6": toSocket, "dns": toSocket, "icmp": toSocket, "icmp6": toSocket, "gre": toSocket}},
		{"destination is not source", []Rule{{From: -1, Dst: nets("10.0.0.0/8", "fd00::/8")}}, 0, nil},
		{"IPv6, last bit", []Rule{{From: -1, Dst: nets("2001:db8::80/128")}}, 0, verdicts{"tcp6": toSocket, "icmp6": toSocket}},
		{"IPv6, last bit off", []Rule{{From: -1, Dst: nets("2001:db8::81/128")}}, 0, nil},
		{"IPv6, length 127", []Rule{{From: -1, Dst: nets("2001:db8::81/127")}}, 0, verdicts{"tcp6": toSocket, "icmp6": toSocket}},
		{"port", []Rule{{From: -1, DstPorts: []PortRange{{80, 80}}}}, 0, verdicts{"tcp4": toSocket, "tcp6": toSocket}},
		{"range", []Rule{{From: -1, DstPorts: []PortRange{{53, 80}}}}, 0, verdicts{"tcp4": toSocket, "tcp6": toSocket, "dns": toSocket}},
		{"range, below", []Rule{{From: -1, DstPorts: []PortRange{{81, 65535}}}}, 0, nil},
		{"range, above", []Rule{{From: -1, DstPorts: []PortRange{{0, 52}}}}, 0, nil},
		{"any port is a port", []Rule{{From: -1, DstPorts: []PortRange{{0, 65535}}}}, 0, verdicts{"tcp4": toSocket, "tcp6": toSocket, "dns": toSocket}},
		{"source port", []Rule{{From: -1, SrcPorts: []PortRange{{40000, 40000}}}}, 0, verdicts{"tcp4": toSocket, "tcp6": toSocket, "dns": toSocket}},
		{"source port off", []Rule{{From: -1, SrcPorts: []PortRange{{39999, 39999}, {40001, 40001}}}}, 0, nil},
		{"one of several", []Rule{{From: -1, DstPorts: []PortRange{{1, 1}, {80, 80}, {443, 443}}, Src: nets("172.16.0.0/12", "10.0.0.0/8")}}, 0, verdicts{"tcp4": toSocket}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.t = t
			if err := r.SetRules(c.rules); err != nil {
				t.Fatal(err)
			}
			for name, packet := range packets {
				want, ok := c.want[name]
				if !ok {
					want = none
				}
				r.forget()
				if got := r.run(c.from, packet).fate(); got != want {
					t.Errorf("%s: got %v, want %v", name, got, want)
				}
			}
		})
	}
}

// The last of the most rules there can be is reached, and a shorter list leaves nothing of the longer one.
func TestManyRules(t *testing.T) {
	r := newRig(t, nil)
	rules := make([]Rule, MaxRules)
	for i := range rules {
		rules[i] = Rule{From: -1, Proto: ProtoUDP, DstPorts: []PortRange{{uint16(1000 + i), uint16(1000 + i)}}, Chain: uint16(i)}
	}
	last := rules[MaxRules-1]
	last.DstPorts, last.Chain = []PortRange{{53, 53}}, maxChain
	rules[MaxRules-1] = last
	if err := r.SetRules(rules); err != nil {
		t.Fatal(err)
	}
	if o := r.run(0, udp4(t, 0)); o.fate() != toSocket || o.chain != maxChain {
		t.Errorf("last rule: got %v, chain %d", o.fate(), o.chain)
	}
	for _, n := range []int{MaxRules - 1, 1, 0} {
		r.forget()
		if err := r.SetRules(rules[:n]); err != nil {
			t.Fatal(err)
		}
		if got, want := r.run(0, udp4(t, 0)).fate(), (fate{VerdictPeer, "no_rule"}); got != want {
			t.Errorf("%d rules: got %v, want %v", n, got, want)
		}
	}
	if err := r.SetRules(append(rules, Rule{From: -1})); err == nil {
		t.Error("one rule too many: no error")
	}
	if err := r.SetRules([]Rule{{From: -1, Action: Drop}}); err != nil {
		t.Fatal(err)
	}
	if got, want := r.run(0, udp4(t, 0)).fate(), (fate{VerdictDrop, "rule_drop"}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// New rules do not touch flows that have begun.
func TestSetRulesKeepsFlows(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	r.run(0, tcp4(t, "S", 0))
	if err := r.SetRules([]Rule{{From: -1, Action: Drop}}); err != nil {
		t.Fatal(err)
	}
	for port, packet := range [][]byte{tcp4(t, "A", 0), tcp4Reply(t, "A", 0)} {
		if o := r.run(port, packet); o.verdict != VerdictSocket || o.chain != 7 {
			t.Errorf("port %d: got %v, chain %d", port, o.fate(), o.chain)
		}
	}
}
