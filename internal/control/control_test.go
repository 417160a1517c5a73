package control

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"penstock/internal/latency"
	"penstock/pipeline"
)

// source is an appliance that stands still.
type source struct {
	denied    []DenyAdd
	s         Status
	flows     []Flow
	err       error
	handovers int
	reloads   []bool
	drains    []DrainAsk
	evicted   []Flow
	capturing capturing

	mu      sync.Mutex
	audited []Audit
}

func (s *source) Audited(a Audit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.audited = append(s.audited, a)
}

func (s *source) Status() Status { return s.s }
func (s *source) Sample() Status { return s.s }

func (s *source) Tops() []pipeline.TopStats {
	return []pipeline.TopStats{{Chain: "web", Stage: "http", Name: "hosts", Entries: []pipeline.TopEntry{{Key: "<b>a.example", Count: 7}}}}
}

func (s *source) Flows() ([]Flow, error) { return s.flows, s.err }

func (s *source) DenyAdd(a DenyAdd) (int, error) {
	s.denied = append(s.denied, a)
	return len(a.Prefixes), s.err
}

func (s *source) DenyDel(prefixes []netip.Prefix) error {
	s.denied = nil
	return s.err
}

func (s *source) DenyList() (list []Deny, err error) {
	for _, a := range s.denied {
		for _, p := range a.Prefixes {
			list = append(list, Deny{Prefix: p, Origin: "runtime", ExpiresSeconds: a.ForSeconds, Why: a.Why})
		}
	}
	return list, s.err
}

func (s *source) Evict(flows []Flow) (int, error) {
	s.evicted = append(s.evicted, flows...)
	return len(flows), s.err
}

func (s *source) Handover() (Handover, error) {
	s.handovers++
	return Handover{DrainSeconds: 1.5, Flows: Depths{Inspected: 3}}, s.err
}

func (s *source) Reload(dryRun bool) (Reload, error) {
	s.reloads = append(s.reloads, dryRun)
	return Reload{Config: "f", Applied: !dryRun, Changes: []Change{{What: "steer", Text: "steer"}}}, s.err
}

func (s *source) Drain(d DrainAsk) ([]Drain, error) {
	s.drains = append(s.drains, d)
	return s.Drains()
}

func (s *source) Drains() ([]Drain, error) {
	return []Drain{{Chain: "web", Drained: len(s.drains) > 0, Flows: Depths{Terminated: 2}}}, s.err
}

func example() *source {
	return &source{
		s: Status{
			Name: "test", Version: "v1", Mode: "bridge", OnExit: "open",
			Ports: []Port{{
				Name: "lan", Interface: "eth1", XDP: "native", LinkUp: true,
				Reasons:  map[string]Count{"flow_known": {Packets: 5, Bytes: 500}},
				Verdicts: map[string]map[string]Count{"socket": {"flow_known": {Packets: 5, Bytes: 500}}},
				Stalls:   map[string]uint64{"tx": 2},
				Queues: []Queue{{
					PortInfo:  pipeline.PortInfo{Name: "lan", Mode: "copy"},
					PortStats: pipeline.PortStats{RxPackets: 7, InFlight: 3, Extra: map[string]uint64{"kicks": 2}, Rings: []pipeline.RingStats{{Name: "rx", Used: 7, Size: 2048}}},
				}},
			}},
			Chains: []Chain{{Depth: "terminate", Flows: map[string]int{"terminate": 6, "offload": 4}, ChainStats: pipeline.ChainStats{
				Name: "web", Packets: 7, Stages: []pipeline.StageStats{{Kind: "tcp", Consumed: 7, Counters: map[string]uint64{"dials": 1, "flows_active": 6}, Gauges: map[string]bool{"flows_active": true}, TimedPackets: 5, TimedNanoseconds: 5000, Histograms: []pipeline.HistogramStats{
					{Name: "some_convention_seconds", Labels: []pipeline.Label{{Name: "model", Value: "m"}}, Bounds: []float64{0.5, 2}, Counts: []uint64{1, 2, 3}, Sum: 20.5},
				}}},
			}}},
			Totals:         pipeline.Totals{Packets: 9, Forwarded: 1, Consumed: 7, Dropped: map[string]uint64{"acl_denied": 1}},
			OffloadResults: map[string]uint64{"flow_gone": 2}, Router: map[string]uint64{"to_kernel": 1},
			Workers: []pipeline.WorkerStats{{Turns: 10, IdleTurns: 4, Totals: pipeline.Totals{Packets: 9, Forwarded: 1, Consumed: 7, Dropped: map[string]uint64{"acl_denied": 1}}, OffloadTimes: latency.Snapshot{
				Count: 3, Sum: 9 * time.Microsecond, Buckets: []latency.Bucket{{Most: 2 * time.Microsecond, Count: 2}, {Most: 7 * time.Microsecond, Count: 1}},
			}}},
			Records: []Record{{To: "stdout", Written: 3}},
			Exports: []Export{{Kind: "ipfix", To: "udp:192.0.2.9:4739", Sent: 3, Up: true}, {Kind: "otlp_traces", To: "http://192.0.2.9:4318", Skipped: 2}},
		},
		flows: []Flow{{Client: "10.0.0.1:1", Server: "10.0.0.2:80", Proto: "tcp", Depth: "terminate"}},
	}
}

