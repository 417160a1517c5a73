package ratelimit

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"penstock/internal/config"
	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/pipeline/pipelinetest"
)

const twoPorts = `
[[port]]
name = "lan"
interface = "eth1"
[[port]]
name = "wan"
interface = "eth2"
`

// parse loads a configuration with one chain, without its ports.
func parse(src string) (*pipeline.ChainSpec, error) {
	c, problems := config.Parse("test.toml", []byte(twoPorts+src), registry())
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return &c.Chains[0].Spec, nil
}

// stageOf returns a configuration of one stage with the given keys.
func stageOf(keys string) string {
	return "[[chain]]\nname = \"c\"\n[[chain.stage]]\nkind = \"ratelimit\"\n" + keys
}

// rig is a worker between two ports that runs one chain on a clock of the test's.
type rig struct {
	*pipeline.Worker
	now   int64
	ports [2]*pipeline.MemoryPort
	chain *pipeline.Chain
}

// stampedPort gives packets the time of the test's clock, as a capture does.
type stampedPort struct {
	*pipeline.MemoryPort
	now *int64
}

func (p stampedPort) Receive(b *pipeline.Batch) (int, error) {
	n, err := p.MemoryPort.Receive(b)
	for _, pkt := range b.All() {
		pkt.Time = *p.now
	}
	return n, err
}

func newRig(t testing.TB, src string) *rig {
	t.Helper()
	spec, err := parse(src)
	if err != nil {
		t.Fatal(err)
	}
	arena, err := pipeline.NewArena(make([]byte, 256*2048), 2048, 128, 1)
	if err != nil {
		t.Fatal(err)
	}
	infos := []pipeline.PortInfo{{ID: 0, Name: "lan"}, {ID: 1, Name: "wan"}}
	r := &rig{now: t0}
	for i := range r.ports {
		r.ports[i] = pipeline.NewMemoryPort(infos[i], arena.Pool(0), 1<<16)
	}
	r.Worker = pipeline.NewWorker(pipeline.WorkerOptions{
		Ports: []pipeline.Port{stampedPort{r.ports[0], &r.now}, stampedPort{r.ports[1], &r.now}},
		Infos: infos, Pool: arena.Pool(0), Clock: func() int64 { return r.now },
	})
	if r.chain, err = spec.Build(r.Env()); err != nil {
		t.Fatal(err)
	}
	r.SetChains([]*pipeline.Chain{r.chain}, []bool{spec.Affinity()})
	return r
}

