package stack

import (
	"encoding/binary"

	"penstock/internal/rewrite"
	"penstock/internal/wire"
	"penstock/pipeline"
)

// Where SYNs are answered with cookies (Env.SYNs), nothing is known of a connection until its client has acknowledged the SYN-ACK. Then the
// server is dialled, and netstack is given a SYN with what the cookie had in it. Its SYN-ACK goes nowhere: the client has one. What
// the two say differs by constants, and these are added to all that goes out to the client, and taken off all that comes from it.

// CookieMode says when SYNs are answered with cookies.
type CookieMode uint8

// The modes.
const (
	CookiesAuto CookieMode = iota // while half of MaxPending is in use, and until that is over
	CookiesOff
	CookiesOn
)

// The segment sizes that the kernel's cookies know (net/ipv4/syncookies.c, net/ipv6/syncookies.c).
var (
	cookieSizes4 = [4]uint16{536, 1300, 1440, 1460}
	cookieSizes6 = [4]uint16{1280 - 60, 1480 - 60, 1500 - 60, 9000 - 60}
)

const (
	// cookieWindow is the most that a SYN-ACK with a cookie offers, and what is held of a client's bytes until its server is
	// there: a first flight (RFC 6928).
	cookieWindow = 16000
	// cookieHeld is how many segments are held.
	cookieHeld = 64
)

// cookie is what a connection has that began with one.
type cookie struct {
	iss    uint32   // of the SYN-ACK that the client has
	stamp  uint32   // the timestamp in it
	seq    uint32   // added to netstack's sequence numbers, once they are known,
	ts     uint32   // and to its timestamps
	held   [][]byte // IP packets that came before netstack could take them
	bytes  int      // payload in them
	told   bool     // the client knows that it is over
	unlike bool     // the server's options are not those that the client was told
}

// synSwitch is what a Stack knows of its wish to have SYNs answered.
type synSwitch struct {
	on, failed bool
	since      int64 // when what follows was read
	sent, good uint64
}

// synAnswer is what clients are told, whatever their server would have said.
func (s *Stack) synAnswer() pipeline.SYNAnswer {
	clamp := func(head int) uint16 {
		mss := uint16(int(s.link.mtu) - head)
		if s.o.MSSClamp > 0 {
			mss = min(mss, s.o.MSSClamp)
		}
		return mss
	}
	return pipeline.SYNAnswer{
		MSS4: clamp(wire.IPv4Len + wire.TCPLen), MSS6: clamp(wire.IPv6Len + wire.TCPLen),
		Window: uint16(min(cookieWindow, s.o.ReceiveBuffer/2)), Shift: windowShift(s.o.ReceiveBufferMax),
	}
}

// windowShift is by how much netstack shifts the windows of a receive buffer that may grow to size.
func windowShift(size int) (shift uint8) {
	for most := 65535; size > most && shift < 14; most <<= 1 {
		shift++
	}
	return shift
}

// crowded switches cookies on if too many connections are being established.
func (s *Stack) crowded(now int64) {
	if !s.syns.on && s.o.SYNCookies == CookiesAuto && 2*s.pending >= s.o.MaxPending {
		s.answerSYNs(true, now)
	}
}

// answerSYNs begins or ends that SYNs are answered with cookies.
func (s *Stack) answerSYNs(on bool, now int64) {
	y := &s.syns
	if s.env.SYNs == nil || y.on == on || on && (y.failed || s.draining) {
		return
	}
	var a *pipeline.SYNAnswer
	if on {
		answer := s.synAnswer()
		a = &answer
	}
	if err := s.env.SYNs.AnswerSYNs(a); err != nil {
		y.failed = true
		s.env.Log.Warn("SYNs cannot be answered with cookies; max_pending bounds a flood of them", "err", err)
		return
	}
	y.on, y.since = on, now
	y.sent, y.good = s.env.SYNs.SYNsAnswered()
	if !on {
		s.n.cookiesOn.Set(0)
		s.env.Log.Info("SYNs are not answered with cookies any more")
		return
	}
	s.n.cookiesOn.Set(1)
	s.n.cookieSwitches.Add(1)
	s.env.Log.Info("SYNs are answered with cookies", "pending", s.pending, "max_pending", s.o.MaxPending)
}

