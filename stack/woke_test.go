package stack_test

import (
	"testing"

	"penstock/internal/wire"
)

// TestWoke: of a connection that is being dialled, and has found its way past a silent
// worker, nothing is sent any more, to neither end; others go on.
func TestWoke(t *testing.T) {
	for _, passed := range []bool{true, false} {
		b := newBed(t, bedOptions{noHosts: true})
		c, s := b.players(addr(client4, 4000), addr(server4, 80))
		c.send(wire.FlagSYN, 1000, 0, nil, nil)
		syn := s.expect(wire.FlagSYN)
		toClient, toServer := c.mark(), s.mark()
		done := make(chan struct{})
		b.worker.Call(func() {
			b.stage.Woke(func(f wire.Flow) bool { return passed }, b.stage.now())
			close(done)
		})
		<-done
		s.send(wire.FlagSYN|wire.FlagACK, 5000, syn.tcp.Seq()+1, nil, nil)
		if !passed {
			c.expect(wire.FlagSYN | wire.FlagACK)
			b.stop()
			continue
		}
		b.processed("the answer, which passes", "midstream", 1)
		b.wantCount("bypassed_worker_silent", 1)
		if n := b.flows(); n != 0 {
			t.Errorf("%d flows are left", n)
		}
		b.stop()
		if n := c.sentSince(toClient); n != 1 { // the answer
			t.Errorf("the client was sent %d segments, want 1", n)
		}
		if n := s.sentSince(toServer); n != 0 {
			t.Errorf("the server was sent %d segments more", n)
		}
	}
}
