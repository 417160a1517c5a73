package record

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// batchBytes is how much a sink gathers from its queue before it writes. From lanes,
// where there may be much, it takes writeBytes: the more at once, the larger are the
// pieces of memory in which a file system takes it; but until then all of it has to stay in the cache.
const (
	batchBytes = 64 << 10
	writeBytes = 256 << 10
)

// SinkStats are the figures of a sink. Every event that was recorded for it is
// in one of Written, Dropped, Failed and Queued.
type SinkStats struct {
	To      string `json:"to"`
	Written uint64 `json:"written"`
	Dropped uint64 `json:"dropped"` // the queue was full, or the sink was closed
	Failed  uint64 `json:"failed"`  // could not be encoded or written
	Queued  uint64 `json:"queued"`
	Up      bool   `json:"up"`              // the last write succeeded, or there was none
	Error   string `json:"error,omitempty"` // the last error
}

// output is where a sink writes. One goroutine calls it, except interrupt.
type output interface {
	// write writes lines of buf, whose ends are given, and returns how many it
	// is done with: from the front, failed of them without success. With an
	// error the rest may be tried again if retry is true.
	write(buf []byte, ends []int) (done, failed int, err error)
	// open opens or, when it is open, opens again; on an error what was open
	// stays open.
	open() error
	// ready reports whether write can be called; if not, open is due.
	ready() bool
	// interrupt makes a write that blocks end at the deadline. It may be
	// called from any goroutine, also while write runs.
	interrupt(deadline time.Time)
	close() error
}

type sink struct {
	to    string // Spec.To
	out   output
	file  bool // may be reopened
	log   *slog.Logger
	retry time.Duration
	block bool // offer waits for room

	queue    chan entry
	lanesMu  sync.Mutex
	lanes    atomic.Pointer[[]*lane]
	armed    atomic.Bool   // the bell has been rung since the lanes were emptied
	bell     chan struct{} // some lane has something
	hurry    chan struct{} // and one has much
	reopened chan chan error
	quit     chan struct{}
	done     chan struct{}
	stopOnce sync.Once
	deadline time.Time // for the queue to empty; set before quit is closed
	closeErr error     // set before done is closed

	closed                           atomic.Bool
	accepted, written, failed, drops atomic.Uint64
	down                             atomic.Bool
	lastErr                          atomic.Pointer[string]

	// The writer's own.
	enc   *encoder
	buf   []byte
	ends  []int         // of the lines in buf
	todo  []*chunk      // taken from lanes, oldest first
	pause time.Duration // before the next attempt to open
}

// newSink opens a sink. Whether a socket must be there already is the caller's.
func newSink(spec Spec, log *slog.Logger, o Options, there bool) (*sink, error) {
	scheme, path, err := splitTarget(spec.To)
	if err != nil {
		return nil, fmt.Errorf("open event sink: %w", err)
	}
	s := &sink{
		to: spec.To, log: log.With("sink", spec.To), retry: o.Retry, block: o.Wait, enc: newEncoder(),
		queue: make(chan entry, o.Queue), bell: make(chan struct{}, 1), hurry: make(chan struct{}, 1), reopened: make(chan chan error),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	switch scheme {
	case "file":
		s.out, s.file = &fileOutput{path: path}, true
	case "unix":
		s.out = &socketOutput{path: path}
	default:
		s.out = &stdoutOutput{from: o.Stdout}
	}
	if err := s.out.open(); err != nil {
		if there || scheme != "unix" {
			return nil, fmt.Errorf("open event sink %q: %w", spec.To, err)
		}
		s.trouble(err)
		s.pause = s.retry
	}
	return s, nil
}

// offer queues an event or drops it; unless told to, it never blocks.
func (s *sink) offer(e entry) {
	if s.closed.Load() {
		s.drops.Add(1)
		return
	}
	s.accepted.Add(1)
	if s.block {
		select {
		case s.queue <- e:
		case <-s.done:
			s.accepted.Add(^uint64(0))
			s.drops.Add(1)
		}
		return
	}
	select {
	case s.queue <- e:
	default:
		s.accepted.Add(^uint64(0))
		s.drops.Add(1)
	}
}

// Stats may be called from any goroutine.
func (s *sink) Stats() SinkStats {
	// Finished events are read before the accepted ones: Queued is never
	// below zero.
	st := SinkStats{To: s.to, Written: s.written.Load(), Failed: s.failed.Load(), Up: !s.down.Load()}
	st.Queued = s.accepted.Load() - st.Written - st.Failed
	st.Dropped = s.drops.Load()
	if e := s.lastErr.Load(); e != nil {
		st.Error = *e
	}
	return st
}

// run is the body of the sink's goroutine.
func (s *sink) run() {
	defer close(s.done)
	for s.turn() {
	}
	s.finish()
}

// turn does one thing; false says that it is time to quit.
func (s *sink) turn() bool {
	if !s.out.ready() {
		if !s.wait(s.pause) {
			return false
		}
		s.pause = min(max(2*s.pause, s.retry), 5*time.Second)
		if err := s.out.open(); err != nil {
			s.trouble(err)
		}
		return true
	}
	if len(s.ends) > 0 { // left by a write that failed
		select {
		case <-s.quit:
			return false
		default:
		}
		s.flush()
		return true
	}
	if len(s.todo) > 0 {
		select {
		case <-s.quit:
			return false
		default:
		}
		for len(s.todo) > 0 && len(s.buf) < writeBytes {
			s.load()
		}
		s.flush()
		return true
	}
	select {
	case e := <-s.queue:
		s.encode(e)
		s.collect()
		s.linger(lingerTime)
		s.flush()
	case <-s.bell:
		s.linger(laneLinger)
		s.gather()
		s.flush()
	case reply := <-s.reopened:
		s.reopenNow(reply)
	case <-s.quit:
		return false
	}
	return true
}

// wait pauses before the next attempt to open; false says that it is time to
// quit.
func (s *sink) wait(pause time.Duration) bool {
	t := time.NewTimer(pause)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return true
		case reply := <-s.reopened:
			reply <- nil // being opened anyway
		case <-s.quit:
			return false
		}
	}
}

