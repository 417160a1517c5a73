package bpf

import (
	"encoding/binary"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

var (
	toSocket = fate{VerdictSocket, "flow_new"}
	toPeer   = func(reason string) fate { return fate{VerdictPeer, reason} }
)

// ext is an IPv6 extension header of size bytes, a multiple of 8 (AH: of 4).
func ext(kind, next layers.IPProtocol, size int) gopacket.Payload {
	b := make([]byte, size)
	b[0], b[1] = byte(next), byte(size/8-1)
	switch kind {
	case layers.IPProtocolAH:
		b[1] = byte(size/4 - 2)
	case layers.IPProtocolIPv6Fragment:
		b[1] = 0
	case layers.IPProtocolIPv6HopByHop, layers.IPProtocolIPv6Destination:
		b[2], b[3] = 1, byte(size-4) // PadN
	}
	return b
}

// frag6 is a fragment header.
func frag6(next layers.IPProtocol, id uint32, offset int, more bool) gopacket.Payload {
	b := ext(layers.IPProtocolIPv6Fragment, next, 8)
	v := uint16(offset)
	if more {
		v |= 1
	}
	binary.BigEndian.PutUint16(b[2:], v)
	binary.BigEndian.PutUint32(b[4:], id)
	return b
}

// chain6 is an IPv6 packet with the given extension headers (kind, size) before a TCP SYN.
func chain6(t testing.TB, kinds ...layers.IPProtocol) []byte {
	ip := ip6(layers.IPProtocolTCP)
	list := []gopacket.SerializableLayer{eth(layers.EthernetTypeIPv6), ip}
	for i, kind := range kinds {
		next := layers.IPProtocolTCP
		if i+1 < len(kinds) {
			next = kinds[i+1]
		}
		list = append(list, ext(kind, next, 16))
	}
	if len(kinds) > 0 {
		ip.NextHeader = kinds[0]
	}
	// The TCP checksum does not matter here, and gopacket computes it for known layers only.
	return build(t, append(list, tcp(ip4(layers.IPProtocolTCP), "S"), payload(4))...)
}

// changed returns a copy of a packet with bytes set at an offset.
func changed(packet []byte, at int, b ...byte) []byte {
	p := append([]byte(nil), packet...)
	copy(p[at:], b)
	return p
}

// cutTo returns the first n bytes of an Ethernet packet and states its new length in the IP header at offset 14.
func cutTo(packet []byte, n int) []byte {
	p := append([]byte(nil), packet[:n]...)
	if p[14]>>4 == 4 {
		binary.BigEndian.PutUint16(p[16:], uint16(n-14))
	} else {
		binary.BigEndian.PutUint16(p[18:], uint16(n-54))
	}
	return p
}

const (
	hop     = layers.IPProtocolIPv6HopByHop
	routing = layers.IPProtocolIPv6Routing
	dstOpts = layers.IPProtocolIPv6Destination
	ah      = layers.IPProtocolAH
	isTCP   = layers.IPProtocolTCP
	isUDP   = layers.IPProtocolUDP
)

func TestParse(t *testing.T) {
	v4, v6 := eth(layers.EthernetTypeIPv4), eth(layers.EthernetTypeIPv6)
	other4 := func(proto layers.IPProtocol, n int) []byte { return build(t, v4, ip4(proto), payload(n)) }
	icmp4 := func(kind uint8, n int) []byte {
		return build(t, v4, ip4(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0), Id: 77, Seq: 1}, payload(n))
	}
	icmp6 := func(kind uint8, rest ...byte) []byte {
		ip := ip6(layers.IPProtocolICMPv6)
		i := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
		_ = i.SetNetworkLayerForChecksum(ip)
		return build(t, v6, ip, i, gopacket.Payload(append(rest, make([]byte, 20)...)))
	}
	opts4 := func(n int) []byte {
		ip := ip4(isTCP)
		for range n {
			ip.Options = append(ip.Options, layers.IPv4Option{OptionType: 1, OptionLength: 1})
		}
		return build(t, v4, ip, tcp(ip, "S"), payload(3))
	}
	tags := func(ids ...uint16) []byte {
		list := []gopacket.SerializableLayer{eth(layers.EthernetTypeDot1Q)}
		for i, id := range ids {
			next := layers.EthernetTypeDot1Q
			if i == len(ids)-1 {
				next = layers.EthernetTypeIPv4
			}
			list = append(list, vlan(id, next))
		}
		ip := ip4(isTCP)
		return build(t, append(list, ip, tcp(ip, "S"))...)
	}
	syn4, syn6 := tcp4(t, "S", 10), tcp6(t, "S", 10)
	qinq := tags(100, 200)
	copy(qinq[12:], []byte{0x88, 0xa8})
	options := func(flags string, n int) []byte { // TCP options
		ip := ip4(isTCP)
		s := tcp(ip, flags)
		for range n {
			s.Options = append(s.Options, layers.TCPOption{OptionType: layers.TCPOptionKindNop})
		}
		return build(t, v4, ip, s, payload(1))
	}
	routed := func(kind, left byte) []byte {
		return changed(chain6(t, routing), 56, kind, left)
	}
	eight := []layers.IPProtocol{hop, dstOpts, routing, dstOpts, dstOpts, dstOpts, ah, dstOpts}

	rows := []struct {
		name   string
		packet []byte
		want   fate
		key    FlowKey // zero: what gopacket says
	}{
		// not ours
		{"ARP", build(t, eth(layers.EthernetTypeARP), payload(46)), toPeer("not_ip"), FlowKey{}},
		{"LLDP, 14 bytes", build(t, eth(layers.EthernetTypeLinkLayerDiscovery)), toPeer("not_ip"), FlowKey{}},
		{"802.3 length", build(t, eth(0x0026), payload(46)), toPeer("not_ip"), FlowKey{}},
		{"MPLS", build(t, eth(layers.EthernetTypeMPLSUnicast), payload(46)), toPeer("not_ip"), FlowKey{}},
		{"ARP in a VLAN", build(t, eth(layers.EthernetTypeDot1Q), vlan(5, layers.EthernetTypeARP), payload(46)), toPeer("not_ip"), FlowKey{}},
		{"three tags", tags(1, 2, 3), toPeer("vlan_depth"), FlowKey{}},
		{"neighbour solicitation", icmp6(135), toPeer("icmp_neighbor"), FlowKey{}},
		{"neighbour advertisement", icmp6(136), toPeer("icmp_neighbor"), FlowKey{}},
		{"router solicitation", icmp6(133), toPeer("icmp_neighbor"), FlowKey{}},
		{"MLD report", icmp6(131), toPeer("icmp_neighbor"), FlowKey{}},
		{"MLDv2 report", icmp6(143), toPeer("icmp_neighbor"), FlowKey{}},

		// flows
		{"TCP", syn4, toSocket, FlowKey{}},
		{"TCP with options", options("S", 40), toSocket, FlowKey{}},
		{"TCP over IPv6", syn6, toSocket, FlowKey{}},
		{"UDP", udp4(t, 5), toSocket, FlowKey{}},
		{"UDP, empty", udp4(t, 0), toSocket, FlowKey{}},
		{"echo", icmp4(8, 56), toSocket, FlowKey{}},
		{"echo reply", icmp4(0, 56), toSocket, FlowKey{}},
		{"echo over IPv6", icmp6(128, 0, 77, 0, 1), toSocket, FlowKey{Proto: ProtoICMPv6, SrcPort: 77, DstPort: 77}},
		{"echo reply over IPv6", icmp6(129, 0, 78, 0, 1), toSocket, FlowKey{Proto: ProtoICMPv6, SrcPort: 78, DstPort: 78}},
		{"ICMP timestamp", icmp4(13, 12), toSocket, FlowKey{Proto: ProtoICMP}},
		{"ICMPv6 node information", icmp6(139), toSocket, FlowKey{Proto: ProtoICMPv6}},
		{"GRE", other4(47, 30), toSocket, FlowKey{Proto: 47}},
		{"SCTP", other4(132, 30), toSocket, FlowKey{Proto: 132}},
		{"ESP, nothing behind it", other4(50, 0), toSocket, FlowKey{Proto: 50}},
		{"ICMPv6 over IPv4", other4(58, 30), toSocket, FlowKey{Proto: 58}},
		{"ICMP over IPv6", build(t, v6, ip6(1), payload(30)), toSocket, FlowKey{Proto: 1}},
		{"no next header", build(t, v6, ip6(59), payload(3)), toSocket, FlowKey{Proto: 59}},
		{"Ethernet padding", append(tcp4(t, "S", 0), 1, 2, 3, 4, 5, 6), toSocket, FlowKey{}},

		// VLAN
		{"tag", tags(5), toSocket, FlowKey{}},
		{"two tags", tags(5, 6), toSocket, FlowKey{}},
		{"802.1ad and 802.1Q", qinq, toSocket, FlowKey{}},
		{"priority tag", changed(tags(0), 14, 0xe0), toSocket, FlowKey{}},
		{"tag with priority", changed(tags(0x123), 14, 0xf1), toSocket, FlowKey{}},

		// IPv4 options
		{"IHL 6", opts4(4), toSocket, FlowKey{}},
		{"IHL 15", opts4(40), toSocket, FlowKey{}},

		// IPv6 extension headers
		{"hop-by-hop", chain6(t, hop), toSocket, FlowKey{Proto: ProtoTCP, SrcPort: 40000, DstPort: 80}},
		{"destination options", chain6(t, dstOpts), toSocket, FlowKey{Proto: ProtoTCP, SrcPort: 40000, DstPort: 80}},
		{"AH", chain6(t, ah), toSocket, FlowKey{Proto: ProtoTCP, SrcPort: 40000, DstPort: 80}},
		{"routing, arrived", routed(0, 0), toSocket, FlowKey{Proto: ProtoTCP, SrcPort: 40000, DstPort: 80}},
		{"routing, on its way", routed(4, 1), toSocket, FlowKey{Proto: 43}},
		{"eight extension headers", chain6(t, eight...), toSocket, FlowKey{Proto: ProtoTCP, SrcPort: 40000, DstPort: 80}},
		{"largest extension header", build(t, v6, ip6(dstOpts), ext(dstOpts, isTCP, 2048), tcp(ip4(isTCP), "S")), toSocket, FlowKey{Proto: ProtoTCP, SrcPort: 40000, DstPort: 80}},
		{"atomic fragment", build(t, v6, ip6(layers.IPProtocolIPv6Fragment), frag6(isTCP, 9, 0, false), tcp(ip4(isTCP), "S")), toSocket, FlowKey{Proto: ProtoTCP, SrcPort: 40000, DstPort: 80}},

		// malformed: Ethernet and IP
		{"tag cut", tags(5)[:16], toPeer("truncated"), FlowKey{}},
		{"second tag cut", tags(5, 6)[:19], toPeer("truncated"), FlowKey{}},
		{"IPv4 header cut", syn4[:33], toPeer("truncated"), FlowKey{}},
		{"IPv6 header cut", syn6[:53], toPeer("truncated"), FlowKey{}},
		{"version 6 in IPv4", changed(syn4, 14, 0x65), toPeer("ip_version"), FlowKey{}},
		{"version 4 in IPv6", changed(syn6, 14, 0x40), toPeer("ip_version"), FlowKey{}},
		{"IHL 4", changed(syn4, 14, 0x44), toPeer("ip_header_length"), FlowKey{}},
		{"IHL 0", changed(syn4, 14, 0x40), toPeer("ip_header_length"), FlowKey{}},
		{"IPv4 longer than the frame", changed(syn4, 17, syn4[17]+1), toPeer("ip_length"), FlowKey{}},
		{"IPv4 length 65535", changed(syn4, 16, 0xff, 0xff), toPeer("ip_length"), FlowKey{}},
		{"IPv4 shorter than its header", changed(syn4, 16, 0, 19), toPeer("ip_length"), FlowKey{}},
		{"IPv4 options beyond the packet", changed(cutTo(syn4, 14+22), 14, 0x46), toPeer("ip_length"), FlowKey{}},
		{"IPv6 longer than the frame", changed(syn6, 19, syn6[19]+1), toPeer("ip_length"), FlowKey{}},
		{"IPv6 jumbogram", changed(chain6(t, hop), 18, 0, 0), toPeer("ip_length"), FlowKey{}},

		// malformed: extension headers
		{"nine extension headers", chain6(t, append(eight, dstOpts)...), toPeer("ip6_extensions"), FlowKey{}},
		{"hop-by-hop in second place", chain6(t, dstOpts, hop), toPeer("ip6_extensions"), FlowKey{}},
		{"routing type 0", routed(0, 1), toPeer("ip6_extensions"), FlowKey{}},
		{"two fragment headers", build(t, v6, ip6(layers.IPProtocolIPv6Fragment), frag6(layers.IPProtocolIPv6Fragment, 9, 0, false), frag6(isTCP, 9, 0, false), tcp(ip4(isTCP), "S")), toPeer("ip6_extensions"), FlowKey{}},
		{"extension header beyond the packet", changed(chain6(t, dstOpts), 55, 200), toPeer("truncated"), FlowKey{}},
		{"extension header cut", cutTo(chain6(t, dstOpts), 61), toPeer("truncated"), FlowKey{}},
		{"AH beyond the packet", changed(chain6(t, ah), 55, 255), toPeer("truncated"), FlowKey{}},

		// malformed: transport
		{"TCP cut", cutTo(syn4, 53), toPeer("truncated"), FlowKey{}},
		{"TCP missing", cutTo(syn4, 34), toPeer("truncated"), FlowKey{}},
		{"TCP cut by the IP length, padding behind", append(cutTo(syn4, 50), make([]byte, 20)...), toPeer("truncated"), FlowKey{}},
		{"TCP over IPv6 cut", cutTo(syn6, 73), toPeer("truncated"), FlowKey{}},
		{"TCP offset 4", changed(syn4, 46, 0x40), toPeer("tcp_offset"), FlowKey{}},
		{"TCP offset 0", changed(syn4, 46, 0), toPeer("tcp_offset"), FlowKey{}},
		{"TCP offset beyond the segment", changed(syn4, 46, 0x80), toPeer("tcp_offset"), FlowKey{}},
		{"TCP offset into the padding", append(changed(tcp4(t, "S", 0), 46, 0x60), 0, 0, 0, 0), toPeer("tcp_offset"), FlowKey{}},
		{"UDP cut", cutTo(udp4(t, 5), 41), toPeer("truncated"), FlowKey{}},
		{"UDP length 7", changed(udp4(t, 5), 38, 0, 7), toPeer("udp_length"), FlowKey{}},
		{"UDP length 0", changed(udp4(t, 5), 38, 0, 0), toPeer("udp_length"), FlowKey{}},
		{"UDP length beyond the packet", changed(udp4(t, 5), 38, 0, 14), toPeer("udp_length"), FlowKey{}},
		{"UDP length below the packet's", changed(udp4(t, 5), 38, 0, 12), toSocket, FlowKey{}},
		{"ICMP cut", cutTo(icmp4(8, 0), 41), toPeer("truncated"), FlowKey{}},
		{"ICMPv6 cut", cutTo(icmp6(128), 61), toPeer("truncated"), FlowKey{}},
		{"neighbour solicitation cut", cutTo(icmp6(135), 61), toPeer("truncated"), FlowKey{}},
	}
	r := newRig(t, func(o *Options) { o.Rules = all })
	drop := newRig(t, func(o *Options) { o.Rules, o.Malformed = all, MalformedDrop })
	malformed := map[string]bool{}
	for reason := steerReasonREASON_TRUNCATED; reason < steerReasonREASON_COUNT; reason++ {
		malformed[Reason(reason).String()] = true
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r.t = t
			r.forget()
			o := r.run(0, row.packet)
			if o.fate() != row.want {
				t.Fatalf("got %v, want %v", o.fate(), row.want)
			}
			if malformed[row.want.reason] {
				drop.t = t
				if o := drop.run(0, row.packet); o.verdict != VerdictDrop || o.reason.String() != row.want.reason {
					t.Errorf("with malformed = drop: got %v", o.fate())
				}
			}
			entries := r.entries()
			if row.want != toSocket {
				if len(entries) != 0 {
					t.Errorf("flow table: %+v", entries)
				}
				return
			}
			want := flowOf(t, row.packet)
			if row.key != (FlowKey{}) {
				want.Proto, want.SrcPort, want.DstPort = row.key.Proto, row.key.SrcPort, row.key.DstPort
			}
			if e, ok := entries[want]; !ok || e.Reply || e.Hash != FlowHash(want) || o.hash != e.Hash || o.chain != 7 {
				t.Errorf("want an entry for %+v (hash %#x, metadata %#x), the table is %+v", want, FlowHash(want), o.hash, entries)
			}
			if e, ok := entries[want.Reverse()]; want != want.Reverse() && (!ok || !e.Reply || e.Hash != FlowHash(want)) {
				t.Errorf("want a reply entry for %+v, the table is %+v", want.Reverse(), entries)
			}
		})
	}
}

