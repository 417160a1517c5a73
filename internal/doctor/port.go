package doctor

import (
	"fmt"
	"slices"
	"strings"

	"penstock/bpf"
	"penstock/internal/config"
)

// maxXDPMTU is the largest MTU whose packets fit into one page with XDP's
// headroom: programs without multi-buffer support are refused beyond it.
const maxXDPMTU = 3506

// What lies in a frame besides a packet's IP part: the kernel's headroom, an
// Ethernet header and two VLAN tags.
const frameOverhead = 256 + 14 + 8

var portChecks = []check{
	{name: "interface", why: "a port needs its interface and its queues", start: true, run: eachPort(func(f *Facts, r *report, i *Interface) {
		switch {
		case i.Err != nil:
			r.wrong(i, i.Err.Error(), "")
		case !i.Exists:
			r.wrong(i, fmt.Sprintf("interface %q does not exist; there are %s", i.Port.Interface, strings.Join(f.Names, ", ")), "another interface in its [[port]]")
		case len(i.Queues) == 0 && len(i.Port.Queues.List) > 0:
			top := slices.Max(i.Port.Queues.List)
			r.wrong(i, fmt.Sprintf("queue %d does not exist: %s has %s", top, i.Name, queueRange(i.Channels)), i.channelsCommand(top+1))
		default:
			r.fine(i, "%s, driver %s", i.Name, orUnknown(i.Driver))
		}
	})},
	{name: "link", why: "nothing passes by a port whose link is down", run: eachThere(func(_ *Facts, r *report, i *Interface) {
		switch {
		case !i.AdminUp:
			r.wrongSafe(i, i.Name+" is down", "ip link set dev "+i.Name+" up")
		case !i.Up:
			r.warn(i, i.Name+" is up and has no carrier", "look at the cable, the module and the other end")
		default:
			r.fine(i, "%s is up", i.Name)
		}
	})},
	{name: "mtu", why: "a packet must fit into one page for XDP, and into a frame for AF_XDP", start: true, run: eachThere(mtu)},
	{name: "channels", why: "worker i serves queue i of every port, and wants a processor of its own", start: true, run: channels},
	{name: "rss", why: "with both directions of a flow in one queue no packet is handed from worker to worker", run: eachThere(rss)},
	{name: "xdp", why: "an interface has one XDP program", run: eachThere(func(f *Facts, r *report, i *Interface) {
		switch o := i.Occupant; {
		case o == nil:
			r.fine(i, "no XDP program is attached to %s", i.Name)
		case f.Running != 0 && (o.PID == f.Running || f.ours(o)), f.Running == 0 && f.ours(o):
			r.fine(i, "the XDP program of %q is attached to %s", f.Appliance.Name, i.Name)
		default:
			r.wrong(i, fmt.Sprintf("another XDP program is attached (%s)", o), o.Mend(i.Name))
		}
	})},
	{name: "driver", why: "without native XDP packets go through the kernel's stack first, several times slower", run: eachThere(driver)},
	{name: "zero_copy", why: "without zero-copy the kernel copies each packet that goes to user space", run: eachThere(zeroCopy)},
	{name: "tx_header", why: "what the host cannot make sense of is lost, and the driver says that it was sent", start: true, run: eachThere(txHeader)},
	{name: "redirect", why: "frames that XDP redirects to an interface that takes none are lost without a trace", run: eachThere(func(f *Facts, r *report, i *Interface) {
		// Other drivers take frames only while they run a program.
		if i.XDPFeatures == nil || i.Kind != "veth" && f.Running == 0 {
			return
		}
		if *i.XDPFeatures&bpf.FeatureTarget == 0 && i.Up {
			r.wrong(i, i.Name+" takes no redirected frames", bpf.NoTargetMend)
			return
		}
		r.fine(i, "%s takes redirected frames", i.Name)
	})},
	{name: "offloads", why: "XDP sees packets before the kernel has put right what the NIC has merged or taken out of them", run: eachThere(offloads)},
	{name: "ring", why: "a burst that the NIC's ring does not hold is lost before anybody counts it", run: eachThere(func(_ *Facts, r *report, i *Interface) {
		if i.RingRx == 0 {
			return
		}
		if want := min(1024, i.RingRxMax); i.RingRx < want {
			r.warn(i, fmt.Sprintf("%s has room for %d received packets, and could have it for %d", i.Name, i.RingRx, i.RingRxMax), fmt.Sprintf("ethtool -G %s rx %d", i.Name, want))
			return
		}
		r.fine(i, "%s has room for %d received packets", i.Name, i.RingRx)
	})},
	{name: "promisc", why: "a bump in the wire takes frames that are addressed to others", run: eachThere(func(f *Facts, r *report, i *Interface) {
		switch {
		case f.Appliance.Mode != config.ModeBridge || f.File == "":
		case i.Promisc > 0:
			r.fine(i, "%s is promiscuous", i.Name)
		case f.Running == 0 && len(f.Pins) == 0:
			r.fine(i, "%s is not promiscuous; a start makes it so", i.Name)
		default:
			r.wrongSafe(i, i.Name+" is not promiscuous and the appliance is on it", "ip link set dev "+i.Name+" promisc on")
		}
	})},
	{name: "addresses", why: "XDP takes all packets of a bridge's port: nobody reaches the host by them", run: eachThere(func(f *Facts, r *report, i *Interface) {
		if f.Appliance.Mode != config.ModeBridge || f.File == "" {
			return
		}
		if len(i.Addresses) > 0 {
			r.warn(i, fmt.Sprintf("%s has addresses (%s)", i.Name, strings.Join(i.Addresses, ", ")), "ip address flush dev "+i.Name+" scope global")
			return
		}
		r.fine(i, "%s has no addresses", i.Name)
	})},
	{name: "rp_filter", why: "the kernel drops packets that come in by a port which is not the way back; XDP routes them", run: eachThere(func(f *Facts, r *report, i *Interface) {
		if f.Appliance.Mode != config.ModeRouter || f.File == "" {
			return
		}
		switch own, all := f.RPFilter[i.Name], f.RPFilter["all"]; {
		case own == 2 || max(own, all) < 1: // the greater of both counts, and 2 is loose
			r.fine(i, "the kernel does not refuse asymmetric routes on %s", i.Name)
		case all == 2:
			r.fine(i, "the kernel's source check on %s is loose", i.Name)
		default:
			r.warnSafe(i, "the kernel's source check on "+i.Name+" is strict", sysctl("ipv4", i.Name, "rp_filter", 2))
		}
	})},
	{name: "redirects", why: "with one port the kernel tells senders of the next hop (ICMP redirect), and they go past the appliance", run: eachThere(func(f *Facts, r *report, i *Interface) {
		if f.Appliance.Mode != config.ModeRouter || f.File == "" || len(f.Interfaces) != 1 {
			return
		}
		if f.Redirects[i.Name] || f.Redirects["all"] {
			r.warnSafe(i, "the kernel sends ICMP redirects by "+i.Name, "sysctl -w net/ipv4/conf/all/send_redirects=0 net/ipv4/conf/"+i.Name+"/send_redirects=0")
			return
		}
		r.fine(i, "the kernel sends no ICMP redirects by %s", i.Name)
	})},
	{name: "speed", why: "the slower of two ports is the faster one's bottleneck, and packets are lost there", run: speed},
	{name: "numa", why: "packets that cross between NUMA nodes cost twice", run: func(f *Facts, r *report) {
		var first *Interface
		for _, i := range f.Interfaces {
			switch {
			case i.NUMA < 0:
			case first == nil:
				first = i
				r.fine(i, "%s is on NUMA node %d", i.Name, i.NUMA)
			case i.NUMA != first.NUMA && f.File != "":
				r.warn(i, fmt.Sprintf("%s is on NUMA node %d and %s on node %d", i.Name, i.NUMA, first.Name, first.NUMA), "put both NICs into slots of one node")
			}
		}
	}},
	{name: "irq", why: "queues whose interrupts share a processor share its time", run: eachThere(func(f *Facts, r *report, i *Interface) {
		if len(i.IRQCPUs) < 2 || len(i.Queues) < 2 || f.CPUs < 2 {
			return
		}
		if used := slices.Compact(slices.Sorted(slices.Values(i.IRQCPUs))); len(used) == 1 {
			r.warn(i, fmt.Sprintf("all interrupts of %s come to processor %s", i.Name, used[0]), "for each queue q: echo q > /proc/irq/N/smp_affinity_list, N from /proc/interrupts")
			return
		}
		r.fine(i, "the interrupts of %s are spread", i.Name)
	})},
}

