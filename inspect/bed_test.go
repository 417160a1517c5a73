package inspect

import (
	"fmt"
	"testing"

	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/pipeline/pipelinetest"
)

const (
	client = "10.0.0.1:40000"
	server = "10.0.0.2:80"
)

// script is a stream stage that does as it is told, and notes what it is shown.
type script struct {
	data   func(c *scripted, d pipeline.Direction, b []byte) (int, pipeline.StreamVerdict)
	refuse bool // no interest
	count  bool // only looks; notes nothing
	keep   int  // with count: lets only so many bytes of the last ones go
	opened []*scripted
}

type scripted struct {
	*script
	conn   pipeline.Conn
	seen   [2][]byte
	passed [2]int
	ends   [2]int
	closes int
	lost   []string
	errors []string
}

func (s *script) Open(c *pipeline.Conn) pipeline.Stream {
	if s.refuse {
		return nil
	}
	st := &scripted{script: s, conn: *c}
	s.opened = append(s.opened, st)
	return st
}

func (c *scripted) Data(d pipeline.Direction, b []byte, _ int64) (int, pipeline.StreamVerdict) {
	if c.count {
		if c.keep > 0 && len(b) < 3000 {
			return min(c.keep, len(b)), pipeline.StreamVerdict{}
		}
		return len(b), pipeline.StreamVerdict{}
	}
	if c.closes > 0 || c.ends[d] > 0 {
		c.errors = append(c.errors, "data after the end")
	}
	if old := c.seen[d][c.passed[d]:]; len(b) < len(old) || string(b[:len(old)]) != string(old) {
		c.errors = append(c.errors, fmt.Sprintf("%v: shown %q behind %d bytes, had seen %q", d, b, c.passed[d], old))
	}
	c.seen[d] = append(c.seen[d][:c.passed[d]], b...)
	n, v := len(b), pipeline.StreamVerdict{}
	if c.data != nil {
		n, v = c.data(c, d, b)
	}
	c.passed[d] += n
	return n, v
}

func (c *scripted) End(d pipeline.Direction, _ int64) pipeline.StreamVerdict {
	c.ends[d]++
	c.passed[d] = len(c.seen[d])
	return pipeline.StreamVerdict{}
}

func (c *scripted) Close(int64) { c.closes++ }

func (c *scripted) LoseSight(why pipeline.Reason, _ int64) { c.lost = append(c.lost, why.String()) }

// bed is a worker with an Inspector between two memory ports.
type bed struct {
	t      testing.TB
	s      *Inspector
	script *script
	worker *pipeline.Worker
	pool   *pipeline.Pool
	ports  [2]*pipeline.MemoryPort
	list   []pipeline.Port // the worker's
	now    int64
	taken  []pipeline.ReleasedFlow
	panics uint64 // expected
}

func (b *bed) Offload(f []pipeline.ReleasedFlow) {
	for i := range f {
		f[i].Taken = true
	}
	b.taken = append(b.taken, f...)
}

func newBed(t testing.TB, change func(*Options), streams ...*script) *bed {
	t.Helper()
	b := &bed{t: t, now: 1e18}
	arena, err := pipeline.NewArena(make([]byte, 512*2048), 2048, 256, 1)
	if err != nil {
		t.Fatal(err)
	}
	b.pool = arena.Pool(0)
	infos := []pipeline.PortInfo{{ID: 0, Name: "lan", MTU: 1500}, {ID: 1, Name: "wan", MTU: 1500}}
	for i := range b.ports {
		b.ports[i] = pipeline.NewMemoryPort(infos[i], b.pool, 256)
	}
	b.list = []pipeline.Port{b.ports[0], b.ports[1]}
	b.worker = pipeline.NewWorker(pipeline.WorkerOptions{
		Ports: b.list, Infos: infos, Pool: b.pool, Clock: func() int64 { return b.now }, Offloader: b,
	})
	o := DefaultOptions()
	if len(streams) == 0 {
		streams = []*script{{}}
	}
	b.script = streams[0]
	for i, s := range streams {
		o.Streams = append(o.Streams, s)
		o.Names = append(o.Names, fmt.Sprintf("script%d", i))
	}
	if change != nil {
		change(&o)
	}
	reg := &pipeline.Registry{}
	pipeline.Register(reg, pipeline.Descriptor[struct{}]{
		Kind: "inspect", Affinity: true, Reasons: Reasons(),
		New: func(_ struct{}, env *pipeline.Env) (pipeline.Stage, error) {
			b.s = New(env, o)
			return b.s, nil
		},
	})
	spec := pipeline.ChainSpec{Name: "test", Stages: []pipeline.StageSpec{{Kind: reg.Lookup("inspect"), Config: &struct{}{}}}}
	chain, err := spec.Build(b.worker.Env())
	if err != nil {
		t.Fatal(err)
	}
	b.worker.SetChains([]*pipeline.Chain{chain}, []bool{true})
	t.Cleanup(func() {
		if err := b.worker.Close(); err != nil {
			t.Error(err)
		}
		st := b.worker.Stats()
		if !st.Totals.Balanced() || st.Panics != b.panics {
			t.Errorf("totals %+v, panics %d", st.Totals, st.Panics)
		}
		if b.pool.Free() != b.pool.Total() {
			t.Errorf("%d frames free of %d", b.pool.Free(), b.pool.Total())
		}
		if b.s.memory.used != 0 || b.s.heldLen != 0 || b.s.active != 0 {
			t.Errorf("%d chunks, %d packets and %d connections are left", b.s.memory.used, b.s.heldLen, b.s.active)
		}
		for _, s := range streams {
			for i, c := range s.opened {
				if c.closes != 1 {
					t.Errorf("stream %d was closed %d times", i, c.closes)
				}
				for _, e := range c.errors {
					t.Errorf("stream %d: %s", i, e)
				}
			}
		}
	})
	return b
}

