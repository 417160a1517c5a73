package tls

import (
	"bytes"
	stdtls "crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"penstock/internal/hostname"
	"penstock/internal/tlshello"
	"penstock/internal/units"
	"penstock/pipeline"
	"penstock/pipeline/pipelinetest"
)

// piece is what one end wrote at once.
type piece struct {
	dir  pipeline.Direction
	data string
}

// transcript runs a real handshake between crypto/tls and itself and returns
// what the ends wrote, in order.
func transcript(t testing.TB, change func(client, server *stdtls.Config)) (list []piece) {
	t.Helper()
	client := &stdtls.Config{ServerName: "www.good.example", InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}}
	server := &stdtls.Config{Certificates: []stdtls.Certificate{certificate()}, NextProtos: []string{"h2"}}
	if change != nil {
		change(client, server)
	}
	var mu sync.Mutex
	note := func(d pipeline.Direction) func([]byte) {
		return func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			list = append(list, piece{d, string(b)})
		}
	}
	up, down := newQueue(), newQueue()
	a, z := &end{in: down, out: up, note: note(pipeline.ToServer)}, &end{in: up, out: down, note: note(pipeline.ToClient)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := stdtls.Server(z, server)
		_, _ = io.Copy(s, s)
		z.Close()
	}()
	c := stdtls.Client(a, client)
	if err := c.Handshake(); err == nil {
		if _, err = c.Write([]byte("ping")); err == nil {
			_, err = io.ReadFull(c, make([]byte, 4))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	a.Close()
	<-done
	if len(list) < 2 {
		t.Fatalf("%d pieces", len(list))
	}
	return list
}

// queue is bytes on their way in one direction.
type queue struct {
	sync.Mutex
	news   *sync.Cond
	b      []byte
	closed bool
}

func newQueue() *queue {
	q := &queue{}
	q.news = sync.NewCond(q)
	return q
}

// end is an end of a connection in memory. Writing never blocks.
type end struct {
	net.Conn // no deadlines, no addresses
	in, out  *queue
	note     func([]byte)
}

func (e *end) Read(b []byte) (int, error) {
	e.in.Lock()
	defer e.in.Unlock()
	for len(e.in.b) == 0 {
		if e.in.closed {
			return 0, io.EOF
		}
		e.in.news.Wait()
	}
	n := copy(b, e.in.b)
	e.in.b = e.in.b[n:]
	return n, nil
}

func (e *end) Write(b []byte) (int, error) {
	e.note(b)
	e.out.Lock()
	defer e.out.Unlock()
	e.out.b = append(e.out.b, b...)
	e.out.news.Broadcast()
	return len(b), nil
}

func (e *end) Close() error {
	for _, q := range []*queue{e.in, e.out} {
		q.Lock()
		q.closed = true
		q.news.Broadcast()
		q.Unlock()
	}
	return nil
}

func (e *end) SetDeadline(time.Time) error      { return nil }
func (e *end) SetWriteDeadline(time.Time) error { return nil }

var certificate = sync.OnceValue(newCertificate)

// helloRetry makes the server ask for another key share.
func helloRetry(client, server *stdtls.Config) {
	client.CurvePreferences = []stdtls.CurveID{stdtls.X25519, stdtls.CurveP256}
	server.CurvePreferences = []stdtls.CurveID{stdtls.CurveP256}
}

// run plays pieces through a stage, each cut again.
func (r *rig) run(server string, pieces []piece, seed uint64) *conversation {
	c := r.open(server)
	for _, p := range pieces {
		for _, b := range cut(p.data, seed) {
			c.send(p.dir, b)
		}
	}
	c.finish(pipeline.ToServer)
	c.finish(pipeline.ToClient)
	c.s.Close(1)
	return c
}

const server4 = "192.0.2.10:443"

func TestPolicy(t *testing.T) {
	hello := transcript(t, nil)
	noName := transcript(t, func(c, _ *stdtls.Config) { c.ServerName = "" })
	old := transcript(t, func(c, _ *stdtls.Config) { c.MaxVersion = stdtls.VersionTLS12 })
	oldServer := transcript(t, func(_, s *stdtls.Config) { s.MaxVersion = stdtls.VersionTLS12 })
	retried := transcript(t, helloRetry)
	ja4 := only(t, newRig(t, nil), hello).TLS.JA4.String()
	for _, row := range []struct {
		name   string
		in     []piece
		change func(*Config)
		want   string // reason of the denial, or "" if all of it passes
	}{
		{"nothing asked", hello, nil, ""},
		{"denied", hello, func(c *Config) { c.DenySNI = []string{"WWW.good.example."} }, "tls_sni_denied"},
		{"denied below", hello, func(c *Config) { c.DenySNI = []string{"*.example"} }, "tls_sni_denied"},
		{"another is denied", hello, func(c *Config) { c.DenySNI = []string{"good.example", "*.www.good.example"} }, ""},
		{"allowed", hello, func(c *Config) { c.AllowSNI = []string{"*.good.example"} }, ""},
		{"another is allowed", hello, func(c *Config) { c.AllowSNI = []string{"good.example"} }, "tls_sni_denied"},
		{"deny is asked first", hello, func(c *Config) { c.DenySNI, c.AllowSNI = []string{"www.good.example"}, []string{"*"} }, "tls_sni_denied"},
		{"no name, allow list", noName, func(c *Config) { c.AllowSNI = []string{"www.good.example"} }, "tls_sni_denied"},
		{"no name, everything allowed", noName, func(c *Config) { c.AllowSNI = []string{"*"} }, ""},
		{"no name, deny list", noName, func(c *Config) { c.DenySNI = []string{"www.good.example"} }, ""},
		{"no name, everything denied", noName, func(c *Config) { c.DenySNI = []string{"*"} }, "tls_sni_denied"},

		{"ja4 denied", hello, func(c *Config) { c.DenyJA4 = []string{ja4} }, "tls_ja4_denied"},
		{"ja4 denied by its end", hello, func(c *Config) { c.DenyJA4 = []string{"*" + ja4[23:]} }, "tls_ja4_denied"},
		{"another ja4 denied", hello, func(c *Config) { c.DenyJA4 = []string{"q*", "t10*", "*_000000000000_*"} }, ""},
		{"ja4 allowed", hello, func(c *Config) { c.AllowJA4 = []string{ja4[:10] + "_*"} }, ""},
		{"another ja4 allowed", hello, func(c *Config) { c.AllowJA4 = []string{"t12*"} }, "tls_ja4_denied"},

		{"in its place", hello, matches("www.good.example", "192.0.2.0/24"), ""},
		{"in its place, one address", hello, matches("*.good.example", "2001:db8::/32", "192.0.2.10"), ""},
		{"elsewhere", hello, matches("www.good.example", "198.51.100.0/24"), "tls_sni_mismatch"},
		{"not listed", hello, matches("www.other.example", "192.0.2.0/24"), "tls_sni_mismatch"},
		{"no name, not listed", noName, matches("*.example", "192.0.2.0/24"), "tls_sni_mismatch"},
		{"the first entry decides", hello, func(c *Config) {
			matches("www.good.example", "198.51.100.0/24")(c)
			matches("*", "0.0.0.0/0", "::/0")(c)
		}, "tls_sni_mismatch"},
		{"everything else anywhere", noName, func(c *Config) {
			matches("www.good.example", "198.51.100.0/24")(c)
			matches("*", "0.0.0.0/0", "::/0")(c)
		}, ""},

		{"new enough", hello, func(c *Config) { c.MinVersion = "1.3" }, ""},
		{"client too old", old, func(c *Config) { c.MinVersion = "1.3" }, "tls_version_denied"},
		{"server too old", oldServer, func(c *Config) { c.MinVersion = "1.3" }, "tls_version_denied"},
		{"old enough", old, func(c *Config) { c.MinVersion = "1.2" }, ""},
		{"no ech", hello, func(c *Config) { c.DenyECH = true }, ""},
		{"second hello", retried, func(c *Config) { c.AllowSNI, c.MinVersion = []string{"www.good.example"}, "1.3" }, ""},
		{"second hello, denied at the first", retried, func(c *Config) { c.DenySNI = []string{"www.good.example"} }, "tls_sni_denied"},
	} {
		t.Run(row.name, func(t *testing.T) {
			for seed := range uint64(4) {
				r := newRig(t, row.change)
				c := r.run(server4, row.in, seed)
				if got := c.reason(); got != row.want {
					t.Fatalf("pieces %d: got %q, want %q", seed, got, row.want)
				}
				e := r.rec.events(t)
				if len(e) != 1 || e[0].Reason != row.want || (e[0].Action == "denied") != (row.want != "") {
					t.Fatalf("pieces %d: records %q", seed, r.rec.lines)
				}
				if row.want == "" {
					checkPassed(t, c, row.in)
					if c.verdict.Action != pipeline.StreamRelease {
						t.Errorf("pieces %d: not released: %+v", seed, c.verdict)
					}
					continue
				}
				if row.name != "server too old" && len(c.passed[0]) > 0 {
					t.Errorf("pieces %d: %d bytes of the hello have passed", seed, len(c.passed[0]))
				}
				if len(c.passed[1]) > 0 {
					t.Errorf("pieces %d: %d bytes of the server have passed", seed, len(c.passed[1]))
				}
			}
		})
	}
}

func matches(name string, dst ...string) func(*Config) {
	return func(c *Config) {
		m := SNIMatch{SNI: []string{name}}
		for _, text := range dst {
			var p units.Prefix
			if err := p.UnmarshalText([]byte(text)); err != nil {
				panic(err)
			}
			m.Dst = append(m.Dst, p)
		}
		c.RequireSNIMatch = append(c.RequireSNIMatch, m)
	}
}

// only plays a transcript and returns the one record.
func only(t *testing.T, r *rig, pieces []piece) event {
	t.Helper()
	r.run(server4, pieces, 0)
	e := r.rec.events(t)
	if len(e) != 1 {
		t.Fatalf("%d records: %q", len(e), r.rec.lines)
	}
	return e[0]
}

func checkPassed(t *testing.T, c *conversation, in []piece) {
	t.Helper()
	var want [2]string
	for _, p := range in {
		want[p.dir] += p.data
	}
	for d := range want {
		if string(c.passed[d]) != want[d] {
			t.Errorf("%v: %d bytes passed, %d were sent", pipeline.Direction(d), len(c.passed[d]), len(want[d]))
		}
	}
}

func TestLog(t *testing.T) {
	e := only(t, newRig(t, nil), transcript(t, nil))
	if e.FlowID != 7 || e.SrcIP.String() != "10.0.0.1" || e.SrcPort != 40000 || e.DestIP.String() != "192.0.2.10" || e.DestPort != 443 || e.Proto != "TCP" || e.Chain != "tls" || e.Action != "allowed" {
		t.Errorf("%+v", e)
	}
	if r := e.TLS; r.SNI != "www.good.example" || r.Version != "TLS 1.3" || r.ClientVersion != "TLS 1.3" || fmt.Sprint(r.ClientALPNs) != "[h2 http/1.1]" ||
		r.ServerALPNs != nil || !strings.HasPrefix(string(r.CipherSuite), "0x130") || len(r.JA4) != 36 || r.JA3S == nil || r.HelloRetry || r.Alert != nil {
		t.Errorf("%+v", r)
	}
	if e := only(t, newRig(t, nil), transcript(t, func(_, s *stdtls.Config) { s.MaxVersion = stdtls.VersionTLS12 })); e.TLS.Version != "TLS 1.2" || fmt.Sprint(e.TLS.ServerALPNs) != "[h2]" {
		t.Errorf("TLS 1.2: %+v", e.TLS)
	}
	r := newRig(t, nil)
	if e := only(t, r, transcript(t, helloRetry)); !e.TLS.HelloRetry || e.TLS.Version != "TLS 1.3" || r.hellos.Load() != 2 || r.retries.Load() != 1 {
		t.Errorf("retry: %+v, %d hellos, %d retries", e.TLS, r.hellos.Load(), r.retries.Load())
	}
	// The server knows none of the client's versions and says so.
	refused := transcript(t, func(c, s *stdtls.Config) { c.MaxVersion, s.MinVersion = stdtls.VersionTLS12, stdtls.VersionTLS13 })
	if e := only(t, newRig(t, nil), refused); e.TLS.Alert == nil || *e.TLS.Alert != alertProtocolVersion || e.TLS.Version != "" {
		t.Errorf("alert: %+v", e.TLS)
	}
	// Without an answer there is a record when the connection is over.
	hello := transcript(t, nil)[:1]
	r = newRig(t, nil)
	if e := only(t, r, hello); e.TLS.SNI != "www.good.example" || r.unanswered.Load() != 1 {
		t.Errorf("unanswered: %+v, %d", e.TLS, r.unanswered.Load())
	}
}

// TestSecondHello is a client that names another server when it is asked for a
// second hello, or at once.
func TestSecondHello(t *testing.T) {
	first := transcript(t, helloRetry)
	other := transcript(t, func(c, s *stdtls.Config) { helloRetry(c, s); c.ServerName = "bad.example" })
	second := func(list []piece) piece { // behind the retry and what is there for middleboxes
		for _, p := range list[2:] {
			if p.dir == pipeline.ToServer && p.data[0] == 22 {
				return p
			}
		}
		t.Fatal("no second hello")
		return piece{}
	}
	for _, row := range []struct {
		name string
		in   []piece
	}{
		{"after the retry", append(first[:2:2], second(other))},
		{"at once", append(first[:1:1], other[0])},
	} {
		for seed := range uint64(3) {
			r := newRig(t, func(c *Config) { c.DenySNI = []string{"bad.example"} })
			c := r.run(server4, row.in, seed)
			if c.reason() != "tls_sni_changed" || bytes.Contains(c.passed[0], []byte("bad.example")) {
				t.Errorf("%s, pieces %d: got %q, passed %q", row.name, seed, c.reason(), c.passed[0])
			}
			// Without a policy nothing is held.
			r = newRig(t, nil)
			c = r.run(server4, row.in, seed)
			checkPassed(t, c, row.in)
			if r.released.Load() != 1 || len(r.rec.lines) != 1 {
				t.Errorf("%s, pieces %d: released %d, records %q", row.name, seed, r.released.Load(), r.rec.lines)
			}
		}
	}
	// A third one is one too many.
	r := newRig(t, func(c *Config) { c.DenySNI = []string{"bad.example"} })
	if c := r.run(server4, []piece{first[0], first[0], first[0]}, 0); c.reason() != "tls_bad_message" || string(c.passed[0]) != first[0].data+first[0].data {
		t.Errorf("third hello: %q, %d bytes passed", c.reason(), len(c.passed[0]))
	}
}

// asRecords puts the handshake message of a hello into records of size bytes.
func asRecords(hello string, size int) (out string) {
	for msg := hello[5:]; len(msg) > 0; {
		n := min(size, len(msg))
		out += string([]byte{22, 3, 1, byte(n >> 8), byte(n)}) + msg[:n]
		msg = msg[n:]
	}
	return out
}

func TestRecordSplits(t *testing.T) {
	pieces := transcript(t, nil)
	want := only(t, newRig(t, nil), pieces)
	hello, answer := pieces[0].data, pieces[1].data
	answer = answer[:5+int(answer[3])<<8+int(answer[4])] // the first record
	for _, size := range []int{1, 2, 5, 100, 16384} {
		for seed := range uint64(3) {
			r := newRig(t, func(c *Config) { c.AllowSNI = []string{"www.good.example"}; c.MinVersion = "1.3" })
			in := []piece{{pipeline.ToServer, asRecords(hello, size)}, {pipeline.ToClient, asRecords(answer, size)}}
			if got := only(t, r, in); fmt.Sprint(got.TLS.JA4, got.TLS.SNI, got.TLS.JA3S.Hash) != fmt.Sprint(want.TLS.JA4, want.TLS.SNI, want.TLS.JA3S.Hash) {
				t.Errorf("records of %d: %+v", size, got.TLS)
			}
			c := newRig(t, func(c *Config) { c.DenySNI = []string{"www.good.example"} }).run(server4, in, seed)
			if c.reason() != "tls_sni_denied" || len(c.passed[0]) > 0 {
				t.Errorf("records of %d, pieces %d: %q, passed %d", size, seed, c.reason(), len(c.passed[0]))
			}
		}
	}
}

func TestBad(t *testing.T) {
	hello := transcript(t, nil)[0].data
	i := strings.Index(hello, "www.good.example")
	for _, row := range []struct {
		name, in, want string
	}{
		{"nothing", "", ""},
		{"http", "GET / HTTP/1.1\r\n", "tls_not_tls"},
		{"sslv2", "\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10", "tls_sslv2"},
		{"application data", "\x17\x03\x03\x00\x02ab", "tls_not_tls"},
		{"alert first", "\x15\x03\x03\x00\x02\x02\x28", "tls_bad_record"},
		{"empty record", "\x16\x03\x01\x00\x00", "tls_bad_record"},
		{"another message", "\x16\x03\x01\x00\x04\x02\x00\x00\x00", "tls_bad_message"},
		{"too large", "\x16\x03\x01\x00\x04\x01\x00\x80\x00", "tls_hello_too_large"},
		{"too many records", asRecords("     \x01\x00\x20\x00"+strings.Repeat("x", 5000), 1), "tls_too_many_records"},
		{"malformed", "\x16\x03\x01\x00\x05\x01\x00\x00\x01x", "tls_bad_hello"},
		{"a name that is none", hello[:i] + "www good.example" + hello[i+16:], "tls_bad_hello"},
		{"a name with an empty label", hello[:i] + "www..ood.example" + hello[i+16:], "tls_bad_hello"},
		{"half a header", "\x16\x03", "tls_incomplete_hello"},
		{"half a hello", hello[:100], "tls_incomplete_hello"},
		{"hello and half a second", hello + hello[:100], "tls_incomplete_hello"},
	} {
		t.Run(row.name, func(t *testing.T) {
			in := []piece{{pipeline.ToServer, row.in}}
			for seed := range uint64(4) {
				r := newRig(t, func(c *Config) { c.DenySNI = []string{"bad.example"} })
				if c := r.run(server4, in, seed); c.reason() != row.want {
					t.Errorf("pieces %d: got %q, want %q", seed, c.reason(), row.want)
				}
				if row.want != "" && (len(r.rec.lines) < 1 || !strings.Contains(r.rec.lines[len(r.rec.lines)-1], row.want)) && row.name != "hello and half a second" {
					t.Errorf("pieces %d: records %q", seed, r.rec.lines)
				}
				for _, change := range []func(*Config){nil, func(c *Config) { c.DenySNI, c.OnBad = []string{"bad.example"}, "pass" }} {
					r = newRig(t, change)
					c := r.run(server4, in, seed)
					checkPassed(t, c, in)
					if c.reason() != "" {
						t.Errorf("pieces %d: without a policy that needs it: %q", seed, c.reason())
					}
				}
			}
		})
	}
}

func TestBadServers(t *testing.T) {
	hello := transcript(t, nil)[0]
	for _, row := range []struct {
		name string
		in   []piece
	}{
		{"speaks first", []piece{{pipeline.ToClient, "220 hello\r\n"}, hello}},
		{"no TLS", []piece{hello, {pipeline.ToClient, "HTTP/1.1 400 Bad Request\r\n"}}},
		{"malformed", []piece{hello, {pipeline.ToClient, "\x16\x03\x03\x00\x05\x02\x00\x00\x01x"}}},
		{"another message", []piece{hello, {pipeline.ToClient, "\x16\x03\x03\x00\x04\x0b\x00\x00\x00"}}},
		{"application data", []piece{hello, {pipeline.ToClient, "\x17\x03\x03\x00\x01x"}}},
	} {
		for seed := range uint64(3) {
			r := newRig(t, func(c *Config) { c.DenySNI = []string{"bad.example"} })
			c := r.run(server4, row.in, seed)
			checkPassed(t, c, row.in)
			if c.reason() != "" || r.lost.Load() != 1 || len(r.rec.lines) != 1 || c.verdict.Action != pipeline.StreamRelease {
				t.Errorf("%s, pieces %d: %+v, lost %d, records %q", row.name, seed, c.verdict, r.lost.Load(), r.rec.lines)
			}
			r = newRig(t, func(c *Config) { c.MinVersion = "1.2" })
			if c := r.run(server4, row.in, seed); c.reason() != "tls_bad_server_hello" || len(c.passed[1]) > 0 && row.name != "application data" {
				t.Errorf("%s with min_version, pieces %d: %q, %q passed", row.name, seed, c.reason(), c.passed[1])
			}
		}
	}
}

func TestReplies(t *testing.T) {
	hello := transcript(t, nil)[:1]
	denied := func(c *Config) { c.DenySNI = []string{"*"} }
	if c := newRig(t, denied).run(server4, hello, 0); string(c.verdict.Reply) != "\x15\x03\x03\x00\x02\x02\x70" {
		t.Errorf("reply %x, want a fatal unrecognized_name", c.verdict.Reply)
	}
	if c := newRig(t, func(c *Config) { denied(c); c.Deny = "reset" }).run(server4, hello, 0); c.verdict.Reply != nil {
		t.Errorf(`deny = "reset": %x`, c.verdict.Reply)
	}
	if c := newRig(t, denied).run(server4, []piece{{pipeline.ToServer, "GET / "}}, 0); c.reason() != "tls_not_tls" || c.verdict.Reply != nil {
		t.Errorf("an alert for what is no TLS: %x", c.verdict.Reply)
	}
	r := newRig(t, denied)
	c := r.converse(&pipeline.Conn{Depth: pipeline.DepthInspect})
	c.send(pipeline.ToServer, hello[0].data)
	if c.reason() != "tls_sni_denied" || c.verdict.Reply != nil {
		t.Errorf("a reply at inspect depth: %+v", c.verdict)
	}
	// Every reason has an alert that a client knows.
	for _, why := range reasons() {
		if a := alert(why); a != nil && (len(a) != 7 || a[5] != 2) {
			t.Errorf("%s: %x", why, a)
		}
	}
}

// TestInspectDepth: bytes pass as they come, but never the last ones of a hello
// that is refused.
func TestInspectDepth(t *testing.T) {
	pieces := transcript(t, helloRetry)
	hello := pieces[0].data
	for seed := range uint64(4) {
		for _, deny := range []string{"www.good.example", "bad.example"} {
			c := newRig(t, func(c *Config) { c.DenySNI, c.MinVersion = []string{deny}, "1.3" }).converse(&pipeline.Conn{Depth: pipeline.DepthInspect})
			for _, p := range pieces {
				for _, b := range cut(p.data, seed) {
					c.send(p.dir, b)
					if len(c.held[p.dir]) > 0 && !c.ended {
						t.Fatalf("pieces %d: %d bytes are held", seed, len(c.held[p.dir]))
					}
				}
			}
			if deny == "bad.example" {
				checkPassed(t, c, pieces)
			} else if c.reason() != "tls_sni_denied" || len(c.passed[0]) >= len(hello) || !strings.HasPrefix(hello, string(c.passed[0])) || len(c.passed[1]) > 0 {
				t.Errorf("pieces %d: %q, %d of %d bytes passed", seed, c.reason(), len(c.passed[0]), len(hello))
			}
		}
	}
}

// TestInterest: a stage that has nothing to do opens no stream, and one that
// only judges lets go as soon as it can.
func TestInterest(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Log = false })
	if s := r.Open(&pipeline.Conn{}); s != nil {
		t.Error("a stream without interest")
	}
	old := transcript(t, func(c, _ *stdtls.Config) { c.MaxVersion = stdtls.VersionTLS12 })
	r = newRig(t, func(c *Config) { c.Log, c.DenySNI = false, []string{"bad.example"} })
	c := r.open(server4)
	c.send(pipeline.ToServer, old[0].data)
	if c.verdict.Action != pipeline.StreamRelease || len(r.rec.lines) != 0 {
		t.Errorf("%+v, records %q", c.verdict, r.rec.lines)
	}
}

