package wire_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"penstock/internal/wire"
)

// An IPv6 extension header of 8 bytes (options: one PadN).
func ext(next uint8) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

// A routing header of 24 bytes.
func routing(next, kind, segmentsLeft uint8) []byte {
	return append([]byte{next, 2, kind, segmentsLeft, 0, 0, 0, 0}, ip6B...)
}

// An IPv6 fragment header.
func frag6(next uint8, offset int, more bool) []byte {
	b := []byte{next, 0, 0, 0, 0, 0, 0, 9}
	binary.BigEndian.PutUint16(b[2:], uint16(offset))
	if more {
		b[3] |= 1
	}
	return b
}

// seg6 is the transport part of an IPv6 frame, to put behind other headers.
func seg6(frame []byte) []byte { return frame[14+40:] }

// fragment4 makes a fragment out of an untagged IPv4 frame: n payload bytes from offset on.
func fragment4(frame []byte, offset, n int, more bool) []byte {
	out := append([]byte{}, frame[:34]...)
	out = append(out, frame[34+offset:34+offset+n]...)
	binary.BigEndian.PutUint16(out[16:], uint16(20+n))
	field := uint16(offset / 8)
	if more {
		field |= 0x2000
	}
	binary.BigEndian.PutUint16(out[20:], field)
	wire.IPv4(out[14:]).FillChecksum()
	return out
}

func options4(t testing.TB) []byte {
	ip := ipv4(layers.IPProtocolTCP)
	ip.Options = []layers.IPv4Option{{OptionType: 7, OptionLength: 11, OptionData: make([]byte, 9)}}
	return serialize(t, eth(layers.EthernetTypeIPv4), ip, tcp(ip))
}

