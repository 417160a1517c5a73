package doctor

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"penstock/bpf"
	"penstock/internal/config"
)

// healthy are the facts of a bridge between two good NICs.
func healthy() *Facts {
	all := bpf.FeatureNative | bpf.FeatureRedirect | bpf.FeatureTarget | bpf.FeatureZeroCopy
	nic := func(name, ifname string) *Interface {
		return &Interface{
			Port: config.Port{Name: name, Interface: ifname, Queues: config.Queues{All: true}, XDP: "auto", ZeroCopy: "auto"}, Exists: true, Name: ifname, Ifindex: 2, MTU: 1500,
			AdminUp: true, Up: true, Kind: "device", Driver: "ice", Channels: 4, MaxChannels: 16, Queues: []int{0, 1, 2, 3}, Speed: 25000, RingRx: 2048, RingRxMax: 4096,
			Offloads: map[string]bool{"rx-lro": false, "rx-gro-hw": false, "rx-vlan-hw-parse": false}, Fixed: map[string]bool{}, XDPFeatures: &all, NUMA: 0,
			IRQCPUs: []string{"0", "1", "2", "3"}, RSS: &RSS{Key: []byte(strings.Repeat("\x6d\x5a", 26)), Table: []uint32{0, 1, 2, 3}},
		}
	}
	s := Subject{Appliance: config.Defaults(), File: "x.toml"}
	return &Facts{
		Subject: s, Kernel: "6.12.3-amd64", Major: 6, Minor: 12, Root: true, Caps: 1<<41 - 1, Memlock: unix.RLIM_INFINITY, Files: 1 << 20, CPUs: 8,
		Available: 16 << 30, CgroupLimit: -1, GoLimit: math.MaxInt64, HugePages: 1000, Clock: "tsc", Clocks: []string{"tsc", "hpet"}, OnBPFFS: true,
		Forwarding: map[string]map[string]bool{"ipv4": {}, "ipv6": {}}, RPFilter: map[string]int{}, Redirects: map[string]bool{},
		Interfaces: []*Interface{nic("lan", "eth1"), nic("wan", "eth2")}, Names: []string{"eth1", "eth2", "lo"},
	}
}

func features(f bpf.Features) *bpf.Features { return &f }

