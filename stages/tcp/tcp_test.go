package tcp

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"penstock/internal/units"
	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/pipeline/pipelinetest"
	"penstock/stack"
)

func kind(t *testing.T) (*pipeline.Registry, *pipeline.Kind) {
	t.Helper()
	reg := &pipeline.Registry{}
	pipeline.Register(reg, Descriptor())
	return reg, reg.Lookup("tcp")
}

func TestREADME(t *testing.T) {
	reg, k := kind(t)
	pipelinetest.README(t, reg, k)
}

// TestREADMECounters: the manual lists the counters that the code has, in its
// words.
func TestREADMECounters(t *testing.T) {
	b := newBench(t, Default())
	env := *b.env
	env.Depth = pipeline.DepthInspect
	_, k := kind(t)
	c := Default()
	chain, err := (&pipeline.ChainSpec{Stages: []pipeline.StageSpec{{Kind: k, Config: &c}}}).Build(env)
	if err != nil {
		t.Fatal(err)
	}
	for name := range chain.Stats().Stages[0].Counters {
		b.env.Counters.Counter(name, "")
	}
	if err := chain.Close(); err != nil {
		t.Error(err)
	}
	listed := readme[strings.Index(readme, "## Counters"):strings.Index(readme, "## Examples")]
	rows := strings.Count(listed, "\n| `") - 2 // denied_REASON and sight_lost_REASON have no counter before the first
	for _, c := range b.env.Counters.All() {
		if !strings.Contains(listed, "\n| `"+c.Name+"` | ") {
			t.Errorf("counter %s is not listed", c.Name)
		}
		rows--
	}
	if rows != 0 {
		t.Errorf("%d rows more than counters", rows)
	}
}

