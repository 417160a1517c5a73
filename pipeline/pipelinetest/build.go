package pipelinetest

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"penstock/internal/wire"
)

// The addresses that frames have unless MAC says otherwise.
var (
	ClientMAC = [6]byte{0x02, 0xc1, 0, 0, 0, 1}
	ServerMAC = [6]byte{0x02, 0x5e, 0, 0, 0, 2}
)

// Option changes what a frame is built from.
type Option func(*frame)

// frame is a frame under construction.
type frame struct {
	src, dst         netip.Addr
	srcPort, dstPort uint16
	srcMAC, dstMAC   [6]byte
	vlans            []uint16
	ttl, tos         uint8
	id               uint16
	df               bool
	extensions       [][2][]byte // header number and bytes behind the next-header field
	options          []layers.TCPOption
	ack              uint32
	window, urgent   uint16
	payload          []byte
	badIP, badL4     bool
	noUDPSum         bool
}

// Payload sets the bytes behind the transport header.
func Payload(s string) Option { return func(f *frame) { f.payload = []byte(s) } }

// PayloadLen sets a payload of n bytes: 0, 1, 2, ... 255, 0, ...
func PayloadLen(n int) Option {
	return func(f *frame) {
		f.payload = make([]byte, n)
		for i := range f.payload {
			f.payload[i] = byte(i)
		}
	}
}

// Ack sets the acknowledgement number, not the flag.
func Ack(n uint32) Option { return func(f *frame) { f.ack = n } }

// Window sets the TCP window; 64240 without it.
func Window(n uint16) Option { return func(f *frame) { f.window = n } }

// Urgent sets the TCP urgent pointer, not the flag.
func Urgent(n uint16) Option { return func(f *frame) { f.urgent = n } }

// TCPOption adds a TCP option. The builder fills up to a multiple of 4 bytes.
func TCPOption(kind uint8, value ...byte) Option {
	return func(f *frame) {
		o := layers.TCPOption{OptionType: layers.TCPOptionKind(kind), OptionLength: uint8(2 + len(value)), OptionData: value}
		if kind <= 1 {
			o.OptionLength = 1
		}
		f.options = append(f.options, o)
	}
}

// MSS adds the TCP option.
func MSS(n uint16) Option { return TCPOption(2, byte(n>>8), byte(n)) }

// WindowScale adds the TCP option.
func WindowScale(shift uint8) Option { return TCPOption(3, shift) }

// SACKPermitted adds the TCP option.
func SACKPermitted() Option { return TCPOption(4) }

// SACK adds the TCP option with the given edges: left, right, left, right, ...
func SACK(edges ...uint32) Option {
	var b []byte
	for _, e := range edges {
		b = binary.BigEndian.AppendUint32(b, e)
	}
	return TCPOption(5, b...)
}

// Timestamps adds the TCP option, with two NOPs in front as senders do.
func Timestamps(val, ecr uint32) Option {
	b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, val), ecr)
	return func(f *frame) {
		TCPOption(1)(f)
		TCPOption(1)(f)
		TCPOption(8, b...)(f)
	}
}

// TTL sets the IPv4 TTL or the IPv6 hop limit; 64 without it.
func TTL(n uint8) Option { return func(f *frame) { f.ttl = n } }

// TOS sets the IPv4 TOS byte or the IPv6 traffic class; DSCP is its upper six
// bits.
func TOS(n uint8) Option { return func(f *frame) { f.tos = n } }

// ID sets the IPv4 identification.
func ID(n uint16) Option { return func(f *frame) { f.id = n } }

// DontFragment sets the IPv4 flag.
func DontFragment() Option { return func(f *frame) { f.df = true } }

// Extension adds an IPv6 extension header: its number and the bytes behind its
// next-header field, the length byte included; 8*n+7 bytes.
func Extension(number uint8, body ...byte) Option {
	if len(body)%8 != 7 {
		panic(fmt.Sprintf("pipelinetest: an extension header has %d bytes behind the first, want 8*n+7", len(body)))
	}
	return func(f *frame) { f.extensions = append(f.extensions, [2][]byte{{number}, body}) }
}

// MAC sets the Ethernet addresses.
func MAC(src, dst [6]byte) Option { return func(f *frame) { f.srcMAC, f.dstMAC = src, dst } }

// VLAN sets the VLAN tags (the 16 bits of tag control information: id and
// priority), the outermost first. Where there are two the outer one is
// 802.1ad's.
func VLAN(tags ...uint16) Option { return func(f *frame) { f.vlans = tags } }

// BadIPChecksum makes the IPv4 header checksum wrong.
func BadIPChecksum() Option { return func(f *frame) { f.badIP = true } }

// BadChecksum makes the TCP, UDP or ICMP checksum wrong.
func BadChecksum() Option { return func(f *frame) { f.badL4 = true } }

