package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"penstock/internal/control"
	"penstock/internal/lab"
)

// request does one request on a new connection.
func (r *rig) request(v6 bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err := r.client().Whoami(ctx, r.addr(v6, 80))
	return err
}

// xdpAttached reports whether an interface of the appliance has an XDP program.
func (r *rig) xdpAttached(ifname string) (attached bool) {
	r.t.Helper()
	err := r.Appliance.Do(func() error {
		l, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		attached = l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return attached
}

func (r *rig) nothingAttached() {
	r.t.Helper()
	for _, ifname := range []string{r.LANIf, r.WANIf} {
		if r.xdpAttached(ifname) {
			r.t.Errorf("%s still has an XDP program", ifname)
		}
	}
}

func TestKilledOpen(t *testing.T) {
	r := newRig(t, lab.InlineOptions{})
	r.config("open", "", terminateChain)
	r.origin(80)
	a := r.start()
	if err := r.request(false); err != nil {
		t.Fatal(err)
	}
	a.kill()
	for _, v6 := range []bool{false, true} {
		if err := r.request(v6); err != nil {
			t.Errorf("after kill -9 with on_exit = \"open\", %s: %v", ipName(v6), err)
		}
	}
	// A new one takes over where the dead one left off.
	a = r.start()
	if err := r.request(false); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	if s := a.status(); s.Totals.Consumed == 0 {
		t.Errorf("the restarted appliance does not terminate: %+v", s.Totals)
	}
	a.stop()
	if err := r.request(false); err != nil {
		t.Errorf("after SIGTERM with on_exit = \"open\": %v", err)
	}
	if out, err := r.penstock("detach", r.toml).CombinedOutput(); err != nil {
		t.Errorf("detach: %v: %s", err, out)
	}
	r.nothingAttached()
	if _, err := os.Stat("/sys/fs/bpf/" + r.name); err == nil {
		t.Error("detach left pins behind")
	}
	if err := r.request(false); err == nil {
		t.Error("traffic passes though nothing is attached: the test proves nothing")
	}
}

func TestKilledClosed(t *testing.T) {
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", terminateChain)
	r.origin(80)
	a := r.start()
	if err := r.request(false); err != nil {
		t.Fatal(err)
	}
	a.kill()
	r.eventually("the program goes with its process", func() error {
		if r.xdpAttached(r.LANIf) || r.xdpAttached(r.WANIf) {
			return fmt.Errorf("it is still attached")
		}
		return nil
	})
	if err := r.request(false); err == nil {
		t.Error("after kill -9 with on_exit = \"closed\" traffic passes")
	}
	a = r.start()
	if err := r.request(true); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	a.stop()
	r.nothingAttached()
}

// TestTakeOver starts an appliance over one that runs: its program takes the old
// one's place, what is offloaded never notices, and no connection is refused.
func TestTakeOver(t *testing.T) {
	const chains = `
[[steer]]
dst_port = [7000]
to = "released"
[[steer]]
to = "kept"
[[chain]]
name = "released"
[[chain]]
name = "kept"
offload = "never"
`
	for _, onExit := range []string{"open", "closed"} {
		t.Run(onExit, func(t *testing.T) {
			r := newRig(t, lab.InlineOptions{})
			r.config(onExit, "", chains)
			r.tcpServer(7000)
			r.tcpServer(7001)
			r.origin(80)
			old := r.start()

			var conns []net.Conn
			for _, port := range []uint16{7000, 7001} {
				for _, v6 := range []bool{false, true} {
					c, err := r.Client.Dial("tcp", r.addr(v6, port))
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					if _, err := io.WriteString(c, "echo\n"); err != nil {
						t.Fatal(err)
					}
					conns = append(conns, c)
				}
			}
			// Each connection has a message under way at every moment.
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			group, ctx := errgroup.WithContext(ctx)
			var echoes atomic.Int64
			for i, c := range conns {
				group.Go(func() error {
					for n := 0; ctx.Err() == nil; n++ {
						msg := fmt.Sprintf("connection %d, message %d", i, n)
						_ = c.SetDeadline(time.Now().Add(10 * time.Second))
						if _, err := io.WriteString(c, msg); err != nil {
							return fmt.Errorf("%s: %w", msg, err)
						}
						got := make([]byte, len(msg))
						if _, err := io.ReadFull(c, got); err != nil || string(got) != msg {
							return fmt.Errorf("%s: got %q, %w", msg, got, err)
						}
						echoes.Add(1)
					}
					return nil
				})
			}
			group.Go(func() error { // and new ones come
				for ctx.Err() == nil {
					if err := r.request(false); err != nil && ctx.Err() == nil {
						return fmt.Errorf("new connection: %w", err)
					}
				}
				return nil
			})
			for range 3 {
				mark := echoes.Load()
				r.eventually("messages cross", func() error {
					if n := echoes.Load() - mark; n < 200 {
						return fmt.Errorf("%d did", n)
					}
					return nil
				})
				next := r.start() // or what answers is the old one still
				select {
				case <-old.cmd.Exited():
				case <-time.After(20 * time.Second):
					t.Fatal("the old appliance has not ended")
				}
				if err := old.cmd.Wait(); err != nil {
					t.Errorf("the old appliance ended with %v", err)
				}
				r.eventually("the new appliance answers", func() error {
					s, err := control.NewClient(r.control()).Status()
					if err == nil && s.PID != next.cmd.Process.Pid {
						err = fmt.Errorf("process %d does, want %d", s.PID, next.cmd.Process.Pid)
					}
					return err
				})
				if log := next.log.String(); !strings.Contains(log, "taking over") || !strings.Contains(log, "flows of the last instance are taken over") {
					t.Errorf("the log does not tell of it:\n%s", log)
				}
				// By number: the connections and a message more, since a request may be under way.
				if s := next.status(); s.Flows.Offloaded < 2 || s.Flows.Steered < 4 {
					t.Errorf("%+v", s.Flows)
				}
				old = next
			}
			cancel()
			if err := group.Wait(); err != nil {
				t.Error(err)
			}
			if s := old.status(); s.Totals.Packets == 0 {
				t.Error("the last one has no packet in user space")
			}
			old.stop()
			if onExit == "closed" {
				r.nothingAttached()
				if _, err := os.Stat("/sys/fs/bpf/" + r.name); err == nil {
					t.Error("pins are left behind")
				}
			}
		})
	}
}

// suspend stops the process, and waits until none of its threads runs.
func (a *appliance) suspend() {
	a.r.t.Helper()
	if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		a.r.t.Fatal(err)
	}
	a.r.eventually("the process is stopped", func() error {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", a.cmd.Process.Pid))
		if err != nil || len(stats) == 0 {
			return fmt.Errorf("no threads found: %v", err)
		}
		for _, path := range stats {
			stat, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			// proc_pid_stat(5): the state follows the name, which is in brackets.
			if _, state, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(state, "T") {
				return fmt.Errorf("%s: %s", path, stat)
			}
		}
		return nil
	})
}

// TestStopped stops the process without ending it: its sockets are still there,
// and its flows must not wait for it.
func TestStopped(t *testing.T) {
	const chain = `
[[steer]]
proto = "tcp"
to = "all"
[[chain]]
name = "all"
offload = "never"
`
	for _, c := range []struct {
		onExit string
		reason string
		flows  bool // go on
	}{
		{"open", "worker_silent_open", true},
		{"closed", "worker_silent_closed", false},
	} {
		t.Run(c.onExit, func(t *testing.T) {
			r := newRig(t, lab.InlineOptions{})
			r.config(c.onExit, "", chain)
			r.tcpServer(7000)
			r.origin(80)
			a := r.start()
			conn, err := r.Client.Dial("tcp", r.addr(false, 7000))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			echo := func(within time.Duration) error {
				const msg = "is the wire there?"
				_ = conn.SetDeadline(time.Now().Add(within))
				if _, err := io.WriteString(conn, msg); err != nil {
					return err
				}
				got := make([]byte, len(msg))
				_, err := io.ReadFull(conn, got)
				return err
			}
			if _, err := io.WriteString(conn, "echo\n"); err != nil {
				t.Fatal(err)
			}
			if err := echo(5 * time.Second); err != nil {
				t.Fatal(err)
			}
			a.suspend()
			if c.flows {
				if err := echo(5 * time.Second); err != nil { // a retransmission may be what passes
					t.Errorf("the flow that stands: %v", err)
				}
				if err := r.request(true); err != nil {
					t.Errorf("a new connection: %v", err)
				}
			} else {
				r.eventually("new connections fail", func() error {
					if r.request(true) == nil {
						return fmt.Errorf("they pass")
					}
					return nil
				})
			}
			if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if !c.flows { // what was lost is sent again
				_ = conn.SetDeadline(time.Time{})
			}
			if err := echo(10 * time.Second); err != nil {
				t.Errorf("after it went on: the flow that stands: %v", err)
			}
			r.eventually("new connections are seen again", func() error {
				before := a.status().Totals.Packets
				if err := r.request(false); err != nil {
					return err
				}
				if a.status().Totals.Packets == before {
					return fmt.Errorf("no packet of it was")
				}
				return nil
			})
			silent := uint64(0)
			for _, p := range a.status().Ports {
				silent += p.Reasons[c.reason].Packets
			}
			if silent == 0 {
				t.Errorf("no packet is counted under %s: the test proves nothing", c.reason)
			}
			a.stop()
		})
	}
}

// TestMidstream starts the appliance under connections that began before it:
// none of them may notice.
func TestMidstream(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{Bridge: true})
	r.config("closed", "", terminateChain)
	r.tcpServer(7000)
	var conns []io.ReadWriteCloser
	echo := func(when string) {
		t.Helper()
		for i, c := range conns {
			msg := fmt.Sprintf("connection %d, %s", i, when)
			if _, err := io.WriteString(c, msg); err != nil {
				t.Fatalf("%s: %v", msg, err)
			}
			got := make([]byte, len(msg))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != msg {
				t.Fatalf("%s: got %q, %v", msg, got, err)
			}
		}
	}
	for i := range 10 {
		c, err := r.Client.Dial("tcp", r.addr(i%2 == 1, 7000))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(60 * time.Second))
		if _, err := io.WriteString(c, "echo\n"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	echo("before")
	a := r.start()
	echo("with the appliance")
	if s := a.status(); s.Totals.Packets != 0 {
		t.Errorf("packets of old connections went to user space: %+v", s.Totals)
	}
	// New ones are terminated beside them.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := r.client().TCPEcho(ctx, r.addr(false, 7000), 100000); err != nil {
		t.Error(err)
	}
	if s := a.status(); s.Totals.Consumed == 0 {
		t.Error("the new connection was not terminated")
	}
	echo("and again")
	a.stop()
}

