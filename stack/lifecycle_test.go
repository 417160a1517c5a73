package stack_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/stack"
)

// open plays a handshake at both ends and returns them with the next sequence
// numbers of each, as netstack counts them too.
func (b *bed) open(from, to netip.AddrPort) (c, s *player, cSeq, cAck, sSeq, sAck uint32) {
	b.t.Helper()
	c, s = b.players(from, to)
	c.send(wire.FlagSYN, 1000, 0, optMSS(1460), nil)
	syn := s.expect(wire.FlagSYN)
	s.send(wire.FlagSYN|wire.FlagACK, 2000, syn.tcp.Seq()+1, optMSS(1460), nil)
	s.expect(wire.FlagACK)
	synack := c.expect(wire.FlagSYN | wire.FlagACK)
	accepted := b.count("accepted")
	c.send(wire.FlagACK, 1001, synack.tcp.Seq()+1, nil, nil)
	eventually(b.t, "connection accepted", func() bool { return b.count("accepted") == accepted+1 })
	return c, s, 1001, synack.tcp.Seq() + 1, 2001, syn.tcp.Seq() + 1
}

func hasPayload(s segment) bool { return len(s.tcp.Payload()) > 0 }

func TestHalfClose(t *testing.T) {
	for _, first := range []string{"client", "server"} {
		t.Run(first, func(t *testing.T) {
			b := newBed(t, bedOptions{})
			to := addr(server4, 80)
			l := b.server.listen(t, to)
			early, late := noise(5, 300_000), noise(6, 400_000)
			// one finishes after early; the other answers with late only then.
			one := func(c net.Conn) error {
				c.Write(early)
				c.(interface{ CloseWrite() error }).CloseWrite()
				got, err := io.ReadAll(c)
				if err == nil && !bytes.Equal(got, late) {
					err = fmt.Errorf("%d bytes differ from the %d sent", len(got), len(late))
				}
				return err
			}
			other := func(c net.Conn) error {
				got, err := io.ReadAll(c)
				if err == nil && !bytes.Equal(got, early) {
					err = fmt.Errorf("%d bytes differ from the %d sent", len(got), len(early))
				}
				c.Write(late)
				return err
			}
			if first == "server" {
				one, other = other, one
			}
			var serverErr error
			served := serveOnce(l, func(c net.Conn) { serverErr = other(c) })
			c, err := b.client.dial(addr(client4, 0), to, dialTime)
			if err != nil {
				t.Fatal(err)
			}
			if err := one(c); err != nil {
				t.Errorf("client: %v", err)
			}
			c.Close()
			<-served
			if serverErr != nil {
				t.Errorf("server: %v", serverErr)
			}
			eventually(t, "connection closed", func() bool { return b.flows() == 0 })
			b.wantCount("closed", 1)
			b.wantCount("half_closed", 1)
			b.wantCount("resets", 0)
		})
	}
}

// TestResetAfterData: a reset goes through, after the bytes that came before.
func TestResetAfterData(t *testing.T) {
	for _, by := range []string{"client", "server"} {
		t.Run(by, func(t *testing.T) {
			b := newBed(t, bedOptions{noHosts: true})
			from, to, fSeq, fAck, _, tAck := b.open(addr(client4, 5000), addr(server4, 80))
			if by == "server" {
				from, to, _, tAck, fSeq, fAck = b.reopen(from, to)
			}
			data := noise(7, 1000)
			from.send(wire.FlagACK|wire.FlagPSH, fSeq, fAck, nil, data)
			from.send(wire.FlagRST, fSeq+1000, 0, nil, nil)
			d := to.expectWhere("data", hasPayload)
			if !bytes.Equal(d.tcp.Payload(), data) {
				t.Error("other bytes came than were sent")
			}
			r := to.expect(wire.FlagRST)
			if r.tcp.Seq() != tAck+1000 {
				t.Errorf("reset has seq %d, want %d", r.tcp.Seq(), tAck+1000)
			}
			eventually(t, "no flow left", func() bool { return b.flows() == 0 })
			b.wantCount("resets", 1)
		})
	}
}

