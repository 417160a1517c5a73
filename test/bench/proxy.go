package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// proxy is the transparent TCP proxy that anyone would write in Go first: the
// kernel terminates both connections (TPROXY), and io.Copy moves bytes between
// the two sockets, on Linux by splice(2).
func proxy(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ln, err := listenTransparent(ctx, address)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go relay(conn.(*net.TCPConn))
	}
}

func listenTransparent(ctx context.Context, address string) (net.Listener, error) {
	lc := net.ListenConfig{Control: transparent, KeepAlive: -1}
	lc.SetMultipathTCP(false)
	return lc.Listen(ctx, "tcp4", address)
}

// transparent lets a socket have addresses of others (IP_TRANSPARENT), and the
// same ones as an earlier connection that is in TIME_WAIT.
func transparent(_, _ string, raw syscall.RawConn) error {
	var err error
	control := raw.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	})
	if err = errors.Join(control, err); err != nil {
		return fmt.Errorf("make socket transparent: %w", err)
	}
	return nil
}

// relay connects to where the client wanted to go, as the client.
func relay(client *net.TCPConn) {
	defer client.Close()
	d := net.Dialer{LocalAddr: client.RemoteAddr(), Control: transparent, Timeout: 10 * time.Second, KeepAlive: -1}
	d.SetMultipathTCP(false)
	conn, err := d.Dial("tcp4", client.LocalAddr().String())
	if err != nil {
		_ = client.SetLinger(0) // a reset, as the server would have sent
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	done := make(chan struct{})
	go func() {
		pipe(server, client)
		close(done)
	}()
	pipe(client, server)
	<-done
}

// pipe moves one direction, and its end.
func pipe(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		_ = to.SetLinger(0)
		to.Close()
		from.Close()
		return
	}
	_ = to.CloseWrite()
}
