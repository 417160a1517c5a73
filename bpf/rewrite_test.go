package bpf

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"penstock/internal/rewrite"
	"penstock/internal/wire"
)

// backend is where the flows of these tests are sent instead of the server.
var backend = netip.AddrFrom4([4]byte{198, 51, 100, 7})

const backendPort = 8080

// natFlow is the flow of tcp4 and tcp4Reply, sent to the backend: what the client sends gets another destination, what the backend
// answers, which arrives with another key, gets the server's source.
func natFlow(t testing.TB) OffloadFlow {
	key := flowOf(t, tcp4(t, "S", 0))
	reply := key.Reverse()
	reply.Src, reply.SrcPort = backend, backendPort
	return OffloadFlow{
		Key: key, Reply: reply,
		Rewrite:      rewrite.Rule{Flags: rewrite.SetDst | rewrite.SetDstPort, Dst: backend.As16(), DstPort: backendPort},
		ReplyRewrite: rewrite.Rule{Flags: rewrite.SetSrc | rewrite.SetSrcPort, Src: key.Dst.As16(), SrcPort: key.DstPort},
	}
}

// backendReply is a segment from the backend to the client.
func backendReply(t testing.TB, flags string, n int) []byte {
	ip := ip4(layers.IPProtocolTCP)
	ip.SrcIP, ip.DstIP = backend.AsSlice(), ip.SrcIP
	s := tcp(ip, flags)
	s.SrcPort, s.DstPort = backendPort, s.SrcPort
	return build(t, eth(layers.EthernetTypeIPv4), ip, s, payload(n))
}

// one offloads one flow and returns what became of it.
func (r *rig) one(o OffloadFlow) OffloadResult {
	r.t.Helper()
	list := []OffloadFlow{o}
	n, err := r.Offload(list)
	if err != nil || (n == 1) != (list[0].Result == OffloadTaken) {
		r.t.Fatalf("%d taken, %v, %v", n, list[0].Result, err)
	}
	return list[0].Result
}

// expect runs a packet and checks where it goes, and what is then in it if it is forwarded.
func (r *rig) expect(what string, port int, packet []byte, want fate, rule *rewrite.Rule) {
	r.t.Helper()
	o := r.rewritten(port, packet)
	after := bytes.Clone(packet)
	if rule != nil {
		var h wire.Headers
		h.Parse(after)
		if why := rule.Apply(after, &h); why != rewrite.Done {
			r.t.Fatalf("%s: %v", what, why)
		}
		if bytes.Equal(after, packet) {
			r.t.Fatalf("%s: the rule changes nothing", what)
		}
	}
	if o.fate() != want || !bytes.Equal(o.data, after) {
		r.t.Errorf("%s: got %v, want %v\nwas  %x\ngot  %x\nwant %x", what, o.fate(), want, packet, o.data, after)
	}
}

var (
	forwarded = fate{VerdictPeer, "flow_offloaded"}
	known     = fate{VerdictSocket, "flow_known"}
)

