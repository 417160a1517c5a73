// Package privilege gives up what a process needs no more.
//
// Its one trap: Linux keeps privileges for each thread, and a Go program has
// threads that it does not know of. What is done here is done in all of them, at
// once, with the world stopped.
package privilege

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// changing is held while any thread's capabilities change: Keep changes those of the thread
// in which With has raised some, too.
var changing sync.Mutex

// Keep takes all capabilities from this process but those named that it has, in
// every set of every thread: permitted, effective, inheritable, ambient, and, where
// it has CAP_SETPCAP, bounding. Those of aside are not in effect, but With can put
// them there. No program that it runs can gain others
// (no_new_privs). It returns what is left. Threads that begin later inherit it.
func Keep(names, aside []cap.Value) (left []cap.Value, err error) {
	changing.Lock()
	defer changing.Unlock()
	had := cap.GetProc()
	keep := cap.NewSet()
	for i, c := range append(slices.Clone(names), aside...) {
		has, err := had.GetFlag(cap.Permitted, c)
		if err == nil && has {
			left = append(left, c)
			err = errors.Join(keep.SetFlag(cap.Permitted, true, c), keep.SetFlag(cap.Effective, i < len(names), c))
		}
		if err != nil {
			return nil, fmt.Errorf("keep capability %v: %w", c, err)
		}
	}
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := cap.ResetAmbient(); err != nil {
		return nil, fmt.Errorf("clear ambient capabilities: %w", err)
	}
	// The bounding set counts when a program is run, and then only with what
	// no_new_privs forbids; it may be left as a service manager has set it.
	if may, _ := had.GetFlag(cap.Effective, cap.SETPCAP); may {
		for c := range cap.MaxBits() {
			if kept, _ := keep.GetFlag(cap.Permitted, c); kept {
				continue
			}
			if err := cap.DropBound(c); err != nil {
				return nil, fmt.Errorf("drop %v from the bounding set: %w", c, err)
			}
		}
	}
	if err := keep.SetProc(); err != nil {
		return nil, fmt.Errorf("drop capabilities: %w", err)
	}
	return left, nil
}

// With runs fn with capabilities in effect that Keep has set aside, in this thread
// only. It does without those that the process does not have: what fn does says what
// is missing. Neither Keep nor another With comes between.
func With(names []cap.Value, fn func() error) error {
	changing.Lock()
	defer changing.Unlock()
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3} // of this thread
	var before [2]unix.CapUserData
	if err := unix.Capget(&header, &before[0]); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("read capabilities: %w", err)
	}
	raised := before
	for _, c := range names {
		raised[c/32].Effective |= 1 << (c % 32) & raised[c/32].Permitted
	}
	if err := unix.Capset(&header, &raised[0]); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("raise capabilities: %w", err)
	}
	err := fn()
	if lerr := unix.Capset(&header, &before[0]); lerr != nil {
		// The goroutine keeps the thread, which ends with it.
		return errors.Join(err, fmt.Errorf("lower capabilities: %w", lerr))
	}
	runtime.UnlockOSThread()
	return err
}
