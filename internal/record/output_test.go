package record

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestFullDisk(t *testing.T) {
	var log logBuffer
	r, err := OpenWith([]Spec{{"file:/dev/full", []string{All}}}, slog.New(slog.NewTextHandler(&log, nil)), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		r.Record("flow", n{i})
		eventually(t, "the event fails", func() bool { return r.Stats()[0].Failed == uint64(i+1) })
	}
	s := r.Stats()[0]
	if s.Up || s.Error != "write: no space left on device" || s.Written != 0 {
		t.Errorf("stats are %+v", s)
	}
	if c := log.count("events are not written"); c != 1 {
		t.Errorf("logged %d times, want once", c)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	balanced(t, r.Stats()[0], 100)
}

// TestTornLine: a write that ends inside a line must not spoil the next one.
// The file is a pipe that is too small.
func TestTornLine(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	o := &fileOutput{path: fifo}
	if err := o.open(); err != nil {
		t.Fatal(err)
	}
	defer o.close()
	var buf []byte
	var ends []int
	for i := range 2000 {
		buf = fmt.Appendf(buf, "{\"n\":%d,\"pad\":\"%060d\"}\n", i, 0)
		ends = append(ends, len(buf))
	}
	o.interrupt(time.Now().Add(50 * time.Millisecond))
	done, failed, err := o.write(buf, ends)
	if !errors.Is(err, os.ErrDeadlineExceeded) || done != len(ends) || failed == 0 || failed == done || !o.torn {
		t.Fatalf("done %d, failed %d, torn %v, error %v: want a part", done, failed, o.torn, err)
	}
	o.interrupt(time.Time{})
	written := make(chan error, 1)
	go func() {
		_, failed, err := o.write([]byte("{\"n\":-1}\n"), []int{9})
		if failed != 0 {
			err = errors.Join(err, fmt.Errorf("%d failed", failed))
		}
		written <- err
	}()
	whole, last := 0, ""
	for scan := bufio.NewScanner(reader); last != `{"n":-1}` && scan.Scan(); {
		if last = scan.Text(); json.Valid([]byte(last)) {
			whole++
		}
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if whole != len(ends)-failed+1 {
		t.Errorf("%d whole lines arrived, want %d and the last", whole, len(ends)-failed)
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	file := dir + "/logs/events"
	if err := os.Mkdir(dir+"/logs", 0o700); err != nil {
		t.Fatal(err)
	}
	r := open(t, Options{}, Spec{"file:" + file, []string{All}}, Spec{"unix:" + dir + "/absent", []string{"tls"}})
	written := func(want uint64) {
		t.Helper()
		eventually(t, "the events are written", func() bool { return r.Stats()[0].Written == want })
	}
	r.Record("flow", n{1})
	written(1)
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	r.Record("flow", n{2})
	written(2)
	if err := r.Reopen(); err != nil {
		t.Fatal(err)
	}
	r.Record("flow", n{3})
	written(3)
	// Where the file cannot be opened, the old one goes on being written.
	if err := os.Rename(dir+"/logs", dir+"/moved"); err != nil {
		t.Fatal(err)
	}
	if err := r.Reopen(); err == nil || !strings.Contains(err.Error(), "directory "+dir+"/logs does not exist") {
		t.Errorf("reopen without directory: %v", err)
	}
	r.Record("flow", n{4})
	written(4)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Reopen(); err == nil || !strings.Contains(err.Error(), "the sink is closed") {
		t.Errorf("reopen after close: %v", err)
	}
	for name, want := range map[string][]int{"events.1": {1, 2}, "events": {3, 4}} {
		if got := numbers(t, lines(t, dir+"/moved/"+name)); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s holds %v, want %v", name, got, want)
		}
	}
}

func TestStdout(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r := open(t, Options{Stdout: out}, Spec{"stdout", []string{All}})
	r.Record("flow", n{7})
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil || !strings.HasSuffix(line, `"n":7}`+"\n") {
		t.Errorf("got %q, %v", line, err)
	}
	if err := r.Reopen(); err != nil {
		t.Error(err)
	}
	// The reader goes away: the events fail, and the process lives.
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	r.Record("flow", n{8})
	eventually(t, "the event fails", func() bool { return r.Stats()[0].Failed == 1 })
	if s := r.Stats()[0]; s.Error != "write: broken pipe" {
		t.Errorf("stats are %+v", s)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := out.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("closing the sink closed standard output: %v", err)
	}
}
