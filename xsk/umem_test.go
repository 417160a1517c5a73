package xsk_test

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"penstock/internal/lab/labtest"
	"penstock/xsk"
)

func TestUMEMOptions(t *testing.T) {
	for _, c := range []struct {
		name string
		o    xsk.UMEMOptions
		want string // part of the error; "" = none
	}{
		{"defaults", xsk.UMEMOptions{Frames: 8}, ""},
		{"large frames", xsk.UMEMOptions{Frames: 8, FrameSize: 4096, Headroom: 128, TxMetadataLen: 24}, ""},
		{"largest headroom", xsk.UMEMOptions{Frames: 8, Headroom: 1791}, ""},
		{"no frames", xsk.UMEMOptions{}, "number of frames must be in 1..16777216, got 0"},
		{"too many frames", xsk.UMEMOptions{Frames: 1<<24 + 1}, "got 16777217"},
		{"odd frame size", xsk.UMEMOptions{Frames: 8, FrameSize: 3000}, "frame size must be 2048 or 4096, got 3000"},
		{"no room left", xsk.UMEMOptions{Frames: 8, Headroom: 1792}, "headroom must be in 0..1791 for frames of 2048 bytes, got 1792"},
		{"negative headroom", xsk.UMEMOptions{Frames: 8, Headroom: -1}, "got -1"},
		{"odd metadata", xsk.UMEMOptions{Frames: 8, TxMetadataLen: 20}, "multiple of 8 in 0..248, got 20"},
		{"long metadata", xsk.UMEMOptions{Frames: 8, TxMetadataLen: 256}, "got 256"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u, err := xsk.NewUMEM(c.o)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("error %v, want %q in it", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(u.Bytes()) != u.Frames()*u.FrameSize() || u.Frames() != c.o.Frames {
				t.Errorf("%d bytes, %d frames of %d", len(u.Bytes()), u.Frames(), u.FrameSize())
			}
			if u.RxOffset() != 256+c.o.Headroom || u.MaxPacket() != u.FrameSize()-256-c.o.Headroom {
				t.Errorf("packets at %d, up to %d bytes", u.RxOffset(), u.MaxPacket())
			}
			if err := u.Close(); err != nil {
				t.Error(err)
			}
			if err := u.Close(); !errors.Is(err, xsk.ErrClosed) {
				t.Errorf("second close: %v, want ErrClosed", err)
			}
			if _, err := u.Open(1, 0, nil); !errors.Is(err, xsk.ErrClosed) {
				t.Errorf("open after close: %v, want ErrClosed", err)
			}
		})
	}
}

func TestFrameAndData(t *testing.T) {
	u := newUMEM(t, xsk.UMEMOptions{Frames: 4})
	const size = 2048
	for _, addr := range []uint64{0, 1, 2047, 2048, 3*size + 100, 4*size - 1} {
		f := u.Frame(addr)
		if len(f) != size || cap(f) != size || &f[0] != &u.Bytes()[addr/size*size] {
			t.Errorf("Frame(%d): %d bytes of %d, or elsewhere", addr, len(f), cap(f))
		}
	}
	for _, addr := range []uint64{4 * size, 1 << 40, 1<<64 - 1} {
		if f := u.Frame(addr); f != nil {
			t.Errorf("Frame(%d) is outside, got %d bytes", addr, len(f))
		}
	}
	for _, c := range []struct {
		d    xsk.Desc
		want int // -1: nil
	}{
		{xsk.Desc{Addr: 0, Len: size}, size},
		{xsk.Desc{Addr: 256, Len: 60}, 60},
		{xsk.Desc{Addr: 3*size + 2047, Len: 1}, 1},
		{xsk.Desc{Addr: 256, Len: 1793}, -1},
		{xsk.Desc{Addr: size - 1, Len: 2}, -1},
		{xsk.Desc{Addr: 4 * size, Len: 1}, -1},
		{xsk.Desc{Addr: 1<<64 - 1, Len: 1<<32 - 1}, -1},
		{xsk.Desc{Addr: 0, Len: 1<<32 - 1}, -1},
	} {
		b := u.Data(c.d)
		if c.want < 0 && b != nil || c.want >= 0 && len(b) != c.want {
			t.Errorf("Data(%+v): %d bytes, want %d", c.d, len(b), c.want)
		}
		if b != nil && cap(b) != size-int(c.d.Addr%size) {
			t.Errorf("Data(%+v): capacity %d does not end with the frame", c.d, cap(b))
		}
	}
}

