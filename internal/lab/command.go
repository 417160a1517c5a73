package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cmd is an exec.Cmd that runs inside a namespace and ends with its lab. Set the
// exec.Cmd's fields before Start; use Cmd's own Start, Run, Wait and Output. It has a
// process group of its own; what is left in the group when it exits is killed.
//
// The child asks for SIGKILL at the death of the thread that forked it, so that a
// crash of this process ends it too. That thread is kept until the child is gone.
type Cmd struct {
	*exec.Cmd
	ns        *NS
	withSysfs bool
	exited    chan struct{} // closed when the process is dead; it is reaped by Wait

	mu     sync.Mutex // held through Start; guards reaped
	start  bool
	reaped bool

	waitOnce sync.Once
	waitErr  error
}

// Command prepares a program to run inside the namespace, as exec.CommandContext does;
// when ctx ends, its process group is killed.
func (n *NS) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := &Cmd{Cmd: exec.CommandContext(ctx, name, args...), ns: n, exited: make(chan struct{})}
	c.Cmd.Cancel = func() error { return c.signalGroup(unix.SIGKILL) }
	// A grandchild that left the group could hold the output pipes open for ever.
	c.Cmd.WaitDelay = terminateGrace
	return c
}

// WithSysfs gives the child a private mount namespace in which /sys shows the
// interfaces of its network namespace. What is mounted below /sys (bpf, cgroup)
// stays in place. It returns c.
func (c *Cmd) WithSysfs() *Cmd {
	c.withSysfs = true
	return c
}

// Start starts the process.
func (c *Cmd) Start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.start {
		return fmt.Errorf("start %s in %s: it was started before", c.Path, c.ns.name)
	}
	c.start = true
	l := c.ns.lab
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return fmt.Errorf("start %s: %w", c.Path, errClosed(l))
	}
	l.cmds[c] = struct{}{}
	l.mu.Unlock()

	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.SysProcAttr.Pdeathsig = syscall.SIGKILL
	c.SysProcAttr.Setpgid = !c.SysProcAttr.Setsid // a session brings a group of its own

	started := make(chan error, 1)
	spawn(func() bool {
		err := c.startOnThread()
		started <- err
		if err == nil {
			c.hold()
		}
		return false // the thread is in other namespaces now: let it end
	})
	if err := <-started; err != nil {
		c.forget()
		return fmt.Errorf("start %s in %s: %w", c.Path, c.ns.name, err)
	}
	return nil
}

func (c *Cmd) startOnThread() error {
	if _, err := c.ns.enter(); err != nil {
		return err
	}
	if c.withSysfs {
		if err := c.ns.remountSysfs(); err != nil {
			return err
		}
	}
	return c.Cmd.Start()
}

// hold keeps the forking thread until the child is dead, and then ends what is left
// of its group: the child is not reaped yet, so its id is still its own.
func (c *Cmd) hold() {
	for {
		err := unix.Waitid(unix.P_PID, c.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	_ = unix.Kill(-c.Process.Pid, unix.SIGKILL)
	close(c.exited)
}

// Wait waits for the process as exec.Cmd.Wait does. Every call returns the same.
func (c *Cmd) Wait() error {
	c.mu.Lock()
	started := c.start && c.Process != nil
	c.mu.Unlock()
	if !started {
		return fmt.Errorf("wait for %s: it was not started", c.Path)
	}
	<-c.exited
	c.waitOnce.Do(func() {
		c.mu.Lock()
		c.reaped = true
		c.mu.Unlock()
		c.waitErr = c.Cmd.Wait()
		c.forget()
	})
	return c.waitErr
}

// Exited is closed when the process is dead.
func (c *Cmd) Exited() <-chan struct{} { return c.exited }

// Run starts the process and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the process and returns its standard output. If it fails, the error is
// an *exec.ExitError with its standard error, unless that was redirected.
func (c *Cmd) Output() ([]byte, error) {
	var out, errOut bytes.Buffer
	c.Stdout = &out
	if c.Stderr == nil {
		c.Stderr = &errOut
	}
	err := c.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		exit.Stderr = errOut.Bytes()
	}
	return out.Bytes(), err
}

// CombinedOutput runs the process and returns its standard output and error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// Terminate sends SIGTERM, after grace SIGKILL, to the process group and waits for
// the process. It returns what Wait returns.
func (c *Cmd) Terminate(grace time.Duration) error {
	if err := c.signalGroup(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-c.exited:
	case <-timer.C:
		_ = c.signalGroup(unix.SIGKILL) // fails only if it is gone
	}
	return c.Wait()
}

// signalGroup signals the process group as long as its id cannot belong to another.
func (c *Cmd) signalGroup(sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Process == nil || c.reaped {
		return os.ErrProcessDone
	}
	if err := unix.Kill(-c.Process.Pid, sig); err != nil && err != unix.ESRCH {
		return fmt.Errorf("signal %s: %w", c.Path, err)
	}
	return nil
}

func (c *Cmd) forget() {
	l := c.ns.lab
	l.mu.Lock()
	delete(l.cmds, c)
	l.mu.Unlock()
}

// terminateAll ends processes side by side. How they exit is not an error here.
func terminateAll(cmds []*Cmd) error {
	var wg sync.WaitGroup
	errs := make([]error, len(cmds))
	for i, c := range cmds {
		wg.Go(func() {
			c.mu.Lock() // a Start that is under way ends first
			running := c.Process != nil
			c.mu.Unlock()
			if !running {
				return
			}
			// A killed process, an ended context, a pipe that was held open: as long as the
			// process is gone, that is what was asked for.
			if err := c.Terminate(terminateGrace); err != nil && c.ProcessState == nil {
				errs[i] = fmt.Errorf("end %s: %w", c.Path, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