// reopen returns the ends of an open connection with their roles exchanged.
func (b *bed) reopen(c, s *player) (_, _ *player, cSeq, cAck, sSeq, sAck uint32) {
	frames := b.ports[wan].frames()
	syn := segments(frames, false, wire.FlagSYN)[0]
	synack := segments(b.ports[lan].frames(), false, wire.FlagSYN|wire.FlagACK)[0]
	return s, c, 1001, synack.tcp.Seq() + 1, 2001, syn.tcp.Seq() + 1
}

// TestResetWaits: what a closed window keeps back is sent before the reset, if
// the window opens in time.
func TestResetWaits(t *testing.T) {
	for _, opens := range []bool{true, false} {
		t.Run(fmt.Sprintf("opens %v", opens), func(t *testing.T) {
			b := newBed(t, bedOptions{noHosts: true})
			c, s, cSeq, cAck, sSeq, sAck := b.open(addr(client4, 5000), addr(server4, 80))
			s.template.window = 0
			s.send(wire.FlagACK, sSeq, sAck, nil, nil)
			data := noise(7, 1000)
			begin := time.Now()
			c.send(wire.FlagACK|wire.FlagPSH, cSeq, cAck, nil, data)
			c.expect(wire.FlagACK)
			c.send(wire.FlagRST, cSeq+1000, 0, nil, nil)
			if opens {
				s.expectWhere("a window probe", func(s segment) bool { return s.tcp.Seq() == sAck-1 })
				s.template.window = 5000
				s.send(wire.FlagACK, sSeq, sAck, nil, nil)
				if d := s.expectWhere("data", func(s segment) bool { return len(s.tcp.Payload()) > 1 }); !bytes.Equal(d.tcp.Payload(), data) {
					t.Error("other bytes came than were sent")
				}
			}
			s.expect(wire.FlagRST)
			if took := time.Since(begin); !opens && took < time.Second {
				t.Errorf("reset after %v, want the window waited for", took)
			}
			eventually(t, "no flow left", func() bool { return b.flows() == 0 })
		})
	}
}

// TestSlowReader: the server has finished, and even its TIME_WAIT is over, before
// the client takes what it sent.
func TestSlowReader(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) {
		o.TimeWait, o.SendBuffer, o.SendBufferMax = 20*time.Millisecond, 16<<10, 16<<10
	}})
	c, s, cSeq, cAck, sSeq, sAck := b.open(addr(client4, 5000), addr(server4, 80))
	c.template.window = 0
	c.send(wire.FlagACK|wire.FlagFIN, cSeq, cAck, nil, nil)
	cSeq++
	s.expect(wire.FlagFIN)
	sAck++
	data := noise(3, 100_000)
	for off := 0; off < len(data); off += 1000 {
		s.send(wire.FlagACK, sSeq+uint32(off), sAck, nil, data[off:off+1000])
		if off%10_000 == 0 {
			s.expectWhere("acknowledgment", func(s segment) bool { return int32(s.tcp.Ack()-(sSeq+uint32(off))) > 0 })
		}
	}
	s.send(wire.FlagACK|wire.FlagFIN, sSeq+uint32(len(data)), sAck, nil, nil)
	s.expectWhere("acknowledgment", func(s segment) bool { return s.tcp.Ack() == sSeq+uint32(len(data))+1 })
	eventually(t, "the server's leg closed", func() bool {
		lines := make(chan []string)
		b.worker.Call(func() { lines <- b.stage.Describe() })
		return strings.Contains(strings.Join(<-lines, ""), "CLOSED")
	})
	c.template.window = 65535
	got := 0
	for got < len(data) {
		c.send(wire.FlagACK, cSeq, cAck+uint32(got), nil, nil)
		d := c.expectWhere("data", func(d segment) bool {
			if d.tcp.Flags().Has(wire.FlagRST) {
				t.Fatal("the client was reset")
			}
			return len(d.tcp.Payload()) > 1 && d.tcp.Seq() == cAck+uint32(got)
		})
		if !bytes.Equal(d.tcp.Payload(), data[got:got+len(d.tcp.Payload())]) {
			t.Fatal("other bytes came than were sent")
		}
		got += len(d.tcp.Payload())
	}
	c.send(wire.FlagACK, cSeq, cAck+uint32(got), nil, nil)
	c.expect(wire.FlagFIN)
	c.send(wire.FlagACK, cSeq, cAck+uint32(got)+1, nil, nil)
	eventually(t, "connection closed", func() bool { return b.count("closed") == 1 })
	b.wantCount("resets", 0)
}

