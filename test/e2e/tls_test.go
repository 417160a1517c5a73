package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"penstock/internal/lab"
)

const tlsChain = `
[[steer]]
from = "lan"
proto = "tcp"
to = "tls"
[[chain]]
name = "tls"
  [[chain.stage]]
  kind = "tcp"
  depth = "%s"
  [[chain.stage]]
  kind = "tls"
  deny_sni = ["*.ads.example"]
  require_sni_match = [
    { sni = ["elsewhere.example"], dst = ["192.0.2.0/24", "2001:db8::/32"] },
    { sni = ["*"], dst = ["0.0.0.0/0", "::/0"] },
  ]
[[record]]
to = "file:%s"
events = ["tls"]
`

// tlsBody is what the origin answers: more than a window.
var tlsBody = strings.Repeat("0123456789abcdef", 20000)

// tlsServer is an HTTPS origin that notes the names it is asked for.
type tlsServer struct {
	mu    sync.Mutex
	names map[string]int
}

func (s *tlsServer) asked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names[name]
}

// tlsOrigin runs it in the server's namespace. It does not know the group P-256:
// clients that guess it are asked for a second hello.
func (r *rig) tlsOrigin(port uint16) *tlsServer {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"www.good.example"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		r.t.Fatal(err)
	}
	s := &tlsServer{names: map[string]int{}}
	config := &tls.Config{
		Certificates:     []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP384},
		NextProtos:       []string{"http/1.1"},
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.names[h.ServerName]++
			return nil, nil
		},
	}
	origin := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, tlsBody) }),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // connections that are refused end in their handshake
	}
	var done sync.WaitGroup
	for _, v6 := range []bool{false, true} {
		ln, err := r.Server.Listen("tcp", r.addr(v6, port))
		if err != nil {
			r.t.Fatal(err)
		}
		done.Go(func() {
			if err := origin.Serve(tls.NewListener(ln, config)); !errors.Is(err, http.ErrServerClosed) {
				r.t.Errorf("origin: %v", err)
			}
		})
	}
	r.t.Cleanup(func() {
		origin.Close()
		done.Wait()
	})
	return s
}

// https gets the origin's answer from an address, by a name, as a client that
// change has made what it is.
func (r *rig) https(addr, name string, change func(*tls.Config, *net.Conn)) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := r.Client.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	config := &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
	if change != nil {
		change(config, &conn)
	}
	c := tls.Client(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return "", err
	}
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", name)
	_, body, ok := strings.Cut(readAll(c), "\r\n\r\n")
	if !ok {
		return "", errors.New("no response")
	}
	return strings.TrimSpace(dechunk(body)), nil
}

func readAll(r io.Reader) string {
	b, _ := io.ReadAll(r)
	return string(b)
}

// dechunk takes the sizes out of a chunked body.
func dechunk(body string) string {
	var out strings.Builder
	for {
		size, rest, ok := strings.Cut(body, "\r\n")
		var n int
		if _, err := fmt.Sscanf(size, "%x", &n); err != nil || !ok || n == 0 || n > len(rest) {
			return out.String()
		}
		out.WriteString(rest[:n])
		body = strings.TrimPrefix(rest[n:], "\r\n")
	}
}

// dribble writes byte by byte.
type dribble struct{ net.Conn }

func (d dribble) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := d.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

// tlsEvent is what the test looks at of a record.
type tlsEvent struct {
	Action, Reason string
	SrcIP          string `json:"src_ip"`
	TLS            struct {
		SNI, Version, JA4 string
		ClientALPNs       []string `json:"client_alpns"`
		HelloRetry        bool     `json:"hello_retry"`
	}
}

