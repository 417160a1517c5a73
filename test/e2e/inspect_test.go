package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
)

const inspectChain = `
[[steer]]
from = "lan"
proto = "tcp"
to = "http"
[[chain]]
name = "http"
  [[chain.stage]]
  kind = "tcp"
  [[chain.stage]]
  kind = "http"
`

const inspectDeny = inspectChain + `  deny_hosts = ["*.ads.example"]
`

// TestInspect looks into HTTP without terminating it: curl gets every byte, the
// server sees the client's own packets, and a host that is denied is a reset.
func TestInspect(t *testing.T) {
	t.Parallel()
	for name, chain := range map[string]string{"observe": inspectChain, "deny": inspectDeny} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, lab.InlineOptions{})
			log := filepath.Join(r.dir, "events.json")
			r.config("closed", "", chain+fmt.Sprintf("\n[[record]]\nto = \"file:%s\"\nevents = [\"http\"]\n", log))
			r.origin(80)
			a := r.start()
			if s := a.status(); s.Chains[0].Depth != "inspect" {
				t.Fatalf("depth %s: %s", s.Chains[0].Depth, s.Chains[0].Why)
			}
			const n = 10000000
			for _, v6 := range []bool{false, true} {
				url := "http://" + r.addr(v6, 80)
				file := filepath.Join(r.dir, "object")
				r.run(r.Client, 60*time.Second, "curl", "-sS", "--fail", "-g", "-o", file, fmt.Sprintf("%s/bytes/%d", url, n))
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				sum := sha256.Sum256(b)
				if got, want := hex.EncodeToString(sum[:]), traffic.Sum(traffic.Seed, n); got != want {
					t.Errorf("curl over %s: %d bytes with sum %s, want %s", ipName(v6), len(b), got, want)
				}
				// Keep-alive, and a request in many segments.
				r.run(r.Client, 20*time.Second, "curl", "-sS", "--fail", "-g", "-o", "/dev/null", url+"/whoami", "-o", "/dev/null", url+"/whoami", "-o", "/dev/null", url+"/bytes/100000")
				if name == "deny" {
					out, err := r.try(r.Client, 20*time.Second, "curl", "-sS", "-g", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: x.ads.example", url+"/whoami")
					if err == nil || !strings.Contains(out, "reset") {
						t.Errorf("curl to a denied host over %s: %v, %q", ipName(v6), err, out)
					}
				}
			}
			want := 8
			if name == "deny" {
				want += 2
			}
			r.eventually("the requests are recorded", func() error {
				b, err := os.ReadFile(log)
				if err != nil {
					return err
				}
				if got := bytes.Count(b, []byte("\n")); got != want {
					return fmt.Errorf("%d records, want %d: %s", got, want, b)
				}
				for line := range bytes.Lines(b) {
					var e struct {
						Action, Unseen string
						HTTP           struct {
							Status int
							Length int64
							URL    string
							TTFB   float64 `json:"time_to_first_byte_seconds"`
						}
					}
					if err := json.Unmarshal(line, &e); err != nil {
						return err
					}
					if e.Unseen != "" || e.Action == "allowed" && (e.HTTP.Status != 200 || e.HTTP.TTFB <= 0) ||
						strings.HasSuffix(e.HTTP.URL, fmt.Sprint(n)) && e.HTTP.Length < n {
						t.Errorf("record %s", line)
					}
				}
				return nil
			})
			a.stop()
		})
	}
}

