package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"penstock/internal/control"
)

// lockPath is where an instance of that name says that it is alive.
func lockPath(name string) string { return filepath.Join("/run/penstock", name+".lock") }

// takePlace makes this the appliance of its name on this machine. If another
// runs, it is asked to leave: what can fail beforehand has succeeded by now, so
// that the wire is without stages for as long as it takes to open sockets.
func (a *appliance) takePlace() error {
	path := lockPath(a.cfg.Appliance.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make directory of the lock file: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("open lock file: %w", err)
	}
	if err := a.lockOrTakeOver(f); err != nil {
		f.Close()
		return err
	}
	a.lock = f
	_ = f.Truncate(0)
	_, err = f.WriteAt([]byte(a.lockLine()), 0)
	return err
}

func (a *appliance) lockOrTakeOver(f *os.File) error {
	if locked, err := tryLock(f); locked || err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return fmt.Errorf("read lock file: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, socket, _ := strings.Cut(line, " ")
	other := fmt.Sprintf("an appliance named %q runs already (process %s)", a.cfg.Appliance.Name, pid)
	if socket == "" {
		return fmt.Errorf("%s and has no control socket to be asked over; stop it, or set another name in [appliance]", other)
	}
	answer, asked := control.NewClient(socket).Handover()
	wait := goneGrace // it may be ending by itself, and not answer any more
	if asked == nil {
		wait = time.Duration(answer.DrainSeconds * float64(time.Second))
		n := answer.Flows
		a.log.Info("taking over", "process", pid, "drains_for_at_most", wait, "forwarded", n.Forwarded, "inspected", n.Inspected,
			"terminated", n.Terminated, "spliced", n.Spliced, "offloaded", n.Offloaded)
		wait += handoverGrace
	}
	// It holds the lock until all that is its own is closed.
	for deadline := time.Now().Add(wait); ; {
		if locked, err := tryLock(f); locked || err != nil {
			a.before = readReport(f, pid)
			return err
		}
		if time.Now().After(deadline) {
			if asked != nil {
				return fmt.Errorf("%s and does not hand over: %w; stop it, or set another name in [appliance]", other, asked)
			}
			return fmt.Errorf("%s and has not left within %v; end it (kill %s) and start again", other, wait, pid)
		}
		time.Sleep(handoverPoll)
	}
}

const (
	handoverGrace = 10 * time.Second
	goneGrace     = 2 * time.Second
	handoverPoll  = 2 * time.Millisecond
)

func tryLock(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return true, nil
}

// Handover implements control.Source: the appliance drains, leaves XDP attached
// and ends. Its successor waits for the lock.
func (a *appliance) Handover() (h control.Handover, err error) {
	if !a.pinned {
		return h, control.Refused(errors.New("it can pin nothing (pins in [appliance]), so that XDP would go with it; stop it before another one starts"))
	}
	_, h.Flows, err = a.depths()
	h.DrainSeconds = time.Duration(a.live().Appliance.DrainTimeout).Seconds()
	select {
	case a.handover <- struct{}{}:
	default: // under way
	}
	return h, err
}

// leaveReport writes what became of this instance behind its first line in the
// lock file, for one that takes over.
func (a *appliance) leaveReport(x *control.Exit) {
	text, err := json.Marshal(x)
	if a.lock == nil || err != nil {
		return
	}
	if _, err := a.lock.WriteAt(append([]byte(a.lockLine()), text...), 0); err != nil {
		a.log.Warn("a successor cannot be told what became of the flows", "err", err)
	}
}

func (a *appliance) lockLine() string {
	return fmt.Sprintf("%d %s\n", os.Getpid(), a.cfg.Appliance.Control)
}

// readReport reads what an instance has left, or returns nil.
func readReport(f *os.File, pid string) *control.Exit {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 64<<10))
	_, report, found := strings.Cut(string(text), "\n")
	x := new(control.Exit)
	if err != nil || !found || json.Unmarshal([]byte(report), x) != nil || strconv.Itoa(x.PID) != pid {
		return nil
	}
	return x
}
