package doctor

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"penstock/internal/config"
)

// The oldest kernel (docs/kernels.md).
const oldestMajor, oldestMinor = 6, 1

// needed are the capabilities of an appliance. SYS_ADMIN is not among them: it
// mounts a BPF file system, where there is none yet.
var needed = []struct {
	number int
	name   string
	why    string
}{
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "attaches XDP"},
	{unix.CAP_NET_RAW, "CAP_NET_RAW", "opens AF_XDP sockets"},
	{unix.CAP_BPF, "CAP_BPF", "loads programs and maps"},
	{unix.CAP_PERFMON, "CAP_PERFMON", "lets the verifier accept what reads packets by pointers"},
}

var machineChecks = []check{
	{name: "kernel", why: "the XDP program uses what older verifiers refuse", run: func(f *Facts, r *report) {
		if f.Kernel == "" {
			return
		}
		if f.Major < oldestMajor || f.Major == oldestMajor && f.Minor < oldestMinor {
			r.wrong(nil, fmt.Sprintf("Linux %s is older than %d.%d", f.Kernel, oldestMajor, oldestMinor), fmt.Sprintf("boot Linux %d.%d or later", oldestMajor, oldestMinor))
			return
		}
		r.fine(nil, "Linux %s", f.Kernel)
	}},
	{name: "privileges", why: "attaching XDP, loading BPF and opening AF_XDP sockets are the administrator's", start: true, run: func(f *Facts, r *report) {
		var lack []string
		for _, c := range needed {
			if !f.has(c.number) {
				lack = append(lack, fmt.Sprintf("%s (%s)", c.name, c.why))
			}
		}
		if len(lack) > 0 {
			r.wrong(nil, "no permission: root is needed, or "+strings.Join(lack, ", "), "run it with sudo, or under the unit file of the package")
			return
		}
		if f.Root {
			r.fine(nil, "root")
			return
		}
		r.fine(nil, "not root, and has the capabilities that are needed")
	}},
	{name: "bpf", why: "the XDP program does not load without", run: func(f *Facts, r *report) {
		switch {
		case f.MissingErr != nil:
			r.warn(nil, f.MissingErr.Error(), "run doctor as root")
		case len(f.Missing) > 0:
			r.wrong(nil, "the kernel lacks "+strings.Join(f.Missing, ", "), fmt.Sprintf("boot Linux %d.%d or later, with CONFIG_BPF_SYSCALL", oldestMajor, oldestMinor))
		default:
			r.fine(nil, "the kernel has the maps and helpers that the XDP program needs")
		}
	}},
	{name: "af_xdp", why: "packets come to user space through AF_XDP sockets", run: func(f *Facts, r *report) {
		switch {
		case f.AFXDP == nil:
			r.fine(nil, "the kernel makes AF_XDP sockets")
		case f.AFXDP == unix.EPERM:
			r.warn(nil, "no permission to try an AF_XDP socket", "run doctor as root")
		default:
			r.wrong(nil, fmt.Sprintf("no AF_XDP socket: %v", f.AFXDP), "boot a kernel with CONFIG_XDP_SOCKETS")
		}
	}},
	{name: "memlock", why: "the memory of packets is locked, and the limit counts without CAP_IPC_LOCK", start: true, run: func(f *Facts, r *report) {
		need := f.packetMemory()
		if need == 0 {
			return
		}
		if f.has(unix.CAP_IPC_LOCK) || f.Memlock == unix.RLIM_INFINITY || need <= f.Memlock {
			r.fine(nil, "packet memory of %s may be locked", mib(need))
			return
		}
		r.wrong(nil, fmt.Sprintf("packet memory of %s cannot be locked: the limit is %s", mib(need), mib(f.Memlock)), "ulimit -l unlimited")
	}},
	{name: "files", why: "each queue, map, link and connection to control is an open file", start: true, run: func(f *Facts, r *report) {
		need := uint64(128 + 8*f.queues())
		if f.Files < need {
			r.wrong(nil, fmt.Sprintf("%d open files are allowed and %d may be needed", f.Files, need), "ulimit -n 4096")
			return
		}
		r.fine(nil, "%s open files are allowed, %d may be needed", count(f.Files), need)
	}},
	{name: "memory", why: "an appliance that runs out of memory is killed; on_exit says what becomes of the wire", run: memory},
	{name: "hugepages", why: "packet memory in huge pages costs fewer misses of the TLB", run: func(f *Facts, r *report) {
		need := int((f.packetMemory() + 2<<20 - 1) / (2 << 20))
		if f.File == "" || f.Running != 0 || need == 0 {
			return
		}
		if f.HugePages < need {
			r.warn(nil, fmt.Sprintf("%d huge pages of 2 MiB are free; packet memory takes %d", max(f.HugePages, 0), need),
				fmt.Sprintf("sysctl -w vm.nr_hugepages=%d", need))
			return
		}
		r.fine(nil, "%d huge pages of 2 MiB are free, packet memory takes %d", f.HugePages, need)
	}},
	{name: "clock", why: "time is read in each turn of a worker; other clocks take a system call or microseconds", run: func(f *Facts, r *report) {
		fast := []string{"tsc", "kvm-clock", "arch_sys_counter", "riscv_clocksource", "hyperv_clocksource_tsc_page"}
		if f.Clock == "" || slices.Contains(fast, f.Clock) {
			r.fine(nil, "clock source %s", f.Clock)
			return
		}
		mend := "boot with a clock source that user space can read; dmesg says why tsc is not used"
		for _, c := range f.Clocks {
			if slices.Contains(fast, c) {
				mend = "echo " + c + " > /sys/devices/system/clocksource/clocksource0/current_clocksource"
				break
			}
		}
		r.warn(nil, fmt.Sprintf("clock source %s is slow", f.Clock), mend)
	}},
	{name: "irqbalance", why: "it moves interrupts between processors while flows are under way, away from where the worker runs", run: func(f *Facts, r *report) {
		real := slices.ContainsFunc(f.Interfaces, func(i *Interface) bool { return i.Exists && !i.virtual() })
		if f.IRQBalance != 0 && real {
			r.warn(nil, fmt.Sprintf("irqbalance runs (process %d)", f.IRQBalance), "systemctl disable --now irqbalance")
			return
		}
		r.fine(nil, "nothing moves interrupts")
	}},
	{name: "bpffs", why: "with on_exit = \"open\" the program outlives the process by a pin on a BPF file system", run: func(f *Facts, r *report) {
		switch {
		case f.File == "":
		case f.Appliance.Pins == "":
			r.fine(nil, "nothing is pinned (pins = \"\")")
		case f.OnBPFFS:
			r.fine(nil, "%s is on a BPF file system", f.Appliance.Pins)
		case f.has(unix.CAP_SYS_ADMIN):
			r.warnSafe(nil, f.Appliance.Pins+" is not on a BPF file system; a start mounts one", "mount -t bpf bpf "+f.mountPoint())
		default:
			r.wrongSafe(nil, f.Appliance.Pins+" is on no BPF file system that this user may look at, and mounting one takes root", "mount -t bpf bpf "+f.mountPoint())
		}
	}},
	{name: "instance", why: "an appliance that cannot be asked cannot be taken over from either", run: func(f *Facts, r *report) {
		switch {
		case f.File == "":
		case f.Running == 0:
			r.fine(nil, "no appliance named %q runs", f.Appliance.Name)
		case f.Control != nil:
			r.wrong(nil, fmt.Sprintf("the appliance %q runs (process %d) and does not answer: %v", f.Appliance.Name, f.Running, f.Control),
				fmt.Sprintf("kill %d", f.Running))
		default:
			r.fine(nil, "the appliance %q runs (process %d) and answers", f.Appliance.Name, f.Running)
		}
	}},
	{name: "running", why: "what a running appliance warns of is so now", run: func(f *Facts, r *report) {
		for _, w := range f.Warnings {
			found, mend, _ := strings.Cut(w, "; mend: ")
			r.warn(nil, "the appliance says: "+found, mend)
		}
	}},
	{name: "pins", why: "XDP goes on bridging as on_exit says, with the rules of an appliance that is no more", run: func(f *Facts, r *report) {
		switch {
		case f.File == "":
		case len(f.Pins) == 0 || f.Running != 0:
			r.fine(nil, "no dead appliance has left anything")
		default:
			r.warn(nil, fmt.Sprintf("the appliance %q is gone and its XDP program is still attached (%s); penstock run takes it over", f.Appliance.Name, f.Pins[0]),
				"penstock detach "+f.File)
		}
	}},
	{name: "forwarding", why: "without forwarding in the kernel neither it nor XDP routes anything", start: true, run: forwarding},
	{name: "rings", why: "the fill ring starves when all frames are in the other rings", run: func(f *Facts, r *report) {
		if f.File == "" {
			return
		}
		if a := f.Appliance; a.FramesPerQueue < 2*a.RingSize {
			r.warn(nil, fmt.Sprintf("%d frames for each queue are fewer than two rings hold (ring_size = %d)", a.FramesPerQueue, a.RingSize),
				fmt.Sprintf("frames_per_queue = %d in [appliance]", 2*a.RingSize))
			return
		}
		r.fine(nil, "%d frames for each queue, rings of %d", f.Appliance.FramesPerQueue, f.Appliance.RingSize)
	}},
}