// checkCookies ends cookies when they are not needed any more: in the last
// HandshakeTimeout fewer than a quarter of MaxPending would have taken a place
// and not let go of it.
func (s *Stack) checkCookies(now int64) {
	y := &s.syns
	if !y.on || s.o.SYNCookies != CookiesAuto {
		return
	}
	sent, good := s.env.SYNs.SYNsAnswered()
	few := uint64(s.o.MaxPending/4) * uint64(max(s.env.Workers, 1))
	switch {
	case 4*s.pending > s.o.MaxPending || sent-y.sent > good-y.good+few:
		y.since, y.sent, y.good = now, sent, good
	case now-y.since >= int64(s.o.HandshakeTimeout):
		s.answerSYNs(false, now)
	}
}

// beginCookie takes over a connection whose client has given a good cookie
// back, and dials the server. The client holds it for established: it cannot be
// bypassed any more, and is reset if it cannot be had.
func (s *Stack) beginCookie(p *pipeline.Packet, t wire.TCP, key wire.Flow, reversed bool, now int64) {
	if s.closed || s.cannotTerminate(p) != nil {
		p.Drop(ReasonUnsupported)
		return
	}
	if !verified(p) {
		p.Drop(pipeline.ReasonL4Checksum)
		return
	}
	offered, stamp := cookieOptions(p, t)
	if s.o.MSSClamp > 0 {
		offered.mss = min(offered.mss, s.o.MSSClamp)
	}
	syn := cookieSYN(p, t, offered)
	f := s.newFlow(p, wire.TCP(syn[p.L4-p.L3:]), offered, now)
	f.key, f.rev, f.syn.packet = key, reversed, syn
	f.cookie = &cookie{iss: t.Ack() - 1, stamp: stamp}
	var which *pipeline.Counter
	var why pipeline.Reason
	switch {
	case s.active >= s.o.MaxFlows:
		which, why = s.n.flowLimit, ReasonFlowLimit
	case s.pending >= s.o.MaxPending && !s.evictHalfOpen(now):
		which, why = s.n.pendingLimit, ReasonPendingLimit
	case s.full(&p.Flow):
		which, why = s.n.clientLimit, ReasonClientLimit
	default:
		place, ok := s.flows.Insert(key, now)
		if !ok {
			s.evictLingering(now)
			if place, ok = s.flows.Insert(key, now); !ok {
				which, why = s.n.flowLimit, ReasonFlowLimit
				break
			}
		}
		*place = f
	}
	if which != nil {
		which.Add(1)
		s.refuseClient(f)
		p.Drop(why)
		return
	}
	s.active++
	s.count(&p.Flow, 1)
	s.pending++
	s.n.cookieFlows.Add(1)
	if err := s.open(&f.server); err != nil {
		s.n.dialFailed.Add(1)
		s.kill(f, now)
		p.Consume()
		return
	}
	s.n.dials.Add(1)
	f.setDeadline(now, s.o.DialTimeout)
	f.hold(p, t)
}

// evictStep is how many connections are looked at for one that can make room.
const evictStep = 64

// evictHalfOpen ends the oldest of some connections that are being established
// for clients that may not exist, in favour of one that does.
func (s *Stack) evictHalfOpen(now int64) bool {
	var oldest *flow
	for range min(evictStep, len(s.timed)) {
		s.evictAt = (s.evictAt + 1) % len(s.timed)
		if f := s.timed[s.evictAt]; f.state <= stateAccepting && f.cookie == nil && (oldest == nil || f.conn.Start < oldest.conn.Start) {
			oldest = f
		}
	}
	if oldest == nil {
		return false
	}
	s.n.halfOpenEvicted.Add(1)
	s.kill(oldest, now)
	return true
}