func TestParse(t *testing.T) {
	const (
		tcpFlow  = "tcp 10.0.0.1:1234 > 10.0.0.2:80"
		tcp6Flow = "tcp [fd00::1]:1234 > [fd00::2]:80"
	)
	syn6 := seg6(tcp6(t, ""))
	long := make([]byte, 4000)
	type row struct {
		name                 string
		frame                []byte
		version, proto       uint8
		vlans                uint8
		frag                 wire.Frag
		l3, l4, payload, end int
		flow                 string // "" = no L4
	}
	rows := []row{
		{"tcp4", tcp4(t, "hello"), 4, 6, 0, 0, 14, 34, 54, 59, tcpFlow},
		{"tcp6", tcp6(t, "hello"), 6, 6, 0, 0, 14, 54, 74, 79, tcp6Flow},
		{"udp4", udp4(t, "hello"), 4, 17, 0, 0, 14, 34, 42, 47, "udp 10.0.0.1:5353 > 10.0.0.2:53"},
		{"udp6", udp6(t, "hello"), 6, 17, 0, 0, 14, 54, 62, 67, "udp [fd00::1]:5353 > [fd00::2]:53"},
		{"echo4", echo4(t), 4, 1, 0, 0, 14, 34, 42, 46, "icmp 10.0.0.1:77 > 10.0.0.2:77"},
		{"echo6", echo6(t), 6, 58, 0, 0, 14, 54, 62, 66, "icmpv6 [fd00::1]:77 > [fd00::2]:77"},
		{"padding", append(tcp4(t, ""), make([]byte, 6)...), 4, 6, 0, 0, 14, 34, 54, 54, tcpFlow},
		{"ipv4 options", options4(t), 4, 6, 0, 0, 14, 46, 66, 66, tcpFlow},
		{"vlan", tagged(tcp4(t, ""), 0xa00a), 4, 6, 1, 0, 18, 38, 58, 58, tcpFlow + " vlan 10"},
		{"priority tag", tagged(tcp4(t, ""), 0xe000), 4, 6, 1, 0, 18, 38, 58, 58, tcpFlow},
		{"qinq", tagged(tcp6(t, ""), 0x3014, 0xf00a), 6, 6, 2, 0, 22, 62, 82, 82, tcp6Flow + " vlan 20.10"},
		{"udp longer than its datagram", patched(udp4(t, "hello"), 38, 0, 10), 4, 17, 0, 0, 14, 34, 42, 47, "udp 10.0.0.1:5353 > 10.0.0.2:53"},

		{"first fragment", fragment4(tcp4(t, "0123456789ab0123"), 0, 24, true), 4, 6, 0, wire.FragFirst, 14, 34, 54, 58, tcpFlow},
		{"first fragment udp", fragment4(udp4(t, "0123456789ab"), 0, 16, true), 4, 17, 0, wire.FragFirst, 14, 34, 42, 50, "udp 10.0.0.1:5353 > 10.0.0.2:53"},
		{"middle fragment", fragment4(tcp4(t, "0123456789ab0123"), 24, 8, true), 4, 6, 0, wire.FragLater, 14, 34, 34, 42, ""},
		{"last fragment", fragment4(tcp4(t, "0123456789ab0123"), 32, 4, false), 4, 6, 0, wire.FragLater, 14, 34, 34, 38, ""},
		{"udp fragment at 8", fragment4(udp4(t, "0123456789ab"), 8, 12, false), 4, 17, 0, wire.FragLater, 14, 34, 34, 46, ""},

		{"hop-by-hop", raw6(0, join(ext(6), syn6)...), 6, 6, 0, 0, 14, 62, 82, 82, tcp6Flow},
		{"destination options", raw6(60, join(ext(6), syn6)...), 6, 6, 0, 0, 14, 62, 82, 82, tcp6Flow},
		{"spent routing type 0", raw6(43, join(routing(6, 0, 0), syn6)...), 6, 6, 0, 0, 14, 78, 98, 98, tcp6Flow},
		{"all extensions", raw6(0, join(ext(60), ext(43), routing(44, 4, 0), frag6(60, 0, false), ext(6), syn6)...), 6, 6, 0, 0, 14, 110, 130, 130, tcp6Flow},
		{"source route under way", raw6(43, join(routing(6, 4, 1), syn6)...), 6, 43, 0, 0, 14, 54, 54, 98, ""},
		{"atomic fragment", raw6(44, join(frag6(6, 0, false), syn6)...), 6, 6, 0, 0, 14, 62, 82, 82, tcp6Flow},
		{"fragment header with a reserved byte", raw6(44, join(patched(frag6(6, 0, false), 1, 9), syn6)...), 6, 6, 0, 0, 14, 62, 82, 82, tcp6Flow},
		{"v6 first fragment", raw6(44, join(frag6(6, 0, true), syn6, make([]byte, 4))...), 6, 6, 0, wire.FragFirst, 14, 62, 82, 86, tcp6Flow},
		{"v6 later fragment", raw6(44, join(frag6(6, 24, false), []byte("xyz"))...), 6, 6, 0, wire.FragLater, 14, 62, 62, 65, ""},
		{"v6 later fragment of an extension", raw6(44, join(frag6(60, 24, true), make([]byte, 8))...), 6, 60, 0, wire.FragLater, 14, 62, 62, 70, ""},
		{"eight extensions", raw6(60, join(ext(60), ext(60), ext(60), ext(60), ext(60), ext(60), ext(60), ext(6), syn6)...), 6, 6, 0, 0, 14, 118, 138, 138, tcp6Flow},
		{"long extension", raw6(60, join([]byte{6, 255}, long[:2046], syn6)...), 6, 6, 0, 0, 14, 2102, 2122, 2122, tcp6Flow},
		{"no next header", raw6(59), 6, 59, 0, 0, 14, 54, 54, 54, ""},
		{"no next header with bytes", raw6(59, 1, 2, 3), 6, 59, 0, 0, 14, 54, 54, 57, ""},
		{"esp", raw6(50, long[:32]...), 6, 50, 0, 0, 14, 54, 54, 86, ""},
		{"ah", raw6(51, join([]byte{6, 4}, long[:22], syn6)...), 6, 51, 0, 0, 14, 54, 54, 98, ""},
		{"ipv4 icmp over ipv6", raw6(1, 8, 0, 0, 0, 0, 0, 0, 0), 6, 1, 0, 0, 14, 54, 54, 62, ""},
		{"icmpv6 over ipv4", patched(echo4(t), 23, 58), 4, 58, 0, 0, 14, 34, 34, 46, ""},
		{"gre", patched(tcp4(t, ""), 23, 47), 4, 47, 0, 0, 14, 34, 34, 54, ""},
		{"empty protocol 0", patched(raw6(0)[:54], 20, 253), 6, 253, 0, 0, 14, 54, 54, 54, ""},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			var h wire.Headers
			fault := h.Parse(r.frame)
			checkHeaders(t, r.frame, &h, fault)
			if fault != wire.FaultNone {
				t.Fatalf("fault %v", fault)
			}
			got := fmt.Sprint(h.IPVersion, h.Proto, h.VLANs, h.Frag, h.L3, h.L4, h.Payload, h.End)
			want := fmt.Sprint(r.version, r.proto, r.vlans, r.frag, r.l3, r.l4, r.payload, r.end)
			if got != want {
				t.Errorf("version, protocol, VLANs, fragment, L3, L4, payload, end:\n got %s\nwant %s", got, want)
			}
			flow := ""
			if f, ok := h.Flow(r.frame); ok {
				flow = f.String()
			}
			if flow != r.flow {
				t.Errorf("flow %q, want %q", flow, r.flow)
			}

			// The same packet without its link header parses the same, link header aside.
			var ip wire.Headers
			fault = ip.ParseIP(r.frame[h.L3:])
			checkHeaders(t, r.frame[h.L3:], &ip, fault)
			if ip.L3 != 0 || ip.L4 != h.L4-h.L3 || ip.End != h.End-h.L3 || ip.Proto != h.Proto || ip.HasL4 != h.HasL4 || ip.EtherType != h.EtherType {
				t.Errorf("ParseIP: %+v, Parse: %+v", ip, h)
			}
		})
	}
}

