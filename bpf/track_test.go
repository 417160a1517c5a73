package bpf

import (
	"encoding/binary"
	"testing"
	"time"

	"penstock/internal/rewrite"
)

// numbered is a segment over IPv4 with other numbers in it.
func numbered(packet []byte, seq, ack uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, seq)
	return changed(packet, 14+20+4, binary.BigEndian.AppendUint32(b, ack)...)
}

// padded has the length that a frame has at least on a wire.
func padded(packet []byte) []byte {
	for len(packet) < 60 {
		packet = append(packet, 0)
	}
	return packet
}

// A FIN or RST ends a flow early only if its receiver would believe it, whoever sent it.
func TestForgedEnds(t *testing.T) {
	const (
		seq, ack = 5000, 0xfffffff0 // of the client; the server's are behind the end of the numbers soon
		delta    = 0x12345678       // of a spliced flow
		wild     = 77 << 24         // a guess
	)
	type segment struct {
		flags    string
		seq, ack uint32
		n        int
	}
	client := func(flags string, s, a uint32, n int) segment { return segment{flags, s, a, n} }
	server := func(flags string, s, a uint32, n int) segment { return segment{"<" + flags, s, a, n} }
	// The server has 100 bytes of the client, the client 100 of the server; both have acknowledged.
	cNext, sNext := uint32(seq+101), uint32(ack)
	sNext += 100
	established := []segment{
		client("S", seq, 0, 0), server("SA", sNext-101, seq+1, 0), client("A", seq+1, sNext-100, 0),
		client("PA", seq+1, sNext-100, 100), server("PA", sNext-100, cNext, 100), client("A", cNext, sNext, 0),
	}
	and := func(more ...segment) []segment { return append(append([]segment(nil), established...), more...) }
	for _, row := range []struct {
		name    string
		packets []segment
		why     EndReason // after 11 s: idle is that it is still there
	}{
		{"nothing", and(), EndIdle},
		{"RST guessed", and(client("R", wild, 0, 0)), EndIdle},
		{"RST with ACK guessed", and(server("RA", wild, wild, 0)), EndIdle},
		{"RST one too low", and(client("R", cNext-1, 0, 0)), EndIdle},
		{"RST one too high", and(client("R", cNext+1, 0, 0)), EndIdle},
		{"RST in the window of the server", and(server("R", sNext+1000, 0, 0)), EndIdle},
		{"RST of the client", and(client("R", cNext, 0, 0)), EndReset},
		{"RST of the server", and(server("RA", sNext, cNext, 0)), EndReset},
		{"RST of the server, behind the end of the numbers", and(server("PA", sNext, cNext, 50), server("R", sNext+50, 0, 0)), EndReset},
		{"RST that answers", and(client("PA", cNext, sNext, 300), client("R", cNext, 0, 0)), EndReset},
		{"RST that answers what a FIN has crossed", and(client("FA", cNext, sNext, 0), client("R", cNext, 0, 0)), EndReset},
		{"both FIN", and(client("FA", cNext, sNext, 0), server("FA", sNext, cNext+1, 0)), EndClosed},
		{"both FIN, with data, the first out of order", and(client("FPA", cNext+1000, sNext, 50), server("FA", sNext, cNext, 9)), EndClosed},
		{"both FIN guessed", and(client("FA", wild, wild, 0), server("FA", wild, wild, 0)), EndIdle},
		{"both FIN guessed, half of it right", and(client("FA", cNext, wild, 0), server("FA", wild, cNext, 0)), EndIdle},
		{"both FIN without ACK", and(client("F", cNext, 0, 0), server("F", sNext, 0, 0)), EndIdle},
		{"RST that data has prepared", and(client("PA", wild, wild, 100), client("R", wild+100, 0, 0)), EndIdle},
		{"RST that a SYN has prepared", and(client("S", wild, 0, 0), client("A", wild+1, 1, 0), client("R", wild+1, 0, 0)), EndIdle},
		// What is known of an opening flow is less.
		{"refused", []segment{client("S", seq, 0, 0), server("RA", 0, seq+1, 0)}, EndReset},
		{"given up", []segment{client("S", seq, 0, 0), server("SA", sNext, seq+1, 0), client("R", seq+1, 0, 0)}, EndReset},
		{"RST while it opened", append([]segment{client("S", seq, 0, 0), server("R", wild, 0, 0)}, established[1:]...), EndIdle},
		{"after a reset anew", and(client("R", cNext, 0, 0), client("S", 9<<20, 0, 0), server("SA", 9<<24, 9<<20+1, 0), client("A", 9<<20+1, 9<<24+1, 0), client("R", cNext, 0, 0)), EndIdle},
		{"after a reset anew, reset", and(client("R", cNext, 0, 0), client("S", 9<<20, 0, 0), server("SA", 9<<24, 9<<20+1, 0), client("A", 9<<20+1, 9<<24+1, 0), client("R", 9<<20+1, 0, 0)), EndReset},
	} {
		for _, kind := range []string{"in user space", "offloaded", "spliced"} {
			t.Run(row.name+", "+kind, func(t *testing.T) {
				r := newRig(t, func(o *Options) { o.Rules = all })
				var ofClient, ofServer uint32 // what the two ends' numbers are ahead of what the other end sees
				o := OffloadFlow{Key: flowOf(t, tcp4(t, "A", 0))}
				if kind == "spliced" {
					ofClient, ofServer = delta, 7*delta
					o.Rewrite = rewrite.Rule{Flags: rewrite.AddSeq | rewrite.AddAck, Seq: ofClient, Ack: ofServer}
					o.ReplyRewrite = rewrite.Rule{Flags: rewrite.AddSeq | rewrite.AddAck, Seq: -ofServer, Ack: -ofClient}
				}
				for i, s := range row.packets {
					if s.flags[0] == '<' {
						r.rewritten(1, padded(numbered(tcp4Reply(t, s.flags[1:], s.n), s.seq+ofServer, s.ack+ofClient)))
					} else {
						r.rewritten(0, padded(numbered(tcp4(t, s.flags, s.n), s.seq, s.ack)))
					}
					if i != 2 || kind == "in user space" {
						continue
					}
					if got := r.one(o); got != OffloadTaken {
						t.Fatal(got)
					}
				}
				var ended []EndedFlow
				if _, err := r.Expire(Now()+11*time.Second, Timeouts{}, func(e *EndedFlow) { ended = append(ended, *e) }); err != nil {
					t.Fatal(err)
				}
				if row.why == EndIdle {
					if len(ended) != 0 || len(r.entries()) != 2 {
						t.Errorf("ended: %+v", ended)
					}
				} else if len(ended) != 1 || ended[0].Why != row.why {
					t.Errorf("ended: %+v, want %s", ended, row.why)
				}
			})
		}
	}
}
