package inspect

import (
	"testing"

	"penstock/pipeline"
)

// TestCutPorts: connections by a port that goes are forgotten, with what waits.
func TestCutPorts(t *testing.T) {
	b := newBed(t, func(o *Options) { o.Hold = true }, &script{data: func(*scripted, pipeline.Direction, []byte) (int, pipeline.StreamVerdict) {
		return 0, pipeline.StreamVerdict{}
	}})
	c := b.open()
	b.send(0, c.frame(pipeline.ToServer, psh, 0, 0, "a part of a request"))
	if b.s.heldLen == 0 {
		t.Error("nothing waits: the test proves nothing")
	}
	if n := b.worker.CutPorts(func(id pipeline.PortID) bool { return id == 2 }); n != 0 {
		t.Errorf("%d connections are cut with a port that they do not go by", n)
	}
	if n := b.worker.CutPorts(func(id pipeline.PortID) bool { return id == 1 }); n != 1 {
		t.Errorf("%d connections are cut, want 1", n)
	}
	if b.s.flows.Len() != 0 || b.s.heldLen != 0 {
		t.Errorf("%d connections and %d packets are left", b.s.flows.Len(), b.s.heldLen)
	}
}
