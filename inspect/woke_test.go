package inspect

import (
	"slices"
	"testing"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// TestWoke: of connections that went past a silent worker nothing is denied, reset or
// sent, whatever waits; others go on.
func TestWoke(t *testing.T) {
	for _, passed := range []bool{true, false} {
		never := &script{data: func(*scripted, pipeline.Direction, []byte) (int, pipeline.StreamVerdict) {
			return 0, pipeline.StreamVerdict{}
		}}
		b := newBed(t, func(o *Options) { o.Hold, o.DenyBlind = true, true }, never)
		c := b.open()
		if out := b.send(0, c.frame(up, psh, 0, 0, "half a requ")); len(out[1]) != 0 {
			t.Fatalf("it did not wait: %q", summaries(out[1]))
		}
		asked := 0
		b.s.Woke(func(f wire.Flow) bool {
			asked++
			return passed
		}, b.now)
		if asked != 1 {
			t.Errorf("asked about %d connections, want 1", asked)
		}
		b.now += int64(b.s.o.HoldTime)
		b.send(0)
		out := b.send(0) // what a tick emits leaves with the next turn
		if passed {
			if len(out[0])+len(out[1]) != 0 {
				t.Errorf("sent %q, %q", summaries(out[0]), summaries(out[1]))
			}
			if got := b.last().lost; !slices.Equal(got, []string{"worker_silent"}) {
				t.Errorf("the stream has lost sight for %q", got)
			}
			// What was under way passes.
			b.pass(0, c.frame(up, psh, 0, 0, "half a request"))
			b.pass(1, c.frame(down, psh, 0, 14, "an answer"))
		} else {
			wantResets(t, c, out, 0, 0)
		}
	}
}
