// Package record writes events as lines of JSON to files, Unix sockets and
// standard output. It is the pipeline.Recorder of a running appliance.
//
// Every sink has a bounded queue and a goroutine of its own. Record never
// blocks: when a sink cannot follow, events for it are dropped and counted.
//
// A worker has a Lane of its own, which costs less: see there.
//
// Its one trap: the fields of an event are encoded later, on the sink's
// goroutine. Whoever records them must not change them afterwards, unless they
// are an Appender, which writes itself at once.
package record

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"penstock/pipeline"
)

// All, in a Spec, stands for every event.
const All = "all"

// Event is a kind of event that some part of the appliance records.
type Event struct{ Name, Help string }

// Events lists the kinds of events, by name. Names and fields follow Suricata
// EVE where EVE has them.
var Events = []Event{
	{"audit", "a request for a change over the control API or by signal: who asked, what for, what became of it"},
	{"drop", "a sample of the packets that the gate and rules drop in XDP: one each CPU and 10 ms, and how many it stands for"},
	{"flow", "a flow has ended: its ends, its figures, its depth"},
	{"flow_start", "a flow has begun: its ends, its chain"},
	{"http", "an HTTP request and its response"},
	{"llm", "a request to a language model: model, tokens, times"},
	{"tls", "a TLS handshake: server name, versions, fingerprints"},
}

// Spec describes a sink.
type Spec struct {
	To     string   // "file:PATH", "unix:PATH" or "stdout"
	Events []string // which events; All for every one
}

// Wants reports whether the sink is to have an event.
func (s *Spec) Wants(event string) bool {
	return slices.Contains(s.Events, All) || slices.Contains(s.Events, event)
}

// Options are what tests and tools change. The zero value is what an appliance
// runs with.
type Options struct {
	Queue     int              // events that wait for one sink; 0: 8192
	CloseWait time.Duration    // how long Close waits for the queues to empty; 0: 2 s
	Retry     time.Duration    // first pause before a socket is dialled again; 0: 100 ms; doubles up to 5 s
	Wait      bool             // Record waits for room instead of dropping: for replays, which have time
	Now       func() time.Time // nil: time.Now
	Stdout    *os.File         // nil: os.Stdout
}

// Recorder is a set of sinks, which a Change exchanges. Its methods may be called
// from any goroutine.
type Recorder struct {
	o   Options
	log *slog.Logger

	routes atomic.Pointer[routes]
	mu     sync.RWMutex // held for reading by who offers to sinks: a Change waits for them
	figures
	lanes []*Lane // guarded by figures.mu
}

var _ pipeline.Recorder = (*Recorder)(nil)

// routes say which sinks want what. They do not change.
type routes struct {
	sinks []*sink
	by    map[string][]*sink // sinks that want the event
	all   []*sink            // sinks that want every event
}

func newRoutes(specs []Spec, sinks []*sink) *routes {
	t := &routes{sinks: sinks, by: map[string][]*sink{}}
	for i, spec := range specs {
		if slices.Contains(spec.Events, All) {
			t.all = append(t.all, sinks[i])
		}
	}
	for _, spec := range specs {
		for _, e := range spec.Events {
			if e == All || t.by[e] != nil {
				continue
			}
			for i := range specs {
				if specs[i].Wants(e) {
					t.by[e] = append(t.by[e], sinks[i])
				}
			}
		}
	}
	return t
}

func (t *routes) of(event string) []*sink {
	if s, ok := t.by[event]; ok {
		return s
	}
	return t.all
}

// Open opens the sinks. A file must be possible to open; a socket may be absent
// and is dialled until it is there. Without specs no event is enabled.
func Open(specs []Spec, log *slog.Logger) (*Recorder, error) {
	return OpenWith(specs, log, Options{})
}

// OpenWith is Open with options.
func OpenWith(specs []Spec, log *slog.Logger, o Options) (*Recorder, error) {
	if o.Queue == 0 {
		o.Queue = 8192
	}
	if o.CloseWait == 0 {
		o.CloseWait = 2 * time.Second
	}
	if o.Retry == 0 {
		o.Retry = 100 * time.Millisecond
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Recorder{o: o, log: log}
	var sinks []*sink
	for _, spec := range specs {
		s, err := newSink(spec, log, o, false)
		if err != nil {
			return nil, errors.Join(err, closeSinks(sinks, o.CloseWait))
		}
		sinks = append(sinks, s)
		go s.run()
	}
	r.routes.Store(newRoutes(specs, sinks))
	return r, nil
}

// Enabled implements pipeline.Recorder. It takes a map lookup and no lock.
func (r *Recorder) Enabled(event string) bool { return len(r.routes.Load().of(event)) > 0 }

// Record implements pipeline.Recorder. fields is nil or encodes to a JSON
// object, whose keys stand beside "timestamp" and "event_type" on the line. A
// "timestamp" among them, in the form that Timestamp writes, replaces the time
// of the call: a replay records the times of its capture.
func (r *Recorder) Record(event string, fields any) {
	if r.Enabled(event) {
		r.RecordAt(r.o.Now(), event, fields)
	}
}

// RecordAt is Record for an event that is not of this moment.
func (r *Recorder) RecordAt(at time.Time, event string, fields any) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	sinks := r.routes.Load().of(event)
	if len(sinks) == 0 {
		return
	}
	e := entry{time: at, event: event, fields: fields}
	if _, ok := fields.(Appender); ok {
		line, err := (&encoder{}).appendLine(nil, e)
		if err != nil {
			for _, s := range sinks {
				s.fail(err)
			}
			return
		}
		e.fields = encoded(line)
	}
	for _, s := range sinks {
		s.offer(e)
	}
}

// Reopen closes and opens the files again, as a log rotation wants after it has
// renamed them. A file that cannot be opened stays as it was.
func (r *Recorder) Reopen() error {
	var err error
	for _, s := range r.routes.Load().sinks {
		err = errors.Join(err, s.reopen(r.o.CloseWait))
	}
	return err
}

// Close writes what is queued, for at most Options.CloseWait, and closes the
// sinks. What could not be written in that time counts as dropped, which is an
// error; what is recorded afterwards counts as dropped too.
func (r *Recorder) Close() error {
	return closeSinks(append(r.leavingSinks(), r.routes.Load().sinks...), r.o.CloseWait)
}

func closeSinks(sinks []*sink, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for _, s := range sinks {
		s.stop(deadline)
	}
	// A write to a socket or a pipe ends at the deadline; the grace is for the
	// goroutine to notice. A write to a file may hang in the kernel for longer,
	// and then the goroutine is left behind.
	ctx, cancel := context.WithDeadline(context.Background(), deadline.Add(time.Second))
	defer cancel()
	var err error
	for _, s := range sinks {
		select {
		case <-s.done:
			err = errors.Join(err, s.closeErr)
		case <-ctx.Done():
			err = errors.Join(err, fmt.Errorf("close event sink %q: a write has not returned in %v", s.to, wait))
		}
	}
	return err
}
