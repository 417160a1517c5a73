package capture

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"penstock/internal/config"
	"penstock/internal/wire"
	"penstock/pipeline"
)

// panicProto is the protocol of packets that judge cannot stand.
const panicProto = 47

// judge is a stage of the tests that ends packets by their kind.
type judge struct{}

func (judge) Process(b *pipeline.Batch) {
	for p := range b.Live() {
		switch p.Proto {
		case wire.ProtoUDP:
			p.Drop(reasonTest)
		case wire.ProtoICMP:
			p.Consume()
		case wire.ProtoICMPv6:
			p.Forward(p.Out)
		case panicProto:
			panic("the test's own")
		default:
			p.Continue()
		}
	}
}

func registry() *pipeline.Registry {
	reg := &pipeline.Registry{}
	pipeline.Register(reg, Descriptor())
	pipeline.Register(reg, pipeline.Descriptor[struct{}]{
		Kind: "judge", New: func(struct{}, *pipeline.Env) (pipeline.Stage, error) { return judge{}, nil },
	})
	return reg
}

const twoPorts = `
[[port]]
name = "client"
interface = "eth1"
[[port]]
name = "server"
interface = "eth2"
`

// parse returns the chain "c": a capture stage with the given keys, and judge behind it.
func parse(keys string) (*pipeline.ChainSpec, error) {
	c, problems := config.Parse("test.toml", []byte(twoPorts+
		"[[chain]]\nname = \"c\"\n[[chain.stage]]\nkind = \"capture\"\n"+keys+"\n[[chain.stage]]\nkind = \"judge\"\n"), registry())
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return &c.Chains[0].Spec, nil
}

func mustParse(t testing.TB, keys string) *pipeline.ChainSpec {
	t.Helper()
	spec, err := parse(keys)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// row is a packet of a capture as tshark sees it.
type row struct {
	time, iface, wire, kept, comment string
}

// tshark reads captures with a reader that is not ours. It fails on any that is damaged or cut.
func tshark(t *testing.T, files ...string) (rows []row) {
	t.Helper()
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Skip("tshark is not here; what was written is not read by a foreign reader")
	}
	for _, f := range files {
		cmd := exec.Command("tshark", "-r", f, "-T", "fields", "-e", "frame.time_epoch", "-e", "frame.interface_name", "-e", "frame.len", "-e", "frame.cap_len", "-e", "frame.comment")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil || strings.Contains(stderr.String(), "cut short") {
			t.Fatalf("tshark %s: %v: %s", f, err, stderr.String())
		}
		for line := range strings.Lines(string(out)) {
			f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
			rows = append(rows, row{f[0], f[1], f[2], f[3], f[4]})
		}
	}
	return rows
}

// packets counts the packets in captures by a reader that is not ours. It fails on any that is damaged or cut.
func packets(t *testing.T, files ...string) (n int) {
	t.Helper()
	if _, err := exec.LookPath("capinfos"); err != nil {
		t.Skip("capinfos is not here; what was written is not read by a foreign reader")
	}
	for _, f := range files {
		out, err := exec.Command("capinfos", "-T", "-r", "-M", "-c", f).CombinedOutput()
		fields := strings.Split(strings.TrimSpace(string(out)), "\t")
		k, convErr := strconv.Atoi(fields[len(fields)-1])
		if err != nil || convErr != nil {
			t.Fatalf("capinfos %s: %v: %s", f, errors.Join(err, convErr), out)
		}
		n += k
	}
	return n
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// bench is a worker with the chain between two memory ports.
type bench struct {
	*pipeline.Worker
	t     testing.TB
	ports [2]*pipeline.MemoryPort
	chain *pipeline.Chain
}

func newBench(t testing.TB, spec *pipeline.ChainSpec) *bench {
	t.Helper()
	arena, err := pipeline.NewArena(make([]byte, 256*2048), 2048, 128, 1)
	if err != nil {
		t.Fatal(err)
	}
	infos := []pipeline.PortInfo{{ID: 0, Name: "client"}, {ID: 1, Name: "server"}}
	b := &bench{t: t}
	for i := range b.ports {
		b.ports[i] = pipeline.NewMemoryPort(infos[i], arena.Pool(0), 1<<16)
	}
	b.Worker = pipeline.NewWorker(pipeline.WorkerOptions{Ports: []pipeline.Port{b.ports[0], b.ports[1]}, Infos: infos, Pool: arena.Pool(0)})
	if b.chain, err = spec.Build(b.Env()); err != nil {
		t.Fatal(err)
	}
	b.SetChains([]*pipeline.Chain{b.chain}, []bool{spec.Affinity()})
	return b
}

// send passes n copies of a frame through.
func (b *bench) send(n int, frame []byte) {
	b.t.Helper()
	for n > 0 {
		k := min(n, pipeline.BatchSize)
		for range k {
			b.ports[0].Inject(frame)
		}
		n -= k
		if _, err := b.Turn(); err != nil && !errors.Is(err, io.EOF) {
			b.t.Fatal(err)
		}
		for i := range b.ports {
			b.ports[i].Sent()
		}
	}
}

func (b *bench) counters() map[string]uint64 { return b.chain.Stats().Stages[0].Counters }

// await polls until the condition holds.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func (b *bench) close() {
	b.t.Helper()
	if err := b.Worker.Close(); err != nil {
		b.t.Error(err)
	}
}

// unwritten returns a stage whose buffer of that many bytes nobody empties.
func unwritten(size, snapLen int) *stage {
	c := defaults()
	ctr := (&pipeline.CounterSet{}).Counter
	return &stage{
		writer: newWriter(&c, &pipeline.Env{Chain: "c"}), ring: newRing(size, nil), snapLen: snapLen,
		captured: ctr("a", ""), bytes: ctr("b", ""), overrun: ctr("c", ""),
	}
}
