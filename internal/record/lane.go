package record

import (
	"math"
	"sync/atomic"
	"time"

	"penstock/pipeline"
)

const (
	// chunkBytes is how much lies in one piece of a lane's memory, as lines or as
	// what will be lines; chunkRoom is for the last one of it.
	chunkBytes = 64 << 10
	chunkRoom  = 4 << 10
	// maxChunks bounds what waits in one lane for one sink: 4 MiB of lines.
	maxChunks = 64
	// hurryChunks do not wait for more of them.
	hurryChunks = writeBytes / chunkBytes
	// laterSize is how much an event counts for that is not a line yet.
	laterSize = 512
	// askEvery is how often a lane asks what the system's time is, in ns of its own
	// clock: a step of it is seen that late at most.
	askEvery = int64(10 * time.Millisecond)
)

// Lane records what one goroutine has to say, a worker's. It is a Recorder of its
// own to the same sinks: a Brief is copied into memory that is the lane's, events that are other
// Appenders are encoded into it at once, and a sink comes for it when some have
// gathered, at the latest after 50 ms. There is no
// lock, nobody is woken for an event, and nothing is allocated for it once the lane
// has its memory. What does not fit into that is dropped and counted.
//
// Its events arrive in the order in which it has recorded them; those of other
// lanes, and of the Recorder itself, come before or behind.
type Lane struct {
	r     *Recorder
	clock func() int64 // of events that are Timed; nil: none
	ahead int64        // the system's time is, by so much, as it was at asked
	asked int64
	table atomic.Pointer[laneTable]
	enc   encoder
	line  []byte  // that of the last Appender
	batch bool    // what is recorded stays until Flush
	open  []*lane // with such events
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
func (r *Recorder) Lane() *Lane { return r.TimedLane(nil) }

// TimedLane returns a lane whose events that are Timed are by clock, in ns since any
// moment, which only goes on. Others, and those of a lane without a clock, are of the time of the call.
func (r *Recorder) TimedLane(clock func() int64) *Lane {
	l := &Lane{r: r, clock: clock, asked: math.MinInt64}
	l.table.Store(newLaneTable(r.routes.Load(), nil))
	r.figures.mu.Lock()
	defer r.figures.mu.Unlock()
	r.lanes = append(r.lanes, l)
	return l
}

// Batch has what is recorded wait for Flush, for sinks to take it: to hand over each event
// by itself costs more than to write it. Call it before the lane is used.
func (l *Lane) Batch() { l.batch = true }

// Flush hands over what has been recorded since the last time. It is called on the lane's
// goroutine.
func (l *Lane) Flush() {
	for i, x := range l.open {
		x.end()
		l.open[i] = nil
	}
	l.open = l.open[:0]
}

// wrote is told of an event that was written to x, or dropped.
func (l *Lane) wrote(x *lane) {
	switch {
	case !l.batch:
		x.end()
	case !x.waits:
		x.waits = true
		l.open = append(l.open, x)
	}
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
	v, brief := fields.(*Brief)
	if brief {
		at := l.at(v.When)
		for _, x := range lanes {
			if c := x.begin(); c != nil {
				c.briefs = append(c.briefs, laterBrief{c.events(), at, *v})
				c.size += v.size()
				l.wrote(x)
			}
		}
		return
	}
	e := entry{event: event, fields: fields}
	if t, ok := fields.(Timed); ok {
		e.time = time.Unix(0, l.at(t.At()))
	} else {
		e.time = l.r.o.Now()
	}
	_, now := fields.(Appender)
	if now {
		line, err := l.enc.appendLine(l.line[:0], e)
		if l.line = line; err != nil {
			for _, x := range lanes {
				x.s.fail(err)
			}
			return
		}
	}
	for _, x := range lanes {
		c := x.begin()
		switch {
		case c == nil:
			continue
		case now:
			c.add(l.line)
		default:
			c.later = append(c.later, later{c.events(), e})
			c.size += laterSize
		}
		l.wrote(x)
	}
}

// at returns a time by the lane's clock as the system's, in ns since the epoch. To read
// that for each event costs as much as to write it.
func (l *Lane) at(at int64) int64 {
	if l.clock == nil {
		return l.r.o.Now().UnixNano()
	}
	if past := at - l.asked; past >= askEvery || past < 0 {
		l.ahead, l.asked = l.r.o.Now().UnixNano()-l.clock(), at
	}
	return at + l.ahead
}

// chunk is a piece of a lane's memory, with events.
type chunk struct {
	lane   *lane
	older  *chunk // written before this one
	depth  int    // chunks in the list that begins here
	size   int    // of the lines, and of those that it will make
	buf    []byte
	ends   []int        // of the lines in buf
	later  []later      // events that the sink has to encode
	briefs []laterBrief // likewise
}

// later is an event that comes behind the first n of a chunk.
type later struct {
	n     int
	entry entry
}

// laterBrief is one that takes up less.
type laterBrief struct {
	n      int
	at     int64 // ns since the epoch
	fields Brief
}

func (c *chunk) events() int { return len(c.ends) + len(c.later) + len(c.briefs) }

// add adds a line.
func (c *chunk) add(line []byte) {
	if cap(c.buf) < chunkBytes {
		c.buf = make([]byte, 0, chunkBytes+chunkRoom)
	}
	c.buf = append(c.buf, line...)
	c.ends = append(c.ends, len(c.buf))
	c.size += len(line)
}

// clear makes the chunk an empty one.
func (c *chunk) clear() {
	clear(c.later) // they must not hold on to what they point to
	clear(c.briefs)
	c.buf, c.ends, c.later, c.briefs, c.size = c.buf[:0], c.ends[:0], c.later[:0], c.briefs[:0], 0
	if cap(c.buf) > 2*chunkBytes {
		c.buf = nil // one long event must not hold its memory for ever
	}
}

// lane is the way from a Lane to one sink. The chunk that is being filled lies in
// slot, with full ones behind it. The lane takes it out while it writes, one event or
// what a batch has, and the sink leaves nothing there when it takes them: neither waits for the other.
type lane struct {
	s    *sink
	slot atomic.Pointer[chunk] // nil: the lane is writing; nothing: the sink has taken all
	free atomic.Pointer[chunk] // a list of chunks that the sink is done with

	// The lane's own.
	spare *chunk
	made  int
	taken *chunk // out of slot; nil: it is there
	wrote uint64 // events since it was taken
	waits bool   // for Flush
	hurry bool   // much waits
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

// begin returns the chunk to write an event to, which is to follow at once, and then end; nil: there is no room, or
// the sink is closed, and it is dropped.
func (l *lane) begin() *chunk {
	if l.s.closed.Load() {
		l.s.drops.Add(1)
		return nil
	}
	c := l.taken
	if c == nil {
		c = l.slot.Swap(nil)
	}
	if c == nothing || c.size >= chunkBytes {
		n := l.empty()
		if n == nil {
			if l.taken == nil {
				l.slot.Store(c) // what the sink has seen meanwhile was nothing
			}
			l.s.drops.Add(1)
			return nil
		}
		n.older, n.depth = nil, 1
		if c != nothing {
			n.older, n.depth = c, c.depth+1
		}
		l.hurry = l.hurry || n.depth >= hurryChunks
		c = n
	}
	l.taken = c
	l.wrote++
	return c
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
	return c
}

// end puts the chunk back, and sees to it that the sink comes for it.
func (l *lane) end() {
	s, hurry := l.s, l.hurry
	s.accepted.Add(l.wrote)
	l.slot.Store(l.taken)
	l.taken, l.wrote, l.waits, l.hurry = nil, 0, false, false
	if !s.armed.Load() && s.armed.CompareAndSwap(false, true) {
		select {
		case s.bell <- struct{}{}:
		default:
		}
	}
	if hurry {
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

// load adds the oldest of the chunks that were taken to the batch, and gives it
// back.
func (s *sink) load() {
	c := s.todo[0]
	s.todo[0] = nil
	if s.todo = s.todo[1:]; len(s.todo) == 0 {
		s.todo = nil
	}
	from, ends, late, briefs := 0, c.ends, c.later, c.briefs
	for events := c.events(); len(ends)+len(late)+len(briefs) > 0; {
		switch n := events - len(ends) - len(late) - len(briefs); {
		case len(briefs) > 0 && briefs[0].n == n:
			briefs = s.encodeBriefs(briefs)
		case len(late) > 0 && late[0].n == n:
			s.encode(late[0].entry)
			late = late[1:]
		default:
			s.buf = append(s.buf, c.buf[from:ends[0]]...)
			s.ends = append(s.ends, len(s.buf))
			from, ends = ends[0], ends[1:]
		}
	}
	c.clear()
	for l := c.lane; ; {
		c.older = l.free.Load()
		if l.free.CompareAndSwap(c.older, c) {
			return
		}
	}
}