// TestLinkFlap takes a port's link down and up again, under traffic.
func TestLinkFlap(t *testing.T) {
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", terminateChain)
	r.origin(80)
	a := r.start()
	for _, ifname := range []string{r.LANIf, r.WANIf} {
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		done := make(chan error, 1)
		go func() { done <- r.client().Bytes(ctx, r.addr(false, 80), 30<<20, false) }()
		before := a.status().Totals.Packets
		r.eventually("the transfer runs", func() error {
			if n := a.status().Totals.Packets; n < before+500 {
				return fmt.Errorf("%d packets", n-before)
			}
			return nil
		})
		if err := r.Appliance.SetLink(ifname, false); err != nil {
			t.Fatal(err)
		}
		warned := false
		for _, w := range a.status().Warnings {
			warned = warned || strings.Contains(w, ifname)
		}
		if !warned {
			t.Errorf("status does not say that %s is down: %q", ifname, a.status().Warnings)
		}
		if err := r.Appliance.SetLink(ifname, true); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("the transfer did not survive %s down and up: %v", ifname, err)
		}
		cancel()
		if err := r.request(true); err != nil {
			t.Errorf("after %s was up again: %v", ifname, err)
		}
	}
	a.stop()
}

// attachOther attaches a program that is not ours: it passes every packet.
func (r *rig) attachOther(ifname string) {
	r.t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	defer prog.Close()
	r.setXDP(ifname, prog.FD())
}

