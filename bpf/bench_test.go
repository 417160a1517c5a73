package bpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
)

// BenchmarkSteer runs the program over and over on one packet (BPF_PROG_TEST_RUN): ns/op is the program alone, with everything in
// cache; a driver's work, the redirect and the socket come on top.
func BenchmarkSteer(b *testing.B) {
	toChain := []Rule{{From: -1, Action: ToChain, Chain: 7}}
	noMatch := func(n int) []Rule {
		rules := make([]Rule, n)
		for i := range rules {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i), 0}), 24)
			rules[i] = Rule{From: -1, Proto: ProtoUDP, Dst: []netip.Prefix{p}, DstPorts: []PortRange{{53, 53}}, Action: ToChain}
		}
		return rules
	}
	tagged := func(flags string) []byte {
		ip := ip4(layers.IPProtocolTCP)
		return build(b, eth(layers.EthernetTypeDot1Q), vlan(5, layers.EthernetTypeIPv4), ip, tcp(ip, flags))
	}
	for _, bm := range []struct {
		name   string
		rules  []Rule
		packet []byte
		first  []byte // begins the flow
	}{
		{"hit/tcp4", toChain, tcp4(b, "A", 0), tcp4(b, "S", 0)},
		{"hit/tcp4-1500", toChain, tcp4(b, "A", 1446), tcp4(b, "S", 0)},
		{"hit/tcp4-vlan", toChain, tagged("A"), tagged("S")},
		{"hit/tcp6", toChain, tcp6(b, "A", 0), tcp6(b, "S", 0)},
		{"hit/udp4", toChain, udp4(b, 18), udp4(b, 18)},
		{"miss/midstream", toChain, tcp4(b, "A", 0), nil},
		{"miss/rules-0", nil, udp4(b, 18), nil},
		{"miss/rules-16", noMatch(16), udp4(b, 18), nil},
		{"miss/rules-256", noMatch(256), udp4(b, 18), nil},
		{"nonip", nil, build(b, eth(layers.EthernetTypeLinkLayerDiscovery), payload(46)), nil},
	} {
		b.Run(bm.name, func(b *testing.B) {
			r := newRig(b, func(o *Options) { o.Rules = bm.rules })
			if bm.first != nil {
				r.raw(0, bm.first)
			}
			prog := r.ports[0].prog
			b.ResetTimer()
			_, took, err := prog.Benchmark(bm.packet, max(b.N, 1), b.ResetTimer)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took)/float64(time.Nanosecond), "ns/packet")
		})
	}
}
