package http

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	stdhttp "net/http"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"penstock/internal/record"
	"penstock/pipeline"
)

// recorder keeps events as JSON.
type recorder struct {
	lines []string
	last  any
}

func (r *recorder) Enabled(e string) bool { return e == "http" }
func (r *recorder) Record(_ string, fields any) {
	b, err := json.Marshal(fields.(pipeline.Borrowed).Keep())
	if err != nil {
		panic(err)
	}
	r.lines, r.last = append(r.lines, string(b)), fields
}

type rig struct {
	*stage
	rec *recorder
	now int64
}

func newRig(change func(*Config)) *rig {
	c := defaults()
	if change != nil {
		change(&c)
	}
	rec := &recorder{}
	issues := pipeline.Issues{Sets: map[string][]netip.Prefix{"office": {netip.MustParsePrefix("10.0.0.0/16")}}}
	validate(&c, &issues)
	for _, i := range issues.List {
		panic(i.Path + ": " + i.Text)
	}
	s, err := newStage(c, &pipeline.Env{Chain: "web", Recorder: rec, Counters: &pipeline.CounterSet{}})
	if err != nil {
		panic(err)
	}
	return &rig{rec: rec, stage: s}
}

// conversation plays bytes through a stream the way the tcp stage does: what is
// held is shown again, with what has come since, on any news.
type conversation struct {
	r       *rig
	s       pipeline.Stream
	held    [2][]byte
	passed  [2][]byte
	verdict pipeline.StreamVerdict
}

func (r *rig) open() *conversation {
	return &conversation{r: r, s: r.Open(&pipeline.Conn{
		ID: 7, Client: netip.MustParseAddrPort("10.0.0.1:40000"), Server: netip.MustParseAddrPort("10.0.0.2:80"), Start: 1, Depth: pipeline.DepthTerminate,
	})}
}

func (c *conversation) show(d pipeline.Direction) {
	if c.verdict.Action == pipeline.StreamRelease {
		c.passed[d] = append(c.passed[d], c.held[d]...)
		c.held[d] = nil
		return
	}
	if c.verdict.Action != pipeline.StreamContinue || len(c.held[d]) == 0 {
		return
	}
	n, v := c.s.Data(d, c.held[d], c.r.now)
	c.passed[d] = append(c.passed[d], c.held[d][:n]...)
	c.held[d] = c.held[d][n:]
	c.verdict = v
}

func (c *conversation) send(d pipeline.Direction, b string) {
	c.r.now += 1e6
	c.held[d] = append(c.held[d], b...)
	c.show(d)
	c.show(1 - d)
	c.show(d)
}

const get = "GET /a HTTP/1.1\r\nHost: good.example\r\n\r\n"

