package stack_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/stack"
)

// modelCookies stands where XDP is at the client's port: while it is asked to,
// it answers SYNs of flows that it does not know, and lets the flow begin with
// the segment that gives a cookie back.
type modelCookies struct {
	fails bool // cannot be switched on

	mu     sync.Mutex
	answer *pipeline.SYNAnswer
	flows  map[wire.Flow]bool
	given  map[wire.Flow]uint32 // cookies, by what the client sends
	marks  map[wire.Flow]bool   // the next segment of it comes with the news
	sent   uint64
	good   uint64
	next   uint32
}

func (m *modelCookies) AnswerSYNs(a *pipeline.SYNAnswer) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fails && a != nil {
		return errors.New("not here")
	}
	m.answer = a
	return nil
}

func (m *modelCookies) SYNsAnswered() (sent, good uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sent, m.good
}

func (m *modelCookies) on() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.answer != nil
}

// took reports whether it has dealt with a frame that arrived at the client's
// port.
func (m *modelCookies) took(w *wirePort, f []byte) bool {
	var h wire.Headers
	if h.Parse(f) != wire.FaultNone || !h.HasL4 || h.Proto != wire.ProtoTCP {
		return false
	}
	flow, _ := h.Flow(f)
	t := wire.TCP(f[h.L4:h.End])
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.flows == nil {
		m.flows, m.given, m.marks = map[wire.Flow]bool{}, map[wire.Flow]uint32{}, map[wire.Flow]bool{}
	}
	syn := t.Flags()&(wire.FlagSYN|wire.FlagACK|wire.FlagRST|wire.FlagFIN) == wire.FlagSYN
	switch iss, ok := m.given[flow]; {
	case m.flows[flow]:
		return false
	case syn && m.answer == nil:
		m.flows[flow] = true
		return false
	case syn:
		m.next += 0x71234567
		m.given[flow] = m.next
		m.sent++
		b := cookieSYNACK(f, &h, m.next, m.answer)
		w.mu.Lock()
		deliver := w.deliver
		w.mu.Unlock()
		if !w.note(b, false) && deliver != nil {
			go deliver(b)
		}
		return true
	case ok && t.Flags()&(wire.FlagACK|wire.FlagRST) == wire.FlagACK && t.Ack() == iss+1:
		m.flows[flow], m.marks[flow] = true, true
		m.good++
	}
	return false
}

// cookieSYNACK is the answer to a SYN.
func cookieSYNACK(syn []byte, h *wire.Headers, iss uint32, a *pipeline.SYNAnswer) []byte {
	t := wire.TCP(syn[h.L4:h.End])
	flow, _ := h.Flow(syn)
	f := frame{
		srcMAC: [6]byte(syn[:6]), dstMAC: [6]byte(syn[6:12]), src: flow.DstAddr(), dst: flow.SrcAddr(),
		flags: wire.FlagSYN | wire.FlagACK, seq: iss, ack: t.Seq() + 1, window: a.Window, options: optMSS(a.MSS4),
	}
	if flow.V6 {
		f.options = optMSS(a.MSS6)
	}
	for _, tag := range flow.VLAN {
		if tag != 0 {
			f.vlan = append(f.vlan, tag)
		}
	}
	var val, bits uint32
	stamped, scaled, sack := false, false, false
	bits = 15
	it := t.OptionIter()
	for it.Next() {
		if v, _, ok := it.Timestamps(); ok {
			val, stamped = v, true
		}
		if v, ok := it.WindowScale(); ok {
			bits, scaled = bits&^15|uint32(v), true
		}
		if it.Kind == wire.OptSACKPermitted {
			bits, sack = bits|16, true
		}
	}
	if stamped {
		if sack {
			f.options = append(f.options, optSACK...)
		}
		f.options = append(f.options, optTS(cookieClock|bits, val)...)
		if scaled {
			f.options = append(f.options, wire.OptWindowScale, 3, a.Shift)
		}
	}
	return f.build()
}

const cookieClock = 0xfffffc00 // soon before it wraps

