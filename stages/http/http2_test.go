package http

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	stdhttp "net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2/hpack"

	"penstock/internal/h2"
	rules "penstock/internal/policy"
	"penstock/pipeline"
)

func frame(typ, flags byte, stream uint32, payload ...byte) string {
	return string(appendFrame(nil, typ, flags, stream, payload...))
}

// fields compresses "name: value" lines without state, so that blocks can stand
// in any order.
func fields(lines ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	e.SetMaxDynamicTableSizeLimit(0)
	for _, f := range lines {
		i := strings.Index(f[1:], ":") + 1
		_ = e.WriteField(hpack.HeaderField{Name: f[:i], Value: strings.TrimPrefix(f[i+1:], " ")})
	}
	return b.Bytes()
}

const (
	endStream  = 1
	endHeaders = 4
)

var (
	settings2 = frame(4, 0, 0)
	start2    = h2.Preface + settings2
)

// ask is a request; body: DATA frames follow.
func ask(stream uint32, body bool, method, host, path string, more ...string) string {
	flags := byte(endHeaders | endStream)
	if body {
		flags = endHeaders
	}
	return frame(1, flags, stream, fields(append([]string{":method: " + method, ":scheme: http", ":path: " + path, ":authority: " + host}, more...)...)...)
}

func get2(stream uint32) string { return ask(stream, false, "GET", "good.example", "/a") }

// answer2 is a response with a body of n bytes; n < 0: none.
func answer2(stream uint32, status string, n int, more ...string) string {
	block := fields(append([]string{":status: " + status}, more...)...)
	if n < 0 {
		return frame(1, endHeaders|endStream, stream, block...)
	}
	return frame(1, endHeaders, stream, block...) + frame(0, endStream, stream, make([]byte, n)...)
}

func reset2(stream uint32, code byte) string { return frame(3, 0, stream, 0, 0, 0, code) }