// TestResetInCloseWait: an end that has finished may still reset.
func TestResetInCloseWait(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	c, s, cSeq, cAck, sSeq, sAck := b.open(addr(client4, 5000), addr(server4, 80))
	c.send(wire.FlagACK|wire.FlagFIN, cSeq, cAck, nil, nil)
	s.expect(wire.FlagFIN)
	s.send(wire.FlagACK, sSeq, sAck+1, nil, nil)
	c.send(wire.FlagRST, cSeq+1, 0, nil, nil)
	s.expect(wire.FlagRST)
	eventually(t, "no flow left", func() bool { return b.flows() == 0 })
	b.wantCount("resets", 1)
}

func TestTimeouts(t *testing.T) {
	for _, tc := range []struct {
		name    string
		set     func(*stack.Options)
		play    func(c, s *player, cSeq, cAck, sSeq, sAck uint32)
		counter string
	}{
		{"idle", func(o *stack.Options) { o.IdleTimeout = 200 * time.Millisecond },
			func(c, s *player, _, _, _, _ uint32) { c.expect(wire.FlagRST); s.expect(wire.FlagRST) }, "idle_timeout"},
		{"half closed", func(o *stack.Options) { o.HalfClosedTimeout = 200 * time.Millisecond },
			func(c, s *player, cSeq, cAck, sSeq, sAck uint32) {
				c.send(wire.FlagACK|wire.FlagFIN, cSeq, cAck, nil, nil)
				s.expect(wire.FlagFIN)
				s.send(wire.FlagACK, sSeq, sAck+1, nil, nil)
				c.expect(wire.FlagRST)
				s.expect(wire.FlagRST)
			}, "half_closed_timeout"},
		{"close", func(o *stack.Options) { o.CloseTimeout = 200 * time.Millisecond },
			func(c, s *player, cSeq, cAck, sSeq, sAck uint32) {
				c.send(wire.FlagACK|wire.FlagFIN, cSeq, cAck, nil, nil)
				s.expect(wire.FlagFIN)
				s.send(wire.FlagACK|wire.FlagFIN, sSeq, sAck+1, nil, nil)
				c.expect(wire.FlagFIN) // never acknowledged
				c.expect(wire.FlagRST)
			}, "close_timeout"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t, bedOptions{noHosts: true, options: tc.set})
			tc.play(b.open(addr(client4, 5000), addr(server4, 80)))
			eventually(t, "no flow left", func() bool { return b.flows() == 0 })
			b.wantCount(tc.counter, 1)
		})
	}
}

// TestKeepAlive: a server that has vanished is found out, and the client reset;
// one that is merely silent is not.
func TestKeepAlive(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) { o.KeepAlive = 100 * time.Millisecond }})
	c, s, cSeq, cAck, _, sAck := b.open(addr(client4, 5000), addr(server4, 80))
	probe := func(seq uint32) func(segment) bool {
		return func(p segment) bool { return p.tcp.Seq() == seq-1 || p.tcp.Flags().Has(wire.FlagRST) }
	}
	s.expectWhere("a probe", probe(sAck))
	for probes := 0; ; probes++ {
		if p := c.expectWhere("a probe, or the end", probe(cAck)); p.tcp.Flags().Has(wire.FlagRST) {
			if probes < 5 {
				t.Errorf("reset after %d probes of a client that answers", probes)
			}
			break
		}
		c.send(wire.FlagACK, cSeq, cAck, nil, nil)
	}
	eventually(t, "no flow left", func() bool { return b.flows() == 0 })
	b.wantCount("resets", 1)
}

