package stack_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/stack"
)

// exchange is an open connection whose next sequence numbers are known.
type exchange struct {
	c, s                   *player
	cSeq, cAck, sSeq, sAck uint32
}

// exchange opens a connection.
func (b *bed) exchange(from, to netip.AddrPort) *exchange {
	t := &exchange{}
	t.c, t.s, t.cSeq, t.cAck, t.sSeq, t.sAck = b.open(from, to)
	return t
}

// works checks that the connection carries a byte to the server and one back.
func (k *exchange) works() {
	k.c.t.Helper()
	k.c.insist("bytes_to_server", func() { k.c.send(wire.FlagACK|wire.FlagPSH, k.cSeq, k.cAck, nil, []byte("?")) })
	k.cSeq++
	k.s.expectWhere("a byte", func(g segment) bool { return string(g.tcp.Payload()) == "?" && g.tcp.Seq() == k.sAck })
	k.sAck++
	k.s.insist("bytes_to_client", func() { k.s.send(wire.FlagACK|wire.FlagPSH, k.sSeq, k.sAck, nil, []byte("!")) })
	k.sSeq++
	k.c.expectWhere("its answer", func(g segment) bool { return string(g.tcp.Payload()) == "!" && g.tcp.Seq() == k.cAck })
	k.cAck++
	k.c.send(wire.FlagACK, k.cSeq, k.cAck, nil, nil)
}

// insist sends again, as TCP does, until a counter has grown.
func (p *player) insist(counter string, send func()) {
	p.t.Helper()
	before, next := p.b.count(counter), time.Time{}
	eventually(p.t, counter+" to grow", func() bool {
		if time.Now().After(next) {
			send()
			next = time.Now().Add(200 * time.Millisecond)
		}
		return p.b.count(counter) > before
	})
}

// sentSince counts the segments toward an end that came after the first at
// frames.
func (p *player) sentSince(at int) (n int) {
	for _, f := range p.b.ports[p.port].frames()[at:] {
		if !f.in {
			n++
		}
	}
	return n
}

func (p *player) mark() int { return len(p.b.ports[p.port].frames()) }

// processed waits until a counter has come to n.
func (b *bed) processed(what string, counter string, n uint64) {
	b.t.Helper()
	eventually(b.t, what, func() bool { return b.count(counter) >= n })
}

// TestAttackZeroWindow: a client that asks and then closes its window (sockstress)
// is reset after StallTimeout, and so is the server that waits for it. One that
// takes a byte now and then is not.
func TestAttackZeroWindow(t *testing.T) {
	for _, slow := range []bool{false, true} {
		t.Run(fmt.Sprintf("slow %v", slow), func(t *testing.T) {
			b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) {
				o.StallTimeout, o.SendBuffer, o.SendBufferMax = 400*time.Millisecond, 16<<10, 16<<10
			}})
			k := b.exchange(addr(client4, 5000), addr(server4, 80))
			k.works()
			k.c.template.window = 0
			k.c.send(wire.FlagACK, k.cSeq, k.cAck, nil, nil)
			k.s.send(wire.FlagACK|wire.FlagPSH, k.sSeq, k.sAck, nil, bytes.Repeat([]byte("x"), 1000))
			if !slow {
				k.s.expect(wire.FlagRST)
				k.c.expect(wire.FlagRST)
				b.wantCount("stall_timeout", 1)
				b.wantCount("idle_timeout", 0)
				eventually(t, "no flow left", func() bool { return b.flows() == 0 })
				return
			}
			k.c.template.window = 1
			for begin, got := time.Now(), uint32(0); time.Since(begin) < 1200*time.Millisecond; got++ {
				k.c.send(wire.FlagACK, k.cSeq, k.cAck+got, nil, nil)
				k.c.expectWhere("a byte", func(g segment) bool { return hasPayload(g) && g.tcp.Seq() == k.cAck+got })
				time.Sleep(20 * time.Millisecond) // as slow as it is to be
			}
			b.wantCount("stall_timeout", 0)
			if b.flows() != 1 {
				t.Error("a connection that moves was ended")
			}
		})
	}
}