// TestChecks shows each check what the machine of the tests does not have, too.
func TestChecks(t *testing.T) {
	for _, f := range Check(healthy()) {
		if f.Level != Fine || f.Why != "" || f.Mend != "" {
			t.Errorf("of a healthy machine: %+v", f)
		}
	}
	for _, c := range []struct {
		name  string
		harm  func(f *Facts, lan *Interface)
		check string
		level Level
		found string
		mend  string
	}{
		{"old kernel", func(f *Facts, _ *Interface) { f.Kernel, f.Major, f.Minor = "5.15.0", 5, 15 }, "kernel", Wrong, "Linux 5.15.0 is older than 6.1", "boot Linux 6.1 or later"},
		{"no helper", func(f *Facts, _ *Interface) { f.Missing = []string{"bpf_for_each_map_elem"} }, "bpf", Wrong, "lacks bpf_for_each_map_elem", "boot"},
		{"no AF_XDP", func(f *Facts, _ *Interface) { f.AFXDP = unix.EAFNOSUPPORT }, "af_xdp", Wrong, "no AF_XDP socket", "CONFIG_XDP_SOCKETS"},
		{"no capability", func(f *Facts, _ *Interface) { f.Caps &^= 1 << unix.CAP_PERFMON }, "privileges", Wrong, "CAP_PERFMON", "sudo"},
		{"locked memory", func(f *Facts, _ *Interface) { f.Caps, f.Memlock = f.Caps&^(1<<unix.CAP_IPC_LOCK), 8<<20 }, "memlock", Wrong, "packet memory of 128 MiB", "ulimit -l unlimited"},
		{"files", func(f *Facts, _ *Interface) { f.Files = 100 }, "files", Wrong, "100 open files are allowed and 192", "ulimit -n"},
		{"no memory", func(f *Facts, _ *Interface) { f.Available = 100 << 20 }, "memory", Wrong, "100 MiB are available", "frames_per_queue"},
		{"control group", func(f *Facts, _ *Interface) { f.CgroupLimit = 1 << 30 }, "memory", Warning, "1024 MiB are allowed by the control group", "GOMEMLIMIT=756MiB"},
		{"huge pages", func(f *Facts, _ *Interface) { f.HugePages = 3 }, "hugepages", Warning, "3 huge pages", "sysctl -w vm.nr_hugepages=64"},
		{"clock", func(f *Facts, _ *Interface) { f.Clock = "hpet" }, "clock", Warning, "hpet is slow", "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"},
		{"irqbalance", func(f *Facts, _ *Interface) { f.IRQBalance = 77 }, "irqbalance", Warning, "process 77", "systemctl disable --now irqbalance"},
		{"interface", func(_ *Facts, i *Interface) { i.Exists = false }, "interface", Wrong, "there are eth1, eth2, lo", ""},
		{"queue", func(_ *Facts, i *Interface) {
			i.Port.Queues, i.Queues = config.Queues{List: []int{0, 5}}, nil
		}, "interface", Wrong, "queue 5 does not exist: eth1 has 4 queues (0 to 3)", "ethtool -L eth1 combined 6"},
		{"carrier", func(_ *Facts, i *Interface) { i.Up = false }, "link", Warning, "no carrier", "cable"},
		{"driver", func(_ *Facts, i *Interface) { i.XDPFeatures, i.Driver = features(0), "e1000" }, "driver", Warning, "e1000 has no native XDP", "docs/nics.md"},
		{"native", func(_ *Facts, i *Interface) { i.XDPFeatures, i.Port.XDP = features(0), "native" }, "driver", Wrong, `xdp = "native" asks`, `xdp = "auto"`},
		{"generic", func(_ *Facts, i *Interface) { i.Port.XDP = "generic" }, "driver", Warning, "has native XDP", `xdp = "auto"`},
		{"virtio", func(_ *Facts, i *Interface) { i.XDPFeatures, i.Driver = features(0), "virtio_net" }, "driver", Warning, "virtio_net", "guest_csum"},
		{"i40e", func(_ *Facts, i *Interface) { i.Driver = "i40e" }, "driver", Wrong, "4 channels for 8 processors", "ethtool -L eth1 combined 8"},
		{"zero-copy", func(_ *Facts, i *Interface) { i.XDPFeatures, i.Port.ZeroCopy = features(bpf.FeatureNative), "on" }, "zero_copy", Wrong, "has no zero-copy", `zero_copy = "auto"`},
		{"spare queue pairs", func(_ *Facts, i *Interface) { i.Driver, i.Port.ZeroCopy = "virtio_net", "on" }, "zero_copy", Wrong, "16 queue pairs and uses 4", "as many queue pairs"},
		{"header in memory", func(f *Facts, i *Interface) {
			i.Driver, i.Port.ZeroCopy, f.TxHeader = "virtio_net", "on", &TxHeader{Address: 0x4020d690, Known: true, InMemory: true}
		}, "tx_header", Wrong, "(0x4020d690), where others keep their data", `zero_copy = "auto"`},
		{"header anywhere", func(f *Facts, i *Interface) {
			i.Driver, i.Port.ZeroCopy, f.TxHeader = "virtio_net", "on", &TxHeader{}
		}, "tx_header", Wrong, "wrong address: whether", "built in"},
		{"header nowhere", func(f *Facts, i *Interface) {
			i.Driver, i.Port.ZeroCopy, f.TxHeader = "virtio_net", "on", &TxHeader{Address: 0x4020d690, Known: true}
		}, "tx_header", Warning, "no memory", "built in"},
		{"running", func(f *Facts, i *Interface) {
			i.Up, f.Warnings = false, []string{`port "lan": what is sent stays; mend: ip link set dev eth1 down`}
		}, "running", Warning, `says: port "lan": what is sent stays`, "ip link set dev eth1 down"},
		{"LRO", func(_ *Facts, i *Interface) { i.Offloads["rx-lro"] = true }, "offloads", Wrong, "LRO", "ethtool -K eth1 lro off"},
		{"GRO_HW", func(_ *Facts, i *Interface) { i.Offloads["rx-gro-hw"], i.Fixed["rx-gro-hw"] = true, true }, "offloads", Wrong, "cannot be turned off here", "host"},
		{"VLAN", func(_ *Facts, i *Interface) { i.Offloads["rx-vlan-hw-parse"] = true }, "offloads", Wrong, "VLAN tags", "ethtool -K eth1 rxvlan off"},
		{"ring", func(_ *Facts, i *Interface) { i.RingRx = 256 }, "ring", Warning, "room for 256", "ethtool -G eth1 rx 1024"},
		{"RSS", func(_ *Facts, i *Interface) { i.RSS.Key[0] = 0 }, "rss", Warning, "not symmetric", "ethtool -X eth1 hkey 6d:5a:6d:5a"},
		{"RSS elsewhere", func(_ *Facts, i *Interface) {
			i.Port.Queues, i.Queues = config.Queues{List: []int{0}}, []int{0}
		}, "rss", Wrong, "queue 1 too", "ethtool -X eth1 equal 1"},
		{"half duplex", func(_ *Facts, i *Interface) { i.HalfDuplex = true }, "speed", Warning, "half duplex", "autoneg on"},
		{"speed", func(_ *Facts, i *Interface) { i.Speed = 100000 }, "speed", Warning, "eth1 has 100000 Mbit/s and eth2 25000", "one speed"},
		{"NUMA", func(_ *Facts, i *Interface) { i.NUMA = 1 }, "numa", Warning, "eth2 is on NUMA node 0 and eth1 on node 1", "one node"},
		{"interrupts", func(_ *Facts, i *Interface) { i.IRQCPUs = []string{"3", "3", "3"} }, "irq", Warning, "processor 3", "smp_affinity_list"},
		{"processors", func(f *Facts, _ *Interface) { f.CPUs = 2 }, "channels", Warning, "4 queues for 2 processors", "ethtool -L eth1 combined 2"},
		{"unequal", func(_ *Facts, i *Interface) { i.Queues = i.Queues[:2] }, "channels", Wrong, `"lan" has 2 and "wan" has 4`, "ethtool -L eth2 combined 2"},
		{"redirects", func(f *Facts, i *Interface) {
			f.Appliance.Mode, f.Interfaces, f.Redirects["all"] = config.ModeRouter, f.Interfaces[:1], true
			f.Forwarding["ipv4"]["eth1"], f.Forwarding["ipv6"]["eth1"] = true, true
		}, "redirects", Warning, "ICMP redirects", "send_redirects=0"},
		{"stranger", func(_ *Facts, i *Interface) { i.Occupant = &bpf.Occupant{ID: 7, Name: "xdp_x", Link: 3} }, "xdp", Wrong, "another XDP program is attached (id 7, name xdp_x)", "bpftool link detach id 3"},
		{"frames", func(f *Facts, _ *Interface) { f.Appliance.FramesPerQueue = 2048 }, "rings", Warning, "2048 frames", "frames_per_queue = 4096"},
	} {
		f := healthy()
		c.harm(f, f.Interfaces[0])
		var got *Finding
		for _, found := range Check(f) {
			if found.Level != Fine && found.Check == c.check {
				got = &found
				break
			}
		}
		if got == nil || got.Level != c.level || !strings.Contains(got.Found, c.found) || !strings.Contains(got.Mend, c.mend) || got.Why == "" {
			t.Errorf("%s: got %+v, want %v %q, mend %q", c.name, got, c.level, c.found, c.mend)
		}
		if got != nil && got.Start && got.Level == Wrong {
			if _, err := Start(f); err == nil || !strings.Contains(err.Error(), got.String()) {
				t.Errorf("%s: a start says %v, want %q", c.name, err, got)
			}
		}
	}
}

