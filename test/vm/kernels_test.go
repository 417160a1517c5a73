package vm

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	update = flag.Bool("update", false, "write the tables in docs")
	only   = flag.String("rows", rows, "tests of ./bpf to run on each kernel")
)

// series are the kernels of the matrix. The first one is too old, and shows what
// a user of such a kernel is told; see docs/kernels.md.
var series = []struct {
	name string
	old  bool
}{{"5.10", true}, {"6.1", false}, {"6.12", false}, {"6.18", false}, {"newest", false}}

// rows are the tests of ./bpf that put packets through the loaded programs
// (BPF_PROG_TEST_RUN) or ask the kernel what it can do. Those about restarts, those
// that wait, and those with tens of thousands of packets prove nothing more here and
// take minutes under emulation.
const rows = "^Test(InstructionCeiling|Fragments|ICMPErrors|Rules|ManyRules|Midstream|NobodyListens|DefaultAction|" +
	"FlowOfOneConnection|ForgedEnds|HalfAFlowIsMended|SYNReopensAFlow|FlowTableFull|NoMetadata|" +
	"Offload|OffloadIsBothOrNone|RewrittenFlow|RewrittenFlowEnds|StaleRewrite|RewrittenFragments|Cookies|CookieBad|WithoutCookieHelpers|" +
	"AttachFallsBackToGeneric|BridgeConnectsClientAndServer|SocketGetsPacketsWithMetadata|MakeHeadroom)$"

// report is what one kernel makes of the programs.
type report struct {
	release        string
	passed, failed int
	skipped        []string
	verified       map[string]int // program or options: instructions the verifier looked at
	out            string
}

var (
	testLine     = regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (\w+)`)
	verifiedLine = regexp.MustCompile(`(?m)^\s+object_test\.go:\d+: ([a-z_ ]+): (\d+) verified instructions`)
)

// TestKernels loads the XDP programs on each kernel, puts packets through them
// and reads back how many instructions the verifier looked at; the ceilings are
// those of TestInstructionCeiling in ./bpf.
func TestKernels(t *testing.T) {
	need(t, "qemu")
	files := programs(t)
	files["bpf.test"] = build(t, t.TempDir(), "bpf.test", "test", "-c", "../../bpf")
	delete(files, "penstock")
	all := make([]*report, len(series))
	t.Cleanup(func() { // after all of them
		var reports []report
		for _, r := range all {
			if r != nil {
				reports = append(reports, *r)
			}
		}
		if t.Failed() || len(reports) == 0 {
			return
		}
		table := matrix(reports)
		t.Logf("\n%s", table)
		if *update {
			writeTable(t, "../../docs/kernels.md", table)
		}
	})
	for i, s := range slices.Backward(series) { // the newest takes longest
		t.Run(s.name, func(t *testing.T) {
			t.Parallel() // one at a time keeps one processor busy
			all[i] = onKernel(t, s.name, s.old, files)
		})
	}
}

// onKernel runs the rows on one kernel. Of one that is too old there is no report.
func onKernel(t *testing.T, name string, old bool, files map[string]string) *report {
	m := boot(t, options{kernel: name, files: files, cpus: 2})
	run := *only
	if old {
		run = "^TestInstructionCeiling$"
	}
	out, err := m.try(15*time.Minute, request{
		Args: []string{"/bpf.test", "-test.v", "-test.run=" + run}, Env: []string{"REQUIRE_PRIV=1"},
	})
	r := read(out)
	r.release = m.release
	t.Logf("%d tests pass, %d fail, skipped: %q, verified instructions: %v", r.passed, r.failed, r.skipped, r.verified)
	if old {
		if err == nil || !strings.Contains(out, "mend:") {
			t.Errorf("%s is too old, but its user is not told so: %v\n%s", m.release, err, out)
		}
		return nil
	}
	if err != nil || r.failed > 0 || r.passed < 20 && *only == rows || len(r.verified) < 6 {
		t.Fatalf("%s: %v\n%s", m.release, err, out)
	}
	return &r
}

func read(out string) report {
	r := report{verified: map[string]int{}, out: out}
	for _, m := range testLine.FindAllStringSubmatch(out, -1) {
		switch m[1] {
		case "PASS":
			r.passed++
		case "FAIL":
			r.failed++
		default:
			r.skipped = append(r.skipped, m[2])
		}
	}
	for _, m := range verifiedLine.FindAllStringSubmatch(out, -1) {
		r.verified[m[1]], _ = strconv.Atoi(m[2]) // digits
	}
	return r
}

// matrix is the table of docs/kernels.md.
func matrix(reports []report) string {
	var b strings.Builder
	columns := []string{"defaults", "everything dropped", "inspect", "offload_flows", "find_idle_flows", "end_flows"}
	fmt.Fprintf(&b, "| kernel | tests passed | %s |\n|---|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, r := range reports {
		fmt.Fprintf(&b, "| %s | %d", strings.TrimSuffix(r.release, "-amd64"), r.passed)
		for _, c := range columns {
			fmt.Fprintf(&b, " | %d", r.verified[c])
		}
		b.WriteString(" |\n")
	}
	return b.String()
}

// writeTable replaces what stands between the markers of a page.
func writeTable(t *testing.T, page, table string) {
	t.Helper()
	page = filepath.FromSlash(page)
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	const from, to = "<!-- make test-vm: begin -->\n", "<!-- end -->"
	before, rest, ok := strings.Cut(string(b), from)
	_, after, also := strings.Cut(rest, to)
	if !ok || !also {
		t.Fatalf("%s has no markers for the table", page)
	}
	if err := os.WriteFile(page, []byte(before+from+table+to+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
