package pcap_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"penstock/pcap"
)

// FuzzReader reads anything as a capture. What it reads must keep the promises
// of Record, survive being written and read again, and be replayed without
// loss.
func FuzzReader(f *testing.F) {
	for _, name := range captures(f) {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		if len(b) < 4000 {
			f.Add(b)
		}
	}
	f.Add(little().pcap().record("abc").b)
	f.Add(little().section().iface(9, 0, 1, 0, 0x8a, 0, 0, 0, 14, 0, 8, 0, 255, 255, 255, 255, 255, 255, 255, 255).packet(0, 1<<40, "abc").b)
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := readAll("fuzz", bytes.NewReader(b))
		var re *pcap.ReadError
		if err != io.EOF && (!errors.As(err, &re) || re.Offset < 0 || !bytes.HasPrefix(b, []byte{0x1f, 0x8b}) && re.Offset > int64(len(b))) {
			t.Fatalf("%T %v", err, err)
		}
		var out bytes.Buffer
		w, werr := pcap.NewWriter(&out, pcap.WriterOptions{Interfaces: []pcap.Interface{{}}})
		if werr != nil {
			t.Fatal(werr)
		}
		last := int64(-1)
		for i, rec := range list {
			if int(rec.Number) != i+1 || rec.Offset <= last || rec.Time < 0 || rec.Time > 1<<62 || rec.Wire < len(rec.Data) || len(rec.Data) > pcap.MaxPacket {
				t.Fatalf("packet %d: %+v", i+1, rec)
			}
			last = rec.Offset
			if err := w.WritePacket(0, rec.Time, rec.Wire, rec.Data, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		again, aerr := readAll("again", &out)
		if aerr != io.EOF || len(again) != len(list) {
			t.Fatalf("%d packets written, %d read (%v)", len(list), len(again), aerr)
		}
		for i := range list {
			if !bytes.Equal(list[i].Data, again[i].Data) || list[i].Time != again[i].Time || list[i].Wire != again[i].Wire {
				t.Fatalf("packet %d: %+v, read back %+v", i+1, list[i], again[i])
			}
		}
		res, err := pcap.Replay(context.Background(), pcap.ReplayOptions{In: bytes.NewReader(b), Name: "fuzz", Out: io.Discard, Workers: 1 + len(b)%3})
		dropped := uint64(0)
		for _, n := range res.Dropped {
			dropped += n
		}
		if res.Packets != res.Forwarded+res.Consumed+dropped || res.Packets > uint64(len(list)) || err == nil && int(res.Packets) != len(list) {
			t.Fatalf("%d packets read; %+v, %v", len(list), res, err)
		}
	})
}
