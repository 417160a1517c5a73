package pipeline

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"penstock/internal/wire"
)

// udp returns a UDP frame whose source port tells packets apart.
func udp(srcPort uint16, payload int) []byte {
	f := make([]byte, 14+20+8+payload)
	f[12], f[13] = 0x08, 0x00
	ip := f[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(28+payload))
	copy(ip[12:], []byte{10, 0, 0, 1})
	copy(ip[16:], []byte{10, 0, 0, 2})
	binary.BigEndian.PutUint16(ip[10:], wire.Checksum(ip[:20], 0))
	binary.BigEndian.PutUint16(ip[20:], srcPort)
	binary.BigEndian.PutUint16(ip[22:], 53)
	binary.BigEndian.PutUint16(ip[24:], uint16(8+payload))
	return f
}

type stageFunc func(b *Batch)

func (f stageFunc) Process(b *Batch) { f(b) }

var reasonTest = DefineReason("test_only", "used by the tests of this package")

// spec returns a chain of the given stages.
func spec(affinity bool, stages ...Stage) *ChainSpec {
	s := &ChainSpec{Name: "test"}
	for _, st := range stages {
		var r Registry
		Register(&r, Descriptor[struct{}]{
			Kind: "test", Affinity: affinity,
			New: func(struct{}, *Env) (Stage, error) { return st, nil },
		})
		k := r.Lookup("test")
		s.Stages = append(s.Stages, StageSpec{Kind: k, Config: k.NewConfig(), Shared: &Shared{}})
	}
	return s
}

// bench is a worker between two memory ports.
type bench struct {
	*Worker
	lan, wan *MemoryPort
	pool     *Pool
}

func newBench(t testing.TB, frames int, stages ...Stage) *bench {
	t.Helper()
	a, err := NewArena(make([]byte, frames*2048), 2048, 128, 1)
	if err != nil {
		t.Fatal(err)
	}
	return newBenchOn(t, a, 0, spec(false, stages...))
}

func newBenchOn(t testing.TB, a *Arena, id int, s *ChainSpec) *bench {
	t.Helper()
	infos := []PortInfo{{ID: 0, Name: "lan"}, {ID: 1, Name: "wan"}}
	pool := a.Pool(id)
	b := &bench{lan: NewMemoryPort(infos[0], pool, 4096), wan: NewMemoryPort(infos[1], pool, 4096), pool: pool}
	waiter := NewChanWaiter()
	b.lan.SetWaiter(waiter)
	b.wan.SetWaiter(waiter)
	b.Worker = NewWorker(WorkerOptions{ID: id, Ports: []Port{b.lan, b.wan}, Infos: infos, Pool: pool, Waiter: waiter})
	c, err := s.Build(b.Env())
	if err != nil {
		t.Fatal(err)
	}
	b.SetChains([]*Chain{c}, []bool{s.Affinity()})
	return b
}