func TestDefaultIsValid(t *testing.T) {
	c := Default()
	var issues pipeline.Issues
	Validate(&c, &issues)
	if len(issues.List) != 0 {
		t.Errorf("got %v", issues.List)
	}
	if o, want := c.options(), stack.DefaultOptions(); o.Streams != nil || o.HoldBytes != want.HoldBytes || o.MaxFlows != want.MaxFlows ||
		o.DialTimeout != want.DialTimeout || o.RACK != want.RACK || o.OnLimit != want.OnLimit || o.TimeWait != want.TimeWait || o.AckDelay != want.AckDelay {
		t.Errorf("got %+v, want %+v", o, want)
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		change func(*Config)
		path   string
		want   string
	}{
		{func(c *Config) { c.Depth = "terminate" }, "", ""},
		{func(c *Config) { c.Depth = "inspect" }, "", ""},
		{func(c *Config) { c.Depth = "deep" }, "depth", `depth must be "auto", "inspect" or "terminate", got "deep"`},
		{func(c *Config) { c.Hold = "maybe" }, "hold", `hold must be "auto", "on" or "off", got "maybe"`},
		{func(c *Config) { c.OnConflict = "pass" }, "on_conflict", `on_conflict must be "deny" or "drop", got "pass"`},
		{func(c *Config) { c.OnBlind = "" }, "on_blind", `on_blind must be "auto", "deny" or "bypass", got ""`},
		{func(c *Config) { c.Midstream = "reset" }, "midstream", `midstream must be "bypass", "inspect" or "drop", got "reset"`},
		{func(c *Config) { c.InspectHoldBytes = 14600 }, "inspect_hold_bytes", "inspect_hold_bytes must be from 1KiB to 12KiB, got 14600B"},
		{func(c *Config) { c.HoldTime = units.Duration(time.Hour) }, "hold_time", "hold_time must be from 100ms to 1m0s, got 1h0m0s"},
		{func(c *Config) { c.FlowMemory = 1 }, "flow_memory", "flow_memory must be from 64KiB to 64GiB, got 1B"},
		{func(c *Config) { c.Memory = 1 << 20 }, "memory", "memory must be from 8MiB to 64GiB, got 1MiB"},
		{func(c *Config) { c.OnLimit = "ignore" }, "on_limit", `on_limit must be "bypass" or "drop", got "ignore"`},
		{func(c *Config) { c.OnUnsupported = "" }, "on_unsupported", `on_unsupported must be "bypass" or "drop", got ""`},
		{func(c *Config) { c.LossDetection = "luck" }, "loss_detection", `loss_detection must be "rack" or "sack", got "luck"`},
		{func(c *Config) { c.MaxFlows = 0 }, "max_flows", "max_flows must be from 1 to 4194304, got 0"},
		{func(c *Config) { c.MaxPending = 1 << 20 }, "max_pending", "max_pending must be from 1 to 65536, got 1048576"},
		{func(c *Config) { c.SendBuffer = 1 }, "send_buffer", "send_buffer must be from 16KiB to 256MiB, got 1B"},
		{func(c *Config) { c.SendBufferMax = 32 << 10 }, "send_buffer_max", "send_buffer_max must be from 256KiB to 256MiB, got 32KiB"},
		{func(c *Config) { c.ReceiveBuffer = 1 << 40 }, "receive_buffer", "receive_buffer must be from 16KiB to 256MiB, got 1TiB"},
		{func(c *Config) { c.ReceiveBufferMax = 16 << 10 }, "receive_buffer_max", "receive_buffer_max must be from 512KiB to 256MiB, got 16KiB"},
		{func(c *Config) { c.HoldBytes = 0 }, "hold_bytes", "hold_bytes must be from 1KiB to 16MiB, got 0B"},
		{func(c *Config) { c.MaxPerClient, c.MSSClamp, c.StallTimeout = 10, 1400, 0 }, "", ""},
		{func(c *Config) { c.MaxPerClient = -1 }, "max_flows_per_client", "max_flows_per_client must be from 0 to 4194304, got -1"},
		{func(c *Config) { c.MSSClamp = 100 }, "mss_clamp", "mss_clamp must be from 536 to 65535, got 100"},
		{func(c *Config) { c.DialTimeout = 0 }, "dial_timeout", "dial_timeout must be above 0, got 0s"},
		{func(c *Config) { c.HandshakeTimeout = 0 }, "handshake_timeout", "handshake_timeout must be above 0, got 0s"},
		{func(c *Config) { c.CloseTimeout = 0 }, "close_timeout", "close_timeout must be above 0, got 0s"},
		{func(c *Config) { c.TimeWait = units.Duration(time.Hour) }, "time_wait", "time_wait must be from 0s to 4m0s, got 1h0m0s"},
		{func(c *Config) { c.AckDelay = units.Duration(time.Second) }, "ack_delay", "ack_delay must be from 0s to 500ms, got 1s"},
		{func(c *Config) { c.IdleTimeout, c.HalfClosedTimeout, c.KeepAlive = 0, 0, 0 }, "", ""},
	} {
		c := Default()
		tc.change(&c)
		var issues pipeline.Issues
		Validate(&c, &issues)
		switch {
		case tc.path == "" && len(issues.List) != 0:
			t.Errorf("got %v, want no issue", issues.List)
		case tc.path != "" && (len(issues.List) == 0 || issues.List[0] != pipeline.Issue{Path: tc.path, Text: tc.want}):
			t.Errorf("got %v, want %s: %s", issues.List, tc.path, tc.want)
		}
	}
}

