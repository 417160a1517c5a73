package rewrite_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"penstock/internal/rewrite"
	"penstock/internal/rewrite/rewritetest"
	"penstock/internal/wire"
)

// fragments4 cuts an IPv4 packet of an untagged Ethernet frame into pieces of at most size bytes, a multiple of 8.
func fragments4(frame []byte, size int) (out [][]byte) {
	const l4 = 34
	data := frame[l4 : 14+wire.IPv4(frame[14:]).TotalLen()]
	for off := 0; off < len(data); off += size {
		piece := data[off:min(off+size, len(data))]
		f := join(frame[:l4], piece)
		field := uint16(off / 8)
		if off+size < len(data) {
			field |= 0x2000
		}
		binary.BigEndian.PutUint16(f[20:], field)
		ip := wire.IPv4(f[14:])
		ip.SetTotalLen(20 + len(piece))
		ip.FillChecksum()
		out = append(out, f)
	}
	return out
}

// fragments6 is fragments4 for IPv6.
func fragments6(frame []byte, size int) (out [][]byte) {
	const l4 = 54
	data := frame[l4 : l4+wire.IPv6(frame[14:]).PayloadLen()]
	for off := 0; off < len(data); off += size {
		piece := data[off:min(off+size, len(data))]
		field := uint16(off)
		if off+size < len(data) {
			field |= 1
		}
		f := join(frame[:l4], []byte{frame[20], 0, byte(field >> 8), byte(field), 0, 0, 0, 9}, piece)
		f[20] = wire.ProtoFragment
		wire.IPv6(f[14:]).SetPayloadLen(8 + len(piece))
		out = append(out, f)
	}
	return out
}

// reassemble puts fragments together again.
func reassemble(frames [][]byte) []byte {
	first := bytes.Clone(frames[0])
	if first[14]>>4 == 4 {
		for _, f := range frames[1:] {
			first = append(first, f[34:]...)
		}
		ip := wire.IPv4(first[14:])
		ip.SetTotalLen(len(first) - 14)
		binary.BigEndian.PutUint16(ip[6:], 0)
		ip.FillChecksum()
		return first
	}
	first[20] = first[54]
	first = append(first[:54], first[62:]...)
	for _, f := range frames[1:] {
		first = append(first, f[62:]...)
	}
	wire.IPv6(first[14:]).SetPayloadLen(len(first) - 54)
	return first
}

// TestFragments: the pieces of a packet, changed one by one, are the pieces of the changed packet.
func TestFragments(t *testing.T) {
	long := string(bytes.Repeat([]byte("0123456789abc"), 30))
	link := both(macs, ttl1)
	for _, c := range []struct {
		name string
		in   packet
		rule rewrite.Rule
	}{
		{"tcp4 nat and splice", packet{opts: join(nops(2), ts(1, 2)), payload: long}, both(link, both(splice, nat4))},
		{"tcp6 nat and splice", packet{v6: true, opts: join(nops(2), ts(1, 2)), payload: long}, both(link, both(splice, nat6))},
		{"udp4", packet{proto: 17, l4: join([]byte{0x9c, 0x40, 0, 53, 1, 0x8e, 0, 0}, []byte(long))}, both(link, nat4)},
		{"udp6", packet{v6: true, proto: 17, l4: join([]byte{0x9c, 0x40, 0, 53, 1, 0x8e, 0, 0}, []byte(long))}, both(link, nat6)},
		{"udp4 without checksum", packet{proto: 17, noSum: true, l4: join([]byte{0x9c, 0x40, 0, 53, 1, 0x8e, 0, 0}, []byte(long))}, both(link, nat4)},
		{"echo4", packet{proto: 1, l4: join(echoSeg, []byte(long))}, both(link, only(nat4, rewrite.SetSrc|rewrite.SetDst))},
		{"echo6", packet{v6: true, proto: 58, l4: join(echo6Seg, []byte(long))}, both(link, only(nat6, rewrite.SetSrc|rewrite.SetDst))},
	} {
		for _, size := range []int{48, 64, 128} {
			whole := c.in.bytes()
			cut := fragments4
			if c.in.v6 {
				cut = fragments6
			}
			pieces := cut(whole, size)
			if len(pieces) < 3 || !bytes.Equal(reassemble(pieces), whole) {
				t.Fatalf("%s: the test cuts badly", c.name)
			}
			for i, f := range pieces {
				h := parse(t, f)
				if why := c.rule.Apply(f, h); why != rewrite.SlowFragment {
					t.Errorf("%s, piece %d: Apply: %v", c.name, i, why)
				}
				if why := c.rule.ApplySlow(f, h); why != rewrite.Done {
					t.Errorf("%s, piece %d: %v", c.name, i, why)
				}
				if h.IPVersion == 4 && !wire.VerifyIPv4(f[14:]) {
					t.Errorf("%s, piece %d: wrong IPv4 checksum", c.name, i)
				}
			}
			if why := c.rule.Apply(whole, parse(t, whole)); why != rewrite.Done {
				t.Fatalf("%s: %v", c.name, why)
			}
			if got := reassemble(pieces); !bytes.Equal(got, whole) {
				t.Errorf("%s in pieces of %d:\n got %x\nwant %x", c.name, size, got, whole)
			}
		}
	}
}