// TestSYNOnOpenConnection: a SYN alone does not end a connection (RFC 5961); a
// client that has lost it says so when challenged, and begins anew.
func TestSYNOnOpenConnection(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	c, s, cSeq, cAck, _, sAck := b.open(addr(client4, 5000), addr(server4, 80))
	c.send(wire.FlagSYN, 777777, 0, nil, nil)
	ch := c.expect(wire.FlagACK)
	if ch.tcp.Seq() != cAck || ch.tcp.Ack() != cSeq || ch.tcp.Flags() != wire.FlagACK {
		t.Errorf("got %s, want a challenge: seq %d, ack %d", wire.Summary(ch.frame), cAck, cSeq)
	}
	c.send(wire.FlagACK|wire.FlagPSH, cSeq, cAck, nil, []byte("alive"))
	if d := s.expectWhere("data", hasPayload); string(d.tcp.Payload()) != "alive" {
		t.Errorf("got %q", d.tcp.Payload())
	}
	cSeq += 5
	c.send(wire.FlagRST, cSeq, 0, nil, nil)
	if r := s.expect(wire.FlagRST); r.tcp.Seq() != sAck+5 {
		t.Errorf("reset has seq %d, want %d", r.tcp.Seq(), sAck+5)
	}
	c.send(wire.FlagSYN, 777777, 0, nil, nil)
	syn := s.expect(wire.FlagSYN)
	s.send(wire.FlagSYN|wire.FlagACK, 1, syn.tcp.Seq()+1, nil, nil)
	if sa := c.expect(wire.FlagSYN | wire.FlagACK); sa.tcp.Ack() != 777778 {
		t.Errorf("SYN-ACK acknowledges %d, want 777778", sa.tcp.Ack())
	}
	b.wantCount("reused", 1)
}

// TestReuseWhileClosing: the client's last acknowledgment is lost, and it uses
// the port again.
func TestReuseWhileClosing(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	c, s, cSeq, cAck, sSeq, sAck := b.open(addr(client4, 5000), addr(server4, 80))
	s.send(wire.FlagACK|wire.FlagFIN, sSeq, sAck, nil, nil)
	c.expect(wire.FlagFIN)
	c.send(wire.FlagACK|wire.FlagFIN, cSeq, cAck+1, nil, nil)
	s.expect(wire.FlagFIN) // not acknowledged either: the server's leg is in LAST_ACK
	c.send(wire.FlagSYN, 900000, 0, nil, nil)
	s.expect(wire.FlagRST)
	syn := s.expect(wire.FlagSYN)
	s.send(wire.FlagSYN|wire.FlagACK, 1, syn.tcp.Seq()+1, nil, nil)
	c.expect(wire.FlagSYN | wire.FlagACK)
	b.wantCount("reused", 1)
}

// TestSequential: many connections one after the other over a few client ports,
// each used again as soon as the last one on it is closed.
func TestSequential(t *testing.T) {
	const connections, ports = 500, 5
	for _, closer := range []string{"client", "server"} {
		t.Run(closer, func(t *testing.T) {
			b := newBed(t, bedOptions{options: func(o *stack.Options) { o.TimeWait = 5 * time.Second }})
			to := addr(server4, 80)
			l := b.server.listen(t, to)
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						var one [4]byte
						if _, err := io.ReadFull(c, one[:]); err == nil {
							c.Write(one[:])
						}
						if closer == "client" {
							io.Copy(io.Discard, c)
						}
						c.Close()
					}()
				}
			}()
			for i := range connections {
				from := addr(client4, uint16(20000+i%ports))
				var c net.Conn
				// The client's own TIME_WAIT, and the port it keeps meanwhile, last 10 ms.
				eventually(t, "client port free", func() (ok bool) {
					conn, err := b.client.dial(from, to, dialTime)
					if err == nil {
						c = conn
					}
					return err == nil
				})
				word := []byte{byte(i), byte(i >> 8), 1, 2}
				c.Write(word)
				got := make([]byte, 4)
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, word) {
					t.Fatalf("connection %d: got % x, %v", i, got, err)
				}
				if closer == "server" {
					if _, err := c.Read(got); err != io.EOF {
						t.Fatalf("connection %d: %v, want EOF", i, err)
					}
				}
				c.Close()
			}
			b.wantCount("accepted", connections)
			if b.count("reused") < connections-2*ports {
				t.Errorf("dials %d, reused %d of %d", b.count("dials"), b.count("reused"), connections)
			}
		})
	}
}

