package stack_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/stack"
)

// offers is which options an end has.
type offers struct{ ts, sack, scale bool }

func (o offers) options(mss uint16, ts []byte) []byte {
	b := optMSS(mss)
	if o.sack {
		b = append(b, optSACK...)
	}
	if o.ts {
		b = append(b, ts...)
	}
	if o.scale {
		b = append(append(b, wire.OptNop), optScale...)
	}
	return b
}

func (o offers) and(p offers) offers {
	return offers{o.ts && p.ts, o.sack && p.sack, o.scale && p.scale}
}

// read returns what a SYN on a wire offers, and fails on options that nobody
// here has.
func read(t *testing.T, s segment) (o offers, mss uint16, tsval uint32) {
	t.Helper()
	it := s.tcp.OptionIter()
	for it.Next() {
		switch it.Kind {
		case wire.OptMSS:
			mss, _ = it.MSS()
		case wire.OptSACKPermitted:
			o.sack = true
		case wire.OptTimestamps:
			tsval, _, o.ts = it.Timestamps()
		case wire.OptWindowScale:
			o.scale = true
		default:
			t.Errorf("option %d in %s", it.Kind, wire.Summary(s.frame))
		}
	}
	return o, mss, tsval
}

// stamps returns the options of a data segment.
func stamps(o offers, val uint32, from segment) []byte {
	if !o.ts {
		return nil
	}
	it := from.tcp.OptionIter()
	for it.Next() {
		if v, _, ok := it.Timestamps(); ok {
			return join([]byte{wire.OptNop, wire.OptNop}, optTS(val, v))
		}
	}
	return nil
}

// TestOptionMatrix looks at the SYNs and SYN-ACKs on both wires: each end sees
// what the other one offers, and both connections have the same options.
func TestOptionMatrix(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	for i := range 64 {
		has := func(bit int) bool { return i>>bit&1 != 0 }
		cl, sv := offers{has(0), has(1), has(2)}, offers{has(3), has(4), has(5)}
		t.Run(fmt.Sprintf("client %v server %v", cl, sv), func(t *testing.T) {
			from, to := addr(client4, uint16(10000+i)), addr(server4, 80)
			if i%2 == 1 {
				from, to = addr(client6, uint16(10000+i)), addr(server6, 80)
			}
			c, s := b.players(from, to)
			c.template.ttl, c.template.tos = 57, 0x28|1
			s.template.ttl, s.template.tos = 49, 0x48|2
			unknown := []byte{wire.OptMPTCP, 4, 0, 1, wire.OptFastOpen, 2, wire.OptNop}
			c.send(wire.FlagSYN, 1000, 0, join(unknown, cl.options(1300, optTS(5, 0))), nil)
			syn := s.expect(wire.FlagSYN)
			if got, mss, _ := read(t, syn); got != cl || mss != 1300 {
				t.Errorf("SYN toward the server: got %v, MSS %d, want %v, MSS 1300", got, mss, cl)
			}
			hops(t, syn, 57, 0x28)
			c.silent("before the server has answered")

			both := cl.and(sv)
			s.send(wire.FlagSYN|wire.FlagACK, 7000, syn.tcp.Seq()+1, both.options(1200, optTS(9, 5)), nil)
			synack := c.expect(wire.FlagSYN | wire.FlagACK)
			if got, mss, _ := read(t, synack); got != both || mss != 1200 {
				t.Errorf("SYN-ACK toward the client: got %v, MSS %d, want %v, MSS 1200", got, mss, both)
			}
			if synack.tcp.Ack() != 1001 {
				t.Errorf("SYN-ACK acknowledges %d, want 1001", synack.tcp.Ack())
			}
			hops(t, synack, 49, 0x48)
			s.expect(wire.FlagACK)

			// Bytes both ways, larger than a segment may be.
			up, down := noise(3, 1200), noise(4, 1200)
			seq := synack.tcp.Seq() + 1
			c.send(wire.FlagACK, 1001, seq, stamps(both, 6, synack), nil)
			c.send(wire.FlagACK|wire.FlagPSH, 1001, seq, stamps(both, 6, synack), up)
			var got []byte
			for len(got) < len(up) {
				d := s.expectWhere("data", func(d segment) bool { return len(d.tcp.Payload()) > 0 })
				got = append(got, d.tcp.Payload()...)
				hasStamps(t, d, both.ts)
			}
			if !bytes.Equal(got, up) {
				t.Error("the server got other bytes than the client sent")
			}
			s.send(wire.FlagACK|wire.FlagPSH, 7001, syn.tcp.Seq()+1+1200, stamps(both, 10, syn), down)
			d := c.expectWhere("data", func(d segment) bool { return len(d.tcp.Payload()) > 0 })
			hasStamps(t, d, both.ts)
			if !bytes.Equal(d.tcp.Payload(), down) {
				t.Error("the client got other bytes than the server sent")
			}
			if d.tcp.Ack() != 1001+1200 {
				t.Errorf("data toward the client acknowledges %d, want %d", d.tcp.Ack(), 1001+1200)
			}
			c.send(wire.FlagRST, 1001+1200, 0, nil, nil)
			s.expect(wire.FlagRST)
		})
	}
	eventually(t, "all flows gone", func() bool { return b.flows() == 0 })
	b.wantCount("accepted", 64)
	b.wantCount("resets", 64)
}

