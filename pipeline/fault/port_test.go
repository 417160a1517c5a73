package fault_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"testing"
	"time"

	"penstock/internal/units"
	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/pipeline/fault"
	"penstock/pipeline/pipelinetest"
)

// bench is a fault port over a memory port.
type bench struct {
	t      *testing.T
	pool   *pipeline.Pool
	inner  *pipeline.MemoryPort
	port   *fault.Port
	now    int64
	copied int
}

func newBench(t *testing.T, o fault.Options) *bench {
	t.Helper()
	arena, err := pipeline.NewArena(make([]byte, 4096*2048), 2048, 64, 1)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, pool: arena.Pool(0), now: 1}
	b.inner = pipeline.NewMemoryPort(pipeline.PortInfo{ID: 0, Name: "lan"}, b.pool, 1<<16)
	b.port = fault.Wrap(b.inner, o, fault.PortOptions{
		Pool: b.pool, Clock: func() int64 { return b.now }, Copied: func(_, _ *pipeline.Packet) { b.copied++ },
	})
	t.Cleanup(func() {
		if err := b.port.Close(); err != nil {
			t.Error(err)
		}
		if b.pool.Free() != b.pool.Total() || b.port.Stats().InFlight != 0 {
			t.Errorf("after close %d of %d frames are free, %d in flight", b.pool.Free(), b.pool.Total(), b.port.Stats().InFlight)
		}
	})
	return b
}

const src, dst = "10.0.0.1:1000", "10.0.0.2:80"

// numbered returns n packets that carry their number.
func numbered(n int) (list [][]byte) {
	for i := range n {
		list = append(list, pipelinetest.TCP(src, dst, wire.FlagACK, uint32(i), pipelinetest.PayloadLen(20+i%100)))
	}
	return list
}

// number returns what numbered gave a packet.
func number(b []byte) int {
	var h wire.Headers
	h.Parse(b)
	return int(wire.TCP(b[h.L4:h.End]).Seq())
}

// receive takes what there is and returns the bytes.
func (b *bench) receive() (list [][]byte, err error) {
	for {
		batch := pipeline.NewBatch(pipeline.BatchSize)
		n, err := b.port.Receive(batch)
		for _, p := range batch.All() {
			list = append(list, bytes.Clone(p.Bytes()))
			b.pool.Put(p)
		}
		if n == 0 || err != nil {
			return list, err
		}
	}
}

// transmit sends packets, a few at a time, and returns what arrived.
func (b *bench) transmit(list [][]byte) [][]byte {
	b.t.Helper()
	for len(list) > 0 {
		n := min(len(list), 16)
		var pkts []*pipeline.Packet
		for _, f := range list[:n] {
			p := b.pool.Get()
			p.SetView(p.Offset(), len(f))
			copy(p.Bytes(), f)
			pkts = append(pkts, p)
		}
		if got := b.port.Transmit(pkts); got != n {
			b.t.Fatalf("accepted %d of %d", got, n)
		}
		b.port.Flush()
		list = list[n:]
	}
	return b.inner.Sent()
}

func numbers(list [][]byte) (n []int) {
	for _, f := range list {
		n = append(n, number(f))
	}
	return n
}

func near(t *testing.T, what string, got uint64, n int, share float64) {
	t.Helper()
	if want := share * float64(n); float64(got) < want*0.8 || float64(got) > want*1.2 {
		t.Errorf("%s: got %d of %d, want about %.0f", what, got, n, want)
	}
}

// TestConformance: without faults it is a port like any other.
func TestConformance(t *testing.T) {
	pipelinetest.Port(t, func(t *testing.T, in [][]byte) *pipelinetest.PortUnderTest {
		arena, err := pipeline.NewArena(make([]byte, 512*2048), 2048, 256, 1)
		if err != nil {
			t.Fatal(err)
		}
		const limit = 220
		m := pipeline.NewMemoryPort(pipeline.PortInfo{Name: "memory"}, arena.Pool(0), limit)
		for _, f := range in {
			m.Inject(f)
		}
		var sent [][]byte
		return &pipelinetest.PortUnderTest{
			Port: fault.Wrap(m, fault.Options{}, fault.PortOptions{Pool: arena.Pool(0), Clock: func() int64 { return 1 }}),
			Pool: arena.Pool(0), Waits: true, Limit: limit,
			Sent: func() [][]byte { sent = append(sent, m.Sent()...); return sent },
		}
	})
}