// TestIPOptionsSlow: a packet with IP options or extension headers is the one without, and they are not touched.
func TestIPOptionsSlow(t *testing.T) {
	plain := packet{opts: join(nops(2), ts(1, 2)), window: 77, payload: "hello"}
	ext := func(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }
	for _, c := range []struct {
		v6    bool
		first uint8
		opts  []byte
	}{
		{false, 0, []byte{0x94, 4, 0, 0}}, // router alert
		{false, 0, make([]byte, 40)},
		{true, wire.ProtoHopByHop, ext(6)},
		{true, wire.ProtoDestOpts, ext(6)},
		{true, wire.ProtoHopByHop, join(ext(60), ext(6))},
		{true, wire.ProtoFragment, []byte{6, 0, 0, 0, 0, 0, 0, 5}}, // atomic
		{true, wire.ProtoRouting, []byte{6, 0, 4, 0, 0, 0, 0, 0}},
	} {
		rule := both(both(splice, nat4), ttl1)
		if c.v6 {
			rule = both(both(splice, nat6), ttl1)
		}
		p := plain
		p.v6 = c.v6
		want := p.bytes()
		p.first, p.ipOpts = c.first, c.opts
		got := p.bytes()
		h := parse(t, got)
		if why := rule.Apply(got, h); why != rewrite.SlowIPOptions {
			t.Errorf("%x: Apply: %v", c.opts, why)
		}
		if why := rule.ApplySlow(got, h); why != rewrite.Done {
			t.Errorf("%x: %v", c.opts, why)
		}
		w := parse(t, want)
		if why := rule.Apply(want, w); why != rewrite.Done {
			t.Fatal(why)
		}
		if !bytes.Equal(got[h.L4:], want[w.L4:]) {
			t.Errorf("%x: transport\n got %x\nwant %x", c.opts, got[h.L4:], want[w.L4:])
		}
		optsAt := h.L4 - int32(len(c.opts))
		if !bytes.Equal(got[optsAt:h.L4], c.opts) {
			t.Errorf("%x became %x", c.opts, got[optsAt:h.L4])
		}
		if !wire.VerifyL4(got, h) || !c.v6 && !wire.VerifyIPv4(got[14:]) {
			t.Errorf("%x: wrong checksums", c.opts)
		}
	}
	routed := packet{v6: true, first: 43, ipOpts: []byte{6, 0, 4, 1, 0, 0, 0, 0}}.bytes()
	if why := splice.ApplySlow(routed, parse(t, routed)); why != rewrite.SlowNoTransport {
		t.Errorf("a packet that is source-routed elsewhere: %v", why)
	}
}

