package wire

import (
	"fmt"
	"net/netip"
	"strings"
)

// Summary returns one line about an Ethernet frame, in the manner of tcpdump -nn -S:
//
//	IP 10.0.0.1.1234 > 10.0.0.2.80: Flags [S], seq 1, win 64240, length 0
//
// VLAN tags come first ("vlan 10: "), a fault last ("[truncated_tcp]"). It allocates: for tests, captures and people.
func Summary(frame []byte) string {
	var h Headers
	h.Parse(frame)
	var b strings.Builder
	for _, tci := range h.VLAN[:h.VLANs] {
		fmt.Fprintf(&b, "vlan %d: ", tci&vlanIDMask)
	}
	summarize(&b, frame, &h)
	return b.String()
}

// SummaryIP is Summary for an IP packet without a link header.
func SummaryIP(packet []byte) string {
	var h Headers
	h.ParseIP(packet)
	var b strings.Builder
	summarize(&b, packet, &h)
	return b.String()
}

func summarize(b *strings.Builder, frame []byte, h *Headers) {
	if h.IPVersion == 0 {
		if h.Fault != FaultNone {
			fmt.Fprintf(b, "[%v], length %d", h.Fault, len(frame))
			return
		}
		if h.EtherType < 0x600 {
			fmt.Fprintf(b, "802.3, length %d", h.EtherType)
			return
		}
		if arp := frame[h.L3:]; h.EtherType == EtherTypeARP && len(arp) >= arpLen && [6]byte(arp) == arpEthernetIPv4 {
			summarizeARP(b, arp)
			return
		}
		fmt.Fprintf(b, "ethertype 0x%04x, length %d", h.EtherType, int(h.End-h.L3))
		return
	}
	src, dst, name := addresses(frame, h)
	if !h.HasL4 {
		fmt.Fprintf(b, "%s %v > %v: ", name, src, dst)
		if h.Fault != FaultNone {
			fmt.Fprintf(b, "%s [%v]", ProtoName(h.Proto), h.Fault)
			return
		}
		if h.Frag == FragLater {
			b.WriteString(fragment(frame, h))
			return
		}
		fmt.Fprintf(b, "%s, length %d", ProtoName(h.Proto), int(h.End-h.Payload))
		return
	}
	l4 := frame[h.L4:h.End]
	switch h.Proto {
	case ProtoTCP:
		t := TCP(l4)
		fmt.Fprintf(b, "%s %v.%d > %v.%d: ", name, src, t.SrcPort(), dst, t.DstPort())
		summarizeTCP(b, t)
	case ProtoUDP:
		u := UDP(l4)
		fmt.Fprintf(b, "%s %v.%d > %v.%d: UDP, length %d", name, src, u.SrcPort(), dst, u.DstPort(), u.Len()-UDPLen)
	default:
		fmt.Fprintf(b, "%s %v > %v: ", name, src, dst)
		summarizeICMP(b, frame, h)
	}
	if h.Frag == FragFirst {
		b.WriteString(", ")
		b.WriteString(fragment(frame, h))
	}
}

// arpEthernetIPv4 is how an ARP message about IPv4 over Ethernet begins (RFC 826).
var arpEthernetIPv4 = [6]byte{0, 1, 8, 0, 6, 4}

const arpLen = 28

func summarizeARP(b *strings.Builder, arp []byte) {
	sender, target := netip.AddrFrom4([4]byte(arp[14:])), netip.AddrFrom4([4]byte(arp[24:]))
	switch op := uint16(arp[6])<<8 | uint16(arp[7]); op {
	case 1:
		fmt.Fprintf(b, "ARP, Request who-has %v tell %v, length %d", target, sender, len(arp))
	case 2:
		mac := arp[8:14]
		fmt.Fprintf(b, "ARP, Reply %v is-at %02x:%02x:%02x:%02x:%02x:%02x, length %d", sender, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], len(arp))
	default:
		fmt.Fprintf(b, "ARP, operation %d, length %d", op, len(arp))
	}
}

func addresses(frame []byte, h *Headers) (src, dst netip.Addr, name string) {
	if h.IPVersion == 4 {
		ip := IPv4(frame[h.L3:])
		return netip.AddrFrom4([4]byte(ip.Src())), netip.AddrFrom4([4]byte(ip.Dst())), "IP"
	}
	ip := IPv6(frame[h.L3:])
	return netip.AddrFrom16([16]byte(ip.Src())), netip.AddrFrom16([16]byte(ip.Dst())), "IP6"
}