// TestShares: each fault strikes as often as it was told to, in both directions,
// and every packet is accounted for.
func TestShares(t *testing.T) {
	const n = 4000
	o := fault.Options{Seed: 3, Loss: 0.1, Duplicate: 0.2, Reorder: 0.1, Corrupt: 0.1}
	for _, dir := range []string{"receive", "transmit"} {
		t.Run(dir, func(t *testing.T) {
			b := newBench(t, o)
			var out [][]byte
			counts := b.port.Received
			if dir == "transmit" {
				counts = b.port.Transmitted
				out = b.transmit(numbered(n))
				b.now += int64(time.Second)
				out = append(out, b.transmit(nil)...)
				b.port.Flush()
				out = append(out, b.inner.Sent()...)
			} else {
				for _, f := range numbered(n) {
					b.inner.Inject(f)
				}
				b.inner.Finish()
				out, _ = b.receive()
				b.now += int64(time.Second)
				more, err := b.receive()
				if out = append(out, more...); err != io.EOF {
					t.Errorf("got %v, want the end", err)
				}
			}
			c := counts()
			near(t, "lost", c.Lost, n, 0.1)
			near(t, "duplicated", c.Duplicated, n, 0.9*0.2)
			near(t, "reordered", c.Reordered, n, 0.9*0.1)
			near(t, "corrupted", c.Corrupted, n, 0.9*0.1)
			if want := n - int(c.Lost) + int(c.Duplicated); len(out) != want || b.copied != int(c.Duplicated) {
				t.Errorf("got %d packets, want %d; told of %d copies", len(out), want, b.copied)
			}
			bad := 0
			var h wire.Headers
			for _, f := range out {
				if h.Parse(f) != wire.FaultNone || !wire.VerifyIPv4(f[h.L3:]) || !wire.VerifyL4(f, &h) {
					bad++
				}
			}
			if bad != int(c.Corrupted) {
				t.Errorf("%d packets are damaged, %d were corrupted", bad, c.Corrupted)
			}
			extra := b.port.Stats().Extra
			if p := dir[:1]; extra[map[string]string{"r": "rx_", "t": "tx_"}[p]+"fault_loss"] != c.Lost {
				t.Errorf("figures: %v", extra)
			}
		})
	}
}

// TestSameSeed: the same packets meet the same faults, and with another seed
// others.
func TestSameSeed(t *testing.T) {
	run := func(seed int) string {
		b := newBench(t, fault.Options{Seed: seed, Loss: 0.1, Duplicate: 0.1, Reorder: 0.1, Corrupt: 0.1, Jitter: units.Duration(time.Millisecond)})
		h := ""
		for _, f := range numbered(500) {
			b.inner.Inject(f)
			b.now += int64(100 * time.Microsecond)
			list, _ := b.receive()
			for _, g := range list {
				h += string(g)
			}
		}
		return h
	}
	if first, second := run(1), run(1); first != second {
		t.Error("two runs differ")
	}
	if run(1) == run(2) {
		t.Error("another seed makes the same faults")
	}
}

func TestReorder(t *testing.T) {
	b := newBench(t, fault.Options{Reorder: 0.05, ReorderGap: 2})
	got := numbers(b.transmit(numbered(400)))
	b.now += int64(time.Second)
	b.port.Flush()
	got = append(got, numbers(b.inner.Sent())...)
	seen := map[int]bool{}
	late := 0
	for i, n := range got {
		seen[n] = true
		if i > 0 && n < got[i-1] {
			late++
		}
	}
	if len(got) != 400 || len(seen) != 400 || late == 0 || b.port.Transmitted().Reordered == 0 {
		t.Errorf("got %d packets, %d different, %d late", len(got), len(seen), late)
	}
}

