package h2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/net/http2/hpack"
)

// frame builds a frame.
func frame(typ, flags byte, stream uint32, payload ...byte) []byte {
	n := len(payload)
	b := []byte{byte(n >> 16), byte(n >> 8), byte(n), typ, flags}
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// encoder compresses blocks of one connection.
type encoder struct {
	*hpack.Encoder
	b bytes.Buffer
}

func newEncoder() *encoder {
	e := &encoder{}
	e.Encoder = hpack.NewEncoder(&e.b)
	return e
}

// block returns "name: value" lines as a header block.
func (e *encoder) block(fields ...string) []byte {
	e.b.Reset()
	for _, f := range fields {
		i := strings.Index(f[1:], ":") + 1
		_ = e.WriteField(hpack.HeaderField{Name: f[:i], Value: strings.TrimPrefix(f[i+1:], " ")})
	}
	return bytes.Clone(e.b.Bytes())
}

func block(fields ...string) []byte { return newEncoder().block(fields...) }

func cat(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

var (
	preface  = []byte(Preface)
	settings = frame(frameSettings, 0, 0)
	get      = []string{":method: GET", ":scheme: http", ":path: /", ":authority: a.example"}
)

func headers(flags byte, stream uint32, fields ...string) []byte {
	return frame(frameHeaders, flags|flagEndHeaders, stream, block(fields...)...)
}

// run reads b in pieces of size bytes (0: whole) and says what came of it.
func run(dir Direction, limits Limits, b []byte, size int) (log []string) {
	r := NewReader(dir, limits)
	for len(b) > 0 {
		piece := b
		if size > 0 {
			piece = b[:min(size, len(b))]
		}
		b = b[len(piece):]
		for len(piece) > 0 {
			n, e := r.Next(piece)
			piece = piece[n:]
			switch e {
			case HeadEnd:
				log = append(log, describe(r.Head()))
			case DataEnd:
				n, end := r.Data()
				log = append(log, fmt.Sprintf("data %d %d %v", r.Stream(), n, end))
			case Reset:
				log = append(log, fmt.Sprintf("reset %d", r.Stream()), fmt.Sprintf("code %d", r.ErrorCode()))
			case Settings:
				log = append(log, fmt.Sprintf("settings %v", r.Settings()))
			case GoAway:
				log = append(log, "goaway")
			case Failed:
				return append(log, r.Fault().String())
			}
		}
	}
	if !r.Idle() {
		log = append(log, "under way")
	}
	return log
}

func describe(h *Head) string {
	kind := "request " + h.Method + " " + h.Host + " " + h.Path
	switch {
	case h.Trailers:
		kind = "trailers"
	case h.Promised > 0:
		kind = fmt.Sprintf("promise %d %s", h.Promised, kind)
	case h.Status != "":
		kind = "response " + h.Status
	}
	return fmt.Sprintf("%d %s %d %v", h.Stream, kind, len(h.Fields), h.EndStream)
}

func TestReader(t *testing.T) {
	e := newEncoder()
	first, second := e.block(get...), e.block(append(slices.Clone(get), "x: y")...) // the second needs the table of the first
	long := block(append(slices.Clone(get), "x: "+strings.Repeat("\x7f", 3000))...)
	start := cat(preface, settings)
	for _, row := range []struct {
		name string
		dir  Direction
		in   []byte
		want string // behind the first SETTINGS
	}{
		{"get", 0, cat(start, headers(flagEndStream, 1, get...)), "1 request GET a.example / 0 true"},
		{"two requests", 0, cat(start, frame(frameHeaders, 5, 1, first...), frame(frameHeaders, 5, 3, second...)), "1 request GET a.example / 0 true|3 request GET a.example / 1 true"},
		{"padding and priority", 0, cat(start, frame(frameHeaders, flagPadded|flagPriority|flagEndHeaders, 1, cat([]byte{3, 0, 0, 0, 0, 9}, first, make([]byte, 3))...)), "1 request GET a.example / 0 false"},
		{"continuation", 0, cat(start, frame(frameHeaders, flagEndStream, 1, first[:2]...), frame(frameContinuation, 0, 1, first[2:5]...), frame(frameContinuation, flagEndHeaders, 1, first[5:]...)), "1 request GET a.example / 0 true"},
		{"body and trailers", 0, cat(start, headers(0, 1, get...), frame(frameData, 0, 1, make([]byte, 100)...), frame(frameData, flagPadded, 1, 4, 1, 0, 0, 0, 0), headers(flagEndStream, 1, "x: y")), "1 request GET a.example / 0 false|data 1 100 false|data 1 1 false|1 trailers 1 true"},
		{"empty data", 0, cat(start, headers(0, 1, get...), frame(frameData, flagEndStream, 1)), "1 request GET a.example / 0 false|data 1 0 true"},
		{"connect", 0, cat(start, headers(0, 1, ":method: CONNECT", ":authority: a:443")), "1 request CONNECT a:443  0 false"},
		{"options", 0, cat(start, headers(1, 1, ":method: OPTIONS", ":scheme: http", ":path: *", "host: a")), "1 request OPTIONS a * 1 true"},
		{"other frames", 0, cat(start, headers(0, 1, get...), frame(framePing, 0, 0, make([]byte, 8)...), frame(frameWindowUpdate, 0, 0, 0, 0, 0, 1), frame(framePriority, 0, 5, 0, 0, 0, 0, 1), frame(0xfe, 9, 7, 1, 2), frame(frameRSTStream, 0, 1, 0, 0, 0, 8), frame(frameSettings, flagAck, 0), frame(frameGoAway, 0, 0, make([]byte, 9)...)), "1 request GET a.example / 0 false|reset 1|code 8|goaway"},
		{"settings", 0, cat(start, frame(frameSettings, 0, 0, 0, 1, 0, 0, 0x20, 0, 0, 5, 0, 0, 0x80, 0, 0, 9, 0, 0, 0, 0)), "settings {8192 32768}"},
		{"response", 1, cat(settings, headers(0, 1, ":status: 103", "link: x"), headers(0, 1, ":status: 200"), headers(1, 1, "grpc-status: 0")), "1 response 103 1 false|1 response 200 0 false|1 trailers 1 true"},
		{"promise", 1, cat(settings, frame(framePushPromise, flagEndHeaders, 1, cat([]byte{0, 0, 0, 2}, first)...)), "1 promise 2 request GET a.example / 0 false"},
		{"half a frame", 0, cat(start, headers(1, 1, get...)[:12]), "under way"},
		{"half a block", 0, cat(start, frame(frameHeaders, 0, 1, first...)), "under way"},

		{"no preface", 0, []byte("GET / HTTP/1.1\r\n"), "not_http2"},
		{"no settings", 0, cat(preface, headers(1, 1, get...)), "not_http2"},
		{"settings acknowledged first", 0, cat(preface, frame(frameSettings, flagAck, 0)), "not_http2"},
		{"http/1.1 server", 1, []byte("HTTP/1.1 400 Bad Request\r\n"), "not_http2"},
		{"frame too long", 0, cat(start, []byte{0, 0x40, 1, 0, 0, 0, 0, 0, 1}), "bad_frame"},
		{"headers on stream 0", 0, cat(start, headers(1, 0, get...)), "bad_frame"},
		{"settings on a stream", 0, cat(start, frame(frameSettings, 0, 1)), "bad_frame"},
		{"settings of 5 bytes", 0, cat(start, frame(frameSettings, 0, 0, 1, 2, 3, 4, 5)), "bad_frame"},
		{"max frame size too small", 0, cat(start, frame(frameSettings, 0, 0, 0, 5, 0, 0, 0, 1)), "bad_frame"},
		{"ping of 7 bytes", 0, cat(start, frame(framePing, 0, 0, make([]byte, 7)...)), "bad_frame"},
		{"continuation of nothing", 0, cat(start, frame(frameContinuation, flagEndHeaders, 1, first...)), "bad_frame"},
		{"continuation of another stream", 0, cat(start, frame(frameHeaders, 0, 1, first...), frame(frameContinuation, flagEndHeaders, 3)), "bad_frame"},
		{"a frame inside a block", 0, cat(start, frame(frameHeaders, 0, 1, first...), frame(framePing, 0, 0, make([]byte, 8)...)), "bad_frame"},
		{"too much padding", 0, cat(start, frame(frameHeaders, flagPadded|flagEndHeaders, 1, 9, 1, 2)), "bad_frame"},
		{"too much padding of data", 0, cat(start, headers(0, 1, get...), frame(frameData, flagPadded, 1, 9, 1, 2)), "1 request GET a.example / 0 false|bad_frame"},
		{"padded, but empty", 0, cat(start, headers(0, 1, get...), frame(frameData, flagPadded, 1)), "1 request GET a.example / 0 false|bad_frame"},
		{"push by a client", 0, cat(start, frame(framePushPromise, flagEndHeaders, 1, cat([]byte{0, 0, 0, 2}, first)...)), "bad_frame"},
		{"an odd promise", 1, cat(settings, frame(framePushPromise, flagEndHeaders, 1, cat([]byte{0, 0, 0, 3}, first)...)), "bad_frame"},
		{"an even stream", 0, cat(start, headers(1, 2, get...)), "bad_frame"},
		{"a stream that was passed over", 0, cat(start, headers(1, 3, get...), headers(1, 1, get...)), "3 request GET a.example / 0 true|bad_head"},
		{"data of a stream that is not open", 0, cat(start, frame(frameData, 0, 1, 1)), "bad_frame"},
		{"data of a stream of the server", 0, cat(start, headers(0, 3, get...), frame(frameData, 0, 2, 1)), "3 request GET a.example / 0 false|bad_frame"},
		{"reset of a stream that is not open", 0, cat(start, frame(frameRSTStream, 0, 1, 0, 0, 0, 8)), "bad_frame"},
		{"reset of a promised stream", 0, cat(start, frame(frameRSTStream, 0, 2, 0, 0, 0, 8)), "reset 2|code 8"},
		{"continuation flood", 0, cat(start, frame(frameHeaders, 0, 1), bytes.Repeat(frame(frameContinuation, 0, 1), 20)), "too_many_continuations"},
		{"block too large", 0, cat(start, frame(frameHeaders, 0, 1, long...), frame(frameContinuation, 0, 1, long...)), "too_large"},
		{"head too large", 0, cat(start, frame(frameHeaders, flagEndHeaders, 1, cat(first, bytes.Repeat([]byte{0x82}, 300))...)), "too_expanded"},
		{"a value too large", 0, cat(start, headers(1, 1, append(slices.Clone(get), "x: "+strings.Repeat("a", 9000))...)), "too_large"},
		{"not hpack", 0, cat(start, frame(frameHeaders, flagEndHeaders, 1, 0xff, 0xff, 0xff)), "bad_block"},
		{"a table above the limit", 0, cat(start, frame(frameHeaders, flagEndHeaders, 1, 0x3f, 0xff, 0xff, 1)), "bad_block"},
		{"a block that ends in a field", 0, cat(start, frame(frameHeaders, flagEndHeaders, 1, first[:len(first)-1]...)), "bad_block"},
	} {
		t.Run(row.name, func(t *testing.T) {
			limits := Limits{Block: 4000, Head: 8000, Continuations: 16, Table: 4096}
			for _, size := range []int{0, 1, 2, 3, 7, 50} {
				got := strings.TrimPrefix(strings.Join(run(row.dir, limits, row.in, size), "|"), "settings {0 0}|")
				if got != row.want {
					t.Errorf("pieces of %d: got %q, want %q", size, got, row.want)
				}
			}
		})
	}
}

func TestHeads(t *testing.T) {
	with := func(more ...string) []string { return append(slices.Clone(get), more...) }
	for _, row := range []struct {
		name   string
		dir    Direction
		fields []string
		ok     bool
	}{
		{"plain", 0, with("accept: */*", "te: trailers"), true},
		{"host alone", 0, []string{":method: GET", ":scheme: http", ":path: /", "host: a"}, true},
		{"host and authority agree", 0, with("host: A.example"), true},
		{"host differs from authority", 0, with("host: bad.example"), false},
		{"two hosts", 0, []string{":method: GET", ":scheme: http", ":path: /", "host: a", "host: b"}, false},
		{"no method", 0, get[1:], false},
		{"no scheme", 0, []string{":method: GET", ":path: /", ":authority: a"}, false},
		{"no path", 0, []string{":method: GET", ":scheme: http", ":authority: a"}, false},
		{"a path that is none", 0, []string{":method: GET", ":scheme: http", ":path: x"}, false},
		{"star for get", 0, []string{":method: GET", ":scheme: http", ":path: *"}, false},
		{"a space in the path", 0, []string{":method: GET", ":scheme: http", ":path: / HTTP/1.1"}, false},
		{"a method that is none", 0, []string{":method: G(T", ":scheme: http", ":path: /"}, false},
		{"method twice", 0, append([]string{":method: GET"}, get...), false},
		{"authority twice", 0, with(":authority: b"), false},
		{"pseudo field behind a field", 0, append([]string{"x: y"}, get...), false},
		{"unknown pseudo field", 0, with(":x: y"), false},
		{"extended connect", 0, []string{":method: CONNECT", ":protocol: websocket", ":scheme: http", ":path: /", ":authority: a"}, false},
		{"connect with a path", 0, []string{":method: CONNECT", ":path: /", ":authority: a"}, false},
		{"connect without authority", 0, []string{":method: CONNECT", "host: a"}, false},
		{"status in a request", 0, with(":status: 200"), false},
		{"capitals", 0, with("Accept: x"), false},
		{"a name that is none", 0, with("a b: x"), false},
		{"connection", 0, with("connection: close"), false},
		{"transfer-encoding", 0, with("transfer-encoding: chunked"), false},
		{"upgrade", 0, with("upgrade: h2c"), false},
		{"te", 0, with("te: gzip"), false},
		{"line break", 0, with("x: a\r\nhost: b"), false},
		{"NUL", 0, with("x: a\x00"), false},
		{"blank at the end", 0, with("x: a "), false},
		{"response", 1, []string{":status: 200", "x: y"}, true},
		{"trailers that do not end", 1, []string{"x: y"}, false},
		{"no digits", 1, []string{":status: 2x0"}, false},
		{"101", 1, []string{":status: 101"}, false},
		{"method in a response", 1, []string{":status: 200", ":method: GET"}, false},
	} {
		in := cat(settings, headers(0, 1, row.fields...))
		if row.dir == FromClient {
			in = cat(preface, in)
		}
		got := run(row.dir, DefaultLimits, in, 0)
		if last := got[len(got)-1]; (last != "bad_head") != row.ok || strings.HasPrefix(last, "bad_block") {
			t.Errorf("%s: got %q", row.name, got)
		}
	}
}

// TestPeer: what the receiver allows, the sender may use.
func TestPeer(t *testing.T) {
	big := frame(frameData, 0, 1, make([]byte, 20000)...)
	r := NewReader(FromServer, DefaultLimits)
	r.Peer(PeerSettings{MaxFrameSize: 1 << 15, TableSize: 8192})
	for in := cat(settings, big, frame(frameHeaders, flagEndHeaders, 1, cat([]byte{0x3f, 0xe1, 0x3f}, block(":status: 200"))...)); len(in) > 0; {
		n, e := r.Next(in)
		if in = in[n:]; e == Failed {
			t.Fatal(r.Fault())
		}
	}
	if h := r.Head(); h == nil || h.Status != "200" {
		t.Errorf("got %+v", h)
	}
}

// halves returns both directions of the capture's one connection.
func halves(t testing.TB) (client, server []byte) {
	t.Helper()
	b, err := os.ReadFile("testdata/http2-nghttp2.pcap")
	if err != nil {
		t.Fatal(err)
	}
	p, err := pcapgo.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	next := map[layers.TCPPort]uint32{}
	data := map[layers.TCPPort][]byte{}
	for p := range gopacket.NewPacketSource(p, p.LinkType()).Packets() {
		tcp := p.TransportLayer().(*layers.TCP)
		if tcp.SYN {
			next[tcp.SrcPort] = tcp.Seq + 1
		}
		if len(tcp.Payload) > 0 && tcp.Seq == next[tcp.SrcPort] {
			data[tcp.SrcPort] = append(data[tcp.SrcPort], tcp.Payload...)
			next[tcp.SrcPort] += uint32(len(tcp.Payload))
		}
	}
	return data[49570], data[80]
}

// TestCapture reads a real connection: what tshark says of the server's fields,
// and Arkime of the request.
func TestCapture(t *testing.T) {
	client, server := halves(t)
	heads := func(dir Direction, b []byte) (list []*Head) {
		r := NewReader(dir, DefaultLimits)
		for len(b) > 0 {
			n, e := r.Next(b)
			b = b[n:]
			switch e {
			case Failed:
				t.Fatalf("direction %v: %v", dir, r.Fault())
			case HeadEnd:
				list = append(list, r.Head())
			}
		}
		return list
	}
	requests := heads(FromClient, client)
	if len(requests) != 1 {
		t.Fatalf("%d requests", len(requests))
	}
	if q := requests[0]; q.Method != "GET" || q.Host != "nghttp2.org" || q.Path != "/" || q.Get("user-agent") != "nghttp2/1.41.0" ||
		q.Get("continuation-test-6") == "" || len(q.Fields) != 9 || !q.EndStream {
		t.Errorf("request %+v", q)
	}
	var got, want []string
	for _, h := range heads(FromServer, server) {
		for _, f := range append([]Field{{":method", h.Method}, {":scheme", h.Scheme}, {":path", h.Path}, {":status", h.Status}}, h.Fields...) {
			if f.Value != "" {
				got = append(got, f.Name+"="+f.Value)
			}
		}
		if h.Method != "" {
			got = append(got, ":authority="+h.Host)
		}
	}
	b, err := os.ReadFile("testdata/tshark.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "|")
		names, values := strings.Split(f[1], "^"), strings.Split(f[2], "^")
		for i := range names {
			want = append(want, names[i]+"="+values[i])
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if len(want) < 30 || !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for _, size := range []int{1, 100} {
		if a, z := run(FromServer, DefaultLimits, server, 0), run(FromServer, DefaultLimits, server, size); !slices.Equal(a, z) {
			t.Errorf("pieces of %d: got %q, want %q", size, z, a)
		}
	}
}

// FuzzReader feeds arbitrary bytes, in two ways of cutting them: no panic, the
// same events, and heads within the limits.
func FuzzReader(f *testing.F) {
	client, server := halves(f)
	f.Add(client, false, uint64(3))
	f.Add(server[:4000], true, uint64(500))
	f.Add(cat(preface, settings, headers(0, 1, get...), frame(frameData, flagPadded, 1, 1, 0, 0), headers(1, 1, "x: y")), false, uint64(1))
	f.Add(cat(settings, headers(0, 1, ":status: 200"), frame(frameGoAway, 0, 0, make([]byte, 8)...)), true, uint64(2))
	f.Fuzz(func(t *testing.T, b []byte, fromServer bool, seed uint64) {
		dir := FromClient
		if fromServer {
			dir = FromServer
		}
		limits := Limits{Block: 5000, Head: 3000, Continuations: 4, Table: 8192}
		whole, pieces := run(dir, limits, b, 0), run(dir, limits, b, 1+int(seed%997))
		if !slices.Equal(whole, pieces) {
			t.Fatalf("whole: %q\nin pieces: %q", whole, pieces)
		}
		for _, dir := range []Direction{FromClient, FromServer} { // without what comes first
			r := NewReader(dir, limits)
			start := settings
			if dir == FromClient {
				start = cat(preface, settings)
			}
			for in := cat(start, b); len(in) > 0; {
				n, e := r.Next(in)
				in = in[n:]
				if e == Failed {
					break
				}
				if h := r.Head(); e == HeadEnd {
					size := 0
					for _, f := range h.Fields {
						size += len(f.Name) + len(f.Value) + 32
					}
					if size > limits.Head || h.Stream == 0 || cap(r.buf) > 4*limits.Block {
						t.Fatalf("head %+v, buffer %d", h, cap(r.buf))
					}
				}
			}
		}
	})
}

func BenchmarkRequest(b *testing.B) {
	e := newEncoder()
	fields := append(slices.Clone(get), "user-agent: bench/1.0", "accept: */*", "accept-encoding: gzip, deflate")
	first := frame(frameHeaders, 5, 1, e.block(fields...)...)
	r := NewReader(FromClient, DefaultLimits)
	for in := cat(preface, settings, first); len(in) > 0; {
		n, _ := r.Next(in)
		in = in[n:]
	}
	next := frame(frameHeaders, 5, 1, e.block(fields...)...)
	stream := uint32(1)
	b.SetBytes(int64(len(next)))
	b.ReportAllocs()
	for b.Loop() {
		stream += 2
		if stream >= 1<<31 {
			stream, r.last = 1, 0
		}
		binary.BigEndian.PutUint32(next[5:], stream)
		if _, e := r.Next(next); e != HeadEnd {
			b.Fatal(r.Fault())
		}
	}
}