// lingerTime is how long the first event of a batch may wait for others. To be
// woken for each of them, and to write each of them, costs more than to encode
// them.
const lingerTime = 5 * time.Millisecond

// laneLinger is that for events of lanes, of which there are many or which nobody
// waits for: each write tells the Go scheduler that there is something to watch over.
const laneLinger = 50 * time.Millisecond

// linger waits for more events, and collects them.
func (s *sink) linger(most time.Duration) {
	if s.block || len(s.buf) >= batchBytes {
		return
	}
	t := time.NewTimer(most)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			s.collect()
			return
		case <-s.hurry:
			s.collect()
			return
		case reply := <-s.reopened:
			s.reopenNow(reply)
			return
		case <-s.quit:
			return // finish collects the rest
		}
	}
}

// reopenNow opens the output again: what came before belongs to what was open
// before.
func (s *sink) reopenNow(reply chan error) {
	s.flush()
	for s.gather(); len(s.todo) > 0 && len(s.ends) == 0 && s.out.ready(); {
		s.load()
		s.flush()
	}
	reply <- s.out.open()
}

// collect encodes what waits in the queue, up to a batch.
func (s *sink) collect() {
	for len(s.buf) < batchBytes {
		select {
		case e := <-s.queue:
			s.encode(e)
		default:
			return
		}
	}
}

func (s *sink) encode(e entry) {
	b, err := s.enc.appendLine(s.buf, e)
	s.buf = b
	if err != nil {
		s.lost(err)
		return
	}
	s.ends = append(s.ends, len(b))
}

// lost counts an accepted event that cannot be encoded.
func (s *sink) lost(err error) {
	if s.failed.Add(1) == 1 {
		s.log.Error("event lost", "error", err)
	}
	s.setErr(err)
}

// fail accepts an event that cannot be encoded.
func (s *sink) fail(err error) {
	s.accepted.Add(1)
	s.lost(err)
}

// flush writes the batch. What is left of it afterwards is tried again.
func (s *sink) flush() {
	if len(s.ends) == 0 {
		s.buf = s.buf[:0]
		return
	}
	done, failed, err := s.out.write(s.buf, s.ends)
	s.written.Add(uint64(done - failed))
	s.failed.Add(uint64(failed))
	switch {
	case errors.Is(err, syscall.EMSGSIZE):
		s.setErr(err) // the event's fault, not the sink's
	case err != nil:
		s.trouble(err)
	case s.down.Swap(false):
		s.log.Info("events are written again")
	}
	if done > failed {
		s.pause = 0
	}
	s.take(done)
}

// take removes the first n lines of the batch.
func (s *sink) take(n int) {
	if n == len(s.ends) {
		s.ends = s.ends[:0]
		if s.buf = s.buf[:0]; cap(s.buf) > 2*writeBytes {
			s.buf = nil // one long event must not hold its memory for ever
		}
		return
	}
	if n == 0 {
		return
	}
	cut := s.ends[n-1]
	s.buf = s.buf[:copy(s.buf, s.buf[cut:])]
	rest := copy(s.ends, s.ends[n:])
	s.ends = s.ends[:rest]
	for i := range s.ends {
		s.ends[i] -= cut
	}
}

// finish writes what is left, until the deadline, and closes the output.
func (s *sink) finish() {
	for time.Now().Before(s.deadline) && s.out.ready() {
		s.collect()
		if len(s.ends) == 0 {
			if len(s.todo) == 0 {
				s.gather()
			}
			if len(s.todo) == 0 {
				break
			}
			s.load()
		}
		s.flush()
	}
	s.gather()
	left := len(s.ends)
	for _, c := range s.todo {
		left += c.events()
	}
	for more := true; more; {
		select {
		case <-s.queue:
			left++
		default:
			more = false
		}
	}
	s.accepted.Add(-uint64(left)) // they move from queued to dropped
	s.drops.Add(uint64(left))
	err := s.out.close()
	if left > 0 {
		err = errors.Join(fmt.Errorf("%d events were not written in time", left), err)
	}
	if err != nil {
		s.closeErr = fmt.Errorf("close event sink %q: %w", s.to, err)
	}
}

// trouble notes an error and logs the first of a row.
func (s *sink) trouble(err error) {
	s.setErr(err)
	if !s.down.Swap(true) {
		s.log.Warn("events are not written", "error", err)
	}
}

func (s *sink) setErr(err error) {
	text := err.Error()
	s.lastErr.Store(&text)
}

// reopen asks the writer to open its file again.
func (s *sink) reopen(wait time.Duration) error {
	if !s.file {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	reply := make(chan error, 1)
	err := errors.New("the sink is closed")
	select {
	case s.reopened <- reply:
		err = <-reply
	case <-s.done:
	case <-t.C:
		err = fmt.Errorf("a write has not returned in %v", wait)
	}
	if err != nil {
		return fmt.Errorf("reopen event sink %q: %w", s.to, err)
	}
	return nil
}

// stop tells the writer to finish by the deadline.
func (s *sink) stop(deadline time.Time) {
	s.stopOnce.Do(func() {
		s.closed.Store(true)
		s.deadline = deadline
		close(s.quit)
		s.out.interrupt(deadline)
	})
}
