package bpf

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"penstock/internal/rewrite"
	"penstock/internal/wire"
)

// While packets run, the decision changes to and fro: every packet leaves wholly as one decision says, and none is missing in the
// flow's counters, as there would be if entries were replaced.
func TestDecisionsWhilePacketsRun(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	r.run(0, tcp4(t, "S", 0))
	key := flowOf(t, tcp4(t, "S", 0))
	rules := []rewrite.Rule{
		{},
		{Flags: rewrite.AddSeq | rewrite.AddAck | rewrite.SetDstMAC, Seq: 0x11111111, Ack: 0x11111111, DstMAC: [6]byte{0x11, 0x11, 0x11, 0x11, 0x11, 0x11}},
		{Flags: rewrite.AddSeq | rewrite.AddAck | rewrite.SetDstMAC, Seq: 0x22222222, Ack: 0x22222222, DstMAC: [6]byte{0x22, 0x22, 0x22, 0x22, 0x22, 0x22}},
	}
	packet := tcp4(t, "PA", 30)
	valid := map[string]bool{}
	for _, rule := range rules {
		p := bytes.Clone(packet)
		var h wire.Headers
		h.Parse(p)
		rule.Apply(p, &h)
		valid[string(p)] = true
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var ran, stale atomic.Uint64
	wg.Go(func() {
		out := make([]byte, len(packet)+256)
		for {
			select {
			case <-stop:
				return
			default:
			}
			opts := ebpf.RunOptions{Data: packet, DataOut: out}
			if _, err := r.ports[0].prog.Run(&opts); err != nil {
				t.Error(err)
				return
			}
			ran.Add(1)
			got := opts.DataOut
			if len(got) == len(packet)+MetaSize {
				if stale.Add(1); !bytes.Equal(got[MetaSize:], packet) {
					t.Errorf("went up changed: %x", got)
					return
				}
			} else if !valid[string(got)] {
				t.Errorf("half of two decisions: %x", got)
				return
			}
		}
	})
	changes := 0
	for begin := time.Now(); time.Since(begin) < 300*time.Millisecond || ran.Load() < 1000; changes++ {
		if time.Since(begin) > 10*time.Second {
			break
		}
		o := OffloadFlow{Key: key, Rewrite: rules[changes%3], ReplyRewrite: rules[changes%3]}
		switch got := r.one(o); got {
		case OffloadTaken:
		case OffloadSlotsFull:
			r.table.settle(Now())
		default:
			t.Fatal(got)
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("%d changes, %d packets, %d of them found a stale rewrite", changes, ran.Load(), stale.Load())
	if e := r.entries()[key]; e.Packets != ran.Load()+1 {
		t.Errorf("%d packets were counted, %d were sent", e.Packets, ran.Load()+1)
	}
	if changes < 100 || ran.Load() < 1000 {
		t.Errorf("too little happened")
	}
}

// Flows are evicted and begun anew while packets run: nothing is left behind, no slot is lost, and no packet is changed by the rule of
// another flow.
func TestEvictWhilePacketsRun(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules, o.MaxRewrites = all, 64 })
	const flows = 32
	packet := udp4(t, 30)
	packetOf := func(i int) []byte { return changed(packet, 34, 5, byte(i)) }
	ruleOf := func(i int) rewrite.Rule {
		return rewrite.Rule{Flags: rewrite.SetDstMAC, DstMAC: [6]byte{2, 0, 0, 0, 0, byte(i)}}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var changedPackets atomic.Uint64
	wg.Go(func() {
		out := make([]byte, len(packet)+256)
		for i := 0; ; i = (i + 1) % flows {
			select {
			case <-stop:
				return
			default:
			}
			p := packetOf(i)
			opts := ebpf.RunOptions{Data: p, DataOut: out}
			if _, err := r.ports[0].prog.Run(&opts); err != nil {
				t.Error(err)
				return
			}
			got := opts.DataOut
			if len(got) == len(p)+MetaSize {
				got = got[MetaSize:]
			}
			if !bytes.Equal(got, p) {
				rule := ruleOf(i)
				if copy(p, rule.DstMAC[:]); !bytes.Equal(got, p) {
					t.Errorf("flow %d: %x", i, got)
					return
				}
				changedPackets.Add(1)
			}
		}
	})
	var keys []FlowKey
	for i := range flows {
		keys = append(keys, flowOf(t, packetOf(i)))
	}
	ended, rounds := 0, 0
	for begin := time.Now(); time.Since(begin) < 300*time.Millisecond || ended < 100 || changedPackets.Load() < 100; rounds++ {
		if time.Since(begin) > time.Minute {
			break
		}
		var list []OffloadFlow
		for i, k := range keys {
			list = append(list, OffloadFlow{Key: k, Rewrite: ruleOf(i)})
		}
		if _, err := r.Offload(list); err != nil {
			t.Fatal(err)
		}
		n, err := r.Evict(keys[rounds%3*8:], func(e *EndedFlow) {
			if e.Why != EndEvicted || e.Packets == 0 {
				t.Errorf("ended %+v", e)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		ended += n
		r.table.settle(Now())
	}
	close(stop)
	wg.Wait()
	t.Logf("%d rounds, %d flows evicted, %d packets rewritten", rounds, ended, changedPackets.Load())
	if _, err := r.Evict(keys, nil); err != nil {
		t.Fatal(err)
	}
	r.table.settle(Now())
	s := &r.table.slots
	if len(r.entries()) != 0 || len(s.free)+64-int(s.fresh) != 64 {
		t.Errorf("%d entries, %d of %d slots used once are free", len(r.entries()), len(s.free), s.fresh)
	}
	if ended < 100 || changedPackets.Load() < 100 {
		t.Error("too little happened")
	}
}
