package pcap_test

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"penstock/internal/wire"
	"penstock/pcap"
	pt "penstock/pipeline/pipelinetest"
)

// benchCapture returns a capture of n packets of 72 flows, 64 to 663 bytes
// long.
func benchCapture(n int) []byte {
	some := make([][]byte, 720)
	for i := range some {
		c := "10.0.0." + string(rune('1'+i%9)) + ":" + string(rune('1'+i%8)) + "000"
		some[i] = pt.TCP(c, "192.0.2.1:80", wire.FlagACK, uint32(i), pt.PayloadLen(10+i%600))
	}
	frames := make([][]byte, n)
	for i := range frames {
		frames[i] = some[i%len(some)]
	}
	return pt.Capture(10*time.Microsecond, frames...)
}

// BenchmarkReplay is a replay of a chain without stages; an op is a packet.
func BenchmarkReplay(b *testing.B) {
	const n = 200_000
	capture := benchCapture(n)
	for _, m := range []struct {
		name string
		o    pcap.ReplayOptions
	}{
		{"checksums verified", pcap.ReplayOptions{}},
		{"checksums counted", pcap.ReplayOptions{AcceptBadChecksums: true}},
		{"with output", pcap.ReplayOptions{Out: io.Discard}},
		{"4 workers", pcap.ReplayOptions{Workers: 4}},
	} {
		b.Run(m.name, func(b *testing.B) {
			b.ReportAllocs()
			packets := 0
			for packets < b.N {
				m.o.In = bytes.NewReader(capture)
				res, err := pcap.Replay(context.Background(), m.o)
				if err != nil || res.Packets != n {
					b.Fatal(res, err)
				}
				packets += n
			}
			b.ReportMetric(float64(packets)/b.Elapsed().Seconds()/1e6, "Mpps")
			b.ReportMetric(b.Elapsed().Seconds()*1e9/float64(packets), "ns/packet")
		})
	}
}

// BenchmarkReader is reading alone, beside gopacket's reader.
func BenchmarkReader(b *testing.B) {
	const n = 20_000
	capture := benchCapture(n)
	b.Run("pcap", func(b *testing.B) {
		b.SetBytes(int64(len(capture)))
		for b.Loop() {
			r, err := pcap.NewReader("bench", bytes.NewReader(capture))
			if err != nil {
				b.Fatal(err)
			}
			var rec pcap.Record
			for err == nil {
				err = r.Next(&rec)
			}
			if rec.Number != n {
				b.Fatal(rec.Number, err)
			}
		}
	})
	b.Run("gopacket", func(b *testing.B) {
		b.SetBytes(int64(len(capture)))
		for b.Loop() {
			r, err := pcapgo.NewNgReader(bytes.NewReader(capture), pcapgo.DefaultNgReaderOptions)
			if err != nil {
				b.Fatal(err)
			}
			packets := 0
			for {
				if _, _, err = r.ZeroCopyReadPacketData(); err != nil {
					break
				}
				packets++
			}
			if packets != n {
				b.Fatal(packets, err)
			}
		}
	})
}

// BenchmarkWritePacket writes packets with a comment.
func BenchmarkWritePacket(b *testing.B) {
	w, err := pcap.NewWriter(io.Discard, pcap.WriterOptions{Interfaces: []pcap.Interface{{Name: "lan"}}})
	if err != nil {
		b.Fatal(err)
	}
	data, comment := make([]byte, 800), []byte("drop no_chain")
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if err := w.WritePacket(0, 1, 800, data, comment); err != nil {
			b.Fatal(err)
		}
	}
}
