package inspect

import (
	"strings"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/pipeline/pipelinetest"
)

const (
	up   = pipeline.ToServer
	down = pipeline.ToClient
)

var reasonTest = pipeline.DefineReason("inspect_test", "a test wants it")

func TestInOrder(t *testing.T) {
	b := newBed(t, nil)
	c := b.open(0xfffffff0, 0xffffffff) // wraps in the middle of what follows
	b.pass(0, c.frame(up, psh, 0, 0, "hello, "))
	b.pass(0, c.frame(up, psh, 7, 0, "world of wraps"))
	b.pass(1, c.frame(down, psh, 0, 21, "answer"))
	b.pass(0, c.frame(up, fin, 21, 6, ""))
	b.saw(up, "hello, world of wraps")
	b.saw(down, "answer")
	if b.last().ends != [2]int{1, 0} {
		t.Errorf("ends %v", b.last().ends)
	}
	b.pass(1, c.frame(down, fin, 6, 22, "!"))
	b.pass(0, c.frame(up, ack, 22, 8, ""))
	if st := b.last(); st.ends != [2]int{1, 1} || st.closes != 1 || b.s.n.closed.Load() != 1 || b.s.n.halfClosed.Load() != 1 {
		t.Errorf("ends %v, closes %d, closed %d, half closed %d", st.ends, st.closes, b.s.n.closed.Load(), b.s.n.halfClosed.Load())
	}
	// The last ACK was lost: FIN and ACK come again, and pass.
	b.pass(1, c.frame(down, fin, 6, 22, "!"))
	b.pass(0, c.frame(up, ack, 22, 8, ""))
}

func TestReorder(t *testing.T) {
	b := newBed(t, nil)
	c := b.open()
	b.pass(0, c.frame(up, ack, 6, 0, "DEF"))
	b.pass(0, c.frame(up, ack, 12, 0, "JKL"))
	b.pass(0, c.frame(up, ack, 4, 0, "BCDEFGH")) // overlaps what came ahead, and is the same
	b.saw(up, "")
	b.pass(0, c.frame(up, ack, 0, 0, "abcA"))
	b.saw(up, "abcABCDEFGH")
	b.pass(0, c.frame(up, ack, 3, 0, "ABCDEFGHIJKLM"))
	b.saw(up, "abcABCDEFGHIJKLM")
	b.pass(1, c.frame(down, ack, 0, 16, ""))
	if b.s.memory.used != 0 {
		t.Errorf("%d chunks are used when all is acknowledged", b.s.memory.used)
	}
}

// TestLargeSegments crosses the bounds of chunks.
func TestLargeSegments(t *testing.T) {
	b := newBed(t, nil)
	c := b.open()
	text := strings.Repeat("0123456789abcdef", 600)
	for _, at := range []int{1400, 4200, 2800, 7000, 5600, 8400, 0} {
		b.pass(0, c.frame(up, ack, at, 0, text[at:min(at+1400, len(text))]))
	}
	b.saw(up, text)
	b.pass(0, c.frame(up, ack, 4000, 0, text[4000:5000]))
	b.drop(0, c.frame(up, ack, 4000, 0, text[4000:4999]+"!"), ReasonConflict)
}

func TestDropped(t *testing.T) {
	for _, tc := range []struct {
		name  string
		frame func(c *conn) []byte
		why   pipeline.Reason
	}{
		{"wrong checksum", func(c *conn) []byte {
			return c.frame(up, psh, 0, 0, "x", pipelinetest.BadChecksum())
		}, pipeline.ReasonL4Checksum},
		{"beyond the window", func(c *conn) []byte { return c.frame(up, psh, 9999, 0, "xyz") }, ReasonWindow},
		{"far beyond", func(c *conn) []byte { return c.frame(up, psh, 1<<30, 0, "x") }, ReasonWindow},
		{"no ACK flag", func(c *conn) []byte { return c.frame(up, wire.FlagPSH, 0, 0, "x") }, pipeline.ReasonOutOfState},
		{"no flag", func(c *conn) []byte { return c.frame(up, 0, 0, 0, "x") }, pipeline.ReasonOutOfState},
		{"acknowledges what is beyond the window", func(c *conn) []byte { return c.frame(up, psh, 0, 20000, "x") }, ReasonWindow},
		{"a SYN of the server", func(c *conn) []byte { return c.frame(down, wire.FlagSYN, 5, 0, "") }, pipeline.ReasonOutOfState},
		{"another SYN-ACK", func(c *conn) []byte { return c.frame(down, wire.FlagSYN|ack, 5, 0, "") }, pipeline.ReasonOutOfState},
		{"a SYN-ACK of the client", func(c *conn) []byte { return c.frame(up, wire.FlagSYN|ack, 5, 0, "") }, pipeline.ReasonOutOfState},
		{"RST before the window", func(c *conn) []byte { return c.frame(up, wire.FlagRST, -2, 0, "") }, ReasonWindow},
		{"RST behind the window", func(c *conn) []byte { return c.frame(up, wire.FlagRST, 10001, 0, "") }, ReasonWindow},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t, nil)
			c := b.open()
			in := 0
			f := tc.frame(c)
			var h wire.Headers
			h.Parse(f)
			if wire.TCP(f[h.L4:]).SrcPort() == 80 {
				in = 1
			}
			b.drop(in, f, tc.why)
			b.pass(0, c.frame(up, psh, 0, 0, "goes on"))
			b.saw(up, "goes on")
		})
	}
}

