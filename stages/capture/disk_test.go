package capture

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"penstock/internal/lab/labtest"
	"penstock/pcap"
	"penstock/pipeline"
)

func TestDirectoryThatCannotBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := mustParse(t, "dir = '"+file+"/below'").Build(pipeline.Env{})
	if err == nil || !strings.Contains(err.Error(), "begin capture: mkdir") {
		t.Errorf("got %v", err)
	}
}

// newWriterOn returns a stage whose writer tries again soon and logs into a buffer, which may be read after Close.
func newWriterOn(t *testing.T, dir string) (*stage, *pipeline.CounterSet, *bytes.Buffer) {
	t.Helper()
	c := defaults()
	c.Dir, c.FileSize, c.Lossless = dir, minFileSize, true
	log := &bytes.Buffer{}
	counters := &pipeline.CounterSet{}
	env := &pipeline.Env{
		Chain: "c", Ports: []pipeline.PortInfo{{Name: "client"}}, Counters: counters, Shared: &pipeline.Shared{},
		Log: slog.New(slog.NewTextHandler(log, nil)),
	}
	w := newWriter(&c, env)
	w.retryAfter = time.Millisecond
	env.Shared.Get("writer", func() any { return &shared{writer: w} })
	s, err := newStage(c, env)
	if err != nil {
		t.Fatal(err)
	}
	return s, counters, log
}

// capture passes n packets of 60,000 bytes through.
func (s *stage) capture(t *testing.T, n int) {
	t.Helper()
	b := pipeline.NewBatch(1)
	p := packet(t, 60000)
	p.In = 0
	b.Add(p)
	for range n {
		s.Process(b)
		s.Observe(b)
	}
}

func count(c *pipeline.CounterSet, name string) uint64 { return c.Counter(name, "").Load() }

// readable counts the packets that our reader finds in a file, up to where it is cut.
func readable(t *testing.T, file string) (n int) {
	t.Helper()
	r, err := pcap.Open(file)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	defer r.Close()
	var rec pcap.Record
	for r.Next(&rec) == nil {
		n++
	}
	return n
}

// TestDirectoryGoesAway removes the directory under a running capture, and brings it back.
func TestDirectoryGoesAway(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "captures")
	s, counters, log := newWriterOn(t, dir)
	s.capture(t, 10)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s.capture(t, 20) // the next file cannot be made
	await(t, "packets are lost", func() bool { return count(counters, "lost") > 0 })
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	await(t, "a new file", func() bool { s.capture(t, 1); return len(glob(t, dir+"/*")) == 1 })
	lost := count(counters, "lost")
	s.capture(t, 3)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := count(counters, "lost"); n != lost {
		t.Errorf("%d more packets were lost when the directory was there again", n-lost)
	}
	if n := readable(t, glob(t, dir+"/*")[0]); n < 4 {
		t.Errorf("%d packets in the new file", n)
	}
	if n := count(counters, "write_errors"); n == 0 || count(counters, "files") != 2 {
		t.Errorf("%d write errors, %d files", n, count(counters, "files"))
	}
	if text := log.String(); strings.Count(text, "capture cannot be written") != 1 || strings.Count(text, "capture goes on") != 1 {
		t.Errorf("want one line when it fails and one when it goes on, got\n%s", text)
	}
}

// TestDiskFull captures more than a file system holds.
func TestDiskFull(t *testing.T) {
	labtest.NeedRoot(t) // to mount a small file system
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2500k"); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount tmpfs: %v", err)
		}
	})
	s, counters, log := newWriterOn(t, dir)
	s.capture(t, 60) // 3.6 MB
	await(t, "packets are lost", func() bool { return count(counters, "lost") > 0 })
	for _, f := range glob(t, dir+"/*")[:2] {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	lost := uint64(0)
	await(t, "packets are written again", func() bool {
		lost = count(counters, "lost")
		s.capture(t, 1)
		await(t, "the writer is idle", func() bool { return s.ring.Empty() })
		return count(counters, "lost") == lost
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files := glob(t, dir+"/*")
	if n := readable(t, files[len(files)-1]); n < 1 {
		t.Errorf("%d packets in the file that was begun when there was room again", n)
	}
	if text := log.String(); !strings.Contains(text, "no space left on device") || !strings.Contains(text, "capture goes on") {
		t.Errorf("log:\n%s", text)
	}
	if captured, lost := count(counters, "captured"), count(counters, "lost"); lost >= captured {
		t.Errorf("captured %d, lost %d", captured, lost)
	}
}
