package doctor

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"penstock/bpf"
	"penstock/internal/config"
)

// Interface is what the kernel says of the interface of a port.
type Interface struct {
	Port   config.Port
	Err    error // why it cannot be looked at
	Exists bool

	Name         string
	Ifindex, MTU int
	AdminUp, Up  bool
	Promisc      int // how many want it
	Master       string
	Kind         string // "veth", "device", ...
	Driver       string // "" if the kernel does not say
	Channels     int    // receive queues in use
	MaxChannels  int    // 0: not told
	Split        bool   // its channels are rx and tx ones, not combined
	Queues       []int  // as configured; none if one of them does not exist

	// What follows is not looked at for a start.

	Addresses    []string
	Speed        int // Mbit/s; 0: not told
	HalfDuplex   bool
	RingRx       int // frames; 0: not told
	RingRxMax    int
	Offloads     map[string]bool // those that matter, if the driver has them
	Fixed        map[string]bool // those that cannot be changed
	XDPFeatures  *bpf.Features
	Occupant     *bpf.Occupant
	OccupantPort bool // the occupant is pinned by the appliance's own name
	NUMA         int  // node; -1: none or not told
	IRQCPUs      []string
	RSS          *RSS
}

// offloadNames are the features of ethtool that matter to XDP.
var offloadNames = []string{"rx-lro", "rx-gro-hw", "rx-vlan-hw-parse", "rx-checksum"}

// lookAt sees what a start needs.
func lookAt(p config.Port) *Interface {
	i := &Interface{Port: p, Name: p.Interface, NUMA: -1}
	l, err := netlink.LinkByName(p.Interface)
	if err != nil {
		var none netlink.LinkNotFoundError
		if !errors.As(err, &none) {
			i.Err = fmt.Errorf("look up interface %q: %w", p.Interface, err)
		}
		return i
	}
	a := l.Attrs()
	i.Exists, i.Name, i.Ifindex, i.MTU, i.Kind = true, a.Name, a.Index, a.MTU, l.Type()
	i.AdminUp = a.RawFlags&1 != 0 // IFF_UP
	i.Up = a.OperState == netlink.OperUp || a.OperState == netlink.OperUnknown
	i.Promisc = a.Promisc
	if a.MasterIndex != 0 {
		if m, err := netlink.LinkByIndex(a.MasterIndex); err == nil {
			i.Master = m.Attrs().Name
		}
	}
	// The driver's channels count where it tells them: a NIC may have more
	// queues than it uses.
	i.Channels = max(a.NumRxQueues, 1)
	if e, err := ethtool.NewEthtool(); err == nil {
		i.Driver, _ = e.DriverName(a.Name)
		if c, err := e.GetChannels(a.Name); err == nil && c.CombinedCount+c.RxCount > 0 {
			i.Channels = int(c.CombinedCount + c.RxCount)
			i.MaxChannels = int(max(c.MaxCombined, c.MaxRx))
			i.Split = c.CombinedCount == 0
		}
		e.Close()
	}
	if p.Queues.All {
		for q := range i.Channels {
			i.Queues = append(i.Queues, q)
		}
	} else if !slices.ContainsFunc(p.Queues.List, func(q int) bool { return q >= i.Channels }) {
		i.Queues = slices.Clone(p.Queues.List)
	}
	return i
}

func (i *Interface) lookDeeper() {
	if !i.Exists {
		return
	}
	if l, err := netlink.LinkByIndex(i.Ifindex); err == nil {
		if list, err := netlink.AddrList(l, netlink.FAMILY_ALL); err == nil {
			for _, a := range list {
				if !a.IP.IsLinkLocalUnicast() {
					i.Addresses = append(i.Addresses, a.IPNet.String())
				}
			}
		}
	}
	if f, err := bpf.InterfaceFeatures(i.Ifindex); err == nil {
		i.XDPFeatures = &f
	}
	i.Occupant, _ = bpf.OccupantOf(i.Ifindex)
	i.RSS = readRSS(i.Ifindex)
	i.ethtool()
	i.sysfs()
}

func (i *Interface) ethtool() {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return
	}
	defer e.Close()
	var c ethtool.EthtoolCmd
	if s, err := e.CmdGet(&c, i.Name); err == nil && s != math.MaxUint32 && s != math.MaxUint16 {
		i.Speed, i.HalfDuplex = int(s), c.Duplex == 0 && s > 0
	}
	if r, err := e.GetRing(i.Name); err == nil {
		i.RingRx, i.RingRxMax = int(r.RxPending), int(r.RxMaxPending)
	}
	if state, err := e.FeaturesWithState(i.Name); err == nil {
		i.Offloads, i.Fixed = map[string]bool{}, map[string]bool{}
		for _, name := range offloadNames {
			if s, ok := state[name]; ok {
				i.Offloads[name] = s.Active
				i.Fixed[name] = !s.Available || s.NeverChanged
			}
		}
	}
}

// sysfs reads what only /sys tells, if it shows this interface.
func (i *Interface) sysfs() {
	dir := filepath.Join("/sys/class/net", i.Name)
	if number(filepath.Join(dir, "ifindex")) != i.Ifindex {
		return
	}
	i.NUMA = number(filepath.Join(dir, "device/numa_node"))
	irqs, _ := os.ReadDir(filepath.Join(dir, "device/msi_irqs"))
	if len(irqs) == 0 { // virtio: of the device above
		irqs, _ = os.ReadDir(filepath.Join(dir, "device/../msi_irqs"))
	}
	for _, irq := range irqs {
		if cpus := text(filepath.Join("/proc/irq", irq.Name(), "effective_affinity_list")); cpus != "" {
			i.IRQCPUs = append(i.IRQCPUs, cpus)
		}
	}
}

func interfaceNames() []string {
	links, err := netlink.LinkList()
	if err != nil {
		return []string{"(cannot list them: " + err.Error() + ")"}
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return names
}

// channelsCommand sets the number of an interface's channels.
func (i *Interface) channelsCommand(n int) string {
	if i.Split {
		return "ethtool -L " + i.Name + " rx " + strconv.Itoa(n) + " tx " + strconv.Itoa(n)
	}
	return "ethtool -L " + i.Name + " combined " + strconv.Itoa(n)
}

func queueRange(n int) string {
	if n == 1 {
		return "1 queue (0)"
	}
	return fmt.Sprintf("%d queues (0 to %d)", n, n-1)
}

// virtual interfaces have no device behind them.
func (i *Interface) virtual() bool { return i.Kind != "device" }

// Interfaces lists those that could be ports: Ethernet, neither loopback nor
// what is built upon others.
func Interfaces() (ports []config.Port) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil
	}
	for _, l := range links {
		a := l.Attrs()
		if len(a.HardwareAddr) == 6 && (l.Type() == "device" || l.Type() == "veth") && !strings.HasPrefix(a.Name, "lo") {
			ports = append(ports, config.Port{Name: a.Name, Interface: a.Name, Queues: config.Queues{All: true}, XDP: "auto", ZeroCopy: "auto"})
		}
	}
	return ports
}