func (r *rig) detachOther(ifname string) { r.setXDP(ifname, -1) }

func (r *rig) setXDP(ifname string, fd int) {
	r.t.Helper()
	err := r.Appliance.Do(func() error {
		l, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		return netlink.LinkSetXdpFd(l, fd)
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestRefusedStarts: every way in which a start can fail is one clear line with
// the mend in it, and leaves nothing attached.
func TestRefusedStarts(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	good := r.config("closed", "", terminateChain)
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	change := func(from, to string) string {
		file := r.dir + "/changed.toml"
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(text), from, to)), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	refused := func(name, file string, want ...string) {
		t.Helper()
		out, err := r.penstock("run", file).CombinedOutput()
		if err == nil {
			t.Errorf("%s: it ran", name)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		for _, w := range want {
			if !strings.Contains(string(out), w) {
				t.Errorf("%s: no %q in %q", name, w, out)
			}
		}
		if len(lines) > 1 || strings.Contains(string(out), "goroutine") {
			t.Errorf("%s: want one line, got %q", name, out)
		}
		r.nothingAttached()
	}
	refused("missing interface", change(`"eth2"`, `"eth9"`), `port "wan"`, `"eth9" does not exist`, "eth1")
	refused("queue", change(`interface = "eth2"`, "interface = \"eth2\"\nqueues = [3]"), `queue 3 does not exist`, "1 queue (0)")
	refused("zero-copy on veth", change(`interface = "eth1"`, "interface = \"eth1\"\nzero_copy = \"on\""), "zero-copy")
	refused("no file", r.dir+"/none.toml", "none.toml")

	// An appliance that runs already is not harmed.
	first := r.start()
	second := change(fmt.Sprintf("name = %q", r.name), fmt.Sprintf("name = %q", r.name+"b"))
	out, err := r.penstock("run", second).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "already has an AF_XDP socket") {
		t.Errorf("second appliance on the same interfaces: %v: %q", err, out)
	}
	// Nor by a successor that could not run.
	out, err = r.penstock("run", change(`interface = "eth2"`, "interface = \"eth2\"\nqueues = [3]")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), `queue 3 does not exist`) {
		t.Errorf("a successor that cannot run: %v: %q", err, out)
	}
	r.origin(80)
	if err := r.request(false); err != nil {
		t.Errorf("the first appliance was harmed: %v", err)
	}
	first.stop()

	// Somebody else's program.
	r.attachOther(r.WANIf)
	out, err = r.penstock("run", good).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another XDP program") || !strings.Contains(string(out), "xdp off") {
		t.Errorf("an interface with another XDP program: %v: %q", err, out)
	}
	if r.xdpAttached(r.LANIf) || !r.xdpAttached(r.WANIf) {
		t.Error("the other program was harmed, or ours was left on the other port")
	}
	r.detachOther(r.WANIf)

	// Not root.
	cmd := r.penstock("run", good)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	_ = os.Chmod(r.dir, 0o755)
	out, err = cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "root") && !strings.Contains(string(out), "permission") {
		t.Errorf("as nobody: %v: %q", err, out)
	}
	r.nothingAttached()
}

