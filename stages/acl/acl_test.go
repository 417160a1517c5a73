package acl

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"penstock/internal/config"
	"penstock/internal/match"
	"penstock/internal/units"
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
func parse(t testing.TB, src string) (*pipeline.ChainSpec, error) {
	t.Helper()
	c, problems := config.Parse("test.toml", []byte(twoPorts+src), registry())
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return &c.Chains[0].Spec, nil
}

// rig is a worker between two ports that runs one chain.
type rig struct {
	*pipeline.Worker
	ports [2]*pipeline.MemoryPort
	chain *pipeline.Chain

	offloaded []pipeline.ReleasedFlow
}

// Offload implements pipeline.Offloader.
func (r *rig) Offload(flows []pipeline.ReleasedFlow) {
	for i := range flows {
		flows[i].Taken = true
	}
	r.offloaded = append(r.offloaded, flows...)
}

func newRig(t testing.TB, src string) *rig {
	t.Helper()
	spec, err := parse(t, src)
	if err != nil {
		t.Fatal(err)
	}
	arena, err := pipeline.NewArena(make([]byte, 256*2048), 2048, 128, 1)
	if err != nil {
		t.Fatal(err)
	}
	infos := []pipeline.PortInfo{{ID: 0, Name: "lan"}, {ID: 1, Name: "wan"}}
	r := &rig{}
	for i := range r.ports {
		r.ports[i] = pipeline.NewMemoryPort(infos[i], arena.Pool(0), 1<<16)
	}
	r.Worker = pipeline.NewWorker(pipeline.WorkerOptions{
		Ports: []pipeline.Port{r.ports[0], r.ports[1]}, Infos: infos, Pool: arena.Pool(0), Offloader: r,
	})
	if r.chain, err = spec.Build(r.Env()); err != nil {
		t.Fatal(err)
	}
	r.SetChains([]*pipeline.Chain{r.chain}, []bool{spec.Affinity()})
	return r
}

// send passes one frame through and says what became of it: "lan" or "wan", the port that it left by, or the reason of
// its drop.
func (r *rig) send(t testing.TB, in int, frame []byte) string {
	t.Helper()
	before := r.Stats().Totals
	if !r.ports[in].Inject(frame) {
		t.Fatal("port is full")
	}
	if _, err := r.Turn(); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	for i, p := range r.ports {
		if sent := p.Sent(); len(sent) == 1 {
			return r.ports[i].Info().Name
		}
	}
	for reason, n := range r.Stats().Totals.Dropped {
		if n > before.Dropped[reason] {
			return reason
		}
	}
	t.Fatal("packet disappeared")
	return ""
}

const syn, ack, rst = wire.FlagSYN, wire.FlagACK, wire.FlagRST

func tcp(src, dst string, flags wire.TCPFlags, opts ...pipelinetest.Option) []byte {
	return pipelinetest.TCP(src, dst, flags, 1, append(opts, pipelinetest.PayloadLen(36))...)
}

func udp(src, dst string) []byte { return pipelinetest.UDP(src, dst, pipelinetest.PayloadLen(36)) }

func registry() *pipeline.Registry {
	reg := &pipeline.Registry{}
	pipeline.Register(reg, Descriptor())
	return reg
}

func TestConformance(t *testing.T) {
	rules := func(text string) Config {
		spec, err := parse(t, "[[chain]]\nname = \"c\"\n[[chain.stage]]\nkind = \"acl\"\n"+text)
		if err != nil {
			t.Fatal(err)
		}
		return *spec.Stages[0].Config.(*Config)
	}
	pipelinetest.Stage(t, Descriptor(), defaults(), Config{Default: "drop"},
		rules(`rules = [{ action = "drop", dst_port = [80], flags = "syn" }, { action = "forward", src = ["10.0.0.0/8", "2001:db8::/32"], fragment = false }, { action = "drop", vlan = [10] }]`))
}

