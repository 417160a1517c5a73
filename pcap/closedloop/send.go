package closedloop

import (
	"encoding/binary"

	"penstock/internal/wire"
)

// touch has the end send what it can once the packets of this moment are in.
func (e *end) touch() {
	if !e.touched {
		e.touched = true
		e.s.w.touched = append(e.s.w.touched, e)
	}
}

// open sends the client's SYN.
func (e *end) open() {
	e.state = synSent
	e.syn()
}

// syn sends a SYN or its answer.
func (e *end) syn() {
	flags := wire.FlagSYN
	if e.state == synReceived {
		flags |= wire.FlagACK
	}
	e.nxt, e.max = max(e.nxt, 1), max(e.max, 1)
	e.s.w.segment(e, flags, 0, 0, 0, nil)
	e.rearm()
}

// release begins the steps whose time has come.
func (e *end) release() {
	if e.state != established {
		return
	}
	s := e.s
	if e.gotFIN && !e.finish && e.cutShort() {
		// The other end has finished before its time: nothing is to be waited for.
		e.at = len(e.steps)
		e.finish = true
	}
	for e.at < len(e.steps) {
		st := &e.steps[e.at]
		if e.rcv < st.need && st.need > e.excused {
			break
		}
		if st.rst && s.ends[1-e.side].rcv < st.to && !e.hasty {
			break
		}
		if !s.due(st) {
			e.wake(st)
			break
		}
		e.at++
		e.limit = max(e.limit, st.to)
		s.progress()
		if st.fin {
			e.finish = true
		}
		if st.rst {
			e.resetOut = true
			e.sendReset()
			e.end()
			return
		}
	}
}

// cutShort reports whether the other end's FIN has come where the capture has
// none.
func (e *end) cutShort() bool { return e.other.fin == 0 || e.rcv-1 < e.other.fin }

// wake looks again when a step's time has come.
func (e *end) wake(st *step) {
	if e.pace != nil && e.pace.on {
		return
	}
	e.pace = e.s.w.after(e.s.dueAt(st)-e.s.w.now, func() { e.release(); e.flush() })
}

// flush sends what may be sent, and an acknowledgment if one is owed.
func (e *end) flush() {
	e.touched = false
	if e.state == established {
		e.release()
	}
	if e.state == established {
		for e.sendable() {
			e.push()
		}
	}
	if e.ackNow && e.rcv > 0 {
		e.sendACK()
	}
	if e.nxt < e.stop() && e.una == e.nxt && (e.timer == nil || e.due > e.s.w.now+e.rto) {
		e.rearm() // the window is closed
	}
}

// stop returns the position behind everything that may be sent.
func (e *end) stop() uint64 {
	if e.finish {
		return e.limit + 1
	}
	return e.limit
}

func (e *end) sendable() bool {
	return e.nxt < e.stop() && (e.nxt < e.una+min(e.peerWnd, flightBytes) || e.nxt == e.limit)
}

// push sends the next segment.
func (e *end) push() {
	idle := e.una == e.nxt
	e.nxt += e.transmit(e.nxt, e.una+min(e.peerWnd, flightBytes), true)
	e.max = max(e.max, e.nxt)
	if idle {
		e.rearm()
	}
}

// transmit sends a segment from position at on, of bytes below most and, if fin
// allows it, the FIN, and returns how much of the stream it covers.
func (e *end) transmit(at, most uint64, fin bool) uint64 {
	n := uint64(0)
	if at < e.limit {
		n = min(uint64(e.mss), e.limit-at, max(most, at+1)-at)
	}
	flags := wire.FlagACK
	if n > 0 && at+n == e.limit {
		flags |= wire.FlagPSH
	}
	covers := n
	if e.finish && fin && at+n == e.limit {
		flags |= wire.FlagFIN
		covers++
	}
	var payload []byte
	if n > 0 {
		payload = e.own.bytes[at-1 : at-1+n]
	}
	e.s.w.segment(e, flags, at, e.rcv, n, payload)
	e.ackNow = false
	return covers
}

