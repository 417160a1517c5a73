package pipeline

import (
	"penstock/internal/rewrite"
	"penstock/internal/wire"
)

// FlowInfo describes one live flow that a stage keeps.
type FlowInfo struct {
	Flow    wire.Flow // as the client's packets carry it
	Depth   Depth
	State   string // in the stage's words: "connecting", "established", ...
	Why     string // why it is not higher up (nearer to offload)
	Start   int64  // ns since the epoch
	Since   int64  // when the flow came to this depth; 0: when it started
	Packets uint64
	Bytes   uint64
}

// FlowLister is a Stage that keeps flows. Flows is called on the worker's
// goroutine and yields each of them.
type FlowLister interface {
	Flows(yield func(FlowInfo))
}

// Flows yields the flows that the chain's stages keep. Only from Worker.Call.
func (c *Chain) Flows(yield func(FlowInfo)) {
	for _, l := range c.listers {
		l.Flows(yield)
	}
}

// AdoptedFlow is a connection that an earlier process has spliced, and that is in
// XDP. What XDP does not translate comes up, as ever.
type AdoptedFlow struct {
	Flow  wire.Flow        // from client to server
	Rules *[2]rewrite.Rule // by Direction; do not change
	In    [2]PortID        // by Direction: where its packets come in
}

// Adopter is a Stage that splices connections and can go on with those of an
// earlier process. Adopt is called on the worker's goroutine.
type Adopter interface {
	Adopt(f AdoptedFlow, now int64)
}

// Adopt gives a connection to the stage that goes on with it, if there is one. Only
// from Worker.Call, of the worker that the flow's packets go to.
func (c *Chain) Adopt(f AdoptedFlow, now int64) {
	for i := range c.stages {
		if a, ok := c.stages[i].stage.(Adopter); ok {
			a.Adopt(f, now)
		}
	}
}

// FlowEnder is a Stage that keeps something of flows that have left user space.
// FlowEnded is called on the worker's goroutine when one of them is over.
type FlowEnder interface {
	FlowEnded(f wire.Flow, now int64)
}

// FlowEnded tells the stages that a flow which had left user space is over. Only
// from Worker.Call.
func (c *Chain) FlowEnded(f wire.Flow, now int64) {
	for _, e := range c.enders {
		e.FlowEnded(f, now)
	}
}
