package bpf

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"penstock/internal/wire"
)

// The parser in user space is the model of the one in XDP: what one of them takes for a flow, for malformed, or for nothing to steer
// by, the other does too. Packets that user space cannot make out must not reach it under a flow's name, and the reverse.

// modelRig sends everything that parses to a chain.
func modelRig(t testing.TB) *rig {
	return newRig(t, func(o *Options) { o.Rules, o.Midstream, o.MaxFlows = all, MidstreamInspect, 8192 })
}

// compare puts one packet through both. It reports whether it was a flow.
func (r *rig) compare(packet []byte) bool {
	r.t.Helper()
	var h wire.Headers
	fault := h.Parse(packet)
	if hasAH(packet, &h) {
		return false // XDP looks behind AH, user space does not
	}
	o := r.run(0, packet)
	malformed := o.reason >= Reason(steerReasonREASON_TRUNCATED)
	fail := func(want string) {
		r.t.Helper()
		r.t.Fatalf("the program says %s, %s; the model %s (fault %s)\n%s\n%x", o.verdict, o.reason, want, fault, wire.Summary(packet), packet)
	}
	if malformed != (fault != wire.FaultNone) {
		fail("differs")
	}
	if malformed {
		return false
	}
	reason := o.reason.String()
	switch {
	case h.TooManyVLANs():
		if reason != "vlan_depth" {
			fail("vlan_depth")
		}
	case h.IPVersion == 0:
		if reason != "not_ip" {
			fail("not_ip")
		}
	case h.Frag == wire.FragLater:
		if reason != "fragment_unknown" && reason != "fragment_known" {
			fail("a later fragment")
		}
	case h.Proto == ProtoICMP && h.IPVersion == 4 && isError4(packet[h.L4]), h.Proto == ProtoICMPv6 && h.IPVersion == 6 && packet[h.L4] >= 1 && packet[h.L4] <= 4:
		quoted, ok := h.QuotedFlow(packet)
		if reason != "icmp_error" && reason != "icmp_error_unknown" {
			fail("an ICMP error")
		}
		if ok {
			raw := keyOf(quoted).raw()
			v, err := r.flow(&raw)
			if err != nil {
				r.t.Fatal(err)
			}
			if (v != nil) != (reason == "icmp_error") {
				fail("an error about " + quoted.String())
			}
		}
	case reason == "icmp_neighbor":
		if h.Proto != ProtoICMPv6 || h.IPVersion != 6 {
			fail("no neighbour discovery")
		}
	default:
		if o.verdict != VerdictSocket {
			fail("a flow")
		}
		want := FlowKey{Proto: h.Proto}
		if f, ok := h.Flow(packet); ok {
			want = keyOf(f)
		} else if h.IPVersion == 4 {
			want.Src, want.Dst = addr(packet[h.L3+12:h.L3+16]), addr(packet[h.L3+16:h.L3+20])
		} else {
			want.Src, want.Dst = addr(packet[h.L3+8:h.L3+24]), addr(packet[h.L3+24:h.L3+40])
		}
		want.VLAN = [2]uint16{h.VLAN[0] & 0xfff, h.VLAN[1] & 0xfff}
		raw := want.raw()
		v, err := r.flow(&raw)
		if err != nil {
			r.t.Fatal(err)
		}
		if v == nil || o.hash != FlowHash(want) {
			fail("another flow")
		}
		if f, ok := h.Flow(packet); ok && f.Hash() != o.hash {
			fail("another hash")
		}
		return true
	}
	return false
}

func isError4(kind byte) bool {
	return kind == 3 || kind == 4 || kind == 5 || kind == 11 || kind == 12
}

func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func keyOf(f wire.Flow) FlowKey {
	src, dst := f.SrcAddr(), f.DstAddr()
	return FlowKey{Src: src.Addr(), Dst: dst.Addr(), SrcPort: f.SrcPort, DstPort: f.DstPort, Proto: f.Proto, VLAN: f.VLAN}
}

// hasAH: somewhere among the headers, the quoted ones included, may be an authentication header.
func hasAH(packet []byte, h *wire.Headers) bool {
	if h.IPVersion == 6 && h.Proto == wire.ProtoAH {
		return true
	}
	var q wire.Headers
	if h.HasL4 && h.Proto == wire.ProtoICMPv6 {
		if at := int(h.L4) + 8; at+40 <= len(packet) {
			q.ParseIP(packet[at:])
			return q.IPVersion == 6 && q.Proto == wire.ProtoAH
		}
	}
	return false
}