// NoUDPChecksum sends UDP over IPv4 without a checksum.
func NoUDPChecksum() Option { return func(f *frame) { f.noUDPSum = true } }

// TCP returns the frame of a TCP segment. src and dst are "10.0.0.1:1234" or
// "[2001:db8::1]:80".
func TCP(src, dst string, flags wire.TCPFlags, seq uint32, opts ...Option) []byte {
	f := newFrame(addrPort(src), addrPort(dst), opts)
	t := &layers.TCP{
		SrcPort: layers.TCPPort(f.srcPort), DstPort: layers.TCPPort(f.dstPort), Seq: seq, Ack: f.ack,
		Window: f.window, Urgent: f.urgent, Options: f.options,
		FIN: flags.Has(wire.FlagFIN), SYN: flags.Has(wire.FlagSYN), RST: flags.Has(wire.FlagRST),
		PSH: flags.Has(wire.FlagPSH), ACK: flags.Has(wire.FlagACK), URG: flags.Has(wire.FlagURG),
		ECE: flags.Has(wire.FlagECE), CWR: flags.Has(wire.FlagCWR), NS: flags.Has(wire.FlagAE),
	}
	return f.build(layers.IPProtocolTCP, func(n gopacket.NetworkLayer) gopacket.SerializableLayer {
		must(t.SetNetworkLayerForChecksum(n))
		return t
	}, 16)
}

// UDP returns the frame of a UDP datagram. src and dst are as for TCP.
func UDP(src, dst string, opts ...Option) []byte {
	f := newFrame(addrPort(src), addrPort(dst), opts)
	u := &layers.UDP{SrcPort: layers.UDPPort(f.srcPort), DstPort: layers.UDPPort(f.dstPort)}
	b := f.build(layers.IPProtocolUDP, func(n gopacket.NetworkLayer) gopacket.SerializableLayer {
		must(u.SetNetworkLayerForChecksum(n))
		return u
	}, 6)
	if f.noUDPSum {
		at := len(b) - len(f.payload) - 2
		b[at], b[at+1] = 0, 0
	}
	return b
}

// ICMP returns the frame of an ICMP or, between IPv6 addresses, an ICMPv6
// message. rest is the four bytes behind the checksum.
func ICMP(src, dst string, typ, code uint8, rest [4]byte, opts ...Option) []byte {
	f := newFrame(netip.AddrPortFrom(addr(src), 0), netip.AddrPortFrom(addr(dst), 0), opts)
	if f.src.Is4() {
		m := &layers.ICMPv4{
			TypeCode: layers.CreateICMPv4TypeCode(typ, code),
			Id:       binary.BigEndian.Uint16(rest[:]), Seq: binary.BigEndian.Uint16(rest[2:]),
		}
		return f.build(layers.IPProtocolICMPv4, func(gopacket.NetworkLayer) gopacket.SerializableLayer { return m }, 2)
	}
	f.payload = append(rest[:], f.payload...)
	m := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, code)}
	return f.build(layers.IPProtocolICMPv6, func(n gopacket.NetworkLayer) gopacket.SerializableLayer {
		must(m.SetNetworkLayerForChecksum(n))
		return m
	}, 2)
}

// Ping returns the frame of an echo request.
func Ping(src, dst string, id, seq uint16, opts ...Option) []byte {
	return echo(src, dst, id, seq, 8, 128, opts)
}

// Pong returns the frame of an echo reply.
func Pong(src, dst string, id, seq uint16, opts ...Option) []byte {
	return echo(src, dst, id, seq, 0, 129, opts)
}

func echo(src, dst string, id, seq uint16, type4, type6 uint8, opts []Option) []byte {
	typ := type4
	if addr(src).Is6() {
		typ = type6
	}
	return ICMP(src, dst, typ, 0, [4]byte{byte(id >> 8), byte(id), byte(seq >> 8), byte(seq)}, opts...)
}

// ICMPError returns the frame of an ICMP error by router src about the packet
// in the frame about, sent to that packet's sender. rest is the four bytes
// behind the checksum: the MTU, say. It quotes all of the packet's IP header
// and 8 bytes more (IPv4) or 64 bytes more (IPv6).
func ICMPError(src string, typ, code uint8, rest [4]byte, about []byte, opts ...Option) []byte {
	var h wire.Headers
	h.Parse(about)
	ip := about[h.L3:h.End]
	var to netip.Addr
	switch h.IPVersion {
	case 4:
		to, ip = netip.AddrFrom4([4]byte(ip[12:16])), ip[:min(len(ip), int(h.L4-h.L3)+8)]
	case 6:
		to, ip = netip.AddrFrom16([16]byte(ip[8:24])), ip[:min(len(ip), 40+64)]
	default:
		panic("pipelinetest: an ICMP error about a packet that is not IP")
	}
	return ICMP(src, to.String(), typ, code, rest, append([]Option{Payload(string(ip))}, opts...)...)
}

