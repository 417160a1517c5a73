package control

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"penstock/internal/latency"
	"penstock/pipeline"
)

// page is the live page: HTML, style and script in one file of our own.
//
//go:embed page.html
var page string

// pagePolicy lets the page run what is in it, ask this server, and nothing else.
var pagePolicy = "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
	"script-src '" + hashOf("script") + "'; style-src '" + hashOf("style") + "'"

// hashOf is the hash of the page's only element of that name, as a policy writes it.
func hashOf(element string) string {
	_, text, _ := strings.Cut(page, "<"+element+">")
	text, _, _ = strings.Cut(text, "</"+element+">")
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// live is what the page asks for each second.
type live struct {
	Time    int64               `json:"time"` // ms since the epoch
	Status  Status              `json:"status"`
	Tops    []pipeline.TopStats `json:"tops"`
	Offload liveHistogram       `json:"offload"`
}

// liveHistogram counts what was at most each bound, and more than the one before;
// one more count than bounds.
type liveHistogram struct {
	Bounds []float64 `json:"bounds"` // seconds
	Counts []uint64  `json:"counts"`
}

func pageHandlers(mux *http.ServeMux, src Source, now func() time.Time) {
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		pageHeaders(w, "text/html; charset=utf-8")
		_, _ = w.Write([]byte(page)) // the browser has gone: nothing to do
	})
	mux.HandleFunc("GET /live.json", func(w http.ResponseWriter, _ *http.Request) {
		l := live{Time: now().UnixMilli(), Status: src.Sample(), Tops: src.Tops()}
		var offload latency.Snapshot
		for i := range l.Status.Workers {
			offload.Add(l.Status.Workers[i].OffloadTimes)
		}
		l.Offload = inBounds(&offload)
		pageHeaders(w, "application/json")
		_ = json.NewEncoder(w).Encode(l)
	})
}

func pageHeaders(w http.ResponseWriter, contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
}

// inBounds counts a snapshot in the buckets that metrics have.
func inBounds(s *latency.Snapshot) liveHistogram {
	h := liveHistogram{Bounds: bounds, Counts: make([]uint64, len(bounds)+1)}
	i := 0
	for _, b := range s.Buckets {
		for i < len(bounds) && b.Most.Seconds() > bounds[i] {
			i++
		}
		h.Counts[i] += b.Count
	}
	return h
}
