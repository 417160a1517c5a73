package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bulk transfers are HTTP/1.1 with large bodies on kept connections, so that
// gateways that speak HTTP carry them as well as those that do not. Both ends
// use large reads and writes, and none of net/http's machinery.

const (
	bulkBuffer = 256 << 10
	// socketBuffer bounds what an end has under way, both as receiver and as sender
	// (the kernel doubles it, and takes half of that for data). All connections together then have
	// fewer packets under way than a veth's ring has slots (256), so that what is
	// measured is not the recovery from drops.
	socketBuffer = 64 << 10
)

// bound sets a socket's buffers; accepted ones inherit them.
func bound(_, _ string, raw syscall.RawConn) error {
	var err error
	control := raw.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer))
	})
	return errors.Join(control, err)
}

// serveBulk answers GET /down/N with N bytes, POST /up with the number of bytes
// that came, and GET /received with the sum of all uploaded bytes so far.
func serveBulk(address string) error {
	lc := net.ListenConfig{Control: bound}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp4", address)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() { ln.Close() })
	var received atomic.Int64
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
			_ = serveBulkConn(conn, &received) // the client counts what went wrong
		}()
	}
}

func serveBulkConn(conn net.Conn, received *atomic.Int64) error {
	in := bufio.NewReaderSize(conn, 4<<10)
	buf := make([]byte, bulkBuffer)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return err
		}
		head := "HTTP/1.1 200 OK\r\nContent-Length: "
		switch path, arg, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/"), "/"); path {
		case "down":
			left, err := strconv.ParseInt(arg, 10, 64)
			if err != nil || left < 0 {
				return fmt.Errorf("path %q: want /down/BYTES", req.URL.Path)
			}
			if _, err := fmt.Fprintf(conn, "%s%d\r\n\r\n", head, left); err != nil {
				return err
			}
			for left > 0 {
				n, err := conn.Write(buf[:min(left, bulkBuffer)])
				if err != nil {
					return err
				}
				left -= int64(n)
			}
		case "up":
			n, err := discard(req.Body, buf, received.Add)
			if err != nil {
				return err
			}
			body := strconv.FormatInt(n, 10)
			if _, err := fmt.Fprintf(conn, "%s%d\r\n\r\n%s", head, len(body), body); err != nil {
				return err
			}
		case "received":
			body := strconv.FormatInt(received.Load(), 10)
			if _, err := fmt.Fprintf(conn, "%s%d\r\n\r\n%s", head, len(body), body); err != nil {
				return err
			}
		default:
			return fmt.Errorf("path %q: want /down, /up or /received", req.URL.Path)
		}
	}
}

// discard reads to the end and passes on how many bytes each read brought.
func discard(r io.Reader, buf []byte, count func(int64) int64) (total int64, err error) {
	for {
		n, err := r.Read(buf)
		total += int64(n)
		count(int64(n))
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// bulkResult is what loadBulk prints. Bytes are those that the client has
// received, or sent; Objects those that arrived whole, as both ends agree.
type bulkResult struct {
	Bytes   int64   `json:"bytes"`
	Objects int64   `json:"objects"`
	Errors  int64   `json:"errors"`
	First   string  `json:"first,omitempty"`
	Seconds float64 `json:"seconds"`
}

// loadBulk moves objects over some connections until its time is over.
func loadBulk(args []string, out io.Writer) error {
	fs := flag.NewFlagSet("load-bulk", flag.ContinueOnError)
	up := fs.Bool("up", false, "")
	conns := fs.Int("conns", 1, "")
	object := fs.Int64("object", 1<<20, "")
	duration := fs.Duration("duration", time.Second, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), *duration)
	defer cancel()
	var bytes, objects, failures atomic.Int64
	var first atomic.Value
	var wg sync.WaitGroup
	began := time.Now()
	for range *conns {
		wg.Go(func() {
			err := bulkConn(ctx, fs.Arg(0), *up, *object, &bytes, &objects)
			if err != nil && ctx.Err() == nil {
				failures.Add(1)
				first.CompareAndSwap(nil, err.Error())
			}
		})
	}
	wg.Wait()
	r := bulkResult{Bytes: bytes.Load(), Objects: objects.Load(), Errors: failures.Load(), Seconds: time.Since(began).Seconds()}
	r.First, _ = first.Load().(string)
	return json.NewEncoder(out).Encode(r)
}

func bulkConn(ctx context.Context, address string, up bool, object int64, bytes, objects *atomic.Int64) error {
	d := net.Dialer{Control: bound}
	d.SetMultipathTCP(false)
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	in, buf := bufio.NewReaderSize(conn, 4<<10), make([]byte, bulkBuffer)
	request := fmt.Sprintf("GET /down/%d HTTP/1.1\r\nHost: bench\r\n\r\n", object)
	if up {
		request = fmt.Sprintf("POST /up HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n", object)
	}
	for ctx.Err() == nil {
		if _, err := io.WriteString(conn, request); err != nil {
			return err
		}
		for left := object; up && left > 0; {
			n, err := conn.Write(buf[:min(left, bulkBuffer)])
			left -= int64(n)
			bytes.Add(int64(n))
			if err != nil {
				return err
			}
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %s", resp.Status)
		}
		if up {
			body, err := io.ReadAll(io.LimitReader(resp.Body, 64))
			if err != nil {
				return err
			}
			if string(body) != strconv.FormatInt(object, 10) {
				return fmt.Errorf("sent %d bytes, the server got %q", object, body)
			}
		} else {
			n, err := discard(resp.Body, buf, bytes.Add)
			if err != nil {
				return err
			}
			if n != object {
				return fmt.Errorf("asked for %d bytes, got %d", object, n)
			}
		}
		objects.Add(1)
	}
	return nil
}

// receivedBytes asks the bulk server, by a way around the gateway, how many
// uploaded bytes have arrived.
func receivedBytes(s *site) (int64, error) {
	conn, err := s.server.Dial("tcp", s.addr(bulkPort))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, "GET /received HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(body), 10, 64)
}
