package main

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"

	"penstock/internal/doctor"
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

// nicOf takes from what was seen of an interface what an appliance works with.
func nicOf(i *doctor.Interface) *nic {
	return &nic{name: i.Name, ifindex: i.Ifindex, mtu: i.MTU, up: i.Up, driver: i.Driver, queues: i.Queues}
}

// noAutoZeroCopy are drivers on which zero_copy = "auto" means copy mode. Of
// virtio_net's device there are many, and zero-copy has run on that of QEMU only
// (docs/nics.md).
var noAutoZeroCopy = []string{"virtio_net"}

// socketMode is how the sockets of an interface are to be bound.
func (n *nic) socketMode(zeroCopy string) xsk.Mode {
	if zeroCopy == "auto" && slices.Contains(noAutoZeroCopy, n.driver) {
		return xsk.Copy
	}
	return xskModes[zeroCopy]
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
