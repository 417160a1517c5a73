package wire_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	gvisor "gvisor.dev/gvisor/pkg/tcpip/checksum"

	"penstock/internal/wire"
)

// naive is RFC 1071 word by word.
func naive(b []byte, initial uint32) uint16 {
	sum := uint64(initial)
	for i, c := range b {
		if i%2 == 0 {
			sum += uint64(c) << 8
		} else {
			sum += uint64(c)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func TestChecksumRFC1071(t *testing.T) {
	// The example of RFC 1071 section 3.
	b := []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}
	if s := wire.Sum(b, 0); s != 0xddf2 {
		t.Errorf("sum %#x, want 0xddf2", s)
	}
	if c := wire.Checksum(b, 0); c != 0x220d {
		t.Errorf("checksum %#x, want 0x220d", c)
	}
}

func TestSumLengths(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	buf := make([]byte, 700)
	for _, fill := range []func() byte{
		func() byte { return byte(rng.Uint32()) },
		func() byte { return 0xff },
		func() byte { return 0 },
		func() byte { return 0xff * byte(rng.IntN(2)) },
	} {
		for i := range buf {
			buf[i] = fill()
		}
		for n := range len(buf) + 1 {
			for _, start := range []int{0, 1, 3} {
				b := buf[min(start, n):n]
				for _, initial := range []uint32{0, 1, 0xffff, 0x10000, 0xffffffff} {
					got, want := wire.Sum(b, initial), naive(b, initial)
					if got != uint32(want) {
						t.Fatalf("%d bytes, initial %#x: sum %#x, want %#x", len(b), initial, got, want)
					}
				}
				if got, want := uint16(wire.Sum(b, 0)), gvisor.Checksum(b, 0); got != want {
					t.Fatalf("%d bytes: sum %#x, gvisor %#x", len(b), got, want)
				}
			}
		}
	}
}

// TestPseudoHeader compares with the pseudo-header written out, as RFC 9293 and RFC 8200 draw it.
func TestPseudoHeader(t *testing.T) {
	for _, length := range []int{0, 20, 1480, 65535, 65536, 80000} {
		want := join(ip4A, ip4B, binary.BigEndian.AppendUint32(nil, uint32(length)), []byte{0, 6})
		if got := wire.Sum(nil, wire.PseudoHeader(ip4A, ip4B, 6, length)); got != uint32(naive(want, 0)) {
			t.Errorf("IPv4, length %d: %#x", length, got)
		}
		want = join(ip6A, ip6B, binary.BigEndian.AppendUint32(nil, uint32(length)), []byte{0, 0, 0, 58})
		if got := wire.Sum(nil, wire.PseudoHeader(ip6A, ip6B, 58, length)); got != uint32(naive(want, 0)) {
			t.Errorf("IPv6, length %d: %#x", length, got)
		}
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint32(0), 0)
	f.Add([]byte{0xff, 0xff, 0xff}, uint32(0xffff), 2)
	f.Add(make([]byte, 131), uint32(1), 66)
	f.Fuzz(func(t *testing.T, b []byte, initial uint32, split int) {
		want := uint32(naive(b, initial))
		if got := wire.Sum(b, initial); got != want {
			t.Fatalf("sum %#x, want %#x", got, want)
		}
		if split >= 0 && split <= len(b) {
			if got := wire.Sum(b[split&^1:], wire.Sum(b[:split&^1], initial)); got != want {
				t.Fatalf("sum in two parts %#x, want %#x", got, want)
			}
		}
		if got := wire.Checksum(b, initial); got != ^uint16(want) {
			t.Fatalf("checksum %#x, want %#x", got, ^uint16(want))
		}
	})
}

// FuzzUpdateChecksum: changing a word at any offset and updating is the same as computing anew.
func FuzzUpdateChecksum(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, 1, uint32(0xdeadbeef))
	f.Add([]byte{0xff, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff}, 4, uint32(0))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 1}, 3, uint32(0xffffffff))
	f.Fuzz(func(t *testing.T, b []byte, off int, v uint32) {
		if off < 0 || off+4 > len(b) {
			return
		}
		sum := wire.Checksum(b, 6) // a pseudo-header is never zero
		old := binary.BigEndian.Uint32(b[off:])

		b2 := append([]byte{}, b...)
		binary.BigEndian.PutUint32(b2[off:], v)
		want32 := wire.Checksum(b2, 6)
		b3 := append([]byte{}, b...)
		binary.BigEndian.PutUint16(b3[off:], uint16(v))
		want16 := wire.Checksum(b3, 6)

		got32, got16 := wire.UpdateChecksum32(sum, old, v), wire.UpdateChecksum16(sum, uint16(old>>16), uint16(v))
		if off%2 == 1 {
			got32, got16 = wire.UpdateChecksum32Odd(sum, old, v), wire.UpdateChecksum16Odd(sum, uint16(old>>16), uint16(v))
		}
		if got32 != want32 || got16 != want16 {
			t.Fatalf("offset %d, %#x to %#x: updated %#x and %#x, computed %#x and %#x", off, old, v, got32, got16, want32, want16)
		}
	})
}