func TestWindow(t *testing.T) {
	b := newBed(t, nil)
	c := b.open()
	b.pass(1, c.frame(down, ack, 0, 0, "", pipelinetest.Window(3))) // shrinks: what was offered stands
	b.pass(0, c.frame(up, ack, 9990, 0, "0123456789"))
	b.drop(0, c.frame(up, ack, 9990, 0, "0123456789xy"), ReasonWindow)
	b.pass(0, c.frame(up, ack, 10000, 0, "x")) // a probe
	b.drop(0, c.frame(up, ack, 10001, 0, ""), ReasonWindow)
	b.pass(0, c.frame(up, ack, -1, 0, "")) // a keep-alive

	// Scaled, if both offer it.
	for _, both := range []bool{false, true} {
		b := newBed(t, nil)
		c := &conn{bed: b, isn: [2]uint32{1, 2}}
		var answer []pipelinetest.Option
		if both {
			answer = append(answer, pipelinetest.WindowScale(14))
		}
		b.pass(0, pipelinetest.TCP(client, server, wire.FlagSYN, 1, pipelinetest.WindowScale(7)))
		b.pass(1, pipelinetest.TCP(server, client, wire.FlagSYN|ack, 2, append(answer, pipelinetest.Ack(2), pipelinetest.Window(1000))...))
		b.pass(0, c.frame(up, ack, 0, 0, "", pipelinetest.Window(1000)))
		b.drop(0, c.frame(up, ack, 1001, 0, "x"), ReasonWindow)
		b.pass(1, c.frame(down, ack, 0, 0, "", pipelinetest.Window(1000)))
		if both {
			b.pass(0, c.frame(up, ack, 1000<<14, 0, "x"))
			b.pass(1, c.frame(down, ack, 1000<<7, 0, "x"))
		} else {
			b.drop(0, c.frame(up, ack, 1001, 0, "x"), ReasonWindow)
		}
	}
}

func TestConflict(t *testing.T) {
	b := newBed(t, nil)
	c := b.open()
	b.pass(0, c.frame(up, psh, 0, 0, "GOOD"))
	out := b.drop(0, c.frame(up, psh, 0, 0, "EVIL"), ReasonConflict)
	wantResets(t, c, out, 4, 0)
	b.saw(up, "GOOD")
	if b.last().closes != 1 {
		t.Error("the stream is not closed")
	}
	// Ends that send on are reset where they are.
	out = b.drop(1, c.frame(down, psh, 0, 2, "late"), ReasonConflict)
	if got := summaries(out[1]); len(got) != 1 || !strings.Contains(got[0], "[R], seq 103,") {
		t.Errorf("got %q", got)
	}

	b = newBed(t, func(o *Options) { o.DenyConflict = false })
	c = b.open()
	b.pass(0, c.frame(up, psh, 0, 0, "GOOD"))
	b.drop(0, c.frame(up, psh, 0, 0, "EVIL"), ReasonConflict)
	b.drop(0, c.frame(up, psh, 2, 0, "odd"), ReasonConflict)
	b.drop(0, c.frame(up, fin, 2, 0, ""), ReasonConflict) // an end before what has come
	b.pass(0, c.frame(up, psh, 0, 0, "GOOD one"))
	b.pass(0, c.frame(up, psh, 12, 0, "ahead"))
	b.drop(0, c.frame(up, psh, 8, 0, "....AHEAD"), ReasonConflict)
	b.pass(0, c.frame(up, psh, 8, 0, "...."))
	b.saw(up, "GOOD one....ahead")
	b.pass(0, c.frame(up, fin, 17, 0, ""))
	b.drop(0, c.frame(up, psh, 17, 0, "more"), ReasonConflict)
	b.drop(0, c.frame(up, fin, 18, 0, ""), ReasonConflict)
	if n := b.s.n.conflicts.Load(); n != 6 {
		t.Errorf("%d conflicts", n)
	}
	// What is acknowledged has another fate: its receiver discards it.
	b.pass(1, c.frame(down, ack, 0, 4, ""))
	b.pass(0, c.frame(up, psh, 0, 0, "EVIL"))
	b.saw(up, "GOOD one....ahead")
}

