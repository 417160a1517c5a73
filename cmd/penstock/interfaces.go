package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"penstock/internal/config"
	"penstock/xsk"
)

// nic is what the kernel says of the interface of a port.
type nic struct {
	name    string
	ifindex int
	mtu     int
	up      bool
	driver  string // "" if the kernel does not say
	queues  []int  // as configured, checked against those that exist
	promisc bool   // we have turned it on
}

// maxXDPMTU is the largest MTU whose packets fit into one page with XDP's
// headroom: programs without multi-buffer support are refused beyond it.
const maxXDPMTU = 3506

// findNIC resolves a port's interface and queues. Every error says what to do.
func findNIC(p config.Port) (*nic, error) {
	l, err := netlink.LinkByName(p.Interface)
	if err != nil {
		var none netlink.LinkNotFoundError
		if errors.As(err, &none) {
			return nil, fmt.Errorf("port %q: interface %q does not exist; there are %s", p.Name, p.Interface, interfaceNames())
		}
		return nil, fmt.Errorf("port %q: look up interface %q: %w", p.Name, p.Interface, err)
	}
	a := l.Attrs()
	n := &nic{name: a.Name, ifindex: a.Index, mtu: a.MTU, up: a.OperState == netlink.OperUp || a.OperState == netlink.OperUnknown}
	if e, err := ethtool.NewEthtool(); err == nil {
		n.driver, _ = e.DriverName(a.Name)
		e.Close()
	}
	have := channels(a)
	if p.Queues.All {
		for q := range have {
			n.queues = append(n.queues, q)
		}
		return n, nil
	}
	for _, q := range p.Queues.List {
		if q >= have {
			return nil, fmt.Errorf("port %q: queue %d does not exist: %s has %s; change queues, or the interface: ethtool -L %s combined %d",
				p.Name, q, p.Interface, queueRange(have), p.Interface, q+1)
		}
		n.queues = append(n.queues, q)
	}
	return n, nil
}

// noAutoZeroCopy are drivers on which zero_copy = "auto" means copy mode: what XDP
// redirects into an interface that has a zero-copy socket was seen to get lost
// there (docs/nics.md).
var noAutoZeroCopy = []string{"virtio_net"}

// socketMode is how the sockets of an interface are to be bound.
func (n *nic) socketMode(zeroCopy string) xsk.Mode {
	if zeroCopy == "auto" && slices.Contains(noAutoZeroCopy, n.driver) {
		return xsk.Copy
	}
	return xskModes[zeroCopy]
}

// channels is the number of receive queues in use. The driver's channels count
// where it tells them: a NIC may have more queues than it uses.
func channels(a *netlink.LinkAttrs) int {
	have := max(a.NumRxQueues, 1)
	e, err := ethtool.NewEthtool()
	if err != nil {
		return have
	}
	defer e.Close()
	if c, err := e.GetChannels(a.Name); err == nil && c.CombinedCount+c.RxCount > 0 {
		return int(c.CombinedCount + c.RxCount)
	}
	return have
}

func queueRange(n int) string {
	if n == 1 {
		return "1 queue (0)"
	}
	return fmt.Sprintf("%d queues (0 to %d)", n, n-1)
}

func interfaceNames() string {
	links, err := netlink.LinkList()
	if err != nil {
		return "(cannot list them: " + err.Error() + ")"
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// linkState is the state of an interface as of now.
func linkState(ifindex int) (up, exists bool) {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return false, false
	}
	s := l.Attrs().OperState
	return s == netlink.OperUp || s == netlink.OperUnknown, true
}

// setPromisc lets the NIC take frames that are addressed to others, as a bump
// in the wire must.
func (n *nic) setPromisc(on bool) error {
	l, err := netlink.LinkByIndex(n.ifindex)
	if err != nil {
		return fmt.Errorf("look up interface %q: %w", n.name, err)
	}
	if on {
		if l.Attrs().Promisc > 0 {
			return nil
		}
		err = netlink.SetPromiscOn(l)
	} else {
		if !n.promisc {
			return nil
		}
		err = netlink.SetPromiscOff(l)
	}
	if err != nil {
		return fmt.Errorf("set promiscuous mode of %q: %w", n.name, err)
	}
	n.promisc = on
	return nil
}
