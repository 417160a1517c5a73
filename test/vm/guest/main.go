// Command guest is the only program that a test's virtual machine boots: as
// process 1 it loads the modules that came with it, mounts what a program
// expects to find, and then runs commands that arrive over the second serial
// port. Under other names (its first argument) it is the few tools that the
// tests need inside.
//
// Its one trap: it is static and alone, so nothing in the machine has a shell, ip
// or ethtool.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Request is one line from the test.
type Request struct {
	ID      int      `json:"id"`
	Args    []string `json:"args,omitempty"` // run this
	Env     []string `json:"env,omitempty"`
	Dir     string   `json:"dir,omitempty"`
	Seconds int      `json:"seconds,omitempty"` // of life; 0: until it ends
	Signal  int      `json:"signal,omitempty"`  // or send this to the command with the same ID
	Write   string   `json:"write,omitempty"`   // or write this file
	Data    []byte   `json:"data,omitempty"`
}

// Answer is one line to it: a piece of output, or, with Done, the end.
type Answer struct {
	ID     int    `json:"id"`
	PID    int    `json:"pid,omitempty"`
	Output []byte `json:"output,omitempty"`
	Done   bool   `json:"done,omitempty"`
	Status int    `json:"status"`
	Error  string `json:"error,omitempty"`
}

func main() {
	if os.Getpid() != 1 {
		if err := tool(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func serve() error {
	for _, m := range []struct{ kind, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"}, {"bpf", "/sys/fs/bpf"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := setLink("lo", "up"); err != nil {
		return err
	}
	line, err := os.OpenFile("/dev/ttyS1", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	if err := setRaw(int(line.Fd())); err != nil {
		return fmt.Errorf("set ttyS1 to raw: %w", err)
	}
	a := &agent{out: json.NewEncoder(line), running: map[int]*exec.Cmd{}}
	a.say(Answer{Done: true})
	in := bufio.NewScanner(line)
	in.Buffer(make([]byte, 1<<16), 1<<24)
	for in.Scan() {
		var r Request
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		go a.do(r)
	}
	return in.Err()
}

// loadModules inserts the modules of a folder in the order of its list.
func loadModules(dir string) error {
	list, err := os.ReadFile(filepath.Join(dir, "order"))
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		image, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := unix.InitModule(image, ""); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

func setRaw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

type agent struct {
	mu      sync.Mutex
	out     *json.Encoder
	running map[int]*exec.Cmd
}

func (a *agent) say(m Answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.out.Encode(m) // the test is gone: so is this machine, soon
}

func (a *agent) do(r Request) {
	end := Answer{ID: r.ID, Done: true}
	var err error
	switch {
	case r.Signal != 0:
		a.mu.Lock()
		if cmd := a.running[r.ID]; cmd != nil {
			err = cmd.Process.Signal(syscall.Signal(r.Signal))
		}
		a.mu.Unlock()
		if err == nil {
			return // the command itself reports its end
		}
	case r.Write != "":
		if err = os.MkdirAll(filepath.Dir(r.Write), 0o755); err == nil {
			err = os.WriteFile(r.Write, r.Data, 0o755)
		}
	default:
		end.Status, err = a.run(r)
	}
	if err != nil {
		end.Error = err.Error()
	}
	a.say(end)
}

func (a *agent) run(r Request) (int, error) {
	ctx := context.Background()
	if r.Seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.Seconds)*time.Second)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, r.Args[0], r.Args[1:]...)
	cmd.Env = append(os.Environ(), r.Env...)
	cmd.Dir = r.Dir
	out := &output{a, r.ID}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return -1, err
	}
	a.mu.Lock()
	a.running[r.ID] = cmd
	a.mu.Unlock()
	a.say(Answer{ID: r.ID, PID: cmd.Process.Pid})
	err := cmd.Wait()
	a.mu.Lock()
	delete(a.running, r.ID)
	a.mu.Unlock()
	if ctx.Err() != nil {
		return -1, fmt.Errorf("still running after %d s", r.Seconds)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			return 128 + int(s.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// output sends what a command prints.
type output struct {
	a  *agent
	id int
}

func (o *output) Write(b []byte) (int, error) {
	o.a.say(Answer{ID: o.id, Output: b})
	return len(b), nil
}
