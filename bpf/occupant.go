package bpf

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// Occupant is the XDP program that is on an interface, and who holds it there.
type Occupant struct {
	ID      uint32 // of the program
	Name    string // of the program; "" if it has none or it may not be looked at
	Generic bool
	Link    uint32 // the BPF link that holds it; 0: it was attached without one
	Pin     string // where that link is pinned, if it was found
	PID     int    // a process that has the link open, if one was found; 0: none
}

// OccupantOf returns what runs on an interface of the calling thread's network namespace, or nil.
func OccupantOf(ifindex int) (*Occupant, error) {
	x, err := xdpOn(ifindex)
	if err != nil || !x.Attached {
		return nil, err
	}
	o := &Occupant{ID: x.ProgId, Generic: x.AttachMode == xdpAttachedSKB}
	if p, err := ebpf.NewProgramFromID(ebpf.ProgramID(x.ProgId)); err == nil {
		if info, err := p.Info(); err == nil {
			o.Name = info.Name
		}
		p.Close()
	}
	if id, ok := linkOn(ifindex, x.ProgId); ok {
		o.Link = uint32(id)
		o.Pin, o.PID = pinOf(id), holderOf(id)
	}
	return o, nil
}

// String names it as errors do: "id 7, name steer, pinned at /sys/fs/bpf/x/v1/link_0_lan".
func (o *Occupant) String() string {
	s := fmt.Sprintf("id %d", o.ID)
	if o.Name != "" {
		s += ", name " + o.Name
	}
	if o.Pin != "" {
		s += ", pinned at " + o.Pin
	}
	if o.PID != 0 {
		s += fmt.Sprintf(", held by process %d", o.PID)
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", o.PID)); err == nil {
			s += " (" + strings.TrimSpace(string(comm)) + ")"
		}
	}
	return s
}

// Mend is the command that takes it off the interface. A program that is held by a BPF link goes with the link, not with ip link.
func (o *Occupant) Mend(ifname string) string {
	switch {
	case o.Link != 0:
		return fmt.Sprintf("bpftool link detach id %d", o.Link)
	case o.Generic:
		return "ip link set dev " + ifname + " xdpgeneric off"
	}
	return "ip link set dev " + ifname + " xdp off"
}

// occupied says who is on the interface.
func occupied(err error, l netlink.Link) error {
	o, oerr := OccupantOf(l.Attrs().Index)
	if oerr != nil || o == nil {
		return err
	}
	return fmt.Errorf("another XDP program is attached (%s); mend: %s: %w", o, o.Mend(l.Attrs().Name), err)
}

// maxPins bounds how many pins are looked at.
const maxPins = 4096

// pinOf looks for a link among what is pinned by convention.
func pinOf(id link.ID) (pin string) {
	looked := 0
	_ = filepath.WalkDir(DefaultBPFFS, func(path string, d fs.DirEntry, err error) error {
		if looked++; looked > maxPins {
			return fs.SkipAll
		}
		if err != nil || d.IsDir() {
			return nil
		}
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return nil // a map or a program
		}
		defer l.Close()
		if info, err := l.Info(); err == nil && info.ID == id {
			pin = path
			return fs.SkipAll
		}
		return nil
	})
	return pin
}

// holderOf looks for a process that has a link open, this one excepted.
func holderOf(id link.ID) int {
	want := fmt.Sprintf("link_id:\t%d\n", id)
	files, _ := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	for _, f := range files {
		dir := filepath.Dir(f)
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Links have no names: all other files are told from them by what they are called.
		if to, err := os.Readlink(filepath.Join(filepath.Dir(dir), "fd", filepath.Base(f))); err != nil || !strings.HasPrefix(to, "anon_inode:bpf") {
			continue
		}
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), want) {
			return pid
		}
	}
	return 0
}
