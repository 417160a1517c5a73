package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
)

// silentChains has a chain for each depth, by the server's port.
const silentChains = `
[[steer]]
proto = "tcp"
dst_port = [7000]
to = "forward"
[[steer]]
proto = "tcp"
dst_port = [7001]
to = "inspect"
[[steer]]
proto = "tcp"
dst_port = [7003]
to = "terminate"
[[steer]]
proto = "tcp"
dst_port = [7004]
to = "splice"
[[steer]]
proto = "tcp"
dst_port = [80]
to = "hold"
[[chain]]
name = "forward"
offload = "never"
[[chain]]
name = "inspect"
offload = "never"
  [[chain.stage]]
  kind = "tcp"
  depth = "inspect"
[[chain]]
name = "hold"
  [[chain.stage]]
  kind = "tcp"
  [[chain.stage]]
  kind = "http"
  deny_hosts = ["*.ads.example"]
[[chain]]
name = "terminate"
  [[chain.stage]]
  kind = "tcp"
  depth = "terminate"
  splice = "never"
[[chain]]
name = "splice"
  [[chain.stage]]
  kind = "tcp"
  depth = "terminate"
`

// TestSilent stops the process for longer than its heartbeat, and lets it go on, while
// connections of every depth begin, stand and end: some wait for the worker when it
// stops, and their SYNs, sent again, go past it. No connection breaks, and none begins
// twice.
func TestSilent(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		routed bool
		queues int // and workers
		port   string
		down   bool // the link to the server is, while the first of them dial
		stop   time.Duration
	}{
		{name: "bridge", stop: 2500 * time.Millisecond},
		{name: "short", stop: 1200 * time.Millisecond, queues: 2},
		// What the worker has sent, or received, waits in it when it stops.
		{name: "slow", port: "[port.fault]\ndelay = \"50ms\"\n", stop: 2500 * time.Millisecond},
		{name: "server away", down: true, stop: 2500 * time.Millisecond},
		{name: "router", routed: true, stop: 2500 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var r *rig
			if c.routed {
				r = newRoutedRig(t, lab.RoutedOptions{})
				r.routes("open", c.port, silentChains)
			} else {
				r = newRig(t, lab.InlineOptions{Veth: lab.VethOptions{Queues: c.queues}, StaticNeigh: c.down})
				r.config("open", c.port, silentChains)
			}
			ports := []uint16{7000, 7001, 7003, 7004}
			servers := map[uint16]*traffic.TCPServer{}
			for _, port := range ports {
				servers[port] = r.tcpServer(port)
			}
			r.origin(80)
			a := r.start()
			ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
			defer cancel()
			over := make(chan struct{}) // the process runs again
			var group sync.WaitGroup
			began := map[uint16]int{}
			// lead is how long before the process stops the first of them begin.
			const lead, every = 600 * time.Millisecond, 40 * time.Millisecond
			for at := time.Duration(0); at < lead+c.stop+200*time.Millisecond; at += every {
				for i, port := range ports {
					n := int(at / every)
					began[port]++
					group.Go(func() {
						time.Sleep(at) // begins then
						stays := over
						if n%3 == 2 {
							stays = nil
						}
						if err := r.exchange(ctx, uint64(n), r.addr((n+i)%2 == 1, port), stays); err != nil {
							t.Errorf("port %d, begun %v after the stop: %v", port, at-lead, err)
						}
					})
				}
				group.Go(func() {
					time.Sleep(at) // begins then
					if err := r.twoRequests(ctx, over); err != nil {
						t.Errorf("port 80, begun %v after the stop: %v", at-lead, err)
					}
				})
			}
			if c.down {
				if err := r.Appliance.SetLink(r.WANIf, false); err != nil {
					t.Fatal(err)
				}
			} else if c.stop > 2*time.Second { // long enough for the client to repeat itself meanwhile
				group.Go(func() {
					if err := r.longRequest(ctx, lead/2, lead+c.stop*3/4, over); err != nil {
						t.Errorf("port 80, a request whose parts come before and during the stop: %v", err)
					}
				})
			}
			time.Sleep(lead) // so long before they begin
			a.suspend()
			if c.down {
				if err := r.Appliance.SetLink(r.WANIf, true); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(c.stop) // longer than the heartbeat
			if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond) // some begin after it, too
			close(over)
			group.Wait()
			for port, s := range servers {
				if n := s.Counts(); n.Accepted != uint64(began[port]) || n.Failed > 0 {
					t.Errorf("port %d: %d connections began, the server has seen %+v", port, began[port], n)
				}
			}
			status := a.status()
			for _, chain := range status.Chains {
				if len(chain.Stages) == 0 {
					continue
				}
				n := chain.Stages[0].Counters
				if chain.Depth == "terminate" && n["dials"] != n["accepted"]+n["bypassed_worker_silent"] {
					t.Errorf("chain %s has dialled for connections that it did not begin: %v", chain.Name, n)
				}
				t.Logf("chain %s: %d dials, %d accepted, %d given up since they are bypassed, sight lost of %d", chain.Name, n["dials"], n["accepted"], n["bypassed_worker_silent"], n["sight_lost_worker_silent"])
			}
			silent := uint64(0)
			for _, p := range status.Ports {
				silent += p.Reasons["worker_silent_open"].Packets
			}
			if silent == 0 {
				t.Error("nothing went past the worker: the test proves nothing")
			}
			t.Logf("%d packets went past the worker; dropped %v", silent, status.Totals.Dropped)
			a.stop()
		})
	}
}

