package lab

import (
	"fmt"
	"net"
	"net/netip"
)

// Inline is the bump in the wire: client and server are in one subnet and do not
// know of what is between them.
//
//	client                     appliance                       server
//	eth0 ------------------ eth1 [lan]  eth2 [wan] ------------- eth0
//	10.77.0.1/24             no addresses, no IPv6        10.77.0.2/24
//	fd77::1/64                                              fd77::2/64
//
// The kernel of the appliance namespace forwards nothing: without a program that
// carries frames from eth1 to eth2 (or InlineOptions.Bridge) the ends are apart. IPv6
// addresses are the zero Addr if the kernel has no IPv6.
type Inline struct {
	Client, Appliance, Server *NS
	ClientIP4, ClientIP6      netip.Addr
	ServerIP4, ServerIP6      netip.Addr
	ClientIf, ServerIf        string // "eth0"
	LANIf, WANIf              string // the appliance's "eth1" and "eth2"
	ClientMAC, ServerMAC      net.HardwareAddr
}

// InlineOptions change an Inline; the zero value is the one drawn above it.
type InlineOptions struct {
	Veth VethOptions // for both pairs
	// StaticNeigh sets the ends' neighbour entries, so that they need no ARP and no
	// neighbour discovery.
	StaticNeigh bool
	// Bridge joins eth1 and eth2 by a kernel bridge "br0".
	Bridge bool
	// Addrs4 and Addrs6 are more addresses for the client, from 10.77.0.3 and fd77::3
	// on, up to 250 of each.
	Addrs4, Addrs6 int
}

