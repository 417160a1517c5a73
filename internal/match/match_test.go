package match

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"penstock/internal/units"
	"penstock/internal/wire"
	"penstock/pipeline"
)

var testPorts = []pipeline.PortInfo{{ID: 0, Name: "lan"}, {ID: 1, Name: "wan"}}

func plain(list []units.Prefix) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, p.Prefix)
	}
	return out
}

func pfx(texts ...string) (out []units.Prefix) {
	for _, s := range texts {
		var p units.Prefix
		if err := p.UnmarshalText([]byte(s)); err != nil {
			panic(err)
		}
		out = append(out, p)
	}
	return out
}

func prt(pairs ...uint16) (out []units.PortRange) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, units.PortRange{First: pairs[i], Last: pairs[i+1]})
	}
	return out
}

func proto(n uint8) Proto { return Proto{Number: n, Set: true} }

func flags(s string) (f Flags) {
	if err := f.UnmarshalText([]byte(s)); err != nil {
		panic(err)
	}
	return f
}

var yes, no = true, false

func TestMatch(t *testing.T) {
	tcp4 := pkt{src: "10.1.2.3", dst: "192.0.2.1", proto: 6, srcPort: 40000, dstPort: 443, flags: wire.FlagSYN}
	with := func(change func(k *pkt)) pkt {
		k := tcp4
		change(&k)
		return k
	}
	later := with(func(k *pkt) { k.frag = wire.FragLater })
	first := with(func(k *pkt) { k.frag = wire.FragFirst })
	udp6 := pkt{src: "fd00::1", dst: "2001:db8::1", proto: 17, srcPort: 53, dstPort: 53}
	later6 := udp6
	later6.frag = wire.FragLater
	icmp := pkt{src: "10.1.2.3", dst: "192.0.2.1", proto: 1}
	arp := pkt{etherType: wire.EtherTypeARP}
	for _, c := range []struct {
		name string
		rule Fields
		pkt  pkt
		want bool
	}{
		{"no conditions", Fields{}, tcp4, true},
		{"no conditions, not IP", Fields{}, arp, true},
		{"src", Fields{Src: pfx("10.0.0.0/8")}, tcp4, true},
		{"src, other", Fields{Src: pfx("10.2.0.0/16", "fd00::/8")}, tcp4, false},
		{"src is not dst", Fields{Src: pfx("192.0.2.1")}, tcp4, false},
		{"dst", Fields{Dst: pfx("192.0.2.1")}, tcp4, true},
		{"all of IPv4", Fields{Src: pfx("0.0.0.0/0")}, tcp4, true},
		{"all of IPv4 is not IPv6", Fields{Src: pfx("0.0.0.0/0")}, udp6, false},
		{"all of IPv6", Fields{Src: pfx("::/0")}, udp6, true},
		{"src IPv6", Fields{Src: pfx("10.0.0.0/8", "fd00::/8")}, udp6, true},
		{"a /127 above 64 bits", Fields{Dst: pfx("2001:db8::/127")}, udp6, true},
		{"the other /127", Fields{Dst: pfx("2001:db8::2/127")}, udp6, false},
		{"addresses, not IP", Fields{Src: pfx("0.0.0.0/0", "::/0")}, arp, false},
		{"dst_port", Fields{DstPort: prt(80, 80, 443, 443)}, tcp4, true},
		{"dst_port range", Fields{DstPort: prt(400, 500)}, tcp4, true},
		{"dst_port, other", Fields{DstPort: prt(444, 65535)}, tcp4, false},
		{"src_port to the highest", Fields{SrcPort: prt(40000, 65535)}, tcp4, true},
		{"ports, UDP", Fields{SrcPort: prt(53, 53), DstPort: prt(53, 53)}, udp6, true},
		{"ports, ICMP", Fields{SrcPort: prt(1, 65535)}, icmp, false},
		{"proto", Fields{Proto: proto(6)}, tcp4, true},
		{"proto, other", Fields{Proto: proto(17)}, tcp4, false},
		{"proto, not IP", Fields{Proto: proto(0)}, arp, false},
		{"flags", Fields{Flags: flags("syn,!ack")}, tcp4, true},
		{"flags, clear one set", Fields{Flags: flags("!syn")}, tcp4, false},
		{"flags, none", Fields{Flags: flags("none")}, tcp4, false},
		{"flags, UDP", Fields{Flags: flags("!ae")}, udp6, false},
		{"vlan", Fields{VLAN: []VLANRange{{10, 20}}}, with(func(k *pkt) { k.vlan = []uint16{0xe00a} }), true},
		{"vlan, inner", Fields{VLAN: []VLANRange{{10, 20}}}, with(func(k *pkt) { k.vlan = []uint16{100, 10} }), false},
		{"vlan, untagged", Fields{VLAN: []VLANRange{{0, 0}}}, tcp4, true},
		{"vlan, priority tag", Fields{VLAN: []VLANRange{{0, 0}}}, with(func(k *pkt) { k.vlan = []uint16{0x6000} }), true},
		{"vlan, not IP", Fields{VLAN: []VLANRange{{7, 7}}}, pkt{etherType: wire.EtherTypeARP, vlan: []uint16{7}}, true},
		{"from", Fields{From: "wan"}, with(func(k *pkt) { k.in = 1 }), true},
		{"from, other", Fields{From: "wan"}, tcp4, false},
		{"from, no such port", Fields{From: "wan"}, with(func(k *pkt) { k.in = pipeline.NoPort }), false},
		{"first fragment has ports", Fields{DstPort: prt(443, 443)}, first, true},
		{"first fragment has flags", Fields{Flags: flags("syn")}, first, true},
		{"later fragment has no ports", Fields{DstPort: prt(1, 65535)}, later, false},
		{"later fragment has no flags", Fields{Flags: flags("!fin")}, later, false},
		{"later fragment, by address and proto", Fields{Src: pfx("10.0.0.0/8"), Proto: proto(6)}, later, true},
		{"fragment", Fields{Fragment: &yes}, later, true},
		{"fragment, IPv6", Fields{Fragment: &yes, Proto: proto(17)}, later6, true},
		{"fragment, first", Fields{Fragment: &yes}, first, false},
		{"not fragment, first", Fields{Fragment: &no}, first, true},
		{"not fragment, whole", Fields{Fragment: &no}, tcp4, true},
		{"not fragment, later", Fields{Fragment: &no}, later, false},
		{"fragment, not IP", Fields{Fragment: &no}, arp, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var issues pipeline.Issues
			if c.rule.Validate("", &issues); len(issues.List) > 0 {
				t.Fatalf("rule: %v", issues.List)
			}
			if got := meets(&c.rule, c.pkt, testPorts); got != c.want {
				t.Errorf("the reference says %v, want %v", got, c.want)
			}
			s, err := Compile([]Fields{c.rule}, testPorts)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Match(packets(t, c.pkt)[0]) == 0; got != c.want {
				t.Errorf("met: %v, want %v", got, c.want)
			}
		})
	}
}

