package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// workload is a kind of load.
type workload struct {
	name, unit, about string
	needs             []string // programs that make the load
	run               func(ctx context.Context, b *bed, s *site) (loaded, error)
	asked             bool // only runs where it is asked for by its name
}

// Name implements named.
func (w workload) Name() string { return w.name }

// loaded is what a load did.
type loaded struct {
	work, seconds float64
	p50, p99      float64 // us
	packets       float64 // that the gateway must have seen, at least
	requests      float64 // that its log must have, at least
	memory        memory  // that the gateway and the kernel took meanwhile
	problem       error   // what was not right
}

const (
	manyConns  = 64
	bulkConns  = 2
	bulkObject = 4 << 20
)

// web is what makes HTTP loads.
var web = []string{"wrk", "nginx"}

func workloads() []workload {
	return append([]workload{
		{name: "keepalive", unit: "requests", about: fmt.Sprintf("GET of %d bytes on %d kept connections", bodySize, manyConns), needs: web, run: runKeepAlive},
		{name: "close", unit: "connections", about: fmt.Sprintf("one GET of %d bytes for each connection, %d at a time", bodySize, manyConns), needs: web, run: runClose},
		{name: "download", unit: "Gbit", about: fmt.Sprintf("%d connections, objects of %d MiB", bulkConns, bulkObject>>20), needs: nil, run: runDownload},
		{name: "upload", unit: "Gbit", about: fmt.Sprintf("%d connections, objects of %d MiB", bulkConns, bulkObject>>20), needs: nil, run: runUpload},
		{name: "pingpong", unit: "requests", about: fmt.Sprintf("GET of %d bytes on one kept connection, one after the other", bodySize), needs: web, run: runPingPong},
		{name: idleName, unit: "connections", about: fmt.Sprintf("%d connections opened, and left open", idleConns), run: runIdle, asked: true},
	}, tlsWorkloads()...)
}

// wrkScript makes wrk print its result as one line of JSON.
const wrkScript = `done = function(s, latency, _)
  local e = s.errors
  io.write(string.format('\nRESULT {"requests":%d,"bytes":%d,"us":%d,"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d,"p50":%d,"p99":%d}\n',
    s.requests, s.bytes, s.duration, e.connect, e.read, e.write, e.status, e.timeout, latency:percentile(50), latency:percentile(99)))
end
`

type wrkResult struct {
	Requests                              int64
	Bytes                                 int64
	US                                    int64
	Connect, Read, Write, Status, Timeout int64
	P50, P99                              float64 // us
}

// parseWrk finds the line that wrkScript prints.
func parseWrk(out []byte) (r wrkResult, err error) {
	_, rest, ok := bytes.Cut(out, []byte("\nRESULT "))
	if !ok {
		return r, fmt.Errorf("read wrk's result: none in %q", out)
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("read wrk's result %q: %w", line, err)
	}
	return r, nil
}

// check returns what is not right about a result, if each response is of
// size bytes.
func (r wrkResult) check(size, conns int64) error {
	var errs []error
	if n := r.Connect + r.Read + r.Write + r.Status + r.Timeout; n > 0 {
		errs = append(errs, fmt.Errorf("wrk counts errors: connect %d, read %d, write %d, status %d, timeout %d", r.Connect, r.Read, r.Write, r.Status, r.Timeout))
	}
	// What is under way at the end has been received in part.
	if least, most := r.Requests*size, (r.Requests+conns)*size; r.Bytes < least || r.Bytes > most {
		errs = append(errs, fmt.Errorf("%d responses have %d bytes, want %d to %d", r.Requests, r.Bytes, least, most))
	}
	return errors.Join(errs...)
}

