package bpf

import (
	"testing"
)

// TestOffload takes a flow through its life: up to its chain, offloaded, expired or begun anew.
func TestOffload(t *testing.T) {
	for _, c := range []struct {
		name string
		drop bool
		want fate
	}{
		{"forward", false, fate{VerdictPeer, "flow_offloaded"}},
		{"drop", true, fate{VerdictDrop, "flow_offloaded"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Rules = all })
			syn := tcp4(t, "S", 0)
			offload := func(key FlowKey, want int) {
				t.Helper()
				if n, err := r.Offload([]OffloadFlow{{Key: key, Drop: c.drop}}); n != want || err != nil {
					t.Fatalf("%d flows taken, %v, want %d", n, err, want)
				}
			}
			offload(flowOf(t, syn), 0) // nobody has seen it yet
			expect := func(what string, port int, packet []byte, want fate) {
				t.Helper()
				if got := r.run(port, packet).fate(); got != want {
					t.Errorf("%s: got %v, want %v", what, got, want)
				}
			}
			expect("SYN", 0, syn, toSocket)
			expect("SYN-ACK", 1, tcp4Reply(t, "SA", 0), fate{VerdictSocket, "flow_known"})
			offload(flowOf(t, syn).Reverse(), 1) // either direction names it
			expect("data", 0, tcp4(t, "PA", 100), c.want)
			expect("reply", 1, tcp4Reply(t, "PA", 100), c.want)
			expect("FIN", 1, tcp4Reply(t, "FA", 0), c.want)
			for key, e := range r.entries() {
				if e.Action == ToChain || e.Packets == 0 || key == flowOf(t, syn) && e.Packets != 2 {
					t.Errorf("entry %+v", e)
				}
			}
			// Another connection on the same ports is for the stages to see.
			expect("new SYN", 0, syn, fate{VerdictSocket, "flow_known"})
			expect("its SYN-ACK", 1, tcp4Reply(t, "SA", 0), fate{VerdictSocket, "flow_known"})
			offload(flowOf(t, syn), 1)
			expect("its data", 0, tcp4(t, "PA", 100), c.want)

			expect("UDP", 0, udp4(t, 10), toSocket)
			offload(flowOf(t, udp4(t, 10)), 1)
			expect("UDP, offloaded", 0, udp4(t, 10), c.want)
		})
	}
}

// TestOffloadIsBothOrNone: a flow with one entry is not taken, and the entry is left alone.
func TestOffloadIsBothOrNone(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	r.run(0, tcp4(t, "S", 0))
	key := flowOf(t, tcp4(t, "S", 0))
	raw := key.Reverse().raw()
	if err := r.flows.Delete(&raw); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Offload([]OffloadFlow{{Key: key}}); n != 0 || err != nil {
		t.Errorf("%d taken, %v", n, err)
	}
	if e := r.entries()[key]; e.Action != ToChain {
		t.Errorf("the entry was changed: %+v", e)
	}
}
