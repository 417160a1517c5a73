package stack_test

import (
	"testing"

	"penstock/internal/wire"
)

// TestLearnHops: frames look as the other end's last packet did.
func TestLearnHops(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	c, s, cSeq, cAck, _, _ := b.open(addr(client4, 5000), addr(server4, 80))
	send := func(ttl, tos uint8, seq uint32) {
		f := c.template
		f.ttl, f.tos, f.flags, f.seq, f.ack, f.payload = ttl, tos, wire.FlagACK|wire.FlagPSH, seq, cAck, []byte("x")
		b.ports[lan].send(f.build())
	}
	for i, tc := range []struct{ ttl, tos uint8 }{{37, 0xb8}, {36, 0x28}} {
		send(tc.ttl, tc.tos, cSeq+uint32(i))
		got := s.expectWhere("a byte", hasPayload)
		if ip := wire.IPv4(got.frame[got.L3:]); ip.TTL() != tc.ttl || ip.TOS() != tc.tos {
			t.Errorf("packet %d: hop limit %d, type of service %#x, want %d, %#x", i, ip.TTL(), ip.TOS(), tc.ttl, tc.tos)
		}
	}
}

// TestLearnInvented: the next packet toward the server does not look like one
// that somebody has invented.
func TestLearnInvented(t *testing.T) {
	b := newBed(t, bedOptions{noHosts: true})
	c, s, cSeq, cAck, sSeq, sAck := b.open(addr(client4, 5000), addr(server4, 80))
	f := c.template
	f.ttl, f.tos, f.flags, f.seq, f.ack, f.payload = 1, 0x20, wire.FlagACK|wire.FlagPSH, cSeq+1<<30, cAck, []byte("x")
	b.ports[lan].send(f.build())
	c.expect(wire.FlagACK)
	s.send(wire.FlagACK|wire.FlagPSH, sSeq, sAck, nil, []byte("answer"))
	got := s.expectWhere("an acknowledgment", func(g segment) bool { return g.tcp.Ack() == sSeq+6 })
	if ip := wire.IPv4(got.frame[got.L3:]); ip.TTL() != 64 || ip.TOS() != 0 {
		t.Errorf("hop limit %d, type of service %#x, want 64, 0", ip.TTL(), ip.TOS())
	}
}
