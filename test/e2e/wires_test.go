package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"penstock/internal/control"
	"penstock/internal/lab"
)

// secondWire is another client and another server, joined by two more interfaces of
// the appliance:
//
//	client2 ---- eth3 [ penstock run ] eth4 ---- server2
//	10.78.0.1                              10.78.0.2
func (r *rig) secondWire(o lab.VethOptions) *rig {
	r.t.Helper()
	l := r.Appliance.Lab()
	space := func(role string) *lab.NS {
		ns, err := l.NS(role)
		if err != nil {
			r.t.Fatal(err)
		}
		return ns
	}
	in := *r.Inline
	in.Client, in.Server, in.LANIf, in.WANIf = space("client2"), space("server2"), "eth3", "eth4"
	in.ClientIP4, in.ServerIP4 = netip.MustParseAddr("10.78.0.1"), netip.MustParseAddr("10.78.0.2")
	in.ClientIP6, in.ServerIP6 = netip.Addr{}, in.ServerIP4
	for _, w := range []struct {
		ns     *lab.NS
		ip     netip.Addr
		ifname string
	}{{in.Client, in.ClientIP4, in.LANIf}, {in.Server, in.ServerIP4, in.WANIf}} {
		err := l.Veth(lab.End{NS: w.ns, Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(w.ip, 24)}}, lab.End{NS: r.Appliance, Name: w.ifname, NoIPv6: true}, o)
		if err != nil {
			r.t.Fatal(err)
		}
	}
	other := *r
	other.Inline = &in
	return &other
}

const secondPorts = `
[[port]]
name = "lan2"
interface = "eth3"
[[port]]
name = "wan2"
interface = "eth4"
`

// onSecond are the rules of everyDepth for the second wire, too.
func onSecond(body string) string {
	var rules strings.Builder
	for _, table := range strings.SplitAfter(body[strings.Index(body, "[[steer]]"):strings.Index(body, "[[chain]]")], "\n[[steer]]\n") {
		rules.WriteString(strings.Replace(table, `from = "lan"`, `from = "lan2"`, 1))
	}
	return secondPorts + strings.Replace(body, "[[chain]]", rules.String()+"[[chain]]", 1)
}

// xdpOn reports whether an XDP program is on an interface of the appliance.
func (r *rig) xdpOn(name string) (on bool) {
	r.t.Helper()
	err := r.Appliance.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			on = l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached || l.Attrs().Promisc > 0
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return on
}

