package main

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestSpreadOf(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want spread
	}{
		{nil, spread{}},
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{5, 1, 2}, spread{2, 1, 5}},
		{[]float64{4, 1, 2, 10}, spread{3, 1, 10}},
	} {
		if got := spreadOf(c.in); got != c.want {
			t.Errorf("spreadOf(%v) = %+v, want %+v", c.in, got, c.want)
		}
	}
}

func sample(gateway string, round int, rate float64) result {
	return result{Gateway: gateway, Workload: "keepalive", Round: round, Work: rate, Seconds: 1, CPUSeconds: 1, PerCPUSecond: rate}
}

func TestRatioComparesWithinARound(t *testing.T) {
	failed := sample("forward", 3, 1)
	failed.Failed = "it broke"
	r := report{Rounds: 4, Results: []result{
		// The machine is twice as fast in the second round: the ratio does not see it.
		sample("forward", 0, 200), sample(yardstick, 0, 100),
		sample("forward", 1, 400), sample(yardstick, 1, 200),
		sample("forward", 2, 300), // nothing to compare with
		failed, sample(yardstick, 3, 100),
	}}
	got, ok := r.ratio("forward", yardstick, "keepalive")
	if want := (spread{2, 2, 2}); !ok || got != want {
		t.Errorf("ratio = %+v, %v, want %+v", got, ok, want)
	}
	if _, ok := r.ratio("forward", limit, "keepalive"); ok {
		t.Error("a ratio to a gateway that did not run")
	}
	if f := r.failures(); len(f) != 1 || !strings.Contains(f[0], "it broke") {
		t.Errorf("failures = %q", f)
	}
}

func TestFloors(t *testing.T) {
	good := []xskLine{{"64B", "penstock", 900, 900, 1}, {"64B", "asavie", 500, 500, 0.6}, {"64B", "gvisor", 450, 450, 0.5}}
	slow := append([]xskLine{{"1500B", "asavie", 500, 500, 1.01}}, good...)
	for _, c := range []struct {
		name   string
		r      report
		held   []bool
		passed bool
	}{
		{"both hold", report{Results: []result{sample("forward", 0, 120), sample(yardstick, 0, 100)}, XSK: &xskResults{Lines: good}}, []bool{true, true}, true},
		{"forward too slow", report{Results: []result{sample("forward", 0, 119), sample(yardstick, 0, 100)}}, []bool{false}, false},
		{"a peer of xsk is faster", report{XSK: &xskResults{Lines: slow}}, []bool{false}, false},
		{"xsk said nothing", report{XSK: &xskResults{Failed: "no result"}}, []bool{false}, false},
		{"nothing to judge", report{Results: []result{sample("redirect", 0, 119)}}, nil, true},
		{"something failed", report{Results: []result{{Gateway: "redirect", Workload: "close", Failed: "timeout"}}}, nil, false},
		{"something is not installed", report{Results: []result{{Gateway: "nginx-stream", Workload: "close", Failed: "no nginx", Absent: true}}}, nil, true},
	} {
		c.r.Floors = c.r.floors()
		var held []bool
		for _, f := range c.r.Floors {
			held = append(held, f.Held)
		}
		if len(held) != len(c.held) {
			t.Errorf("%s: floors %+v, want %v", c.name, c.r.Floors, c.held)
			continue
		}
		for i := range held {
			if held[i] != c.held[i] {
				t.Errorf("%s: floor %+v, want %v", c.name, c.r.Floors[i], c.held[i])
			}
		}
		if got := c.r.passed(); got != c.passed {
			t.Errorf("%s: passed %v, want %v", c.name, got, c.passed)
		}
	}
}

func TestPrint(t *testing.T) {
	failed := sample("terminate", 1, 0)
	failed.Failed = "wrk counts errors"
	absent := result{Gateway: "nginx-stream", Workload: "keepalive", Failed: "not installed: nginx", Absent: true}
	r := report{Rounds: 2, Seconds: 2, Results: []result{
		sample(limit, 0, 300e3), sample(limit, 1, 310e3), sample("terminate", 0, 30e3), failed, sample(yardstick, 0, 60e3), sample(yardstick, 1, 62e3), absent,
	}}
	r.Floors = r.floors()
	var out bytes.Buffer
	r.print(&out)
	for _, want := range []string{
		"305k [300k-310k]", "0.50 [0.50-0.50]", "1 of 2 rounds failed", "absent: not installed: nginx",
		"FAILED  terminate, keepalive, round 2: wrk counts errors", "veth pairs (not a NIC",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report has no %q:\n%s", want, out.String())
		}
	}
}

