package e2e

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

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
