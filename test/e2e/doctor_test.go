package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"penstock/internal/doctor"
	"penstock/internal/lab"
)

// doctor runs `penstock doctor` in the appliance's namespace, by a shell command
// before it, and returns its findings.
func (r *rig) doctor(shell string, args ...string) []doctor.Finding {
	r.t.Helper()
	cmd := r.Appliance.Command(r.t.Context(), "sh", append([]string{"-c", shell + `exec "$@"`, "sh", binary, "doctor", "--json"}, args...)...).WithSysfs()
	out, err := cmd.Output()
	var list []doctor.Finding
	if jerr := json.Unmarshal(out, &list); jerr != nil {
		r.t.Fatalf("doctor: %v, %v: %s", err, jerr, out)
	}
	if wrong := doctor.Worst(list) == doctor.Wrong; wrong != (err != nil) {
		r.t.Errorf("doctor ended with %v and finds %v", err, doctor.Worst(list))
	}
	return list
}

// found is what a check says of a port that is not fine; nil: all is.
func found(list []doctor.Finding, check, port string) *doctor.Finding {
	for _, f := range list {
		if f.Check == check && f.Port == port && f.Level != doctor.Fine {
			return &f
		}
	}
	return nil
}

// judged says whether a check had anything to say of a port.
func judged(list []doctor.Finding, check, port string) bool {
	for _, f := range list {
		if f.Check == check && f.Port == port {
			return true
		}
	}
	return false
}

// A plant is a fault, and what the doctor is to say of it.
type plant struct {
	name        string
	fault       func() // nil: it is there already
	check, port string
	level       doctor.Level
	says        string
	refused     bool   // a start stops with the same words
	where       string // the namespace in which the mend is run: "" the appliance's, "client", "fix" (by --fix)
	shell       string // in front of the doctor, the mend behind it
	undo        func()
}

// cure plants a fault, has it found, runs the mend and sees it gone.
func (r *rig) cure(p plant) {
	r.t.Helper()
	if p.fault != nil {
		if f := found(r.doctor("", r.toml), p.check, p.port); f != nil {
			r.t.Errorf("%s: found before it is there: %v", p.name, f)
		}
		p.fault()
	}
	f := found(r.doctor(p.shell, r.toml), p.check, p.port)
	if f == nil || f.Level != p.level || !strings.Contains(f.Found, p.says) || f.Why == "" || f.Mend == "" {
		r.t.Fatalf("%s: got %+v, want %v with %q", p.name, f, p.level, p.says)
	}
	if p.refused {
		out, err := r.penstock("run", r.toml).CombinedOutput()
		if err == nil || !strings.Contains(string(out), f.String()) {
			r.t.Errorf("%s: the start says %q (%v), want %q in it", p.name, out, err, f)
		}
	}
	mend := strings.Replace(f.Mend, "penstock ", binary+" ", 1)
	switch {
	case p.where == "fix":
		if !f.Safe {
			r.t.Errorf("%s: --fix does not run %q", p.name, f.Mend)
		}
		r.doctor("", "--fix", r.toml)
		mend = ""
	case f.Safe:
		r.t.Errorf("%s: --fix may run %q: the test does not try it", p.name, f.Mend)
	}
	shell := ""
	switch {
	case p.shell != "": // a limit: in a new shell, since not every root may raise it again
		shell = mend + "; "
	case p.where == "client": // the words of the mend for the other end of a veth
		mend = "ethtool -K " + r.ClientIf + " gro off && ethtool -K " + r.ClientIf + " gro on"
		r.run(r.Client, 5*time.Second, "sh", "-c", mend)
	case mend != "":
		r.run(r.Appliance, 5*time.Second, "sh", "-c", mend)
	}
	r.eventually(p.name+" is mended", func() error {
		list := r.doctor(shell, r.toml)
		if f := found(list, p.check, p.port); f != nil {
			return fmt.Errorf("still: %+v", f)
		}
		return nil
	})
	if p.undo != nil {
		p.undo()
	}
}

