package wire_test

import (
	"bytes"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"penstock/internal/wire"
)

// FuzzParse: whatever the bytes, Headers keeps its promises; and where gopacket decodes a transport header too, it is
// the same one.
func FuzzParse(f *testing.F) {
	for _, frame := range samples(f) {
		f.Add(frame)
	}
	for _, c := range captures(f) {
		for _, frame := range c.frames {
			if len(frame) < 256 && !c.rawIP {
				f.Add(frame)
			}
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		before := bytes.Clone(frame)
		frame = frame[:len(frame):len(frame)]
		var h wire.Headers
		checkHeaders(t, frame, &h, h.Parse(frame))
		compareWithGopacket(t, frame, &h)
		wire.Summary(frame)

		var ip wire.Headers
		checkHeaders(t, frame, &ip, ip.ParseIP(frame))
		wire.SummaryIP(frame)
		if !bytes.Equal(before, frame) {
			t.Fatal("the frame was written to")
		}
		if h.HasL4 && h.Frag == wire.FragNone {
			if !wire.FillL4(frame, &h) || !wire.VerifyL4(frame, &h) {
				t.Fatalf("the checksum that FillL4 stored does not verify: %s", wire.Summary(frame))
			}
		}
	})
}

// TestCompareWithGopacket runs the comparison over the captures, and makes sure that it compares something.
func TestCompareWithGopacket(t *testing.T) {
	compared := 0
	for _, c := range captures(t) {
		if c.rawIP {
			continue
		}
		for _, frame := range c.frames {
			var h wire.Headers
			h.Parse(frame)
			if compareWithGopacket(t, frame, &h) {
				compared++
			}
		}
	}
	if compared < 60 {
		t.Errorf("only %d packets compared", compared)
	}
}

// compareWithGopacket compares h with what gopacket makes of the frame, if both find a transport header.
func compareWithGopacket(t *testing.T, frame []byte, h *wire.Headers) bool {
	t.Helper()
	if !h.HasL4 || h.Frag != wire.FragNone {
		return false // gopacket does not decode fragments
	}
	packet := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	var vlans []uint16
	for _, l := range packet.Layers() {
		switch l := l.(type) {
		case *layers.Dot1Q:
			tci := l.VLANIdentifier | uint16(l.Priority)<<13
			if l.DropEligible {
				tci |= 0x1000
			}
			vlans = append(vlans, tci)
		case *layers.IPv4:
			if l.SrcIP == nil {
				return false // gopacket reads the options first, and gives up on bad ones
			}
			if h.IPVersion != 4 || !bytes.Equal(l.SrcIP, wire.IPv4(frame[h.L3:]).Src()) || !bytes.Equal(l.DstIP, wire.IPv4(frame[h.L3:]).Dst()) {
				t.Fatalf("gopacket: %v > %v, we: IPv%d at %d", l.SrcIP, l.DstIP, h.IPVersion, h.L3)
			}
		case *layers.IPv6:
			if h.IPVersion != 6 || !bytes.Equal(l.SrcIP, wire.IPv6(frame[h.L3:]).Src()) || !bytes.Equal(l.DstIP, wire.IPv6(frame[h.L3:]).Dst()) {
				t.Fatalf("gopacket: %v > %v, we: IPv%d at %d", l.SrcIP, l.DstIP, h.IPVersion, h.L3)
			}
		case *layers.TCP:
			seg := wire.TCP(frame[h.L4:h.End])
			if h.Proto != wire.ProtoTCP || uint16(l.SrcPort) != seg.SrcPort() || uint16(l.DstPort) != seg.DstPort() || l.Seq != seg.Seq() ||
				l.Ack != seg.Ack() || l.Window != seg.Window() || l.SYN != seg.Flags().Has(wire.FlagSYN) || l.FIN != seg.Flags().Has(wire.FlagFIN) {
				t.Fatalf("gopacket: TCP %+v, we: %s", l, wire.Summary(frame))
			}
			if !bytes.Equal(l.Payload, frame[h.Payload:h.End]) {
				t.Fatalf("gopacket: %d bytes of payload, we: %d", len(l.Payload), h.End-h.Payload)
			}
			compareOptions(t, l, seg)
			return compareVLANs(t, vlans, h)
		case *layers.UDP:
			u := wire.UDP(frame[h.L4:h.End])
			if h.Proto != wire.ProtoUDP || uint16(l.SrcPort) != u.SrcPort() || uint16(l.DstPort) != u.DstPort() || int(l.Length) != u.Len() {
				t.Fatalf("gopacket: UDP %+v, we: %s", l, wire.Summary(frame))
			}
			if !bytes.Equal(l.Payload, u[wire.UDPLen:u.Len()]) {
				t.Fatalf("gopacket: %d bytes of payload, we: %d", len(l.Payload), u.Len()-wire.UDPLen)
			}
			return compareVLANs(t, vlans, h)
		case *layers.ICMPv4:
			if m := wire.ICMP(frame[h.L4:h.End]); h.Proto != wire.ProtoICMP || l.TypeCode.Type() != m.Type() || l.TypeCode.Code() != m.Code() || l.Id != m.ID() {
				t.Fatalf("gopacket: ICMP %+v, we: %s", l, wire.Summary(frame))
			}
			return compareVLANs(t, vlans, h)
		case *layers.ICMPv6:
			if m := wire.ICMP(frame[h.L4:h.End]); h.Proto != wire.ProtoICMPv6 || l.TypeCode.Type() != m.Type() || l.TypeCode.Code() != m.Code() {
				t.Fatalf("gopacket: ICMPv6 %+v, we: %s", l, wire.Summary(frame))
			}
			return compareVLANs(t, vlans, h)
		}
	}
	return false
}

func compareVLANs(t *testing.T, vlans []uint16, h *wire.Headers) bool {
	t.Helper()
	if len(vlans) != int(h.VLANs) {
		t.Fatalf("gopacket: VLANs %v, we: %d", vlans, h.VLANs)
	}
	for i, v := range vlans {
		if v != h.VLAN[i] {
			t.Fatalf("gopacket: VLANs %v, we: %v", vlans, h.VLAN)
		}
	}
	return true
}

func compareOptions(t *testing.T, l *layers.TCP, seg wire.TCP) {
	t.Helper()
	it := seg.OptionIter()
	for _, o := range l.Options {
		if it.Kind == wire.OptMPTCP {
			return // gopacket has opinions about subtypes
		}
		if o.OptionType == layers.TCPOptionKindNop || o.OptionType == layers.TCPOptionKindEndList {
			continue
		}
		if !it.Next() || uint8(o.OptionType) != it.Kind || !bytes.Equal(o.OptionData, it.Value) {
			t.Fatalf("gopacket: option %v, we: kind %d, % x", o, it.Kind, it.Value)
		}
	}
	if it.Next() && it.Kind != wire.OptMPTCP || it.Malformed && len(l.Padding) == 0 { // Padding holds what gopacket left
		t.Fatalf("option %d behind gopacket's %v, malformed = %v", it.Kind, l.Options, it.Malformed)
	}
}
