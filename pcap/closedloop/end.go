package closedloop

import (
	"bytes"

	"penstock/internal/wire"
)

// endState is how far an end has come.
type endState uint8

const (
	listening endState = iota // the server, before the SYN
	refusing                  // a server that answers the SYN with a reset
	synSent
	synReceived
	established
	ended // it has sent and received everything, or there was a reset
)

const (
	firstRTO     = int64(250e6) // ns
	maxRTO       = int64(4e9)
	maxRetries   = 25
	keepAlive    = int64(20e9)
	resetRepeat  = int64(1e9)
	flightBytes  = 64 << 10
	defaultMSS   = 536
	windowBytes  = 256 << 10
	dupThreshold = 3
)

// end is one end of a connection that is played: a small TCP (RFC 9293) that
// sends what its script says, repeats what is lost (RFC 6582 without a
// congestion window: the wires are as wide as one wants), and compares what it
// receives with the capture.
type end struct {
	s     *session
	side  int
	state endState
	look  look

	// What it sends. Positions are those of a stream.
	own       *stream
	steps     []step
	at        int    // the next step
	excused   uint64 // position of the other end's stream that its steps need not wait for
	hasty     bool   // its reset need not wait for what comes before it
	limit     uint64 // position behind what may be sent
	finish    bool   // a FIN follows at limit
	una, nxt  uint64
	max       uint64 // highest position sent
	mss       int
	peerWnd   uint64
	peerShift int
	dups      int
	recover   uint64 // while una is below: repair holes one after the other
	retries   int
	rto       int64

	// What it receives.
	other   *stream
	irs     uint32
	rcv     uint64 // position expected next; 0 before the SYN
	early   []span // behind a gap
	finAt   uint64
	gotFIN  bool
	differs int64 // offset of the first byte that is not the capture's; -1: none

	opts     synOptions // in use
	stampIn  uint32     // TSval of the last segment in order
	ackNow   bool
	touched  bool // in world.touched
	reset    bool // a reset came
	resetOut bool // a reset was sent
	failed   bool // it gave up repeating
	timer    *timer
	due      int64
	pace     *timer
}

// span is received bytes behind a gap.
type span struct{ from, to uint64 }

func newEnd(s *session, side int) *end {
	c := s.c
	e := &end{
		s: s, side: side, look: c.looks[side], own: &c.dir[side], other: &c.dir[1-side], steps: c.steps[side],
		limit: 1, mss: defaultMSS, peerWnd: 1, rto: firstRTO, differs: -1, opts: c.dir[side].syn,
	}
	if !e.look.set {
		e.look = c.looks[1-side].mirrored()
	}
	return e
}

// mirrored is how the other end looks, of which no packet was captured.
func (l look) mirrored() look {
	m := look{ttl: 64, set: true, link: bytes.Clone(l.link)}
	copy(m.link, l.link[6:12])
	copy(m.link[6:], l.link[:6])
	return m
}

// offset returns how many bytes of the other end have come in order.
func (e *end) offset() uint64 {
	switch {
	case e.rcv == 0:
		return 0
	case e.gotFIN:
		return e.rcv - 2
	}
	return e.rcv - 1
}

// receive takes a segment in.
func (e *end) receive(t wire.TCP, payload []byte) {
	flags := t.Flags()
	e.touch()
	switch e.state {
	case listening, refusing:
		if flags&(wire.FlagSYN|wire.FlagACK|wire.FlagRST) == wire.FlagSYN {
			e.answer(t)
		}
		return
	case synSent:
		e.opened(t)
		return
	case ended:
		e.afterwards(t, payload)
		return
	}
	at := int64(e.rcv) + int64(int32(t.Seq()-(e.irs+uint32(e.rcv))))
	if flags&wire.FlagSYN != 0 {
		if at == 0 && e.state == synReceived {
			e.syn() // the answer was lost
		} else {
			e.ackNow = true // RFC 5961 section 4
		}
		return
	}
	if flags&wire.FlagRST != 0 {
		if at >= int64(e.rcv)-1 && at <= int64(e.rcv)+windowBytes {
			e.reset = true
			e.end()
		}
		return
	}
	if flags&wire.FlagACK == 0 {
		return
	}
	e.acknowledged(t, len(payload) == 0 && flags&wire.FlagFIN == 0)
	e.take(at, payload, flags&wire.FlagFIN != 0)
	if e.opts.stamps && at <= int64(e.rcv) {
		if v, ok := stampOf(t); ok {
			e.stampIn = v
		}
	}
	e.release()
	e.checkEnd()
}

// answer takes the client's SYN in.
func (e *end) answer(t wire.TCP) {
	e.irs, e.rcv = t.Seq(), 1
	if e.state == refusing {
		e.s.w.segment(e, wire.FlagRST|wire.FlagACK, 0, 0, 0, nil)
		e.resetOut = true
		e.end()
		return
	}
	e.agree(t)
	e.state = synReceived
	e.syn()
}

// opened takes what answers the client's SYN in.
func (e *end) opened(t wire.TCP) {
	flags := t.Flags()
	if flags&wire.FlagACK == 0 || t.Ack() != e.own.isn+1 {
		return
	}
	if flags&wire.FlagRST != 0 {
		e.reset = true
		e.end()
		return
	}
	if flags&wire.FlagSYN == 0 {
		return
	}
	e.irs, e.rcv = t.Seq(), 1
	e.agree(t)
	e.una, e.peerWnd = 1, uint64(t.Window()) // not scaled in a SYN
	e.establish()
	e.ackNow = true
}

