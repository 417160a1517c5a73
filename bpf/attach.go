package bpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Mode says where in the receive path the program runs.
type Mode int

const (
	ModeAuto    Mode = iota // native if the driver can, else generic
	ModeNative              // in the driver, before a socket buffer is made
	ModeGeneric             // in the network stack: any driver, several times slower
)

// String returns "auto", "native" or "generic".
func (m Mode) String() string {
	switch m {
	case ModeAuto:
		return "auto"
	case ModeNative:
		return "native"
	case ModeGeneric:
		return "generic"
	}
	return fmt.Sprintf("mode_%d", int(m))
}

// attachment is a port's program and, once attached, its link.
type attachment struct {
	prog *ebpf.Program
	link link.Link
	mode Mode
	why  error // why it is generic though native was tried
	// after: an instance before this one had left its program there.
	after bool
}

// Attach puts the program on a port's interface and returns the mode it really runs in. With ModeAuto a driver that refuses
// native XDP gets generic XDP; Fallback then says what the driver refused with.
//
// If a dead instance of the same name left its program on the interface (Options.PinRoot), that is replaced without a gap. The first
// port that is attached takes the pins over, and removes the instance's links from interfaces that are no ports any more.
// Anything else that is attached there is left alone, and the error says what it is and how to remove it. After an error
// nothing of ours is attached to the port.
//
// An interface that is down can be attached to.
func (s *Steerer) Attach(port int) (Mode, error) {
	s.work.Lock()
	defer s.work.Unlock()
	if !s.has(port) {
		return 0, fmt.Errorf("attach port: want 0 to %d, got %d", len(s.opts.Ports)-1, port)
	}
	if s.isClosed() {
		return 0, fmt.Errorf("attach %s: %w", s.portName(port), os.ErrClosed)
	}
	a := s.ports[port]
	if a.link != nil {
		return 0, fmt.Errorf("attach %s: already attached", s.portName(port))
	}
	s.mu.Lock()
	err := s.claim()
	s.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("attach %s: %w", s.portName(port), err)
	}
	err = s.attach(&a, port)
	s.mu.Lock()
	s.ports[port] = a
	s.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("attach %s: %w", s.portName(port), explainAttach(err, s.opts.Ports[port].Ifindex))
	}
	return a.mode, nil
}

// After reports whether an instance before this one had left its program on a port.
func (s *Steerer) After(port int) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.ports[port].after
}

// Fallback returns why a port is attached in generic mode though native was tried, or nil.
func (s *Steerer) Fallback(port int) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.ports[port].why
}

func (s *Steerer) attach(a *attachment, port int) error {
	if done, err := s.takeOver(a, port); done || err != nil {
		return err
	}
	l, mode, why, err := attachXDP(a.prog, s.opts.Ports[port])
	if err != nil {
		return err
	}
	if s.pinsLinks() {
		if err := l.Pin(s.linkPin(port)); err != nil {
			return errors.Join(fmt.Errorf("pin link: %w", err), detach(l))
		}
	}
	a.link, a.mode, a.why = l, mode, why
	return nil
}

// attachXDP returns the link, the mode, why the mode is not the native one that was tried, and the error.
func attachXDP(prog *ebpf.Program, p Port) (l link.Link, mode Mode, why, err error) {
	try := func(flags link.XDPAttachFlags) (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Program: prog, Interface: p.Ifindex, Flags: flags})
	}
	if p.Mode != ModeGeneric {
		if l, err = try(link.XDPDriverMode); err == nil {
			return l, ModeNative, nil, nil
		}
		if p.Mode == ModeNative || isBusy(err) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) {
			return nil, 0, nil, err
		}
		why = explainAttach(err, p.Ifindex)
	}
	if l, err = try(link.XDPGenericMode); err != nil {
		return nil, 0, nil, err
	}
	return l, ModeGeneric, why, nil
}

// isBusy: EBUSY is a program in the same mode, or another link; EEXIST is a program in the other mode.
func isBusy(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) }

// explainAttach names the cause and the mend. The kernel's own words (extack) do not come with this system call.
func explainAttach(err error, ifindex int) error {
	name := ifaceName(ifindex)
	l, lerr := netlink.LinkByIndex(ifindex)
	if lerr != nil {
		return fmt.Errorf("there is no interface with index %d in this network namespace: %w", ifindex, err)
	}
	switch {
	case isBusy(err):
		return occupied(err, l)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("no permission; %s: %w", grant, err)
	case errors.Is(err, unix.ERANGE):
		return fmt.Errorf("the MTU (%d, or that of its veth peer) is too large for native XDP (a packet must fit into one page); mend: ip link set dev %s mtu 1500, on both ends of a veth pair: %w", l.Attrs().MTU, name, err)
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%s has %d receive queues, fewer than its veth peer has transmit queues; mend: ethtool -L %s rx N: %w",
			name, l.Attrs().NumRxQueues, name, err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("the driver has no native XDP, or not with the present offloads (LRO, GRO_HW); mend: xdp = \"generic\", or: ethtool -K %s lro off rx-gro-hw off: %w", name, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("the driver refuses native XDP, often because of the MTU (%d) or the number of queues; mend: ip link set dev %s mtu 1500, or see dmesg: %w",
			l.Attrs().MTU, name, err)
	case errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("the driver has no rings or memory left for XDP; mend: ethtool -L %s combined N with a smaller N: %w", name, err)
	}
	return err
}

// xdpAttachedSKB is XDP_ATTACHED_SKB of linux/if_link.h.
const xdpAttachedSKB = 2

// linkOn finds the BPF link that holds the XDP program of an interface. Links say the index of their interface but not
// its network namespace, so that the program must be the one that is on ours.
func linkOn(ifindex int, prog uint32) (link.ID, bool) {
	var it link.Iterator
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil || info.Type != link.XDPType {
			continue
		}
		if x := info.XDP(); x != nil && int(x.Ifindex) == ifindex && uint32(info.Program) == prog {
			return info.ID, true
		}
	}
	return 0, false
}