// Inline builds the topology.
func (l *Lab) Inline(o InlineOptions) (*Inline, error) {
	if max(o.Addrs4, o.Addrs6) > 250 {
		return nil, fmt.Errorf("build inline topology: %d and %d more addresses, want at most 250", o.Addrs4, o.Addrs6)
	}
	t := &Inline{
		ClientIf: "eth0", ServerIf: "eth0", LANIf: "eth1", WANIf: "eth2",
		ClientIP4: netip.MustParseAddr("10.77.0.1"), ServerIP4: netip.MustParseAddr("10.77.0.2"),
		ClientIP6: netip.MustParseAddr("fd77::1"), ServerIP6: netip.MustParseAddr("fd77::2"),
		ClientMAC: macOf(77, 1), ServerMAC: macOf(77, 2),
	}
	if err := l.roleSpaces(map[string]**NS{"client": &t.Client, "appliance": &t.Appliance, "server": &t.Server}); err != nil {
		return nil, err
	}
	if !HaveIPv6() {
		t.ClientIP6, t.ServerIP6, o.Addrs6 = netip.Addr{}, netip.Addr{}, 0
	}
	client, server := prefixes(t.ClientIP4, t.ClientIP6), prefixes(t.ServerIP4, t.ServerIP6)
	for ip, i := t.ServerIP4.Next(), 0; i < o.Addrs4; ip, i = ip.Next(), i+1 {
		client = append(client, prefixes(ip)...)
	}
	for ip, i := t.ServerIP6.Next(), 0; i < o.Addrs6; ip, i = ip.Next(), i+1 {
		client = append(client, prefixes(ip)...)
	}
	err := l.Veth(
		End{NS: t.Client, Name: t.ClientIf, MAC: t.ClientMAC, Addrs: client},
		End{NS: t.Appliance, Name: t.LANIf, MAC: macOf(77, 0x11), NoIPv6: true}, o.Veth)
	if err != nil {
		return nil, err
	}
	err = l.Veth(
		End{NS: t.Appliance, Name: t.WANIf, MAC: macOf(77, 0x12), NoIPv6: true},
		End{NS: t.Server, Name: t.ServerIf, MAC: t.ServerMAC, Addrs: server}, o.Veth)
	if err != nil {
		return nil, err
	}
	if o.StaticNeigh {
		for _, p := range client {
			if err := t.Server.AddNeigh(t.ServerIf, p.Addr(), t.ClientMAC); err != nil {
				return nil, err
			}
		}
		for _, p := range server {
			if err := t.Client.AddNeigh(t.ClientIf, p.Addr(), t.ServerMAC); err != nil {
				return nil, err
			}
		}
	}
	if o.Bridge {
		if err := t.Appliance.Bridge("br0", t.LANIf, t.WANIf); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Routed has a router between two subnets: the place of a kernel proxy (TPROXY) or
// of plain forwarding, which the benchmarks compare with.
//
//	client                        gateway                         server
//	eth0 ----------------- eth1              eth2 ----------------- eth0
//	10.78.1.2/24           10.78.1.1/24      10.78.2.1/24   10.78.2.2/24
//	fd78:1::2/64           fd78:1::1/64      fd78:2::1/64   fd78:2::2/64
//	default via eth1       ip_forward = 1                default via eth2
type Routed struct {
	Client, Gateway, Server *NS
	ClientIP4, ClientIP6    netip.Addr
	ServerIP4, ServerIP6    netip.Addr
	ClientIf, ServerIf      string // "eth0"
	LANIf, WANIf            string // the gateway's "eth1" and "eth2"
	LANIP4, LANIP6          netip.Addr
	WANIP4, WANIP6          netip.Addr
}

// RoutedOptions change a Routed; the zero value is the one drawn above it.
type RoutedOptions struct {
	Veth VethOptions // for both pairs
	// NoForward leaves the gateway's ip_forward off.
	NoForward bool
}

// Routed builds the topology.
func (l *Lab) Routed(o RoutedOptions) (*Routed, error) {
	t := &Routed{
		ClientIf: "eth0", ServerIf: "eth0", LANIf: "eth1", WANIf: "eth2",
		ClientIP4: netip.MustParseAddr("10.78.1.2"), ClientIP6: netip.MustParseAddr("fd78:1::2"),
		LANIP4: netip.MustParseAddr("10.78.1.1"), LANIP6: netip.MustParseAddr("fd78:1::1"),
		WANIP4: netip.MustParseAddr("10.78.2.1"), WANIP6: netip.MustParseAddr("fd78:2::1"),
		ServerIP4: netip.MustParseAddr("10.78.2.2"), ServerIP6: netip.MustParseAddr("fd78:2::2"),
	}
	if err := l.roleSpaces(map[string]**NS{"client": &t.Client, "gateway": &t.Gateway, "server": &t.Server}); err != nil {
		return nil, err
	}
	if !HaveIPv6() {
		for _, ip := range []*netip.Addr{&t.ClientIP6, &t.LANIP6, &t.WANIP6, &t.ServerIP6} {
			*ip = netip.Addr{}
		}
	}
	err := l.Veth(
		End{NS: t.Client, Name: t.ClientIf, MAC: macOf(78, 1), Addrs: prefixes(t.ClientIP4, t.ClientIP6)},
		End{NS: t.Gateway, Name: t.LANIf, MAC: macOf(78, 0x11), Addrs: prefixes(t.LANIP4, t.LANIP6)}, o.Veth)
	if err != nil {
		return nil, err
	}
	err = l.Veth(
		End{NS: t.Gateway, Name: t.WANIf, MAC: macOf(78, 0x12), Addrs: prefixes(t.WANIP4, t.WANIP6)},
		End{NS: t.Server, Name: t.ServerIf, MAC: macOf(78, 2), Addrs: prefixes(t.ServerIP4, t.ServerIP6)}, o.Veth)
	if err != nil {
		return nil, err
	}
	for _, r := range []struct {
		ns  *NS
		via netip.Addr
	}{{t.Client, t.LANIP4}, {t.Client, t.LANIP6}, {t.Server, t.WANIP4}, {t.Server, t.WANIP6}} {
		if !r.via.IsValid() {
			continue
		}
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.via.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if err := r.ns.AddRoute(all, r.via, "eth0"); err != nil {
			return nil, err
		}
	}
	if o.NoForward {
		return t, nil
	}
	if err := t.Gateway.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		return nil, err
	}
	if HaveIPv6() {
		if err := t.Gateway.Sysctl("net/ipv6/conf/all/forwarding", "1"); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// roleSpaces creates a namespace for each role.
func (l *Lab) roleSpaces(roles map[string]**NS) error {
	for role, at := range roles {
		n, err := l.NS(role)
		if err != nil {
			return err
		}
		*at = n
	}
	return nil
}

// prefixes returns those of the addresses that are valid, in subnets of /24 or /64.
func prefixes(ips ...netip.Addr) []netip.Prefix {
	var ps []netip.Prefix
	for _, ip := range ips {
		if ip.Is4() {
			ps = append(ps, netip.PrefixFrom(ip, 24))
		} else if ip.Is6() {
			ps = append(ps, netip.PrefixFrom(ip, 64))
		}
	}
	return ps
}

// macOf returns a locally administered address that shows in a capture whose it is:
// the network's number, then the host.
func macOf(network, host byte) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0, 0, 0, network, host}
}
