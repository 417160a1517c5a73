package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"penstock/bpf"
	"penstock/internal/control"
	"penstock/internal/doctor"
	"penstock/internal/lab"
	"penstock/xsk"
)

// TestStalls has packets stay on the way behind the appliance's back, where no
// counter tells: in what a driver holds, and before XDP. Each is noticed, counted and
// said with a mend, and its end too.
func TestStalls(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{StaticNeigh: true})
	r.config("closed", "", "[[steer]]\nproto = \"udp\"\nto = \"plain\"\n[[chain]]\nname = \"plain\"\noffload = \"never\"\n")
	a := r.start()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	send := func(from *lab.NS, to string, every time.Duration) {
		c, err := from.Dial("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer c.Close()
			for tick := time.NewTicker(every); ctx.Err() == nil; <-tick.C {
				_, _ = c.Write(make([]byte, 1000)) // refused: nobody listens
			}
		}()
	}
	port := func(s control.Status, name string) control.Port {
		for _, p := range s.Ports {
			if p.Name == name {
				return p
			}
		}
		t.Fatalf("no port %q", name)
		return control.Port{}
	}
	says := func(way string, count uint64, words string, warned bool) {
		t.Helper()
		r.eventually(fmt.Sprintf("%d stalls on the way %s of lan, warned: %t", count, way, warned), func() error {
			s := a.status()
			if got := port(s, "lan").Stalls; got[way] != count {
				return fmt.Errorf("stalls: %v", got)
			}
			if text := strings.Join(s.Warnings, "\n"); strings.Contains(text, words) != warned {
				return fmt.Errorf("warnings: %q", s.Warnings)
			}
			return nil
		})
	}
	// The socket of lan's queue is exchanged for one that the kernel gives no packets of
	// lan: XDP does not learn of it.
	send(r.Client, net.JoinHostPort(r.ServerIP4.String(), "9"), 5*time.Millisecond)
	const sockets = `port "lan": XDP gives packets of eth1 to sockets, and none arrives`
	back := r.exchangeSocket(a.status().PID)
	says("sockets", 1, sockets, true)
	if log := a.log.String(); !strings.Contains(log, "XDP gives packets of eth1 to sockets") || !strings.Contains(log, "ip link set dev eth1 down, then up") {
		t.Errorf("the log does not say so:\n%s", log)
	}
	if !slices.ContainsFunc(r.doctor("", r.toml), func(f doctor.Finding) bool {
		return f.Check == "running" && f.Level == doctor.Warning && strings.Contains(f.Found, sockets) && strings.Contains(f.Mend, "down, then up")
	}) {
		t.Error("the doctor does not say so")
	}
	back()
	says("sockets", 1, sockets, false)
	// Somebody takes the XDP program off.
	if err := r.Appliance.Do(func() error { return detachXDP("eth1") }); err != nil {
		t.Fatal(err)
	}
	says("xdp", 1, `port "lan": eth1 receives packets, and XDP sees none of them`, true)
	cancel()
	if got := port(a.status(), "lan").Stalls; got["sockets"] != 1 || got["tx"] != 0 {
		t.Errorf("stalls: %v", got)
	}
	a.stop()
}

// exchangeSocket puts a socket of the server's interface in the place of that of queue
// 0 of lan. What it returns puts that back.
func (r *rig) exchangeSocket(pid int) (back func()) {
	r.t.Helper()
	must := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatal(err)
		}
	}
	var sockets *ebpf.Map
	must(r.Appliance.Do(func() error {
		i, err := net.InterfaceByName("eth1")
		if err != nil {
			return err
		}
		o, err := bpf.OccupantOf(i.Index)
		if err != nil {
			return err
		}
		sockets, err = mapOf(ebpf.ProgramID(o.ID), "sockets")
		return err
	}))
	r.t.Cleanup(func() { sockets.Close() })
	umem, err := xsk.NewUMEM(xsk.UMEMOptions{Frames: 64})
	must(err)
	r.t.Cleanup(func() { umem.Close() })
	var other *xsk.Socket
	must(r.Server.Do(func() error {
		i, err := net.InterfaceByName("eth0")
		if err == nil {
			other, err = umem.Open(i.Index, 0, nil)
		}
		return err
	}))
	r.t.Cleanup(func() { other.Close() })
	must(sockets.Update(uint32(0), uint32(other.FD()), ebpf.UpdateExist))
	own, err := socketOf(pid)
	must(err)
	r.t.Cleanup(func() { unix.Close(own) })
	return func() { must(sockets.Update(uint32(0), uint32(own), ebpf.UpdateExist)) }
}

// socketOf returns a copy of the first AF_XDP socket that a process has opened.
func socketOf(pid int) (fd int, err error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(process)
	for n := range 1000 {
		fd, err := unix.PidfdGetfd(process, n, 0)
		if err != nil {
			continue
		}
		if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_XDP {
			return fd, nil
		}
		unix.Close(fd)
	}
	return -1, errors.New("find AF_XDP socket: none")
}

// mapOf returns a map of a loaded program by its name.
func mapOf(id ebpf.ProgramID, name string) (*ebpf.Map, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return nil, err
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, err
		}
		if i, err := m.Info(); err == nil && i.Name == name {
			return m, nil
		}
		m.Close()
	}
	return nil, fmt.Errorf("find map %q: none of %d", name, len(ids))
}

// detachXDP takes the XDP program of an interface off by its link, which is not
// ours.
func detachXDP(ifname string) error {
	i, err := net.InterfaceByName(ifname)
	if err != nil {
		return err
	}
	o, err := bpf.OccupantOf(i.Index)
	if err != nil || o == nil || o.Link == 0 {
		return fmt.Errorf("occupant of %s: %+v, %w", ifname, o, errors.Join(err, os.ErrNotExist))
	}
	l, err := link.NewFromID(link.ID(o.Link))
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Detach()
}
