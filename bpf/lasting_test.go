package bpf

import (
	"testing"
	"time"
)

func TestLasting(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	lasting := func(due func(FlowKey, time.Duration) bool) (list []EndedFlow) {
		t.Helper()
		if err := r.Lasting(due, func(f *EndedFlow) { list = append(list, *f) }); err != nil {
			t.Fatal(err)
		}
		return list
	}
	every := func(FlowKey, time.Duration) bool { return true }
	if list := lasting(every); len(list) != 0 {
		t.Fatalf("of no flow: %+v", list)
	}
	r.run(0, tcp4(t, "S", 0))
	r.run(1, tcp4Reply(t, "SA", 0))
	r.run(0, tcp4(t, "A", 0))
	r.run(0, udp4(t, 0))
	asked := map[FlowKey]time.Duration{}
	list := lasting(func(k FlowKey, start time.Duration) bool {
		asked[k] = start
		return k.Proto == ProtoTCP
	})
	if len(asked) != 2 || len(list) != 1 {
		t.Fatalf("asked %v, told %+v", asked, list)
	}
	f := list[0]
	if f.Why != EndActive || f.Packets != 2 || f.ReplyPackets != 1 || f.Bytes == 0 || f.ReplyBytes == 0 || f.Key.Proto != ProtoTCP || f.Reply != f.Key.Reverse() ||
		f.Start == 0 || f.Start != asked[f.Key] || f.LastSeen < f.Start || f.TCPFlags != 0x12 || f.ReplyTCPFlags != 0x12 {
		t.Errorf("told %+v, it began at %v", f, asked[f.Key])
	}
	r.run(0, tcp4(t, "FA", 0))
	if list := lasting(every); len(list) != 2 {
		t.Errorf("with a FIN of one end: told %+v", list)
	}
	r.run(1, tcp4Reply(t, "FA", 0))
	if list := lasting(every); len(list) != 1 || list[0].Key.Proto != ProtoUDP {
		t.Errorf("with both FINs: told %+v", list)
	}
	if len(r.entries()) != 4 {
		t.Errorf("%d entries are left", len(r.entries()))
	}
}

// A flow whose packets are rewritten has another reply than its key turned round.
func TestLastingRewritten(t *testing.T) {
	d := newDynasty(t)
	d.next(func(o *Options) { o.MaxRewrites, o.Rules = 2, []Rule{{From: -1, Action: ToChain, Chain: 1}} })
	nat := natFlow(t)
	d.run(0, tcp4(t, "S", 0))
	if got := d.one(nat); got != OffloadTaken {
		t.Fatal(got)
	}
	d.expect("SYN-ACK", 1, backendReply(t, "SA", 0), forwarded, &nat.ReplyRewrite)
	var list []EndedFlow
	if err := d.Lasting(func(FlowKey, time.Duration) bool { return true }, func(f *EndedFlow) { list = append(list, *f) }); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Key != nat.Key || list[0].Reply != nat.Reply || list[0].ReplyPackets != 1 || list[0].Why != EndActive {
		t.Errorf("told %+v", list)
	}
}
