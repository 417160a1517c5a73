package wire_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"penstock/internal/wire"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestFlowStrings(t *testing.T) {
	for _, r := range []struct {
		flow                   wire.Flow
		client, server, string string
	}{
		{wire.MakeFlow(6, ap("10.0.0.1:1234"), ap("10.0.0.2:80")), "10.0.0.1:1234", "10.0.0.2:80", "tcp 10.0.0.1:1234 > 10.0.0.2:80"},
		{wire.MakeFlow(17, ap("[fd00::1]:1"), ap("[2001:db8::2]:65535")), "[fd00::1]:1", "[2001:db8::2]:65535", "udp [fd00::1]:1 > [2001:db8::2]:65535"},
		{wire.MakeFlow(47, ap("10.0.0.1:0"), ap("10.0.0.2:0")), "10.0.0.1:0", "10.0.0.2:0", "ip-proto-47 10.0.0.1:0 > 10.0.0.2:0"},
		{wire.MakeFlow(1, ap("[::ffff:10.0.0.1]:0"), ap("10.0.0.2:0")), "10.0.0.1:0", "10.0.0.2:0", "icmp 10.0.0.1:0 > 10.0.0.2:0"},
	} {
		if c, s, all := r.flow.Client(), r.flow.Server(), r.flow.String(); c != r.client || s != r.server || all != r.string {
			t.Errorf("got %q, %q, %q", c, s, all)
		}
	}
	// A v4-mapped address in an IPv6 header is an IPv6 address, and another flow than the IPv4 one.
	v4 := wire.MakeFlow(6, ap("10.0.0.1:1"), ap("10.0.0.2:2"))
	v6 := v4
	v6.V6 = true
	if v4 == v6 || v6.Client() != "[::ffff:10.0.0.1]:1" {
		t.Errorf("v4-mapped in IPv6: %v", v6)
	}
	tagged := v4
	tagged.VLAN = [2]uint16{20, 10}
	if s := tagged.String(); s != "tcp 10.0.0.1:1 > 10.0.0.2:2 vlan 20.10" {
		t.Errorf("tagged: %q", s)
	}
}

// TestFlowMatchesMakeFlow: what is read from a packet is what the addresses say.
func TestFlowMatchesMakeFlow(t *testing.T) {
	for name, want := range map[string]wire.Flow{
		"tcp4":   wire.MakeFlow(6, ap("10.0.0.1:1234"), ap("10.0.0.2:80")),
		"tcp6":   wire.MakeFlow(6, ap("[fd00::1]:1234"), ap("[fd00::2]:80")),
		"error4": wire.MakeFlow(1, ap("10.0.0.2:0"), ap("10.0.0.1:0")),
	} {
		frame := samples(t)[name]
		var h wire.Headers
		h.Parse(frame)
		f, ok := h.Flow(frame)
		if !ok || f != want {
			t.Errorf("%s: %v, want %v", name, f, want)
		}
		// Memory that held another flow holds nothing of it afterwards.
		old := wire.MakeFlow(58, ap("[1111:2222:3333:4444:5555:6666:7777:8888]:9"), ap("[9999:aaaa:bbbb:cccc:dddd:eeee:ffff:1]:9"))
		old.VLAN = [2]uint16{1, 2}
		if !h.ReadFlow(frame, &old) || old != want {
			t.Errorf("%s into used memory: %v, want %v", name, old, want)
		}
	}
}

// TestFlowHash: the values were computed from the definition by a program in another language. The XDP program has to
// give the same ones.
func TestFlowHash(t *testing.T) {
	for _, r := range []struct {
		proto    uint8
		src, dst string
		hash     uint32
	}{
		{6, "10.0.0.1:1234", "10.0.0.2:80", 0x0b5779b4},
		{17, "192.168.1.7:5353", "8.8.8.8:53", 0x38f53f0f},
		{1, "10.0.0.1:77", "10.0.0.2:77", 0xe203e608},
		{6, "[fd00::1]:1234", "[fd00::2]:80", 0x0b5779b4},
		{6, "[2001:db8:1:2:3:4:5:6]:65535", "[2001:db8:ffff::1]:443", 0xecec7775},
		{58, "[fe80::1]:0", "[ff02::1]:0", 0xdf7d53f8},
		{6, "0.0.0.0:0", "0.0.0.0:0", 0x5ceb4d08},
	} {
		f := wire.MakeFlow(r.proto, ap(r.src), ap(r.dst))
		if h := f.Hash(); h != r.hash {
			t.Errorf("%v: %#08x, want %#08x", f, h, r.hash)
		}
		f.VLAN = [2]uint16{5, 6}
		if h := f.Hash(); h != r.hash {
			t.Errorf("%v: %#08x, want %#08x", f, h, r.hash)
		}
	}
}

// TestFlowHashSpreads: the clients of one server, as test beds and NATs number them, fall evenly on few workers.
func TestFlowHashSpreads(t *testing.T) {
	for _, workers := range []uint32{2, 3, 4, 8} {
		const flows = 40000
		count := make([]int, workers)
		for i := range flows {
			src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i % 16), byte(i / 16 % 50)}), uint16(32768+i/800*2))
			count[wire.MakeFlow(6, src, ap("10.1.0.1:80")).Hash()%workers]++
		}
		for w, n := range count {
			if want := flows / int(workers); n < want*9/10 || n > want*11/10 {
				t.Errorf("%d workers: worker %d has %d flows, want about %d", workers, w, n, want)
			}
		}
	}
}

func TestFlowDirections(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		var f wire.Flow
		// Few values, so that equal addresses and ports come up.
		f.Src[rng.IntN(16)] = byte(rng.IntN(2))
		f.Dst[rng.IntN(16)] = byte(rng.IntN(2))
		f.SrcPort, f.DstPort = uint16(rng.IntN(3)), uint16(rng.IntN(3))
		f.Proto, f.V6 = 6, rng.IntN(2) == 0
		f.VLAN[0] = uint16(rng.IntN(3))
		checkFlow(t, f)
	}
	same := wire.MakeFlow(6, ap("127.0.0.1:80"), ap("127.0.0.1:80"))
	if c, reversed := same.Canonical(); reversed || c != same {
		t.Errorf("a flow that is its own reverse: %v, %v", c, reversed)
	}
	lower := wire.MakeFlow(6, ap("9.255.255.255:65535"), ap("10.0.0.0:1"))
	if c, reversed := lower.Reverse().Canonical(); !reversed || c != lower {
		t.Errorf("the lower address is not first: %v", c)
	}
}
