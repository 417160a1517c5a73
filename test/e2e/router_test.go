package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
)

// newRoutedRig is a newRig whose ends are in subnets of their own, with the
// appliance as the router between them.
func newRoutedRig(t *testing.T, o lab.RoutedOptions) *rig {
	t.Helper()
	l := labtest.NewForTest(t)
	in, err := l.Routed(o)
	if err != nil {
		t.Fatal(err)
	}
	return routedRig(t, l, in)
}

func routedRig(t *testing.T, l *lab.Lab, in *lab.Routed) *rig {
	r := &rig{
		Inline: &lab.Inline{
			Client: in.Client, Appliance: in.Gateway, Server: in.Server, ClientIf: in.ClientIf, ServerIf: in.ServerIf,
			ClientIP4: in.ClientIP4, ClientIP6: in.ClientIP6, ServerIP4: in.ServerIP4, ServerIP6: in.ServerIP6, LANIf: in.LANIf, WANIf: in.WANIf,
		},
		t: t, dir: t.TempDir(), name: l.Name(),
	}
	t.Cleanup(func() {
		if r.toml != "" {
			_ = r.penstock("detach", r.toml).Run()
		}
	})
	return r
}

// routes is config in router mode.
func (r *rig) routes(onExit, port, body string) {
	r.t.Helper()
	r.config(onExit, port, body)
	text, err := os.ReadFile(r.toml)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(r.toml, []byte(strings.Replace(string(text), "[appliance]\n", "[appliance]\nmode = \"router\"\n", 1)), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// anyTCP is a chain for TCP from everywhere.
const anyTCP = `
[[steer]]
proto = "tcp"
to = "any"
[[chain]]
name = "any"
`

// depths are chains whose flows are that deep.
var depths = []struct{ name, chain string }{
	{"forward", anyTCP + "offload = \"never\"\n"},
	{"offload", anyTCP},
	{"terminate", anyTCP + "offload = \"never\"\n  [[chain.stage]]\n  kind = \"tcp\"\n  depth = \"terminate\"\n"},
	{"splice", anyTCP + "  [[chain.stage]]\n  kind = \"tcp\"\n  depth = \"terminate\"\n"},
}

// ip runs ip(8) in a namespace.
func (r *rig) ip(n *lab.NS, args string) {
	r.t.Helper()
	r.run(n, 5*time.Second, "ip", strings.Fields(args)...)
}

// transfer fetches and sends through the appliance, and checks what each end
// sees of the other.
func (r *rig) transfer(n int64) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for _, v6 := range []bool{false, true} {
		client := r.ClientIP4
		if v6 {
			client = r.ClientIP6
		}
		who, err := r.client().Whoami(ctx, r.addr(v6, 80))
		if err != nil {
			r.t.Fatalf("%s: %v", ipName(v6), err)
		}
		if a, err := netip.ParseAddrPort(who.Peer); err != nil || a.Addr() != client {
			r.t.Errorf("%s: the server saw %s (%v), want %s", ipName(v6), who.Peer, err, client)
		}
		if err := r.client().Bytes(ctx, r.addr(v6, 80), n, false); err != nil {
			r.t.Errorf("%s download: %v", ipName(v6), err)
		}
		if err := r.client().Upload(ctx, r.addr(v6, 80), n); err != nil {
			r.t.Errorf("%s upload: %v", ipName(v6), err)
		}
	}
}

// TestRouter sends traffic through a router at each depth.
func TestRouter(t *testing.T) {
	t.Parallel()
	for _, d := range depths {
		for _, port := range []string{`xdp = "native"`, `xdp = "generic"`} {
			t.Run(d.name+"/"+port, func(t *testing.T) {
				t.Parallel()
				r := newRoutedRig(t, lab.RoutedOptions{})
				r.routes("closed", port, d.chain)
				r.origin(80)
				a := r.start()
				r.transfer(4 << 20)
				s := a.status()
				t.Logf("%d packets in user space, %d flows offloaded, router %v", s.Totals.Packets, s.Flows.Offloaded, s.Router)
				if few := s.Totals.Packets < 500; few != (d.name == "offload" || d.name == "splice") {
					t.Errorf("%d packets went to user space", s.Totals.Packets)
				}
				if s.Totals.DroppedTotal() != 0 || s.Router["lost"]+s.Router["failed"] > 0 {
					t.Errorf("totals %+v, router %v", s.Totals, s.Router)
				}
				r.traceroute()
				a.stop()
			})
		}
	}
}

// traceroute finds the appliance on the way to the server.
func (r *rig) traceroute() {
	r.t.Helper()
	for _, v6 := range []bool{false, true} {
		router, server, flag := "10.78.1.1", r.ServerIP4.String(), "-4"
		if v6 {
			router, server, flag = "fd78:1::1", r.ServerIP6.String(), "-6"
		}
		for _, kind := range [][]string{{"-T", "-p", "80"}, {"-U", "-p", "80"}, {"-I"}} {
			args := append([]string{flag, "-n", "-q", "1", "-w", "2", "-m", "4", "-N", "1"}, kind...)
			out := r.run(r.Client, 20*time.Second, "traceroute", append(args, server)...)
			var hops []string
			for _, line := range strings.Split(out, "\n")[1:] {
				if f := strings.Fields(line); len(f) > 1 {
					hops = append(hops, f[1])
				}
			}
			if fmt.Sprint(hops) != fmt.Sprint([]string{router, server}) {
				r.t.Errorf("traceroute %v shows %v, want %s and %s:\n%s", args, hops, router, server, out)
			}
		}
	}
}

// TestRouterUnreachable: what the kernel says of ways that lead nowhere reaches
// the client, at each depth.
func TestRouterUnreachable(t *testing.T) {
	t.Parallel()
	for _, d := range depths {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			r := newRoutedRig(t, lab.RoutedOptions{})
			r.routes("closed", "", d.chain)
			for _, args := range []string{
				"route add unreachable 198.51.100.0/25", "route add prohibit 198.51.100.128/25", "-6 route add unreachable 2001:db8:1::/48",
			} {
				r.ip(r.Appliance, args)
			}
			a := r.start()
			for _, tt := range []struct {
				to   string
				want error
			}{
				{"198.51.100.1:80", syscall.EHOSTUNREACH},
				{"198.51.100.129:80", syscall.EHOSTUNREACH},
				{"[2001:db8:1::1]:80", syscall.ENETUNREACH}, // ICMPv6 says: no route
				{r.addr(false, 9), syscall.ECONNREFUSED},
				{r.addr(true, 9), syscall.ECONNREFUSED},
				{"10.78.2.77:80", syscall.EHOSTUNREACH}, // nobody answers ARP
				{"[fd78:2::77]:80", syscall.EHOSTUNREACH},
			} {
				ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
				begin := time.Now()
				_, err := r.Client.DialContext(ctx, "tcp", tt.to)
				cancel()
				t.Logf("%s: %v after %v", tt.to, err, time.Since(begin).Round(time.Millisecond))
				if !errors.Is(err, tt.want) {
					t.Errorf("%s: %v, want %v", tt.to, err, tt.want)
				}
				if took := time.Since(begin); tt.want == syscall.ECONNREFUSED && took > 900*time.Millisecond {
					t.Errorf("%s: refused after %v: the first SYN was in vain", tt.to, took)
				}
			}
			if s := a.status(); s.Router["unreachable"] == 0 || s.Router["lost"]+s.Router["failed"] > 0 {
				t.Errorf("router %v", s.Router)
			}
			a.stop()
		})
	}
}