// wantResets checks that both ends are reset with the sequence numbers that
// they must believe.
func wantResets(t *testing.T, c *conn, out [2][][]byte, upPos, downPos int) {
	t.Helper()
	for d, pos := range []int{upPos, downPos} {
		to := out[1-d]
		if len(to) == 0 {
			t.Fatalf("no reset in direction %d", d)
		}
		f := to[len(to)-1]
		var h wire.Headers
		if h.Parse(f) != wire.FaultNone || !wire.VerifyL4(f, &h) || !wire.VerifyIPv4(f[h.L3:]) {
			t.Fatalf("a broken reset: %s", wire.Summary(f))
		}
		seg := wire.TCP(f[h.L4:])
		if !seg.Flags().Has(wire.FlagRST) || seg.Seq() != c.isn[d]+1+uint32(pos) {
			t.Errorf("direction %d: got %s, want a reset at %d", d, wire.Summary(f), c.isn[d]+1+uint32(pos))
		}
		mac := pipelinetest.ClientMAC
		if d == 1 {
			mac = pipelinetest.ServerMAC
		}
		if string(wire.Ethernet(f).Src()) != string(mac[:]) {
			t.Errorf("direction %d: from %x", d, wire.Ethernet(f).Src())
		}
	}
}

func TestReset(t *testing.T) {
	b := newBed(t, nil)
	c := b.open()
	b.pass(0, c.frame(up, psh, 0, 0, "bytes"))
	b.pass(0, c.frame(up, wire.FlagRST, 9, 0, "")) // in the window: only a careless receiver believes it
	b.pass(0, c.frame(up, psh, 5, 0, " on"))
	b.saw(up, "bytes on")
	b.pass(0, c.frame(up, wire.FlagRST, 8, 0, "diagnosis"))
	if st := b.last(); st.closes != 1 || b.s.n.resets.Load() != 1 {
		t.Fatalf("closes %d, resets %d", st.closes, b.s.n.resets.Load())
	}
	b.saw(up, "bytes on")
	// A reset that the sender has arranged to get lost ends the connection too.
	b.drop(0, c.frame(up, psh, 8, 0, "unseen"), ReasonAfterReset)
	out := b.drop(1, c.frame(down, psh, 0, 8, "answer"), ReasonAfterReset)
	if got := summaries(out[1]); len(got) != 1 || !strings.Contains(got[0], "[R], seq 109,") {
		t.Errorf("got %q", got)
	}
	b.pass(1, c.frame(down, wire.FlagRST, 0, 0, ""))
	c = b.open(7000, 8000) // on the same addresses and ports
	b.pass(0, c.frame(up, psh, 0, 0, "new"))
	b.saw(up, "new")
	if b.s.n.reused.Load() != 1 || len(b.script.opened) != 2 {
		t.Errorf("reused %d, opened %d", b.s.n.reused.Load(), len(b.script.opened))
	}
}