// queues is how many sockets the ports open.
func (f *Facts) queues() (n int) {
	for _, i := range f.Interfaces {
		n += len(i.Queues)
	}
	return n
}

// packetMemory is what the UMEM takes, in bytes.
func (f *Facts) packetMemory() uint64 {
	queues := f.queues()
	if n := len(f.Interfaces); n > 0 && f.Appliance.Mode == config.ModeBridge {
		queues += queues / n * f.Appliance.SparePorts
	}
	return uint64(queues) * uint64(f.Appliance.FramesPerQueue) * uint64(f.Appliance.FrameSize)
}

// mountPoint is where a BPF file system would be mounted for the pins.
func (f *Facts) mountPoint() string {
	const usual = "/sys/fs/bpf"
	if strings.HasPrefix(f.Appliance.Pins, usual) {
		return usual
	}
	return f.Appliance.Pins
}

// What the maps take for a flow, and whatever the number of flows (package bpf).
const (
	flowMemory = 320
	gateMemory = 35 << 20
)

func memory(f *Facts, r *report) {
	if f.File == "" || f.Running != 0 {
		return
	}
	need := int64(f.packetMemory()) + int64(f.Appliance.MaxFlows)*flowMemory + gateMemory
	have, of := f.Available, "available"
	if f.CgroupLimit > 0 && f.CgroupLimit < have {
		have, of = f.CgroupLimit, "allowed by the control group"
	}
	if have < 0 {
		return
	}
	size := fmt.Sprintf("packets and maps take %s, %s are %s", mib(uint64(need)), mib(uint64(have)), of)
	switch {
	case need > have:
		r.wrong(nil, size, "a smaller frames_per_queue, queues or max_flows in the configuration")
	case f.CgroupLimit > 0 && f.GoLimit == math.MaxInt64:
		r.warn(nil, size+", and the Go heap has no limit", fmt.Sprintf("GOMEMLIMIT=%dMiB in the environment of penstock run", max((f.CgroupLimit-need)*9/10>>20, 16)))
	case need > have*8/10:
		r.warn(nil, size, "a smaller frames_per_queue, queues or max_flows in the configuration")
	default:
		r.fine(nil, "%s", size)
	}
}