// TestRouterNoForwarding: a kernel that forwards nothing is said so at once, with
// the mend.
func TestRouterNoForwarding(t *testing.T) {
	t.Parallel()
	r := newRoutedRig(t, lab.RoutedOptions{NoForward: true})
	r.routes("closed", "", anyTCP)
	out, err := r.penstock("run", r.toml).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1") {
		t.Errorf("%v: %s", err, out)
	}
	if err := r.Appliance.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	a := r.start()
	if w := strings.Join(a.status().Warnings, "\n"); !strings.Contains(w, "IPv6 is not forwarded from eth1, eth2; mend: sysctl -w net.ipv6.conf.all.forwarding=1") {
		t.Errorf("warnings: %q", w)
	}
	a.stop()
}

// TestRouterNeighbor: the server gets another address on its link, and is
// forgotten by the kernel, while bytes flow.
func TestRouterNeighbor(t *testing.T) {
	t.Parallel()
	for _, d := range depths {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			r := newRoutedRig(t, lab.RoutedOptions{})
			r.routes("closed", "", d.chain)
			r.tcpServer(7000)
			a := r.start()
			for _, v6 := range []bool{false, true} {
				conn, err := r.Client.Dial("tcp", r.addr(v6, 7000))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(40 * time.Second))
				if _, err := io.WriteString(conn, "echo\n"); err != nil {
					t.Fatal(err)
				}
				server := r.ServerIP4
				if v6 {
					server = r.ServerIP6
				}
				const steps, chunk = 30, 100_000
				go func() {
					b := make([]byte, chunk)
					for range steps {
						if _, err := conn.Write(b); err != nil {
							return
						}
					}
				}()
				got := make([]byte, chunk)
				for i := range steps {
					switch {
					case i == 15:
						// Announced by nothing but what the server sends.
						r.ip(r.Server, fmt.Sprintf("link set eth0 address 02:00:00:00:77:%02x", map[bool]int{false: 4, true: 6}[v6]))
						r.ip(r.Appliance, "neigh flush dev eth2")
					case i%5 == 0:
						r.ip(r.Appliance, "neigh flush dev eth2")
						_, _ = r.try(r.Appliance, 5*time.Second, "ip", "neigh", "del", server.String(), "dev", "eth2")
					}
					if _, err := io.ReadFull(conn, got); err != nil {
						t.Fatalf("%s, after %d of %d: %v", ipName(v6), i, steps, err)
					}
				}
			}
			t.Logf("router %v", a.status().Router)
			a.stop()
		})
	}
}