// TestNoFacts: what is not told is not judged, and nothing panics.
func TestNoFacts(t *testing.T) {
	for _, file := range []string{"", "x.toml"} {
		f := &Facts{Subject: Subject{File: file, Appliance: config.Defaults()}, Available: -1, CgroupLimit: -1, Interfaces: []*Interface{{NUMA: -1}, {Exists: true, Name: "eth2", NUMA: -1}}}
		for _, found := range Check(f) {
			if found.Check == "" || found.Found == "" {
				t.Errorf("%+v", found)
			}
		}
	}
}

// TestLook sees this machine, with a port that is there and one that is not.
func TestLook(t *testing.T) {
	f := Look(Subject{Appliance: config.Defaults(), File: "x.toml", Lock: "/nonexistent", Ports: []config.Port{
		{Name: "a", Interface: "lo", Queues: config.Queues{All: true}}, {Name: "b", Interface: "no-such-if"},
	}})
	if f.Major < 3 || f.CPUs < 1 || f.Files == 0 || f.Available <= 0 || len(f.Names) == 0 {
		t.Errorf("%+v", f)
	}
	if i := f.Interfaces[0]; !i.Exists || i.Ifindex != 1 || len(i.Queues) != 1 {
		t.Errorf("lo: %+v", i)
	}
	if i := f.Interfaces[1]; i.Exists || i.Err != nil {
		t.Errorf("no-such-if: %+v", i)
	}
}

