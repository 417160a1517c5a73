package otlp

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	collectormetrics "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	collectortrace "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// collector decodes what arrives, and answers as it is told to.
type collector struct {
	t *testing.T

	mu       sync.Mutex
	answers  []func(http.ResponseWriter) // of the next requests; then 200
	requests int
	header   http.Header
	spans    []*tracepb.Span
	metrics  []*metricspb.Metric
	resource string
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests++
	c.header = r.Header.Clone()
	if len(c.answers) > 0 {
		answer := c.answers[0]
		c.answers = c.answers[1:]
		if answer != nil {
			answer(w)
			return
		}
	}
	switch r.URL.Path {
	case "/v1/traces":
		var m collectortrace.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &m); err != nil {
			c.t.Error(err)
		}
		for _, rs := range m.ResourceSpans {
			c.resource = fmt.Sprint(attributesOf(rs.Resource.Attributes))
			for _, ss := range rs.ScopeSpans {
				c.spans = append(c.spans, ss.Spans...)
			}
		}
	case "/v1/metrics":
		var m collectormetrics.ExportMetricsServiceRequest
		if err := proto.Unmarshal(body, &m); err != nil {
			c.t.Error(err)
		}
		c.metrics = nil
		for _, rm := range m.ResourceMetrics {
			for _, sm := range rm.ScopeMetrics {
				c.metrics = append(c.metrics, sm.Metrics...)
			}
		}
	default:
		c.t.Errorf("a request for %s", r.URL.Path)
	}
}

func (c *collector) count() (spans, requests int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.spans), c.requests
}

func attributesOf(list []*commonpb.KeyValue) map[string]any {
	m := map[string]any{}
	for _, kv := range list {
		switch v := kv.Value.Value.(type) {
		case *commonpb.AnyValue_StringValue:
			m[kv.Key] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			m[kv.Key] = v.IntValue
		case *commonpb.AnyValue_DoubleValue:
			m[kv.Key] = v.DoubleValue
		case *commonpb.AnyValue_ArrayValue:
			var all []string
			for _, e := range v.ArrayValue.Values {
				all = append(all, e.GetStringValue())
			}
			m[kv.Key] = all
		}
	}
	return m
}

var fast = Options{Linger: time.Millisecond, Retry: time.Millisecond}