// Receive implements pipeline.Port.
func (w *wirePort) Receive(b *pipeline.Batch) (int, error) {
	n, err := w.MemoryPort.Receive(b)
	if w.mark == nil && w.cookies == nil {
		return n, err
	}
	for p := range b.Live() {
		if w.mark != nil {
			w.mark(p)
		}
		if w.cookies == nil {
			continue
		}
		var h wire.Headers
		if h.Parse(p.Bytes()) != wire.FaultNone || !h.HasL4 {
			continue
		}
		flow, _ := h.Flow(p.Bytes())
		w.cookies.mu.Lock()
		if w.cookies.marks[flow] {
			delete(w.cookies.marks, flow)
			p.Cookie, p.CookieSize = true, 2
		}
		w.cookies.mu.Unlock()
	}
	return n, err
}

func cookiesOn(o *stack.Options) { o.SYNCookies = stack.CookiesOn }

// TestCookieTransfer transfers both ways at once, and in turns, over connections
// that begin with a cookie: terminated to the end, and spliced.
func TestCookieTransfer(t *testing.T) {
	const size = 2 << 20
	for _, tc := range []struct {
		name    string
		after   int // bytes until a stage lets go; -1: no stage
		splice  bool
		refuse  bool
		spliced uint64
	}{
		{"terminated", -1, false, false, 0},
		{"spliced at once", -1, true, false, 1},
		{"spliced in user space", -1, true, true, 1},
		{"spliced later", 10_000, true, false, 1},
	} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, v6 %v", tc.name, v6), func(t *testing.T) {
				o := bedOptions{cookies: &modelCookies{}, vlan: []uint16{100}, xdp: &modelXDP{refuse: tc.refuse}, options: func(o *stack.Options) {
					cookiesOn(o)
					o.Splice = tc.splice
				}}
				if tc.after >= 0 {
					o.streams = []pipeline.StreamStage{releaser{tc.after}}
				}
				b := newBed(t, o)
				cl, sv := client4, server4
				if v6 {
					cl, sv = client6, server6
				}
				transfer(t, b, cl, sv, size)
				b.wantCount("syn_cookie_flows", 1)
				b.wantCount("accepted", 1)
				b.wantCount("spliced", tc.spliced)
				b.wantCount("syn_cookie_not_spliced", 0)
				b.wantCount("bad_acks", 0)
				b.wantCount("old_timestamps", 0)
				eventually(t, "no flow is counted as active", func() bool { return b.count("flows_active") == 0 })
			})
		}
	}
}

// TestCookieUnderLoss: the cable of the server loses packets, so that there are
// holes, SACK blocks and repetitions on a leg whose numbers are shifted.
func TestCookieUnderLoss(t *testing.T) {
	n := 0
	b := newBed(t, bedOptions{cookies: &modelCookies{}, options: func(o *stack.Options) { cookiesOn(o); o.Splice = false }})
	b.ports[lan].mu.Lock()
	b.ports[lan].lose = func(frame []byte, _ bool) bool { n++; return n > 10 && n%61 == 0 }
	b.ports[lan].mu.Unlock()
	transfer(t, b, client4, server4, 1<<20)
	b.wantCount("syn_cookie_flows", 1)
	b.wantCount("bad_acks", 0)
	if b.count("fast_recoveries") == 0 {
		t.Error("nothing was repaired by SACK: the test proves little")
	}
}

// cookieBed is a bed without hosts in which players give cookies back.
func cookieBed(t *testing.T, options func(*stack.Options)) *bed {
	return newBed(t, bedOptions{noHosts: true, cookies: &modelCookies{}, options: func(o *stack.Options) {
		cookiesOn(o)
		if options != nil {
			options(o)
		}
	}})
}

