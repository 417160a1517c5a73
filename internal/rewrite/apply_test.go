package rewrite_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"penstock/internal/rewrite"
	"penstock/internal/wire"
)

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

var (
	udpSeg   = []byte{0x9c, 0x40, 0, 53, 0, 12, 0, 0, 'a', 'b', 'c', 'd'}
	echoSeg  = []byte{8, 0, 0, 0, 0, 77, 0, 3, 'p', 'i', 'n', 'g'}
	echo6Seg = []byte{128, 0, 0, 0, 0, 77, 0, 3, 'p', 'i', 'n', 'g'}
)

// TestApply: which bytes change, and that no others do but checksums, which are right afterwards.
func TestApply(t *testing.T) {
	type edit struct {
		at   int
		want []byte
	}
	opts := join(nops(2), ts(tsv0, tse0))
	const ip4, tcp4, ip6, tcp6 = 14, 34, 14, 54
	tests := []struct {
		name string
		in   packet
		rule rewrite.Rule
		out  []edit
	}{
		{"nothing", packet{}, rewrite.Rule{Seq: 1, SrcPort: 2, VLANs: 2}, nil},
		{"macs", packet{}, macs, []edit{{0, macs.DstMAC[:]}, {6, macs.SrcMAC[:]}}},
		{"source mac", packet{}, only(macs, rewrite.SetSrcMAC), []edit{{6, macs.SrcMAC[:]}}},
		{"destination mac", packet{}, only(macs, rewrite.SetDstMAC), []edit{{0, macs.DstMAC[:]}}},
		{"macs of a fragment with ip options", packet{ipOpts: []byte{1, 1, 1, 0}, frag: 0x2000, payload: "0123"}, macs, []edit{{0, macs.DstMAC[:]}, {6, macs.SrcMAC[:]}}},

		{"no tags wanted, none there", packet{}, vlanRule(), nil},
		{"one tag: priority kept", packet{vlans: []uint16{0xb007}}, vlanRule(0x123), []edit{{14, []byte{0xb1, 0x23}}}},
		{"one tag: 12 bits of the id", packet{vlans: []uint16{0x2007}}, vlanRule(0xf123), []edit{{14, []byte{0x21, 0x23}}}},
		{"priority tag", packet{vlans: []uint16{0xe000}}, vlanRule(5), []edit{{14, []byte{0xe0, 5}}}},
		{"two tags", packet{vlans: []uint16{0x2007, 0x0fff}}, vlanRule(1, 2), []edit{{14, []byte{0x20, 1}}, {18, []byte{0, 2}}}},

		{"ttl", packet{}, ttl1, []edit{{ip4 + 8, []byte{63}}}},
		{"ttl 2", packet{ttl: 2}, ttl1, []edit{{ip4 + 8, []byte{1}}}},
		{"ttl 255", packet{ttl: 255}, ttl1, []edit{{ip4 + 8, []byte{254}}}},
		{"ttl of a fragment with ip options", packet{ipOpts: []byte{1, 1, 1, 0}, frag: 0x2000, payload: "0123"}, ttl1, []edit{{ip4 + 8, []byte{63}}}},
		{"hop limit", packet{v6: true}, ttl1, []edit{{ip6 + 7, []byte{63}}}},
		{"hop limit, tagged", packet{v6: true, vlans: []uint16{1, 2}}, ttl1, []edit{{ip6 + 8 + 7, []byte{63}}}},
		{"hop limit before extensions", packet{v6: true, first: 60, ipOpts: []byte{6, 0, 1, 4, 0, 0, 0, 0}}, ttl1, []edit{{ip6 + 7, []byte{63}}}},

		{"nat tcp", packet{payload: "x"}, nat4, []edit{{ip4 + 12, nat4.Src[12:]}, {ip4 + 16, nat4.Dst[12:]}, {tcp4, be16(1)}, {tcp4 + 2, be16(8080)}}},
		{"nat tcp syn", packet{flags: wire.FlagSYN}, nat4, []edit{{ip4 + 12, nat4.Src[12:]}, {ip4 + 16, nat4.Dst[12:]}, {tcp4, be16(1)}, {tcp4 + 2, be16(8080)}}},
		{"source only", packet{}, only(nat4, rewrite.SetSrc), []edit{{ip4 + 12, nat4.Src[12:]}}},
		{"destination only", packet{}, only(nat4, rewrite.SetDst), []edit{{ip4 + 16, nat4.Dst[12:]}}},
		{"source port only", packet{}, only(nat4, rewrite.SetSrcPort), []edit{{tcp4, be16(1)}}},
		{"destination port only", packet{}, only(nat4, rewrite.SetDstPort), []edit{{tcp4 + 2, be16(8080)}}},
		{"nat udp", packet{proto: 17, l4: udpSeg}, nat4, []edit{{ip4 + 12, nat4.Src[12:]}, {ip4 + 16, nat4.Dst[12:]}, {tcp4, be16(1)}, {tcp4 + 2, be16(8080)}}},
		{"nat udp without checksum", packet{proto: 17, l4: udpSeg, noSum: true}, nat4, []edit{{ip4 + 12, nat4.Src[12:]}, {ip4 + 16, nat4.Dst[12:]}, {tcp4, be16(1)}, {tcp4 + 2, be16(8080)}, {tcp4 + 6, be16(0)}}},
		{"nat echo", packet{proto: 1, l4: echoSeg}, only(nat4, rewrite.SetSrc|rewrite.SetDst), []edit{{ip4 + 12, nat4.Src[12:]}, {ip4 + 16, nat4.Dst[12:]}}},
		{"nat tcp6", packet{v6: true}, nat6, []edit{{ip6 + 8, nat6.Src[:]}, {ip6 + 24, nat6.Dst[:]}, {tcp6, be16(1)}, {tcp6 + 2, be16(8080)}}},
		{"nat udp6", packet{v6: true, proto: 17, l4: udpSeg}, nat6, []edit{{ip6 + 8, nat6.Src[:]}, {ip6 + 24, nat6.Dst[:]}, {tcp6, be16(1)}, {tcp6 + 2, be16(8080)}}},
		{"nat echo6", packet{v6: true, proto: 58, l4: echo6Seg}, only(nat6, rewrite.SetSrc), []edit{{ip6 + 8, nat6.Src[:]}}},

		{"seq wraps", packet{}, only(splice, rewrite.AddSeq), []edit{{tcp4 + 4, be32(0xff0)}}},
		{"seq of a reset", packet{flags: wire.FlagRST}, splice, []edit{{tcp4 + 4, be32(0xff0)}}},
		{"ack", packet{}, only(splice, rewrite.AddAck), []edit{{tcp4 + 8, be32(0xffeff311)}}},
		{"timestamps", packet{opts: opts}, only(splice, rewrite.AddTS), []edit{{tcp4 + 24, be32(0x11213141)}, {tcp4 + 28, be32(0x5060707e)}}},
		{"timestamps, TSecr 0", packet{opts: join(nops(2), ts(tsv0, 0))}, splice, []edit{{tcp4 + 4, be32(0xff0)}, {tcp4 + 8, be32(0xffeff311)}, {tcp4 + 24, be32(0x11213141)}}},
		{"timestamps without ACK", packet{flags: wire.FlagRST, opts: opts}, splice, []edit{{tcp4 + 4, be32(0xff0)}, {tcp4 + 24, be32(0x11213141)}}},
		{"sack without ACK", packet{flags: wire.FlagRST, opts: join(nops(2), sack(1, 2))}, splice, []edit{{tcp4 + 4, be32(0xff0)}}},
		{"sack", packet{opts: join(nops(2), sack(1, 2, 3, 0xffffffff))}, only(splice, rewrite.AddAck), []edit{
			{tcp4 + 8, be32(0xffeff311)}, {tcp4 + 24, be32(0xfeedf00e)}, {tcp4 + 28, be32(0xfeedf00f)}, {tcp4 + 32, be32(0xfeedf010)}, {tcp4 + 36, be32(0xfeedf00c)}}},
		{"sack is left alone by the timestamps flag", packet{opts: join(nops(2), sack(1, 2))}, only(splice, rewrite.AddTS), nil},
		{"timestamps are left alone by the ack flag", packet{opts: opts}, only(splice, rewrite.AddAck), []edit{{tcp4 + 8, be32(0xffeff311)}}},
		{"at odd offsets", packet{opts: padded(join(nops(1), ts(tsv0, tse0), sack(1, 2)))}, splice, []edit{
			{tcp4 + 4, be32(0xff0)}, {tcp4 + 8, be32(0xffeff311)},
			{tcp4 + 23, be32(0x11213141)}, {tcp4 + 27, be32(0x5060707e)}, {tcp4 + 33, be32(0xfeedf00e)}, {tcp4 + 37, be32(0xfeedf00f)}}},
		{"window", packet{window: 0x1001}, only(splice, rewrite.ShiftWindow), []edit{{tcp4 + 14, be16(0x4004)}}},
		{"window of an odd list", packet{window: 3, opts: []byte{9, 9, 9, 9}}, only(splice, rewrite.ShiftWindow), []edit{{tcp4 + 14, be16(12)}}},
		{"all of it, ipv6, tagged", packet{v6: true, vlans: []uint16{7}, opts: opts, window: 9, payload: "hello"},
			both(both(splice, nat6), both(both(macs, vlanRule(8)), ttl1)), []edit{
				{0, macs.DstMAC[:]}, {6, macs.SrcMAC[:]}, {14, be16(8)}, {18 + 7, []byte{63}}, {18 + 8, nat6.Src[:]}, {18 + 24, nat6.Dst[:]}, {58, be16(1)}, {60, be16(8080)},
				{62, be32(0xff0)}, {66, be32(0xffeff311)}, {72, be16(36)}, {82, be32(0x11213141)}, {86, be32(0x5060707e)}}},
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			frame := c.in.bytes()
			was, h := bytes.Clone(frame), parse(t, frame)
			want := bytes.Clone(frame)
			for _, e := range c.out {
				copy(want[e.at:], e.want)
			}
			if why := c.rule.Apply(frame, h); why != rewrite.Done {
				t.Fatalf("got %v", why)
			}
			if h.IPVersion == 4 {
				copy(want[h.L3+10:h.L3+12], frame[h.L3+10:])
				if !wire.VerifyIPv4(frame[h.L3:]) {
					t.Errorf("wrong IPv4 checksum")
				}
			}
			if h.HasL4 {
				field := h.L4 + map[uint8]int32{wire.ProtoTCP: 16, wire.ProtoUDP: 6, wire.ProtoICMP: 2, wire.ProtoICMPv6: 2}[h.Proto]
				if !c.in.noSum {
					copy(want[field:field+2], frame[field:])
				}
				if h.Frag == wire.FragNone && !wire.VerifyL4(frame, h) {
					t.Errorf("wrong transport checksum %x", frame[field:field+2])
				}
			}
			if !bytes.Equal(frame, want) {
				t.Errorf("\n was %x\n got %x\nwant %x", was, frame, want)
			}
			if *parse(t, frame) != *h {
				t.Errorf("headers do not describe the changed frame: %+v", *h)
			}
		})
	}
}

