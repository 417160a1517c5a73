package record

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

type n struct {
	N int `json:"n"`
}

// numbers returns the N of each line.
func numbers(t *testing.T, lines []string) (list []int) {
	t.Helper()
	for _, l := range lines {
		var e n
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			t.Errorf("%q: %v", l, err)
		}
		list = append(list, e.N)
	}
	return list
}

// balanced checks that each of want events is accounted for.
func balanced(t *testing.T, s SinkStats, want int) {
	t.Helper()
	if got := s.Written + s.Dropped + s.Failed + s.Queued; got != uint64(want) {
		t.Errorf("stats are %+v: %d events, want %d", s, got, want)
	}
}

// logBuffer is a log that a test can read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

func TestEnabled(t *testing.T) {
	dir := t.TempDir()
	some := Spec{"file:" + dir + "/some", []string{"flow", "http"}}
	all := Spec{"file:" + dir + "/all", []string{"tls", All}}
	for name, c := range map[string]struct {
		specs []Spec
		want  map[string]int // sinks by event
	}{
		"none": {nil, map[string]int{"flow": 0, "": 0}},
		"some": {[]Spec{some}, map[string]int{"flow": 1, "http": 1, "tls": 0, "all": 0}},
		"all":  {[]Spec{all}, map[string]int{"flow": 1, "anything": 1, "tls": 1}},
		"both": {[]Spec{some, all}, map[string]int{"flow": 2, "anything": 1, "tls": 1}},
	} {
		r := open(t, Options{}, c.specs...)
		for event, want := range c.want {
			if got := r.Enabled(event); got != (want > 0) {
				t.Errorf("%s: %q is enabled: %v", name, event, got)
			}
			r.Record(event, nil)
			if got := len(r.routes.Load().of(event)); got != want {
				t.Errorf("%s: %d sinks want %q, want %d", name, got, event, want)
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	r := open(t, Options{}, Spec{"file:" + t.TempDir() + "/events", []string{"flow"}})
	fields := &n{1}
	if got := testing.AllocsPerRun(100, func() {
		if r.Enabled("http") {
			t.Error("http is enabled")
		}
		r.Record("http", fields)
	}); got != 0 {
		t.Errorf("an event that nobody wants costs %v allocations", got)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	for to, want := range map[string]string{
		"":                                 `open event sink: want "file:PATH", "unix:PATH" or "stdout", got ""`,
		"syslog:x":                         `want "file:PATH", "unix:PATH" or "stdout", got "syslog:x"`,
		"stdout:":                          `want "file:PATH", "unix:PATH" or "stdout"`,
		"file:":                            `want a path behind "file:"`,
		"file:" + dir + "/":                `want a path behind "file:"`,
		"file:" + dir:                      "is a directory",
		"file:" + dir + "/no/e":            "directory " + dir + "/no does not exist",
		"file:a\x00b":                      "want a path",
		"unix:" + strings.Repeat("x", 108): "at most 107 bytes, got 108",
	} {
		r, err := Open([]Spec{{"file:" + dir + "/good", []string{All}}, {to, []string{All}}}, nil)
		if r != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("open %q: got %v, want %q", to, err, want)
		}
	}
}

func TestCheckTarget(t *testing.T) {
	for to, good := range map[string]bool{
		"stdout": true, "file:events.json": true, "file:/no/such/directory/e": true, "unix:/run/e.sock": true, "unix:@abstract": true,
		"": false, "stderr": false, "file": false, "file:": false, "file:/dir/": false, "tcp:1.2.3.4:5": false, "FILE:/x": false,
	} {
		if err := CheckTarget(to); (err == nil) != good {
			t.Errorf("check %q: %v", to, err)
		}
	}
}

func TestOrderAndFlushOnClose(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events")
	r := open(t, Options{}, Spec{"file:" + file, []string{All}})
	const events = 5000
	for i := range events {
		r.Record("flow", n{i})
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for i, got := range numbers(t, lines(t, file)) {
		if got != i {
			t.Fatalf("line %d is event %d", i, got)
		}
	}
	if s := r.Stats()[0]; s.Written != events {
		t.Errorf("stats are %+v", s)
	}
	r.Record("flow", n{1})
	r.Record("flow", n{2})
	if err := r.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if s := r.Stats()[0]; s.Written != events || s.Dropped != 2 {
		t.Errorf("stats after the end are %+v", s)
	}
}

// TestWait: a replay loses nothing, however slow the sink.
func TestWait(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events")
	r := open(t, Options{Queue: 1, Wait: true}, Spec{"file:" + file, []string{All}})
	const events = 3000
	for i := range events {
		r.Record("flow", n{i})
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if got := len(lines(t, file)); got != events {
		t.Errorf("%d events arrived, want %d", got, events)
	}
	r.Record("flow", n{1}) // must not wait for a sink that is gone
	balanced(t, r.Stats()[0], events+1)
}

// TestConcurrent is for the race detector, and for the balance.
func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1000))
			_ = c.Close() // again and again
		}
	}()
	r := open(t, Options{Queue: 64, Retry: time.Millisecond, CloseWait: 200 * time.Millisecond},
		Spec{"file:" + dir + "/a", []string{All}}, Spec{"file:/dev/full", []string{"flow"}}, Spec{"unix:" + dir + "/s", []string{All}})
	const workers, each = 4, 500
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				r.Record([]string{"flow", "http"}[i%2], n{w*each + i})
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			if err := r.Reopen(); err != nil {
				t.Error(err)
			}
			r.Stats()
		}
	})
	wg.Wait()
	_ = r.Close() // the socket's last events have nobody to read them
	for i, want := range []int{workers * each, workers * each / 2, workers * each} {
		s := r.Stats()[i]
		balanced(t, s, want)
		if s.Queued != 0 {
			t.Errorf("events are left behind: %+v", s)
		}
	}
	if got := len(lines(t, dir+"/a")); uint64(got) != r.Stats()[0].Written {
		t.Errorf("the file has %d lines, the stats are %+v", got, r.Stats()[0])
	}
}

// TestBadEvent: an event that cannot be encoded is counted, and costs the ones
// around it nothing.
func TestBadEvent(t *testing.T) {
	var log logBuffer
	file := filepath.Join(t.TempDir(), "events")
	r, err := OpenWith([]Spec{{"file:" + file, []string{All}}}, slog.New(slog.NewTextHandler(&log, nil)), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		r.Record("flow", n{2 * i})
		r.Record("flow", panics{})
		r.Record("flow", "not an object")
		r.Record("flow", n{2*i + 1})
	}
	r.Record("flow", panics{}) // alone in its batch, perhaps
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if got := numbers(t, lines(t, file)); len(got) != 20 {
		t.Errorf("%d events arrived, want 20", len(got))
	}
	if s := r.Stats()[0]; s.Written != 20 || s.Failed != 21 || !s.Up || s.Error == "" {
		t.Errorf("stats are %+v", s)
	}
	if c := log.count("event lost"); c != 1 {
		t.Errorf("logged %d times, want once", c)
	}
}

// TestLongEvents: memory for one batch is not kept for ever.
func TestLongEvents(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events")
	r := open(t, Options{}, Spec{"file:" + file, []string{All}})
	for range 5 {
		r.Record("flow", map[string]string{"x": strings.Repeat("x", maxEvent-200)})
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if got := len(lines(t, file)); got != 5 {
		t.Errorf("%d events arrived, want 5", got)
	}
	if s := r.routes.Load().sinks[0]; cap(s.buf) > 2*writeBytes {
		t.Errorf("the sink keeps %d bytes", cap(s.buf))
	}
}