func TestParseNotIP(t *testing.T) {
	arp := serialize(t, eth(layers.EthernetTypeARP), &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
		SourceHwAddress: macA, SourceProtAddress: ip4A, DstHwAddress: macB, DstProtAddress: ip4B,
	})
	for _, r := range []struct {
		name      string
		frame     []byte
		etherType uint16
		vlans     uint8
		l3        int32
		tooMany   bool
	}{
		{"arp", arp, 0x0806, 0, 14, false},
		{"tagged arp", tagged(arp, 5), 0x0806, 1, 18, false},
		{"802.3 length", patched(arp, 12, 0, 38), 38, 0, 14, false},
		{"only a header", arp[:14], 0x0806, 0, 14, false},
		{"three tags", tagged(tcp4(t, ""), 1, 2, 3), 0x8100, 2, 22, true},
		{"two tags and no room for the third", tagged(tcp4(t, ""), 1, 2, 3)[:22], 0x8100, 2, 22, true},
		{"mpls", patched(arp, 12, 0x88, 0x47), 0x8847, 0, 14, false},
	} {
		t.Run(r.name, func(t *testing.T) {
			var h wire.Headers
			fault := h.Parse(r.frame)
			checkHeaders(t, r.frame, &h, fault)
			if fault != wire.FaultNone || h.IPVersion != 0 || h.HasL4 {
				t.Fatalf("fault %v, IP version %d, HasL4 %v", fault, h.IPVersion, h.HasL4)
			}
			if h.EtherType != r.etherType || h.VLANs != r.vlans || h.L3 != r.l3 || int(h.End) != len(r.frame) || h.TooManyVLANs() != r.tooMany {
				t.Errorf("got %+v, too many VLANs: %v", h, h.TooManyVLANs())
			}
		})
	}
}

