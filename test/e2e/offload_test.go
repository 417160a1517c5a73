package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
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
	t.Parallel()
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
		a.suspend()
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
	t.Parallel()
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
	t.Parallel()
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

// TestEvicted forgets flows again and again while bytes cross: connections go on
// as midstream, and none loses a byte.
func TestEvicted(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	r.config("open", "", aclChain)
	r.tcpServer(7000)
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	var transfers sync.WaitGroup
	for i := range 4 {
		transfers.Go(func() {
			if err := r.client().TCPEcho(ctx, r.addr(i%2 == 1, 7000), 24<<20); err != nil {
				t.Errorf("transfer %d: %v", i, err)
			}
		})
	}
	r.eventually("flows are offloaded", func() error {
		if n := a.status().Flows.Offloaded; n < 4 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	if out, err := r.penstock("flows", "--control", r.control(), "--evict").CombinedOutput(); err == nil || !strings.Contains(string(out), "wants a filter") {
		t.Errorf("evicting without a filter: %v: %s", err, out)
	}
	out, err := r.penstock("flows", "--control", r.control(), "--interval", "0", "--evict", "--chain", "filter").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "4 of 4 flows were forgotten") {
		t.Errorf("%v: %s", err, out)
	}
	// A new connection is seen and offloaded as ever, and evicted in its turn.
	for range 20 {
		if err := r.client().TCPEcho(ctx, r.addr(false, 7000), 1<<16); err != nil {
			t.Fatal(err)
		}
		flows, err := control.NewClient(r.control()).Flows()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := control.NewClient(r.control()).Evict(flows); err != nil || n != len(flows) || n == 0 {
			t.Fatalf("%d of %d flows evicted, %v", n, len(flows), err)
		}
	}
	transfers.Wait()
	r.eventually("no flow is left", func() error {
		if n := a.status().Flows.Steered; n > 0 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	a.stop()
}

// TestFlowRecords: flows that begin and end, and what rules drop, are recorded.
func TestFlowRecords(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	path := filepath.Join(r.dir, "events.json")
	r.config("closed", "", fmt.Sprintf(`
[[record]]
to = "file:%s"
events = ["flow", "flow_start", "drop"]
[[steer]]
proto = "tcp"
dst_port = [7777]
to = "drop"
`, path)+aclChain)
	r.tcpServer(7000)
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := r.client().TCPDiscard(ctx, r.addr(true, 7000), 1<<20); err != nil {
		t.Fatal(err)
	}
	refused, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	defer stop()
	if c, err := r.Client.DialContext(refused, "tcp", r.addr(false, 7777)); err == nil {
		c.Close()
		t.Error("a connection that a rule drops came about")
	}
	type event struct {
		Type     string `json:"event_type"`
		DestIP   string `json:"dest_ip"`
		DestPort uint16 `json:"dest_port"`
		Proto    string `json:"proto"`
		Chain    string `json:"chain"`
		Depth    string `json:"depth"`
		Reason   string `json:"reason"`
		Packets  int    `json:"packets"`
		Flow     struct {
			PktsToServer  int    `json:"pkts_toserver"`
			BytesToServer int    `json:"bytes_toserver"`
			PktsToClient  int    `json:"pkts_toclient"`
			Reason        string `json:"reason"`
		} `json:"flow"`
	}
	seen := map[string]event{}
	r.eventually("all kinds of events are recorded", func() error {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		clear(seen)
		for line := range strings.Lines(string(text)) {
			var e event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				return nil // the last one is being written
			}
			seen[e.Type] = e
		}
		if len(seen) < 3 {
			return fmt.Errorf("got %v", seen)
		}
		return nil
	})
	if e := seen["flow_start"]; e.DestPort != 7000 || e.DestIP != r.ServerIP6.String() || e.Chain != "filter" || e.Proto != "TCP" {
		t.Errorf("flow_start: %+v", e)
	}
	if e := seen["drop"]; e.DestPort != 7777 || e.Reason != "rule_drop" || e.Packets < 1 {
		t.Errorf("drop: %+v", e)
	}
	// It was closed by both ends, after XDP had it.
	if e := seen["flow"]; e.DestPort != 7000 || e.Depth != "offload" || e.Flow.Reason != "closed" || e.Flow.BytesToServer < 1<<20 || e.Flow.PktsToClient < 5 {
		t.Errorf("flow: %+v", e)
	}
	a.stop()
}