// TestGolden replays testdata. With -update it also builds the captures.
func TestGolden(t *testing.T) {
	if flag.Lookup("update").Value.String() == "true" {
		var frames [][]byte
		for _, a := range pipelinetest.Traffic() {
			frames = append(frames, a.Frame)
		}
		if err := os.WriteFile("testdata/rules/in.pcapng", pipelinetest.Capture(time.Millisecond, frames...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pipelinetest.Golden(t, "testdata", registry())
}

var tomlBlock = regexp.MustCompile("(?ms)^```toml\n(.*?)^```")

// TestExamples runs the examples of the manual, by the title of their chain, with packets whose fate the text tells.
func TestExamples(t *testing.T) {
	type row struct {
		in    int
		frame []byte
		want  string
	}
	const client, https, ssh = "203.0.113.7:5000", "192.0.2.10:443", "192.0.2.10:22"
	fragments := pipelinetest.Fragments(tcp(client, https, ack), 24)
	cases := [][]row{
		{ // guests
			{0, tcp("10.9.1.2:9", https, syn), "acl_denied"},
			{0, udp("[fd00:9::1]:9", "[2001:db8::1]:53"), "acl_denied"},
			{0, tcp("10.10.1.2:9", https, syn), "wan"},
			{1, tcp(https, "10.9.1.2:9", syn|ack), "lan"},
		},
		{ // both directions
			{0, tcp("10.9.1.2:9", https, syn), "acl_denied"},
			{1, tcp(https, "10.9.1.2:9", syn|ack), "acl_denied"},
			{1, tcp(https, "10.8.1.2:9", syn|ack), "lan"},
		},
		{ // server
			{0, tcp(client, https, syn), "wan"},
			{1, tcp(https, client, syn|ack), "lan"},
			{1, tcp(https, client, rst), "lan"},
			{1, tcp(https, client, syn), "acl_default"},
			{0, tcp(client, ssh, syn), "acl_default"},
			{0, udp(client, https), "acl_default"},
			{0, pipelinetest.Ping("203.0.113.7", "192.0.2.10", 1, 1), "wan"},
			{1, pipelinetest.ICMPError("2001:db8::9", 2, 0, [4]byte{2: 5}, udp("[2001:db8::1]:9", "[2001:db8::2]:9")), "lan"},
			{0, fragments[0], "wan"},
			{0, fragments[1], "wan"},
		},
		{ // maintenance
			{0, tcp(client, https, syn), "acl_denied"},
			{1, tcp(client, https, syn), "lan"},
			{0, tcp(client, https, syn|ack), "wan"},
			{0, tcp(client, https, ack), "wan"},
			{0, udp(client, https), "wan"},
		},
	}
	blocks := tomlBlock.FindAllStringSubmatch(readme, -1)
	if len(blocks) != len(cases) {
		t.Fatalf("the manual has %d examples, %d are tested", len(blocks), len(cases))
	}
	for i, rows := range cases {
		t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			r := newRig(t, blocks[i][1])
			for _, row := range rows {
				if got := r.send(t, row.in, row.frame); got != row.want {
					t.Errorf("%s from port %d: %s, want %s", wire.Summary(row.frame), row.in, got, row.want)
				}
			}
			if s := r.Stats(); !s.Totals.Balanced() {
				t.Errorf("packets disappeared: %+v", s.Totals)
			}
		})
	}
}

const mixed = `
[[chain]]
name = "c"
  [[chain.stage]]
  kind = "acl"
  default = "drop"
  rules = [
    { name = "trusted", action = "forward", src = ["10.1.0.0/16"] },
    { action = "drop", src = ["10.1.2.0/24"] },
    { name = "dns", action = "continue", dst_port = [53] },
    { name = "bad_ports", action = "drop", proto = "tcp", dst_port = ["1-1023"] },
    { action = "continue", proto = "tcp" },
  ]
  [[chain.stage]]
  kind = "acl"
  rules = [{ name = "all", action = "drop" }]
`

func TestFirstRuleDecidesAndIsCounted(t *testing.T) {
	r := newRig(t, mixed)
	for _, row := range []struct {
		frame []byte
		want  string
	}{
		{tcp("10.1.2.3:9", "10.2.0.1:80", ack), "wan"},                                  // forward: the drop behind it and the second stage do not see it
		{udp("10.3.0.1:9", "10.2.0.1:53"), "acl_denied"},                                // continue: the second stage drops it
		{tcp("10.3.0.1:9", "10.2.0.1:53", ack), "acl_denied"},                           // the same: before bad_ports
		{tcp("10.3.0.1:9", "10.2.0.1:80", ack), "acl_denied"},                           // bad_ports
		{udp("10.3.0.1:9", "10.2.0.1:80"), "acl_default"},                               // none
		{pipelinetest.Fragments(udp("10.3.0.1:9", "10.2.0.1:53"), 8)[1], "acl_default"}, // none: no ports
	} {
		if got := r.send(t, 0, row.frame); got != row.want {
			t.Errorf("%s: %s, want %s", wire.Summary(row.frame), got, row.want)
		}
	}
	stages := r.chain.Stats().Stages
	first, second := stages[0].Counters, stages[1].Counters
	for _, c := range []struct {
		name      string
		got, want uint64
	}{
		{"hits_trusted", first["hits_trusted"], 1}, {"hits_dns", first["hits_dns"], 2}, {"hits_bad_ports", first["hits_bad_ports"], 1},
		{"unmatched", first["unmatched"], 2}, {"later_fragments", first["later_fragments"], 1}, {"hits_all", second["hits_all"], 2},
	} {
		if c.got != c.want {
			t.Errorf("%s is %d, want %d", c.name, c.got, c.want)
		}
	}
	if len(first) != 5 {
		t.Errorf("counters: %v", first)
	}
}

// TestRelease: the stage lets go of a flow with its first packet, unless the two
// directions have different fates, or packets of a flow have.
func TestRelease(t *testing.T) {
	for _, row := range []struct {
		name, rules string
		frame       []byte
		want        string // "forward", "drop", or "" if the flow stays
	}{
		{"no rules", "[]", tcp("10.0.0.1:1", "10.0.0.2:80", syn), "forward"},
		{"continue", `[{action = "continue", dst_port = [80]}]`, tcp("10.0.0.1:1", "10.0.0.2:80", syn), "forward"},
		{"forward", `[{action = "forward", dst_port = [80]}]`, tcp("10.0.0.1:1", "10.0.0.2:80", syn), "forward"},
		{"drop one way", `[{action = "drop", dst_port = [80]}]`, tcp("10.0.0.1:1", "10.0.0.2:80", syn), ""},
		{"drop both ways", `[{action = "drop", dst_port = [80]}, {action = "drop", src_port = [80]}]`, tcp("10.0.0.1:1", "10.0.0.2:80", syn), "drop"},
		{"drop replies by port", `[{action = "drop", from = "wan", src_port = [80]}]`, tcp("10.0.0.1:1", "10.0.0.2:80", syn), ""},
		{"udp", `[{action = "drop", dst_port = [53]}]`, udp("10.0.0.1:1", "10.0.0.2:54"), "forward"},
		{"a rule about flags", `[{action = "drop", proto = "tcp", flags = "rst"}]`, tcp("10.0.0.1:1", "10.0.0.2:80", syn), ""},
		{"a rule about fragments", `[{action = "drop", fragment = true}]`, tcp("10.0.0.1:1", "10.0.0.2:80", syn), ""},
		{"no ports", "[]", pipelinetest.IP("10.0.0.1", "10.0.0.2", 47), ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, "[[steer]]\nto = \"a\"\n[[chain]]\nname = \"a\"\n[[chain.stage]]\nkind = \"acl\"\nrules = "+row.rules+"\n")
			r.send(t, 0, row.frame)
			got := ""
			if len(r.offloaded) == 1 {
				got = "forward"
				if r.offloaded[0].Drop {
					got = "drop"
				}
			}
			if got != row.want || len(r.offloaded) > 1 {
				t.Errorf("offloaded %+v, want %q", r.offloaded, row.want)
			}
		})
	}
}