// TestSlow: what is left alone, and why. Nothing is written then.
func TestSlow(t *testing.T) {
	all := both(both(splice, nat4), both(both(macs, vlanRule()), ttl1))
	tooMany := join(nops(17), []byte{2, 4, 1, 1}, nops(3))
	rows := []struct {
		name string
		in   packet
		rule rewrite.Rule
		want rewrite.Result
	}{
		{"one tag, none wanted", packet{vlans: []uint16{1}}, all, rewrite.SlowVLANCount},
		{"no tag, one wanted", packet{}, vlanRule(1), rewrite.SlowVLANCount},
		{"two tags, one wanted", packet{vlans: []uint16{1, 1}}, vlanRule(1), rewrite.SlowVLANCount},
		{"three tags, two wanted", packet{vlans: []uint16{1, 1, 1}}, vlanRule(1, 1), rewrite.SlowVLANCount},
		{"three tags, ip wanted", packet{vlans: []uint16{1, 1, 1}}, ttl1, rewrite.SlowNotIP},
		{"ttl 1", packet{ttl: 1}, all, rewrite.SlowTTL},
		{"hop limit 1", packet{v6: true, ttl: 1}, ttl1, rewrite.SlowTTL},
		{"ttl before family", packet{v6: true, ttl: 1}, both(ttl1, nat4), rewrite.SlowTTL},
		{"ipv4 rule, ipv6 packet", packet{v6: true}, nat4, rewrite.SlowFamily},
		{"ipv6 rule, ipv4 packet", packet{}, nat6, rewrite.SlowFamily},
		{"ipv6 source only", packet{}, only(nat6, rewrite.SetSrc), rewrite.SlowFamily},
		{"ipv6 destination only", packet{}, only(nat6, rewrite.SetDst), rewrite.SlowFamily},
		{"first fragment", packet{frag: 0x2000, payload: "0123"}, all, rewrite.SlowFragment},
		{"later fragment", packet{frag: 0x2003, payload: "0123"}, all, rewrite.SlowFragment},
		{"last fragment", packet{frag: 0x0003, payload: "0123"}, all, rewrite.SlowFragment},
		{"ipv6 first fragment", packet{v6: true, first: 44, ipOpts: []byte{6, 0, 0, 1, 0, 0, 0, 1}, payload: "0123"}, splice, rewrite.SlowFragment},
		{"ipv6 atomic fragment", packet{v6: true, first: 44, ipOpts: []byte{6, 0, 0, 0, 0, 0, 0, 1}, payload: "0123"}, splice, rewrite.SlowIPOptions},
		{"ipv6 destination options", packet{v6: true, first: 60, ipOpts: []byte{6, 0, 1, 4, 0, 0, 0, 0}}, splice, rewrite.SlowIPOptions},
		{"ipv6 hop-by-hop options", packet{v6: true, first: 0, ipOpts: []byte{6, 0, 1, 4, 0, 0, 0, 0}}, splice, rewrite.SlowIPOptions},
		{"ipv6 routing, arrived", packet{v6: true, first: 43, ipOpts: []byte{6, 0, 4, 0, 0, 0, 0, 0}}, splice, rewrite.SlowIPOptions},
		{"ipv6 routing, under way", packet{v6: true, first: 43, ipOpts: []byte{6, 0, 4, 1, 0, 0, 0, 0}}, splice, rewrite.SlowIPOptions},
		{"ipv6 authentication", packet{v6: true, first: 51, ipOpts: []byte{6, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1}}, splice, rewrite.SlowIPOptions},
		{"ip options", packet{ipOpts: []byte{1, 1, 1, 0}}, splice, rewrite.SlowIPOptions},
		{"gre", packet{proto: 47, l4: make([]byte, 8)}, nat4, rewrite.SlowNoTransport},
		{"gre, tcp fields", packet{proto: 47, l4: make([]byte, 8)}, splice, rewrite.SlowNoTransport},
		{"icmp over ipv6", packet{v6: true, proto: 1, l4: echoSeg}, nat6, rewrite.SlowNoTransport},
		{"icmpv6 over ipv4", packet{proto: 58, l4: echoSeg}, nat4, rewrite.SlowNoTransport},
		{"udp, tcp fields", packet{proto: 17, l4: udpSeg}, splice, rewrite.SlowNotTCP},
		{"udp, window only", packet{proto: 17, l4: udpSeg}, only(splice, rewrite.ShiftWindow), rewrite.SlowNotTCP},
		{"icmp, tcp fields and ports", packet{proto: 1, l4: echoSeg}, both(splice, nat4), rewrite.SlowNotTCP},
		{"icmp, ports", packet{proto: 1, l4: echoSeg}, only(nat4, rewrite.SetDstPort), rewrite.SlowNoPorts},
		{"icmp error, addresses", packet{proto: 1, l4: []byte{3, 4, 0, 0, 0, 0, 5, 0}}, only(nat4, rewrite.SetDst), rewrite.SlowICMP},
		{"icmp timestamp, addresses", packet{proto: 1, l4: []byte{13, 0, 0, 0, 0, 0, 5, 0}}, only(nat4, rewrite.SetSrc), rewrite.SlowICMP},
		{"icmp type 128", packet{proto: 1, l4: echo6Seg}, only(nat4, rewrite.SetSrc), rewrite.SlowICMP},
		{"icmpv6 type 8", packet{v6: true, proto: 58, l4: echoSeg}, only(nat6, rewrite.SetSrc), rewrite.SlowICMP},
		{"syn", packet{flags: wire.FlagSYN}, splice, rewrite.SlowSYN},
		{"syn-ack", packet{flags: wire.FlagSYN | wire.FlagACK}, only(splice, rewrite.ShiftWindow), rewrite.SlowSYN},
		{"syn with an odd list", packet{flags: wire.FlagSYN, opts: []byte{9, 9, 9, 9}}, splice, rewrite.SlowSYN},
		{"option length 0", packet{opts: []byte{8, 0, 1, 1}}, splice, rewrite.SlowOddOptions},
		{"option length 1", packet{opts: []byte{77, 1, 1, 1}}, splice, rewrite.SlowOddOptions},
		{"option beyond the list", packet{opts: []byte{77, 5, 1, 1}, payload: "0123"}, splice, rewrite.SlowOddOptions},
		{"kind without length at the end", packet{opts: []byte{2, 3, 0, 2}, payload: "\x02\x02"}, splice, rewrite.SlowOddOptions},
		{"timestamps of 9 bytes", packet{opts: padded([]byte{8, 9, 0, 0, 0, 0, 0, 0, 0})}, only(splice, rewrite.AddAck), rewrite.SlowOddOptions},
		{"sack of 9 bytes", packet{opts: padded([]byte{5, 9, 0, 0, 0, 0, 0, 0, 0})}, only(splice, rewrite.AddTS), rewrite.SlowOddOptions},
		{"two timestamps", packet{opts: padded(join(ts(1, 2), ts(1, 2)))}, splice, rewrite.SlowOddOptions},
		{"two sacks", packet{opts: padded(join(sack(), sack(1, 2)))}, splice, rewrite.SlowOddOptions},
		{"17 NOPs", packet{opts: tooMany}, splice, rewrite.SlowTooManyOptions},
		{"end mark as step 17", packet{opts: join(nops(16), make([]byte, 4))}, splice, rewrite.SlowTooManyOptions},
		{"single byte as step 17", packet{opts: join(nops(15), []byte{2, 4, 0, 0}, nops(1))}, splice, rewrite.SlowTooManyOptions},
	}
	for _, c := range rows {
		t.Run(c.name, func(t *testing.T) {
			frame := c.in.bytes()
			was, h := bytes.Clone(frame), parse(t, frame)
			before := *h
			if got := c.rule.Apply(frame, h); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if !bytes.Equal(frame, was) || *h != before {
				t.Errorf("written to:\n was %x\n got %x", was, frame)
			}
		})
	}
}

