package control

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestScrapeIsPlain: what a gateway's CPU time is for is not compression.
func TestScrapeIsPlain(t *testing.T) {
	req := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	req.Header.Set("Accept-Encoding", "gzip, zstd")
	w := httptest.NewRecorder()
	metricsHandler(example()).ServeHTTP(w, req)
	if e := w.Header().Get("Content-Encoding"); e != "" || !strings.Contains(w.Body.String(), "\npenstock_appliance_info{") {
		t.Errorf("content encoding is %q: %.300s", e, w.Body.String())
	}
}

// BenchmarkScrape: what it costs to be asked, but for the sample itself.
func BenchmarkScrape(b *testing.B) {
	m := &movie{source: example(), scene: "load"}
	for range 30 {
		m.source.s = m.Sample()
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metricsHandler(m.source))
	pageHandlers(mux, m.source, time.Now)
	for _, path := range []string{"/metrics", "/live.json"} {
		b.Run(path[1:], func(b *testing.B) {
			req := httptest.NewRequest(http.MethodGet, path, nil)
			req.Header.Set("Accept-Encoding", "gzip")
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				w := httptest.NewRecorder()
				mux.ServeHTTP(w, req)
				n = w.Body.Len()
			}
			b.ReportMetric(float64(n), "bytes")
		})
	}
}
