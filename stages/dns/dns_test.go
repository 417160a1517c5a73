package dns

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"penstock/internal/dnsseen"
	"penstock/internal/units"
	"penstock/pipeline"
	"penstock/pipeline/pipelinetest"
)

// rig is a worker between two ports that runs the stage.
type rig struct {
	*pipeline.Worker
	ports    [2]*pipeline.MemoryPort
	table    *dnsseen.Table
	counters map[string]uint64
}

func newRig(t *testing.T, c Config) *rig {
	t.Helper()
	reg := &pipeline.Registry{}
	r := &rig{table: &dnsseen.Table{}}
	d := Descriptor()
	d.New = func(c Config, env *pipeline.Env) (pipeline.Stage, error) {
		s := newStage(c, env)
		s.table = r.table
		return s, nil
	}
	pipeline.Register(reg, d)
	arena, err := pipeline.NewArena(make([]byte, 64*2048), 2048, 128, 1)
	if err != nil {
		t.Fatal(err)
	}
	infos := []pipeline.PortInfo{{ID: 0, Name: "lan"}, {ID: 1, Name: "wan"}}
	for i := range r.ports {
		r.ports[i] = pipeline.NewMemoryPort(infos[i], arena.Pool(0), 64)
	}
	r.Worker = pipeline.NewWorker(pipeline.WorkerOptions{Ports: []pipeline.Port{r.ports[0], r.ports[1]}, Infos: infos, Pool: arena.Pool(0)})
	spec := pipeline.ChainSpec{Name: "dns", Stages: []pipeline.StageSpec{{Kind: reg.Lookup("dns"), Config: &c, Shared: &pipeline.Shared{}}}}
	chain, err := spec.Build(r.Env())
	if err != nil {
		t.Fatal(err)
	}
	r.SetChains([]*pipeline.Chain{chain}, []bool{spec.Affinity()})
	return r
}

// send passes one frame through; every one of them must come out at the other side.
func (r *rig) send(t *testing.T, in int, frame []byte) {
	t.Helper()
	if !r.ports[in].Inject(frame) {
		t.Fatal("port is full")
	}
	if _, err := r.Turn(); err != nil {
		t.Fatal(err)
	}
	sent := r.ports[1-in].Sent()
	if len(sent) != 1 || string(sent[0]) != string(frame) {
		t.Fatalf("%d packets leave, changed or not", len(sent))
	}
	for _, c := range r.Stats().Chains {
		for _, s := range c.Stages {
			r.counters = s.Counters
		}
	}
}

func pack(id uint16, response bool, name string, kind dnsmessage.Type, answers ...dnsmessage.ResourceBody) string {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id, Response: response},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
	for _, a := range answers {
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60}, Body: a})
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return string(b)
}

const client, resolver = "10.0.0.1:40000", "192.0.2.53:53"

func question(from string, id uint16, name string) []byte {
	return pipelinetest.UDP(from, resolver, pipelinetest.Payload(pack(id, false, name, dnsmessage.TypeA)))
}

func answer(from, to string, id uint16, name string, opts ...pipelinetest.Option) []byte {
	text := pack(id, true, name, dnsmessage.TypeA, &dnsmessage.AResource{A: [4]byte{198, 51, 100, 7}})
	return pipelinetest.UDP(from, to, append(opts, pipelinetest.Payload(text))...)
}

// TestAnswers: only the answer to a question that was seen is believed.
func TestAnswers(t *testing.T) {
	asked := question(client, 7, "WWW.Example.com.")
	for _, row := range []struct {
		name    string
		c       Config
		in      []byte
		counter string
		seen    bool
	}{
		{"the answer", defaults(), answer(resolver, client, 7, "WWW.Example.com."), "answers", true},
		{"another id", defaults(), answer(resolver, client, 8, "WWW.Example.com."), "unasked", false},
		{"another port", defaults(), answer(resolver, "10.0.0.1:40001", 7, "WWW.Example.com."), "unasked", false},
		{"another server", defaults(), answer("192.0.2.54:53", client, 7, "WWW.Example.com."), "unasked", false},
		{"another name", defaults(), answer(resolver, client, 7, "bank.example.com."), "unasked", false},
		{"the name in another case", defaults(), answer(resolver, client, 7, "www.example.com."), "unasked", false},
		{"a wrong checksum", defaults(), answer(resolver, client, 7, "WWW.Example.com.", pipelinetest.BadChecksum()), "malformed", false},
		{"no DNS", defaults(), pipelinetest.UDP(resolver, client, pipelinetest.Payload("hello")), "malformed", false},
		{"without an address", defaults(), pipelinetest.UDP(resolver, client, pipelinetest.Payload(pack(7, true, "WWW.Example.com.", dnsmessage.TypeA))), "useless", false},
		{"a trusted server", Config{Resolvers: []units.Prefix{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}}}, answer(resolver, client, 7, "WWW.Example.com."), "answers", true},
		{"a server that is not trusted", Config{Resolvers: []units.Prefix{{Prefix: netip.MustParsePrefix("203.0.113.0/24")}}}, answer(resolver, client, 7, "WWW.Example.com."), "untrusted", false},
	} {
		r := newRig(t, row.c)
		r.send(t, 0, asked)
		r.send(t, 1, row.in)
		now := r.Env().Now()
		got := r.table.Ask("www.example.com", netip.MustParseAddr("198.51.100.7"), now)
		if (got == dnsseen.Seen) != row.seen || !row.seen && got != dnsseen.Unknown {
			t.Errorf("%s: got %v", row.name, got)
		}
		if r.counters[row.counter] != 1 || r.counters["queries"] != 1 {
			t.Errorf("%s: counters %v", row.name, r.counters)
		}
		if row.seen { // a second answer has no question any more
			r.send(t, 1, row.in)
			if r.counters["unasked"] != 1 || r.counters["answers"] != 1 {
				t.Errorf("%s, again: counters %v", row.name, r.counters)
			}
		}
	}
}

// TestTwoQuestions: a client asks twice from one port, as libraries do for A and
// AAAA, and gets both answers.
func TestTwoQuestions(t *testing.T) {
	r := newRig(t, defaults())
	r.send(t, 0, question(client, 1, "a.example."))
	r.send(t, 0, question(client, 2, "b.example."))
	r.send(t, 1, answer(resolver, client, 2, "b.example."))
	r.send(t, 1, answer(resolver, client, 1, "a.example."))
	if r.counters["answers"] != 2 {
		t.Errorf("counters %v", r.counters)
	}
}

func TestConformance(t *testing.T) { pipelinetest.Stage(t, Descriptor(), defaults()) }

func TestREADME(t *testing.T) {
	reg := &pipeline.Registry{}
	pipeline.Register(reg, Descriptor())
	pipelinetest.README(t, reg, reg.Lookup("dns"))
	_, section, _ := strings.Cut(readme, "## Counters")
	section, _, _ = strings.Cut(section, "\n## ")
	env := &pipeline.Env{Counters: &pipeline.CounterSet{}}
	newStage(defaults(), env)
	for _, c := range env.Counters.All() {
		if !strings.Contains(section, "`"+c.Name+"`") {
			t.Errorf("counter %q is not in the section Counters", c.Name)
		}
	}
}
