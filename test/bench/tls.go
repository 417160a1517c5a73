package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A gateway that looks at the server name of a TLS connection, and then lets its
// bytes through, costs something for each connection and something for each byte.
// The workloads tls-* are connections of several sizes; the line through what they
// cost says both.

const (
	tlsPort  = 83 // this program: N bytes in TLS
	tlsConns = 4
)

// tlsSizes are the bytes that the server of each workload sends.
var tlsSizes = []int{1 << 10, 32 << 10, 128 << 10, 512 << 10, 2 << 20, 8 << 20}

func tlsWorkloads() (out []workload) {
	for _, n := range tlsSizes {
		out = append(out, workload{
			name: tlsName(n), unit: "connections", about: fmt.Sprintf("a TLS connection for each object of %s, %d at a time", sizeName(n), tlsConns),
			asked: true, run: func(ctx context.Context, b *bed, s *site) (loaded, error) { return b.tls(ctx, s, n) },
		})
	}
	return append(out, workload{
		name: playedName, unit: "connections", about: fmt.Sprintf("a recorded TLS connection played, with an object of %s, %d at a time", sizeName(playBytes), manyConns),
		asked: true, run: playTLS,
	})
}

const playedName = "tls-played"

func tlsName(n int) string { return "tls-" + strings.ToLower(strings.ReplaceAll(sizeName(n), " ", "")) }

func sizeName(n int) string {
	if n >= 1<<20 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// tls runs the load of one size.
func (b *bed) tls(ctx context.Context, s *site, size int) (loaded, error) {
	// The handshake goes by user space.
	packets := func(r bulkResult) float64 { return float64(r.Objects) * float64(size/maxSegment) / 2 }
	return b.runTLS(ctx, s, packets, "load-tls", fmt.Sprintf("-size=%d", size), fmt.Sprintf("-duration=%ds", b.seconds), s.addr(tlsPort))
}

// runTLS runs a load that this program is, of which the gateway must have seen packets.
func (b *bed) runTLS(ctx context.Context, s *site, packets func(bulkResult) float64, args ...string) (loaded, error) {
	self, err := os.Executable()
	if err != nil {
		return loaded{}, err
	}
	if s.refuses {
		if err := refusesName(ctx, s); err != nil {
			return loaded{}, err
		}
	}
	limit, cancel := context.WithTimeout(ctx, time.Duration(b.seconds)*time.Second+10*time.Second)
	defer cancel()
	out, err := output(limit, s.client, []string{childEnv + "=1"}, self, args...)
	if err != nil {
		return loaded{}, err
	}
	var r bulkResult
	if err := json.Unmarshal(out, &r); err != nil {
		return loaded{}, fmt.Errorf("read the load's result %q: %w", out, err)
	}
	l := loaded{work: float64(r.Objects), seconds: r.Seconds, packets: packets(r)}
	if r.Errors > 0 {
		l.problem = fmt.Errorf("%d connections failed: %s", r.Errors, r.First)
	}
	return l, nil
}

// refusesName returns an error if a server name that the policy refuses gets through.
func refusesName(ctx context.Context, s *site) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	raw, err := s.client.DialContext(ctx, "tcp", s.addr(tlsPort))
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := tls.Client(raw, &tls.Config{ServerName: "www.ads.example", InsecureSkipVerify: true}).HandshakeContext(ctx); err == nil {
		return errors.New("a connection to www.ads.example was not refused")
	}
	return ctx.Err()
}

// tlsServerConfig is a server's, with a certificate of its own.
func tlsServerConfig() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), DNSNames: []string{tlsServer}}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, SessionTicketsDisabled: true}, nil
}

// serveTLS answers a line "N" with N bytes and the end.
func serveTLS(address string) error {
	config, err := tlsServerConfig()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	lc := net.ListenConfig{Control: bound}
	lc.SetMultipathTCP(false)
	tcp, err := lc.Listen(ctx, "tcp4", address)
	if err != nil {
		return err
	}
	ln := tls.NewListener(tcp, config)
	context.AfterFunc(ctx, func() { ln.Close() })
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_ = answerTLS(conn) // the client counts what went wrong
		}()
	}
}

func answerTLS(conn net.Conn) error {
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(strings.TrimSpace(line))
	for buf := make([]byte, bulkBuffer); err == nil && n > 0; {
		var wrote int
		wrote, err = conn.Write(buf[:min(n, len(buf))])
		n -= wrote
	}
	return err
}

const tlsServer = "www.example.com"

