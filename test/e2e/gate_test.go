package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"penstock/internal/control"
	"penstock/internal/lab"
)

// A source that is denied at run time is denied at once, while the daemon is
// dead, and after it has come back with what was said about it; then until it
// is deleted.
func TestDenySurvivesACrash(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	r.origin(80)
	list := r.dir + "/deny.txt"
	if err := os.WriteFile(list, []byte("192.0.2.0/24 # a comment\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	section := fmt.Sprintf("[gate]\ndeny = [\"file:deny.txt\"]\nstate = %q\n", r.dir+"/state/gate.jsonl")
	r.config("open", "", section)
	a := r.start()
	reaches := func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 700*time.Millisecond)
		defer cancel()
		c, err := r.Client.DialContext(ctx, "tcp", r.addr(false, 80))
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	if !reaches() {
		t.Fatal("the server is not reached before anything is denied")
	}
	deny := func(args ...string) string {
		t.Helper()
		out, err := r.penstock(append([]string{"deny", "--control", r.control()}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("deny %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	deny("add", r.ClientIP4.String(), "--for", "1h", "--why", "a test")
	if reaches() {
		t.Error("denied, and the server is reached")
	}
	if got := a.status().Ports[0].Reasons["gate_denied"].Packets; got == 0 {
		t.Error("no packet is counted as gate_denied")
	}
	a.kill()
	if reaches() {
		t.Error("the daemon is dead, and the server is reached")
	}
	a = r.start()
	if reaches() {
		t.Error("the daemon is back, and the server is reached")
	}
	got := map[string]control.Deny{}
	all, err := control.NewClient(r.control()).DenyList()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		got[d.Prefix.String()] = d
	}
	d := got[r.ClientIP4.String()+"/32"]
	if len(got) != 2 || d.Why != "a test" || d.Origin != "runtime" || d.ExpiresSeconds < 3000 || d.ExpiresSeconds > 3600 || d.Hits == 0 {
		t.Errorf("the list is %+v", all)
	}
	if got["192.0.2.0/24"].Origin != "config" {
		t.Errorf("the list is %+v", all)
	}
	if text := deny("list"); !strings.Contains(text, "a test") {
		t.Errorf("list says\n%s", text)
	}
	deny("del", r.ClientIP4.String())
	if !reaches() {
		t.Error("deleted, and the server is not reached")
	}

	// The lists of the configuration follow the file.
	if err := os.WriteFile(list, []byte(r.ClientIP4.String()+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	r.eventually("the list is reloaded", func() error {
		all, err := control.NewClient(r.control()).DenyList()
		if err != nil || len(all) != 1 || all[0].Prefix.Addr() != r.ClientIP4 {
			return fmt.Errorf("%+v, %w", all, err)
		}
		return nil
	})
	if reaches() {
		t.Error("denied by the file, and the server is reached")
	}
	a.stop()
}

// 100,000 prefixes come and go at once while a client asks on: nothing fails.
func TestDenyManyUnderLoad(t *testing.T) {
	r := newRig(t, lab.InlineOptions{})
	r.origin(80)
	r.config("open", "", fmt.Sprintf("[gate]\nstate = %q\n", r.dir+"/gate.jsonl"))
	a := r.start()
	many := make([]netip.Prefix, 100000)
	for i := range many {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{45, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	asked := 0
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			c, err := r.Client.DialContext(ctx, "tcp", r.addr(asked%2 == 0, 80))
			cancel()
			if err != nil {
				done <- fmt.Errorf("connection %d: %w", asked, err)
				return
			}
			c.Close()
			asked++
		}
	}()
	c := control.NewClient(r.control())
	for range 2 {
		start := time.Now()
		if n, err := c.DenyAdd(control.DenyAdd{Prefixes: many, Why: "many"}); n != len(many) || err != nil {
			t.Fatal(n, err)
		}
		t.Logf("100000 prefixes are denied in %v", time.Since(start))
		if err := c.DenyDel(many); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-done; err != nil || asked == 0 {
		t.Errorf("%d connections: %v", asked, err)
	}
	for _, p := range a.status().Ports {
		if n := p.Reasons["gate_denied"].Packets; n > 0 {
			t.Errorf("port %s: %d packets denied", p.Name, n)
		}
	}
	a.stop()
}
