package traffic

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// LoadOptions describe a load. It ends at Duration or after Requests, whichever is
// first; one of them is needed.
type LoadOptions struct {
	// Kind is "http" (GET Path), "source" (Bytes from a TCPServer, over and over) or
	// "sink" (Bytes to one).
	Kind      string
	Address   string // "address:port"
	Path      string // of http; "/bytes/128" if empty
	KeepAlive bool   // http: many requests to a connection, else one
	Conns     int    // connections at a time; 0: one
	Bytes     int64  // of source and sink, for each connection; 0: 1 GiB
	Requests  int64  // 0: no bound
	Duration  time.Duration
	Dial      DialFunc // nil: the process's own network
}

// LoadResult is what a load did. An http request counts when its whole response was
// read; a source or sink counts one for each connection that carried all its bytes,
// but its Bytes count to the end of the load.
type LoadResult struct {
	Requests   int64   `json:"requests"`
	Errors     int64   `json:"errors"`
	Bytes      int64   `json:"bytes"` // of bodies
	Seconds    float64 `json:"seconds"`
	P50        int64   `json:"p50_us"` // of requests (with their connection, if not kept), within 3 %
	P99        int64   `json:"p99_us"`
	FirstError string  `json:"first_error,omitempty"`
}

// A load that only fails must not spin until its time is over.
const maxLoadErrors = 1000

// load is a run under way, shared by its connections.
type load struct {
	LoadOptions
	left                    atomic.Int64 // requests that may still begin
	requests, errors, bytes atomic.Int64
	times                   histogram

	mu    sync.Mutex
	first error
}

// Load runs a load and returns its result. Requests that fail are counted in it; an
// error means that the options make no sense.
func Load(ctx context.Context, o LoadOptions) (LoadResult, error) {
	if o.Duration <= 0 && o.Requests <= 0 {
		return LoadResult{}, fmt.Errorf("run load: neither a duration nor a number of requests")
	}
	l := &load{LoadOptions: o}
	l.Conns = max(o.Conns, 1)
	if o.Path == "" {
		l.Path = "/bytes/128"
	}
	if o.Bytes <= 0 {
		l.Bytes = 1 << 30
	}
	if o.Dial == nil {
		l.Dial = (&net.Dialer{}).DialContext
	}
	run, ok := map[string]func(context.Context, *load){"http": runHTTP, "source": runBulk, "sink": runBulk}[o.Kind]
	if !ok {
		return LoadResult{}, fmt.Errorf("run load: kind %q: want http, source or sink", o.Kind)
	}
	l.left.Store(o.Requests)
	if o.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.Duration)
		defer cancel()
	}
	start := time.Now()
	var wg sync.WaitGroup
	for range l.Conns {
		wg.Go(func() { run(ctx, l) })
	}
	wg.Wait()
	r := LoadResult{
		Requests: l.requests.Load(), Errors: l.errors.Load(), Bytes: l.bytes.Load(),
		Seconds: time.Since(start).Seconds(), P50: l.times.quantile(0.50), P99: l.times.quantile(0.99),
	}
	if l.first != nil {
		r.FirstError = l.first.Error()
	}
	return r, nil
}

// over says whether the load's time is over. A dial fails at its context's deadline,
// a moment before the context says so itself.
func over(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

// begin says whether one more request may begin.
func (l *load) begin(ctx context.Context) bool {
	if over(ctx) || l.errors.Load() >= maxLoadErrors {
		return false
	}
	return l.Requests <= 0 || l.left.Add(-1) >= 0
}

// failed counts an error, unless it is only the load's end.
func (l *load) failed(ctx context.Context, err error) {
	if over(ctx) {
		return
	}
	l.errors.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == nil {
		l.first = err
	}
}

// connect dials, and lets the end of ctx interrupt what the connection waits for.
func (l *load) connect(ctx context.Context) (conn net.Conn, done func(), err error) {
	conn, err = l.Dial(ctx, "tcp", l.Address)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { reset(conn) })
	return conn, func() {
		stop()
		conn.Close()
	}, nil
}