// Cut anywhere, no packet reaches a socket, except where what is cut off is not part of the IP packet.
func TestTruncationAtEveryLength(t *testing.T) {
	quote := func() []byte { // an ICMP error
		ip := ip4(layers.IPProtocolICMPv4)
		return build(t, eth(layers.EthernetTypeIPv4), ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 1)}, gopacket.Payload(tcp4(t, "S", 0)[14:]))
	}
	ipTagged, ipOptions := ip4(isTCP), ip4(isTCP)
	ipOptions.Options = []layers.IPv4Option{{OptionType: 1, OptionLength: 1}}
	packets := map[string][]byte{
		"TCP":          tcp4(t, "S", 20),
		"TCP over v6":  tcp6(t, "S", 20),
		"UDP":          udp4(t, 20),
		"VLAN":         build(t, eth(layers.EthernetTypeDot1Q), vlan(5, layers.EthernetTypeIPv4), ipTagged, tcp(ipTagged, "S"), payload(20)),
		"extensions":   chain6(t, hop, dstOpts, routing, ah),
		"fragment":     build(t, eth(layers.EthernetTypeIPv6), ip6(layers.IPProtocolIPv6Fragment), frag6(isUDP, 1, 0, true), udp(ip4(isUDP)), payload(16)),
		"ICMP error":   quote(),
		"IPv4 options": build(t, eth(layers.EthernetTypeIPv4), ipOptions, tcp(ipOptions, "S"), payload(20)),
	}
	r := newRig(t, func(o *Options) { o.Rules = all })
	for name, packet := range packets {
		for n := 14; n < len(packet); n++ {
			r.t = t
			if o := r.run(0, packet[:n:n]); o.verdict == VerdictSocket {
				t.Errorf("%s, first %d of %d bytes: went to the socket as %s", name, n, len(packet), o.reason)
			}
		}
	}
	if len(r.entries()) != 0 {
		t.Errorf("the flow table has %d entries", len(r.entries()))
	}
}

// With its length field corrected, a cut packet goes to a socket only if its transport header is whole.
func TestTruncationWithHonestLengths(t *testing.T) {
	for _, c := range []struct {
		name   string
		packet []byte
		header int // where the transport header ends
	}{
		{"TCP", tcp4(t, "S", 20), 54},
		{"TCP over v6", tcp6(t, "S", 20), 74},
		{"extensions", chain6(t, hop, dstOpts, routing, ah), 54 + 4*16 + 20},
	} {
		r := newRig(t, func(o *Options) { o.Rules = all })
		least := 34
		if c.packet[14]>>4 == 6 {
			least = 54
		}
		for n := least; n <= len(c.packet); n++ {
			o := r.run(0, cutTo(c.packet, n))
			if want := n >= c.header; (o.verdict == VerdictSocket) != want {
				t.Errorf("%s, %d bytes: %v, to the socket: want %t", c.name, n, o.fate(), want)
			}
		}
	}
}