// source makes rules and packets from a stream of choices, out of few values so that they meet.
type source interface{ IntN(n int) int }

func randomAddr(r source, v6 bool) netip.Addr {
	var a [16]byte
	if !v6 {
		binary.BigEndian.PutUint32(a[:], []uint32{0, 0x0a000000, 0x0a010000, 0xc0000200, 0xfffffff0}[r.IntN(5)])
		a[2] ^= byte(r.IntN(3))
		a[3] ^= byte(r.IntN(8))
		return netip.AddrFrom4([4]byte(a[:4]))
	}
	copy(a[:], [][]byte{nil, {0xfd}, {0x20, 1, 0xd, 0xb8}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}[r.IntN(4)])
	a[5], a[7] = a[5]^byte(r.IntN(2)), a[7]^byte(r.IntN(4))
	a[9], a[15] = byte(r.IntN(2)), byte(r.IntN(6))
	return netip.AddrFrom16(a)
}

func randomPrefixes(r source, v4, v6 bool) (list []units.Prefix) {
	for range 1 + r.IntN(3) {
		is6 := v6 && (!v4 || r.IntN(2) == 0)
		a := randomAddr(r, is6)
		p, err := a.Prefix(r.IntN(a.BitLen() + 1))
		if err != nil {
			panic(err)
		}
		list = append(list, units.Prefix{Prefix: p})
	}
	return list
}

