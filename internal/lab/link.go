package lab

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkReadyWait bounds the wait for both ends of a pair to carry traffic.
const linkReadyWait = 5 * time.Second

// End is one end of a veth pair.
type End struct {
	NS    *NS
	Name  string           // interface name, at most 15 bytes; unique within NS only
	MAC   net.HardwareAddr // nil: the kernel chooses
	Addrs []netip.Prefix   // addresses with their prefix lengths, IPv4 and IPv6
	// Offloads are set on top of what VethOptions says, names as for SetOffload.
	Offloads map[string]bool
	// NoIPv6 turns IPv6 off on this end, so that it sends nothing by itself.
	NoIPv6 bool
}

// VethOptions describe both ends of a pair. The zero value is a wire as a NIC would
// see it.
type VethOptions struct {
	Queues int // RX and TX queues of each end; 0: one
	MTU    int // bytes; 0: 1500
	// KernelOffloads leaves the offloads as the kernel creates them: TCP crosses the
	// pair as packets of up to 64 KiB with checksums never computed. By default
	// TX checksums, TSO and GSO are off and GRO is on, at both ends: XDP sees real checksums and
	// real sizes, and redirected frames arrive, because GRO turns on the
	// receiver's NAPI (without it veth drops them silently).
	KernelOffloads bool
	// NoMerge keeps GRO on for its NAPI but never lets it merge packets: what a tap
	// reads on the receiving side are then the frames of the wire.
	NoMerge bool
	// Backpressure makes a sender wait while the other end's ring (256 frames) is full,
	// instead of dropping: each end gets a pfifo queue. It holds for local sockets, kernel
	// forwarding and AF_XDP transmission, not for XDP redirects. It needs Linux
	// 6.16, whose stable series stalled such a link at times until 6.17.9.
	Backpressure bool
}

// Veth joins two namespaces (or one with itself) by a veth pair, gives both ends
// their addresses, and returns when both are up and usable.
func (l *Lab) Veth(a, b End, o VethOptions) error {
	if err := l.veth(a, b, o); err != nil {
		return fmt.Errorf("create veth %s in %s to %s in %s: %w", a.Name, a.NS.name, b.Name, b.NS.name, err)
	}
	return nil
}

