package rewrite_test

import (
	"bytes"
	"encoding/binary"
	"flag"
	"net/netip"
	"testing"

	"penstock/internal/rewrite"
	"penstock/internal/rewrite/rewritetest"
	"penstock/internal/wire"
)

var packets = flag.Int("packets", 200_000, "how many random packets TestDifferential looks at; other tests take fewer in proportion")

// rounds is how many random packets a test looks at that takes percent of -packets.
func rounds(percent int) int {
	n := *packets * percent / 100
	if testing.Short() {
		n /= 10
	}
	return n
}

// TestDifferential compares Apply with the simple translation on random packets, and makes sure that each result is
// met, often.
func TestDifferential(t *testing.T) {
	n := rounds(100)
	var met [rewrite.NumResults]int
	g := rewritetest.New(1)
	was := make([]byte, 0, 4096)
	for i := range n {
		frame := g.Frame()
		var h wire.Headers
		h.Parse(frame)
		r := g.Rule(&h)
		want, wantWhy := rewritetest.Translate(frame, &h, &r)
		was = append(was[:0], frame...)
		why := r.Apply(frame, &h)
		met[why]++
		if why != wantWhy || !bytes.Equal(frame, want) {
			t.Fatalf("packet %d, %s, rule %+v\nwas  %x\ngot  %x %v\nwant %x %v", i, wire.Summary(was), r, was, frame, why, want, wantWhy)
		}
	}
	for i, times := range met {
		switch why := rewrite.Result(i); why {
		case rewrite.SlowNoEthernet, rewrite.SlowNoQuote: // not of such frames
		default:
			if times < n/1000 {
				t.Errorf("%v: met %d times in %d packets", why, times, n)
			}
		}
	}
}

// TestProperties: what must hold for every packet and rule, whatever the rule does in detail.
func TestProperties(t *testing.T) {
	n := rounds(50)
	g := rewritetest.New(2)
	was := make([]byte, 0, 4096)
	var slowToo, inverted, wrong int
	for i := range n {
		frame := g.Frame()
		was = append(was[:0], frame...)
		var before, h, s wire.Headers
		h.Parse(frame)
		before, s = h, h
		r := g.Rule(&h)
		slow := bytes.Clone(frame)
		slowWhy := r.ApplySlow(slow, &s)
		why := r.Apply(frame, &h)
		fail := func(what string) {
			t.Helper()
			t.Fatalf("packet %d, %s, rule %+v, %v: %s\nwas  %x\nnow  %x\nslow %x %v", i, wire.Summary(was), r, why, what, was, frame, slow, slowWhy)
		}
		if slowWhy != rewrite.Done && (!bytes.Equal(slow, was) || s != before) {
			fail("the slow way wrote to what it left alone")
		}
		if why != rewrite.Done {
			if !bytes.Equal(frame, was) || h != before {
				fail("written to what was left alone")
			}
			switch why {
			case rewrite.SlowFragment, rewrite.SlowIPOptions, rewrite.SlowOddOptions, rewrite.SlowTooManyOptions:
			default:
				if slowWhy != why {
					fail("the slow way sees another reason")
				}
				continue
			}
			if slowWhy != rewrite.Done {
				continue
			}
			slowToo++
			copy(frame, slow)
			h = s
		} else if slowWhy != rewrite.Done || !bytes.Equal(frame, slow) || s != h {
			fail("the slow way does something else")
		}

		var again wire.Headers
		if again.Parse(frame); again != h {
			fail("the headers do not describe the new frame")
		}
		if !bytes.Equal(frame[h.Payload:], was[h.Payload:]) && h.HasL4 {
			fail("the payload was written to")
		}
		if h.IPVersion == 4 && wrongBy4(frame, &h) != wrongBy4(was, &before) {
			fail("IPv4 checksum")
		}
		if h.HasL4 && h.Frag == wire.FragNone {
			if wire.VerifyL4(frame, &h) != wire.VerifyL4(was, &before) || wrongByL4(frame, &h) != wrongByL4(was, &before) {
				fail("transport checksum")
			}
			if !wire.VerifyL4(frame, &h) {
				wrong++
			}
		}
		var f wire.Flow
		if before.HasL4 && before.Frag == wire.FragNone && why == rewrite.Done && invertible(was, &before, &r) {
			before.ReadFlow(was, &f)
			back := r.Inverse(&f)
			if back.Apply(frame, &h) != rewrite.Done {
				fail("no way back")
			}
			keep := r.Flags &^ back.Flags // what the inverse does not know
			if keep&rewrite.SetDstMAC != 0 {
				copy(frame[0:6], was[0:6])
			}
			if keep&rewrite.SetSrcMAC != 0 {
				copy(frame[6:12], was[6:12])
			}
			if keep&rewrite.DecTTL != 0 {
				undoTTL(frame, &h)
			}
			if !bytes.Equal(frame, was) {
				fail("the inverse does not bring the packet back")
			}
			inverted++
		}
	}
	t.Logf("of %d packets %d went the slow way only, %d back again, %d had wrong checksums", n, slowToo, inverted, wrong)
	if slowToo < n/50 || inverted < n/4 || wrong < n/50 {
		t.Errorf("too few")
	}
}