// TestInspectSegments sends a request in parts to a chain that may deny: it is
// answered when it is complete, and refused with a reset. One client sends byte by
// byte, one pauses within the head for so long that it sends the first part again.
func TestInspectSegments(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", inspectDeny)
	r.origin(80)
	a := r.start()
	for name, send := range map[string]func(w io.Writer, head string){
		"bytes": func(w io.Writer, head string) {
			for _, c := range []byte(head) {
				if _, err := w.Write([]byte{c}); err != nil {
					return // reset meanwhile: what follows says so
				}
			}
		},
		"pause": func(w io.Writer, head string) {
			line := strings.Index(head, "\n") + 1
			_, _ = io.WriteString(w, head[:line])
			time.Sleep(1200 * time.Millisecond) // what is tested
			_, _ = io.WriteString(w, head[line:])
		},
	} {
		for host, allowed := range map[string]bool{"good.example": true, "x.ads.example": false} {
			conn, err := r.Client.Dial("tcp", r.addr(false, 80))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			if err := conn.(*net.TCPConn).SetNoDelay(true); err != nil {
				t.Fatal(err)
			}
			send(conn, "GET /bytes/1000 HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
			b, err := io.ReadAll(conn)
			if allowed && (err != nil || !bytes.HasPrefix(b, []byte("HTTP/1.1 200"))) {
				t.Errorf("%s, %s: %v, %q", name, host, err, b)
			}
			if !allowed && (err == nil || len(b) > 0) {
				t.Errorf("%s, %s: %v, %q", name, host, err, b)
			}
		}
	}
	a.stop()
}

// TestInspectRelease: what is no HTTP is let go of, and leaves user space with
// both directions; every byte arrives.
func TestInspectRelease(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", inspectChain)
	r.tcpServer(7000)
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for _, v6 := range []bool{false, true} {
		if err := r.client().TCPEcho(ctx, r.addr(v6, 7000), 20<<20); err != nil {
			t.Fatalf("%s: %v", ipName(v6), err)
		}
	}
	s := a.status()
	if s.Flows.Offloaded < 2 || s.Totals.Packets > 1000 {
		t.Errorf("%d flows are offloaded, %d packets went to user space", s.Flows.Offloaded, s.Totals.Packets)
	}
	if f, err := a.flow(r.addr(false, 7000)); err != nil || f.Depth != "offload" {
		t.Errorf("%+v, %v", f, err)
	}
	a.stop()
}

// TestInspectReplay records requests live, with the packets they came in, and
// replays those: the same records, but for times and numbers of connections.
func TestInspectReplay(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	dir, log := filepath.Join(r.dir, "packets"), filepath.Join(r.dir, "events.json")
	chain := `
[[steer]]
from = "lan"
proto = "tcp"
to = "http"
[[chain]]
name = "http"
%s
  [[chain.stage]]
  kind = "tcp"
  [[chain.stage]]
  kind = "http"
  deny_hosts = ["*.ads.example"]
[[record]]
to = "file:%s"
events = ["http"]
`
	capture := fmt.Sprintf("  [[chain.stage]]\n  kind = \"capture\"\n  dir = %q\n  lossless = true\n", dir)
	r.config("closed", "", fmt.Sprintf(chain, capture, log))
	r.origin(80)
	a := r.start()
	for _, v6 := range []bool{false, true} {
		url := "http://" + r.addr(v6, 80)
		r.run(r.Client, 20*time.Second, "curl", "-sS", "--fail", "-g", "-o", "/dev/null", url+"/whoami", "-o", "/dev/null", url+"/bytes/300000")
		r.run(r.Client, 20*time.Second, "curl", "-sS", "-g", "-o", "/dev/null", "--data-binary", "@"+r.toml, url+"/whoami")
		if _, err := r.try(r.Client, 20*time.Second, "curl", "-sS", "-g", "-H", "Host: x.ads.example", url+"/whoami"); err == nil {
			t.Error("a denied request was answered")
		}
	}
	r.eventually("the requests are recorded", func() error {
		b, err := os.ReadFile(log)
		if n := bytes.Count(b, []byte("\n")); err != nil || n != 8 {
			return fmt.Errorf("%d records, %v", n, err)
		}
		return nil
	})
	a.stop()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("captures %q, %v", files, err)
	}
	again := filepath.Join(r.dir, "again.json")
	offline := filepath.Join(r.dir, "offline.toml")
	if err := os.WriteFile(offline, []byte(fmt.Sprintf(header, "offline", r.control(), "closed", "", "")+fmt.Sprintf(chain, "", again)), 0o600); err != nil {
		t.Fatal(err)
	}
	r.run(r.Appliance, 30*time.Second, binary, "replay", "--in", files[0], offline)
	if live, replayed := timeless(t, log), timeless(t, again); strings.Join(live, "\n") != strings.Join(replayed, "\n") {
		t.Errorf("live:\n%s\nreplayed:\n%s", strings.Join(live, "\n"), strings.Join(replayed, "\n"))
	}
}

// timeless reads records without what differs between two looks at the same
// packets.
func timeless(t *testing.T, file string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var e map[string]any
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		delete(e, "timestamp")
		delete(e, "flow_id")
		for k := range e["http"].(map[string]any) {
			if strings.HasSuffix(k, "_seconds") {
				delete(e["http"].(map[string]any), k)
			}
		}
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, string(text))
	}
	return lines
}
