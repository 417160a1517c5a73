package bpf

import (
	"fmt"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// icmpError4 is an ICMP error from a router to the client or the server, about a packet (from its Ethernet header on) of
// which it quotes n bytes behind the IP header; n < 0: all of it.
func icmpError4(t testing.TB, kind uint8, about []byte, n int) []byte {
	quote := about[14:]
	if n >= 0 {
		quote = quote[:int(quote[0]&0xf)*4+n]
	}
	ip := ip4(layers.IPProtocolICMPv4)
	ip.SrcIP, ip.DstIP = []byte{203, 0, 113, 9}, quote[12:16]
	return build(t, eth(layers.EthernetTypeIPv4), ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0)}, gopacket.Payload(quote))
}

func icmpError6(t testing.TB, kind uint8, about []byte, n int) []byte {
	quote := about[14:]
	if n >= 0 {
		quote = quote[:40+n]
	}
	ip := ip6(layers.IPProtocolICMPv6)
	ip.DstIP = quote[8:24]
	i := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
	_ = i.SetNetworkLayerForChecksum(ip)
	return build(t, eth(layers.EthernetTypeIPv6), ip, i, gopacket.Payload(append(make([]byte, 4), quote...)))
}

func TestICMPErrors(t *testing.T) {
	v4, v6 := eth(layers.EthernetTypeIPv4), eth(layers.EthernetTypeIPv6)
	echo := build(t, v4, ip4(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 77}, payload(8))
	ip := ip6(layers.IPProtocolICMPv6)
	e6 := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
	_ = e6.SetNetworkLayerForChecksum(ip)
	echo6 := build(t, v6, ip, e6, gopacket.Payload([]byte{0, 78, 0, 1, 0, 0, 0, 0}))
	gre := build(t, v4, ip4(47), payload(20))
	withOptions := ip4(isTCP)
	withOptions.Options = []layers.IPv4Option{{OptionType: 1, OptionLength: 1}}

	syn4, syn6, dns := tcp4(t, "S", 10), tcp6(t, "S", 10), udp4(t, 10)
	var (
		known   = fate{VerdictSocket, "icmp_error"}
		unknown = fate{VerdictPeer, "icmp_error_unknown"}
	)
	type row struct {
		name  string
		port  int
		error []byte
		about []byte // hash of the flow it must come with
		want  fate
	}
	rows := []row{
		{"whole quote", 1, icmpError4(t, 3, syn4, -1), syn4, known},
		{"8 bytes", 1, icmpError4(t, 3, syn4, 8), syn4, known},
		{"4 bytes are enough", 1, icmpError4(t, 3, syn4, 4), syn4, known},
		{"other direction", 0, icmpError4(t, 3, tcp4Reply(t, "SA", 0), 8), syn4, known},
		{"of a later segment", 1, icmpError4(t, 3, tcp4(t, "PA", 1400), 8), syn4, known},
		{"UDP", 1, icmpError4(t, 3, dns, 8), dns, known},
		{"echo", 1, icmpError4(t, 11, echo, 8), echo, known},
		{"protocol without ports", 1, icmpError4(t, 3, gre, 8), gre, known},
		{"IPv4 options in the quote", 1, icmpError4(t, 3, build(t, v4, withOptions, tcp(withOptions, "A")), 8), syn4, known},
		{"IPv6, whole quote", 1, icmpError6(t, 1, syn6, -1), syn6, known},
		{"IPv6, 8 bytes", 1, icmpError6(t, 1, syn6, 8), syn6, known},
		{"IPv6, extension headers in the quote", 1, icmpError6(t, 3, chain6(t, hop, dstOpts), -1), syn6, known},
		{"IPv6, first fragment in the quote", 1, icmpError6(t, 3, fragment6(t, 1, 0, true, isTCP, segment(0x10)), -1), syn6, known},
		{"IPv6 echo", 1, icmpError6(t, 3, echo6, 8), echo6, known},

		{"unknown ports", 1, icmpError4(t, 3, changed(syn4, 35, 1), 8), nil, unknown},
		{"unknown address", 1, icmpError4(t, 3, changed(syn4, 29, 9), 8), nil, unknown},
		{"unknown protocol", 1, icmpError4(t, 3, changed(syn4, 23, 132), 8), nil, unknown},
		{"3 bytes of transport", 1, icmpError4(t, 3, syn4, 3), nil, unknown},
		{"no transport", 1, icmpError4(t, 3, syn4, 0), nil, unknown},
		{"echo cut", 1, icmpError4(t, 3, echo, 7), nil, unknown},
		{"later fragment in the quote", 1, icmpError4(t, 3, frag4(t, 1, 64, false, isTCP, segment(0x10)), 8), nil, unknown},
		{"error about an error", 1, icmpError4(t, 3, icmpError4(t, 3, syn4, 8), 28), nil, unknown},
		{"quote is no IPv4", 1, icmpError4(t, 3, changed(syn4, 14, 0x65), -1), nil, unknown},
		{"quote with IHL 4", 1, icmpError4(t, 3, changed(syn4, 14, 0x44), -1), nil, unknown},
		{"IPv6, unknown ports", 1, icmpError6(t, 1, changed(syn6, 55, 1), 8), nil, unknown},
		{"IPv6, cut in the extension headers", 1, icmpError6(t, 3, chain6(t, hop, dstOpts), 12), nil, unknown},
		{"IPv6, later fragment in the quote", 1, icmpError6(t, 3, fragment6(t, 1, 64, false, isTCP, segment(0x10)), -1), nil, unknown},
		{"IPv6, nine extension headers in the quote", 1, icmpError6(t, 3, chain6(t, hop, dstOpts, dstOpts, dstOpts, dstOpts, dstOpts, dstOpts, dstOpts, dstOpts), -1), nil, unknown},
	}
	for _, kind := range []uint8{3, 4, 5, 11, 12} {
		rows = append(rows, row{fmt.Sprintf("type %d", kind), 1, icmpError4(t, kind, syn4, 8), syn4, known})
	}
	for _, kind := range []uint8{1, 2, 3, 4} {
		rows = append(rows, row{fmt.Sprintf("IPv6 type %d", kind), 1, icmpError6(t, kind, syn6, 8), syn6, known})
	}
	r := newRig(t, func(o *Options) { o.Rules = all })
	for _, begin := range [][]byte{syn4, syn6, dns, echo, echo6, gre} {
		r.run(0, begin)
	}
	before := r.entries()
	for _, row := range rows {
		o := r.run(row.port, row.error)
		if o.fate() != row.want {
			t.Errorf("%s: got %v, want %v", row.name, o.fate(), row.want)
			continue
		}
		if row.about != nil && (o.chain != 7 || o.hash != hashOf(t, row.about)) {
			t.Errorf("%s: chain %d, hash %#x; want 7, %#x", row.name, o.chain, o.hash, hashOf(t, row.about))
		}
	}
	for k, e := range r.entries() {
		if e != before[k] {
			t.Errorf("an error has changed %+v into %+v", before[k], e)
		}
	}
}

// The VLAN of the error is that of the flow.
func TestICMPErrorInAVLAN(t *testing.T) {
	tag := func(p []byte, id byte) []byte {
		return append(append(append([]byte(nil), p[:12]...), 0x81, 0, 0, id), p[12:]...)
	}
	r := newRig(t, func(o *Options) { o.Rules = all })
	r.run(0, tag(tcp4(t, "S", 0), 5))
	for id, want := range map[byte]string{5: "icmp_error", 6: "icmp_error_unknown"} {
		if got := r.run(1, tag(icmpError4(t, 3, tcp4(t, "S", 0), 8), id)); got.reason.String() != want {
			t.Errorf("VLAN %d: got %v, want %s", id, got.fate(), want)
		}
	}
	if got := r.run(1, icmpError4(t, 3, tcp4(t, "S", 0), 8)); got.reason.String() != "icmp_error_unknown" {
		t.Errorf("no VLAN: got %v", got.fate())
	}
}
