package lab_test

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
)

func TestThreadedNAPI(t *testing.T) {
	a, b := pair(t, lab.VethOptions{Queues: 2})
	tids, err := b.SetThreadedNAPI("eth0")
	if err != nil {
		t.Fatal(err)
	}
	others, err := a.SetThreadedNAPI("eth0") // of the same name
	if err != nil {
		t.Fatal(err)
	}
	if len(tids) != 2 || len(others) != 2 {
		t.Fatalf("threads %v and %v, want one for each of two queues", tids, others)
	}
	for _, tid := range slices.Concat(tids, others) {
		comm, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/comm")
		if err != nil || !strings.HasPrefix(string(comm), "napi/eth0-") {
			t.Errorf("thread %d is called %q (%v)", tid, comm, err)
		}
		if slices.Contains(tids, tid) && slices.Contains(others, tid) {
			t.Errorf("thread %d serves both ends", tid)
		}
		if err := lab.PinThread(tid, 0); err != nil {
			t.Error(err)
		}
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(tid, &set); err != nil || set.Count() != 1 || !set.IsSet(0) {
			t.Errorf("thread %d may run on %d cpus (%v), want cpu 0", tid, set.Count(), err)
		}
	}
	before, err := lab.CPUTime(nil, tids)
	if err != nil {
		t.Fatal(err)
	}
	exchangeTCP(t, a, b, netip.MustParseAddrPort("10.1.0.2:7001"))
	after, err := lab.CPUTime(nil, tids)
	if err != nil {
		t.Fatal(err)
	}
	if after <= before {
		t.Errorf("NAPI threads used %v before and %v after the transfer", before, after)
	}
	if err := a.SetOffload("eth0", map[string]bool{"gro": false}); err != nil {
		t.Fatal(err)
	}
	if got, err := a.NAPIThreads("eth0"); err != nil || len(got) != 0 {
		t.Errorf("threads without NAPI: %v, %v; want none", got, err)
	}
}

func TestCPUTime(t *testing.T) {
	l := labtest.NewForTest(t)
	n, err := l.NS("a")
	if err != nil {
		t.Fatal(err)
	}
	c := inNS(t.Context(), n, "cat")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stdout = io.Discard
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	pid := []int{c.Process.Pid}
	if err := lab.PinProcess(pid[0], 0); err != nil {
		t.Error(err)
	}
	start := time.Now()
	before, err := lab.CPUTime(pid, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(make([]byte, 32<<20)); err != nil {
		t.Fatal(err)
	}
	after, err := lab.CPUTime(pid, nil)
	if err != nil {
		t.Fatal(err)
	}
	// On one CPU it cannot have run for longer than this took.
	if used, wall := after-before, time.Since(start); used <= 0 || used > wall+10*time.Millisecond {
		t.Errorf("32 MiB through cat on one CPU: %v of CPU in %v", used, wall)
	}
	in.Close()
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := lab.CPUTime(pid, nil); err == nil {
		t.Error("CPUTime of a dead process: no error")
	}
}

// TestBackpressure floods a receiver that gets next to no CPU time: its NAPI thread is
// idle class and shares the sender's CPU.
func TestBackpressure(t *testing.T) {
	const (
		frames = 3000
		most   = 100_000 // until a drop is seen where one must come
	)
	for _, backpressure := range []bool{false, true} {
		a, b := pair(t, lab.VethOptions{Backpressure: backpressure})
		if backpressure && !kernelAtLeast(t, 6, 16) {
			t.Skip("veth cannot hold a sender back before Linux 6.16")
		}
		tids, err := b.SetThreadedNAPI("eth0")
		if err != nil {
			t.Fatal(err)
		}
		for _, tid := range tids {
			if err := lab.PinThread(tid, 0); err != nil {
				t.Fatal(err)
			}
			idle := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
			if err := unix.SchedSetAttr(tid, idle, 0); err != nil {
				t.Fatal(err)
			}
		}
		// One socket's send buffer holds little more than the ring does, which would
		// hold the sender back by itself.
		var raws [2]*lab.Raw
		for i := range raws {
			if raws[i], err = a.Raw("eth0"); err != nil {
				t.Fatal(err)
			}
		}
		before, err := a.LinkStats("eth0")
		if err != nil {
			t.Fatal(err)
		}
		sent, failed := 0, make(chan error, 1)
		go func() {
			failed <- func() error {
				runtime.LockOSThread() // not unlocked: the pinned thread ends with the goroutine
				if err := lab.PinThread(unix.Gettid(), 0); err != nil {
					return err
				}
				f := frame(0x88b5, "flood")
				for dropped := false; sent < frames || !backpressure && !dropped && sent < most; sent++ {
					if _, err := raws[sent%2].Write(f); errors.Is(err, unix.ENOBUFS) {
						dropped = true
					} else if err != nil {
						return err
					}
				}
				return nil
			}()
		}()
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
		var after lab.Stats
		eventually(t, "all frames carried or dropped", func() bool {
			if after, err = a.LinkStats("eth0"); err != nil {
				t.Fatal(err)
			}
			return after.TxPackets+after.TxDropped >= before.TxPackets+before.TxDropped+uint64(sent)
		})
		if dropped := after.TxDropped - before.TxDropped; (dropped == 0) != backpressure {
			t.Errorf("backpressure %v: %d of %d frames dropped", backpressure, dropped, sent)
		}
	}
}

func kernelAtLeast(t *testing.T, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(unix.ByteSliceToString(u.Release[:]), ".")
	gotMajor, _ := strconv.Atoi(parts[0])
	gotMinor, _ := strconv.Atoi(parts[1])
	return gotMajor > major || gotMajor == major && gotMinor >= minor
}
