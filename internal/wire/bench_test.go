package wire_test

import (
	"fmt"
	"testing"

	"penstock/internal/wire"

	gvisor "gvisor.dev/gvisor/pkg/tcpip/checksum"
)

func BenchmarkParse(b *testing.B) {
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"tcp4", tcp4(b, "hello")},
		{"tcp6", tcp6(b, "hello")},
		{"vlan_tcp4", tagged(tcp4(b, "hello"), 10)},
	} {
		b.Run(c.name+"/parse", func(b *testing.B) {
			b.ReportAllocs()
			var h wire.Headers
			for b.Loop() {
				h.Parse(c.frame)
			}
		})
		b.Run(c.name+"/flow", func(b *testing.B) {
			b.ReportAllocs()
			var h wire.Headers
			h.Parse(c.frame)
			var f wire.Flow
			for b.Loop() {
				f, _ = h.Flow(c.frame)
			}
			sink = uint32(f.SrcPort)
		})
		b.Run(c.name+"/read_flow", func(b *testing.B) {
			b.ReportAllocs()
			var h wire.Headers
			h.Parse(c.frame)
			var f wire.Flow
			for b.Loop() {
				h.ReadFlow(c.frame, &f)
			}
			sink = uint32(f.SrcPort)
		})
		b.Run(c.name+"/hash", func(b *testing.B) {
			b.ReportAllocs()
			var h wire.Headers
			h.Parse(c.frame)
			f, _ := h.Flow(c.frame)
			for b.Loop() {
				sink ^= f.Hash()
			}
		})
		b.Run(c.name+"/canonical", func(b *testing.B) {
			b.ReportAllocs()
			var h wire.Headers
			h.Parse(c.frame)
			f, _ := h.Flow(c.frame)
			for b.Loop() {
				f, _ = f.Canonical()
			}
			sink ^= uint32(f.SrcPort)
		})
		b.Run(c.name+"/all", func(b *testing.B) {
			b.ReportAllocs()
			var h wire.Headers
			for b.Loop() {
				h.Parse(c.frame)
				f, _ := h.Flow(c.frame)
				sink ^= f.Hash()
			}
		})
	}
}

var sink uint32

// BenchmarkChecksum sets this package's sum beside gVisor's, on the same bytes in the same run.
func BenchmarkChecksum(b *testing.B) {
	for _, size := range []int{20, 40, 64, 128, 512, 1460, 9000, 65535} {
		buf := make([]byte, size)
		for i := range buf {
			buf[i] = byte(i * 7)
		}
		b.Run(fmt.Sprintf("wire/%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				sink = wire.Sum(buf, 0)
			}
		})
		b.Run(fmt.Sprintf("gvisor/%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				sink = uint32(gvisor.Checksum(buf, 0))
			}
		})
	}
}
