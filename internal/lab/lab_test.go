package lab_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
)

// TestInlineCarriesTraffic joins client and server by a kernel bridge and passes
// bytes both ways, at once after set-up: IPv4 and IPv6, TCP and UDP.
func TestInlineCarriesTraffic(t *testing.T) {
	l := labtest.NewForTest(t)
	top, err := l.Inline(lab.InlineOptions{Bridge: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range []netip.Addr{top.ServerIP4, top.ServerIP6} {
		exchangeTCP(t, top.Client, top.Server, netip.AddrPortFrom(ip, 7001))
		exchangeUDP(t, top.Client, top.Server, netip.AddrPortFrom(ip, 7002))
	}
}

func TestRoutedCarriesTraffic(t *testing.T) {
	l := labtest.NewForTest(t)
	top, err := l.Routed(lab.RoutedOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range []netip.Addr{top.ServerIP4, top.ServerIP6} {
		exchangeTCP(t, top.Client, top.Server, netip.AddrPortFrom(ip, 7001))
		exchangeUDP(t, top.Client, top.Server, netip.AddrPortFrom(ip, 7002))
	}
}

// exchangeTCP sends 1 MiB there and back, with a half-close between.
func exchangeTCP(t *testing.T, client, server *lab.NS, at netip.AddrPort) {
	t.Helper()
	ln, err := server.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		_, err = io.Copy(c, c)
		served <- err
	}()
	conn, err := client.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline := time.Now().Add(10 * time.Second)
	conn.SetDeadline(deadline)
	sent := bytes.Repeat([]byte("penstock"), 1<<17)
	go func() {
		conn.Write(sent) // an error shows as a short answer
		conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("tcp %s: %v", at, err)
	}
	if !bytes.Equal(got, sent) {
		t.Fatalf("tcp %s: sent %d bytes, got other %d back", at, len(sent), len(got))
	}
	if err := <-served; err != nil {
		t.Fatalf("tcp %s: server: %v", at, err)
	}
}

func exchangeUDP(t *testing.T, client, server *lab.NS, at netip.AddrPort) {
	t.Helper()
	pc, err := server.ListenPacket("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := client.DialContext(ctx, "udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	pc.SetDeadline(deadline)
	conn.SetDeadline(deadline)
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, from, err := pc.ReadFrom(buf)
	if err != nil {
		t.Fatalf("udp %s: %v", at, err)
	}
	if _, err := pc.WriteTo(append(buf[:n], "-pong"...), from); err != nil {
		t.Fatal(err)
	}
	n, err = conn.Read(buf)
	if err != nil {
		t.Fatalf("udp %s: %v", at, err)
	}
	if got := string(buf[:n]); got != "ping-pong" {
		t.Fatalf("udp %s: got %q", at, got)
	}
}