// TestWalkEnds: lists on the good side of each limit.
func TestWalkEnds(t *testing.T) {
	for name, opts := range map[string][]byte{
		"empty":                          {},
		"end mark at once":               {0, 0, 0, 0},
		"garbage behind the end mark":    {0, 99, 8, 0},
		"end mark, one byte behind it":   {2, 2, 0, 9},
		"NOP at the end":                 {2, 3, 0, 1},
		"end mark at the end":            {2, 3, 0, 0},
		"sack without blocks":            {5, 2, 1, 1, 2, 2, 0, 0},
		"fills the list to its end":      {2, 4, 1, 1},
		"16 options":                     join(bytes.Repeat([]byte{77, 2}, 16)),
		"12 NOPs and an option":          join(nops(12), []byte{2, 4, 1, 1}),
		"end mark as step 16":            join(nops(15), []byte{0, 9, 9, 9, 9}),
		"16 steps to the end":            join(nops(14), []byte{2, 4, 1, 1}, sack()),
		"unknown and experimental kinds": {253, 4, 1, 1, 254, 6, 0, 0, 0, 0, 0, 0},
	} {
		frame := packet{opts: opts}.bytes()
		if why := splice.Apply(frame, parse(t, frame)); why != rewrite.Done {
			t.Errorf("%s: %v", name, why)
		}
	}
}

