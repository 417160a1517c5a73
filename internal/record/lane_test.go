package record

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// number is an n that writes itself.
type number struct {
	n   uint64
	pad string
}

func (v *number) AppendMembers(m *Members) {
	m.Uint("n", v.n)
	m.Some("pad", v.pad)
}

// panicking writes a part of itself.
type panicking struct{}

func (panicking) AppendMembers(m *Members) {
	m.Uint("n", 1)
	panic("a bug")
}

// TestLane: what a lane records arrives as it was when it was recorded, in its
// order, whether it writes itself or not.
func TestLane(t *testing.T) {
	t.Run("each event", func(t *testing.T) { testLane(t, false) })
	t.Run("in batches", func(t *testing.T) { testLane(t, true) })
}

func testLane(t *testing.T, batch bool) {
	dir := t.TempDir()
	r := open(t, Options{Now: fixedNow}, Spec{"file:" + dir + "/one", []string{"http"}}, Spec{"file:" + dir + "/all", []string{All}})
	l := r.Lane()
	if batch {
		l.Batch()
	}
	if !l.Enabled("http") || l.Enabled("") != r.Enabled("") {
		t.Error("a lane disagrees with its recorder on what is wanted")
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	const events = 20000
	v := &number{}
	forms := map[string]*Form{"http": NewForm("http", 0, "n"), "tls": NewForm("tls", 0, "n")}
	var before Members
	before.Bool("brief", true)
	for i := range events {
		event := "http"
		if i%7 == 0 {
			event = "tls"
		}
		switch v.n, v.pad = uint64(i), ""; {
		case i%11 == 3:
			l.Record(event, n{i})
		case i%5 == 4 || i%100 > 70:
			l.Record(event, &Brief{Form: forms[event], Before: [2]*Members{&before, &before}, Figures: [5]int64{int64(i)}})
		case i%3000 == 1:
			v.pad = strings.Repeat("x", chunkBytes*3)
			l.Record(event, v)
		default:
			v.pad = strings.Repeat("y", rnd.IntN(300))
			l.Record(event, v)
		}
		if batch && rnd.IntN(20) == 0 || i%1000 == 0 {
			l.Flush()
		}
		if i%1000 == 0 { // the sinks are to keep up
			eventually(t, "everything is written", func() bool { s := r.Stats(); return s[0].Queued+s[1].Queued == 0 })
		}
	}
	l.Record("http", panicking{})
	l.Flush()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	var all, some []int
	for i := range events {
		all = append(all, i)
		if i%7 != 0 {
			some = append(some, i)
		}
	}
	for file, want := range map[string][]int{"one": some, "all": all} {
		if got := numbers(t, lines(t, dir+"/"+file)); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %d events, want %d in their order", file, len(got), len(want))
		}
	}
	if got, want := lines(t, dir+"/all")[0], `{"timestamp":"2026-03-04T04:06:07.891234Z","event_type":"tls","n":0`; !strings.HasPrefix(got, want) {
		t.Errorf("the first line is %s", got)
	}
	for i, want := range []uint64{uint64(len(some)), events} {
		if s := r.Stats()[i]; s.Written != want || s.Failed != 1 || s.Dropped+s.Queued != 0 || !strings.Contains(s.Error, "panic: a bug") {
			t.Errorf("stats are %+v, want %d written and one failed", s, want)
		}
	}
	l.Record("http", v)
	if s := r.Stats()[1]; s.Dropped != 1 {
		t.Errorf("stats after the end are %+v", s)
	}
}