// TestCookieHandshake looks at every segment of handshakes that begin with a
// cookie, with data on the first segment, by what the client offers.
func TestCookieHandshake(t *testing.T) {
	b := cookieBed(t, func(o *stack.Options) { o.Splice = false })
	for i, cl := range []offers{{}, {ts: true}, {ts: true, sack: true}, {ts: true, scale: true}, {ts: true, sack: true, scale: true}, {sack: true, scale: true}} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("client %v, v6 %v", cl, v6), func(t *testing.T) {
				from, to := addr(client4, uint16(20000+i)), addr(server4, 80)
				mss := uint16(1440)
				if v6 {
					from, to = addr(client6, uint16(20000+i)), addr(server6, 80)
				}
				c, s := b.players(from, to)
				c.send(wire.FlagSYN, 1000, 0, cl.options(1460, optTS(5, 0)), nil)
				cookie := c.expect(wire.FlagSYN | wire.FlagACK)
				s.silent("before the cookie comes back")

				known := cl
				if !cl.ts { // without timestamps there is no place for the others
					known = offers{}
				}
				iss := cookie.tcp.Seq()
				up := noise(9, 700)
				c.send(wire.FlagACK|wire.FlagPSH, 1001, iss+1, stamps(cl, 6, cookie), up[:300])
				syn := s.expect(wire.FlagSYN)
				if got, m, val := read(t, syn); got != known || m != mss || cl.ts && val == 0 {
					t.Errorf("SYN toward the server: %v, MSS %d, timestamp %d; want %v, MSS %d", got, m, val, known, mss)
				}
				// More while the server is dialled, and some of it again.
				c.send(wire.FlagACK|wire.FlagPSH, 1301, iss+1, stamps(cl, 6, cookie), up[300:600])
				c.send(wire.FlagACK|wire.FlagPSH, 1001, iss+1, stamps(cl, 7, cookie), up[:300])
				sv := offers{ts: i%2 == 0, sack: true}.and(known)
				s.send(wire.FlagSYN|wire.FlagACK, 7000, syn.tcp.Seq()+1, sv.options(1200, optTS(9, 5)), nil)
				var got []byte
				for len(got) < 600 {
					d := s.expectWhere("data", func(d segment) bool { return len(d.tcp.Payload()) > 0 })
					got = append(got, d.tcp.Payload()...)
					hasStamps(t, d, sv.ts)
				}
				if !bytes.Equal(got, up[:600]) {
					t.Error("other bytes came out of the first segments")
				}
				last := c.expectWhere("an acknowledgment of it all", func(d segment) bool { return d.tcp.Ack() == 1601 })
				if last.tcp.Seq() != iss+1 {
					t.Errorf("sequence number %d toward the client, want %d", last.tcp.Seq(), iss+1)
				}
				hasStamps(t, last, cl.ts)
				if val, ecr, ok := stampsOf(last.tcp); ok && (int32(val-(cookieClock|63)) > 60000 || int32(val-cookieClock) < 0 || ecr < 6) {
					t.Errorf("timestamps %#x, %d toward the client", val, ecr)
				}

				down := noise(8, 900)
				s.send(wire.FlagACK|wire.FlagPSH, 7001, syn.tcp.Seq()+601, stamps(sv, 10, syn), down)
				d := c.expectWhere("data", func(d segment) bool { return len(d.tcp.Payload()) > 0 })
				if !bytes.Equal(d.tcp.Payload(), down) || d.tcp.Seq() != iss+1 || d.tcp.Flags()&wire.FlagSYN != 0 {
					t.Errorf("toward the client: %s", wire.Summary(d.frame))
				}
				c.send(wire.FlagACK|wire.FlagPSH, 1601, iss+901, stamps(cl, 8, last), up[600:])
				if d := s.expectWhere("data", func(d segment) bool { return len(d.tcp.Payload()) > 0 }); !bytes.Equal(d.tcp.Payload(), up[600:]) {
					t.Errorf("toward the server: %s", wire.Summary(d.frame))
				}
				// A reset has to have the client's numbers as well.
				s.send(wire.FlagRST, 7901, 0, nil, nil)
				if r := c.expect(wire.FlagRST); r.tcp.Seq() != iss+901 {
					t.Errorf("reset with %d, want %d", r.tcp.Seq(), iss+901)
				}
			})
		}
	}
	b.wantCount("syn_cookie_flows", 12)
	b.wantCount("bad_acks", 0)
}