// TestHTTP2Requests: what is judged, and what each trick is called. Whole, byte
// by byte, and cut at random: the same answer, and nothing of a refused head
// passes.
func TestHTTP2Requests(t *testing.T) {
	deny := func(c *Config) {
		c.DenyHosts = []string{"*.ads.example", "bad.example"}
		c.DenyMethods, c.DenyPaths = []string{"DELETE"}, []string{"/admin/*"}
		c.DenyHeaders = []string{"X-Evil", "User-Agent: *sqlmap*"}
		c.MaxStreams, c.MaxResets, c.MaxHead, c.MaxHeaders = 20, 5, 8000, 50
	}
	block := fields(":method: GET", ":scheme: http", ":path: /", ":authority: bad.example")
	many := func(n int, each func(stream uint32) string) (s string) {
		for i := range n {
			s += each(uint32(2*i + 1))
		}
		return s
	}
	// One entry of 4000 bytes, then a block that names it over and over.
	bomb := append(append([]byte{0x40, 1, 'x', 0x7f, 0xa1, 0x1e}, bytes.Repeat([]byte{'a'}, 4000)...), bytes.Repeat([]byte{0xbe}, 100)...)
	for _, row := range []struct{ name, in, want string }{
		{"plain", start2 + get2(1), ""},
		{"many at once", start2 + many(20, get2), ""},
		{"one more", start2 + many(21, get2), "http2_too_many_streams"},
		{"body", start2 + ask(1, true, "POST", "a", "/", "content-length: 5") + frame(0, 0, 1, 1, 2, 3) + frame(0, 8, 1, 1, 4, 0) + frame(0, endStream, 1, 5) + get2(3), ""},
		{"trailers", start2 + ask(1, true, "POST", "a", "/") + frame(1, endHeaders|endStream, 1, fields("x: y")...) + get2(3), ""},
		{"continuation", start2 + frame(1, endStream, 1, block[:3]...) + frame(9, 0, 1, block[3:5]...) + frame(9, endHeaders, 1, block[5:]...), "http_host_denied"},
		{"padded, with a priority", start2 + frame(1, endStream|endHeaders|0x28, 1, append(append([]byte{2, 0, 0, 0, 0, 1}, block...), 0, 0)...), "http_host_denied"},
		{"host", start2 + ask(1, false, "GET", "x.y.ads.example", "/"), "http_host_denied"},
		{"host, case, dot, port", start2 + ask(1, false, "GET", "BAD.example.:80", "/"), "http_host_denied"},
		{"host field alone", start2 + frame(1, 5, 1, fields(":method: GET", ":scheme: http", ":path: /", "host: bad.example")...), "http_host_denied"},
		{"second request", start2 + get2(1) + ask(3, false, "GET", "bad.example", "/"), "http_host_denied"},
		{"behind another's body", start2 + ask(1, true, "POST", "a", "/") + frame(0, 0, 1, 1, 2) + ask(3, false, "GET", "bad.example", "/"), "http_host_denied"},
		{"connect", start2 + frame(1, endHeaders, 1, fields(":method: CONNECT", ":authority: bad.example:443")...), "http_host_denied"},
		{"method", start2 + ask(1, false, "DELETE", "a", "/"), "http_method_denied"},
		{"path", start2 + ask(1, false, "GET", "a", "/x/../%61dmin/y?z"), "http_path_denied"},
		{"bad path", start2 + ask(1, false, "GET", "a", "/x%2fadmin"), "http_bad_path"},
		{"header", start2 + ask(1, false, "GET", "a", "/", "x-evil: 1"), "http_header_denied"},
		{"header by value", start2 + ask(1, false, "GET", "a", "/", "user-agent: my SQLMap"), "http_header_denied"},
		{"bad host", start2 + ask(1, false, "GET", "a/b", "/"), "http_bad_host"},
		{"host and authority differ", start2 + ask(1, false, "GET", "a", "/", "host: bad.example"), "http2_bad_head"},
		{"a line end in a value", start2 + ask(1, false, "GET", "a", "/", "x: y\r\nhost: bad.example"), "http2_bad_head"},
		{"transfer-encoding", start2 + ask(1, true, "POST", "a", "/", "transfer-encoding: chunked"), "http2_bad_head"},
		{"two lengths", start2 + ask(1, true, "POST", "a", "/", "content-length: 4", "content-length: 4"), "http_repeated_length"},
		{"a signed length", start2 + ask(1, true, "POST", "a", "/", "content-length: +4"), "http_bad_length"},
		{"a body too long", start2 + ask(1, true, "POST", "a", "/", "content-length: 2") + frame(0, 0, 1, 1, 2, 3), "http2_length_mismatch"},
		{"a body too short", start2 + ask(1, true, "POST", "a", "/", "content-length: 2") + frame(0, endStream, 1, 1), "http2_length_mismatch"},
		{"no body at all", start2 + ask(1, false, "POST", "a", "/", "content-length: 2"), "http2_length_mismatch"},
		{"a body that trailers end", start2 + ask(1, true, "POST", "a", "/", "content-length: 2") + frame(1, endHeaders|endStream, 1, fields("x: y")...), "http2_length_mismatch"},
		{"headers", start2 + ask(1, false, "GET", "a", "/", slices.Repeat([]string{"x: y"}, 51)...), "http_too_many_headers"},
		{"head", start2 + frame(1, 0, 1, make([]byte, 5000)...) + frame(9, 0, 1, make([]byte, 5000)...), "http_head_too_large"},
		{"hpack bomb", start2 + frame(1, 5, 1, bomb...), "http2_hpack_bomb"},
		{"table too large", start2 + frame(1, 5, 1, 0x3f, 0xe1, 0xff, 0x7f), "http2_bad_compression"},
		{"no index", start2 + frame(1, 5, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), "http2_bad_compression"},
		{"continuation flood", start2 + frame(1, 0, 1) + strings.Repeat(frame(9, 0, 1), 17), "http2_continuation_flood"},
		{"five resets", start2 + many(5, func(s uint32) string { return get2(s) + reset2(s, 8) }) + get2(101), ""},
		{"rapid reset", start2 + many(6, func(s uint32) string { return get2(s) + reset2(s, 8) }), "http2_rapid_reset"},
		{"settings are missing", h2.Preface + get2(1), "http2_bad_preface"},
		{"even stream", start2 + get2(2), "http2_bad_frame"},
		{"a frame in a block", start2 + frame(1, 0, 1, block[:3]...) + frame(6, 0, 0, make([]byte, 8)...), "http2_bad_frame"},
		{"data of no stream", start2 + frame(0, 0, 7, 1), "http2_bad_frame"},
		{"preface cut short", "PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", "http_bad_request"},
		{"preface behind a request", get + h2.Preface, "http_bad_request"},
		{"preface behind an empty line", "\r\n" + h2.Preface, "http_bad_request"},
	} {
		t.Run(row.name, func(t *testing.T) {
			for seed := range uint64(4) {
				r := newRig(deny)
				c := r.open()
				for _, piece := range cut(row.in, seed) {
					c.show(pipeline.ToServer)
					c.held[0] = append(c.held[0], piece...)
					c.show(pipeline.ToServer)
				}
				reason := ""
				if c.verdict.Action == pipeline.StreamDeny {
					reason = c.verdict.Reason.String()
				}
				if reason != row.want {
					t.Fatalf("pieces %d: got %q, want %q", seed, reason, row.want)
				}
				if row.want == "" && string(c.passed[0]) != row.in {
					t.Fatalf("pieces %d: passed %d of %d bytes", seed, len(c.passed[0]), len(row.in))
				}
				// What the server would make of what has passed holds no such request.
				server := h2.NewReader(h2.FromClient, h2.DefaultLimits)
				for in := c.passed[0]; len(in) > 0; {
					n, e := server.Next(in)
					in = in[n:]
					if e == h2.Failed {
						break
					}
					if e == h2.HeadEnd && strings.HasSuffix(row.want, "_denied") && (server.Head().Host != "a" && server.Head().Host != "good.example") {
						t.Fatalf("pieces %d: %+v has passed", seed, server.Head())
					}
				}
				c.s.Close(r.now)
				if row.want != "" && !strings.Contains(strings.Join(r.rec.lines, "\n"), `"reason":"`+row.want+`"`) {
					t.Fatalf("pieces %d: records %q", seed, r.rec.lines)
				}
			}
		})
	}
}