func TestConcurrent(t *testing.T) {
	const size = 20_000
	connections := 500
	if underRace || testing.Short() { // -short: where the processor is emulated
		connections = 60
	}
	b := newBed(t, bedOptions{frames: 16384})
	to := addr(server4, 80)
	l := b.server.listen(t, to)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	var wg sync.WaitGroup
	for i := range connections {
		wg.Go(func() {
			c, err := b.client.dial(addr(client4, 0), to, 20*time.Second)
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			want := noise(byte(i), size)
			go func() { c.Write(want); c.CloseWrite() }()
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
				t.Errorf("connection %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	wg.Wait()
	eventually(t, "no flow left", func() bool { return b.flows() == 0 })
	b.wantCount("accepted", uint64(connections))
	b.wantCount("closed", uint64(connections))
	b.wantCount("bytes_to_client", uint64(connections*size))
}

func TestLimits(t *testing.T) {
	for _, how := range []stack.Refusal{stack.Bypass, stack.Drop} {
		for _, which := range []string{"tcp_flow_limit", "tcp_pending_limit"} {
			t.Run(fmt.Sprintf("%s %v", which, how), func(t *testing.T) {
				b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) {
					o.OnLimit = how
					if which == "tcp_flow_limit" {
						o.MaxFlows = 2
					} else {
						o.MaxPending = 2
					}
				}})
				for i := range 3 {
					c, s := b.players(addr(client4, uint16(5000+i)), addr(server4, 80))
					c.send(wire.FlagSYN, 1, 0, nil, nil)
					if i < 2 {
						s.expect(wire.FlagSYN)
					}
				}
				eventually(t, "the third refused", func() bool { return b.count(which) == 1 })
				st := b.worker.Stats()
				if got := st.Totals.Dropped[which]; how == stack.Drop && got != 1 || how == stack.Bypass && st.Totals.Forwarded != 1 {
					t.Errorf("dropped %v, forwarded %d", st.Totals.Dropped, st.Totals.Forwarded)
				}
				b.wantCount("dials", 2)
				if b.flows() != 2 {
					t.Errorf("%d flows, want 2", b.flows())
				}
			})
		}
	}
}

// TestBypassedStaysBypassed: a SYN that is repeated after the limit has become
// slack may have been answered already.
func TestBypassedStaysBypassed(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) { o.MaxFlows = 1 }})
	c1, s1, cSeq, _, _, _ := b.open(addr(client4, 5000), addr(server4, 80))
	c2, s2 := b.players(addr(client4, 5001), addr(server4, 80))
	c2.send(wire.FlagSYN, 4711, 0, nil, nil)
	s2.expectWhere("the client's own SYN", func(s segment) bool { return s.tcp.Seq() == 4711 })
	c1.send(wire.FlagRST, cSeq, 0, nil, nil)
	s1.expect(wire.FlagRST)
	eventually(t, "room for another", func() bool { return b.flows() == 0 })
	s2.at = len(b.ports[wan].frames())
	c2.send(wire.FlagSYN, 4711, 0, nil, nil)
	s2.expectWhere("the client's own SYN again", func(s segment) bool { return s.tcp.Seq() == 4711 })
	b.wantCount("bypassed_again", 1)
	c2.send(wire.FlagSYN, 99, 0, nil, nil)
	if syn := s2.expect(wire.FlagSYN); syn.tcp.Seq() == 99 {
		t.Error("another connection on the same ports was bypassed as well")
	}
	b.wantCount("dials", 2)
}

// TestRememberedDoNotFill: closed connections that are still remembered make
// room for new ones.
func TestRememberedDoNotFill(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true, options: func(o *stack.Options) { o.MaxFlows, o.TimeWait = 4, time.Minute }})
	for i := range 100 {
		c, s, cSeq, _, _, _ := b.open(addr(client4, uint16(5000+i)), addr(server4, 80))
		c.send(wire.FlagRST, cSeq, 0, nil, nil)
		s.expect(wire.FlagRST)
	}
	b.wantCount("tcp_flow_limit", 0)
	b.wantCount("accepted", 100)
}

