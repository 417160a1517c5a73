package record

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func listen(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if err := l.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return l
}

func accept(t *testing.T, l *net.UnixListener) (net.Conn, *bufio.Scanner) {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewScanner(c)
}

// want reads events first to last.
func want(t *testing.T, s *bufio.Scanner, first, last int) {
	t.Helper()
	for i := first; i <= last; i++ {
		if !s.Scan() {
			t.Fatalf("event %d did not come: %v", i, s.Err())
		}
		if got := numbers(t, []string{s.Text()})[0]; got != i {
			t.Fatalf("got event %d, want %d", got, i)
		}
	}
}

// TestStream: events wait for a socket that is not there yet, and for one that
// went away.
func TestStream(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	r := open(t, Options{Retry: time.Millisecond}, Spec{"unix:" + path, []string{All}})
	for i := range 100 {
		r.Record("flow", n{i})
	}
	eventually(t, "the sink says why it is down", func() bool { s := r.Stats()[0]; return !s.Up && strings.Contains(s.Error, "no such file") })
	if s := r.Stats()[0]; s.Queued != 100 {
		t.Errorf("stats are %+v", s)
	}
	l := listen(t, path)
	c, scan := accept(t, l)
	want(t, scan, 0, 99)
	eventually(t, "the sink is up", func() bool { return r.Stats()[0].Up })

	// The reader goes away and comes back. What was under way is lost without
	// notice (the kernel took it), what comes later arrives.
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	r.Record("flow", n{100})
	_, scan = accept(t, l)
	want(t, scan, 100, 100)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if s := r.Stats()[0]; s.Written != 101 || s.Dropped+s.Failed+s.Queued != 0 {
		t.Errorf("stats are %+v", s)
	}
}

func TestDatagram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	bind := func() *net.UnixConn {
		_ = os.Remove(path)
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	read := func(c *net.UnixConn, event int) {
		t.Helper()
		b := make([]byte, 1<<16)
		k, err := c.Read(b)
		if err != nil {
			t.Fatalf("event %d: %v", event, err)
		}
		if text := string(b[:k]); !strings.HasSuffix(text, fmt.Sprintf(`"n":%d}`, event)+"\n") || strings.Count(text, "\n") != 1 {
			t.Errorf("got %q, want event %d alone", text, event)
		}
	}
	c := bind()
	r := open(t, Options{Retry: time.Millisecond}, Spec{"unix:" + path, []string{All}})
	for i := range 50 {
		r.Record("flow", n{i})
	}
	for i := range 50 {
		read(c, i)
	}
	// One that no datagram can hold is lost alone.
	r.Record("flow", map[string]string{"x": strings.Repeat("x", maxEvent/2)})
	r.Record("flow", n{50})
	read(c, 50)
	if s := r.Stats()[0]; s.Failed != 1 || !strings.Contains(s.Error, "message too long") || !s.Up {
		t.Errorf("stats are %+v", s)
	}
	// The reader starts anew.
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = bind()
	r.Record("flow", n{51})
	read(c, 51)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	balanced(t, r.Stats()[0], 53)
}