// cookieOptions returns what the client has offered in the SYN that it was sent
// a cookie for, and the timestamp that went with the cookie.
func cookieOptions(p *pipeline.Packet, t wire.TCP) (o synOptions, stamp uint32) {
	sizes := &cookieSizes4
	if p.IPVersion == 6 {
		sizes = &cookieSizes6
	}
	o.mss = sizes[p.CookieSize&3]
	_, stamp, o.stamps = timestamps(t)
	if o.stamps {
		o.sack = stamp&16 != 0
		if n := uint8(stamp & 15); n != 15 {
			o.scale, o.shift = true, min(n, 14)
		}
	}
	return o, stamp
}

// cookieSYN makes the SYN that the client has sent, near enough, from the first
// segment that it has sent after it: IP and TCP header, without checksums.
func cookieSYN(p *pipeline.Packet, t wire.TCP, o synOptions) []byte {
	const size = wire.TCPLen + 20
	ip := int(p.L4 - p.L3)
	b := make([]byte, ip+size)
	copy(b, p.Bytes()[p.L3:p.L4])
	syn := wire.TCP(b[ip:])
	syn.SetSrcPort(t.SrcPort())
	syn.SetDstPort(t.DstPort())
	syn.SetSeq(t.Seq() - 1)
	syn.SetDataOffset(size)
	syn.SetFlags(wire.FlagSYN)
	syn.SetWindow(uint16(min(uint32(t.Window())<<o.shift, 65535)))
	opts := syn.Options()
	nop(opts)
	copy(opts, []byte{wire.OptMSS, 4, byte(o.mss >> 8), byte(o.mss)})
	if o.sack {
		copy(opts[4:], []byte{wire.OptSACKPermitted, 2})
	}
	if o.stamps {
		val, _, _ := timestamps(t)
		copy(opts[6:], []byte{wire.OptTimestamps, 10})
		binary.BigEndian.PutUint32(opts[8:], val)
		binary.BigEndian.PutUint32(opts[12:], 0)
	}
	if o.scale {
		copy(opts[17:], []byte{wire.OptWindowScale, 3, o.shift})
	}
	return b
}

// hold keeps a segment of the client until netstack can take it: what was
// offered to the client, and no more.
func (f *flow) hold(p *pipeline.Packet, t wire.TCP) {
	c := f.cookie
	n := len(t.Payload())
	if t.Flags()&(wire.FlagACK|wire.FlagSYN|wire.FlagRST) != wire.FlagACK || t.Ack() != c.iss+1 ||
		len(c.held) == cookieHeld || c.bytes+n > cookieWindow {
		p.Drop(ReasonOutOfState)
		return
	}
	c.held, c.bytes = append(c.held, append([]byte(nil), p.Bytes()[p.L3:p.End]...)), c.bytes+n
	p.Consume()
}

// fromCookie makes of a segment that comes from the client what it is to
// netstack. False: it was dealt with. While there is an endpoint, the checksum is
// not kept.
func (s *Stack) fromCookie(f *flow, p *pipeline.Packet, t wire.TCP) bool {
	if f.state < stateOpen && !f.client.firstSent && t.Flags()&wire.FlagRST == 0 {
		f.packets++
		f.hold(p, t)
		return false
	}
	f.cookie.in(t)
	if f.client.ep == nil {
		wire.FillL4(p.Bytes(), &p.Headers) // deliver hands it to netstack's network layer, which looks
	}
	return true
}

// in takes off what comes from the client what is added to what goes to it.
func (c *cookie) in(t wire.TCP) { c.back(t, -c.seq, -c.ts) }

// undo makes of a segment what it was before in.
func (c *cookie) undo(t wire.TCP) { c.back(t, c.seq, c.ts) }

