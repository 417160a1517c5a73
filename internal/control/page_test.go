package control

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"penstock/internal/latency"
	"penstock/pipeline"
)

// movie is an appliance that is one second older at each look.
type movie struct {
	*source
	mu     sync.Mutex
	scene  string // "load", "empty" or "overload"
	second uint64
	gone   uint64 // from this second on there is no answer; 0: never
}

func (m *movie) now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(time.Duration(m.second) * time.Second)
}

func (m *movie) Tops() []pipeline.TopStats {
	if m.scene == "empty" {
		return []pipeline.TopStats{{Chain: "web", Stage: "http", Name: "hosts"}}
	}
	t := pipeline.TopStats{Chain: "web", Stage: "http", Name: "hosts"}
	if m.scene == "tour" { // names that a manual may show
		for i, h := range []string{"www.example.com", "api.example.net", "cdn.example.org", "mail.example.com", "static.example.net", "login.example.com"} {
			t.Entries = append(t.Entries, pipeline.TopEntry{Key: h, Count: 90000 / uint64(i*i+1)})
		}
		return []pipeline.TopStats{t}
	}
	for i, h := range []string{"www.example.com", "<img src=x onerror=document.title='broken'>", "api.example.net", "cdn.example.org",
		strings.Repeat("long.", 40) + "example", "\u202ertl.example", "bad\xffbytes.example", "</script><script>document.title='broken'</script>"} {
		t.Entries = append(t.Entries, pipeline.TopEntry{Key: h, Count: 90000 / uint64(i*i+1)})
	}
	return []pipeline.TopStats{t}
}