func TestRequests(t *testing.T) {
	deny := func(c *Config) {
		c.DenyHosts = []string{"*.ads.example", "bad.example"}
		c.DenyMethods, c.DenyPaths = []string{"DELETE"}, []string{"/admin/*"}
		c.DenyHeaders = []string{"X-Evil", "User-Agent: *sqlmap*"}
	}
	for _, row := range []struct {
		name, in string
		want     string // reason of the denial, or "" if all of it passes
	}{
		{"plain", get, ""},
		{"empty line first", "\r\n" + get, ""},
		{"pipelined", get + get, ""},
		{"body", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + get, ""},
		{"chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nTrailer: x\r\n\r\n" + get, ""},
		{"1.0 without host", "GET / HTTP/1.0\r\n\r\n", ""},
		{"port", "GET / HTTP/1.1\r\nHost: good.example:8080\r\n\r\n", ""},
		{"ipv6 host", "GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", ""},
		{"options", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", ""},

		{"denied", "GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n", "http_host_denied"},
		{"denied, case, dot, port", "GET / HTTP/1.1\r\nHOST: BAD.example.:80\r\n\r\n", "http_host_denied"},
		{"denied below", "GET / HTTP/1.1\r\nHost: x.y.ads.example\r\n\r\n", "http_host_denied"},
		{"wildcard is not the name itself", "GET / HTTP/1.1\r\nHost: ads.example\r\n\r\n", ""},
		{"absolute form wins", "GET http://bad.example/x HTTP/1.1\r\nHost: good.example\r\n\r\n", "http_host_denied"},
		{"connect", "CONNECT bad.example:443 HTTP/1.1\r\nHost: good.example\r\n\r\n", "http_host_denied"},
		{"second request", get + "GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n", "http_host_denied"},

		{"no host", "GET / HTTP/1.1\r\n\r\n", "http_bad_host"},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: bad.example\r\n\r\n", "http_bad_host"},
		{"space before colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", "http_bad_header"},
		{"folded line", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", "http_bad_header"},
		{"bare LF", "GET / HTTP/1.1\nHost: a\r\n\r\n", "http_bad_line_end"},
		{"bare LF everywhere", "GET / HTTP/1.1\nHost: a\n\n", "http_bad_line_end"},
		{"bare CR", "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", "http_bad_line_end"},
		{"NUL", "GET / HTTP/1.1\r\nHost: a\x00\r\n\r\n", "http_bad_header"},
		{"version", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", "http_bad_request"},
		{"two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "http_bad_request"},
		{"no version", "GET /\r\n\r\n", "http_bad_request"},
		{"host with a slash", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "http_bad_host"},

		{"CL and TE", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", "http_length_and_chunked"},
		{"two CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n", "http_repeated_length"},
		{"CL list", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\n", "http_repeated_length"},
		{"signed CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\n", "http_bad_length"},
		{"negative CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", "http_bad_length"},
		{"hex CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\n", "http_bad_length"},
		{"empty CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", "http_bad_length"},
		{"huge CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", "http_bad_length"},
		{"TE twice", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "http_bad_transfer_encoding"},
		{"TE other", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", "http_bad_transfer_encoding"},
		{"TE list", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "http_bad_transfer_encoding"},
		{"TE in 1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "http_bad_transfer_encoding"},
		{"chunk size overflow", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n", "http_bad_chunk"},
		{"chunk size sign", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "http_bad_chunk"},
		{"chunk bare LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n", "http_bad_chunk"},
		{"chunk data too long", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n", "http_bad_chunk"},
		{"chunk extension bomb", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("a", 5000), "http_bad_chunk"},

		{"method", "DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", "http_method_denied"},
		{"method in other case", "delete / HTTP/1.1\r\nHost: a\r\n\r\n", ""},
		{"path", "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n", "http_path_denied"},
		{"path below", "GET /admin/x?y HTTP/1.1\r\nHost: a\r\n\r\n", "http_path_denied"},
		{"path beside", "GET /administer HTTP/1.1\r\nHost: a\r\n\r\n", ""},
		{"path in the query", "GET /?/admin/x HTTP/1.1\r\nHost: a\r\n\r\n", ""},
		{"path in absolute form", "GET http://a/admin/x HTTP/1.1\r\nHost: a\r\n\r\n", "http_path_denied"},
		{"no path in absolute form", "GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", ""},
		{"escaped path", "GET /%61dm%69n/x HTTP/1.1\r\nHost: a\r\n\r\n", "http_path_denied"},
		{"dots in the path", "GET /x/.././y/../admin/x HTTP/1.1\r\nHost: a\r\n\r\n", "http_path_denied"},
		{"escaped dots", "GET /x/%2e%2E/admin HTTP/1.1\r\nHost: a\r\n\r\n", "http_path_denied"},
		{"slashes", "GET //admin//x HTTP/1.1\r\nHost: a\r\n\r\n", "http_path_denied"},
		{"parameter", "GET /admin;v=1/x HTTP/1.1\r\nHost: a\r\n\r\n", "http_path_denied"},
		{"escaped slash", "GET /x%2fadmin HTTP/1.1\r\nHost: a\r\n\r\n", "http_bad_path"},
		{"escaped twice", "GET /%2561dmin HTTP/1.1\r\nHost: a\r\n\r\n", "http_bad_path"},
		{"escape cut short", "GET /x%2 HTTP/1.1\r\nHost: a\r\n\r\n", "http_bad_path"},
		{"backslash", "GET /x\\admin HTTP/1.1\r\nHost: a\r\n\r\n", "http_bad_path"},
		{"header", "GET / HTTP/1.1\r\nHost: a\r\nx-EVIL: 1\r\n\r\n", "http_header_denied"},
		{"header by value", "GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: my SQLMap/1.0\r\n\r\n", "http_header_denied"},
		{"header with another value", "GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: curl\r\n\r\n", ""},
		{"headers", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 256) + "\r\n", "http_too_many_headers"},

		{"tls", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "http_not_http"},
		{"ssh", "SSH-2.0-OpenSSH_9.2\r\n", "http_not_http"},
		{"binary", "\x00\x01\x02\x03", "http_not_http"},
		{"huge head", "GET / HTTP/1.1\r\nX: " + strings.Repeat("a", 70000), "http_head_too_large"},
	} {
		t.Run(row.name, func(t *testing.T) {
			// In one piece, byte by byte, and cut at random: the same answer.
			for seed := range uint64(4) {
				r := newRig(deny)
				c := r.open()
				for _, piece := range cut(row.in, seed) {
					c.send(pipeline.ToServer, piece)
				}
				reason := ""
				if c.verdict.Action == pipeline.StreamDeny {
					reason = c.verdict.Reason.String()
				}
				if reason != row.want {
					t.Fatalf("pieces %d: got %q, want %q", seed, reason, row.want)
				}
				if row.want == "" && string(c.passed[0]) != row.in {
					t.Fatalf("pieces %d: passed %q of %q", seed, c.passed[0], row.in)
				}
				if !strings.HasPrefix(row.in, string(c.passed[0])) {
					t.Fatalf("pieces %d: passed bytes that were not sent: %q", seed, c.passed[0])
				}
				if row.want == "http_host_denied" && bytes.Contains(bytes.ToLower(c.passed[0]), []byte("bad.example")) {
					t.Fatalf("pieces %d: the refused head has passed: %q", seed, c.passed[0])
				}
			}
		})
	}
}

// cut splits s into pieces: 0 whole, 1 byte by byte, else at random.
func cut(s string, seed uint64) (pieces []string) {
	rng := rand.New(rand.NewPCG(seed, 1))
	for len(s) > 0 {
		n := len(s)
		switch {
		case seed == 1:
			n = 1
		case seed > 1:
			n = 1 + rng.IntN(min(len(s), 40))
		}
		pieces = append(pieces, s[:n])
		s = s[n:]
	}
	return pieces
}

func TestReplies(t *testing.T) {
	refuse := "GET / HTTP/1.1\r\nHost: bad\r\n\r\n"
	r := newRig(func(c *Config) { c.DenyHosts = []string{"bad"} })
	c := r.open()
	c.send(pipeline.ToServer, refuse)
	resp, err := stdhttp.ReadResponse(bufio.NewReader(bytes.NewReader(c.verdict.Reply)), nil)
	if err != nil || resp.StatusCode != 403 || !resp.Close {
		t.Fatalf("reply %q: %v", c.verdict.Reply, err)
	}
	if body, err := io.ReadAll(resp.Body); err != nil || len(body) == 0 {
		t.Errorf("body %q, %v", body, err)
	}

	r = newRig(func(c *Config) { c.DenyHosts = []string{"bad"}; c.Deny = "reset" })
	c = r.open()
	c.send(pipeline.ToServer, refuse)
	if c.verdict.Action != pipeline.StreamDeny || c.verdict.Reply != nil {
		t.Errorf("deny = reset: %+v", c.verdict)
	}

	// While an earlier response is due, a reply of ours would be taken for it.
	r = newRig(func(c *Config) { c.DenyHosts = []string{"bad"} })
	c = r.open()
	c.send(pipeline.ToServer, get+refuse)
	if c.verdict.Action != pipeline.StreamDeny || c.verdict.Reply != nil {
		t.Errorf("pipelined: %+v", c.verdict)
	}
}

func TestAllowHosts(t *testing.T) {
	r := newRig(func(c *Config) { c.AllowHosts = []string{"good.example"}; c.DenyHosts = []string{"*.good.example"} })
	for _, row := range []struct {
		host  string
		allow bool
	}{{"good.example", true}, {"x.good.example", false}, {"other.example", false}} {
		c := r.open()
		c.send(pipeline.ToServer, "GET / HTTP/1.1\r\nHost: "+row.host+"\r\n\r\n")
		if (c.verdict.Action == pipeline.StreamContinue) != row.allow {
			t.Errorf("%s: %+v", row.host, c.verdict)
		}
	}
	c := r.open()
	c.send(pipeline.ToServer, "GET / HTTP/1.0\r\n\r\n")
	if c.verdict.Action != pipeline.StreamDeny {
		t.Error("a request without a host evaded allow_hosts")
	}
}

func TestWithoutPolicyNothingIsTouched(t *testing.T) {
	for _, in := range []string{"\x16\x03\x01binary", "GET / HTTP/1.1\nbare\n\n", "SSH-2.0-x\r\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxxx"} {
		r := newRig(nil)
		c := r.open()
		c.send(pipeline.ToServer, in)
		if in[0] == 'G' { // held until the head is complete
			c.send(pipeline.ToServer, "\r\n\r\n")
			in += "\r\n\r\n"
		}
		if c.verdict.Action == pipeline.StreamDeny || string(c.passed[0]) != in {
			t.Errorf("%q: %+v, passed %q", in, c.verdict, c.passed[0])
		}
		if r.released.Load() != 1 {
			t.Errorf("%q: released %d", in, r.released.Load())
		}
	}
}

// decoded decodes an event.
func decoded(t *testing.T, line string) (e eve) {
	t.Helper()
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return e
}

func TestLog(t *testing.T) {
	r := newRig(nil)
	c := r.open()
	c.send(pipeline.ToServer, "POST /up?x=1 HTTP/1.1\r\nHost: Good.Example:80\r\nUser-Agent: t\r\nContent-Length: 3\r\n\r\nab")
	c.send(pipeline.ToServer, "c"+get)
	c.send(pipeline.ToClient, "HTTP/1.1 100 Continue\r\n\r\n")
	c.send(pipeline.ToClient, "HTTP/1.1 201 Created\r\nContent-Type: text/x\r\nContent-Length: 4\r\n\r\nda")
	c.send(pipeline.ToClient, "taHTTP/1.1 200 OK\r\n\r\nuntil close")
	c.s.End(pipeline.ToClient, r.now)
	c.s.Close(r.now)
	if len(r.rec.lines) != 2 {
		t.Fatalf("%d events: %q", len(r.rec.lines), r.rec.lines)
	}
	e := decoded(t, r.rec.lines[0])
	h := e.HTTP
	if e.SrcIP.String() != "10.0.0.1" || e.DestPort != 80 || e.Action != "allowed" || e.Chain != "web" ||
		h.Hostname != "good.example" || h.URL != "/up?x=1" || h.Method != "POST" || h.Status != 201 || h.UserAgent != "t" ||
		h.ContentType != "text/x" || h.Protocol != "HTTP/1.1" || h.FirstByte <= 0 || h.Duration < h.FirstByte {
		t.Errorf("first event: %s", r.rec.lines[0])
	}
	if want := uint64(len("POST /up?x=1 HTTP/1.1\r\nHost: Good.Example:80\r\nUser-Agent: t\r\nContent-Length: 3\r\n\r\nabc")); h.RequestBytes != want {
		t.Errorf("request bytes %d, want %d", h.RequestBytes, want)
	}
	if e := decoded(t, r.rec.lines[1]); e.HTTP.Status != 200 || e.HTTP.Method != "GET" {
		t.Errorf("second event: %s", r.rec.lines[1])
	}
}

func TestResponses(t *testing.T) {
	for _, row := range []struct{ name, req, resp string }{
		{"head", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"},
		{"304", get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n"},
		{"204", get, "HTTP/1.1 204 No Content\r\n\r\n"},
		{"chunked", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"},
		{"sized", get, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"},
		{"empty", get, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"no phrase", get, "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			for seed := range uint64(4) {
				r := newRig(nil)
				c := r.open()
				for range 3 { // keep-alive: each must be found where the last one ended
					c.send(pipeline.ToServer, row.req)
					for _, p := range cut(row.resp, seed) {
						c.send(pipeline.ToClient, p)
					}
				}
				if len(r.rec.lines) != 3 || r.responseLost.Load() != 0 || string(c.passed[1]) != strings.Repeat(row.resp, 3) {
					t.Fatalf("pieces %d: %d events, %d lost, passed %q", seed, len(r.rec.lines), r.responseLost.Load(), c.passed[1])
				}
			}
		})
	}
}

func TestBrokenResponsesPass(t *testing.T) {
	for _, resp := range []string{
		"garbage\r\n\r\n", "HTTP/1.1 2x0 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nunasked\r\n\r\n",
	} {
		r := newRig(func(c *Config) { c.DenyHosts = []string{"bad"} })
		c := r.open()
		c.send(pipeline.ToServer, get)
		c.send(pipeline.ToClient, resp)
		if string(c.passed[1]) != resp || r.responseLost.Load() != 1 {
			t.Errorf("%q: passed %q, lost %d", resp, c.passed[1], r.responseLost.Load())
		}
		// The policy still holds.
		c.send(pipeline.ToServer, "GET / HTTP/1.1\r\nHost: bad\r\n\r\n")
		if c.verdict.Action != pipeline.StreamDeny {
			t.Errorf("%q: a broken response switched the policy off", resp)
		}
	}
}

func TestUpgrade(t *testing.T) {
	ws := "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
	r := newRig(func(c *Config) { c.DenyHosts = []string{"bad"} })
	c := r.open()
	c.send(pipeline.ToServer, ws+"early")
	if string(c.passed[0]) != ws {
		t.Fatalf("bytes behind the upgrade did not wait: %q", c.passed[0])
	}
	c.send(pipeline.ToClient, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi")
	if c.verdict.Action != pipeline.StreamRelease || string(c.passed[0]) != ws+"early" || r.switched.Load() != 1 {
		t.Errorf("%+v, passed %q", c.verdict, c.passed[0])
	}

	// Refused by the server: what follows is HTTP again, and is judged.
	c = r.open()
	c.send(pipeline.ToServer, ws+"GET / HTTP/1.1\r\nHost: bad\r\n\r\n")
	c.send(pipeline.ToClient, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	if c.verdict.Action != pipeline.StreamDeny {
		t.Errorf("an upgrade that failed smuggled a request: %+v", c.verdict)
	}

	c = r.open()
	c.send(pipeline.ToServer, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n")
	c.send(pipeline.ToClient, "HTTP/1.1 200 OK\r\n\r\n")
	if c.verdict.Action != pipeline.StreamRelease {
		t.Errorf("CONNECT: %+v", c.verdict)
	}
}

func TestPipelineIsBounded(t *testing.T) {
	r := newRig(func(c *Config) { c.DenyHosts = []string{"bad"}; c.MaxPipelined = 10 })
	c := r.open()
	for range 10 {
		c.send(pipeline.ToServer, get)
	}
	if c.verdict.Action != pipeline.StreamContinue {
		t.Fatalf("%+v", c.verdict)
	}
	c.send(pipeline.ToServer, get)
	if c.verdict.Action != pipeline.StreamDeny || c.verdict.Reason != reasonPipelined {
		t.Errorf("%+v", c.verdict)
	}
}

// TestAllowLists: what is not on a list is refused.
func TestAllowLists(t *testing.T) {
	for in, want := range map[string]string{
		"GET /public/x HTTP/1.1\r\nHost: a\r\n\r\n":              "",
		"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n":                  "http_method_denied",
		"GET /private HTTP/1.1\r\nHost: a\r\n\r\n":               "http_path_denied",
		"GET /public/../private HTTP/1.1\r\nHost: a\r\n\r\n":     "http_path_denied",
		"GET /public/%2e%2e/private HTTP/1.1\r\nHost: a\r\n\r\n": "http_path_denied",
		"GET /public/..%2fprivate HTTP/1.1\r\nHost: a\r\n\r\n":   "http_bad_path",
	} {
		r := newRig(func(c *Config) { c.AllowMethods, c.AllowPaths = []string{"GET"}, []string{"/public/*"} })
		c := r.open()
		c.send(pipeline.ToServer, in)
		got := ""
		if c.verdict.Action == pipeline.StreamDeny {
			got = c.verdict.Reason.String()
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// TestDepthDecidesReply: only a connection that is terminated can be answered.
func TestDepthDecidesReply(t *testing.T) {
	for _, tc := range []struct {
		deny  string
		depth pipeline.Depth
		reply bool
		need  pipeline.Need
	}{
		{"auto", pipeline.DepthInspect, false, pipeline.NeedDeny},
		{"auto", pipeline.DepthTerminate, true, pipeline.NeedDeny},
		{"403", pipeline.DepthTerminate, true, pipeline.NeedChange},
		{"reset", pipeline.DepthTerminate, false, pipeline.NeedDeny},
	} {
		r := newRig(func(c *Config) { c.DenyHosts, c.Deny = []string{"bad"}, tc.deny })
		s := r.Open(&pipeline.Conn{Depth: tc.depth})
		_, v := s.Data(pipeline.ToServer, []byte("GET / HTTP/1.1\r\nHost: bad\r\n\r\n"), 1)
		if v.Action != pipeline.StreamDeny || (len(v.Reply) > 0) != tc.reply {
			t.Errorf("%+v: got %+v", tc, v)
		}
		if n, _ := r.cfg.needs(); n != tc.need {
			t.Errorf("%+v: need %v", tc, n)
		}
		s.Close(2)
		if got := strings.Contains(r.rec.lines[0], `"status":403`); got != tc.reply {
			t.Errorf("%+v: record %s", tc, r.rec.lines[0])
		}
	}
	d := defaults()
	if n, _ := d.needs(); n != pipeline.NeedObserve {
		t.Errorf("without lists: need %v", n)
	}
}

// TestSightLost: the record of an exchange whose end nobody saw says so.
func TestSightLost(t *testing.T) {
	r := newRig(nil)
	c := r.open()
	c.send(pipeline.ToServer, get)
	c.s.(pipeline.SightLoser).LoseSight(reasonChunk, 5)
	c.s.Close(6)
	if len(r.rec.lines) != 1 || !strings.Contains(r.rec.lines[0], `"unseen":"http_bad_chunk"`) {
		t.Errorf("got %q", r.rec.lines)
	}
}

func TestCloseRecordsTheUnanswered(t *testing.T) {
	r := newRig(nil)
	c := r.open()
	c.send(pipeline.ToServer, get+get)
	c.s.Close(r.now)
	if len(r.rec.lines) != 2 || r.unanswered.Load() != 2 {
		t.Errorf("%d events, %d unanswered", len(r.rec.lines), r.unanswered.Load())
	}
}

func TestValidate(t *testing.T) {
	c := Config{DenyHosts: []string{"ok", "*.ok", "*", "b ad", "", "*.*.x"}, AllowHosts: []string{"/"}, Deny: "404", OnBad: "x", MaxHead: 1, MaxPipelined: 0,
		DenyMethods: []string{"GET", "G T"}, DenyPaths: []string{"/", "/*", "/a/*", "x", "", "/a/../b", "/a%20", "/*/b"}, DenyHeaders: []string{"X", "X: y", "X y"}}
	var issues pipeline.Issues
	validate(&c, &issues)
	var paths []string
	for _, i := range issues.List {
		paths = append(paths, i.Path)
	}
	if got, want := fmt.Sprint(paths), "[deny_hosts[3] deny_hosts[4] deny_hosts[5] allow_hosts[0] deny on_bad max_head deny_methods[1] deny_paths[3] deny_paths[4] deny_paths[5] deny_paths[6] deny_paths[7] deny_headers[2] max_headers max_pipelined max_streams max_resets]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	ok := defaults()
	issues = pipeline.Issues{}
	if validate(&ok, &issues); len(issues.List) > 0 {
		t.Errorf("the defaults have issues: %v", issues.List)
	}
}

// FuzzStream feeds arbitrary bytes, in two ways of cutting them, in both
// directions: no panic, no byte invented, and the same verdict for both.
func FuzzStream(f *testing.F) {
	f.Add([]byte(get+get), []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), uint64(1))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), []byte("HTTP/1.1 100 Continue\r\n\r\n"), uint64(2))
	f.Add([]byte("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\nxx"), []byte("HTTP/1.1 200 OK\r\n\r\n"), uint64(3))
	f.Fuzz(func(t *testing.T, req, resp []byte, seed uint64) {
		var results []string
		for _, s := range []uint64{0, 2 + seed%100} {
			r := newRig(func(c *Config) { c.DenyHosts = []string{"bad"}; c.MaxHead = 512 })
			c := r.open()
			for _, p := range cut(string(req), s) {
				c.send(pipeline.ToServer, p)
			}
			result := fmt.Sprint(c.verdict.Action, c.verdict.Reason)
			if len(req) <= 512 { // a head's limit may be reached by a piece earlier
				results = append(results, result)
			}
			for _, p := range cut(string(resp), s) {
				c.send(pipeline.ToClient, p)
			}
			c.s.End(pipeline.ToServer, r.now)
			c.s.End(pipeline.ToClient, r.now)
			c.s.Close(r.now)
			for d, in := range [][]byte{req, resp} {
				if !bytes.HasPrefix(in, c.passed[d]) {
					t.Fatalf("%v: passed %q of %q", pipeline.Direction(d), c.passed[d], in)
				}
			}
		}
		if len(results) == 2 && results[0] != results[1] {
			t.Fatalf("whole: %s, in pieces: %s", results[0], results[1])
		}
	})
}

func BenchmarkKeepAlive(b *testing.B) {
	r := newRig(func(c *Config) { c.DenyHosts = []string{"*.ads.example"}; c.Log = false })
	s := r.Open(&pipeline.Conn{})
	req := []byte("GET /index.html HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	resp := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 128\r\n\r\n" + strings.Repeat("x", 128))
	b.ReportAllocs()
	for b.Loop() {
		s.Data(pipeline.ToServer, req, 1)
		s.Data(pipeline.ToClient, resp, 2)
	}
}

// TestTraceparent: what a client says of its trace is recorded, if it can be that.
func TestTraceparent(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for value, want := range map[string]string{parent: parent, parent + "0": "", "": ""} {
		for _, two := range []bool{false, true} {
			r := newRig(nil)
			c := r.open()
			if two {
				c.send(pipeline.ToServer, start2+ask(1, false, "GET", "a", "/", "traceparent: "+value))
			} else {
				c.send(pipeline.ToServer, "GET / HTTP/1.1\r\nHost: a\r\nTraceParent: "+value+"\r\n\r\n")
			}
			c.s.Close(r.now)
			if len(r.rec.lines) != 1 {
				t.Fatalf("%d events: %q", len(r.rec.lines), r.rec.lines)
			}
			if got := decoded(t, r.rec.lines[0]).HTTP.Traceparent; got != want {
				t.Errorf("%q, HTTP/2 %v: recorded is %q", value, two, got)
			}
		}
	}
}

// keepAlive returns a function that plays a request and its response, over one of
// 64 connections in turn, that are recorded in a file; file "": they are not.
func keepAlive(t testing.TB, file string) func() {
	c := defaults()
	c.DenyHosts, c.DenyMethods, c.Log = []string{"*.ads.example"}, []string{"TRACE"}, file != ""
	r, err := record.Open([]record.Spec{{To: "file:" + cmp.Or(file, "/dev/null"), Events: []string{"http"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err, s := r.Close(), r.Stats()[0]; err != nil || s.Dropped+s.Failed > 0 {
			t.Error(err, s)
		}
	})
	clock := pipeline.Clock()
	s, err := newStage(c, &pipeline.Env{Chain: "web", Recorder: r.TimedLane(clock), Counters: &pipeline.CounterSet{}})
	if err != nil {
		t.Fatal(err)
	}
	request := []byte("GET /index.html HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nAccept: */*\r\n\r\n")
	response := []byte("HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sat, 03 Jan 2026 03:04:05 GMT\r\nContent-Type: text/plain\r\nContent-Length: 128\r\nConnection: keep-alive\r\n\r\n" + strings.Repeat("x", 128))
	var streams [64]pipeline.Stream
	for i := range streams {
		streams[i] = s.Open(&pipeline.Conn{
			ID: uint64(i), Client: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), 40000+uint16(i)), Server: netip.MustParseAddrPort("10.0.0.2:80"), Start: clock(), Depth: pipeline.DepthInspect,
		})
	}
	plays, now := 0, clock()
	return func() {
		st := streams[plays%len(streams)]
		if n, v := st.Data(pipeline.ToServer, request, now); n != len(request) || v.Action != pipeline.StreamContinue {
			t.Fatal(n, v)
		}
		if n, v := st.Data(pipeline.ToClient, response, now+1e5+int64(plays)&0xffff); n != len(response) || v.Action != pipeline.StreamContinue {
			t.Fatal(n, v)
		}
		if plays++; plays%8 == 0 { // a worker's turn is over, and the sink may have its own
			runtime.Gosched()
			now = clock()
		}
	}
}

// TestNoAllocations: a kept connection costs none for its requests, records
// included.
func TestNoAllocations(t *testing.T) {
	play := keepAlive(t, "/dev/null")
	for range 64 {
		play() // the first of each connection
	}
	// The sink's own are counted as well, a few for thousands of records.
	if got := testing.AllocsPerRun(20, func() {
		for range 1000 {
			play()
		}
	}); got > 200 {
		t.Errorf("1000 requests cost %v allocations", got)
	}
}

// BenchmarkRecorded: what a record costs beside the request that it is of. Time is
// that of the process, which others on the machine disturb less.
func BenchmarkRecorded(b *testing.B) {
	for _, row := range []struct{ name, file string }{{"unseen", ""}, {"null", "/dev/null"}, {"file", filepath.Join(b.TempDir(), "records")}} {
		b.Run(row.name, func(b *testing.B) {
			play := keepAlive(b, row.file)
			b.ReportAllocs()
			var from, to syscall.Rusage
			if err := syscall.Getrusage(syscall.RUSAGE_SELF, &from); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				play()
			}
			if err := syscall.Getrusage(syscall.RUSAGE_SELF, &to); err != nil {
				b.Fatal(err)
			}
			used := to.Utime.Nano() - from.Utime.Nano() + to.Stime.Nano() - from.Stime.Nano()
			b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/op")
		})
	}
}
