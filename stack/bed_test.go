package stack_test

import (
	"context"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/stack"
)

const (
	lan = pipeline.PortID(0)
	wan = pipeline.PortID(1)
)

// boundary is the least stage around a Stack, as the tcp stage is.
type boundary struct {
	*stack.Stack
	now func() int64
}

func (b *boundary) Process(batch *pipeline.Batch) {
	now := b.now()
	for p := range batch.Live() {
		b.Input(p, now)
	}
	b.Flush()
}

// bed is a worker between two ports:
//
//	client host -- lan port -- worker: tcp, streams -- wan port -- server host
type bed struct {
	t        testing.TB
	worker   *pipeline.Worker
	stage    *boundary
	pool     *pipeline.Pool
	ports    [2]*wirePort
	client   *host
	server   *host
	before   int // goroutines
	stop     func()
	stopped  bool
	mayPanic bool
}

// wirePort is a memory port whose cable ends in a host. It keeps what passes.
type wirePort struct {
	*pipeline.MemoryPort

	mu      sync.Mutex
	deliver func(frame []byte)
	seen    []seenFrame
	keep    int
	lose    func(frame []byte, in bool) bool // true: the cable loses it
	xdp     *modelXDP                        // nil: everything goes to the worker
	cookies *modelCookies                    // nil: SYNs are not answered
	mark    func(*pipeline.Packet)           // edits what is received
}

type seenFrame struct {
	in    bool // from the host to the worker
	frame []byte
}

func (w *wirePort) note(frame []byte, in bool) (lost bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lose != nil && w.lose(frame, in) {
		return true
	}
	if len(w.seen) < w.keep {
		w.seen = append(w.seen, seenFrame{in, slices.Clone(frame)})
	}
	return false
}

// send puts a frame on the cable toward the worker.
func (w *wirePort) send(frame []byte) {
	if w.note(frame, true) || w.xdp != nil && w.xdp.forward(w, frame) || w.cookies != nil && w.cookies.took(w, frame) {
		return
	}
	w.Inject(frame)
}

// Transmit hands frames to the host at the other end.
func (w *wirePort) Transmit(pkts []*pipeline.Packet) int {
	n := w.MemoryPort.Transmit(pkts)
	w.mu.Lock()
	deliver := w.deliver
	w.mu.Unlock()
	for _, f := range w.Sent() {
		if !w.note(f, false) && deliver != nil {
			deliver(f)
		}
	}
	return n
}

// frames returns what has passed so far.
func (w *wirePort) frames() []seenFrame {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.seen)
}

type bedOptions struct {
	options  func(*stack.Options)
	streams  []pipeline.StreamStage
	vlan     []uint16
	frames   int
	lose     func(frame []byte, in bool) bool // on the wan cable
	noRun    bool
	noHosts  bool
	mayPanic bool
	xdp      *modelXDP // takes what is released
	cookies  *modelCookies
}

func newBed(t testing.TB, o bedOptions) *bed {
	t.Helper()
	b := &bed{t: t, before: runtime.NumGoroutine(), mayPanic: o.mayPanic}
	frames := o.frames
	if frames == 0 {
		frames = 4096
	}
	const frameSize = 2048
	arena, err := pipeline.NewArena(make([]byte, frames*frameSize), frameSize, 64, 1)
	if err != nil {
		t.Fatal(err)
	}
	b.pool = arena.Pool(0)
	waiter := pipeline.NewChanWaiter()
	infos := []pipeline.PortInfo{{ID: lan, Name: "lan", MTU: 1500}, {ID: wan, Name: "wan", MTU: 1500}}
	ports := make([]pipeline.Port, 2)
	for i := range b.ports {
		m := pipeline.NewMemoryPort(infos[i], b.pool, 1<<16)
		m.SetWaiter(waiter)
		b.ports[i] = &wirePort{MemoryPort: m, keep: 1 << 15}
		ports[i] = b.ports[i]
	}
	b.ports[wan].lose = o.lose
	wo := pipeline.WorkerOptions{Ports: ports, Infos: infos, Pool: b.pool, Waiter: waiter}
	if o.xdp != nil {
		wo.Offloader = o.xdp
		o.xdp.ports = b.ports
		b.ports[lan].xdp, b.ports[wan].xdp = o.xdp, o.xdp
	}
	b.worker = pipeline.NewWorker(wo)
	b.ports[lan].cookies = o.cookies
	b.build(o.options, o.streams)
	if !o.noHosts {
		cl := &etherLink{mac: clientMAC, peer: serverMAC, mtu: 1500, vlan: o.vlan, out: b.ports[lan].send}
		sl := &etherLink{mac: serverMAC, peer: clientMAC, mtu: 1500, vlan: o.vlan, out: b.ports[wan].send}
		b.client = newHost(t, cl, client4, client6)
		b.server = newHost(t, sl, server4, server6)
		b.ports[lan].deliver, b.ports[wan].deliver = cl.receive, sl.receive
	}
	b.run(o.noRun)
	t.Cleanup(func() {
		if t.Failed() && !o.noRun && !b.stopped {
			b.describe()
		}
		b.stop()
		if !o.noHosts {
			b.client.net.Destroy()
			b.server.net.Destroy()
		}
		eventually(t, "goroutines back where they were", func() bool { return runtime.NumGoroutine() <= b.before })
	})
	return b
}

