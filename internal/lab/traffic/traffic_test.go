package traffic_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"penstock/internal/lab/traffic"
)

func TestMain(m *testing.M) {
	if status, ok := traffic.Child(); ok {
		os.Exit(status)
	}
	os.Exit(m.Run())
}

var sizes = []int64{0, 1, 4095, 4096, 1<<20 + 3}

func TestPattern(t *testing.T) {
	const n = 3*4096 + 17
	whole, err := io.ReadAll(io.LimitReader(traffic.NewPattern(1), n))
	if err != nil {
		t.Fatal(err)
	}
	pieces := make([]byte, n)
	for p, i := traffic.NewPattern(1), 0; i < n; i += min(1000, n-i) {
		p.Read(pieces[i:min(i+1000, n)])
	}
	if !bytes.Equal(whole, pieces) {
		t.Error("the pattern depends on how it is read")
	}
	other, _ := io.ReadAll(io.LimitReader(traffic.NewPattern(2), n))
	if bytes.Equal(whole, other) {
		t.Error("two seeds, one pattern")
	}
	sum := sha256.Sum256(whole)
	if got := traffic.Sum(1, n); got != hex.EncodeToString(sum[:]) {
		t.Errorf("Sum is %s, want %x", got, sum)
	}
	flipped := bytes.Clone(whole)
	flipped[5000] ^= 1
	for _, c := range []struct {
		name string
		in   []byte
		at   string // "" is no error
	}{
		{"right", whole, ""},
		{"flipped bit", flipped, "at 5000 "},
		{"lost block", append(bytes.Clone(whole[:4096]), whole[8192:]...), "at 4103 "},
		{"doubled block", append(bytes.Clone(whole[:4096]), whole...), "at 4103 "},
		{"lost byte", append(bytes.Clone(whole[:100]), whole[101:]...), "at 100 "},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := traffic.NewChecker(1)
			var err error
			for rest := c.in; len(rest) > 0 && err == nil; {
				n := min(777, len(rest))
				_, err = check.Write(rest[:n])
				rest = rest[n:]
			}
			if c.at == "" && (err != nil || check.Checked() != int64(len(c.in))) {
				t.Errorf("checked %d bytes, %v", check.Checked(), err)
			}
			if c.at != "" && (err == nil || !strings.Contains(err.Error(), c.at)) {
				t.Errorf("got %v, want an error %s", err, c.at)
			}
		})
	}
}

func TestHTTP(t *testing.T) {
	ctx, addr := serve(t, traffic.ServeHTTP)
	var c traffic.Client
	for _, n := range sizes {
		for name, err := range map[string]error{
			"bytes":   c.Bytes(ctx, addr, n, false),
			"chunked": c.Bytes(ctx, addr, n, true),
			"echo":    c.Echo(ctx, addr, n),
			"upload":  c.Upload(ctx, addr, n),
		} {
			if err != nil {
				t.Errorf("%s of %d: %v", name, n, err)
			}
		}
	}
	who, err := c.Whoami(ctx, addr)
	if err != nil || who.Local != addr || !strings.HasPrefix(who.Peer, "127.0.0.1:") || who.Host != addr || who.Path != "/whoami" {
		t.Errorf("whoami: %+v, %v", who, err)
	}
	client := c.HTTP(true)
	defer client.CloseIdleConnections()
	get := func(path string) (int, string, error) {
		resp, err := client.Get("http://" + addr + path)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body), err
	}
	for _, c := range []struct {
		path   string
		status int
		body   string
	}{
		{"/slow?first=1ms&every=1ms&count=3", 200, "line 1 of 3\nline 2 of 3\nline 3 of 3\n"},
		{"/status/503", 503, ""},
		{"/status/abc", 400, "status \"abc\": want 200 to 599\n"},
		{"/slow?first=abc", 400, "first=\"abc\": want a duration such as 100ms\n"},
		{"/slow?every=-1s", 400, "every=\"-1s\": want a duration such as 100ms\n"},
		{"/slow?count=0", 400, "count=\"0\": want 1 to 1000\n"},
		{"/slow?every=1m&count=1000", 400, "100ms and 1000 times 1m0s: want less than 1m0s\n"},
		{"/bytes/-1", 400, "size \"-1\": want 0 to 68719476736\n"},
		{"/bytes/99999999999999999999", 400, "size \"99999999999999999999\": want 0 to 68719476736\n"},
		{"/nothing", 404, "404 page not found\n"},
	} {
		status, body, err := get(c.path)
		if err != nil || status != c.status || body != c.body {
			t.Errorf("GET %s: %d %q %v, want %d %q", c.path, status, body, err, c.status, c.body)
		}
	}
	if _, body, err := get("/cut/100000"); !errors.Is(err, syscall.ECONNRESET) || len(body) > 50000 {
		t.Errorf("cut: %d bytes, %v; want at most half and a reset", len(body), err)
	}
}