func hops(t *testing.T, s segment, ttl, dscp uint8) {
	t.Helper()
	gotTTL, gotTOS := wire.IPv6(s.frame[s.L3:]).HopLimit(), wire.IPv6(s.frame[s.L3:]).TrafficClass()
	if s.IPVersion == 4 {
		gotTTL, gotTOS = wire.IPv4(s.frame[s.L3:]).TTL(), wire.IPv4(s.frame[s.L3:]).TOS()
	}
	if gotTTL != ttl || gotTOS != dscp {
		t.Errorf("TTL %d, TOS %#x in %s, want %d, %#x", gotTTL, gotTOS, wire.Summary(s.frame), ttl, dscp)
	}
}

func hasStamps(t *testing.T, s segment, want bool) {
	t.Helper()
	got := false
	it := s.tcp.OptionIter()
	for it.Next() {
		got = got || it.Kind == wire.OptTimestamps
	}
	if got != want {
		t.Errorf("timestamps in %s: got %v, want %v", wire.Summary(s.frame), got, want)
	}
}

// TestLinkHeaders: MAC addresses and VLAN tags are those of the ends, priority
// included.
func TestLinkHeaders(t *testing.T) {
	for _, vlan := range [][]uint16{nil, {0x6000 | 7}, {0x2000 | 30, 0x8000 | 40}} {
		t.Run(fmt.Sprint(vlan), func(t *testing.T) {
			b := newBed(t, bedOptions{noHosts: true})
			c, s := b.players(addr(client4, 4000), addr(server4, 80), vlan...)
			router := [6]byte{2, 0, 0, 0, 0, 9} // the server answers from another station
			s.template.srcMAC = router
			c.send(wire.FlagSYN, 1, 0, nil, nil)
			syn := s.expect(wire.FlagSYN)
			s.send(wire.FlagSYN|wire.FlagACK, 1, syn.tcp.Seq()+1, nil, nil)
			synack := c.expect(wire.FlagSYN | wire.FlagACK)
			for _, w := range []struct {
				got      segment
				dst, src [6]byte
			}{{syn, serverMAC, clientMAC}, {synack, clientMAC, router}} {
				if e := wire.Ethernet(w.got.frame); [6]byte(e.Dst()) != w.dst || [6]byte(e.Src()) != w.src {
					t.Errorf("addresses %x > %x, want %x > %x", e.Src(), e.Dst(), w.src, w.dst)
				}
				if int(w.got.VLANs) != len(vlan) {
					t.Errorf("%d tags, want %d", w.got.VLANs, len(vlan))
				}
				for i, tag := range vlan {
					if w.got.VLAN[i] != tag {
						t.Errorf("tag %d: got %#x, want %#x", i, w.got.VLAN[i], tag)
					}
				}
			}
		})
	}
}

