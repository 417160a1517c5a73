package inspect

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/pipeline/pipelinetest"
)

// receiver is a TCP receiver that keeps a byte for each position, written to be
// plain. Receivers differ; these are the ways.
type receiver struct {
	newWins bool // of two bytes for one place, the later one stands
	trims   bool // a segment that reaches beyond the window is cut, not dropped
	shrinks bool // takes back window

	next    int
	edge    int // of the window as it holds it
	bytes   map[int]byte
	fin     int
	stream  []byte
	reset   bool
	endSeen bool
}

func newReceiver(rng *rand.Rand) *receiver {
	return &receiver{newWins: rng.IntN(2) == 0, trims: rng.IntN(2) == 0, shrinks: rng.IntN(4) == 0, edge: 10000, bytes: map[int]byte{}, fin: -1}
}

// take is what the receiver makes of a segment that reaches it.
func (r *receiver) take(pos int, body []byte, flags wire.TCPFlags) {
	end := pos + len(body)
	if r.reset || !flags.Has(wire.FlagACK) && !flags.Has(wire.FlagRST) || flags.Has(wire.FlagSYN) {
		return
	}
	if flags.Has(wire.FlagRST) {
		r.reset = pos == r.next
		return
	}
	if pos > r.edge || end > r.edge && !r.trims {
		return
	}
	for i, b := range body {
		at := pos + i
		if at < r.next || at >= r.edge {
			continue
		}
		if _, have := r.bytes[at]; !have || r.newWins {
			r.bytes[at] = b
		}
	}
	if flags.Has(wire.FlagFIN) && end <= r.edge && r.fin < 0 {
		r.fin = end
	}
	for {
		b, have := r.bytes[r.next]
		if !have || r.next == r.fin {
			break
		}
		delete(r.bytes, r.next)
		r.stream = append(r.stream, b)
		r.next++
	}
	r.endSeen = r.endSeen || r.next == r.fin
}

// window returns what the receiver offers next.
func (r *receiver) window(rng *rand.Rand) int {
	w := max(r.edge-r.next, 0)
	if grown := rng.IntN(200); grown > w || r.shrinks {
		w = grown
	}
	r.edge = r.next + w
	return w
}

// truth is the byte that an honest sender has at a position.
func truth(pos int) byte { return byte('a' + pos%26) }

// TestModel plays senders that do everything wrong, on purpose, against
// receivers that make of it what they like, and against losses behind the
// inspector that the sender may have arranged. Whatever happens, what the
// receiver's application gets is the beginning of what the streams were shown,
// and where packets wait, of what they let pass.
func TestModel(t *testing.T) {
	runs := 300
	if testing.Short() {
		runs = 60
	}
	for seed := range runs {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { model(t, uint64(seed), 400) })
	}
}

func model(t testing.TB, seed uint64, steps int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	hold := rng.IntN(2) == 0
	sc := &script{}
	if rng.IntN(2) == 0 {
		// A stream that holds back what it likes.
		sc.data = func(_ *scripted, _ pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
			return rng.IntN(len(b) + 1), pipeline.StreamVerdict{}
		}
	}
	b := newBed(t, func(o *Options) {
		o.Hold, o.DenyConflict, o.DenyBlind = hold, rng.IntN(4) == 0, rng.IntN(2) == 0
		o.HoldBytes = 64 + rng.IntN(2000)
	}, sc)
	isn := rng.Uint32()
	if rng.IntN(2) == 0 {
		isn = -uint32(rng.IntN(300)) // wraps
	}
	c := b.open(isn, rng.Uint32())
	st := b.last()
	r := newReceiver(rng)
	known := map[int]byte{} // the first byte to come for each place
	d := pipeline.ToServer
	for step := range steps {
		pos := r.next - 20 + rng.IntN(60)
		if rng.IntN(3) == 0 {
			pos = r.next
		} else if rng.IntN(10) == 0 {
			pos = r.edge - rng.IntN(30)
		}
		pos = max(pos, 0)
		body := make([]byte, rng.IntN(30))
		for i := range body {
			body[i] = truth(pos + i)
		}
		if rng.IntN(4) == 0 && len(body) > 0 {
			body[rng.IntN(len(body))] = byte('A' + rng.IntN(26))
		}
		flags := wire.FlagACK
		var opts []pipelinetest.Option
		switch rng.IntN(40) {
		case 0:
			flags |= wire.FlagFIN
			if rng.IntN(4) > 0 {
				flags = wire.FlagACK
			}
		case 1:
			flags = wire.FlagRST
			if rng.IntN(4) > 0 {
				pos = r.next + 1 + rng.IntN(20)
			}
		case 2:
			opts = append(opts, pipelinetest.BadChecksum())
		case 3:
			flags |= wire.FlagURG
			opts = append(opts, pipelinetest.Urgent(uint16(rng.IntN(20))))
		case 4:
			flags = 0
		case 5:
			flags |= wire.FlagSYN
		}
		frame := c.frame(d, flags, pos, 0, string(body), opts...)
		out := b.send(0, frame)
		for _, o := range out[1] {
			var h wire.Headers
			if h.Parse(o) != wire.FaultNone || !wire.VerifyL4(o, &h) {
				t.Fatalf("step %d: a broken packet left: %s", step, wire.Summary(o))
			}
			seg := wire.TCP(o[h.L4:h.End])
			if seg.Flags().Has(wire.FlagURG) {
				t.Fatalf("step %d: urgent data left", step)
			}
			at := int(int32(seg.Seq() - (c.isn[0] + 1)))
			if seg.Flags()&(wire.FlagSYN|wire.FlagRST) == 0 {
				for i, x := range seg.Payload() {
					if first, have := known[at+i]; have && first != x && at+i >= r.next {
						t.Fatalf("step %d: position %d passed as %q and as %q", step, at+i, first, x)
					}
					if at+i >= r.next {
						known[at+i] = x
					}
				}
			}
			if rng.IntN(5) > 0 { // else it is lost, or its TTL has ended
				r.take(at, seg.Payload(), seg.Flags())
			}
		}
		limit := len(st.seen[d])
		if hold && st.closes == 0 {
			limit = st.passed[d]
			for _, f := range b.s.flows.All() {
				limit = max(limit, int((*f).half[d].owed)) // what its sender had to send again
			}
		}
		if len(r.stream) > limit || string(r.stream) != string(st.seen[d][:len(r.stream)]) {
			t.Fatalf("step %d, hold %v, after %s: the receiver has %q, the stream saw %q and passed %d", step, hold, wire.Summary(frame), r.stream, st.seen[d], st.passed[d])
		}
		if r.endSeen && st.ends[d] == 0 && st.closes == 0 {
			t.Fatalf("step %d: the receiver has seen an end, the stream has not", step)
		}
		if rng.IntN(3) == 0 && !r.reset {
			a := r.next
			if r.endSeen {
				a++
			}
			b.send(1, c.frame(1-d, wire.FlagACK, 0, a, "", pipelinetest.Window(uint16(r.window(rng)))))
		}
		if len(st.lost) > 0 {
			t.Fatalf("step %d: sight was lost: %v", step, st.lost)
		}
	}
}

