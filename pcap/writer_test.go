package pcap

import (
	"bytes"
	"io"
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