func TestServerRefuses(t *testing.T) {
	for _, to := range []netip.AddrPort{addr(server4, 81), addr(server6, 81)} {
		t.Run(to.String(), func(t *testing.T) {
			b := newBed(t, bedOptions{noHosts: true})
			from := addr(client4, 5000)
			if to.Addr().Is6() {
				from = addr(client6, 5000)
			}
			c, s := b.players(from, to)
			s.template.ttl = 33
			c.send(wire.FlagSYN, 0xfffffffe, 0, optMSS(1460), nil)
			syn := s.expect(wire.FlagSYN)
			s.send(wire.FlagRST|wire.FlagACK, 0, syn.tcp.Seq()+1, nil, nil)
			r := c.expect(wire.FlagRST | wire.FlagACK)
			if r.tcp.Seq() != 0 || r.tcp.Ack() != 0xffffffff || len(r.tcp.Payload()) != 0 {
				t.Errorf("got %s, want seq 0, ack %d", wire.Summary(r.frame), uint32(0xffffffff))
			}
			hops(t, r, 33, 0)
			eventually(t, "no flow left", func() bool { return b.flows() == 0 })
			b.wantCount("dial_refused", 1)
			b.wantCount("resets", 0)
		})
	}
}

// TestForgedReset: a reset that does not acknowledge our SYN changes nothing.
func TestForgedReset(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	c, s := b.players(addr(client4, 5000), addr(server4, 80))
	c.send(wire.FlagSYN, 10, 0, optMSS(1460), nil)
	syn := s.expect(wire.FlagSYN)
	s.send(wire.FlagRST|wire.FlagACK, 0, syn.tcp.Seq()+7, nil, nil)
	s.send(wire.FlagSYN|wire.FlagACK, 50, syn.tcp.Seq()+1, optMSS(1460), nil)
	c.expect(wire.FlagSYN | wire.FlagACK)
	b.wantCount("dial_refused", 0)
}

func TestServerDead(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) { o.DialTimeout = 150 * time.Millisecond }})
	c, s := b.players(addr(client4, 5000), addr(server4, 80))
	c.send(wire.FlagSYN, 10, 0, nil, nil)
	s.expect(wire.FlagSYN)
	c.send(wire.FlagSYN, 10, 0, nil, nil) // repeated: taken
	eventually(t, "the dial given up", func() bool { return b.count("dial_timeout") == 1 && b.flows() == 0 })
	c.silent("after a dial that timed out")
	s.silent("a repeated SYN")
	c.send(wire.FlagSYN, 10, 0, nil, nil)
	s.expect(wire.FlagSYN)
	b.wantCount("dials", 2)
}

// TestClientGivesUp: another SYN of the same ports is another connection.
func TestClientGivesUp(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	c, s := b.players(addr(client4, 5000), addr(server4, 80))
	c.send(wire.FlagSYN, 10, 0, nil, nil)
	first := s.expect(wire.FlagSYN)
	c.send(wire.FlagSYN, 99, 0, nil, nil)
	second := s.expect(wire.FlagSYN)
	if first.tcp.Seq() == second.tcp.Seq() {
		t.Error("both dials have the same sequence number")
	}
	s.send(wire.FlagSYN|wire.FlagACK, 50, second.tcp.Seq()+1, nil, nil)
	if sa := c.expect(wire.FlagSYN | wire.FlagACK); sa.tcp.Ack() != 100 {
		t.Errorf("SYN-ACK acknowledges %d, want 100", sa.tcp.Ack())
	}
	b.wantCount("dial_aborted", 1)
	// The same while the handshake with the client is under way.
	c.send(wire.FlagSYN, 555, 0, nil, nil)
	s.expect(wire.FlagRST)
	third := s.expect(wire.FlagSYN)
	s.send(wire.FlagSYN|wire.FlagACK, 60, third.tcp.Seq()+1, nil, nil)
	if sa := c.expect(wire.FlagSYN | wire.FlagACK); sa.tcp.Ack() != 556 {
		t.Errorf("SYN-ACK acknowledges %d, want 556", sa.tcp.Ack())
	}
	c.send(wire.FlagRST, 556, 0, nil, nil)
	s.expect(wire.FlagRST)
	eventually(t, "no flow left", func() bool { return b.flows() == 0 })
	b.wantCount("handshake_failed", 1)
}