func (m *movie) Sample() Status {
	m.mu.Lock()
	m.second++
	n := m.second
	m.mu.Unlock()
	s := Status{
		Name: "edge-1", Version: "v1.0", Mode: "bridge", OnExit: "open", PID: 7, UptimeSeconds: 86400 + float64(n),
		Frames: Frames{Total: 16384, Free: 12100, InFlight: 4284, Size: 2048}, Flows: FlowCounts{Limit: 131072},
		Totals: pipeline.Totals{Dropped: map[string]uint64{}},
	}
	busy := uint64(1)
	if m.scene == "empty" {
		busy = 0
	}
	wave := func(base, amp uint64) uint64 { // what has come in n seconds
		var sum uint64
		for i := range n {
			sum += base + amp*((i*i*7+i*3)%13)/13 + amp*(i%40)/40
		}
		return busy * sum
	}
	rx := func(used int) []pipeline.RingStats {
		return []pipeline.RingStats{{Name: "rx", Used: used, Size: 2048}, {Name: "tx", Used: 31 * int(busy), Size: 2048}, {Name: "fill", Used: 1024, Size: 2048}}
	}
	for i, name := range []string{"lan", "wan"} {
		k := uint64(1 + 3*i)
		p := Port{Name: name, Interface: fmt.Sprintf("eth%d", i+1), XDP: "native", LinkUp: true, Verdicts: map[string]map[string]Count{}}
		if busy > 0 {
			p.Verdicts["peer"] = map[string]Count{"flow_offloaded": {wave(210_000*k, 60_000), wave(210_000*k, 60_000) * 640}, "no_rule": {wave(800, 100), wave(800, 100) * 90}}
			p.Verdicts["socket"] = map[string]Count{"flow_known": {wave(30_000, 9000), wave(30_000, 9000) * 700}}
			p.Verdicts["drop"] = map[string]Count{"gate_denied": {wave(400, 300), wave(400, 300) * 60}, "gate_rate_syns": {wave(40, 20), wave(40, 20) * 60}}
		}
		for q := range 2 {
			used := 40 * int(busy)
			extra := map[string]uint64{"rx_ring_full": 12 * uint64(i)}
			if m.scene == "overload" && i == 1 {
				used, extra["rx_ring_full"] = 2040, wave(12_000, 3000)
			}
			p.Queues = append(p.Queues, Queue{PortInfo: pipeline.PortInfo{Name: name, Queue: q, Mode: "zero_copy"}, PortStats: pipeline.PortStats{Rings: rx(used), Extra: extra}})
		}
		s.Ports = append(s.Ports, p)
	}
	histogram := func(name, model string, bounds []float64, counts []uint64, sum float64) pipeline.HistogramStats {
		for i := range counts {
			counts[i] *= busy * n
		}
		return pipeline.HistogramStats{Name: name, Bounds: bounds, Counts: counts, Sum: sum * float64(busy*n), Labels: []pipeline.Label{{Name: "gen_ai_request_model", Value: model}}}
	}
	web := Chain{Depth: "terminate", Why: "http: its configuration refuses", Flows: map[string]int{"terminate": 1840, "offload": 96_200, "drop": 310}}
	web.ChainStats = pipeline.ChainStats{Name: "web", Packets: wave(24_000, 8000), Bytes: wave(24_000, 8000) * 700, Stages: []pipeline.StageStats{
		{Kind: "acl", Packets: wave(24_000, 8000), Dropped: wave(30, 10), TimedPackets: wave(24_000, 8000) / 64, TimedNanoseconds: wave(24_000, 8000) / 64 * 31},
		{Kind: "tcp", Packets: wave(23_970, 8000), TimedPackets: wave(23_970, 8000) / 64, TimedNanoseconds: wave(23_970, 8000) / 64 * 1240, Counters: map[string]uint64{"flows_active": 1840 * busy, "accepted": wave(900, 100)}},
		{Kind: "http", Counters: map[string]uint64{"requests": wave(5000, 900), "denied": wave(3, 1)}},
	}}
	llm := Chain{Depth: "inspect", Why: "llm: only observes", Flows: map[string]int{"inspect": 420}}
	llm.ChainStats = pipeline.ChainStats{Name: "models", Packets: wave(6000, 900), Bytes: wave(6000, 900) * 500, Stages: []pipeline.StageStats{
		{Kind: "tcp", Packets: wave(6000, 900), TimedPackets: wave(6000, 900) / 64, TimedNanoseconds: wave(6000, 900) / 64 * 410, Counters: map[string]uint64{"flows_active": 420 * busy}},
		{Kind: "llm", Counters: map[string]uint64{"requests": wave(30, 9)}},
	}}
	models := []string{"llama-3.3-70b", "gpt-5-mini", "<script>alert(1)</script>"}
	if m.scene == "tour" {
		models = models[:2]
	}
	for i, model := range models {
		k := uint64(9 - 3*i)
		llm.Stages[1].Histograms = append(llm.Stages[1].Histograms,
			histogram("gen_ai_server_request_duration_seconds", model, []float64{.1, .5, 1, 2, 5, 10, 20}, []uint64{0, 2 * k, 5 * k, 9 * k, 4 * k, k, 0, 0}, 9),
			histogram("gen_ai_server_time_to_first_token_seconds", model, []float64{.01, .05, .1, .25, .5, 1, 2}, []uint64{0, k, 6 * k, 8 * k, 3 * k, 1, 0, 0}, 3),
			histogram("gen_ai_client_token_usage", model, []float64{100, 1000}, []uint64{3 * k, 4 * k, 1}, 5000))
	}
	s.Chains = []Chain{web, llm}
	if busy > 0 {
		s.Flows.Steered, s.Flows.Offloaded, s.Flows.Terminated = 98_770, 96_510, 1840
		s.Totals = pipeline.Totals{Packets: wave(60_000, 18_000), Dropped: map[string]uint64{"acl_denied": wave(30, 10), "tx_full": 3}}
		s.Workers = []pipeline.WorkerStats{{OffloadTimes: latency.Snapshot{Count: 100, Buckets: []latency.Bucket{{Most: 9 * time.Microsecond, Count: 40 * n}, {Most: 19 * time.Microsecond, Count: 50 * n}, {Most: 90 * time.Microsecond, Count: 10 * n}}}}}
	} else {
		for i := range s.Chains {
			s.Chains[i].Flows = nil
		}
	}
	if m.scene == "overload" {
		s.Warnings = []string{`port "wan": the link of eth2 is down`}
	}
	return s
}

// show serves a scene as the appliance serves itself.
func show(t *testing.T, scene string, gone uint64) string {
	t.Helper()
	m := &movie{source: example(), scene: scene, gone: gone}
	mux := http.NewServeMux()
	pageHandlers(mux, m, m.now)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		over := m.gone > 0 && m.second >= m.gone && r.URL.Path != "/"
		m.mu.Unlock()
		if over {
			panic(http.ErrAbortHandler) // as a process that has died
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestPageHeaders(t *testing.T) {
	url := show(t, "load", 0)
	for path, want := range map[string]string{"/": "text/html; charset=utf-8", "/live.json": "application/json"} {
		resp, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if got := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || got != want || len(body) < 1000 {
			t.Errorf("%s: %s, %s, %d bytes", path, resp.Status, got, len(body))
		}
		csp := resp.Header.Get("Content-Security-Policy")
		for _, part := range []string{"default-src 'none'", "script-src 'sha256-", "style-src 'sha256-", "connect-src 'self'", "frame-ancestors 'none'"} {
			if !strings.Contains(csp, part) {
				t.Errorf("%s: the policy has no %s: %s", path, part, csp)
			}
		}
		if resp.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s may be sniffed", path)
		}
	}
	for _, bad := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://", "https://", " onclick", " style="} {
		if strings.Contains(strings.ReplaceAll(page, "http://www.w3.org/2000/svg", ""), bad) {
			t.Errorf("the page has %q in it", bad)
		}
	}
}