// TestTLS runs real handshakes, of curl, of openssl and of Go, through the
// appliance: what is allowed passes, what is denied never reaches the server,
// and the records say so.
func TestTLS(t *testing.T) {
	t.Parallel()
	for _, depth := range []string{"terminate"} {
		t.Run(depth, func(t *testing.T) {
			r := newRig(t, lab.InlineOptions{})
			file := filepath.Join(r.dir, "events.json")
			r.config("closed", "", fmt.Sprintf(tlsChain, depth, file))
			server := r.tlsOrigin(443)
			a := r.start()
			var want []string // what the records are to have, in order
			for _, v6 := range []bool{false, true} {
				addr := r.addr(v6, 443)
				host, _, _ := net.SplitHostPort(addr)
				curl := func(name string) (string, error) {
					return r.try(r.Client, 30*time.Second, "curl", "-sS", "-k", "--http1.1", "-o", "/dev/null", "-w", "%{http_code} %{size_download}",
						"--resolve", name+":443:"+host, "https://"+name+"/")
				}
				if out, err := curl("www.good.example"); err != nil || out != fmt.Sprintf("200 %d", len(tlsBody)) {
					t.Errorf("curl over %s: %q, %v", ipName(v6), out, err)
				}
				if out, err := curl("x.ads.example"); err == nil || depth == "terminate" && !strings.Contains(out, "unrecognized name") {
					t.Errorf("curl to a denied name over %s: %q, %v", ipName(v6), out, err)
				}
				if out, err := curl("elsewhere.example"); err == nil {
					t.Errorf("curl to a name that belongs elsewhere over %s: %q", ipName(v6), out)
				}
				out, err := r.try(r.Client, 30*time.Second, "openssl", "s_client", "-connect", addr, "-servername", "y.ads.example")
				if err == nil || depth == "terminate" && !strings.Contains(out, "alert number 112") {
					t.Errorf("openssl to a denied name over %s: %v\n%s", ipName(v6), err, out)
				}
				// A hello of single bytes, and one after which the server wants another.
				slow := func(_ *tls.Config, c *net.Conn) { *c = dribble{*c} }
				guess := func(c *tls.Config, _ *net.Conn) { c.CurvePreferences = []tls.CurveID{tls.CurveP256, tls.CurveP384} }
				if body, err := r.https(addr, "slow.good.example", slow); err != nil || body != tlsBody {
					t.Errorf("byte by byte over %s: %d bytes, %v", ipName(v6), len(body), err)
				}
				if _, err := r.https(addr, "slow.ads.example", slow); err == nil {
					t.Errorf("a denied name passed byte by byte over %s", ipName(v6))
				}
				if body, err := r.https(addr, "retry.good.example", guess); err != nil || body != tlsBody {
					t.Errorf("two hellos over %s: %d bytes, %v", ipName(v6), len(body), err)
				}
				want = append(want, "www.good.example allowed", "x.ads.example denied tls_sni_denied", "elsewhere.example denied tls_sni_mismatch",
					"y.ads.example denied tls_sni_denied", "slow.good.example allowed", "slow.ads.example denied tls_sni_denied", "retry.good.example allowed")
			}
			for _, name := range []string{"x.ads.example", "y.ads.example", "slow.ads.example", "elsewhere.example"} {
				if n := server.asked(name); n > 0 {
					t.Errorf("the server saw %d hellos for %s", n, name)
				}
			}
			if server.asked("www.good.example") == 0 || server.asked("retry.good.example") == 0 {
				t.Error("the server saw no hello that is allowed")
			}
			var events []tlsEvent
			r.eventually("the handshakes are recorded", func() (err error) {
				events, err = readTLSEvents(file)
				if err == nil && len(events) < len(want) {
					err = fmt.Errorf("%d records, want %d", len(events), len(want))
				}
				return err
			})
			for i, e := range events {
				got := strings.TrimSpace(e.TLS.SNI + " " + e.Action + " " + e.Reason)
				if i >= len(want) || got != want[i] {
					t.Errorf("record %d: %q, want %q", i+1, got, want[min(i, len(want)-1)])
				}
				if e.Action == "allowed" && e.TLS.Version != "TLS 1.3" || len(e.TLS.JA4) != 36 || e.TLS.HelloRetry != strings.HasPrefix(e.TLS.SNI, "retry") ||
					e.SrcIP != r.ClientIP4.String() && e.SrcIP != r.ClientIP6.String() {
					t.Errorf("record %d: %+v", i+1, e)
				}
			}
			if len(events) > 1 && (events[0].TLS.JA4 != events[1].TLS.JA4 || fmt.Sprint(events[0].TLS.ClientALPNs) != "[http/1.1]") {
				t.Errorf("two hellos of curl: %+v, %+v", events[0].TLS, events[1].TLS)
			}
			a.stop()
		})
	}
}

func readTLSEvents(file string) (list []tlsEvent, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		var e tlsEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		list = append(list, e)
	}
	return list, nil
}
