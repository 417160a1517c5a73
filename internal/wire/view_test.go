package wire_test

import (
	"bytes"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"penstock/internal/wire"
)

// TestViewsRead: the views read what gopacket wrote.
func TestViewsRead(t *testing.T) {
	ip := &layers.IPv4{
		Version: 4, TOS: 0xb9, Id: 0x1234, Flags: layers.IPv4DontFragment, TTL: 63, Protocol: layers.IPProtocolTCP, SrcIP: ip4A, DstIP: ip4B,
		Options: []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}},
	}
	l := tcp(ip)
	l.Seq, l.Ack, l.Window, l.Urgent = 0x01020304, 0x05060708, 0x090a, 0x0b0c
	l.SYN, l.ACK, l.PSH, l.URG, l.ECE, l.NS = false, true, true, true, true, true
	l.Options = []layers.TCPOption{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
	frame := serialize(t, eth(layers.EthernetTypeIPv4), ip, l, gopacket.Payload("payload"))

	e, p, s := wire.Ethernet(frame), wire.IPv4(frame[14:]), wire.TCP(frame[38:])
	if !bytes.Equal(e.Src(), macA) || !bytes.Equal(e.Dst(), macB) || e.EtherType() != wire.EtherTypeIPv4 {
		t.Errorf("Ethernet % x", frame[:14])
	}
	if p.HeaderLen() != 24 || p.TOS() != 0xb9 || p.TotalLen() != 24+24+7 || p.ID() != 0x1234 || !p.DontFragment() || p.MoreFragments() ||
		p.FragmentOffset() != 0 || p.TTL() != 63 || p.Proto() != 6 || !bytes.Equal(p.Src(), ip4A) || !bytes.Equal(p.Dst(), ip4B) ||
		string(p.Options()) != "\x01\x01\x01\x01" || p.Checksum() == 0 {
		t.Errorf("IPv4 % x", frame[14:38])
	}
	want := wire.FlagACK | wire.FlagPSH | wire.FlagURG | wire.FlagECE | wire.FlagAE
	if s.SrcPort() != 1234 || s.DstPort() != 80 || s.Seq() != 0x01020304 || s.Ack() != 0x05060708 || s.DataOffset() != 24 || s.Flags() != want ||
		s.Window() != 0x090a || s.Urgent() != 0x0b0c || s.Checksum() == 0 || string(s.Options()) != "\x01\x01\x01\x01" || string(s.Payload()) != "payload" {
		t.Errorf("TCP % x, flags %v", frame[38:], s.Flags())
	}
	if !want.Has(wire.FlagACK|wire.FlagPSH) || want.Has(wire.FlagACK|wire.FlagSYN) {
		t.Error("Has")
	}
	frag := wire.IPv4(fragment4(tcp4(t, "0123456789ab0123"), 24, 8, true)[14:])
	if !frag.MoreFragments() || frag.FragmentOffset() != 24 || frag.DontFragment() {
		t.Errorf("fragment % x", frag[:20])
	}

	ip6 := &layers.IPv6{Version: 6, TrafficClass: 0xb9, FlowLabel: 0xabcde, HopLimit: 62, NextHeader: layers.IPProtocolUDP, SrcIP: ip6A, DstIP: ip6B}
	frame = serialize(t, eth(layers.EthernetTypeIPv6), ip6, udp(ip6), gopacket.Payload("dns"))
	p6, u := wire.IPv6(frame[14:]), wire.UDP(frame[54:])
	if p6.TrafficClass() != 0xb9 || p6.FlowLabel() != 0xabcde || p6.PayloadLen() != 11 || p6.NextHeader() != 17 || p6.HopLimit() != 62 ||
		!bytes.Equal(p6.Src(), ip6A) || !bytes.Equal(p6.Dst(), ip6B) {
		t.Errorf("IPv6 % x", frame[14:54])
	}
	if u.SrcPort() != 5353 || u.DstPort() != 53 || u.Len() != 11 || u.Checksum() == 0 {
		t.Errorf("UDP % x", frame[54:])
	}

	m := wire.ICMP(echo4(t)[34:])
	if m.Type() != 8 || m.Code() != 0 || m.ID() != 77 || m.Seq() != 3 || m.Checksum() == 0 {
		t.Errorf("ICMP % x", m)
	}
	if m := wire.ICMP([]byte{3, 4, 0, 0, 0, 0, 5, 0xdc}); m.MTU() != 1500 {
		t.Errorf("MTU %d", m.MTU())
	}
	if m := wire.ICMP([]byte{2, 0, 0, 0, 0, 1, 0, 0}); m.MTU6() != 65536 {
		t.Errorf("MTU6 %d", m.MTU6())
	}
}

