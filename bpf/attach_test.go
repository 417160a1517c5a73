package bpf

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
)

// passProgram is somebody else's XDP program.
func passProgram(t testing.TB) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "stranger", Type: ebpf.XDP, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// attached is what the kernel says runs on an interface: XDP_ATTACHED_* and the program's id.
func (a *appliance) attached(port int) (mode, prog uint32) {
	a.t.Helper()
	a.in(func() error {
		x, err := xdpOn(a.opts.Ports[port].Ifindex)
		mode, prog = x.AttachMode, x.ProgId
		return err
	})
	return mode, prog
}

func TestAttachReportsTheRealMode(t *testing.T) {
	for _, c := range []struct {
		ask, want Mode
		kernel    uint32 // XDP_ATTACHED_*
	}{
		{ModeAuto, ModeNative, 1},
		{ModeNative, ModeNative, 1},
		{ModeGeneric, ModeGeneric, 2},
	} {
		t.Run(c.ask.String(), func(t *testing.T) {
			a := inline(t, lab.VethOptions{}, func(o *Options) { o.Ports[0].Mode, o.Ports[1].Mode = c.ask, c.ask })
			a.attach(c.want)
			for port := range 2 {
				if mode, _ := a.attached(port); mode != c.kernel {
					t.Errorf("port %d: the kernel says mode %d, want %d", port, mode, c.kernel)
				}
				if why := a.Fallback(port); why != nil {
					t.Errorf("port %d: fallback %v", port, why)
				}
			}
			err := a.Appliance.Do(func() error { _, err := a.Attach(0); return err })
			if err == nil || !strings.Contains(err.Error(), "already attached") {
				t.Errorf("attaching twice: %v", err)
			}
			a.in(a.Close)
			for port := range 2 {
				if _, prog := a.attached(port); prog != 0 {
					t.Errorf("port %d: program %d is attached after Close", port, prog)
				}
			}
		})
	}
}

// A veth peer with more TX queues than we have RX queues makes native XDP impossible.
func TestAttachFallsBackToGeneric(t *testing.T) {
	l := labtest.NewForTest(t)
	ns, err := l.NS("queues")
	if err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.NumRxQueues, attrs.NumTxQueues = "narrow", 1, 1
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wide", PeerNumTxQueues: 4, PeerNumRxQueues: 4})
	})
	if err != nil {
		t.Fatal(err)
	}
	index, err := ns.LinkIndex("narrow")
	if err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() error {
		for _, ask := range []Mode{ModeNative, ModeAuto} {
			s, err := Load(Options{Name: "x", Ports: []Port{{Name: "lan", Ifindex: index, Mode: ask}}, Default: DefaultPass})
			if err != nil {
				return err
			}
			mode, err := s.Attach(0)
			switch {
			case ask == ModeNative && (!errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "ethtool -L narrow")):
				t.Errorf("native: mode %s, error %v; want ENOSPC and a mend", mode, err)
			case ask == ModeAuto && (err != nil || mode != ModeGeneric || !errors.Is(s.Fallback(0), unix.ENOSPC)):
				t.Errorf("auto: mode %s, error %v, fallback %v; want generic because of ENOSPC", mode, err, s.Fallback(0))
			}
			if err := s.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAttachLeavesAStrangersProgramAlone(t *testing.T) {
	viaLink := func(flags link.XDPAttachFlags) func(*ebpf.Program, int) (func() error, error) {
		return func(p *ebpf.Program, ifindex int) (func() error, error) {
			l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: ifindex, Flags: flags})
			if err != nil {
				return nil, err
			}
			return l.Close, nil
		}
	}
	viaNetlink := func(flags int) func(*ebpf.Program, int) (func() error, error) {
		return func(p *ebpf.Program, ifindex int) (func() error, error) {
			l, err := netlink.LinkByIndex(ifindex)
			if err != nil {
				return nil, err
			}
			return nil, netlink.LinkSetXdpFdWithFlags(l, p.FD(), flags)
		}
	}
	for _, c := range []struct {
		name   string
		ask    Mode
		attach func(*ebpf.Program, int) (func() error, error)
	}{
		{"link native", ModeAuto, viaLink(link.XDPDriverMode)},
		{"link generic", ModeAuto, viaLink(link.XDPGenericMode)},
		{"link native, we generic", ModeGeneric, viaLink(link.XDPDriverMode)},
		{"netlink native", ModeAuto, viaNetlink(unix.XDP_FLAGS_DRV_MODE)},
		{"netlink generic", ModeAuto, viaNetlink(unix.XDP_FLAGS_SKB_MODE)},
		{"netlink generic, we native", ModeNative, viaNetlink(unix.XDP_FLAGS_SKB_MODE)},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := inline(t, lab.VethOptions{}, func(o *Options) { o.Ports[0].Mode = c.ask })
			stranger := passProgram(t)
			info, err := stranger.Info()
			if err != nil {
				t.Fatal(err)
			}
			id, _ := info.ID()
			var end func() error
			a.in(func() (err error) { end, err = c.attach(stranger, a.opts.Ports[0].Ifindex); return err })
			err = a.Appliance.Do(func() error { _, err := a.Attach(0); return err })
			if err == nil {
				t.Fatal("attached over somebody else's program")
			}
			line := err.Error()
			for _, want := range []string{"attach lan (eth1): ", fmt.Sprintf("another XDP program is attached (id %d, name stranger)", id), "mend: "} {
				if !strings.Contains(line, want) {
					t.Errorf("error %q does not say %q", line, want)
				}
			}
			if strings.Contains(line, "\n") {
				t.Errorf("error has more than one line: %q", line)
			}
			if _, prog := a.attached(0); prog != uint32(id) {
				t.Errorf("program %d is attached, want the stranger's %d", prog, id)
			}
			// The mend works: what it says for netlink is run as it stands, for a link the holder ends.
			if end != nil {
				if !strings.Contains(line, "bpftool link detach id ") {
					t.Errorf("error %q does not name the link", line)
				}
				if err := end(); err != nil {
					t.Fatal(err)
				}
			} else {
				_, mend, _ := strings.Cut(line, "mend: ")
				mend, _, _ = strings.Cut(mend, ": ")
				a.mend(mend)
			}
			a.in(func() error { _, err := a.Attach(0); return err })
		})
	}
}