// TestMalformed: a packet that does not parse is left alone, but by a rule that changes nothing.
func TestMalformed(t *testing.T) {
	whole := packet{payload: "hello"}.bytes()
	for n := range whole {
		frame := bytes.Clone(whole[:n])
		var h wire.Headers
		if h.Parse(frame) == wire.FaultNone {
			t.Fatalf("%d bytes: no fault", n)
		}
		for _, r := range []rewrite.Rule{splice, macs, ttl1, nat4} {
			if why := r.Apply(frame, &h); why != rewrite.SlowMalformed || !bytes.Equal(frame, whole[:n]) {
				t.Errorf("%d bytes: %v", n, why)
			}
		}
		if why := new(rewrite.Rule).Apply(frame, &h); why != rewrite.Done {
			t.Errorf("%d bytes, empty rule: %v", n, why)
		}
	}
}

// TestRawIP: without an Ethernet header all works but what is in it.
func TestRawIP(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		ethernet := packet{v6: v6, payload: "hello", opts: join(nops(2), ts(1, 2))}.bytes()
		raw := bytes.Clone(ethernet[14:])
		var h wire.Headers
		if h.ParseIP(raw) != wire.FaultNone {
			t.Fatal(h.Fault)
		}
		if why := macs.Apply(raw, &h); why != rewrite.SlowNoEthernet {
			t.Errorf("macs: %v", why)
		}
		rule := vlanRule()
		if why := rule.Apply(raw, &h); why != rewrite.SlowNoEthernet {
			t.Errorf("vlan: %v", why)
		}
		rule = both(splice, nat4)
		if v6 {
			rule = both(splice, nat6)
		}
		if why := rule.Apply(raw, &h); why != rewrite.Done {
			t.Errorf("splice: %v", why)
		}
		rule.Apply(ethernet, parse(t, ethernet))
		if !bytes.Equal(raw, ethernet[14:]) {
			t.Errorf("another result than behind Ethernet")
		}
	}
}

// TestNotIP: link fields count for any frame.
func TestNotIP(t *testing.T) {
	arp := append([]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 7, 8, 6}, make([]byte, 28)...)
	if why := splice.Apply(arp, parse(t, arp)); why != rewrite.SlowNotIP {
		t.Errorf("splice: %v", why)
	}
	rule := both(macs, vlanRule(9))
	if why := rule.Apply(arp, parse(t, arp)); why != rewrite.Done || arp[15] != 9 || arp[0] != 7 || arp[6] != 1 {
		t.Errorf("link: %v, %x", why, arp[:18])
	}
}

func TestResultNames(t *testing.T) {
	seen := map[string]bool{}
	for i := range rewrite.NumResults {
		name := rewrite.Result(i).String()
		if name == "" || seen[name] {
			t.Errorf("result %d has the name %q", i, name)
		}
		seen[name] = true
	}
	if got := rewrite.Result(rewrite.NumResults).String(); got != "unknown_result" {
		t.Errorf("got %q", got)
	}
}