func TestHandshake(t *testing.T) {
	syn := func(isn uint32, opts ...pipelinetest.Option) []byte {
		return pipelinetest.TCP(client, server, wire.FlagSYN, isn, opts...)
	}
	synack := func(isn, ackNo uint32) []byte {
		return pipelinetest.TCP(server, client, wire.FlagSYN|ack, isn, pipelinetest.Ack(ackNo))
	}
	t.Run("refused", func(t *testing.T) {
		b := newBed(t, nil)
		b.pass(0, syn(100))
		b.drop(1, pipelinetest.TCP(server, client, wire.FlagRST|ack, 0, pipelinetest.Ack(77)), pipeline.ReasonOutOfState)
		b.pass(1, pipelinetest.TCP(server, client, wire.FlagRST|ack, 0, pipelinetest.Ack(101)))
		if b.last().closes != 1 {
			t.Error("the stream is not closed")
		}
	})
	t.Run("data too early", func(t *testing.T) {
		b := newBed(t, nil)
		b.pass(0, syn(100))
		c := &conn{bed: b, isn: [2]uint32{100, 500}}
		b.drop(1, c.frame(down, psh, 0, 0, "early"), pipeline.ReasonOutOfState)
		b.drop(0, c.frame(up, wire.FlagPSH, 0, 0, "early"), pipeline.ReasonOutOfState)
		b.drop(1, synack(500, 100), pipeline.ReasonOutOfState)
		b.pass(1, synack(500, 101))
		b.pass(1, synack(500, 101))
		b.drop(1, synack(501, 101), pipeline.ReasonOutOfState)
		b.drop(1, c.frame(down, psh, 0, 0, "early"), pipeline.ReasonOutOfState)
		b.pass(0, c.frame(up, psh, 0, 0, "with the last ACK"))
		b.saw(up, "with the last ACK")
	})
	t.Run("answered elsewhere", func(t *testing.T) {
		for _, denies := range []bool{false, true} {
			b := newBed(t, func(o *Options) { o.DenyBlind = denies })
			b.pass(0, syn(100))
			c := &conn{bed: b, isn: [2]uint32{100, 500}}
			if denies {
				b.drop(0, c.frame(up, psh, 0, 0, "unasked"), ReasonGap)
			} else {
				b.pass(0, c.frame(up, psh, 0, 0, "unasked"))
			}
			b.saw(up, "")
		}
	})
	t.Run("half open", func(t *testing.T) { // RFC 9293 3.5.1, figure 9
		b := newBed(t, nil)
		b.pass(0, syn(100))
		old := &conn{bed: b, isn: [2]uint32{7000, 500}}
		b.pass(1, old.frame(down, ack, 30, 20, ""))
		b.pass(0, old.frame(up, wire.FlagRST, 20, 0, ""))
		b.pass(0, syn(100))
		b.pass(1, synack(900, 101))
		c := &conn{bed: b, isn: [2]uint32{100, 900}}
		b.pass(0, c.frame(up, psh, 0, 0, "x"))
		b.saw(up, "x")
	})
	t.Run("split", func(t *testing.T) {
		b := newBed(t, nil)
		b.pass(0, syn(100))
		b.drop(1, pipelinetest.TCP(server, client, wire.FlagSYN, 500), pipeline.ReasonOutOfState)
	})
	t.Run("begun again", func(t *testing.T) {
		b := newBed(t, nil)
		b.pass(0, syn(100))
		b.pass(0, syn(100))
		b.pass(0, syn(200))
		b.drop(1, synack(500, 101), pipeline.ReasonOutOfState)
		b.pass(1, synack(500, 201))
		c := &conn{bed: b, isn: [2]uint32{200, 500}}
		b.pass(0, c.frame(up, psh, 0, 0, "x"))
		b.saw(up, "x")
	})
	t.Run("forgotten by the server", func(t *testing.T) {
		b := newBed(t, nil)
		c := b.open()
		b.pass(0, c.frame(up, psh, 0, 0, "old"))
		b.pass(0, syn(5000)) // challenged
		b.pass(1, c.frame(down, ack, 0, 3, ""))
		b.pass(0, c.frame(up, psh, 3, 0, " and on"))
		b.saw(up, "old and on")
		b.pass(0, syn(6000)) // answered
		b.pass(1, synack(9000, 6001))
		c = &conn{bed: b, isn: [2]uint32{6000, 9000}}
		b.pass(0, c.frame(up, psh, 0, 0, "new"))
		b.saw(up, "new")
		if len(b.script.opened) != 2 || b.script.opened[0].closes != 1 {
			t.Errorf("%d opened", len(b.script.opened))
		}
	})
	t.Run("data and options in the SYN", func(t *testing.T) {
		b := newBed(t, nil)
		out := b.send(0, syn(100, pipelinetest.MSS(1460), pipelinetest.TCPOption(34, 1, 2, 3, 4, 5, 6, 7, 8), pipelinetest.TCPOption(30, 0, 1), pipelinetest.Payload("early")))
		var h wire.Headers
		f := out[1][0]
		if h.Parse(f) != wire.FaultNone || !wire.VerifyL4(f, &h) || !wire.VerifyIPv4(f[h.L3:]) {
			t.Fatalf("broken: %s", wire.Summary(f))
		}
		seg := wire.TCP(f[h.L4:h.End])
		kinds := 0
		for it := seg.OptionIter(); it.Next(); kinds++ {
			if it.Kind != wire.OptMSS {
				t.Errorf("option %d passed", it.Kind)
			}
		}
		if kinds != 1 || len(seg.Payload()) != 0 || b.s.n.synData.Load() != 1 || b.s.n.optionsRemoved.Load() != 1 {
			t.Errorf("%s, %d options", wire.Summary(f), kinds)
		}
	})
}

func TestUrgent(t *testing.T) {
	b := newBed(t, nil)
	c := b.open()
	out := b.send(0, c.frame(up, psh|wire.FlagURG, 0, 0, "abcd", pipelinetest.Urgent(2)))
	if want := c.frame(up, psh, 0, 0, "abcd"); len(out[1]) != 1 || string(out[1][0]) != string(want) {
		t.Errorf("got %q", summaries(out[1]))
	}
	b.saw(up, "abcd")
}

// TestHold: what a stage may deny waits, in order, and what is denied never
// leaves.
func TestHold(t *testing.T) {
	sc := &script{data: func(_ *scripted, _ pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
		if i := strings.LastIndexByte(string(b), '.'); i >= 0 {
			if strings.Contains(string(b), "bad") {
				return 0, deny(reasonTest)
			}
			return i + 1, pipeline.StreamVerdict{}
		}
		return 0, pipeline.StreamVerdict{}
	}}
	b := newBed(t, func(o *Options) { o.Hold = true }, sc)
	c := b.open()
	nothing := func(out [2][][]byte) {
		t.Helper()
		if len(out[0])+len(out[1]) > 0 {
			t.Fatalf("left: %q, %q", summaries(out[0]), summaries(out[1]))
		}
	}
	one, two := c.frame(up, psh, 0, 0, "one "), c.frame(up, psh, 4, 0, "sentence.")
	nothing(b.send(0, one))
	nothing(b.send(0, one)) // again: it waits already
	b.pass(1, c.frame(down, psh, 0, 0, "an answer."))
	b.pass(0, c.frame(up, ack, 4, 10, "")) // an acknowledgement does not wait
	out := b.send(0, two)
	if len(out[1]) != 2 || string(out[1][0]) != string(one) || string(out[1][1]) != string(two) {
		t.Fatalf("got %q", summaries(out[1]))
	}
	b.pass(0, one) // again: it has passed
	nothing(b.send(0, c.frame(up, psh, 13, 10, "re")))
	if out := b.send(0, c.frame(up, fin, 15, 10, "st")); len(out[1]) != 2 { // nothing more will come
		t.Fatalf("got %q", summaries(out[1]))
	}
	b.saw(up, "one sentence.rest")

	b = newBed(t, func(o *Options) { o.Hold = true }, &script{data: sc.data})
	c = b.open()
	b.pass(0, c.frame(up, psh, 0, 0, "good."))
	nothing(b.send(0, c.frame(up, psh, 5, 0, "a b")))
	b.drop(1, c.frame(down, ack, 0, 8, ""), pipeline.ReasonOutOfState) // of what waits
	out = b.drop(0, c.frame(up, psh, 8, 0, "ad one."), reasonTest)
	if len(out[1]) != 1 {
		t.Errorf("toward the server: %q", summaries(out[1]))
	}
	wantResets(t, c, out, 5, 0)
}

