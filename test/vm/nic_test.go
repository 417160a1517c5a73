package vm

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"penstock/internal/lab"
)

// nic is a network interface of a machine: the other end of a tap.
type nic struct {
	queues []*os.File
	socket string // or, instead of a tap, a Unix socket that packets go to as a stream
	mac    string
	extra  string // more of QEMU's -device options
}

// host makes a namespace whose eth0 is a tap with so many queues, and returns
// the end that a machine takes. The kernel's own stack sends and receives there.
func host(t *testing.T, l *lab.Lab, role, mac string, addr netip.Prefix, queues int) (*lab.NS, nic) {
	t.Helper()
	ns, err := l.NS(role)
	if err != nil {
		t.Fatal(err)
	}
	n := nic{mac: mac}
	err = ns.Do(func() error {
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if queues > 1 {
			flags |= unix.IFF_MULTI_QUEUE
		}
		for range queues {
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open tun: %w", err)
			}
			f := os.NewFile(uintptr(fd), "tap")
			t.Cleanup(func() { f.Close() })
			n.queues = append(n.queues, f)
			request, err := unix.NewIfreq("eth0")
			if err != nil {
				return err
			}
			request.SetUint16(flags)
			if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
				return fmt.Errorf("make tap: %w", err)
			}
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		address := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: address}); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	if err != nil {
		t.Fatal(err)
	}
	return ns, n
}
