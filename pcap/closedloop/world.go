package closedloop

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"penstock/internal/wire"
	"penstock/pcap"
	"penstock/pipeline"
	"penstock/pipeline/fault"
)

const (
	frameSize      = 2048
	headroom       = 128
	mtu            = 1500
	defaultWindow  = 64
	defaultFlows   = 1 << 16
	defaultMemory  = 256 << 20
	defaultFrames  = 8192
	defaultLatency = 100 * time.Microsecond
	// maxTurns bounds how long a stage may be busy at one moment.
	maxTurns = 10000
	// drainTime is how long connections may take to end when all is played.
	drainTime = int64(120e9)
	// leastStep is how much time passes at least when nothing is left to do, in
	// ns, so that what waits for a frame does not wait without time passing.
	leastStep     = int64(1000)
	readStep      = 4096 // packets read before others have their turn
	progressEvery = 200 * time.Millisecond
)

// world is a Run under way.
type world struct {
	o       *Options
	cap     *capture
	writer  *pcap.Writer
	worker  *pipeline.Worker
	pool    *pipeline.Pool
	cables  [2]*cable
	faults  [2]*fault.Port
	latency int64
	watcher *watcher

	now      int64
	nextTick int64
	begun    int64
	timers   timers
	touched  []*end
	sessions map[wire.Flow]*session // by name: played now, or answering what comes late
	waiting  []*conversation        // to be played; those of a name that is busy wait longer
	active   int
	stray    uint64

	spare  [][]byte
	zeros  [wire.IPv6Len + wire.TCPLen]byte
	ipID   uint16
	outErr error
	shown  time.Time
	res    Result
}

// after calls fn when d has passed.
func (w *world) after(d int64, fn func()) *timer { return w.timers.set(w.now+max(d, 0), fn) }

func (*world) mss(v6 bool) int {
	if v6 {
		return mtu - wire.IPv6Len - wire.TCPLen
	}
	return mtu - wire.IPv4Len - wire.TCPLen
}

func (w *world) buffer() []byte {
	if n := len(w.spare); n > 0 {
		b := w.spare[n-1]
		w.spare = w.spare[:n-1]
		return b[:0]
	}
	return make([]byte, 0, frameSize)
}

func (w *world) free(b []byte) { w.spare = append(w.spare, b) }

// record writes a frame to the output as its end sees it.
func (w *world) record(side int, frame []byte) {
	if w.writer != nil && w.outErr == nil {
		w.outErr = w.writer.WritePacket(side, w.now, len(frame), frame, nil)
	}
}

// arrive gives a frame to the end that it reaches.
func (w *world) arrive(side int, frame []byte) {
	var h wire.Headers
	if h.Parse(frame) != wire.FaultNone || !h.HasL4 || h.Frag != wire.FragNone ||
		h.IPVersion == 4 && !wire.VerifyIPv4(frame[h.L3:]) || !wire.VerifyL4(frame, &h) {
		return // a NIC and a kernel would say nothing either
	}
	if h.Proto != wire.ProtoTCP {
		w.tooBig(side, frame, &h)
		return
	}
	f, _ := h.Flow(frame)
	key, _ := name(f)
	s := w.sessions[key]
	if s == nil || !s.addressed(side, &f) {
		w.stray++
		return
	}
	s.packets[side][1]++
	s.ends[side].receive(wire.TCP(frame[h.L4:h.End]), frame[h.Payload:h.End])
}

// addressed reports whether a packet that reached an end is from the other one.
func (s *session) addressed(side int, f *wire.Flow) bool {
	c := &s.c.flow
	if side == server {
		return f.SrcPort == c.SrcPort && f.Src == c.Src
	}
	return f.SrcPort == c.DstPort && f.Src == c.Dst
}

// tooBig takes in an ICMP error that tells of a smaller MTU (RFC 1191, RFC
// 8201).
func (w *world) tooBig(side int, frame []byte, h *wire.Headers) {
	quoted, ok := h.QuotedFlow(frame)
	if !ok {
		return
	}
	m := wire.ICMP(frame[h.L4:h.End])
	size := 0
	switch {
	case h.IPVersion == 4 && m.Type() == wire.ICMPUnreachable && m.Code() == wire.ICMPCodeFragNeeded:
		size = int(m.MTU()) - wire.IPv4Len - wire.TCPLen
	case h.IPVersion == 6 && m.Type() == 2:
		size = int(m.MTU6()) - wire.IPv6Len - wire.TCPLen
	}
	key, _ := name(quoted)
	s := w.sessions[key]
	if size < 8 || s == nil {
		return
	}
	e := s.ends[side]
	if e.opts.stamps {
		size -= 12
	}
	if size < e.mss && size > 0 {
		e.mss = size
		e.recover = e.nxt
		e.repeat()
	}
}

// moment does everything that there is to do without time passing.
func (w *world) moment() error {
	for range maxTurns {
		busy := w.timers.fire(w.now)
		for _, c := range w.cables {
			if c.deliver() {
				busy = true
			}
		}
		w.flushEnds()
		b, err := w.worker.Turn()
		if err != nil {
			return err
		}
		if w.outErr != nil {
			return w.outErr
		}
		if !busy && !b {
			return nil
		}
	}
	return fmt.Errorf("a stage is still busy after %d turns in which no time has passed", maxTurns)
}