func serve(t *testing.T, src Source) (path string, s *Server) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "dir", "control.sock")
	s, err := Serve(path, "127.0.0.1:0", src)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return path, s
}

func TestClient(t *testing.T) {
	src := example()
	path, _ := serve(t, src)
	c := NewClient(path)
	got, err := c.Status()
	src.s.Workers[0].OffloadTimes = latency.Snapshot{} // for metrics only
	src.s.Chains[0].Stages[0].Gauges = nil
	if err != nil || !reflect.DeepEqual(got, src.s) {
		t.Errorf("status: %v\ngot  %+v\nwant %+v", err, got, src.s)
	}
	flows, err := c.Flows()
	if err != nil || !reflect.DeepEqual(flows, src.flows) {
		t.Errorf("flows: %+v, %v", flows, err)
	}
	src.flows, src.err = nil, io.ErrUnexpectedEOF
	if _, err := c.Flows(); err == nil || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Errorf("an error of the appliance arrives as %v", err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("mode of the socket: %v, %v", fi.Mode(), err)
	}
}

func TestNobodyThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	if _, err := NewClient(path).Status(); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "is an appliance running") {
		t.Errorf("%v", err)
	}
}

func TestStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close() // as a process that was killed leaves it
	s, err := Serve(path, "", example())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(path, "", example()); err == nil || !strings.Contains(err.Error(), "another penstock") {
		t.Errorf("a socket that answers was taken over: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there after Close")
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(path, "", example()); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file was replaced: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	_, s := serve(t, example())
	resp, err := http.Get("http://" + s.MetricsAddr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v: %s", resp.Status, err, body)
	}
	for _, want := range []string{
		`penstock_worker_received_packets_total{worker="0"} 9`,
		`some_convention_seconds_bucket{chain="web",index="1",model="m",stage="tcp",le="2"} 3`,
		`some_convention_seconds_count{chain="web",index="1",model="m",stage="tcp"} 6`,
		`some_convention_seconds_sum{chain="web",index="1",model="m",stage="tcp"} 20.5`,
		`penstock_worker_ended_packets_total{end="consumed",worker="0"} 7`,
		`penstock_worker_dropped_packets_total{reason="acl_denied",worker="0"} 1`,
		`penstock_xdp_packets_total{port="lan",reason="flow_known",verdict="socket"} 5`,
		`penstock_queue_ring_used_slots{port="lan",queue="0",ring="rx"} 7`,
		`penstock_table_flows{chain="web",depth="offload"} 4`,
		`penstock_xdp_offloads_total{result="flow_gone"} 2`,
		`penstock_queue_received_packets_total{port="lan",queue="0"} 7`,
		`penstock_queue_events_total{event="kicks",port="lan",queue="0"} 2`,
		`penstock_stage_packets_total{chain="web",index="1",stage="tcp",verdict="consume"} 7`,
		`penstock_stage_events_total{chain="web",event="dials",index="1",stage="tcp"} 1`,
		`penstock_stage_held_units{chain="web",index="1",stage="tcp",what="flows_active"} 6`,
		`penstock_stack_terminated_flows{chain="web"} 6`,
		`penstock_stage_timed_seconds_total{chain="web",index="1",stage="tcp"} 5e-06`,
		`penstock_worker_turns_total{kind="busy",worker="0"} 6`,
		`penstock_worker_offload_seconds_bucket{worker="0",le="1e-06"} 0`,
		`penstock_worker_offload_seconds_bucket{worker="0",le="2e-06"} 2`,
		`penstock_worker_offload_seconds_bucket{worker="0",le="5e-06"} 2`,
		`penstock_worker_offload_seconds_bucket{worker="0",le="1e-05"} 3`,
		`penstock_worker_offload_seconds_sum{worker="0"} 9e-06`,
		`go_goroutines`,
	} {
		if !strings.Contains(string(body), want) {
			t.Errorf("no %s", want)
		}
	}
	for _, m := range Metrics() {
		if !strings.Contains(string(body), "# TYPE "+m.Name+" "+m.Kind+"\n") {
			t.Errorf("%s is not exported, or is no %s", m.Name, m.Kind)
		}
		if !metricName.MatchString(m.Name) {
			t.Errorf("%s is not penstock_<scope>_<noun>_<unit|total>", m.Name)
		}
	}
	for line := range strings.Lines(string(body)) {
		if name, ok := strings.CutPrefix(line, "# TYPE penstock_"); ok && !slices.ContainsFunc(Metrics(), func(m Metric) bool { return strings.HasPrefix("penstock_"+name, m.Name+" ") }) {
			t.Errorf("%q is exported and not described", line)
		}
	}
	problems, err := promlint.New(strings.NewReader(string(body))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "penstock_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// metricName is a scope, nouns and a unit, in that order.
var metricName = regexp.MustCompile(`^penstock_(appliance|port|xdp|table|stack|queue|worker|chain|stage|memory|router|record|export)(_[a-z]+)*_` +
	`(total|info|seconds|states?|flows|frames|slots|units|events)$`)

func TestMetricsAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	path := filepath.Join(t.TempDir(), "control.sock")
	_, err = Serve(path, l.Addr().String(), example())
	if err == nil || !strings.Contains(err.Error(), "set metrics in [appliance]") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the control socket is left behind")
	}
}