func (c *cookie) back(t wire.TCP, seq, ts uint32) {
	if t.Flags()&wire.FlagACK == 0 {
		return
	}
	t.SetAck(t.Ack() + seq)
	it := wire.IterTCPOptions(t.Options())
	for it.Next() {
		switch v := it.Value; it.Kind {
		case wire.OptTimestamps:
			if len(v) == 8 {
				binary.BigEndian.PutUint32(v[4:], binary.BigEndian.Uint32(v[4:])+ts)
			}
		case wire.OptSACK:
			for ; len(v) >= 4; v = v[4:] {
				binary.BigEndian.PutUint32(v, binary.BigEndian.Uint32(v)+seq)
			}
		}
	}
}

// out adds to what netstack sends to the client.
func (c *cookie) out(t wire.TCP) {
	t.SetSeq(t.Seq() + c.seq)
	it := wire.IterTCPOptions(t.Options())
	for it.Next() {
		if v := it.Value; it.Kind == wire.OptTimestamps && len(v) == 8 {
			binary.BigEndian.PutUint32(v, binary.BigEndian.Uint32(v)+c.ts)
		}
	}
}

// rule is in, for fragments: their checksum is netstack's to verify.
func (c *cookie) rule() rewrite.Rule {
	return rewrite.Rule{Flags: rewrite.AddAck | rewrite.AddTS, Ack: -c.seq, TSEcr: -c.ts}
}

// cookieFragment does what segment does for the first fragment of a segment of
// a client.
func (s *Stack) cookieFragment(f *flow, p *pipeline.Packet, now int64) {
	r := f.cookie.rule()
	if !f.client.firstSent || r.ApplySlow(p.Bytes(), &p.Headers) != rewrite.Done {
		p.Drop(ReasonOutOfState)
		return
	}
	s.firstFragment(p, now)
}

// wireSeq is what is added to the sequence numbers of the leg on the wire, and
// wireTS to its timestamps.
func (l *leg) wireSeq() uint32 {
	if l.toServer || l.f.cookie == nil {
		return 0
	}
	return l.f.cookie.seq
}

func (l *leg) wireTS() uint32 {
	if l.toServer || l.f.cookie == nil {
		return 0
	}
	return l.f.cookie.ts
}

// heardCookie takes netstack's SYN-ACK, which the client shall not have: from
// now on it is known by how much netstack's numbers differ from the client's.
func (s *Stack) heardCookie(l *leg, t wire.TCP) {
	if l.firstSent {
		return
	}
	c := l.f.cookie
	l.iss, l.firstSent = t.Seq(), true
	l.sndMax, l.acked, l.ackSent = l.iss+1, l.iss, t.Ack()
	c.seq = c.iss - l.iss
	o := parseSYN(t)
	l.scale = o.shift
	if val, _, ok := timestamps(t); ok {
		c.ts, l.tsOut = c.stamp-val, val
	}
	answer := s.synAnswer()
	l.edge = t.Ack() + uint32(answer.Window)
	l.wanted = l.edge
	s.revisit(l.f)
}

// giveHeld gives netstack what the client has sent so far.
func (s *Stack) giveHeld(f *flow) {
	c := f.cookie
	if c == nil || !f.client.firstSent {
		return
	}
	held := c.held
	c.held, c.bytes = nil, 0
	for _, b := range held {
		var h wire.Headers
		h.ParseIP(b)
		t := wire.TCP(b[h.L4:h.End])
		c.in(t)
		f.client.saw(t)
		if s.splices {
			f.client.received(t)
		}
		wire.FillL4(b, &h)
		s.inject(b, f.conn.Flow.V6, true)
	}
}

// compareCookie notes what the server has agreed to, and has netstack offer the
// client what the SYN-ACK with the cookie did.
func (f *flow) compareCookie(server synOptions, answer pipeline.SYNAnswer) {
	o, a := &f.syn.offered, &f.syn.accepted
	mss := answer.MSS4
	if f.conn.Flow.V6 {
		mss = answer.MSS6
	}
	f.cookie.unlike = a.scale != o.scale || a.sack != o.sack || a.stamps != o.stamps || server.mss < mss
	f.syn.accepted = *o
	f.client.offered = *o
}
