package e2e

import (
	"context"
	"fmt"
	"io"
	"syscall"
	"testing"
	"time"

	"penstock/internal/control"
	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
)

const aclChain = `
[[steer]]
from = "lan"
proto = "tcp"
to = "filter"
[[chain]]
name = "filter"
  [[chain.stage]]
  kind = "acl"
  rules = [{ action = "drop", dst_port = [9999] }, { action = "drop", src_port = [9999] }]
`

// flow finds the one flow to a port.
func (a *appliance) flow(server string) (control.Flow, error) {
	flows, err := control.NewClient(a.r.control()).Flows()
	if err != nil {
		return control.Flow{}, err
	}
	for _, f := range flows {
		if f.Server == server {
			return f, nil
		}
	}
	return control.Flow{}, fmt.Errorf("no flow to %s among %+v", server, flows)
}

// TestOffload: a flow leaves user space with its first packets, every byte still
// arrives, and the daemon is not needed for it any more.
func TestOffload(t *testing.T) {
	for _, chain := range []string{forwardChain, aclChain} {
		r := newRig(t, lab.InlineOptions{})
		r.config("open", "", chain)
		server := r.tcpServer(7000)
		a := r.start()
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		for _, v6 := range []bool{false, true} {
			const n = 20 << 20
			if err := r.client().TCPEcho(ctx, r.addr(v6, 7000), n); err != nil {
				t.Fatalf("%s: %v", ipName(v6), err)
			}
		}
		s := a.status()
		if s.Totals.Packets > 200 || s.Flows.Offloaded < 2 {
			t.Errorf("%d packets went to user space, %d flows are offloaded", s.Totals.Packets, s.Flows.Offloaded)
		}
		f, err := a.flow(r.addr(false, 7000))
		if err != nil || f.Depth != "offload" || f.Why != "" || f.Bytes < 40<<20 {
			t.Errorf("%+v, %v", f, err)
		}

		// A flow under way survives a daemon that is stuck, and one that is killed.
		conn, err := r.Client.Dial("tcp", r.addr(false, 7000))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.WriteString(conn, "echo\n"); err != nil {
			t.Fatal(err)
		}
		echo := func(when string) {
			t.Helper()
			if _, err := io.WriteString(conn, when); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			got := make([]byte, len(when))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != when {
				t.Fatalf("%s: got %q, %v", when, got, err)
			}
		}
		echo("with the daemon")
		if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		echo("while the daemon is stopped")
		if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		a.balanced()
		a.kill()
		echo("after kill -9")
		a = r.start()
		echo("with a new daemon: midstream, bypassed")
		a.stop()
		echo("after SIGTERM")
		if server.Counts().Accepted < 3 {
			t.Errorf("server: %+v", server.Counts())
		}
	}
}

// TestOffloadedChurn opens and closes many connections on few ports: each is
// offloaded, and each new SYN is seen by the chain.
func TestOffloadedChurn(t *testing.T) {
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", aclChain)
	r.origin(80)
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	res, err := traffic.Load(ctx, traffic.LoadOptions{
		Kind: "http", Address: r.addr(false, 80), Path: "/bytes/1000", Conns: 8, Requests: 5000, Dial: r.Client.DialContext,
	})
	if err != nil || res.Errors > 0 || res.Requests != 5000 {
		t.Errorf("%+v, %v", res, err)
	}
	var offloaded uint64
	for _, w := range a.status().Workers {
		offloaded += w.Offloaded
	}
	t.Logf("%d flows offloaded, %d packets in user space for %d connections", offloaded, a.status().Totals.Packets, res.Requests)
	if offloaded < 5000 {
		t.Errorf("%d flows offloaded of 5000", offloaded)
	}
	// Flows that have ended leave the table.
	r.eventually("closed flows expire", func() error {
		if n := a.status().Flows.Steered; n > 0 {
			return fmt.Errorf("%d left", n)
		}
		return nil
	})
	a.stop()
}

// TestOffloadNever keeps flows in user space.
func TestOffloadNever(t *testing.T) {
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", forwardChain+"offload = \"never\"\n")
	r.tcpServer(7000)
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := r.client().TCPEcho(ctx, r.addr(false, 7000), 1<<20); err != nil {
		t.Fatal(err)
	}
	if s := a.status(); s.Flows.Offloaded != 0 || s.Totals.Packets < 1000 {
		t.Errorf("%d flows offloaded, %d packets in user space", s.Flows.Offloaded, s.Totals.Packets)
	}
	if f, err := a.flow(r.addr(false, 7000)); err != nil || f.Depth != "forward" {
		t.Errorf("%+v, %v", f, err)
	}
	a.stop()
}
