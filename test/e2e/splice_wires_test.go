package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"penstock/internal/control"
	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
)

// switching is a server that answers GET /N with N pattern bytes, on the same
// connection as long as it likes, and a request for an upgrade, GET /N, by becoming
// N pattern bytes at once while it reads to the client's end.
type switching struct {
	ends chan switched // of upgraded connections
}

type switched struct {
	client string
	got    [sha256.Size]byte // of what the client has sent
	err    error
}

func (s *switching) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		n, err := strconv.ParseInt(strings.TrimPrefix(req.URL.Path, "/"), 10, 64)
		if err != nil {
			return
		}
		if req.Header.Get("Upgrade") == "" {
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n)
			io.CopyN(conn, traffic.NewPattern(traffic.Seed), n)
			continue
		}
		sent := make(chan error, 1)
		go func() {
			_, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: bytes\r\n\r\n")
			if err == nil {
				_, err = io.CopyN(conn, traffic.NewPattern(traffic.Seed), n)
			}
			if err == nil {
				err = conn.(*net.TCPConn).CloseWrite()
			}
			sent <- err
		}()
		h := sha256.New()
		_, err = io.Copy(h, in)
		s.ends <- switched{conn.RemoteAddr().String(), [sha256.Size]byte(h.Sum(nil)), errors.Join(err, <-sent)}
		return
	}
}

// switchMidway fetches n bytes and has the connection become another protocol in
// the same breath, so that the server's bytes never pause; then n bytes cross
// each way. Where cut is set the client ends by a reset in the middle of them.
func (s *switching) switchMidway(conn net.Conn, n int64, cut bool) error {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Minute))
	fmt.Fprintf(conn, "GET /%d HTTP/1.1\r\nHost: a.example\r\n\r\n", n)
	fmt.Fprintf(conn, "GET /%d HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: bytes\r\n\r\n", n)
	in := bufio.NewReaderSize(conn, 64<<10)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%+v, %w", resp, err)
	}
	check := traffic.NewChecker(traffic.Seed)
	if _, err := io.Copy(check, resp.Body); err != nil || check.Checked() != n {
		return fmt.Errorf("before the switch, %d of %d bytes: %w", check.Checked(), n, err)
	}
	if resp, err = http.ReadResponse(in, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("%+v, %w", resp, err)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(conn, traffic.NewPattern(traffic.Seed), n)
		if err == nil && !cut {
			err = conn.(*net.TCPConn).CloseWrite()
		}
		sent <- err
	}()
	check = traffic.NewChecker(traffic.Seed)
	var from io.Reader = in
	if cut {
		from = io.LimitReader(in, n/2)
	}
	if _, err := io.Copy(check, from); err != nil {
		return fmt.Errorf("after the switch, %d bytes: %w", check.Checked(), err)
	}
	if cut {
		if err := <-sent; err != nil {
			return err
		}
		conn.(*net.TCPConn).SetLinger(0) // close sends a reset
		conn.Close()
		if end := <-s.ends; !errors.Is(end.err, syscall.ECONNRESET) {
			return fmt.Errorf("the server saw %v, want a reset", end.err)
		}
		return nil
	}
	if err := <-sent; err != nil || check.Checked() != n {
		return fmt.Errorf("after the switch, %d of %d bytes: %w", check.Checked(), n, err)
	}
	end := <-s.ends
	if want := traffic.Sum(traffic.Seed, n); end.err != nil || fmt.Sprintf("%x", end.got) != want {
		return fmt.Errorf("the server got %x, want %s, %w", end.got, want, end.err)
	}
	return nil
}

// keepAlive fetches n bytes several times over one connection.
func keepAlive(ctx context.Context, c traffic.Client, address string, n int64, times int) error {
	client := c.HTTP(true)
	defer client.CloseIdleConnections()
	for i := range times {
		req, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://%s/%d", address, n), nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		check := traffic.NewChecker(traffic.Seed)
		_, err = io.Copy(check, resp.Body)
		resp.Body.Close()
		if err != nil || check.Checked() != n {
			return fmt.Errorf("transfer %d: %d of %d bytes: %w", i, check.Checked(), n, err)
		}
	}
	return nil
}

// timeoutsIn returns how often a retransmission timer has fired in a namespace.
func timeoutsIn(t *testing.T, n *lab.NS) (timeouts uint64) {
	t.Helper()
	err := n.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/netstat")
		if err != nil {
			return err
		}
		var names []string
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) == 0 || f[0] != "TcpExt:" {
				continue
			}
			if names == nil {
				names = f
				continue
			}
			for i, name := range names {
				if name == "TCPTimeouts" {
					timeouts, err = strconv.ParseUint(f[i], 10, 64)
					return err
				}
			}
		}
		return errors.New("no TCPTimeouts")
	})
	if err != nil {
		t.Fatal(err)
	}
	return timeouts
}

// midways is how many connections of each IP version are spliced in the middle of
// a transfer.
const midways = 12

// TestSpliceOnBothWires captures both wires while connections are spliced at their
// start and in the middle of a transfer: nothing that was under way at that moment
// waits for a retransmission timer. With SPLICE_BYTES the same transfers with
// splice = "never" stand beside it.
func TestSpliceOnBothWires(t *testing.T) {
	n, long := spliceBytes(t), os.Getenv("SPLICE_BYTES") != ""
	if !long {
		n = 8 << 20
	}
	for _, c := range []struct {
		name, chain string
		most        int64
	}{
		{"spliced", strings.ReplaceAll(httpChain, `splice = "never"`, ""), n},
		{"not spliced", strings.Replace(httpChain, "kind = \"tcp\"\n", "kind = \"tcp\"\n  splice = \"never\"\n", 1), 32 << 20},
	} {
		if c.name != "spliced" && !long {
			continue
		}
		t.Run(c.name, func(t *testing.T) { spliceOnBothWires(t, c.chain, c.name == "spliced", min(n, c.most)) })
	}
}