// build gives the worker a chain of nothing but a boundary.
func (b *bed) build(options func(*stack.Options), streams []pipeline.StreamStage) {
	b.t.Helper()
	var r pipeline.Registry
	pipeline.Register(&r, pipeline.Descriptor[struct{}]{Kind: "tcp", Affinity: true,
		NewBoundary: func(_ struct{}, env *pipeline.Env, _ []pipeline.StreamStage, _ []string) (pipeline.Stage, error) {
			so := stack.DefaultOptions()
			so.Streams = streams
			if options != nil {
				options(&so)
			}
			s, err := stack.New(env, so)
			if err != nil {
				return nil, err
			}
			b.stage = &boundary{s, env.Now}
			return b.stage, nil
		}})
	kind := r.Lookup("tcp")
	spec := pipeline.ChainSpec{Name: "test", Stages: []pipeline.StageSpec{{Kind: kind, Config: kind.NewConfig()}}}
	env := b.worker.Env()
	if p := b.ports[lan]; p != nil && p.cookies != nil {
		env.SYNs = p.cookies
	}
	chain, err := spec.Build(env)
	if err != nil {
		b.t.Fatal(err)
	}
	b.worker.SetChains([]*pipeline.Chain{chain}, []bool{true})
}

// run starts the worker, unless it is to be still, and makes stop.
func (b *bed) run(still bool) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	if !still {
		go func() { done <- b.worker.Run(ctx) }()
	} else {
		done <- nil
	}
	var once sync.Once
	b.stop = func() {
		b.stopped = true
		once.Do(func() {
			cancel()
			b.worker.Call(func() {}) // wakes it
			if err := <-done; err != nil {
				b.t.Errorf("worker: %v", err)
			}
			if err := b.worker.Close(); err != nil {
				b.t.Errorf("close worker: %v", err)
			}
			if s := b.worker.Stats(); !s.Totals.Balanced() || s.Panics != 0 && !b.mayPanic || s.Pool.DoubleFrees != 0 {
				b.t.Errorf("totals after close: %+v, panics %d, double frees %d", s.Totals, s.Panics, s.Pool.DoubleFrees)
			}
			if b.pool.Free() != b.pool.Total() {
				b.t.Errorf("free frames after close: got %d, want %d", b.pool.Free(), b.pool.Total())
			}
		})
	}
}

// count returns a counter of the stage.
func (b *bed) count(name string) uint64 {
	return b.worker.Stats().Chains[0].Stages[0].Counters[name]
}

func (b *bed) wantCount(name string, want uint64) {
	b.t.Helper()
	if got := b.count(name); got != want {
		b.t.Errorf("counter %s: got %d, want %d", name, got, want)
	}
}

// describe logs what the stage knows of its connections, and its counters.
func (b *bed) describe() {
	done := make(chan []string)
	b.worker.Call(func() { done <- b.stage.Describe() })
	for _, line := range <-done {
		b.t.Log(line)
	}
	st := b.worker.Stats()
	for name, n := range st.Chains[0].Stages[0].Counters {
		if n != 0 {
			b.t.Logf("%s %d", name, n)
		}
	}
	b.t.Logf("%+v", st.Totals)
}

// flows returns how many connections the stage lists.
func (b *bed) flows() (n int) {
	done := make(chan struct{})
	b.worker.Call(func() {
		b.worker.Chains()[0].Flows(func(pipeline.FlowInfo) { n++ })
		close(done)
	})
	<-done
	return n
}

// eventually waits until cond is true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			if what[:4] == "goro" {
				buf := make([]byte, 1<<20)
				t.Logf("%s", buf[:runtime.Stack(buf, true)])
			}
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// segment is a TCP segment as a cable has it.
type segment struct {
	wire.Headers
	frame []byte
	flow  wire.Flow
	tcp   wire.TCP
}

// segments returns the TCP segments among frames that pass the filter.
func segments(frames []seenFrame, in bool, has wire.TCPFlags) (out []segment) {
	for _, f := range frames {
		s := segment{frame: f.frame}
		if f.in != in || s.Parse(f.frame) != wire.FaultNone || !s.HasL4 || s.Proto != wire.ProtoTCP {
			continue
		}
		s.tcp = wire.TCP(f.frame[s.L4:s.End])
		if s.tcp.Flags()&has != has {
			continue
		}
		s.flow, _ = s.Headers.Flow(f.frame)
		out = append(out, s)
	}
	return out
}

func addr(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
