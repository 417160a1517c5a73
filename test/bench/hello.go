package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// What a TLS handshake costs its ends is tens of times what a gateway needs for its
// packets, and with both ends on one CPU a gateway is never asked for more than a tenth
// of what it can do. The workload tls-played has the ends play a connection that was
// recorded before: the bytes and the writes of real TLS 1.3, each end waiting for what
// the other says, without the arithmetic. Gateways that read the hello see no difference;
// the ends compare every byte.

const (
	playPort  = 85
	playBytes = 1 << 10 // of the object
)

// said is one write of an end.
type said struct {
	Client bool
	Bytes  []byte
}

// recordTLS makes a TLS connection in memory, on which the client asks for an object,
// and returns what was written.
func recordTLS(size int) ([]said, error) {
	config, err := tlsServerConfig()
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var script []said
	a, b := net.Pipe()
	end := func(conn net.Conn, client bool) net.Conn {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		return recorder{conn, func(p []byte) {
			mu.Lock()
			defer mu.Unlock()
			script = append(script, said{client, bytes.Clone(p)})
		}}
	}
	served := make(chan error, 1)
	go func() {
		conn := tls.Server(end(b, false), config)
		err := answerTLS(conn)
		// The client's close, if it comes first, is an answer to this one.
		served <- errors.Join(err, conn.CloseWrite(), b.Close())
	}()
	_, err = askTLS(tls.Client(end(a, true), &tls.Config{ServerName: tlsServer, InsecureSkipVerify: true}), size)
	err = errors.Join(err, a.Close(), <-served)
	mu.Lock()
	defer mu.Unlock()
	return script, err
}

type recorder struct {
	net.Conn
	note func([]byte)
}

// Write notes first: the other end answers as soon as it has the bytes.
func (r recorder) Write(p []byte) (int, error) {
	r.note(p)
	return r.Conn.Write(p)
}

// play is one end of a recorded connection. buf has room for the longest of its writes.
func play(conn net.Conn, script []said, client bool, buf []byte) error {
	for i, s := range script {
		if s.Client == client {
			if _, err := conn.Write(s.Bytes); err != nil {
				return err
			}
			continue
		}
		got := buf[:len(s.Bytes)]
		if _, err := io.ReadFull(conn, got); err != nil {
			return fmt.Errorf("read what the other end says %d.: %w", i, err)
		}
		if !bytes.Equal(got, s.Bytes) {
			return fmt.Errorf("the other end's %d bytes, write %d of the recording, are not those", len(got), i)
		}
	}
	return nil
}

func readScript(path string) (script []said, longest int, err error) {
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &script)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read recorded connection: %w", err)
	}
	for _, s := range script {
		longest = max(longest, len(s.Bytes))
	}
	return script, longest, nil
}

// scriptPath is where the recorded connection of a run is.
func (b *bed) scriptPath() string { return filepath.Join(b.dir, "tls-connection.json") }

// writeScript records a connection for the ends to play.
func (b *bed) writeScript() error {
	script, err := recordTLS(playBytes)
	if err != nil {
		return fmt.Errorf("record a TLS connection: %w", err)
	}
	text, err := json.Marshal(script)
	if err != nil {
		return err
	}
	return os.WriteFile(b.scriptPath(), text, 0o644)
}

// servePlayed plays the server of the recorded connection.
func servePlayed(address, path string) error {
	script, longest, err := readScript(path)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, "tcp4", address)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	buffers := sync.Pool{New: func() any { b := make([]byte, longest); return &b }}
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
			buf := buffers.Get().(*[]byte)
			defer buffers.Put(buf)
			_ = play(conn, script, false, *buf) // the client counts what went wrong
		}()
	}
}

func loadPlayed(args []string, out io.Writer) error {
	fs := flag.NewFlagSet("load-played", flag.ContinueOnError)
	path := fs.String("script", "", "the recorded connection")
	duration := fs.Duration("duration", time.Second, "how long")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() != 1 {
		return errors.New("load-played: want one address")
	}
	script, longest, err := readScript(*path)
	if err != nil {
		return err
	}
	var objects, failed atomic.Int64
	var first atomic.Pointer[string]
	d := net.Dialer{Timeout: 5 * time.Second, KeepAlive: -1}
	d.SetMultipathTCP(false)
	start := time.Now()
	var wg sync.WaitGroup
	for range manyConns {
		wg.Go(func() {
			buf := make([]byte, longest)
			for time.Since(start) < *duration && failed.Load() < 100 {
				if err := playOnce(&d, fs.Arg(0), script, buf); err != nil {
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
	r := bulkResult{Objects: objects.Load(), Errors: failed.Load(), Seconds: time.Since(start).Seconds()}
	if text := first.Load(); text != nil {
		r.First = *text
	}
	return json.NewEncoder(out).Encode(r)
}

// playOnce is one connection of the load, to the server's end.
func playOnce(d *net.Dialer, address string, script []said, buf []byte) error {
	conn, err := d.Dial("tcp4", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := play(conn, script, true, buf); err != nil {
		return err
	}
	if n, err := conn.Read(buf[:1]); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("%d more bytes and %v, want the end", n, err)
	}
	return nil
}

// playTLS runs the load.
func playTLS(ctx context.Context, b *bed, s *site) (loaded, error) {
	return b.runTLS(ctx, s, func(r bulkResult) float64 { return 4 * float64(r.Objects) },
		"load-played", "-script="+b.scriptPath(), fmt.Sprintf("-duration=%ds", b.seconds), s.addr(playPort))
}