// A flow whose replies come under another key, through its life.
func TestRewrittenFlow(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	nat := natFlow(t)
	r.run(0, tcp4(t, "S", 0))

	// User space translates at first, and wants the replies.
	stay := nat
	stay.Stay, stay.Rewrite, stay.ReplyRewrite = true, rewrite.Rule{}, rewrite.Rule{}
	if got := r.one(stay); got != OffloadTaken {
		t.Fatal(got)
	}
	r.expect("SYN-ACK, in user space", 1, backendReply(t, "SA", 0), known, nil)
	r.expect("data, in user space", 0, tcp4(t, "PA", 9), known, nil)
	if o := r.run(1, backendReply(t, "A", 0)); o.hash != FlowHash(nat.Key) {
		t.Errorf("hash of the reply is %#x, want that of the flow, %#x", o.hash, FlowHash(nat.Key))
	}

	if got := r.one(nat); got != OffloadTaken {
		t.Fatal(got)
	}
	r.expect("data", 0, tcp4(t, "PA", 9), forwarded, &nat.Rewrite)
	r.expect("reply", 1, backendReply(t, "PA", 9), forwarded, &nat.ReplyRewrite)
	r.expect("what the server itself would answer", 1, tcp4Reply(t, "PA", 9), fate{VerdictPeer, "midstream"}, nil)

	entries := r.entries()
	if len(entries) != 2 || entries[nat.Key].Packets != 3 || entries[nat.Reply].Packets != 3 || !entries[nat.Reply].Reply {
		t.Errorf("entries %+v", entries)
	}

	// Either end may begin anew: both directions go up again, and stay one flow.
	for _, c := range []struct {
		port int
		syn  []byte
	}{{0, tcp4(t, "S", 0)}, {1, backendReply(t, "S", 0)}} {
		r.expect("new SYN", c.port, c.syn, known, nil)
		r.expect("data after the SYN", 0, tcp4(t, "PA", 9), known, nil)
		r.expect("reply after the SYN", 1, backendReply(t, "PA", 9), known, nil)
		if got := r.one(nat); got != OffloadTaken {
			t.Fatal(got)
		}
		r.expect("data, offloaded again", 0, tcp4(t, "PA", 9), forwarded, &nat.Rewrite)
	}
	// Named by the other direction.
	other := OffloadFlow{Key: nat.Reply, Reply: nat.Key, Rewrite: nat.ReplyRewrite, ReplyRewrite: nat.Rewrite}
	if got := r.one(other); got != OffloadTaken {
		t.Fatal(got)
	}
	r.expect("data, named by the reply", 0, tcp4(t, "PA", 9), forwarded, &nat.Rewrite)
	r.expect("reply, named by the reply", 1, backendReply(t, "PA", 9), forwarded, &nat.ReplyRewrite)

	// After FIN or RST a SYN begins new counters, in both directions.
	r.expect("FIN", 1, backendReply(t, "FA", 0), forwarded, &nat.ReplyRewrite)
	r.expect("RST", 0, numbered(tcp4(t, "R", 0), 1009, 0), forwarded, &nat.Rewrite)
	r.expect("SYN", 0, tcp4(t, "S", 0), known, nil)
	if e := r.entries(); e[nat.Key].Packets != 1 || e[nat.Reply].Packets != 0 || e[nat.Reply].TCPFlags != 0 || e[nat.Reply].Reply == e[nat.Key].Reply {
		t.Errorf("entries after a new SYN: %+v", e)
	}

	// And back to where it came from.
	plain := OffloadFlow{Key: nat.Key, Reply: nat.Key.Reverse()}
	if got := r.one(plain); got != OffloadTaken {
		t.Fatal(got)
	}
	r.expect("data, not rewritten", 0, tcp4(t, "PA", 9), forwarded, nil)
	r.expect("reply, not rewritten", 1, tcp4Reply(t, "PA", 9), forwarded, nil)
	if got := r.entries(); len(got) != 2 || got[nat.Key.Reverse()].Packets != 1 {
		t.Errorf("entries %+v", got)
	}
}