func TestNoRules(t *testing.T) {
	f := udp("10.3.0.1:9", "10.2.0.1:80")
	for def, want := range map[string]string{"continue": "wan", "drop": "acl_default"} {
		r := newRig(t, "[[chain]]\nname = \"c\"\n[[chain.stage]]\nkind = \"acl\"\ndefault = \""+def+"\"\n")
		if got := r.send(t, 0, f); got != want {
			t.Errorf("default %s: %s, want %s", def, got, want)
		}
	}
}

func TestProblems(t *testing.T) {
	_, err := parse(t, `
[[chain]]
name = "c"
  [[chain.stage]]
  kind = "acl"
  default = "accept"
  rules = [
    { src = ["10.0.0.0/8", "10.0.0.1/8"] },
    { action = "reject", name = "Bad name", proto = "sctp" },
    { action = "drop", name = "x", dst_port = [80, 0, "90-80"], proto = "icmp" },
    { action = "drop", name = "x", flags = "syn,!syn", vlan = [4095] },
    { action = "drop", fragment = true, src_port = [1], dport = 80 },
    { action = "drop", src = ["10.0.0.0/8"], dst = ["fd00::/8"] },
  ]
`)
	want := []string{
		`test.toml:13:3: chain "c", stage 1 (acl): default: must be "continue" or "drop", got "accept"`,
		`15:5: chain "c", stage 1 (acl): rules[0]: action is missing: want "drop", "continue" or "forward"`,
		`15:28: chain "c", stage 1 (acl): rules[0].src[1]: prefix 10.0.0.1/8 has bits beyond its length: want 10.0.0.0/8`,
		`rules[1].action: must be "drop", "continue" or "forward", got "reject"`,
		`rules[1].name: must be up to 40 lower-case letters, digits and "_", got "Bad name"`,
		`rules[1].proto: want "tcp", "udp", "icmp", "icmpv6", "any" or a number from 0 to 255, got "sctp"`,
		`rules[2].dst_port[1]: want a port from 1 to 65535, got 0`,
		`rules[2].dst_port[2]: port range "90-80" is empty`,
		`rules[2].proto: must be "tcp", "udp" or "any" in a rule with ports, got "icmp"`,
		`rules[3].name: "x" is taken already by rules[2]`,
		`rules[3].flags: a flag cannot be both set and clear, got "syn,!syn"`,
		`rules[3].vlan[0]: want a VLAN id from 0 to 4094`,
		`rules[4].fragment: no packet can meet this rule: later fragments have neither ports nor flags`,
		`rules[4]: unknown key "dport": want "action", "name", "src"`,
		`rules[5].dst: no packet can meet this rule: src has addresses of one IP version only, dst of the other`,
	}
	got := fmt.Sprint(err)
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("not reported: %s", w)
		}
	}
	if n := strings.Count(got, "\n") + 1; n != len(want) {
		t.Errorf("%d problems, want %d", n, len(want))
	}
	if t.Failed() {
		t.Logf("reported:\n%s", got)
	}
}

