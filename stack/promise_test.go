package stack_test

import (
	"testing"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// maySend returns how many bytes of its stream this end was told that it may send, and
// takes how many of the other's it has said it takes. Windows are not scaled here.
func (p *player) maySend() int { return p.edge(true) }
func (p *player) takes() int   { return p.edge(false) }

func (p *player) edge(own bool) (n int) {
	frames := p.b.ports[p.port].frames()
	isn := segments(frames, own, wire.FlagSYN)[0].tcp.Seq()
	for _, s := range segments(frames, !own, wire.FlagACK) {
		n = max(n, int(int32(s.tcp.Ack()+uint32(s.tcp.Window())-(isn+1))))
	}
	return n
}

// seen waits until the worker has received whatever was sent to it.
func (b *bed) seen() {
	b.t.Helper()
	sent := 0
	for _, p := range b.ports {
		for _, f := range p.frames() {
			if f.in {
				sent++
			}
		}
	}
	eventually(b.t, "everything is received", func() bool { return b.worker.Stats().Totals.Packets >= uint64(sent) })
}

// TestSplicePromises: when a connection is spliced, its client was told to send no
// more than its server takes. A client that sends little is never told to; one that has
// made use of more is let finish first.
func TestSplicePromises(t *testing.T) {
	const room = 4000 // what the server takes at once
	for _, c := range []struct {
		name   string
		sends  []int // by the client, before no stage wants the connection any more
		atOnce bool
	}{
		{"nothing", nil, false},
		{"a request", []int{100}, false},
		{"requests", []int{100, 700, 1000, 1200, 300, 1400, 1000, 900}, false},
		{"an upload", []int{1400, 1400, 1000}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			total := 0
			for _, n := range c.sends {
				total += n
			}
			b := newBed(t, bedOptions{noHosts: true, xdp: &modelXDP{refuse: true}, streams: []pipeline.StreamStage{releaser{total + 100}}})
			client, server := b.players(addr(client4, 5000), addr(server4, 80))
			server.template.window = room
			client.send(wire.FlagSYN, 1000, 0, optMSS(1460), nil)
			sAck := server.expect(wire.FlagSYN).tcp.Seq() + 1
			server.send(wire.FlagSYN|wire.FlagACK, 2000, sAck, optMSS(1460), nil)
			cAck := client.expect(wire.FlagSYN|wire.FlagACK).tcp.Seq() + 1
			client.send(wire.FlagACK, 1001, cAck, nil, nil)
			eventually(t, "accepted", func() bool { return b.count("accepted") == 1 })
			cSeq, sSeq, first := uint32(1001), uint32(2001), sAck
			send := func(n int) {
				client.send(wire.FlagACK|wire.FlagPSH, cSeq, cAck, nil, noise(1, n))
				cSeq += uint32(n)
			}
			arrives := func() {
				t.Helper()
				for sAck-first != cSeq-1001 {
					s := server.expectWhere("data", hasPayload)
					sAck = s.tcp.Seq() + uint32(len(s.tcp.Payload()))
				}
				server.send(wire.FlagACK, sSeq, sAck, nil, nil)
				b.seen()
				client.expectWhere("acknowledgment", func(s segment) bool { return s.tcp.Ack() == cSeq })
			}
			answer := func(n int) {
				server.send(wire.FlagACK|wire.FlagPSH, sSeq, sAck, nil, noise(2, n))
				sSeq += uint32(n)
				d := client.expectWhere("data", hasPayload)
				cAck = d.tcp.Seq() + uint32(len(d.tcp.Payload()))
				client.send(wire.FlagACK, cSeq, cAck, nil, nil)
				b.seen()
			}
			for _, n := range c.sends {
				if send(n); !c.atOnce {
					arrives()
					answer(1)
				}
			}
			if c.atOnce {
				arrives()
			}
			if may, takes := client.maySend(), server.takes(); may > takes != c.atOnce {
				t.Fatalf("the client may send %d bytes, and the server takes %d", may, takes)
			}
			// Now the stage lets go.
			answer(100)
			for i := 0; c.atOnce && client.maySend() > server.takes(); i++ {
				if i == 100 {
					t.Fatalf("the client has sent %d segments, and was told more and more: it may send %d bytes, and the server takes %d", i, client.maySend(), server.takes())
				}
				eventually(t, "the server's bytes are acknowledged", func() bool {
					s := segments(b.ports[wan].frames(), false, wire.FlagACK)
					return s[len(s)-1].tcp.Ack() == sSeq
				})
				b.wantCount("spliced", 0)
				send(1400)
				arrives()
			}
			eventually(t, "spliced", func() bool { return b.count("spliced") == 1 })
			if may, takes := client.maySend(), server.takes(); may > takes {
				t.Errorf("spliced when the client may send %d bytes, and the server takes %d", may, takes)
			}
		})
	}
}