// TestAttackSlowRead: what a client does not read stops the server; no more of it
// is kept than the buffers hold.
func TestAttackSlowRead(t *testing.T) {
	const buffer, hold = 32 << 10, 64 << 10
	b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) {
		o.SendBuffer, o.SendBufferMax, o.ReceiveBuffer, o.ReceiveBufferMax = buffer, buffer, buffer, buffer
	}})
	k := b.exchange(addr(client4, 5000), addr(server4, 80))
	k.c.template.window = 0
	k.c.send(wire.FlagACK, k.cSeq, k.cAck, nil, nil)
	taken := uint32(0)
	for chunk := bytes.Repeat([]byte("x"), 1000); ; {
		k.s.send(wire.FlagACK|wire.FlagPSH, k.sSeq+taken, k.sAck, nil, chunk)
		closed := false
		g := k.s.expectWhere("an acknowledgment", func(g segment) bool {
			closed = g.tcp.Window() == 0
			return closed || g.tcp.Ack() == k.sSeq+taken+uint32(len(chunk))
		})
		taken = g.tcp.Ack() - k.sSeq
		if closed {
			break
		}
		if taken > 1<<20 {
			t.Fatal("1 MB for a client that reads nothing")
		}
	}
	if most := uint32(2*buffer + hold); taken > most {
		t.Errorf("%d bytes were taken for a client that reads nothing, want at most %d", taken, most)
	}
	other := b.exchange(addr(client4, 5001), addr(server4, 80))
	other.works()
}

// TestAttackTinySegments: segments of a byte each arrive whole, and as fewer.
func TestAttackTinySegments(t *testing.T) {
	const n = 3000
	b := newBed(t, bedOptions{noHosts: true})
	k := b.exchange(addr(client4, 5000), addr(server4, 80))
	want := noise(7, n)
	at := k.s.mark()
	go func() {
		for i := range want {
			k.c.send(wire.FlagACK|wire.FlagPSH, k.cSeq+uint32(i), k.cAck, nil, want[i:i+1])
		}
	}()
	var got []byte
	for len(got) < n {
		g := k.s.expectWhere("data", hasPayload)
		if off := int(g.tcp.Seq() - k.sAck); off <= len(got) && off+len(g.tcp.Payload()) > len(got) {
			got = append(got, g.tcp.Payload()[len(got)-off:]...)
		}
		k.s.send(wire.FlagACK, k.sSeq, k.sAck+uint32(len(got)), nil, nil)
	}
	if !bytes.Equal(got, want) {
		t.Error("other bytes arrive than were sent")
	}
	b.wantCount("bytes_to_server", n)
	t.Logf("%d segments of a byte arrive as %d", n, k.s.sentSince(at))
}

// TestAttackACKStorm: segments that call for an acknowledgment each get one now
// and then (RFC 5961 7), so that two ends that disagree cannot keep each other
// busy.
func TestAttackACKStorm(t *testing.T) {
	const n = 2000
	for _, kind := range []string{"ack of what was not sent", "data outside of the window", "syn"} {
		t.Run(kind, func(t *testing.T) {
			b := newBed(t, bedOptions{noHosts: true})
			k := b.exchange(addr(client4, 5000), addr(server4, 80))
			at, packets := k.c.mark(), b.worker.Stats().Totals.Packets
			for i := range uint32(n) {
				switch kind {
				case "ack of what was not sent":
					k.c.send(wire.FlagACK, k.cSeq, k.cAck+100000+i, nil, nil)
				case "syn":
					k.c.send(wire.FlagSYN, k.cSeq+i, 0, nil, nil)
				default:
					k.c.send(wire.FlagACK, k.cSeq-2, k.cAck, nil, nil)
				}
			}
			eventually(t, "all of them taken", func() bool { return b.worker.Stats().Totals.Packets >= packets+n })
			k.works()
			if answers := k.c.sentSince(at); answers > n/20 {
				t.Errorf("%d answers to %d segments", answers, n)
			}
			if kind[0] == 'a' {
				b.wantCount("bad_acks", n)
			}
		})
	}
}

// TestAttackInjection: who does not see the connection and guesses sequence
// numbers neither resets nor finishes it, and puts no byte into it.
func TestAttackInjection(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	k := b.exchange(addr(client4, 5000), addr(server4, 80))
	k.works()
	packets := b.worker.Stats().Totals.Packets
	const guesses = 500
	for i := range uint32(guesses) {
		guess := k.cSeq + 7 + i*(1<<32/guesses) // one of them is in the window
		ack := k.cAck + 1<<30 + i*(1<<31/guesses)
		k.c.send(wire.FlagRST, guess, 0, nil, nil)
		k.c.send(wire.FlagRST|wire.FlagACK, guess, ack, nil, nil)
		k.c.send(wire.FlagFIN|wire.FlagACK, guess, ack, nil, nil)
		k.c.send(wire.FlagPSH|wire.FlagACK, k.cSeq, ack, nil, []byte("evil")) // the sequence number is known, even
	}
	eventually(t, "all of them taken", func() bool { return b.worker.Stats().Totals.Packets >= packets+4*guesses })
	k.works()
	b.wantCount("resets", 0)
	b.wantCount("half_closed", 0)
	b.wantCount("bytes_to_server", 2)
	if n := b.count("bad_acks"); n < guesses {
		t.Errorf("bad_acks %d, want at least %d", n, guesses)
	}
}

