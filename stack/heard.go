package stack

import (
	"penstock/internal/wire"
	"penstock/pipeline"
)

// heard is what user space has seen of how far a spliced connection has come. Its
// ends check what they get, and nobody else does: so that an invented FIN or RST does
// not let us forget a connection that goes on, the rules are those of XDP, flow_track in
// bpf/include/flow.h.
type heard struct {
	next  [2]uint32 // by Direction: one beyond the highest sequence number, as it comes from the end
	acked [2]uint32 // and the highest acknowledgment
	fins  [2]bool
	reset bool
	// deaf: XDP had the flow, and nobody here knows what has passed. XDP says when it
	// has ended.
	deaf bool
}

// heardNear is how far from what is known the numbers of a segment may be. Who
// sees nothing has to guess both.
const heardNear = 1 << 22

func near(n, known uint32) bool { return n-known+heardNear < 2*heardNear }

// heard returns what is known of a quiet flow.
func (f *flow) heard() (h heard) {
	for d := range h.next {
		from, _ := f.ends(pipeline.Direction(d))
		h.next[d], h.acked[d] = from.rcvMax, from.acked
	}
	return h
}

// hear notes a segment as it came. seq is what is added to its sequence numbers.
func (h *heard) hear(d pipeline.Direction, t wire.TCP, seq uint32) {
	flags := t.Flags()
	if h.deaf || flags&(wire.FlagRST|wire.FlagACK) == 0 {
		return
	}
	next := &h.next[d]
	if flags&wire.FlagRST != 0 {
		// The very next number (RFC 5961, section 3.2), that of a FIN which the other end
		// may not have seen, or the one that it has acknowledged last.
		h.reset = h.reset || t.Seq() == *next || h.fins[d] && t.Seq()+1 == *next || t.Seq()+seq == h.acked[1-d]
		return
	}
	end := t.Seq() + uint32(len(t.Payload()))
	if flags&wire.FlagFIN != 0 {
		end++
	}
	if !near(end, *next) || !near(t.Ack(), h.acked[d]) {
		return
	}
	if int32(end-*next) > 0 {
		*next = end
	}
	if int32(t.Ack()-h.acked[d]) > 0 {
		h.acked[d] = t.Ack()
	}
	h.fins[d] = h.fins[d] || flags&wire.FlagFIN != 0
}

// over reports whether the connection has ended, as far as user space has seen.
func (h *heard) over() bool { return h.reset || h.fins[0] && h.fins[1] }