// eachPort makes a check of one that looks at a port.
func eachPort(look func(f *Facts, r *report, i *Interface)) func(*Facts, *report) {
	return func(f *Facts, r *report) {
		for _, i := range f.Interfaces {
			look(f, r, i)
		}
	}
}

// eachThere leaves out ports without an interface: they are reported already.
func eachThere(look func(f *Facts, r *report, i *Interface)) func(*Facts, *report) {
	return eachPort(func(f *Facts, r *report, i *Interface) {
		if i.Exists {
			look(f, r, i)
		}
	})
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// ours says whether a program is held by a pin of this appliance's name.
func (f *Facts) ours(o *bpf.Occupant) bool { return o.Pin != "" && slices.Contains(f.Pins, o.Pin) }

// peer is the port that a bridge joins with port n; nil if there is none.
func (f *Facts) peer(n int) *Interface {
	if f.File == "" || f.Appliance.Mode != config.ModeBridge || n^1 >= len(f.Interfaces) || !f.Interfaces[n^1].Exists {
		return nil
	}
	return f.Interfaces[n^1]
}

func mtu(f *Facts, r *report, i *Interface) {
	room := int(f.Appliance.FrameSize) - frameOverhead
	p := f.peer(slices.Index(f.Interfaces, i))
	fits := min(maxXDPMTU, max(room, 1500))
	if p != nil {
		fits = min(fits, p.MTU)
	}
	mend := fmt.Sprintf("ip link set dev %s mtu %d", i.Name, fits)
	switch {
	case i.MTU > maxXDPMTU:
		r.wrong(i, fmt.Sprintf("the MTU of %s is %d and XDP takes at most %d", i.Name, i.MTU, maxXDPMTU), mend)
	case f.File != "" && i.MTU > room:
		r.warn(i, fmt.Sprintf("the MTU of %s is %d and a frame has room for %d (frame_size): larger packets that chains want are lost", i.Name, i.MTU, room), mend)
	case p != nil && i.MTU > p.MTU:
		r.warn(i, fmt.Sprintf("the MTU of %s is %d and that of %s %d: larger packets do not cross", i.Name, i.MTU, p.Name, p.MTU), mend)
	default:
		r.fine(i, "the MTU of %s is %d", i.Name, i.MTU)
	}
}

func channels(f *Facts, r *report) {
	var first *Interface
	for _, i := range f.Interfaces {
		switch n := len(i.Queues); {
		case !i.Exists || n == 0:
		case f.File == "":
			r.fine(i, "%s has %s", i.Name, queueRange(i.Channels))
		case first != nil && n != len(first.Queues):
			mend := i.channelsCommand(len(first.Queues))
			if len(first.Queues) > i.MaxChannels && i.MaxChannels > 0 {
				mend = first.channelsCommand(n)
			}
			r.wrong(i, fmt.Sprintf("ports need the same number of queues: %q has %d and %q has %d", first.Port.Name, len(first.Queues), i.Port.Name, n), mend)
		case f.CPUs > 0 && n > f.CPUs:
			first = earlier(first, i)
			r.warn(i, fmt.Sprintf("%s has %d queues for %d processors", i.Name, n, f.CPUs), i.channelsCommand(f.CPUs))
		default:
			first = earlier(first, i)
			r.fine(i, "%s serves %s", i.Name, queueRange(n))
		}
	}
}

func earlier(first, i *Interface) *Interface {
	if first == nil {
		return i
	}
	return first
}

func rss(f *Facts, r *report, i *Interface) {
	if i.RSS == nil || i.Channels < 2 {
		return
	}
	if !i.Port.Queues.All {
		for _, q := range i.RSS.Queues() {
			if !slices.Contains(i.Queues, q) {
				r.wrong(i, fmt.Sprintf("%s spreads packets over queue %d too, which is none of the port's: nobody looks at what comes there", i.Name, q),
					fmt.Sprintf("ethtool -X %s equal %d", i.Name, len(i.Queues)))
				return
			}
		}
	}
	switch {
	case len(i.RSS.Key) == 0 || i.RSS.Symmetric():
		r.fine(i, "the hash of %s is symmetric", i.Name)
	default:
		key := strings.TrimSuffix(strings.Repeat("6d:5a:", (len(i.RSS.Key)+1)/2)[:3*len(i.RSS.Key)], ":")
		r.warn(i, "the hash of "+i.Name+" is not symmetric: packets are handed from worker to worker", "ethtool -X "+i.Name+" hkey "+key)
	}
}

// driver says whether XDP runs in it, as it says itself.
func driver(f *Facts, r *report, i *Interface) {
	native := i.XDPFeatures == nil || *i.XDPFeatures&bpf.FeatureNative != 0
	switch {
	case i.Port.XDP == "generic" && native && i.XDPFeatures != nil:
		r.warn(i, fmt.Sprintf("xdp = \"generic\", and driver %s has native XDP", orUnknown(i.Driver)), "xdp = \"auto\" in its [[port]]")
	case native && i.XDPFeatures == nil:
		r.fine(i, "this kernel does not tell whether driver %s has native XDP", orUnknown(i.Driver))
	case native:
		r.fine(i, "driver %s has native XDP", orUnknown(i.Driver))
	case i.Port.XDP == "native":
		r.wrong(i, fmt.Sprintf("driver %s has no native XDP, and xdp = \"native\" asks for it", orUnknown(i.Driver)), "xdp = \"auto\" in its [[port]]")
	case i.Port.XDP == "generic":
		r.fine(i, "driver %s has no native XDP", orUnknown(i.Driver))
	case i.Driver == "virtio_net":
		r.warn(i, "driver virtio_net has no native XDP now", "guest_csum, guest_tso4, guest_tso6, guest_ecn and guest_ufo off at the host, or ctrl_guest_offloads on; and twice as many queue pairs as channels")
	default:
		r.warn(i, fmt.Sprintf("driver %s has no native XDP now", orUnknown(i.Driver)), "a NIC of docs/nics.md")
	}
	if i.Driver == "i40e" && i.Channels < f.CPUs {
		r.wrong(i, fmt.Sprintf("i40e has %d channels for %d processors: frames redirected out of it by the others are refused", i.Channels, f.CPUs), i.channelsCommand(f.CPUs))
	}
}

func zeroCopy(_ *Facts, r *report, i *Interface) {
	if i.XDPFeatures == nil {
		return
	}
	can := *i.XDPFeatures&bpf.FeatureZeroCopy != 0
	switch {
	case !can && i.Port.ZeroCopy == "on":
		r.wrong(i, fmt.Sprintf("driver %s has no zero-copy, and zero_copy = \"on\" asks for it", orUnknown(i.Driver)), "zero_copy = \"auto\" in its [[port]]")
	case i.Driver == "virtio_net" && i.Port.ZeroCopy == "on" && i.MaxChannels > i.Channels:
		r.wrong(i, fmt.Sprintf("virtio_net has %d queue pairs and uses %d: spare ones take packets that no socket sees", i.MaxChannels, i.Channels), "as many queue pairs as channels at the host, or zero_copy = \"auto\"")
	case !can:
		r.fine(i, "driver %s has no zero-copy: packets are copied", orUnknown(i.Driver))
	case i.Port.ZeroCopy == "off":
		r.warn(i, fmt.Sprintf("zero_copy = \"off\", and driver %s has it", orUnknown(i.Driver)), "zero_copy = \"auto\" in its [[port]]")
	default:
		r.fine(i, "driver %s has zero-copy", orUnknown(i.Driver))
	}
}

func offloads(f *Facts, r *report, i *Interface) {
	if i.Offloads == nil {
		return
	}
	bad := false
	for _, o := range []struct{ feature, flag, harm string }{
		{"rx-lro", "lro", "merges packets (LRO): XDP is refused, or what it forwards is too large"},
		{"rx-gro-hw", "rx-gro-hw", "merges packets in hardware (GRO_HW): XDP is refused, or what it forwards is too large"},
		{"rx-vlan-hw-parse", "rxvlan", "takes VLAN tags out of packets: they are lost on the way to the other port"},
	} {
		// A veth keeps tags with the packet whatever this says; what counts is
		// tx-vlan-offload at its other end.
		if !i.Offloads[o.feature] || o.flag == "rxvlan" && (i.Kind == "veth" || f.Appliance.Mode == config.ModeRouter) {
			continue
		}
		bad = true
		if i.Fixed[o.feature] {
			r.wrong(i, i.Name+" "+o.harm+", and it cannot be turned off here", "turn it off where the NIC is made (the host of a virtual machine)")
			continue
		}
		r.wrongSafe(i, i.Name+" "+o.harm, "ethtool -K "+i.Name+" "+o.flag+" off")
	}
	if !bad {
		r.fine(i, "%s neither merges packets nor takes tags out of them", i.Name)
	}
}

func speed(f *Facts, r *report) {
	for n, i := range f.Interfaces {
		p := f.peer(n)
		switch {
		case !i.Exists || i.Speed == 0:
		case i.HalfDuplex:
			r.warn(i, i.Name+" is half duplex", "ethtool -s "+i.Name+" autoneg on")
		case p != nil && p.Speed > 0 && p.Speed < i.Speed:
			r.warn(i, fmt.Sprintf("%s has %d Mbit/s and %s %d", i.Name, i.Speed, p.Name, p.Speed), "ports of one speed")
		default:
			r.fine(i, "%s has %d Mbit/s", i.Name, i.Speed)
		}
	}
}