func TestGlob(t *testing.T) {
	for _, row := range []struct {
		pattern, s string
		want       bool
	}{
		{"abc", "abc", true}, {"abc", "abcd", false}, {"abc", "ab", false}, {"*", "", true}, {"*", "x", true}, {"", "", true}, {"", "x", false},
		{"a*", "a", true}, {"a*", "ba", false}, {"*c", "abc", true}, {"*c", "abcd", false}, {"a*c", "ac", true}, {"a*c", "abcbc", true},
		{"a*b*c", "a1b2c", true}, {"a*b*c", "a1c2b", false}, {"**a**", "a", true}, {"*aab*", "aaab", true}, {"*ab*ab", "abab", true}, {"*ab*ab", "ab", false},
	} {
		if got := glob(row.pattern, []byte(row.s)); got != row.want {
			t.Errorf("glob(%q, %q): got %v", row.pattern, row.s, got)
		}
	}
	// A pattern made to go back takes no longer than the product of the lengths.
	glob(strings.Repeat("*a", 18)+"b", bytes.Repeat([]byte("a"), 1<<16))
}

func TestValidate(t *testing.T) {
	c := Config{
		DenySNI: []string{"ok", "b ad"}, AllowSNI: []string{"*", "*.*"}, DenyJA4: []string{"t13d*", "t13d1516h2_8daaf6152771_e5627efa2ab1", "t13d", "", "*é", "*_*_*_*", strings.Repeat("a", 37) + "*"},
		AllowJA4: []string{"t13d1516h2-8daaf6152771-e5627efa2ab1"}, RequireSNIMatch: []SNIMatch{{}, {SNI: []string{"/"}, Dst: make([]units.Prefix, 1)}},
		MinVersion: "1.4", Deny: "403", OnBad: "x", MaxHello: 1, MaxRecords: 0,
	}
	var issues pipeline.Issues
	validate(&c, &issues)
	var paths []string
	for _, i := range issues.List {
		paths = append(paths, i.Path)
	}
	want := "[deny_sni[1] allow_sni[1] deny_ja4[2] deny_ja4[3] deny_ja4[4] deny_ja4[5] deny_ja4[6] allow_ja4[0] " +
		"require_sni_match[0] require_sni_match[0] require_sni_match[1].sni[0] require_dns dns_unknown min_version deny on_bad max_hello max_records]"
	if got := fmt.Sprint(paths); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	ok := defaults()
	issues = pipeline.Issues{}
	if validate(&ok, &issues); len(issues.List) > 0 {
		t.Errorf("the defaults have issues: %v", issues.List)
	}
}

