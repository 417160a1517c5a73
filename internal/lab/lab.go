package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// terminateGrace is how long Close waits between SIGTERM and SIGKILL.
const terminateGrace = 2 * time.Second

var (
	nameForm = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)
	counter  atomic.Uint64

	openMu   sync.Mutex
	openLabs = map[*Lab]struct{}{}
)

// Lab is a set of network namespaces and of what runs in them. All methods may be
// called from any goroutine.
type Lab struct {
	name string // NAME-PID-COUNTER, the prefix of every namespace in it

	mu      sync.Mutex
	closed  bool
	spaces  []*NS
	roles   map[string]bool
	cmds    map[*Cmd]struct{}
	closers map[io.Closer]struct{}

	closeOnce sync.Once
	closeErr  error
}

// New prepares an empty lab. name is lower case words joined by '-', at most 32
// bytes; namespaces are called NAME-PID-COUNTER-ROLE, so any number of labs can be
// open in any number of processes. Namespaces under the same name whose process is
// dead are removed first. Without the privileges it needs, New says which are missing.
func New(name string) (*Lab, error) {
	if !nameForm.MatchString(name) || len(name) > 32 {
		return nil, fmt.Errorf("create lab: name %q: want lower case words joined by '-', at most 32 bytes", name)
	}
	if err := Privileged(); err != nil {
		return nil, fmt.Errorf("create lab %q: %w", name, err)
	}
	if err := prepareRunDir(); err != nil {
		return nil, fmt.Errorf("create lab %q: %w", name, err)
	}
	SweepStale(name)
	l := &Lab{
		name:    fmt.Sprintf("%s-%d-%d", name, os.Getpid(), counter.Add(1)),
		roles:   map[string]bool{},
		cmds:    map[*Cmd]struct{}{},
		closers: map[io.Closer]struct{}{},
	}
	openMu.Lock()
	openLabs[l] = struct{}{}
	openMu.Unlock()
	return l, nil
}

// Name returns the lab's unique name, the prefix of its namespaces' names.
func (l *Lab) Name() string { return l.name }

// Privileged returns nil if this process may build a lab, else an error that names
// the missing capabilities and what to do.
func Privileged() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	var missing []string
	for _, c := range []struct {
		bit  uint
		name string
	}{
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"},
		{unix.CAP_NET_RAW, "CAP_NET_RAW"},
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},
	} {
		if data[0].Effective&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("network namespaces need root: missing %v; run it with sudo (in a container: --privileged)", missing)
	}
	return nil
}

// Close ends what runs in the lab and removes its namespaces: SIGTERM to every
// process started by Command, SIGKILL after two seconds, then taps, links and
// namespaces. It is idempotent and returns the first call's result. Sockets from
// Dial and Listen are the caller's to close; a namespace lives, nameless and
// without links, until they are.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() { l.closeErr = l.close() })
	return l.closeErr
}

func (l *Lab) close() error {
	l.mu.Lock()
	l.closed = true
	spaces := l.spaces
	cmds := make([]*Cmd, 0, len(l.cmds))
	for c := range l.cmds {
		cmds = append(cmds, c)
	}
	closers := make([]io.Closer, 0, len(l.closers))
	for c := range l.closers {
		closers = append(closers, c)
	}
	l.mu.Unlock()

	var errs []error
	errs = append(errs, terminateAll(cmds))
	for _, c := range closers {
		errs = append(errs, c.Close())
	}
	for i := len(spaces) - 1; i >= 0; i-- {
		errs = append(errs, spaces[i].remove())
	}
	openMu.Lock()
	delete(openLabs, l)
	openMu.Unlock()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close lab %s: %w", l.name, err)
	}
	return nil
}

// CloseAll closes every lab of this process; the demo and the tests call it when
// a signal ends them.
func CloseAll() error {
	openMu.Lock()
	labs := make([]*Lab, 0, len(openLabs))
	for l := range openLabs {
		labs = append(labs, l)
	}
	openMu.Unlock()
	var errs []error
	for _, l := range labs {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// SweepStale removes the namespaces of labs called prefix whose creating process
// is dead, as a kill -9 leaves them. A process id that was given to a new process
// since hides a stale namespace until that process ends. Namespaces of living
// processes and of other names are not touched.
func SweepStale(prefix string) {
	form := regexp.MustCompile(`^` + regexp.QuoteMeta(prefix) + `-([0-9]+)-[0-9]+-[a-z0-9-]+$`)
	entries, err := os.ReadDir(runDir)
	if err != nil {
		return // no directory: nothing is stale
	}
	for _, e := range entries {
		m := form.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		pid, err := strconv.Atoi(m[1])
		if err != nil || unix.Kill(pid, 0) != unix.ESRCH {
			continue
		}
		// Another process may sweep the same name at this moment: whoever comes
		// second finds nothing, which is no error.
		_ = removeBind(filepath.Join(runDir, e.Name()))
	}
}

// track registers c to be closed with the lab.
func (l *Lab) track(c io.Closer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errClosed(l)
	}
	l.closers[c] = struct{}{}
	return nil
}

func (l *Lab) untrack(c io.Closer) {
	l.mu.Lock()
	delete(l.closers, c)
	l.mu.Unlock()
}

func errClosed(l *Lab) error { return fmt.Errorf("lab %s is closed", l.name) }