func (e *end) establish() {
	e.state, e.retries, e.rto = established, 0, firstRTO
	e.s.progress()
	e.release()
}

// agree takes the options over that both ends have.
func (e *end) agree(t wire.TCP) {
	o := readOptions(t)
	e.opts.sack = e.opts.sack && o.sack
	e.opts.stamps = e.opts.stamps && o.stamps
	if e.opts.shift >= 0 && o.shift >= 0 {
		e.peerShift = o.shift
	} else {
		e.opts.shift = -1
	}
	most := e.s.w.mss(e.s.c.flow.V6)
	e.mss = defaultMSS
	if o.mss > 0 {
		e.mss = max(min(int(o.mss), most), 48)
	}
	if e.opts.stamps {
		e.mss -= 12
		e.stampIn, _ = stampOf(t)
	}
	e.peerWnd = uint64(t.Window())
}

func stampOf(t wire.TCP) (v uint32, ok bool) {
	it := t.OptionIter()
	for it.Next() {
		if v, _, ok := it.Timestamps(); ok {
			return v, true
		}
	}
	return 0, false
}

// acknowledged takes an acknowledgment and a window in.
func (e *end) acknowledged(t wire.TCP, bare bool) {
	a := int64(e.una) + int64(int32(t.Ack()-(e.own.isn+uint32(e.una))))
	if a > int64(e.max) {
		e.ackNow = true
		return
	}
	wnd := uint64(t.Window()) << e.peerShift
	opened := wnd > e.peerWnd
	same := wnd == e.peerWnd
	e.peerWnd = wnd
	if a > int64(e.una) {
		e.una, e.nxt = uint64(a), max(e.nxt, uint64(a))
		e.dups, e.retries, e.rto = 0, 0, firstRTO
		e.s.progress()
		if e.state == synReceived {
			e.establish()
		}
		if e.una < e.recover {
			e.repeat()
		}
		e.rearm()
		return
	}
	if a == int64(e.una) && bare && same && e.una < e.nxt && !opened {
		if e.dups++; e.dups == dupThreshold && e.una >= e.recover {
			e.recover = e.nxt
			e.repeat()
		}
	}
}

// take takes payload in.
func (e *end) take(at int64, payload []byte, fin bool) {
	if len(payload) == 0 && !fin {
		if at < int64(e.rcv) {
			e.ackNow = true // a keep-alive
		}
		return
	}
	e.ackNow = true
	end := at + int64(len(payload))
	if fin {
		e.finAt = uint64(max(end, 1))
	}
	if at < 1 {
		payload = payload[min(1-at, int64(len(payload))):]
		at = 1
	}
	if at > int64(e.rcv)+windowBytes {
		return
	}
	e.compare(uint64(at), payload)
	if n := uint64(len(payload)); n > 0 && uint64(at)+n > e.rcv {
		e.insert(span{max(uint64(at), e.rcv), uint64(at) + n})
		if uint64(at) > e.rcv {
			e.sendACK() // out of order: each one tells
		}
	}
	before := e.rcv
	for len(e.early) > 0 && e.early[0].from <= e.rcv {
		e.rcv = max(e.rcv, e.early[0].to)
		e.early = e.early[1:]
	}
	if e.finAt > 0 && e.rcv == e.finAt && !e.gotFIN {
		e.gotFIN = true
		e.rcv++
	}
	if e.rcv > before {
		e.s.progress()
		e.s.ends[1-e.side].touch() // its reset may have waited for this
	}
}

// insert adds a span, merged with its neighbours.
func (e *end) insert(n span) {
	out := e.early[:0:0]
	placed := false
	for _, s := range e.early {
		switch {
		case s.to < n.from:
			out = append(out, s)
		case s.from > n.to:
			if !placed {
				out, placed = append(out, n), true
			}
			out = append(out, s)
		default:
			n = span{min(n.from, s.from), max(n.to, s.to)}
		}
	}
	if !placed {
		out = append(out, n)
	}
	e.early = out
}

// compare looks whether bytes are those of the capture.
func (e *end) compare(at uint64, b []byte) {
	want := e.other.bytes
	from := min(at-1, uint64(len(want)))
	have := want[from:min(from+uint64(len(b)), uint64(len(want)))]
	if bytes.Equal(b[:len(have)], have) && len(have) == len(b) {
		return
	}
	i := 0
	for i < len(have) && have[i] == b[i] {
		i++
	}
	if off := int64(at-1) + int64(i); e.differs < 0 || off < e.differs {
		e.differs = off
	}
}

// afterwards answers what comes when all is over.
func (e *end) afterwards(t wire.TCP, payload []byte) {
	flags := t.Flags()
	if flags&wire.FlagRST != 0 {
		e.reset = true
		return
	}
	if e.reset || e.resetOut || e.failed {
		if e.s.c.refused && flags&wire.FlagSYN != 0 {
			e.irs = t.Seq() // whoever asks again may have begun anew
		}
		if !e.s.refusedTwice() {
			e.sendReset()
		}
		return
	}
	e.acknowledged(t, false)
	if len(payload) > 0 || flags&(wire.FlagFIN|wire.FlagSYN) != 0 {
		e.ackNow = true // our last acknowledgment was lost
	}
}

// end makes this the last state.
func (e *end) end() {
	e.state = ended
	e.ackNow = e.ackNow && !e.reset && !e.resetOut
	e.rearm()
	e.s.progress()
	e.s.checkOver()
}

func (e *end) checkEnd() {
	if e.state == established && e.finish && e.una > e.limit && e.gotFIN {
		e.end()
	}
}