func TestUpdateChecksum(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	pick := func() uint32 {
		switch rng.IntN(4) {
		case 0:
			return 0
		case 1:
			return 0xffffffff
		case 2:
			return 0xffff0000 >> (16 * rng.IntN(2))
		}
		return rng.Uint32()
	}
	b := make([]byte, 16)
	for range 200000 {
		binary.BigEndian.PutUint32(b, pick())
		binary.BigEndian.PutUint32(b[4:], pick())
		off := rng.IntN(12)
		v := pick()
		sum := wire.Checksum(b, 6)
		old := binary.BigEndian.Uint32(b[off:])
		binary.BigEndian.PutUint32(b[off:], v)
		want := wire.Checksum(b, 6)
		got := wire.UpdateChecksum32(sum, old, v)
		if off%2 == 1 {
			got = wire.UpdateChecksum32Odd(sum, old, v)
		}
		if got != want {
			t.Fatalf("offset %d, %#x to %#x: updated %#x, computed %#x", off, old, v, got, want)
		}
	}
	// The example of RFC 1624 section 4: the checksum becomes 0, not 0xffff.
	if got := wire.UpdateChecksum16(0xdd2f, 0x5555, 0x3285); got != 0 {
		t.Errorf("RFC 1624 example: %#x, want 0", got)
	}
	if wire.UDPChecksum(0) != 0xffff || wire.UDPChecksum(1) != 1 || wire.UDPChecksum(0xffff) != 0xffff {
		t.Error("UDPChecksum")
	}
}

// TestVerify: gopacket computed the sums. Any changed bit of header or payload is noticed.
func TestVerify(t *testing.T) {
	for _, name := range []string{"tcp4", "tcp4 options", "ipv4 options", "tcp6", "udp4", "udp6", "echo4", "echo6", "qinq", "error4", "error6"} {
		frame := samples(t)[name]
		var h wire.Headers
		h.Parse(frame)
		if !wire.VerifyL4(frame, &h) {
			t.Errorf("%s: wrong L4 checksum", name)
		}
		if h.IPVersion == 4 && !wire.VerifyIPv4(frame[h.L3:]) {
			t.Errorf("%s: wrong IPv4 checksum", name)
		}
		for i := int(h.L4); i < int(h.End); i++ {
			bad := patched(frame, i, frame[i]^0x10)
			var hb wire.Headers
			if hb.Parse(bad) == wire.FaultNone && hb.Proto == h.Proto && wire.VerifyL4(bad, &hb) {
				t.Errorf("%s: byte %d changed and nobody noticed", name, i)
			}
			if !wire.FillL4(bad, &h) || !wire.VerifyL4(bad, &h) {
				if h.Proto != wire.ProtoUDP { // its length may have become another one
					t.Errorf("%s: FillL4 after changing byte %d does not verify", name, i)
				}
			}
		}
		again := append([]byte{}, frame...)
		if !wire.FillL4(again, &h) || string(again) != string(frame) {
			t.Errorf("%s: FillL4 changed a right checksum", name)
		}
	}
}

func TestVerifySpecial(t *testing.T) {
	parse := func(frame []byte) (h wire.Headers) {
		if f := h.Parse(frame); f != wire.FaultNone {
			t.Fatalf("fault %v", f)
		}
		return h
	}
	frame := patched(udp4(t, "hello"), 40, 0, 0)
	if h := parse(frame); !wire.VerifyL4(frame, &h) {
		t.Error("UDP over IPv4 without a checksum is wrong")
	}
	frame = patched(udp6(t, "hello"), 60, 0, 0)
	if h := parse(frame); wire.VerifyL4(frame, &h) {
		t.Error("UDP over IPv6 without a checksum is right")
	}
	// A datagram whose sum comes out as 0 is sent with 0xffff.
	frame = udp4(t, "\x00\x00")
	h := parse(frame)
	binary.BigEndian.PutUint16(frame[h.Payload:], wire.UDP(frame[h.L4:]).Checksum()) // makes the sum 0xffff, the checksum 0
	if !wire.FillL4(frame, &h) || wire.UDP(frame[h.L4:]).Checksum() != 0xffff || !wire.VerifyL4(frame, &h) {
		t.Errorf("UDP checksum that comes out as 0: sent as %#x", wire.UDP(frame[h.L4:]).Checksum())
	}
	// Bytes behind the datagram but inside the IP packet do not count.
	frame = patched(udp4(t, "hello!"), 38, 0, 13)
	h = parse(frame)
	if !wire.FillL4(frame, &h) || !wire.VerifyL4(patched(frame, 47, 'x'), &h) {
		t.Error("a byte behind the UDP datagram counts")
	}
	// A length that was changed after Parse is not followed.
	for _, n := range []byte{0, 7, 15} {
		if bad := patched(frame, 39, n); wire.FillL4(bad, &h) || wire.VerifyL4(bad, &h) {
			t.Errorf("a UDP length of %d verifies", n)
		}
	}
	// Ethernet padding does not count.
	frame = join(tcp4(t, "x")[:55], []byte{1, 2, 3, 4, 5})
	if h := parse(frame); !wire.VerifyL4(frame, &h) {
		t.Error("padding counts")
	}
	frame = fragment4(tcp4(t, "0123456789ab0123"), 0, 24, true)
	if h := parse(frame); wire.VerifyL4(frame, &h) || wire.FillL4(frame, &h) {
		t.Error("a fragment verifies")
	}
	if wire.VerifyIPv4(frame[14:33]) || wire.VerifyIPv4(patched(frame[14:], 0, 0x41)) {
		t.Error("a cut IPv4 header verifies")
	}
	if wire.VerifyIPv4([]byte{0x41, 0, 0xbe, 0xff}) { // sums up right, but 4 bytes are no header
		t.Error("an IPv4 header of 4 bytes verifies")
	}
	if !wire.VerifyIPv4(frame[14:]) || wire.VerifyIPv4(patched(frame[14:], 8, 63)) {
		t.Error("IPv4 header checksum")
	}
}