func loadTLS(args []string, out io.Writer) error {
	fs := flag.NewFlagSet("load-tls", flag.ContinueOnError)
	size := fs.Int("size", 1, "bytes of each connection")
	duration := fs.Duration("duration", time.Second, "how long")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() != 1 {
		return errors.New("load-tls: want one address")
	}
	var objects, failed atomic.Int64
	var first atomic.Pointer[string]
	d := net.Dialer{Control: bound, Timeout: 5 * time.Second, KeepAlive: -1}
	d.SetMultipathTCP(false)
	start := time.Now()
	var wg sync.WaitGroup
	for range tlsConns {
		wg.Go(func() {
			for time.Since(start) < *duration && failed.Load() < 100 {
				if err := fetchTLS(&d, fs.Arg(0), *size); err != nil {
					failed.Add(1)
					text := err.Error()
					first.CompareAndSwap(nil, &text)
					continue
				}
				objects.Add(1)
			}
		})
	}
	wg.Wait() // what has begun is finished: the gateway has done all of it
	r := bulkResult{Objects: objects.Load(), Errors: failed.Load(), Bytes: objects.Load() * int64(*size), Seconds: time.Since(start).Seconds()}
	if text := first.Load(); text != nil {
		r.First = *text
	}
	return json.NewEncoder(out).Encode(r)
}

func fetchTLS(d *net.Dialer, address string, size int) error {
	raw, err := d.Dial("tcp4", address)
	if err != nil {
		return err
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	n, err := askTLS(tls.Client(raw, &tls.Config{ServerName: tlsServer, InsecureSkipVerify: true}), size)
	if err == nil && n != int64(size) {
		err = fmt.Errorf("%d bytes arrived, want %d", n, size)
	}
	return err
}

// askTLS asks for an object and reads it.
func askTLS(conn *tls.Conn, size int) (int64, error) {
	if _, err := fmt.Fprintf(conn, "%d\n", size); err != nil {
		return 0, err
	}
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, bulkBuffer))
}

// line is what connections cost: seconds of the gateway's CPU for each, and for each byte.
type line struct{ Connection, Byte float64 }

// at is the cost of a connection of that many bytes.
func (l line) at(n float64) float64 { return l.Connection + l.Byte*n }

// fitLine fits a line to what connections of several sizes cost, by least squares of
// the relative errors: the small ones, which say what a connection costs, count as
// much as the large ones.
func fitLine(size, cost []float64) (l line, ok bool) {
	var w, wx, wy, wxx, wxy float64
	for i, x := range size {
		q := 1 / (cost[i] * cost[i])
		w, wx, wy, wxx, wxy = w+q, wx+q*x, wy+q*cost[i], wxx+q*x*x, wxy+q*x*cost[i]
	}
	d := w*wxx - wx*wx
	if len(size) < 2 || d == 0 {
		return l, false
	}
	l.Byte = (w*wxy - wx*wy) / d
	l.Connection = (wy - l.Byte*wx) / w
	return l, true
}

// breakEven is from how many bytes on a connection costs less by a than by b. ok is false
// if that is from no number on.
func breakEven(a, b line) (n float64, ok bool) {
	if a.Byte >= b.Byte {
		return 0, false
	}
	return max(0, (a.Connection-b.Connection)/(b.Byte-a.Byte)), true
}

// tlsLine is the line of a gateway, through the medians of its rounds.
func (r report) tlsLine(gateway string) (line, bool) {
	var size, cost []float64
	for _, n := range tlsSizes {
		var v []float64
		for _, m := range r.of(gateway, tlsName(n)) {
			v = append(v, 1/m.PerCPUSecond)
		}
		if len(v) > 0 {
			size, cost = append(size, float64(n)), append(cost, spreadOf(v).Median)
		}
	}
	return fitLine(size, cost)
}

const tlsYardstick = "haproxy-sni"

// breakEvens writes a table of what each gateway's connections cost, and from how many
// bytes on they cost less than those of tlsYardstick.
func (r report) breakEvens(out io.Writer) {
	theirs, ok := r.tlsLine(tlsYardstick)
	if !ok {
		return
	}
	fmt.Fprintf(out, "\n| TLS connections, server name inspected | us for each connection | ns for each KiB | cheaper than `%s` |\n|---|---|---|---|\n", tlsYardstick)
	for _, g := range r.gateways(tlsName(tlsSizes[0])) {
		ours, ok := r.tlsLine(g)
		if !ok {
			continue
		}
		than := "-"
		if g != tlsYardstick {
			than = "never, by this fit"
			if n, ok := breakEven(ours, theirs); ok && n == 0 {
				than = "at any size"
			} else if ok {
				than = fmt.Sprintf("from %.0f KiB on", n/1024)
			} else if ours.Connection < theirs.Connection {
				than = fmt.Sprintf("up to %.0f KiB", (theirs.Connection-ours.Connection)/(ours.Byte-theirs.Byte)/1024)
			}
		}
		fmt.Fprintf(out, "| `%s` | %.1f | %.0f | %s |\n", g, ours.Connection*1e6, ours.Byte*1024*1e9, than)
	}
}