// giveCookie asks for a cookie, gives it back and returns it.
func giveCookie(c *player) (iss uint32, synack segment) {
	c.send(wire.FlagSYN, 1000, 0, offers{ts: true, sack: true, scale: true}.options(1460, optTS(5, 0)), nil)
	synack = c.expect(wire.FlagSYN | wire.FlagACK)
	iss = synack.tcp.Seq()
	c.send(wire.FlagACK, 1001, iss+1, stamps(offers{ts: true}, 6, synack), nil)
	return iss, synack
}

// TestCookieRefused: a client that holds its connection for established is told
// if it cannot be had.
func TestCookieRefused(t *testing.T) {
	reset := func(t *testing.T, c *player, iss uint32) {
		t.Helper()
		if r := c.expect(wire.FlagRST); r.tcp.Seq() != iss+1 || r.tcp.Ack() != 1001 {
			t.Errorf("reset with %d, ack %d; want %d, ack 1001", r.tcp.Seq(), r.tcp.Ack(), iss+1)
		}
	}
	t.Run("refused", func(t *testing.T) {
		b := cookieBed(t, nil)
		c, s := b.players(addr(client4, 30000), addr(server4, 80))
		iss, _ := giveCookie(c)
		syn := s.expect(wire.FlagSYN)
		s.send(wire.FlagRST|wire.FlagACK, 0, syn.tcp.Seq()+1, nil, nil)
		reset(t, c, iss)
		b.wantCount("dial_refused", 1)
	})
	t.Run("no answer", func(t *testing.T) {
		b := cookieBed(t, func(o *stack.Options) { o.DialTimeout = 300 * time.Millisecond })
		c, s := b.players(addr(client6, 30000), addr(server6, 80))
		iss, _ := giveCookie(c)
		s.expect(wire.FlagSYN)
		reset(t, c, iss)
		b.wantCount("dial_timeout", 1)
	})
	t.Run("unreachable", func(t *testing.T) {
		b := cookieBed(t, nil)
		c, s := b.players(addr(client4, 30000), addr(server4, 80))
		iss, _ := giveCookie(c)
		syn := s.expect(wire.FlagSYN)
		b.ports[wan].send(icmpMessage(serverMAC, clientMAC, server4, client4, 3, 1, 0, syn.frame[syn.L3:syn.End]))
		reset(t, c, iss)
		b.wantCount("dial_unreachable", 1)
	})
	t.Run("limit", func(t *testing.T) {
		b := cookieBed(t, func(o *stack.Options) { o.MaxFlows = 1 })
		c, s := b.players(addr(client4, 30000), addr(server4, 80))
		giveCookie(c)
		s.expect(wire.FlagSYN)
		c2, _ := b.players(addr(client4, 30001), addr(server4, 80))
		iss, _ := giveCookie(c2)
		reset(t, c2, iss)
		b.wantCount("tcp_flow_limit", 1)
		b.wantCount("syn_cookie_flows", 1)
	})
	t.Run("client resets", func(t *testing.T) {
		b := cookieBed(t, nil)
		c, s := b.players(addr(client4, 30000), addr(server4, 80))
		iss, _ := giveCookie(c)
		s.expect(wire.FlagSYN)
		c.send(wire.FlagRST, 1001, iss+1, nil, nil)
		eventually(t, "the dial is given up", func() bool { return b.count("dial_aborted") == 1 && b.count("flows_active") == 0 })
		c.silent("after its own reset")
	})
	t.Run("wrong checksum", func(t *testing.T) {
		b := cookieBed(t, nil)
		c, s := b.players(addr(client4, 30000), addr(server4, 80))
		c.send(wire.FlagSYN, 1000, 0, optMSS(1460), nil)
		iss := c.expect(wire.FlagSYN | wire.FlagACK).tcp.Seq()
		f := c.template
		f.flags, f.seq, f.ack = wire.FlagACK, 1001, iss+1
		raw := f.build()
		raw[50] ^= 1
		b.ports[lan].send(raw)
		eventually(t, "it is dropped", func() bool { return b.worker.Stats().Totals.Dropped["bad_l4_checksum"] == 1 })
		s.silent("after a segment with a wrong checksum")
		b.wantCount("syn_cookie_flows", 0)
	})
}