func TestTCP(t *testing.T) {
	server := &traffic.TCPServer{}
	ctx, addr := serve(t, server.Serve)
	var c traffic.Client
	for _, n := range sizes {
		for name, err := range map[string]error{
			"echo":    c.TCPEcho(ctx, addr, n),
			"discard": c.TCPDiscard(ctx, addr, n),
			"source":  c.TCPSource(ctx, addr, n),
			"reset":   c.TCPReset(ctx, addr, n),
		} {
			if err != nil {
				t.Errorf("%s of %d: %v", name, n, err)
			}
		}
	}
	peer, local, err := c.TCPWhoami(ctx, addr)
	if err != nil || local != addr || !strings.HasPrefix(peer, "127.0.0.1:") {
		t.Errorf("whoami: %q, %q, %v", peer, local, err)
	}
	if got := server.Counts(); got.Accepted != uint64(4*len(sizes)+1) || got.Refused != 0 || got.Failed != 0 {
		t.Errorf("counts %+v: want %d accepted, none else", got, 4*len(sizes)+1)
	}

	t.Run("duplex", func(t *testing.T) {
		const n = 4 << 20
		conn := command(t, addr, "duplex 4194304\n")
		sent := make(chan error, 1)
		go func() {
			_, err := io.CopyN(conn, traffic.NewPattern(9), n)
			sent <- err
		}()
		check := traffic.NewChecker(traffic.Seed)
		if _, err := io.Copy(check, conn); err != nil || check.Checked() != n {
			t.Errorf("read %d bytes, %v", check.Checked(), err)
		}
		if err := <-sent; err != nil {
			t.Errorf("send while the server had closed its side: %v", err)
		}
	})
	t.Run("hold", func(t *testing.T) {
		conn := command(t, addr, "hold 300\n")
		conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		// More than the socket buffers of both ends take.
		var sent int64
		var err error
		for sent < 64<<20 && err == nil {
			var n int
			n, err = conn.Write(make([]byte, 1<<20))
			sent += int64(n)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("wrote %d bytes, %v; want to be held up", sent, err)
		}
		conn.(*net.TCPConn).CloseWrite()
		got, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(got), fmt.Sprint(sent)+" ") {
			t.Errorf("after the hold: %q, %v; want %d bytes seen", got, err, sent)
		}
	})
	for _, bad := range []string{"\n", "echo 5\n", "source\n", "source -1\n", "source x\n", "hold 60001\n", "ECHO\n", "source 5 5\n"} {
		before := server.Counts().Failed
		conn := command(t, addr, bad)
		if got, err := io.ReadAll(conn); len(got) > 0 || err != nil {
			t.Errorf("%q: got %q, %v; want the end", bad, got, err)
		}
		for deadline := time.Now().Add(10 * time.Second); server.Counts().Failed == before; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("%q: not counted as failed", bad)
				break
			}
		}
	}
}

func TestTCPMode(t *testing.T) {
	_, addr := serve(t, (&traffic.TCPServer{Mode: "source 10"}).Serve)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want, _ := io.ReadAll(io.LimitReader(traffic.NewPattern(traffic.Seed), 10))
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the server said %x, %v; want %x without being asked", got, err, want)
	}
	ln := listen(t)
	if err := (&traffic.TCPServer{Mode: "dance"}).Serve(t.Context(), ln); err == nil {
		t.Error("serve in mode dance: no error")
	}
}

// TestServeEnds ends servers that have connections open.
func TestServeEnds(t *testing.T) {
	for name, server := range map[string]func(context.Context, net.Listener) error{
		"http": traffic.ServeHTTP, "tcp": (&traffic.TCPServer{Mode: "echo"}).Serve,
	} {
		ctx, cancel := context.WithCancel(t.Context())
		ln := listen(t)
		ended := make(chan error, 1)
		go func() { ended <- server(ctx, ln) }()
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET /slow?first=1m HTTP/1.1\r\nHost: x\r\n\r\n")
		if name == "tcp" { // wait until it is served
			if _, err := io.ReadFull(conn, make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: still serving", name)
		}
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection is still open", name)
		}
	}
}

// spoil changes what passes a connection towards the client.
type spoil struct {
	net.Conn
	read, at int
	cut      bool
}

func (s *spoil) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if i := s.at - s.read; i >= 0 && i < n {
		if s.cut {
			s.read += n
			return i, io.EOF
		}
		b[i] ^= 0x20
	}
	s.read += n
	return n, err
}

// TestClientsNotice puts one wrong bit, or an early end, into what clients read.
func TestClientsNotice(t *testing.T) {
	_, origin := serve(t, traffic.ServeHTTP)
	_, raw := serve(t, (&traffic.TCPServer{}).Serve)
	_, polite := serve(t, (&traffic.TCPServer{Mode: "source 10"}).Serve)
	for _, cut := range []bool{false, true} {
		c := traffic.Client{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &halfCloser{spoil{Conn: conn, at: 70_000, cut: cut}}, nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for name, err := range map[string]error{
			"bytes":      c.Bytes(ctx, origin, 100_000, false),
			"chunked":    c.Bytes(ctx, origin, 100_000, true),
			"echo":       c.Echo(ctx, origin, 100_000),
			"tcp-echo":   c.TCPEcho(ctx, raw, 100_000),
			"tcp-source": c.TCPSource(ctx, raw, 100_000),
			"tcp-reset":  c.TCPReset(ctx, raw, 100_000),
		} {
			if err == nil {
				t.Errorf("%s, cut %v: no error", name, cut)
			}
		}
	}
	if err := (traffic.Client{}).TCPReset(t.Context(), polite, 10); err == nil {
		t.Error("a FIN was taken for a reset")
	}
	if err := (traffic.Client{}).TCPSource(t.Context(), polite, 11); err == nil {
		t.Error("10 bytes were taken for 11")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, silent := serve(t, (&traffic.TCPServer{Mode: "hold 60000"}).Serve)
	if err := (traffic.Client{}).TCPSource(ctx, silent, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent server: %v, want the context's end", err)
	}
}

type halfCloser struct{ spoil }

func (h *halfCloser) CloseWrite() error { return h.Conn.(*net.TCPConn).CloseWrite() }

// serve runs a server on loopback until the test ends.
func serve(t *testing.T, server func(context.Context, net.Listener) error) (context.Context, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	ln := listen(t)
	ended := make(chan error, 1)
	go func() { ended <- server(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return ctx, ln.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// command connects and sends a TCPServer's first line.
func command(t *testing.T, addr, line string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, line); err != nil {
		t.Fatal(err)
	}
	return conn
}

var _ http.Handler = traffic.Origin()