func TestDrain(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	c, s, cSeq, cAck, _, _ := b.open(addr(client4, 5000), addr(server4, 80))
	left := make(chan int)
	b.worker.Call(func() { left <- b.worker.Drain() })
	if n := <-left; n != 1 {
		t.Errorf("left: %d, want 1", n)
	}
	c2, s2 := b.players(addr(client4, 5001), addr(server4, 80))
	c2.send(wire.FlagSYN, 123, 0, nil, nil)
	if syn := s2.expect(wire.FlagSYN); syn.tcp.Seq() != 123 {
		t.Errorf("SYN has seq %d, want the client's own, 123", syn.tcp.Seq())
	}
	b.wantCount("bypassed_draining", 1)
	c.send(wire.FlagACK|wire.FlagPSH, cSeq, cAck, nil, []byte("still here"))
	if d := s.expectWhere("data", hasPayload); string(d.tcp.Payload()) != "still here" {
		t.Errorf("got %q", d.tcp.Payload())
	}
}

// TestCloseOpen closes a stage in the middle of everything; newBed checks what
// is left.
func TestCloseOpen(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	b.open(addr(client4, 5000), addr(server4, 80))
	c, s := b.players(addr(client4, 5001), addr(server4, 80))
	c.send(wire.FlagSYN, 1, 0, nil, nil)
	s.expect(wire.FlagSYN)
	c, s = b.players(addr(client6, 5002), addr(server6, 80))
	c.send(wire.FlagSYN, 1, 0, nil, nil)
	syn := s.expect(wire.FlagSYN)
	s.send(wire.FlagSYN|wire.FlagACK, 1, syn.tcp.Seq()+1, nil, nil)
	c.expect(wire.FlagSYN | wire.FlagACK)
	if b.flows() != 3 {
		t.Errorf("%d flows, want 3", b.flows())
	}
	b.stop()
	b.wantCount("flows_active", 0)
}

func TestVLANClash(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	c1, s1 := b.players(addr(client4, 5000), addr(server4, 80), 10)
	c1.send(wire.FlagSYN, 1, 0, nil, nil)
	s1.expect(wire.FlagSYN)
	c2, s2 := b.players(addr(client4, 5000), addr(server4, 80), 20)
	c2.send(wire.FlagSYN, 4711, 0, nil, nil)
	if syn := s2.expect(wire.FlagSYN); syn.tcp.Seq() != 4711 {
		t.Errorf("SYN has seq %d, want the client's own", syn.tcp.Seq())
	}
	b.wantCount("unsupported_vlan_clash", 1)
	s2.send(wire.FlagSYN|wire.FlagACK, 9, 4712, nil, nil)
	c2.expectWhere("the server's own SYN-ACK", func(s segment) bool { return s.tcp.Seq() == 9 })
	b.wantCount("midstream", 1)
}

func TestWrongPort(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	c, s, cSeq, cAck, _, _ := b.open(addr(client4, 5000), addr(server4, 80))
	f := c.template
	f.flags, f.seq, f.ack = wire.FlagRST, cSeq, cAck
	b.ports[wan].send(f.build()) // the client's reset from the server's side
	eventually(t, "packet passed on", func() bool { return b.count("wrong_port") == 1 })
	c.send(wire.FlagACK|wire.FlagPSH, cSeq, cAck, nil, []byte("x"))
	s.expectWhere("data", hasPayload)
}

// TestFragments: a segment in pieces arrives; one of a connection that is not
// terminated passes in pieces.
func TestFragments(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	c, s, cSeq, cAck, _, _ := b.open(addr(client4, 5000), addr(server4, 80))
	f := c.template
	f.flags, f.seq, f.ack, f.payload = wire.FlagACK|wire.FlagPSH, cSeq, cAck, noise(8, 1000)
	for _, piece := range fragments(f.build(), 512) {
		b.ports[lan].send(piece)
	}
	d := s.expectWhere("data", hasPayload)
	if !bytes.Equal(d.tcp.Payload(), f.payload) {
		t.Errorf("got %d bytes, want the %d sent", len(d.tcp.Payload()), len(f.payload))
	}
	b.wantCount("fragments", 2)
	f.src = addr(client4, 6000)
	for _, piece := range fragments(f.build(), 512) { // with the same identification
		b.ports[lan].send(piece)
	}
	eventually(t, "both pieces passed on", func() bool { return b.worker.Stats().Totals.Forwarded == 2 })
	b.wantCount("fragments", 2)
}