// Both directions of a rewritten flow expire together, and Expire tells of it.
func TestRewrittenFlowEnds(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	nat := natFlow(t)
	for _, c := range []struct {
		name  string
		after time.Duration // of idling
		end   func()
		why   EndReason
	}{
		{"idle", 3 * time.Hour, func() {}, EndIdle},
		{"closed", 11 * time.Second, func() { r.rewritten(0, tcp4(t, "FA", 0)); r.rewritten(1, backendReply(t, "FA", 0)) }, EndClosed},
		{"reset", 11 * time.Second, func() { r.rewritten(1, numbered(backendReply(t, "R", 0), 1001, 0)) }, EndReset},
		{"evicted", 0, func() {}, EndEvicted},
		{"evicted by the reply", 0, func() {}, EndEvicted},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.t = t
			r.forget()
			start := Now() - 50*time.Millisecond // the coarse clock lags
			r.run(0, tcp4(t, "S", 0))
			if got := r.one(nat); got != OffloadTaken {
				t.Fatal(got)
			}
			r.rewritten(1, backendReply(t, "SA", 0))
			r.rewritten(0, tcp4(t, "PA", 1000))
			c.end()
			want := r.entries()
			used := len(r.table.slots.free)
			var ended []EndedFlow
			note := func(e *EndedFlow) { ended = append(ended, *e) }
			var n int
			var err error
			switch {
			case c.name == "evicted":
				n, err = r.Evict([]FlowKey{nat.Key}, note)
			case c.why == EndEvicted:
				n, err = r.Evict([]FlowKey{nat.Reply, nat.Key}, note)
			default:
				if n, err = r.Expire(Now()+c.after-2*time.Second, Timeouts{TCPEstablished: c.after}, note); c.why == EndIdle && n != 0 || err != nil {
					t.Errorf("too early: %d, %v", n, err)
				}
				n, err = r.Expire(Now()+c.after, Timeouts{}, note)
			}
			if n != 1 || err != nil || len(ended) != 1 || len(r.entries()) != 0 {
				t.Fatalf("%d ended, %v, %+v, %d entries left", n, err, ended, len(r.entries()))
			}
			f, b := want[nat.Key], want[nat.Reply]
			e := ended[0]
			if e.Key != nat.Key || e.Reply != nat.Reply || e.Why != c.why || e.Packets != f.Packets || e.Bytes != f.Bytes || e.ReplyPackets != b.Packets ||
				e.ReplyBytes != b.Bytes || e.TCPFlags != f.TCPFlags || e.ReplyTCPFlags != b.TCPFlags || e.Start != f.Start || e.Start < start ||
				e.LastSeen != max(f.LastSeen, b.LastSeen) || e.Chain != f.Chain || e.Hash != f.Hash || e.Action != Bypass {
				t.Errorf("ended %+v\nentries %+v\n%+v", e, f, b)
			}
			r.table.settle(Now())
			if got := len(r.table.slots.free); got != used+1 {
				t.Errorf("%d slots are free, want %d", got, used+1)
			}
		})
	}
}

// Slots run out, come back when flows end, and then have another generation.
func TestRewritesFull(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules, o.MaxRewrites = all, 2 })
	flow := func(i byte) (packet []byte, o OffloadFlow) {
		packet = changed(udp4(t, 10), 34, 0, i)
		return packet, OffloadFlow{Key: flowOf(t, packet), Rewrite: rewrite.Rule{Flags: rewrite.SetDstMAC, DstMAC: [6]byte{2, 9, 9, 9, 9, i}}}
	}
	before := r.OffloadResults()
	for i, want := range []OffloadResult{OffloadTaken, OffloadTaken, OffloadSlotsFull, OffloadSlotsFull} {
		packet, o := flow(byte(i))
		r.run(0, packet)
		if got := r.one(o); got != want {
			t.Errorf("flow %d: %v, want %v", i, got, want)
		}
		if want == OffloadTaken {
			r.expect("offloaded", 0, packet, forwarded, &o.Rewrite)
		} else {
			r.expect("still in user space", 0, packet, known, nil)
		}
		plain := OffloadFlow{Key: o.Key}
		if i == 3 && r.one(plain) != OffloadTaken {
			t.Error("a flow without rewrite needs no slot")
		}
	}
	if got := r.OffloadResults(); got[OffloadSlotsFull] != before[OffloadSlotsFull]+2 || got[OffloadTaken] != before[OffloadTaken]+3 {
		t.Errorf("results %v, before %v", got, before)
	}
	first, o := flow(0)
	if n, err := r.Evict([]FlowKey{o.Key}, nil); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	third, o3 := flow(2)
	if got := r.one(o3); got != OffloadSlotsFull {
		t.Errorf("a slot is used again before it has rested: %v", got)
	}
	if _, err := r.Expire(Now(), Timeouts{}, nil); err != nil { // settles
		t.Fatal(err)
	}
	if got := r.one(o3); got != OffloadTaken {
		t.Fatal(got)
	}
	r.expect("in its place", 0, third, forwarded, &o3.Rewrite)
	r.expect("the flow that ended", 0, first, toSocket, nil)
	// A flow that is given back without ever being found leaks no slot.
	for range 5 {
		gone := o
		gone.Key.SrcPort = 9
		if got := r.one(gone); got != OffloadSlotsFull {
			t.Fatal(got)
		}
	}
}