func forwarding(f *Facts, r *report) {
	if f.Appliance.Mode != config.ModeRouter || f.File == "" {
		return
	}
	var off []string
	var mends []string
	families := 0
	for _, family := range []struct{ key, name, all string }{
		{"ipv4", "IPv4", "net.ipv4.ip_forward"}, {"ipv6", "IPv6", "net.ipv6.conf.all.forwarding"},
	} {
		var ports []string
		for _, i := range f.Interfaces {
			if !f.Forwarding[family.key][i.Name] {
				ports = append(ports, i.Name)
			}
		}
		if len(ports) > 0 {
			off = append(off, fmt.Sprintf("%s is not forwarded from %s", family.name, strings.Join(ports, ", ")))
			mends = append(mends, "sysctl -w "+family.all+"=1")
		}
		if len(ports) == len(f.Interfaces) {
			families++
		}
	}
	if families == 2 {
		r.wrong(nil, "router mode: the kernel forwards nothing", "sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
		return
	}
	for i := range off {
		r.warn(nil, off[i], mends[i])
	}
	if len(off) == 0 {
		r.fine(nil, "the kernel forwards IPv4 and IPv6")
	}
}

func mib(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "unlimited"
	}
	if n < 10<<20 {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

func count(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "any number of"
	}
	return fmt.Sprint(n)
}