// TestBatchWaits: what a lane with batches records is handed over by Flush, and not before.
func TestBatchWaits(t *testing.T) {
	dir := t.TempDir()
	r := open(t, Options{Now: fixedNow}, Spec{"file:" + dir + "/all", []string{All}})
	held, other := r.Lane(), r.Lane()
	held.Batch()
	for i := range 10 {
		held.Record("http", &number{n: uint64(i)})
	}
	other.Record("http", &number{n: 100})
	written := func(want ...int) {
		t.Helper()
		eventually(t, "what was handed over is written", func() bool {
			s := r.Stats()[0]
			return s.Written == uint64(len(want)) && s.Queued == 0
		})
		if got := numbers(t, lines(t, dir+"/all")); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	written(100)
	held.Flush()
	written(100, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
	held.Flush() // nothing
	held.Record("http", &number{n: 10})
	held.Flush()
	written(100, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLaneIsBounded: a sink that does not write costs memory up to a bound, and the
// events beyond it; those before it arrive when it writes again.
func TestLaneIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	r := open(t, Options{Retry: time.Millisecond}, Spec{"unix:" + path, []string{All}})
	l := r.Lane()
	v := &number{pad: strings.Repeat("z", 900)}
	const events = 8000 // some 8 MB
	for i := range events {
		v.n = uint64(i)
		l.Record("http", v)
	}
	s := r.Stats()[0]
	balanced(t, s, events)
	if min, max := uint64(maxChunks*chunkBytes/1100), uint64(maxChunks*chunkBytes/900); s.Queued < min || s.Queued > max {
		t.Errorf("%d events wait, want %d to %d", s.Queued, min, max)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		for b := make([]byte, 64<<10); ; {
			if _, err := conn.Read(b); err != nil {
				return
			}
		}
	}()
	eventually(t, "what waits is written", func() bool { return r.Stats()[0].Queued == 0 })
	l.Record("http", v)
	eventually(t, "and what comes then", func() bool { return r.Stats()[0].Written == s.Queued+1 })
	balanced(t, r.Stats()[0], events+1)
}

// TestLanesTogether is for the race detector, and for the balance: lanes, the
// recorder itself, files that are opened again, and a sink that fails.
func TestLanesTogether(t *testing.T) {
	dir := t.TempDir()
	r := open(t, Options{}, Spec{"file:" + dir + "/a", []string{All}}, Spec{"file:/dev/full", []string{"http"}})
	const workers, each = 4, 5000
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			l, v := r.Lane(), &number{}
			for i := range each {
				v.n = uint64(w*each + i)
				l.Record("http", v)
			}
		})
	}
	wg.Go(func() {
		for i := range 100 {
			r.Record("http", &number{n: uint64(workers*each + i)})
		}
	})
	wg.Go(func() {
		for i := range 20 {
			if err := os.Rename(dir+"/a", fmt.Sprint(dir, "/a", i)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
			if err := r.Reopen(); err != nil {
				t.Error(err)
			}
			r.Stats()
		}
	})
	wg.Wait()
	_ = r.Close() // one of them is full
	written := 0
	seen := map[int]bool{}
	files, _ := filepath.Glob(dir + "/a*")
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || len(b) == 0 {
			continue
		}
		for _, i := range numbers(t, lines(t, f)) {
			written++
			seen[i] = true
		}
	}
	if len(seen) != written {
		t.Errorf("%d lines, %d events", written, len(seen))
	}
	for i := range 2 {
		s := r.Stats()[i]
		balanced(t, s, workers*each+100)
		if s.Queued != 0 || i == 0 && s.Written != uint64(written) {
			t.Errorf("stats are %+v, %d lines", s, written)
		}
	}
}

// TestLaneDoesNotAllocate: nothing is allocated for an event, whatever the sink
// does meanwhile.
func TestLaneDoesNotAllocate(t *testing.T) {
	r := open(t, Options{}, Spec{"file:/dev/null", []string{All}})
	l, v := r.Lane(), &number{pad: "something"}
	// AllocsPerRun counts those of the sink as well, which are few for thousands of
	// events.
	if got := testing.AllocsPerRun(100, func() {
		for range 1000 {
			l.Record("http", v)
		}
	}); got > 200 {
		t.Errorf("1000 events cost %v allocations", got)
	}
}

func BenchmarkLane(b *testing.B) {
	r, err := Open([]Spec{{"file:/dev/null", []string{"http"}}}, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	l, v := r.Lane(), &number{pad: strings.Repeat("x", 300)}
	b.ReportAllocs()
	for b.Loop() {
		l.Record("http", v)
	}
}
