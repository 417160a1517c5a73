package stack

import (
	"io"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"penstock/pipeline"
)

const (
	// relayChunk is how much is read from an endpoint at once.
	relayChunk = 64 << 10
	// relayTurn is how much one direction of a connection moves in a turn,
	// before the others have theirs.
	relayTurn = 256 << 10
)

// direction is one direction of a connection: what was read from its sender
// and is not yet written to its receiver. Positions count bytes from the
// beginning of the stream.
type direction struct {
	d      pipeline.Direction
	store  []byte // what buf lies in; nil while nothing is kept
	buf    []byte // bytes base..base+len(buf)
	base   uint64 // where buf begins: what was written to the receiver
	passed uint64 // up to where every stream lets bytes go
	bytes  uint64 // written
	unsaid int    // read since netstack was told last
	eof    bool   // the sender has finished
	ended  bool   // and the streams have been told
	cut    bool   // the sender's connection is gone, or its bytes are of no interest any more
}

// end is the position behind the last byte that was read.
func (d *direction) end() uint64 { return d.base + uint64(len(d.buf)) }

// ends returns the legs that a direction leads from and to.
func (f *flow) ends(d pipeline.Direction) (src, dst *leg) {
	if d == pipeline.ToServer {
		return &f.client, &f.server
	}
	return &f.server, &f.client
}

// service does what a flow's events have asked for. True: there is more to do
// at once.
func (s *Stack) service(f *flow, now int64) (more bool) {
	switch f.state {
	case stateDialing:
		s.checkDial(f, now)
	case stateAccepting:
		s.checkAccept(f, now)
	case stateOpen:
		wanted := f.wanted()
		for _, d := range [...]pipeline.Direction{pipeline.ToServer, pipeline.ToClient} {
			if wanted[d] && s.pump(f, d, now) {
				more = true
			}
			if f.state != stateOpen {
				return false
			}
		}
		s.checkEnd(f, now)
		if f.wish.made && f.state == stateOpen {
			s.trySplice(f, nil, nil, nil, now)
		}
	case stateSpliced:
		s.payOwed(f)
	case stateClosing:
		s.checkClosed(f, now)
	}
	return more && f.state == stateOpen
}

// wanted returns the directions in which there may be something to do: whose
// sender can be read, or whose receiver can be written to again.
func (f *flow) wanted() (d [2]bool) {
	const over = waiter.EventHUp | waiter.EventErr
	c, v := waiter.EventMask(f.client.events.Swap(0)), waiter.EventMask(f.server.events.Swap(0))
	every := f.every || (c|v)&over != 0
	f.every = false
	d[pipeline.ToServer] = every || c&waiter.ReadableEvents != 0 || v&waiter.WritableEvents != 0
	d[pipeline.ToClient] = every || v&waiter.ReadableEvents != 0 || c&waiter.WritableEvents != 0
	return d
}

// pump moves the bytes of one direction until the sender has none, the
// receiver takes none, or others shall have their turn.
func (s *Stack) pump(f *flow, d pipeline.Direction, now int64) (more bool) {
	dir := &f.dir[d]
	src, dst := f.ends(d)
	if dst.sentFIN || dir.cut && len(dir.buf) == 0 && !dir.eof {
		s.discard(dir, src)
		return false
	}
	for moved := 0; ; {
		if !s.write(f, dir, dst) {
			return false // the receiver takes no more, or is gone
		}
		if dir.eof {
			s.finish(f, dir, dst, now)
			return false
		}
		if moved >= relayTurn {
			return true
		}
		room := len(s.buf)
		if f.watching > 0 {
			room = min(room, s.o.HoldBytes-len(dir.buf))
		}
		if src.ep == nil || room <= 0 {
			return false
		}
		if moved > 0 && src.ep.Readiness(waiter.ReadableEvents) == 0 {
			return false // cheaper than to try
		}
		n, err := s.read(dir, src.ep, s.buf[:room])
		if n == 0 {
			if _, again := err.(*tcpip.ErrWouldBlock); again || err == nil {
				return false
			}
			if src.dead() {
				dir.cut = true
				return false
			}
			dir.eof, src.gotFIN = true, true
			f.noteHalfClosed()
			continue
		}
		moved += n
		f.countBytes(d, n)
		if f.watching == 0 && len(dir.buf) == 0 {
			s.straight(f, dir, dst, s.buf[:n])
			continue
		}
		s.keep(dir, s.buf[:n])
		if !s.inspect(f, d, false, now) {
			return false
		}
	}
}

