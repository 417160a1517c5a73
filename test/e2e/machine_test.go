package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"penstock/internal/control"
)

// machine is a clean Debian whose PID 1 is systemd: a container with the network of
// the appliance's namespace. What is written to it goes with it.
type machine struct {
	r   *rig
	pid int // of its PID 1, outside
}

// boot boots it. It takes debootstrap, a mirror of Debian and a minute or two, once.
func (r *rig) boot() *machine {
	r.t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		r.t.Fatal(err)
	}
	dir := filepath.Join(cache, "penstock", "debian-bookworm")
	if out, err := exec.Command("testdata/machine/root.sh", dir).CombinedOutput(); err != nil {
		if os.Getenv("REQUIRE_PRIV") == "1" {
			r.t.Fatalf("REQUIRE_PRIV=1, but there is no Debian to boot: %v: %s", err, out)
		}
		r.t.Skipf("SKIPPED, NOT PASSED: there is no Debian to boot: %v: %s", err, out)
	}
	path := filepath.Join(r.dir, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		r.t.Fatal(err)
	}
	defer manager.Close()
	name := r.name
	script, err := filepath.Abs("testdata/machine/boot.sh")
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := r.Appliance.Command(r.t.Context(), script, filepath.Join(dir, "root"), name).WithSysfs()
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	console := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = console, console
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	m := &machine{r: r}
	r.t.Cleanup(func() {
		if m.pid > 0 {
			_, _ = m.try("systemctl", "poweroff", "--no-wall")
		}
		_ = cmd.Terminate(10 * time.Second)
		removeGroups(r.t, name)
	})
	_ = manager.SetReadDeadline(time.Now().Add(time.Minute))
	for b, ready := make([]byte, 4096), false; !ready; {
		n, err := manager.Read(b)
		if err != nil {
			r.t.Fatalf("the machine does not boot: %v:\n%s", err, console)
		}
		for line := range strings.Lines(string(b[:n])) {
			line = strings.TrimSpace(line)
			if pid, found := strings.CutPrefix(line, "X_NSPAWN_LEADER_PID="); found {
				m.pid, _ = strconv.Atoi(pid)
			}
			ready = ready || line == "READY=1"
		}
	}
	if m.pid == 0 {
		r.t.Fatalf("the machine has no PID 1:\n%s", console)
	}
	r.t.Cleanup(func() {
		if r.t.Failed() {
			r.t.Logf("journal of the machine:\n%s", m.journal())
		}
	})
	// Where groups are of version 1 the container may see, and not use, the one
	// of memory. It is its own, so it may.
	if _, err := m.try("sh", "-c", "! test -e /sys/fs/cgroup/memory/cgroup.procs || { mount -o remount,rw,bind /sys/fs/cgroup/memory && systemctl daemon-reexec; }"); err != nil {
		r.t.Fatal(err)
	}
	m.do("sh", "-c", "echo 127.0.0.1 $(hostname) >>/etc/hosts") // sudo wants to know
	return m
}

// removeGroups removes the control groups that boot.sh has made.
func removeGroups(t *testing.T, name string) {
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		tops, err := filepath.Glob(pattern + name)
		if err != nil {
			t.Error(err)
		}
		for _, top := range tops {
			var dirs []string
			_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for i := len(dirs) - 1; i >= 0; i-- {
				deadline := time.Now().Add(5 * time.Second)
				err := os.Remove(dirs[i])
				for ; err != nil && !errors.Is(err, os.ErrNotExist) && time.Now().Before(deadline); err = os.Remove(dirs[i]) {
					time.Sleep(20 * time.Millisecond)
				}
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Errorf("control group of the machine: %v", err)
				}
			}
		}
	}
}

// try runs a command on the machine as root and returns what it prints.
func (m *machine) try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", fmt.Sprint(m.pid), "-a", name}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// do is try for what has to work.
func (m *machine) do(name string, args ...string) string {
	m.r.t.Helper()
	out, err := m.try(name, args...)
	if err != nil {
		m.r.t.Fatal(err)
	}
	return out
}

func (m *machine) journal() string {
	out, _ := m.try("journalctl", "--no-pager", "-q", "-b", "-o", "cat", "-u", "penstock@*")
	return out
}

// path is where a file of the machine is, seen from outside.
func (m *machine) path(file string) string { return fmt.Sprintf("/proc/%d/root%s", m.pid, file) }

func (m *machine) write(file, text string) {
	m.r.t.Helper()
	if err := os.WriteFile(m.path(file), []byte(text), 0o644); err != nil {
		m.r.t.Fatal(err)
	}
}

// copyIn copies a file from outside.
func (m *machine) copyIn(from, to string, mode os.FileMode) {
	m.r.t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(m.path(to), b, mode)
	}
	if err != nil {
		m.r.t.Fatal(err)
	}
}

// property of the unit penstock@edge.
func (m *machine) property(name string) string {
	m.r.t.Helper()
	return strings.TrimSpace(m.do("systemctl", "show", "--value", "-p", name, "penstock@edge"))
}

func (m *machine) client() *control.Client {
	return control.NewClient(m.path("/run/edge/control.sock"))
}