// runHTTP is one connection's worth of requests. net/http's client would cost more
// than many gateways between it and the server.
func runHTTP(ctx context.Context, l *load) {
	mode := "keep-alive"
	if !l.KeepAlive {
		mode = "close"
	}
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: %s\r\n\r\n", l.Path, l.Address, mode)
	var conn net.Conn
	var done func()
	in := bufio.NewReaderSize(nil, 16<<10)
	closeConn := func() {
		if conn != nil {
			done()
			conn = nil
		}
	}
	defer closeConn()
	for l.begin(ctx) {
		start := time.Now()
		err := func() (err error) {
			if conn == nil {
				if conn, done, err = l.connect(ctx); err != nil {
					conn = nil
					return err
				}
				in.Reset(conn)
			}
			if _, err = conn.Write(request); err != nil {
				return err
			}
			n, err := readResponse(in)
			if err != nil {
				return err
			}
			if !l.KeepAlive {
				// The server closes first and keeps the TIME_WAIT, so that this end does
				// not run out of ports.
				switch _, err := in.ReadByte(); err {
				case io.EOF:
				case nil:
					return errors.New("wait for the server to close: got bytes after the response")
				default:
					return fmt.Errorf("wait for the server to close: %w", err)
				}
			}
			l.bytes.Add(n)
			return nil
		}()
		if err != nil {
			l.failed(ctx, err)
		} else {
			l.requests.Add(1)
			l.times.add(time.Since(start))
		}
		if err != nil || !l.KeepAlive {
			closeConn()
		}
	}
}

var (
	contentLength = []byte("content-length:")
	statusOK      = []byte("HTTP/1.1 200 ")
)

// readResponse reads one response with a Content-Length and returns its body's size.
func readResponse(in *bufio.Reader) (int64, error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return 0, fmt.Errorf("read status line: %w", err)
	}
	if !bytes.HasPrefix(line, statusOK) {
		return 0, fmt.Errorf("read status line: got %q, want 200", line)
	}
	length := int64(-1)
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return 0, fmt.Errorf("read header: %w", err)
		}
		if len(line) <= 2 {
			break
		}
		if len(line) > len(contentLength) && bytes.EqualFold(line[:len(contentLength)], contentLength) {
			length, err = strconv.ParseInt(string(bytes.TrimSpace(line[len(contentLength):])), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read header: %w", err)
			}
		}
	}
	if length < 0 {
		return 0, errors.New("read header: no content-length")
	}
	n, err := io.CopyN(io.Discard, in, length)
	if err != nil {
		return n, fmt.Errorf("read body: %d of %d bytes: %w", n, length, err)
	}
	return n, nil
}

// runBulk moves Bytes over one connection after the other, unchecked: the receiver's
// work would be more of checking than of receiving.
func runBulk(ctx context.Context, l *load) {
	buf := make([]byte, 256<<10)
	NewPattern(Seed).Read(buf) // never fails
	for l.begin(ctx) {
		start := time.Now()
		err := func() error {
			conn, done, err := l.connect(ctx)
			if err != nil {
				return err
			}
			defer done()
			if l.Kind == "sink" {
				return l.send(conn, buf)
			}
			return l.receive(conn, buf)
		}()
		if err != nil {
			l.failed(ctx, err)
			continue
		}
		l.requests.Add(1)
		l.times.add(time.Since(start))
	}
}

func (l *load) send(conn net.Conn, buf []byte) error {
	if _, err := io.WriteString(conn, "sink\n"); err != nil {
		return err
	}
	for left := l.Bytes; left > 0; {
		n, err := conn.Write(buf[:min(int64(len(buf)), left)])
		left -= int64(n)
		l.bytes.Add(int64(n))
		if err != nil {
			return err
		}
	}
	if err := closeWrite(conn); err != nil {
		return err
	}
	got, err := io.ReadAll(io.LimitReader(conn, 64))
	if err != nil {
		return fmt.Errorf("read the server's count: %w", err)
	}
	if want := strconv.FormatInt(l.Bytes, 10) + "\n"; string(got) != want {
		return fmt.Errorf("sent %q bytes, the server got %q", want, got)
	}
	return nil
}

func (l *load) receive(conn net.Conn, buf []byte) error {
	if _, err := fmt.Fprintf(conn, "source %d\n", l.Bytes); err != nil {
		return err
	}
	for got := int64(0); ; {
		n, err := conn.Read(buf)
		got += int64(n)
		l.bytes.Add(int64(n))
		if err == io.EOF && got == l.Bytes {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", got, l.Bytes, err)
		}
	}
}

// histogram counts durations in microseconds: 32 buckets to each power of two.
type histogram struct{ buckets [64 * 32]atomic.Uint32 }

func (h *histogram) add(d time.Duration) {
	us := uint64(max(d.Microseconds(), 1))
	// The leading bit chooses the power, the five after it the bucket.
	power := bits.Len64(us) - 1
	h.buckets[power*32+int(us<<(63-power)>>58&31)].Add(1)
}

// quantile returns the lower bound of the bucket that holds the q-th duration.
func (h *histogram) quantile(q float64) int64 {
	var total, seen uint64
	for i := range h.buckets {
		total += uint64(h.buckets[i].Load())
	}
	for i := range h.buckets {
		seen += uint64(h.buckets[i].Load())
		if total > 0 && float64(seen) >= q*float64(total) {
			power, sub := i/32, uint64(i%32)
			return int64((32 + sub) << power >> 5)
		}
	}
	return 0
}
