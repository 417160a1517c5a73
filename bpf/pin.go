package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pinVersion names the folder of pins: PinRoot/NAME/v1. It changes when the maps do.
const pinVersion = "v1"

// linkPrefix tells the pins of links from those of maps.
const linkPrefix = "link_"

// DefaultBPFFS is where the bpf file system is mounted by convention.
const DefaultBPFFS = "/sys/fs/bpf"

// EnsureBPFFS makes sure that path, or the nearest folder above it that exists, is on a bpf file system. If it is not, it mounts
// one, which takes root: on DefaultBPFFS if path is that or below it, else on path itself, which is made.
func EnsureBPFFS(path string) error {
	path = filepath.Clean(path)
	if onBPFFS(path) {
		return nil
	}
	target := path
	if path == DefaultBPFFS || strings.HasPrefix(path, DefaultBPFFS+"/") {
		target = DefaultBPFFS
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		return fmt.Errorf("mount bpf file system: %w", err)
	}
	if err := unix.Mount("bpf", target, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpf file system on %s: %w; mend, as root: mount -t bpf bpf %s", target, err, target)
	}
	return nil
}

// onBPFFS looks at the nearest folder that exists.
func onBPFFS(path string) bool {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		if err == nil {
			return st.Type == unix.BPF_FS_MAGIC
		}
		if !errors.Is(err, unix.ENOENT) || path == filepath.Dir(path) {
			return false
		}
		path = filepath.Dir(path)
	}
}

func (s *Steerer) pinDir() string { return filepath.Join(s.opts.PinRoot, s.opts.Name, pinVersion) }

// linkPin is where a port's link is pinned. bpffs takes no dots; the index keeps apart what the replacement makes equal.
func (s *Steerer) linkPin(port int) string {
	name := strings.Map(func(c rune) rune {
		if c < 128 && validName(string(c)) {
			return c
		}
		return '_'
	}, s.opts.Ports[port].Name)
	return filepath.Join(s.pinDir(), fmt.Sprintf("%s%d_%s", linkPrefix, port, name))
}

// pinsLinks says whether links are pinned as soon as they are there.
func (s *Steerer) pinsLinks() bool { return s.opts.PinRoot != "" && !s.opts.LinksLate }

// claim makes this the instance of its name: flows of a dead one become ours, and so do its pins.
func (s *Steerer) claim() error {
	if s.claimed || s.opts.PinRoot == "" {
		return nil
	}
	if err := s.settle(); err != nil {
		return fmt.Errorf("take over flows: %w", err)
	}
	if err := s.findLeftovers(); err != nil {
		return err
	}
	if err := s.removeMapPins(); err != nil {
		return fmt.Errorf("remove leftover pins: %w", err)
	}
	if err := s.pinMaps(); err != nil {
		return err
	}
	s.claimed = true
	return nil
}

// pinMaps pins the maps, and what is to be known of them.
func (s *Steerer) pinMaps() error {
	err := os.MkdirAll(s.pinDir(), 0o700)
	if err == nil {
		err = s.pinWill()
	}
	for name, m := range s.maps() {
		if err == nil {
			err = replacePin(m, filepath.Join(s.pinDir(), name))
		}
	}
	if err != nil {
		return fmt.Errorf("pin maps: %w", err)
	}
	return nil
}

