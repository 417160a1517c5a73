package closedloop

import (
	"errors"
	"io"

	"penstock/internal/wire"
	"penstock/pcap"
)

// capture makes conversations of packets. It is bounded: by the payload that it
// keeps and by the connections that it follows at once.
type capture struct {
	r        *pcap.Reader
	accept   bool // wrong checksums too
	maxBytes int
	maxFlows int
	ready    func(*conversation)

	rec    pcap.Record
	frame  []byte
	flows  map[wire.Flow]*conversation // by canonical flow without VLAN
	order  []*conversation             // those that are not over, as they began
	dead   int                         // that are over, on it
	stored int

	packets, tcp, badSums, short, fragments, malformed uint64
	first, last                                        int64
}

// next reads a packet. io.EOF: there is no other.
func (c *capture) next() error {
	if err := c.r.Next(&c.rec); err != nil {
		return err
	}
	var eth [wire.EthernetLen]byte
	skip, build, err := c.rec.Link.EthernetHeader(c.rec.Data, &eth)
	if err != nil {
		return &pcap.ReadError{File: c.r.Name(), Packet: c.rec.Number, Offset: c.rec.Offset, Err: err}
	}
	c.frame = c.frame[:0]
	if build {
		c.frame = append(c.frame, eth[:]...)
	}
	c.frame = append(c.frame, c.rec.Data[skip:]...)
	cut := c.rec.Wire - len(c.rec.Data)
	if c.packets == 0 {
		c.first, c.last = c.rec.Time, c.rec.Time
	}
	c.last = max(c.last, c.rec.Time)
	c.packets++
	if cut > 0 {
		c.short++
		if cut <= pcap.MaxPacket { // so that its headers can be read
			c.frame = append(c.frame, make([]byte, cut)...)
		}
	}
	c.take(cut > 0)
	return nil
}

// take looks at the packet in frame.
func (c *capture) take(cut bool) {
	var h wire.Headers
	b := c.frame
	if h.Parse(b) != wire.FaultNone {
		c.malformed++
		return
	}
	if h.Proto != wire.ProtoTCP || h.IPVersion == 0 {
		return
	}
	c.tcp++
	if !h.HasL4 || h.Frag != wire.FragNone {
		c.fragments++
		return
	}
	f, ok := h.Flow(b)
	if !ok {
		return
	}
	bad := !cut && !c.accept && (h.IPVersion == 4 && !wire.VerifyIPv4(b[h.L3:]) || !wire.VerifyL4(b, &h))
	if bad {
		c.badSums++
	}
	c.segment(f, b, &h, bad, cut)
}

// segment gives a TCP segment to its conversation.
func (c *capture) segment(f wire.Flow, b []byte, h *wire.Headers, bad, cut bool) {
	t := wire.TCP(b[h.L4:h.End])
	payload := b[h.Payload:h.End]
	flags := t.Flags()
	syn := flags&wire.FlagSYN != 0
	key, _ := name(f)
	v := c.flows[key]
	from := client
	if v != nil && f.SrcPort == v.flow.DstPort && f.Src == v.flow.Dst && (f.SrcPort != v.flow.SrcPort || f.Src != v.flow.Src) {
		from = server
	}
	if v != nil && syn && !bad && c.anew(v, from, t) {
		c.end(v)
		v = nil
	}
	if v == nil {
		if bad {
			return
		}
		if v = c.begin(key, f, syn, syn && flags&wire.FlagACK != 0); v == nil {
			return
		}
		from = client
		if syn && flags&wire.FlagACK != 0 {
			from = server
		}
	}
	if v.over {
		return
	}
	switch {
	case bad:
		if len(payload) > 0 || flags&(wire.FlagSYN|wire.FlagFIN|wire.FlagRST) != 0 {
			c.spoil(v, "bad_checksum", "a segment has a wrong checksum; --accept-bad-checksums takes it as it is")
		}
		return
	case cut && len(payload) > 0:
		c.spoil(v, "captured_short", "the capture does not hold the whole of its packets")
		return
	}
	if l := &v.looks[from]; !l.set {
		*l = look{link: append([]byte(nil), b[:h.L3]...), set: true}
		if h.IPVersion == 4 {
			l.ttl, l.tos = wire.IPv4(b[h.L3:]).TTL(), wire.IPv4(b[h.L3:]).TOS()&^3
		} else {
			l.ttl, l.tos = wire.IPv6(b[h.L3:]).HopLimit(), wire.IPv6(b[h.L3:]).TrafficClass()&^3
		}
	}
	if v.why != "" {
		return
	}
	n := v.segment(from, t, payload, c.rec.Time)
	v.stored += n
	if c.stored += n; c.stored > c.maxBytes {
		c.spoil(v, "memory_limit", "the payload of connections that had not ended was more than --memory")
	}
	if v.complete() {
		c.end(v)
	}
}