func (b *bench) turn(t testing.TB) {
	t.Helper()
	if _, err := b.Turn(); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

func (b *bench) check(t testing.TB) Totals {
	t.Helper()
	s := b.Stats()
	if !s.Totals.Balanced() {
		t.Errorf("packets disappeared: %+v", s.Totals)
	}
	if b.pool.Free() != b.pool.Total() || s.Pool.DoubleFrees != 0 {
		t.Errorf("frames: %d free of %d, %d freed twice", b.pool.Free(), b.pool.Total(), s.Pool.DoubleFrees)
	}
	return s.Totals
}

func TestVerdicts(t *testing.T) {
	// The source port says what the stage does with the packet.
	first := stageFunc(func(b *Batch) {
		for p := range b.Live() {
			switch p.Flow.SrcPort {
			case 1:
				p.Drop(reasonTest)
			case 2:
				p.Consume()
			case 3:
				p.Forward(0)
			case 4:
				p.Forward(9)
			case 5: // no verdict
			default:
				p.Continue()
			}
		}
	})
	var seen int
	second := stageFunc(func(b *Batch) {
		for p := range b.Live() {
			seen++
			p.Continue()
		}
	})
	b := newBench(t, 256, first, second)
	b.o.Default = 0
	for port := range uint16(8) {
		b.lan.Inject(udp(port, 10))
	}
	b.turn(t)
	got := b.check(t)
	if got.Packets != 8 || got.Forwarded != 4 || got.Consumed != 1 || seen != 3 ||
		got.Dropped["test_only"] != 1 || got.Dropped["no_verdict"] != 1 || got.Dropped["no_port"] != 1 {
		t.Errorf("totals %+v, second stage saw %d", got, seen)
	}
	if back, on := len(b.lan.Sent()), len(b.wan.Sent()); back != 1 || on != 3 {
		t.Errorf("sent %d back and %d on, want 1 and 3", back, on)
	}
	st := b.Stats().Chains[0].Stages
	if st[0].Packets != 8 || st[0].Continued != 3 || st[0].Dropped != 2 || st[0].Forwarded != 2 || st[0].Consumed != 1 || st[1].Packets != 3 {
		t.Errorf("stages %+v", st)
	}
}

func TestMalformedIsNamed(t *testing.T) {
	b := newBench(t, 256, stageFunc(func(b *Batch) {
		for p := range b.Live() {
			if p.Fault != wire.FaultNone {
				t.Error("a stage was shown a malformed packet")
			}
			p.Continue()
		}
	}))
	b.o.Default = 0
	good := udp(7, 20)
	for n := range len(good) {
		b.lan.Inject(good[:n])
	}
	b.turn(t)
	got := b.check(t)
	if got.Packets == 0 || got.Forwarded != 0 || got.DroppedTotal() != got.Packets {
		t.Errorf("truncated packets: %+v", got)
	}
	if got.Dropped["truncated_ethernet"] != 14 || got.Dropped["truncated_ipv4"] != 20 {
		t.Errorf("reasons: %v", got.Dropped)
	}
}

func TestUnsteeredGoesToThePeer(t *testing.T) {
	b := newBench(t, 256, stageFunc(func(b *Batch) { t.Error("the stage was run") }))
	b.o.Default = NoChain
	b.wan.Inject(udp(1, 1))
	arp := make([]byte, 60)
	arp[12], arp[13] = 0x08, 0x06
	b.lan.Inject(arp)
	b.turn(t)
	if got := b.check(t); got.Forwarded != 2 || len(b.lan.Sent()) != 1 || len(b.wan.Sent()) != 1 {
		t.Errorf("%+v", got)
	}
}

func TestPanicEndsTheBatchOnly(t *testing.T) {
	b := newBench(t, 256, stageFunc(func(b *Batch) {
		for p := range b.Live() {
			if p.Flow.SrcPort == 3 {
				panic("a bug")
			}
			p.Continue()
		}
	}))
	b.o.Default = 0
	for port := range uint16(5) {
		b.lan.Inject(udp(port, 10))
	}
	b.turn(t)
	b.lan.Inject(udp(9, 10))
	b.turn(t)
	got := b.check(t)
	if got.Dropped["stage_panic"] != 5 || got.Forwarded != 1 || b.Stats().Panics != 1 {
		t.Errorf("%+v, %d panics", got, b.Stats().Panics)
	}
}

func TestTransmitFull(t *testing.T) {
	b := newBench(t, 256)
	b.o.Default = NoChain
	b.wan.limit = 10
	for range 30 {
		b.lan.Inject(udp(1, 1))
	}
	b.turn(t)
	if got := b.check(t); got.Forwarded != 10 || got.Dropped["tx_full"] != 20 {
		t.Errorf("%+v", got)
	}
}

// emitter answers every packet with two of its own.
type emitter struct{ e Emitter }

func (s *emitter) Process(b *Batch) {
	for p := range b.Live() {
		for i := range 2 {
			if n := s.e.Alloc(); n != nil {
				n.SetView(n.Offset(), p.Len())
				copy(n.Bytes(), p.Bytes())
				n.Out = PortID(i)
				s.e.Emit(n)
			}
		}
		p.Consume()
	}
}

// closing emits a packet when it is closed.
type closing struct{ emitter }

func (s *closing) Close() error {
	p := s.e.Alloc()
	p.SetView(p.Offset(), 60)
	p.Out = 1
	s.e.Emit(p)
	return nil
}

func TestCloseSendsWhatStagesEmit(t *testing.T) {
	st := &closing{}
	b := newBench(t, 16, st)
	st.e = b.Worker
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(b.wan.Sent()); n != 1 || b.Stats().Totals.Emitted != 1 {
		t.Errorf("%d packets sent, %+v", n, b.Stats().Totals)
	}
	b.check(t)
}

func TestEmitConservesFrames(t *testing.T) {
	st := &emitter{}
	b := newBench(t, 100, st)
	st.e = b.Worker
	b.o.Default = 0
	var injected uint64
	for range 20 {
		for range 60 { // more than there are frames for
			if b.lan.Inject(udp(1, 100)) {
				injected++
			}
		}
		b.turn(t)
	}
	for range 40 {
		b.turn(t)
	}
	got := b.check(t)
	if got.Consumed != injected || got.Emitted == 0 || got.Emitted > 2*injected {
		t.Errorf("%+v of %d", got, injected)
	}
	if n := uint64(len(b.lan.Sent()) + len(b.wan.Sent())); n != got.Emitted {
		t.Errorf("sent %d, counted %d", n, got.Emitted)
	}
}

// TestHandover runs several workers at once: every packet of a flow must be
// seen by the one worker that owns the flow, in order, and all frames return.
func TestHandover(t *testing.T) {
	const workers, perWorker = 3, 3000
	a, err := NewArena(make([]byte, workers*2048*256), 256, 64, workers)
	if err != nil {
		t.Fatal(err)
	}
	type key struct{ port uint16 }
	var mu sync.Mutex
	owner := map[key]int{}
	benches := make([]*bench, workers)
	ws := make([]*Worker, workers)
	for i := range benches {
		s := spec(true, stageFunc(func(b *Batch) {
			for p := range b.Live() {
				mu.Lock()
				k := key{p.Flow.SrcPort}
				if o, ok := owner[k]; ok && o != i {
					t.Errorf("flow %v at workers %d and %d", k, o, i)
				}
				owner[k] = i
				mu.Unlock()
				p.Continue()
			}
		}))
		benches[i] = newBenchOn(t, a, i, s)
		benches[i].o.Default = 0
		ws[i] = benches[i].Worker
	}
	Link(ws)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range ws {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := ws[i].Run(ctx); err != nil {
				t.Error(err)
			}
		}()
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range perWorker {
		for _, b := range benches {
			for !b.lan.Inject(udp(uint16(rng.IntN(100)), n%50)) {
				time.Sleep(time.Millisecond) // back-pressure, not a wait for a state
			}
		}
		if n%500 == 0 {
			for _, b := range benches {
				b.wan.Sent()
			}
		}
	}
	total := func() (n Totals) {
		for _, w := range ws {
			n.Add(w.Stats().Totals)
		}
		return n
	}
	deadline := time.Now().Add(10 * time.Second)
	for !total().Balanced() || total().Packets < workers*perWorker {
		if time.Now().After(deadline) {
			t.Fatalf("not balanced: %+v", total())
		}
		for _, b := range benches {
			b.wan.Sent()
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	for _, b := range benches {
		b.Call(func() {})
	}
	wg.Wait()
	free := 0
	var handed uint64
	for _, b := range benches {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		handed += b.Stats().HandedOver
	}
	for _, b := range benches {
		free += b.pool.Free()
	}
	if free != a.Frames() || handed == 0 {
		t.Errorf("%d frames free of %d, %d handed over", free, a.Frames(), handed)
	}
}

func TestTurnDoesNotAllocate(t *testing.T) {
	b := newBench(t, 1024, stageFunc(func(b *Batch) {
		for p := range b.Live() {
			p.Continue()
		}
	}))
	// The memory port copies packets into fresh slices; measure the engine
	// beneath it with a port that keeps its own.
	loop := &loopPort{pool: b.pool, frame: udp(5, 100)}
	b.o.Ports[0], b.o.Ports[1] = loop, loop
	b.o.Default = 0
	if n := testing.AllocsPerRun(200, func() { b.Turn() }); n != 0 {
		t.Errorf("%v allocations in a turn", n)
	}
	if !b.Stats().Totals.Balanced() || b.Stats().Totals.Forwarded == 0 {
		t.Errorf("%+v", b.Stats().Totals)
	}
}

// countingWaiter counts what the worker has done when it is told to wait.
type countingWaiter struct {
	w     *bench
	stop  func()
	waits []WorkerStats
}

func (c *countingWaiter) Wake() {}
func (c *countingWaiter) Wait(int64) {
	if c.waits = append(c.waits, c.w.Stats()); len(c.waits) == 2 {
		c.stop()
		return
	}
	c.w.lan.Inject(udp(7, 10))
}

// TestOneTurnForAWait: a worker that has emptied its ports waits, without a turn to
// find them empty.
func TestOneTurnForAWait(t *testing.T) {
	b := newBench(t, 64)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	c := &countingWaiter{w: b, stop: stop}
	b.o.Waiter, b.o.Default = c, 0
	b.lastTick = b.clock() // a turn with a tick is followed by another one
	b.lan.Inject(udp(5, 10))
	if err := b.Run(ctx); err != nil {
		t.Fatal(err)
	}
	for i, s := range c.waits {
		if want := uint64(i + 1); s.Turns != want || s.IdleTurns != 0 || s.Waits != want || s.Totals.Packets != want {
			t.Errorf("wait %d: after %d turns, %d idle ones, %d waits and %d packets", i, s.Turns, s.IdleTurns, s.Waits, s.Totals.Packets)
		}
	}
	if len(c.waits) != 2 {
		t.Errorf("%d waits", len(c.waits))
	}
}

// loopPort delivers full batches of one frame and swallows what is sent.
type loopPort struct {
	pool  *Pool
	frame []byte
}

func (l *loopPort) Info() PortInfo   { return PortInfo{} }
func (l *loopPort) Stats() PortStats { return PortStats{} }
func (l *loopPort) Flush()           {}
func (l *loopPort) Close() error     { return nil }
func (l *loopPort) Receive(b *Batch) (n int, err error) {
	for b.Room() > 0 {
		p := l.pool.Get()
		if p == nil {
			break
		}
		p.SetView(p.Offset(), len(l.frame))
		copy(p.Bytes(), l.frame)
		b.Add(p)
		n++
	}
	return n, nil
}

func (l *loopPort) Transmit(pkts []*Packet) int {
	for _, p := range pkts {
		l.pool.Put(p)
	}
	return len(pkts)
}

func BenchmarkTurn(b *testing.B) {
	for _, stages := range []int{0, 1, 4} {
		b.Run(fmt.Sprintf("stages=%d", stages), func(b *testing.B) {
			var list []Stage
			for range stages {
				list = append(list, stageFunc(func(b *Batch) {
					for p := range b.Live() {
						p.Continue()
					}
				}))
			}
			w := newBench(b, 1024, list...)
			loop := &loopPort{pool: w.pool, frame: udp(5, 22)}
			w.o.Ports[0], w.o.Ports[1] = loop, nil
			w.o.Ports = w.o.Ports[:1]
			w.o.Default = 0
			b.ReportAllocs()
			for b.Loop() {
				w.Turn()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(w.Stats().Totals.Packets), "ns/packet")
		})
	}
}

// offloader remembers what it was given.
type offloader struct {
	flows []ReleasedFlow
	take  int
}

func (o *offloader) Offload(flows []ReleasedFlow) {
	for i := range flows[:min(o.take, len(flows))] {
		flows[i].Taken = true
		o.flows = append(o.flows, flows[i])
	}
}

// TestRelease: a flow leaves user space when every stage that saw its packet
// has let go of it, and not before.
func TestRelease(t *testing.T) {
	release := func(ports ...uint16) Stage {
		return stageFunc(func(b *Batch) {
			for p := range b.Live() {
				for _, port := range ports {
					if p.Flow.SrcPort == port {
						p.Release()
					}
				}
				if p.Flow.SrcPort == 9 {
					p.Drop(reasonTest)
				} else if p.Flow.SrcPort == 8 {
					p.Consume()
				} else {
					p.Continue()
				}
			}
		})
	}
	for _, row := range []struct {
		name   string
		stages []Stage
		keep   bool
		want   string
	}{
		{"no stages", nil, false, "[1 2 8 9]"},
		{"one stage", []Stage{release(2, 3)}, false, "[2]"},
		{"both must", []Stage{release(1, 2), release(2)}, false, "[2]"},
		{"dropped by the first of two", []Stage{release(2, 9), release()}, false, "[9 drop]"},
		{"consumed is kept", []Stage{release(8)}, false, "[]"},
		{"offload = never", []Stage{release(1, 2, 9)}, true, "[]"},
	} {
		t.Run(row.name, func(t *testing.T) {
			a, err := NewArena(make([]byte, 64*2048), 2048, 128, 1)
			if err != nil {
				t.Fatal(err)
			}
			s := spec(false, row.stages...)
			s.KeepFlows = row.keep
			b := newBenchOn(t, a, 0, s)
			o := &offloader{take: 100}
			ticks := int64(0)
			clock := func() int64 { ticks += 1000; return ticks }
			b.o.Default, b.releases = 0, newReleases(o, clock)
			for range 2 { // what was under way already does not hand over again
				for _, port := range []uint16{1, 2, 8, 9} {
					b.lan.Inject(udp(port, 10))
				}
				b.turn(t)
			}
			var got []string
			for _, f := range o.flows {
				text := fmt.Sprint(f.Flow.SrcPort)
				if f.Drop {
					text += " drop"
				}
				got = append(got, text)
			}
			if fmt.Sprint(got) != row.want {
				t.Errorf("offloaded %v, want %s", got, row.want)
			}
			if d := b.Stats().OffloadDelay; d.Count != uint64(len(got)) || d.Count > 0 && (d.P50 < 1e-6 || d.Max > 1e-5) {
				t.Errorf("%d flows were offloaded after %+v", len(got), d)
			}
			b.check(t)
		})
	}
}

// TestTimeIsFresh: a frame that is used again must not bring its old time.
func TestTimeIsFresh(t *testing.T) {
	var times []int64
	b := newBench(t, 1, stageFunc(func(b *Batch) {
		for p := range b.Live() {
			times = append(times, p.Time)
			p.Consume()
		}
	}))
	b.o.Default = 0
	now := int64(1000)
	b.clock = func() int64 { return now }
	for range 3 {
		b.lan.Inject(udp(1, 1))
		b.turn(t)
		now += 1000
	}
	if len(times) != 3 || times[0] != 1000 || times[1] != 2000 || times[2] != 3000 {
		t.Errorf("packet times %v", times)
	}
}

func TestDoubleFreeIsCounted(t *testing.T) {
	a, _ := NewArena(make([]byte, 8*256), 256, 0, 1)
	p := a.Pool(0).Get()
	a.Pool(0).Put(p)
	a.Pool(0).Put(p)
	if s := a.Pool(0); s.Free() != 8 || s.Stats().DoubleFrees != 1 {
		t.Errorf("%d free, %d double frees", s.Free(), s.Stats().DoubleFrees)
	}
}

func TestViewStaysInTheFrame(t *testing.T) {
	a, _ := NewArena(make([]byte, 256), 256, 32, 1)
	p := a.Pool(0).Get()
	if p.SetView(200, 57) || p.SetView(-1, 3) || p.SetView(3, -1) || !p.SetView(56, 200) {
		t.Error("SetView let a view leave its frame, or refused a good one")
	}
	if _, ok := p.Prepend(57); ok {
		t.Error("Prepend used headroom that is not there")
	}
	if h, ok := p.Prepend(14); !ok || len(h) != 14 || p.Len() != 214 || p.Offset() != 42 {
		t.Errorf("Prepend: %d bytes, %v; packet %d at %d", len(h), ok, p.Len(), p.Offset())
	}
}