func randomPorts(r source) (list []units.PortRange) {
	for range 1 + r.IntN(3) {
		a, b := 1+uint16(r.IntN(20)), 1+uint16(r.IntN(20))
		if r.IntN(4) == 0 {
			a, b = 65535-a, 65535
		}
		list = append(list, units.PortRange{First: min(a, b), Last: max(a, b)})
	}
	return list
}

// randomRule returns a rule that Validate accepts.
func randomRule(r source) Fields {
	for range 5 {
		var f Fields
		if r.IntN(2) == 0 {
			f.Src = randomPrefixes(r, true, true)
		}
		if r.IntN(3) == 0 {
			f.Dst = randomPrefixes(r, true, true)
		}
		if r.IntN(4) == 0 {
			f.SrcPort = randomPorts(r)
		}
		if r.IntN(3) == 0 {
			f.DstPort = randomPorts(r)
		}
		if r.IntN(3) == 0 {
			f.Proto = proto([]uint8{1, 6, 17, 58, 47}[r.IntN(5)])
		}
		if r.IntN(5) == 0 {
			set := wire.TCPFlags(r.IntN(512))
			f.Flags = Flags{Set: set & 0x13, Clear: wire.TCPFlags(r.IntN(512)) &^ set & 0x1ff}
		}
		if r.IntN(6) == 0 {
			f.VLAN = []VLANRange{{uint16(r.IntN(3)), 2}, {uint16(r.IntN(5)), 4094}}[:1+r.IntN(2)]
		}
		if r.IntN(6) == 0 {
			f.From = testPorts[r.IntN(2)].Name
		}
		if r.IntN(6) == 0 {
			f.Fragment = []*bool{&yes, &no}[r.IntN(2)]
		}
		var issues pipeline.Issues
		if f.Validate("", &issues); len(issues.List) == 0 {
			return f
		}
	}
	return Fields{}
}

func randomPacket(r source) pkt {
	v6 := r.IntN(2) == 0
	k := pkt{
		src: randomAddr(r, v6).String(), dst: randomAddr(r, v6).String(),
		proto: []uint8{1, 6, 6, 17, 58, 47}[r.IntN(6)],
		in:    pipeline.PortID(r.IntN(2)),
		frag:  wire.Frag(r.IntN(8)),
	}
	if v6 && k.proto == 1 || !v6 && k.proto == 58 {
		k.proto = 47
	}
	if k.frag > wire.FragLater {
		k.frag = wire.FragNone
	}
	k.srcPort, k.dstPort = uint16(r.IntN(22)), uint16(r.IntN(22))
	if r.IntN(4) == 0 {
		k.dstPort = 65535 - k.dstPort
	}
	k.flags = wire.TCPFlags(r.IntN(512))
	for range r.IntN(4) - 1 {
		k.vlan = append(k.vlan, uint16(r.IntN(5)))
	}
	if r.IntN(30) == 0 {
		k.etherType, k.frag = wire.EtherTypeARP, wire.FragNone
	}
	return k
}

func TestMatchEqualsLinearSearch(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 2, 3, 10, 63, 64, 65, 200, 1500} {
		for range 1 + 400/(n+1) {
			rules := make([]Fields, n)
			for i := range rules {
				rules[i] = randomRule(r)
				// Rules without conditions would hide all that follow.
				if rules[i].restricts() == 0 && r.IntN(n) > 0 {
					rules[i].DstPort = randomPorts(r)
				}
			}
			s, err := Compile(rules, testPorts)
			if err != nil {
				t.Fatal(err)
			}
			ks := make([]pkt, 100)
			for i := range ks {
				ks[i] = randomPacket(r)
			}
			for i, p := range packets(t, ks...) {
				if got, want := s.Match(p), linear(rules, ks[i], testPorts); got != want {
					t.Fatalf("%d rules, packet %+v: rule %d, want %d", n, ks[i], got, want)
				}
				reply := ks[i]
				reply.src, reply.dst, reply.srcPort, reply.dstPort, reply.in = reply.dst, reply.src, reply.dstPort, reply.srcPort, 1-reply.in
				if got, want := s.MatchReply(p, reply.in), linear(rules, reply, testPorts); got != want {
					t.Fatalf("%d rules, reply to packet %+v: rule %d, want %d", n, ks[i], got, want)
				}
			}
		}
	}
}

