// Package e2e runs the penstock binary between real clients and servers in
// network namespaces:
//
//	client ---- lan [ penstock run ] wan ---- server
//	10.77.0.1                              10.77.0.2
//	fd77::1                                fd77::2
//
// Its one trap: the kernel of the namespace in the middle forwards nothing, so
// whatever arrives has gone through the appliance.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"penstock/internal/control"
	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
	"penstock/internal/lab/traffic"
)

var binary string

func TestMain(m *testing.M) {
	if status, child := traffic.Child(); child {
		os.Exit(status)
	}
	// The tests wait more than they work. Those that measure, or that load the
	// machine, are not parallel, and so have it to themselves.
	if err := flag.Set("test.parallel", "5"); err != nil {
		panic(err)
	}
	dir, err := os.MkdirTemp("", "penstock-e2e")
	if err != nil {
		panic(err)
	}
	_ = os.Chmod(dir, 0o755) // a test runs it as nobody
	binary = filepath.Join(dir, "penstock")
	build := exec.Command("go", "build", "-o", binary, "penstock/cmd/penstock")
	build.Stderr = os.Stderr
	status := 1
	if err := build.Run(); err == nil {
		status = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(status)
}

// rig is a client, an appliance and a server.
type rig struct {
	*lab.Inline
	t    *testing.T
	dir  string
	name string // of the appliance
	toml string // its configuration file
}

// newRig builds the namespaces; the appliance does not run yet.
func newRig(t *testing.T, o lab.InlineOptions) *rig {
	t.Helper()
	l := labtest.NewForTest(t)
	in, err := l.Inline(o)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Inline: in, t: t, dir: t.TempDir(), name: l.Name()}
	t.Cleanup(func() {
		// Whatever a test leaves pinned would outlive its namespace.
		if r.toml != "" {
			_ = r.penstock("detach", r.toml).Run()
		}
	})
	return r
}

const header = `
[appliance]
name = "%s"
control = "%s"
metrics = ""
on_exit = "%s"
drain_timeout = "1s"
[[port]]
name = "lan"
interface = "eth1"
%s
[[port]]
name = "wan"
interface = "eth2"
%s
`

func (r *rig) control() string { return filepath.Join(r.dir, "control.sock") }

// config writes a configuration: the usual head, and body behind it.
func (r *rig) config(onExit, port, body string) string {
	r.t.Helper()
	r.toml = filepath.Join(r.dir, "appliance.toml")
	text := fmt.Sprintf(header, r.name, r.control(), onExit, port, port) + body
	if err := os.WriteFile(r.toml, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
	return r.toml
}

// penstock is a command of the binary in the appliance's namespace.
func (r *rig) penstock(args ...string) *lab.Cmd {
	return r.Appliance.Command(context.Background(), binary, args...)
}

// appliance is a running `penstock run`.
type appliance struct {
	r   *rig
	cmd *lab.Cmd
	log *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs the appliance and waits until it answers.
func (r *rig) start() *appliance {
	r.t.Helper()
	a := &appliance{r: r, cmd: r.penstock("run", r.toml), log: &lockedBuffer{}}
	a.cmd.Stderr = a.log
	if err := a.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if r.t.Failed() {
			r.t.Logf("log of the appliance:\n%s", a.log)
			status, err := r.penstock("status", "--control", r.control()).CombinedOutput()
			r.t.Logf("status (%v):\n%s", err, status)
		}
	})
	r.eventually("the appliance answers", func() error {
		select {
		case <-a.cmd.Exited():
			r.t.Fatalf("the appliance has exited:\n%s", a.log)
		default:
		}
		_, err := control.NewClient(r.control()).Status()
		return err
	})
	return a
}

// eventually polls until fn returns nil.
func (r *rig) eventually(what string, fn func() error) {
	r.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within 20 s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (a *appliance) status() control.Status {
	a.r.t.Helper()
	s, err := control.NewClient(a.r.control()).Status()
	if err != nil {
		a.r.t.Fatal(err)
	}
	return s
}

// stop ends the appliance in good order and checks its last accounts.
func (a *appliance) stop() {
	a.r.t.Helper()
	a.balanced()
	if err := a.cmd.Terminate(15 * time.Second); err != nil {
		a.r.t.Errorf("the appliance ended with %v:\n%s", err, a.log)
	}
}

// kill ends it as a crash would.
func (a *appliance) kill() {
	a.r.t.Helper()
	if err := a.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		a.r.t.Fatal(err)
	}
	<-a.cmd.Exited()
	_ = a.cmd.Wait()
}

// balanced waits until nothing is under way and checks that nothing is lost.
func (a *appliance) balanced() {
	a.r.t.Helper()
	a.r.eventually("packets and frames add up", func() error {
		s := a.status()
		if !s.Totals.Balanced() {
			return fmt.Errorf("packets: %+v", s.Totals)
		}
		if f := s.Frames; f.Free+f.InFlight != f.Total {
			return fmt.Errorf("frames: %+v", f)
		}
		for _, w := range s.Workers {
			if w.Pool.DoubleFrees > 0 || w.Panics > 0 {
				return fmt.Errorf("worker %d: %d frames freed twice, %d panics", w.ID, w.Pool.DoubleFrees, w.Panics)
			}
		}
		return nil
	})
}

// run runs a command in a namespace and returns its output, or fails.
func (r *rig) run(n *lab.NS, timeout time.Duration, name string, args ...string) string {
	r.t.Helper()
	out, err := r.try(n, timeout, name, args...)
	if err != nil {
		r.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func (r *rig) try(n *lab.NS, timeout time.Duration, name string, args ...string) (string, error) {
	r.t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("REQUIRE_PRIV") == "1" {
			r.t.Fatalf("REQUIRE_PRIV=1, but %s is not installed", name)
		}
		r.t.Skipf("SKIPPED, NOT PASSED: %s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	out, err := n.Command(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// origin runs the HTTP origin of package traffic in the server's namespace.
func (r *rig) origin(port uint16) {
	r.t.Helper()
	for _, ip := range []netip.Addr{r.ServerIP4, r.ServerIP6} {
		ln, err := r.Server.Listen("tcp", netip.AddrPortFrom(ip, port).String())
		if err != nil {
			r.t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- traffic.ServeHTTP(ctx, ln) }()
		r.t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				r.t.Errorf("origin: %v", err)
			}
		})
	}
}

// tcpServer runs the raw TCP server of package traffic there.
func (r *rig) tcpServer(port uint16) *traffic.TCPServer {
	r.t.Helper()
	s := &traffic.TCPServer{}
	for _, ip := range []netip.Addr{r.ServerIP4, r.ServerIP6} {
		ln, err := r.Server.Listen("tcp", netip.AddrPortFrom(ip, port).String())
		if err != nil {
			r.t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx, ln) }()
		r.t.Cleanup(func() {
			cancel()
			<-done
		})
	}
	return s
}

// addr is the server's address of an IP version, with a port.
func (r *rig) addr(v6 bool, port uint16) string {
	ip := r.ServerIP4
	if v6 {
		ip = r.ServerIP6
	}
	return netip.AddrPortFrom(ip, port).String()
}

func (r *rig) client() traffic.Client { return traffic.Client{Dial: r.Client.DialContext} }

func ipName(v6 bool) string {
	if v6 {
		return "ipv6"
	}
	return "ipv4"
}