// TestHTTP2Rules: expressions see a request in HTTP/2 as one in HTTP/1.
func TestHTTP2Rules(t *testing.T) {
	r := newRig(func(c *Config) {
		c.Rules = []rules.Rule{{Action: "deny", Name: "test", If: `http.method == "GET" && http.path == "/x" && http.host == "a" && http.headers["X-A"] == "1" && http.headers["host"] == "A"`}}
	})
	c := r.open()
	c.send(pipeline.ToServer, start2+ask(1, false, "GET", "A", "/x", "x-a: 2")+ask(3, false, "GET", "A", "/y/../x?q", "x-a: 1"))
	c.s.Close(r.now)
	if c.verdict.Reason != reasonRule || string(c.passed[0]) != start2+ask(1, false, "GET", "A", "/x", "x-a: 2") || !strings.Contains(r.rec.lines[0], `"rules":["test"]`) {
		t.Errorf("got %+v, passed %q, records %q", c.verdict, c.passed[0], r.rec.lines)
	}
}

// TestHTTP2Off: without http2 it is no HTTP.
func TestHTTP2Off(t *testing.T) {
	r := newRig(func(c *Config) { c.DenyHosts, c.HTTP2 = []string{"bad"}, false })
	c := r.open()
	c.send(pipeline.ToServer, start2+get2(1))
	if c.verdict.Action != pipeline.StreamDeny || c.verdict.Reason != reasonBadHead {
		t.Errorf("got %+v", c.verdict)
	}
	c = r.open()
	c.send(pipeline.ToServer, upgrade2)
	if c.verdict.Reason != reasonH2C {
		t.Errorf("upgrade: got %+v", c.verdict)
	}
}

