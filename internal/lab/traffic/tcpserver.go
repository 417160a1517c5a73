package traffic

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	idleLimit = time.Minute // a connection on which nothing moves is closed after it
	maxConns  = 8192
	copySize  = 64 << 10
)

// TCPServer is a raw TCP server. Each connection begins with one line from the
// client, "VERB [N]", unless Mode gives that line for all connections (so that the
// server can speak first):
//
//	echo        sends back what it reads, closes its side after the client's
//	discard     reads to the end, then answers "BYTES SHA256" in one line
//	sink        as discard, without the sum: "BYTES"
//	source N    sends N pattern bytes, closes its side, reads to the client's end
//	duplex N    as source, but reads while it sends, and ends with the client's
//	whoami      answers "PEER LOCAL" in one line
//	reset N     sends N pattern bytes, waits for one byte or the end, then resets (RST)
//	hold N      reads nothing for N milliseconds, so that its window closes, then as discard
//
// The zero value is ready for Serve.
type TCPServer struct {
	Mode string

	accepted, refused, failed atomic.Uint64
}

// Counts are a TCPServer's connections so far.
type Counts struct {
	Accepted uint64
	Refused  uint64 // reset at once, because 8192 were open
	Failed   uint64 // ended by a reset or time-out, or began with a line that makes no sense
}

// Counts returns the server's counters.
func (s *TCPServer) Counts() Counts {
	return Counts{s.accepted.Load(), s.refused.Load(), s.failed.Load()}
}

// Serve accepts connections until ctx ends; then it closes ln, resets the open
// connections and returns nil when all are gone.
func (s *TCPServer) Serve(ctx context.Context, ln net.Listener) error {
	if s.Mode != "" {
		if _, _, err := parseVerb(s.Mode); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var open sync.WaitGroup
	defer open.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	slots := make(chan struct{}, maxConns)
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("serve tcp on %s: %w", ln.Addr(), err)
		}
		select {
		case slots <- struct{}{}:
		default:
			s.refused.Add(1)
			reset(conn)
			continue
		}
		s.accepted.Add(1)
		open.Go(func() {
			defer func() { <-slots }()
			// Closing it from outside is what ends a read or write under way.
			stop := context.AfterFunc(ctx, func() { reset(conn) })
			defer stop()
			defer conn.Close()
			if err := s.serveConn(ctx, conn); err != nil {
				s.failed.Add(1)
			}
		})
	}
}

func (s *TCPServer) serveConn(ctx context.Context, raw net.Conn) error {
	conn := &idleConn{raw}
	in := bufio.NewReaderSize(conn, copySize)
	line := s.Mode
	if line == "" {
		var err error
		if line, err = in.ReadString('\n'); err != nil {
			return err
		}
	}
	verb, n, err := parseVerb(strings.TrimSpace(line))
	if err != nil {
		return err
	}
	switch verb {
	case "hold":
		select {
		case <-time.After(time.Duration(n) * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		fallthrough
	case "discard":
		h := sha256.New()
		var got int64
		if got, err = io.Copy(h, in); err == nil {
			_, err = fmt.Fprintf(conn, "%d %x\n", got, h.Sum(nil))
		}
	case "sink":
		var got int64
		if got, err = io.Copy(io.Discard, in); err == nil {
			_, err = fmt.Fprintf(conn, "%d\n", got)
		}
	case "echo":
		_, err = io.CopyBuffer(conn, onlyReader{in}, make([]byte, copySize))
	case "source":
		if _, err = io.CopyN(conn, NewPattern(Seed), n); err == nil {
			if err = closeWrite(raw); err == nil {
				_, err = io.Copy(io.Discard, in)
			}
		}
	case "duplex":
		read := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, in)
			read <- err
		}()
		if _, err = io.CopyN(conn, NewPattern(Seed), n); err == nil {
			err = closeWrite(raw)
		}
		if err != nil {
			reset(raw) // ends the reader
		}
		err = errors.Join(err, <-read)
	case "whoami":
		_, err = fmt.Fprintf(conn, "%s %s\n", raw.RemoteAddr(), raw.LocalAddr())
	case "reset":
		if _, err = io.CopyN(conn, NewPattern(Seed), n); err == nil {
			if _, err = in.ReadByte(); err == io.EOF {
				err = nil
			}
		}
		reset(raw)
	}
	return err
}

var verbs = []string{"discard", "duplex", "echo", "hold", "reset", "sink", "source", "whoami"}

// parseVerb reads "VERB [N]"; N is needed by those that the table shows with it.
func parseVerb(line string) (verb string, n int64, err error) {
	verb, arg, _ := strings.Cut(line, " ")
	if !slices.Contains(verbs, verb) {
		return "", 0, fmt.Errorf("read command: got %q, want one of %s", verb, strings.Join(verbs, ", "))
	}
	most := int64(MaxBytes)
	switch verb {
	case "source", "duplex", "reset":
	case "hold":
		most = maxDelay.Milliseconds()
	default:
		if arg != "" {
			return "", 0, fmt.Errorf("read command: %s takes no argument, got %q", verb, arg)
		}
		return verb, 0, nil
	}
	n, err = strconv.ParseInt(arg, 10, 64)
	if err != nil || n < 0 || n > most {
		return "", 0, fmt.Errorf("read command: %s %q: want 0 to %d", verb, arg, most)
	}
	return verb, n, nil
}

// idleConn fails a read or write that waits for longer than idleLimit.
type idleConn struct{ net.Conn }

func (c *idleConn) Read(b []byte) (int, error) {
	c.Conn.SetReadDeadline(time.Now().Add(idleLimit)) // fails only on a closed connection
	return c.Conn.Read(b)
}

func (c *idleConn) Write(b []byte) (int, error) {
	c.Conn.SetWriteDeadline(time.Now().Add(idleLimit))
	return c.Conn.Write(b)
}

// onlyReader hides WriteTo, which would bypass the copy buffer's size.
type onlyReader struct{ io.Reader }

// closeWrite sends FIN and leaves the other direction open.
func closeWrite(conn net.Conn) error {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("half-close %s: %T cannot", conn.RemoteAddr(), conn)
	}
	return half.CloseWrite()
}

// reset closes conn with RST instead of FIN, and ends what reads or writes it.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0) // fails only if it is closed already
	}
	conn.Close()
}
