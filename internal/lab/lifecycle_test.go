package lab_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
)

func TestNamesAreUniqueAndChecked(t *testing.T) {
	a, b := labtest.NewForTest(t), labtest.NewForTest(t)
	na, err := a.NS("client")
	if err != nil {
		t.Fatal(err)
	}
	nb, err := b.NS("client")
	if err != nil {
		t.Fatal(err)
	}
	if na.Name() == nb.Name() || inside(t, na) == inside(t, nb) {
		t.Errorf("two labs share namespace %s", na.Name())
	}
	if want := fmt.Sprintf("test-%d-", os.Getpid()); !strings.HasPrefix(na.Name(), want) || !strings.HasSuffix(na.Name(), "-client") {
		t.Errorf("namespace is called %q, want %sCOUNTER-client", na.Name(), want)
	}
	if _, err := a.NS("client"); err == nil {
		t.Error("the same role twice: no error")
	}
	for _, bad := range []string{"", "Upper", "a/b", "../x", "a--b", "-a", strings.Repeat("a", 33)} {
		if l, err := lab.New(bad); err == nil {
			l.Close()
			t.Errorf("New(%q): no error", bad)
		}
		if _, err := a.NS(bad); err == nil {
			t.Errorf("NS(%q): no error", bad)
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	labtest.NeedRoot(t)
	build := func() *lab.Lab {
		l, err := lab.New("leaktest")
		if err != nil {
			t.Fatal(err)
		}
		top, err := l.Inline(lab.InlineOptions{Bridge: true})
		if err != nil {
			l.Close()
			t.Fatal(err)
		}
		for _, fail := range []error{
			second(top.Client.Tap(top.ClientIf, 10)),
			second(top.Server.Raw(top.ServerIf)),
			second(top.Server.SetThreadedNAPI(top.ServerIf)), // opens the sysfs
			inNS(t.Context(), top.Client, "sleep").Start(),
			inNS(t.Context(), top.Client, "sleep").WithSysfs().Start(),
		} {
			if fail != nil {
				l.Close()
				t.Fatal(fail)
			}
		}
		return l
	}
	build().Close() // what Go and the libraries open once and keep is open now
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	for range 2 {
		l := build()
		for range 2 {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if left := namespaces(t, l.Name()+"-"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if _, err := l.NS("late"); err == nil {
			t.Error("NS on a closed lab: no error")
		}
	}
	eventually(t, "open files back to what they were", func() bool { return openFiles(t) <= files })
	eventually(t, "goroutines back to what they were", func() bool { return runtime.NumGoroutine() <= goroutines })
}

// TestCloseCutsWires holds a socket in a namespace over its lab's end: the kernel
// keeps such a namespace, so its links must be taken away by hand.
func TestCloseCutsWires(t *testing.T) {
	stays, goes := labtest.NewForTest(t), labtest.NewForTest(t)
	a, err := stays.NS("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := goes.NS("b")
	if err != nil {
		t.Fatal(err)
	}
	err = stays.Veth(lab.End{NS: a, Name: "wire0", Addrs: prefix("10.1.0.1/24")}, lab.End{NS: b, Name: "wire1", Addrs: prefix("10.1.0.2/24")}, lab.VethOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := b.Listen("tcp", "10.1.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := goes.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.LinkIndex("wire0"); err == nil {
		t.Error("the wire's other end is still there")
	}
	if err := b.Do(func() error { return nil }); err == nil {
		t.Error("Do in a closed lab: no error")
	}
	if err := inNS(t.Context(), b, "sleep").Start(); err == nil {
		t.Error("Start in a closed lab: no error")
	}
	if _, err := b.Tap("wire1", 1); err == nil {
		t.Error("Tap in a closed lab: no error")
	}
}

// TestKilledOwner ends a process that owns a lab by SIGKILL: its child goes with it,
// and its namespaces are swept by whoever comes next, but not those of the living.
func TestKilledOwner(t *testing.T) {
	labtest.NeedRoot(t)
	living, err := lab.New("sweeptest")
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	if _, err := living.NS("stays"); err != nil {
		t.Fatal(err)
	}
	owner, line := outside(t, "owner")
	var name string
	var child int
	if _, err := fmt.Sscan(line, &name, &child); err != nil {
		t.Fatalf("owner said %q: %v", line, err)
	}
	lab.SweepStale("sweeptest")
	if got := namespaces(t, name+"-"); len(got) != 3 || !alive(child) {
		t.Fatalf("owner is alive: namespaces %v, its child alive %v; want three, true", got, alive(child))
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	owner.Wait()
	eventually(t, "the owner's child dead", func() bool { return !alive(child) })
	if got := namespaces(t, name+"-"); len(got) != 3 {
		t.Fatalf("after kill -9: namespaces %v, want three", got)
	}
	lab.SweepStale("sweep") // another name
	if got := namespaces(t, name+"-"); len(got) != 3 {
		t.Fatalf("sweeping another name left %v of three", got)
	}
	lab.SweepStale("sweeptest")
	if got := namespaces(t, name+"-"); len(got) > 0 {
		t.Errorf("after the sweep: %v", got)
	}
	if got := namespaces(t, living.Name()+"-"); len(got) != 1 {
		t.Errorf("the living lab has %v, want its one namespace", got)
	}
}

func TestEndsByPanicAndSignal(t *testing.T) {
	labtest.NeedRoot(t)
	t.Run("panic", func(t *testing.T) {
		c, name := outside(t, "panics")
		if err := c.Wait(); err == nil {
			t.Error("the child panicked and exited 0")
		}
		if left := namespaces(t, name+"-"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("signal", func(t *testing.T) {
		c, name := outside(t, "signalled")
		if got := namespaces(t, name+"-"); len(got) != 3 {
			t.Fatalf("namespaces %v, want three", got)
		}
		if err := c.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		var exit *exec.ExitError
		if err := c.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
			t.Errorf("child ended with %v, want by SIGTERM", err)
		}
		if left := namespaces(t, name+"-"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

func TestManyProcessesAtOnce(t *testing.T) {
	labtest.NeedRoot(t)
	var cmds []*exec.Cmd
	var outs []*strings.Builder
	for range 4 {
		c, out := exec.Command(self, "-test.timeout=60s"), &strings.Builder{}
		c.Env = append(os.Environ(), childMode+"=traffic")
		c.Stdout, c.Stderr = out, out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		cmds, outs = append(cmds, c), append(outs, out)
	}
	for i, c := range cmds {
		if err := c.Wait(); err != nil || !strings.Contains(outs[i].String(), "PASS") {
			t.Errorf("process %d: %v\n%s", i, err, outs[i])
		}
		if left := namespaces(t, fmt.Sprintf("test-%d-", c.Process.Pid)); len(left) > 0 {
			t.Errorf("process %d left %v", i, left)
		}
	}
}

// TestNeedsPrivileges takes this thread's capabilities away for a while.
func TestNeedsPrivileges(t *testing.T) {
	labtest.NeedRoot(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had, none [2]unix.CapUserData
	if err := unix.Capget(&head, &had[0]); err != nil {
		t.Fatal(err)
	}
	none = had
	none[0].Effective, none[1].Effective = 0, 0
	if err := unix.Capset(&head, &none[0]); err != nil {
		t.Fatal(err)
	}
	l, err := lab.New("test")
	var plain, required recorder
	t.Setenv("REQUIRE_PRIV", "")
	labtest.NeedRoot(&plain)
	t.Setenv("REQUIRE_PRIV", "1")
	labtest.NeedRoot(&required)
	if err := unix.Capset(&head, &had[0]); err != nil {
		t.Fatal(err)
	}
	if err == nil {
		l.Close()
		t.Fatal("New without capabilities: no error")
	}
	if !strings.Contains(err.Error(), "CAP_SYS_ADMIN") || !strings.Contains(err.Error(), "sudo") {
		t.Errorf("New says %q; want what is missing and what to do", err)
	}
	if !strings.Contains(plain.skipped, "CAP_NET_ADMIN") || plain.failed != "" {
		t.Errorf("NeedRoot: skipped %q, failed %q; want a loud skip", plain.skipped, plain.failed)
	}
	if !strings.Contains(required.failed, "CAP_NET_ADMIN") || required.skipped != "" {
		t.Errorf("NeedRoot, REQUIRE_PRIV=1: skipped %q, failed %q; want a failure", required.skipped, required.failed)
	}
}

// recorder is a testing.TB that notes how it was ended.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Skipf(f string, a ...any)  { r.skipped = fmt.Sprintf(f, a...) }
func (r *recorder) Fatalf(f string, a ...any) { r.failed = fmt.Sprintf(f, a...) }

func second[T any](_ T, err error) error { return err }

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
