package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"penstock/internal/control"
	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
	"penstock/internal/lab/traffic"
)

const head = `
[appliance]
name = "vm"
control = "/run/penstock.sock"
metrics = ""
on_exit = %[2]q
[[port]]
name = "lan"
interface = "eth0"
%[1]s
[[port]]
name = "wan"
interface = "eth1"
%[1]s
`

// A transfer is so many connections, each with so many bytes both ways.
const (
	flows = 4
	size  = 1 << 20
)

// chains are what the appliance does, each at its TCP port, and how many packets of
// a transfer user space may see.
var chains = []struct {
	name, toml  string
	least, most uint64
}{
	{"capture", "offload = \"never\"\n[[chain.stage]]\nkind = \"capture\"\ndir = \"/tmp/capture\"\nlossless = true\n", 1000, 1e6},
	{"offload", "", flows, 200},
	{"terminate", "[[chain.stage]]\nkind = \"tcp\"\ndepth = \"terminate\"\nsplice = \"never\"\n", 1000, 1e6},
	{"splice", "[[chain.stage]]\nkind = \"tcp\"\ndepth = \"terminate\"\n", flows, 1e6},
}

const firstPort = 7000 // of the first chain; bypass is one below

// config has all of them.
func config(mode, onExit string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, head, mode, onExit)
	for i, c := range chains {
		fmt.Fprintf(&b, "[[steer]]\nfrom = \"lan\"\nproto = \"tcp\"\ndst_port = [%d]\nto = %q\n[[chain]]\nname = %[2]q\n%[3]s", firstPort+i, c.name, c.toml)
	}
	return []byte(b.String())
}

// noOffloads keeps QEMU from giving the guest packets that are longer than the
// wire allows and have no checksum, which in native mode the driver sees to.
const noOffloads = ",guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,guest_uso4=off,guest_uso6=off"

const (
	zeroCopy = "xdp = \"native\"\nzero_copy = \"on\""
	withCopy = "xdp = \"native\"\nzero_copy = \"off\""
	generic  = "xdp = \"generic\""
)

// TestZeroCopy runs the appliance between two virtio NICs in each mode, and asks
// the kernel how its sockets are served. What comes through is the same in all.
func TestZeroCopy(t *testing.T) {
	for _, c := range []struct {
		name, port, extra string
		queues, memory    int
	}{
		{"zero-copy", zeroCopy, "", 1, lowMemory},
		{"zero-copy two queues", zeroCopy, "", 2, lowMemory},
		{"copy", withCopy, "", 1, 2 * lowMemory},
		{"generic", generic, noOffloads, 1, lowMemory},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := gateway(t, c.queues, c.memory, c.port, c.extra)
			if c.memory > lowMemory {
				g.refused()
			}
			d := g.run("closed")
			g.transfer("bypass", firstPort-1)
			for i, chain := range chains {
				g.transfer(chain.name, firstPort+i)
			}
			g.balanced("transfers", func(i int) (uint64, uint64) { return chains[i].least, chains[i].most })
			g.mode(d)
			d.stop()
			g.captured()
		})
	}
}

// TestZeroCopyFaults does to interfaces and process what an operator, or a crash,
// does while sockets are in zero-copy mode.
func TestZeroCopyFaults(t *testing.T) {
	g := gateway(t, 2, lowMemory, zeroCopy, "")
	d := g.run("open")
	g.everything("before", d)
	g.set("eth0", "down")
	eventually(t, "status tells that the link is down", func() error {
		if s, err := g.m.status(); err != nil || s.Ports[0].LinkUp {
			return fmt.Errorf("%+v, %v", s.Ports, err)
		}
		return nil
	})
	g.set("eth0", "up")
	g.everything("link down and up", d)
	// Whether the driver does it or refuses: nothing may be lost of it.
	out, err := g.m.try(time.Minute, request{Args: []string{"/init", "link", "eth0", "queues", "1"}})
	t.Logf("one queue instead of two: %q, %v", strings.TrimSpace(out), err)
	g.everything("queue count change", d)
	for _, mtu := range []string{"1400", "1500"} {
		for _, name := range []string{"eth0", "eth1"} {
			g.set(name, "mtu", mtu)
		}
	}
	g.everything("MTU 1400 and back", d)
	g.m.signal(d.run, 9)
	if a, err := d.wait(30 * time.Second); err != nil || a.Status != 128+9 {
		t.Fatalf("the killed appliance ends with %d, %v", a.Status, err)
	}
	for i := range chains {
		g.transfer("killed, the wire is open: "+chains[i].name, firstPort+i)
	}
	d = g.run("open")
	g.everything("started again", d)
	d.stop()
}

