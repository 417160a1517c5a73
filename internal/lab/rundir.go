package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// runDir is where `ip netns` keeps named namespaces.
const runDir = "/run/netns"

// prepareRunDir makes runDir a shared mount, as `ip netns add` does. Without it a
// process in a mount namespace of its own (WithSysfs, `ip netns exec`) keeps a copy
// of every bind in runDir, and the namespaces outlive their removal.
func prepareRunDir() error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", runDir, err)
	}
	dir, err := os.Open(runDir)
	if err != nil {
		return fmt.Errorf("open %s: %w", runDir, err)
	}
	defer dir.Close() // gives the lock back
	// iproute2 takes the same lock, so that two first users do not both bind.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", runDir, err)
	}
	err = unix.Mount("", runDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if err == nil {
		return nil
	}
	if err != unix.EINVAL { // EINVAL: not a mount point yet
		return fmt.Errorf("share %s: %w", runDir, err)
	}
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if strings.HasPrefix(m, runDir+"/") {
			// Someone keeps namespaces in the plain directory. A bind over it would
			// hide their mounts, and nobody could remove them any more.
			return nil
		}
	}
	if err := unix.Mount(runDir, runDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", runDir, err)
	}
	if err := unix.Mount("", runDir, "none", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share %s: %w", runDir, err)
	}
	return nil
}

// removeBind takes a named namespace away: the bind mount and the file under it.
// What is already gone is no error.
func removeBind(path string) error {
	// EINVAL: the file is no mount point (a creator died between the two steps).
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// mountPoints returns the mount points that the calling thread sees, in mount order.
func mountPoints() ([]string, error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	for s := bufio.NewScanner(f); s.Scan(); {
		// proc_pid_mountinfo(5): id, parent, major:minor, root, mount point, ...
		if f := strings.Fields(s.Text()); len(f) > 4 {
			points = append(points, unescape.Replace(f[4]))
		}
	}
	return points, nil
}