// fragments cuts an IPv4 frame in two, size bytes of IP payload in the first.
func fragments(b []byte, size int) [][]byte {
	at := wire.EthernetLen + wire.IPv4Len
	make1 := func(payload []byte, field uint16) []byte {
		f := append(append([]byte(nil), b[:at]...), payload...)
		ip := wire.IPv4(f[wire.EthernetLen:])
		ip.SetID(0xbeef)
		ip[6], ip[7] = byte(field>>8), byte(field)
		ip.SetTotalLen(len(ip))
		ip.FillChecksum()
		return f
	}
	return [][]byte{make1(b[at:at+size], 0x2000), make1(b[at+size:], uint16(size/8))}
}

// TestPacketTooBig: an ICMP error about a segment lowers the size of those after
// it, but not below what a path can have.
func TestPacketTooBig(t *testing.T) {
	for _, tc := range []struct {
		v6        bool
		mtu, want int // want: segments of at most
	}{{false, 1000, 1000 - 40}, {false, 68, 552 - 40}, {true, 1300, 1300 - 60}, {true, 100, 1280 - 60}} {
		t.Run(fmt.Sprintf("v6 %v, %d", tc.v6, tc.mtu), func(t *testing.T) {
			b := newBed(t, bedOptions{noHosts: true})
			from, to := addr(client4, 5000), addr(server4, 80)
			if tc.v6 {
				from, to = addr(client6, 5000), addr(server6, 80)
			}
			c, s, cSeq, cAck, _, sAck := b.open(from, to)
			c.send(wire.FlagACK|wire.FlagPSH, cSeq, cAck, nil, noise(1, 1440))
			d := s.expectWhere("data", hasPayload)
			if len(d.tcp.Payload()) < 1400 {
				t.Fatalf("segment of %d bytes, want a full one", len(d.tcp.Payload()))
			}
			typ, code, rest := byte(wire.ICMPUnreachable), byte(wire.ICMPCodeFragNeeded), uint32(tc.mtu)
			if tc.v6 {
				typ, code = wire.ICMPv6PacketTooBig, 0
			}
			b.ports[wan].send(icmpMessage(serverMAC, clientMAC, to.Addr(), from.Addr(), typ, code, rest, d.frame[d.L3:min(int(d.End), 600)]))
			again := s.expectWhere("the data again", func(s segment) bool { return hasPayload(s) && s.tcp.Seq() == sAck })
			if n := len(again.tcp.Payload()); n > tc.want || n < tc.want-20 {
				t.Errorf("segment of %d bytes, want at most %d", n, tc.want)
			}
			b.wantCount("icmp_mtu", 1)
		})
	}
}

// TestLoss: what a cable loses, both ways, comes again.
func TestLoss(t *testing.T) {
	for _, rack := range []bool{true, false} {
		t.Run(fmt.Sprintf("rack %v", rack), func(t *testing.T) { testLoss(t, rack) })
	}
}

func testLoss(t *testing.T, rack bool) {
	n := 0
	b := newBed(t, bedOptions{
		lose:    func([]byte, bool) bool { n++; return n%53 == 0 },
		options: func(o *stack.Options) { o.RACK = rack },
	})
	to := addr(server4, 80)
	l := b.server.listen(t, to)
	want := noise(9, 1<<20)
	served := serveOnce(l, func(c net.Conn) {
		got, _ := io.ReadAll(io.LimitReader(c, int64(len(want))))
		c.Write(got)
	})
	c, err := b.client.dial(addr(client4, 0), to, dialTime)
	if err != nil {
		t.Fatal(err)
	}
	go c.Write(want)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got other bytes than were sent, or %v", err)
	}
	c.Close()
	<-served
	eventually(t, "retransmits are counted", func() bool { return b.count("retransmits") > 0 })
}

