package pcap_test

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"penstock/pcap"
)

func TestRing(t *testing.T) {
	dir := t.TempDir()
	for _, foreign := range []string{"cap.pcapng", "cap.12.pcapng", "cap.0000.pcapng.gz", "other.0000.pcapng"} {
		if err := os.WriteFile(filepath.Join(dir, foreign), []byte("not ours"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const size = 100_000
	files := pcap.RingFiles{Dir: dir, Prefix: "cap", MaxBytes: 1 << 20, Files: 3}
	options := pcap.WriterOptions{Interfaces: []pcap.Interface{{Name: "lan"}}}
	data := make([]byte, size)
	write := func(first, n int) pcap.RingStats {
		r, err := pcap.NewRing(files, options)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if err := r.WritePacket(0, int64(first+i), size, data, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
		s := r.Stats()
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if err := r.WritePacket(0, 0, 1, data, nil); err == nil {
			t.Error("a closed ring takes packets")
		}
		return s
	}
	// Ten packets fit into a file: 1 MiB / 100,052 bytes.
	if s := write(0, 15); s.Packets != 15 || s.Files != 2 || s.Removed != 0 || s.Current != filepath.Join(dir, "cap.0001.pcapng") {
		t.Errorf("first ring: %+v", s)
	}
	if s := write(15, 21); s.Packets != 21 || s.Files != 3 || s.Removed != 2 || s.Current != filepath.Join(dir, "cap.0004.pcapng") {
		t.Errorf("second ring: %+v", s)
	}
	var times []int64
	for _, name := range []string{"cap.0002.pcapng", "cap.0003.pcapng", "cap.0004.pcapng"} {
		path := filepath.Join(dir, name)
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() > files.MaxBytes || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, mode %v", name, fi.Size(), fi.Mode())
		}
		r, err := pcap.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		var rec pcap.Record
		for err = r.Next(&rec); err == nil; err = r.Next(&rec) {
			times = append(times, rec.Time)
		}
		if err != io.EOF {
			t.Error(err)
		}
		_ = r.Close()
	}
	want := make([]int64, 21)
	for i := range want {
		want[i] = int64(15 + i)
	}
	if !slices.Equal(times, want) {
		t.Errorf("times %v, want %v", times, want)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 7 {
		t.Errorf("%d files (%v), want 3 and 4 foreign ones", len(entries), err)
	}
}

func TestRingRefuses(t *testing.T) {
	dir := t.TempDir()
	options := pcap.WriterOptions{Interfaces: []pcap.Interface{{Name: "lan"}}}
	for _, f := range []pcap.RingFiles{
		{Dir: dir, Prefix: "", MaxBytes: 1 << 20},
		{Dir: dir, Prefix: "../cap", MaxBytes: 1 << 20},
		{Dir: dir, Prefix: "a/b", MaxBytes: 1 << 20},
		{Dir: dir, Prefix: "..", MaxBytes: 1 << 20},
		{Dir: dir, Prefix: "cap", MaxBytes: 1000},
		{Dir: dir, Prefix: "cap", MaxBytes: 1 << 20, Files: -1},
		{Dir: filepath.Join(dir, "none"), Prefix: "cap", MaxBytes: 1 << 20},
	} {
		if r, err := pcap.NewRing(f, options); err == nil {
			t.Errorf("%+v was accepted", f)
			_ = r.Close()
		}
	}
	if _, err := pcap.NewRing(pcap.RingFiles{Dir: dir, Prefix: "cap", MaxBytes: 1 << 20}, pcap.WriterOptions{}); err == nil {
		t.Error("a ring without interfaces was accepted")
	}
}

func TestRingDoesNotAllocate(t *testing.T) {
	r, err := pcap.NewRing(pcap.RingFiles{Dir: t.TempDir(), Prefix: "cap", MaxBytes: 1 << 30},
		pcap.WriterOptions{Interfaces: []pcap.Interface{{Name: "lan"}}})
	if err != nil {
		t.Fatal(err)
	}
	data, comment := make([]byte, 1514), []byte("drop no_chain")
	if n := testing.AllocsPerRun(1000, func() { _ = r.WritePacket(0, 1, 1514, data, comment) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
