package bpf

import (
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// The two ends of all test flows.
var (
	clientMAC, serverMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	client4, server4     = net.IPv4(10, 0, 0, 1).To4(), net.IPv4(192, 0, 2, 80).To4()
	client6, server6     = net.ParseIP("fd00::1"), net.ParseIP("2001:db8::80")
)

// build serializes layers, computing lengths and checksums.
func build(t testing.TB, list ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, list...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func eth(next layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: clientMAC, DstMAC: serverMAC, EthernetType: next}
}

func vlan(id uint16, next layers.EthernetType) *layers.Dot1Q {
	return &layers.Dot1Q{VLANIdentifier: id, Type: next}
}

func ip4(proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: proto, SrcIP: client4, DstIP: server4}
}

func ip6(next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: client6, DstIP: server6}
}

// tcp is a segment from port 40000 to port 80; flags is a string such as "S" or "SA".
func tcp(ip gopacket.NetworkLayer, flags string) *layers.TCP {
	s := &layers.TCP{SrcPort: 40000, DstPort: 80, Seq: 1000, Window: 65535}
	for _, f := range flags {
		switch f {
		case 'S':
			s.SYN = true
		case 'A':
			s.ACK = true
		case 'F':
			s.FIN = true
		case 'R':
			s.RST = true
		case 'P':
			s.PSH = true
		}
	}
	_ = s.SetNetworkLayerForChecksum(ip)
	return s
}

func udp(ip gopacket.NetworkLayer) *layers.UDP {
	u := &layers.UDP{SrcPort: 40000, DstPort: 53}
	_ = u.SetNetworkLayerForChecksum(ip)
	return u
}

func payload(n int) gopacket.Payload {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// tcp4 is a TCP segment over IPv4 from the client to the server.
func tcp4(t testing.TB, flags string, n int) []byte {
	ip := ip4(layers.IPProtocolTCP)
	return build(t, eth(layers.EthernetTypeIPv4), ip, tcp(ip, flags), payload(n))
}

// tcp4Reply is one from the server to the client.
func tcp4Reply(t testing.TB, flags string, n int) []byte {
	ip := ip4(layers.IPProtocolTCP)
	ip.SrcIP, ip.DstIP = ip.DstIP, ip.SrcIP
	s := tcp(ip, flags)
	s.SrcPort, s.DstPort = s.DstPort, s.SrcPort
	return build(t, eth(layers.EthernetTypeIPv4), ip, s, payload(n))
}

func tcp6(t testing.TB, flags string, n int) []byte {
	ip := ip6(layers.IPProtocolTCP)
	return build(t, eth(layers.EthernetTypeIPv6), ip, tcp(ip, flags), payload(n))
}

func udp4(t testing.TB, n int) []byte {
	ip := ip4(layers.IPProtocolUDP)
	return build(t, eth(layers.EthernetTypeIPv4), ip, udp(ip), payload(n))
}

// flowOf is the flow of a packet as gopacket sees it, which shares nothing with the program.
func flowOf(t testing.TB, packet []byte) (k FlowKey) {
	t.Helper()
	p := gopacket.NewPacket(packet, layers.LayerTypeEthernet, gopacket.Default)
	n := 0
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.Dot1Q:
			k.VLAN[n] = l.VLANIdentifier
			n++
		case *layers.IPv4:
			k.Src, k.Dst, k.Proto = netip.AddrFrom4([4]byte(l.SrcIP.To4())), netip.AddrFrom4([4]byte(l.DstIP.To4())), uint8(l.Protocol)
		case *layers.IPv6:
			k.Src, k.Dst, k.Proto = netip.AddrFrom16([16]byte(l.SrcIP)), netip.AddrFrom16([16]byte(l.DstIP)), uint8(l.NextHeader)
		case *layers.TCP:
			k.SrcPort, k.DstPort, k.Proto = uint16(l.SrcPort), uint16(l.DstPort), ProtoTCP
		case *layers.UDP:
			k.SrcPort, k.DstPort, k.Proto = uint16(l.SrcPort), uint16(l.DstPort), ProtoUDP
		case *layers.ICMPv4:
			k.SrcPort, k.DstPort, k.Proto = l.Id, l.Id, ProtoICMP
		case *layers.ICMPv6Echo:
			k.SrcPort, k.DstPort, k.Proto = l.Identifier, l.Identifier, ProtoICMPv6
		}
	}
	return k
}

func hashOf(t testing.TB, packet []byte) uint32 { return FlowHash(flowOf(t, packet)) }