// TestZeroCopyStall has the device of one port take no packets any more, behind the
// back of the driver: frames that are sent do not come back, and no counter of the
// kernel tells. It is noticed, said and counted; no frame is lost of it.
func TestZeroCopyStall(t *testing.T) {
	need(t, "qemu")
	socket := filepath.Join(t.TempDir(), "wan")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	g := &rig{t: t, port: zeroCopy, queues: 1}
	g.chains = "[[steer]]\nfrom = \"lan\"\nproto = \"udp\"\nto = \"plain\"\n[[chain]]\nname = \"plain\"\noffload = \"never\"\n"
	var lan nic
	g.client, lan = host(t, labtest.NewForTest(t), "client", "02:00:00:00:4d:11", netip.MustParsePrefix("10.77.0.1/24"), 1)
	g.m = boot(t, options{kernel: "newest", files: programs(t), nics: []nic{lan, {socket: socket, mac: "02:00:00:00:4d:12"}}, cpus: 2})
	wire, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer wire.Close()
	for _, name := range []string{"eth0", "eth1"} {
		g.set(name, "up")
	}
	d := g.run("closed")
	if err := g.client.AddNeigh("eth0", netip.MustParseAddr("10.77.0.2"), net.HardwareAddr{2, 0, 0, 0, 0x4d, 2}); err != nil {
		t.Fatal(err)
	}
	c, err := g.client.Dial("udp", "10.77.0.2:9")
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		defer c.Close()
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				_, _ = c.Write(make([]byte, 1000)) // the queue of the tap may be full
			}
		}
	})
	const words = `port "wan": what is sent on queue 0 of eth1 stays in its ring`
	said := func(want bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("a stall of wan, warned: %t", want), func() error {
			s, err := g.m.status()
			if err != nil {
				return err
			}
			f, warned := s.Frames, strings.Contains(strings.Join(s.Warnings, "\n"), words)
			if n := s.Ports[1].Stalls["tx"]; n != 1 || warned != want || f.Free+f.InFlight != f.Total {
				return fmt.Errorf("%d stalls, frames %+v, warnings %q", n, f, s.Warnings)
			}
			t.Logf("sent %d, refused %d, stalls %v, warned: %t", s.Ports[1].Queues[0].TxPackets, s.Ports[1].Queues[0].TxRefused, s.Ports[1].Stalls, warned)
			return nil
		})
	}
	said(true)
	go func() { _, _ = io.Copy(io.Discard, wire) }() // until it is closed
	said(false)
	close(stop)
	sending.Wait()
	d.stop()
	for _, line := range []string{"stays in its ring", "mend=", "packets come through again"} {
		if !strings.Contains(d.out.String(), line) {
			t.Errorf("the log has no %q:\n%s", line, &d.out)
		}
	}
}

// refused sees that the appliance does not start in zero-copy mode where the device
// would read the headers of what is sent out of memory of somebody else (see
// lowMemory), and says so.
func (g *rig) refused() {
	g.t.Helper()
	g.m.write("/run/vm.toml", config(zeroCopy, "closed"))
	out, err := g.m.try(time.Minute, request{Args: []string{"/penstock", "run", "/run/vm.toml"}})
	if err == nil || !strings.Contains(out, "virtio_net is a module here") || !strings.Contains(out, "where others keep their data") || !strings.Contains(out, `mend: zero_copy = "auto"`) {
		g.t.Fatalf("in zero-copy mode the appliance says %v\n%s", err, out)
	}
	g.t.Logf("zero_copy = \"on\" with %d MiB: %s", 2*lowMemory, out)
}