// TestAnswerAgain: a SYN-ACK that nobody acknowledges comes again, with the
// same options, and with the client's timestamp.
func TestAnswerAgain(t *testing.T) {
	for _, has := range []offers{{}, {ts: true}, {ts: true, sack: true, scale: true}} {
		t.Run(fmt.Sprint(has), func(t *testing.T) {
			t.Parallel()
			b := newBed(t, bedOptions{noHosts: true})
			c, s := b.players(addr(client4, 5000), addr(server4, 80))
			c.send(wire.FlagSYN, 10, 0, has.options(1300, optTS(77, 0)), nil)
			syn := s.expect(wire.FlagSYN)
			s.send(wire.FlagSYN|wire.FlagACK, 50, syn.tcp.Seq()+1, has.options(1200, optTS(9, 77)), nil)
			first := c.expect(wire.FlagSYN | wire.FlagACK)
			again := c.expect(wire.FlagSYN | wire.FlagACK)
			for _, a := range []segment{first, again} {
				if got, mss, _ := read(t, a); got != has || mss != 1200 {
					t.Errorf("%s: got %v, MSS %d, want %v, MSS 1200", wire.Summary(a.frame), got, mss, has)
				}
				if a.tcp.Seq() != first.tcp.Seq() || a.tcp.Ack() != 11 || a.tcp.Window() != first.tcp.Window() {
					t.Errorf("%s is not a repetition of %s", wire.Summary(a.frame), wire.Summary(first.frame))
				}
				it := a.tcp.OptionIter()
				for it.Next() {
					if _, ecr, ok := it.Timestamps(); ok && ecr != 77 {
						t.Errorf("%s echoes %d, want 77", wire.Summary(a.frame), ecr)
					}
				}
			}
			c.send(wire.FlagACK, 11, first.tcp.Seq()+1, stamps(has, 78, again), nil)
			eventually(t, "the connection established", func() bool { return b.count("accepted") == 1 })
		})
	}
}

func TestClientNeverAcknowledges(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) { o.HandshakeTimeout = 150 * time.Millisecond }})
	c, s := b.players(addr(client4, 5000), addr(server4, 80))
	c.send(wire.FlagSYN, 10, 0, nil, nil)
	syn := s.expect(wire.FlagSYN)
	s.send(wire.FlagSYN|wire.FlagACK, 50, syn.tcp.Seq()+1, nil, nil)
	c.expect(wire.FlagSYN | wire.FlagACK)
	s.expect(wire.FlagRST)
	eventually(t, "no flow left", func() bool { return b.flows() == 0 })
	b.wantCount("handshake_timeout", 1)
}

// TestChallengeStorm: a server that still remembers another connection answers
// our SYN with an ACK. Netstack resets it and repeats the SYN every few
// microseconds; one repetition is enough.
func TestChallengeStorm(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	c, s := b.players(addr(client4, 5000), addr(server4, 80))
	c.send(wire.FlagSYN, 10, 0, nil, nil)
	syn := s.expect(wire.FlagSYN)
	s.send(wire.FlagACK, 777, 888, nil, nil)
	if r := s.expect(wire.FlagRST); r.tcp.Seq() != 888 {
		t.Errorf("reset has seq %d, want 888", r.tcp.Seq())
	}
	began := time.Now()
	again := s.expect(wire.FlagSYN)
	if again.tcp.Seq() != syn.tcp.Seq() {
		t.Errorf("repeated SYN has seq %d, want %d", again.tcp.Seq(), syn.tcp.Seq())
	}
	eventually(t, "repetitions swallowed", func() bool { return b.count("syn_repeats_swallowed") >= 5 })
	syns := len(segments(b.ports[wan].frames(), false, wire.FlagSYN))
	if most := 2 + int(time.Since(began)/(200*time.Millisecond)); syns > most {
		t.Errorf("%d SYNs on the wire after %v, want at most %d", syns, time.Since(began), most)
	}
	s.send(wire.FlagSYN|wire.FlagACK, 50, syn.tcp.Seq()+1, nil, nil)
	c.expect(wire.FlagSYN | wire.FlagACK)
}

