package wire_test

import (
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"penstock/internal/wire"
)

// icmpError4 is an ICMP error that B sends to A; quote is the beginning of the packet it is about.
func icmpError4(t testing.TB, typ, code uint8, quote []byte) []byte {
	ip := ipv4(layers.IPProtocolICMPv4)
	ip.SrcIP, ip.DstIP = ip4B, ip4A
	return serialize(t, eth(layers.EthernetTypeIPv4), ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, code)}, gopacket.Payload(quote))
}

func icmpError6(t testing.TB, typ, code uint8, quote []byte) []byte {
	ip := ipv6(layers.IPProtocolICMPv6)
	ip.SrcIP, ip.DstIP = ip6B, ip6A
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, code)}
	icmp.SetNetworkLayerForChecksum(ip)
	return serialize(t, eth(layers.EthernetTypeIPv6), ip, icmp, gopacket.Payload(join(make([]byte, 4), quote)))
}

func TestQuotedFlow(t *testing.T) {
	t4, t6 := tcp4(t, "0123456789ab0123")[14:], tcp6(t, "hello")[14:]
	const flow4, flow6 = "tcp 10.0.0.1:1234 > 10.0.0.2:80", "tcp [fd00::1]:1234 > [fd00::2]:80"
	for _, r := range []struct {
		name  string
		frame []byte
		flow  string // "" = none
	}{
		{"unreachable, all of it", icmpError4(t, 3, 1, t4), flow4},
		{"fragmentation needed, 8 bytes", icmpError4(t, 3, 4, t4[:28]), flow4},
		{"7 bytes", icmpError4(t, 3, 4, t4[:27]), ""},
		{"no quote", icmpError4(t, 3, 4, nil), ""},
		{"time exceeded", icmpError4(t, 11, 0, t4[:28]), flow4},
		{"source quench", icmpError4(t, 4, 0, t4[:28]), flow4},
		{"redirect", icmpError4(t, 5, 0, t4[:28]), flow4},
		{"parameter problem", icmpError4(t, 12, 0, t4[:28]), flow4},
		{"echo", icmpError4(t, 8, 0, t4), ""},
		{"timestamp", icmpError4(t, 13, 0, t4), ""},
		{"udp", icmpError4(t, 3, 3, udp4(t, "x")[14:42]), "udp 10.0.0.1:5353 > 10.0.0.2:53"},
		{"ping", icmpError4(t, 11, 0, echo4(t)[14:42]), "icmp 10.0.0.1:77 > 10.0.0.2:77"},
		{"first fragment", icmpError4(t, 11, 1, fragment4(tcp4(t, "0123456789ab0123"), 0, 24, true)[14:42]), flow4},
		{"later fragment", icmpError4(t, 11, 1, fragment4(tcp4(t, "0123456789ab0123"), 24, 12, false)[14:]), ""},
		{"ipv6 in ipv4", icmpError4(t, 3, 1, t6), ""},
		{"another protocol", icmpError4(t, 3, 1, patched(t4, 9, 47)), ""},
		{"bad header length", icmpError4(t, 3, 1, patched(t4, 0, 0x44)), ""},
		{"options", icmpError4(t, 3, 4, options4(t)[14:54]), flow4},
		{"options cut", icmpError4(t, 3, 4, options4(t)[14:46]), ""},
		{"an error about an error", icmpError4(t, 3, 1, icmpError4(t, 3, 1, t4)[14:]), "icmp 10.0.0.2:0 > 10.0.0.1:0"},
		{"data offset over what is quoted", icmpError4(t, 3, 4, patched(t4, 32, 0xf0)), flow4},

		{"v6 too big", icmpError6(t, 2, 0, t6), flow6},
		{"v6 8 bytes", icmpError6(t, 1, 4, t6[:48]), flow6},
		{"v6 7 bytes", icmpError6(t, 1, 4, t6[:47]), ""},
		{"v6 time exceeded", icmpError6(t, 3, 0, t6), flow6},
		{"v6 parameter problem", icmpError6(t, 4, 0, t6), flow6},
		{"v6 type 0", icmpError6(t, 0, 0, t6), ""},
		{"v6 type 5", icmpError6(t, 5, 0, t6), ""},
		{"v6 echo", icmpError6(t, 128, 0, t6), ""},
		{"v6 extensions", icmpError6(t, 1, 0, raw6(60, join(ext(6), t6[40:])...)[14:70]), flow6},
		{"v6 extensions cut", icmpError6(t, 1, 0, raw6(60, join(ext(60), ext(6), t6[40:])...)[14:66]), ""},
		{"v6 first fragment", icmpError6(t, 3, 1, raw6(44, join(frag6(6, 0, true), t6[40:60], make([]byte, 12))...)[14:82]), flow6},
		{"v6 later fragment", icmpError6(t, 3, 1, raw6(44, join(frag6(6, 1280, true), make([]byte, 64))...)[14:]), ""},
		{"tagged", tagged(icmpError4(t, 3, 4, t4[:28]), 0x2007, 9), flow4 + " vlan 7.9"},
		{"not icmp", tcp4(t, string(t4)), ""},
		{"fragmented error", fragment4(icmpError4(t, 3, 1, t4), 0, 48, true), ""},
	} {
		t.Run(r.name, func(t *testing.T) {
			var h, q wire.Headers
			fault := h.Parse(r.frame)
			checkHeaders(t, r.frame, &h, fault)
			if fault != wire.FaultNone {
				t.Fatalf("fault %v", fault)
			}
			got := ""
			if f, ok := h.QuotedFlow(r.frame); ok {
				got = f.String()
			}
			if got != r.flow {
				t.Errorf("quoted flow %q, want %q", got, r.flow)
			}
			if ok := h.QuotedHeaders(r.frame, &q); ok != (r.flow != "") {
				t.Errorf("QuotedHeaders ok = %v", ok)
			}
		})
	}
}

// TestQuotedHeaders: the offsets are where gopacket put the bytes.
func TestQuotedHeaders(t *testing.T) {
	frame := tagged(icmpError4(t, 3, 4, tcp4(t, "hello")[14:]), 7)
	var h, q wire.Headers
	h.Parse(frame)
	if !h.QuotedHeaders(frame, &q) {
		t.Fatal("no quote")
	}
	if q.L3 != 14+4+20+8 || q.L4 != q.L3+20 || q.Payload != q.L4+20 || q.End != q.Payload+5 || q.VLAN[0] != 7 {
		t.Errorf("got %+v", q)
	}
	if tcp := wire.TCP(frame[q.L4:]); tcp.Seq() != 1 || tcp.SrcPort() != 1234 || tcp.DstPort() != 80 {
		t.Errorf("quoted TCP %d:%d seq %d", tcp.SrcPort(), tcp.DstPort(), tcp.Seq())
	}
}
