package lab_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
)

// The tests start their own binary again as the programs that run in a lab or own
// one; this variable says as which.
const childMode = "PENSTOCK_LAB_TEST_CHILD"

// self is the running test binary.
var self = func() string {
	path, err := os.Executable()
	check(err)
	return path
}()

func TestMain(m *testing.M) {
	if mode := os.Getenv(childMode); mode != "" && children[mode] != nil {
		children[mode]()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var children = map[string]func(){
	// where: says what the process sees of its network.
	"where": func() {
		ns, err := os.Readlink("/proc/self/ns/net")
		check(err)
		ifs, err := net.Interfaces()
		check(err)
		var names, sys, below []string
		for _, i := range ifs {
			names = append(names, i.Name)
		}
		entries, err := os.ReadDir("/sys/class/net")
		check(err)
		for _, e := range entries {
			sys = append(sys, e.Name())
		}
		if entries, err := os.ReadDir("/sys/fs/cgroup"); err == nil {
			for _, e := range entries {
				below = append(below, e.Name())
			}
		}
		fmt.Printf("%s\n%s\n%s\n%s\n", ns, strings.Join(names, " "), strings.Join(sys, " "), strings.Join(below, " "))
	},
	// cat: copies its input to its output until the end.
	"cat": func() { io.Copy(os.Stdout, os.Stdin) },
	// stubborn: ignores SIGTERM.
	"stubborn": func() {
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		time.Sleep(time.Minute)
	},
	// sleep: dies by any signal.
	"sleep": func() {
		fmt.Println("ready")
		time.Sleep(time.Minute)
	},
	// parent: starts another process of its group, prints its id, and exits on SIGTERM.
	"parent": func() {
		c := exec.Command(self)
		c.Env = append(os.Environ(), childMode+"=stubborn")
		check(c.Start())
		fmt.Println(c.Process.Pid)
		time.Sleep(time.Minute)
	},
	// owner: builds a lab with a process in it, says so, and waits to be killed.
	"owner": func() {
		l, err := lab.New("sweeptest")
		check(err)
		top, err := l.Inline(lab.InlineOptions{})
		check(err)
		c := top.Client.Command(context.Background(), self)
		c.Env = append(os.Environ(), childMode+"=stubborn")
		check(c.Start())
		fmt.Println(l.Name(), c.Process.Pid)
		time.Sleep(time.Minute)
	},
	// traffic: builds a lab of its own and passes traffic in it.
	"traffic": func() {
		testing.Main(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{
			{Name: "TestInlineCarriesTraffic", F: TestInlineCarriesTraffic},
		}, nil, nil)
	},
	// panics: a test that panics while it has a lab.
	"panics": func() {
		testing.Main(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{
			{Name: "TestPanics", F: func(t *testing.T) {
				l := labtest.NewForTest(t)
				_, err := l.Inline(lab.InlineOptions{})
				check(err)
				fmt.Println(l.Name())
				panic("on purpose")
			}},
		}, nil, nil)
	},
	// signalled: a test that is ended by a signal while it has a lab.
	"signalled": func() {
		testing.Main(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{
			{Name: "TestSignalled", F: func(t *testing.T) {
				l := labtest.NewForTest(t)
				_, err := l.Inline(lab.InlineOptions{})
				check(err)
				fmt.Println(l.Name())
				time.Sleep(time.Minute)
			}},
		}, nil, nil)
	},
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// inNS prepares a child of the given mode inside a namespace.
func inNS(ctx context.Context, n *lab.NS, mode string) *lab.Cmd {
	c := n.Command(ctx, self)
	c.Env = append(os.Environ(), childMode+"="+mode)
	return c
}

// firstLine starts a command, which both kinds of Cmd are, and returns what it says first.
func firstLine(t *testing.T, stdout func() (io.ReadCloser, error), start func() error) string {
	t.Helper()
	out, err := stdout()
	if err != nil {
		t.Fatal(err)
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("read the child's first line: %v", err)
	}
	return strings.TrimSpace(line)
}

// outside starts a child of the given mode outside any lab and returns its first line.
func outside(t *testing.T, mode string) (*exec.Cmd, string) {
	t.Helper()
	c := exec.Command(self)
	c.Env = append(os.Environ(), childMode+"="+mode)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	line := firstLine(t, c.StdoutPipe, c.Start)
	t.Cleanup(func() {
		if c.ProcessState == nil {
			c.Process.Kill()
			c.Wait()
		}
	})
	return c, line
}

// eventually polls until ok is true or a generous time is over.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited ten seconds: %s", what)
		}
	}
}

// alive says whether a process exists and is no zombie.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// namespaces returns the names under /run/netns that begin with prefix.
func namespaces(t *testing.T, prefix string) []string {
	t.Helper()
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names
}

func inside(t *testing.T, n *lab.NS) string {
	t.Helper()
	var id string
	err := n.Do(func() (err error) {
		id, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func prefix(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