// TestHoldSlowSender: who sends a part, waits, and sends the rest, may not send the
// rest before the part is acknowledged, once it had to send that again.
func TestHoldSlowSender(t *testing.T) {
	whole := func(_ *scripted, _ pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
		switch s := string(b); {
		case strings.HasSuffix(s, "bad."):
			return 0, deny(reasonTest)
		case strings.HasSuffix(s, "."):
			return len(b), pipeline.StreamVerdict{}
		}
		return 0, pipeline.StreamVerdict{}
	}
	for _, end := range []string{"good.", "bad."} {
		b := newBed(t, func(o *Options) { o.Hold = true }, &script{data: whole})
		c := b.open()
		first, second := c.frame(up, psh, 0, 0, "a part, "), c.frame(up, psh, 8, 0, "more, ")
		for _, frame := range [][]byte{first, second, first} {
			if out := b.send(0, frame); len(out[1]) > 0 {
				t.Fatalf("it did not wait: %q", summaries(out[1]))
			}
			b.now += int64(20 * time.Millisecond)
		}
		b.now += int64(repeatWait)
		if out := b.send(0, first); len(out[1]) != 1 || string(out[1][0]) != string(first) {
			t.Fatalf("sent again: %q", summaries(out[1]))
		}
		b.pass(1, c.frame(down, ack, 0, 8, ""))
		if n := b.s.n.heldGone.Load(); n != 1 {
			t.Errorf("%d counted", n)
		}
		last := c.frame(up, psh, 14, 0, end)
		if end == "good." {
			if out := b.send(0, last); len(out[1]) != 2 || string(out[1][0]) != string(second) || string(out[1][1]) != string(last) {
				t.Fatalf("got %q", summaries(out[1]))
			}
			b.pass(0, second)
			b.saw(up, "a part, more, good.")
			continue
		}
		wantResets(t, c, b.drop(0, last, reasonTest), 8, 0)
	}
}

func TestHoldLimits(t *testing.T) {
	never := func(_ *scripted, _ pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
		return 0, pipeline.StreamVerdict{}
	}
	hold := func(o *Options) { o.Hold, o.HoldBytes = true, 2000 }
	b := newBed(t, hold, &script{data: never})
	c := b.open()
	b.send(0, c.frame(up, psh, 0, 0, strings.Repeat("x", 1400)))
	out := b.drop(0, c.frame(up, psh, 1400, 0, strings.Repeat("x", 600)), pipeline.ReasonHoldFull)
	wantResets(t, c, out, 0, 0)

	// Without holding the stage only loses its sight, and what passes has passed.
	b = newBed(t, func(o *Options) { o.HoldBytes = 2000 }, &script{data: never})
	c = b.open()
	b.pass(0, c.frame(up, psh, 0, 0, strings.Repeat("x", 1400)))
	b.pass(0, c.frame(up, psh, 1400, 0, strings.Repeat("x", 600)))
	b.pass(0, c.frame(up, psh, 2000, 0, "unseen"))
	if st := b.last(); len(st.lost) != 1 || st.lost[0] != "stream_hold_full" || len(st.seen[0]) != 2000 {
		t.Errorf("lost %v, saw %d", st.lost, len(st.seen[0]))
	}

	// Time.
	b = newBed(t, hold, &script{data: never})
	c = b.open()
	b.send(0, c.frame(up, psh, 0, 0, "x"))
	b.now += int64(9 * time.Second)
	if out := b.send(0); len(out[0])+len(out[1]) > 0 {
		t.Errorf("denied before its time: %q", summaries(out[1]))
	}
	b.now += int64(2 * time.Second)
	b.send(0)
	out = b.send(0) // what a tick emits leaves with the next turn
	wantResets(t, c, out, 0, 0)
	if n := b.s.n.denied.Load(); n != 1 {
		t.Errorf("%d denied", n)
	}

	// Many small packets: beyond the bound they count as lost, and nothing that
	// has not been let go passes when they come again.
	b = newBed(t, func(o *Options) { o.Hold, o.HoldBytes = true, 4000 }, &script{data: never})
	c = b.open()
	for i := range maxHeld {
		b.send(0, c.frame(up, psh, i, 0, "x"))
	}
	b.drop(0, c.frame(up, psh, maxHeld, 0, "y"), pipeline.ReasonHoldFull)
	b.drop(0, c.frame(up, psh, maxHeld, 0, "y"), pipeline.ReasonHoldFull)
	b.script.data = nil
	if out := b.send(1, c.frame(down, psh, 0, 0, "news")); len(out[1]) != maxHeld {
		t.Errorf("%d packets left", len(out[1]))
	}
	b.pass(0, c.frame(up, psh, maxHeld, 0, "y"))
}