// chromium runs a headless browser on a page for some seconds of virtual time.
func chromium(t *testing.T, url string, seconds int, more ...string) string {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("REQUIRE_BROWSER") == "1" {
			t.Fatalf("%v; apt-get install chromium", err)
		}
		t.Skipf("CHROMIUM IS MISSING: the page is not tested in a browser: %v; apt-get install chromium", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--user-data-dir=" + t.TempDir(), "--hide-scrollbars", "--enable-logging=stderr",
		fmt.Sprintf("--virtual-time-budget=%d", 1000*seconds)}, append(more, url)...)...)
	var out, log strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &log
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		t.Fatalf("chromium: %v\n%s", err, log.String())
	}
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "CONSOLE") && !strings.Contains(line, "ERR_EMPTY_RESPONSE") {
			t.Errorf("the browser complains: %s", line)
		}
	}
	return out.String()
}

// TestPageInBrowser: what a browser makes of the page in each state.
func TestPageInBrowser(t *testing.T) {
	for _, row := range []struct { // at once: each waits for its browser to start
		scene     string
		gone      uint64
		want, not []string
	}{
		{"load", 0, []string{">live<", "edge-1", "gate_denied", "www.example.com", "&lt;img src=x onerror", "llama-3.3-70b", `\u202ertl.example`, "\u2026</td>", "Release of a flow to XDP", ">offload<", "1.2\u202fµs", "<path d=\"M"},
			[]string{"<img", "alert(1)</script>", "NaN", "undefined", "Infinity", "[object", ">broken"}},
		{"empty", 0, []string{">live<", "No packets have come in yet", "Nothing has been dropped", "No flow is steered", "XDP has seen no packet yet", "No request and no TLS hello"}, []string{"NaN", "undefined", "Infinity"}},
		{"overload", 0, []string{">overload<", "the worker is too slow for what arrives", "the link of eth2 is down"}, []string{"NaN", "undefined"}},
		{"load", 4, []string{">no answer<", "No answer from the appliance since ", "Asked again every second", "www.example.com"}, []string{"NaN", "undefined"}},
	} {
		t.Run(fmt.Sprintf("%s-%d", row.scene, row.gone), func(t *testing.T) {
			t.Parallel()
			dom := chromium(t, show(t, row.scene, row.gone), 8, "--dump-dom")
			_, body, _ := strings.Cut(dom, "<body")
			before, _, _ := strings.Cut(body, "<script>")
			for _, want := range row.want {
				if !strings.Contains(before, want) {
					t.Errorf("no %q on the page", want)
				}
			}
			for _, not := range row.not {
				if strings.Contains(before, not) {
					t.Errorf("%q on the page", not)
				}
			}
			if strings.Contains(dom, "<title>broken") || !strings.Contains(dom, "</html>") {
				t.Errorf("a name was taken for markup, or the page is cut:\n%.300s", dom)
			}
			if t.Failed() {
				t.Logf("%.6000s", before)
			}
		})
	}
}

// TestScreenshots makes pictures to look at, where PAGE_SHOTS names a directory.
func TestScreenshots(t *testing.T) {
	dir := os.Getenv("PAGE_SHOTS")
	if dir == "" {
		t.Skip("PAGE_SHOTS names no directory for pictures of the page")
	}
	for _, row := range []struct {
		name, scene, size string
		gone              uint64
		dark              bool
	}{
		{"load-light", "load", "1440,1250", 0, false}, {"load-dark", "load", "1440,1250", 0, true}, {"empty-light", "empty", "1440,900", 0, false},
		{"tour", "tour", "1360,860", 0, false},
		{"gone-dark", "load", "1440,900", 90, true}, {"over-light", "overload", "1440,1000", 0, false}, {"narrow-light", "load", "500,2600", 0, false},
	} {
		scheme := "--blink-settings=preferredColorScheme=1"
		if row.dark {
			scheme = "--blink-settings=preferredColorScheme=0"
		}
		chromium(t, show(t, row.scene, row.gone), 100, "--screenshot="+filepath.Join(dir, row.name+".png"), "--window-size="+row.size, scheme)
	}
}