// TestRouterSilentClient: the server moves to another address on its link while
// the client has nothing to say, and what was under way still arrives. Nothing
// that the client sends can teach a terminated connection the new way.
func TestRouterSilentClient(t *testing.T) {
	t.Parallel()
	r := newRoutedRig(t, lab.RoutedOptions{})
	r.routes("closed", "", depths[2].chain)
	r.tcpServer(7000)
	a := r.start()
	conn, err := r.Client.Dial("tcp", r.addr(false, 7000))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, "echo\n"); err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, 5)
	if _, err := io.WriteString(conn, "first"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, msg); err != nil {
		t.Fatal(err)
	}
	// The appliance takes the message and cannot deliver it.
	r.ip(r.Server, "link set eth0 address 02:00:00:00:77:07")
	if _, err := io.WriteString(conn, "later"); err != nil {
		t.Fatal(err)
	}
	r.eventually("the appliance has the message", func() error {
		if out := r.run(r.Client, 5*time.Second, "ss", "-tnHi", "dport", "=", "7000"); strings.Contains(out, "unacked") {
			return errors.New(out)
		}
		return nil
	})
	r.ip(r.Appliance, "neigh flush dev eth2")
	if _, err := io.ReadFull(conn, msg); err != nil || string(msg) != "later" {
		t.Fatalf("%q, %v", msg, err)
	}
	s := a.status()
	t.Logf("router %v", s.Router)
	if s.Router["rerouted"] == 0 {
		t.Error("nothing was routed anew")
	}
	a.stop()
}