// A decision that names a slot which has become another flow's is not followed.
func TestStaleRewrite(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	packet := tcp4(t, "PA", 20)
	nat := natFlow(t)
	r.run(0, tcp4(t, "S", 0))
	if got := r.one(nat); got != OffloadTaken {
		t.Fatal(got)
	}
	r.expect("fresh", 0, packet, forwarded, &nat.Rewrite)
	raw := nat.Key.raw()
	v, err := r.flow(&raw)
	if err != nil {
		t.Fatal(err)
	}
	slot, generation := slotOf(v.Decision)
	var w steerRewrite
	if err := r.table.rewrites.Lookup(2*slot, &w); err != nil || w.Generation != generation || w.Other != func() steerFlowKey { return nat.Reply.raw() }() {
		t.Fatalf("%+v, %v", w, err)
	}
	for _, g := range []uint32{generation + 1, generation - 1, 0} {
		w.Generation = g
		if err := r.table.rewrites.Put(2*slot, &w); err != nil {
			t.Fatal(err)
		}
		r.expect("stale", 0, packet, fate{VerdictSocket, "rewrite_stale"}, nil)
	}
}

// The fragments that follow a first one are treated as it was, rewrite and all, also if the flow has ended since.
func TestRewrittenFragments(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	macs := rewrite.Rule{Flags: rewrite.SetDstMAC | rewrite.DecTTL, DstMAC: [6]byte{2, 1, 2, 3, 4, 5}}
	first, later := frag4(t, 7, 0, true, isUDP, datagram(64)), frag4(t, 7, 64, false, isUDP, make([]byte, 40))
	key := flowOf(t, udp4(t, 0))
	r.run(0, first)
	key = func() FlowKey {
		for k, e := range r.entries() {
			if !e.Reply {
				return k
			}
		}
		t.Fatal("no flow")
		return key
	}()
	if got := r.one(OffloadFlow{Key: key, Rewrite: macs}); got != OffloadTaken {
		t.Fatal(got)
	}
	r.expect("first fragment", 0, first, forwarded, &macs)
	r.expect("later fragment", 0, later, fate{VerdictPeer, "fragment_known"}, &macs)
	if n, err := r.Evict([]FlowKey{key}, nil); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	r.table.settle(Now())
	r.run(0, udp4(t, 1))
	if got := r.one(OffloadFlow{Key: flowOf(t, udp4(t, 1)), Rewrite: rewrite.Rule{Flags: rewrite.SetSrcMAC, SrcMAC: [6]byte{2, 6}}}); got != OffloadTaken {
		t.Fatal(got)
	}
	r.expect("later fragment, the slot is another's", 0, later, fate{VerdictSocket, "rewrite_stale"}, nil)

	// Ports are in the first fragment only: user space sees to all of them.
	r.forget()
	r.run(0, first)
	ports := rewrite.Rule{Flags: rewrite.SetDstPort, DstPort: 5}
	if got := r.one(OffloadFlow{Key: key, Rewrite: ports}); got != OffloadTaken {
		t.Fatal(got)
	}
	r.expect("first fragment", 0, first, fate{VerdictSocket, "rewrite_slow"}, nil)
	r.expect("later fragment", 0, later, fate{VerdictSocket, "rewrite_slow"}, nil)
}

// A packet that only user space could change is dropped while nobody listens, whatever on_exit says; others go on.
func TestRewriteWithoutListener(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	nat := natFlow(t)
	nat.Rewrite.Flags |= rewrite.AddSeq
	nat.Rewrite.Seq = 7
	r.run(0, tcp4(t, "S", 0))
	if got := r.one(nat); got != OffloadTaken {
		t.Fatal(got)
	}
	if err := r.SetSocket(0, 0, -1); err != nil {
		t.Fatal(err)
	}
	r.expect("data", 0, tcp4(t, "PA", 9), forwarded, &nat.Rewrite)
	r.expect("a SYN-ACK", 0, tcp4(t, "SA", 0), fate{VerdictDrop, "rewrite_slow"}, nil)
}

