package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
	_, err = f.WriteAt(fmt.Appendf(nil, "%d %s", os.Getpid(), a.cfg.Appliance.Control), 0)
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
	pid, socket, _ := strings.Cut(string(text), " ")
	other := fmt.Sprintf("an appliance named %q runs already (process %s)", a.cfg.Appliance.Name, pid)
	if socket == "" {
		return fmt.Errorf("%s and has no control socket to be asked over; stop it, or set another name in [appliance]", other)
	}
	wait, asked := control.NewClient(socket).Handover()
	if asked == nil {
		a.log.Info("taking over", "process", pid, "drains_for_at_most", wait)
		wait += handoverGrace
	} else {
		wait = goneGrace // it may be ending by itself, and not answer any more
	}
	// It holds the lock until all that is its own is closed.
	for deadline := time.Now().Add(wait); ; {
		if locked, err := tryLock(f); locked || err != nil {
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
func (a *appliance) Handover() (time.Duration, error) {
	if !a.pinned {
		return 0, errors.New("it can pin nothing (pins in [appliance]), so that XDP would go with it")
	}
	select {
	case a.handover <- struct{}{}:
	default: // under way
	}
	return time.Duration(a.cfg.Appliance.DrainTimeout), nil
}