func TestREADME(t *testing.T) {
	reg := &pipeline.Registry{}
	pipeline.Register(reg, Descriptor())
	pipelinetest.README(t, reg, reg.Lookup("tls"))
	_, section, _ := strings.Cut(readme, "## Counters")
	section, _, _ = strings.Cut(section, "\n## ")
	env := &pipeline.Env{Counters: &pipeline.CounterSet{}, Recorder: &recorder{}}
	newStage(defaults(), env)
	for _, c := range env.Counters.All() {
		if !strings.Contains(section, "`"+c.Name+"`") {
			t.Errorf("counter %q is not in the section Counters", c.Name)
		}
	}
}

// TestBuffersAreKept: handshake after handshake uses the same memory, and what
// passes after the hello takes none.
func TestBuffersAreKept(t *testing.T) {
	pieces := transcript(t, nil)
	r := newRig(t, func(c *Config) { c.Log, c.DenySNI = false, []string{"bad.example"} })
	conn := &pipeline.Conn{}
	hello, answer := []byte(pieces[0].data), []byte(pieces[1].data)
	handshake := func() {
		s := r.Open(conn)
		s.Data(pipeline.ToServer, hello, 1)
		s.Data(pipeline.ToClient, answer, 1)
		s.Close(1)
	}
	handshake()
	if n := testing.AllocsPerRun(100, handshake); n > 1 { // the name
		t.Errorf("%v allocations a handshake, want at most 1", n)
	}
	s := r.Open(conn)
	s.Data(pipeline.ToServer, hello, 1)
	early := bytes.Repeat([]byte("\x17\x03\x03\x00\x01x"), 10)
	if n := testing.AllocsPerRun(100, func() {
		if pass, _ := s.Data(pipeline.ToServer, early, 1); pass != len(early) {
			t.Fatalf("%d bytes of early data pass, want %d", pass, len(early))
		}
	}); n != 0 {
		t.Errorf("%v allocations after the hello, want 0", n)
	}
}