// choices turns fuzzed bytes into choices; after the last byte it always chooses the first.
type choices struct{ b []byte }

func (c *choices) IntN(n int) int {
	if len(c.b) == 0 {
		return 0
	}
	v := int(c.b[0])
	c.b = c.b[1:]
	return v % n
}

func FuzzMatchEqualsLinearSearch(f *testing.F) {
	f.Add([]byte("a few rules"), uint8(3))
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 200, 201, 202, 203, 204}, uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, n uint8) {
		c := &choices{b}
		rules := make([]Fields, n%30)
		for i := range rules {
			rules[i] = randomRule(c)
		}
		s, err := Compile(rules, testPorts)
		if err != nil {
			t.Fatal(err)
		}
		ks := []pkt{randomPacket(c), randomPacket(c), randomPacket(c)}
		for i, p := range packets(t, ks...) {
			if got, want := s.Match(p), linear(rules, ks[i], testPorts); got != want {
				t.Fatalf("rules %+v, packet %+v: rule %d, want %d", rules, ks[i], got, want)
			}
		}
	})
}

func TestValidateNamesEveryProblem(t *testing.T) {
	f := Fields{
		Src:      append(pfx("10.0.0.0/8"), units.Prefix{}, units.Prefix{Prefix: netip.MustParsePrefix("10.0.0.1/8")}),
		Dst:      []units.Prefix{{Prefix: netip.MustParsePrefix("::ffff:10.0.0.0/104")}},
		SrcPort:  prt(5, 4),
		DstPort:  prt(0, 4),
		Proto:    proto(1),
		Flags:    Flags{Set: wire.FlagSYN, Clear: wire.FlagSYN},
		VLAN:     []VLANRange{{1, 4095}, {3, 2}},
		Fragment: &yes,
	}
	var issues pipeline.Issues
	f.Validate("rules[2]", &issues)
	var got []string
	for _, i := range issues.List {
		got = append(got, i.Path)
	}
	want := "rules[2].src[1] rules[2].src[2] rules[2].dst[0] rules[2].src_port[0] rules[2].dst_port[0] " +
		"rules[2].proto rules[2].flags rules[2].proto rules[2].vlan[0] rules[2].vlan[1] rules[2].fragment"
	if strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
}

