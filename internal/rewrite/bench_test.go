package rewrite_test

import (
	"bytes"
	"testing"

	"penstock/internal/rewrite"
	"penstock/internal/wire"
)

// kinds are the packets and rules of the benchmarks and of the allocation test.
func kinds() []struct {
	name string
	in   packet
	rule rewrite.Rule
} {
	link := both(macs, vlanRule())
	stamps := join(nops(2), ts(tsv0, tse0))
	sacks := join(nops(2), ts(tsv0, tse0), nops(2), sack(1, 2, 3, 4, 5, 6))
	return []struct {
		name string
		in   packet
		rule rewrite.Rule
	}{
		{"nothing", packet{}, rewrite.Rule{}},
		{"macs", packet{}, macs},
		{"macs_ttl4", packet{}, both(macs, ttl1)},
		{"macs_ttl6", packet{v6: true}, both(macs, ttl1)},
		{"nat_udp4", packet{proto: 17, l4: udpSeg}, nat4},
		{"nat_udp6", packet{v6: true, proto: 17, l4: udpSeg}, nat6},
		{"nat_tcp4", packet{opts: stamps}, both(both(link, nat4), ttl1)},
		{"nat_tcp6", packet{v6: true, opts: stamps}, both(both(link, nat6), ttl1)},
		{"splice4_no_options", packet{}, both(link, splice)},
		{"splice4_deltas_without_walk", packet{opts: stamps}, both(link, only(splice, rewrite.AddSeq|rewrite.ShiftWindow))},
		{"splice4_ts", packet{opts: stamps}, both(link, splice)},
		{"splice6_ts", packet{v6: true, opts: stamps}, both(link, splice)},
		{"splice4_ts_odd", packet{opts: padded(join(nops(1), ts(1, 2)))}, both(link, splice)},
		{"splice4_ts_3sacks", packet{opts: sacks}, both(link, splice)},
		{"splice_nat4_ts", packet{opts: stamps}, both(both(both(link, nat4), splice), ttl1)},
		{"slow_syn", packet{flags: wire.FlagSYN, opts: stamps}, both(link, splice)},
		{"slow_17_options", packet{opts: nops(40)}, both(link, splice)},
	}
}

func BenchmarkApply(b *testing.B) {
	b.Run("parse_for_comparison", func(b *testing.B) {
		frame := packet{opts: join(nops(2), ts(tsv0, tse0))}.bytes()
		var h wire.Headers
		for b.Loop() {
			h.Parse(frame)
		}
	})
	for _, c := range kinds() {
		b.Run(c.name, func(b *testing.B) {
			frame := c.in.bytes()
			h := parse(b, frame)
			at := ttlOf(h)
			b.ReportAllocs()
			for b.Loop() {
				frame[at] = 64
				c.rule.Apply(frame, h)
			}
		})
	}
}

func BenchmarkApplySlow(b *testing.B) {
	r := both(macs, splice)
	frame := packet{opts: join(nops(2), ts(tsv0, tse0))}.bytes()
	h := parse(b, frame)
	b.ReportAllocs()
	for b.Loop() {
		r.ApplySlow(frame, h)
	}
}

func BenchmarkApplyQuoted(b *testing.B) {
	for _, size := range []int{28, 548} {
		quote := packet{payload: string(make([]byte, 508))}.bytes()[14:][:size]
		frame := packet{proto: wire.ProtoICMP, l4: join([]byte{3, 4, 0, 0, 0, 0, 5, 0}, quote)}.bytes()
		h := parse(b, frame)
		inner := both(splice, nat4)
		b.Run(map[int]string{28: "8_bytes", 548: "528_bytes"}[size], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				nat4.ApplyQuoted(frame, h, &inner)
			}
		})
	}
}

func TestNoAllocations(t *testing.T) {
	for _, c := range kinds() {
		frame := c.in.bytes()
		was := bytes.Clone(frame)
		h := parse(t, frame)
		if n := testing.AllocsPerRun(100, func() {
			copy(frame, was)
			c.rule.Apply(frame, h)
			copy(frame, was)
			c.rule.ApplySlow(frame, h)
		}); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
	frame := packet{proto: wire.ProtoICMP, l4: join([]byte{3, 4, 0, 0, 0, 0, 5, 0}, packet{}.bytes()[14:])}.bytes()
	h, inner := parse(t, frame), both(splice, nat4)
	if n := testing.AllocsPerRun(100, func() { nat4.ApplyQuoted(frame, h, &inner) }); n != 0 {
		t.Errorf("quoted: %v allocations", n)
	}
}
