package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"penstock/internal/control"
	"penstock/pipeline"
)

// looks are two looks, a second apart, at an appliance with n flows.
func looks(n int) (a, b look) {
	at := func(k uint64) look {
		l := look{at: time.Unix(int64(k), 0), few: true}
		l.status = control.Status{Name: "edge-1", Mode: "bridge", UptimeSeconds: float64(k), Flows: control.FlowCounts{Steered: n},
			Totals: pipeline.Totals{Packets: 1000 * k, Dropped: map[string]uint64{"acl_denied": 5 * k}}}
		c := control.Count{Packets: 300 * k, Bytes: 30_000 * k}
		l.status.Ports = []control.Port{{Name: "lan", LinkUp: true, XDP: "native", Reasons: map[string]control.Count{"gate_denied": c},
			Verdicts: map[string]map[string]control.Count{"drop": {"gate_denied": c}},
			Queues:   []control.Queue{{PortStats: pipeline.PortStats{RxPackets: 1000 * k, Rings: []pipeline.RingStats{{Name: "rx", Used: 512, Size: 2048}}}}}}}
		l.status.Chains = []control.Chain{{Depth: "inspect", Flows: map[string]int{"inspect": n}, ChainStats: pipeline.ChainStats{Name: "web", Packets: 1000 * k, Stages: []pipeline.StageStats{
			{Kind: "tcp", Packets: 1000 * k, TimedPackets: 10 * k, TimedNanoseconds: 4200 * k}, {Kind: "http"}}}}}
		for i := range n {
			l.flows = append(l.flows, control.Flow{Client: fmt.Sprintf("10.0.0.1:%d", 1000+i), Server: "[2001:db8:1111:2222:3333:4444:5555:6666]:443", Proto: "tcp", Chain: "web", Depth: "inspect",
				AgeSeconds: float64(k), Packets: k * uint64(i), Bytes: 100 * k * uint64(i)})
		}
		return l
	}
	return at(9), at(10)
}

// TestTopFits: each screen holds its size, with what matters on it.
func TestTopFits(t *testing.T) {
	for _, n := range []int{0, 1, 300} {
		a, b := looks(n)
		v := compare(a, b)
		for _, size := range [][2]int{{80, 24}, {200, 50}, {40, 10}, {10, 3}, {1, 1}} {
			lines := v.render(size[0], size[1], topOptions{})
			if len(lines) != size[1] {
				t.Errorf("%d flows, %v: %d lines", n, size, len(lines))
			}
			for _, l := range lines {
				if utf8.RuneCountInString(l) > size[0] {
					t.Errorf("%d flows, %v: too wide: %q", n, size, l)
				}
			}
			text := strings.Join(lines, "\n")
			for _, want := range []string{"edge-1  bridge, up 10s  live", "gate_denied", "acl_denied", "1 tcp", "420", "in tcp", "q quit", "240kbit/s"} {
				if size[0] >= 80 && !strings.Contains(text, want) {
					t.Errorf("%d flows, %v: no %q:\n%s", n, size, want, text)
				}
			}
			if size[0] >= 80 && n == 300 && !strings.Contains(text, "10.0.0.1:1299") {
				t.Errorf("%v: the fastest flow is not there:\n%s", size, text)
			}
		}
	}
}

func TestTopKeys(t *testing.T) {
	a, b := looks(20)
	v := compare(a, b)
	var o topOptions
	press := func(keys string) (quit bool) {
		for _, k := range []byte(keys) {
			quit = o.key(k)
		}
		return quit
	}
	first := func() string {
		lines := v.render(120, 40, o)
		return lines[slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "CLIENT") })+1]
	}
	if !strings.HasPrefix(first(), "10.0.0.1:1019") {
		t.Errorf("by bits: %s", first())
	}
	if press("sss"); !strings.HasPrefix(first(), "10.0.0.1:1000") {
		t.Errorf("by client: %s", first())
	}
	if press("/q:1007\n") || o.filter != "q:1007" || !strings.Contains(first(), "no flow matches") {
		t.Errorf("filter %q: %s", o.filter, first())
	}
	if press("c/:1007x\x7f\r"); !strings.HasPrefix(first(), "10.0.0.1:1007") {
		t.Errorf("filter %q: %s", o.filter, first())
	}
	if press("p"); !o.paused || !press("q") {
		t.Error("p does not pause, or q does not quit")
	}
	o.gone, o.since = "it has ended", time.Now().Add(-7*time.Second)
	if text := strings.Join(v.render(120, 40, o), "\n"); !strings.Contains(text, "NO ANSWER since") || !strings.Contains(text, "it has ended") {
		t.Errorf("no word of an appliance that is gone:\n%s", text)
	}
}

func TestTopWithoutAppliance(t *testing.T) {
	status, _, stderr := invoke(t, "top", "--control", filepath.Join(t.TempDir(), "no.sock"))
	if status != 1 || !strings.Contains(stderr, "is an appliance running") {
		t.Errorf("status %d, %s", status, stderr)
	}
	if status, _, _ := invoke(t, "top", "--interval", "1ms"); status != 2 {
		t.Errorf("status %d for an interval that is too short", status)
	}
}