// TestOddOptionsSlow: what a receiver reads in a list that Apply leaves alone is changed, and nothing else is.
func TestOddOptionsSlow(t *testing.T) {
	nine := []byte{8, 9, 0, 0, 0, 0, 0, 0, 0}
	for _, c := range []struct {
		name, in, out string
		why           rewrite.Result
	}{
		{"two timestamps", string(join(ts(tsv0, tse0), ts(1, 0))), string(join(ts(0x11213141, 0x5060707e), ts(0x01010102, 0))), rewrite.SlowOddOptions},
		{"two sacks", string(join(sack(1, 2), sack(3, 4))), string(join(sack(0xfeedf00e, 0xfeedf00f), sack(0xfeedf010, 0xfeedf011))), rewrite.SlowOddOptions},
		{"before a bad length", string(join(ts(tsv0, tse0), []byte{3, 1, 8, 10})), string(join(ts(0x11213141, 0x5060707e), []byte{3, 1, 8, 10})), rewrite.SlowOddOptions},
		{"before one cut off", string(join(ts(tsv0, tse0), []byte{5, 10, 0, 0})), string(join(ts(0x11213141, 0x5060707e), []byte{5, 10, 0, 0})), rewrite.SlowOddOptions},
		{"nothing behind a bad length", string(join([]byte{3, 0}, ts(tsv0, tse0))), string(join([]byte{3, 0}, ts(tsv0, tse0))), rewrite.SlowOddOptions},
		{"nothing behind the end", string(join([]byte{77, 2, 77, 2}, bytes.Repeat([]byte{77, 2}, 14), []byte{0, 0})), string(join(bytes.Repeat([]byte{77, 2}, 16), []byte{0, 0})), rewrite.SlowTooManyOptions},
		{"not of 9 bytes", string(join(nine, ts(tsv0, tse0))), string(join(nine, ts(0x11213141, 0x5060707e))), rewrite.SlowOddOptions},
		{"sack of 9 bytes", string(join([]byte{5}, nine[1:], ts(tsv0, tse0))), string(join([]byte{5}, nine[1:], ts(0x11213141, 0x5060707e))), rewrite.SlowOddOptions},
		{"behind 20 NOPs", string(join(nops(20), ts(tsv0, tse0))), string(join(nops(20), ts(0x11213141, 0x5060707e))), rewrite.SlowTooManyOptions},
		{"behind 21 NOPs", string(join(nops(21), sack(1, 2))), string(join(nops(21), sack(0xfeedf00e, 0xfeedf00f))), rewrite.SlowTooManyOptions},
	} {
		frame := packet{opts: padded([]byte(c.in)), payload: "hello"}.bytes()
		h := parse(t, frame)
		if why := splice.Apply(frame, h); why != c.why {
			t.Errorf("%s: Apply: %v", c.name, why)
		}
		if why := splice.ApplySlow(frame, h); why != rewrite.Done {
			t.Errorf("%s: %v", c.name, why)
		}
		if got, want := wire.TCP(frame[h.L4:]).Options(), padded([]byte(c.out)); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", c.name, got, want)
		}
		if !wire.VerifyL4(frame, h) {
			t.Errorf("%s: wrong checksum", c.name)
		}
	}
}

