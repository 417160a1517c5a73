package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"penstock/internal/control"
	"penstock/internal/lab"
)

// TestUpgrade has one process after the other take over, while connections of
// every depth exchange bytes: none breaks, and it is said what became of them.
func TestUpgrade(t *testing.T) {
	upgrades, conns := 2, 50
	if long() {
		upgrades, conns = 20, 500
	}
	r := newRig(t, lab.InlineOptions{})
	r.config("open", "", everyDepth(1))
	text, err := os.ReadFile(r.toml)
	if err != nil {
		t.Fatal(err)
	}
	// Long enough for connections that are terminated to end.
	text = bytes.Replace(text, []byte(`drain_timeout = "1s"`), []byte(`drain_timeout = "20s"`), 1)
	if err := os.WriteFile(r.toml, text, 0o644); err != nil {
		t.Fatal(err)
	}
	ports := []uint16{7000, 7001, 7002, 7003, 7004}
	for _, port := range ports {
		r.tcpServer(port)
	}
	old := r.start()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k, wait := r.everyTalker(ctx, conns, ports, time.Second)
	r.eventually("all connections stand", func() error {
		if n := k.standing.Load(); int(n) < conns*9/10 {
			return fmt.Errorf("%d do", n)
		}
		return nil
	})
	client := control.NewClient(r.control())
	var sum control.Inherited
	var finished, cut int
	for n := 1; n <= upgrades; n++ {
		r.eventually("flows of each depth are there", func() error {
			list, err := client.Drains()
			if err != nil {
				return err
			}
			var all control.Depths
			for _, d := range list {
				all.Forwarded += d.Flows.Forwarded
				all.Inspected += d.Flows.Inspected
				all.Terminated += d.Flows.Terminated
				all.Offloaded += d.Flows.Offloaded
			}
			if min(all.Forwarded, all.Terminated, all.Offloaded) == 0 || n == 1 && all.Inspected == 0 {
				return fmt.Errorf("%+v", all)
			}
			return nil
		})
		next := r.start() // or what answers is the old one still
		select {
		case <-old.cmd.Exited():
		case <-time.After(40 * time.Second):
			t.Fatal("the old appliance has not ended")
		}
		if err := old.cmd.Wait(); err != nil {
			t.Errorf("the old appliance ended with %v", err)
		}
		client = control.NewClient(r.control())
		r.eventually("the new appliance answers", func() error {
			s, err := client.Status()
			if err == nil && s.PID != next.cmd.Process.Pid {
				err = fmt.Errorf("process %d does, want %d", s.PID, next.cmd.Process.Pid)
			}
			return err
		})
		i := next.status().Inherited
		if i == nil || i.Before == nil || i.Before.PID != old.cmd.Process.Pid || !i.Before.Balanced || i.Offloaded == 0 || i.Resumed == 0 {
			t.Fatalf("upgrade %d: %+v", n, i)
		}
		sum.Offloaded += i.Offloaded
		sum.Resumed += i.Resumed
		sum.Bypassed += i.Bypassed
		sum.Forgotten += i.Forgotten
		finished += i.Before.Finished
		cut += i.Before.Cut
		old = next
	}
	cancel()
	wait()
	for i, b := range k.broken {
		if t.Errorf("%s", b); i > 20 {
			break
		}
	}
	t.Logf("%d upgrades; %d connections, %d of them at once, %d MiB; %d broken", upgrades, k.conns.Load(), conns, k.bytes.Load()>>20, len(k.broken))
	t.Logf("%d flows stayed offloaded, %d resumed, %d bypassed, %d forgotten; %d terminated ones finished, %d cut",
		sum.Offloaded, sum.Resumed, sum.Bypassed, sum.Forgotten, finished, cut)
	if sum.Bypassed == 0 || cut > 0 {
		t.Errorf("%+v, %d connections cut", sum, cut)
	}
	old.stop()
}