// rig is a machine with the appliance's binary between two hosts.
type rig struct {
	t              *testing.T
	m              *machine
	client, server *lab.NS
	ctx            context.Context
	port           string // of the configuration: the mode
	chains         string // instead of those of config
	queues         int
}

func gateway(t *testing.T, queues, memory int, port, extra string) *rig {
	t.Helper()
	need(t, "qemu")
	l := labtest.NewForTest(t)
	g := &rig{t: t, port: port, queues: queues}
	var lan, wan nic
	g.client, lan = host(t, l, "client", "02:00:00:00:4d:11", netip.MustParsePrefix("10.77.0.1/24"), queues)
	g.server, wan = host(t, l, "server", "02:00:00:00:4d:12", netip.MustParsePrefix("10.77.0.2/24"), queues)
	lan.extra, wan.extra = extra, extra
	g.m = boot(t, options{kernel: "newest", files: programs(t), nics: []nic{lan, wan}, cpus: 2, memory: memory})
	for _, name := range []string{"eth0", "eth1"} {
		g.set(name, "up")
		g.set(name, "queues", fmt.Sprint(queues))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	t.Cleanup(cancel)
	g.ctx = ctx
	for port := firstPort - 1; port < firstPort+len(chains); port++ {
		ln, err := g.server.Listen("tcp", fmt.Sprintf("10.77.0.2:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		s := &traffic.TCPServer{}
		go s.Serve(ctx, ln)
	}
	return g
}

func (g *rig) set(args ...string) {
	g.t.Helper()
	g.m.run(append([]string{"/init", "link"}, args...)...)
}

// daemon is a running appliance.
type daemon struct {
	*run
	pid int
}

// run starts the appliance, and checks the mode of its sockets.
func (g *rig) run(onExit string) daemon {
	g.t.Helper()
	toml := config(g.port, onExit)
	if g.chains != "" {
		toml = fmt.Appendf(nil, head+g.chains, g.port, onExit)
	}
	g.m.write("/run/vm.toml", toml)
	var d daemon
	began := time.Now()
	d.run, d.pid = g.m.start("/penstock", "run", "/run/vm.toml")
	eventually(g.t, "the appliance runs", func() error {
		select {
		case a := <-d.done:
			g.t.Fatalf("the appliance has ended: %+v\n%s", a, &d.out)
		default:
		}
		if out := d.out.String(); !strings.Contains(out, "appliance runs") {
			return errors.New(out)
		}
		return nil
	})
	g.t.Logf("the appliance runs after %.1f s", time.Since(began).Seconds())
	g.mode(d)
	return d
}

// mode asks the kernel how each socket of the appliance is served.
func (g *rig) mode(d daemon) {
	g.t.Helper()
	want := "copy"
	if g.port == zeroCopy {
		want = "zero-copy"
	}
	sockets := g.m.run("/init", "sockets", fmt.Sprint(d.pid))
	g.t.Logf("XDP_OPTIONS of each socket: %s", strings.ReplaceAll(strings.TrimSpace(sockets), "\n", "; "))
	if got := strings.Count(sockets, " "+want+"\n"); got != 2*g.queues || strings.Count(sockets, "\n") != got {
		g.t.Fatalf("want %d sockets, all %s, got\n%s%s", 2*g.queues, want, sockets, &d.out)
	}
}

// transfer sends data from the client to the server and back.
func (g *rig) transfer(name string, port int) {
	g.t.Helper()
	began := time.Now()
	errs := make(chan error, flows)
	for range flows {
		go func() {
			ctx, cancel := context.WithTimeout(g.ctx, time.Minute)
			defer cancel()
			errs <- traffic.Client{Dial: g.client.DialContext}.TCPEcho(ctx, fmt.Sprintf("10.77.0.2:%d", port), size)
		}()
	}
	for range flows {
		if err := <-errs; err != nil {
			for _, ns := range []*lab.NS{g.client, g.server} {
				st, err := ns.LinkStats("eth0")
				g.t.Logf("%s: %+v %v", ns.Role(), st, err)
			}
			status, _ := g.m.try(10*time.Second, request{Args: []string{"/penstock", "status", "--control", "/run/penstock.sock"}})
			g.t.Fatalf("%s: %v\n%s", name, err, status)
		}
	}
	g.t.Logf("%s: %d x %d KiB each way in %.1f s", name, flows, size>>10, time.Since(began).Seconds())
}

// everything is transfers through all chains, with every packet and every frame
// accounted for, in sockets in the mode they had.
func (g *rig) everything(name string, d daemon) {
	g.t.Helper()
	before, err := g.m.status()
	if err != nil {
		g.t.Fatal(err)
	}
	for i := range chains {
		g.transfer(name+": "+chains[i].name, firstPort+i)
	}
	g.balanced(name, func(i int) (uint64, uint64) { return before.Chains[i].Packets + chains[i].least, 1e9 })
	g.mode(d)
}

// balanced waits until what came in is accounted for, and checks for each chain
// that its packets are within what limits says.
func (g *rig) balanced(name string, limits func(chain int) (least, most uint64)) {
	g.t.Helper()
	eventually(g.t, name+": packets and frames add up", func() error {
		s, err := g.m.status()
		if err != nil {
			return err
		}
		if f := s.Frames; !s.Totals.Balanced() || f.Free+f.InFlight != f.Total {
			return fmt.Errorf("%+v, %+v", s.Totals, f)
		}
		said := fmt.Sprintf("%d packets = %d forwarded + %d consumed + %d dropped; of chains", s.Totals.Packets, s.Totals.Forwarded, s.Totals.Consumed, s.Totals.DroppedTotal())
		for i, c := range s.Chains {
			if least, most := limits(i); c.Packets < least || c.Packets > most {
				return fmt.Errorf("%d packets in chain %s, want %d to %d", c.Packets, c.Name, least, most)
			}
			said += fmt.Sprintf(" %s %d", c.Name, c.Packets)
		}
		g.t.Logf("%s: user space: %s", name, said)
		return nil
	})
}

// stop ends the appliance as an operator does.
func (d daemon) stop() {
	t := d.m.t
	t.Helper()
	d.m.signal(d.run, 15)
	if a, err := d.wait(time.Minute); err != nil || a.Status != 0 {
		t.Fatalf("the appliance ends with %d, %v\n%s", a.Status, err, &d.out)
	}
}

// captured looks at what the appliance has recorded: the whole transfer is in it,
// in frames of the wire's size.
func (g *rig) captured() {
	g.t.Helper()
	var packets, octets, longest int
	out := g.m.run("/init", "captures", "/tmp/capture/*")
	if _, err := fmt.Sscan(out, &packets, &octets, &longest); err != nil {
		g.t.Fatalf("%q: %v", out, err)
	}
	if octets < 2*flows*size || longest > 1514 {
		g.t.Errorf("the capture has %d packets with %d bytes, the longest %d; want %d bytes at least, and at most 1514", packets, octets, longest, 2*flows*size)
	}
	g.t.Logf("the capture has %d packets, %d bytes", packets, octets)
}

// status is that of the appliance.
func (m *machine) status() (s control.Status, err error) {
	out, err := m.try(20*time.Second, request{Args: []string{"/penstock", "status", "--json", "--control", "/run/penstock.sock"}})
	if err != nil {
		return s, fmt.Errorf("%w: %s", err, out)
	}
	return s, json.Unmarshal([]byte(out), &s)
}

func eventually(t *testing.T, what string, fn func() error) {
	t.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 3 minutes: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