// TestTailLoss: when the last burst of a transfer is lost as a whole, it comes
// again, and not by a segment or two to a timeout.
func TestTailLoss(t *testing.T) {
	const size, lost = 400_000, 150_000
	var first, seen uint32
	b := newBed(t, bedOptions{lose: func(frame []byte, in bool) bool {
		var h wire.Headers
		if in || h.Parse(frame) != wire.FaultNone || h.Proto != wire.ProtoTCP {
			return false
		}
		seg := wire.TCP(frame[h.L4:h.End])
		if seg.DstPort() != 80 {
			return false // the other connection's numbers
		}
		if seg.Flags()&wire.FlagSYN != 0 {
			first, seen = seg.Seq(), seg.Seq()
		}
		fresh := int32(seg.Seq()-seen) > 0 && len(seg.Payload()) > 0
		if fresh {
			seen = seg.Seq()
		}
		return fresh && seg.Seq()-first > size-lost
	}})
	to := addr(server4, 80)
	l := b.server.listen(t, to)
	want := noise(3, size)
	got := make([]byte, size)
	served := serveOnce(l, func(c net.Conn) {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := io.ReadFull(c, got); err != nil {
			t.Errorf("%d bytes within 5 s: %v", n, err)
		}
	})
	c, err := b.client.dial(addr(client4, 0), to, dialTime)
	if err != nil {
		t.Fatal(err)
	}
	c.Write(want)
	<-served
	c.Close()
	if !bytes.Equal(got, want) {
		t.Error("got other bytes than were sent")
	}
}

// TestBackPressure: a server that reads nothing stops the client, not the
// appliance's memory.
func TestBackPressure(t *testing.T) {
	b := newBed(t, bedOptions{options: func(o *stack.Options) {
		o.SendBuffer, o.SendBufferMax, o.ReceiveBuffer, o.ReceiveBufferMax = 64<<10, 64<<10, 64<<10, 64<<10
	}})
	to := addr(server4, 80)
	l := b.server.listen(t, to)
	hold := make(chan struct{})
	var got int64
	served := serveOnce(l, func(c net.Conn) { <-hold; got, _ = io.Copy(io.Discard, c) })
	c, err := b.client.dial(addr(client4, 0), to, dialTime)
	if err != nil {
		t.Fatal(err)
	}
	c.SetWriteDeadline(time.Now().Add(700 * time.Millisecond))
	sent, err := io.Copy(c, io.LimitReader(zeros{}, 64<<20))
	if err == nil {
		t.Fatal("64 MiB were taken from the client and the server has read nothing")
	}
	// The hosts' own buffers are 1 MiB to 4 MiB at each end.
	relayed := b.count("bytes_to_server")
	if relayed > 4<<20 {
		t.Errorf("%d bytes relayed to a server that reads nothing", relayed)
	}
	close(hold)
	c.Close()
	<-served
	if got < sent-(4<<20) || got > sent {
		t.Errorf("server got %d bytes of %d", got, sent)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestFlowList(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	c, s, cSeq, cAck, _, _ := b.open(addr(client4, 5000), addr(server4, 80))
	c.send(wire.FlagACK|wire.FlagPSH, cSeq, cAck, nil, []byte("hello"))
	s.expectWhere("data", hasPayload)
	list := make(chan []pipeline.FlowInfo)
	b.worker.Call(func() {
		var l []pipeline.FlowInfo
		b.worker.Chains()[0].Flows(func(f pipeline.FlowInfo) { l = append(l, f) })
		list <- l
	})
	l := <-list
	if len(l) != 1 {
		t.Fatalf("%d flows, want 1", len(l))
	}
	f := l[0]
	if f.Flow.Client() != "10.1.0.1:5000" || f.Flow.Server() != "10.1.0.2:80" || f.Depth != pipeline.DepthTerminate ||
		f.State != "established" || f.Bytes != 5 || f.Packets == 0 || f.Start == 0 {
		t.Errorf("got %+v", f)
	}
}