// undoTTL increments the TTL again, as somebody would who knows nothing of incremental checksums.
func undoTTL(frame []byte, h *wire.Headers) {
	if h.IPVersion == 6 {
		frame[h.L3+7]++
		return
	}
	ip := wire.IPv4(frame[h.L3:])
	wrong := wrongBy4(frame, h)
	ip.SetTTL(ip.TTL() + 1)
	ip.FillChecksum()
	ip.SetChecksum(uint16((uint32(ip.Checksum()) + uint32(wrong)) % 0xffff))
}

// wrongBy4 is the difference between the stored IPv4 checksum and the right one, modulo 0xffff.
func wrongBy4(frame []byte, h *wire.Headers) uint16 {
	header := bytes.Clone(frame[h.L3 : h.L3+int32(wire.IPv4(frame[h.L3:]).HeaderLen())])
	stored := wire.IPv4(header).Checksum()
	wire.IPv4(header).FillChecksum()
	return uint16((uint32(stored) + 0xffff - uint32(wire.IPv4(header).Checksum())) % 0xffff)
}

// wrongByL4 is the same for the transport checksum; a UDP packet without one is not wrong.
func wrongByL4(frame []byte, h *wire.Headers) uint16 {
	field := sumField(h)
	stored := binary.BigEndian.Uint16(frame[field:])
	if h.Proto == wire.ProtoUDP && stored == 0 {
		return 0
	}
	right := bytes.Clone(frame)
	wire.FillL4(right, h)
	return uint16((uint32(stored) + 0xffff - uint32(binary.BigEndian.Uint16(right[field:]))) % 0xffff)
}

// sumField is the offset of the transport checksum.
func sumField(h *wire.Headers) int32 {
	switch h.Proto {
	case wire.ProtoTCP:
		return h.L4 + 16
	case wire.ProtoUDP:
		return h.L4 + 6
	}
	return h.L4 + 2
}

func mapped(a []byte) bool { return netip.AddrFrom16([16]byte(a)).Is4In6() }

// invertible reports whether nothing is lost that Inverse promises to bring back.
func invertible(frame []byte, h *wire.Headers, r *rewrite.Rule) bool {
	if h.IPVersion == 4 && wire.IPv4(frame[h.L3:]).Checksum() == 0xffff {
		return false // comes back as 0, which means the same
	}
	if sum := frame[sumField(h):][:2]; h.Proto != wire.ProtoUDP && sum[0] == 0xff && sum[1] == 0xff {
		return false
	}
	if ip := frame[h.L3:]; h.IPVersion == 6 && (mapped(ip[8:24]) || mapped(ip[24:40])) {
		return false // to a rule it would be an IPv4 address
	}
	if h.Proto != wire.ProtoTCP {
		return true
	}
	tcp := wire.TCP(frame[h.L4:h.Payload])
	if by := r.WindowShift; r.Flags&rewrite.ShiftWindow != 0 {
		w := uint32(tcp.Window())
		switch {
		case by < -14 || by > 14:
			return false
		case by > 0 && w<<by > 0xffff, by < 0 && w>>-by<<-by != w:
			return false
		}
	}
	for it := tcp.OptionIter(); it.Next(); {
		if _, ecr, ok := it.Timestamps(); ok && ecr+r.TSEcr == 0 {
			return false
		}
	}
	return true
}