// TestDelay: packets come when they are due, and Next tells when.
func TestDelay(t *testing.T) {
	b := newBench(t, fault.Options{Delay: units.Duration(5 * time.Millisecond)})
	for _, f := range numbered(3) {
		b.inner.Inject(f)
	}
	if got, err := b.receive(); len(got) != 0 || err != nil {
		t.Fatalf("at once: got %d, %v", len(got), err)
	}
	if due, ok := b.port.Next(); !ok || due != 1+5e6 {
		t.Errorf("due %d, %v", due, ok)
	}
	if s := b.port.Stats(); s.InFlight != 3 || s.Extra["rx_fault_delay"] != 3 {
		t.Errorf("got %+v", s)
	}
	b.now = 5e6
	if got, _ := b.receive(); len(got) != 0 {
		t.Errorf("too early: got %d", len(got))
	}
	b.now = 1 + 5e6
	if got, _ := b.receive(); fmt.Sprint(numbers(got)) != "[0 1 2]" {
		t.Errorf("got %v", numbers(got))
	}
	if _, ok := b.port.Next(); ok {
		t.Error("nothing is held, and something is due")
	}
}

// TestWake: a worker that sleeps is woken when a packet is due.
func TestWake(t *testing.T) {
	arena, err := pipeline.NewArena(make([]byte, 64*2048), 2048, 64, 1)
	if err != nil {
		t.Fatal(err)
	}
	woken := make(chan struct{}, 1)
	inner := pipeline.NewMemoryPort(pipeline.PortInfo{}, arena.Pool(0), 16)
	p := fault.Wrap(inner, fault.Options{Delay: units.Duration(2 * time.Millisecond)}, fault.PortOptions{
		Pool: arena.Pool(0), Clock: pipeline.Clock(), Wake: func() { woken <- struct{}{} },
	})
	inner.Inject(numbered(1)[0])
	b := pipeline.NewBatch(4)
	if n, _ := p.Receive(b); n != 0 {
		t.Fatal("not delayed")
	}
	p.Flush()
	select {
	case <-woken:
	case <-time.After(5 * time.Second):
		t.Fatal("not woken")
	}
	if n, _ := p.Receive(b); n != 1 {
		t.Error("not there after the wake")
	}
}

// TestHold: what is held is bounded; the rest passes at once.
func TestHold(t *testing.T) {
	b := newBench(t, fault.Options{Delay: units.Duration(time.Second), Hold: 10})
	for _, f := range numbered(30) {
		b.inner.Inject(f)
	}
	got, _ := b.receive()
	if len(got) != 20 || b.port.Received().HoldFull != 20 || b.port.Received().Delayed != 10 {
		t.Errorf("got %d, counts %+v", len(got), b.port.Received())
	}
}

// TestMTU: what is too big is lost, and its sender told the way a router would.
func TestMTU(t *testing.T) {
	for _, tc := range []struct {
		name  string
		frame []byte
		told  int
		mtu   uint32
	}{
		{"ipv4", pipelinetest.TCP(src, dst, wire.FlagACK, 9, pipelinetest.PayloadLen(1400), pipelinetest.DontFragment()), 1, 1300},
		{"ipv4 that may be fragmented", pipelinetest.TCP(src, dst, wire.FlagACK, 9, pipelinetest.PayloadLen(1400)), 0, 0},
		{"ipv6", pipelinetest.TCP("[2001:db8::1]:1000", "[2001:db8::2]:80", wire.FlagACK, 9, pipelinetest.PayloadLen(1400)), 1, 1300},
	} {
		for _, dir := range []string{"receive", "transmit"} {
			t.Run(tc.name+" "+dir, func(t *testing.T) {
				b := newBench(t, fault.Options{MTU: 1300, PacketTooBig: true})
				small := numbered(1)[0]
				var through, back [][]byte
				if dir == "receive" {
					b.inner.Inject(tc.frame)
					b.inner.Inject(small)
					through, _ = b.receive()
					b.port.Flush()
					back = b.inner.Sent()
				} else {
					through = b.transmit([][]byte{tc.frame, small})
					back, _ = b.receive()
				}
				if len(through) != 1 || len(back) != tc.told {
					t.Fatalf("%d came through, %d came back", len(through), len(back))
				}
				if tc.told == 0 {
					return
				}
				var h wire.Headers
				f := back[0]
				if h.Parse(f) != wire.FaultNone || !wire.VerifyL4(f, &h) || h.IPVersion == 4 && !wire.VerifyIPv4(f[h.L3:]) {
					t.Fatalf("the answer is malformed: %s", wire.Summary(f))
				}
				quoted, ok := h.QuotedFlow(f)
				if !ok || quoted.SrcPort != 1000 || quoted.DstPort != 80 {
					t.Errorf("it quotes %v, %v", quoted, ok)
				}
				m := wire.ICMP(f[h.L4:h.End])
				if got := binary.BigEndian.Uint32(m[4:]); got != tc.mtu {
					t.Errorf("mtu %d, want %d", got, tc.mtu)
				}
			})
		}
	}
}