func TestUnknownPort(t *testing.T) {
	_, err := newStage(Config{Rules: []RuleConfig{{Action: "drop", Fields: match.Fields{From: "dmz"}}}},
		&pipeline.Env{Shared: &pipeline.Shared{}, Counters: &pipeline.CounterSet{}, Ports: []pipeline.PortInfo{{Name: "lan"}}})
	if err == nil || !strings.Contains(err.Error(), `want the name of a port: "lan", got "dmz"`) {
		t.Errorf("got %v", err)
	}
}

func TestWorkersShareTheRules(t *testing.T) {
	var p units.Prefix
	if err := p.UnmarshalText([]byte("10.0.0.0/8")); err != nil {
		t.Fatal(err)
	}
	c := Config{Default: "continue", Rules: []RuleConfig{{Action: "drop", Fields: match.Fields{Src: []units.Prefix{p}}}}}
	shared := &pipeline.Shared{}
	var sets []*match.Set
	for w := range 2 {
		s, err := newStage(c, &pipeline.Env{Worker: w, Shared: shared, Counters: &pipeline.CounterSet{}})
		if err != nil {
			t.Fatal(err)
		}
		sets = append(sets, s.(*stage).set)
	}
	if sets[0] != sets[1] {
		t.Error("each worker has compiled the rules for itself")
	}
}

// newBatch returns a chain with one stage of n rules, and packets of which half meet the last rule and half none.
func newBatch(tb testing.TB, n int) (*pipeline.Chain, *pipeline.Batch) {
	tb.Helper()
	c := Config{Default: "continue"}
	for i := range n {
		f := match.Fields{DstPort: []units.PortRange{{First: 443, Last: 443}}, Proto: match.Proto{Number: 6, Set: true}}
		var p units.Prefix
		if err := p.UnmarshalText(fmt.Appendf(nil, "10.%d.%d.0/24", i>>8&0xff, i&0xff)); err != nil {
			tb.Fatal(err)
		}
		f.Src = []units.Prefix{p}
		c.Rules = append(c.Rules, RuleConfig{Action: "drop", Fields: f})
	}
	spec := pipeline.ChainSpec{Name: "bench", Stages: []pipeline.StageSpec{{Kind: registry().Lookup("acl"), Config: &c, Shared: &pipeline.Shared{}}}}
	chain, err := spec.Build(pipeline.Env{})
	if err != nil {
		tb.Fatal(err)
	}
	arena, err := pipeline.NewArena(make([]byte, pipeline.BatchSize*512), 512, 128, 1)
	if err != nil {
		tb.Fatal(err)
	}
	b := pipeline.NewBatch(pipeline.BatchSize)
	for i := range pipeline.BatchSize {
		src := fmt.Sprintf("10.%d.%d.1:%d", (n-1)>>8&0xff, (n-1)&0xff, 1000+i)
		if i%2 == 0 {
			src = fmt.Sprintf("172.16.0.1:%d", 1000+i)
		}
		f, p := tcp(src, "192.0.2.1:443", ack), arena.Pool(0).Get()
		p.SetView(p.Offset(), len(f))
		copy(p.Bytes(), f)
		p.Parse()
		b.Add(p)
	}
	return chain, b
}

func TestProcessDoesNotAllocate(t *testing.T) {
	chain, b := newBatch(t, 100)
	var verdicts [5]int
	for _, p := range b.All() {
		p.Continue()
	}
	chain.Run(b)
	for _, p := range b.All() {
		v, _ := p.Verdict()
		verdicts[v]++
	}
	if verdicts[pipeline.Drop] != 32 || verdicts[pipeline.Forward] != 32 {
		t.Fatalf("verdicts %v, want half of 64 dropped", verdicts)
	}
	if n := testing.AllocsPerRun(100, func() {
		for _, p := range b.All() {
			p.Continue()
		}
		chain.Run(b)
	}); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

func BenchmarkProcess(b *testing.B) {
	for _, n := range []int{1, 10, 1000, 10000} {
		chain, batch := newBatch(b, n)
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for _, p := range batch.All() {
					p.Continue()
				}
				chain.Run(batch)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch.Len()), "ns/packet")
		})
	}
}
