package wire_test

import (
	"encoding/binary"
	"net"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Packets for the tests are built by gopacket, which shares no code with this package. Its serializers fix lengths and
// checksums; what must be wrong is patched into the bytes afterwards.

var (
	macA = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	macB = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	ip4A = net.IP{10, 0, 0, 1}
	ip4B = net.IP{10, 0, 0, 2}
	ip6A = net.ParseIP("fd00::1")
	ip6B = net.ParseIP("fd00::2")
)

func serialize(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatalf("serialize packet: %v", err)
	}
	return buf.Bytes()
}

func eth(next layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: macA, DstMAC: macB, EthernetType: next}
}

func ipv4(proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Id: 7, Protocol: proto, SrcIP: ip4A, DstIP: ip4B}
}

func ipv6(next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: ip6A, DstIP: ip6B}
}

func tcp(network gopacket.NetworkLayer) *layers.TCP {
	l := &layers.TCP{SrcPort: 1234, DstPort: 80, Seq: 1, SYN: true, Window: 64240}
	l.SetNetworkLayerForChecksum(network)
	return l
}

func udp(network gopacket.NetworkLayer) *layers.UDP {
	l := &layers.UDP{SrcPort: 5353, DstPort: 53}
	l.SetNetworkLayerForChecksum(network)
	return l
}

func tcp4(t testing.TB, payload string) []byte {
	ip := ipv4(layers.IPProtocolTCP)
	return serialize(t, eth(layers.EthernetTypeIPv4), ip, tcp(ip), gopacket.Payload(payload))
}

func tcp6(t testing.TB, payload string) []byte {
	ip := ipv6(layers.IPProtocolTCP)
	return serialize(t, eth(layers.EthernetTypeIPv6), ip, tcp(ip), gopacket.Payload(payload))
}

func udp4(t testing.TB, payload string) []byte {
	ip := ipv4(layers.IPProtocolUDP)
	return serialize(t, eth(layers.EthernetTypeIPv4), ip, udp(ip), gopacket.Payload(payload))
}

func udp6(t testing.TB, payload string) []byte {
	ip := ipv6(layers.IPProtocolUDP)
	return serialize(t, eth(layers.EthernetTypeIPv6), ip, udp(ip), gopacket.Payload(payload))
}

func echo4(t testing.TB) []byte {
	return serialize(t, eth(layers.EthernetTypeIPv4), ipv4(layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 77, Seq: 3}, gopacket.Payload("ping"))
}

func echo6(t testing.TB) []byte {
	ip := ipv6(layers.IPProtocolICMPv6)
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
	icmp.SetNetworkLayerForChecksum(ip)
	return serialize(t, eth(layers.EthernetTypeIPv6), ip, icmp, &layers.ICMPv6Echo{Identifier: 77, SeqNumber: 3}, gopacket.Payload("ping"))
}

// tagged puts VLAN tags (TCIs, outermost first; outer TPID 802.1ad if there are more than one) into a frame.
func tagged(frame []byte, tcis ...uint16) []byte {
	out := append([]byte{}, frame[:12]...)
	for i, tci := range tcis {
		tpid := uint16(0x8100)
		if i == 0 && len(tcis) > 1 {
			tpid = 0x88a8
		}
		out = binary.BigEndian.AppendUint16(out, tpid)
		out = binary.BigEndian.AppendUint16(out, tci)
	}
	return append(out, frame[12:]...)
}

// patched returns a copy of frame with bytes replaced from off on.
func patched(frame []byte, off int, with ...byte) []byte {
	out := append([]byte{}, frame...)
	copy(out[off:], with)
	return out
}

// raw6 builds an Ethernet frame with an IPv6 header, the given first next-header value and these bytes as payload.
func raw6(next uint8, payload ...byte) []byte {
	f := make([]byte, 14+40, 14+40+len(payload))
	copy(f, macB)
	copy(f[6:], macA)
	f[12], f[13] = 0x86, 0xdd
	f[14] = 0x60
	binary.BigEndian.PutUint16(f[18:], uint16(len(payload)))
	f[20], f[21] = next, 64
	copy(f[22:], ip6A)
	copy(f[38:], ip6B)
	return append(f, payload...)
}

// join concatenates byte slices.
func join(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}