// TestAttackSYNFlood: SYNs of clients that never go on take max_pending places and
// no more. Open connections are not concerned, and new ones pass untouched.
func TestAttackSYNFlood(t *testing.T) {
	const pending, flood = 8, 500
	for _, how := range []stack.Refusal{stack.Bypass, stack.Drop} {
		t.Run(fmt.Sprint(how), func(t *testing.T) {
			b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) {
				o.MaxPending, o.OnLimit, o.DialTimeout = pending, how, 700*time.Millisecond
			}})
			k := b.exchange(addr(client4, 5000), addr(server4, 80))
			for i := range flood {
				c, _ := b.players(addr(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 1000), addr(server4, 80))
				c.send(wire.FlagSYN, 1, 0, nil, nil)
			}
			b.processed("the flood refused", "tcp_pending_limit", flood-pending)
			b.wantCount("dials", 1+pending)
			k.works()
			// What the flood leaves to others.
			st := b.worker.Stats().Totals
			if how == stack.Bypass {
				if st.Forwarded < flood-pending {
					t.Errorf("%d packets forwarded, want at least %d", st.Forwarded, flood-pending)
				}
			} else if n := st.Dropped["tcp_pending_limit"]; n != flood-pending {
				t.Errorf("dropped %d, want %d", n, flood-pending)
			}
			eventually(t, "the places free again", func() bool { return b.count("dial_timeout") == pending })
			b.exchange(addr(client4, 5001), addr(server4, 80)).works()
		})
	}
}

// TestClientLimit: one client has so many connections and no more; others are not
// concerned, and what ends makes room. Of IPv6, a /64 is one client.
func TestClientLimit(t *testing.T) {
	a6, b6 := netip.MustParseAddr("fd01::1:2:3:4"), netip.MustParseAddr("fd01:0:0:1::1")
	for _, tc := range []struct {
		name                    string
		first, same, other, srv netip.Addr
	}{
		{"IPv4", client4, client4, netip.MustParseAddr("10.1.0.3"), server4},
		{"IPv6", client6, a6, b6, server6},
	} {
		for _, how := range []stack.Refusal{stack.Bypass, stack.Drop} {
			t.Run(fmt.Sprint(tc.name, how), func(t *testing.T) {
				b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) {
					o.MaxFlowsPerClient, o.OnLimit = 2, how
				}})
				k := b.exchange(addr(tc.first, 5000), addr(tc.srv, 80))
				b.exchange(addr(tc.same, 5001), addr(tc.srv, 80))
				c, _ := b.players(addr(tc.same, 5002), addr(tc.srv, 80))
				c.send(wire.FlagSYN, 1, 0, nil, nil)
				b.processed("the third refused", "tcp_client_limit", 1)
				b.exchange(addr(tc.other, 5003), addr(tc.srv, 80)).works()
				k.c.send(wire.FlagRST, k.cSeq, 0, nil, nil)
				k.s.expect(wire.FlagRST)
				eventually(t, "one gone", func() bool { return b.flows() == 2 })
				b.exchange(addr(tc.same, 5004), addr(tc.srv, 80)).works()
				b.wantCount("tcp_client_limit", 1)
				if n := b.worker.Stats().Totals.Dropped["tcp_client_limit"]; n != uint64(how) {
					t.Errorf("dropped %d, want %d", n, how)
				}
			})
		}
	}
}

// TestMSSClamp: neither end is announced more than the clamp, nor sent larger
// segments than it.
func TestMSSClamp(t *testing.T) {
	const clamp = 1000
	b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) { o.MSSClamp = clamp }})
	c, s := b.players(addr(client4, 5000), addr(server4, 80))
	c.send(wire.FlagSYN, 1000, 0, optMSS(1460), nil)
	syn := s.expect(wire.FlagSYN)
	s.send(wire.FlagSYN|wire.FlagACK, 2000, syn.tcp.Seq()+1, optMSS(1460), nil)
	synack := c.expect(wire.FlagSYN | wire.FlagACK)
	for _, g := range []segment{syn, synack} {
		if got := binary.BigEndian.Uint16(g.tcp.Options()[2:]); g.tcp.Options()[0] != wire.OptMSS || got != clamp {
			t.Errorf("%s: MSS %d, want %d", wire.Summary(g.frame), got, clamp)
		}
	}
	c.send(wire.FlagACK, 1001, synack.tcp.Seq()+1, nil, nil)
	b.processed("accepted", "accepted", 1)
	for _, w := range []struct {
		from, to *player
		seq, ack uint32
	}{{c, s, 1001, synack.tcp.Seq() + 1}, {s, c, 2001, syn.tcp.Seq() + 1}} {
		w.from.send(wire.FlagACK|wire.FlagPSH, w.seq, w.ack, nil, make([]byte, 1460))
		if g := w.to.expectWhere("data", hasPayload); len(g.tcp.Payload()) != clamp {
			t.Errorf("a segment of %d bytes, want %d", len(g.tcp.Payload()), clamp)
		}
	}
}
