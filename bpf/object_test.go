package bpf

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// The object in the repository is made from the C sources in the repository.
func TestObjectIsCurrent(t *testing.T) {
	record, err := os.ReadFile("steer_inputs.sha256")
	if err != nil {
		t.Fatal(err)
	}
	inputs, err := filepath.Glob("include/*.h")
	if err != nil {
		t.Fatal(err)
	}
	inputs = append(inputs, "gen.go", "steer.bpf.c")
	slices.Sort(inputs)
	var now strings.Builder
	for _, name := range inputs {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		fmt.Fprintf(&now, "%s  %s\n", hex.EncodeToString(sum[:]), name)
	}
	if now.String() != string(record) {
		t.Errorf("steer_bpfel.o is older than its sources; mend: go generate ./bpf\nnow:\n%swhen generated:\n%s", now.String(), record)
	}
}

// What C and Go state twice is the same.
func TestConstantsAgree(t *testing.T) {
	spec, err := loadSteer()
	if err != nil {
		t.Fatal(err)
	}
	if got := spec.Maps["sockets"].MaxEntries; got != MaxPorts*MaxQueues {
		t.Errorf("MaxPorts * MaxQueues is %d in C, %d in Go", got, MaxPorts*MaxQueues)
	}
	if got := spec.Maps["peers"].MaxEntries; got != MaxPorts {
		t.Errorf("MaxPorts is %d in C, %d in Go", got, MaxPorts)
	}
	if got := len(steerRuleList{}.Rule); got != MaxRules {
		t.Errorf("MaxRules is %d in C, %d in Go", got, MaxRules)
	}
	for name, size := range map[string]int{
		"flows": binary.Size(steerFlow{}), "fragments": binary.Size(steerFragment{}),
		"rules": binary.Size(steerRuleList{}), "counters": binary.Size(steerCounter{}), "rewrites": binary.Size(steerRewrite{}),
		"offload_jobs": offloadHeader + maxOffloadJobs*offloadJobSize, "end_jobs": endSize,
	} {
		if got := spec.Maps[name].ValueSize; got != uint32(size) {
			t.Errorf("a value of %s has %d bytes in C, %d in Go", name, got, size)
		}
	}
}

// Where Go reads and writes in the memory that it shares with the programs of table.h.
func TestOffsetsAgree(t *testing.T) {
	for _, c := range []struct {
		name string
		of   any
		at   map[string]int
		size int
	}{
		{"offload_job", steerOffloadJob{}, map[string]int{"Result": jobResult, "Before": jobBefore}, offloadJobSize},
		{"end_job", steerEndJob{}, map[string]int{"Result": jobResult, "Other": endOther, "Flow": endFlow}, endJobSize},
		{"end_work", steerEndWork{}, map[string]int{"From": endFrom, "Count": endCount, "Job": endHeader, "Counting": endCounting, "Flows": endFlows}, endSize},
	} {
		typ := reflect.TypeOf(c.of)
		if int(typ.Size()) != c.size {
			t.Errorf("%s has %d bytes, want %d", c.name, typ.Size(), c.size)
		}
		for field, at := range c.at {
			if f, ok := typ.FieldByName(field); !ok || int(f.Offset) != at {
				t.Errorf("%s.%s is at %d, want %d", c.name, field, f.Offset, at)
			}
		}
	}
	for r, name := range map[OffloadResult]string{
		OffloadTaken: "taken", OffloadGone: "flow_gone", OffloadChanged: "flow_changed", OffloadReplyInUse: "reply_in_use",
		OffloadTableFull: "flow_table_full", OffloadSlotsFull: "rewrites_full", 9: "offload_result_9",
	} {
		if r.String() != name {
			t.Errorf("result %d is called %q, want %q", r, r, name)
		}
	}
	for _, c := range []struct {
		c    steerOffloadResult
		inGo OffloadResult
	}{
		{steerOffloadResultOFFLOAD_TAKEN, OffloadTaken}, {steerOffloadResultOFFLOAD_FLOW_GONE, OffloadGone},
		{steerOffloadResultOFFLOAD_FLOW_CHANGED, OffloadChanged}, {steerOffloadResultOFFLOAD_REPLY_IN_USE, OffloadReplyInUse},
		{steerOffloadResultOFFLOAD_FLOW_TABLE_FULL, OffloadTableFull}, {steerOffloadResultOFFLOAD_REWRITES_FULL, OffloadSlotsFull},
		{steerOffloadResultOFFLOAD_RESULT_COUNT, OffloadResult(NumOffloadResults)},
	} {
		if int(c.c) != int(c.inGo) {
			t.Errorf("result %s is %d in C", c.inGo, c.c)
		}
	}
}

func TestNames(t *testing.T) {
	valid := regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	seen := map[string]bool{}
	for _, r := range Reasons() {
		if name := r.String(); !valid.MatchString(name) || seen[name] {
			t.Errorf("reason %d is called %q", r, name)
		}
		seen[r.String()] = true
	}
	if got := Reason(reasonCount).String(); got != fmt.Sprintf("reason_%d", reasonCount) {
		t.Errorf("unknown reason is called %q", got)
	}
	for v, want := range map[Verdict]string{VerdictPass: "pass", VerdictPeer: "peer", VerdictSocket: "socket", VerdictDrop: "drop", VerdictTX: "tx", 9: "verdict_9"} {
		if got := v.String(); got != want {
			t.Errorf("verdict %d is called %q, want %q", v, got, want)
		}
	}
	if ModeAuto.String() != "auto" || ModeNative.String() != "native" || ModeGeneric.String() != "generic" || Mode(9).String() != "mode_9" {
		t.Error("names of modes")
	}
}

