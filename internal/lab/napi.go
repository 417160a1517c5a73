package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Numbers of the "netdev" generic netlink family (include/uapi/linux/netdev.h).
const (
	netdevCmdNAPIGet  = 11
	netdevNAPIIfindex = 1
	netdevNAPIPID     = 4
)

// napiWait bounds the wait for the kernel to start an interface's NAPI threads.
const napiWait = 2 * time.Second

// SetThreadedNAPI moves an interface's receive work from softirq into kernel threads
// of its own, which can be measured (CPUTime) and pinned (PinThread), and returns
// their ids, one for each queue. A veth has NAPI only while it is up and GRO is on
// or an XDP program is attached; attaching or detaching one replaces the threads: ask
// NAPIThreads again.
func (n *NS) SetThreadedNAPI(name string) ([]int, error) {
	before := napiNames(name)
	if err := n.writeLinkFile(name, "threaded", "1"); err != nil {
		return nil, fmt.Errorf("set threaded NAPI of %s: %w", name, err)
	}
	deadline := time.Now().Add(napiWait)
	for {
		tids, err := n.NAPIThreads(name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
			// Before Linux 6.8 only the thread's name says whose it is, and it holds no
			// namespace: take those that are new.
			tids = slices.DeleteFunc(napiNames(name), func(tid int) bool { return slices.Contains(before, tid) })
			err = nil
		}
		if err != nil {
			return nil, err
		}
		if len(tids) > 0 {
			return tids, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("set threaded NAPI of %s in %s: no thread appeared: is the link up, with GRO on or XDP attached?", name, n.name)
		}
		time.Sleep(time.Millisecond)
	}
}

// NAPIThreads returns the ids of an interface's NAPI threads; none if its NAPI is not
// threaded. It needs Linux 6.8.
func (n *NS) NAPIThreads(name string) ([]int, error) {
	index, err := n.LinkIndex(name)
	if err != nil {
		return nil, err
	}
	var tids []int
	err = n.Do(func() error {
		family, err := netlink.GenlFamilyGet("netdev")
		if err != nil {
			return fmt.Errorf("find netlink family netdev: %w", err)
		}
		req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_DUMP)
		req.AddData(genlHeader{netdevCmdNAPIGet, uint8(family.Version)})
		req.AddData(nl.NewRtAttr(netdevNAPIIfindex, nl.Uint32Attr(uint32(index))))
		return dump(req, unix.NETLINK_GENERIC, func(msg []byte) error {
			attrs, err := nl.ParseRouteAttr(msg[nl.SizeofGenlmsg:])
			if err != nil {
				return err
			}
			for _, a := range attrs {
				if a.Attr.Type == netdevNAPIPID && len(a.Value) >= 4 {
					tids = append(tids, int(nl.NativeEndian().Uint32(a.Value)))
				}
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("find NAPI threads of %s in %s: %w", name, n.name, err)
	}
	slices.Sort(tids)
	return tids, nil
}

// dump sends a dump request from the calling thread's namespace and passes every
// answer's payload to each. The netdev family does not mark its answers NLM_F_MULTI,
// so that nl.NetlinkRequest.Execute would stop after the first.
func dump(req *nl.NetlinkRequest, protocol int, each func([]byte) error) error {
	s, err := nl.Subscribe(protocol)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer s.Close()
	limit := unix.NsecToTimeval(int64(napiWait))
	if err := s.SetReceiveTimeout(&limit); err != nil {
		return fmt.Errorf("set netlink timeout: %w", err)
	}
	if err := s.Send(req); err != nil {
		return fmt.Errorf("send dump request: %w", err)
	}
	for {
		msgs, _, err := s.Receive()
		if err != nil {
			return fmt.Errorf("receive dump: %w", err)
		}
		for _, m := range msgs {
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if len(m.Data) >= 4 {
					if code := int32(nl.NativeEndian().Uint32(m.Data)); code != 0 {
						return fmt.Errorf("dump: %w", unix.Errno(-code))
					}
				}
				return nil
			default:
				if len(m.Data) < nl.SizeofGenlmsg {
					return fmt.Errorf("receive dump: answer of %d bytes", len(m.Data))
				}
				if err := each(m.Data); err != nil {
					return fmt.Errorf("receive dump: %w", err)
				}
			}
		}
	}
}

// genlHeader is struct genlmsghdr: command, version, and two bytes that must be zero,
// which nl.Genlmsg does not see to.
type genlHeader [nl.SizeofGenlmsg]byte

func (h genlHeader) Len() int          { return len(h) }
func (h genlHeader) Serialize() []byte { return h[:] }

// napiNames returns the kernel threads on this machine that are called after an
// interface of that name, in any namespace.
func napiNames(name string) []int {
	comms, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is well formed
	var tids []int
	for _, path := range comms {
		comm, err := os.ReadFile(path)
		if err == nil && strings.HasPrefix(string(comm), "napi/"+name+"-") {
			if tid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
				tids = append(tids, tid)
			}
		}
	}
	slices.Sort(tids)
	return tids
}

// Stats are an interface's counters.
type Stats struct {
	RxPackets, RxBytes, RxErrors, RxDropped uint64
	TxPackets, TxBytes, TxErrors, TxDropped uint64
	// Driver holds what `ethtool -S` shows; for veth XDP's counters by queue, such
	// as rx_queue_0_xdp_drops.
	Driver map[string]uint64
}

// LinkStats reads an interface's counters.
func (n *NS) LinkStats(name string) (Stats, error) {
	var s Stats
	err := n.onLink(name, "read counters of", func(_ *netlink.Handle, link netlink.Link) error {
		if c := link.Attrs().Statistics; c != nil {
			s = Stats{
				RxPackets: c.RxPackets, RxBytes: c.RxBytes, RxErrors: c.RxErrors, RxDropped: c.RxDropped,
				TxPackets: c.TxPackets, TxBytes: c.TxBytes, TxErrors: c.TxErrors, TxDropped: c.TxDropped,
			}
		}
		return nil
	})
	if err != nil {
		return Stats{}, err
	}
	err = n.withEthtool(func(e *ethtool.Ethtool) (err error) {
		s.Driver, err = e.Stats(name)
		return err
	})
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // a bridge has none
		return Stats{}, fmt.Errorf("read driver counters of %s in %s: %w", name, n.name, err)
	}
	return s, nil
}