// TestGarbage throws broken frames at a terminating appliance from both sides.
func TestGarbage(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", httpChain)
	r.origin(80)
	a := r.start()
	rng := rand.New(rand.NewPCG(7, 7))
	for _, side := range []struct {
		ns *lab.NS
		i  string
	}{{r.Client, r.ClientIf}, {r.Server, r.ServerIf}} {
		raw, err := side.ns.Raw(side.i)
		if err != nil {
			t.Fatal(err)
		}
		seed := tcpFrame(r, side.ns == r.Client)
		for range 5000 {
			f := append([]byte(nil), seed...)
			for range 1 + rng.IntN(6) {
				f[rng.IntN(len(f))] = byte(rng.Uint32())
			}
			f = f[:14+rng.IntN(len(f)-14)]
			if _, err := raw.Write(f); err != nil && !strings.Contains(err.Error(), "no buffer space") {
				t.Fatal(err)
			}
		}
		raw.Close()
	}
	for _, v6 := range []bool{false, true} {
		if err := r.request(v6); err != nil {
			t.Errorf("after the garbage, %s: %v", ipName(v6), err)
		}
	}
	a.stop()
}

// tcpFrame is a SYN to port 80 with options and some payload.
func tcpFrame(r *rig, fromClient bool) []byte {
	f := make([]byte, 14+20+32+40)
	copy(f[0:6], r.ServerMAC)
	copy(f[6:12], r.ClientMAC)
	f[12] = 0x08
	ip := f[14:]
	ip[0], ip[3], ip[8], ip[9] = 0x45, byte(len(ip)), 64, 6
	src, dst := r.ClientIP4.As4(), r.ServerIP4.As4()
	if !fromClient {
		src, dst = dst, src
	}
	copy(ip[12:16], src[:])
	copy(ip[16:20], dst[:])
	tcp := ip[20:]
	tcp[0], tcp[1], tcp[3], tcp[12], tcp[13] = 0xc0, 1, 80, 8<<4, 2
	copy(tcp[20:], []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1})
	return f
}