// TestRecorded: in a recording nothing waits, since what the ends did with the
// packets is part of it; the streams see and decide the same.
func TestRecorded(t *testing.T) {
	sc := &script{data: func(_ *scripted, _ pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
		if strings.HasSuffix(string(b), "bad.") {
			return 0, deny(reasonTest)
		}
		return 0, pipeline.StreamVerdict{}
	}}
	b := newBed(t, func(o *Options) { o.Hold, o.Recorded = true, true }, sc)
	c := b.open()
	b.pass(0, c.frame(up, psh, 0, 0, "half of "))
	b.pass(1, c.frame(down, ack, 0, 8, ""))
	b.drop(0, c.frame(up, psh, 8, 0, "bad."), reasonTest)
	b.drop(1, c.frame(down, ack, 0, 12, ""), reasonTest)
	b.saw(up, "half of bad.")
}

func TestRelease(t *testing.T) {
	let := &script{data: func(c *scripted, d pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
		if strings.HasSuffix(string(c.seen[up]), "enough") {
			return len(b), pipeline.StreamVerdict{Action: pipeline.StreamRelease}
		}
		return 0, pipeline.StreamVerdict{}
	}}
	b := newBed(t, func(o *Options) { o.Hold = true }, let, &script{data: let.data})
	c := b.open()
	b.send(0, c.frame(up, psh, 0, 0, "not "))
	if len(b.taken) > 0 {
		t.Fatal("offloaded while a stage looks")
	}
	out := b.send(0, c.frame(up, psh, 4, 0, "enough"))
	if len(out[1]) != 2 {
		t.Fatalf("got %q", summaries(out[1]))
	}
	// Other bytes in their place must not get by before the server has these.
	b.pass(0, c.frame(up, psh, 0, 0, "not enough"))
	if len(b.taken) > 0 {
		t.Fatal("offloaded while what the stages decided on is not acknowledged")
	}
	b.pass(1, c.frame(down, ack, 0, 4, ""))
	b.pass(0, c.frame(up, psh, 10, 0, " and more"))
	if len(b.taken) > 0 {
		t.Fatal("offloaded while half of it is not acknowledged")
	}
	b.pass(1, c.frame(down, psh, 0, 10, "unseen"))
	if len(b.taken) != 1 || b.taken[0].Drop || b.last().closes != 1 || string(b.last().seen[down]) != "" {
		t.Errorf("taken %+v, closes %d, saw %q", b.taken, b.last().closes, b.last().seen[down])
	}
	if n := b.s.n.released.Load(); n != 1 {
		t.Errorf("%d released", n)
	}
	b.open(9, 9) // begins anew

	// No interest at all: released with the SYN.
	b = newBed(t, nil, &script{refuse: true})
	b.pass(0, pipelinetest.TCP(client, server, wire.FlagSYN, 1))
	if len(b.taken) != 1 || b.s.flows.Len() != 0 {
		t.Errorf("taken %+v, %d flows", b.taken, b.s.flows.Len())
	}
}

// TestReleasedBytesStand: what was decided on stays what it is until its receiver
// has it.
func TestReleasedBytesStand(t *testing.T) {
	for _, tc := range []struct {
		name   string
		frame  func(c *conn) []byte
		denied pipeline.Reason // if conflicts and blindness deny; else it is dropped, or passes
		passes bool
	}{
		{"other bytes", func(c *conn) []byte { return c.frame(up, psh, 0, 0, "EVIL") }, ReasonConflict, false},
		{"an end before them", func(c *conn) []byte { return c.frame(up, fin, 2, 0, "") }, ReasonConflict, false},
		{"a fragment", func(c *conn) []byte {
			f := c.frame(up, psh, 4, 0, "12345678901234567890")
			f[14+6] |= 0x20
			wire.IPv4(f[14:]).FillChecksum()
			return f
		}, ReasonFragment, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, denies := range []bool{false, true} {
				b := newBed(t, func(o *Options) { o.DenyConflict, o.DenyBlind = denies, denies }, &script{data: func(_ *scripted, _ pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
					return len(b), pipeline.StreamVerdict{Action: pipeline.StreamRelease}
				}})
				c := b.open()
				b.pass(0, c.frame(up, psh, 0, 0, "GOOD"))
				if b.last().closes != 1 {
					t.Error("the stream that has let go is not closed")
				}
				switch {
				case denies:
					b.drop(0, tc.frame(c), tc.denied)
					b.drop(1, c.frame(down, ack, 0, 4, ""), tc.denied)
				case tc.passes:
					b.pass(0, tc.frame(c))
					if n := b.s.n.sightLost.Load(); n != 0 {
						t.Errorf("%d have lost sight of what they do not look at", n)
					}
				default:
					b.drop(0, tc.frame(c), tc.denied)
					if len(b.taken) > 0 {
						t.Error("offloaded")
					}
					b.pass(1, c.frame(down, ack, 0, 4, ""))
					if len(b.taken) != 1 || b.taken[0].Drop {
						t.Errorf("taken %+v", b.taken)
					}
				}
			}
		})
	}
}

