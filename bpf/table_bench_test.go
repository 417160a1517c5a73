package bpf

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"

	"penstock/internal/rewrite"
)

// crowdKey is flow number i of those that fill puts into the table.
func crowdKey(i int) FlowKey {
	return FlowKey{
		Src: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), Dst: netip.AddrFrom4([4]byte{192, 0, 2, 80}),
		SrcPort: 40000, DstPort: 53, Proto: ProtoUDP,
	}
}

// fill puts n flows into the table, last used at a moment, with a decision.
func (r *rig) fill(n int, seen time.Duration, decision uint64) {
	r.t.Helper()
	const batch = 8192
	keys, values := make([]steerFlowKey, 0, batch), make([]steerFlow, 0, batch)
	for i := range n {
		k := crowdKey(i)
		v := steerFlow{Decision: decision, Start: uint64(seen), LastSeen: uint64(seen), Packets: 1, Hash: FlowHash(k)}
		keys, values = append(keys, k.raw()), append(values, v)
		v.Reply = 1
		keys, values = append(keys, k.Reverse().raw()), append(values, v)
		if len(keys) == batch || i == n-1 {
			if _, err := r.flows.BatchUpdate(keys, values, nil); err != nil {
				r.t.Fatal(err)
			}
			keys, values = keys[:0], values[:0]
		}
	}
}

// crowds are how many flows the table holds in the benchmarks that depend on it.
var crowds = []struct {
	name  string
	flows int
}{{"10", 10}, {"1k", 1_000}, {"10k", 10_000}, {"100k", 100_000}, {"1M", 1_000_000}}

// crowd loads a program of its own with n flows in its table, which has room for a million, so that the buckets are as many in each.
func crowd(b *testing.B, n int, seen time.Duration, decision uint64) *rig {
	b.Helper()
	r := ownRig(b, func(o *Options) { o.Rules, o.MaxFlows = all, 1<<20 })
	r.fill(n, seen, decision)
	return r
}

// BenchmarkOffloadedFlow is one packet of an offloaded flow among many. hot: the same flow over and over. cold: another flow at random
// with each packet, what a run of the program costs otherwise taken off (that of a frame which is not IP); caches and the TLB miss.
func BenchmarkOffloadedFlow(b *testing.B) {
	for _, c := range crowds {
		b.Run("hot/flows-"+c.name, func(b *testing.B) {
			r := crowd(b, c.flows, Now(), uint64(Bypass))
			_, took, err := r.ports[0].prog.Benchmark(crowdPacket(b, c.flows/2), max(b.N, 1), b.ResetTimer)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took)/float64(time.Nanosecond), "ns/packet")
		})
		b.Run("cold/flows-"+c.name, func(b *testing.B) {
			r := crowd(b, c.flows, Now(), uint64(Bypass))
			other := build(b, eth(layers.EthernetTypeLinkLayerDiscovery), payload(46))
			rnd := rand.New(rand.NewPCG(1, 2))
			packet := crowdPacket(b, 0)
			out := make([]byte, 256)
			run := func(p []byte) time.Duration {
				opts := ebpf.RunOptions{Data: p, DataOut: out}
				begin := time.Now()
				if _, err := r.ports[0].prog.Run(&opts); err != nil {
					b.Fatal(err)
				}
				return time.Since(begin)
			}
			var with, without time.Duration
			for b.Loop() {
				i := rnd.IntN(c.flows)
				packet[27], packet[28], packet[29] = byte(i>>16), byte(i>>8), byte(i)
				with += run(packet)
				without += run(other)
			}
			b.ReportMetric(float64(with-without)/float64(b.N), "ns/packet")
		})
	}
}

// crowdPacket is a packet of flow number i.
func crowdPacket(t testing.TB, i int) []byte {
	ip := ip4(layers.IPProtocolUDP)
	ip.SrcIP, ip.DstIP = crowdKey(i).Src.AsSlice(), crowdKey(i).Dst.AsSlice()
	return build(t, eth(layers.EthernetTypeIPv4), ip, udp(ip), payload(18))
}