// exchange echoes bytes over a connection, and again when stays is closed.
func (r *rig) exchange(ctx context.Context, seed uint64, addr string, stays <-chan struct{}) error {
	c, err := r.Client.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if end, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(end)
	}
	if _, err := io.WriteString(c, "echo\n"); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 2))
	sent := 0
	some := func() error {
		for range 8 {
			buf := make([]byte, 1+rng.IntN(8000))
			for i := range buf {
				buf[i] = byte(rng.Uint32())
			}
			if _, err := c.Write(buf); err != nil {
				return fmt.Errorf("write byte %d: %w", sent, err)
			}
			got := make([]byte, len(buf))
			if n, err := io.ReadFull(c, got); err != nil {
				return fmt.Errorf("read byte %d: %w", sent+n, err)
			}
			if !bytes.Equal(got, buf) {
				return fmt.Errorf("bytes %d to %d are wrong", sent, sent+len(buf))
			}
			sent += len(buf)
			time.Sleep(20 * time.Millisecond) // as a client that thinks
		}
		return nil
	}
	if err := some(); err != nil {
		return err
	}
	if stays != nil {
		<-stays
		if err := some(); err != nil {
			return fmt.Errorf("when the process runs again: %w", err)
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, c); err != nil || n > 0 {
		return fmt.Errorf("at the end: %d bytes, %w", n, err)
	}
	return nil
}

// twoRequests makes HTTP requests over one connection, the last of them when over is
// closed.
func (r *rig) twoRequests(ctx context.Context, over <-chan struct{}) error {
	dials := 0
	tr := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials++
		return r.Client.DialContext(ctx, network, addr)
	}}
	defer tr.CloseIdleConnections()
	get := func(n int64) error {
		req, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://%s/bytes/%d", r.addr(false, 80), n), nil)
		if err != nil {
			return err
		}
		res, err := tr.RoundTrip(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		check := traffic.NewChecker(traffic.Seed)
		if _, err := io.Copy(check, res.Body); err != nil {
			return err
		}
		if check.Checked() != n {
			return fmt.Errorf("%d bytes, want %d", check.Checked(), n)
		}
		return nil
	}
	for range 10 {
		if err := get(50_000); err != nil {
			return err
		}
		time.Sleep(40 * time.Millisecond) // as a client that thinks
	}
	<-over
	if err := get(300_000); err != nil {
		return fmt.Errorf("when the process runs again: %w", err)
	}
	if dials != 1 {
		return fmt.Errorf("%d connections, want 1", dials)
	}
	return nil
}

// longRequest begins a request, ends it later, and makes another one when over is
// closed.
func (r *rig) longRequest(ctx context.Context, begins, ends time.Duration, over <-chan struct{}) error {
	began := time.Now()
	c, err := r.Client.DialContext(ctx, "tcp", r.addr(false, 80))
	if err != nil {
		return err
	}
	defer c.Close()
	if end, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(end)
	}
	in := bufio.NewReader(c)
	answer := func() error {
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if n, err := io.Copy(io.Discard, res.Body); err != nil || n != 100 {
			return fmt.Errorf("%d bytes, %w", n, err)
		}
		return nil
	}
	for i, part := range []string{"GET /bytes/100 HTTP/1.1\r\nHost: a", ".example\r\n\r\n"} {
		time.Sleep([]time.Duration{begins, ends}[i] - time.Since(began)) // so late it comes
		if _, err := io.WriteString(c, part); err != nil {
			return err
		}
	}
	if err := answer(); err != nil {
		return fmt.Errorf("after %v: %w", time.Since(began), err)
	}
	<-over
	time.Sleep(2 * time.Second) // what waits in the worker has had its time
	if _, err := io.WriteString(c, "GET /bytes/100 HTTP/1.1\r\nHost: a.example\r\n\r\n"); err != nil {
		return err
	}
	if err := answer(); err != nil {
		return fmt.Errorf("when the process runs again: %w", err)
	}
	return nil
}