// TestCookieEvicts: a client that has given a cookie back takes the place of one
// that may not exist, and none that has.
func TestCookieEvicts(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) { o.MaxPending, o.OnLimit = 4, stack.Drop }})
	b.ports[lan].mark = func(p *pipeline.Packet) { p.Cookie, p.CookieSize = p.Bytes()[47]&2 == 0, 3 }
	for i := range 5 {
		c, _ := b.players(addr(client4, uint16(1000+i)), addr(server4, 80))
		c.send(wire.FlagSYN, 1, 0, optMSS(1460), nil)
	}
	eventually(t, "the limit holds", func() bool { return b.count("tcp_pending_limit") == 1 })
	for i := range 5 {
		c, s := b.players(addr(client4, uint16(2000+i)), addr(server4, 80))
		c.send(wire.FlagACK, 2, 77, nil, nil)
		if i < 4 {
			s.expect(wire.FlagSYN)
		} else if r := c.expect(wire.FlagRST); r.tcp.Seq() != 77 {
			t.Errorf("reset with %d, want 77", r.tcp.Seq())
		}
	}
	b.wantCount("half_open_evicted", 4)
	b.wantCount("syn_cookie_flows", 4)
	b.wantCount("tcp_pending_limit", 2)
}

// TestCookieUnlike: a server whose options are not those that the client was told
// has its connections terminated to the end.
func TestCookieUnlike(t *testing.T) {
	all := offers{ts: true, sack: true, scale: true}
	for i, tc := range []struct {
		sv     offers
		mss    uint16
		unlike uint64
	}{{all, 1460, 0}, {offers{sack: true, scale: true}, 1460, 1}, {offers{ts: true, scale: true}, 1460, 1}, {offers{ts: true, sack: true}, 1460, 1}, {all, 1400, 1}} {
		b := newBed(t, bedOptions{noHosts: true, cookies: &modelCookies{}, xdp: &modelXDP{}, options: cookiesOn})
		c, s := b.players(addr(client4, 30000), addr(server4, 80))
		giveCookie(c)
		syn := s.expect(wire.FlagSYN)
		s.send(wire.FlagSYN|wire.FlagACK, 7000, syn.tcp.Seq()+1, tc.sv.options(tc.mss, optTS(9, 5)), nil)
		s.expect(wire.FlagACK)
		eventually(t, "it is spliced, or will not be", func() bool { return b.count("spliced")+b.count("syn_cookie_not_spliced") == 1 })
		if got := b.count("syn_cookie_not_spliced"); got != tc.unlike {
			t.Errorf("%d: not spliced %d, want %d", i, got, tc.unlike)
		}
		b.stop()
	}
}

// TestCookieSwitch: SYNs are answered from the moment when half of max_pending
// is in use until it and the unanswered cookies are few for handshake_timeout.
func TestCookieSwitch(t *testing.T) {
	m := &modelCookies{}
	b := newBed(t, bedOptions{noHosts: true, cookies: m, options: func(o *stack.Options) {
		o.MaxPending, o.DialTimeout, o.HandshakeTimeout = 16, 600*time.Millisecond, 400*time.Millisecond
	}})
	syn := func(port int) {
		c, _ := b.players(addr(client4, uint16(port)), addr(server4, 80))
		c.send(wire.FlagSYN, 1, 0, optMSS(1460), nil)
	}
	for i := range 7 {
		syn(1000 + i)
	}
	eventually(t, "7 are dialled", func() bool { return b.count("dials") == 7 })
	if m.on() {
		t.Error("on with 7 of 16")
	}
	syn(1007)
	eventually(t, "it is on with 8 of 16", m.on)
	// A flood goes on: nothing is dialled, and it stays on though nothing is pending any more.
	stop := time.Now().Add(1500 * time.Millisecond)
	for i := 0; time.Now().Before(stop); i++ {
		syn(2000 + i)
		time.Sleep(5 * time.Millisecond) // the rate of the flood
	}
	if !m.on() || b.count("flows_pending") != 0 {
		t.Errorf("in the flood: on %t, %d pending", m.on(), b.count("flows_pending"))
	}
	b.wantCount("dials", 8)
	b.wantCount("syn_cookies_active", 1)
	eventually(t, "it is off after the flood", func() bool { return !m.on() })
	eventually(t, "the counter says so", func() bool { return b.count("syn_cookies_active") == 0 })
	b.wantCount("syn_cookies_switched_on", 1)
	// A connection whose cookie was given out before goes on.
	syn(9000)
	eventually(t, "dialled again", func() bool { return b.count("dials") == 9 })
}