// TestParseFaults has at least one row for every fault there is.
func TestParseFaults(t *testing.T) {
	t4, t6, u4 := tcp4(t, ""), tcp6(t, ""), udp4(t, "hello")
	long4 := tcp4(t, "0123456789ab0123")
	syn6 := seg6(t6)
	jumbo := join(t6, make([]byte, 70000))
	seen := [wire.NumFaults]bool{wire.FaultTruncatedIP: true, wire.FaultIPBadVersion: true} // ParseIP only: below
	for _, r := range []struct {
		name    string
		frame   []byte
		fault   wire.Fault
		version uint8
	}{
		{"nothing", nil, wire.FaultTruncatedEthernet, 0},
		{"13 bytes", t4[:13], wire.FaultTruncatedEthernet, 0},
		{"cut tag", tagged(t4, 1)[:17], wire.FaultTruncatedVLAN, 0},
		{"cut second tag", tagged(t4, 1, 2)[:20], wire.FaultTruncatedVLAN, 0},
		{"ethernet only", t4[:14], wire.FaultTruncatedIPv4, 0},
		{"19 bytes of ipv4", t4[:33], wire.FaultTruncatedIPv4, 0},
		{"cut ipv4 options", patched(t4[:36], 14, 0x46), wire.FaultTruncatedIPv4, 4},
		{"cut ipv4", t4[:53], wire.FaultTruncatedIPv4Packet, 4},
		{"total length over the frame", patched(t4, 16, 0xff, 0xff), wire.FaultTruncatedIPv4Packet, 4},
		{"39 bytes of ipv6", t6[:53], wire.FaultTruncatedIPv6, 0},
		{"cut ipv6", t6[:73], wire.FaultTruncatedIPv6Packet, 6},
		{"payload length over the frame", patched(t6, 18, 0xff, 0xff), wire.FaultTruncatedIPv6Packet, 6},
		{"cut extension", raw6(60, ext(6)[:7]...), wire.FaultTruncatedIPv6Extension, 6},
		{"extension longer than the packet", raw6(60, patched(ext(6), 1, 1)...), wire.FaultTruncatedIPv6Extension, 6},
		{"cut routing header", raw6(43, routing(6, 0, 0)[:23]...), wire.FaultTruncatedIPv6Extension, 6},
		{"cut fragment header", raw6(44, frag6(6, 8, true)[:6]...), wire.FaultTruncatedIPv6Extension, 6},
		{"extension, then nothing", raw6(60, ext(43)...), wire.FaultTruncatedIPv6Extension, 6},
		{"19 bytes of tcp", patched(t4, 17, 39), wire.FaultTruncatedTCP, 4},
		{"no tcp", patched(t4, 17, 20), wire.FaultTruncatedTCP, 4},
		{"19 bytes of tcp over ipv6", raw6(6, syn6[:19]...), wire.FaultTruncatedTCP, 6},
		{"7 bytes of udp", patched(u4, 17, 27), wire.FaultTruncatedUDP, 4},
		{"7 bytes of udp over ipv6", raw6(17, make([]byte, 7)...), wire.FaultTruncatedUDP, 6},
		{"7 bytes of icmp", patched(echo4(t), 17, 27), wire.FaultTruncatedICMP, 4},
		{"7 bytes of icmpv6", raw6(58, make([]byte, 7)...), wire.FaultTruncatedICMP, 6},

		{"ipv6 under the ipv4 ethertype", patched(t4, 14, 0x65), wire.FaultIPv4BadVersion, 0},
		{"version 0", patched(t4, 14, 0x05), wire.FaultIPv4BadVersion, 0},
		{"ihl 4", patched(t4, 14, 0x44), wire.FaultIPv4BadHeaderLength, 0},
		{"ihl 0", patched(t4, 14, 0x40), wire.FaultIPv4BadHeaderLength, 0},
		{"total length 19", patched(t4, 16, 0, 19), wire.FaultIPv4BadTotalLength, 4},
		{"total length 0", patched(t4, 16, 0, 0), wire.FaultIPv4BadTotalLength, 4},
		{"total length below the options", patched(options4(t), 16, 0, 28), wire.FaultIPv4BadTotalLength, 4},
		{"ipv4 under the ipv6 ethertype", patched(t6, 14, 0x45), wire.FaultIPv6BadVersion, 0},
		{"jumbogram", patched(raw6(0, join([]byte{6, 0, 0xc2, 4, 0, 1, 0, 0}, syn6)...), 18, 0, 0), wire.FaultIPv6Jumbogram, 6},
		{"big tcp", patched(jumbo, 18, 0, 0), wire.FaultIPv6Jumbogram, 6},
		{"late hop-by-hop", raw6(60, join(ext(0), ext(6), syn6)...), wire.FaultIPv6HopByHopNotFirst, 6},
		{"two hop-by-hop", raw6(0, join(ext(0), ext(6), syn6)...), wire.FaultIPv6HopByHopNotFirst, 6},
		{"routing type 0", raw6(43, join(routing(6, 0, 1), syn6)...), wire.FaultIPv6RoutingType0, 6},
		{"two fragment headers", raw6(44, join(frag6(44, 0, false), frag6(6, 0, false), syn6)...), wire.FaultIPv6RepeatedFragment, 6},
		{"nine extensions", raw6(60, join(ext(60), ext(60), ext(60), ext(60), ext(60), ext(60), ext(60), ext(60), ext(6), syn6)...), wire.FaultIPv6TooManyExtensions, 6},

		{"fragment of 20 bytes", fragment4(long4, 0, 20, true), wire.FaultFragmentBadLength, 4},
		{"empty last fragment", fragment4(long4, 24, 0, false), wire.FaultFragmentBadLength, 4},
		{"empty v6 fragment", raw6(44, frag6(6, 64, false)...), wire.FaultFragmentBadLength, 6},
		{"v6 fragment of 20 bytes", raw6(44, join(frag6(6, 0, true), syn6)...), wire.FaultFragmentBadLength, 6},
		{"ping of death", patched(fragment4(long4, 24, 12, false), 20, 0x1f, 0xff), wire.FaultFragmentTooLong, 4},
		{"ping of death, by its header", patched(fragment4(long4, 24, 12, false), 20, 0x1f, 0xfd), wire.FaultFragmentTooLong, 4},
		{"v6 ping of death", raw6(44, join(frag6(17, 65528, false), make([]byte, 8))...), wire.FaultFragmentTooLong, 6},
		{"tcp header over two fragments", fragment4(long4, 0, 16, true), wire.FaultTinyFragment, 4},
		{"tcp fragment at 8", fragment4(long4, 8, 16, true), wire.FaultTinyFragment, 4},
		{"tcp options in the second fragment", fragment4(patched(long4, 46, 0x80), 0, 24, true), wire.FaultTinyFragment, 4},
		{"v6 tcp header over two fragments", raw6(44, join(frag6(6, 0, true), syn6[:16])...), wire.FaultTinyFragment, 6},
		{"v6 tcp fragment at 8", raw6(44, join(frag6(6, 8, true), syn6[:16])...), wire.FaultTinyFragment, 6},
		{"v6 options over two fragments", raw6(44, join(frag6(60, 0, true), patched(ext(6), 1, 1))...), wire.FaultTinyFragment, 6},
		{"v6 options, then the next fragment", raw6(44, join(frag6(60, 0, true), ext(60))...), wire.FaultTinyFragment, 6},

		{"data offset 4", patched(t4, 46, 0x40), wire.FaultTCPBadDataOffset, 4},
		{"data offset 0", patched(t4, 46, 0x00), wire.FaultTCPBadDataOffset, 4},
		{"data offset over the segment", patched(t4, 46, 0x60), wire.FaultTCPBadDataOffset, 4},
		{"data offset into the padding", append(patched(t4, 46, 0x60), 0, 0, 0, 0, 0, 0), wire.FaultTCPBadDataOffset, 4},
		{"udp length 7", patched(u4, 38, 0, 7), wire.FaultUDPBadLength, 4},
		{"udp length 0", patched(u4, 38, 0, 0), wire.FaultUDPBadLength, 4},
		{"udp length over the packet", patched(u4, 38, 0, 14), wire.FaultUDPBadLength, 4},
		{"udp length 0 over ipv6", patched(udp6(t, "x"), 58, 0, 0), wire.FaultUDPBadLength, 6},
	} {
		t.Run(r.name, func(t *testing.T) {
			var h wire.Headers
			fault := h.Parse(r.frame)
			checkHeaders(t, r.frame, &h, fault)
			if fault != r.fault || h.IPVersion != r.version {
				t.Errorf("fault %v, IP version %d; want %v, %d", fault, h.IPVersion, r.fault, r.version)
			}
		})
		seen[r.fault] = true
	}
	var h wire.Headers
	if f := h.ParseIP(nil); f != wire.FaultTruncatedIP {
		t.Errorf("ParseIP of nothing: %v", f)
	}
	if f := h.ParseIP([]byte{0x55}); f != wire.FaultIPBadVersion {
		t.Errorf("ParseIP of version 5: %v", f)
	}
	names := map[string]bool{}
	for f := range wire.NumFaults {
		name := wire.Fault(f).String()
		if names[name] || name == "" {
			t.Errorf("fault %d: name %q is empty or taken", f, name)
		}
		names[name] = true
		if f != 0 && !seen[f] {
			t.Errorf("no row for %s", name)
		}
	}
	if s := wire.Fault(wire.NumFaults).String(); s != "unknown_fault" {
		t.Errorf("fault out of range is %q", s)
	}
}

