package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
)

// spliceChain terminates all TCP and gives it back: there is no stage that wants
// to see it.
const spliceChain = `
[[steer]]
from = "lan"
proto = "tcp"
to = "through"
[[chain]]
name = "through"
  [[chain.stage]]
  kind = "tcp"
  depth = "terminate"
`

// spliceBytes is how much is sent each way: SPLICE_BYTES, for those who have the
// time.
func spliceBytes(t *testing.T) int64 {
	text := os.Getenv("SPLICE_BYTES")
	if text == "" {
		return 32 << 20
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("SPLICE_BYTES: %v", err)
	}
	return n
}

// counter sums a counter of the tcp stages.
func (a *appliance) counter(name string) (n uint64) {
	a.r.t.Helper()
	for _, c := range a.status().Chains {
		for _, st := range c.Stages {
			n += st.Counters[name]
		}
	}
	return n
}

// TestSplice moves bytes over connections that were terminated and are one again.
func TestSplice(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", spliceChain)
	r.tcpServer(7000)
	r.origin(80)
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	n := spliceBytes(t)
	conns := uint64(0)
	for _, v6 := range []bool{false, true} {
		addr := r.addr(v6, 7000)
		for what, fn := range map[string]func() error{
			"echo":     func() error { return r.client().TCPEcho(ctx, addr, n) },
			"upload":   func() error { return r.client().TCPDiscard(ctx, addr, n) },
			"download": func() error { return r.client().TCPSource(ctx, addr, n) },
			"reset":    func() error { return r.client().TCPReset(ctx, addr, 1<<20) },
		} {
			conns++
			before := a.status().Totals.Packets
			if err := fn(); err != nil {
				t.Errorf("%s, %s: %v", what, ipName(v6), err)
			}
			if up := a.status().Totals.Packets - before; up > 3000 {
				t.Errorf("%s, %s: %d packets in user space", what, ipName(v6), up)
			}
		}
		if peer, local, err := r.client().TCPWhoami(ctx, addr); err != nil || local != addr {
			t.Errorf("%s: the server sees %s at %s, %v", ipName(v6), peer, local, err)
		}
		conns++
	}
	if got := a.counter("spliced"); got != conns {
		t.Errorf("%d connections were spliced, want %d", got, conns)
	}
	if got := a.counter("splice_offloaded"); got < conns {
		t.Errorf("%d were offloaded, want %d", got, conns)
	}
	r.eventually("nothing is left of them", func() error {
		s := a.status()
		if s.Flows.Steered > 0 || s.Flows.Terminated > 0 {
			return fmt.Errorf("%+v", s.Flows)
		}
		return nil
	})
	a.stop()
	r.nothingAttached()
}

// TestSpliceChurn: many short connections, on addresses and ports that come
// again.
func TestSpliceChurn(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", spliceChain)
	r.origin(80)
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	res, err := traffic.Load(ctx, traffic.LoadOptions{
		Kind: "http", Address: r.addr(false, 80), Path: "/bytes/3000", Conns: 8, Requests: 4000, Dial: r.Client.DialContext,
	})
	if err != nil || res.Errors > 0 || res.Requests != 4000 {
		t.Errorf("%+v, %v", res, err)
	}
	t.Logf("%d spliced, %d offloaded, %d packets translated in user space", a.counter("spliced"), a.counter("splice_offloaded"), a.counter("translated"))
	if a.counter("spliced") < 3500 {
		t.Errorf("%d of 4000 connections were spliced", a.counter("spliced"))
	}
	// The same ports again, at once: half of the time the one before is remembered.
	for i := range 200 {
		c, err := r.Client.DialFrom(ctx, "tcp", net.JoinHostPort(r.ClientIP4.String(), strconv.Itoa(20000+i%4)), r.addr(false, 80))
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, "GET /bytes/100 HTTP/1.0\r\n\r\n")
		if b, err := io.ReadAll(c); err != nil || len(b) < 100 {
			t.Fatalf("connection %d: %d bytes, %v", i, len(b), err)
		}
		c.(*net.TCPConn).SetLinger(0) // the port can be used again
		c.Close()
	}
	r.eventually("closed connections are forgotten", func() error {
		s := a.status()
		if s.Flows.Steered > 0 || s.Flows.Terminated > 0 {
			return fmt.Errorf("%+v", s.Flows)
		}
		return nil
	})
	a.stop()
}

