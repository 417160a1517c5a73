package closedloop

import (
	"strconv"

	"penstock/internal/wire"
)

// The two ends of a connection, and the wires that lead to them: 0 is the
// client's, 1 the server's.
const (
	client = iota
	server
)

// synOptions is what an end offered in its SYN or SYN-ACK.
type synOptions struct {
	mss    uint16 // 0: not offered
	shift  int    // -1: no window scaling
	sack   bool
	stamps bool
}

func readOptions(t wire.TCP) synOptions {
	o := synOptions{shift: -1}
	it := t.OptionIter()
	for it.Next() {
		switch it.Kind {
		case wire.OptMSS:
			o.mss, _ = it.MSS()
		case wire.OptWindowScale:
			if v, ok := it.WindowScale(); ok {
				o.shift = int(min(v, 14))
			}
		case wire.OptSACKPermitted:
			o.sack = true
		case wire.OptTimestamps:
			_, _, o.stamps = it.Timestamps()
		}
	}
	return o
}

// look is what an end's packets look like, besides TCP.
type look struct {
	link []byte // Ethernet header with VLAN tags, as the end sends it
	ttl  uint8
	tos  uint8
	set  bool
}

// step is something that an end does: it sends up to a position of its stream,
// or finishes, or resets.
type step struct {
	to    uint64 // position behind the last byte that may be sent
	need  uint64 // position of the other end's stream that must have been received
	time  int64  // ns since the connection's first packet
	order int    // among the steps of both ends
	fin   bool
	rst   bool
}

// conversation is a connection of the capture.
type conversation struct {
	flow    wire.Flow // as the client's packets have it
	number  uint64    // of its first packet
	start   int64     // its time
	stored  int       // bytes of payload that count for the memory limit
	dir     [2]stream
	looks   [2]look
	steps   [2][]step
	orders  int
	reset   int    // which end has reset it, -1: none
	refused bool   // the server answered the SYN with a reset
	why     string // why it cannot be played; "" so far
	detail  string
	over    bool // nothing more is wanted: it was handed on
}

func newConversation(f wire.Flow, number uint64, t int64) *conversation {
	return &conversation{flow: f, number: number, start: t, reset: -1}
}

// spoil notes why the conversation cannot be played, the first cause, and lets
// go of its bytes.
func (c *conversation) spoil(why, detail string) {
	if c.why == "" {
		c.why, c.detail = why, detail
	}
	c.dir[0].forget()
	c.dir[1].forget()
	c.steps = [2][]step{}
}

// segment takes over one segment that end from has sent. It returns how many
// bytes of payload it has stored.
func (c *conversation) segment(from int, t wire.TCP, payload []byte, now int64) (stored int) {
	flags := t.Flags()
	own, other := &c.dir[from], &c.dir[1-from]
	if flags&wire.FlagSYN != 0 {
		c.syn(from, t)
	}
	if !own.known {
		if flags&wire.FlagRST != 0 && from == server && c.dir[client].known {
			// A reset for a SYN has no sequence number of its own.
			c.refused, c.reset = true, server
			return 0
		}
		return 0
	}
	seq := t.Seq()
	if flags&wire.FlagSYN != 0 {
		seq++ // data in a SYN begins behind it
	}
	at := own.position(seq)
	if flags&(wire.FlagACK|wire.FlagRST) == wire.FlagACK && other.known {
		if a := other.position(t.Ack()); a > 0 {
			other.acked = max(other.acked, uint64(a))
		}
	}
	before := own.next()
	stored = own.add(at, payload)
	if own.next() > before {
		c.step(from, step{to: own.next(), time: now - c.start})
	}
	if flags&wire.FlagFIN != 0 && own.fin == 0 && at >= 0 {
		own.fin = uint64(at) + uint64(len(payload))
	}
	if own.whole() && !c.finished(from) {
		c.step(from, step{to: own.fin, fin: true, time: now - c.start})
	}
	if flags&wire.FlagRST != 0 && c.reset < 0 && plausible(own, at) {
		c.reset = from
		c.step(from, step{to: own.next(), rst: true, time: now - c.start})
	}
	return stored
}

func (c *conversation) syn(from int, t wire.TCP) {
	s := &c.dir[from]
	if !s.known {
		s.known, s.isn = true, t.Seq()
		s.high = 1
	}
	if !s.hasSYN {
		s.syn, s.hasSYN = readOptions(t), true
	}
	if t.Flags()&wire.FlagACK != 0 && !c.dir[1-from].known {
		// The SYN was not captured, its answer was.
		o := &c.dir[1-from]
		o.known, o.isn, o.high = true, t.Ack()-1, 1
		o.syn = synOptions{mss: s.syn.mss, shift: s.syn.shift, sack: s.syn.sack, stamps: s.syn.stamps}
	}
}

// plausible reports whether a reset is at a place where its receiver would take
// it (RFC 5961 would ask for the exact one).
func plausible(s *stream, at int64) bool {
	const window = 1 << 20
	return at >= int64(min(s.acked, s.next()))-1 && at <= int64(max(s.high, s.next()))+window
}

// step appends what end from does next: after everything that the other end
// did before.
func (c *conversation) step(from int, s step) {
	other := &c.dir[1-from]
	s.need = other.next()
	if c.finished(1 - from) {
		s.need = other.fin + 1
	}
	s.order = c.orders
	c.orders++
	c.steps[from] = append(c.steps[from], s)
}

// finished reports whether the end has done its last step.
func (c *conversation) finished(end int) bool {
	n := len(c.steps[end])
	return n > 0 && (c.steps[end][n-1].fin || c.steps[end][n-1].rst)
}

// complete reports whether nothing more can come that matters.
func (c *conversation) complete() bool {
	if c.reset >= 0 {
		return true
	}
	return c.finished(client) && c.finished(server) && c.dir[client].acked > c.dir[client].fin && c.dir[server].acked > c.dir[server].fin
}

// close decides whether the conversation can be played and, where the capture
// does not have its end, gives it one.
func (c *conversation) close() {
	switch cl, sv := &c.dir[client], &c.dir[server]; {
	case c.why != "":
		return
	case !cl.known && !sv.known:
		c.spoil("no_syn", "the capture begins after the connection did")
		return
	case c.refused:
		return
	case !sv.known && sv.high == 0 && cl.high <= 1 && cl.fin == 0:
		c.spoil("no_answer", "the server never answered the SYN")
		return
	case !sv.known:
		c.spoil("no_syn_ack", "the capture does not have the server's SYN-ACK")
		return
	}
	names := [2]string{"client", "server"}
	for end := range c.dir {
		s := &c.dir[end]
		gap := s.gap()
		if c.reset >= 0 && gap > 0 && gap >= s.acked && s.fin == 0 {
			gap = 0 // lost on the way when the reset came: nobody has received it
		}
		if gap == 0 && s.acked > s.next() && !(s.fin > 0 && s.acked <= s.fin+1) {
			gap = s.next() // acknowledged, and never captured
		}
		if gap > 0 {
			c.spoil("gap", "bytes of the "+names[end]+" are missing from offset "+strconv.FormatUint(gap-1, 10)+" on")
			return
		}
	}
	if c.reset >= 0 {
		return
	}
	for end := range c.dir {
		if !c.finished(end) {
			c.dir[end].fin = c.dir[end].next()
			last := int64(0)
			for _, list := range c.steps {
				if n := len(list); n > 0 {
					last = max(last, list[n-1].time)
				}
			}
			c.step(end, step{to: c.dir[end].fin, fin: true, time: last})
		}
	}
}
