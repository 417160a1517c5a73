package inspect

import (
	"runtime"
	"strings"
	"syscall"
	"testing"

	"penstock/pipeline"
)

// loop is a connection that runs for ever: segments of both directions in
// turns, each acknowledging what came before.
type loop struct {
	*bed
	in     [2]*feed
	frames [2][]byte
	pos    [2]uint32
	size   int
	lag    uint32 // bytes that are not acknowledged yet
}

// feed is a port that gives frames without copying more than a NIC does, and
// takes everything.
type feed struct {
	pipeline.Port
	pool *pipeline.Pool
	next []byte
	n    int
	fill func(b []byte)
}

func (f *feed) Receive(b *pipeline.Batch) (n int, err error) {
	for ; f.n > 0; f.n-- {
		p := f.pool.Get()
		if p == nil || !p.SetView(p.Offset(), len(f.next)) {
			break
		}
		copy(p.Bytes(), f.next)
		f.fill(p.Bytes())
		b.Add(p)
		n++
	}
	return n, nil
}

func (f *feed) Transmit(pkts []*pipeline.Packet) int {
	for _, p := range pkts {
		f.pool.Put(p)
	}
	return len(pkts)
}

// newLoop returns a worker with a chain of an Inspector, or of nothing.
func newLoop(b testing.TB, inspected bool, size int, change func(*Options), streams ...*script) *loop {
	l := &loop{bed: newBed(b, change, streams...), size: size}
	if inspected {
		c := l.open()
		l.frames[0] = c.frame(up, psh, 0, 0, strings.Repeat("x", size))
		l.frames[1] = c.frame(down, psh, 0, 0, strings.Repeat("y", size))
	} else {
		c := &conn{bed: l.bed, isn: [2]uint32{100, 500}}
		l.frames[0] = c.frame(up, psh, 0, 0, strings.Repeat("x", size))
		l.frames[1] = c.frame(down, psh, 0, 0, strings.Repeat("y", size))
		chain, err := (&pipeline.ChainSpec{Name: "forward", KeepFlows: true}).Build(l.worker.Env())
		if err != nil {
			b.Fatal(err)
		}
		old := l.worker.Chains()
		b.Cleanup(func() { l.worker.SetChains(old, []bool{true}) })
		l.worker.SetChains([]*pipeline.Chain{chain}, []bool{false})
	}
	for d := range l.list {
		f := &feed{Port: l.ports[d], pool: l.pool, next: l.frames[d]}
		f.fill = func(b []byte) { l.advance(d, b) }
		l.in[d] = f
		l.list[d] = f
	}
	return l
}

// advance makes a copy of a direction's frame the next segment.
func (l *loop) advance(d int, b []byte) {
	const at = 14 + 20
	sum := uint32(^(uint16(b[at+16])<<8 | uint16(b[at+17])) & 0xffff)
	put := func(off int, add uint32) {
		v := uint32(b[off])<<24 | uint32(b[off+1])<<16 | uint32(b[off+2])<<8 | uint32(b[off+3])
		n := v + add
		sum += ^(v>>16)&0xffff + ^v&0xffff + n>>16 + n&0xffff
		b[off], b[off+1], b[off+2], b[off+3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	}
	put(at+4, l.pos[d])
	put(at+8, max(l.pos[1-d], l.lag)-l.lag)
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	b[at+16], b[at+17] = byte(^sum>>8), byte(^sum)
	l.pos[d] += uint32(l.size)
}

// turn sends a batch of each direction, as much as the window takes.
func (l *loop) turn(n int) {
	for _, f := range l.in {
		f.n = n
	}
	if _, err := l.worker.Turn(); err != nil {
		l.t.Fatal(err)
	}
	l.now += 1e6
}

// BenchmarkQuiet is what a packet of a connection costs that a stage looks at
// and lets pass, beside plain forwarding of the same packets: both in the whole
// worker, between ports that cost nothing but the copy of the frame.
func BenchmarkQuiet(b *testing.B) {
	for _, row := range []struct {
		name      string
		inspected bool
		change    func(*Options)
	}{
		{"forward", false, nil},
		{"observe", true, nil},
		{"observe-settled", true, func(o *Options) { o.ChecksumsSettled = true }},
		{"hold", true, func(o *Options) { o.Hold = true }},
	} {
		for _, size := range []int{100, 1400} {
			b.Run(row.name+"/"+map[int]string{100: "100B", 1400: "1400B"}[size], func(b *testing.B) {
				l := newLoop(b, row.inspected, size, row.change, quiet())
				n := min(9000/size, 64)
				b.ReportAllocs()
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				b.ResetTimer()
				before := threadTime(b)
				for i := 0; i < b.N; i += 2 * n {
					l.turn(n)
				}
				b.ReportMetric(float64(threadTime(b)-before)/float64(b.N), "cpu-ns/packet")
				b.StopTimer()
				if row.inspected && l.s.n.bytesUp.Load() != uint64(l.pos[0]) && b.N > 1 {
					b.Fatalf("%d bytes shown of %d: %v", l.s.n.bytesUp.Load(), l.pos[0], l.worker.Stats().Totals.Dropped)
				}
			})
		}
	}
}

// threadTime is the processor time of this thread in ns: what counts where a
// machine is shared.
func threadTime(b *testing.B) int64 {
	var u syscall.Rusage
	const thread = 1 // RUSAGE_THREAD
	if err := syscall.Getrusage(thread, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// quiet is a stage that looks and lets everything pass.
func quiet() *script { return &script{count: true} }

// TestAllocs: packets cost no memory, in order, out of order, or held.
func TestAllocs(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"observe": nil,
		"hold":    func(o *Options) { o.Hold = true },
	} {
		l := newLoop(t, true, 1000, change, quiet())
		for range 20 {
			l.turn(8)
		}
		if n := testing.AllocsPerRun(200, func() { l.turn(8) }); n != 0 {
			t.Errorf("%s: %v allocations for 16 packets", name, n)
		}
		if l.s.n.bytesUp.Load() != uint64(l.pos[0]) {
			t.Errorf("%s: %d bytes shown of %d: %v", name, l.s.n.bytesUp.Load(), l.pos[0], l.worker.Stats().Totals.Dropped)
		}
	}
	// A stage that keeps half of what it sees, and packets that wait.
	half := quiet()
	half.keep = 600
	l := newLoop(t, true, 1000, func(o *Options) { o.Hold = true }, half)
	l.lag = 4000
	for range 20 {
		l.turn(2)
	}
	if n := testing.AllocsPerRun(200, func() { l.turn(2) }); n != 0 {
		t.Errorf("held: %v allocations for 4 packets", n)
	}
	if l.s.n.held.Load() < 400 {
		t.Errorf("%d packets were held", l.s.n.held.Load())
	}
}