// send passes n copies of a frame through at the same time and returns how many came out, and the drops by reason.
func (r *rig) send(t testing.TB, in, n int, frame []byte) (passed int, dropped string) {
	t.Helper()
	before := r.Stats().Totals.Dropped
	for range n {
		if !r.ports[in].Inject(frame) {
			t.Fatal("port is full")
		}
	}
	for busy := true; busy; {
		var err error
		if busy, err = r.Turn(); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	passed = len(r.ports[1-in].Sent())
	var causes []string
	total := passed
	for _, reason := range pipeline.Reasons() {
		name := reason.String()
		if d := int(r.Stats().Totals.Dropped[name] - before[name]); d > 0 {
			causes = append(causes, fmt.Sprintf("%s:%d", name, d))
			total += d
		}
	}
	if total != n {
		t.Fatalf("of %d packets %d came out and %v were dropped", n, passed, causes)
	}
	return passed, strings.Join(causes, " ")
}

func udp(src, dst string) []byte { return pipelinetest.UDP(src, dst, pipelinetest.PayloadLen(100)) }

func TestBySource(t *testing.T) {
	r := newRig(t, stageOf(`rate = "100pkt/s"`+"\n"+`burst = "10pkt"`))
	a, b := udp("10.0.0.1:1000", "10.9.0.1:53"), udp("10.0.0.2:1000", "10.9.0.1:53")
	for _, step := range []struct {
		after  int64 // ms
		frame  []byte
		n      int
		passed int
	}{
		{0, a, 30, 10}, // the burst
		{0, b, 5, 5},   // another source
		{0, udp("10.0.0.1:2000", "10.8.0.1:99"), 5, 0}, // the same source
		{50, a, 30, 5},    // what 50 ms bring
		{0, b, 30, 10},    // full again: 5 and 5
		{1000, a, 30, 10}, // no more than the burst
		{5, a, 1, 0},      // half a token
		{5, a, 2, 1},      // the other half
		{0, udp("[2001:db8::1]:9", "[fd00::1]:9"), 8, 8},    // a /64
		{0, udp("[2001:db8::2]:9", "[fd00::1]:9"), 8, 2},    // the same /64
		{0, udp("[2001:db8:0:1::]:9", "[fd00::1]:9"), 8, 8}, // another
		{0, pipelinetest.Tagged(a, 7), 20, 10},              // another VLAN
		{0, pipelinetest.Tagged(a, 0xe007), 20, 0},          // the same VLAN, with a priority
		{0, pipelinetest.ARP("10.0.0.1", "10.0.0.2"), 50, 50},
	} {
		r.now += step.after * 1e6
		if passed, dropped := r.send(t, 0, step.n, step.frame); passed != step.passed {
			t.Errorf("%s: %d of %d passed (%s), want %d", wire.Summary(step.frame), passed, step.n, dropped, step.passed)
		}
	}
}

func TestKeys(t *testing.T) {
	there, back := udp("10.0.0.1:1000", "10.9.0.1:53"), udp("10.9.0.1:53", "10.0.0.1:1000")
	fragments := pipelinetest.Fragments(pipelinetest.UDP("10.0.0.1:1000", "10.9.0.1:53", pipelinetest.PayloadLen(400)), 200)
	type step struct {
		frame  []byte
		in     int
		passed int // of 8
	}
	for _, c := range []struct {
		keys  string
		steps []step
	}{
		{`by = "dst"`, []step{
			{there, 0, 5}, {udp("10.0.0.7:1", "10.9.0.1:9"), 0, 0}, {back, 1, 5}, {udp("10.0.0.1:1000", "10.9.0.2:53"), 0, 5},
		}},
		{`by = "flow"`, []step{
			{there, 0, 5}, {back, 1, 0}, {udp("10.0.0.1:1001", "10.9.0.1:53"), 0, 5}, {pipelinetest.TCP("10.0.0.1:1000", "10.9.0.1:53", wire.FlagSYN, 1), 0, 5},
			{fragments[0], 0, 0}, {fragments[1], 0, 5}, {fragments[2], 0, 0},
			{pipelinetest.IP("10.0.0.1", "10.9.0.1", 47), 0, 5}, {pipelinetest.IP("10.9.0.1", "10.0.0.1", 47), 1, 0}, {pipelinetest.IP("10.0.0.1", "10.9.0.1", 50), 0, 5},
			{pipelinetest.IP("fd00::1", "fd00::2", 47), 0, 5}, {pipelinetest.IP("fd00::2", "fd00::1", 47), 1, 0}, {pipelinetest.IP("fd00::2", "fd00::3", 47), 1, 5},
		}},
		{`by = "all"`, []step{
			{there, 0, 5}, {back, 1, 0}, {udp("[fd00::1]:1", "[fd00::2]:2"), 0, 0},
		}},
		{"by = \"src\"\nv4_prefix = 24\nv6_prefix = 96", []step{
			{there, 0, 5}, {udp("10.0.0.255:1", "10.9.0.1:53"), 0, 0}, {udp("10.0.1.1:1", "10.9.0.1:53"), 0, 5},
			{udp("[fd00::1]:1", "[fd00::9]:2"), 0, 5}, {udp("[fd00::1:1]:1", "[fd00::9]:2"), 0, 0}, {udp("[fd00::1:0:1]:1", "[fd00::9]:2"), 0, 5},
		}},
	} {
		t.Run(c.keys, func(t *testing.T) {
			r := newRig(t, stageOf("rate = \"1pkt/s\"\nburst = \"5pkt\"\n"+c.keys))
			for _, s := range c.steps {
				if passed, dropped := r.send(t, s.in, 8, s.frame); passed != s.passed {
					t.Errorf("%s: %d of 8 passed (%s), want %d", wire.Summary(s.frame), passed, dropped, s.passed)
				}
			}
		})
	}
}

func TestBytes(t *testing.T) {
	// 142 bytes a frame; 8 kbit/s are 1,000 a second.
	f := udp("10.0.0.1:1000", "10.9.0.1:53")
	r := newRig(t, stageOf("rate = \"8kbit/s\"\nburst = \"1420B\""))
	for _, step := range []struct {
		after     int64 // ms
		n, passed int
	}{{0, 20, 10}, {141, 20, 0}, {1, 20, 1}, {1420, 20, 10}, {100000, 20, 10}} {
		r.now += step.after * 1e6
		if passed, _ := r.send(t, 0, step.n, f); passed != step.passed {
			t.Errorf("%d of %d passed after %d ms, want %d", passed, step.n, step.after, step.passed)
		}
	}
}

func TestTableFull(t *testing.T) {
	for _, c := range []struct{ onFull, dropped string }{{"continue", ""}, {"drop", "ratelimit_full:3"}} {
		r := newRig(t, stageOf("rate = \"10pkt/s\"\nburst = \"2pkt\"\nmax_entries = 50\non_full = \""+c.onFull+"\""))
		for i := range 50 {
			r.send(t, 0, 1, udp(fmt.Sprintf("10.0.0.%d:1", i), "10.9.0.1:53"))
		}
		if _, dropped := r.send(t, 0, 3, udp("10.0.1.1:1", "10.9.0.1:53")); dropped != c.dropped {
			t.Errorf("on_full %s: dropped %q, want %q", c.onFull, dropped, c.dropped)
		}
		if _, dropped := r.send(t, 0, 2, udp("10.0.0.1:1", "10.9.0.1:53")); dropped != "ratelimited:1" {
			t.Errorf("on_full %s: a known source: dropped %q", c.onFull, dropped)
		}
		r.now += 2e9
		r.send(t, 0, 0, nil) // a turn with a tick
		counters := r.chain.Stats().Stages[0].Counters
		if counters["no_entry"] != 3 || counters["entries"] != 0 {
			t.Errorf("on_full %s: counters %v", c.onFull, counters)
		}
		if _, dropped := r.send(t, 0, 3, udp("10.0.1.1:1", "10.9.0.1:53")); dropped != "ratelimited:1" {
			t.Errorf("on_full %s: a new source when there is room again: dropped %q", c.onFull, dropped)
		}
	}
}

// TestTimeJumps lets the clock go on in steps that leave no time for ticks, or that exceed what two times are compared
// over.
func TestTimeJumps(t *testing.T) {
	// a prime just below maxDen: times run in the smallest units.
	r := newRig(t, stageOf("rate = \"524287pkt/s\"\nburst = \"3pkt\""))
	s := udp("10.0.0.1:1000", "10.9.0.1:53")
	for _, step := range []int64{0, 30 * 60e9, 59 * 60e9, 3600e9 + 1, 5 * 3600e9, 10 * 3600e9, 400 * 86400e9, 1e9} {
		r.now += step
		if passed, _ := r.send(t, 0, 10, s); passed != 3 {
			t.Errorf("%d of 10 passed %v ns later, want 3", passed, step)
		}
	}
	r.now -= 86400e9
	if passed, _ := r.send(t, 0, 10, s); passed != 0 {
		t.Errorf("%d of 10 passed after time went back a day", passed)
	}

	// Without ticks: many packets in one turn. Source 1 sends again after six hours, in steps of an hour less a second
	// that source 2 makes.
	spec, err := parse(stageOf("rate = \"524287pkt/s\"\nburst = \"1pkt\""))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := spec.Build(pipeline.Env{})
	if err != nil {
		t.Fatal(err)
	}
	source := func(i int) int { return min(i%7, 1) + 1 }
	b := batch(t, func(i int) []byte { return udp(fmt.Sprintf("10.0.0.%d:1", source(i)), "10.9.0.1:53") })
	now := t0
	for i, p := range b.All() {
		p.Time = now
		if source(i) == 2 {
			now += 3599e9
		}
	}
	chain.Run(b)
	for i, p := range b.All() {
		if v, r := p.Verdict(); v != pipeline.Forward {
			t.Errorf("packet %d, of source %d: %v %v", i, source(i), v, r)
		}
	}
}

func TestWorkersHaveOneLimit(t *testing.T) {
	spec, err := parse(stageOf("rate = \"1pkt/s\"\nburst = \"40pkt\""))
	if err != nil {
		t.Fatal(err)
	}
	passed := 0
	for w := range 2 {
		chain, err := spec.Build(pipeline.Env{Worker: w, Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		b := batch(t, func(i int) []byte { return udp(fmt.Sprintf("10.0.0.1:%d", 1000+i), "10.9.0.1:53") })
		chain.Run(b)
		for _, p := range b.All() {
			if v, _ := p.Verdict(); v == pipeline.Forward {
				passed++
			}
		}
	}
	if passed != 40 {
		t.Errorf("%d packets of one source passed two workers, want the burst of 40", passed)
	}
}

func registry() *pipeline.Registry {
	reg := &pipeline.Registry{}
	pipeline.Register(reg, Descriptor())
	return reg
}

// batch returns a full batch of packets.
func batch(tb testing.TB, frame func(i int) []byte) *pipeline.Batch {
	tb.Helper()
	arena, err := pipeline.NewArena(make([]byte, pipeline.BatchSize*512), 512, 128, 1)
	if err != nil {
		tb.Fatal(err)
	}
	b := pipeline.NewBatch(pipeline.BatchSize)
	for i := range pipeline.BatchSize {
		f, p := frame(i), arena.Pool(0).Get()
		p.SetView(p.Offset(), len(f))
		copy(p.Bytes(), f)
		p.Time = t0
		p.Parse()
		b.Add(p)
	}
	return b
}

func TestProcessDoesNotAllocate(t *testing.T) {
	for _, by := range []string{"src", "dst", "flow", "all"} {
		spec, err := parse(stageOf("rate = \"10pkt/s\"\nburst = \"32pkt\"\nmatch = [{ proto = \"udp\" }]\nby = \"" + by + "\""))
		if err != nil {
			t.Fatal(err)
		}
		chain, err := spec.Build(pipeline.Env{})
		if err != nil {
			t.Fatal(err)
		}
		b := batch(t, func(i int) []byte { return udp(fmt.Sprintf("10.0.%d.1:%d", i%2, 1000+i), "10.9.0.1:53") })
		if n := testing.AllocsPerRun(100, func() {
			for _, p := range b.All() {
				p.Continue()
				p.Time += 1e6
			}
			chain.Run(b)
		}); n != 0 {
			t.Errorf("by %s: %v allocations a batch", by, n)
		}
	}
}

func BenchmarkProcess(b *testing.B) {
	for _, by := range []string{"src", "flow", "all"} {
		spec, err := parse(stageOf("rate = \"1Mpkt/s\"\nby = \"" + by + "\""))
		if err != nil {
			b.Fatal(err)
		}
		chain, err := spec.Build(pipeline.Env{})
		if err != nil {
			b.Fatal(err)
		}
		batch := batch(b, func(i int) []byte { return udp(fmt.Sprintf("10.0.%d.1:%d", i, 1000+i), "10.9.0.1:53") })
		b.Run("by="+by, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for _, p := range batch.All() {
					p.Continue()
					p.Time += 1000
				}
				chain.Run(batch)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch.Len()), "ns/packet")
		})
	}
}
