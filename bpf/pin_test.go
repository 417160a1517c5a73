package bpf

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
	"penstock/xsk"
)

// bpffs mounts a bpf file system for the test.
func bpffs(t testing.TB) string {
	t.Helper()
	labtest.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// linkPins lists the pinned links of an instance.
func linkPins(t testing.TB, o Options) []string {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(o.PinRoot, o.Name, pinVersion, linkPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return pins
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// runsOurs says whether a port runs the present Steerer's program.
func (a *appliance) runsOurs(port int) bool {
	a.t.Helper()
	_, id := a.attached(port)
	info, err := a.ports[port].prog.Info()
	if err != nil {
		a.t.Fatal(err)
	}
	ours, _ := info.ID()
	return id == uint32(ours)
}

func TestLeaveKeepsTheWireAndCleanupCutsIt(t *testing.T) {
	root := bpffs(t)
	a := inline(t, lab.VethOptions{}, func(o *Options) {
		o.PinRoot = root
		o.Rules = []Rule{{From: -1, Action: ToChain, Chain: 1}} // nobody listens: on_exit decides
	})
	a.attach(ModeNative)
	if got := len(linkPins(t, a.opts)); got != 2 {
		t.Fatalf("%d pinned links, want 2", got)
	}
	if err := a.Leave(); err != nil {
		t.Fatal(err)
	}
	for _, server := range []netip.Addr{a.ServerIP4, a.ServerIP6} {
		if err := a.echo(server, patience); err != nil {
			t.Errorf("after Leave: %v", err)
		}
	}
	if err := a.Close(); err != nil || len(linkPins(t, a.opts)) != 2 {
		t.Errorf("Close after Leave: %v, pins %v; want it to do nothing", err, linkPins(t, a.opts))
	}
	for range 2 { // the second time there is nothing to do
		a.in(func() error { return Cleanup(root, "test") })
	}
	if exists(filepath.Join(root, "test")) {
		t.Error("Cleanup left the folder")
	}
	for port := range 2 {
		if _, prog := a.attached(port); prog != 0 {
			t.Errorf("port %d: program %d is attached after Cleanup", port, prog)
		}
	}
	if err := a.echo(a.ServerIP4, 200*time.Millisecond); err == nil {
		t.Error("the ends are connected after Cleanup")
	}
}

func TestLeaveWithoutPinsSaysSo(t *testing.T) {
	a := inline(t, lab.VethOptions{}, nil)
	a.attach(ModeNative)
	if err := a.Appliance.Do(a.Leave); err == nil {
		t.Error("no error")
	}
	if _, prog := a.attached(0); prog != 0 {
		t.Errorf("program %d is attached", prog)
	}
}

// The next instance replaces the program of a dead one while packets cross: not one is lost.
func TestTakeOverWithoutAGap(t *testing.T) {
	for _, mode := range []Mode{ModeNative, ModeGeneric} {
		t.Run(mode.String(), func(t *testing.T) {
			root := bpffs(t)
			pinned := func(o *Options) { o.PinRoot, o.Ports[0].Mode, o.Ports[1].Mode = root, mode, mode }
			a := inline(t, lab.VethOptions{NoMerge: true}, pinned)
			a.attach(mode)
			first := a.Steerer
			if err := first.Leave(); err != nil {
				t.Fatal(err)
			}
			tap, err := a.Server.Tap("eth0", 1<<16)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := a.Client.Raw("eth0")
			if err != nil {
				t.Fatal(err)
			}
			// Packets are numbered by their UDP payload and sent until the new program has been in place for a while. Each waits
			// until the one before it has arrived, so that no ring overflows: a gap shows as one that never does.
			send := func(n int) {
				ip := ip4(layers.IPProtocolUDP)
				p := build(t, eth(layers.EthernetTypeIPv4), ip, udp(ip), gopacket.Payload(fmt.Sprintf("number %06d", n)))
				if _, err := raw.Write(p); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				if _, err := tap.Wait(ctx, func(f lab.Frame) bool { return bytes.Equal(f.Data, p) }); err != nil {
					t.Fatalf("packet %d did not arrive: %v", n, err)
				}
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				a.load(pinned)
				a.attach(mode)
			}()
			n := 0
			for running := true; running; n++ {
				select {
				case <-done:
					running = false
				default:
				}
				send(n)
			}
			for range 20 {
				send(n)
				n++
			}
			if n < 30 {
				t.Errorf("only %d packets: too few to show anything", n)
			}
			for port := range 2 {
				if !a.runsOurs(port) {
					t.Errorf("port %d does not run the new program", port)
				}
			}
			if got := a.count(VerdictPeer, "no_rule"); got < 20 {
				t.Errorf("the new program has counted %d packets, want 20 or more", got)
			}
			if got := len(linkPins(t, a.opts)); got != 2 {
				t.Errorf("%d pinned links, want 2", got)
			}
			a.in(a.Close)
			if exists(filepath.Join(root, "test")) {
				t.Error("Close left the folder")
			}
		})
	}
}

// What a dead instance left is taken over or removed, whatever it is.
func TestTakeOverOfOddLeftovers(t *testing.T) {
	root := bpffs(t)
	with := func(mode Mode, names ...string) func(*Options) {
		return func(o *Options) {
			o.PinRoot = root
			for i, name := range names {
				o.Ports[i].Name, o.Ports[i].Mode = name, mode
			}
		}
	}
	a := inline(t, lab.VethOptions{}, with(ModeNative, "lan", "wan"))
	a.attach(ModeNative)
	leave := func() {
		t.Helper()
		if err := a.Leave(); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, mode uint32, pins int) {
		t.Helper()
		for port := range a.opts.Ports {
			if got, _ := a.attached(port); got != mode || !a.runsOurs(port) {
				t.Errorf("%s: port %d in mode %d (ours: %t), want ours in mode %d", what, port, got, a.runsOurs(port), mode)
			}
		}
		if got := linkPins(t, a.opts); len(got) != pins {
			t.Errorf("%s: pins %v, want %d", what, got, pins)
		}
	}

	leave()
	a.load(with(ModeGeneric, "lan", "wan"))
	a.attach(ModeGeneric)
	check("another mode", 2, 2)

	leave()
	a.load(with(ModeAuto, "lan", "wan"))
	a.attach(ModeGeneric)
	check("auto keeps the mode", 2, 2)
	if a.Fallback(0) == nil {
		t.Error("auto kept generic mode and does not say why")
	}

	leave()
	a.load(with(ModeGeneric, "eth1.100", "größe"))
	a.attach(ModeGeneric)
	check("other names", 2, 2)

	leave()
	a.load(func(o *Options) {
		o.PinRoot, o.Default = root, DefaultPass
		o.Ports = o.Ports[1:]
		o.Ports[0].Mode = ModeGeneric
	})
	a.attach(ModeGeneric)
	check("one port less", 2, 1)
	var lan netlink.LinkXdp
	a.in(func() (err error) {
		l, err := netlink.LinkByName("eth1")
		if err == nil {
			lan, err = xdpOn(l.Attrs().Index)
		}
		return err
	})
	if lan.Attached {
		t.Errorf("program %d is attached to what is no port any more", lan.ProgId)
	}

	leave()
	a.in(func() error {
		l, err := netlink.LinkByName("eth2")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	a.in(func() error { return Cleanup(root, "test") })
	if exists(filepath.Join(root, "test")) {
		t.Error("Cleanup left the folder after the interface had gone")
	}
}

// An interface index says nothing without its namespace: a pinned link of another one is not taken for ours.
func TestLeftoverOfAnotherNamespace(t *testing.T) {
	root := bpffs(t)
	pinned := func(o *Options) { o.PinRoot = root }
	a := inline(t, lab.VethOptions{}, pinned)
	a.attach(ModeNative)
	if err := a.Leave(); err != nil {
		t.Fatal(err)
	}
	b := inline(t, lab.VethOptions{}, pinned) // the same indices
	if a.opts.Ports[0].Ifindex != b.opts.Ports[0].Ifindex {
		t.Fatalf("indices %d and %d: the test would prove nothing", a.opts.Ports[0].Ifindex, b.opts.Ports[0].Ifindex)
	}
	b.attach(ModeNative)
	for port := range 2 {
		if !b.runsOurs(port) {
			t.Errorf("port %d does not run our program", port)
		}
		if _, prog := a.attached(port); prog != 0 {
			t.Errorf("port %d in the other namespace still runs program %d", port, prog)
		}
	}
	if err := b.echo(b.ServerIP4, patience); err != nil {
		t.Error(err)
	}

	// Not even if somebody else's program runs on the interface here.
	if err := b.Leave(); err != nil {
		t.Fatal(err)
	}
	c := inline(t, lab.VethOptions{}, nil)
	c.in(func() error {
		l, err := netlink.LinkByIndex(c.opts.Ports[0].Ifindex)
		if err != nil {
			return err
		}
		return netlink.LinkSetXdpFd(l, passProgram(t).FD())
	})
	c.load(pinned)
	if err := c.Appliance.Do(func() error { _, err := c.Attach(0); return err }); !isBusy(err) {
		t.Errorf("attached over a stranger's program by way of another namespace: %v", err)
	}
}

// A process that is killed leaves the wire connected: its links are pinned, its sockets are gone.
func TestKilledProcess(t *testing.T) {
	root := bpffs(t)
	a := inline(t, lab.VethOptions{}, func(o *Options) { o.PinRoot = root })
	cmd := a.Appliance.Command(t.Context(), os.Args[0], "-test.run=^TestChildThatAttaches$", "-test.v")
	cmd.Env = append(os.Environ(), "STEER_CHILD="+root)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "attached" {
		t.Log(lines.Text())
	}
	if err := a.echo(a.ServerIP4, 200*time.Millisecond); err == nil {
		t.Error("while it lives the packets are not its sockets'")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if err := a.echo(a.ServerIP4, patience); err != nil {
		t.Errorf("after it was killed: %v", err)
	}
	a.load(func(o *Options) { o.PinRoot = root })
	a.attach(ModeNative)
	if err := a.echo(a.ServerIP4, patience); err != nil {
		t.Errorf("with its successor: %v", err)
	}
}

// TestChildThatAttaches is the process that TestKilledProcess kills.
func TestChildThatAttaches(t *testing.T) {
	root := os.Getenv("STEER_CHILD")
	if root == "" {
		t.Skip("only run by TestKilledProcess")
	}
	var ports []Port
	for _, name := range []string{"eth1", "eth2"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, Port{Name: name, Ifindex: l.Attrs().Index})
	}
	s, err := Load(Options{Name: "test", Ports: ports, PinRoot: root, Rules: []Rule{{From: -1, Action: ToChain}}})
	if err != nil {
		t.Fatal(err)
	}
	u, err := xsk.NewUMEM(xsk.UMEMOptions{Frames: 64, HugePages: xsk.HugeOff})
	if err != nil {
		t.Fatal(err)
	}
	for i := range ports {
		if _, err := s.Attach(i); err != nil {
			t.Fatal(err)
		}
		sock, err := u.Open(ports[i].Ifindex, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetSocket(i, 0, sock.FD()); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("attached")
	select {}
}

func TestEnsureBPFFS(t *testing.T) {
	labtest.NeedRoot(t)
	dir := filepath.Join(t.TempDir(), "made", "here")
	for range 2 { // the second time it is there
		if err := EnsureBPFFS(dir); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := EnsureBPFFS(filepath.Join(dir, "below", "it")); err != nil {
		t.Error(err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(mounts), " "+dir+" bpf "); n != 1 {
		t.Errorf("mounted %d times, want once", n)
	}
}

func TestPinRootMustBeBPFFS(t *testing.T) {
	ns, ports := twoPorts(t, labtest.NewForTest(t))
	err := ns.Do(func() error {
		_, err := Load(Options{Name: "x", Ports: ports, MaxFlows: 16, PinRoot: t.TempDir()})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "not on a bpf file system") {
		t.Errorf("got %v", err)
	}
}

func TestCleanupRefusesOddNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "../etc"} {
		if err := Cleanup(t.TempDir(), name); err == nil {
			t.Errorf("name %q: no error", name)
		}
	}
}
