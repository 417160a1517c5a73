package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
)

// TestPairsComeAndGo: two interfaces become ports of a Steerer that works, with
// counters of their own, and are let go of again without a trace.
func TestPairsComeAndGo(t *testing.T) {
	root := bpffs(t)
	ns, ports := twoPorts(t, labtest.NewForTest(t))
	r := &rig{Steerer: loadIn(t, ns, Options{Name: "rig", Ports: ports, MaxFlows: 1024, PinRoot: root}), t: t}
	t.Cleanup(func() { _ = ns.Do(r.Close) })
	if err := ns.Lab().Veth(lab.End{NS: ns, Name: "eth3", NoIPv6: true}, lab.End{NS: ns, Name: "eth4", NoIPv6: true}, lab.VethOptions{}); err != nil {
		t.Fatal(err)
	}
	pair := [2]Port{{Name: "lan2"}, {Name: "wan2"}}
	for i, name := range []string{"eth3", "eth4"} {
		var err error
		if pair[i].Ifindex, err = ns.LinkIndex(name); err != nil {
			t.Fatal(err)
		}
	}
	in := func(fn func() error) {
		t.Helper()
		if err := ns.Do(fn); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 {
		in(func() error { _, err := r.Attach(i); return err })
	}
	rule := []Rule{{From: 2, Proto: ProtoTCP, Action: ToChain, Chain: 3}}
	if err := r.SetRules(rule); err == nil {
		t.Error("a rule names a port that is not there")
	}
	dir := filepath.Join(root, "rig", pinVersion)
	for round := range 3 {
		in(func() error {
			first, err := r.AddPair(pair[0], pair[1])
			if err == nil && first != 2 {
				err = fmt.Errorf("they have number %d", first)
			}
			return err
		})
		r.listen(2)
		r.listen(3)
		if err := r.SetRules(rule); err != nil {
			t.Fatal(err)
		}
		for i := 2; i < 4; i++ {
			in(func() error { _, err := r.Attach(i); return err })
		}
		if got, want := r.run(2, tcp4(t, "S", 0)).fate(), (fate{VerdictSocket, "flow_new"}); got != want {
			t.Errorf("round %d: %v, want %v", round, got, want)
		}
		if got, want := r.run(3, udp4(t, 0)).fate(), (fate{VerdictPeer, "no_rule"}); got != want {
			t.Errorf("round %d: %v, want %v", round, got, want)
		}
		if got, want := r.run(0, udp4(t, 0)).fate(), (fate{VerdictPeer, "no_rule"}); got != want {
			t.Errorf("round %d: %v, want %v", round, got, want)
		}
		if pins, _ := filepath.Glob(filepath.Join(dir, linkPrefix+"*2")); len(pins) != 2 {
			t.Errorf("round %d: links %v", round, pins)
		}
		if got := LeftPorts(root, "rig"); !slices.Equal(got, []string{"lan", "wan", "lan2", "wan2"}) {
			t.Errorf("round %d: a successor reads %q", round, got)
		}
		if _, err := r.Evict([]FlowKey{flowOf(t, tcp4(t, "S", 0))}, func(*EndedFlow) {}); err != nil {
			t.Error(err)
		}
		if err := r.SetRules(nil); err != nil {
			t.Error(err)
		}
		in(func() error { return r.RemovePair(2) })
		counters, err := r.Counters()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range counters {
			if c.Port > 1 {
				t.Errorf("round %d: a counter is left: %+v", round, c)
			}
		}
		in(func() error {
			for _, p := range pair {
				if x, err := xdpOn(p.Ifindex); err != nil || x.Attached {
					t.Errorf("round %d: %s: %+v, %v", round, p.Name, x, err)
				}
			}
			return nil
		})
		if pins, _ := filepath.Glob(filepath.Join(dir, linkPrefix+"*")); len(pins) != 2 {
			t.Errorf("round %d: links %v", round, pins)
		}
		if got := LeftPorts(root, "rig"); !slices.Equal(got, []string{"lan", "wan"}) {
			t.Errorf("round %d: a successor reads %q", round, got)
		}
	}
	in(func() error {
		for want, p := range map[string][2]Port{
			"used twice":         {{Name: "lan", Ifindex: pair[0].Ifindex}, pair[1]},
			"same interface":     {pair[0], {Name: "x", Ifindex: pair[0].Ifindex}},
			"an interface index": {pair[0], {Name: "x"}},
		} {
			if _, err := r.AddPair(p[0], p[1]); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %v", p, err)
			}
		}
		if err := r.RemovePair(2); err == nil || r.RemovePair(1) == nil {
			t.Error("ports are removed that are not there")
		}
		// The first ones can go, too: others have their numbers then.
		first, err := r.AddPair(pair[0], pair[1])
		if err == nil {
			err = r.RemovePair(0)
		}
		if got := LeftPorts(root, "rig"); err != nil || first != 2 || !slices.Equal(got, []string{"", "", "lan2", "wan2"}) {
			t.Errorf("%d, %q, %v", first, got, err)
		}
		_ = r.Close()
		if _, err := r.AddPair(pair[0], pair[1]); !errors.Is(err, os.ErrClosed) || !errors.Is(r.RemovePair(2), os.ErrClosed) {
			t.Errorf("after the end: %v", err)
		}
		return nil
	})
}
