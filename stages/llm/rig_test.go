package llm

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"penstock/pipeline"
)

// recorder keeps events as JSON.
type recorder struct{ lines []string }

func (r *recorder) Enabled(e string) bool { return e == "llm" }
func (r *recorder) Record(_ string, fields any) {
	b, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	r.lines = append(r.lines, string(b))
}

type rig struct {
	*stage
	rec      *recorder
	counters *pipeline.CounterSet
	now      int64
}

func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	c := defaults()
	if change != nil {
		change(&c)
	}
	if len(c.Rules) > 0 {
		issues := pipeline.Issues{Sets: map[string][]netip.Prefix{"office": {netip.MustParsePrefix("10.0.0.0/16")}}}
		validate(&c, &issues)
		for _, i := range issues.List {
			t.Fatalf("%s: %s", i.Path, i.Text)
		}
	}
	r := &rig{rec: &recorder{}, counters: &pipeline.CounterSet{}, now: 1e9}
	var err error
	r.stage, err = newStage(c, &pipeline.Env{Chain: "llm", Recorder: r.rec, Counters: r.counters, Shared: &pipeline.Shared{}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// talk is one connection.
type talk struct {
	r       *rig
	s       pipeline.Stream
	verdict pipeline.StreamVerdict
	t       testing.TB
}

func (r *rig) open(t testing.TB) *talk {
	return &talk{r: r, t: t, s: r.Open(&pipeline.Conn{
		ID: 7, Client: netip.MustParseAddrPort("10.0.0.1:40000"), Server: netip.MustParseAddrPort("10.0.0.2:80"), Start: 1e9, Depth: pipeline.DepthInspect,
	})}
}

// send shows bytes, a millisecond after the last ones.
func (c *talk) send(d pipeline.Direction, b string) {
	c.r.now += 1e6
	if c.verdict.Action != pipeline.StreamContinue || b == "" {
		return
	}
	p := []byte(b)
	n, v := c.s.Data(d, p, c.r.now)
	if n != len(b) || v.Action == pipeline.StreamDeny || string(p) != b {
		c.t.Fatalf("of %d bytes %d pass, %+v, changed: %v", len(b), n, v, string(p) != b)
	}
	for i := range p {
		p[i] = 0xaa // whoever keeps them shows it
	}
	c.verdict = v
}

// inPieces sends b cut into pieces of n bytes, all at one time.
func (c *talk) inPieces(d pipeline.Direction, b string, n int) {
	now := c.r.now
	for len(b) > 0 {
		k := min(n, len(b))
		c.r.now = now
		c.send(d, b[:k])
		b = b[k:]
	}
}

func (c *talk) close() {
	c.r.now += 1e6
	c.s.Close(c.r.now)
}

// settled checks that nothing is left behind.
func (r *rig) settled(t testing.TB) {
	t.Helper()
	if r.used != 0 {
		t.Errorf("%d bytes of memory are in use when no connection is open", r.used)
	}
}

// plainRecord is a record without what is the same for all, and without times.
func plainRecord(t testing.TB, line string) string {
	t.Helper()
	var e struct{ LLM map[string]any }
	d := json.NewDecoder(strings.NewReader(line))
	d.UseNumber()
	if err := d.Decode(&e); err != nil {
		t.Fatal(err)
	}
	for k := range e.LLM {
		if strings.HasSuffix(k, "_seconds") || k == "request_bytes" || k == "response_bytes" || k == "provider" || k == "operation" || k == "hostname" || k == "identity" {
			delete(e.LLM, k)
		}
	}
	b, err := json.Marshal(e.LLM)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func post(path, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: api.example\r\nAuthorization: Bearer sk-secret-1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
}

func answer(contentType, body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", contentType, len(body), body)
}

// chunked is answer in chunks of n bytes.
func chunked(contentType, body string, n int, more ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%sTransfer-Encoding: chunked\r\n\r\n", contentType, strings.Join(more, ""))
	for len(body) > 0 {
		k := min(n, len(body))
		fmt.Fprintf(&b, "%x\r\n%s\r\n", k, body[:k])
		body = body[k:]
	}
	b.WriteString("0\r\n\r\n")
	return b.String()
}

// squeeze compresses each part so that it can be decompressed when it has come.
func squeeze(zlibFormat bool, parts ...string) string {
	var b bytes.Buffer
	var w interface {
		io.WriteCloser
		Flush() error
	} = gzip.NewWriter(&b)
	if zlibFormat {
		w = zlib.NewWriter(&b)
	}
	for _, p := range parts {
		_, _ = io.WriteString(w, p)
		_ = w.Flush()
	}
	_ = w.Close()
	return b.String()
}