// TestRouterPMTU: behind the appliance is a smaller MTU, on its own link or on
// that of the next router, and bytes arrive whole, at each depth.
func TestRouterPMTU(t *testing.T) {
	t.Parallel()
	for _, d := range depths {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			l := labtest.NewForTest(t)
			in, err := l.Routed(lab.RoutedOptions{})
			if err != nil {
				t.Fatal(err)
			}
			r := routedRig(t, l, in)
			// A second router and a server behind it.
			far, err := l.NS("far")
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Veth(
				lab.End{NS: r.Server, Name: "eth1", Addrs: []netip.Prefix{netip.MustParsePrefix("10.78.3.1/24"), netip.MustParsePrefix("fd78:3::1/64")}},
				lab.End{NS: far, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.78.3.2/24"), netip.MustParsePrefix("fd78:3::2/64")}}, lab.VethOptions{}); err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
				if err := r.Server.Sysctl(key, "1"); err != nil {
					t.Fatal(err)
				}
			}
			r.ip(far, "route add default via 10.78.3.1")
			r.ip(far, "-6 route add default via fd78:3::1")
			r.ip(r.Appliance, "route add 10.78.3.0/24 via 10.78.2.2")
			r.ip(r.Appliance, "-6 route add fd78:3::/64 via fd78:2::2")
			near := *r.Inline
			r.Server, r.ServerIP4, r.ServerIP6 = far, netip.MustParseAddr("10.78.3.2"), netip.MustParseAddr("fd78:3::2")
			r.routes("closed", "", d.chain)
			r.origin(80)

			// The second router says so. Both ends believe in 1500.
			r.ip(near.Server, "route replace 10.78.3.0/24 dev eth1 mtu lock 1300")
			r.ip(near.Server, "-6 route replace fd78:3::/64 dev eth1 mtu lock 1300")
			a := r.start()
			r.transfer(1 << 20)
			a.stop()
			// The route: the appliance's own kernel says so.
			r.ip(near.Server, "route replace 10.78.3.0/24 dev eth1")
			r.ip(near.Server, "-6 route replace fd78:3::/64 dev eth1")
			r.ip(r.Appliance, "route replace 10.78.1.0/24 dev eth1 mtu lock 1340")
			r.ip(r.Appliance, "-6 route replace fd78:1::/64 dev eth1 mtu lock 1340")
			r.ip(r.Appliance, "route replace 10.78.3.0/24 via 10.78.2.2 mtu lock 1350")
			r.ip(r.Appliance, "-6 route replace fd78:3::/64 via fd78:2::2 mtu lock 1350")
			for _, end := range []*lab.NS{r.Client, far} {
				r.ip(end, "route flush cache")
				r.ip(end, "-6 route flush cache")
			}
			a = r.start()
			r.transfer(1 << 20)
			if (d.name == "forward" || d.name == "offload") && a.status().Ports[0].Reasons["route_too_big"].Packets == 0 {
				t.Errorf("nothing was too big: %v", a.status().Ports[0].Reasons)
			}
			// The link of the appliance itself.
			a.stop()
			r.ip(r.Appliance, "route replace 10.78.3.0/24 via 10.78.2.2")
			r.ip(r.Appliance, "-6 route replace fd78:3::/64 via fd78:2::2")
			r.ip(r.Appliance, "link set eth2 mtu 1320")
			r.ip(near.Server, "link set eth0 mtu 1320")
			r.ip(r.Client, "route flush cache")
			r.ip(r.Client, "-6 route flush cache")
			a = r.start()
			r.transfer(1 << 20)
			a.stop()
		})
	}
}

