package lab_test

import (
	"net"
	"net/netip"
	"testing"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
)

func TestTopologyAddresses(t *testing.T) {
	l := labtest.NewForTest(t)
	top, err := l.Inline(lab.InlineOptions{Addrs4: 2, Addrs6: 1, StaticNeigh: true, Bridge: true})
	if err != nil {
		t.Fatal(err)
	}
	// The extra addresses are real: a dial from each arrives from it.
	for _, c := range []struct{ from, to string }{
		{"10.77.0.3:0", "10.77.0.2:80"}, {"10.77.0.4:0", "10.77.0.2:80"}, {"[fd77::3]:0", "[fd77::2]:80"},
	} {
		ln, err := top.Server.Listen("tcp", c.to)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := top.Client.DialFrom(t.Context(), "tcp", c.from, c.to)
		if err != nil {
			t.Fatal(err)
		}
		peer, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		want := netip.MustParseAddrPort(c.from).Addr()
		if got := netip.MustParseAddrPort(peer.RemoteAddr().String()).Addr(); got != want {
			t.Errorf("server saw %s, want %s", got, want)
		}
		conn.Close()
		peer.Close()
		ln.Close()
	}
}

// TestWithoutIPv6 builds the topologies as on a kernel that has no IPv6.
func TestWithoutIPv6(t *testing.T) {
	a, b := labtest.NewForTest(t), labtest.NewForTest(t)
	lab.WithoutIPv6(t)
	inline, err := a.Inline(lab.InlineOptions{StaticNeigh: true, Bridge: true, Addrs4: 1, Addrs6: 1})
	if err != nil {
		t.Fatal(err)
	}
	routed, err := b.Routed(lab.RoutedOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range []netip.Addr{inline.ClientIP6, inline.ServerIP6, routed.ClientIP6, routed.LANIP6, routed.WANIP6, routed.ServerIP6} {
		if ip.IsValid() {
			t.Errorf("topology says %s", ip)
		}
	}
	for _, c := range []struct {
		ns   *lab.NS
		want int
	}{{inline.Client, 2}, {inline.Server, 1}, {routed.Client, 1}, {routed.Server, 1}} {
		v4, v6 := 0, 0
		err := c.ns.Do(func() error {
			ifi, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			addrs, err := ifi.Addrs()
			for _, addr := range addrs {
				ip := netip.MustParsePrefix(addr.String()).Addr()
				if ip.Is4() {
					v4++
				} else if !ip.IsLinkLocalUnicast() { // the kernel of this test has IPv6
					v6++
				}
			}
			return err
		})
		if err != nil || v4 != c.want || v6 != 0 {
			t.Errorf("%s has %d IPv4 and %d IPv6 addresses (%v), want %d and none", c.ns.Name(), v4, v6, err, c.want)
		}
	}
	exchangeTCP(t, inline.Client, inline.Server, netip.AddrPortFrom(inline.ServerIP4, 7001))
	exchangeTCP(t, routed.Client, routed.Server, netip.AddrPortFrom(routed.ServerIP4, 7001))
}

func TestTooManyAddresses(t *testing.T) {
	l := labtest.NewForTest(t)
	if _, err := l.Inline(lab.InlineOptions{Addrs4: 251}); err == nil {
		t.Error("251 more addresses in a /24: no error")
	}
}
