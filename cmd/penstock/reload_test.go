package main

import (
	"bytes"
	"strings"
	"testing"

	"penstock/bpf"
	"penstock/internal/config"
	"penstock/internal/control"
	"penstock/pipeline"
	"penstock/stages"
)

// TestRules: rules name chains by the numbers that they have, and those of
// drained chains let pass.
func TestRules(t *testing.T) {
	cfg, problems := config.Parse("f", []byte(head+`
[[steer]]
dst_port = [80]
to = "b"
[[steer]]
dst_port = [81]
to = "drop"
[[steer]]
to = "c"
[[chain]]
name = "b"
[[chain]]
name = "c"
`), stages.Builtin())
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var byID, current []*place
	for i, c := range cfg.Chains {
		p := &place{id: pipeline.ChainID(10 * i), conf: c}
		current = append(current, p)
	}
	number := map[string]uint16{}
	for _, p := range current {
		number[p.conf.Name] = uint16(p.id)
	}
	find := func(list []bpf.Rule, port uint16) bpf.Rule {
		for _, r := range list {
			if len(r.DstPorts) == 1 && r.DstPorts[0].Lo == port {
				return r
			}
		}
		return list[len(list)-1]
	}
	list := rules(cfg, current, nil)
	for port, chain := range map[uint16]string{80: "b", 0: "c"} {
		if r := find(list, port); r.Action != bpf.ToChain || r.Chain != number[chain] {
			t.Errorf("port %d: %+v, want chain %d", port, r, number[chain])
		}
	}
	list = rules(cfg, current, map[string]bool{"b": true})
	for port, want := range map[uint16]bpf.Action{80: bpf.Bypass, 81: bpf.Drop, 0: bpf.ToChain} {
		if r := find(list, port); r.Action != want {
			t.Errorf("drained, port %d: %+v, want action %d", port, r, want)
		}
	}
	byID = []*place{current[0], nil, current[1]}
	if i, err := free(byID); i != 1 || err != nil {
		t.Errorf("free: %d, %v", i, err)
	}
	if i, err := free(byID[:1]); i != 1 || err != nil {
		t.Errorf("free: %d, %v", i, err)
	}
	full := make([]*place, maxPlaces)
	for i := range full {
		full[i] = current[0]
	}
	if i, err := free(full); err == nil {
		t.Errorf("free: %d of a full table", i)
	}
}

// TestPrintReload: what people read.
func TestPrintReload(t *testing.T) {
	change := []control.Change{{Text: `steer: + tcp to "a"`}, {Text: "appliance: name", Restart: true}}
	for _, c := range []struct {
		r    control.Reload
		dry  bool
		want string
	}{
		{control.Reload{Config: "f"}, false, "nothing is different in f\n"},
		{control.Reload{Changes: change[:1], Applied: true, Built: []string{"a", "b"}, Kept: []string{"c"}, Seconds: 0.01}, false,
			"  steer: + tcp to \"a\"\nreloaded in 10ms: chains built: a, b; chains kept: c\n"},
		{control.Reload{Changes: change[:1]}, true, "  steer: + tcp to \"a\"\na reload would change this\n"},
		{control.Reload{Changes: change, Refused: "no"}, true, "  steer: + tcp to \"a\"\n! appliance: name\n"},
		{control.Reload{Problems: []string{"f:1:1: wrong"}}, false, ""},
	} {
		var b bytes.Buffer
		printReload(&b, c.r, c.dry)
		if b.String() != c.want {
			t.Errorf("got %q, want %q", b.String(), c.want)
		}
	}
	var b bytes.Buffer
	printStatus(&b, control.Status{
		Reloads: control.Reloads{Refused: 1, LastError: "f:1:1: wrong"}, Leaving: []control.Leaving{{Chain: "web", ID: 3, Flows: control.Depths{Inspected: 2}, LeftSeconds: 60}},
		Inherited: &control.Inherited{Offloaded: 7, Before: &control.Exit{Finished: 4, Cut: 1}},
		Chains:    []control.Chain{{Drained: true}},
	})
	for _, want := range []string{"0 applied, 1 refused", "f:1:1: wrong", `chain "web"`, "2 inspected", "1m0s", "7 flows stayed offloaded", "finished 4 terminated connections", "drained"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("status has no %q:\n%s", want, b.String())
		}
	}
}
