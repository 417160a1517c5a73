package privilege

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"penstock/internal/lab/labtest"
)

// TestKeep gives up privileges in a process of its own that has threads which wait in
// the kernel, threads that work, and some that begin later.
func TestKeep(t *testing.T) {
	if os.Getenv("PRIVILEGE_CHILD") != "" {
		child()
		os.Exit(0)
	}
	labtest.NeedRoot(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestKeep$")
	cmd.Env = append(os.Environ(), "PRIVILEGE_CHILD=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if lines[0] != "[cap_net_admin cap_net_raw] true false true" {
		t.Errorf("%s is left", lines[0])
	}
	if len(lines) < 10 {
		t.Errorf("it had %d threads: %s", len(lines)-1, out)
	}
	const none, netAdmin, both = "0000000000000000", "0000000000001000", "0000000000003000"
	for _, l := range lines[1:] {
		if want := strings.Join([]string{none, both, netAdmin, both, none, "1"}, " "); l != want {
			t.Errorf("a thread has %q (inheritable, permitted, effective, bounding, ambient, no_new_privs), want %q", l, want)
		}
	}
}

func child() {
	hold, ready := make(chan struct{}), make(chan struct{})
	begin := func(n int) {
		for i := range n {
			go func() {
				runtime.LockOSThread()
				ready <- struct{}{}
				for i%2 == 0 {
					select {
					case <-hold:
						return
					default:
						runtime.Gosched()
					}
				}
				<-hold
			}()
			<-ready
		}
	}
	begin(4)
	// One that has begun before is finished with what it has.
	begun, asked, early := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		early <- With([]cap.Value{cap.NET_RAW}, func() error {
			close(begun)
			<-asked
			for range 1000 {
				runtime.Gosched()
			}
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		})
	}()
	<-begun
	close(asked)
	left, err := Keep([]cap.Value{cap.NET_ADMIN}, []cap.Value{cap.NET_RAW})
	if early := <-early; early != nil {
		fmt.Println("With, before Keep:", early)
		os.Exit(1)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	begin(4)
	raw := func() bool {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err == nil
	}
	var with bool
	without := raw()
	err = With([]cap.Value{cap.NET_RAW, cap.SYS_ADMIN}, func() error { with = raw(); return nil })
	fmt.Println(left, with, without || raw(), err == nil)
	tasks, _ := filepath.Glob("/proc/self/task/*/status")
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		var has []string
		for _, name := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"} {
			_, value, _ := strings.Cut(string(text), "\n"+name+":\t")
			value, _, _ = strings.Cut(value, "\n")
			has = append(has, value)
		}
		fmt.Println(strings.Join(has, " "))
	}
	close(hold)
}