// TestDoctor plants faults, one after the other: each is found, and its mend, as
// it is printed, mends it.
func TestDoctor(t *testing.T) {
	r := newRig(t, lab.InlineOptions{Veth: lab.VethOptions{Queues: 2}})
	r.config("open", "", `
[[steer]]
proto = "tcp"
to = "all"
[[chain]]
name = "all"
offload = "never"
`)
	do := func(name string, args ...string) func() {
		return func() { r.run(r.Appliance, 5*time.Second, name, args...) }
	}
	for _, p := range []plant{
		{name: "link down", fault: do("ip", "link", "set", "dev", "eth1", "down"), check: "link", port: "lan", level: doctor.Wrong, says: "eth1 is down", where: "fix"},
		{name: "MTU beyond a page", fault: do("ip", "link", "set", "dev", "eth2", "mtu", "9000"), check: "mtu", port: "wan", level: doctor.Wrong,
			says: "the MTU of eth2 is 9000 and XDP takes at most 3506", refused: true, undo: do("ip", "link", "set", "dev", "eth2", "mtu", "1500")},
		{name: "MTU beyond a frame", fault: do("ip", "link", "set", "dev", "eth2", "mtu", "2000"), check: "mtu", port: "wan", level: doctor.Warning,
			says: "a frame has room for 1770", undo: do("ip", "link", "set", "dev", "eth2", "mtu", "1500")},
		{name: "MTUs that differ", fault: do("ip", "link", "set", "dev", "eth2", "mtu", "1400"), check: "mtu", port: "lan", level: doctor.Warning, says: "larger packets do not cross"},
		{name: "unequal channels", fault: do("ethtool", "-L", "eth2", "rx", "1", "tx", "1"), check: "channels", port: "wan", level: doctor.Wrong,
			says: `"lan" has 2 and "wan" has 1`, refused: true},
		{name: "another XDP program", fault: func() { r.attachOther(r.WANIf) }, check: "xdp", port: "wan", level: doctor.Wrong, says: "another XDP program is attached (id "},
		{name: "no GRO at the other end", fault: func() { r.run(r.Client, 5*time.Second, "ethtool", "-K", r.ClientIf, "gro", "off") }, check: "redirect", port: "lan",
			level: doctor.Wrong, says: "eth1 takes no redirected frames", where: "client"},
		{name: "addresses", fault: do("ip", "address", "add", "192.0.2.1/24", "dev", "eth1"), check: "addresses", port: "lan", level: doctor.Warning, says: "192.0.2.1/24"},
		{name: "few files", shell: "ulimit -n 64; ", check: "files", level: doctor.Wrong, says: "64 open files"},
	} {
		r.cure(p)
	}

	// An appliance that runs.
	a := r.start()
	r.cure(plant{name: "not promiscuous", fault: do("ip", "link", "set", "dev", "eth2", "promisc", "off"), check: "promisc", port: "wan", level: doctor.Wrong,
		says: "eth2 is not promiscuous", where: "fix"})
	list := r.doctor("", r.toml)
	if f := found(list, "xdp", "lan"); f != nil || !judged(list, "instance", "") || found(list, "instance", "") != nil {
		t.Errorf("of an appliance that runs: %+v in %+v", f, list)
	}
	a.kill()
	r.cure(plant{name: "left attached", check: "pins", level: doctor.Warning, says: "its XDP program is still attached (/sys/fs/bpf/" + r.name})
	r.nothingAttached()

	a = r.start()
	if err := os.Remove(r.control()); err != nil {
		t.Fatal(err)
	}
	r.cure(plant{name: "does not answer", check: "instance", level: doctor.Wrong, says: fmt.Sprintf("runs (process %d) and does not answer", a.cmd.Process.Pid)})
	<-a.cmd.Exited()
	_ = a.cmd.Wait()
	_ = r.penstock("detach", r.toml).Run()
}

