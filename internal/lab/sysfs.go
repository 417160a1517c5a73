package lab

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// openSysfs returns the namespace's sysfs as a detached mount. The sysfs at /sys
// shows the interfaces of the namespace that mounted it, whoever reads it.
func (n *NS) openSysfs() (*os.File, error) {
	n.mu.RLock()
	f := n.sysfs
	n.mu.RUnlock()
	if f != nil {
		return f, nil
	}
	var made *os.File
	err := n.Do(func() (err error) {
		made, err = mountSysfs()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open sysfs of %s: %w", n.name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.file == nil {
		made.Close()
		return nil, errClosed(n.lab)
	}
	if n.sysfs != nil { // another goroutine was faster
		made.Close()
	} else {
		n.sysfs = made
	}
	return n.sysfs, nil
}

// mountSysfs mounts a sysfs for the calling thread's network namespace, nowhere.
func mountSysfs() (*os.File, error) {
	fs, err := unix.Fsopen("sysfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen sysfs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("create sysfs: %w", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("fsmount sysfs: %w", err)
	}
	return os.NewFile(uintptr(mnt), "sysfs"), nil
}

// writeLinkFile writes a file of /sys/class/net/LINK.
func (n *NS) writeLinkFile(link, file, value string) error {
	fs, err := n.openSysfs()
	if err != nil {
		return err
	}
	path := "class/net/" + link + "/" + file
	fd, err := unix.Openat(int(fs.Fd()), path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s in %s: %w", path, n.name, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("write %q to %s in %s: %w", value, path, n.name, err)
	}
	return nil
}

// remountSysfs gives the calling thread, which must be locked, in the namespace and
// never used again, a mount namespace of its own whose /sys is this namespace's.
func (n *NS) remountSysfs() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	// Slave: nothing done here is seen outside, unmounts outside are seen here.
	if err := unix.Mount("", "/", "none", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	below, err := sysMounts()
	if err != nil {
		return err
	}
	kept := make([]int, 0, len(below))
	defer func() {
		for _, fd := range kept {
			unix.Close(fd)
		}
	}()
	for _, path := range below {
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return fmt.Errorf("keep mount %s: %w", path, err)
		}
		kept = append(kept, fd)
	}
	sys, err := mountSysfs()
	if err != nil {
		return err
	}
	defer sys.Close()
	if err := unix.MoveMount(int(sys.Fd()), "", unix.AT_FDCWD, "/sys", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	for i, path := range below {
		if err := unix.MoveMount(kept[i], "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount %s again: %w", path, err)
		}
	}
	return nil
}

// sysMounts returns the mount points below /sys, without those below another one.
func sysMounts() ([]string, error) {
	points, err := mountPoints()
	if err != nil {
		return nil, err
	}
	var top []string
next:
	for _, p := range points {
		if !strings.HasPrefix(p, "/sys/") {
			continue
		}
		for _, t := range top {
			if p == t || strings.HasPrefix(p, t+"/") {
				continue next
			}
		}
		top = append(top, p)
	}
	return top, nil
}