// TestWiresComeAndGo adds a wire to a running appliance, sends traffic of every depth
// over it, and removes it, again and again, while connections of every depth go over
// another one, which notice nothing.
func TestWiresComeAndGo(t *testing.T) {
	rounds, conns := 10, 50
	r := newRig(t, lab.InlineOptions{})
	second := r.secondWire(lab.VethOptions{})
	ports := []uint16{7000, 7001, 7002, 7003, 7004}
	for _, port := range ports {
		r.tcpServer(port)
	}
	for _, port := range ports {
		ln, err := second.Server.Listen("tcp", second.addr(false, port))
		if err != nil {
			t.Fatal(err)
		}
		echoServer(t, ln)
	}
	body := everyDepth(0)
	without := func(drain string) { r.configWith("spare_ports = 2\ndrain = \""+drain+"\"", body) }
	with := func() { r.configWith("spare_ports = 2\ndrain = \"10s\"", onSecond(body)) }
	without("10s")
	a := r.start()
	a.hasDropped()
	// One client: each has a connection, and each of these a goroutine in the appliance.
	client := control.NewClient(r.control())
	status := func() control.Status {
		t.Helper()
		s, err := client.Status()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	_, maps := a.memory()
	goroutines := status().Goroutines
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k, wait := r.everyTalker(ctx, conns, ports, 2*time.Second)
	r.eventually("all connections stand", func() error {
		if n := k.standing.Load(); int(n) < conns*9/10 {
			return fmt.Errorf("%d do", n)
		}
		return nil
	})
	reload := func(n int) control.Reload {
		t.Helper()
		res, err := client.Reload(false)
		if err != nil || !res.Applied || len(res.Changes) < 2 {
			t.Fatalf("round %d: %+v, %v", n, res, err)
		}
		return res
	}
	var slowest float64
	for n := range rounds {
		with()
		if n == 0 {
			res, err := client.Reload(true)
			if err != nil || res.Applied || res.Refused != "" || !strings.Contains(fmt.Sprint(res.Changes), `port: + "lan2": interface eth3`) {
				t.Errorf("dry run: %+v, %v", res, err)
			}
		}
		slowest = max(slowest, reload(n).Seconds)
		if s := status(); len(s.Ports) != 4 || s.Ports[2].Name != "lan2" || !second.xdpOn("eth3") {
			t.Fatalf("round %d: ports %+v", n, s.Ports)
		}
		var open []net.Conn
		for _, port := range ports {
			c, err := second.Client.Dial("tcp", second.addr(false, port))
			if err != nil {
				t.Fatalf("round %d, port %d: %v", n, port, err)
			}
			defer c.Close()
			open = append(open, c)
			if err := echoOver(c, fmt.Sprintf("round %d, port %d", n, port)); err != nil {
				t.Errorf("round %d, port %d: %v", n, port, err)
			}
		}
		if s := status(); s.Ports[2].Queues[0].RxPackets == 0 || s.Ports[3].Queues[0].RxPackets == 0 || s.Ports[2].Verdicts["peer"] == nil {
			t.Errorf("round %d: nothing came up by the second wire: %+v", n, s.Ports[2])
		}
		leave := n%2 == 0
		if leave { // else what is open is cut with the wire
			without("10s")
			reload(n)
			if s := status(); len(s.Ports) != 4 || !s.Ports[2].Leaving || s.Ports[0].Leaving {
				t.Errorf("round %d: it does not wait for its flows: %+v", n, s.Ports)
			}
			for i, c := range open {
				if err := echoOver(c, "it leaves"); err != nil {
					t.Errorf("round %d, port %d, while the wire leaves: %v", n, ports[i], err)
				}
			}
			for _, c := range open {
				c.Close()
			}
		} else {
			without("0s")
			reload(n)
		}
		r.eventually("the wire is gone", func() error {
			if s := status(); len(s.Ports) != 2 {
				return fmt.Errorf("ports %d", len(s.Ports))
			}
			return nil
		})
		for _, name := range []string{"eth3", "eth4"} {
			if second.xdpOn(name) {
				t.Errorf("round %d: XDP, or promiscuous mode, is still on %s", n, name)
			}
		}
		if !leave {
			for _, c := range open {
				c.Close()
			}
		}
		if _, m := a.memory(); m != maps {
			t.Errorf("round %d: BPF maps and programs %d, %d before", n, m, maps)
		}
		if err := flowsBy(client, "10.78.0."); err != nil {
			t.Errorf("round %d: %v", n, err)
		}
	}
	cancel()
	wait()
	for i, b := range k.broken {
		if t.Errorf("%s", b); i > 20 {
			break
		}
	}
	t.Logf("%d rounds, the slowest reload took %.0f ms; %d connections over the other wire, %d KiB, %d broken", rounds, slowest*1000, k.conns.Load(), k.bytes.Load()>>10, len(k.broken))
	// What the sockets of the wire that stays had no room for, while others came and went.
	lost := uint64(0)
	for _, p := range status().Ports {
		for _, q := range p.Queues {
			lost += q.TxRefused + q.Extra["rx_ring_full"] + q.Extra["fill_ring_empty"] + q.Extra["rx_dropped"] + q.Extra["no_frames"]
		}
	}
	if lost > 0 {
		t.Errorf("%d packets of the wire that stays were lost", lost)
	}
	r.eventually("nothing is left of it", func() error {
		if n := status().Goroutines; n > goroutines {
			return fmt.Errorf("%d goroutines, %d in the beginning", n, goroutines)
		}
		return nil
	})
	a.balanced()
	a.stop()
	if !strings.Contains(a.log.String(), "in_time=true") || !strings.Contains(a.log.String(), "connections_cut=") {
		t.Error("the log does not say how wires have ended")
	}
}

// TestWiresRefused: what cannot be done to ports changes nothing, and says what can;
// what fails late is undone; with two workers; and a process that takes over goes on
// with the flows of ports whose numbers are not those of a first start.
func TestWiresRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{Veth: lab.VethOptions{Queues: 2}})
	second := r.secondWire(lab.VethOptions{Queues: 2})
	for _, name := range []string{"eth5", "eth6"} { // one queue only
		if err := r.Appliance.Lab().Veth(lab.End{NS: second.Client, Name: name}, lab.End{NS: r.Appliance, Name: name, NoIPv6: true}, lab.VethOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := second.Server.Listen("tcp", second.addr(false, 7000))
	if err != nil {
		t.Fatal(err)
	}
	echoServer(t, ln)
	r.tcpServer(7000)
	const chain = "[[steer]]\nproto = \"tcp\"\nto = \"offload\"\n[[chain]]\nname = \"offload\"\n"
	write := func(spare int, body string) {
		r.configWith(fmt.Sprintf("spare_ports = %d\ndrain = \"0s\"", spare), body)
	}
	pair := func(a, b string) string {
		return fmt.Sprintf("[[port]]\nname = \"p-%s\"\ninterface = %q\n[[port]]\nname = \"p-%s\"\ninterface = %q\n", a, a, b, b)
	}
	write(0, chain)
	a := r.start()
	a.hasDropped()
	refused := func(what, want string) {
		t.Helper()
		res, err := control.NewClient(r.control()).Reload(false)
		if said := res.Refused + fmt.Sprint(res.Problems, err); res.Applied || !strings.Contains(said, want) {
			t.Errorf("%s: %+v, %v; want %q", what, res, err, want)
		}
		if s := a.status(); len(s.Ports) != 2 || s.Ports[0].Leaving {
			t.Errorf("%s: ports %+v", what, s.Ports)
		}
		if err := r.request7000(); err != nil {
			t.Errorf("%s: the wire that stays: %v", what, err)
		}
	}
	write(0, pair("eth3", "eth4")+chain)
	refused("without spare ports", "spare_ports in [appliance] was set at the start")
	a.stop()

	write(2, chain)
	a = r.start()
	a.hasDropped()
	write(2, pair("eth3", "eth4")+pair("eth5", "eth6")+chain)
	refused("too many", "memory for 2 more ports, not for 4")
	write(2, pair("eth5", "eth6")+chain)
	refused("one queue", "ethtool -L eth5 combined 2")
	write(2, pair("eth8", "eth9")+chain)
	refused("no interface", "eth8")
	write(2, "[[port]]\nname = \"odd\"\ninterface = \"eth3\"\n"+chain)
	refused("half a wire", "in pairs")
	write(2, pair("eth3", "eth4")+chain)
	r.change(r.toml, `interface = "eth2"`, "interface = \"eth2\"\nxdp = \"generic\"")
	refused("another mode", "[[port]] cannot change while it runs")

	t.Log("XDP is attached last: what fails there is undone")
	native := strings.ReplaceAll(pair("eth3", "eth4"), "interface", "xdp = \"native\"\ninterface")
	if err := second.Server.SetMTU("eth0", 9000); err != nil {
		t.Fatal(err)
	}
	write(2, native+chain)
	refused("a peer that sends what is too long", "mtu 1500")
	if second.xdpOn("eth3") || second.xdpOn("eth4") {
		t.Error("XDP has stayed on an interface")
	}
	a.balanced()
	if err := second.Server.SetMTU("eth0", 1500); err != nil {
		t.Fatal(err)
	}
	reload := func() {
		t.Helper()
		if res, err := control.NewClient(r.control()).Reload(false); err != nil || !res.Applied {
			t.Fatalf("%+v, %v", res, err)
		}
	}
	reload()
	var open net.Conn
	for i := range 20 {
		if open, err = second.Client.Dial("tcp", second.addr(false, 7000)); err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		for range 3 {
			if err := echoOver(open, "two workers"); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		}
	}

	t.Log("what adding it took is set aside again, in every thread")
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", a.cmd.Process.Pid))
	if err != nil || len(tasks) < 4 {
		t.Fatalf("%d threads, %v", len(tasks), err)
	}
	for _, file := range tasks {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		for _, want := range []string{"CapEff:\t" + keptOfRoot, "CapPrm:\t000000c000003002", "NoNewPrivs:\t1"} {
			if !strings.Contains(string(text), "\n"+want+"\n") {
				t.Errorf("%s: want %q, it has:\n%s", file, want, text)
			}
		}
	}

	t.Log("the first wire goes, and another process takes over")
	text := fmt.Sprintf(header, r.name, r.control(), "open", "", "")
	text = text[:strings.Index(text, "[[port]]")]
	text = strings.Replace(text, "drain_timeout =", "spare_ports = 2\ndrain = \"0s\"\ndrain_timeout =", 1)
	if err := os.WriteFile(r.toml, []byte(text+native+chain), 0o644); err != nil {
		t.Fatal(err)
	}
	reload()
	r.eventually("the wire is gone", func() error {
		if s := a.status(); len(s.Ports) != 1*2 || s.Ports[0].Interface != "eth3" {
			return fmt.Errorf("%d ports", len(s.Ports))
		}
		return nil
	})
	if r.xdpOn("eth1") || r.xdpOn("eth2") {
		t.Error("XDP has stayed on an interface")
	}
	a = r.start()
	r.eventually("it has taken over", func() error {
		if s, err := control.NewClient(r.control()).Status(); err != nil || s.Inherited == nil || s.Inherited.Before == nil {
			return fmt.Errorf("%+v, %v", s.Inherited, err)
		}
		return nil
	})
	if i := a.status().Inherited; i == nil || i.Refused != "" || i.Offloaded < 20 || i.Forgotten > 0 {
		t.Errorf("what was taken over: %+v", i)
	}
	if err := echoOver(open, "by the next process"); err != nil {
		t.Error(err)
	}
	if s := a.status(); len(s.Ports) != 2 || s.Ports[0].Verdicts["peer"]["flow_offloaded"].Packets == 0 {
		t.Errorf("%+v", s.Ports)
	}
	// There are numbers below the ones of these ports.
	write(2, native+chain)
	reload()
	if err := r.request7000(); err != nil {
		t.Errorf("the wire that is back: %v", err)
	}
	if err := echoOver(open, "and the other one"); err != nil {
		t.Error(err)
	}
	a.stop()
}

// request7000 sends something over the first wire.
func (r *rig) request7000() error {
	c, err := r.Client.Dial("tcp", r.addr(false, 7000))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "echo\n"); err != nil {
		return err
	}
	return echoOver(c, "it goes on")
}

// flowsBy fails if a flow of addresses with that beginning is there.
func flowsBy(client *control.Client, prefix string) error {
	flows, err := client.Flows()
	for _, f := range flows {
		if strings.HasPrefix(f.Client, prefix) {
			return fmt.Errorf("flow %+v is still there", f)
		}
	}
	return err
}

// echoServer answers with what it gets.
func echoServer(t *testing.T, ln net.Listener) {
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}()
}

func echoOver(c net.Conn, msg string) error {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, msg); err != nil {
		return err
	}
	got := make([]byte, len(msg))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != msg {
		return errors.New("got " + string(got))
	}
	return nil
}