// straight writes bytes that no stream wants to see, and keeps what the
// receiver does not take.
func (s *Stack) straight(f *flow, dir *direction, dst *leg, b []byte) {
	n := s.give(f, dir, dst, b)
	if n < len(b) {
		s.keep(dir, b[n:])
	}
	dir.passed = dir.end()
}

// write gives the receiver what may go. False: it did not take all of it.
func (s *Stack) write(f *flow, dir *direction, dst *leg) bool {
	for dir.passed > dir.base {
		n := s.give(f, dir, dst, dir.buf[:dir.passed-dir.base])
		if n == 0 {
			return false
		}
		dir.buf = dir.buf[n:]
	}
	if len(dir.buf) == 0 {
		s.dropStore(dir)
	}
	return true
}

// give writes to netstack and returns how much it took.
func (s *Stack) give(f *flow, dir *direction, dst *leg, b []byte) int {
	if dst.ep == nil || len(b) == 0 {
		return 0
	}
	s.reader.b = b
	n64, _ := dst.ep.Write(&s.reader, tcpip.WriteOptions{Atomic: true}) // else the lock is let go of in between
	s.reader.b = nil
	n := int(n64)
	dst.written += uint32(n)
	dir.base += uint64(n)
	dir.bytes += uint64(n)
	s.owes(f)
	return n
}

// finish passes the end of a direction on, once all before it has been.
func (s *Stack) finish(f *flow, dir *direction, dst *leg, now int64) {
	if !dir.ended {
		dir.ended = true
		if !s.inspect(f, dir.d, true, now) || !s.write(f, dir, dst) {
			return
		}
	}
	if len(dir.buf) > 0 || dst.sentFIN || dst.ep == nil {
		return
	}
	dst.ep.Shutdown(tcpip.ShutdownWrite)
	dst.sentFIN = true
}

// checkEnd looks whether the connection is over, in order or otherwise.
func (s *Stack) checkEnd(f *flow, now int64) {
	c, v := &f.client, &f.server
	switch {
	case f.resetting != nil:
	case c.sentFIN && v.sentFIN:
		s.beginClosing(f, now)
	case f.denying:
		// The server's leg is gone by our own doing.
		if c.dead() {
			s.kill(f, now)
		} else if c.gotFIN && c.sentFIN {
			s.beginClosing(f, now)
		}
	case c.dead() || v.dead():
		gone, other := c, v
		if !c.dead() {
			gone, other = v, c
		}
		s.n.resets.Add(1)
		s.beginReset(f, gone, other, now)
	}
}

// beginClosing hands both connections to netstack: what is left are
// acknowledgments and timers.
func (s *Stack) beginClosing(f *flow, now int64) {
	s.endStreams(f, now)
	for _, l := range [...]*leg{&f.client, &f.server} {
		s.urge(l)
		if l.ep != nil {
			l.closed = true
			l.ep.Close()
		}
	}
	f.state = stateClosing
	f.setDeadline(now, s.o.CloseTimeout)
	s.checkClosed(f, now)
}

// knowWait is how long netstack may take to find out that a connection is over.
const knowWait = time.Second

// checkClosed looks whether both ends have acknowledged the end.
func (s *Stack) checkClosed(f *flow, now int64) {
	c, v := &f.client, &f.server
	switch {
	case c.over() && v.over():
		s.n.closed.Add(1)
		s.linger(f, now)
	case (c.over() || c.finished()) && (v.over() || v.finished()):
		f.setDeadline(now, max(min(knowWait, time.Duration(f.deadline-now)), 1))
	}
}

// resetWait bounds how long a reset waits for the bytes before it to leave.
const resetWait = 2 * time.Second

