package pcap

import (
	"encoding/binary"

	"penstock/internal/flowtab"
	"penstock/internal/wire"
	"penstock/pipeline"
)

// A capture does not say by which of two ports a packet came. The first packet
// of a flow decides: its sender is the client, whose side is port 0.
const (
	clientPort pipeline.PortID = 0
	serverPort pipeline.PortID = 1
)

const (
	defaultFlows = 1 << 16 // remembered at a time
	firstFlows   = 1 << 10 // places that a table has at first
)

// directions remembers which end of a flow is the client. It is bounded: the
// flow that was not seen for the longest time makes room for a new one.
type directions struct {
	flows memory // by canonical flow
	pairs memory // by canonical pair of addresses, for packets without a flow
	seen  uint64 // flows, each counted once while it is remembered
	now   int64  // counts packets: only the order matters
}

// memory is a table that begins small and grows up to its limit.
type memory struct {
	*flowtab.Table[client]
	limit int
}

// client says which end of a canonical flow is the client.
type client struct{ reversed bool }

func newDirections(flows int) *directions {
	if flows <= 0 {
		flows = defaultFlows
	}
	return &directions{flows: newMemory(flows), pairs: newMemory(max(flows/4, 1))}
}

func newMemory(limit int) memory {
	return memory{flowtab.New[client](min(limit, firstFlows)), limit}
}

// port returns the port that p came in by. p is parsed.
func (d *directions) port(p *pipeline.Packet) pipeline.PortID {
	d.now++
	if p.IPVersion == 0 {
		return clientPort
	}
	if !p.HasFlow {
		pair, reversed := addressPair(p).Canonical()
		c, _ := d.pairs.remember(d.now, pair, reversed)
		return c.side(reversed)
	}
	flow, reversed := p.Flow.Canonical()
	c, isNew := d.flows.remember(d.now, flow, reversed != isSYNACK(p))
	if isNew {
		d.seen++
		pair, pairReversed := addressPair(p).Canonical()
		d.pairs.remember(d.now, pair, pairReversed != isSYNACK(p))
	}
	if to, ok := d.errorPort(p); ok {
		return to
	}
	return c.side(reversed)
}

// errorPort returns the port of an ICMP error: it travels towards the sender
// of the packet that it quotes.
func (d *directions) errorPort(p *pipeline.Packet) (pipeline.PortID, bool) {
	if p.Proto != wire.ProtoICMP && p.Proto != wire.ProtoICMPv6 {
		return 0, false
	}
	quoted, ok := p.QuotedFlow(p.Bytes())
	if !ok {
		return 0, false
	}
	quoted, reversed := quoted.Canonical()
	c, ok := d.flows.Peek(quoted)
	if !ok {
		return 0, false
	}
	return 1 - c.side(reversed), true
}

// remember returns the entry of key, and makes one if there is none.
func (m *memory) remember(now int64, key wire.Flow, clientReversed bool) (c *client, isNew bool) {
	if c, ok := m.Get(key, now); ok {
		return c, false
	}
	if m.Len() == m.Cap() {
		m.makeRoom()
	}
	c, _ = m.Insert(key, now)
	c.reversed = clientReversed
	return c, true
}

// makeRoom doubles the table, or at the limit forgets the oldest entry.
func (m *memory) makeRoom() {
	if m.Cap() >= m.limit {
		m.EvictOldest(nil)
		return
	}
	old := m.Table
	m.Table = flowtab.New[client](min(2*old.Cap(), m.limit))
	for {
		key, c, seen, ok := old.Oldest()
		if !ok {
			return
		}
		if to, ok := m.Insert(key, seen); ok {
			*to = *c
		}
		old.Delete(key)
	}
}

// side returns the port on the sender's side.
func (c *client) side(reversed bool) pipeline.PortID {
	if reversed == c.reversed {
		return clientPort
	}
	return serverPort
}

// isSYNACK reports whether p is a server's answer to a SYN.
func isSYNACK(p *pipeline.Packet) bool {
	const mask = wire.FlagSYN | wire.FlagACK
	return p.Proto == wire.ProtoTCP && wire.TCP(p.Bytes()[p.L4:p.End]).Flags()&mask == mask
}

// addressPair returns the two addresses and VLANs of an IP packet as a flow
// without protocol and ports.
func addressPair(p *pipeline.Packet) (f wire.Flow) {
	const vlanID = 0x0fff
	f.VLAN[0], f.VLAN[1] = p.VLAN[0]&vlanID, p.VLAN[1]&vlanID
	ip := p.Bytes()[p.L3:]
	if p.IPVersion == 6 {
		f.V6 = true
		copy(f.Src[:], ip[8:24])
		copy(f.Dst[:], ip[24:40])
		return f
	}
	binary.BigEndian.PutUint16(f.Src[10:], 0xffff)
	binary.BigEndian.PutUint16(f.Dst[10:], 0xffff)
	copy(f.Src[12:], ip[12:16])
	copy(f.Dst[12:], ip[16:20])
	return f
}