func open(t *testing.T, spec Spec, o Options) (*Exporter, *lockedBuffer) {
	t.Helper()
	if spec.Timeout == 0 {
		spec.Timeout = 5 * time.Second
	}
	var log lockedBuffer
	e, err := Open(spec, Resource{Name: "edge", Version: "1.2", Host: "gw", Started: time.Unix(1000, 0)}, slog.New(slog.NewTextHandler(&log, nil)), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e, &log
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func eventually(t *testing.T, what string, fn func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !fn(); {
		if time.Now().After(end) {
			t.Fatalf("after 10 s still not: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func conserved(t *testing.T, e *Exporter, given uint64) {
	t.Helper()
	if s := e.Stats()[0]; s.Sent+s.Skipped+s.Dropped+s.Failed+s.Queued != given {
		t.Errorf("%d records were given, %+v", given, s)
	}
}

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// TestSpans: what becomes of records.
func TestSpans(t *testing.T) {
	ends := `"src_ip":"10.0.0.1","src_port":40000,"dest_ip":"192.0.2.2","dest_port":8080,"chain":"web",`
	for _, c := range []struct {
		name, event, record string
		span                string
		kind                tracepb.Span_SpanKind
		failed, child       bool
		seconds             float64
		want                map[string]any
		absent              string
	}{
		{"a request", "http", `{` + ends + `"action":"allowed","http":{"hostname":"www.example:8081","url":"/a/b?token=secret","http_method":"GET","protocol":"HTTP/1.1","status":200,"http_user_agent":"curl/8","request_bytes":80,"length":1234,"duration_seconds":0.25}}`,
			"GET", tracepb.Span_SPAN_KIND_SERVER, false, false, 0.25, map[string]any{
				"http.request.method": "GET", "url.path": "/a/b", "url.scheme": "http", "server.address": "www.example", "server.port": int64(8081),
				"http.response.status_code": int64(200), "user_agent.original": "curl/8", "network.protocol.name": "http", "network.protocol.version": "1.1",
				"http.request.size": int64(80), "http.response.size": int64(1234), "client.address": "10.0.0.1", "client.port": int64(40000),
				"network.local.address": "192.0.2.2", "network.local.port": int64(8080), "penstock.chain": "web", "penstock.action": "allowed",
			}, "error.type"},
		{"of a trace", "http", `{` + ends + `"http":{"http_method":"POST","url":"http://a.example/x","status":503,"traceparent":"` + parent + `"}}`,
			"POST", tracepb.Span_SPAN_KIND_SERVER, true, true, 0, map[string]any{"error.type": "503", "url.path": "/x", "server.address": "192.0.2.2", "server.port": int64(8080)}, "user_agent.original"},
		{"an odd method, refused", "http", `{` + ends + `"action":"denied","reason":"http_host_denied","rules":["a","b"],"http":{"hostname":"[2001:db8::1]","url":"/\ufffd","http_method":"BREW"}}`,
			"HTTP", tracepb.Span_SPAN_KIND_SERVER, true, false, 0, map[string]any{
				"http.request.method": "_OTHER", "http.request.method_original": "BREW", "error.type": "http_host_denied",
				"penstock.rules": []string{"a", "b"}, "server.address": "2001:db8::1",
			}, "http.response.status_code"},
		{"gRPC", "http", `{"http":{"http_method":"POST","url":"/p.S/M","protocol":"HTTP/2","status":200,"grpc":{"service":"p.S","method":"M","status":14}}}`,
			"p.S/M", tracepb.Span_SPAN_KIND_SERVER, true, false, 0, map[string]any{"rpc.system": "grpc", "rpc.service": "p.S", "rpc.method": "M", "rpc.grpc.status_code": int64(14), "error.type": "14", "network.protocol.version": "2"}, ""},
		{"a model", "llm", `{` + ends + `"llm":{"hostname":"api.example","path":"/v1/chat/completions","provider":"openai","operation":"chat","model":"m-1","response_model":"m-1-2026","status":200,"finish_reason":"stop","input_tokens":0,"output_tokens":42,"time_to_first_token_seconds":0.5,"duration_seconds":3}}`,
			"chat m-1", tracepb.Span_SPAN_KIND_CLIENT, false, false, 3, map[string]any{
				"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "m-1", "gen_ai.response.model": "m-1-2026",
				"gen_ai.usage.input_tokens": int64(0), "gen_ai.usage.output_tokens": int64(42), "gen_ai.response.finish_reasons": []string{"stop"},
				"server.address": "api.example", "penstock.llm.time_to_first_token_seconds": 0.5,
			}, "gen_ai.usage.cache_read.input_tokens"},
		{"a handshake", "tls", `{` + ends + `"tls":{"sni":"s.example","version":"TLS 1.3","cipher_suite":"0x1301","ja3":{"hash":"h"},"ja4":"j","alert":40}}`,
			"TLS handshake", tracepb.Span_SPAN_KIND_INTERNAL, true, false, 0, map[string]any{"server.address": "s.example", "tls.protocol.version": "1.3", "tls.client.ja3": "h", "error.type": "alert_40"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			col := &collector{t: t}
			srv := httptest.NewServer(col)
			defer srv.Close()
			e, _ := open(t, Spec{Endpoint: srv.URL, Headers: []string{"x-tenant: t 1"}, Events: Events, Sample: 1}, fast)
			e.Record(c.event, json.RawMessage(c.record))
			e.Record("flow", json.RawMessage(`{}`)) // becomes no span
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			if len(col.spans) != 1 {
				t.Fatalf("%d spans, %+v", len(col.spans), e.Stats())
			}
			s := col.spans[0]
			if s.Name != c.span || s.Kind != c.kind || (s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR) != c.failed {
				t.Errorf("%v", s)
			}
			if took := float64(s.EndTimeUnixNano-s.StartTimeUnixNano) / 1e9; took < c.seconds-1e-6 || took > c.seconds+1e-6 || time.Since(time.Unix(0, int64(s.EndTimeUnixNano))) > time.Minute {
				t.Errorf("it took %v s, want %v", took, c.seconds)
			}
			if trace := hex.EncodeToString(s.TraceId); len(s.TraceId) != 16 || len(s.SpanId) != 8 ||
				(trace == parent[3:35]) != c.child || (hex.EncodeToString(s.ParentSpanId) == parent[36:52]) != c.child {
				t.Errorf("trace %x, span %x, parent %x", s.TraceId, s.SpanId, s.ParentSpanId)
			}
			got := attributesOf(s.Attributes)
			for key, want := range c.want {
				if fmt.Sprintf("%T %v", got[key], got[key]) != fmt.Sprintf("%T %v", want, want) {
					t.Errorf("%s is %v, want %v", key, got[key], want)
				}
			}
			if v, there := got[c.absent]; there {
				t.Errorf("%s is %v, want none", c.absent, v)
			}
			if strings.Contains(fmt.Sprint(got), "secret") {
				t.Errorf("a query is sent: %v", got)
			}
			if col.resource != "map[host.name:gw service.instance.id:gw/edge service.name:penstock service.version:1.2]" || col.header.Get("X-Tenant") != "t 1" {
				t.Errorf("resource %s, header %v", col.resource, col.header)
			}
			conserved(t, e, 1)
		})
	}
}

// TestSampling: a request that says whether its trace is kept is followed.
func TestSampling(t *testing.T) {
	col := &collector{t: t}
	srv := httptest.NewServer(col)
	defer srv.Close()
	e, _ := open(t, Spec{Endpoint: srv.URL, Events: []string{"http"}, Sample: 0.25}, fast)
	const n = 2000
	for range n {
		e.Record("http", json.RawMessage(`{"http":{}}`))
	}
	eventually(t, "all are done with", func() bool { return e.Stats()[0].Queued == 0 })
	if s := e.Stats()[0]; s.Sent < n/5 || s.Sent > n*3/10 || s.Sent+s.Skipped != n {
		t.Errorf("%+v", s)
	}
	before := e.Stats()[0]
	for range 10 {
		e.Record("http", json.RawMessage(`{"http":{"traceparent":"`+parent+`"}}`))
		e.Record("http", json.RawMessage(`{"http":{"traceparent":"`+parent[:54]+`0"}}`))
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if s := e.Stats()[0]; s.Sent != before.Sent+10 || s.Skipped != before.Skipped+10 {
		t.Errorf("%+v, before %+v", s, before)
	}
	conserved(t, e, n+20)
}

func status(code int, header ...string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		for _, h := range header {
			name, v, _ := strings.Cut(h, ":")
			w.Header().Set(name, v)
		}
		w.WriteHeader(code)
	}
}

// TestAnswers: what is tried again, and what is not.
func TestAnswers(t *testing.T) {
	partial := func(w http.ResponseWriter) {
		b, _ := proto.Marshal(&collectortrace.ExportTraceServiceResponse{PartialSuccess: &collectortrace.ExportTracePartialSuccess{RejectedSpans: 1, ErrorMessage: "too old"}})
		_, _ = w.Write(b)
	}
	for name, c := range map[string]struct {
		answers      []func(http.ResponseWriter)
		sent, failed uint64
		requests     int
		text         string
	}{
		"busy":     {[]func(http.ResponseWriter){status(503), status(429, "Retry-After: 0"), status(502)}, 1, 0, 4, "502"},
		"wrong":    {[]func(http.ResponseWriter){status(400)}, 0, 1, 1, "400"},
		"a login":  {[]func(http.ResponseWriter){status(302, "Location: /login")}, 0, 1, 1, "302"},
		"partly":   {[]func(http.ResponseWriter){partial}, 0, 1, 1, "too old"},
		"nonsense": {[]func(http.ResponseWriter){func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>") }}, 1, 0, 1, ""},
	} {
		col := &collector{t: t, answers: c.answers}
		srv := httptest.NewServer(col)
		e, _ := open(t, Spec{Endpoint: srv.URL, Events: []string{"http"}, Sample: 1}, fast)
		e.Record("http", json.RawMessage(`{"http":{}}`))
		eventually(t, name, func() bool { return e.Stats()[0].Queued == 0 })
		s := e.Stats()[0]
		if _, n := col.count(); s.Sent != c.sent || s.Failed != c.failed || n != c.requests || !strings.Contains(s.Error, c.text) {
			t.Errorf("%s: %d requests, %+v", name, n, s)
		}
		srv.Close()
	}
}

// TestOutages: a collector that is absent at the start, one that restarts.
func TestOutages(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	col := &collector{t: t}
	e, log := open(t, Spec{Endpoint: "http://" + addr, Events: []string{"http"}, Sample: 1}, fast)
	given := 0
	for outage := 1; outage <= 3; outage++ {
		for range 5 {
			e.Record("http", json.RawMessage(`{"http":{}}`))
			given++
		}
		eventually(t, "the outage is noticed", func() bool { return !e.Stats()[0].Up })
		if s := e.Stats()[0]; !strings.Contains(s.Error, "refused") {
			t.Errorf("%+v", s)
		}
		if l, err = net.Listen("tcp", addr); err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: col}
		go func() { _ = srv.Serve(l) }()
		eventually(t, "all has arrived", func() bool { n, _ := col.count(); return n == given && e.Stats()[0].Up })
		_ = srv.Close()
		if n := log.count("not exported"); n != outage {
			t.Errorf("%d lines of %d outages", n, outage)
		}
	}
	eventually(t, "all is counted", func() bool { return e.Stats()[0].Sent == uint64(given) })
	conserved(t, e, uint64(given))
}

// TestSlow: nobody waits for a collector that does not answer, memory is
// bounded, and so is the end.
func TestSlow(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-release }))
	defer srv.Close()
	defer close(release)
	o := fast
	o.Queue, o.CloseWait = 64, 50*time.Millisecond
	e, _ := open(t, Spec{Endpoint: srv.URL, Events: []string{"http"}, Sample: 1, Timeout: 20 * time.Millisecond}, o)
	given := uint64(0)
	fields := any(json.RawMessage(`{"http":{}}`))
	eventually(t, "records are dropped and a request has timed out", func() bool {
		began := time.Now()
		for range 1000 {
			e.Record("http", fields)
		}
		given += 1000
		if d := time.Since(began); d > time.Second {
			t.Errorf("1000 records took %v", d)
		}
		s := e.Stats()[0]
		return s.Dropped > 0 && !s.Up && s.Queued <= 64+512
	})
	if allocs := testing.AllocsPerRun(100, func() { e.Record("http", fields) }); allocs != 0 {
		t.Errorf("Record allocates %v times", allocs)
	}
	given += 101
	began := time.Now()
	_ = e.Close()
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("close took %v", d)
	}
	e.Record("http", fields)
	conserved(t, e, given+1)
	if s := e.Stats()[0]; s.Queued != 0 {
		t.Errorf("%+v", s)
	}
}

// TestBadRecords: what cannot become a span is counted.
func TestBadRecords(t *testing.T) {
	col := &collector{t: t}
	srv := httptest.NewServer(col)
	defer srv.Close()
	e, _ := open(t, Spec{Endpoint: srv.URL, Events: []string{"http"}, Sample: 1}, fast)
	e.Record("http", func() {})
	e.Record("http", json.RawMessage(`{"http":7}`))
	e.Record("http", panics{})
	e.Record("http", map[string]any{"http": map[string]any{"url": "/" + strings.Repeat("\u00e9", 5000), "duration_seconds": -1}})
	_ = e.Close()
	if s := e.Stats()[0]; s.Failed != 3 || s.Sent != 1 {
		t.Errorf("%+v", s)
	}
	if path := attributesOf(col.spans[0].Attributes)["url.path"].(string); len(path) > maxText || len(path) < maxText-4 || strings.Contains(path, "\ufffd") {
		t.Errorf("a path of %d bytes ends in %q", len(path), path[len(path)-4:])
	}
}

type panics struct{}

func (panics) MarshalJSON() ([]byte, error) { panic("a bug") }

// TestMetrics: what is sent is what a scrape would see.
func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	counter := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "a_total", Help: "A."}, []string{"port"})
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "b_state"})
	hist := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "c_seconds", Buckets: []float64{1, 2}})
	sum := prometheus.NewSummary(prometheus.SummaryOpts{Name: "d_seconds", Objectives: map[float64]float64{0.5: 0.05}})
	reg.MustRegister(counter, gauge, hist, sum)
	counter.WithLabelValues("lan").Add(5)
	counter.WithLabelValues("wan").Add(7)
	gauge.Set(-2)
	for _, v := range []float64{0.5, 1.5, 1.6, 9} {
		hist.Observe(v)
	}
	sum.Observe(3)
	col := &collector{t: t, answers: []func(http.ResponseWriter){status(500), nil, status(503)}}
	srv := httptest.NewServer(col)
	defer srv.Close()
	e, _ := open(t, Spec{Endpoint: srv.URL + "/", Metrics: true, Interval: 10 * time.Millisecond}, fast)
	e.SendMetrics(reg)
	eventually(t, "two samples have arrived", func() bool { return e.Stats()[0].Sent >= 10 })
	e.StopMetrics()
	_, before := col.count()
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if _, n := col.count(); n != before {
		t.Error("metrics are sent after their end")
	}
	if s := e.Stats()[0]; s.Failed < 5 || s.Kind != "otlp_metrics" || s.Queued != 0 {
		t.Errorf("%+v", s)
	}
	if len(col.metrics) != 4 {
		t.Fatalf("%v", col.metrics)
	}
	a := col.metrics[0].GetSum()
	if col.metrics[0].Name != "a_total" || col.metrics[0].Description != "A." || !a.IsMonotonic || len(a.DataPoints) != 2 || a.AggregationTemporality != 2 {
		t.Fatalf("%v", col.metrics[0])
	}
	if p := a.DataPoints[1]; p.GetAsDouble() != 7 || attributesOf(p.Attributes)["port"] != "wan" || p.StartTimeUnixNano != 1000e9 || p.TimeUnixNano < 1000e9 {
		t.Errorf("%v", p)
	}
	if p := col.metrics[1].GetGauge().DataPoints[0]; p.GetAsDouble() != -2 {
		t.Errorf("%v", p)
	}
	if p := col.metrics[2].GetHistogram().DataPoints[0]; fmt.Sprint(p.ExplicitBounds, p.BucketCounts, p.Count, p.GetSum()) != "[1 2] [1 2 1] 4 12.6" {
		t.Errorf("%v", p)
	}
	if p := col.metrics[3].GetSummary().DataPoints[0]; p.Count != 1 || p.Sum != 3 || p.QuantileValues[0].Value != 3 {
		t.Errorf("%v", p)
	}
}

