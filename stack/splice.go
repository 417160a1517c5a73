package stack

import (
	"fmt"
	"time"

	"penstock/internal/rewrite"
	"penstock/internal/wire"
	"penstock/pipeline"
)

// wish is how far the stack has come with wanting to splice a flow, which is
// that its two connections become one again: constants are added to what the
// packets of one say, and they are packets of the other. It can be done when
// nothing is on its way in either of them.
type wish struct {
	made    bool  // nobody needs the bytes any more
	capping bool  // windows are capped, so that the ends come to rest
	until   int64 // capping ends then; or begins then, if it has ended before
	pause   int64 // before it begins again
	since   int64 // when the wish was made
	at      int   // index in Stack.wishes plus one; 0: not there
}

const (
	// quietWait is how long the windows of a flow may be capped. Then they are
	// opened again, and the next try comes later.
	quietWait  = int64(500 * time.Millisecond)
	retryFirst = int64(time.Second)
	retryMost  = int64(time.Minute)
)

// spliced is a connection whose packets are translated and forwarded.
type spliced struct {
	rules [2]rewrite.Rule // by Direction
	start int64           // when it was spliced
	asked int64           // when XDP was asked last to take it
	taken bool            // and has: what comes up is what XDP does not translate
	// joining: XDP has not answered yet.
	joining bool
	// owed says, by leg, that its end has to hear of an acknowledgment or of an
	// open window: once XDP has the flow, or what it then sends would be overtaken.
	owed [2]bool
	heard
	// The acknowledgment of a SYN of the client's that was let through to the
	// server, if there was one.
	asks   bool
	answer uint32
}

// wantSplice notes that no stream stage needs the flow any more.
func (s *Stack) wantSplice(f *flow, now int64) {
	if !s.splices || f.wish.made || f.watching > 0 {
		return
	}
	if f.cookie != nil && f.cookie.unlike {
		s.n.cookieUnlike.Add(1)
		return
	}
	f.wish = wish{made: true, capping: true, until: now + quietWait, pause: retryFirst, since: now}
	s.wishes = append(s.wishes, f)
	f.wish.at = len(s.wishes)
	s.revisit(f)
}

// dropWish takes a flow off the list of those that want to be spliced.
func (s *Stack) dropWish(f *flow) {
	if f.wish.at == 0 {
		return
	}
	last := s.wishes[len(s.wishes)-1]
	s.wishes[f.wish.at-1] = last
	last.wish.at = f.wish.at
	s.wishes[len(s.wishes)-1] = nil
	s.wishes = s.wishes[:len(s.wishes)-1]
	f.wish = wish{}
}

// checkWishes opens the windows of flows that do not come to rest, and tries
// again with those that have had their pause.
func (s *Stack) checkWishes(now int64) {
	for _, f := range s.wishes {
		w := &f.wish
		if now < w.until {
			continue
		}
		if w.capping {
			s.n.spliceBusy.Add(1)
			w.capping, w.until = false, now+w.pause
			w.pause = min(2*w.pause, retryMost)
			for _, l := range [...]*leg{&f.client, &f.server} {
				if l.capped() && l.ep != nil {
					l.edge = l.wanted
					s.sendACK(l, l.ackSent, uint16(min(uint32(max(int32(l.wanted-l.ackSent), 0))>>l.scale, 65535)))
				}
			}
			continue
		}
		w.capping, w.until = true, now+quietWait
		s.revisit(f)
	}
}

// quiet reports whether nothing of the connection is on its way: all that one
// end has sent is acknowledged by the other, and what we have sent as well. Holes,
// what waits in netstack, in a stream stage or in a queue of ours: all make the
// sums differ. FINs count as bytes do.
func (f *flow) quiet() bool {
	c, v := &f.client, &f.server
	return f.state == stateOpen && f.resetting == nil && !f.denying && !(c.finIn && v.finIn) &&
		c.sndMax == c.acked && v.sndMax == v.acked &&
		c.rcvMax-c.isn == v.acked-v.iss && v.rcvMax-v.isn == c.acked-c.iss
}

// spliceBounds are in seconds.
var spliceBounds = []float64{1e-5, 1e-4, 1e-3, 0.01, 0.1, 1, 10}