// beginReset passes a reset on, after the bytes that came before it.
func (s *Stack) beginReset(f *flow, gone, other *leg, now int64) {
	s.endStreams(f, now)
	if other.dead() {
		s.kill(f, now)
		return
	}
	back := &f.dir[gone.towards()]
	s.dropStore(back)
	back.base, back.passed, back.cut = back.end(), back.end(), true
	// What the streams held back stays back.
	on := &f.dir[other.towards()]
	on.buf = on.buf[:on.passed-on.base]
	f.resetting = other
	f.setDeadline(now, resetWait)
	s.resetting = append(s.resetting, f)
}

// finishResets resets the legs whose last bytes are out.
func (s *Stack) finishResets(now int64) (busy bool) {
	for i := 0; i < len(s.resetting); {
		f := s.resetting[i]
		if f.state == stateOpen {
			to := f.resetting.towards()
			dir := &f.dir[to]
			s.pump(f, to, now)
			written := f.resetting.sentFIN || dir.cut && len(dir.buf) == 0
			if !f.resetting.dead() && !(written && f.resetting.sentAll()) {
				i++
				continue
			}
			s.kill(f, now)
			busy = true
		}
		s.resetting[i] = s.resetting[len(s.resetting)-1]
		s.resetting[len(s.resetting)-1] = nil
		s.resetting = s.resetting[:len(s.resetting)-1]
	}
	return busy
}

// discard throws away what a direction's sender sends on and notes its end.
func (s *Stack) discard(dir *direction, src *leg) {
	for src.ep != nil && !src.gotFIN {
		n, err := s.read(dir, src.ep, s.buf)
		if n > 0 {
			continue
		}
		if _, again := err.(*tcpip.ErrWouldBlock); !again && !src.dead() {
			src.gotFIN = true
		}
		return
	}
}

// moderateStep is how many bytes are read before netstack is told, which then
// adjusts the receive buffer. It costs a lock.
const moderateStep = 16 << 10

// read takes bytes out of an endpoint. 0 bytes come with the cause.
func (s *Stack) read(dir *direction, ep *tcp.Endpoint, b []byte) (int, tcpip.Error) {
	w := tcpip.SliceWriter(b)
	r, err := ep.Read(&w, tcpip.ReadOptions{})
	if err != nil {
		return 0, err
	}
	if dir.unsaid += r.Count; dir.unsaid >= moderateStep {
		ep.ModerateRecvBuf(dir.unsaid)
		dir.unsaid = 0
	}
	return r.Count, nil
}

// payload is a tcpip.Payloader over bytes.
type payload struct{ b []byte }

// Len implements tcpip.Payloader.
func (p *payload) Len() int { return len(p.b) }

// Read implements io.Reader.
func (p *payload) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.b)
	p.b = p.b[n:]
	return n, nil
}

// keep appends bytes to what a direction holds.
func (s *Stack) keep(dir *direction, b []byte) {
	if len(b) == 0 {
		return
	}
	if dir.store == nil {
		dir.store = s.takeStore()
		dir.buf = dir.store[:0]
	}
	if cap(dir.buf)-len(dir.buf) < len(b) && len(dir.buf)+len(b) <= cap(dir.store) {
		dir.buf = dir.store[:copy(dir.store[:cap(dir.store)], dir.buf)]
	}
	dir.buf = append(dir.buf, b...)
}

// spareStores bounds how many empty stores are kept for the next direction
// that needs one.
const spareStores = 64

func (s *Stack) takeStore() []byte {
	if n := len(s.spare); n > 0 {
		b := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return b
	}
	return make([]byte, 0, max(s.o.HoldBytes, relayChunk))
}

func (s *Stack) dropStore(dir *direction) {
	if dir.store != nil && len(s.spare) < spareStores {
		s.spare = append(s.spare, dir.store[:0])
	}
	dir.store, dir.buf = nil, nil
}

func (f *flow) countBytes(d pipeline.Direction, n int) {
	if d == pipeline.ToServer {
		f.s.n.bytesUp.Add(uint64(n))
	} else {
		f.s.n.bytesDown.Add(uint64(n))
	}
}

func (f *flow) noteHalfClosed() {
	if f.client.gotFIN != f.server.gotFIN {
		f.s.n.halfClosed.Add(1)
	}
}