// change replaces the first of some words in a configuration.
func (r *rig) change(file, from, to string) {
	r.t.Helper()
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte(strings.Replace(string(text), from, to, 1)), 0o644)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestDoctorRouter plants what is in the way of a router.
func TestDoctorRouter(t *testing.T) {
	r := newRoutedRig(t, lab.RoutedOptions{})
	r.routes("closed", "", anyTCP)
	set := func(key, value string) func() {
		return func() {
			if err := r.Appliance.Sysctl(key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, p := range []plant{
		{name: "strict source check", fault: set("net/ipv4/conf/eth1/rp_filter", "1"), check: "rp_filter", port: "lan", level: doctor.Warning, says: "is strict", where: "fix"},
		{name: "IPv4 is not forwarded", fault: set("net/ipv4/ip_forward", "0"), check: "forwarding", level: doctor.Warning, says: "IPv4 is not forwarded from eth1, eth2"},
		{name: "nothing is forwarded", fault: func() {
			set("net/ipv4/ip_forward", "0")()
			set("net/ipv6/conf/all/forwarding", "0")()
		}, check: "forwarding", level: doctor.Wrong, says: "the kernel forwards nothing", refused: true},
	} {
		r.cure(p)
	}

	// Pins on no BPF file system.
	dir := r.dir + "/pins"
	r.routes("open", "", anyTCP)
	r.change(r.toml, "[[port]]", fmt.Sprintf("pins = %q\n[[port]]", dir))
	f := found(r.doctor("", r.toml), "bpffs", "")
	if f == nil || f.Level != doctor.Warning || !f.Safe || f.Mend != "mount -t bpf bpf "+dir {
		t.Fatalf("pins on no BPF file system: %+v", f)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// In a mount namespace of its own, so that nothing stays mounted.
	out, err := r.try(r.Appliance, 10*time.Second, "unshare", "-m", "sh", "-c", `"$0" doctor --fix --quiet "$1"; "$0" doctor "$1"`, binary, r.toml)
	if err != nil || !strings.Contains(out, dir+" is on a BPF file system") || !strings.Contains(out, "mending: mount -t bpf bpf "+dir) {
		t.Errorf("after --fix: %v: %s", err, out)
	}
}

// TestDoctorPrivileges: who is not root hears what is missing.
func TestDoctorPrivileges(t *testing.T) {
	r := newRig(t, lab.InlineOptions{})
	r.change(r.config("closed", "", "[[steer]]\nto = \"bypass\"\n"), "[[port]]", "pins = \"\"\n[[port]]")
	for _, dir := range []string{r.dir, filepath.Dir(r.dir)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	nobody := func(args ...string) (string, error) {
		cmd := r.penstock(args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := nobody("doctor", "--quiet", r.toml)
	if err == nil || !strings.Contains(out, "CAP_NET_RAW (opens AF_XDP sockets)") || !strings.Contains(out, "ulimit -l unlimited") {
		t.Errorf("%v: %s", err, out)
	}
	refusal, err := nobody("run", r.toml)
	if err == nil || !strings.Contains(refusal, "no permission: root is needed, or CAP_NET_ADMIN (attaches XDP), CAP_NET_RAW") {
		t.Errorf("%v: %s", err, refusal)
	}
	// The limit counts without CAP_IPC_LOCK.
	for caps, want := range map[string]bool{"+net_admin,+net_raw,+bpf,+perfmon": true, "+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock": false} {
		as := "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=" + caps + " --ambient-caps=" + caps + " "
		out, err := r.try(r.Appliance, 10*time.Second, "sh", "-c", "ulimit -l 64; exec "+as+binary+" doctor --quiet "+r.toml)
		if got := strings.Contains(out, "cannot be locked: the limit is 64 KiB"); got != want || strings.Contains(out, "no permission") || (err != nil) != want {
			t.Errorf("%s: %v: %s", caps, err, out)
		}
	}
}
