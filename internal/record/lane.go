package record

import (
	"sync/atomic"

	"penstock/pipeline"
)

const (
	// chunkBytes is how much a lane writes into one piece of memory, and a sink to
	// its file at once; chunkRoom is for the last line of it.
	chunkBytes = 64 << 10
	chunkRoom  = 4 << 10
	// maxChunks bounds the memory of one lane for one sink: 4 MiB wait there at most.
	maxChunks = 64
	// hurryChunks of lines do not wait for more of them.
	hurryChunks = 8
)

// Lane records what one goroutine has to say, a worker's. It is a Recorder of its
// own to the same sinks: events that are Appenders are encoded at once, into memory
// that is the lane's, and a sink comes for it when some have gathered, at the latest
// after 50 ms. There is no
// lock, nobody is woken for an event, and nothing is allocated for it once the lane
// has its memory. What does not fit into that is dropped and counted.
//
// Its events arrive in the order in which it has recorded them; those of other
// lanes, and of the Recorder itself, come before or behind.
type Lane struct {
	r     *Recorder
	table atomic.Pointer[laneTable]
	enc   encoder
	line  []byte // for several sinks
}

// laneTable is what a lane has for the routes of its recorder. It does not change.
type laneTable struct {
	routes *routes
	lanes  []*lane // by sink
	by     []wanting
	all    []*lane // of sinks that want every event
}

// wanting are the sinks that want an event.
type wanting struct {
	event string
	lanes []*lane
}

var _ pipeline.Recorder = (*Lane)(nil)

// Lane returns a new lane. It lasts as long as r does.
func (r *Recorder) Lane() *Lane {
	l := &Lane{r: r}
	l.table.Store(newLaneTable(r.routes.Load(), nil))
	r.figures.mu.Lock()
	defer r.figures.mu.Unlock()
	r.lanes = append(r.lanes, l)
	return l
}

// newLaneTable keeps the ways to sinks that there were before.
func newLaneTable(routes *routes, before *laneTable) *laneTable {
	t := &laneTable{routes: routes}
	for _, s := range routes.sinks {
		l := before.to(s)
		if l == nil {
			l = s.newLane()
		}
		t.lanes = append(t.lanes, l)
	}
	for event, sinks := range routes.by {
		w := wanting{event: event}
		for _, s := range sinks {
			w.lanes = append(w.lanes, t.to(s))
		}
		t.by = append(t.by, w)
	}
	for _, s := range routes.all {
		t.all = append(t.all, t.to(s))
	}
	return t
}

// to returns the way to a sink, nil if there is none.
func (t *laneTable) to(s *sink) *lane {
	if t != nil {
		for _, l := range t.lanes {
			if l.s == s {
				return l
			}
		}
	}
	return nil
}

func (t *laneTable) wanting(event string) []*lane {
	for i := range t.by {
		if t.by[i].event == event {
			return t.by[i].lanes
		}
	}
	return t.all
}

// Enabled implements pipeline.Recorder. It may be called from any goroutine.
func (l *Lane) Enabled(event string) bool { return len(l.table.Load().wanting(event)) > 0 }

// Record implements pipeline.Recorder, as Recorder.Record does.
func (l *Lane) Record(event string, fields any) {
	lanes := l.table.Load().wanting(event)
	if len(lanes) == 0 {
		return
	}
	e := entry{time: l.r.o.Now(), event: event, fields: fields}
	_, now := fields.(Appender)
	if now && len(lanes) > 1 {
		var err error
		if l.line, err = l.enc.appendLine(l.line[:0], e); err != nil {
			for _, x := range lanes {
				x.s.fail(err)
			}
			return
		}
		e.line = l.line
	}
	for _, x := range lanes {
		c := x.begin()
		switch {
		case c == nil:
			x.s.drops.Add(1)
			continue
		case now:
			b, err := l.enc.appendLine(c.buf, e)
			if c.buf = b; err != nil {
				x.s.fail(err)
			} else {
				x.s.accepted.Add(1)
				c.ends = append(c.ends, len(b))
			}
		default:
			x.s.accepted.Add(1)
			c.later = append(c.later, later{len(c.ends), e})
		}
		x.end(c)
	}
}

// chunk is a piece of a lane's memory, with lines of events.
type chunk struct {
	lane  *lane
	older *chunk // written before this one
	depth int    // chunks in the list that begins here
	buf   []byte
	ends  []int   // of the lines in buf
	later []later // events that the sink has to encode
}

// later is an event that belongs behind the first n lines of a chunk.
type later struct {
	n     int
	entry entry
}