func spliceOnBothWires(t *testing.T, chain string, spliced bool, n int64) {
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", chain)
	r.tcpServer(7000)
	server := &switching{ends: make(chan switched, 1)}
	var serving sync.WaitGroup
	var listeners []net.Listener
	defer func() {
		for _, ln := range listeners {
			ln.Close()
		}
		serving.Wait()
	}()
	for _, at := range []string{r.addr(false, 80), r.addr(true, 80), r.addr(false, 8080), r.addr(true, 8080)} {
		ln, err := r.Server.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, ln)
		serving.Go(func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				serving.Go(func() { server.serve(conn) })
			}
		})
	}
	a := r.start()
	ends := r.captureEnds()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	at := map[string]int64{} // when a connection was spliced, by client
	for _, v6 := range []bool{false, true} {
		for _, step := range []struct {
			what string
			do   func() error
		}{
			{"upload", func() error { return r.client().TCPDiscard(ctx, r.addr(v6, 7000), n) }},
			{"download", func() error { return r.client().TCPSource(ctx, r.addr(v6, 7000), n) }},
			{"both ways", func() error { return r.client().TCPEcho(ctx, r.addr(v6, 7000), n) }},
			{"keep-alive", func() error { return keepAlive(ctx, r.client(), r.addr(v6, 8080), n, 3) }},
			{"midway", func() error { return r.switchMidway(server, v6, n, false) }},
			{"midway, reset", func() error { return r.switchMidway(server, v6, n, true) }},
			{"midway, short and many", func() error {
				for range midways - 2 {
					if err := r.switchMidway(server, v6, min(n, 1<<20), false); err != nil {
						return err
					}
				}
				return nil
			}},
		} {
			before := [2]uint64{timeoutsIn(t, r.Client), timeoutsIn(t, r.Server)}
			start := time.Now()
			if err := step.do(); err != nil {
				t.Errorf("%s, %s: %v", step.what, ipName(v6), err)
			}
			took := time.Since(start)
			flows, err := control.NewClient(r.control()).Flows()
			if err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			for _, f := range flows {
				if f.State == "spliced" && at[f.Client] == 0 {
					at[f.Client] = now.Add(-time.Duration(f.DepthSeconds * float64(time.Second))).UnixNano()
				}
			}
			t.Logf("%s, %s: %v; timers have fired %d times at the client, %d at the server", step.what, ipName(v6), took.Round(time.Millisecond),
				timeoutsIn(t, r.Client)-before[0], timeoutsIn(t, r.Server)-before[1])
		}
	}
	if want := 2 * (4 + midways); spliced && len(at) < want-4 {
		t.Errorf("of %d connections, it is known of %d when they were spliced", want, len(at))
	}
	t.Logf("netstack's timers have fired %d times", a.counter("retransmit_timeouts"))
	// A ring that is full, or has no frame to fill, drops what comes: as where the
	// thread that sees to it waits for a processor. Timers that fire for that are not the splice's.
	lost := a.lostOnTheWire()
	report := t.Errorf
	if lost > 0 {
		t.Logf("the wires have lost %d packets: timers are only told of", lost)
		report = t.Logf
	}
	for i, name := range []string{"client", "server"} {
		w := ends[i].stop(t)
		t.Logf("the %s's wire: %d segments captured, %d sent again, %d of them by a timer", name, w.segs, w.again, len(w.late))
		if w.segs < int(n/(64<<10)) {
			t.Errorf("%d segments captured at the %s", w.segs, name)
		}
		for _, l := range w.late {
			client := l.from
			if client.Port() == 80 || client.Port() == 7000 || client.Port() == 8080 {
				client = l.to
			}
			// What was under way at that moment, or was sent soon after, is the splice's.
			if by := time.Duration(l.first - at[client.String()]); spliced && by.Abs() < 100*time.Millisecond {
				report("the %s's wire: a timer has sent a segment of %s to %s again %v after it was sent first, %v after the splice",
					name, l.from, l.to, time.Duration(l.again-l.first), by)
			}
		}
	}
	if t.Failed() { // what XDP and the ports say of losses
		out, _ := r.try(r.Appliance, 10*time.Second, binary, "status", "--json", "--control", r.control())
		t.Log(out)
	}
	if os.Getenv("SPLICE_BYTES") != "" {
		r.eventually("nothing is left of them", func() error {
			s := a.status()
			if s.Flows.Steered > 0 || s.Flows.Terminated > 0 {
				return fmt.Errorf("%+v", s.Flows)
			}
			return nil
		})
	}
	a.stop()
}

// lostOnTheWire counts packets that interfaces, or AF_XDP's rings behind them,
// had no room for.
func (a *appliance) lostOnTheWire() (n uint64) {
	a.r.t.Helper()
	for _, at := range []struct {
		ns   *lab.NS
		name string
	}{{a.r.Client, a.r.ClientIf}, {a.r.Appliance, a.r.LANIf}, {a.r.Appliance, a.r.WANIf}, {a.r.Server, a.r.ServerIf}} {
		s, err := at.ns.LinkStats(at.name)
		if err != nil {
			a.r.t.Fatal(err)
		}
		n += s.RxDropped + s.TxDropped
	}
	return n
}

func (r *rig) switchMidway(s *switching, v6 bool, n int64, cut bool) error {
	conn, err := r.Client.Dial("tcp", r.addr(v6, 80))
	if err != nil {
		return err
	}
	return s.switchMidway(conn, n, cut)
}
