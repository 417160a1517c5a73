package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"penstock/internal/control"
	"penstock/internal/lab"
)

// The capabilities that a process keeps, as in /proc: NET_ADMIN and BPF, and for root
// DAC_OVERRIDE.
const (
	keptOfUnit = "0000008000001000"
	keptOfRoot = "0000008000001002"
)

// hasDropped waits until a process says that it has given up privileges: soon after it
// first answers.
func (a *appliance) hasDropped() {
	a.r.t.Helper()
	a.r.eventually("privileges are given up", func() error {
		if !strings.Contains(a.log.String(), "privileges are given up") {
			return errors.New("it has not said so")
		}
		return nil
	})
}

// threads checks the privileges of every thread below /proc/PID/task.
func threads(t *testing.T, tasks, kept, bounding string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(tasks, "*", "status"))
	if err != nil || len(files) < 4 {
		t.Fatalf("%d threads below %s, %v", len(files), tasks, err)
	}
	none := strings.Repeat("0", 16)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"CapInh:\t" + none, "CapPrm:\t" + kept, "CapEff:\t" + kept, "CapBnd:\t" + bounding, "CapAmb:\t" + none, "NoNewPrivs:\t1"} {
			if !strings.Contains(string(text), "\n"+want+"\n") {
				t.Errorf("%s: want %q, it has:\n%s", file, want, text)
			}
		}
	}
}

// TestPrivileges: a process that root has started has given up what only a start
// takes, in every thread, and still does all that comes later.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	r.need("tcpdump")
	r.config("closed", "", terminateChain+"[[record]]\nto = \"file:"+filepath.Join(r.dir, "flows.json")+"\"\nevents = [\"flow\"]\n")
	r.origin(80)
	a := r.start()
	check := func(when string) {
		t.Helper()
		a.hasDropped()
		threads(t, fmt.Sprintf("/proc/%d/task", a.cmd.Process.Pid), keptOfRoot, keptOfRoot)
		if err := r.request(false); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if t.Failed() {
			t.Fatal(when)
		}
	}
	check("after the start")

	t.Log("reload: chains and rules change, files are opened again, one of them another user's")
	if err := os.Chown(filepath.Join(r.dir, "flows.json"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(r.dir, "flows.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.change(r.toml, `depth = "terminate"`, "depth = \"terminate\"\n  ack_delay = \"1ms\"")
	r.change(r.toml, `proto = "tcp"`, `proto = "any"`)
	r.run(r.Appliance, 10*time.Second, binary, "reload", "--control", r.control())
	check("after a reload")
	r.run(r.Appliance, 10*time.Second, binary, "deny", "add", "--control", r.control(), "192.0.2.0/24")

	t.Log("links go down and up")
	for _, link := range []string{r.LANIf, r.WANIf} {
		for _, up := range []bool{false, true} {
			if err := r.Appliance.SetLink(link, up); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.eventually("traffic passes again", func() error { return r.request(false) })
	check("after the links were down")

	c := r.capture("--filter", "tcp port 80", "--at", "lan:rx", filepath.Join(r.dir, "out.pcapng"))
	check("under a capture")
	c.interrupt(syscall.SIGINT)
	if text := c.wait(); !strings.Contains(text, "packets") || strings.Contains(text, " 0 packets") {
		t.Errorf("capture: %s", text)
	}

	t.Log("another process takes over")
	old := a
	a = r.start()
	select {
	case <-old.cmd.Exited():
	case <-time.After(20 * time.Second):
		t.Fatal("the first process has not ended")
	}
	if err := old.cmd.Wait(); err != nil {
		t.Errorf("the first process ended with %v:\n%s", err, old.log)
	}
	r.eventually("the second process answers", func() error {
		s, err := control.NewClient(r.control()).Status()
		if err == nil && s.PID != a.cmd.Process.Pid {
			err = fmt.Errorf("process %d does", s.PID)
		}
		return err
	})
	check("after the take-over")

	a.stop()
	r.nothingAttached()
	for _, link := range []string{r.LANIf, r.WANIf} {
		err := r.Appliance.Do(func() error {
			l, err := netlink.LinkByName(link)
			if err == nil && l.Attrs().Promisc != 0 {
				err = errors.New("it is promiscuous still, since the first process")
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", link, err)
		}
	}
	for _, log := range []*lockedBuffer{old.log, a.log} {
		if text := log.String(); strings.Contains(text, "level=ERROR") || strings.Contains(text, "permitted") || !strings.Contains(text, "privileges are given up") {
			t.Errorf("log:\n%s", text)
		}
	}
}