func TestRSS(t *testing.T) {
	attr := func(kind int, b []byte) []byte { return nl.NewRtAttr(kind, b).Serialize() }
	table := binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, 1), 0)
	key := []byte(strings.Repeat("\x01\x02", 20))
	r := parseRSS(append(attr(rssIndir, table), attr(rssKey, key)...))
	if r == nil || len(r.Table) != 2 || r.Queues()[1] != 1 || !r.Symmetric() {
		t.Fatalf("%+v", r)
	}
	r = parseRSS(attr(rssKey, append([]byte{9}, key...)))
	if r.Symmetric() {
		t.Errorf("%+v", r)
	}
	r = parseRSS(append(attr(rssKey, append([]byte{9}, key...)), attr(rssInputXfrm, []byte{1, 0, 0, 0})...))
	if !r.Symmetric() {
		t.Errorf("%+v", r)
	}
	for _, b := range [][]byte{nil, {1}, {3, 0, 4, 0}, {255, 255, 4, 0}, attr(rssInputXfrm, []byte{1})} {
		_ = parseRSS(b) // no panic
	}
}

func TestLevelJSON(t *testing.T) {
	b, err := json.Marshal(Finding{Check: "x", Level: Warning, Found: "y"})
	if err != nil || string(b) != `{"check":"x","level":"warning","found":"y"}` {
		t.Errorf("%s, %v", b, err)
	}
	var f Finding
	if err := json.Unmarshal(b, &f); err != nil || f.Level != Warning {
		t.Errorf("%+v, %v", f, err)
	}
	if json.Unmarshal([]byte(`{"level":"bad"}`), &f) == nil {
		t.Error("a level that does not exist is read")
	}
}

func TestFixIsSafe(t *testing.T) {
	if err := Fix(Finding{Check: "x", Mend: "true"}); err == nil {
		t.Error("a mend that is not safe is run")
	}
	if err := Fix(Finding{Check: "x", Mend: "true", Safe: true}); err != nil {
		t.Error(err)
	}
	if err := Fix(Finding{Check: "x", Mend: "false and more", Safe: true}); err == nil || !strings.Contains(err.Error(), `run "false and more": `) {
		t.Error(err)
	}
}

// TestTxHeader reads where the device of virtio_net finds its headers, as kernels
// tell it.
func TestTxHeader(t *testing.T) {
	const memory = "00001000-0009fbff : System RAM\n00100000-7ffdffff : System RAM\n  01000000-021d3f8f : Kernel code\n  02200000-02ffffff : Kernel data\n80000000-febfffff : PCI Bus 0000:00\n"
	const text = "0000000000000000 A fixed_percpu_data\nffffffff81000000 T _text\n"
	for _, c := range []struct {
		name, symbols, memory string
		want                  *TxHeader
	}{
		// 7.3.4 of Debian with nokaslr and 2 GiB, where what the device reads was seen
		// from outside: the name of a kernel function.
		{"in memory", text + "ffffffffc020d690 b xsk_hdr\t[virtio_net]\n", memory, &TxHeader{Address: 0x4020d690, Known: true, InMemory: true}},
		{"its end in memory", text + "ffffffff800ffff0 b xsk_hdr\t[virtio_net]\n", memory, &TxHeader{Address: 0x000ffff0, Known: true, InMemory: true}},
		{"behind it", text + "ffffffffc020d690 b xsk_hdr\t[virtio_net]\n", strings.Replace(memory, "7ffdffff", "3ffdffff", 1), &TxHeader{Address: 0x4020d690, Known: true}},
		{"image moved", "ffffffffa5000000 T _text\nffffffffc0107690 b xsk_hdr\t[virtio_net]\n", strings.Replace(memory, "01000000", "08c00000", 1), &TxHeader{Address: 0x23d07690, Known: true, InMemory: true}},
		{"no such variable", text + "ffffffffc020d600 d napi_weight\t[virtio_net]\n", memory, nil},
		{"that of another", text + "ffffffffc020d690 b xsk_hdr\t[other]\nffffffffc020d600 d napi_weight\t[virtio_net]\n", memory, nil},
		{"functions only", text + "ffffffffc0200000 t virtnet_poll\t[virtio_net]\n", memory, &TxHeader{}},
		{"symbols hidden", "0000000000000000 T _text\n0000000000000000 b xsk_hdr\t[virtio_net]\n", memory, &TxHeader{}},
		{"memory hidden", text + "ffffffffc020d690 b xsk_hdr\t[virtio_net]\n", "00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n", &TxHeader{}},
		{"nothing", "", "", &TxHeader{}},
	} {
		got := findTxHeader(strings.NewReader(c.symbols), strings.NewReader(c.memory))
		if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}