// send gives a frame to a port and returns what leaves by the two.
func (b *bed) send(in int, frames ...[]byte) (out [2][][]byte) {
	b.t.Helper()
	for _, f := range frames {
		b.ports[in].Inject(f)
	}
	b.now += 1e6
	if _, err := b.worker.Turn(); err != nil {
		b.t.Fatal(err)
	}
	return [2][][]byte{b.ports[0].Sent(), b.ports[1].Sent()}
}

// pass sends a frame that must leave by the other port as it is.
func (b *bed) pass(in int, frame []byte) {
	b.t.Helper()
	out := b.send(in, frame)
	if len(out[in]) != 0 || len(out[1-in]) != 1 || string(out[1-in][0]) != string(frame) {
		b.t.Fatalf("sent %s, got %v back and %v on", wire.Summary(frame), summaries(out[in]), summaries(out[1-in]))
	}
}

// drop sends a frame that must not leave, for a reason.
func (b *bed) drop(in int, frame []byte, why pipeline.Reason) [2][][]byte {
	b.t.Helper()
	before := b.worker.Stats().Totals.Dropped[why.String()]
	out := b.send(in, frame)
	if n := b.worker.Stats().Totals.Dropped[why.String()]; n != before+1 {
		b.t.Fatalf("sent %s, want it dropped as %v; dropped %v, on %v", wire.Summary(frame), why, b.worker.Stats().Totals.Dropped, summaries(out[1-in]))
	}
	return out
}

func summaries(frames [][]byte) (list []string) {
	for _, f := range frames {
		list = append(list, wire.Summary(f))
	}
	return list
}

const (
	ack = wire.FlagACK
	psh = wire.FlagACK | wire.FlagPSH
	fin = wire.FlagACK | wire.FlagFIN
)

// conn is a connection through a bed: 100 is the client's ISN, 500 the server's.
type conn struct {
	*bed
	isn [2]uint32
}

// frame returns a segment of direction d whose bytes begin at pos; it
// acknowledges the other direction up to ack.
func (c *conn) frame(d pipeline.Direction, flags wire.TCPFlags, pos, ack int, payload string, opts ...pipelinetest.Option) []byte {
	src, dst := client, server
	if d == pipeline.ToClient {
		src, dst = dst, src
		opts = append(opts, pipelinetest.MAC(pipelinetest.ServerMAC, pipelinetest.ClientMAC))
	}
	opts = append([]pipelinetest.Option{pipelinetest.Ack(c.isn[1-d] + 1 + uint32(ack)), pipelinetest.Payload(payload), pipelinetest.Window(10000)}, opts...)
	return pipelinetest.TCP(src, dst, flags, c.isn[d]+1+uint32(pos), opts...)
}

// open makes the handshake.
func (b *bed) open(isn ...uint32) *conn {
	b.t.Helper()
	c := &conn{bed: b, isn: [2]uint32{100, 500}}
	if len(isn) == 2 {
		c.isn = [2]uint32(isn)
	}
	b.pass(0, pipelinetest.TCP(client, server, wire.FlagSYN, c.isn[0], pipelinetest.Window(10000)))
	b.pass(1, pipelinetest.TCP(server, client, wire.FlagSYN|ack, c.isn[1], pipelinetest.Ack(c.isn[0]+1), pipelinetest.Window(10000),
		pipelinetest.MAC(pipelinetest.ServerMAC, pipelinetest.ClientMAC)))
	b.pass(0, c.frame(pipeline.ToServer, ack, 0, 0, ""))
	return c
}

// last is the stream of the latest connection.
func (b *bed) last() *scripted { return b.script.opened[len(b.script.opened)-1] }

func (b *bed) saw(d pipeline.Direction, want string) {
	b.t.Helper()
	if got := string(b.last().seen[d]); got != want {
		b.t.Fatalf("%v: the stream saw %q, want %q", d, got, want)
	}
}

func deny(why pipeline.Reason) pipeline.StreamVerdict {
	return pipeline.StreamVerdict{Action: pipeline.StreamDeny, Reason: why}
}