// BenchmarkRewrite is the program on a packet of an offloaded flow with each kind of rewrite. A packet runs again as it has become, so
// addresses and ports are set to what they are.
func BenchmarkRewrite(b *testing.B) {
	const splice = rewrite.AddSeq | rewrite.AddAck | rewrite.AddTS | rewrite.ShiftWindow
	const nat = rewrite.SetSrc | rewrite.SetDst | rewrite.SetSrcPort | rewrite.SetDstPort
	segment := func(v6 bool, options ...layers.TCPOption) []byte {
		if v6 {
			ip := ip6(layers.IPProtocolTCP)
			s := tcp(ip, "A")
			s.Options = options
			return build(b, eth(layers.EthernetTypeIPv6), ip, s, payload(100))
		}
		ip := ip4(layers.IPProtocolTCP)
		s := tcp(ip, "A")
		s.Options = options
		return build(b, eth(layers.EthernetTypeIPv4), ip, s, payload(100))
	}
	option := func(kind layers.TCPOptionKind, data int) layers.TCPOption {
		return layers.TCPOption{OptionType: kind, OptionLength: uint8(2 + data), OptionData: payload(data)}
	}
	nop := layers.TCPOption{OptionType: layers.TCPOptionKindNop, OptionLength: 1}
	stamps := []layers.TCPOption{nop, nop, option(layers.TCPOptionKindTimestamps, 8)}
	sack := append(stamps[:3:3], nop, nop, option(layers.TCPOptionKindSACK, 24))
	for _, bm := range []struct {
		name   string
		packet []byte
		flags  rewrite.Flags
	}{
		{"none/4", segment(false), 0},
		{"none/6", segment(true), 0},
		{"macs", segment(false), rewrite.SetSrcMAC | rewrite.SetDstMAC},
		{"nat/4", segment(false), nat},
		{"nat/6", segment(true), nat},
		{"seq", segment(false), rewrite.AddSeq | rewrite.AddAck},
		{"splice/bare", segment(false), splice},
		{"splice/timestamps", segment(false, stamps...), splice},
		{"splice/timestamps-6", segment(true, stamps...), splice},
		{"splice/timestamps-sack3", segment(false, sack...), splice},
		{"all/timestamps", segment(false, stamps...), splice | nat | rewrite.SetSrcMAC | rewrite.SetDstMAC},
		{"slow/odd-options", segment(false, nop, option(layers.TCPOptionKindSACK, 4), nop), splice},
	} {
		b.Run(bm.name, func(b *testing.B) {
			r := newRig(b, func(o *Options) { o.Rules, o.Midstream = all, MidstreamInspect })
			r.raw(0, bm.packet)
			key := flowOf(b, bm.packet)
			o := OffloadFlow{Key: key, Rewrite: rewrite.Rule{
				Flags: bm.flags, SrcMAC: [6]byte{2, 1}, DstMAC: [6]byte{2, 2}, Src: key.Src.As16(), Dst: key.Dst.As16(),
				SrcPort: key.SrcPort, DstPort: key.DstPort, Seq: 12345, Ack: 54321, TSVal: 1, TSEcr: 2, WindowShift: 0,
			}}
			if got := r.one(o); got != OffloadTaken {
				b.Fatal(got)
			}
			_, took, err := r.ports[0].prog.Benchmark(bm.packet, max(b.N, 1), b.ResetTimer)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took)/float64(time.Nanosecond), "ns/packet")
		})
	}
}

// BenchmarkOffload is ns per flow that is handed over, and how many a second.
func BenchmarkOffload(b *testing.B) {
	for _, rewritten := range []bool{false, true} {
		for _, batch := range []int{1, 32, 256} {
			name := fmt.Sprintf("plain/batch-%d", batch)
			if rewritten {
				name = fmt.Sprintf("rewritten/batch-%d", batch)
			}
			b.Run(name, func(b *testing.B) {
				r := newRig(b, func(o *Options) { o.Rules, o.MaxFlows = all, 1<<16 })
				r.fill(batch, Now(), uint64(ToChain))
				list := make([]OffloadFlow, batch)
				for i := range list {
					list[i].Key = crowdKey(i)
					if rewritten {
						list[i].Rewrite.Flags, list[i].ReplyRewrite.Flags = rewrite.AddSeq|rewrite.AddAck, rewrite.AddSeq|rewrite.AddAck
					}
				}
				flows := 0
				b.ResetTimer()
				for b.Loop() {
					n, err := r.Offload(list)
					if err != nil {
						b.Fatal(err)
					}
					if flows += n; n == batch {
						continue
					}
					b.StopTimer()
					r.table.settle(Now())
					b.StartTimer()
				}
				b.ReportMetric(float64(b.Elapsed())/float64(flows), "ns/flow")
				b.ReportMetric(float64(flows)/b.Elapsed().Seconds(), "flows/s")
			})
		}
	}
}

// BenchmarkExpire looks through a table in which nothing is idle: in the kernel, as Expire does, and, to compare, by reading every entry
// in batches, and nothing else.
func BenchmarkExpire(b *testing.B) {
	for _, c := range crowds {
		b.Run("kernel/flows-"+c.name, func(b *testing.B) {
			r := crowd(b, c.flows, Now(), uint64(Bypass))
			for b.Loop() {
				if n, err := r.Expire(Now(), Timeouts{UDP: time.Hour}, nil); n != 0 || err != nil {
					b.Fatal(n, err)
				}
			}
		})
		b.Run("read/flows-"+c.name, func(b *testing.B) {
			r := crowd(b, c.flows, Now(), uint64(Bypass))
			for b.Loop() {
				n := 0
				if err := r.eachFlow(func(*steerFlowKey, *steerFlow) bool { n++; return true }); n < 2*c.flows || err != nil {
					b.Fatal(n, err)
				}
			}
		})
		b.Run("all-idle/flows-"+c.name, func(b *testing.B) {
			r := crowd(b, 0, 0, 0)
			ended := 0
			for b.Loop() {
				b.StopTimer()
				r.fill(c.flows, Now()-2*time.Hour, uint64(Bypass))
				b.StartTimer()
				for left := c.flows; left > 0; {
					n, err := r.Expire(Now(), Timeouts{}, func(*EndedFlow) { ended++ })
					if left -= n; n == 0 || err != nil {
						b.Fatal(n, err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed())/float64(ended), "ns/flow")
		})
	}
}