func (b *bed) wrk(ctx context.Context, s *site, conns, seconds int, closing bool) (wrkResult, error) {
	size, err := responseSize(ctx, s, closing)
	if err != nil {
		return wrkResult{}, err
	}
	args := []string{"-t1", fmt.Sprintf("-c%d", conns), fmt.Sprintf("-d%ds", seconds), "-s", b.script}
	if closing {
		args = append(args, "-H", "Connection: close")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(b.seconds)*time.Second+10*time.Second)
	defer cancel()
	out, err := output(ctx, s.client, nil, "wrk", append(args, "http://"+s.addr(httpPort)+"/")...)
	if err != nil {
		return wrkResult{}, err
	}
	r, err := parseWrk(out)
	if err != nil {
		return r, err
	}
	return r, r.check(size, int64(conns))
}

// responseSize does one request, checks its response and returns its length,
// head included.
func responseSize(ctx context.Context, s *site, closing bool) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := s.client.DialContext(ctx, "tcp", s.addr(httpPort))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	mode := ""
	if closing {
		mode = "Connection: close\r\n"
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n%s\r\n", s.addr(httpPort), mode); err != nil {
		return 0, err
	}
	var raw bytes.Buffer
	resp, err := http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &raw)), nil)
	if err != nil {
		return 0, err
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK || len(body) != bodySize {
		return 0, fmt.Errorf("got status %s and %d bytes, want 200 and %d", resp.Status, len(body), bodySize)
	}
	return int64(raw.Len()), nil
}

// A kept request is two packets at least, a connection of its own seven.

func runKeepAlive(ctx context.Context, b *bed, s *site) (loaded, error) {
	return b.requests(ctx, s, manyConns, b.seconds, false, 2)
}

func runClose(ctx context.Context, b *bed, s *site) (loaded, error) {
	return b.requests(ctx, s, manyConns, b.seconds, true, 7)
}

func runPingPong(ctx context.Context, b *bed, s *site) (loaded, error) {
	return b.requests(ctx, s, 1, 1, false, 2) // a second has thousands of them
}

func (b *bed) requests(ctx context.Context, s *site, conns, seconds int, closing bool, packets float64) (loaded, error) {
	r, err := b.wrk(ctx, s, conns, seconds, closing)
	if r.US == 0 {
		return loaded{}, err // it did not run
	}
	n := float64(r.Requests)
	return loaded{work: n, seconds: float64(r.US) / 1e6, p50: r.P50, p99: r.P99, packets: n * packets, requests: n, problem: err}, nil
}

func runDownload(ctx context.Context, b *bed, s *site) (loaded, error) { return b.bulk(ctx, s, false) }

func runUpload(ctx context.Context, b *bed, s *site) (loaded, error) { return b.bulk(ctx, s, true) }

const maxSegment = 1448 // payload bytes of one packet at MTU 1500, with timestamps

func (b *bed) bulk(ctx context.Context, s *site, up bool) (loaded, error) {
	before, err := receivedBytes(s)
	if err != nil {
		return loaded{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return loaded{}, err
	}
	limit, cancel := context.WithTimeout(ctx, time.Duration(b.seconds)*time.Second+10*time.Second)
	defer cancel()
	out, err := output(limit, s.client, []string{childEnv + "=1"}, self, "load-bulk", fmt.Sprintf("-up=%v", up), fmt.Sprintf("-conns=%d", bulkConns),
		fmt.Sprintf("-object=%d", bulkObject), fmt.Sprintf("-duration=%ds", b.seconds), s.addr(bulkPort))
	if err != nil {
		return loaded{}, err
	}
	var r bulkResult
	if err := json.Unmarshal(out, &r); err != nil {
		return loaded{}, fmt.Errorf("read the load's result %q: %w", out, err)
	}
	got := r.Bytes
	if up {
		// What the client has sent may wait in its socket; what counts has arrived.
		after, err := receivedBytes(s)
		if err != nil {
			return loaded{}, err
		}
		got = after - before
	}
	l := loaded{work: float64(got) * 8 / 1e9, seconds: r.Seconds, packets: float64(got) / maxSegment}
	if r.Errors > 0 {
		l.problem = fmt.Errorf("%d of %d connections failed: %s", r.Errors, bulkConns, r.First)
	} else if r.Objects == 0 {
		l.problem = errors.New("not one object arrived whole")
	}
	return l, nil
}
