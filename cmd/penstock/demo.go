package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"penstock/configs"
	"penstock/internal/config"
	"penstock/internal/control"
	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
	"penstock/internal/wire"
)

// demoBytes is the size of the large object.
const demoBytes = 64 << 20

func demoCommand(args []string) error {
	fs := newFlags("demo", "[--mode bridge|router]")
	mode := fs.String("mode", config.ModeBridge, "what the appliance is to the ends: a bridge, which they do not see, or their router")
	rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return usagef("want no arguments, got %q", rest)
	}
	if *mode != config.ModeBridge && *mode != config.ModeRouter {
		return usagef("--mode: want %q or %q, got %q", config.ModeBridge, config.ModeRouter, *mode)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	ctx, cancelTime := context.WithTimeout(ctx, 3*time.Minute)
	defer cancelTime()
	lab.SweepStale("demo")
	l, err := lab.New("demo")
	if err != nil {
		return err
	}
	d := &demo{ctx: ctx, lab: l, mode: *mode}
	err = d.run()
	if ctx.Err() != nil && err != nil {
		err = errors.New("interrupted")
	}
	return errors.Join(err, d.close())
}

// demo is one run: what it has built and what it has found.
type demo struct {
	ctx     context.Context
	lab     *lab.Lab
	mode    string
	net     *lab.Inline
	dir     string
	file    string // the configuration
	control string
	daemon  *lab.Cmd
	servers []chan error
	stop    context.CancelFunc
	failed  int
}

func (d *demo) close() error {
	if d.stop != nil {
		d.stop()
		for _, s := range d.servers {
			<-s
		}
	}
	var errs []error
	if d.daemon != nil {
		errs = append(errs, d.daemon.Terminate(10*time.Second))
		// A router's XDP stays when its process ends.
		if self, err := os.Executable(); err == nil && d.mode == config.ModeRouter {
			if out, err := d.net.Appliance.Command(context.Background(), self, "detach", d.file).CombinedOutput(); err != nil {
				errs = append(errs, fmt.Errorf("detach XDP: %w: %s", err, out))
			}
		}
	}
	errs = append(errs, d.lab.Close())
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}

func (d *demo) run() error {
	for _, step := range []func() error{d.build, d.serveOrigin, d.startDaemon} {
		if err := step(); err != nil {
			return err
		}
	}
	if err := d.showModes(); err != nil {
		return err
	}
	for _, v6 := range []bool{false, true} {
		if err := d.page(v6); err != nil {
			return err
		}
		if err := d.object(v6); err != nil {
			return err
		}
	}
	if err := d.deniedHost(); err != nil {
		return err
	}
	if err := d.deniedPort(); err != nil {
		return err
	}
	if err := d.accounts(); err != nil {
		return err
	}
	if d.failed > 0 {
		return fmt.Errorf("%d checks failed", d.failed)
	}
	fmt.Println("\nall of it held")
	return nil
}

// check prints a line and keeps count.
func (d *demo) check(ok bool, format string, args ...any) {
	mark := "ok  "
	if !ok {
		mark = "FAIL"
		d.failed++
	}
	fmt.Printf("  %s  %s\n", mark, fmt.Sprintf(format, args...))
}

func (d *demo) build() (err error) {
	if d.mode == config.ModeRouter {
		return d.buildRouted()
	}
	d.net, err = d.lab.Inline(lab.InlineOptions{})
	if err != nil {
		return err
	}
	fmt.Print(`
  client namespace            appliance namespace             server namespace
  10.77.0.1, fd77::1  ------  eth1 [ penstock run ] eth2  ------  10.77.0.2, fd77::2
                              no addresses, no routes

`)
	return nil
}

// buildRouted puts the ends into subnets of their own, with the appliance as
// their router.
func (d *demo) buildRouted() error {
	n, err := d.lab.Routed(lab.RoutedOptions{})
	if err != nil {
		return err
	}
	d.net = &lab.Inline{
		Client: n.Client, Appliance: n.Gateway, Server: n.Server, ClientIf: n.ClientIf, ServerIf: n.ServerIf,
		ClientIP4: n.ClientIP4, ClientIP6: n.ClientIP6, ServerIP4: n.ServerIP4, ServerIP6: n.ServerIP6,
	}
	fmt.Print(`
  client namespace              appliance namespace               server namespace
  10.78.1.2, fd78:1::2  ------  eth1 [ penstock run ] eth2  ------  10.78.2.2, fd78:2::2
  gateway 10.78.1.1             10.78.1.1     10.78.2.1             gateway 10.78.2.1
          fd78:1::1             fd78:1::1     fd78:2::1                     fd78:2::1

`)
	return nil
}

