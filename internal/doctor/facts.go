package doctor

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"penstock/bpf"
	"penstock/internal/config"
	"penstock/internal/control"
)

// Facts are what was seen. A pointer that is nil, a number that is negative and
// a text that is empty were not told.
type Facts struct {
	Subject
	Kernel       string // "6.1.0-18-amd64"
	Major, Minor int
	Missing      []string // what the programs need and this kernel lacks
	MissingErr   error    // why that could not be asked
	AFXDP        error    // why no AF_XDP socket can be made
	Root         bool
	Caps         uint64 // effective capabilities
	Memlock      uint64 // RLIMIT_MEMLOCK, bytes
	Files        uint64 // RLIMIT_NOFILE, the hard limit: the Go runtime raises the soft one to it
	CPUs         int    // that this process may run on
	Available    int64  // bytes of memory that the kernel could give
	CgroupLimit  int64  // bytes; -1: none
	GoLimit      int64  // GOMEMLIMIT; math.MaxInt64: none
	HugePages    int    // free ones of 2 MiB
	Clock        string // clock source
	Clocks       []string
	IRQBalance   int  // its process; 0: it does not run
	OnBPFFS      bool // where Appliance.Pins is
	Pins         []string
	Running      int      // the process that holds Lock; 0: none
	Control      error    // of asking it for its status
	Warnings     []string // that its status has, but for those that it started with
	Forwarding   map[string]map[string]bool
	RPFilter     map[string]int // by interface, "all" included
	Redirects    map[string]bool
	TxHeader     *TxHeader // nil: no interface needs it, or it is where it belongs
	Interfaces   []*Interface
	Names        []string // of all interfaces
}

// Look sees what there is. What cannot be seen is left out; only ports are
// looked at deeply.
func Look(s Subject) *Facts {
	f := look(s)
	f.Missing, f.MissingErr = bpf.Missing()
	if fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		f.AFXDP = err
	} else {
		unix.Close(fd)
	}
	f.clock()
	f.IRQBalance = processNamed("irqbalance")
	f.place()
	for _, i := range f.Interfaces {
		i.lookDeeper()
	}
	start, _ := Start(f)
	f.Warnings = slices.DeleteFunc(f.Warnings, func(w string) bool { return slices.Contains(start, w) })
	return f
}

// LookForStart sees what decides a start, and no more.
func LookForStart(s Subject) *Facts { return look(s) }

func look(s Subject) *Facts {
	f := &Facts{Subject: s, CgroupLimit: -1, GoLimit: debug.SetMemoryLimit(-1)}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.Kernel = unix.ByteSliceToString(u.Release[:])
		f.Major, f.Minor = versionOf(f.Kernel)
	}
	f.privileges()
	f.memory()
	f.OnBPFFS = s.Appliance.Pins == "" || bpf.OnBPFFS(s.Appliance.Pins)
	f.sysctls()
	f.Names = interfaceNames()
	for _, p := range s.Ports {
		f.Interfaces = append(f.Interfaces, lookAt(p))
	}
	if slices.ContainsFunc(f.Interfaces, readsTxHeader) {
		f.TxHeader = lookAtTxHeader()
	}
	return f
}

// versionOf reads "6.12.3-amd64" as 6, 12.
func versionOf(release string) (major, minor int) {
	parts := strings.FieldsFunc(release, func(c rune) bool { return c < '0' || c > '9' })
	if len(parts) > 1 {
		major, _ = strconv.Atoi(parts[0])
		minor, _ = strconv.Atoi(parts[1])
	}
	return major, minor
}

func (f *Facts) privileges() {
	f.Root = os.Geteuid() == 0
	if v, err := strconv.ParseUint(lineOf("/proc/self/status", "CapEff:"), 16, 64); err == nil {
		f.Caps = v
	}
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l) == nil {
		f.Memlock = l.Cur
	}
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil {
		f.Files = l.Max
	}
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) == nil {
		f.CPUs = set.Count()
	}
}

// has says whether this process has a capability, by its number.
func (f *Facts) has(capability int) bool { return f.Caps&(1<<capability) != 0 }

func (f *Facts) memory() {
	f.Available = -1
	if kb, err := strconv.ParseInt(strings.TrimSuffix(lineOf("/proc/meminfo", "MemAvailable:"), " kB"), 10, 64); err == nil {
		f.Available = kb << 10
	}
	f.HugePages = number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
	group := lineOf("/proc/self/cgroup", "0::")
	for group != "" { // the nearest that is limited
		if limit := number(filepath.Join("/sys/fs/cgroup", group, "memory.max")); limit > 0 {
			f.CgroupLimit = int64(limit)
			return
		}
		if group == "/" || group == "." {
			return
		}
		group = filepath.Dir(group)
	}
}

func (f *Facts) clock() {
	const dir = "/sys/devices/system/clocksource/clocksource0/"
	f.Clock = text(dir + "current_clocksource")
	f.Clocks = strings.Fields(text(dir + "available_clocksource"))
}

// place finds who has the appliance's name, and what an earlier one left.
func (f *Facts) place() {
	if f.File == "" {
		return
	}
	if f.Appliance.Pins != "" {
		f.Pins, _ = bpf.Leftovers(f.Appliance.Pins, f.Appliance.Name)
	}
	if file, err := os.Open(f.Lock); err == nil {
		defer file.Close()
		if unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil {
			pid, _, _ := strings.Cut(text(f.Lock), " ")
			f.Running, _ = strconv.Atoi(pid)
		}
	}
	if f.Running != 0 && f.Appliance.Control != "" {
		var s control.Status
		s, f.Control = control.NewClient(f.Appliance.Control).Status()
		f.Warnings = s.Warnings
	}
}

func (f *Facts) sysctls() {
	f.Forwarding, f.RPFilter, f.Redirects = map[string]map[string]bool{}, map[string]int{}, map[string]bool{}
	for _, family := range []string{"ipv4", "ipv6"} {
		f.Forwarding[family] = map[string]bool{}
		for _, p := range f.Ports {
			f.Forwarding[family][p.Interface] = number(conf(family, p.Interface, "forwarding")) > 0
		}
	}
	for _, name := range append([]string{"all"}, portInterfaces(f.Ports)...) {
		f.RPFilter[name] = number(conf("ipv4", name, "rp_filter"))
		f.Redirects[name] = number(conf("ipv4", name, "send_redirects")) > 0
	}
}

func conf(family, ifname, key string) string {
	return filepath.Join("/proc/sys/net", family, "conf", ifname, key)
}

// sysctl is a command that sets a key of an interface. With slashes, since an
// interface's name may have a dot in it.
func sysctl(family, ifname, key string, value int) string {
	return "sysctl -w net/" + family + "/conf/" + ifname + "/" + key + "=" + strconv.Itoa(value)
}

func portInterfaces(ports []config.Port) (names []string) {
	for _, p := range ports {
		names = append(names, p.Interface)
	}
	return names
}

func text(file string) string {
	b, _ := os.ReadFile(file)
	return string(bytes.TrimSpace(b))
}

// number reads a file with one number in it; -1 if there is none.
func number(file string) int {
	n, err := strconv.Atoi(text(file))
	if err != nil {
		return -1
	}
	return n
}

// lineOf returns what stands behind a prefix in a file of lines.
func lineOf(file, prefix string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), prefix); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// processNamed finds a process by its command; 0 if there is none.
func processNamed(name string) int {
	files, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, file := range files {
		if text(file) == name {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			return pid
		}
	}
	return 0
}