func TestMarkdown(t *testing.T) {
	r := report{Rounds: 1, Results: []result{
		sample(limit, 0, 300e3), sample(yardstick, 0, 60e3), {Gateway: "nginx-stream", Workload: "keepalive", Failed: "not installed: nginx", Absent: true},
		{Gateway: limit, Workload: "pingpong", Work: 10, Seconds: 1, CPUSeconds: 1, PerCPUSecond: 10, P50: 50, P99: 90},
	}, XSK: &xskResults{Lines: []xskLine{{"64B", "penstock", 900, 900, 1}}}}
	var out bytes.Buffer
	r.markdown(&out)
	for _, want := range []string{
		"| `redirect` | 300k [300k-300k] | 5.00 [5.00-5.00] | 1.00 [1.00-1.00] | 100 % | 0 [0-0] |",
		"| `nginx-stream` | absent: not installed: nginx | | | | |",
		"| `redirect` | 10.00 [10.00-10.00] | - | 50 [50-50] | 90 [90-90] |",
		"| penstock | 64B | 900 | 1.00 |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestChoose(t *testing.T) {
	got, err := choose(workloads(), "upload, keepalive")
	if err != nil || strings.Join(names(got), " ") != "keepalive upload" {
		t.Errorf("choose = %v, %v", names(got), err)
	}
	if _, err := choose(gateways(), "haproxy"); err == nil || !strings.Contains(err.Error(), "haproxy-tcp") {
		t.Errorf("an unknown name: %v, want one that lists the known ones", err)
	}
}

func TestOptions(t *testing.T) {
	o, err := parseOptions([]string{"-quick", "-gateways", "forward"})
	if err != nil || o.rounds != 1 || o.seconds != 1 || len(o.gateways) != 1 || slices.ContainsFunc(o.workloads, func(w workload) bool { return w.asked }) || len(o.workloads) != 5 {
		t.Errorf("options %+v, %v", o, err)
	}
	for _, bad := range [][]string{{"-rounds", "0"}, {"-seconds", "900"}, {"keepalive"}, {"-workloads", "x"}} {
		if _, err := parseOptions(bad); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestParseXSK(t *testing.T) {
	got := parseXSK(`goos: linux
BenchmarkForward/64B/penstock-2         	       1	         0 ns/op	       941.2 kpkt/cpu-s	       930.1 kpkt/s	         1.000 of-penstock
BenchmarkForward/64B/asavie-2           	       1	         0 ns/op	       503.5 kpkt/cpu-s	       501.0 kpkt/s	         0.535 of-penstock
PASS
`)
	want := []xskLine{{"64B", "penstock", 941.2, 930.1, 1}, {"64B", "asavie", 503.5, 501, 0.535}}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestParseWrk(t *testing.T) {
	out := []byte("Running 1s test\n  1 threads\nRESULT {\"requests\":10,\"bytes\":2900,\"us\":1000000,\"connect\":0,\"read\":0,\"write\":0,\"status\":0,\"timeout\":0,\"p50\":51,\"p99\":80}\n")
	r, err := parseWrk(out)
	if err != nil || r.Requests != 10 || r.US != 1e6 || r.P50 != 51 || r.P99 != 80 {
		t.Fatalf("got %+v, %v", r, err)
	}
	for _, c := range []struct {
		size, conns int64
		change      func(*wrkResult)
		ok          bool
	}{
		{290, 1, func(*wrkResult) {}, true},
		{289, 1, func(*wrkResult) {}, true}, // ten whole ones and a part
		{291, 1, func(*wrkResult) {}, false},
		{200, 1, func(*wrkResult) {}, false},
		{290, 1, func(r *wrkResult) { r.Timeout = 1 }, false},
		{290, 1, func(r *wrkResult) { r.Status = 1 }, false},
		{290, 1, func(r *wrkResult) { r.Read = 1 }, false},
	} {
		x := r
		c.change(&x)
		if err := x.check(c.size, c.conns); (err == nil) != c.ok {
			t.Errorf("%+v, responses of %d bytes on %d connections: %v", x, c.size, c.conns, err)
		}
	}
	if _, err := parseWrk([]byte("wrk: no such host\n")); err == nil {
		t.Error("no error without a result")
	}
}

func TestParseRetransmits(t *testing.T) {
	text := "Ip: Forwarding\nIp: 1\nTcp: RtoAlgorithm RetransSegs InErrs\nTcp: 1 42 0\n"
	if n, err := parseRetransmits(text); err != nil || n != 42 {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := parseRetransmits("Tcp: RtoAlgorithm\nTcp: 1\n"); err == nil {
		t.Error("no error where the counter is missing")
	}
}

func TestAgainst(t *testing.T) {
	got := strings.Join(names(against(gateways()[:3], "/other")), " ")
	if got != "redirect offload offload@other forward forward@other" {
		t.Errorf("got %s", got)
	}
}

func TestBreakEven(t *testing.T) {
	ours, theirs := line{100e-6, 1e-9}, line{60e-6, 2e-9}
	var size, cost []float64
	for _, n := range tlsSizes {
		size, cost = append(size, float64(n)), append(cost, ours.at(float64(n)))
	}
	l, ok := fitLine(size, cost)
	if !ok || math.Abs(l.Connection/ours.Connection-1) > 1e-6 || math.Abs(l.Byte/ours.Byte-1) > 1e-6 {
		t.Errorf("fit %+v, want %+v", l, ours)
	}
	if n, ok := breakEven(ours, theirs); !ok || math.Abs(n-40e3) > 1 {
		t.Errorf("even at %v bytes, want 40000", n)
	}
	if n, ok := breakEven(line{50e-6, 1e-9}, theirs); !ok || n != 0 {
		t.Errorf("cheaper in all: from %v bytes on", n)
	}
	if _, ok := breakEven(theirs, ours); ok {
		t.Error("dearer with every byte, and even at some time")
	}
	if _, ok := fitLine(size[:1], cost); ok {
		t.Error("a line through one point")
	}
	var r report
	for _, n := range tlsSizes {
		for g, l := range map[string]line{"splice+tls": ours, tlsYardstick: theirs} {
			r.Results = append(r.Results, result{Gateway: g, Workload: tlsName(n), PerCPUSecond: 1 / l.at(float64(n))})
		}
	}
	var out bytes.Buffer
	r.breakEvens(&out)
	if want := "| `splice+tls` | 100.0 | 1024 | from 39 KiB on |"; !strings.Contains(out.String(), want) {
		t.Errorf("no %q in\n%s", want, out.String())
	}
}