// TestMidstreamDrop has what nobody saw begin dropped, and nothing else: connections
// that no chain wants go on, with the appliance and without it.
func TestMidstreamDrop(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{Bridge: true})
	r.configWith("midstream = \"drop\"", `
[[steer]]
proto = "tcp"
dst_port = [7001]
to = "bypass"
[[steer]]
proto = "tcp"
dst_port = [7000]
to = "web"
[[chain]]
name = "web"
  [[chain.stage]]
  kind = "tcp"
  depth = "terminate"
`)
	ports := []uint16{7000, 7001, 7002} // 7002: no rule
	for _, port := range ports {
		r.tcpServer(port)
	}
	try := func(port uint16, v6 bool) error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return r.client().TCPEcho(ctx, r.addr(v6, port), 200_000)
	}
	before, err := r.Client.Dial("tcp", r.addr(false, 7002))
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	a := r.start()
	for _, port := range ports {
		for _, v6 := range []bool{false, true} {
			if err := try(port, v6); err != nil {
				t.Errorf("port %d over %s: %v", port, ipName(v6), err)
			}
		}
	}
	if _, err := io.WriteString(before, "echo\n"); err != nil {
		t.Fatal(err)
	}
	r.eventually("segments of the connection from before are dropped", func() error {
		for _, p := range a.status().Ports {
			if p.Verdicts["drop"]["midstream"].Packets > 0 {
				return nil
			}
		}
		return fmt.Errorf("none is")
	})
	flows, err := control.NewClient(r.control()).Flows()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range flows {
		if f.Chain != "web" {
			t.Errorf("a flow of no chain is listed: %+v", f)
		}
	}
	a.kill()
	for _, port := range ports {
		if err := try(port, false); err != nil {
			t.Errorf("port %d, without the appliance: %v", port, err)
		}
	}
}