// IP returns the frame of an IP packet of any protocol; its bytes are the
// payload.
func IP(src, dst string, proto uint8, opts ...Option) []byte {
	f := newFrame(netip.AddrPortFrom(addr(src), 0), netip.AddrPortFrom(addr(dst), 0), opts)
	return f.build(layers.IPProtocol(proto), nil, 0)
}

// Ethernet returns a frame of any EtherType.
func Ethernet(etherType uint16, payload []byte, opts ...Option) []byte {
	f := newFrame(netip.AddrPort{}, netip.AddrPort{}, opts)
	b := f.link(nil, etherType)
	return append(b, payload...)
}

// ARP returns an ARP request by src for dst.
func ARP(src, dst string, opts ...Option) []byte {
	s, d := addr(src).As4(), addr(dst).As4()
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	b = append(append(b, ClientMAC[:]...), s[:]...)
	b = append(append(b, 0, 0, 0, 0, 0, 0), d[:]...)
	return Ethernet(wire.EtherTypeARP, b, opts...)
}

func newFrame(src, dst netip.AddrPort, opts []Option) *frame {
	f := &frame{
		src: src.Addr().Unmap(), dst: dst.Addr().Unmap(), srcPort: src.Port(), dstPort: dst.Port(),
		srcMAC: ClientMAC, dstMAC: ServerMAC, ttl: 64, window: 64240,
	}
	if f.src.Is4() != f.dst.Is4() {
		panic(fmt.Sprintf("pipelinetest: %v and %v are not of one family", src, dst))
	}
	for _, o := range opts {
		o(f)
	}
	return f
}

// build serializes the frame. sumAt is where in the transport header the
// checksum is, 0 if there is none.
func (f *frame) build(proto layers.IPProtocol, transport func(gopacket.NetworkLayer) gopacket.SerializableLayer, sumAt int) []byte {
	var network gopacket.NetworkLayer
	var list []gopacket.SerializableLayer
	etherType := uint16(wire.EtherTypeIPv4)
	headers := 20
	if f.src.Is4() {
		ip := &layers.IPv4{
			Version: 4, IHL: 5, TOS: f.tos, Id: f.id, TTL: f.ttl, Protocol: proto,
			SrcIP: net.IP(f.src.AsSlice()), DstIP: net.IP(f.dst.AsSlice()),
		}
		if f.df {
			ip.Flags = layers.IPv4DontFragment
		}
		network, list = ip, append(list, ip)
	} else {
		etherType = wire.EtherTypeIPv6
		ip := &layers.IPv6{
			Version: 6, TrafficClass: f.tos, HopLimit: f.ttl, NextHeader: proto,
			SrcIP: net.IP(f.src.AsSlice()), DstIP: net.IP(f.dst.AsSlice()),
		}
		network, list = ip, append(list, ip)
		headers = 40
		var chain []byte
		for i := len(f.extensions) - 1; i >= 0; i-- {
			e := f.extensions[i]
			chain = append(append([]byte{byte(ip.NextHeader)}, e[1]...), chain...)
			ip.NextHeader = layers.IPProtocol(e[0][0])
		}
		if len(chain) > 0 {
			list = append(list, gopacket.Payload(chain))
			headers += len(chain)
		}
	}
	if transport != nil {
		list = append(list, transport(network))
	}
	list = append(list, gopacket.Payload(f.payload))
	buf := gopacket.NewSerializeBuffer()
	must(gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, list...))
	packet := buf.Bytes()
	if f.badIP && f.src.Is4() {
		packet[10] ^= 0x55
	}
	if f.badL4 && sumAt > 0 {
		packet[headers+sumAt] ^= 0x55
	}
	return append(f.link(nil, etherType), packet...)
}

// link appends the Ethernet header and the VLAN tags to b.
func (f *frame) link(b []byte, etherType uint16) []byte {
	b = append(append(b, f.dstMAC[:]...), f.srcMAC[:]...)
	for i, tag := range f.vlans {
		tpid := uint16(wire.EtherTypeVLAN)
		if i == 0 && len(f.vlans) > 1 {
			tpid = wire.EtherTypeQinQ
		}
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, tpid), tag)
	}
	return binary.BigEndian.AppendUint16(b, etherType)
}

func addrPort(s string) netip.AddrPort {
	a, err := netip.ParseAddrPort(s)
	must(err)
	return a
}

func addr(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	must(err)
	return a
}

func must(err error) {
	if err != nil {
		panic("pipelinetest: " + err.Error())
	}
}