// TestHonest lets two honest ends talk over a path that loses and reorders on
// both sides of the inspector: everything arrives, the streams see all of it,
// both ends finish, and nothing is left.
func TestHonest(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 2))
			hold := seed%2 == 0
			b := newBed(t, func(o *Options) { o.Hold = hold })
			if seed%3 == 0 {
				// Lets bytes go in portions of 100, as they have come whole.
				b.script.data = func(_ *scripted, _ pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
					return len(b) / 100 * 100, pipeline.StreamVerdict{}
				}
			}
			c := b.open(rng.Uint32(), -uint32(rng.IntN(5000)))
			const total = 20000
			rcv := [2]*receiver{newReceiver(rng), newReceiver(rng)}
			for _, r := range rcv {
				r.shrinks = false
			}
			acked := [2]int{}
			offered := [2]int{10000, 10000}
			for step := 0; ; step++ {
				if step == 40000 {
					t.Fatalf("not done: the receivers are at %d and %d, the streams at %d and %d", rcv[0].next, rcv[1].next, len(b.last().seen[0]), len(b.last().seen[1]))
				}
				d := pipeline.Direction(rng.IntN(2))
				r := rcv[d]
				pos := acked[d]
				if rng.IntN(3) > 0 {
					pos += rng.IntN(1500)
				}
				pos = min(pos, total)
				body := make([]byte, min(rng.IntN(300), total-pos, max(acked[d]+offered[d]-pos, 0)))
				for i := range body {
					body[i] = truth(pos + i)
				}
				flags := wire.FlagACK
				if pos+len(body) == total && total < acked[d]+offered[d] {
					flags |= wire.FlagFIN
				}
				o := rcv[1-d]
				a, w := o.next, max(o.edge-o.next, 2000)
				o.edge = o.next + w
				if o.endSeen {
					a++
				}
				if rng.IntN(8) == 0 {
					continue // lost on this side
				}
				out := b.send(int(d), c.frame(d, flags, pos, a, string(body), pipelinetest.Window(uint16(w))))
				for _, f := range out[1-d] {
					var h wire.Headers
					h.Parse(f)
					seg := wire.TCP(f[h.L4:h.End])
					if rng.IntN(8) == 0 {
						continue // lost on the other side
					}
					r.take(int(int32(seg.Seq()-(c.isn[d]+1))), seg.Payload(), seg.Flags())
					if n := int(int32(seg.Ack() - (c.isn[1-d] + 1))); n >= acked[1-d] {
						acked[1-d], offered[1-d] = min(n, total+1), int(seg.Window())
					}
				}
				if acked[0] > total && acked[1] > total {
					break
				}
			}
			st := b.last()
			for d := range 2 {
				want := make([]byte, total)
				for i := range want {
					want[i] = truth(i)
				}
				if string(rcv[d].stream) != string(want) || string(st.seen[d]) != string(want) || st.ends[d] != 1 {
					t.Errorf("direction %d: %d bytes received, %d seen, %d ends", d, len(rcv[d].stream), len(st.seen[d]), st.ends[d])
				}
			}
			b.drainAcks(c, total)
			if n := b.s.n.closed.Load(); n != 1 || st.closes != 1 {
				t.Errorf("closed %d, stream closed %d", n, st.closes)
			}
		})
	}
}

// drainAcks lets both ends acknowledge everything.
func (b *bed) drainAcks(c *conn, total int) {
	for d := range pipeline.Direction(2) {
		b.send(int(d), c.frame(d, wire.FlagACK, total+1, total+1, ""))
	}
}

func FuzzModel(f *testing.F) {
	f.Add(uint64(1), uint16(50))
	f.Fuzz(func(t *testing.T, seed uint64, steps uint16) { model(t, seed, int(steps)%600) })
}
