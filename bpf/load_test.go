package bpf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"penstock/internal/lab/labtest"
)

func TestLoadChecksOptions(t *testing.T) {
	port := func(name string, ifindex int) Port { return Port{Name: name, Ifindex: ifindex} }
	two := []Port{port("lan", 1), port("wan", 2)}
	for _, c := range []struct {
		name string
		o    Options
		err  string
	}{
		{"no name", Options{Ports: two}, `name ""`},
		{"odd name", Options{Name: "../x", Ports: two}, `name "../x"`},
		{"no ports", Options{Name: "x"}, "want 1 to 32 ports, got 0"},
		{"too many ports", Options{Name: "x", Ports: make([]Port, 33)}, "want 1 to 32 ports, got 33"},
		{"bridge of one", Options{Name: "x", Ports: two[:1]}, "bridge wants ports in pairs, got 1"},
		{"no interface", Options{Name: "x", Ports: []Port{port("lan", 0), port("wan", 2)}}, `port "lan": want an interface index, got 0`},
		{"same interface", Options{Name: "x", Ports: []Port{port("lan", 2), port("wan", 2)}}, `ports "lan" and "wan" are the same interface 2`},
		{"same name", Options{Name: "x", Ports: []Port{port("lan", 1), port("lan", 2)}}, `port name "lan" is empty or used twice`},
		{"too many flows", Options{Name: "x", Ports: two, MaxFlows: 1 << 25}, "want at most 16777216 flows"},
		{"bad rule", Options{Name: "x", Ports: two, Rules: []Rule{{From: 5}}}, "rule 1: want a port from 0 to 1 or -1, got 5"},
	} {
		_, err := Load(c.o)
		if err == nil || !strings.Contains(err.Error(), "load steer program: ") || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.err)
		}
	}
}

// A peer that does not exist cannot be redirected to.
func TestLoadWithoutPeer(t *testing.T) {
	labtest.NeedRoot(t)
	_, err := Load(Options{Name: "x", Ports: []Port{{Name: "lan", Ifindex: 1}, {Name: "wan", Ifindex: 1 << 30}}, MaxFlows: 16})
	if err == nil || !strings.Contains(err.Error(), `set peer of port "lan" to interface 1073741824: `) {
		t.Errorf("got %v", err)
	}
}

func TestClosedSteerer(t *testing.T) {
	r := ownRig(t, nil)
	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Attach(0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("attach: %v", err)
	}
	if err := r.SetRules(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("set rules: %v", err)
	}
	if err := r.SetSocket(0, 0, 1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("set socket: %v", err)
	}
	if _, err := r.Counters(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("counters: %v", err)
	}
	if err := r.Flows(func(FlowEntry) bool { return true }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("flows: %v", err)
	}
	if _, err := r.Expire(Now(), Timeouts{}, nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("expire: %v", err)
	}
}

// An error of the verifier is one line, and the whole log is there for who asks.
func TestVerifierError(t *testing.T) {
	labtest.NeedRoot(t)
	spec, err := loadSteer()
	if err != nil {
		t.Fatal(err)
	}
	// Without its last instruction the program runs off its end.
	steer := spec.Programs["steer"]
	steer.Instructions = steer.Instructions[:len(steer.Instructions)-1]
	var obj steerObjects
	err = explainLoad(spec.LoadAndAssign(&obj, nil))
	var v *ebpf.VerifierError
	if !errors.As(err, &v) || !strings.Contains(err.Error(), "verifier refuses it") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
}

// The capabilities that an error message recommends are enough, and those it does not mention are not needed.
func TestCapabilities(t *testing.T) {
	labtest.NeedRoot(t)
	for _, c := range []struct {
		name string
		caps []uintptr
		want string
	}{
		{"none", nil, "load steer program: no permission; mend: run as root"},
		{"no perfmon", []uintptr{unix.CAP_BPF, unix.CAP_NET_ADMIN}, "load steer program: the kernel's verifier refuses it without CAP_PERFMON; mend: run as root"},
		{"no net_admin", []uintptr{unix.CAP_BPF, unix.CAP_PERFMON}, "load steer program: no permission; mend: run as root"},
		{"enough", []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN}, "attached"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestChildThatLoads$", "-test.v")
			cmd.Dir = "/"
			cmd.Env = append(os.Environ(), "STEER_CHILD=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Credential:  &syscall.Credential{Uid: 65534, Gid: 65534, NoSetGroups: true},
				AmbientCaps: c.caps, Unshareflags: syscall.CLONE_NEWNET,
			}
			out, err := cmd.CombinedOutput()
			if !strings.Contains(string(out), c.want) {
				t.Errorf("%v, want %q:\n%s", err, c.want, out)
			}
		})
	}
}

// TestChildThatLoads is the process of TestCapabilities, in a network namespace of its own.
func TestChildThatLoads(t *testing.T) {
	if os.Getenv("STEER_CHILD") == "" {
		t.Skip("only run by TestCapabilities")
	}
	s, err := Load(Options{Name: "x", Ports: []Port{{Name: "lo", Ifindex: 1}}, Default: DefaultPass, MaxFlows: 16})
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := s.Attach(0); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("attached")
}

// Two CPUs see the two ends of many connections begin at the same moment, each with a rule of its own: whoever wins, both
// directions of a flow belong to one chain.
func TestBothEndsBeginAtOnce(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.Rules = []Rule{{From: 0, Action: ToChain, Chain: 1}, {From: 1, Action: ToChain, Chain: 2}}
		o.MaxFlows = 4096
	})
	const n = 2000
	there, back := udp4(t, 0), reversedUDP(t)
	start := make([]chan int, 2)
	var wg sync.WaitGroup
	turn := new(sync.WaitGroup)
	for port := range start {
		start[port] = make(chan int)
		wg.Go(func() {
			for i := range start[port] {
				packet := changed(there, 34, byte(i>>8), byte(i))
				if port == 1 {
					packet = changed(back, 36, byte(i>>8), byte(i))
				}
				if _, err := r.ports[port].prog.Run(&ebpf.RunOptions{Data: packet}); err != nil {
					t.Error(err)
				}
				turn.Done()
			}
		})
	}
	for i := range n {
		turn.Add(2)
		start[i%2] <- i
		start[1-i%2] <- i
		turn.Wait()
	}
	close(start[0])
	close(start[1])
	wg.Wait()
	entries := r.entries()
	if len(entries) != 2*n {
		t.Errorf("%d entries, want %d", len(entries), 2*n)
	}
	chains := map[uint16]int{}
	for k, e := range entries {
		o := entries[k.Reverse()]
		if e.Chain != o.Chain {
			t.Errorf("%v belongs to chain %d, its reverse to %d", k, e.Chain, o.Chain)
		}
		if e.Packets+o.Packets != 2 {
			t.Logf("%v: %d and %d packets, 2 were sent", k, e.Packets, o.Packets)
		}
		chains[e.Chain]++
	}
	t.Logf("entries by chain: %v", chains)
}
