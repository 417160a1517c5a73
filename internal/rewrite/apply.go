package rewrite

import (
	"encoding/binary"

	"penstock/internal/wire"
)

// Apply changes one packet as the rule says and returns Done, or leaves frame and h as they were and returns why. h is
// what Headers.Parse made of frame (Headers.ParseIP if the rule sets neither MACs nor VLAN ids); it stays right for the
// changed frame. The frame's length never changes, and nothing is retained.
//
// Which packets are left alone follows from what an XDP program can do; README.md has the table.
func (r *Rule) Apply(frame []byte, h *wire.Headers) Result {
	var o options
	if why := r.check(frame, h); why != Done {
		return why
	}
	if r.Flags&transportFields != 0 {
		if why := r.checkTransport(frame, h); why != Done {
			return why
		}
		if r.Flags&optionFields != 0 {
			if why := o.find(frame[h.L4+wire.TCPLen : h.Payload]); why != Done {
				return why
			}
		}
	}
	r.writeLink(frame, h)
	if r.Flags&ipFields == 0 {
		return Done
	}
	c := r.writeIP(frame, h)
	if r.Flags&transportFields == 0 {
		return Done
	}
	seg := frame[h.L4:h.Payload]
	switch h.Proto {
	case wire.ProtoTCP:
		r.writePorts(seg, &c)
		if r.Flags&tcpFields != 0 {
			hasAck := seg[13]&byte(wire.FlagACK) != 0
			r.writeTCP(seg, hasAck, &c)
			r.writeFound(seg[wire.TCPLen:], &o, hasAck, &c)
		}
		c.update(seg[16:18])
	case wire.ProtoUDP:
		r.writePorts(seg, &c)
		c.updateUDP(seg[6:8])
	case wire.ProtoICMPv6: // ICMP has no pseudo-header: nothing that it sums has changed
		c.update(seg[2:4])
	}
	return Done
}

// check looks at everything before the transport header that does not depend on where that is.
func (r *Rule) check(frame []byte, h *wire.Headers) Result {
	if r.Flags == 0 {
		return Done
	}
	if h.Fault != wire.FaultNone {
		return SlowMalformed
	}
	if r.Flags&linkFields != 0 && h.L3 < wire.EthernetLen {
		return SlowNoEthernet
	}
	if r.Flags&SetVLAN != 0 && (h.VLANs != r.VLANs || h.TooManyVLANs()) {
		return SlowVLANCount
	}
	if r.Flags&ipFields == 0 {
		return Done
	}
	if h.IPVersion == 0 {
		return SlowNotIP
	}
	if r.Flags&DecTTL != 0 && frame[ttlAt(h)] <= 1 {
		return SlowTTL
	}
	if r.Flags&addressFields != 0 && !r.fits(h.IPVersion) {
		return SlowFamily
	}
	return Done
}

// ttlAt returns the offset of the TTL or hop limit.
func ttlAt(h *wire.Headers) int32 {
	if h.IPVersion == 4 {
		return h.L3 + 8
	}
	return h.L3 + 7
}

// checkTransport looks for a whole transport header right behind a plain IP header.
func (r *Rule) checkTransport(frame []byte, h *wire.Headers) Result {
	if h.Frag != wire.FragNone {
		return SlowFragment
	}
	if h.IPVersion == 4 {
		if frame[h.L3] != 0x45 {
			return SlowIPOptions
		}
	} else {
		switch frame[h.L3+6] {
		case wire.ProtoHopByHop, wire.ProtoRouting, wire.ProtoFragment, wire.ProtoAH, wire.ProtoDestOpts:
			return SlowIPOptions
		}
	}
	return r.checkProto(frame, h)
}