// trySplice splices a flow that is quiet. p, the packet that has made it so, if
// it was one, becomes the first that is translated; true says that it was dealt
// with. It came from the end of leg l and is not yet noted but for its
// acknowledgment.
func (s *Stack) trySplice(f *flow, l *leg, p *pipeline.Packet, t wire.TCP, now int64) bool {
	if !f.wish.made || !f.wish.capping || !f.quiet() {
		return false
	}
	if p != nil && (t.Seq() != l.rcvMax || t.Flags()&(wire.FlagSYN|wire.FlagRST) != 0) {
		return false
	}
	if p != nil && t.Flags()&wire.FlagACK != 0 {
		l.window = t.Window()
	}
	y := &spliced{start: now, rules: f.rules(), joining: true, heard: f.heard()}
	for i, l := range [...]*leg{&f.client, &f.server} {
		y.owed[i] = l.capped() || int32(l.rcvMax-l.ackSent) > 0
	}
	s.n.spliced.Add(1)
	s.quietTimes.Observe(float64(now-f.wish.since) / 1e9)
	s.dropWish(f)
	f.client.mute, f.server.mute = true, true
	streams := s.shut(f)
	f.state, f.splice = stateSpliced, y
	closeStreams(streams, now)
	s.install(f, now)
	if p == nil {
		return true
	}
	if p.Payload == p.End && t.Flags()&^wire.FlagPSH == wire.FlagACK {
		p.Consume() // both ends are told what it says
		y.owed = [2]bool{true, true}
		return true
	}
	// It carries the acknowledgment and the window of its end, and is answered.
	y.owed = [2]bool{}
	if f.cookie != nil && l == &f.client {
		f.cookie.undo(t)
	}
	s.translate(f, p, now)
	return true
}

// rules returns what is added to the packets of a quiet flow.
func (f *flow) rules() (r [2]rewrite.Rule) {
	for d := range r {
		from, to := f.ends(pipeline.Direction(d))
		r[d] = rewrite.Rule{
			Flags: rewrite.AddSeq | rewrite.AddAck,
			Seq:   to.sndMax + to.wireSeq() - from.rcvMax,
			Ack:   to.rcvMax - from.sndMax - from.wireSeq(),
		}
		if f.stamps {
			r[d].Flags |= rewrite.AddTS
			r[d].TSVal = to.tsOut + to.wireTS() - from.tsIn
			r[d].TSEcr = to.tsIn - from.tsOut - from.wireTS()
		}
		if by := int8(from.shift) - int8(to.scale); by != 0 {
			r[d].Flags |= rewrite.ShiftWindow
			r[d].WindowShift = by
		}
	}
	return r
}

// install asks XDP to take a spliced flow.
func (s *Stack) install(f *flow, now int64) {
	y := f.splice
	y.asked = now
	s.env.Splicer.Splice(pipeline.Splice{Flow: f.conn.Flow, Rules: &y.rules, Done: func(taken bool) {
		y.taken, y.joining, y.deaf = taken, false, y.deaf || taken
		if taken {
			s.n.spliceTaken.Add(1)
		} else {
			s.n.spliceRefused.Add(1)
		}
		if f.state == stateSpliced && (y.owed[0] || y.owed[1]) {
			s.enqueue(f) // see payOwed
		}
	}})
}

// payOwed tells the ends of a spliced flow what nobody else would tell them. Not
// before XDP has answered, though the flow may have other events: an end whose window is
// opened sends a burst, and of one that begins in user space and goes on in XDP the
// first part is overtaken by the rest, which looks like a loss.
func (s *Stack) payOwed(f *flow) {
	y := f.splice
	if y.joining {
		return
	}
	for i, l := range [...]*leg{&f.client, &f.server} {
		if !y.owed[i] {
			continue
		}
		y.owed[i] = false
		other := &f.server
		if i == 1 {
			other = &f.client
		}
		w := uint32(other.window) << other.shift >> l.scale
		if w == 0 && other.window > 0 {
			w = 1
		}
		s.sendACK(l, l.rcvMax, uint16(min(w, 65535)))
	}
}

// reinstallAfter is how long XDP is left alone after it was asked to take a flow.
const reinstallAfter = int64(100 * time.Millisecond)

// translate makes a packet of one end one for the other. The packet is checked,
// and is no SYN.
func (s *Stack) translate(f *flow, p *pipeline.Packet, now int64) {
	y := f.splice
	_, reversed := tableKey(p.Flow)
	d := pipeline.ToServer
	if reversed != f.rev {
		d = pipeline.ToClient
	}
	b := p.Bytes()
	y.hear(d, wire.TCP(b[p.L4:p.End]), y.rules[d].Seq)
	switch y.rules[d].Apply(b, &p.Headers) {
	case rewrite.Done:
		s.n.translated.Add(1)
		if now-y.asked > reinstallAfter && !y.over() {
			s.install(f, now) // a SYN, or the table's clock, has brought it up
		}
	default:
		if y.rules[d].ApplySlow(b, &p.Headers) != rewrite.Done {
			p.Drop(ReasonSplice)
			return
		}
		s.n.translatedSlow.Add(1)
	}
	f.packets++
	if y.over() && f.deadline == 0 {
		f.setDeadline(now, s.o.TimeWait+time.Second)
	}
	p.Continue()
}