// FuzzStream feeds arbitrary bytes in both directions, in two ways of cutting
// them: no panic, no byte invented, the same verdict, and a name that is denied
// never passes.
func FuzzStream(f *testing.F) {
	good, bad := beginning(f, "badcurveball"), beginning(f, "tls-split-client-hello")
	f.Add([]byte(good[0]), []byte(good[1]), uint64(1))
	f.Add([]byte(bad[0]), []byte(bad[1]), uint64(2))
	f.Add([]byte(good[0]+good[0]), []byte(good[1]), uint64(3))
	f.Add([]byte(asRecords(bad[0], 3)), []byte{}, uint64(4))
	f.Add([]byte(good[0]+bad[0]), []byte(good[1]), uint64(5))
	names := hostname.NewSet([]string{"clients2.google.com"})
	f.Fuzz(func(t *testing.T, up, down []byte, seed uint64) {
		var results []string
		for _, s := range []uint64{0, 2 + seed%100} {
			r := newRig(t, func(c *Config) {
				c.DenySNI, c.DenyJA4, c.MaxHello, c.MaxRecords = []string{"clients2.google.com"}, []string{"t12*"}, 2048, 64
			})
			c := r.run(server4, []piece{{pipeline.ToServer, string(up)}, {pipeline.ToClient, string(down)}}, s)
			results = append(results, fmt.Sprint(c.verdict.Action, c.verdict.Reason, len(c.passed[0]), r.rec.lines))
			for d, in := range [][]byte{up, down} {
				if !bytes.HasPrefix(in, c.passed[d]) {
					t.Fatalf("%v: passed %q of %q", pipeline.Direction(d), c.passed[d], in)
				}
			}
			// What has passed, read again from the beginning, has no such name.
			var reader tlshello.Reader
			var h tlshello.ClientHello
			reader.Reset(tlshello.TypeClientHello, 2048, 64, nil)
			if _, e := reader.Next(c.passed[0]); e == tlshello.Message && tlshello.ParseClientHello(reader.Message(), &h) == tlshello.FaultNone {
				if name, ok := hostname.Normal(string(h.ServerName)); ok && names.Match(name) {
					t.Fatalf("a hello for %s has passed", name)
				}
			}
		}
		if results[0] != results[1] {
			t.Fatalf("whole: %s\nin pieces: %s", results[0], results[1])
		}
	})
}

// beginning returns the first record of each direction of a capture.
func beginning(t testing.TB, name string) (first [2]string) {
	t.Helper()
	for _, s := range segments(t, "testdata/captures/"+name+".pcap") {
		first[s.dir] += s.data
	}
	for d, b := range first {
		first[d] = b[:5+int(b[3])<<8+int(b[4])]
	}
	return first
}

func BenchmarkHandshake(b *testing.B) {
	pieces := transcript(b, nil)
	hello, answer := []byte(pieces[0].data), []byte(pieces[1].data)
	for _, bench := range []struct {
		name   string
		change func(*Config)
	}{
		{"names", func(c *Config) { c.Log, c.DenySNI = false, []string{"*.ads.example"} }},
		{"names and ja4", func(c *Config) { c.Log, c.DenySNI, c.DenyJA4 = false, []string{"*.ads.example"}, []string{"t10*"} }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			r := newRig(b, bench.change)
			conn := &pipeline.Conn{}
			b.ReportAllocs()
			for b.Loop() {
				s := r.Open(conn)
				s.Data(pipeline.ToServer, hello, 1)
				s.Data(pipeline.ToClient, answer, 1)
				s.Close(1)
			}
		})
	}
}
