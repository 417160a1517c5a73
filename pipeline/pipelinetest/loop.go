package pipelinetest

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	"penstock/pipeline"
)

const (
	benchFrame    = 4096
	benchHeadroom = 256
	benchFrames   = 512
)

// bench is a worker with one chain between two ports that deliver what the
// test says and keep what is sent.
type bench struct {
	t      *testing.T
	arena  *pipeline.Arena
	worker *pipeline.Worker
	chain  *pipeline.Chain
	ports  [2]*loopPort
	now    int64
	log    bytes.Buffer

	next   []Arrival
	record bool
	sent   []Arrival // In is the egress port
	used   map[uint32]bool
	shelf  []*pipeline.Packet // kept out of use by poison
}

// newBench builds a worker's instance of the chain.
func newBench(t *testing.T, spec *pipeline.ChainSpec) *bench {
	t.Helper()
	arena, err := pipeline.NewArena(make([]byte, benchFrames*benchFrame), benchFrame, benchHeadroom, 1)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, arena: arena, now: 1_700_000_000_000_000_000, used: map[uint32]bool{}}
	infos := []pipeline.PortInfo{{ID: 0, Name: "lan", Mode: "memory"}, {ID: 1, Name: "wan", Mode: "memory"}}
	b.ports = [2]*loopPort{{bench: b, info: infos[0]}, {bench: b, info: infos[1]}}
	b.worker = pipeline.NewWorker(pipeline.WorkerOptions{
		Ports: []pipeline.Port{b.ports[0], b.ports[1]}, Infos: infos, Pool: arena.Pool(0), Default: 0,
		Clock: func() int64 { return b.now },
		Log:   slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	b.chain, err = spec.Build(b.worker.Env())
	if err != nil {
		t.Fatal(err)
	}
	b.worker.SetChains([]*pipeline.Chain{b.chain}, []bool{spec.Affinity()})
	return b
}

// run sends the packets through the chain, in turns of at most one batch.
func (b *bench) run(list []Arrival) {
	b.t.Helper()
	for len(list) > 0 {
		n := min(len(list), pipeline.BatchSize)
		b.next = list[:n]
		list = list[n:]
		b.turn()
		b.now += 1_000_000
	}
}

func (b *bench) turn() {
	b.t.Helper()
	if _, err := b.worker.Turn(); err != nil {
		b.t.Fatalf("turn: %v", err)
	}
}

// idle lets time pass without packets.
func (b *bench) idle(turns int, step int64) {
	b.t.Helper()
	b.next = nil
	for range turns {
		b.now += step
		b.turn()
	}
}

// poison overwrites all frames, none of which is in use between two turns, and
// sees to it that those used last are not used again in the next turn.
func (b *bench) poison() {
	for i := range uint64(b.arena.Frames()) {
		copy(b.arena.At(i).Frame(), poisoned)
	}
	pool, old := b.arena.Pool(0), b.shelf
	b.shelf = nil
	for range benchFrames / 3 {
		b.shelf = append(b.shelf, pool.Get())
	}
	for _, p := range old {
		pool.Put(p)
	}
}

const poisonByte = 0xa5

var poisoned = bytes.Repeat([]byte{poisonByte}, benchFrame)

// check fails the test if packets are missing, a stage panicked, or one was
// dropped for a reason that is not in allowed.
func (b *bench) check(allowed map[string]bool) {
	b.t.Helper()
	s := b.worker.Stats()
	if s.Panics > 0 {
		b.t.Errorf("the stage panicked %d times:\n%s", s.Panics, b.log.String())
	}
	if !s.Totals.Balanced() {
		b.t.Errorf("packets have disappeared: %+v", s.Totals)
	}
	if free, total := b.arena.Pool(0).Free(), b.arena.Pool(0).Total(); free != total {
		b.t.Errorf("%d of %d frames are free after the turn: the stage keeps packets", free, total)
	}
	if n := b.arena.Pool(0).Stats().DoubleFrees; n > 0 {
		b.t.Errorf("%d packets were given back twice", n)
	}
	for name := range s.Totals.Dropped {
		if !allowed[name] {
			b.t.Errorf("%d packets were dropped as %q, which is not in Descriptor.Reasons", s.Totals.Dropped[name], name)
		}
	}
}

// end stops the worker.
func (b *bench) end() {
	b.t.Helper()
	for _, p := range b.shelf {
		b.arena.Pool(0).Put(p)
	}
	b.shelf = nil
	b.worker.Drain()
	b.turn()
	if err := b.worker.Close(); err != nil {
		b.t.Errorf("close: %v", err)
	}
}

// loopPort delivers the packets of bench.next that arrive by it, once each
// turn, and does not allocate.
type loopPort struct {
	bench *bench
	info  pipeline.PortInfo
}

var _ pipeline.Port = (*loopPort)(nil)

func (p *loopPort) Info() pipeline.PortInfo { return p.info }

// Receive delivers, on port 0, the packets of both ports, so that they keep
// their order.
func (p *loopPort) Receive(b *pipeline.Batch) (n int, err error) {
	if p.info.ID != 0 {
		return 0, nil
	}
	for _, a := range p.bench.next {
		pkt := p.bench.arena.Pool(0).Get()
		if pkt == nil || b.Room() == 0 || !pkt.SetView(pkt.Offset(), len(a.Frame)) {
			return n, errors.New("the bench is out of frames: the stage keeps packets")
		}
		copy(pkt.Bytes(), a.Frame)
		pkt.In, pkt.Time = a.In, p.bench.now
		b.Add(pkt)
		n++
	}
	return n, nil
}

func (p *loopPort) Transmit(pkts []*pipeline.Packet) (accepted int) {
	for _, pkt := range pkts {
		if p.bench.record {
			p.bench.sent = append(p.bench.sent, Arrival{p.info.ID, bytes.Clone(pkt.Bytes())})
			p.bench.used[pkt.Index()] = true
		}
		p.bench.arena.Pool(0).Put(pkt)
	}
	return len(pkts)
}

func (p *loopPort) Flush()                    {}
func (p *loopPort) Stats() pipeline.PortStats { return pipeline.PortStats{LinkUp: true} }
func (p *loopPort) Close() error              { return nil }
