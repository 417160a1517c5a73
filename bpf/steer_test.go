package bpf

import (
	"testing"
)

// all sends everything to chain 7.
var all = []Rule{{From: -1, Action: ToChain, Chain: 7}}

func TestFlowOfOneConnection(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = []Rule{{From: 0, Proto: ProtoTCP, Action: ToChain, Chain: 7}} })
	steps := []struct {
		name   string
		port   int
		packet []byte
		want   fate
	}{
		{"server cannot begin it", 1, tcp4Reply(t, "SA", 0), fate{VerdictPeer, "midstream"}},
		{"SYN", 0, tcp4(t, "S", 0), fate{VerdictSocket, "flow_new"}},
		{"SYN again", 0, tcp4(t, "S", 0), fate{VerdictSocket, "flow_known"}},
		{"SYN-ACK", 1, tcp4Reply(t, "SA", 0), fate{VerdictSocket, "flow_known"}},
		{"data", 0, tcp4(t, "PA", 100), fate{VerdictSocket, "flow_known"}},
		{"other direction", 1, tcp4Reply(t, "A", 0), fate{VerdictSocket, "flow_known"}},
		{"FIN", 1, tcp4Reply(t, "FA", 0), fate{VerdictSocket, "flow_known"}},
		{"other flow", 0, tcp6(t, "A", 0), fate{VerdictPeer, "midstream"}},
	}
	for _, s := range steps {
		o := r.run(s.port, s.packet)
		if o.fate() != s.want {
			t.Fatalf("%s: got %v, want %v", s.name, o.fate(), s.want)
		}
		if o.meta && o.chain != 7 {
			t.Errorf("%s: chain %d, want 7", s.name, o.chain)
		}
	}
	entries := r.entries()
	if len(entries) != 2 {
		t.Fatalf("%d entries, want 2: %+v", len(entries), entries)
	}
	for k, e := range entries {
		if want := FlowHash(k); e.Hash != want {
			t.Errorf("hash %#x, want %#x", e.Hash, want)
		}
		other, ok := entries[k.Reverse()]
		if !ok {
			t.Fatalf("no entry for the reverse of %+v", k)
		}
		if e.Reply == other.Reply || e.Start != other.Start {
			t.Errorf("directions disagree: %+v, %+v", e, other)
		}
	}
}