func TestICMPWhileDialing(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6 %v", v6), func(t *testing.T) {
			b := newBed(t, bedOptions{noHosts: true})
			from, to := addr(client4, 5000), addr(server4, 80)
			if v6 {
				from, to = addr(client6, 5000), addr(server6, 80)
			}
			c, s := b.players(from, to)
			options := join(optMSS(1460), optSACK, optTS(1, 0), []byte{wire.OptNop}, optScale)
			c.send(wire.FlagSYN, 0x01020304, 0, options, nil)
			syn := s.expect(wire.FlagSYN)
			ip := syn.frame[syn.L3:syn.End]

			// About a sequence number that is not in flight: somebody guesses.
			forged := append([]byte(nil), ip...)
			h := wire.Headers{}
			h.ParseIP(forged)
			wire.TCP(forged[h.L4:]).SetSeq(syn.tcp.Seq() + 5)
			b.ports[wan].send(icmpError(serverMAC, clientMAC, to.Addr(), from.Addr(), 1, forged))
			eventually(t, "forged error dropped", func() bool {
				return b.worker.Stats().Totals.Dropped["tcp_icmp_bad_quote"] == 1
			})
			if b.flows() != 1 {
				t.Fatal("a forged error has ended the dial")
			}

			b.ports[wan].send(icmpError(serverMAC, clientMAC, to.Addr(), from.Addr(), 1, ip))
			var got seenFrame
			eventually(t, "the client told", func() bool {
				for _, f := range b.ports[lan].frames() {
					if !f.in {
						got = f
						return true
					}
				}
				return false
			})
			var e, q wire.Headers
			if e.Parse(got.frame) != wire.FaultNone || !wire.VerifyL4(got.frame, &e) || !e.QuotedHeaders(got.frame, &q) {
				t.Fatalf("not a sound ICMP error: %s", wire.Summary(got.frame))
			}
			sent := frame{srcMAC: clientMAC, dstMAC: serverMAC, src: from, dst: to, window: 65535, flags: wire.FlagSYN, seq: 0x01020304, options: options}.build()
			var sh wire.Headers
			sh.Parse(sent)
			if !bytes.Equal(got.frame[q.L4:q.End], sent[sh.L4:sh.End]) {
				t.Errorf("quoted % x, want what the client sent: % x", got.frame[q.L4:q.End], sent[sh.L4:sh.End])
			}
			eventually(t, "no flow left", func() bool { return b.flows() == 0 })
			b.wantCount("dial_unreachable", 1)
		})
	}
}

// icmpError builds an ICMP or ICMPv6 error (type unreachable) that quotes an IP
// packet.
func icmpError(srcMAC, dstMAC [6]byte, src, dst netip.Addr, code byte, quoted []byte) []byte {
	return icmpMessage(srcMAC, dstMAC, src, dst, map[bool]byte{true: wire.ICMPUnreachable, false: wire.ICMPv6Unreachable}[src.Is4()], code, 0, quoted)
}

func icmpMessage(srcMAC, dstMAC [6]byte, src, dst netip.Addr, typ, code byte, rest uint32, quoted []byte) []byte {
	f := frame{srcMAC: srcMAC, dstMAC: dstMAC, src: addr(src, 0), dst: addr(dst, 0)}.build()
	msg := append(binary.BigEndian.AppendUint32([]byte{typ, code, 0, 0}, rest), quoted...)
	if src.Is4() {
		f = append(f[:wire.EthernetLen+wire.IPv4Len], msg...)
		ip := wire.IPv4(f[wire.EthernetLen:])
		ip[9] = wire.ProtoICMP
		ip.SetTotalLen(len(ip))
		ip.FillChecksum()
	} else {
		f = append(f[:wire.EthernetLen+wire.IPv6Len], msg...)
		ip := wire.IPv6(f[wire.EthernetLen:])
		ip.SetNextHeader(wire.ProtoICMPv6)
		ip.SetPayloadLen(len(msg))
	}
	var h wire.Headers
	h.Parse(f)
	wire.FillL4(f, &h)
	return f
}