// samples are whole packets of every kind, for tests that cut, damage and measure them.
func samples(t testing.TB) map[string][]byte {
	syn6 := seg6(tcp6(t, ""))
	opts := ipv4(layers.IPProtocolTCP)
	l := tcp(opts)
	l.Options = []layers.TCPOption{
		{OptionType: 2, OptionLength: 4, OptionData: []byte{5, 0xb4}}, {OptionType: 4, OptionLength: 2},
		{OptionType: 8, OptionLength: 10, OptionData: make([]byte, 8)}, {OptionType: 1}, {OptionType: 3, OptionLength: 3, OptionData: []byte{7}},
	}
	return map[string][]byte{
		"tcp4":         tcp4(t, "hello"),
		"tcp4 options": serialize(t, eth(layers.EthernetTypeIPv4), opts, l, gopacket.Payload("x")),
		"ipv4 options": options4(t),
		"tcp6":         tcp6(t, "hello"),
		"udp4":         udp4(t, "hello"),
		"udp6":         udp6(t, "hello"),
		"echo4":        echo4(t),
		"echo6":        echo6(t),
		"qinq":         tagged(tcp4(t, "hello"), 20, 10),
		"extensions":   raw6(0, join(ext(60), ext(43), routing(44, 4, 0), frag6(60, 0, false), ext(6), syn6)...),
		"fragment6":    raw6(44, join(frag6(6, 0, true), syn6, make([]byte, 4))...),
		"fragment4":    fragment4(tcp4(t, "0123456789ab0123"), 0, 24, true),
		"error4":       icmpError4(t, 3, 4, tcp4(t, "hello")[14:]),
		"error6":       icmpError6(t, 2, 0, tcp6(t, "hello")[14:]),
	}
}