func TestTraceparent(t *testing.T) {
	for text, ok := range map[string]bool{
		parent: true, parent[:53] + "00": true, "01" + parent[2:] + "-more": true, "cc" + parent[2:]: true,
		"": false, parent + "-more": false, parent[:54]: false, "ff" + parent[2:]: false, "01" + parent[2:] + "x": false,
		strings.ToUpper(parent): false, "00-" + strings.Repeat("0", 32) + parent[35:]: false, parent[:36] + strings.Repeat("0", 16) + "-01": false,
		strings.Replace(parent, "-", "_", 1): false,
	} {
		if _, got := parseTraceparent(text); got != ok {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func FuzzTraceparent(f *testing.F) {
	f.Add(parent)
	f.Add("01" + parent[2:] + "-more")
	f.Fuzz(func(t *testing.T, s string) {
		if p, ok := parseTraceparent(s); ok && (hex.EncodeToString(p.trace[:]) != s[3:35] || hex.EncodeToString(p.span[:]) != s[36:52]) {
			t.Errorf("%q: %x %x", s, p.trace, p.span)
		}
	})
}

func TestChecks(t *testing.T) {
	for endpoint, ok := range map[string]bool{
		"http://127.0.0.1:4318": true, "https://c.example/otlp": true, "http://[::1]:4318/": true,
		"": false, "c.example:4318": false, "grpc://c:4317": false, "http://": false, "http://u:p@c": false, "http://c/?x": false, "http://c\n": false,
	} {
		if err := CheckEndpoint(endpoint); (err == nil) != ok {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
	for header, ok := range map[string]bool{"a: b": true, "Authorization:Bearer x": true, "a:": true, "": false, ": b": false, "a b: c": false, "a": false, "a: b\r\nc: d": false, "a: \u00e9": false} {
		if err := CheckHeader(header); (err == nil) != ok {
			t.Errorf("%q: %v", header, err)
		}
	}
}