// TestRefusals: connections that are not terminated, and why.
func TestRefusals(t *testing.T) {
	type row struct {
		name    string
		frame   frame
		edit    func([]byte) []byte
		counter string
		reason  string // with "drop", or always if hard
		hard    bool
	}
	syn := frame{srcMAC: clientMAC, dstMAC: serverMAC, src: addr(client4, 5000), dst: addr(server4, 80), flags: wire.FlagSYN, window: 1000, options: optMSS(1460)}
	with := func(change func(*frame)) frame {
		f := syn
		change(&f)
		return f
	}
	rows := []row{
		{name: "md5", frame: with(func(f *frame) { f.options = append([]byte{wire.OptMD5, 18}, make([]byte, 16)...) }), counter: "unsupported_signature", reason: "tcp_unsupported"},
		{name: "ao", frame: with(func(f *frame) { f.options = append([]byte{wire.OptAO, 16}, make([]byte, 14)...) }), counter: "unsupported_signature", reason: "tcp_unsupported"},
		{name: "land", frame: with(func(f *frame) { f.src = f.dst }), counter: "unsupported_address", reason: "tcp_unsupported"},
		{name: "port 0", frame: with(func(f *frame) { f.dst = addr(server4, 0) }), counter: "unsupported_address", reason: "tcp_unsupported"},
		{name: "loopback", frame: with(func(f *frame) { f.src = addr(netip.MustParseAddr("127.0.0.1"), 9) }), counter: "unsupported_address", reason: "tcp_unsupported"},
		{name: "broadcast", frame: with(func(f *frame) { f.dst = addr(netip.MustParseAddr("255.255.255.255"), 9) }), counter: "unsupported_address", reason: "tcp_unsupported"},
		{name: "multicast", frame: with(func(f *frame) { f.src, f.dst = addr(client6, 1), addr(netip.MustParseAddr("ff02::1"), 9) }), counter: "unsupported_address", reason: "tcp_unsupported"},
		{name: "mapped", frame: with(func(f *frame) { f.src, f.dst = addr(client6, 1), addr(netip.MustParseAddr("::ffff:1.2.3.4"), 9) }), counter: "unsupported_address", reason: "tcp_unsupported"},
		{name: "ip options", frame: syn, edit: ipOption, counter: "unsupported_ip_options", reason: "tcp_unsupported"},
		{name: "fragment", frame: syn, edit: moreFragments, counter: "unsupported_fragmented_syn", reason: "tcp_unsupported"},
		{name: "options cut", frame: with(func(f *frame) { f.options = []byte{wire.OptMSS, 9, 1, 2} }), reason: "tcp_bad_options", hard: true},
		{name: "checksum", frame: syn, edit: func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, reason: "bad_l4_checksum", hard: true},
		{name: "midstream", frame: with(func(f *frame) { f.flags = wire.FlagACK }), counter: "midstream"},
		{name: "syn fin", frame: with(func(f *frame) { f.flags = wire.FlagSYN | wire.FlagFIN }), counter: "midstream"},
		{name: "syn rst", frame: with(func(f *frame) { f.flags = wire.FlagSYN | wire.FlagRST }), counter: "midstream"},
	}
	for _, how := range []stack.Refusal{stack.Bypass, stack.Drop} {
		for _, r := range rows {
			t.Run(fmt.Sprintf("%s %v", r.name, how), func(t *testing.T) {
				b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) { o.OnUnsupported = how }})
				sent := r.frame.build()
				if r.edit != nil {
					sent = r.edit(sent)
				}
				b.ports[lan].send(sent)
				var totals pipeline.Totals
				eventually(t, "packet decided on", func() bool {
					totals = b.worker.Stats().Totals
					return totals.Forwarded+totals.DroppedTotal()+totals.Consumed == 1
				})
				dropped := r.hard || how == stack.Drop && r.reason != ""
				if dropped && totals.Dropped[r.reason] != 1 {
					t.Errorf("drops: got %v, want one of %s", totals.Dropped, r.reason)
				}
				if !dropped {
					frames := b.ports[wan].frames()
					if len(frames) != 1 || !bytes.Equal(frames[0].frame, sent) {
						t.Errorf("the packet did not pass as it was")
					}
				}
				if r.counter != "" {
					b.wantCount(r.counter, 1)
				}
				if n := b.flows(); n != 0 {
					t.Errorf("%d flows, want 0", n)
				}
			})
		}
	}
}

// ipOption puts a router alert into an IPv4 header.
func ipOption(b []byte) []byte {
	at := wire.EthernetLen + wire.IPv4Len
	b = append(b[:at:at], append([]byte{148, 4, 0, 0}, b[at:]...)...)
	ip := wire.IPv4(b[wire.EthernetLen:])
	ip[0]++
	ip.SetTotalLen(len(ip))
	ip.FillChecksum()
	return b
}

// moreFragments makes a packet the first fragment of another.
func moreFragments(b []byte) []byte {
	ip := wire.IPv4(b[wire.EthernetLen:])
	ip[6] = 0x20
	ip.FillChecksum()
	return b
}
