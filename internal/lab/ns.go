package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const threadNet = "/proc/thread-self/ns/net"

var roleForm = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// NS is one network namespace of a Lab.
type NS struct {
	lab        *Lab
	role, name string

	mu    sync.RWMutex // held for reading while the files below are used
	file  *os.File     // nil once the namespace is removed
	nl    *netlink.Handle
	sysfs *os.File // a sysfs of this namespace that is mounted nowhere; made on first use
}

// NS creates a named network namespace with its loopback up. IPv6 addresses in it
// are usable at once (no duplicate address detection) and only those given to it
// exist (no router advertisements); reverse path filtering is off; an address
// answers ARP only on its own interface.
func (l *Lab) NS(role string) (*NS, error) {
	if !roleForm.MatchString(role) || len(role) > 32 {
		return nil, fmt.Errorf("create namespace: role %q: want lower case words joined by '-', at most 32 bytes", role)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("create namespace %q: %w", role, errClosed(l))
	}
	if l.roles[role] {
		return nil, fmt.Errorf("create namespace %q: lab %s has one of that role already", role, l.name)
	}
	n := &NS{lab: l, role: role, name: l.name + "-" + role}
	if err := n.create(); err != nil {
		return nil, fmt.Errorf("create namespace %s: %w", n.name, err)
	}
	if err := n.setUp(); err != nil {
		_ = n.remove() // the first error says why
		return nil, fmt.Errorf("create namespace %s: %w", n.name, err)
	}
	l.roles[role] = true
	l.spaces = append(l.spaces, n)
	return n, nil
}

// Name returns the namespace's name, as `ip netns` shows it.
func (n *NS) Name() string { return n.name }

// Role returns the role that the namespace was created for.
func (n *NS) Role() string { return n.role }

// Path returns the file that the namespace is bound to.
func (n *NS) Path() string { return filepath.Join(runDir, n.name) }

// Lab returns the lab that owns the namespace.
func (n *NS) Lab() *Lab { return n.lab }

func (n *NS) create() error {
	done := make(chan error, 1)
	spawn(func() bool {
		done <- n.createOnThread()
		return false // this thread has moved to the new namespace: let it end
	})
	return <-done
}

func (n *NS) createOnThread() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare network: %w", err)
	}
	f, err := os.OpenFile(n.Path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(threadNet, n.Path(), "bind", unix.MS_BIND, ""); err != nil {
		os.Remove(n.Path())
		return fmt.Errorf("bind %s: %w", n.Path(), err)
	}
	file, err := os.Open(n.Path())
	if err != nil {
		_ = removeBind(n.Path())
		return err
	}
	n.file = file
	return nil
}

// setUp gives a new namespace its netlink socket, sysctls and loopback.
func (n *NS) setUp() error {
	return n.Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		n.nl = nl
		for _, s := range []struct{ key, value string }{
			// IPv4 settings are copied from the first namespace, which may forward or
			// filter. This one first: it changes others.
			{"net/ipv4/ip_forward", "0"},
			{"net/ipv4/conf/default/rp_filter", "0"},
			{"net/ipv4/conf/all/rp_filter", "0"},
			{"net/ipv4/conf/all/arp_ignore", "1"},
			{"net/ipv4/conf/all/arp_announce", "2"},
			// "default" is what links created later start with. DAD would keep IPv6
			// addresses unusable for a second.
			{"net/ipv6/conf/default/disable_ipv6", "0"},
			{"net/ipv6/conf/all/disable_ipv6", "0"},
			{"net/ipv6/conf/default/accept_dad", "0"},
			{"net/ipv6/conf/all/accept_dad", "0"},
			{"net/ipv6/conf/default/accept_ra", "0"},
			{"net/ipv6/conf/all/accept_ra", "0"},
			{"net/ipv6/conf/default/router_solicitations", "0"},
		} {
			if strings.HasPrefix(s.key, "net/ipv6/") && !HaveIPv6() {
				continue
			}
			if err := writeSysctl(s.key, s.value); err != nil {
				return err
			}
		}
		lo, err := nl.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find link lo: %w", err)
		}
		if err := nl.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set link lo up: %w", err)
		}
		return nil
	})
}

// handle returns a file of the namespace that the caller closes.
func (n *NS) handle() (*os.File, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.file == nil {
		return nil, errClosed(n.lab)
	}
	fd, err := unix.FcntlInt(n.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate namespace file: %w", err)
	}
	return os.NewFile(uintptr(fd), n.name), nil
}

// Do runs fn on an OS thread inside the namespace and returns its error. The thread
// is put back afterwards, or ended if that cannot be done. A panic in fn is raised
// again in the caller, and runtime.Goexit (t.FailNow) ends the caller too.
// Goroutines that fn starts are not inside the namespace.
func (n *NS) Do(fn func() error) error {
	type outcome struct {
		err      error
		returned bool
		panicked any
		stack    []byte
	}
	result := make(chan outcome, 1)
	spawn(func() (clean bool) {
		var out outcome
		defer func() { result <- out }()
		back, err := n.enter()
		if err != nil {
			out.err, out.returned = err, true
			return true
		}
		defer func() {
			if out.panicked = recover(); out.panicked != nil {
				out.stack = debug.Stack()
			}
			clean = back()
		}()
		out.err = fn()
		out.returned = true
		return
	})
	out := <-result
	switch {
	case out.panicked != nil:
		panic(fmt.Sprintf("in namespace %s: %v\n%s", n.name, out.panicked, out.stack))
	case !out.returned:
		runtime.Goexit()
	}
	return out.err
}

// enter moves the calling thread, which must be locked, into the namespace. back
// returns it and says whether that was possible.
func (n *NS) enter() (back func() bool, err error) {
	home, err := os.Open(threadNet)
	if err != nil {
		return nil, fmt.Errorf("enter namespace %s: %w", n.name, err)
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.file == nil {
		home.Close()
		return nil, fmt.Errorf("enter namespace %s: %w", n.name, errClosed(n.lab))
	}
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		home.Close()
		return nil, fmt.Errorf("enter namespace %s: %w", n.name, err)
	}
	return func() bool {
		defer home.Close()
		return unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil
	}, nil
}

// Sysctl writes a value under /proc/sys, as seen in the namespace: key is a path
// such as "net/ipv4/ip_forward".
func (n *NS) Sysctl(key, value string) error {
	return n.Do(func() error { return writeSysctl(key, value) })
}

var ipv6Dir = "/proc/sys/net/ipv6" // a test points it elsewhere

// HaveIPv6 says whether this kernel has IPv6. Without it the topologies have IPv4
// addresses only.
func HaveIPv6() bool {
	_, err := os.Stat(ipv6Dir)
	return err == nil
}

func writeSysctl(key, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s to %q: %w", key, value, err)
	}
	return nil
}

// remove deletes the namespace's links and its name. Links go first and by hand:
// the kernel clears a namespace later, and not at all while a socket is open in it.
func (n *NS) remove() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.file == nil {
		return nil
	}
	if n.nl != nil {
		if links, err := n.nl.LinkList(); err == nil {
			for _, link := range links {
				if link.Type() == "veth" || link.Type() == "bridge" {
					_ = n.nl.LinkDel(link) // its peer's end may have gone first
				}
			}
		}
		n.nl.Close()
	}
	if n.sysfs != nil {
		n.sysfs.Close()
	}
	n.file.Close()
	n.file = nil
	return removeBind(n.Path())
}