// README.md has a row for each reason, and no other.
func TestREADMEListsTheReasons(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(b), "## Reasons")
	if !ok {
		t.Fatal("README.md has no section Reasons")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var documented, want []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)`").FindAllStringSubmatch(section, -1) {
		documented = append(documented, m[1])
	}
	for _, r := range Reasons() {
		want = append(want, r.String())
	}
	if !slices.Equal(documented, want) {
		t.Errorf("README.md lists\n%q\nthe program has\n%q", documented, want)
	}
}

// The kernel gives a program up after a million verified instructions, and loading one takes time in proportion. A change that makes
// the verifier walk far more paths than before is noticed here.
func TestInstructionCeiling(t *testing.T) {
	// The translator brought 1200 instructions in the object and 11,000 verified ones: its steps are global functions, so that the walk
	// over TCP options is looked at once. More than the ceilings means that something has multiplied.
	// Linux 6.1 looks at far more than those after it (docs/kernels.md).
	const objectCeiling, tableCeiling, verifiedCeiling = 8_000, 10_000, 180_000
	spec, err := loadSteer()
	if err != nil {
		t.Fatal(err)
	}
	n := len(spec.Programs["steer"].Instructions)
	t.Logf("%d instructions in the object", n)
	if n > objectCeiling {
		t.Errorf("%d instructions, the ceiling is %d", n, objectCeiling)
	}
	for _, o := range []struct {
		name   string
		change func(*Options)
	}{
		{"defaults", nil},
		{"everything dropped", func(o *Options) {
			o.Midstream, o.OnExit, o.Malformed, o.Default = MidstreamDrop, OnExitClosed, MalformedDrop, DefaultPass
		}},
		{"inspect", func(o *Options) { o.Midstream = MidstreamInspect }},
	} {
		info, err := newRig(t, o.change).ports[0].prog.Info()
		if err != nil {
			t.Fatal(err)
		}
		verified, _ := info.VerifiedInstructions()
		t.Logf("%s: %d verified instructions", o.name, verified)
		if verified == 0 || verified > verifiedCeiling {
			t.Errorf("%s: %d verified instructions, the ceiling is %d", o.name, verified, verifiedCeiling)
		}
	}
	table := &newRig(t, nil).table
	for name, p := range map[string]*ebpf.Program{"offload_flows": table.offload, "find_idle_flows": table.find, "end_flows": table.end} {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		verified, _ := info.VerifiedInstructions()
		t.Logf("%s: %d verified instructions", name, verified)
		if verified == 0 || verified > tableCeiling {
			t.Errorf("%s: %d verified instructions, the ceiling is %d", name, verified, tableCeiling)
		}
	}
}

// The hash is the same in C and in Go, in both directions, and spreads.
func TestFlowHash(t *testing.T) {
	fixed := FlowKey{
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("192.0.2.80"), SrcPort: 40000, DstPort: 80, Proto: ProtoTCP,
	}
	if got, want := FlowHash(fixed), uint32(0xc53c1289); got != want {
		t.Errorf("hash of %v is %#x, want %#x: what it is made of has changed", fixed, got, want)
	}
	r := newRig(t, func(o *Options) { o.Rules, o.Midstream = all, MidstreamInspect })
	rnd := rand.New(rand.NewPCG(1, 2))
	buckets := make([]int, 8)
	for i := range 400 {
		packet, l4 := tcp4(t, "A", 0), 34
		if i%2 == 1 {
			packet, l4 = tcp6(t, "A", 0), 54
		}
		addrs := packet[26:34]
		if i%2 == 1 {
			addrs = packet[22:54]
		}
		for j := range addrs {
			addrs[j] = byte(rnd.Uint32())
		}
		copy(packet[l4:], []byte{byte(rnd.Uint32()), byte(rnd.Uint32()), byte(rnd.Uint32()), byte(rnd.Uint32())})
		o := r.run(0, packet)
		k := flowOf(t, packet)
		if o.hash != FlowHash(k) || o.hash != FlowHash(k.Reverse()) {
			t.Fatalf("%+v: the program says %#x, Go %#x and in reverse %#x", k, o.hash, FlowHash(k), FlowHash(k.Reverse()))
		}
		buckets[o.hash%8]++
	}
	for i, n := range buckets {
		if n < 25 || n > 80 {
			t.Errorf("bucket %d of 8 has %d of 400 flows", i, n)
		}
	}
}

// Where the pinned compiler is at hand, the object is made again and is the same to the byte.
func TestObjectIsReproducible(t *testing.T) {
	b, err := os.ReadFile("gen.go")
	if err != nil {
		t.Fatal(err)
	}
	_, line, ok := strings.Cut(string(b), "//go:generate go run ")
	line, _, _ = strings.Cut(line, "\n")
	words := strings.Fields(line)
	if !ok || len(words) < 2 {
		t.Fatal("gen.go has no line that runs bpf2go")
	}
	for _, tool := range []string{"clang-14", "llvm-strip-14"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the object is not made again here: %v", err)
		}
	}
	dir := t.TempDir()
	cmd := exec.Command("go", append([]string{"run", words[0], "-output-dir", dir, "-go-package", "bpf"}, words[1:]...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"steer_bpfel.o", "steer_bpfel.go"} {
		committed, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		made, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(committed, made) {
			t.Errorf("%s differs from what its sources make now; mend: go generate ./bpf", name)
		}
	}
}