// TestStalledReader: a reader that does not read costs events, never time.
func TestStalledReader(t *testing.T) {
	before := runtime.NumGoroutine()
	path := filepath.Join(t.TempDir(), "s")
	l := listen(t, path)
	r := open(t, Options{Queue: 100, CloseWait: 100 * time.Millisecond}, Spec{"unix:" + path, []string{All}})
	c, _ := accept(t, l)

	const events = 20000
	fields := map[string]string{"x": strings.Repeat("x", 200)}
	var slowest time.Duration
	for range events {
		start := time.Now()
		r.Record("flow", fields)
		slowest = max(slowest, time.Since(start))
	}
	t.Logf("the slowest of %d calls took %v", events, slowest)
	written, since := uint64(0), time.Now()
	eventually(t, "the socket is full, so that events are dropped and none is written", func() bool {
		r.Record("flow", fields)
		s := r.Stats()[0]
		if s.Written != written {
			written, since = s.Written, time.Now()
		}
		return s.Dropped > 0 && s.Queued > 100 && time.Since(since) > 100*time.Millisecond
	})
	start := time.Now()
	err := r.Close()
	if err == nil || !strings.Contains(err.Error(), "events were not written in time") {
		t.Errorf("close: %v", err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("close took %v", took)
	}
	s := r.Stats()[0]
	if s.Queued != 0 || s.Dropped == 0 || s.Written+s.Dropped < events {
		t.Errorf("stats are %+v", s)
	}
	_ = c.Close()
	_ = l.Close()
	eventually(t, "the goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
}

// TestStalledListener: one that never accepts, and whose backlog is full.
func TestStalledListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listen(t, path)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for len(conns) < 10000 { // net.core.somaxconn is 4096 as a rule
		c, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		conns = append(conns, c)
	}
	start := time.Now()
	r := open(t, Options{CloseWait: 100 * time.Millisecond}, Spec{"unix:" + path, []string{All}})
	r.Record("flow", n{1})
	if err := r.Close(); err == nil {
		t.Error("close said nothing of the event that is lost")
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	if s := r.Stats()[0]; s.Dropped != 1 || s.Up || !strings.Contains(s.Error, "temporarily unavailable") {
		t.Errorf("stats are %+v", s)
	}
}

func TestWrongSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := open(t, Options{Retry: time.Millisecond}, Spec{"unix:" + path, []string{All}})
	if s := r.Stats()[0]; s.Up || !strings.Contains(s.Error, "connection refused") {
		t.Errorf("stats are %+v", s)
	}
}

// TestReaderDiesInsideLine: the next reader gets whole lines from where the
// last one stopped.
func TestReaderDiesInsideLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l := listen(t, path)
	r := open(t, Options{Retry: time.Millisecond}, Spec{"unix:" + path, []string{All}})
	c, _ := accept(t, l)
	const events = 4000
	for i := range events {
		r.Record("flow", map[string]any{"n": i, "pad": strings.Repeat("x", 150)})
	}
	written := uint64(0)
	since := time.Now()
	eventually(t, "the socket is full", func() bool {
		if w := r.Stats()[0].Written; w != written {
			written, since = w, time.Now()
		}
		return written > 0 && time.Since(since) > 50*time.Millisecond
	})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	_, scan := accept(t, l)
	if !scan.Scan() {
		t.Fatal(scan.Err())
	}
	first := numbers(t, []string{scan.Text()})[0]
	if first == 0 || first >= events {
		t.Errorf("the second reader begins with event %d", first)
	}
	want(t, scan, first+1, events-1)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if s := r.Stats()[0]; s.Written != events {
		t.Errorf("stats are %+v", s)
	}
}

// TestPartialWrites: whatever part of a batch the kernel takes before the
// connection breaks, no line is torn, lost or doubled on the next one.
func TestPartialWrites(t *testing.T) {
	var buf []byte
	var ends []int
	for i := range 3000 {
		buf = fmt.Appendf(buf, "{\"n\":%d,\"pad\":%q}\n", i, strings.Repeat("x", i%300))
		ends = append(ends, len(buf))
	}
	path := filepath.Join(t.TempDir(), "s")
	l := listen(t, path)
	o := &socketOutput{path: path}
	s := &sink{out: o, buf: buf, ends: ends, log: slog.New(slog.DiscardHandler)}
	partial, next := 0, 0
	for round := 0; len(s.ends) > 0; round++ {
		if round == 100 {
			t.Fatalf("%d lines are left", len(s.ends))
		}
		if err := o.open(); err != nil {
			t.Fatal(err)
		}
		c, scan := accept(t, l)
		o.interrupt(time.Now().Add(10 * time.Millisecond)) // breaks the write where it stands
		before := len(s.ends)
		s.flush()
		if took := before - len(s.ends); took > 0 && len(s.ends) > 0 {
			partial++
		}
		if o.conn != nil {
			_ = o.close()
			o.conn = nil
		}
		for ; scan.Scan(); next++ {
			// The connection may end inside a line; that one comes again.
			var e n
			if json.Unmarshal(scan.Bytes(), &e) != nil {
				next--
			} else if e.N != next {
				t.Fatalf("round %d: got event %d, want %d", round, e.N, next)
			}
		}
		_ = c.Close()
		if uint64(next) != s.written.Load() {
			t.Fatalf("round %d: %d events have arrived, %d count as written", round, next, s.written.Load())
		}
	}
	if next != 3000 || partial == 0 {
		t.Errorf("%d events arrived, %d writes were cut short: want all, and some", next, partial)
	}
}