// checkProto looks whether the packet has what the rule is about. h may be that of a quoted packet, of which 8 bytes of
// transport header are promised.
func (r *Rule) checkProto(frame []byte, h *wire.Headers) Result {
	if !h.HasL4 {
		return SlowNoTransport
	}
	if h.Proto == wire.ProtoTCP {
		if r.Flags&tcpFields != 0 && h.Payload >= h.L4+14 && frame[h.L4+13]&byte(wire.FlagSYN) != 0 {
			return SlowSYN
		}
		return Done
	}
	if r.Flags&tcpFields != 0 {
		return SlowNotTCP
	}
	if h.Proto == wire.ProtoUDP {
		return Done
	}
	if r.Flags&portFields != 0 {
		return SlowNoPorts
	}
	switch kind := frame[h.L4]; {
	case h.Proto == wire.ProtoICMP && (kind == wire.ICMPEchoRequest || kind == wire.ICMPEchoReply):
	case h.Proto == wire.ProtoICMPv6 && (kind == wire.ICMPv6EchoRequest || kind == wire.ICMPv6EchoReply):
	default:
		return SlowICMP
	}
	return Done
}

// writeLink sets MAC addresses and VLAN ids.
func (r *Rule) writeLink(frame []byte, h *wire.Headers) {
	if r.Flags&SetDstMAC != 0 {
		*(*[6]byte)(frame) = r.DstMAC
	}
	if r.Flags&SetSrcMAC != 0 {
		*(*[6]byte)(frame[6:]) = r.SrcMAC
	}
	if r.Flags&SetVLAN != 0 {
		const id = 0x0fff
		for i := range int(h.VLANs) {
			h.VLAN[i] = h.VLAN[i]&^id | r.VLAN[i]&id
			binary.BigEndian.PutUint16(frame[wire.EthernetLen+wire.VLANTagLen*i:], h.VLAN[i])
		}
	}
}

// writeIP sets the addresses and decrements the TTL, updates the IPv4 header checksum, and returns by how much the
// addresses change the sum of the pseudo-header.
func (r *Rule) writeIP(frame []byte, h *wire.Headers) (pseudo change) {
	if r.Flags&(addressFields|DecTTL) == 0 {
		return 0
	}
	if h.IPVersion == 4 {
		ip := (*[wire.IPv4Len]byte)(frame[h.L3:])
		if r.Flags&SetSrc != 0 {
			pseudo.set32(ip[12:16], binary.BigEndian.Uint32(r.Src[12:]))
		}
		if r.Flags&SetDst != 0 {
			pseudo.set32(ip[16:20], binary.BigEndian.Uint32(r.Dst[12:]))
		}
		header := pseudo
		if r.Flags&DecTTL != 0 {
			ip[8]--
			header += 0xffff - 0x0100 // the TTL is the upper half of its word
		}
		header.update(ip[10:12])
		return pseudo
	}
	ip := (*[wire.IPv6Len]byte)(frame[h.L3:])
	if r.Flags&SetSrc != 0 {
		pseudo.set128((*[16]byte)(ip[8:]), &r.Src)
	}
	if r.Flags&SetDst != 0 {
		pseudo.set128((*[16]byte)(ip[24:]), &r.Dst)
	}
	if r.Flags&DecTTL != 0 {
		ip[7]--
	}
	return pseudo
}

// writePorts sets the ports of a TCP or UDP header.
func (r *Rule) writePorts(seg []byte, c *change) {
	if r.Flags&SetSrcPort != 0 {
		c.set16(seg[0:2], r.SrcPort)
	}
	if r.Flags&SetDstPort != 0 {
		c.set16(seg[2:4], r.DstPort)
	}
}

// writeTCP changes the fields of the fixed TCP header.
func (r *Rule) writeTCP(seg []byte, hasAck bool, c *change) {
	tcp := (*[wire.TCPLen]byte)(seg)
	if r.Flags&AddSeq != 0 {
		c.set32(tcp[4:8], binary.BigEndian.Uint32(tcp[4:8])+r.Seq)
	}
	if r.Flags&AddAck != 0 && hasAck {
		c.set32(tcp[8:12], binary.BigEndian.Uint32(tcp[8:12])+r.Ack)
	}
	if r.Flags&ShiftWindow != 0 {
		c.set16(tcp[14:16], shiftWindow(binary.BigEndian.Uint16(tcp[14:16]), r.WindowShift))
	}
}

// shiftWindow returns the window w shifted as Rule.WindowShift says.
func shiftWindow(w uint16, by int8) uint16 {
	if by >= 0 {
		return uint16(min(uint32(w)<<min(by, 16), 0xffff))
	}
	out := w >> min(-int(by), 16)
	if out == 0 && w != 0 {
		return 1
	}
	return out
}