// TestQuoted: an error that comes back from behind the translation quotes what was sent into it.
func TestQuoted(t *testing.T) {
	n := rounds(50)
	g := rewritetest.New(3)
	var quotes, whole, options, slow int
	for i := range n {
		sent := bytes.Clone(g.Frame())
		var h wire.Headers
		if h.Parse(sent); !h.HasL4 {
			continue
		}
		r := g.Rule(&h)
		r.Flags &^= rewrite.SetVLAN | rewrite.ShiftWindow
		var f wire.Flow
		h.ReadFlow(sent, &f)
		if !invertible(sent, &h, &r) {
			continue
		}
		seen := bytes.Clone(sent)
		after := h
		if r.ApplySlow(seen, &after) != rewrite.Done {
			continue
		}
		failed := bytes.Clone(g.Error(h.IPVersion, seen[h.L3:h.End]))
		was := bytes.Clone(failed)
		var eh, q wire.Headers
		eh.Parse(failed)
		outer, inner := g.Rule(&eh), r.Inverse(&f)
		why := outer.ApplyQuoted(failed, &eh, &inner)
		fail := func(what string) {
			t.Helper()
			t.Fatalf("packet %d, %v: %s, rule %+v\nsent  %x\nseen  %x\nquote %x\nback  %x", i, why, what, r, sent, seen, was, failed)
		}
		if why != rewrite.Done {
			if !bytes.Equal(failed, was) {
				fail("written to what was left alone")
			}
			slow++
			continue
		}
		quotes++
		if !eh.QuotedHeaders(failed, &q) {
			fail("no quote any more")
		}
		if got, _ := q.Flow(failed); got.Src != f.Src || got.Dst != f.Dst || got.SrcPort != f.SrcPort || got.DstPort != f.DstPort {
			fail("another flow is quoted: " + got.String())
		}
		// All that is quoted is as it was sent, but for the TTL and what the checksum of a cut header cannot say.
		want := bytes.Clone(sent[h.L3:h.End])
		got := failed[q.L3:eh.End]
		want = want[:min(len(want), len(got))]
		if r.Flags&rewrite.DecTTL != 0 {
			var wh wire.Headers
			p := join(sent[:h.L3], want)
			wh.Parse(sent)
			p[ttlOf(&wh)]--
			if wh.IPVersion == 4 {
				by := wrongBy4(sent, &wh)
				ip := wire.IPv4(p[h.L3:])
				ip.FillChecksum()
				ip.SetChecksum(uint16((uint32(ip.Checksum()) + uint32(by)) % 0xffff))
			}
			want = p[h.L3:]
		}
		header := int(after.Payload - after.L3)
		if complete := len(got) >= header; complete {
			whole++
			if h.Proto == wire.ProtoTCP && header > int(h.L4-h.L3)+20 {
				options++
			}
			if !bytes.Equal(got[:len(want)], want) {
				fail("another packet is quoted")
			}
		} else if n := int(h.L4-h.L3) + 8; !bytes.Equal(got[:n-2], want[:n-2]) && h.Proto == wire.ProtoTCP {
			fail("another beginning is quoted")
		}
		var weh wire.Headers
		weh.Parse(was)
		if wrongByL4(failed, &eh) != wrongByL4(was, &weh) || eh.IPVersion == 4 && wrongBy4(failed, &eh) != wrongBy4(was, &weh) {
			fail("checksum of the error")
		}
		if outer.Flags&rewrite.SetDst != 0 {
			if of, _ := eh.Flow(failed); of.Dst != outer.Dst {
				fail("destination of the error")
			}
		}
	}
	t.Logf("%d quotes, %d of whole headers, %d of those with options; %d left alone", quotes, whole, options, slow)
	if quotes < n/10 || whole < n/20 || options < n/50 || slow < n/50 {
		t.Error("too few")
	}
}

func ttlOf(h *wire.Headers) int32 {
	if h.IPVersion == 4 {
		return h.L3 + 8
	}
	return h.L3 + 7
}