func TestHandover(t *testing.T) {
	src := example()
	path, _ := serve(t, src)
	if h, err := NewClient(path).Handover(); err != nil || h.DrainSeconds != 1.5 || h.Flows.InUserSpace() != 3 || src.handovers != 1 {
		t.Errorf("got %+v, %v, asked %d times", h, err, src.handovers)
	}
	src.err = errors.New("not now")
	if _, err := NewClient(path).Handover(); err == nil || !strings.Contains(err.Error(), "not now") {
		t.Errorf("got %v", err)
	}
}

func TestDeny(t *testing.T) {
	src := example()
	path, _ := serve(t, src)
	c := NewClient(path)
	want := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	if n, err := c.DenyAdd(DenyAdd{Prefixes: want, ForSeconds: 60, Why: "scan"}); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	list, err := c.DenyList()
	if err != nil || len(list) != 2 || list[1] != (Deny{Prefix: want[1], Origin: "runtime", ExpiresSeconds: 60, Why: "scan"}) {
		t.Errorf("%+v, %v", list, err)
	}
	if err := c.DenyDel(want); err != nil {
		t.Error(err)
	}
	if list, err := c.DenyList(); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	src.err = io.ErrUnexpectedEOF
	if _, err := c.DenyAdd(DenyAdd{Prefixes: want}); err == nil || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Errorf("an error of the appliance arrives as %v", err)
	}
}

func TestReload(t *testing.T) {
	src := example()
	path, _ := serve(t, src)
	c := NewClient(path)
	for _, dry := range []bool{true, false} {
		r, err := c.Reload(dry)
		if err != nil || r.Applied == dry || len(r.Changes) != 1 {
			t.Errorf("dry run %v: %+v, %v", dry, r, err)
		}
	}
	if !reflect.DeepEqual(src.reloads, []bool{true, false}) {
		t.Errorf("asked %v", src.reloads)
	}
	if d, err := c.Drains(); err != nil || len(d) != 1 || d[0].Drained {
		t.Errorf("%+v, %v", d, err)
	}
	asked := DrainAsk{Chain: "web", Undo: true}
	if d, err := c.Drain(asked); err != nil || len(d) != 1 || !d[0].Drained || d[0].Flows.Terminated != 2 || src.drains[0] != asked {
		t.Errorf("%+v, %v, asked %+v", d, err, src.drains)
	}
	src.err = errors.New("cannot")
	if _, err := c.Reload(false); err == nil || !strings.Contains(err.Error(), "cannot") {
		t.Errorf("got %v", err)
	}
}

// TestRoutes: the table has what it takes to be described, and nothing twice.
func TestRoutes(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range routes(example()) {
		id := r.method + " " + r.path
		if seen[id] || r.summary == "" || r.answer == nil || !strings.HasPrefix(r.path, "/v1/") {
			t.Errorf("%s: %+v", id, r)
		}
		seen[id] = true
	}
	for _, id := range []string{"GET /v1/status", "POST /v1/reload", "POST /v1/deny/add"} {
		if !seen[id] {
			t.Errorf("no %s", id)
		}
	}
}

func TestEvict(t *testing.T) {
	src := example()
	path, _ := serve(t, src)
	if n, err := NewClient(path).Evict(src.flows); n != 1 || err != nil || !reflect.DeepEqual(src.evicted, src.flows) {
		t.Errorf("%d evicted, %v: %+v", n, err, src.evicted)
	}
	src.err = errors.New("no such thing")
	if _, err := NewClient(path).Evict(nil); err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("got %v", err)
	}
}

// leaver closes its server as soon as it is asked to leave.
type leaver struct {
	*source
	server *Server
	closed chan error
}

func (l *leaver) Handover() (Handover, error) {
	go func() { l.closed <- l.server.Close() }()
	return l.source.Handover()
}

// TestHandoverIsAnswered: an appliance that leaves at once still says so.
func TestHandoverIsAnswered(t *testing.T) {
	for range 50 {
		l := &leaver{source: example(), closed: make(chan error, 1)}
		path := filepath.Join(t.TempDir(), "control.sock")
		var err error
		if l.server, err = Serve(path, "", l); err != nil {
			t.Fatal(err)
		}
		if wait, err := NewClient(path).Handover(); err != nil || wait.DrainSeconds != 1.5 {
			t.Fatalf("got %v, %v", wait, err)
		}
		if err := <-l.closed; err != nil {
			t.Fatal(err)
		}
	}
}