// TestHugePages lets the system hand out a few huge pages, and takes that back.
func TestHugePages(t *testing.T) {
	labtest.NeedRoot(t)
	const knob = "/proc/sys/vm/nr_overcommit_hugepages"
	was, err := os.ReadFile(knob)
	if err != nil {
		t.Skipf("SKIPPED: the kernel has no huge pages: %v", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(was)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(knob, []byte(strconv.Itoa(n+4)), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(knob, was, 0); err != nil {
			t.Error(err)
		}
	})
	b := newBed(t)
	for _, c := range []struct {
		want xsk.HugePages
		huge bool
	}{{xsk.HugeOn, true}, {xsk.HugeAuto, true}, {xsk.HugeOff, false}} {
		// 1500 frames are no whole number of huge pages.
		u, err := xsk.NewUMEM(xsk.UMEMOptions{Frames: 1500, HugePages: c.want})
		if err != nil {
			t.Fatal(err)
		}
		if u.HugePages() != c.huge {
			t.Errorf("huge pages %v: got %v, want %v", c.want, u.HugePages(), c.huge)
		}
		var s *xsk.Socket
		b.do(t, func() (err error) { // the kernel takes it
			s, err = u.Open(1, 0, nil) // lo
			return err
		})
		s.Close()
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}
	const all = 1 << 15 // 64 GiB in frames of 2048: more than there is
	if _, err := xsk.NewUMEM(xsk.UMEMOptions{Frames: all * 1024 / 2, HugePages: xsk.HugeOn}); err == nil ||
		!strings.Contains(err.Error(), "vm.nr_hugepages") {
		t.Errorf("without enough huge pages: %v, want the setting that mends it", err)
	}
}

// TestLockedMemory runs itself without CAP_IPC_LOCK and with a small limit.
func TestLockedMemory(t *testing.T) {
	labtest.NeedRoot(t)
	if os.Getenv("XSK_TEST_LOCKED") != "" {
		lockedMemoryChild(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestLockedMemory$", "-test.v")
	cmd.Env = append(os.Environ(), "XSK_TEST_LOCKED=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "checked in the child") {
		t.Fatalf("child: %v\n%s", err, out)
	}
}

func lockedMemoryChild(t *testing.T) {
	b := newBed(t)
	open := func(frames int) (err error) {
		u := newUMEM(t, xsk.UMEMOptions{Frames: frames, HugePages: xsk.HugeOff})
		_ = b.ns.Do(func() error {
			// Capabilities belong to the thread; its own are given back by ending it.
			keep := uint32(1 << unix.CAP_NET_RAW)
			hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var old, few [2]unix.CapUserData
			if err = unix.Capget(&hdr, &old[0]); err != nil {
				return nil
			}
			few[0] = unix.CapUserData{Effective: keep, Permitted: old[0].Permitted}
			few[1] = unix.CapUserData{Permitted: old[1].Permitted}
			if err = unix.Capset(&hdr, &few[0]); err != nil {
				return nil
			}
			var s *xsk.Socket
			if s, err = u.Open(1, 0, nil); err == nil {
				err = s.Close()
			}
			_ = unix.Capset(&hdr, &old[0])
			return nil
		})
		return err
	}
	limit := func(cur, max uint64) {
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: cur, Max: max}); err != nil {
			t.Fatal(err)
		}
	}
	// The soft limit is too low, and may be raised.
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &now); err != nil {
		t.Fatal(err)
	}
	if now.Max < 8<<20 {
		t.Skipf("checked in the child: the hard limit is only %d bytes", now.Max)
	}
	limit(1<<16, now.Max)
	if err := open(512); err != nil {
		t.Errorf("with a hard limit of %d: %v", now.Max, err)
	}
	// The hard limit is too low.
	limit(1<<16, 1<<16)
	err := open(512)
	if !errors.Is(err, xsk.ErrLockedMemory) {
		t.Fatalf("with a limit of 64 KiB: %v, want ErrLockedMemory", err)
	}
	for _, part := range []string{"need 1048576 bytes, limit is 65536 bytes", "LimitMEMLOCK=infinity", "CAP_IPC_LOCK"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	t.Log("checked in the child")
}