// corpus is a packet of each kind.
func corpus(t testing.TB) [][]byte {
	v4 := eth(layers.EthernetTypeIPv4)
	tagged, options := ip4(isTCP), ip4(isTCP)
	options.Options = []layers.IPv4Option{{OptionType: 1, OptionLength: 1}}
	ns := ip6(layers.IPProtocolICMPv6)
	solicit := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, 0)}
	_ = solicit.SetNetworkLayerForChecksum(ns)
	return [][]byte{
		tcp4(t, "S", 20), tcp4(t, "PA", 100), tcp4Reply(t, "SA", 0), tcp6(t, "S", 20), udp4(t, 30),
		build(t, eth(layers.EthernetTypeDot1Q), vlan(5, layers.EthernetTypeDot1Q), vlan(6, layers.EthernetTypeIPv4), tagged, tcp(tagged, "S"), payload(9)),
		build(t, v4, options, tcp(options, "S"), payload(9)),
		build(t, v4, ip4(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 77}, payload(8)),
		build(t, v4, ip4(47), payload(20)),
		build(t, eth(layers.EthernetTypeARP), payload(46)),
		build(t, eth(layers.EthernetTypeIPv6), ns, solicit, payload(24)),
		chain6(t, hop), chain6(t, dstOpts, routing, dstOpts), chain6(t, hop, dstOpts, dstOpts, dstOpts, dstOpts, dstOpts, dstOpts, dstOpts),
		frag4(t, 1, 0, true, isUDP, datagram(64)), frag4(t, 1, 32, false, isUDP, make([]byte, 40)), frag4(t, 2, 0, true, isTCP, segment(2)),
		fragment6(t, 1, 0, true, isUDP, datagram(64)), fragment6(t, 1, 32, false, isUDP, make([]byte, 40)), fragment6(t, 2, 0, false, isTCP, segment(2)),
		icmpError4(t, 3, tcp4(t, "S", 20), 8), icmpError4(t, 11, udp4(t, 30), -1),
		icmpError6(t, 1, tcp6(t, "S", 20), 8), icmpError6(t, 2, chain6(t, hop, dstOpts), -1), icmpError6(t, 3, fragment6(t, 1, 0, true, isUDP, datagram(64)), -1),
	}
}

// mutate returns a copy of a packet with a few things wrong in it.
func mutate(rnd *rand.Rand, packet []byte) []byte {
	p := append([]byte(nil), packet...)
	for range rnd.IntN(4) {
		at := 12 + rnd.IntN(len(p)-12)
		if rnd.IntN(2) == 0 {
			at = 12 + rnd.IntN(min(len(p)-12, 60)) // where the headers are
		}
		switch rnd.IntN(5) {
		case 0:
			p[at] ^= 1 << rnd.IntN(8)
		case 1:
			p[at] = byte(rnd.Uint32())
		case 2:
			p[at] = []byte{0, 1, 4, 5, 6, 17, 43, 44, 50, 58, 59, 60, 0x40, 0x45, 0x60, 0x81, 0x86, 0x88, 0xdd, 0xff}[rnd.IntN(20)]
		case 3:
			p = p[:max(14, len(p)-rnd.IntN(30))]
		case 4:
			p = append(p, make([]byte, rnd.IntN(10))...)
		}
	}
	// Half of the time the IP length is what it should be.
	if rnd.IntN(2) == 0 && len(p) >= 54 {
		switch binary.BigEndian.Uint16(p[12:]) {
		case 0x0800:
			binary.BigEndian.PutUint16(p[16:], uint16(len(p)-14))
		case 0x86dd:
			binary.BigEndian.PutUint16(p[18:], uint16(len(p)-54))
		}
	}
	return p
}

func TestSameAsUserSpace(t *testing.T) {
	n := 5000
	if testing.Short() {
		n = 1000
	}
	r := modelRig(t)
	seeds := corpus(t)
	for _, packet := range seeds {
		r.compare(packet)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	flows := 0
	for i := range n {
		if i%2000 == 1999 {
			r.forget()
		}
		if r.compare(mutate(rnd, seeds[rnd.IntN(len(seeds))])) {
			flows++
		}
	}
	t.Logf("%d of %d mutated packets were flows", flows, n)
	if flows < n/10 || flows > n*9/10 {
		t.Errorf("%d of %d packets were flows: the mutations show little", flows, n)
	}
}

func FuzzSteer(f *testing.F) {
	for _, packet := range corpus(f) {
		f.Add(packet)
	}
	r := modelRig(f)
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) < 14 || len(packet) > 3000 { // what the kernel hands to XDP, and to a test run
			return
		}
		r.t = t
		if len(r.counts()) > 0 && r.full() {
			r.forget()
		}
		r.compare(packet)
	})
}

// full reports whether the flow table is about to be.
func (r *rig) full() bool {
	n := 0
	if err := r.Flows(func(FlowEntry) bool { n++; return n < 8000 }); err != nil {
		r.t.Fatal(err)
	}
	return n >= 8000
}
