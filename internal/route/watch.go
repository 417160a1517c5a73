package route

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// kernelNeighbors is the neighbour table of this network namespace.
type kernelNeighbors struct{}

func (kernelNeighbors) Use(h Hop) error {
	err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: h.Ifindex, Family: family(h.Addr), IP: h.Addr.AsSlice(), Flags: netlink.NTF_USE,
	})
	if err != nil {
		return fmt.Errorf("look for neighbour %s on interface %d: %w", h.Addr, h.Ifindex, err)
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// maxKnown bounds the addresses of neighbours that are remembered.
const maxKnown = 65536

// watcher follows the kernel's tables.
type watcher struct {
	r     *Router
	known map[Hop]string // addresses on the link
}

// Watch follows the kernel's tables until ctx ends. It is set up when it
// returns.
func (r *Router) Watch(ctx context.Context, stopped func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_NEIGH, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEXTHOP)
	if err != nil {
		return fmt.Errorf("follow the kernel's routes and neighbours: %w", err)
	}
	// So that a reader notices that it is to end.
	if err := s.SetReceiveTimeout(&unix.Timeval{Usec: 200_000}); err != nil {
		s.Close()
		return fmt.Errorf("follow the kernel's routes and neighbours: %w", err)
	}
	_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) // else the default: more often everything is new
	w := &watcher{r: r, known: map[Hop]string{}}
	if err := w.readAll(); err != nil {
		s.Close()
		return err
	}
	go func() {
		defer stopped()
		defer s.Close()
		for ctx.Err() == nil {
			msgs, _, err := s.Receive()
			switch {
			case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
				continue
			case err != nil:
				if !errors.Is(err, unix.ENOBUFS) { // else news were lost: all may be new
					r.o.Log.Error("the kernel's routes and neighbours are not followed any more; restart the appliance", "err", err)
					return
				}
				r.state.Epoch.Add(1)
				if err := w.readAll(); err != nil {
					r.o.Log.Error("the kernel's neighbours are not known", "err", err)
				}
				continue
			}
			for _, m := range msgs {
				w.read(m.Header.Type, m.Data)
			}
		}
	}()
	return nil
}

// readAll takes stock.
func (w *watcher) readAll() error {
	clear(w.known)
	for i, index := range w.r.o.Ifindex {
		l, err := netlink.LinkByIndex(index)
		if err != nil {
			var gone netlink.LinkNotFoundError
			if errors.As(err, &gone) {
				continue
			}
			return fmt.Errorf("look up interface %d: %w", index, err)
		}
		w.setMAC(i, l.Attrs().HardwareAddr)
		for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := netlink.NeighList(index, f)
			if err != nil {
				return fmt.Errorf("list neighbours on interface %d: %w", index, err)
			}
			for j := range list {
				w.neighbor(&list[j], false)
			}
		}
	}
	return nil
}

func (w *watcher) setMAC(port int, mac net.HardwareAddr) {
	r := w.r
	r.mu.Lock()
	same := string(r.macs[port]) == string(mac)
	r.macs[port] = slices.Clone(mac)
	r.mu.Unlock()
	if same || len(mac) != 6 {
		return
	}
	if err := r.o.Tables.SetMAC(port, mac); err != nil {
		r.o.Log.Error("the port's address is not known to XDP", "err", err)
	}
	r.state.Epoch.Add(1)
}

func (w *watcher) read(kind uint16, data []byte) {
	switch kind {
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if n, err := netlink.NeighDeserialize(data); err == nil {
			w.neighbor(n, kind == unix.RTM_DELNEIGH)
		}
	case unix.RTM_NEWLINK:
		if l, err := netlink.LinkDeserialize(nil, data); err == nil {
			if i := slices.Index(w.r.o.Ifindex, l.Attrs().Index); i >= 0 {
				w.setMAC(i, l.Attrs().HardwareAddr)
			}
		}
	case unix.RTM_DELLINK:
	default: // routes, rules, next hops
		w.r.state.Epoch.Add(1)
	}
}

// usable are the states in which a neighbour's address holds (NUD_VALID of
// include/net/neighbour.h).
const usable = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE | netlink.NUD_PROBE | netlink.NUD_STALE | netlink.NUD_DELAY

func (w *watcher) neighbor(n *netlink.Neigh, deleted bool) {
	ip, ok := netip.AddrFromSlice(n.IP)
	if !ok || !slices.Contains(w.r.o.Ifindex, n.LinkIndex) {
		return
	}
	h := Hop{ip.Unmap(), n.LinkIndex}
	before, was := w.known[h]
	valid := !deleted && n.State&usable != 0
	switch mac := string(n.HardwareAddr); {
	case !valid && was:
		delete(w.known, h)
		w.r.state.Epoch.Add(1)
	case valid && was && mac != before:
		w.known[h] = mac
		w.r.state.Epoch.Add(1)
	case valid && !was:
		if len(w.known) >= maxKnown {
			clear(w.known)
			w.r.state.Epoch.Add(1)
		}
		w.known[h] = mac
	}
	if failed := !deleted && n.State&netlink.NUD_FAILED != 0; valid || failed {
		select {
		case w.r.news <- news{h, failed}:
		default: // it looks itself, ten times a second
		}
	}
}