// TestFixChecksum: damage that nobody can see but the ends.
func TestFixChecksum(t *testing.T) {
	b := newBench(t, fault.Options{Corrupt: 1, FixChecksum: true})
	sent := numbered(50)
	var h wire.Headers
	for i, f := range b.transmit(sent) {
		if h.Parse(f) != wire.FaultNone || !wire.VerifyIPv4(f[h.L3:]) || !wire.VerifyL4(f, &h) {
			t.Fatal("a checksum is wrong")
		}
		if bytes.Equal(f[h.Payload:h.End], sent[i][h.Payload:h.End]) {
			t.Fatal("not damaged")
		}
	}
}

// TestOn: faults of one direction only.
func TestOn(t *testing.T) {
	b := newBench(t, fault.Options{Loss: 1, On: fault.OnReceive})
	if got := b.transmit(numbered(5)); len(got) != 5 {
		t.Errorf("transmitted %d", len(got))
	}
	b.inner.Inject(numbered(1)[0])
	if got, _ := b.receive(); len(got) != 0 {
		t.Errorf("received %d", len(got))
	}
}

// TestNoAllocs: the port is part of the packet path.
func TestNoAllocs(t *testing.T) {
	b := newBench(t, fault.Options{Loss: 0.1, Duplicate: 0.1, Reorder: 0.1, Corrupt: 0.1, Jitter: units.Duration(time.Microsecond)})
	pkts := make([]*pipeline.Packet, 0, 32)
	frame := numbered(1)[0]
	sink := fault.Wrap(&sinkPort{pool: b.pool}, fault.Options{Loss: 0.1, Duplicate: 0.1, Reorder: 0.1, Corrupt: 0.1, Jitter: units.Duration(time.Microsecond)},
		fault.PortOptions{Pool: b.pool, Clock: func() int64 { b.now += 1000; return b.now }})
	turn := func() {
		pkts = pkts[:0]
		for range 32 {
			p := b.pool.Get()
			p.SetView(p.Offset(), len(frame))
			copy(p.Bytes(), frame)
			pkts = append(pkts, p)
		}
		sink.Transmit(pkts)
		sink.Flush()
	}
	for range 200 {
		turn() // the queues grow
	}
	if n := testing.AllocsPerRun(200, turn); n != 0 {
		t.Errorf("%v allocations for 32 packets", n)
	}
	if err := sink.Close(); err != nil {
		t.Error(err)
	}
}

// sinkPort swallows what is transmitted.
type sinkPort struct {
	pipeline.Port
	pool *pipeline.Pool
}

func (s *sinkPort) Info() pipeline.PortInfo { return pipeline.PortInfo{} }
func (s *sinkPort) Transmit(pkts []*pipeline.Packet) int {
	for _, p := range pkts {
		s.pool.Put(p)
	}
	return len(pkts)
}
func (s *sinkPort) Flush()       {}
func (s *sinkPort) Close() error { return nil }
