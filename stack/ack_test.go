package stack_test

import (
	"bytes"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/stack"
)

func ackDelay(d time.Duration) bedOptions {
	return bedOptions{noHosts: true, options: func(o *stack.Options) { o.AckDelay = d }}
}

// TestAckCarried: what an end sends is acknowledged by the answer, not before it.
func TestAckCarried(t *testing.T) {
	b := newBed(t, ackDelay(time.Hour))
	c, s, cSeq, cAck, sSeq, sAck := b.open(addr(client4, 4000), addr(server4, 80))
	for i := range uint32(5) {
		c.silent("before the request")
		c.send(wire.FlagACK|wire.FlagPSH, cSeq+i, cAck+2*i, nil, []byte("q"))
		if q := s.expectWhere("anything", all); string(q.tcp.Payload()) != "q" || q.tcp.Ack() != sSeq+2*i {
			t.Fatalf("server got %s, want the request with ACK %d", wire.Summary(q.frame), sSeq+2*i)
		}
		s.send(wire.FlagACK|wire.FlagPSH, sSeq+2*i, sAck+i+1, nil, []byte("aa"))
		if a := c.expectWhere("anything", all); string(a.tcp.Payload()) != "aa" || a.tcp.Ack() != cSeq+i+1 {
			t.Fatalf("client got %s, want the answer with ACK %d", wire.Summary(a.frame), cSeq+i+1)
		}
	}
	// Two requests without an answer: the second one's ACK does not wait.
	c.send(wire.FlagACK, cSeq+5, cAck+10, nil, []byte("q"))
	s.expectWhere("payload", hasPayload)
	c.silent("a little more")
	c.send(wire.FlagACK, cSeq+6, cAck+10, nil, []byte("q"))
	if a := c.expect(wire.FlagACK); a.tcp.Ack() != cSeq+7 {
		t.Errorf("ACK %d, want %d", a.tcp.Ack(), cSeq+7)
	}
	// Nor does that of a segment that is nearly full.
	c.send(wire.FlagACK, cSeq+7, cAck+10, nil, bytes.Repeat([]byte("b"), 1200))
	if a := c.expect(wire.FlagACK); a.tcp.Ack() != cSeq+1207 {
		t.Errorf("ACK %d, want %d", a.tcp.Ack(), cSeq+1207)
	}
	b.wantCount("acks_delayed", 0)
}

func all(segment) bool { return true }

// TestAckDelayed: an ACK that nothing carries is sent after a while, once.
func TestAckDelayed(t *testing.T) {
	for _, delay := range []time.Duration{0, 30 * time.Millisecond} {
		b := newBed(t, ackDelay(delay))
		c, _, cSeq, cAck, _, _ := b.open(addr(client4, 4000), addr(server4, 80))
		for i := range uint32(3) {
			began := time.Now()
			c.send(wire.FlagACK|wire.FlagPSH, cSeq+i, cAck, nil, []byte("q"))
			if a := c.expect(wire.FlagACK); a.tcp.Ack() != cSeq+i+1 {
				t.Errorf("ACK %d, want %d", a.tcp.Ack(), cSeq+i+1)
			}
			if took := time.Since(began); took < delay {
				t.Errorf("after %v, want %v", took, delay)
			}
			c.silent("after the ACK")
		}
		want := uint64(3)
		if delay == 0 {
			want = 0
		}
		b.wantCount("acks_delayed", want)
	}
}

// TestAckDelayEnds: a FIN carries the ACK that waits, and what repeats is
// answered at once.
func TestAckDelayEnds(t *testing.T) {
	b := newBed(t, ackDelay(time.Hour))
	c, s, cSeq, cAck, sSeq, sAck := b.open(addr(client4, 4000), addr(server4, 80))
	c.send(wire.FlagACK|wire.FlagPSH, cSeq, cAck, nil, []byte("q"))
	s.expectWhere("payload", hasPayload)
	c.silent("the first time")
	c.send(wire.FlagACK|wire.FlagPSH, cSeq, cAck, nil, []byte("q"))
	if a := c.expect(wire.FlagACK); a.tcp.Ack() != cSeq+1 {
		t.Errorf("ACK %d, want %d", a.tcp.Ack(), cSeq+1)
	}
	s.send(wire.FlagACK|wire.FlagPSH|wire.FlagFIN, sSeq, sAck+1, nil, []byte("bye"))
	fin := c.expect(wire.FlagFIN)
	c.send(wire.FlagACK|wire.FlagFIN, cSeq+1, fin.tcp.Seq()+uint32(len(fin.tcp.Payload()))+1, nil, nil)
	if f := s.expect(wire.FlagFIN); f.tcp.Ack() != sSeq+4 {
		t.Errorf("FIN acknowledges %d, want %d", f.tcp.Ack(), sSeq+4)
	}
	s.send(wire.FlagACK, sSeq+4, sAck+2, nil, nil)
	// The last ACK of the client's FIN does not wait: nothing comes any more.
	if a := c.expect(wire.FlagACK); a.tcp.Ack() != cSeq+2 {
		t.Errorf("last ACK %d, want %d", a.tcp.Ack(), cSeq+2)
	}
	eventually(t, "closed", func() bool { return b.count("closed") == 1 })
}
