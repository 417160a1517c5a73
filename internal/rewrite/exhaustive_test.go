package rewrite_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"penstock/internal/rewrite"
	"penstock/internal/rewrite/rewritetest"
	"penstock/internal/wire"
)

// same applies a rule to a copy of the frame in both ways and compares.
func same(t *testing.T, frame []byte, r *rewrite.Rule) {
	t.Helper()
	h := parse(t, frame)
	want, wantWhy := rewritetest.Translate(frame, h, r)
	got := bytes.Clone(frame)
	why := r.Apply(got, h)
	if why != wantWhy || !bytes.Equal(got, want) {
		t.Fatalf("rule %+v\nwas  %x\ngot  %x %v\nwant %x %v", *r, frame, got, why, want, wantWhy)
	}
}

// TestEveryUDPChecksum: the source port takes each value, and so does the checksum, before and after. What would be 0 is
// sent as 0xffff.
func TestEveryUDPChecksum(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r := only(nat4, rewrite.SetSrc|rewrite.SetDst|rewrite.SetDstPort)
		if v6 {
			r = only(nat6, r.Flags)
		}
		seg := bytes.Clone(udpSeg)
		ones := 0
		for port := range 1 << 16 {
			binary.BigEndian.PutUint16(seg, uint16(port))
			frame := packet{v6: v6, proto: wire.ProtoUDP, l4: seg}.bytes()
			h := parse(t, frame)
			if r.Apply(frame, h) != rewrite.Done || !wire.VerifyL4(frame, h) {
				t.Fatalf("port %d: %x", port, frame)
			}
			switch wire.UDP(frame[h.L4:]).Checksum() {
			case 0:
				t.Fatalf("port %d: the checksum became 0", port)
			case 0xffff:
				ones++
			}
		}
		if ones == 0 {
			t.Error("no checksum became 0xffff")
		}
	}
}

// TestEveryStoredChecksum: each value of a stored checksum, nearly all of them wrong.
func TestEveryStoredChecksum(t *testing.T) {
	rules := map[bool]rewrite.Rule{false: both(nat4, ttl1), true: both(nat6, ttl1)}
	for _, p := range []packet{
		{payload: "abc"}, {v6: true, payload: "abc"},
		{proto: wire.ProtoUDP, l4: udpSeg}, {v6: true, proto: wire.ProtoUDP, l4: udpSeg},
		{v6: true, proto: wire.ProtoICMPv6, l4: echo6Seg}, {proto: wire.ProtoICMP, l4: echoSeg},
	} {
		r := rules[p.v6]
		if p.proto == wire.ProtoICMP || p.proto == wire.ProtoICMPv6 {
			r.Flags &^= rewrite.SetSrcPort | rewrite.SetDstPort
		}
		unchanged := r // sets what is there already: no bit may change, in particular not between 0 and 0xffff
		unchanged.Flags &^= rewrite.DecTTL
		frame := p.bytes()
		h := parse(t, frame)
		f, _ := h.Flow(frame)
		unchanged.Src, unchanged.Dst, unchanged.SrcPort, unchanged.DstPort = f.Src, f.Dst, f.SrcPort, f.DstPort
		for sum := range 1 << 16 {
			binary.BigEndian.PutUint16(frame[sumField(h):], uint16(sum))
			if !p.v6 {
				wire.IPv4(frame[h.L3:]).SetChecksum(uint16(sum))
			}
			same(t, frame, &r)
			was := bytes.Clone(frame)
			if why := unchanged.Apply(frame, h); why != rewrite.Done || !bytes.Equal(frame, was) {
				t.Fatalf("%v: nothing to change:\nwas %x\nnow %x", why, was, frame)
			}
		}
	}
}

// TestEveryTTL: each TTL, with each of the identifications that make the header checksum run through its range.
func TestEveryTTL(t *testing.T) {
	for ttl := range 256 {
		for _, v6 := range []bool{false, true} {
			frame := packet{v6: v6}.bytes()
			h := parse(t, frame)
			at := h.L3 + 8
			if v6 {
				at = h.L3 + 7
			}
			frame[at] = byte(ttl)
			if !v6 {
				wire.IPv4(frame[h.L3:]).FillChecksum()
			}
			why := ttl1.Apply(frame, h)
			if slow := why == rewrite.SlowTTL; slow != (ttl < 2) || why != rewrite.Done && !slow {
				t.Errorf("ttl %d: %v", ttl, why)
			}
			if want := byte(max(ttl-1, ttl&1)); frame[at] != want {
				t.Errorf("ttl %d became %d", ttl, frame[at])
			}
			if !v6 && !wire.VerifyIPv4(frame[h.L3:]) {
				t.Errorf("ttl %d: wrong checksum", ttl)
			}
		}
	}
	frame := packet{}.bytes()
	h := parse(t, frame)
	for id := range 1 << 16 {
		ip := wire.IPv4(frame[h.L3:])
		ip.SetID(uint16(id))
		ip.SetTTL(64)
		ip.FillChecksum()
		ttl1.Apply(frame, h)
		sum := ip.Checksum()
		if ip.FillChecksum(); ip.Checksum() != sum || ip.TTL() != 63 {
			t.Fatalf("id %d: checksum %#x, computed anew %#x", id, sum, ip.Checksum())
		}
	}
}

