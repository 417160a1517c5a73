package record

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// exchange is all steps of a change for lanes that nobody uses meanwhile.
func exchange(t *testing.T, r *Recorder, specs []Spec, lanes ...*Lane) {
	t.Helper()
	c, err := r.Prepare(specs)
	if err != nil {
		t.Fatal(err)
	}
	c.Commit()
	for _, l := range lanes {
		c.Take(l)
	}
	if err := c.Finish(); err != nil {
		t.Error(err)
	}
}

// TestChange: sinks come, change and go; each has the events of its time, in their
// order, and its figures.
func TestChange(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, events ...string) Spec { return Spec{"file:" + dir + "/" + name, events} }
	r := open(t, Options{}, file("stays", All), file("goes", "http"))
	l := r.Lane()
	next, want := 0, map[string][]int{}
	record := func(event string, into ...string) {
		t.Helper()
		for _, via := range []interface {
			Enabled(string) bool
			Record(string, any)
		}{l, r} {
			if got := via.Enabled(event); got != (len(into) > 0) {
				t.Errorf("%q is enabled: %v", event, got)
			}
			via.Record(event, &number{n: uint64(next)})
			for _, f := range into {
				want[f] = append(want[f], next)
			}
			next++
		}
	}
	record("http", "stays", "goes")
	record("tls", "stays")
	exchange(t, r, []Spec{file("comes", "tls"), file("stays", "http")}, l)
	record("http", "stays")
	record("tls", "comes")
	record("flow")
	if got := r.Removed(); got.Written != 2 || got.Queued+got.Dropped != 0 {
		t.Errorf("of what is gone: %+v", got)
	}
	exchange(t, r, []Spec{file("goes", "flow", "http")}, l)
	record("flow", "goes")
	exchange(t, r, nil, l)
	record("http")
	if got := r.Removed(); got.Written != 12 {
		t.Errorf("of what is gone: %+v", got)
	}
	exchange(t, r, []Spec{file("goes", All)}, l)
	record("x", "goes")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for name, list := range want {
		got := numbers(t, lines(t, filepath.Join(dir, name)))
		slices.Sort(got) // the recorder's own may come before a lane's
		if fmt.Sprint(got) != fmt.Sprint(list) {
			t.Errorf("%s has %v, want %v", name, got, list)
		}
	}
	if s := r.Stats(); len(s) != 1 || s[0].Written != 6 {
		t.Errorf("its figures do not go on: %+v", s)
	}
}

// TestChangeRefused: what cannot be opened leaves everything as it was.
func TestChangeRefused(t *testing.T) {
	dir := t.TempDir()
	old := Spec{"file:" + dir + "/old", []string{"http"}}
	r := open(t, Options{}, old)
	l := r.Lane()
	for to, want := range map[string]string{
		"file:" + dir + "/no/e":   "directory " + dir + "/no does not exist",
		"file:" + dir:             "is a directory",
		"unix:" + dir + "/nobody": "no such file",
	} {
		if _, err := r.Prepare([]Spec{{"file:" + dir + "/new", []string{All}}, {to, []string{All}}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", to, err, want)
		}
	}
	c, err := r.Prepare([]Spec{{"file:" + dir + "/new", []string{All}}})
	if err == nil {
		err = c.Discard()
	}
	if err != nil {
		t.Error(err)
	}
	l.Record("http", &number{n: 1})
	if l.Enabled("tls") || r.Enabled("tls") {
		t.Error("something has changed")
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if got := lines(t, dir+"/old"); len(got) != 1 {
		t.Errorf("%q", got)
	}
	if b, err := os.ReadFile(dir + "/new"); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
}

// TestChangeOfDeadSocket: what waits for a socket that is not read any more is
// dropped with it, and stays counted.
func TestChangeOfDeadSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	r := open(t, Options{CloseWait: 1})
	l := r.Lane()
	exchange(t, r, []Spec{{"unix:" + path, []string{All}}}, l)
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	defer ln.Close()
	const events = 3000
	for i := range events {
		l.Record("http", &number{n: uint64(i), pad: strings.Repeat("x", 900)})
	}
	c, err := r.Prepare(nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Commit()
	c.Take(l)
	if err := c.Finish(); err == nil || !strings.Contains(err.Error(), "not written in time") {
		t.Errorf("%v", err)
	}
	if s := r.Removed(); s.Written+s.Dropped+s.Failed != events || s.Dropped == 0 || s.Queued != 0 {
		t.Errorf("%+v, want %d events", s, events)
	}
}

// TestChangeUnderLoad is for the race detector and the balance: lanes and the
// recorder write while sinks are exchanged. The file that stays has each event once
// and in each lane's order, and each file that comes and goes what the figures say.
func TestChangeUnderLoad(t *testing.T) {
	dir := t.TempDir()
	stays := Spec{"file:" + dir + "/stays", []string{All}}
	r := open(t, Options{Queue: 1 << 20}, stays)
	const workers, changes = 3, 12
	var wg sync.WaitGroup
	calls := make([]chan func(*Lane), workers)
	counts := make([]int, workers+1)
	stop := make(chan struct{})
	for w := range workers {
		calls[w] = make(chan func(*Lane), 1)
		l := r.Lane()
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case fn := <-calls[w]:
					fn(l)
				case <-stop:
					counts[w] = i
					return
				default:
				}
				l.Record("http", &number{n: uint64(w)<<32 | uint64(i)})
				if i%64 == 0 { // the sink is to keep up
					for r.Stats()[0].Queued > 10000 {
						select {
						case fn := <-calls[w]:
							fn(l)
						default:
						}
					}
				}
			}
		})
	}
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				counts[workers] = i
				return
			default:
			}
			r.Record("http", &number{n: workers<<32 | uint64(i)})
			for r.Stats()[0].Queued > 10000 {
			}
		}
	})
	for i := range changes {
		specs := []Spec{stays}
		if i%3 > 0 {
			specs = append(specs, Spec{fmt.Sprint("file:", dir, "/other", i%3), []string{"http"}})
		}
		c, err := r.Prepare(specs)
		if err != nil {
			t.Fatal(err)
		}
		c.Commit()
		taken := make(chan struct{}, workers)
		for w := range workers {
			calls[w] <- func(l *Lane) { c.Take(l); taken <- struct{}{} }
		}
		for range workers {
			<-taken
		}
		if err := c.Finish(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	next := make([]int, workers+1)
	for _, v := range numbers(t, lines(t, dir+"/stays")) {
		w, i := v>>32, v&0xffffffff
		if i != next[w] {
			t.Fatalf("event %d of %d comes where %d is due", i, w, next[w])
		}
		next[w]++
	}
	if fmt.Sprint(next) != fmt.Sprint(counts) {
		t.Errorf("%v events arrived, of %v", next, counts)
	}
	others := 0
	for i := 1; i < 3; i++ {
		seen := map[int]bool{}
		list := numbers(t, lines(t, fmt.Sprint(dir, "/other", i)))
		for _, v := range list {
			seen[v] = true
		}
		if len(seen) != len(list) {
			t.Errorf("other%d: %d events, %d lines", i, len(seen), len(list))
		}
		others += len(list)
	}
	sum := r.Removed()
	for _, s := range r.Stats()[1:] {
		sum = sum.plus(s)
	}
	if sum.Written != uint64(others) || sum.Dropped+sum.Queued+sum.Failed != 0 || others == 0 {
		t.Errorf("%d lines in what came and went, figures %+v", others, sum)
	}
}
