package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"penstock/internal/lab"
)

// installed boots a machine with the ports of docs/install.md and installs the
// package on it.
func installed(t *testing.T, o lab.InlineOptions) *machine {
	t.Helper()
	deb := os.Getenv("PENSTOCK_DEB")
	if deb == "" {
		t.Skip("SKIPPED: `make deb-test` builds the package and boots a machine for it")
	}
	r := newRig(t, o)
	m := r.boot()
	for _, name := range []struct {
		link *string
		is   string
	}{{&r.LANIf, "enp1s0f0"}, {&r.WANIf, "enp1s0f1"}} {
		m.do("ip", "link", "set", *name.link, "down")
		m.do("ip", "link", "set", *name.link, "name", name.is)
		m.do("ip", "link", "set", name.is, "up")
		*name.link = name.is
	}
	m.copyIn(deb, "/penstock.deb", 0o644)
	m.do("dpkg", "-i", "/penstock.deb")
	return m
}

// TestPackage is the path of somebody who has a clean Debian, the package and
// the page docs/install.md.
func TestPackage(t *testing.T) {
	m := installed(t, lab.InlineOptions{})
	r := m.r
	r.origin(80)
	if state := strings.TrimSpace(m.do("systemctl", "is-system-running")); state != "running" {
		t.Errorf("after the installation the machine is %s: %s", state, m.do("systemctl", "--failed"))
	}
	files, err := filepath.Glob(m.path("/etc/penstock/*.toml"))
	if err != nil || len(files) < 5 {
		t.Errorf("%d configurations, %v", len(files), err)
	}
	for _, file := range files {
		m.do("penstock", "check", "--quiet", "/etc/penstock/"+filepath.Base(file))
	}

	page, err := os.ReadFile(m.path("/usr/share/doc/penstock/install.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## A first appliance")
	section, _, _ = strings.Cut(section, "\n## ")
	_, toml, found := strings.Cut(section, "```toml\n")
	toml, rest, end := strings.Cut(toml, "```")
	if !found || !end {
		t.Fatal("install.md has no configuration of a first appliance")
	}
	m.write("/etc/penstock/edge.toml", strings.ReplaceAll(toml, "\n    ", "\n"))
	get := func(when string) {
		t.Helper()
		if err := r.request(false); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	// What is to be typed, in its order, and what it does.
	var typed []string
	for _, c := range regexp.MustCompile("(?s)`((?:sudo|penstock|systemctl) [^`]*)`").FindAllStringSubmatch(rest, -1) {
		typed = append(typed, strings.Join(strings.Fields(c[1]), " "))
	}
	steps := []struct {
		typed string
		then  func(out string)
	}{
		{"penstock check /etc/penstock/edge.toml", nil},
		{"sudo penstock doctor /etc/penstock/edge.toml", nil},
		{"sudo systemctl start penstock@edge", func(string) { get("after the start") }},
		{"systemctl status penstock@edge", func(out string) {
			threads(t, m.path("/proc/"+m.property("MainPID")+"/task"), keptOfUnit, "000000c000007000")
			if !strings.Contains(out, `Status: "2 ports, `) {
				t.Errorf("the status is\n%s", out)
			}
		}},
		{"sudo penstock status --control /run/edge/control.sock", func(out string) {
			if !regexp.MustCompile(`(?m)^web +inspect`).MatchString(out) || !strings.Contains(out, "native") {
				t.Errorf("it says\n%s", out)
			}
		}},
		{"sudo systemctl kill -s KILL penstock@edge", func(string) {
			get("without a process")
			m.back(1)
			get("with the next process")
		}},
		{"sudo systemctl enable penstock@edge", func(string) {
			if _, err := os.Lstat(m.path("/etc/systemd/system/multi-user.target.wants/penstock@edge.service")); err != nil {
				t.Error(err)
			}
		}},
		{"sudo systemctl stop penstock@edge", func(string) { get("after the stop") }},
		{"sudo penstock detach /etc/penstock/edge.toml", func(string) {
			if r.xdpAttached(r.LANIf) || r.xdpAttached(r.WANIf) {
				t.Error("XDP is still attached")
			}
		}},
	}
	for i, s := range steps {
		if i >= len(typed) || typed[i] != s.typed {
			t.Fatalf("install.md has the commands %q; the test knows, at place %d, %q", typed, i, s.typed)
		}
		out := m.do("sh", "-c", s.typed)
		t.Logf("$ %s\n%s", s.typed, out)
		if s.then != nil {
			s.then(out)
		}
	}
	if len(typed) != len(steps) {
		t.Errorf("install.md has more commands than the test knows: %q", typed[len(steps):])
	}

	t.Run("unit", func(t *testing.T) {
		if out := m.do("systemd-analyze", "verify", "penstock@edge.service"); out != "" {
			t.Errorf("systemd-analyze verify: %s", out)
		}
		out := m.do("systemd-analyze", "security", "--no-pager", "--threshold=20", "penstock@edge.service")
		t.Log(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:])
	})

	// A wrong file: the start says so, and does not try ten times a second.
	t.Run("wrong configuration", func(t *testing.T) {
		m.write("/etc/penstock/wrong.toml", "[appliance]\nname = 5\n")
		out, err := m.try("systemctl", "start", "penstock@wrong")
		if err == nil {
			t.Error("systemctl start succeeds")
		}
		time.Sleep(2 * time.Second)
		n, _ := strconv.Atoi(strings.TrimSpace(m.do("systemctl", "show", "--value", "-p", "NRestarts", "penstock@wrong")))
		if n == 0 || n > 4 {
			t.Errorf("it was started %d times in two seconds more", n)
		}
		if j := m.journal(); !strings.Contains(j, "/etc/penstock/wrong.toml:2:") {
			t.Errorf("%s\nthe journal has no word of the mistake", out)
		}
		m.do("systemctl", "stop", "penstock@wrong")
		_ = os.Remove(m.path("/etc/penstock/wrong.toml"))
	})

	t.Run("upgrade", func(t *testing.T) { m.upgrade(t) })

	// A changed configuration survives a new version, which leaves what runs running;
	// a removal stops it, and all goes with a purge.
	pid := m.property("MainPID")
	m.do("sh", "-c", "echo '# changed' >>/etc/penstock/demo.toml && dpkg -i --force-confold /penstock.deb")
	if now := m.property("MainPID"); now != pid || pid == "0" {
		t.Errorf("process %s ran before the package was installed again, %s afterwards", pid, now)
	}
	m.do("grep", "-q", "^# changed", "/etc/penstock/demo.toml")
	m.do("dpkg", "--remove", "penstock")
	if r.xdpAttached(r.LANIf) || r.xdpAttached(r.WANIf) {
		t.Error("the package is gone, and XDP attached")
	}
	_ = os.Remove(m.path("/etc/penstock/edge.toml"))
	m.do("dpkg", "--purge", "penstock")
	for _, path := range []string{"/usr/bin/penstock", "/etc/penstock", "/usr/share/penstock", "/var/log/penstock", "/var/lib/penstock", "/run/penstock", "/sys/fs/bpf/edge",
		"/etc/systemd/system/multi-user.target.wants/penstock@edge.service"} {
		if _, err := os.Lstat(m.path(path)); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
	if out, err := m.try("getent", "passwd", "penstock"); err == nil {
		t.Errorf("the user is still there: %s", out)
	}
}

// upgrade installs another version and restarts the unit, while connections of every
// depth exchange bytes. It leaves the appliance running.
func (m *machine) upgrade(t *testing.T) {
	r := m.r
	ports := []string{"lan\"\ninterface = \"" + r.LANIf, "wan\"\ninterface = \"" + r.WANIf}
	m.write("/etc/penstock/edge.toml", "[appliance]\nname = \"edge\"\nmetrics = \"\"\ndrain_timeout = \"20s\"\n[[port]]\nname = \""+
		strings.Join(ports, "\"\n[[port]]\nname = \"")+"\"\n"+everyDepth(1))
	m.do("systemctl", "start", "penstock@edge")
	for port := range uint16(5) {
		r.tcpServer(7000 + port)
	}
	const conns = 50
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k, wait := r.everyTalker(ctx, conns, []uint16{7000, 7001, 7002, 7003, 7004}, time.Second)
	for n := range 2 {
		r.eventually("connections of every depth stand", func() error {
			if n := k.standing.Load(); n < conns*9/10 {
				return fmt.Errorf("%d do", n)
			}
			s, err := m.client().Status()
			if err == nil && (s.Flows.Offloaded == 0 || s.Flows.Terminated == 0) {
				err = fmt.Errorf("%+v", s.Flows)
			}
			return err
		})
		m.do("sh", "-c", "rm -rf /new && dpkg-deb -R /penstock.deb /new && sed -i 's/^Version: .*/&+'$0/ /new/DEBIAN/control && dpkg-deb -Znone -b /new /new.deb >/dev/null && dpkg -i --force-confold /new.deb", fmt.Sprint(n))
		start := time.Now()
		m.do("systemctl", "restart", "penstock@edge")
		s, err := m.client().Status()
		if err != nil {
			t.Fatal(err)
		}
		i := s.Inherited
		if i == nil || i.Offloaded == 0 || i.Resumed == 0 || i.Bypassed == 0 && n == 0 {
			t.Errorf("restart %d: it has inherited %+v", n, i)
		}
		t.Logf("restart %d took %v: %+v", n, time.Since(start).Round(10*time.Millisecond), i)
	}
	cancel()
	wait()
	t.Logf("%d connections, %d MiB, %d broken", k.conns.Load(), k.bytes.Load()>>20, len(k.broken))
	for _, b := range k.broken[:min(len(k.broken), 20)] {
		t.Error(b)
	}
}

// back waits until systemd has started penstock@edge again, n times in all, and
// packets go through chains again if there are any.
func (m *machine) back(n int) {
	m.r.t.Helper()
	m.r.eventually(fmt.Sprintf("systemd has restarted it %d times", n), func() error {
		got, state := m.property("NRestarts"), m.property("ActiveState")
		if got != strconv.Itoa(n) || state != "active" {
			return fmt.Errorf("%s restarts, %s", got, state)
		}
		_, err := m.client().Status()
		return err
	})
}

const underSystemd = `
[appliance]
name = "edge"
metrics = ""
stuck_timeout = "1s"
[[port]]
name = "lan"
interface = "enp1s0f0"
[[port]]
name = "wan"
interface = "enp1s0f1"
[[steer]]
proto = "udp"
dst_port = [7000]
to = "all"
[[chain]]
name = "all"
offload = "never"
  [[chain.stage]]
  kind = "trap"
`

// TestUnderSystemd measures the wire while the unit's process dies in every way, is
// reloaded, restarted and stopped; each time systemd has a new one take over.
func TestUnderSystemd(t *testing.T) {
	m := installed(t, lab.InlineOptions{StaticNeigh: true})
	r := m.r
	m.copyIn(trapBinary(t), "/usr/bin/penstock", 0o755)
	m.write("/etc/penstock/edge.toml", underSystemd)
	// The unit's own watchdog waits for half a minute.
	if err := os.MkdirAll(m.path("/etc/systemd/system/penstock@.service.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.write("/etc/systemd/system/penstock@.service.d/test.conf", "[Service]\nWatchdogSec=2\n")
	m.do("systemctl", "daemon-reload")
	r.echoUDP(7000)
	r.echoUDP(7001)
	m.do("systemctl", "start", "penstock@edge")
	threads(t, m.path("/proc/"+m.property("MainPID")+"/task"), keptOfUnit, "000000c000007000")
	if t.Failed() {
		return
	}
	through := func() {
		t.Helper()
		r.eventually("packets go through the stage", func() error {
			s, err := m.client().Status()
			if err == nil && s.Totals.Packets < 20 {
				err = fmt.Errorf("%d packets", s.Totals.Packets)
			}
			return err
		})
	}
	// during has traffic while something happens, and says what became of it.
	during := func(what string, do func()) {
		t.Helper()
		steered, bypassed := r.pulse(7000), r.pulse(7001)
		through()
		start := time.Now()
		do()
		through()
		taken := time.Since(start)
		steered.beats(r)
		lost, gap := steered.end()
		lostBeside, gapBeside := bypassed.end()
		t.Logf("%s: steered %v without answer, %d of %d lost; bypassed %v, %d of %d lost; packets go through stages again after %v", what,
			gap.Round(time.Millisecond), lost, steered.sent, gapBeside.Round(time.Millisecond), lostBeside, bypassed.sent, taken.Round(10*time.Millisecond))
		if gap >= time.Second {
			t.Errorf("%s: steered traffic had no answer for %v, want less than a second", what, gap)
		}
		if lostBeside > 0 {
			t.Errorf("%s: bypassed traffic lost %d of %d", what, lostBeside, bypassed.sent)
		}
	}
	tell := func(what string) func() {
		return func() {
			conn, err := r.Client.Dial("udp", r.addr(false, 7000))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte("TRAP:" + what)); err != nil {
				t.Fatal(err)
			}
		}
	}
	restarts := 0
	for _, c := range []struct {
		name string
		do   func()
		log  []string // of the journal
	}{
		{"SIGKILL", func() { m.do("systemctl", "kill", "-s", "KILL", "penstock@edge") }, []string{"code=killed, status=9/KILL"}},
		{"SIGSTOP", func() { m.do("systemctl", "kill", "-s", "STOP", "penstock@edge") }, []string{"Watchdog timeout (limit 2s)!"}},
		{"panic outside of a stage", tell("crash"), []string{"panic: the trap was told to, where nobody recovers"}},
		{"stuck in a stage", tell("hang"), []string{"worker is stuck: the process ends"}},
		{"memory limit", func() {
			m.do("systemctl", "set-property", "--runtime", "penstock@edge", "MemoryMax=500M")
			tell("fill")()
		}, []string{"code=killed, status=9/KILL"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := len(m.journal())
			restarts++
			during(c.name, func() {
				c.do()
				m.back(restarts)
			})
			j := m.journal()
			for _, want := range c.log {
				if !strings.Contains(j[before:], want) {
					t.Errorf("the journal has no %q", want)
				}
			}
		})
	}
	if t.Failed() {
		return
	}
	t.Run("reload", func(t *testing.T) {
		during("reload", func() {
			m.write("/etc/penstock/edge.toml", strings.Replace(underSystemd, "[7000]", "[7000, 7002]", 1))
			m.do("systemctl", "reload", "penstock@edge")
			if s, err := m.client().Status(); err != nil || s.PID == 0 {
				t.Error(err)
			}
			m.write("/etc/penstock/edge.toml", strings.Replace(underSystemd, "[7000]", "[\"all\"]", 1))
			if _, err := m.try("systemctl", "reload", "penstock@edge"); err == nil {
				t.Error("a reload with a mistake succeeds")
			}
			m.write("/etc/penstock/edge.toml", underSystemd)
			m.do("systemctl", "reload", "penstock@edge")
		})
		if n := m.property("NRestarts"); n != strconv.Itoa(restarts) {
			t.Errorf("it was restarted: %s", n)
		}
	})
	t.Run("restart", func(t *testing.T) {
		during("restart", func() { m.do("systemctl", "restart", "penstock@edge") })
	})
	t.Run("stop and start", func(t *testing.T) {
		during("stop and start", func() {
			m.do("systemctl", "stop", "penstock@edge")
			if got := m.property("Result"); got != "success" {
				t.Errorf("the stop ends with %s", got)
			}
			m.do("systemctl", "start", "penstock@edge")
		})
	})
}