// removeMapPins removes all pins of the name but those of links: the maps of a dead instance, of whatever version.
func (s *Steerer) removeMapPins() error {
	pins, err := filepath.Glob(filepath.Join(s.opts.PinRoot, s.opts.Name, "*", "*"))
	if err != nil {
		return err
	}
	for _, path := range pins {
		if !isLinkPin(path) {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// findLeftovers notes a dead instance's links on our ports, of whatever version it was, and takes its other links off.
func (s *Steerer) findLeftovers() error {
	s.leftover = map[int]string{}
	pins, err := pinnedLinks(s.opts.PinRoot, s.opts.Name)
	if err != nil {
		return err
	}
	ours := map[int]bool{}
	for _, p := range s.opts.Ports {
		ours[p.Ifindex] = p.Ifindex != 0
	}
	for _, path := range pins {
		if ifindex, ok := pinnedOn(path); ok && ours[ifindex] {
			s.leftover[ifindex] = path
			continue
		}
		if err := removePin(path); err != nil {
			return fmt.Errorf("remove leftover %s: %w", path, err)
		}
	}
	return nil
}

// pinnedLinks are the links that an instance has pinned, of whatever version.
func pinnedLinks(pinRoot, name string) ([]string, error) {
	return filepath.Glob(filepath.Join(pinRoot, name, "*", linkPrefix+"*"))
}

func isLinkPin(path string) bool { return strings.HasPrefix(filepath.Base(path), linkPrefix) }

// pinnedOn returns the interface a pinned link holds. A link knows an index but not the namespace it belongs to, so the
// interface must agree that this is the program it runs.
func pinnedOn(path string) (ifindex int, ok bool) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return 0, false
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil || info.XDP() == nil || info.XDP().Ifindex == 0 {
		return 0, false
	}
	ifindex = int(info.XDP().Ifindex)
	x, err := xdpOn(ifindex)
	return ifindex, err == nil && x.Attached && x.ProgId == uint32(info.Program)
}

// xdpOn says what runs on an interface.
func xdpOn(ifindex int) (netlink.LinkXdp, error) {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return netlink.LinkXdp{}, err
	}
	if l.Attrs().Xdp == nil {
		return netlink.LinkXdp{}, nil
	}
	return *l.Attrs().Xdp, nil
}

// takeOver puts our program in the place of a dead instance's, in one step. It returns false, with the old link removed, if the
// link is not in the mode that the port wants or cannot be updated.
func (s *Steerer) takeOver(a *attachment, port int) (bool, error) {
	p := s.opts.Ports[port]
	path, ok := s.leftover[p.Ifindex]
	if !ok {
		return false, nil
	}
	delete(s.leftover, p.Ifindex)
	a.after = true
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	mode := ModeNative
	x, err := xdpOn(p.Ifindex)
	if err == nil && x.AttachMode == xdpAttachedSKB {
		mode = ModeGeneric
	}
	if err == nil && (p.Mode == ModeAuto || p.Mode == mode) {
		if err = l.Update(a.prog); err == nil {
			err = s.movePin(l, path, s.linkPin(port))
		}
		if err == nil {
			a.link, a.mode = l, mode
			if p.Mode == ModeAuto && mode == ModeGeneric {
				a.why = errors.New("taken over from an earlier instance that ran in generic mode")
			}
			return true, nil
		}
	}
	l.Close()
	return false, removePin(path)
}

// movePin pins a link that was taken over where it belongs now, if anywhere.
func (s *Steerer) movePin(l link.Link, from, to string) error {
	switch {
	case !s.pinsLinks():
		if err := l.Unpin(); err != nil {
			return err
		}
	case from != to:
		// Not unpinned first: that would be a gap if we died between.
		if err := l.Pin(to); err != nil {
			return err
		}
	}
	if dir := filepath.Dir(from); dir != s.pinDir() {
		_ = os.Remove(dir) // of another version; if it was the last pin in there
	}
	return nil
}

// removePin takes off the program that a pinned link holds, and the pin. Other pins are just removed.
func removePin(path string) error {
	var errs []error
	if isLinkPin(path) {
		// Detached rather than closed: somebody else may hold the link too.
		if l, err := link.LoadPinnedLink(path, nil); err == nil {
			if err := detach(l); err != nil {
				errs = append(errs, err)
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// detach ends an attachment, whoever else holds the link, and closes it.
func detach(l link.Link) error {
	err := l.Detach()
	if errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.ENODEV) {
		err = nil // the interface is gone, and the attachment with it
	}
	return errors.Join(err, l.Close())
}

// Close detaches the program from all ports and removes all pins of this name, those of a dead instance included, unless no port was
// attached yet: then they are not ours. The wire is afterwards what it was before: in bridge mode nothing connects the ports. Closing
// twice is no error.
func (s *Steerer) Close() error {
	s.work.Lock()
	defer s.work.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	var errs []error
	for i := range s.ports {
		if l := s.ports[i].link; l != nil {
			errs = append(errs, detach(l))
			s.ports[i].link = nil
		}
	}
	s.release()
	if s.claimed {
		errs = append(errs, Cleanup(s.opts.PinRoot, s.opts.Name))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close steer program: %w", err)
	}
	return nil
}

// Leave closes this process's descriptors and leaves the program attached: packets that belong to a chain go the way OnExit says as
// soon as the sockets are closed. The next instance of the name takes over, or Cleanup removes it.
// Without PinRoot it cannot do that: it closes and returns an error.
func (s *Steerer) Leave() error {
	if s.opts.PinRoot == "" {
		return errors.Join(errors.New("leave steer program attached: it is not pinned"), s.Close())
	}
	s.work.Lock()
	defer s.work.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	err := s.pinLinks()
	s.release()
	if err != nil {
		return fmt.Errorf("leave steer program attached: %w", err)
	}
	return nil
}

func (s *Steerer) pinLinks() error {
	if !s.opts.LinksLate {
		return nil
	}
	for i := range s.ports {
		if l := s.ports[i].link; l != nil {
			if err := l.Pin(s.linkPin(i)); err != nil {
				return fmt.Errorf("pin link: %w", err)
			}
		}
	}
	return nil
}

// Cleanup takes off what an instance of that name left attached and removes its pins. It does not check that the instance is
// dead. Nothing there is no error.
func Cleanup(pinRoot, name string) error {
	if !validName(name) {
		return fmt.Errorf("clean up pins: name %q: want 1 to 64 letters, digits, '-' or '_'", name)
	}
	root := filepath.Join(pinRoot, name)
	if _, err := os.Lstat(root); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !onBPFFS(root) {
		return fmt.Errorf("clean up pins: %s is not on a bpf file system", root)
	}
	var dirs []string
	var errs []error
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			errs = append(errs, err)
		case d.IsDir():
			dirs = append(dirs, path)
		default:
			errs = append(errs, removePin(path))
		}
		return nil
	})
	errs = append(errs, err)
	sort.Sort(sort.Reverse(sort.StringSlice(dirs))) // a folder after what is in it
	for _, d := range dirs {
		errs = append(errs, os.Remove(d))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up pins: %w", err)
	}
	return nil
}
