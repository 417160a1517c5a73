package lab_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
)

func TestDo(t *testing.T) {
	l := labtest.NewForTest(t)
	n, err := l.NS("a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.NS("b")
	if err != nil {
		t.Fatal(err)
	}
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if inside(t, n) == home || inside(t, n) == inside(t, other) {
		t.Error("Do did not change the namespace")
	}
	var nested string
	err = n.Do(func() error {
		nested = inside(t, other)
		return nil
	})
	if err != nil || nested != inside(t, other) {
		t.Errorf("Do in a Do: in %s (%v), want %s", nested, err, inside(t, other))
	}
	boom := errors.New("boom")
	if err := n.Do(func() error { return boom }); err != boom {
		t.Errorf("Do gave %v, want fn's error", err)
	}
	func() {
		defer func() {
			if p := recover(); p == nil || !strings.Contains(p.(string), "on purpose") || !strings.Contains(p.(string), n.Name()) {
				t.Errorf("panic in Do: caller got %v", p)
			}
		}()
		n.Do(func() error { panic("on purpose") })
	}()
	ended := make(chan bool)
	go func() {
		left := true
		defer func() { ended <- left }()
		n.Do(func() error { runtime.Goexit(); return nil })
		left = false
	}()
	if !<-ended {
		t.Error("Goexit in Do: the caller went on")
	}
	// None of that left a thread of this process inside.
	tids, err := lab.Threads(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, tid := range tids {
		ns, err := os.Readlink("/proc/self/task/" + strconv.Itoa(tid) + "/ns/net")
		if err == nil && ns != home {
			eventually(t, "the thread that was left inside ended", func() bool {
				_, err := os.Stat("/proc/self/task/" + strconv.Itoa(tid))
				return err != nil
			})
		}
	}
}

func TestCommandRunsInside(t *testing.T) {
	l := labtest.NewForTest(t)
	top, err := l.Inline(lab.InlineOptions{})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	var host []string
	for _, e := range entries {
		host = append(host, e.Name())
	}
	for _, sysfs := range []bool{false, true} {
		c := inNS(t.Context(), top.Appliance, "where")
		wantSys := strings.Join(host, " ")
		if sysfs {
			c.WithSysfs()
			wantSys = "eth1 eth2 lo"
		}
		out, err := c.Output()
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Split(string(out), "\n")
		if got[0] != inside(t, top.Appliance) {
			t.Errorf("child is in %s, want %s", got[0], inside(t, top.Appliance))
		}
		ifs := strings.Fields(got[1])
		slices.Sort(ifs)
		if !slices.Equal(ifs, []string{"eth1", "eth2", "lo"}) {
			t.Errorf("child sees interfaces %v", ifs)
		}
		if got[2] != wantSys {
			t.Errorf("WithSysfs %v: child's /sys/class/net has %q, want %q", sysfs, got[2], wantSys)
		}
		var below []string
		entries, _ := os.ReadDir("/sys/fs/cgroup")
		for _, e := range entries {
			below = append(below, e.Name())
		}
		if got[3] != strings.Join(below, " ") {
			t.Errorf("WithSysfs %v: child's /sys/fs/cgroup has %q, ours %q", sysfs, got[3], below)
		}
	}
}

// TestCommandOutlivesItsThread starts a child and then makes the runtime use and
// end many threads: the child must not take that for the death of its parent.
func TestCommandOutlivesItsThread(t *testing.T) {
	l := labtest.NewForTest(t)
	n, err := l.NS("a")
	if err != nil {
		t.Fatal(err)
	}
	c := inNS(t.Context(), n, "cat")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		inside(t, n)
		inNS(t.Context(), n, "cat").WithSysfs() // prepared, never started
		done := make(chan struct{})
		go func() {
			runtime.LockOSThread() // ends its thread
			close(done)
		}()
		<-done
	}
	runtime.GC()
	if _, err := io.WriteString(in, "still here"); err != nil {
		t.Fatal(err)
	}
	in.Close()
	got, err := io.ReadAll(out)
	if err != nil || string(got) != "still here" {
		t.Errorf("child answered %q, %v", got, err)
	}
	for range 2 {
		if err := c.Wait(); err != nil {
			t.Errorf("wait: %v", err)
		}
	}
	if err := c.Start(); err == nil {
		t.Error("second Start: no error")
	}
}

func TestCommandEnds(t *testing.T) {
	l := labtest.NewForTest(t)
	n, err := l.NS("a")
	if err != nil {
		t.Fatal(err)
	}
	bystander, _ := outside(t, "sleep")

	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := inNS(ctx, n, "stubborn")
		firstLine(t, c.StdoutPipe, c.Start)
		cancel()
		var exit *exec.ExitError
		if err := c.Wait(); !errors.As(err, &exit) && !errors.Is(err, context.Canceled) {
			t.Errorf("wait: %v, want the end by the context", err)
		}
		if alive(c.Process.Pid) {
			t.Error("still alive")
		}
	})
	t.Run("group", func(t *testing.T) {
		c := inNS(t.Context(), n, "parent")
		grandchild, err := strconv.Atoi(firstLine(t, c.StdoutPipe, c.Start))
		if err != nil {
			t.Fatal(err)
		}
		if !alive(grandchild) {
			t.Fatal("the grandchild is not there")
		}
		// The leader dies by SIGTERM, the grandchild ignores it.
		var exit *exec.ExitError
		if err := c.Terminate(10 * time.Second); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
			t.Errorf("terminate: %v, want the end by SIGTERM", err)
		}
		eventually(t, "the grandchild dead", func() bool { return !alive(grandchild) })
	})
	t.Run("not found", func(t *testing.T) {
		if err := n.Command(t.Context(), "/does/not/exist").Run(); err == nil {
			t.Error("no error")
		}
		if err := n.Command(t.Context(), "/does/not/exist").Wait(); err == nil {
			t.Error("wait without start: no error")
		}
	})
	t.Run("exit status", func(t *testing.T) {
		c := inNS(t.Context(), n, "where")
		c.Dir = "/proc/self/fd" // anything that exists
		c.Env = append(c.Env, childMode+"=no-such-mode")
		c.Args = append(c.Args, "-test.run=[", "-test.v")
		var exit *exec.ExitError
		if out, err := c.CombinedOutput(); !errors.As(err, &exit) || exit.ExitCode() == 0 || len(out) == 0 {
			t.Errorf("got %v, output %q; want a failing child with output", err, out)
		}
	})
	t.Run("close", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		polite, stubborn, cancelled := inNS(t.Context(), n, "sleep"), inNS(t.Context(), n, "stubborn"), inNS(ctx, n, "stubborn")
		for _, c := range []*lab.Cmd{polite, stubborn, cancelled} {
			firstLine(t, c.StdoutPipe, c.Start)
		}
		cancel() // at the same moment
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for c, want := range map[*lab.Cmd]syscall.Signal{polite: syscall.SIGTERM, stubborn: syscall.SIGKILL, cancelled: syscall.SIGKILL} {
			if got := c.ProcessState.Sys().(syscall.WaitStatus).Signal(); got != want {
				t.Errorf("ended by %v, want %v", got, want)
			}
		}
	})
	if !alive(bystander.Process.Pid) {
		t.Error("a process outside the lab was ended too")
	}
}
