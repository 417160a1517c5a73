package pcap

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestWriterReadsBack(t *testing.T) {
	var out bytes.Buffer
	w, err := NewWriter(&out, WriterOptions{Comment: "a capture", Interfaces: []Interface{{Name: "lan"}, {Name: "wan", SnapLen: 8}}})
	if err != nil {
		t.Fatal(err)
	}
	rows := []struct {
		iface   int
		ts      int64
		wire    int
		data    string
		comment string
		want    string // data read back, if not data
		length  int
	}{
		{0, 1_700_000_000_123_456_789, 5, "hello", "", "", 5},
		{1, 1_700_000_000_000_000_000, 12, "twelve bytes", "cut: accept=no", "twelve b", 12},
		{0, 0, 0, "wire below data", "x", "", 15},
		{0, -5, 4, "", "", "", 4},
	}
	for _, r := range rows {
		if err := w.WritePacket(r.iface, r.ts, r.wire, []byte(r.data), []byte(r.comment)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WritePacket(2, 0, 0, nil, nil); err == nil {
		t.Error("interface 2 of 2 was accepted")
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if int64(out.Len()) != w.Size() || w.Packets() != uint64(len(rows)) {
		t.Errorf("size %d of %d, %d packets", w.Size(), out.Len(), w.Packets())
	}
	r, err := NewReader("memory", &out)
	if err != nil {
		t.Fatal(err)
	}
	var rec Record
	for i, row := range rows {
		if err := r.Next(&rec); err != nil {
			t.Fatal(err)
		}
		want := row.data
		if row.want != "" {
			want = row.want
		}
		if string(rec.Data) != want || rec.Time != max(row.ts, 0) || rec.Wire != row.length || rec.Interface != row.iface ||
			string(rec.Comment()) != row.comment || rec.Number != uint64(i+1) || rec.Link != LinkEthernet {
			t.Errorf("packet %d: %+v comment %q, wrote %+v", i+1, rec, rec.Comment(), row)
		}
	}
	if err := r.Next(&rec); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestWritePacketDoesNotAllocate(t *testing.T) {
	w, err := NewWriter(io.Discard, WriterOptions{Interfaces: []Interface{{Name: "lan"}}})
	if err != nil {
		t.Fatal(err)
	}
	data, comment := make([]byte, 1514), []byte("drop no_chain")
	if n := testing.AllocsPerRun(1000, func() { _ = w.WritePacket(0, 1, 1514, data, comment) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestWiresharkReadsComments has tshark read what is said of a packet.
func TestWiresharkReadsComments(t *testing.T) {
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	file := filepath.Join(t.TempDir(), "a.pcapng")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWriter(f, WriterOptions{Comment: "about all of it", Interfaces: []Interface{{Name: "lan", Description: "eth1"}, {Name: "wan"}}})
	if err != nil {
		t.Fatal(err)
	}
	for i, comment := range []string{"drop: acl_denied", "", "größer als 3"} {
		if err := w.WritePacket(i%2, 1_700_000_000_123_456_789+int64(i), 100, make([]byte, 61+i), []byte(comment)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
	fields := []string{"-n", "-r", file, "-T", "fields", "-E", "separator=|"}
	for _, name := range []string{"frame.time_epoch", "frame.len", "frame.cap_len", "frame.interface_name", "frame.comment"} {
		fields = append(fields, "-e", name)
	}
	out, err := exec.Command("tshark", fields...).Output()
	want := "1700000000.123456789|100|61|lan|drop: acl_denied\n1700000000.123456790|100|62|wan|\n1700000000.123456791|100|63|lan|größer als 3\n"
	if err != nil || string(out) != want {
		t.Errorf("tshark: %v\n%s\nwant\n%s", err, out, want)
	}
	out, err = exec.Command("capinfos", "-F", "-k", file).Output()
	if err != nil || !strings.Contains(string(out), "penstock") || !strings.Contains(string(out), "about all of it") {
		t.Errorf("capinfos: %v\n%s", err, out)
	}
}