func TestValidateNeverMet(t *testing.T) {
	for _, c := range []struct {
		rule Fields
		path string
	}{
		{Fields{Src: pfx("10.0.0.0/8"), Dst: pfx("fd00::/8")}, "dst"},
		{Fields{Src: pfx("fd00::/8"), Proto: proto(wire.ProtoICMP)}, "proto"},
		{Fields{Dst: pfx("10.0.0.0/8"), Proto: proto(wire.ProtoICMPv6)}, "proto"},
		{Fields{DstPort: prt(80, 80), Proto: proto(wire.ProtoICMP)}, "proto"},
		{Fields{Flags: flags("syn"), Proto: proto(wire.ProtoUDP)}, "proto"},
		{Fields{Flags: flags("syn"), Fragment: &yes}, "fragment"},
		{Fields{Src: pfx("10.0.0.0/8"), Dst: pfx("fd00::/8", "10.0.0.0/8"), Proto: proto(wire.ProtoICMP)}, ""},
		{Fields{DstPort: prt(80, 80), Fragment: &no}, ""},
	} {
		var issues pipeline.Issues
		c.rule.Validate("", &issues)
		got := ""
		if len(issues.List) > 0 {
			got = issues.List[0].Path
		}
		if got != c.path {
			t.Errorf("%+v: issue at %q, want %q", c.rule, got, c.path)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	_, err := Compile([]Fields{{}, {From: "dmz"}}, testPorts)
	if want := `compile rule 2: from: want the name of a port: "lan", "wan", got "dmz"`; fmt.Sprint(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
	var issues pipeline.Issues
	Check(make([]Fields, MaxRules+1), "rules", &issues)
	if len(issues.List) != 1 || issues.List[0].Path != "rules" {
		t.Errorf("too many rules: issues %v", issues.List)
	}
	if _, err := Compile(make([]Fields, MaxRules+1), nil); err == nil {
		t.Error("too many rules compile")
	}
}

// TestMemoryIsBounded compiles rules whose ranges overlap one another in windows, differently in each dimension.
func TestMemoryIsBounded(t *testing.T) {
	rules := make([]Fields, MaxRules)
	for i := range rules {
		n, m := uint16(1+i), uint16(1+i*7919%MaxRules)
		a4, a6 := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)})
		rules[i] = Fields{SrcPort: prt(n, n+MaxRules), DstPort: prt(m, m+MaxRules), Src: []units.Prefix{{Prefix: netip.PrefixFrom(a4, 32)}, {Prefix: netip.PrefixFrom(a6, 128)}}}
	}
	start := time.Now()
	var issues pipeline.Issues
	Check(rules, "rules", &issues)
	if len(issues.List) != 1 || !strings.Contains(issues.List[0].Text, "64 MiB") {
		t.Errorf("issues: %v", issues.List)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v to find out", took)
	}
	issues.List = nil
	Check(rules[:2000], "rules", &issues)
	if len(issues.List) != 0 {
		t.Errorf("2,000 such rules: %v", issues.List)
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	rules, ks := benchRules(1000)
	s, err := Compile(rules, testPorts)
	if err != nil {
		t.Fatal(err)
	}
	ps := packets(t, ks...)
	if n := testing.AllocsPerRun(10, func() {
		for _, p := range ps {
			s.Match(p)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// benchRules returns n rules as a firewall has them, and packets of which most meet one of them: a third blocks
// prefixes, a third lets clients reach a server's port, a third blocks ports.
func benchRules(n int) (rules []Fields, ks []pkt) {
	r := rand.New(rand.NewPCG(uint64(n), 7))
	addr := func() netip.Addr {
		return netip.AddrFrom4([4]byte{byte(1 + r.IntN(220)), byte(r.IntN(256)), byte(r.IntN(256)), byte(r.IntN(256))})
	}
	prefix := func(n int) []units.Prefix {
		p, _ := addr().Prefix(n)
		return []units.Prefix{{Prefix: p}}
	}
	for i := range n {
		switch i % 3 {
		case 0:
			rules = append(rules, Fields{Src: prefix(16 + r.IntN(17))})
		case 1:
			port := uint16(1 + r.IntN(1024))
			rules = append(rules, Fields{Proto: proto(6), Src: prefix(8 + r.IntN(9)), Dst: prefix(32), DstPort: prt(port, port)})
		case 2:
			port := uint16(2000 + r.IntN(60000))
			rules = append(rules, Fields{Proto: proto(17), Dst: prefix(24), DstPort: prt(port, port+uint16(r.IntN(100)))})
		}
	}
	for range 1024 {
		k := pkt{src: addr().String(), dst: addr().String(), proto: 6, srcPort: uint16(r.IntN(65536)), dstPort: uint16(r.IntN(65536))}
		if f := rules[r.IntN(n)]; r.IntN(4) > 0 {
			if f.Src != nil {
				k.src = f.Src[0].Addr().String()
			}
			if f.Dst != nil {
				k.dst = f.Dst[0].Addr().String()
			}
			if f.DstPort != nil {
				k.dstPort = f.DstPort[0].First
			}
			if f.Proto.Set {
				k.proto = f.Proto.Number
			}
		}
		ks = append(ks, k)
	}
	return rules, ks
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000, 10000} {
		rules, ks := benchRules(n)
		s, err := Compile(rules, testPorts)
		if err != nil {
			b.Fatal(err)
		}
		ps := packets(b, ks...)
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			b.ReportMetric(float64(s.Bytes())/1024, "KiB")
			i := 0
			for b.Loop() {
				s.Match(ps[i%len(ps)])
				i++
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	rules, _ := benchRules(10000)
	for b.Loop() {
		if _, err := Compile(rules, testPorts); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLinear is the yardstick: what trying rule after rule costs (the reference of the tests, not tuned).
func BenchmarkLinear(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		rules, ks := benchRules(n)
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			i := 0
			for b.Loop() {
				linear(rules, ks[i%len(ks)], testPorts)
				i++
			}
		})
	}
}