// TestCookiesNotToBeHad: the limits are all there is then.
func TestCookiesNotToBeHad(t *testing.T) {
	for name, m := range map[string]*modelCookies{"refused": {fails: true}, "none": nil} {
		b := newBed(t, bedOptions{noHosts: true, cookies: m, options: func(o *stack.Options) { o.MaxPending, o.OnLimit = 4, stack.Drop }})
		for i := range 8 {
			c, _ := b.players(addr(client4, uint16(1000+i)), addr(server4, 80))
			c.send(wire.FlagSYN, 1, 0, optMSS(1460), nil)
		}
		eventually(t, name+": the limit holds", func() bool { return b.count("tcp_pending_limit") == 4 })
		b.wantCount("syn_cookies_active", 0)
		b.stop()
	}
}

// TestCookieShift: the window scale that clients are told before netstack is
// asked is the one that it has.
func TestCookieShift(t *testing.T) {
	for _, size := range []int{16 << 10, 65535, 64 << 10, 100 << 10, 1 << 20, 4 << 20, 16 << 20, 256 << 20} {
		m := &modelCookies{}
		mode := stack.CookiesOff
		set := func(o *stack.Options) {
			o.ReceiveBufferMax, o.ReceiveBuffer = size, min(size, 16<<10)
			o.SYNCookies = mode
		}
		b := newBed(t, bedOptions{noHosts: true, cookies: m, options: set})
		c, s := b.players(addr(client4, 1000), addr(server4, 80))
		all := offers{ts: true, sack: true, scale: true}
		c.send(wire.FlagSYN, 1000, 0, all.options(1460, optTS(5, 0)), nil)
		syn := s.expect(wire.FlagSYN)
		s.send(wire.FlagSYN|wire.FlagACK, 7000, syn.tcp.Seq()+1, all.options(1460, optTS(9, 5)), nil)
		var is uint8
		it := c.expect(wire.FlagSYN | wire.FlagACK).tcp.OptionIter()
		for it.Next() {
			if v, ok := it.WindowScale(); ok {
				is = v
			}
		}
		b.stop()
		mode = stack.CookiesOn
		b = newBed(t, bedOptions{noHosts: true, cookies: m, options: set})
		m.mu.Lock()
		if m.answer == nil || m.answer.Shift != is {
			t.Errorf("receive_buffer_max %d: %+v, netstack's shift is %d", size, m.answer, is)
		}
		m.mu.Unlock()
		b.stop()
	}
}

// FuzzCookie plays segments of both ends, some of which are said to give a good
// cookie back: whatever they hold, nothing panics or leaks.
func FuzzCookie(f *testing.F) {
	f.Add([]byte{0, 0x10, 0, 0, 8, 1, 9, 0, 1, 0x12, 0, 0, 3, 0, 9, 0, 0, 0x18, 0, 0, 8, 9, 9, 0})
	f.Add([]byte{0, 0x11, 0, 0, 0, 1, 9, 0x20, 0, 4, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0, 0x10, 0, 0, 8, 1, 9, 0, 0, 2, 9, 9, 3, 0, 0, 0, 1, 0x14, 0, 0, 0, 0, 0, 0x31})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 400 {
			return
		}
		y := newTryout(t, 8)
		defer y.b.stop()
		y.b.ports[lan].mark = func(p *pipeline.Packet) {
			b := p.Bytes()
			if len(b) > 0 {
				p.Cookie, p.CookieSize = len(b)%3 != 0, b[len(b)-1]
			}
		}
		y.run(script)
	})
}