// TestReleasedFlowsAreRemembered: of a released connection nothing is kept but that
// it is one, whichever end has the lower address, and either end may begin anew.
func TestReleasedFlowsAreRemembered(t *testing.T) {
	for _, addr := range [][2]string{{client, server}, {server, client}} {
		enough := &script{data: func(_ *scripted, _ pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
			return len(b), pipeline.StreamVerdict{Action: pipeline.StreamRelease}
		}}
		b := newBed(t, nil, enough)
		a, z := addr[0], addr[1]
		for i := range uint32(5) {
			isn := 1000 * (i + 1)
			in := int(i % 2) // the ends take turns in beginning
			b.pass(in, pipelinetest.TCP(a, z, wire.FlagSYN, isn, pipelinetest.Window(10000)))
			b.pass(1-in, pipelinetest.TCP(z, a, wire.FlagSYN|ack, 7, pipelinetest.Ack(isn+1), pipelinetest.Window(10000)))
			b.pass(in, pipelinetest.TCP(a, z, ack, isn+1, pipelinetest.Ack(8), pipelinetest.Window(10000)))
			b.pass(in, pipelinetest.TCP(a, z, psh, isn+1, pipelinetest.Ack(8), pipelinetest.Window(10000), pipelinetest.Payload("hello")))
			b.pass(1-in, pipelinetest.TCP(z, a, ack, 8, pipelinetest.Ack(isn+6), pipelinetest.Window(10000)))
			if len(b.script.opened) != int(i)+1 || b.last().closes != 1 {
				t.Fatalf("connection %d: %d opened, closed %d times", i, len(b.script.opened), b.last().closes)
			}
			for _, v := range b.s.flows.All() {
				if *v != &b.s.released[0] && *v != &b.s.released[1] {
					t.Errorf("connection %d is kept whole", i)
				}
			}
			if len(b.s.spare) != 1 || b.s.flows.Len() != 1 {
				t.Errorf("connection %d: %d flows to be used again, %d in the table", i, len(b.s.spare), b.s.flows.Len())
			}
			// What comes up nevertheless passes, and is handed over again.
			b.now += 1e9
			taken := len(b.taken)
			b.pass(1-in, pipelinetest.TCP(z, a, psh, 8, pipelinetest.Ack(isn+6), pipelinetest.Payload("late")))
			b.pass(in, pipelinetest.TCP(a, z, psh, isn+1, pipelinetest.Payload("other bytes")))
			if len(b.taken) != taken+1 {
				t.Errorf("connection %d: handed over %d times more", i, len(b.taken)-taken)
			}
			a, z = z, a
		}
	}
}

// TestBlind: where sight ends, it ends by name, and is not wrong.
func TestBlind(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(c *conn) (in int, last []byte)
		why  pipeline.Reason
	}{
		{"gap at the end", func(c *conn) (int, []byte) {
			c.pass(0, c.frame(up, psh, 0, 0, "seen"))
			return 1, c.frame(down, ack, 0, 8, "")
		}, ReasonGap},
		{"gap before others", func(c *conn) (int, []byte) {
			c.pass(0, c.frame(up, psh, 0, 0, "seen"))
			c.pass(0, c.frame(up, psh, 8, 0, "more"))
			return 1, c.frame(down, ack, 0, 12, "")
		}, ReasonGap},
		{"fragment", func(c *conn) (int, []byte) {
			c.pass(0, c.frame(up, psh, 0, 0, "seen"))
			f := c.frame(up, psh, 4, 0, "12345678901234567890")
			f[14+6] |= 0x20
			wire.IPv4(f[14:]).FillChecksum()
			return 0, f
		}, ReasonFragment},
		{"memory of a flow", func(c *conn) (int, []byte) {
			c.s.most = 1
			c.pass(0, c.frame(up, psh, 0, 0, "seen"))
			return 0, c.frame(up, psh, 4096, 0, "x")
		}, ReasonMemory},
		{"memory", func(c *conn) (int, []byte) {
			c.s.memory.limit = 1
			c.pass(0, c.frame(up, psh, 0, 0, "seen"))
			return 1, c.frame(down, psh, 0, 0, "x")
		}, ReasonMemory},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, denies := range []bool{false, true} {
				b := newBed(t, func(o *Options) { o.DenyBlind = denies })
				c := b.open()
				in, last := tc.do(c)
				if denies {
					b.drop(in, last, tc.why)
					b.drop(0, c.frame(up, psh, 4, 0, "later"), tc.why)
				} else {
					b.pass(in, last)
					b.pass(0, c.frame(up, psh, 4, 0, "later"))
					if st := b.last(); len(st.lost) != 1 || st.lost[0] != tc.why.String() || b.s.n.sightLost.Load() != 1 {
						t.Errorf("lost %v", st.lost)
					}
				}
				b.saw(up, "seen")
			}
		})
	}
}