// why says why a flow is not spliced.
func (f *flow) why(s *Stack, now int64) string {
	switch w := &f.wish; {
	case f.watching > 0:
		return fmt.Sprintf("%d of the stream stages behind the tcp stage want its bytes", f.watching)
	case !s.splices:
		return "the tcp stage terminates it"
	case f.cookie != nil && f.cookie.unlike:
		return "it began with a SYN cookie, and the server's options are not those that the client was told"
	case f.state != stateOpen:
		return "it is being established or closed"
	case w.made && w.capping:
		return fmt.Sprintf("it waits since %v for a moment in which nothing is on its way, to be spliced", time.Duration(now-w.since).Round(time.Millisecond))
	case w.made:
		return fmt.Sprintf("it did not come to rest, to be spliced; the next try is in %v", time.Duration(w.until-now).Round(time.Millisecond))
	}
	return "the tcp stage terminates it"
}

// info describes a spliced flow.
func (y *spliced) info(f *flow) pipeline.FlowInfo {
	i := pipeline.FlowInfo{
		Flow: f.conn.Flow, Depth: pipeline.DepthForward, State: f.state.String(),
		Why: "XDP has not taken it; its packets are translated in user space", Start: f.conn.Start, Since: y.start, Packets: f.packets,
		Bytes: f.dir[pipeline.ToServer].bytes + f.dir[pipeline.ToClient].bytes,
	}
	if y.taken {
		i.Depth, i.Why = pipeline.DepthOffload, ""
	}
	return i
}

// splicedSYN decides on a SYN of a spliced connection. If that has ended, it
// begins a new one. Otherwise the ends decide (RFC 5961, section 4): the server
// answers with an acknowledgment of what it has, and a client that has lost its
// connection answers that with a reset. A server that answers with a SYN-ACK has
// lost the connection: the SYN-ACK is of no use, since no stage would see what
// follows, and the client's next SYN begins anew. One that nobody has asked for is
// dropped: who does not see the packets cannot know what the client's SYN has become.
func (s *Stack) splicedSYN(f *flow, p *pipeline.Packet, t wire.TCP, fromClient bool, key wire.Flow, reversed bool, now int64) {
	y := f.splice
	switch {
	case fromClient && (p.Anew || y.over()):
		s.n.reused.Add(1)
		s.forget(f, now)
		s.begin(p, t, key, reversed, now)
		return
	case !fromClient:
		if t.Flags()&wire.FlagACK != 0 && y.asks && t.Ack() == y.answer {
			y.reset = true
			f.client.mute, f.server.mute = false, false
			if f.server.l3len != 0 { // of an adopted one nobody knows what its frames look like
				s.sendBare(&f.server, t.Ack(), 0, wire.FlagRST)
			}
		}
		p.Drop(ReasonOutOfState)
		return
	}
	t.SetSeq(t.Seq() + y.rules[pipeline.ToServer].Seq)
	y.asks, y.answer = true, t.Seq()+1
	wire.FillL4(p.Bytes(), &p.Headers)
	p.Continue()
}

// spliceError translates an ICMP error about a packet of a spliced flow: of the
// end that has sent it, it quotes what it has never sent.
func (s *Stack) spliceError(f *flow, p *pipeline.Packet, toClient bool) {
	y := f.splice
	// The error goes where the quoted packet came from.
	outer, quoted := &y.rules[pipeline.ToClient], &y.rules[pipeline.ToServer]
	if !toClient {
		outer, quoted = quoted, outer
	}
	inner := quoted.Inverse(&f.conn.Flow)
	if outer.ApplyQuoted(p.Bytes(), &p.Headers, &inner) != rewrite.Done {
		p.Drop(ReasonICMPQuote)
		return
	}
	s.n.icmpTranslated.Add(1)
	p.Continue()
}

// FlowEnded says that XDP has forgotten a flow, named by either direction. One
// that was spliced is forgotten here as well.
func (s *Stack) FlowEnded(flow wire.Flow, now int64) {
	key, _ := tableKey(flow)
	if v, ok := s.flows.Peek(key); ok && (*v).state == stateSpliced {
		s.forget(*v, now)
	}
}
