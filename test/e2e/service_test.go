package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"penstock/internal/control"
	"penstock/internal/lab"
)

// TestServiceManager is one: it hears what an appliance tells, in order.
func TestServiceManager(t *testing.T) {
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", terminateChain)
	path := filepath.Join(r.dir, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	hear := func(want string) string {
		t.Helper()
		_ = manager.SetReadDeadline(time.Now().Add(10 * time.Second))
		for b := make([]byte, 4096); ; {
			n, err := manager.Read(b)
			if err != nil {
				t.Fatalf("%s is not told: %v", want, err)
			}
			got := string(b[:n])
			if strings.HasPrefix(got, want) {
				return got
			}
			if got != "WATCHDOG=1" {
				t.Errorf("heard %q before %s", got, want)
			}
		}
	}
	// A start that fails says why, and is not over at once.
	wrong := r.penstock("run", filepath.Join(r.dir, "missing.toml"))
	wrong.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	began := time.Now()
	if out, err := wrong.CombinedOutput(); err == nil || time.Since(began) < time.Second {
		t.Errorf("a start without a file ends after %v: %v, %s", time.Since(began), err, out)
	}
	hear("STATUS=not started: ")
	cmd := r.penstock("run", r.toml)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=2000000")
	log := &lockedBuffer{}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if got := hear("READY=1"); !strings.Contains(got, "STATUS=2 ports, 1 workers, 1 chains") {
		t.Errorf("got %q", got)
	}
	if !r.xdpAttached(r.LANIf) || !r.xdpAttached(r.WANIf) {
		t.Error("it said READY before XDP was attached")
	}
	hear("WATCHDOG=1")
	hear("WATCHDOG=1")
	_ = cmd.Process.Signal(syscall.SIGHUP)
	if got := hear("RELOADING=1"); !strings.Contains(got, "\nMONOTONIC_USEC=") {
		t.Errorf("got %q", got)
	}
	hear("READY=1")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if got := hear("STOPPING=1"); !strings.Contains(got, "STATUS=draining: terminated") {
		t.Errorf("got %q", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v:\n%s", err, log)
	}
}

// TestUnprivileged runs the appliance as the unit file does: as a user who is
// not root, with five capabilities and no way to others. It has to attach, forward,
// terminate, die with the wire connected, and be taken over from.
func TestUnprivileged(t *testing.T) {
	r := newRig(t, lab.InlineOptions{})
	r.config("open", "", terminateChain)
	r.origin(80)
	for _, dir := range []string{r.dir, filepath.Dir(r.dir)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(r.dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	// What /usr/lib/penstock/prepare and systemd do beforehand, in a mount
	// namespace, so that the machine's own stay as they are. It lives until the end,
	// since what is pinned goes with it.
	const prepare = `mkdir -p /run/penstock && mount -t tmpfs -o mode=0700,uid=65534 tmpfs /run/penstock && mount -t bpf -o mode=0700 bpf /sys/fs/bpf &&
		chmod a+x /sys/fs/bpf && mkdir -m 0700 /sys/fs/bpf/"$0" && chown 65534:65534 /sys/fs/bpf/"$0" && echo prepared && exec sleep 600`
	space := r.Appliance.Command(t.Context(), "unshare", "-m", "sh", "-c", prepare, r.name)
	said := &lockedBuffer{}
	space.Stdout, space.Stderr = said, said
	if err := space.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = space.Process.Kill()
		<-space.Exited()
		_ = space.Wait()
	}()
	r.eventually("the mount namespace is prepared", func() error {
		if !strings.Contains(said.String(), "prepared") {
			return fmt.Errorf("it says %q", said)
		}
		return nil
	})
	const caps = "-all,+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock"
	run := func() *appliance {
		a := &appliance{r: r, log: &lockedBuffer{}, cmd: r.Appliance.Command(t.Context(), "nsenter", "-m", "-t", fmt.Sprint(space.Process.Pid), "setpriv",
			"--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs", "--bounding-set="+caps, "--inh-caps="+caps, "--ambient-caps="+caps,
			binary, "run", r.toml)}
		a.cmd.Stderr = a.log
		if err := a.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r.eventually("the appliance answers", func() error {
			_, err := control.NewClient(r.control()).Status()
			if err != nil {
				return fmt.Errorf("%w; its log: %s", err, a.log)
			}
			return nil
		})
		return a
	}
	a := run()
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid)); err != nil || !strings.Contains(string(b), "\nUid:\t65534\t65534") {
		t.Errorf("it is not what the test wants to run: %v, %s", err, b)
	}
	a.hasDropped()
	threads(t, fmt.Sprintf("/proc/%d/task", a.cmd.Process.Pid), keptOfUnit, "000000c000007000")
	for _, v6 := range []bool{false, true} {
		if err := r.request(v6); err != nil {
			t.Errorf("%s: %v", ipName(v6), err)
		}
	}
	if s := a.status(); s.Totals.Consumed == 0 {
		t.Errorf("nothing was terminated: %+v", s.Totals)
	}
	a.kill()
	if err := r.request(false); err != nil {
		t.Errorf("after kill -9: %v", err)
	}
	a = run()
	if err := r.request(true); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	if s := a.status(); s.Totals.Consumed == 0 {
		t.Errorf("the restarted appliance does not terminate: %+v", s.Totals)
	}
	a.stop()
}
