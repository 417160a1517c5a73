package rewrite

import "penstock/internal/wire"

// ApplySlow is Apply without the limits that XDP has: it also changes what Apply leaves as SlowFragment, SlowIPOptions,
// SlowOddOptions and SlowTooManyOptions. Where Apply returns Done, both write the same bytes.
//
//   - Constants do not ask for a whole packet: the first fragment has the transport header and with it the checksum of
//     all of them; later fragments get the link and IP fields of the rule, and need nothing else. That they belong to
//     the flow is for the caller to know.
//   - Every timestamps and SACK option of the right length is changed, up to where the list ends or stops making sense:
//     receivers do not look further either.
func (r *Rule) ApplySlow(frame []byte, h *wire.Headers) Result {
	if why := r.check(frame, h); why != Done {
		return why
	}
	if r.Flags&transportFields != 0 && h.Frag != wire.FragLater {
		if why := r.checkProto(frame, h); why != Done {
			return why
		}
	}
	r.writeLink(frame, h)
	if r.Flags&ipFields == 0 {
		return Done
	}
	c := r.writeIP(frame, h)
	if r.Flags&transportFields != 0 && h.Frag != wire.FragLater {
		r.writeTransport(frame[h.L4:h.Payload], h.Proto, c)
	}
	return Done
}

// writeTransport changes a transport header of which the beginning is there: 8 bytes at least, all of it unless it was
// quoted. c is what the addresses changed in the pseudo-header.
func (r *Rule) writeTransport(seg []byte, proto uint8, c change) {
	switch proto {
	case wire.ProtoUDP:
		r.writePorts(seg, &c)
		c.updateUDP(seg[6:8])
	case wire.ProtoICMPv6:
		c.update(seg[2:4])
	case wire.ProtoTCP:
		r.writePorts(seg, &c)
		const flags, checksum = 13, 16
		hasAck := len(seg) > flags && seg[flags]&byte(wire.FlagACK) != 0
		if len(seg) >= wire.TCPLen {
			r.writeTCP(seg, hasAck, &c)
			r.writeAll(seg[wire.TCPLen:], hasAck, &c)
		} else {
			var short [wire.TCPLen]byte
			copy(short[:], seg)
			r.writeTCP(short[:], hasAck, &c)
			copy(seg, short[:])
		}
		if len(seg) >= checksum+2 {
			c.update(seg[checksum:])
		}
	}
}

// writeAll changes all timestamps and SACK options of a list.
func (r *Rule) writeAll(opts []byte, hasAck bool, c *change) {
	it := wire.IterTCPOptions(opts)
	for it.Next() {
		if _, _, ok := it.Timestamps(); ok && r.Flags&AddTS != 0 {
			r.writeTS(opts, it.Offset+2, hasAck, c)
		}
		if blocks := it.SACKBlocks(); r.Flags&AddAck != 0 && hasAck {
			r.writeSACK(opts, it.Offset+2, blocks, c)
		}
	}
}

// ApplyQuoted changes an ICMP or ICMPv6 error that quotes a packet of the flow, and returns Done, or leaves it as it was
// and returns why. The error travels in r's direction and quotes a packet of the other direction as it was after that
// direction's rule had changed it: inner is to undo that (Inverse).
//
// Of r, what a packet of any kind has counts: MACs, VLAN ids, addresses, TTL. With SetSrc the error seems to come from
// the flow's other end, as address translation has it; without, it keeps the address of the router that sent it. Of
// inner, what a receiver matches a connection by counts: addresses, ports, Seq, Ack and the timestamps, as far as they
// are quoted; not the window, which cannot be brought back.
//
// All checksums that are there are updated: of the quoted headers, as they would be if the packet had not been changed
// before, and of the error.
func (r *Rule) ApplyQuoted(frame []byte, h *wire.Headers, inner *Rule) Result {
	if h.Fault != wire.FaultNone {
		return SlowMalformed
	}
	in := *inner
	in.Flags &= transportFields &^ ShiftWindow
	if why := r.check(frame, h); why != Done {
		return why
	}
	var q wire.Headers
	if !h.QuotedHeaders(frame, &q) {
		return SlowNoQuote
	}
	if !in.fits(q.IPVersion) {
		return SlowFamily
	}
	if in.Flags != 0 {
		if why := in.checkProto(frame, &q); why != Done {
			return why
		}
	}
	r.writeLink(frame, h)
	c := r.writeIP(frame, h)
	if h.IPVersion == 4 {
		c = 0 // ICMP has no pseudo-header
	}
	icmp := frame[h.L4:h.End]
	before := wire.Sum(icmp, 0)
	if in.Flags != 0 {
		in.writeTransport(frame[q.L4:q.Payload], q.Proto, in.writeIP(frame, &q))
	}
	c.add16(uint16(before), uint16(wire.Sum(icmp, 0)))
	c.update(icmp[2:4])
	return Done
}