// TestRouterOneArm: client and server are behind the same port.
func TestRouterOneArm(t *testing.T) {
	t.Parallel()
	for _, d := range depths {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			l := labtest.NewForTest(t)
			r := &rig{t: t, dir: t.TempDir(), name: l.Name(), Inline: &lab.Inline{
				ClientIP4: netip.MustParseAddr("10.78.1.2"), ClientIP6: netip.MustParseAddr("fd78:1::2"),
				ServerIP4: netip.MustParseAddr("10.78.2.2"), ServerIP6: netip.MustParseAddr("fd78:2::2"),
			}}
			t.Cleanup(func() { _ = r.penstock("detach", r.toml).Run() })
			var err error
			var sw *lab.NS
			for role, at := range map[string]**lab.NS{"client": &r.Client, "appliance": &r.Appliance, "server": &r.Server, "switch": &sw} {
				if *at, err = l.NS(role); err != nil {
					t.Fatal(err)
				}
			}
			both := func(ps ...string) (out []netip.Prefix) {
				for _, p := range ps {
					out = append(out, netip.MustParsePrefix(p))
				}
				return out
			}
			for _, end := range []struct {
				ns    *lab.NS
				at    string
				addrs []netip.Prefix
			}{
				{r.Client, "sw1", both("10.78.1.2/24", "fd78:1::2/64")},
				{r.Server, "sw2", both("10.78.2.2/24", "fd78:2::2/64")},
				{r.Appliance, "sw3", both("10.78.1.1/24", "10.78.2.1/24", "fd78:1::1/64", "fd78:2::1/64")},
			} {
				if err := l.Veth(lab.End{NS: end.ns, Name: "eth0", Addrs: end.addrs}, lab.End{NS: sw, Name: end.at, NoIPv6: true}, lab.VethOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if err := sw.Bridge("br0", "sw1", "sw2", "sw3"); err != nil {
				t.Fatal(err)
			}
			for _, args := range []string{"route add default via 10.78.%d.1", "-6 route add default via fd78:%d::1"} {
				r.ip(r.Client, fmt.Sprintf(args, 1))
				r.ip(r.Server, fmt.Sprintf(args, 2))
			}
			for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
				if err := r.Appliance.Sysctl(key, "1"); err != nil {
					t.Fatal(err)
				}
			}
			r.routes("closed", "", d.chain)
			text, _ := os.ReadFile(r.toml)
			one := strings.Replace(string(text), "[[port]]\nname = \"wan\"\ninterface = \"eth2\"\n", "", 1)
			one = strings.Replace(one, "eth1", "eth0", 1)
			if err := os.WriteFile(r.toml, []byte(one), 0o644); err != nil {
				t.Fatal(err)
			}
			r.origin(80)
			a := r.start()
			r.transfer(2 << 20)
			s := a.status()
			t.Logf("%d packets in user space, %d flows offloaded, router %v", s.Totals.Packets, s.Flows.Offloaded, s.Router)
			if s.Flows.Steered == 0 || (d.name == "offload" || d.name == "splice") && s.Totals.Packets > 500 {
				t.Errorf("%d packets in user space, %+v", s.Totals.Packets, s.Flows)
			}
			r.traceroute()
			a.stop()
		})
	}
}

// TestRouterOffPort: a route that leaves by an interface which is no port. The
// chain sees what is steered, and the kernel forwards it.
func TestRouterOffPort(t *testing.T) {
	t.Parallel()
	for _, d := range depths {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			l := labtest.NewForTest(t)
			in, err := l.Routed(lab.RoutedOptions{})
			if err != nil {
				t.Fatal(err)
			}
			r := routedRig(t, l, in)
			far, err := l.NS("far")
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Veth(
				lab.End{NS: r.Appliance, Name: "eth3", Addrs: []netip.Prefix{netip.MustParsePrefix("10.78.3.1/24"), netip.MustParsePrefix("fd78:3::1/64")}},
				lab.End{NS: far, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.78.3.2/24"), netip.MustParsePrefix("fd78:3::2/64")}}, lab.VethOptions{}); err != nil {
				t.Fatal(err)
			}
			r.ip(far, "route add default via 10.78.3.1")
			r.ip(far, "-6 route add default via fd78:3::1")
			r.Server, r.ServerIP4, r.ServerIP6 = far, netip.MustParseAddr("10.78.3.2"), netip.MustParseAddr("fd78:3::2")
			r.routes("closed", "", d.chain)
			r.origin(80)
			a := r.start()
			r.transfer(1 << 20)
			s := a.status()
			t.Logf("router %v, %v", s.Router, s.Ports[0].Reasons)
			if s.Router["to_kernel"] == 0 || s.Ports[0].Reasons["route_off_port"].Packets == 0 {
				t.Errorf("router %v, %v", s.Router, s.Ports[0].Reasons)
			}
			a.stop()
		})
	}
}