// TestQuotedTable: what is left alone, and the quotes of each length.
func TestQuotedTable(t *testing.T) {
	inner := both(splice, nat4)
	error4 := func(quote []byte) packet {
		return packet{proto: wire.ProtoICMP, l4: join([]byte{3, 4, 0, 0, 0, 0, 5, 0}, quote)}
	}
	ip := func(p packet) []byte { return p.bytes()[14:] }
	whole := packet{opts: join(nops(2), ts(tsv0, tse0)), payload: "hello"}
	for _, c := range []struct {
		name  string
		in    packet
		outer rewrite.Rule
		inner rewrite.Rule
		want  rewrite.Result
	}{
		{"whole", error4(ip(whole)), nat4, inner, rewrite.Done},
		{"echo", packet{proto: 1, l4: echoSeg}, nat4, inner, rewrite.SlowNoQuote},
		{"tcp", packet{}, nat4, inner, rewrite.SlowNoQuote},
		{"7 bytes quoted", error4(ip(whole)[:27]), nat4, inner, rewrite.SlowNoQuote},
		{"8 bytes quoted", error4(ip(whole)[:28]), nat4, inner, rewrite.Done},
		{"error in fragments", packet{proto: 1, frag: 0x2000, l4: join([]byte{3, 4, 0, 0, 0, 0, 5, 0}, ip(whole)[:32])}, nat4, inner, rewrite.SlowNoQuote},
		{"outer ttl", packet{ttl: 1, proto: 1, l4: error4(ip(whole)).l4}, ttl1, inner, rewrite.SlowTTL},
		{"outer tags", error4(ip(whole)), vlanRule(1), inner, rewrite.SlowVLANCount},
		{"outer family", error4(ip(whole)), nat6, inner, rewrite.SlowFamily},
		{"inner family", error4(ip(whole)), nat4, nat6, rewrite.SlowFamily},
		{"a quoted syn", error4(ip(packet{flags: wire.FlagSYN})), nat4, inner, rewrite.SlowSYN},
		{"a quoted syn, addresses only", error4(ip(packet{flags: wire.FlagSYN})), nat4, nat4, rewrite.Done},
		{"a quoted syn, cut behind the flags", error4(ip(packet{flags: wire.FlagSYN})[:34]), nat4, inner, rewrite.SlowSYN},
		{"a quoted syn of which the flags are missing", error4(ip(packet{flags: wire.FlagSYN})[:33]), nat4, inner, rewrite.Done},
		{"quoted udp", error4(ip(packet{proto: 17, l4: udpSeg})), nat4, nat4, rewrite.Done},
		{"quoted udp, tcp fields", error4(ip(packet{proto: 17, l4: udpSeg})), nat4, inner, rewrite.SlowNotTCP},
		{"quoted echo", error4(ip(packet{proto: 1, l4: echoSeg})), nat4, only(nat4, rewrite.SetDst), rewrite.Done},
		{"quoted echo, ports", error4(ip(packet{proto: 1, l4: echoSeg})), nat4, nat4, rewrite.SlowNoPorts},
		{"quoted error", error4(ip(error4(ip(whole)))), nat4, only(nat4, rewrite.SetDst), rewrite.SlowICMP},
		{"nothing to change in the quote", error4(ip(whole)), nat4, rewrite.Rule{}, rewrite.Done},
		{"the window alone is nothing", error4(ip(packet{proto: 17, l4: udpSeg})), nat4, only(splice, rewrite.ShiftWindow), rewrite.Done},
		{"nothing to change at all", error4(ip(whole)), rewrite.Rule{}, rewrite.Rule{}, rewrite.Done},
	} {
		frame := c.in.bytes()
		was, h := bytes.Clone(frame), parse(t, frame)
		if got := c.outer.ApplyQuoted(frame, h, &c.inner); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		} else if got != rewrite.Done && !bytes.Equal(frame, was) {
			t.Errorf("%s: written to", c.name)
		} else if got == rewrite.Done && (!wire.VerifyL4(frame, h) || !wire.VerifyIPv4(frame[14:])) {
			t.Errorf("%s: wrong checksums", c.name)
		}
	}

	// Each length of a quote: what is there is changed, as it would be in the whole packet.
	for _, p := range []packet{whole, {payload: "hello"}} {
		quote := ip(p)
		changed := p.bytes()
		noWindow := inner
		noWindow.Flags &^= rewrite.ShiftWindow
		if noWindow.Apply(changed, parse(t, changed)) != rewrite.Done {
			t.Fatal("the packet itself goes the slow way")
		}
		for n := 28; n <= len(quote); n++ {
			frame := error4(quote[:n]).bytes()
			h := parse(t, frame)
			if why := new(rewrite.Rule).ApplyQuoted(frame, h, &inner); why != rewrite.Done {
				t.Fatalf("%d bytes: %v", n, why)
			}
			got, want := bytes.Clone(frame[14+20+8:]), bytes.Clone(changed[14:14+n])
			if n < 20+14 { // no flags: whether the acknowledgment number counts is not known
				copy(want[20+8:], quote[20+8:n])
			}
			if n == 20+17 { // half a checksum is not changed
				want[20+16] = quote[20+16]
			}
			if n > 20+17 && n < 20+20+len(p.opts) && len(p.opts) > 0 { // the checksum of options that are not all there cannot be verified
				clear(got[20+16 : 20+18])
				clear(want[20+16 : 20+18])
				got, want = got[:min(n, 40)], want[:min(n, 40)] // nor can an option be read that is cut
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes:\n got %x\nwant %x", n, got, want)
			}
			if !wire.VerifyL4(frame, h) {
				t.Errorf("%d bytes: wrong checksum", n)
			}
		}
	}
}
