package traffic_test

import (
	"bytes"
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
	"penstock/internal/lab/traffic"
)

// TestProcesses runs servers and clients as processes at both ends of a wire.
func TestProcesses(t *testing.T) {
	l := labtest.NewForTest(t)
	top, err := l.Inline(lab.InlineOptions{Bridge: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	origin, err := traffic.Start(ctx, top.Server, "http-server", ":80", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	if len(origin.Addrs) != 2 || !strings.HasSuffix(origin.Addrs[1], ":8080") {
		t.Errorf("origin listens on %q", origin.Addrs)
	}
	raw, err := traffic.Start(ctx, top.Server, "tcp-server", ":7000")
	if err != nil {
		t.Fatal(err)
	}
	for _, ends := range [][2]netip.Addr{{top.ClientIP4, top.ServerIP4}, {top.ClientIP6, top.ServerIP6}} {
		at := netip.AddrPortFrom(ends[1], 8080).String()
		var who traffic.Whoami
		if err := traffic.Run(ctx, top.Client, &who, "check", "whoami", at); err != nil {
			t.Fatal(err)
		}
		peer, err := netip.ParseAddrPort(who.Peer)
		if err != nil || peer.Addr() != ends[0] || who.Local != at {
			t.Errorf("origin saw %+v, want %s to %s", who, ends[0], at)
		}
		// The same from this process, through the namespace's dialler.
		c := traffic.Client{Dial: top.Client.DialContext}
		if err := c.Bytes(ctx, at, 1<<20, true); err != nil {
			t.Error(err)
		}
		var got traffic.Received
		rawAt := netip.AddrPortFrom(ends[1], 7000).String()
		for _, check := range []string{"tcp-echo", "tcp-discard", "tcp-source", "tcp-reset"} {
			if err := traffic.Run(ctx, top.Client, &got, "check", check, "-bytes", "1000000", rawAt); err != nil {
				t.Error(err)
			}
			if got.Bytes != 1_000_000 {
				t.Errorf("%s moved %d bytes", check, got.Bytes)
			}
		}
	}
	var load traffic.LoadResult
	at := netip.AddrPortFrom(top.ServerIP4, 80).String()
	if err := traffic.Run(ctx, top.Client, &load, "load", "-conns", "2", "-requests", "100", at); err != nil {
		t.Fatal(err)
	}
	if load.Requests != 100 || load.Errors != 0 {
		t.Errorf("load: %+v", load)
	}

	// What goes wrong is told in the child's words.
	if _, err := traffic.Start(ctx, top.Server, "tcp-server", ":7000"); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a port that is taken: %v", err)
	}
	err = traffic.Run(ctx, top.Client, &load, "check", "bytes", "-bytes", "1", netip.AddrPortFrom(top.ServerIP4, 81).String())
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a closed port: %v", err)
	}
	if err := raw.Terminate(5 * time.Second); err != nil {
		t.Errorf("a server ended by SIGTERM: %v, want status 0", err)
	}
}

func TestMainUsage(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{nil, 2, "usage:"},
		{[]string{"dance", "x"}, 2, "usage:"},
		{[]string{"load"}, 2, "usage:"},
		{[]string{"load", "-no-such-flag"}, 2, "no-such-flag"},
		{[]string{"load", "127.0.0.1:1"}, 1, "neither a duration nor"},
		{[]string{"check", "dance", "127.0.0.1:1"}, 1, "unknown check"},
		{[]string{"tcp-server", "-mode", "dance", "127.0.0.1:0"}, 1, "dance"},
		{[]string{"http-server", "256.0.0.1:0"}, 1, "256.0.0.1"},
	} {
		var out, errOut bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		status := traffic.Main(ctx, c.args, &out, &errOut)
		cancel()
		if status != c.status || !strings.Contains(errOut.String(), c.says) {
			t.Errorf("%q: status %d, said %q; want %d, %q", c.args, status, errOut.String(), c.status, c.says)
		}
	}
}