// A decision may name the port to leave by.
func TestOffloadOutOfAPort(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules, o.Default = all, DefaultPass })
	r.run(0, tcp4(t, "S", 0))
	key := flowOf(t, tcp4(t, "S", 0))
	if got := r.one(OffloadFlow{Key: key, Out: 2}); got != OffloadTaken {
		t.Fatal(got)
	}
	r.expect("out of port 1", 0, tcp4(t, "A", 0), forwarded, nil)
	r.expect("default", 1, tcp4Reply(t, "A", 0), fate{VerdictPass, "flow_offloaded"}, nil)
	if _, err := r.Offload([]OffloadFlow{{Key: key, Out: 3}}); err == nil {
		t.Error("port 2 of 2 was taken")
	}
	if err := r.peers.Delete(uint32(1)); err != nil {
		t.Fatal(err)
	}
	r.expect("the port is gone", 0, tcp4(t, "A", 0), fate{VerdictDrop, "no_peer"}, nil)
	if err := shared.ns.Do(func() error { return r.setPeer(1, r.opts.Ports[1]) }); err != nil {
		t.Fatal(err)
	}
}

// Two flows cannot have the same replies.
func TestReplyKeysDoNotCollide(t *testing.T) {
	for _, low := range []bool{false, true} {
		r := newRig(t, func(o *Options) { o.Rules = all })
		nat := natFlow(t)
		r.run(0, tcp4(t, "S", 0))
		if low { // whichever entry comes first in the order that new flows are written in
			nat.Reply.Src = netip.AddrFrom4([4]byte{10, 0, 0, 0})
			nat.Rewrite.Dst = nat.Reply.Src.As16()
		}
		if got := r.one(nat); got != OffloadTaken {
			t.Fatal(got)
		}
		direct := bytes.Clone(tcp4(t, "S", 0))
		var h wire.Headers
		h.Parse(direct)
		if why := nat.Rewrite.Apply(direct, &h); why != rewrite.Done {
			t.Fatal(why)
		}
		r.expect("the client talks to the backend itself", 0, direct, toPeer("flow_conflict"), nil)
		if got := r.entries(); len(got) != 2 || got[nat.Key].Action != Bypass || got[nat.Reply].Action != Bypass {
			t.Errorf("entries %+v", got)
		}
		// And the reverse: the reply key is that of a flow which is there already.
		r.forget()
		r.run(0, direct)
		r.run(0, tcp4(t, "S", 0))
		if got := r.one(nat); got != OffloadReplyInUse {
			t.Error(got)
		}
		if got := r.entries(); len(got) != 4 || got[nat.Key].Action != ToChain {
			t.Errorf("entries %+v", got)
		}
	}
}

// No room for the new key of the replies: the flow stays as it is.
func TestOffloadTableFull(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules, o.MaxFlows = all, 16 })
	nat := natFlow(t)
	r.run(0, tcp4(t, "S", 0))
	for i := byte(0); i < 200 && r.run(0, changed(udp4(t, 0), 34, 1, i)).reason.String() != "flow_table_full"; i++ {
	}
	if got := r.one(nat); got != OffloadTableFull {
		t.Error(got)
	}
	e := r.entries()
	if e[nat.Key].Action != ToChain || e[nat.Key.Reverse()].Start == 0 {
		t.Errorf("entry %+v", e[nat.Key])
	}
	r.expect("data", 0, tcp4(t, "PA", 9), known, nil)
}

// An error about a packet as it was after rewriting comes to the flow too.
func TestErrorAboutRewrittenPacket(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	nat := natFlow(t)
	r.run(0, tcp4(t, "S", 0))
	if got := r.one(nat); got != OffloadTaken {
		t.Fatal(got)
	}
	sent := tcp4(t, "PA", 60)
	o := r.rewritten(0, sent)
	r.expect("about the packet as it left", 1, icmpError4(t, 3, o.data, 8), fate{VerdictSocket, "icmp_error"}, nil)
	r.expect("about the packet as it came", 0, icmpError4(t, 3, sent, 8), fate{VerdictSocket, "icmp_error"}, nil)
}