func (w *world) flushEnds() {
	for i := 0; i < len(w.touched); i++ {
		w.touched[i].flush()
	}
	clear(w.touched)
	w.touched = w.touched[:0]
}

// pass lets time pass until something is due, but not beyond limit. It reports
// whether there was anything.
func (w *world) pass(limit int64) bool {
	next := w.nextTick
	sooner := func(at int64, ok bool) {
		if ok && at < next {
			next = at
		}
	}
	if len(w.timers.list) > 0 {
		sooner(w.timers.list[0].at, true)
	}
	for i, c := range w.cables {
		sooner(c.in.next())
		sooner(c.out.next())
		if f := w.faults[i]; f != nil {
			sooner(f.Next())
		}
	}
	if next > limit {
		return false
	}
	w.now = max(w.now+leastStep, next)
	if w.now >= w.nextTick {
		w.nextTick = w.now + int64(pipeline.TickInterval)
	}
	if w.o.Clock != nil {
		w.o.Clock.Set(w.now)
	}
	return true
}

// play takes conversations up while there is room.
func (w *world) play() {
	keep := w.waiting[:0]
	for _, c := range w.waiting {
		key, _ := name(c.flow)
		s := w.sessions[key]
		if w.active >= w.o.Window || s != nil && !s.over {
			keep = append(keep, c)
			continue
		}
		w.open(key, c)
	}
	clear(w.waiting[len(keep):])
	w.waiting = keep
}

func (w *world) open(key wire.Flow, c *conversation) {
	s := &session{w: w, c: c}
	s.ends[client], s.ends[server] = newEnd(s, client), newEnd(s, server)
	if c.refused {
		s.ends[server].state = refusing
	}
	w.sessions[key] = s
	w.active++
	s.begin()
}

// finished takes a session off the list of those that are played.
func (w *world) finished(s *session) {
	w.active--
	w.cap.stored -= s.c.stored
	w.report(s.result())
	w.after(remember, func() {
		if key, _ := name(s.c.flow); w.sessions[key] == s {
			delete(w.sessions, key)
		}
		s.c.dir[0].forget()
		s.c.dir[1].forget()
	})
}

// run plays the whole capture.
func (w *world) run(ctx context.Context) error {
	enough := func() bool {
		return len(w.waiting) >= w.o.Window || len(w.waiting) > 0 && w.cap.stored > w.cap.maxBytes/2
	}
	more := true
	for more || w.active > 0 || len(w.waiting) > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stopped after %d connections: %w", w.res.Played, context.Cause(ctx))
		}
		if more && !enough() {
			from := w.cap.packets
			err := w.cap.read(func() bool { return enough() || w.cap.packets > from+readStep })
			if err != nil {
				more = false
				if !isEOF(err) {
					return err
				}
			}
			w.start()
		}
		w.play()
		for w.active > 0 && (!more || enough()) {
			before := w.active
			if err := w.moment(); err != nil {
				return err
			}
			w.show(false)
			if ctx.Err() != nil || w.active < before && len(w.waiting) > 0 {
				break
			}
			w.pass(math.MaxInt64)
		}
		w.show(false)
	}
	return w.drain()
}

// start sets the clock to the capture's when its first packet is known.
func (w *world) start() {
	if w.begun != 0 || w.cap.packets == 0 {
		return
	}
	w.now = max(w.now, w.cap.first)
	w.begun = w.now
	w.nextTick = w.now + int64(pipeline.TickInterval)
	if w.o.Clock != nil {
		w.o.Clock.Set(w.now)
	}
}

// drain lets what is on its way arrive and the stages finish.
func (w *world) drain() error {
	limit := w.now + drainTime
	for {
		if err := w.moment(); err != nil {
			return err
		}
		if w.worker.Drain() == 0 && len(w.sessions) == 0 || !w.pass(limit) {
			return nil
		}
	}
}

func (w *world) show(end bool) {
	if w.o.Progress == nil || !end && time.Since(w.shown) < progressEvery {
		return
	}
	w.shown = time.Now()
	w.o.Progress(Progress{
		Packets: w.cap.packets, Offset: w.cap.r.Offset(), Played: w.res.Played, Active: w.active, Time: time.Unix(0, w.now).UTC(),
	})
}

// close ends the stages and collects the figures.
func (w *world) close() error {
	err := w.worker.Close()
	var ports []pipeline.Port
	for i := range w.cables {
		if f := w.faults[i]; f != nil {
			s := f.Stats()
			if w.res.Faults == nil {
				w.res.Faults = map[string]map[string]uint64{}
			}
			w.res.Faults[w.cables[i].info.Name] = s.Extra
			ports = append(ports, f)
		} else {
			ports = append(ports, w.cables[i])
		}
	}
	for _, p := range ports {
		err = errors.Join(err, p.Close())
	}
	s := w.worker.Stats()
	if w.writer != nil && w.outErr == nil {
		err = errors.Join(err, w.writer.Flush())
	}
	w.total(s)
	if s.Panics > 0 {
		err = errors.Join(err, fmt.Errorf("a stage panicked %d times; the log has the stacks", s.Panics))
	}
	if free, total := w.pool.Free(), w.pool.Total(); free != total {
		err = errors.Join(err, fmt.Errorf("%d of %d frames are free at the end: a stage or a port keeps packets", free, total))
	}
	if w.active > 0 && err == nil && w.res.Error == "" {
		err = fmt.Errorf("%d connections have not ended", w.active)
	}
	return err
}