// TestEveryWindow: each window with each shift that window scaling can bring about, in numbers that cannot overflow.
func TestEveryWindow(t *testing.T) {
	frame := packet{}.bytes()
	h := parse(t, frame)
	tcp := wire.TCP(frame[h.L4:])
	for _, by := range []int{-128, -17, -16, -15, -14, -13, -12, -11, -10, -9, -8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 127} {
		r := rewrite.Rule{Flags: rewrite.ShiftWindow, WindowShift: int8(by)}
		n := max(by, -by, 0)
		for w := range 1 << 16 {
			want := uint64(w)
			for range min(n, 20) {
				if by > 0 {
					want *= 2
				} else {
					want /= 2
				}
			}
			if want > 65535 {
				want = 65535
			}
			if w > 0 && want == 0 {
				want = 1
			}
			tcp.SetWindow(uint16(w))
			wire.FillL4(frame, h)
			r.Apply(frame, h)
			if uint64(tcp.Window()) != want || !wire.VerifyL4(frame, h) {
				t.Fatalf("%d shifted by %d: got %d, want %d", w, by, tcp.Window(), want)
			}
		}
	}
}

// TestEveryOffset: timestamps and SACK options of each size at each offset where they fit, in either order.
func TestEveryOffset(t *testing.T) {
	edges := []uint32{1, 0xffff0001, 0x7fffffff, 0xffffffff, 0, 0x80000000, 0x00ff00ff, 0xff00ff00}
	did := 0
	try := func(opts []byte) {
		if len(opts) > 40 {
			return
		}
		for _, v6 := range []bool{false, true} {
			for _, flags := range []wire.TCPFlags{wire.FlagACK, wire.FlagRST} {
				same(t, packet{v6: v6, flags: flags, opts: padded(opts), payload: "odd"}.bytes(), &splice)
				did++
			}
		}
	}
	for lead := range 40 {
		before := nops(lead % 8) // the rest of the way in one option, so as to stay below 16 steps
		if lead >= 8 {
			before = join(nops(lead%4), []byte{77, byte(lead - lead%4)}, make([]byte, lead-lead%4-2))
		}
		stamps := ts(tsv0, tse0)
		try(join(before, stamps))
		try(join(before, ts(tsv0, 0)))
		for blocks := range 5 {
			s := sack(edges[:2*blocks]...)
			for gap := range 4 {
				try(join(before, s))
				try(join(before, stamps, nops(gap), s))
				try(join(before, s, nops(gap), stamps))
			}
		}
	}
	if did < 2000 {
		t.Errorf("only %d lists", did)
	}
}

// TestEveryShortList: all option lists of 4 bytes, and all of 8 bytes, over the bytes that mean something.
func TestEveryShortList(t *testing.T) {
	rule := both(splice, nat4)
	frame := packet{opts: make([]byte, 8), payload: "xy"}.bytes()
	h := parse(t, frame)
	var met [rewrite.NumResults]int
	try := func(opts []byte) {
		copy(frame[h.L4+20:], opts)
		was := bytes.Clone(frame)
		want, wantWhy := rewritetest.Translate(frame, h, &rule)
		got := frame
		why := rule.Apply(got, h)
		met[why]++
		if why != wantWhy || !bytes.Equal(got, want) {
			t.Fatalf("list %x: got %v, want %v\n got %x\nwant %x", opts, why, wantWhy, got, want)
		}
		copy(frame, was)
	}
	var all func(opts, alphabet []byte, at int)
	all = func(opts, alphabet []byte, at int) {
		if at == len(opts) {
			try(opts)
			return
		}
		for _, b := range alphabet {
			opts[at] = b
			all(opts, alphabet, at+1)
		}
	}
	eight := []byte{0, 1, 2, 5, 8}
	if testing.Short() {
		eight = []byte{1, 2, 5}
	}
	all(make([]byte, 8), eight, 0)
	frame = packet{opts: make([]byte, 4), payload: "xy"}.bytes()
	h = parse(t, frame)
	all(make([]byte, 4), []byte{0, 1, 2, 3, 4, 5, 8, 10, 254, 255}, 0)
	if met[rewrite.Done] < 1000 || met[rewrite.SlowOddOptions] < 1000 {
		t.Errorf("met %v", met)
	}
}