// TestParseTruncated cuts packets at every length, with the lengths in their headers left alone and adapted.
func TestParseTruncated(t *testing.T) {
	for name, frame := range samples(t) {
		var whole wire.Headers
		whole.Parse(frame)
		frame = frame[:whole.End] // gopacket pads to 60 bytes
		for n := range len(frame) {
			var h wire.Headers
			cut := frame[:n:n]
			fault := h.Parse(cut)
			checkHeaders(t, cut, &h, fault)
			if fault == wire.FaultNone {
				t.Errorf("%s cut to %d of %d bytes: no fault", name, n, len(frame))
			}
			if n <= 14 {
				continue
			}
			fault = h.ParseIP(cut[14:])
			checkHeaders(t, cut[14:], &h, fault)

			// A sender that means it: the IP length fits what is there.
			l3 := int(whole.L3)
			short := append([]byte{}, cut...)
			switch {
			case whole.IPVersion == 4 && n >= l3+20:
				binary.BigEndian.PutUint16(short[l3+2:], uint16(n-l3))
			case whole.IPVersion == 6 && n >= l3+40:
				binary.BigEndian.PutUint16(short[l3+4:], uint16(n-l3-40))
			default:
				continue
			}
			fault = h.Parse(short)
			checkHeaders(t, short, &h, fault)
			if headersEnd := int(whole.Payload); n < headersEnd && fault == wire.FaultNone {
				t.Errorf("%s rewritten to %d bytes, headers end at %d: no fault", name, n, headersEnd)
			}
		}
	}
}

// TestParseDamaged flips every byte of every sample to a handful of values.
func TestParseDamaged(t *testing.T) {
	for _, frame := range samples(t) {
		for i := range frame {
			for _, v := range []byte{0, 1, 4, 6, 17, 43, 44, 58, 60, 0x45, 0x60, 0x7f, 0x80, 0xff} {
				var h wire.Headers
				bad := patched(frame, i, v)
				checkHeaders(t, bad, &h, h.Parse(bad))
			}
		}
	}
}

func TestNoAllocation(t *testing.T) {
	var h, q wire.Headers
	var f wire.Flow
	var sum uint32
	for name, frame := range samples(t) {
		n := testing.AllocsPerRun(100, func() {
			h.Parse(frame)
			f, _ = h.Flow(frame)
			sum ^= f.Hash() ^ f.Reverse().Hash()
			f, _ = f.Canonical()
			if f, ok := h.QuotedFlow(frame); ok {
				sum ^= f.Hash()
			}
			h.QuotedHeaders(frame, &q)
			wire.VerifyL4(frame, &h)
			if h.HasL4 && h.Proto == wire.ProtoTCP {
				for it := wire.TCP(frame[h.L4:]).OptionIter(); it.Next(); {
					sum += uint32(it.Kind)
				}
			}
			h.ParseIP(frame[14:])
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	_ = sum
}