// serveOrigin runs an HTTP server in the server's namespace.
func (d *demo) serveOrigin() error {
	ctx, cancel := context.WithCancel(context.Background())
	d.stop = cancel
	for _, ip := range []netip.Addr{d.net.ServerIP4, d.net.ServerIP6} {
		for _, port := range []uint16{80, 8099} {
			ln, err := d.net.Server.Listen("tcp", netip.AddrPortFrom(ip, port).String())
			if err != nil {
				return err
			}
			done := make(chan error, 1)
			d.servers = append(d.servers, done)
			go func() { done <- traffic.ServeHTTP(ctx, ln) }()
		}
	}
	return nil
}

// startDaemon runs the shipped configuration, under a name of its own so that
// it meets no other appliance of this machine.
func (d *demo) startDaemon() (err error) {
	name := "demo"
	if d.mode == config.ModeRouter {
		name = "router"
	}
	text, err := configs.FS.ReadFile(name + ".toml")
	if err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "penstock-demo"); err != nil {
		return err
	}
	d.control = filepath.Join(d.dir, "control.sock")
	d.file = filepath.Join(d.dir, name+".toml")
	own := strings.NewReplacer(
		"\nname    = "+strconv.Quote(name), "\nname    = "+strconv.Quote(d.lab.Name()),
		strconv.Quote("/run/penstock-"+name+"/control.sock"), strconv.Quote(d.control),
	).Replace(string(text))
	if err := os.WriteFile(d.file, []byte(own), 0o600); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	d.daemon = d.net.Appliance.Command(context.Background(), self, "run", "--log-level", "warn", d.file)
	var log strings.Builder
	d.daemon.Stderr = &log
	if err := d.daemon.Start(); err != nil {
		return err
	}
	client := control.NewClient(d.control)
	for deadline := time.Now().Add(10 * time.Second); ; {
		select {
		case <-d.daemon.Exited():
			_ = d.daemon.Wait()
			d.daemon = nil
			return fmt.Errorf("the appliance did not start: %s", strings.TrimSpace(log.String()))
		case <-d.ctx.Done():
			return d.ctx.Err()
		default:
		}
		if _, err := client.Status(); err == nil {
			return nil
		} else if time.Now().After(deadline) {
			return fmt.Errorf("the appliance does not answer: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (d *demo) showModes() error {
	s, err := control.NewClient(d.control).Status()
	if err != nil {
		return err
	}
	fmt.Println("the appliance")
	for _, p := range s.Ports {
		for _, q := range p.Queues {
			d.check(p.XDP == "native" && (q.Mode == "copy" || q.Mode == "zero_copy"),
				"%s (%s): XDP %s, AF_XDP queue %d in %s mode, as the kernel reports them", p.Name, p.Interface, p.XDP, q.Queue, q.Mode)
		}
	}
	for _, c := range s.Chains {
		d.check(c.Depth == "terminate", "chain %q: depth %s", c.Name, c.Depth)
	}
	return nil
}

func (d *demo) server(v6 bool, port uint16) string {
	if v6 {
		return netip.AddrPortFrom(d.net.ServerIP6, port).String()
	}
	return netip.AddrPortFrom(d.net.ServerIP4, port).String()
}

// get does one request on a connection of its own and returns the response, its
// body and the client's own address.
func (d *demo) get(address, host, path string, timeout time.Duration) (resp *http.Response, body []byte, local string, err error) {
	ctx, cancel := context.WithTimeout(d.ctx, timeout)
	defer cancel()
	conn, err := d.net.Client.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, nil, "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if host == "" {
		host = address
	}
	req := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host)
	if _, err := io.WriteString(conn, req); err != nil {
		return nil, nil, "", err
	}
	resp, err = http.ReadResponse(bufio.NewReaderSize(conn, 1<<16), nil)
	if err != nil {
		return nil, nil, "", err
	}
	body, err = io.ReadAll(resp.Body)
	return resp, body, conn.LocalAddr().String(), err
}

// page fetches a page and compares what both ends and both wires saw.
func (d *demo) page(v6 bool) error {
	fmt.Printf("\na page over %s\n", ipVersion(v6))
	clientTap, err := d.net.Client.Tap(d.net.ClientIf, 4096)
	if err != nil {
		return err
	}
	defer clientTap.Close()
	serverTap, err := d.net.Server.Tap(d.net.ServerIf, 4096)
	if err != nil {
		return err
	}
	defer serverTap.Close()

	resp, body, local, err := d.get(d.server(v6, 80), "", "/whoami", 10*time.Second)
	if err != nil {
		d.check(false, "client: %v", err)
		return d.ctx.Err()
	}
	var who traffic.Whoami
	if err := json.Unmarshal(body, &who); err != nil {
		d.check(false, "client: %q: %v", body, err)
		return nil
	}
	d.check(resp.StatusCode == http.StatusOK, "client saw    %s from %s, itself at %s", resp.Status, d.server(v6, 80), local)
	d.check(who.Peer == local, "server saw    a connection from %s: the client's own address and port", who.Peer)

	clientISN, clientTTL, ok1 := d.syn(clientTap, local)
	serverISN, serverTTL, ok2 := d.syn(serverTap, local)
	d.check(ok1 && ok2 && clientISN != serverISN, "terminated    SYN of %s: sequence number %d on the client's wire, %d on the server's", local, clientISN, serverISN)
	if d.mode == config.ModeRouter {
		d.check(serverTTL == clientTTL-1, "routed        TTL %d on the client's wire, %d on the server's", clientTTL, serverTTL)
	}
	return nil
}