func (l *Lab) veth(a, b End, o VethOptions) error {
	queues, mtu := max(o.Queues, 1), o.MTU
	if mtu == 0 {
		mtu = 1500
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = a.Name, a.MAC, mtu
	attrs.NumTxQueues, attrs.NumRxQueues = queues, queues

	// Both ends are born where they live, so their names clash with nothing else on
	// the machine and the namespaces' default sysctls hold for them.
	peer, err := b.NS.handle()
	if err != nil {
		return err
	}
	defer peer.Close()
	err = a.NS.withNetlink(func(nl *netlink.Handle) error {
		return nl.LinkAdd(&netlink.Veth{
			LinkAttrs: attrs, PeerName: b.Name, PeerHardwareAddr: b.MAC,
			PeerNumTxQueues: uint32(queues), PeerNumRxQueues: uint32(queues), PeerMTU: uint32(mtu),
			PeerNamespace: netlink.NsFd(peer.Fd()),
		})
	})
	if err != nil {
		return err
	}
	// Both ends are configured before either is up: a veth learns whether it can send
	// redirected frames (its peer has NAPI) when it comes up, not when the peer's GRO is
	// turned on while that is down (drivers/net/veth.c, veth_set_features).
	for _, end := range []End{a, b} {
		if err := end.configure(o); err != nil {
			return err
		}
	}
	for _, end := range []End{a, b} {
		if err := end.NS.SetLink(end.Name, true); err != nil {
			return err
		}
	}
	// Addresses come after both ends are up: an IPv6 address that is added while the
	// carrier is down waits for a delayed link event.
	for _, end := range []End{a, b} {
		if err := end.NS.waitCarrier(end.Name); err != nil {
			return err
		}
		for _, p := range end.Addrs {
			if err := end.NS.AddAddr(end.Name, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// configure sets an end's offloads and queue.
func (e End) configure(o VethOptions) error {
	if e.NoIPv6 {
		if err := e.NS.disableIPv6(e.Name); err != nil {
			return err
		}
	}
	features := map[string]bool{}
	if !o.KernelOffloads {
		features = map[string]bool{"tx": false, "tso": false, "gso": false, "gro": true}
	}
	for name, on := range e.Offloads {
		features[name] = on
	}
	if len(features) > 0 {
		if err := e.NS.SetOffload(e.Name, features); err != nil {
			return err
		}
	}
	if o.NoMerge {
		if err := e.NS.setGROMax(e.Name, 1); err != nil {
			return err
		}
	}
	if o.Backpressure {
		return e.NS.addFIFO(e.Name)
	}
	return nil
}

// addFIFO gives an interface a queue; a veth has none by default and drops what its
// peer cannot take.
func (n *NS) addFIFO(name string) error {
	return n.onLink(name, "add queue to", func(nl *netlink.Handle, link netlink.Link) error {
		return nl.QdiscReplace(&netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			QdiscType:  "pfifo",
		})
	})
}

// Bridge puts ports behind a new kernel bridge that is up: what the appliance is
// compared with, and what joins the ends when it is not running.
func (n *NS) Bridge(name string, ports ...string) error {
	err := n.withNetlink(func(nl *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		off := false
		br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}
		if err := nl.LinkAdd(br); err != nil {
			return err
		}
		for _, p := range ports {
			link, err := nl.LinkByName(p)
			if err != nil {
				return fmt.Errorf("find port %s: %w", p, err)
			}
			if err := nl.LinkSetMaster(link, br); err != nil {
				return fmt.Errorf("add port %s: %w", p, err)
			}
		}
		return nil
	})
	if err == nil {
		err = n.disableIPv6(name)
	}
	if err == nil {
		err = n.SetLink(name, true)
	}
	if err != nil {
		return fmt.Errorf("create bridge %s in %s: %w", name, n.name, err)
	}
	return nil
}

// disableIPv6 makes an interface silent: no link-local address, no reports.
func (n *NS) disableIPv6(name string) error {
	if !HaveIPv6() {
		return nil
	}
	return n.Sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1")
}

// SetLink sets an interface up or down.
func (n *NS) SetLink(name string, up bool) error {
	return n.onLink(name, "set link", func(nl *netlink.Handle, link netlink.Link) error {
		if up {
			return nl.LinkSetUp(link)
		}
		return nl.LinkSetDown(link)
	})
}

// SetMTU sets an interface's MTU in bytes.
func (n *NS) SetMTU(name string, mtu int) error {
	return n.onLink(name, "set mtu of", func(nl *netlink.Handle, link netlink.Link) error {
		return nl.LinkSetMTU(link, mtu)
	})
}

// setGROMax bounds what GRO may merge a packet to, in bytes, for both families.
func (n *NS) setGROMax(name string, size int) error {
	return n.onLink(name, "set gro_max_size of", func(nl *netlink.Handle, link netlink.Link) error {
		if err := nl.LinkSetGROMaxSize(link, size); err != nil {
			return err
		}
		return nl.LinkSetGROIPv4MaxSize(link, size)
	})
}

// AddAddr gives an interface an address that is usable at once.
func (n *NS) AddAddr(name string, p netip.Prefix) error {
	return n.onLink(name, "add address to", func(nl *netlink.Handle, link netlink.Link) error {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := nl.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		return nil
	})
}

// AddRoute routes dst over interface name. An invalid via means that dst is on the
// link itself.
func (n *NS) AddRoute(dst netip.Prefix, via netip.Addr, name string) error {
	return n.onLink(name, "add route over", func(nl *netlink.Handle, link netlink.Link) error {
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst)}
		if via.IsValid() {
			r.Gw = via.AsSlice()
		} else {
			r.Scope = netlink.SCOPE_LINK
		}
		if err := nl.RouteAdd(r); err != nil {
			return fmt.Errorf("%s via %s: %w", dst, via, err)
		}
		return nil
	})
}

// AddNeigh sets a permanent neighbour: ip is reached over interface name at mac,
// without ARP or neighbour discovery.
func (n *NS) AddNeigh(name string, ip netip.Addr, mac net.HardwareAddr) error {
	return n.onLink(name, "add neighbour to", func(nl *netlink.Handle, link netlink.Link) error {
		family := netlink.FAMILY_V4
		if ip.Is6() {
			family = netlink.FAMILY_V6
		}
		err := nl.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT,
			IP: ip.AsSlice(), HardwareAddr: mac,
		})
		if err != nil {
			return fmt.Errorf("%s at %s: %w", ip, mac, err)
		}
		return nil
	})
}

// LinkIndex returns an interface's index within the namespace.
func (n *NS) LinkIndex(name string) (int, error) {
	var index int
	err := n.onLink(name, "read", func(_ *netlink.Handle, link netlink.Link) error {
		index = link.Attrs().Index
		return nil
	})
	return index, err
}

// MAC returns an interface's Ethernet address.
func (n *NS) MAC(name string) (net.HardwareAddr, error) {
	var mac net.HardwareAddr
	err := n.onLink(name, "read", func(_ *netlink.Handle, link netlink.Link) error {
		mac = link.Attrs().HardwareAddr
		return nil
	})
	return mac, err
}

// waitCarrier returns when the interface is up at both ends.
func (n *NS) waitCarrier(name string) error {
	deadline := time.Now().Add(linkReadyWait)
	for {
		var state netlink.LinkOperState
		err := n.onLink(name, "read", func(_ *netlink.Handle, link netlink.Link) error {
			state = link.Attrs().OperState
			return nil
		})
		if err != nil || state == netlink.OperUp {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for carrier on %s in %s: still %s after %v", name, n.name, state, linkReadyWait)
		}
		time.Sleep(time.Millisecond)
	}
}

func (n *NS) onLink(name, verb string, fn func(*netlink.Handle, netlink.Link) error) error {
	err := n.withNetlink(func(nl *netlink.Handle) error {
		link, err := nl.LinkByName(name)
		if err != nil {
			return err
		}
		return fn(nl, link)
	})
	if err != nil {
		return fmt.Errorf("%s %s in %s: %w", verb, name, n.name, err)
	}
	return nil
}

// withNetlink runs fn with the namespace's netlink socket, which is not closed
// meanwhile.
func (n *NS) withNetlink(fn func(*netlink.Handle) error) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.file == nil {
		return errClosed(n.lab)
	}
	return fn(n.nl)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