func TestMidstream(t *testing.T) {
	b := newBed(t, nil)
	c := &conn{bed: b, isn: [2]uint32{100, 500}}
	b.pass(0, c.frame(up, psh, 0, 0, "x"))
	if len(b.script.opened) != 0 || b.s.n.midstream.Load() != 1 {
		t.Error("bypass: looked at")
	}
	b = newBed(t, func(o *Options) { o.Midstream = MidstreamDrop })
	c.bed = b
	b.drop(0, c.frame(up, psh, 0, 0, "x"), ReasonMidstream)
	b.pass(0, c.frame(up, wire.FlagRST, 0, 0, ""))

	b = newBed(t, func(o *Options) { o.Midstream = MidstreamInspect })
	c.bed = b
	b.pass(1, c.frame(down, ack, 70, 30, "")) // the server's: its port is the lower one
	b.pass(1, c.frame(down, psh, 70, 30, "half of an answer"))
	b.pass(0, c.frame(up, psh, 40, 87, "a request")) // 30 to 40 came by before
	b.pass(1, c.frame(down, ack, 87, 49, ""))
	b.saw(up, "a request")
	b.saw(down, "half of an answer")
	st := b.last()
	if !st.conn.Midstream || st.conn.Client.String() != client || st.conn.In != 0 || len(st.lost) > 0 {
		t.Errorf("%+v, lost %v", st.conn, st.lost)
	}
}

func TestLimits(t *testing.T) {
	for _, how := range []Refusal{Bypass, Drop} {
		b := newBed(t, func(o *Options) { o.MaxFlows, o.OnLimit = 1, how })
		c := b.open()
		other := pipelinetest.TCP("10.0.0.3:1", server, wire.FlagSYN, 1)
		if how == Drop {
			b.drop(0, other, pipeline.ReasonFlowLimit)
		} else {
			b.pass(0, other)
		}
		// A connection that is over makes room.
		b.pass(0, c.frame(up, wire.FlagRST, 0, 0, ""))
		b.pass(0, other)
		if len(b.script.opened) != 2 {
			t.Errorf("%d opened", len(b.script.opened))
		}
	}
}

func TestIdle(t *testing.T) {
	b := newBed(t, func(o *Options) { o.IdleTimeout = time.Minute })
	b.open()
	for range 20 {
		b.now += int64(10 * time.Second)
		b.send(0)
	}
	if b.last().closes != 1 || b.s.n.idleTimeout.Load() != 1 || b.s.flows.Len() != 0 {
		t.Errorf("closes %d, idle %d, %d flows", b.last().closes, b.s.n.idleTimeout.Load(), b.s.flows.Len())
	}
}

// TestPanic: a stream that panics takes its own connection down, no other.
func TestPanic(t *testing.T) {
	sc := &script{data: func(*scripted, pipeline.Direction, []byte) (int, pipeline.StreamVerdict) { panic("on purpose") }}
	b := newBed(t, nil, sc)
	c := b.open()
	b.send(0, c.frame(up, psh, 0, 0, "x"))
	out := b.send(0, c.frame(up, psh, 0, 0, "x"))
	if len(out[0]) == 0 || b.s.n.panicked.Load() != 1 {
		t.Errorf("got %q, %d panics", summaries(out[0]), b.s.n.panicked.Load())
	}
	b.last().closes = 1 // it is not called again
	b.panics = 1
}

// TestOtherPackets: what is not TCP continues, and a packet from the wrong side
// is not looked at.
func TestOtherPackets(t *testing.T) {
	b := newBed(t, nil)
	c := b.open()
	b.pass(0, pipelinetest.UDP(client, server, pipelinetest.Payload("x")))
	b.pass(1, c.frame(up, psh, 0, 0, "forged"))
	b.pass(0, c.frame(up, psh, 0, 0, "true"))
	b.saw(up, "true")
}

// TestTwoStreams: each stream sees what the ones before it let go.
func TestTwoStreams(t *testing.T) {
	half := &script{data: func(_ *scripted, _ pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
		return len(b) / 2 * 2, pipeline.StreamVerdict{}
	}}
	second := &script{}
	b := newBed(t, func(o *Options) { o.Hold = true }, half, second)
	c := b.open()
	b.send(0, c.frame(up, psh, 0, 0, "abc"))
	if got := string(second.opened[0].seen[up]); got != "ab" {
		t.Errorf("the second saw %q", got)
	}
	out := b.send(0, c.frame(up, fin, 3, 0, ""))
	if got := string(second.opened[0].seen[up]); got != "abc" || len(out[1]) != 2 {
		t.Errorf("the second saw %q, %q left", got, summaries(out[1]))
	}
}