// syn finds the sequence number and the TTL of the SYN from an address.
func (d *demo) syn(tap *lab.Tap, from string) (seq uint32, ttl uint8, ok bool) {
	ctx, cancel := context.WithTimeout(d.ctx, 2*time.Second)
	defer cancel()
	_, err := tap.Wait(ctx, func(f lab.Frame) bool {
		var h wire.Headers
		if h.Parse(f.Data) != wire.FaultNone || !h.HasL4 || h.Proto != wire.ProtoTCP {
			return false
		}
		flow, hasFlow := h.Flow(f.Data)
		t := wire.TCP(f.Data[h.L4:])
		if !hasFlow || flow.SrcAddr().String() != from || t.Flags()&(wire.FlagSYN|wire.FlagACK) != wire.FlagSYN {
			return false
		}
		seq, ok = t.Seq(), true
		if h.IPVersion == 4 {
			ttl = wire.IPv4(f.Data[h.L3:]).TTL()
		} else {
			ttl = wire.IPv6(f.Data[h.L3:]).HopLimit()
		}
		return true
	})
	return seq, ttl, ok && err == nil
}

// object fetches the large object and compares its bytes at both ends.
func (d *demo) object(v6 bool) error {
	fmt.Printf("\n%d MiB over %s\n", demoBytes>>20, ipVersion(v6))
	begin := time.Now()
	resp, body, _, err := d.get(d.server(v6, 80), "", fmt.Sprintf("/bytes/%d", demoBytes), time.Minute)
	if err != nil {
		d.check(false, "client: %v", err)
		return d.ctx.Err()
	}
	took := time.Since(begin)
	sum := sha256.Sum256(body)
	got, want := hex.EncodeToString(sum[:]), resp.Header.Get(traffic.SumHeader)
	d.check(len(body) == demoBytes, "client got    %d bytes in %.2f s, %.2f Gbit/s", len(body), took.Seconds(), float64(len(body))*8/took.Seconds()/1e9)
	fmt.Printf("        server sent   sha256 %s\n", want)
	d.check(got == want, "client has    sha256 %s", got)
	return nil
}

func (d *demo) deniedHost() error {
	fmt.Println("\na host that the http stage refuses")
	resp, body, _, err := d.get(d.server(false, 80), "tracker.ads.example", "/whoami", 10*time.Second)
	if err != nil {
		d.check(false, "client: %v", err)
		return d.ctx.Err()
	}
	d.check(resp.StatusCode == http.StatusForbidden && !strings.Contains(string(body), "peer"),
		"client saw    %s: %s", resp.Status, strings.TrimSpace(string(body)))
	return nil
}

func (d *demo) deniedPort() error {
	fmt.Println("\na port that the acl stage refuses")
	tap, err := d.net.Server.Tap(d.net.ServerIf, 4096)
	if err != nil {
		return err
	}
	defer tap.Close()
	_, _, _, err = d.get(d.server(false, 8099), "", "/whoami", time.Second)
	var timeout interface{ Timeout() bool }
	d.check(errors.As(err, &timeout) && timeout.Timeout(), "client saw    %v", err)
	syns := 0
	for _, f := range tap.Frames() {
		var h wire.Headers
		if h.Parse(f.Data) == wire.FaultNone && h.HasL4 && h.Proto == wire.ProtoTCP && wire.TCP(f.Data[h.L4:]).DstPort() == 8099 {
			syns++
		}
	}
	d.check(syns == 0, "server saw    %d packets to port 8099", syns)
	return nil
}

// accounts shows that nothing has disappeared.
func (d *demo) accounts() error {
	s, err := control.NewClient(d.control).Status()
	if err != nil {
		return err
	}
	fmt.Println("\nthe appliance's accounts")
	t := s.Totals
	d.check(t.Balanced(), "packets       %d = %d forwarded + %d consumed + %d dropped; %d made by netstack", t.Packets, t.Forwarded, t.Consumed, t.DroppedTotal(), t.Emitted)
	f := s.Frames
	d.check(f.Free+f.InFlight == f.Total, "frames        %d = %d free + %d in the kernel", f.Total, f.Free, f.InFlight)
	for _, c := range s.Chains {
		for _, st := range c.Stages {
			switch st.Kind {
			case "acl":
				d.check(st.Dropped > 0, "acl           %d of %d packets dropped", st.Dropped, st.Packets)
			case "http":
				d.check(st.Counters["denied"] == 1 && st.Counters["requests"] == 5, "http          %d requests, %d denied", st.Counters["requests"], st.Counters["denied"])
			}
		}
	}
	return nil
}

func ipVersion(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}
