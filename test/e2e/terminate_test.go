package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
)

const terminateChain = `
[[steer]]
from = "lan"
proto = "tcp"
to = "web"
[[chain]]
name = "web"
  [[chain.stage]]
  kind = "tcp"
  depth = "terminate"
  splice = "never"
`

// httpChain looks at port 80 and terminates the rest as it is.
const httpChain = `
[[steer]]
from = "lan"
proto = "tcp"
dst_port = [80]
to = "http"
[[chain]]
name = "http"
  [[chain.stage]]
  kind = "tcp"
  [[chain.stage]]
  kind = "http"
  deny_hosts = ["*.ads.example"]
  deny = "403"
` + terminateChain

// terminating starts an appliance that terminates all TCP.
func terminating(t *testing.T, chain string) (*rig, *appliance) {
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", chain)
	return r, r.start()
}

// TestTools runs the programs that people use: curl, wget and iperf3.
func TestTools(t *testing.T) {
	t.Parallel()
	r, a := terminating(t, httpChain)
	r.origin(80)
	for _, v6 := range []bool{false, true} {
		url := "http://" + r.addr(v6, 80)
		file := filepath.Join(r.dir, "object")
		for _, tool := range [][]string{
			{"curl", "-sS", "--fail", "-g", "-o", file, url + "/bytes/10000000"},
			{"wget", "-q", "-O", file, url + "/bytes/10000000"},
		} {
			r.run(r.Client, 60*time.Second, tool[0], tool[1:]...)
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(b)
			if got, want := hex.EncodeToString(sum[:]), traffic.Sum(traffic.Seed, 10000000); got != want {
				t.Errorf("%s over %s: %d bytes with sum %s, want %s", tool[0], ipName(v6), len(b), got, want)
			}
		}
		out := r.run(r.Client, 20*time.Second, "curl", "-sS", "-g", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: x.ads.example", url+"/whoami")
		if out != "403" {
			t.Errorf("curl to a denied host over %s: %q", ipName(v6), out)
		}
	}
	server := r.Server.Command(context.Background(), "iperf3", "-s", "--forceflush")
	server.Stdout, server.Stderr = io.Discard, io.Discard
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	for _, v6 := range []bool{false, true} {
		host, _, _ := net.SplitHostPort(r.addr(v6, 0))
		for _, extra := range [][]string{nil, {"-R"}, {"-P", "4"}} {
			args := append([]string{"-c", host, "-t", "1", "-f", "m"}, extra...)
			r.eventually("iperf3 "+strings.Join(args, " "), func() error {
				out, err := r.try(r.Client, 20*time.Second, "iperf3", args...)
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
		}
	}
	a.stop()
}

// TestManyConnections runs 1,000 connections at once, each of which carries its
// own bytes both ways.
func TestManyConnections(t *testing.T) {
	r, a := terminating(t, terminateChain)
	r.tcpServer(7000)
	for _, v6 := range []bool{false, true} {
		t.Run(ipName(v6), func(t *testing.T) {
			const n = 1000
			ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
			defer cancel()
			var wg sync.WaitGroup
			errs := make(chan error, n)
			for range n {
				wg.Add(1)
				go func() {
					defer wg.Done()
					errs <- r.client().TCPEcho(ctx, r.addr(v6, 7000), 20000)
				}()
			}
			wg.Wait()
			close(errs)
			failed := 0
			for err := range errs {
				if err != nil {
					if failed++; failed < 5 {
						t.Error(err)
					}
				}
			}
			if failed > 0 {
				t.Errorf("%d of %d connections failed", failed, n)
			}
		})
	}
	a.stop()
}

// TestSequentialConnections is the TIME_WAIT trap: one client address, one
// server port, more connections than there are ephemeral ports.
func TestSequentialConnections(t *testing.T) {
	n := int64(30000)
	if testing.Short() {
		n = 3000
	}
	r, a := terminating(t, terminateChain)
	r.origin(80)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	res, err := traffic.Load(ctx, traffic.LoadOptions{
		Kind: "http", Address: r.addr(false, 80), Path: "/bytes/16", Conns: 4, Requests: n, Dial: r.Client.DialContext,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", res)
	if res.Errors > 0 || res.Requests != n {
		t.Errorf("%d of %d requests, %d errors, the first: %s", res.Requests, n, res.Errors, res.FirstError)
	}
	a.stop()
}

// TestLongLived keeps an interactive byte stream open for a while: small
// messages with pauses, both ways, as ssh has.
func TestLongLived(t *testing.T) {
	t.Parallel()
	r, a := terminating(t, terminateChain)
	r.tcpServer(7000)
	for _, v6 := range []bool{false, true} {
		conn, err := r.Client.Dial("tcp", r.addr(v6, 7000))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		// The raw server echoes when it is asked to.
		if _, err := io.WriteString(conn, "echo\n"); err != nil {
			t.Fatal(err)
		}
		for i := range 200 {
			msg := fmt.Sprintf("message %d over %s\n", i, ipName(v6))
			if _, err := io.WriteString(conn, msg); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(msg))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != msg {
				t.Fatalf("message %d came back as %q: %v", i, got, err)
			}
			if i%50 == 0 {
				time.Sleep(300 * time.Millisecond) // a pause is what is tested: timers run, nothing is sent
			}
		}
	}
	a.stop()
}

// TestUnansweredServer: a closed port is a reset, and a dead host is a timeout,
// as they are without the appliance.
func TestUnansweredServer(t *testing.T) {
	t.Parallel()
	r, a := terminating(t, terminateChain)
	for _, v6 := range []bool{false, true} {
		_, err := r.Client.Dial("tcp", r.addr(v6, 9))
		if err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("closed port over %s: %v", ipName(v6), err)
		}
	}
	// A host that does not answer: the neighbour exists, the address does not.
	dead := r.ServerIP4.Next().Next()
	if err := r.Client.AddNeigh(r.ClientIf, dead, r.ServerMAC); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err := r.Client.DialContext(ctx, "tcp", net.JoinHostPort(dead.String(), "80"))
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("dead host: %v", err)
	}
	a.balanced()
	a.stop()
}

// TestRecord reads the request log.
func TestRecord(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	log := filepath.Join(r.dir, "events.json")
	r.config("closed", "", httpChain+fmt.Sprintf("\n[[record]]\nto = \"file:%s\"\nevents = [\"http\"]\n", log))
	r.origin(80)
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	who, err := r.client().Whoami(ctx, r.addr(false, 80))
	if err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(who.Peer)
	r.eventually("the request is recorded", func() error {
		b, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		for _, want := range []string{`"event_type":"http"`, `"src_ip":"` + host + `"`, `"src_port":` + port, `"url":"/whoami"`, `"status":200`} {
			if !strings.Contains(string(b), want) {
				return fmt.Errorf("no %s in %q", want, b)
			}
		}
		return nil
	})
	a.stop()
}
