package stack_test

import (
	"encoding/binary"
	"testing"

	"penstock/internal/rewrite"
	"penstock/internal/wire"
	"penstock/pipeline"
)

// TestAdopt: of a connection that an earlier process has spliced, what comes up is
// translated, errors too, until XDP says that it is over.
func TestAdopt(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true, xdp: &modelXDP{refuse: true}})
	client, server := addr(client4, 5000), addr(server4, 80)
	toServer := frame{srcMAC: clientMAC, dstMAC: serverMAC, src: client, dst: server, flags: wire.FlagACK, seq: 1, ack: 5, window: 100, payload: []byte("data")}
	toClient := frame{srcMAC: serverMAC, dstMAC: clientMAC, src: server, dst: client, flags: wire.FlagACK, seq: 2005, ack: 1005, window: 100, payload: []byte("reply")}
	var h wire.Headers
	h.Parse(toServer.build())
	flow, _ := h.Flow(toServer.build())
	adopt := func() {
		b.worker.Call(func() {
			b.stage.Adopt(pipeline.AdoptedFlow{
				Flow: flow, In: [2]pipeline.PortID{lan, wan},
				Rules: &[2]rewrite.Rule{
					{Flags: rewrite.AddSeq | rewrite.AddAck, Seq: 1000, Ack: 2000},
					{Flags: rewrite.AddSeq | rewrite.AddAck, Seq: ^uint32(1999), Ack: ^uint32(999)},
				},
			}, b.stage.now())
		})
	}
	adopt()
	adopt() // once is enough
	b.processed("it is adopted", "splice_adopted", 1)
	crosses := func(from pipeline.PortID, f frame, seq, ack uint32) (out segment) {
		t.Helper()
		b.ports[from].Inject(f.build())
		eventually(t, "a translated segment", func() bool {
			for _, out = range segments(b.ports[lan+wan-from].frames(), false, wire.FlagACK) {
				if string(out.tcp.Payload()) == string(f.payload) {
					return true
				}
			}
			return false
		})
		if out.tcp.Seq() != seq || out.tcp.Ack() != ack || !wire.VerifyL4(out.frame, &out.Headers) {
			t.Errorf("%q has numbers %d and %d, want %d and %d", f.payload, out.tcp.Seq(), out.tcp.Ack(), seq, ack)
		}
		return out
	}
	out := crosses(lan, toServer, 1001, 2005)
	crosses(wan, toClient, 5, 5)

	// Behind us somebody cannot take it whole.
	b.ports[wan].Inject(icmpError(serverMAC, clientMAC, server.Addr(), client.Addr(), wire.ICMPCodeFragNeeded, out.frame[out.L3:]))
	b.processed("the error is translated", "icmp_translated", 1)
	eventually(t, "an error that the client knows", func() bool {
		for _, f := range b.ports[lan].frames() {
			var h, q wire.Headers
			if !f.in && h.Parse(f.frame) == wire.FaultNone && h.QuotedHeaders(f.frame, &q) {
				return binary.BigEndian.Uint32(f.frame[q.L4+4:]) == 1
			}
		}
		return false
	})

	// A SYN-ACK that nobody has asked for is nobody's business; one that answers says that the server has lost it.
	syn, answer := toServer, toClient
	syn.flags, syn.payload, syn.seq = wire.FlagSYN, nil, 7
	answer.flags, answer.payload, answer.ack = wire.FlagSYN|wire.FlagACK, nil, 99
	b.ports[wan].Inject(answer.build())
	b.ports[lan].Inject(syn.build())
	eventually(t, "the server is asked", func() bool {
		s := segments(b.ports[wan].frames(), false, wire.FlagSYN)
		return len(s) == 1 && s[0].tcp.Seq() == 1007
	})
	answer.ack = 1008
	b.ports[wan].Inject(answer.build())
	eventually(t, "the next SYN begins anew", func() bool {
		b.ports[lan].Inject(syn.build())
		return b.count("reused") == 1
	})
	b.wantCount("splice_adopted", 1)
}

// TestAdoptedEnds: what XDP forgets is forgotten here.
func TestAdoptedEnds(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true, xdp: &modelXDP{}})
	f := frame{srcMAC: clientMAC, dstMAC: serverMAC, src: addr(client4, 5000), dst: addr(server4, 80), flags: wire.FlagACK}
	var h wire.Headers
	h.Parse(f.build())
	flow, _ := h.Flow(f.build())
	b.worker.Call(func() {
		b.stage.Adopt(pipeline.AdoptedFlow{Flow: flow, Rules: new([2]rewrite.Rule), In: [2]pipeline.PortID{lan, wan}}, b.stage.now())
	})
	if n := b.flows(); n != 1 {
		t.Errorf("%d flows are adopted", n)
	}
	b.worker.Call(func() { b.stage.FlowEnded(flow.Reverse(), b.stage.now()) })
	if n := b.flows(); n != 0 {
		t.Errorf("%d flows are left", n)
	}
}

// TestCutPorts: of connections by a port that goes, both ends are told, and what is
// spliced is forgotten.
func TestCutPorts(t *testing.T) {
	cut := func(b *bed, id pipeline.PortID) int {
		n := make(chan int, 1)
		b.worker.Call(func() {
			n <- b.stage.CutPorts(func(p pipeline.PortID) bool { return p == id }, b.stage.now())
		})
		return <-n
	}
	b := newBed(t, bedOptions{noHosts: true})
	c, s, _, _, _, _ := b.open(addr(client4, 4000), addr(server4, 80))
	spliced := newBed(t, bedOptions{noHosts: true, xdp: &modelXDP{}})
	f := frame{srcMAC: clientMAC, dstMAC: serverMAC, src: addr(client4, 5000), dst: addr(server4, 80), flags: wire.FlagACK}
	var h wire.Headers
	h.Parse(f.build())
	flow, _ := h.Flow(f.build())
	spliced.worker.Call(func() {
		spliced.stage.Adopt(pipeline.AdoptedFlow{Flow: flow, Rules: new([2]rewrite.Rule), In: [2]pipeline.PortID{lan, wan}}, spliced.stage.now())
	})
	for _, b := range []*bed{b, spliced} {
		for i, id := range []pipeline.PortID{7, wan, lan} {
			if n, want := cut(b, id), []int{0, 1, 0}[i]; n != want {
				t.Errorf("port %d: %d connections are cut, want %d", id, n, want)
			}
		}
		if n := b.flows(); n != 0 {
			t.Errorf("%d flows are left", n)
		}
	}
	c.expect(wire.FlagRST)
	s.expect(wire.FlagRST)
}