const upgrade2 = "GET /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAIAA\r\n\r\n"

// TestHTTP2Upgrade: the request that asks is answered on stream 1, and what comes
// after is judged, however it is cut; its settings hold.
func TestHTTP2Upgrade(t *testing.T) {
	switching := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
	// The table that HTTP2-Settings allows: 32768 bytes.
	answer := frame(1, endHeaders|endStream, 1, append([]byte{0x3f, 0xe1, 0xff, 0x01}, fields(":status: 200", "x: y")...)...)
	for seed := range uint64(4) {
		r := newRig(func(c *Config) { c.DenyHosts = []string{"bad"} })
		c := r.open()
		for _, p := range cut(upgrade2+start2+get2(3), seed) {
			c.send(pipeline.ToServer, p)
		}
		if string(c.passed[0]) != upgrade2 {
			t.Fatalf("pieces %d: passed %q before the server has agreed", seed, c.passed[0])
		}
		for _, p := range cut(switching+settings2+answer, seed) {
			c.send(pipeline.ToClient, p)
		}
		c.send(pipeline.ToClient, answer2(3, "404", 10))
		c.send(pipeline.ToServer, ask(5, false, "GET", "bad", "/"))
		c.s.Close(r.now)
		var got []string
		for _, l := range r.rec.lines {
			e := decoded(t, l)
			got = append(got, fmt.Sprint(e.HTTP.HTTP2.Stream, " ", e.HTTP.Method, " ", e.HTTP.URL, " ", e.HTTP.Status, " ", e.Reason))
		}
		slices.Sort(got)
		if want := "1 GET /up 200 |3 GET /a 404 |5 GET / 403 http_host_denied"; strings.Join(got, "|") != want {
			t.Errorf("pieces %d: got %q, lost %d", seed, got, r.responseLost.Load())
		}
	}
	// A server that goes on in HTTP/1.1: what follows is judged as that.
	r := newRig(func(c *Config) { c.DenyHosts = []string{"bad"} })
	c := r.open()
	c.send(pipeline.ToServer, upgrade2+"GET / HTTP/1.1\r\nHost: bad\r\n\r\n")
	c.send(pipeline.ToClient, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	if c.verdict.Reason != reasonHost {
		t.Errorf("an upgrade that was not taken: %+v", c.verdict)
	}
}

// TestHTTP2Log: several streams at once, whose ends come in another order; gRPC;
// resets; a promise.
func TestHTTP2Log(t *testing.T) {
	r := newRig(nil)
	c := r.open()
	c.send(pipeline.ToClient, settings2) // before the client has said anything
	c.send(pipeline.ToServer, start2+ask(1, true, "POST", "Good.Example:80", "/up?x=1", "user-agent: t", "content-length: 3"))
	c.send(pipeline.ToServer, ask(3, true, "POST", "a", "/pkg.Greeter/SayHello", "content-type: application/grpc+proto", "te: trailers"))
	c.send(pipeline.ToServer, get2(5)+get2(7)+get2(9)+frame(0, endStream, 3, 1, 2))
	c.send(pipeline.ToClient, frame(1, endHeaders, 3, fields(":status: 200", "content-type: application/grpc")...)+frame(0, 0, 3, 1, 2, 3))
	c.send(pipeline.ToServer, frame(0, endStream, 1, 1, 2, 3)+reset2(5, 8))
	c.send(pipeline.ToClient, frame(1, endHeaders, 1, fields(":status: 103", "link: x")...)+answer2(1, "201", 4, "content-type: text/x"))
	c.send(pipeline.ToClient, reset2(7, 7)+frame(1, endHeaders|endStream, 3, fields("grpc-status: 5", "grpc-message: no")...))
	c.send(pipeline.ToClient, frame(5, endHeaders, 9, append([]byte{0, 0, 0, 2}, fields(":method: GET", ":scheme: http", ":path: /push", ":authority: a")...)...)+answer2(2, "200", 1)+answer2(9, "404", -1))
	c.send(pipeline.ToServer, get2(11))
	c.s.Close(r.now)
	var got []string
	for _, l := range r.rec.lines {
		e := decoded(t, l)
		h := e.HTTP
		line := fmt.Sprint(h.HTTP2.Stream, " ", h.Method, " ", h.Hostname, h.URL, " ", h.Status)
		if h.GRPC != nil {
			line += fmt.Sprint(" grpc ", h.GRPC.Service, " ", h.GRPC.Method, " ", *h.GRPC.Status)
		}
		if h.HTTP2.Push {
			line += " push"
		}
		got = append(got, strings.TrimSpace(fmt.Sprint(line, " ", h.HTTP2.Reset, " ", h.HTTP2.Error)))
		if h.Protocol != "HTTP/2" || h.Status > 0 && (h.FirstByte <= 0 && !h.HTTP2.Push || h.Duration < h.FirstByte) {
			t.Errorf("record %s", l)
		}
		if h.HTTP2.Stream == 1 && (h.RequestBytes != uint64(len(ask(1, true, "POST", "Good.Example:80", "/up?x=1", "user-agent: t", "content-length: 3"))+9+3) || h.UserAgent != "t" || h.ContentType != "text/x") {
			t.Errorf("record %s", l)
		}
	}
	want := []string{
		"5 GET good.example/a 0 client CANCEL", "1 POST good.example/up?x=1 201", "7 GET good.example/a 0 server REFUSED_STREAM",
		"3 POST a/pkg.Greeter/SayHello 200 grpc pkg.Greeter SayHello 5", "2 GET a/push 200 push", "9 GET good.example/a 404", "11 GET good.example/a 0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if r.http2.Load() != 1 || r.resets.Load() != 2 || r.unanswered.Load() != 1 || r.responseLost.Load() != 0 {
		t.Errorf("connections %d, resets %d, unanswered %d, lost %d", r.http2.Load(), r.resets.Load(), r.unanswered.Load(), r.responseLost.Load())
	}
}

// TestHTTP2ServerFirst: a server that speaks first is HTTP/2 only if the client
// says so.
func TestHTTP2ServerFirst(t *testing.T) {
	r := newRig(func(c *Config) { c.DenyHosts = []string{"bad"} })
	c := r.open()
	c.send(pipeline.ToClient, settings2)
	c.send(pipeline.ToServer, "GET / HTTP/1.1\r\nHost: bad\r\n\r\n")
	if c.verdict.Reason != reasonHost {
		t.Errorf("got %+v", c.verdict)
	}
	// Responses that cannot be followed switch no policy off.
	c = r.open()
	c.send(pipeline.ToServer, start2+get2(1))
	c.send(pipeline.ToClient, settings2+frame(1, endHeaders, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))
	c.send(pipeline.ToServer, get2(3)+ask(5, false, "GET", "bad", "/"))
	if c.verdict.Reason != reasonHost || r.responseLost.Load() != 2 {
		t.Errorf("got %+v, lost %d", c.verdict, r.responseLost.Load())
	}
}

// TestHTTP2Reply: a client is answered on its stream where the server's bytes end
// between two frames, and told why no further request is taken.
func TestHTTP2Reply(t *testing.T) {
	for _, row := range []struct {
		name, server, in string
		want             string // of the reply: types of frames, status, code of GOAWAY
		status           int
	}{
		{"first", "", ask(1, false, "GET", "bad", "/"), "settings response 1 403 goaway 1 0", 403},
		{"behind SETTINGS", settings2, ask(1, false, "GET", "bad", "/"), "response 1 403 goaway 1 0", 403},
		{"beside another", settings2, get2(1) + ask(3, false, "GET", "bad", "/"), "response 3 403 goaway 3 0", 403},
		{"headers", settings2, ask(1, false, "GET", "a", "/", slices.Repeat([]string{"x: y"}, 300)...), "response 1 431 goaway 1 0", 431},
		{"within a frame", settings2 + "\x00", ask(1, false, "GET", "bad", "/"), "", 0},
		{"a flood", settings2, frame(1, 0, 1) + strings.Repeat(frame(9, 0, 1), 17), "goaway 0 11", 0},
		{"a bad frame", settings2, get2(2), "goaway 0 1", 0},
	} {
		r := newRig(func(c *Config) { c.DenyHosts = []string{"bad"} })
		c := r.open()
		c.send(pipeline.ToServer, start2)
		if row.server != "" {
			c.send(pipeline.ToClient, row.server)
		}
		c.send(pipeline.ToServer, row.in)
		var got []string
		client := h2.NewReader(h2.FromServer, h2.DefaultLimits)
		in := []byte(row.server + string(c.verdict.Reply))
		for n, e := 0, h2.More; len(in) > 0 && e != h2.Failed; in = in[n:] {
			n, e = client.Next(in)
			switch e {
			case h2.Settings:
				if row.server == "" {
					got = append(got, "settings")
				}
			case h2.HeadEnd:
				got = append(got, fmt.Sprint("response ", client.Stream(), " ", client.Head().Status))
			case h2.GoAway:
				p := in[n-8:]
				got = append(got, fmt.Sprint("goaway ", binary.BigEndian.Uint32(p), " ", binary.BigEndian.Uint32(p[4:])))
			case h2.Failed:
				got = append(got, client.Fault().String())
			}
		}
		if strings.Join(got, " ") != row.want || c.verdict.Action != pipeline.StreamDeny {
			t.Errorf("%s: got %q, %v", row.name, got, c.verdict.Action)
		}
		c.s.Close(r.now)
		if status := 0; len(r.rec.lines) > 0 {
			if status = decoded(t, r.rec.lines[0]).HTTP.Status; status != row.status {
				t.Errorf("%s: record %s", row.name, r.rec.lines[0])
			}
		}
	}
}

// relay carries bytes between two ends through a conversation.
type relay struct {
	mu   sync.Mutex
	c    *conversation
	ends [2]net.Conn // client's, server's
	sent [2]int
}

func (r *relay) carry(d pipeline.Direction, from net.Conn) {
	b := make([]byte, 1500)
	for {
		n, err := from.Read(b)
		if err != nil {
			r.ends[0].Close()
			r.ends[1].Close()
			return
		}
		r.mu.Lock()
		r.c.send(d, string(b[:n]))
		for d, to := range []net.Conn{r.ends[1], r.ends[0]} {
			if p := r.c.passed[d][r.sent[d]:]; len(p) > 0 {
				r.sent[d] += len(p)
				_, _ = to.Write(p)
			}
		}
		if r.c.verdict.Action == pipeline.StreamDeny {
			_, _ = r.ends[0].Write(r.c.verdict.Reply)
			r.ends[0].Close()
			r.ends[1].Close()
		}
		r.mu.Unlock()
	}
}

// TestHTTP2RealEnds: Go's own client and server, with 50 requests at once, bodies,
// trailers and huffman-coded fields; a refused request is a 403 to the client.
func TestHTTP2RealEnds(t *testing.T) {
	r := newRig(func(c *Config) { c.DenyPaths = []string{"/admin"} })
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	backend, front := listen(), listen()
	defer front.Close()
	var clear stdhttp.Protocols
	clear.SetUnencryptedHTTP2(true)
	server := &stdhttp.Server{Protocols: &clear, Handler: stdhttp.HandlerFunc(func(w stdhttp.ResponseWriter, q *stdhttp.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		n, _ := io.Copy(io.Discard, q.Body)
		w.WriteHeader(200)
		_, _ = fmt.Fprintf(w, "%d %s", n, strings.Repeat("x", 40000))
		w.Header().Set("Grpc-Status", "0")
	})}
	go func() { _ = server.Serve(backend) }()
	defer server.Close()
	go func() {
		for {
			in, err := front.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", backend.Addr().String())
			if err != nil {
				return
			}
			l := &relay{c: r.open(), ends: [2]net.Conn{in, out}}
			go l.carry(pipeline.ToServer, in)
			go l.carry(pipeline.ToClient, out)
		}
	}()
	transport := &stdhttp.Transport{Protocols: &clear, MaxConnsPerHost: 1}
	defer transport.CloseIdleConnections()
	client := &stdhttp.Client{Transport: transport}
	post := func(path string) (*stdhttp.Response, string, error) {
		q, err := stdhttp.NewRequestWithContext(context.Background(), "POST", "http://"+front.Addr().String()+path, strings.NewReader(strings.Repeat("b", 20000)))
		if err != nil {
			return nil, "", err
		}
		q.Header.Set("Content-Type", "application/grpc")
		resp, err := client.Do(q)
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp, string(b), err
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			resp, body, err := post(fmt.Sprintf("/svc/m%d", i))
			if err != nil || resp.StatusCode != 200 || resp.ProtoMajor != 2 || len(body) != 40006 || !strings.HasPrefix(body, "20000 ") {
				t.Errorf("request %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if resp, _, err := post("/admin"); err != nil || resp.StatusCode != 403 {
		t.Errorf("refused request: %v, %v", resp, err)
	}
	r.expectLines(t, 50)
	for _, l := range r.rec.lines[:50] {
		h := decoded(t, l).HTTP
		if h.Status != 200 || h.RequestBytes < 20000 || h.RequestBytes > 20500 || h.Length < 40006 || h.Length > 40500 ||
			h.GRPC == nil || h.GRPC.Service != "svc" || h.GRPC.Status == nil || *h.GRPC.Status != 0 {
			t.Errorf("record %s", l)
		}
	}
}

func (r *rig) expectLines(t *testing.T, n int) {
	t.Helper()
	if len(r.rec.lines) < n {
		t.Fatalf("%d records, want %d", len(r.rec.lines), n)
	}
}

// TestHTTP2Memory: a client that opens as many streams as it may, with the
// longest heads, takes what the README says and no more.
func TestHTTP2Memory(t *testing.T) {
	r := newRig(nil)
	s := r.Open(&pipeline.Conn{})
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s.Data(pipeline.ToServer, []byte(start2), 1)
	for i := range 999 {
		path := fmt.Sprintf("/%d", i) + strings.Repeat("\x7f", 30000)
		b := fields(":method: GET", ":scheme: http", ":path: "+path, ":authority: a", "user-agent: "+path)
		in := frame(1, endStream, uint32(2*i+1), b[:16000]...)
		for b = b[16000:]; len(b) > 16000; b = b[16000:] {
			in += frame(9, 0, uint32(2*i+1), b[:16000]...)
		}
		in += frame(9, endHeaders, uint32(2*i+1), b...)
		if n, v := s.Data(pipeline.ToServer, []byte(in), 1); v.Action != pipeline.StreamContinue || n != len(in) {
			t.Fatalf("stream %d: %+v", i, v)
		}
	}
	// A block that does not end, in either direction.
	s.Data(pipeline.ToServer, []byte(frame(1, 0, 9999, make([]byte, 16000)...)+strings.Repeat(frame(9, 0, 9999, make([]byte, 16000)...), 3)), 1)
	s.Data(pipeline.ToClient, []byte(settings2+frame(1, 0, 1, make([]byte, 16000)...)+strings.Repeat(frame(9, 0, 1, make([]byte, 16000)...), 3)), 1)
	const bound = 3 << 20
	if used := heap() - before; used > bound {
		t.Errorf("one connection takes %d bytes, more than %d", used, bound)
	}
	if got := len(s.(*stream).two.streams); got != 999 {
		t.Errorf("%d streams", got)
	}
	runtime.KeepAlive(s)
}

// TestHTTP2DataAllocatesNothing: bodies are stepped over.
func TestHTTP2DataAllocatesNothing(t *testing.T) {
	r := newRig(func(c *Config) { c.DenyHosts = []string{"bad"} })
	s := r.Open(&pipeline.Conn{})
	s.Data(pipeline.ToServer, []byte(start2+ask(1, true, "POST", "a", "/")), 1)
	s.Data(pipeline.ToClient, []byte(settings2+frame(1, endHeaders, 1, fields(":status: 200")...)), 1)
	data := []byte(frame(0, 0, 1, make([]byte, 1400)...))
	update := []byte(frame(8, 0, 1, 0, 0, 1, 0) + frame(6, 1, 0, make([]byte, 8)...))
	if n := testing.AllocsPerRun(1000, func() {
		s.Data(pipeline.ToServer, data, 2)
		s.Data(pipeline.ToServer, update, 2)
		s.Data(pipeline.ToClient, data, 2)
		s.Data(pipeline.ToClient, update, 2)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzHTTP2 feeds frames of both ends, in two ways of cutting them: no panic, no
// byte invented, and the same verdict for both.
func FuzzHTTP2(f *testing.F) {
	f.Add([]byte(get2(1)+ask(3, true, "POST", "a", "/", "content-length: 2")+frame(0, endStream, 3, 1, 2)+reset2(5, 8)), []byte(settings2+answer2(1, "200", 5)), uint64(1), false)
	f.Add([]byte(ask(3, false, "GET", "bad", "/")), []byte("HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"+settings2+answer2(1, "200", 5)), uint64(2), true)
	f.Add([]byte(frame(1, 0, 1)+strings.Repeat(frame(9, 0, 1), 17)), []byte(settings2), uint64(3), false)
	f.Fuzz(func(t *testing.T, in, resp []byte, seed uint64, upgrade bool) {
		first := ""
		if upgrade {
			first = upgrade2
		}
		req := first + start2 + string(in)
		var results [2]string
		for i, s := range []uint64{0, 2 + seed%100} {
			r := newRig(func(c *Config) { c.DenyHosts, c.MaxHead, c.MaxStreams = []string{"bad"}, 4000, 50 })
			c := r.open()
			for _, p := range cut(req, s) {
				c.send(pipeline.ToServer, p)
			}
			if !upgrade { // where a server answers, its place among the client's bytes counts
				results[i] = fmt.Sprint(c.verdict.Action, c.verdict.Reason)
			}
			for _, p := range cut(string(resp), s) {
				c.send(pipeline.ToClient, p)
			}
			c.s.End(pipeline.ToServer, r.now)
			c.s.End(pipeline.ToClient, r.now)
			c.s.Close(r.now)
			if two := c.s.(*stream).two; two != nil && (len(two.streams) > 0 || two.kept != 0 && c.verdict.Action != pipeline.StreamDeny) {
				t.Fatalf("%d streams, %d bytes are left", len(two.streams), two.kept)
			}
			for d, in := range [][]byte{[]byte(req), resp} {
				if !bytes.HasPrefix(in, c.passed[d]) {
					t.Fatalf("%v: passed %q of %q", pipeline.Direction(d), c.passed[d], in)
				}
			}
		}
		if results[0] != results[1] {
			t.Fatalf("whole: %s, in pieces: %s", results[0], results[1])
		}
	})
}

func BenchmarkHTTP2(b *testing.B) {
	r := newRig(func(c *Config) { c.DenyHosts = []string{"*.ads.example"}; c.Log = false })
	s := r.Open(&pipeline.Conn{})
	s.Data(pipeline.ToServer, []byte(start2), 1)
	s.Data(pipeline.ToClient, []byte(settings2), 1)
	req := []byte(ask(1, false, "GET", "www.example.com", "/index.html", "user-agent: bench", "accept: */*"))
	resp := []byte(answer2(1, "200", 128, "content-type: text/plain"))
	data := len(resp) - 128 - 9
	stream := uint32(1)
	b.ReportAllocs()
	for b.Loop() {
		binary.BigEndian.PutUint32(req[5:], stream)
		binary.BigEndian.PutUint32(resp[5:], stream)
		binary.BigEndian.PutUint32(resp[data+5:], stream)
		stream += 2
		s.Data(pipeline.ToServer, req, 1)
		s.Data(pipeline.ToClient, resp, 2)
	}
	if n := r.responses.Load(); n < uint64(b.N) {
		b.Fatalf("%d responses of %d", n, b.N)
	}
}