// anew reports whether a SYN begins another connection than v.
func (c *capture) anew(v *conversation, from int, t wire.TCP) bool {
	s := &v.dir[from]
	if t.Flags()&wire.FlagACK != 0 {
		return false
	}
	return from == server || s.known && s.isn != t.Seq() || v.over || !s.known && v.dir[1-from].known
}

// begin starts a conversation with the packet at hand. nil: there is no room for
// one that cannot be played anyway.
func (c *capture) begin(key, f wire.Flow, syn, answer bool) *conversation {
	if len(c.flows) >= c.maxFlows {
		c.prune()
	}
	if len(c.flows) >= c.maxFlows {
		if !syn {
			return nil
		}
		c.makeRoom()
	}
	if answer {
		f = f.Reverse()
	}
	v := newConversation(f, c.rec.Number, c.rec.Time)
	c.flows[key] = v
	c.order = append(c.order, v)
	return v
}

// makeRoom gives up some conversations: those that cannot be played, then those
// that began first. It is a lot of work, hence some and not one.
func (c *capture) makeRoom() {
	left := max(c.maxFlows/16, 1)
	order := append([]*conversation(nil), c.order...)
	for _, hopeless := range [...]bool{true, false} {
		for _, v := range order {
			if left == 0 {
				break
			}
			if !v.over && (!hopeless || v.why != "" || !v.dir[client].known) {
				c.spoil(v, "flow_limit", "more connections were open at once than are followed")
				c.end(v)
				left--
			}
		}
	}
	c.prune()
}

// end hands a conversation on.
func (c *capture) end(v *conversation) {
	if v.over {
		return
	}
	v.over = true
	v.close()
	if v.why != "" {
		c.stored -= v.stored
		v.stored = 0
	}
	c.ready(v)
	// What is over is only remembered, for packets that come late.
	if key, _ := name(v.flow); c.flows[key] == v {
		c.flows[key] = &conversation{flow: v.flow, over: true}
	}
	if c.dead++; c.dead > 64 && c.dead > len(c.order)/2 {
		c.trim()
	}
}

// trim takes what is over off the list.
func (c *capture) trim() {
	keep := c.order[:0]
	for _, v := range c.order {
		if !v.over {
			keep = append(keep, v)
		}
	}
	clear(c.order[len(keep):])
	c.order, c.dead = keep, 0
}

// prune forgets the conversations that are over.
func (c *capture) prune() {
	for key, v := range c.flows {
		if v.over {
			delete(c.flows, key)
		}
	}
	c.trim()
}

func (c *capture) spoil(v *conversation, why, detail string) {
	c.stored -= v.stored
	v.stored = 0
	v.spoil(why, detail)
}

// read reads until enough says so, or to the end, where it hands on what has
// not ended.
func (c *capture) read(enough func() bool) error {
	for !enough() {
		err := c.next()
		if err == nil {
			continue
		}
		c.flush()
		return err
	}
	return nil
}

func (c *capture) flush() {
	order := c.order
	c.order = nil
	for _, v := range order {
		c.end(v)
	}
	c.flows = map[wire.Flow]*conversation{}
}

// name returns what a connection is known by: the tcp stage has no place for
// VLANs either.
func name(f wire.Flow) (key wire.Flow, reversed bool) {
	f.VLAN = [wire.MaxVLANs]uint16{}
	return f.Canonical()
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }
