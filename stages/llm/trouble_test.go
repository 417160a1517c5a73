package llm

import (
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"penstock/pipeline"
)

func (r *rig) counter(name string) uint64 {
	for _, c := range r.counters.All() {
		if c.Name == name {
			return c.Load()
		}
	}
	return 1 << 63
}

const ask = `{"model":"m","stream":true}`

// TestTrouble: whatever comes, every byte passes, each request is recorded once,
// and the record or a counter says what went wrong.
func TestTrouble(t *testing.T) {
	bomb := strings.Repeat(" ", 1<<20)
	deep := strings.Repeat(`{"a":[`, 200)
	for _, row := range []struct {
		name         string
		change       func(*Config)
		up, down     string
		records      int
		want         string // in the first record
		counter      string // that is 1
		released     bool
		serverFinish bool
		whole        bool // heads do not come byte by byte
	}{
		{name: "no HTTP", up: "SSH-2.0-x\r\n", counter: "released", released: true},
		{name: "no HTTP after a request", up: post("/v1/messages", ask) + "\x00\x01\x02 \r\n\r\n", records: 1, want: `"unread":"malformed_http"`, counter: "unread_malformed_http", released: true},
		{name: "a response that nobody asked for", up: "", down: "HTTP/1.1 200 OK\r\n\r\n", counter: "released", released: true},
		{name: "no response head", up: post("/v1/messages", ask), down: "HTTP/9 x\r\n\r\n", records: 1, want: `"unread":"malformed_http"`, released: true},
		{name: "smuggling", up: "POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", counter: "released", released: true},
		{name: "bad chunk", up: post("/v1/messages", ask), down: "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", records: 1, want: `"usage":"partial"`, counter: "unread_malformed_http", released: true},
		{name: "other requests", up: "GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n", down: answer("application/json", "{}"), counter: "other"},
		{name: "HEAD has no body", up: "HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n" + post("/v1/messages", ask), down: "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n" + answer("application/json", "{}"), records: 1, want: `"usage":"missing"`},
		{name: "websocket", up: "GET /v1/realtime HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", down: "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00", counter: "switched", released: true},
		{name: "interim responses", up: post("/v1/messages", ask), down: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\n\r\n" + answer("application/json", `{"usage":{"input_tokens":1,"output_tokens":2}}`), records: 1, want: `"total_tokens":3`},
		{name: "no answer", up: post("/v1/messages", ask), records: 1, want: `"cut":true`, counter: "usage_partial"},
		{name: "half a request", up: post("/v1/messages", ask)[:150], records: 1, want: `"cut":true`},
		{name: "a request that claims more", up: post("/v1/messages", ask) + post("/v1/messages", ask), down: answer("application/json", "{}"), records: 2, want: `"usage":"missing"`},
		{name: "status 429", up: post("/v1/messages", ask), down: "HTTP/1.1 429 Too Many\r\nContent-Type: application/json\r\nContent-Length: 39\r\n\r\n" + `{"error":{"type":"rate_limit_error","x"`, records: 1, want: `"error":"rate_limit_error"`, counter: "usage_failed"},
		{name: "status 503 of a proxy", up: post("/v1/messages", ask), down: "HTTP/1.1 503 No\r\nContent-Type: text/html\r\nContent-Length: 3\r\n\r\n<p>", records: 1, want: `"error":"503"`},
		{name: "stream until the connection ends", up: post("/api/chat", ask), down: "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n" + `{"done":true,"eval_count":1}`, serverFinish: true, records: 1, want: `"usage":"complete"`},
		{name: "a stream that stops short, in good order", up: post("/v1/chat/completions", ask), down: chunked(sse, "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n", 9), records: 1, want: `"usage":"partial"`},
		{name: "brotli", up: post("/v1/messages", ask), down: chunked(sse, "x", 1, "Content-Encoding: br\r\n"), records: 1, want: `"unread":"unknown_content_encoding"`, counter: "unread_unknown_content_encoding"},
		{name: "no gzip", up: post("/v1/messages", ask), down: chunked(sse, strings.Repeat("x", 99), 9, "Content-Encoding: gzip\r\n"), records: 1, want: `"unread":"malformed_compression"`, counter: "unread_malformed_compression"},
		{name: "gzip that stops short", up: post("/v1/messages", ask), down: chunked(sse, squeeze(false, "data: {}\n\n")[:20], 9, "Content-Encoding: gzip\r\n"), records: 1, want: `"unread":"malformed_compression"`},
		{name: "gzip bomb", change: func(c *Config) { c.MaxInflated = 64 << 10 }, up: post("/v1/messages", ask), down: chunked("application/json", squeeze(false, bomb), 99, "Content-Encoding: gzip\r\n"), records: 1, want: `"unread":"inflates_too_far"`, counter: "unread_inflates_too_far"},
		{name: "large answer", change: func(c *Config) { c.MaxBody = 1 << 10 }, up: post("/v1/messages", ask), down: answer("application/json", bomb), records: 1, want: `"unread":"body_too_large"`, counter: "unread_body_too_large"},
		{name: "large request", change: func(c *Config) { c.MaxBody = 1 << 10 }, up: post("/v1/messages", bomb), down: answer("application/json", `{"usage":{"input_tokens":1}}`), records: 1, want: `"unread":"body_too_large"`},
		{name: "large event, others go on", change: func(c *Config) { c.MaxBody = 1 << 10 }, up: post("/v1/chat/completions", ask), down: chunked(sse, "data: {\"x\":\""+strings.Repeat("y", 5000)+"\"}\n\ndata: {\"usage\":{\"prompt_tokens\":1}}\n\ndata: [DONE]\n\n", 999), records: 1, want: `"input_tokens":1`, counter: "malformed_events"},
		{name: "deep", up: post("/v1/messages", deep), down: answer("application/json", "{}"), records: 1, want: `"unread":"malformed_json"`, counter: "unread_malformed_json"},
		{name: "deep answer", up: post("/v1/messages", ask), down: answer("application/json", deep), records: 1, want: `"unread":"malformed_json"`},
		{name: "two texts", up: post("/v1/messages", ask), down: answer("application/json", "{} {}"), records: 1, want: `"unread":"malformed_json"`},
		{name: "lines without end", up: post("/v1/messages", ask), down: chunked(sse, "data: {\"usage\":{\"input_tokens\":1}}", 3), records: 1, want: `"input_tokens":1`},
		{name: "large head", change: func(c *Config) { c.MaxHead = 256 }, up: "POST /v1/messages HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 300) + "\r\n\r\n", counter: "released", released: true},
		{name: "too many at once", up: strings.Repeat("GET /x HTTP/1.1\r\nHost: a\r\n\r\n", maxPipelined+1), counter: "unread_too_many_pipelined", released: true},
		{name: "no memory", change: func(c *Config) { c.Memory = 100 }, up: post("/v1/messages", ask), counter: "unread_memory_limit", released: true},
		{name: "no memory to read", change: func(c *Config) { c.Memory = 1500 }, whole: true, up: post("/v1/messages", ask), down: answer("application/json", "{}"), records: 1, want: `"unread":"memory_limit"`},
		{name: "no memory to decompress", change: func(c *Config) { c.Memory = 8 << 10 }, up: post("/v1/messages", ask), down: chunked(sse, squeeze(false, "x"), 9, "Content-Encoding: gzip\r\n"), records: 1, want: `"unread":"memory_limit"`, counter: "unread_memory_limit"},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, n := range []int{1 << 21, 1, 1000} {
				if n == 1 && (row.whole || len(row.up)+len(row.down) > 10000) {
					continue
				}
				r := newRig(t, row.change)
				c := r.open(t)
				c.inPieces(pipeline.ToServer, row.up, n)
				c.inPieces(pipeline.ToClient, row.down, n)
				if row.serverFinish {
					c.s.End(pipeline.ToClient, r.now)
				}
				if released := c.verdict.Action == pipeline.StreamRelease; released != row.released {
					t.Errorf("in pieces of %d: released %v", n, released)
				}
				c.close()
				if len(r.rec.lines) != row.records || row.records > 0 && !strings.Contains(r.rec.lines[0], row.want) {
					t.Errorf("in pieces of %d: records %q, want %d with %s", n, r.rec.lines, row.records, row.want)
				}
				if row.counter != "" && r.counter(row.counter) != 1 {
					t.Errorf("in pieces of %d: %s is %d", n, row.counter, r.counter(row.counter))
				}
				r.settled(t)
			}
		})
	}
}

func TestPipelined(t *testing.T) {
	r := newRig(t, nil)
	c := r.open(t)
	c.send(pipeline.ToServer, post("/v1/messages", `{"model":"a"}`)+"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"+post("/api/chat", `{"model":"b"}`))
	c.send(pipeline.ToClient, answer("application/json", `{"usage":{"input_tokens":1,"output_tokens":1}}`)+answer("application/json", `{"usage":{"input_tokens":9}}`)+answer("application/json", `{"done":true,"eval_count":2}`))
	c.send(pipeline.ToServer, post("/v1/messages", `{"model":"c"}`))
	c.s.(pipeline.SightLoser).LoseSight(pipeline.ReasonHoldFull, r.now)
	c.close()
	got := fmt.Sprint(r.rec.lines)
	if len(r.rec.lines) != 3 || r.counter("other") != 1 || r.counter("usage_complete") != 2 || !strings.Contains(r.rec.lines[1], `"model":"b"`) ||
		!strings.Contains(r.rec.lines[2], `"unseen":"stream_hold_full"`) || strings.Contains(r.rec.lines[2], `"cut"`) {
		t.Error(got)
	}
	r.settled(t)
}

// TestIdentity: a credential is one identity whichever field it comes in, another
// key gives another one, and the credential is nowhere.
func TestIdentity(t *testing.T) {
	identity := func(r *rig, field string) string {
		c := r.open(t)
		c.send(pipeline.ToServer, "POST /v1/messages HTTP/1.1\r\nHost: a\r\n"+field+"Content-Length: 2\r\n\r\n{}")
		c.close()
		line := r.rec.lines[len(r.rec.lines)-1]
		if strings.Contains(line, "sk-1") || strings.Contains(line, "sk-2") {
			t.Errorf("a credential is in the record: %s", line)
		}
		_, after, ok := strings.Cut(line, `"identity":"`)
		if !ok {
			return ""
		}
		return after[:24]
	}
	r, other := newRig(t, nil), newRig(t, nil)
	one := identity(r, "Authorization: Bearer sk-1\r\n")
	for _, field := range []string{"X-Api-Key: sk-1\r\n", "api-key: sk-1\r\n", "authorization: bearer  sk-1\r\n", "Authorization: Bearer sk-2\r\nX-API-Key: sk-1\r\n", "X-API-Key: sk-1\r\nAuthorization: Bearer sk-2\r\n"} {
		if got := identity(r, field); got != one {
			t.Errorf("%q is %s, want %s", field, got, one)
		}
	}
	if got := identity(r, "X-Api-Key: sk-2\r\n"); got == one || got == "" {
		t.Errorf("another credential is %q", got)
	}
	if got := identity(r, ""); got != "" {
		t.Errorf("no credential is %q", got)
	}
	if got := identity(other, "X-Api-Key: sk-1\r\n"); got == one || got == "" {
		t.Errorf("with another key it is %q", got)
	}
	if got := identity(newRig(t, func(c *Config) { c.Identity = "off" }), "X-Api-Key: sk-1\r\n"); got != "" {
		t.Errorf("with identities off it is %q", got)
	}
}

func TestModelsAreFew(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxModels = 3 })
	for i := range 100 {
		c := r.open(t)
		c.send(pipeline.ToServer, post("/v1/messages", fmt.Sprintf(`{"model":"m%d"}`, i)))
		c.send(pipeline.ToClient, answer("application/json", `{"usage":{"input_tokens":1}}`))
		c.close()
	}
	models := map[string]uint64{}
	for _, h := range r.counters.Histograms() {
		if h.Name == nameDuration {
			models[h.Labels[2].Value] += h.Count()
		}
	}
	if fmt.Sprint(models) != "map[m0:1 m1:1 m2:1 other:97]" {
		t.Error(models)
	}
	if !strings.Contains(r.rec.lines[99], `"model":"m99"`) {
		t.Error(r.rec.lines[99])
	}
}

// TestLockedThread decompresses on a goroutine that has a thread of its own, as
// workers do, and leaves no coroutine behind.
func TestLockedThread(t *testing.T) {
	before := runtime.NumGoroutine()
	result := make(chan string)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		r := newRig(t, nil)
		for range 20 { // half of them are cut
			for _, part := range []int{2, 1} {
				c := r.open(t)
				in := chunked(sse, squeeze(false, "data: {\"usage\":{\"prompt_tokens\":1,", "\"completion_tokens\":1}}\n\ndata: [DONE]\n\n"), 7, "Content-Encoding: gzip\r\n")
				c.send(pipeline.ToServer, post("/v1/chat/completions", ask))
				c.inPieces(pipeline.ToClient, in[:len(in)*part/2], 5)
				c.close()
			}
		}
		r.settled(t)
		result <- fmt.Sprint(len(r.rec.lines), r.counter("usage_complete"), r.counter("usage_partial"))
	}()
	if got := <-result; got != "40 20 20" {
		t.Error(got)
	}
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
}

// TestSizes: what memory counts is what things take, and an idle connection takes
// little.
func TestSizes(t *testing.T) {
	for name, row := range map[string]struct{ size, most uintptr }{
		"connection":   {reflect.TypeOf(stream{}).Size(), 320},
		"request":      {reflect.TypeOf(exchange{}).Size(), exchangeCost},
		"body reader":  {reflect.TypeOf(bodyReader{}).Size(), readerCost},
		"decompressor": {reflect.TypeOf(inflater{}).Size(), inflaterCost - 32<<10},
	} {
		if row.size > row.most {
			t.Errorf("a %s takes %d bytes, more than %d", name, row.size, row.most)
		}
	}
}

func TestConfig(t *testing.T) {
	c := defaults()
	c.Endpoints = []Endpoint{{"x", "openai_chat"}, {"/a?b", "claude"}}
	c.Identity, c.IdentityKey, c.MaxHead, c.MaxBody, c.MaxInflated, c.Memory, c.MaxModels = "yes", "", 1, 1, 1, 1, 0
	var issues pipeline.Issues
	validate(&c, &issues)
	var paths []string
	for _, i := range issues.List {
		paths = append(paths, i.Path)
	}
	if got := strings.Join(paths, " "); got != "endpoints[0].path endpoints[1].path endpoints[1].dialect identity max_head max_body max_inflated memory max_models" {
		t.Error(got)
	}
	for _, key := range []string{"/nonexistent/key", "/dev/null"} {
		c := defaults()
		c.IdentityKey = key
		if _, err := newStage(c, &pipeline.Env{Recorder: &recorder{}, Counters: &pipeline.CounterSet{}, Shared: &pipeline.Shared{}}); err == nil || !strings.Contains(err.Error(), "identity_key") {
			t.Errorf("%s: %v", key, err)
		}
	}
}
