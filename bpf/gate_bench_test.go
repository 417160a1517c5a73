package bpf

import (
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"penstock/internal/lab/labtest"
)

// BenchmarkGate shows what the gate costs a packet: beside a program that drops everything at once, and beside a gate with nothing in it.
func BenchmarkGate(b *testing.B) {
	run := func(b *testing.B, prog *ebpf.Program, packet []byte, want uint32) {
		action, took, err := prog.Benchmark(packet, max(b.N, 1), b.ResetTimer)
		if err != nil {
			b.Fatal(err)
		}
		if action != want {
			b.Fatalf("action %d, want %d", action, want)
		}
		b.ReportMetric(float64(took)/float64(time.Nanosecond), "ns/packet")
	}
	b.Run("xdp-drop", func(b *testing.B) {
		labtest.NeedRoot(b)
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		})
		if err != nil {
			b.Fatal(err)
		}
		defer prog.Close()
		run(b, prog, udp4(b, 18), 1)
	})
	b.Run("xdp-filter", func(b *testing.B) {
		// Of xdp-tools, as Debian's package has it: drops by source address, everything else passes.
		found, _ := filepath.Glob("/usr/lib/*/bpf/xdpfilt_alw_ip.o")
		if len(found) == 0 {
			b.Skip("xdp-tools is not installed")
		}
		labtest.NeedRoot(b)
		spec, err := ebpf.LoadCollectionSpec(found[0])
		if err != nil {
			b.Fatal(err)
		}
		for _, m := range spec.Maps {
			m.Pinning = ebpf.PinNone
		}
		c, err := ebpf.NewCollection(spec)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		const source = 1 // MAP_FLAG_SRC of xdp-filter
		cpus := make([]uint64, ebpf.MustPossibleCPU())
		for i := range cpus {
			cpus[i] = source
		}
		if err := c.Maps["filter_ipv4"].Put(netip.MustParseAddr("198.51.100.7").As4(), cpus); err != nil {
			b.Fatal(err)
		}
		for _, prog := range c.Programs {
			b.Run("passed", func(b *testing.B) { run(b, prog, udp4(b, 18), 2) })
			b.Run("denied", func(b *testing.B) { run(b, prog, from(udp4(b, 18), "198.51.100.7"), 1) })
		}
	})
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func(n int, six bool, bits ...int) []GateEntry {
		list := make([]GateEntry, 0, n)
		for seen := map[netip.Prefix]bool{}; len(list) < n; {
			b := [16]byte{0x20, 1}
			for i := 2; i < 16; i++ {
				b[i] = byte(rnd.Uint32())
			}
			a := netip.AddrFrom16(b)
			if !six {
				a = netip.AddrFrom4([4]byte(b[12:]))
			}
			p, _ := a.Prefix(bits[rnd.IntN(len(bits))])
			if !seen[p] && !p.Contains(netip.MustParseAddr("10.0.0.1")) {
				seen[p] = true
				list = append(list, GateEntry{GateKey: GateKey{Prefix: p}})
			}
		}
		return list
	}
	mixed4 := []int{16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32}
	for _, bm := range []struct {
		name string
		list []GateEntry
		six  bool
	}{
		{"empty", nil, false},
		{"1", random(1, false, 24), false},
		{"100000-hosts", random(100000, false, 32), false},
		{"100000-nets", random(100000, false, 24), false},
		{"100000-mixed", random(100000, false, mixed4...), false},
		{"ipv6-empty", nil, true},
		{"ipv6-1", random(1, true, 64), true},
		{"ipv6-100000-nets", random(100000, true, 64), true},
		{"ipv6-100000-mixed", random(100000, true, 32, 36, 40, 48, 56, 64, 96, 128), true},
	} {
		b.Run(bm.name, func(b *testing.B) {
			r := gated(b, nil)
			start := time.Now()
			r.change(GateChange{Add: bm.list})
			load := time.Since(start)
			packet := udp4(b, 18)
			if bm.six {
				packet = tcp6(b, "A", 0)
			}
			b.Run("passed", func(b *testing.B) { run(b, r.ports[0].prog, packet, 4) })
			if len(bm.list) > 0 {
				b.Run("denied", func(b *testing.B) {
					run(b, r.ports[0].prog, from(packet, bm.list[len(bm.list)/2].Prefix.Addr().String()), 1)
					b.ReportMetric(float64(load.Milliseconds()), "ms/load")
				})
			}
		})
	}
	b.Run("rates", func(b *testing.B) {
		r := gated(b, nil)
		r.change(GateChange{Settings: &GateSettings{Rates: GateRates{Packets: 1e9, Bytes: 1e12, SYNs: 1000}}})
		run(b, r.ports[0].prog, udp4(b, 18), 4)
	})
	b.Run("screens", func(b *testing.B) {
		r := gated(b, nil)
		r.change(GateChange{Settings: &GateSettings{Screens: ScreenLand | ScreenFlags | ScreenSource | ScreenFragments}})
		run(b, r.ports[0].prog, tcp4(b, "A", 0), 4)
	})
}