// TestViewsWrite: what the setters write, gopacket reads, and nothing beside it changes.
func TestViewsWrite(t *testing.T) {
	frame := tcp4(t, "hello")
	e, p, s := wire.Ethernet(frame), wire.IPv4(frame[14:]), wire.TCP(frame[34:])
	e.SetSrc([6]byte(macB))
	e.SetDst([6]byte(macA))
	p.SetTOS(0xb8)
	p.SetTotalLen(44)
	p.SetID(99)
	p.SetTTL(3)
	p.SetSrc([4]byte{192, 0, 2, 1})
	p.SetDst([4]byte{192, 0, 2, 2})
	p.FillChecksum()
	s.SetSrcPort(4321)
	s.SetDstPort(443)
	s.SetSeq(0xfffffffe)
	s.SetAck(0x80000001)
	s.SetFlags(wire.FlagACK | wire.FlagFIN | wire.FlagAE)
	s.SetWindow(17)
	s.SetUrgent(2)
	s.SetDataOffset(24)
	s.SetFlags(wire.FlagACK | wire.FlagFIN)
	s.SetDataOffset(20)
	var h wire.Headers
	h.Parse(frame)
	wire.FillL4(frame, &h)

	packet := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	ge := packet.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	gi := packet.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	gt := packet.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if !bytes.Equal(ge.SrcMAC, macB) || !bytes.Equal(ge.DstMAC, macA) {
		t.Errorf("Ethernet %v", ge)
	}
	if gi.TOS != 0xb8 || gi.Length != 44 || gi.Id != 99 || gi.TTL != 3 || gi.SrcIP.String() != "192.0.2.1" || gi.DstIP.String() != "192.0.2.2" || gi.Protocol != 6 || gi.IHL != 5 {
		t.Errorf("IPv4 %+v", gi)
	}
	if gt.SrcPort != 4321 || gt.DstPort != 443 || gt.Seq != 0xfffffffe || gt.Ack != 0x80000001 || gt.Window != 17 || gt.Urgent != 2 ||
		!gt.ACK || !gt.FIN || gt.SYN || gt.NS || gt.DataOffset != 5 || string(gt.Payload) != "hell" {
		t.Errorf("TCP %+v", gt)
	}
	gt.SetNetworkLayerForChecksum(gi)
	if err, mismatches := packet.VerifyChecksums(); err != nil || len(mismatches) != 0 {
		t.Errorf("checksums: %v, %v", err, mismatches)
	}

	frame = udp6(t, "hello")
	p6, u := wire.IPv6(frame[14:]), wire.UDP(frame[54:])
	wire.Ethernet(frame).SetEtherType(wire.EtherTypeIPv6)
	p6.SetTrafficClass(0xb9)
	p6.SetHopLimit(1)
	p6.SetPayloadLen(12)
	p6.SetNextHeader(wire.ProtoUDP)
	p6.SetSrc([16]byte(ip6B))
	p6.SetDst([16]byte(ip6A))
	u.SetSrcPort(1)
	u.SetDstPort(2)
	u.SetLen(12)
	u.SetChecksum(0)
	h.Parse(frame)
	wire.FillL4(frame, &h)
	packet = gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	g6 := packet.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	gu := packet.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if g6.Version != 6 || g6.TrafficClass != 0xb9 || g6.FlowLabel != 0 || g6.HopLimit != 1 || g6.Length != 12 || !g6.SrcIP.Equal(ip6B) || !g6.DstIP.Equal(ip6A) {
		t.Errorf("IPv6 %+v", g6)
	}
	if gu.SrcPort != 1 || gu.DstPort != 2 || gu.Length != 12 {
		t.Errorf("UDP %+v", gu)
	}
	gu.SetNetworkLayerForChecksum(g6)
	if err, mismatches := packet.VerifyChecksums(); err != nil || len(mismatches) != 0 {
		t.Errorf("checksums: %v, %v", err, mismatches)
	}
}

// TestTCPFlagBits: the ninth flag shares its byte with the data offset and reserved bits; neither setter touches the other's.
func TestTCPFlagBits(t *testing.T) {
	s := wire.TCP(make([]byte, 60))
	s[12] = 0x0e // reserved bits
	s.SetFlags(wire.FlagAE | wire.FlagSYN)
	s.SetDataOffset(60)
	if s[12] != 0xff || s[13] != 2 || s.Flags() != wire.FlagAE|wire.FlagSYN || s.DataOffset() != 60 {
		t.Errorf("% x, flags %v, offset %d", s[12:14], s.Flags(), s.DataOffset())
	}
	s.SetFlags(wire.FlagCWR)
	s.SetDataOffset(20)
	if s[12] != 0x5e || s[13] != 0x80 || s.Flags() != wire.FlagCWR || s.DataOffset() != 20 {
		t.Errorf("% x, flags %v, offset %d", s[12:14], s.Flags(), s.DataOffset())
	}
}

// TestViewsStayInside: an address that is appended to does not run into the next field.
func TestViewsStayInside(t *testing.T) {
	frame := tcp4(t, "hello")
	before := bytes.Clone(frame)
	_ = append(wire.Ethernet(frame).Dst(), 0xee)
	_ = append(wire.Ethernet(frame).Src(), 0xee)
	_ = append(wire.IPv4(frame[14:]).Src(), 0xee)
	_ = append(wire.IPv4(frame[14:]).Dst(), 0xee)
	if !bytes.Equal(frame, before) {
		t.Error("append to a view's address changed the frame")
	}
}