// TestRouterExit: what on_exit says happens when the appliance is killed.
func TestRouterExit(t *testing.T) {
	t.Parallel()
	for _, onExit := range []string{"open", "closed"} {
		t.Run(onExit, func(t *testing.T) {
			t.Parallel()
			r := newRoutedRig(t, lab.RoutedOptions{})
			r.routes(onExit, "", depths[1].chain)
			r.tcpServer(7000)
			a := r.start()
			conn, err := r.Client.Dial("tcp", r.addr(false, 7000))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			echo := func(text string) {
				t.Helper()
				if _, err := io.WriteString(conn, text); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(conn, make([]byte, len(text))); err != nil {
					t.Fatalf("%s: %v", text, err)
				}
			}
			if _, err := io.WriteString(conn, "echo\n"); err != nil {
				t.Fatal(err)
			}
			echo("with the appliance")
			r.eventually("the flow is offloaded", func() error {
				if n := a.status().Flows.Offloaded; n != 1 {
					return fmt.Errorf("%d", n)
				}
				return nil
			})
			a.kill()
			echo("offloaded: routed by XDP")
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			other, err := r.Client.DialContext(ctx, "tcp", r.addr(false, 7000))
			if err == nil {
				other.Close()
			}
			if (err == nil) != (onExit == "open") {
				t.Errorf("a new connection: %v", err)
			}
			a = r.start()
			echo("with the next appliance")
			a.stop()
			if !strings.Contains(a.log.String(), map[string]string{"open": "connected: XDP goes on routing", "closed": "cut for packets that chains want"}[onExit]) {
				t.Errorf("log: %s", a.log)
			}
			echo("after it has stopped")
		})
	}
}

// TestRouterChange: routes change while bytes flow, from one next hop to another
// on the same link and back.
func TestRouterChange(t *testing.T) {
	t.Parallel()
	for _, d := range depths {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			r := newRoutedRig(t, lab.RoutedOptions{})
			// The server's address is behind the server's namespace, by two ways.
			r.ip(r.Server, "addr add 10.99.0.1/32 dev lo")
			r.ip(r.Server, "addr add 10.78.2.3/24 dev eth0")
			r.ip(r.Appliance, "route add 10.99.0.1/32 via 10.78.2.2")
			r.routes("closed", "", d.chain)
			r.ServerIP4 = netip.MustParseAddr("10.99.0.1")
			r.tcpServer(7000)
			a := r.start()
			conn, err := r.Client.Dial("tcp", "10.99.0.1:7000")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			if _, err := io.WriteString(conn, "echo\n"); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 20_000)
			for i := range 40 {
				if i%4 == 0 {
					r.ip(r.Appliance, fmt.Sprintf("route replace 10.99.0.1/32 via 10.78.2.%d", 2+i/4%2))
				}
				if _, err := conn.Write(b); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(conn, b); err != nil {
					t.Fatalf("after %d: %v", i, err)
				}
			}
			if s := a.status(); s.Router["changes"] < 10 || s.Router["lost"]+s.Router["failed"] > 0 {
				t.Errorf("router %v", s.Router)
			}
			a.stop()
		})
	}
}

// TestRouterQueues: two workers, each with a port to the kernel of its own.
func TestRouterQueues(t *testing.T) {
	t.Parallel()
	for _, d := range depths {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			r := newRoutedRig(t, lab.RoutedOptions{Veth: lab.VethOptions{Queues: 2}})
			r.routes("closed", "", d.chain)
			r.origin(80)
			a := r.start()
			for range 8 { // flows spread over the workers
				r.transfer(100_000)
			}
			if s := a.status(); len(s.Workers) != 2 || s.Workers[0].Totals.Packets == 0 || s.Workers[1].Totals.Packets == 0 {
				t.Errorf("%d workers, %+v", len(s.Workers), s.Totals)
			}
			a.stop()
		})
	}
}
