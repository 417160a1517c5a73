package bpf

import (
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// frag4 is a fragment over IPv4; offset in bytes.
func frag4(t testing.TB, id uint16, offset int, more bool, proto layers.IPProtocol, body []byte) []byte {
	ip := ip4(proto)
	ip.Id, ip.FragOffset = id, uint16(offset/8)
	if more {
		ip.Flags = layers.IPv4MoreFragments
	}
	return build(t, eth(layers.EthernetTypeIPv4), ip, gopacket.Payload(body))
}

// fragment6 is one over IPv6.
func fragment6(t testing.TB, id uint32, offset int, more bool, next layers.IPProtocol, body []byte) []byte {
	return build(t, eth(layers.EthernetTypeIPv6), ip6(layers.IPProtocolIPv6Fragment), frag6(next, id, offset, more), gopacket.Payload(body))
}

// datagram is a UDP header that promises n bytes of payload, with the first 24 of them.
func datagram(n int) []byte {
	b := append([]byte{0x9c, 0x40, 0, 53, byte((n + 8) >> 8), byte(n + 8), 0, 0}, make([]byte, 24)...)
	return b
}

// segment is the first 32 bytes of a TCP segment with the given flags.
func segment(flags byte) []byte {
	b := make([]byte, 32)
	copy(b, []byte{0x9c, 0x40, 0, 80})
	b[12], b[13] = 0x50, flags
	return b
}

func TestFragments(t *testing.T) {
	tail := make([]byte, 40)
	type step struct {
		packet []byte
		want   fate
	}
	var (
		newFlow = toSocket
		follow  = fate{VerdictSocket, "fragment_known"}
		unknown = fate{VerdictPeer, "fragment_unknown"}
		tiny    = fate{VerdictPeer, "tiny_fragment"}
		length  = fate{VerdictPeer, "ip_length"}
	)
	tagged := func(p []byte, id byte) []byte {
		return append(append(append([]byte(nil), p[:12]...), 0x81, 0, 0, id), p[12:]...)
	}
	toChain := []Rule{{From: -1, Action: ToChain, Chain: 7}}
	rigs := map[Midstream]*rig{}
	for _, c := range []struct {
		name  string
		rules []Rule
		mid   Midstream
		steps []step
	}{
		{"UDP over IPv4", toChain, 0, []step{
			{frag4(t, 1, 0, true, isUDP, datagram(64)), newFlow},
			{frag4(t, 1, 32, false, isUDP, tail), follow},
			{frag4(t, 2, 0, true, isUDP, datagram(64)), fate{VerdictSocket, "flow_known"}},
			{frag4(t, 2, 32, true, isUDP, tail), follow},
			{frag4(t, 2, 72, false, isUDP, tail), follow},
		}},
		{"UDP over IPv6", toChain, 0, []step{
			{fragment6(t, 1, 0, true, isUDP, datagram(64)), newFlow},
			{fragment6(t, 1, 32, false, isUDP, tail), follow},
			{fragment6(t, 1, 32, false, dstOpts, tail), follow}, // RFC 8200: only the first one's next header counts
			{fragment6(t, 0x10001, 32, false, isUDP, tail), unknown},
		}},
		{"TCP over IPv4", toChain, 0, []step{
			{frag4(t, 1, 0, true, isTCP, segment(0x02)), newFlow},
			{frag4(t, 1, 32, false, isTCP, tail), follow},
		}},
		{"echo", toChain, 0, []step{
			{frag4(t, 1, 0, true, layers.IPProtocolICMPv4, []byte{8, 0, 0, 0, 0, 77, 0, 1}), newFlow},
			{frag4(t, 1, 8, false, layers.IPProtocolICMPv4, tail), follow},
		}},
		{"later one first", toChain, 0, []step{
			{frag4(t, 1, 32, false, isUDP, tail), unknown},
			{frag4(t, 1, 0, true, isUDP, datagram(64)), newFlow},
			{frag4(t, 1, 32, false, isUDP, tail), follow},
		}},
		{"another datagram", toChain, 0, []step{
			{frag4(t, 1, 0, true, isUDP, datagram(64)), newFlow},
			{frag4(t, 2, 32, false, isUDP, tail), unknown},
			{frag4(t, 1, 32, false, isTCP, tail), unknown}, // RFC 791: the protocol counts
			{tagged(frag4(t, 1, 32, false, isUDP, tail), 5), unknown},
			{changed(frag4(t, 1, 32, false, isUDP, tail), 29, 9), unknown}, // source
			{changed(frag4(t, 1, 32, false, isUDP, tail), 33, 9), unknown}, // destination
		}},
		{"in a VLAN", toChain, 0, []step{
			{tagged(frag4(t, 1, 0, true, isUDP, datagram(64)), 5), newFlow},
			{tagged(frag4(t, 1, 32, false, isUDP, tail), 5), follow},
			{tagged(frag4(t, 1, 32, false, isUDP, tail), 6), unknown},
			{frag4(t, 1, 32, false, isUDP, tail), unknown},
		}},
		{"no rule", nil, 0, []step{
			{frag4(t, 1, 0, true, isUDP, datagram(64)), fate{VerdictPeer, "no_rule"}},
			{frag4(t, 1, 32, false, isUDP, tail), fate{VerdictPeer, "fragment_known"}},
		}},
		{"bypass", []Rule{{From: -1, Action: Bypass}}, 0, []step{
			{frag4(t, 1, 0, true, isUDP, datagram(64)), fate{VerdictPeer, "rule_bypass"}},
			{frag4(t, 1, 32, false, isUDP, tail), fate{VerdictPeer, "fragment_known"}},
		}},
		{"drop", []Rule{{From: -1, Action: Drop}}, 0, []step{
			{frag4(t, 1, 0, true, isUDP, datagram(64)), fate{VerdictDrop, "rule_drop"}},
			{frag4(t, 1, 32, false, isUDP, tail), fate{VerdictDrop, "fragment_known"}},
		}},
		{"midstream bypass", toChain, MidstreamBypass, []step{
			{frag4(t, 1, 0, true, isTCP, segment(0x10)), fate{VerdictPeer, "midstream"}},
			{frag4(t, 1, 32, false, isTCP, tail), fate{VerdictPeer, "fragment_known"}},
		}},
		{"midstream drop", toChain, MidstreamDrop, []step{
			{frag4(t, 1, 0, true, isTCP, segment(0x10)), fate{VerdictDrop, "midstream"}},
			{frag4(t, 1, 32, false, isTCP, tail), fate{VerdictDrop, "fragment_known"}},
		}},
		{"identifier used again by another flow", []Rule{{From: -1, Proto: ProtoUDP, DstPorts: []PortRange{{53, 53}}}}, 0, []step{
			{frag4(t, 1, 0, true, isUDP, datagram(64)), newFlow},
			{frag4(t, 1, 0, true, isUDP, append([]byte{0x9c, 0x40, 0, 99}, datagram(64)[4:]...)), fate{VerdictPeer, "no_rule"}},
			{frag4(t, 1, 32, false, isUDP, tail), fate{VerdictPeer, "fragment_known"}},
		}},
		{"tiny", toChain, 0, []step{
			{frag4(t, 1, 0, true, isTCP, segment(0x02)[:16]), tiny},                              // flags, but no whole header
			{frag4(t, 1, 8, false, isTCP, tail), tiny},                                           // overwrites the flags
			{fragment6(t, 1, 8, false, isTCP, tail), tiny},                                       //
			{frag4(t, 1, 0, true, isTCP, changed(segment(0x02)[:24], 12, 0x80)), tiny},           // options in the next one
			{fragment6(t, 1, 0, true, isTCP, segment(0x02)[:16]), tiny},                          //
			{fragment6(t, 1, 0, true, dstOpts, append([]byte{6, 3}, make([]byte, 22)...)), tiny}, // RFC 7112: header chain not complete
			{frag4(t, 1, 8, false, isUDP, tail), unknown},                                        // harmless in UDP
		}},
		{"impossible lengths", toChain, 0, []step{
			{frag4(t, 1, 0, true, isUDP, datagram(64)[:31]), length},  // not the last, not a multiple of 8
			{frag4(t, 1, 32, true, isUDP, tail[:39]), length},         //
			{frag4(t, 1, 32, false, isUDP, nil), length},              // empty
			{frag4(t, 1, 65528, false, isUDP, tail[:8]), length},      // ends beyond 64 KiB
			{fragment6(t, 1, 65528, false, isUDP, tail[:8]), length},  //
			{fragment6(t, 1, 32, true, isUDP, tail[:39]), length},     //
			{fragment6(t, 1, 32, false, isUDP, nil), length},          //
			{fragment6(t, 1, 65528, false, isUDP, tail[:7]), unknown}, // just fits
			{frag4(t, 1, 65504, false, isUDP, tail[:11]), unknown},    //
			{frag4(t, 1, 65504, false, isUDP, tail[:12]), length},     //
		}},
	} {
		if rigs[c.mid] == nil {
			rigs[c.mid] = newRig(t, func(o *Options) { o.Midstream = c.mid })
		}
		t.Run(c.name, func(t *testing.T) {
			r := rigs[c.mid]
			r.t = t
			r.forget()
			if err := r.SetRules(c.rules); err != nil {
				t.Fatal(err)
			}
			var first outcome
			for i, s := range c.steps {
				o := r.run(0, s.packet)
				if o.fate() != s.want {
					t.Fatalf("step %d: got %v, want %v", i+1, o.fate(), s.want)
				}
				if s.want == newFlow {
					first = o
				}
				if s.want == follow && (o.chain != first.chain || o.hash != first.hash) {
					t.Errorf("step %d: chain %d, hash %#x; want those of the first fragment, %d, %#x", i+1, o.chain, o.hash, first.chain, first.hash)
				}
			}
			if len(r.entries()) > 2 {
				t.Errorf("%d entries, want those of one flow", len(r.entries()))
			}
		})
	}
}

// An identifier comes again after some time: what was remembered under it is not followed for ever.
func TestFragmentsAreForgotten(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	r.run(0, frag4(t, 1, 0, true, isUDP, datagram(64)))
	var k steerFragmentKey
	var v steerFragment
	it := r.frags.Iterate()
	if !it.Next(&k, &v) {
		t.Fatal("nothing remembered")
	}
	for age, want := range map[uint64]fate{29: {VerdictSocket, "fragment_known"}, 31: {VerdictPeer, "fragment_unknown"}} {
		v.Seen = uint64(Now()) - age*1e9
		if err := r.frags.Put(&k, &v); err != nil {
			t.Fatal(err)
		}
		if got := r.run(0, frag4(t, 1, 32, false, isUDP, make([]byte, 8))).fate(); got != want {
			t.Errorf("after %d s: got %v, want %v", age, got, want)
		}
	}
}

// A flood of first fragments evicts old ones and nothing else.
func TestFragmentFlood(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	r.run(0, frag4(t, 1, 0, true, isUDP, datagram(64)))
	for id := range uint32(20000) {
		r.raw(0, fragment6(t, id, 0, true, isUDP, datagram(64)))
	}
	if got := r.run(0, fragment6(t, 19999, 32, false, isUDP, make([]byte, 8))).fate(); got != (fate{VerdictSocket, "fragment_known"}) {
		t.Errorf("the newest: got %v", got)
	}
	// Which ones the kernel evicts is roughly known only: each CPU keeps its own
	// latest (kernel/bpf/bpf_lru_list.c).
	evicted := 0
	for id := range uint32(1000) {
		if r.run(0, fragment6(t, id, 32, false, isUDP, make([]byte, 8))).fate() == (fate{VerdictPeer, "fragment_unknown"}) {
			evicted++
		}
	}
	if evicted < 500 {
		t.Errorf("%d of the 1000 oldest are evicted, want nearly all", evicted)
	}
}
