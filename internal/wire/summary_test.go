package wire_test

import (
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"penstock/internal/wire"
)

func TestSummary(t *testing.T) {
	arp := func(op uint16) []byte {
		return serialize(t, eth(layers.EthernetTypeARP), &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
			SourceHwAddress: macA, SourceProtAddress: ip4A, DstHwAddress: macB, DstProtAddress: ip4B,
		})[:42]
	}
	withOptions := func(opts ...layers.TCPOption) []byte {
		ip := ipv4(layers.IPProtocolTCP)
		l := tcp(ip)
		l.ACK, l.Ack, l.Options = true, 7, opts
		return serialize(t, eth(layers.EthernetTypeIPv4), ip, l, gopacket.Payload("xy"))
	}
	for _, r := range []struct {
		frame []byte
		want  string
	}{
		{tcp4(t, ""), "IP 10.0.0.1.1234 > 10.0.0.2.80: Flags [S], seq 1, win 64240, length 0"},
		{tcp6(t, ""), "IP6 fd00::1.1234 > fd00::2.80: Flags [S], seq 1, win 64240, length 0"},
		{tcp4(t, "hello"), "IP 10.0.0.1.1234 > 10.0.0.2.80: Flags [S], seq 1:6, win 64240, length 5"},
		{patched(tcp4(t, ""), 47, 0), "IP 10.0.0.1.1234 > 10.0.0.2.80: Flags [none], win 64240, length 0"},
		{withOptions(layers.TCPOption{OptionType: 5, OptionLength: 10, OptionData: []byte{0, 0, 0, 1, 0, 0, 0, 9}}, layers.TCPOption{OptionType: 253, OptionLength: 4, OptionData: []byte{0xab, 0xcd}}),
			"IP 10.0.0.1.1234 > 10.0.0.2.80: Flags [S.], seq 1:3, ack 7, win 64240, options [sack 1 {1:9},unknown-253 0xabcd,eol], length 2"},
		{patched(withOptions(layers.TCPOption{OptionType: 3, OptionLength: 3, OptionData: []byte{7}}), 55, 9),
			"IP 10.0.0.1.1234 > 10.0.0.2.80: Flags [S.], seq 1:3, ack 7, win 64240, options [bad opt], length 2"},
		{udp4(t, "hello"), "IP 10.0.0.1.5353 > 10.0.0.2.53: UDP, length 5"},
		{echo4(t), "IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 77, seq 3, length 12"},
		{echo6(t), "IP6 fd00::1 > fd00::2: ICMP6, echo request, id 77, seq 3, length 12"},
		{icmpError4(t, 3, 4, tcp4(t, "")[14:54]), "IP 10.0.0.2 > 10.0.0.1: ICMP type 3 code 4 about tcp 10.0.0.1:1234 > 10.0.0.2:80, length 48"},
		{tagged(udp4(t, "hello"), 0x2014, 10), "vlan 20: vlan 10: IP 10.0.0.1.5353 > 10.0.0.2.53: UDP, length 5"},
		{arp(1), "ARP, Request who-has 10.0.0.2 tell 10.0.0.1, length 28"},
		{arp(2), "ARP, Reply 10.0.0.1 is-at 02:00:00:00:00:01, length 28"},
		{arp(9), "ARP, operation 9, length 28"},
		{arp(1)[:41], "ethertype 0x0806, length 27"},
		{patched(arp(1), 12, 0, 28), "802.3, length 28"},
		{fragment4(tcp4(t, "0123456789ab0123"), 0, 24, true), "IP 10.0.0.1.1234 > 10.0.0.2.80: Flags [S], seq 1:5, win 64240, length 4, first fragment"},
		{fragment4(tcp4(t, "0123456789ab0123"), 24, 12, false), "IP 10.0.0.1 > 10.0.0.2: tcp, fragment at 24, length 12"},
		{raw6(44, join(frag6(6, 24, false), []byte("xyz"))...), "IP6 fd00::1 > fd00::2: tcp, later fragment, length 3"},
		{raw6(59), "IP6 fd00::1 > fd00::2: ip-proto-59, length 0"},
		{tcp4(t, "")[:50], "IP 10.0.0.1 > 10.0.0.2: tcp [truncated_ipv4_packet]"},
		{tcp4(t, "")[:30], "[truncated_ipv4], length 30"},
		{nil, "[truncated_ethernet], length 0"},
	} {
		if got := wire.Summary(r.frame); got != r.want {
			t.Errorf("\n got %s\nwant %s", got, r.want)
		}
	}
	if got := wire.SummaryIP(tcp4(t, "")[14:54]); got != "IP 10.0.0.1.1234 > 10.0.0.2.80: Flags [S], seq 1, win 64240, length 0" {
		t.Error(got)
	}
	if got := (wire.FlagFIN | wire.FlagSYN | wire.FlagRST | wire.FlagPSH | wire.FlagACK | wire.FlagURG | wire.FlagECE | wire.FlagCWR | wire.FlagAE).String(); got != "FSRP.UEWe" {
		t.Error(got)
	}
	for _, frame := range samples(t) {
		for n := range len(frame) { // no panic
			wire.Summary(frame[:n:n])
			wire.SummaryIP(frame[min(14, n):n:n])
		}
	}
}
