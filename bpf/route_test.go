package bpf

import (
	"bytes"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
)

// gateway is a router between two subnets, and a third one behind an interface that is no port:
//
//	client 10.78.1.2 --- eth1 [lan] gateway [wan] eth2 (MTU 1400) --- server 10.78.2.2
//	                                        eth3 --- 10.78.3.2
type gateway struct {
	*Steerer
	*lab.Routed
	t         testing.TB
	mac       [2]net.HardwareAddr // of the ports
	client    net.HardwareAddr
	server    net.HardwareAddr
	ifindex   [2]int
	elsewhere *lab.NS
}

func newGateway(t testing.TB, change func(*Options)) *gateway {
	t.Helper()
	l := labtest.NewForTest(t)
	topo, err := l.Routed(lab.RoutedOptions{})
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{Routed: topo, t: t}
	if g.elsewhere, err = l.NS("elsewhere"); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(l.Veth(
		lab.End{NS: g.Gateway, Name: "eth3", Addrs: []netip.Prefix{netip.MustParsePrefix("10.78.3.1/24")}},
		lab.End{NS: g.elsewhere, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.78.3.2/24")}}, lab.VethOptions{}))
	for i, name := range []string{g.LANIf, g.WANIf} {
		g.mac[i], err = g.Gateway.MAC(name)
		must(err)
		g.ifindex[i], err = g.Gateway.LinkIndex(name)
		must(err)
	}
	g.client, err = g.Client.MAC(g.ClientIf)
	must(err)
	g.server, err = g.Server.MAC(g.ServerIf)
	must(err)
	must(g.Gateway.SetMTU(g.WANIf, 1400))
	for _, ip := range []netip.Addr{g.ServerIP4, g.ServerIP6} {
		must(g.Gateway.AddNeigh(g.WANIf, ip, g.server))
	}
	for _, ip := range []netip.Addr{g.ClientIP4, g.ClientIP6} {
		must(g.Gateway.AddNeigh(g.LANIf, ip, g.client))
	}
	o := Options{
		Name: "gateway", Default: DefaultRoute, MaxFlows: 1024, Rules: []Rule{{From: -1, Action: ToChain, Chain: 7}},
		Ports: []Port{{Name: "lan", Ifindex: g.ifindex[0]}, {Name: "wan", Ifindex: g.ifindex[1]}},
	}
	if change != nil {
		change(&o)
	}
	g.Steerer = loadIn(t, g.Gateway, o)
	t.Cleanup(func() { g.Close() })
	r := &rig{Steerer: g.Steerer, t: t}
	for port := range o.Ports {
		r.listen(port)
	}
	return g
}

// ip runs ip(8) in the gateway.
func (g *gateway) ip(args string) {
	g.t.Helper()
	err := g.Gateway.Do(func() error {
		out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
		if err != nil {
			g.t.Errorf("ip %s: %s", args, out)
		}
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *gateway) ask(port int, frame []byte) Answer {
	g.t.Helper()
	var a Answer
	if err := g.Gateway.Do(func() (err error) { a, err = g.Route(port, frame); return err }); err != nil {
		g.t.Fatal(err)
	}
	return a
}

// steer runs a port's program as on a packet that came in by it.
func (g *gateway) steer(port int, frame []byte) (action uint32, out []byte) {
	g.t.Helper()
	o := &ebpf.RunOptions{
		Data: frame, DataOut: make([]byte, len(frame)+256),
		Context: xdpMD{DataEnd: uint32(len(frame)), IngressIfindex: uint32(g.ifindex[port])},
	}
	err := g.Gateway.Do(func() (err error) { action, err = g.ports[port].prog.Run(o); return err })
	if err != nil {
		g.t.Fatal(err)
	}
	return action, o.DataOut
}

// way is a packet on its way from the client, by default to the server.
type way struct {
	dst     string // "": the server
	src     string
	ttl     uint8 // 0: 64
	size    int   // payload bytes
	noDF    bool
	tos     uint8
	options bool
	dstMAC  net.HardwareAddr // nil: the LAN port's
	vlan    bool
}

func (g *gateway) frame(w way, flags string) []byte {
	g.t.Helper()
	mac, next := w.dstMAC, layers.EthernetTypeIPv4
	if mac == nil {
		mac = g.mac[0]
	}
	src, dst := g.ClientIP4, g.ServerIP4
	if strings.Contains(w.dst, ":") {
		src, next = g.ClientIP6, layers.EthernetTypeIPv6
	}
	if w.dst != "" {
		dst = netip.MustParseAddr(w.dst)
	}
	if w.src != "" {
		src = netip.MustParseAddr(w.src)
	}
	ttl := w.ttl
	if ttl == 0 {
		ttl = 64
	}
	e := &layers.Ethernet{SrcMAC: g.client, DstMAC: mac, EthernetType: next}
	list := []gopacket.SerializableLayer{e}
	if w.vlan {
		e.EthernetType = layers.EthernetTypeDot1Q
		list = append(list, vlan(5, next))
	}
	var network gopacket.NetworkLayer
	if dst.Is4() {
		h := &layers.IPv4{Version: 4, TTL: ttl, TOS: w.tos, Protocol: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice(), Flags: layers.IPv4DontFragment}
		if w.noDF {
			h.Flags = 0
		}
		if w.options {
			h.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 0}}
		}
		network, list = h, append(list, h)
	} else {
		h := &layers.IPv6{Version: 6, HopLimit: ttl, NextHeader: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		network, list = h, append(list, h)
	}
	return build(g.t, append(list, tcp(network, flags), payload(w.size))...)
}

// TestRoute asks for the way of packets: the program's answer is that of the kernel's tables.
func TestRoute(t *testing.T) {
	g := newGateway(t, nil)
	for _, args := range []string{
		"route add 203.0.113.0/24 via 10.78.2.9", "neigh add 10.78.2.9 lladdr 02:00:00:00:00:99 dev eth2",
		"route add 198.51.100.0/25 via 10.78.2.2 mtu lock 1000",
		"route add blackhole 198.51.100.128/26", "route add unreachable 198.51.100.192/27", "route add prohibit 198.51.100.224/27",
		"route add 2001:db8:1::/48 via fd78:2::9", "neigh add fd78:2::9 lladdr 02:00:00:00:00:99 dev eth2",
		"route add unreachable 2001:db8:2::/48",
		"route add 192.0.2.0/24 via 10.78.2.2 table 99", "rule add from 10.78.1.2 tos 0x10 lookup 99",
	} {
		if strings.Contains(args, ":") && !strings.HasPrefix(args, "neigh add 10") {
			args = "-6 " + args
		}
		g.ip(args)
	}
	server4, server6 := Hop{g.ServerIP4, g.ifindex[1]}, Hop{g.ServerIP6, g.ifindex[1]}
	other, _ := net.ParseMAC("02:00:00:00:00:99")
	for _, tt := range []struct {
		name   string
		way    way
		state  RouteState
		reason string
		hop    Hop
		mtu    int
		mac    net.HardwareAddr
	}{
		{"ipv4", way{}, RouteDone, "", server4, 1400, g.server},
		{"ipv6", way{dst: g.ServerIP6.String()}, RouteDone, "", server6, 1400, g.server},
		{"back by the same port", way{dst: "10.78.1.2", src: "10.78.1.7"}, RouteDone, "", Hop{g.ClientIP4, g.ifindex[0]}, 1500, g.client},
		{"gateway", way{dst: "203.0.113.7"}, RouteDone, "", Hop{netip.MustParseAddr("10.78.2.9"), g.ifindex[1]}, 1400, other},
		{"gateway ipv6", way{dst: "2001:db8:1::1"}, RouteDone, "", Hop{netip.MustParseAddr("fd78:2::9"), g.ifindex[1]}, 1400, other},
		{"mtu of the route", way{dst: "198.51.100.1"}, RouteDone, "", server4, 1000, g.server},
		{"fits", way{size: 1360}, RouteDone, "", server4, 1400, g.server},
		{"too big", way{size: 1361}, RoutePass, "route_too_big", Hop{}, 0, nil},
		{"too big ipv6", way{dst: g.ServerIP6.String(), size: 1341}, RoutePass, "route_too_big", Hop{}, 0, nil},
		{"too big, may be fragmented", way{size: 1361, noDF: true}, RouteKernel, "route_by_kernel", Hop{}, 0, nil},
		{"last hop", way{ttl: 1}, RoutePass, "route_ttl", Hop{}, 0, nil},
		{"last hop ipv6", way{dst: g.ServerIP6.String(), ttl: 1}, RoutePass, "route_ttl", Hop{}, 0, nil},
		{"last but one", way{ttl: 2}, RouteDone, "", server4, 1400, g.server},
		{"IP options", way{options: true}, RouteKernel, "route_by_kernel", Hop{}, 0, nil},
		{"own address", way{dst: "10.78.2.1"}, RoutePass, "route_none", Hop{}, 0, nil},
		{"own address ipv6", way{dst: "fd78:2::1"}, RoutePass, "route_none", Hop{}, 0, nil},
		{"broadcast", way{dst: "10.78.2.255"}, RoutePass, "route_none", Hop{}, 0, nil},
		{"multicast", way{dst: "224.1.2.3"}, RoutePass, "route_none", Hop{}, 0, nil},
		{"multicast ipv6", way{dst: "ff0e::1"}, RoutePass, "route_none", Hop{}, 0, nil},
		{"loopback", way{dst: "127.0.0.1"}, RoutePass, "route_none", Hop{}, 0, nil},
		{"from loopback", way{src: "127.0.0.1"}, RoutePass, "route_none", Hop{}, 0, nil},
		{"from link-local", way{dst: g.ServerIP6.String(), src: "fe80::1"}, RoutePass, "route_none", Hop{}, 0, nil},
		{"blackhole", way{dst: "198.51.100.129"}, RoutePass, "route_none", Hop{}, 0, nil},
		{"unreachable", way{dst: "198.51.100.193"}, RoutePass, "route_none", Hop{}, 0, nil},
		{"prohibit", way{dst: "198.51.100.225"}, RoutePass, "route_none", Hop{}, 0, nil},
		{"unreachable ipv6", way{dst: "2001:db8:2::1"}, RoutePass, "route_none", Hop{}, 0, nil},
		{"no route", way{dst: "8.8.8.8"}, RoutePass, "route_none", Hop{}, 0, nil},
		{"no neighbour", way{dst: "10.78.2.77"}, RouteWait, "route_no_neighbor", Hop{netip.MustParseAddr("10.78.2.77"), g.ifindex[1]}, 0, nil},
		{"no neighbour ipv6", way{dst: "fd78:2::77"}, RouteWait, "route_no_neighbor", Hop{netip.MustParseAddr("fd78:2::77"), g.ifindex[1]}, 0, nil},
		{"by no port", way{dst: "10.78.3.2"}, RouteKernel, "route_off_port", Hop{}, 0, nil},
		{"rule", way{dst: "192.0.2.1", tos: 0x10}, RouteDone, "", server4, 1400, g.server},
		{"another's frame", way{dstMAC: other}, RoutePass, "route_frame", Hop{}, 0, nil},
		{"broadcast frame", way{dstMAC: net.HardwareAddr{255, 255, 255, 255, 255, 255}}, RoutePass, "route_frame", Hop{}, 0, nil},
		{"VLAN tag", way{vlan: true}, RoutePass, "route_frame", Hop{}, 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g.t = t
			frame := g.frame(tt.way, "S")
			before := bytes.Clone(frame)
			a := g.ask(0, frame)
			if a.State != tt.state || a.Hop != tt.hop || tt.state != RouteDone && a.Reason.String() != tt.reason {
				t.Fatalf("got %+v (%s), want state %d, %s, hop %v", a, a.Reason, tt.state, tt.reason, tt.hop)
			}
			if tt.state != RouteDone {
				if !bytes.Equal(frame, before) {
					t.Errorf("changed from\n%x to\n%x", before, frame)
				}
				return
			}
			if a.MTU != tt.mtu {
				t.Errorf("MTU %d, want %d", a.MTU, tt.mtu)
			}
			from := g.mac[a.Port]
			p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
			e := p.LinkLayer().(*layers.Ethernet)
			if !bytes.Equal(e.DstMAC, tt.mac) || !bytes.Equal(e.SrcMAC, from) {
				t.Errorf("from %s to %s, want from %s to %s", e.SrcMAC, e.DstMAC, from, tt.mac)
			}
			want := g.frame(tt.way, "S")
			copy(want, frame[:12])
			if want[12] == 0x08 {
				want[22]--
				want[24], want[25] = 0, 0
				sum := headerSum(want[14:34])
				want[24], want[25] = byte(sum>>8), byte(sum)
			} else {
				want[21]--
			}
			if !bytes.Equal(frame, want) {
				t.Errorf("got\n%x, want\n%x", frame, want)
			}
		})
	}
}

func headerSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// TestTTLChecksum decrements every TTL under every header checksum that matters.
func TestTTLChecksum(t *testing.T) {
	g := newGateway(t, nil)
	for ttl := 2; ttl < 256; ttl += 23 {
		for id := 0; id < 0x10000; id += 0x0eef {
			frame := g.frame(way{ttl: uint8(ttl)}, "S")
			frame[18], frame[19], frame[24], frame[25] = byte(id>>8), byte(id), 0, 0
			sum := headerSum(frame[14:34])
			frame[24], frame[25] = byte(sum>>8), byte(sum)
			if a := g.ask(0, frame); a.State != RouteDone {
				t.Fatalf("%+v", a)
			}
			if int(frame[22]) != ttl-1 || headerSum(frame[14:34]) != 0 {
				t.Fatalf("TTL %d, identification %#x: TTL %d, header sums to %#x", ttl, id, frame[22], headerSum(frame[14:34]))
			}
		}
	}
}

// TestSteerRouted puts packets through the program: where they go, what is counted, and what user space gets to know.
func TestSteerRouted(t *testing.T) {
	g := newGateway(t, nil)
	step := func(name string, port int, frame []byte, want fate, state RouteState, out uint8) {
		t.Helper()
		r := &rig{Steerer: g.Steerer, t: t}
		before := r.counts()
		action, data := g.steer(port, frame)
		var got []fate
		for k, c := range r.counts() {
			if c != before[k] {
				got = append(got, fate{c.Verdict, c.Reason.String()})
			}
		}
		if len(got) != 1 || got[0] != want {
			t.Fatalf("%s: counted as %v, want %v", name, got, want)
		}
		if want.verdict != VerdictSocket {
			if wantAction := map[Verdict]uint32{VerdictPass: 2, VerdictPeer: 4}[want.verdict]; action != wantAction {
				t.Errorf("%s: action %d, want %d", name, action, wantAction)
			}
			return
		}
		if len(data) != len(frame)+RouteMetaSize+MetaSize {
			t.Fatalf("%s: %d bytes of metadata", name, len(data)-len(frame))
		}
		m, ok := ReadMeta(data[RouteMetaSize:])
		if !ok || m.Chain != 7 || data[0] != 0x54 || data[1] != 0x50 || RouteState(data[2]) != state || state == RouteDone && data[3] != out {
			t.Errorf("%s: chain %d (%t), metadata %x, want state %d and port %d", name, m.Chain, ok, data[:RouteMetaSize], state, out)
		}
		if changed := !bytes.Equal(data[16:], frame); changed != (state == RouteDone) {
			t.Errorf("%s: changed: %t", name, changed)
		}
	}
	socket := func(reason string) fate { return fate{VerdictSocket, reason} }
	pass := func(reason string) fate { return fate{VerdictPass, reason} }

	step("last hop", 0, g.frame(way{ttl: 1}, "S"), pass("route_ttl"), 0, 0)
	step("no route", 0, g.frame(way{dst: "8.8.8.8"}, "S"), pass("route_none"), 0, 0)
	n := 0
	if err := g.Flows(func(FlowEntry) bool { n++; return true }); err != nil || n != 0 {
		t.Fatalf("%d flows, %v", n, err)
	}
	step("no neighbour", 0, g.frame(way{dst: "10.78.2.77"}, "S"), socket("route_no_neighbor"), RouteWait, 0)
	step("and again", 0, g.frame(way{dst: "10.78.2.77"}, "S"), socket("route_no_neighbor"), RouteWait, 0)
	// Its flow is known: answers to what user space sends on go to the chain.
	back := g.frame(way{dst: "10.78.1.2", src: "10.78.2.77", dstMAC: g.mac[1]}, "A")
	back[34], back[35], back[36], back[37] = back[36], back[37], back[34], back[35]
	step("the answer", 1, back, socket("flow_known"), RouteDone, 0)
	step("new", 0, g.frame(way{}, "S"), socket("flow_new"), RouteDone, 1)
	step("known", 0, g.frame(way{}, "A"), socket("flow_known"), RouteDone, 1)
	step("too big", 0, g.frame(way{size: 1361}, "A"), pass("route_too_big"), 0, 0)
	step("to be fragmented", 0, g.frame(way{size: 1361, noDF: true}, "A"), socket("route_by_kernel"), RouteKernel, 0)
	step("by no port", 0, g.frame(way{dst: "10.78.3.2"}, "S"), socket("route_off_port"), RouteKernel, 0)
	step("ARP is the kernel's", 0, build(t, eth(layers.EthernetTypeARP), payload(46)), pass("not_ip"), 0, 0)
	step("midstream", 0, g.frame(way{dst: "10.78.2.5"}, "A"), pass("midstream"), 0, 0)

	key := FlowKey{Src: g.ClientIP4, Dst: g.ServerIP4, SrcPort: 40000, DstPort: 80, Proto: 6}
	if n, err := g.Offload([]OffloadFlow{{Key: key}}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	step("offloaded", 0, g.frame(way{}, "A"), fate{VerdictPeer, "flow_offloaded"}, 0, 0)
	step("offloaded, last hop", 0, g.frame(way{ttl: 1}, "A"), pass("route_ttl"), 0, 0)
	g.ip("neigh del 10.78.2.2 dev eth2")
	step("offloaded, no neighbour", 0, g.frame(way{}, "A"), pass("route_no_neighbor"), 0, 0)
	if err := g.Gateway.Sysctl("net/ipv4/conf/eth1/forwarding", "0"); err != nil {
		t.Fatal(err)
	}
	step("forwarding is off", 0, g.frame(way{}, "A"), pass("route_disabled"), 0, 0)

	var hops []string
	if err := g.Hops(func(h Hop, used time.Duration) bool {
		if age := Now() - used; age < 0 || age > time.Minute {
			t.Errorf("%v was used %v ago", h, age)
		}
		hops = append(hops, h.Addr.String())
		return false
	}); err != nil || len(hops) != 2 {
		t.Errorf("next hops %v, %v", hops, err)
	}
	if err := g.Hops(func(h Hop, _ time.Duration) bool { t.Errorf("%v was not forgotten", h); return true }); err != nil {
		t.Error(err)
	}
}

// TestInject gives packets to the kernel: it routes them, and says what is wrong with them, as if they had come in by the port.
func TestInject(t *testing.T) {
	g := newGateway(t, nil)
	tap, err := g.Server.Tap(g.ServerIf, 64)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	for _, mode := range []Mode{ModeNative, ModeGeneric} {
		g.opts.Ports[0].Mode = mode
		if err := g.Gateway.Do(func() error { _, err := g.Attach(0); return err }); err != nil {
			t.Fatal(err)
		}
		frame := g.frame(way{ttl: 9 + uint8(mode)}, "S")
		if err := g.Gateway.Do(func() error { return g.Inject(0, frame) }); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(5 * time.Second)
		for found := false; !found; {
			for _, f := range tap.Frames() {
				if len(f.Data) >= 54 && bytes.Equal(f.Data[26:30], frame[26:30]) && f.Data[22] == 8+uint8(mode) {
					found = true
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the server has not got it: %v", mode, tap.Frames())
			}
		}
		if err := g.Gateway.Do(func() error { l := g.ports[0].link; g.ports[0].link = nil; return detach(l) }); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkRoute is BenchmarkSteer in router mode: the look-up in the kernel's tables, and the change, on top.
func BenchmarkRoute(b *testing.B) {
	for _, offload := range []bool{false, true} {
		for _, dst := range []string{"", "fd78:2::2"} {
			name := map[bool]string{false: "hit/tcp", true: "offloaded/tcp"}[offload] + map[bool]string{false: "4", true: "6"}[dst != ""]
			b.Run(name, func(b *testing.B) {
				g := newGateway(b, nil)
				key := FlowKey{Src: g.ClientIP4, Dst: g.ServerIP4, SrcPort: 40000, DstPort: 80, Proto: 6}
				if dst != "" {
					key.Src, key.Dst = g.ClientIP6, g.ServerIP6
				}
				g.steer(0, g.frame(way{dst: dst}, "S"))
				if n, err := g.Offload([]OffloadFlow{{Key: key}}); offload && (n != 1 || err != nil) {
					b.Fatal(n, err)
				} else if !offload {
					g.steer(0, g.frame(way{dst: dst}, "S"))
				}
				// The packet is changed in each round: it is to remain the port's, until its TTL is used up.
				if err := g.SetMAC(0, g.server); err != nil {
					b.Fatal(err)
				}
				frame := g.frame(way{dst: dst, ttl: 255, dstMAC: g.server}, "A")
				const rounds = 250
				var took time.Duration
				runs := 0
				b.ResetTimer()
				err := g.Gateway.Do(func() error {
					for ; runs == 0 || runs*rounds < b.N; runs++ {
						_, d, err := g.ports[0].prog.Benchmark(frame, rounds, nil)
						if err != nil {
							return err
						}
						took += d
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(took)/float64(runs), "ns/packet")
				for _, c := range (&rig{Steerer: g.Steerer, t: b}).counts() {
					if c.Verdict == VerdictPass {
						b.Errorf("%+v %s", c, c.Reason)
					}
				}
			})
		}
	}
}
