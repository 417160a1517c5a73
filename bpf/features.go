package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Features are what an interface's driver says it can do with XDP now (linux/netdev.h, netdev_xdp_act). Drivers change them with the
// interface's state: many take redirected frames only while they run an XDP program, a veth only while its peer has NAPI.
type Features uint64

const (
	FeatureNative   Features = 1 << 0 // runs XDP in the driver: PASS, DROP, TX, ABORTED
	FeatureRedirect Features = 1 << 1 // can redirect what it receives
	FeatureTarget   Features = 1 << 2 // takes frames redirected from another interface
	FeatureZeroCopy Features = 1 << 3 // AF_XDP without copying
	FeatureMulti    Features = 1 << 5 // packets of several buffers
)

// ErrNoFeatures says that the kernel does not tell (before Linux 6.3).
var ErrNoFeatures = errors.New("the kernel does not tell XDP features")

// Of the generic netlink family netdev (linux/netdev.h).
const (
	netdevDevGet      = 1
	netdevIfindex     = 1
	netdevXDPFeatures = 3
)

// genlHeader is struct genlmsghdr: command, version, two reserved bytes. nl.Genlmsg leaves the reserved bytes to chance, and this
// family wants them zero.
type genlHeader [4]byte

func (h genlHeader) Len() int          { return len(h) }
func (h genlHeader) Serialize() []byte { return h[:] }

// InterfaceFeatures asks the kernel about an interface of the calling thread's network namespace.
func InterfaceFeatures(ifindex int) (Features, error) {
	family, err := netlink.GenlFamilyGet("netdev")
	if errors.Is(err, unix.ENOENT) {
		return 0, ErrNoFeatures
	} else if err != nil {
		return 0, fmt.Errorf("read XDP features of %s: %w", ifaceName(ifindex), err)
	}
	req := nl.NewNetlinkRequest(int(family.ID), 0)
	req.AddData(genlHeader{netdevDevGet, 1})
	req.AddData(nl.NewRtAttr(netdevIfindex, nl.Uint32Attr(uint32(ifindex))))
	answers, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, fmt.Errorf("read XDP features of %s: %w", ifaceName(ifindex), err)
	}
	for _, a := range answers {
		attrs, err := nl.ParseRouteAttr(a[nl.SizeofGenlmsg:])
		if err != nil {
			return 0, fmt.Errorf("read XDP features of %s: %w", ifaceName(ifindex), err)
		}
		for _, attr := range attrs {
			if attr.Attr.Type == netdevXDPFeatures && len(attr.Value) >= 8 {
				return Features(binary.NativeEndian.Uint64(attr.Value)), nil
			}
		}
	}
	return 0, ErrNoFeatures
}

// CheckPeers returns an error for each attached port whose packets cannot reach its peer: a driver that takes no redirected frames
// drops them all, and nothing but a tracepoint tells. Call it when all ports are attached, since an interface may take frames only
// with a program of its own. Generic mode needs no driver, and a kernel that does not tell is believed.
func (s *Steerer) CheckPeers() error {
	if s.opts.Default == DefaultPass {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var errs []error
	for i := range s.ports {
		if s.ports[i].link == nil || s.ports[i].mode != ModeNative {
			continue
		}
		to := i // router mode: any port may be a target
		if s.opts.Default == DefaultBridge {
			to = i ^ 1
		}
		peer := s.opts.Ports[to]
		f, err := InterfaceFeatures(peer.Ifindex)
		switch {
		case errors.Is(err, ErrNoFeatures):
		case err != nil:
			errs = append(errs, err)
		case f&FeatureTarget == 0:
			errs = append(errs, fmt.Errorf("redirect packets of %s to %s: it takes no redirected frames, they are lost; "+
				"mend: for a veth, %s; else xdp = \"generic\" for %s", s.portName(i), s.portName(to), NoTargetMend, s.opts.Ports[i].Name))
		}
	}
	return errors.Join(errs...)
}