// TestSpliceWithoutDaemon: connections that are spliced go on while the daemon is
// stopped, killed, and replaced, and each of them ends in order: half of them while
// there is no daemon.
func TestSpliceWithoutDaemon(t *testing.T) {
	t.Parallel()
	const conns = 1000
	r := newRig(t, lab.InlineOptions{})
	r.config("open", "", spliceChain)
	r.tcpServer(7000)
	a := r.start()
	var open [conns]net.Conn
	for i := range open {
		c, err := r.Client.Dial("tcp", r.addr(i%2 == 1, 7000))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "echo\n"); err != nil {
			t.Fatal(err)
		}
		open[i] = c
	}
	r.eventually("all are offloaded", func() error {
		if n := a.counter("splice_offloaded"); n < conns {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	var stop [2]chan struct{} // of each half
	var halves [2]sync.WaitGroup
	for i := range stop {
		stop[i] = make(chan struct{})
	}
	var bytes, finished atomic.Int64
	for i, c := range open {
		halves[i/2%2].Go(func() {
			for n := 0; ; n++ {
				_ = c.SetDeadline(time.Now().Add(40 * time.Second))
				select {
				case <-stop[i/2%2]:
					// Half-closed, and then the server's end.
					if err := c.(*net.TCPConn).CloseWrite(); err != nil {
						t.Errorf("connection %d: %v", i, err)
					}
					if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
						t.Errorf("connection %d: %d bytes before the end, %v", i, len(rest), err)
						return
					}
					finished.Add(1)
					return
				default:
				}
				msg := make([]byte, 1+(i*7919+n*104729)%20000)
				if _, err := io.ReadFull(traffic.NewPattern(uint64(i*1000+n)), msg); err != nil {
					t.Error(err)
					return
				}
				go c.Write(msg)
				got := make([]byte, len(msg))
				if _, err := io.ReadFull(c, got); err != nil || string(got) != string(msg) {
					t.Errorf("connection %d, message %d: other bytes, or %v", i, n, err)
					return
				}
				bytes.Add(int64(len(msg)))
			}
		})
	}
	crosses := func(when string) {
		t.Helper()
		mark := bytes.Load()
		r.eventually(when, func() error {
			if n := bytes.Load() - mark; n < 20<<20 {
				return fmt.Errorf("%d bytes crossed", n)
			}
			return nil
		})
	}
	crosses("with the daemon")
	a.suspend()
	crosses("while it is stopped")
	a.kill()
	crosses("after kill -9")
	close(stop[0])
	halves[0].Wait()
	if n := finished.Load(); n != conns/2 {
		t.Errorf("%d of %d connections finished without a daemon", n, conns/2)
	}
	a = r.start()
	crosses("with a new daemon")
	if n := a.status().Flows.Offloaded; n < conns/2 {
		t.Errorf("the new daemon knows of %d offloaded flows, want %d", n, conns/2)
	}
	close(stop[1])
	halves[1].Wait()
	if n := finished.Load(); n != conns {
		t.Errorf("%d of %d connections finished", n, conns)
	}
	t.Logf("%d connections finished, %d MB crossed", finished.Load(), bytes.Load()>>20)
	a.stop()
}

// TestSpliceAfterUpgrade: the http stage sees a connection until it becomes
// another protocol; then it is spliced, and every byte is right across that.
func TestSpliceAfterUpgrade(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", httpChain)
	ln, err := r.Server.Listen("tcp", r.addr(false, 80))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for {
					req, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					if req.Header.Get("Upgrade") == "" {
						io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
						continue
					}
					io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
					io.Copy(c, in)
					return
				}
			})
		}
	})
	defer serving.Wait()
	defer ln.Close()
	a := r.start()
	c, err := r.Client.Dial("tcp", r.addr(false, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	in := bufio.NewReader(c)
	answer := func(head string, status int) {
		t.Helper()
		if _, err := io.WriteString(c, head); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != status {
			t.Fatalf("%+v, %v", resp, err)
		}
		if status == 200 {
			io.Copy(io.Discard, resp.Body)
		}
	}
	for range 3 {
		answer("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", 200)
	}
	if n := a.counter("spliced"); n != 0 {
		t.Errorf("spliced %d times while the http stage reads along", n)
	}
	answer("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", 101)
	for i := range 50 {
		msg := make([]byte, 1+i*2000)
		if _, err := io.ReadFull(traffic.NewPattern(uint64(i)), msg); err != nil {
			t.Fatal(err)
		}
		go c.Write(msg)
		got := make([]byte, len(msg))
		if _, err := io.ReadFull(in, got); err != nil || string(got) != string(msg) {
			t.Fatalf("message %d: other bytes, or %v", i, err)
		}
	}
	if n := a.counter("spliced"); n != 1 {
		t.Errorf("spliced %d times, want once", n)
	}
	f, err := a.flow(r.addr(false, 80))
	if err != nil || f.Depth != "offload" || f.State != "spliced" || f.DepthSeconds <= 0 || f.DepthSeconds > f.AgeSeconds {
		t.Errorf("%+v, %v", f, err)
	}
	c.Close() // while there is a way to the server
	a.stop()
}