// repeat sends the oldest segment again that was not acknowledged.
func (e *end) repeat() {
	if e.una == 0 {
		e.syn()
		return
	}
	if e.una < e.max {
		e.transmit(e.una, e.max, e.max > e.limit)
	}
}

func (e *end) sendACK() {
	e.ackNow = false
	e.s.w.segment(e, wire.FlagACK, e.nxt, e.rcv, 0, nil)
}

func (e *end) sendReset() {
	e.s.resets++
	e.s.w.segment(e, wire.FlagRST|wire.FlagACK, e.nxt, e.rcv, 0, nil)
	e.rearm()
}

// rearm sets the timer for what the end waits for.
func (e *end) rearm() {
	wait := keepAlive
	switch {
	case e.state == ended && !e.resetOut, e.state == listening, e.state == refusing:
		e.due = 0
		return
	case e.resetOut:
		wait = resetRepeat
	case e.una < e.nxt || e.nxt < e.stop():
		wait = e.rto
	}
	e.due = e.s.w.now + wait
	if e.timer != nil && e.timer.on && e.timer.at <= e.due {
		return // it looks again when it fires
	}
	if e.timer != nil {
		e.timer.stop()
	}
	e.timer = e.s.w.after(wait, e.expire)
}

// expire is called when the timer fires.
func (e *end) expire() {
	w := e.s.w
	switch {
	case e.due == 0 || e.s.over:
		return
	case w.now < e.due:
		e.timer = w.after(e.due-w.now, e.expire)
		return
	case e.resetOut:
		if !e.s.ends[1-e.side].terminal() && e.s.resets < maxRetries {
			e.sendReset()
		}
		return
	case e.state == ended:
		return
	}
	switch {
	case e.una < e.nxt:
		if e.retries++; e.retries > maxRetries {
			e.failed = true
			e.sendReset()
			e.end()
			return
		}
		e.rto = min(2*e.rto, maxRTO)
		e.recover, e.dups = e.max, 0
		e.repeat()
	case e.nxt < e.stop(): // the window is closed: ask
		e.rto = min(2*e.rto, maxRTO)
		e.push()
	default:
		w.segment(e, wire.FlagACK, e.nxt-1, e.rcv, 0, nil) // keep-alive
	}
	e.rearm()
	e.flush()
}

func (e *end) terminal() bool { return e.state == ended }

// options writes the TCP options of a segment.
func (e *end) options(b []byte, flags wire.TCPFlags) []byte {
	now := uint32(e.s.w.now / 1e6)
	if flags&wire.FlagRST != 0 {
		return b
	}
	if flags&wire.FlagSYN != 0 {
		o := e.opts
		if o.mss > 0 {
			b = append(b, wire.OptMSS, 4)
			b = binary.BigEndian.AppendUint16(b, uint16(min(int(o.mss), e.s.w.mss(e.s.c.flow.V6))))
		}
		if o.sack {
			b = append(b, wire.OptNop, wire.OptNop, wire.OptSACKPermitted, 2)
		}
		if o.shift >= 0 {
			b = append(b, wire.OptNop, wire.OptWindowScale, 3, byte(o.shift))
		}
	}
	if e.opts.stamps {
		b = append(b, wire.OptNop, wire.OptNop, wire.OptTimestamps, 10)
		b = binary.BigEndian.AppendUint32(b, now)
		b = binary.BigEndian.AppendUint32(b, e.stampIn)
	}
	if flags&wire.FlagSYN == 0 && e.opts.sack && len(e.early) > 0 {
		n := min(len(e.early), 3)
		b = append(b, wire.OptNop, wire.OptNop, wire.OptSACK, byte(2+8*n))
		for _, s := range e.early[:n] {
			b = binary.BigEndian.AppendUint32(b, e.irs+uint32(s.from))
			b = binary.BigEndian.AppendUint32(b, e.irs+uint32(s.to))
		}
	}
	return b
}

// window returns the window field of a segment.
func (e *end) window(flags wire.TCPFlags) uint16 {
	shift := max(e.opts.shift, 0)
	if flags&wire.FlagSYN != 0 {
		shift = 0
	}
	return uint16(max(min(windowBytes>>shift, 65535), 1))
}