// fragment describes what a fragment carries, without its offset where that takes walking the headers again.
func fragment(frame []byte, h *Headers) string {
	n := int(h.End - h.Payload)
	if h.Frag == FragFirst {
		return "first fragment"
	}
	if h.IPVersion == 4 {
		ip := IPv4(frame[h.L3:])
		return fmt.Sprintf("%s, fragment at %d, length %d", ProtoName(h.Proto), ip.FragmentOffset(), n)
	}
	return fmt.Sprintf("%s, later fragment, length %d", ProtoName(h.Proto), n)
}

// tcpFlagNames is in tcpdump's order.
var tcpFlagNames = [...]struct {
	flag TCPFlags
	name byte
}{
	{FlagFIN, 'F'}, {FlagSYN, 'S'}, {FlagRST, 'R'}, {FlagPSH, 'P'}, {FlagACK, '.'},
	{FlagURG, 'U'}, {FlagECE, 'E'}, {FlagCWR, 'W'}, {FlagAE, 'e'},
}

// String returns the flags as tcpdump shows them: "S.", "P.", "none".
func (f TCPFlags) String() string {
	var b []byte
	for _, n := range tcpFlagNames {
		if f.Has(n.flag) {
			b = append(b, n.name)
		}
	}
	if b == nil {
		return "none"
	}
	return string(b)
}

func summarizeTCP(b *strings.Builder, t TCP) {
	flags, length := t.Flags(), len(t.Payload())
	fmt.Fprintf(b, "Flags [%v]", flags)
	if length > 0 {
		fmt.Fprintf(b, ", seq %d:%d", t.Seq(), t.Seq()+uint32(length))
	} else if flags&(FlagSYN|FlagFIN|FlagRST) != 0 {
		fmt.Fprintf(b, ", seq %d", t.Seq())
	}
	if flags.Has(FlagACK) {
		fmt.Fprintf(b, ", ack %d", t.Ack())
	}
	fmt.Fprintf(b, ", win %d", t.Window())
	if flags.Has(FlagURG) {
		fmt.Fprintf(b, ", urg %d", t.Urgent())
	}
	if opts := t.Options(); len(opts) > 0 {
		b.WriteString(", options [")
		summarizeOptions(b, opts)
		b.WriteString("]")
	}
	fmt.Fprintf(b, ", length %d", length)
}

func summarizeOptions(b *strings.Builder, opts []byte) {
	it := IterTCPOptions(opts)
	sep := ""
	pad := func(upTo int) { // the iterator skips NOPs; show them like tcpdump does
		for ; upTo > 0; upTo-- {
			b.WriteString(sep + "nop")
			sep = ","
		}
	}
	end := 0
	for it.Next() {
		pad(it.Offset - end)
		end = it.Offset + 2 + len(it.Value)
		b.WriteString(sep)
		sep = ","
		if mss, ok := it.MSS(); ok {
			fmt.Fprintf(b, "mss %d", mss)
		} else if _, ok := it.WindowScale(); ok {
			fmt.Fprintf(b, "wscale %d", it.Value[0]) // as it stands there, not as it is to be taken
		} else if it.Kind == OptSACKPermitted {
			b.WriteString("sackOK")
		} else if val, ecr, ok := it.Timestamps(); ok {
			fmt.Fprintf(b, "TS val %d ecr %d", val, ecr)
		} else if n := it.SACKBlocks(); n > 0 {
			fmt.Fprintf(b, "sack %d ", n)
			for i := range n {
				left, right := it.SACKBlock(i)
				fmt.Fprintf(b, "{%d:%d}", left, right)
			}
		} else {
			fmt.Fprintf(b, "unknown-%d 0x%x", it.Kind, it.Value)
		}
	}
	for end < len(opts) && opts[end] == OptNop {
		pad(1)
		end++
	}
	if it.Malformed {
		b.WriteString(sep + "bad opt")
	} else if end < len(opts) {
		b.WriteString(sep + "eol")
	}
}

func summarizeICMP(b *strings.Builder, frame []byte, h *Headers) {
	m := ICMP(frame[h.L4:h.End])
	if h.Proto == ProtoICMP {
		b.WriteString("ICMP ")
	} else {
		b.WriteString("ICMP6, ")
	}
	length := len(m)
	if isEcho(h.Proto, m.Type()) {
		kind := "request"
		if m.Type() == ICMPEchoReply || m.Type() == ICMPv6EchoReply {
			kind = "reply"
		}
		fmt.Fprintf(b, "echo %s, id %d, seq %d, length %d", kind, m.ID(), m.Seq(), length)
		return
	}
	fmt.Fprintf(b, "type %d code %d", m.Type(), m.Code())
	if q, ok := h.QuotedFlow(frame); ok {
		fmt.Fprintf(b, " about %v", q)
	}
	fmt.Fprintf(b, ", length %d", length)
}