func TestDepth(t *testing.T) {
	_, k := kind(t)
	for _, tc := range []struct {
		depth string
		need  pipeline.Need
		want  pipeline.Depth
		why   string
	}{
		{"auto", pipeline.NeedNothing, pipeline.DepthInspect, ""},
		{"auto", pipeline.NeedObserve, pipeline.DepthInspect, ""},
		{"auto", pipeline.NeedDeny, pipeline.DepthInspect, ""},
		{"auto", pipeline.NeedChange, pipeline.DepthTerminate, ""},
		{"inspect", pipeline.NeedDeny, pipeline.DepthInspect, `depth = "inspect"`},
		{"terminate", pipeline.NeedObserve, pipeline.DepthTerminate, `depth = "terminate"`},
	} {
		c := k.NewConfig().(*Config)
		c.Depth = tc.depth
		if d, why := k.Depth(c, tc.need); d != tc.want || why != tc.why {
			t.Errorf("%s, need %v: got %v, %q", tc.depth, tc.need, d, why)
		}
	}
	for midstream, want := range map[string]bool{"bypass": false, "inspect": true} {
		for _, d := range []string{"inspect", "terminate"} {
			c := k.NewConfig().(*Config)
			c.Depth, c.Midstream = d, midstream
			if got := (&pipeline.ChainSpec{Stages: []pipeline.StageSpec{{Kind: k, Config: c}}}).Resumes(); got != (want && d == "inspect") {
				t.Errorf("%s, midstream %s: resumes %v", d, midstream, got)
			}
		}
	}
	if k.Layer != pipeline.BoundaryLayer || !k.Affinity {
		t.Errorf("layer %v, affinity %v", k.Layer, k.Affinity)
	}
}