// mend runs a command that an error message recommends.
func (a *appliance) mend(command string) {
	a.t.Helper()
	words := strings.Fields(command)
	if _, err := exec.LookPath(words[0]); err != nil {
		a.t.Skipf("cannot try the mend %q: %v", command, err)
	}
	if out, err := a.Appliance.Command(a.t.Context(), words[0], words[1:]...).CombinedOutput(); err != nil {
		a.t.Fatalf("mend %q: %v: %s", command, err, out)
	}
}

func TestAttachSaysWhatIsWrong(t *testing.T) {
	t.Run("interface is gone", func(t *testing.T) {
		a := inline(t, lab.VethOptions{}, nil)
		a.in(func() error {
			l, err := netlink.LinkByName("eth1")
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		})
		err := a.Appliance.Do(func() error { _, err := a.Attach(0); return err })
		if err == nil || !strings.Contains(err.Error(), "there is no interface with index") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("MTU", func(t *testing.T) {
		a := inline(t, lab.VethOptions{MTU: 9000}, func(o *Options) { o.Ports[0].Mode = ModeNative })
		err := a.Appliance.Do(func() error { _, err := a.Attach(0); return err })
		if !errors.Is(err, unix.ERANGE) || !strings.Contains(err.Error(), "mend: ip link set dev eth1 mtu 1500") {
			t.Errorf("got %v", err)
		}
		if _, prog := a.attached(0); prog != 0 {
			t.Errorf("program %d is attached after an error", prog)
		}
	})
	t.Run("down is fine", func(t *testing.T) {
		a := inline(t, lab.VethOptions{}, nil)
		a.in(func() error {
			l, err := netlink.LinkByName("eth1")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetDown(l); err != nil {
				return err
			}
			if _, err := a.Attach(0); err != nil {
				return err
			}
			if _, err := a.Attach(1); err != nil {
				return err
			}
			return netlink.LinkSetUp(l)
		})
		if err := a.echo(a.ServerIP4, patience); err != nil {
			t.Errorf("after the interface came up: %v", err)
		}
	})
	t.Run("wrong port", func(t *testing.T) {
		a := inline(t, lab.VethOptions{}, nil)
		for _, port := range []int{-1, 2} {
			if _, err := a.Attach(port); err == nil {
				t.Errorf("port %d: no error", port)
			}
		}
	})
}

func TestAttachFailureLeavesNothingPinned(t *testing.T) {
	a := inline(t, lab.VethOptions{MTU: 9000}, func(o *Options) {
		o.Ports[0].Mode = ModeNative
		o.PinRoot = bpffs(t)
	})
	if err := a.Appliance.Do(func() error { _, err := a.Attach(0); return err }); err == nil {
		t.Fatal("no error")
	}
	if pins := linkPins(t, a.opts); len(pins) != 0 {
		t.Errorf("pins %v", pins)
	}
}