func (c *chunk) events() int { return len(c.ends) + len(c.later) }

// lane is the way from a Lane to one sink. The chunk that is being filled lies in
// slot, with full ones behind it. The lane takes it out while it writes, and the
// sink leaves nothing there when it takes them: neither waits for the other.
type lane struct {
	s    *sink
	slot atomic.Pointer[chunk] // nil: the lane is writing; nothing: the sink has taken all
	free atomic.Pointer[chunk] // a list of chunks that the sink is done with

	// The lane's own.
	spare *chunk
	made  int
}

// nothing stands in a slot that the sink has emptied.
var nothing = &chunk{}

func (s *sink) newLane() *lane {
	l := &lane{s: s}
	l.slot.Store(nothing)
	s.lanesMu.Lock()
	defer s.lanesMu.Unlock()
	var all []*lane
	if p := s.lanes.Load(); p != nil {
		all = append(all, *p...)
	}
	all = append(all, l)
	s.lanes.Store(&all)
	return l
}

// begin returns the chunk to write to, until end; nil: there is no room, or the
// sink is closed.
func (l *lane) begin() *chunk {
	if l.s.closed.Load() {
		return nil
	}
	c := l.slot.Swap(nil)
	if c != nothing && len(c.buf) < chunkBytes && c.events() < chunkBytes/32 {
		return c
	}
	n := l.empty()
	if n == nil {
		l.slot.Store(c) // what the sink has seen meanwhile was nothing
		return nil
	}
	n.older, n.depth = nil, 1
	if c != nothing {
		n.older, n.depth = c, c.depth+1
	}
	return n
}

// empty returns a chunk with room, nil if there is none.
func (l *lane) empty() *chunk {
	if l.spare == nil {
		l.spare = l.free.Swap(nil)
	}
	c := l.spare
	switch {
	case c != nil:
		l.spare = c.older
	case l.made == maxChunks:
		return nil
	default:
		l.made++
		c = &chunk{lane: l}
	}
	if cap(c.buf) < chunkBytes {
		c.buf = make([]byte, 0, chunkBytes+chunkRoom)
	}
	return c
}

// end puts the chunk back, and sees to it that the sink comes for it.
func (l *lane) end(c *chunk) {
	s, much := l.s, c.depth >= hurryChunks && c.events() == 1
	l.slot.Store(c)
	if !s.armed.Load() && s.armed.CompareAndSwap(false, true) {
		select {
		case s.bell <- struct{}{}:
		default:
		}
	}
	if much {
		select {
		case s.hurry <- struct{}{}:
		default:
		}
	}
}

// gather takes what the lanes have. What one is just writing stays: it rings again.
func (s *sink) gather() {
	s.armed.Store(false)
	lanes := s.lanes.Load()
	if lanes == nil {
		return
	}
	for _, l := range *lanes {
		c := l.slot.Load()
		if c == nil || c == nothing || !l.slot.CompareAndSwap(c, nothing) {
			continue
		}
		at := len(s.todo)
		for ; c != nil; c = c.older {
			s.todo = append(s.todo, c)
		}
		for i, k := at, len(s.todo)-1; i < k; i, k = i+1, k-1 { // oldest first
			s.todo[i], s.todo[k] = s.todo[k], s.todo[i]
		}
	}
}

// load makes the oldest of the chunks that were taken the batch, which is empty.
func (s *sink) load() {
	c := s.todo[0]
	s.todo[0] = nil
	if s.todo = s.todo[1:]; len(s.todo) == 0 {
		s.todo = nil
	}
	if len(c.later) == 0 {
		s.buf, c.buf = c.buf, s.buf
		s.ends, c.ends = c.ends, s.ends
	} else {
		from, n := 0, 0
		lines := func(to int) {
			for ; n < to; n++ {
				s.buf = append(s.buf, c.buf[from:c.ends[n]]...)
				from = c.ends[n]
				s.ends = append(s.ends, len(s.buf))
			}
		}
		for _, e := range c.later {
			lines(e.n)
			s.encode(e.entry)
		}
		lines(len(c.ends))
	}
	clear(c.later)
	c.buf, c.ends, c.later = c.buf[:0], c.ends[:0], c.later[:0]
	if cap(c.buf) > 2*chunkBytes {
		c.buf = nil // one long event must not hold its memory for ever
	}
	for l := c.lane; ; {
		c.older = l.free.Load()
		if l.free.CompareAndSwap(c.older, c) {
			return
		}
	}
}