// TestSuits: what the stages behind cannot live with is a problem of the
// configuration, not of the first connection.
func TestSuits(t *testing.T) {
	_, k := kind(t)
	for _, tc := range []struct {
		change func(*Config)
		need   pipeline.Need
		want   string
	}{
		{func(*Config) {}, pipeline.NeedChange, ""},
		{func(c *Config) { c.Depth = "inspect" }, pipeline.NeedDeny, ""},
		{func(c *Config) { c.Depth = "inspect" }, pipeline.NeedChange, `depth: depth "inspect" cannot serve x, which swaps: want "auto" or "terminate"`},
		{func(c *Config) { c.Hold = "off" }, pipeline.NeedObserve, ""},
		{func(c *Config) { c.Hold = "off" }, pipeline.NeedDeny, `hold: hold "off" lets pass what x may deny (it swaps): want "auto" or "on"`},
		{func(c *Config) { c.Depth, c.Midstream = "terminate", "drop" }, pipeline.NeedDeny, `midstream: midstream "drop" needs depth "inspect": a connection under way cannot be terminated`},
		{func(c *Config) { c.Midstream = "inspect" }, pipeline.NeedChange, `midstream: midstream "inspect" needs depth "inspect": a connection under way cannot be terminated`},
	} {
		c := k.NewConfig().(*Config)
		tc.change(c)
		var issues pipeline.Issues
		k.Suits(c, tc.need, "x", "swaps", &issues)
		got := ""
		for _, i := range issues.List {
			got += i.Path + ": " + i.Text
		}
		if got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}

// bench is a worker with the stage between two memory ports.
type bench struct {
	t      *testing.T
	worker *pipeline.Worker
	chain  *pipeline.Chain
	pool   *pipeline.Pool
	ports  [2]*pipeline.MemoryPort
	env    *pipeline.Env
}

func newBench(t *testing.T, c Config) *bench {
	t.Helper()
	b := &bench{t: t}
	arena, err := pipeline.NewArena(make([]byte, 256*2048), 2048, 64, 1)
	if err != nil {
		t.Fatal(err)
	}
	b.pool = arena.Pool(0)
	infos := []pipeline.PortInfo{{ID: 0, Name: "lan", MTU: 1500}, {ID: 1, Name: "wan", MTU: 1500}}
	for i := range b.ports {
		b.ports[i] = pipeline.NewMemoryPort(infos[i], b.pool, 256)
	}
	b.worker = pipeline.NewWorker(pipeline.WorkerOptions{Ports: []pipeline.Port{b.ports[0], b.ports[1]}, Infos: infos, Pool: b.pool})
	_, k := kind(t)
	c.Depth = "terminate"
	// The stage's own environment, to look at its counters.
	env := b.worker.Env()
	spec := pipeline.ChainSpec{Name: "test", Stages: []pipeline.StageSpec{{Kind: k, Config: &c}}}
	if b.chain, err = spec.Build(env); err != nil {
		t.Fatal(err)
	}
	b.worker.SetChains([]*pipeline.Chain{b.chain}, []bool{true})
	own := b.worker.Env()
	own.Counters = &pipeline.CounterSet{}
	b.env = &own
	probe, err := New(c, b.env, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := probe.Close(); err != nil {
		t.Error(err)
	}
	t.Cleanup(func() {
		if err := b.worker.Close(); err != nil {
			t.Error(err)
		}
		if b.pool.Free() != b.pool.Total() {
			t.Errorf("free frames: got %d, want %d", b.pool.Free(), b.pool.Total())
		}
	})
	return b
}

// await takes turns until a TCP segment leaves by a port, and returns it.
func (b *bench) await(port int, flags wire.TCPFlags) (h wire.Headers, t wire.TCP) {
	b.t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); runtime.Gosched() {
		if _, err := b.worker.Turn(); err != nil {
			b.t.Fatal(err)
		}
		for _, f := range b.ports[port].Sent() {
			if h.Parse(f) == wire.FaultNone && h.HasL4 && h.Proto == wire.ProtoTCP {
				if t = wire.TCP(f[h.L4:h.End]); t.Flags().Has(flags) {
					return h, t
				}
			}
		}
	}
	b.t.Fatalf("no segment with flags %v within 5 s", flags)
	return h, nil
}

// TestConversation plays both ends of a connection through a chain that the
// registry has built.
func TestConversation(t *testing.T) {
	const client, server = "10.0.0.1:1234", "10.0.0.2:80"
	b := newBench(t, Default())
	b.ports[0].Inject(pipelinetest.TCP(client, server, wire.FlagSYN, 100, pipelinetest.MSS(1460), pipelinetest.SACKPermitted()))
	_, syn := b.await(1, wire.FlagSYN)
	b.ports[1].Inject(pipelinetest.TCP(server, client, wire.FlagSYN|wire.FlagACK, 500, pipelinetest.Ack(syn.Seq()+1), pipelinetest.MSS(1460)))
	_, synack := b.await(0, wire.FlagSYN|wire.FlagACK)
	if synack.Ack() != 101 {
		t.Errorf("SYN-ACK acknowledges %d, want 101", synack.Ack())
	}
	b.ports[0].Inject(pipelinetest.TCP(client, server, wire.FlagACK|wire.FlagPSH, 101, pipelinetest.Ack(synack.Seq()+1), pipelinetest.Payload("hello")))
	_, data := b.await(1, wire.FlagPSH)
	if string(data.Payload()) != "hello" {
		t.Errorf("server got %q", data.Payload())
	}
	var flows []pipeline.FlowInfo
	b.chain.Flows(func(f pipeline.FlowInfo) { flows = append(flows, f) })
	if len(flows) != 1 || flows[0].State != "established" {
		t.Errorf("flows %+v", flows)
	}
	if left := b.worker.Drain(); left != 1 {
		t.Errorf("left %d, want 1", left)
	}
	b.ports[0].Inject(pipelinetest.TCP(client, server, wire.FlagRST, 106))
	b.await(1, wire.FlagRST)
	if left := b.worker.Drain(); left != 0 {
		t.Errorf("left %d, want 0", left)
	}
	if s := b.worker.Stats(); !s.Totals.Balanced() || s.Panics != 0 {
		t.Errorf("totals %+v, panics %d", s.Totals, s.Panics)
	}
}

// TestOtherPacketsContinue: the stage takes nothing but TCP.
func TestOtherPacketsContinue(t *testing.T) {
	b := newBench(t, Default())
	n := 0
	for _, a := range pipelinetest.Traffic() {
		var h wire.Headers
		if h.Parse(a.Frame) != wire.FaultNone || h.Proto == wire.ProtoTCP || h.IPVersion == 0 {
			continue
		}
		b.ports[a.In].Inject(a.Frame)
		if _, err := b.worker.Turn(); err != nil {
			t.Fatal(err)
		}
		sent := b.ports[1-a.In].Sent()
		if len(sent) != 1 || string(sent[0]) != string(a.Frame) {
			t.Errorf("did not pass as it was: %s", wire.Summary(a.Frame))
		}
		n++
	}
	if n < 5 {
		t.Errorf("%d packets tried, want more", n)
	}
}
