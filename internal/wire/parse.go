package wire

import "encoding/binary"

// extent says how much of a packet must be there.
type extent bool

const (
	whole  extent = false // all of it
	quoted extent = true  // what an ICMP error quotes: the IP header and 8 bytes (RFC 792) are enough
)

// parse4 parses the IPv4 packet that starts at off and may reach to end. h.L3 is off on entry.
func (h *Headers) parse4(frame []byte, off, end int, ext extent) Fault {
	if off+IPv4Len > end {
		return h.fail(FaultTruncatedIPv4)
	}
	p := frame[off:end]
	if p[0]>>4 != 4 {
		return h.fail(FaultIPv4BadVersion)
	}
	headerLen := int(p[0]&0x0f) * 4
	if headerLen < IPv4Len {
		return h.fail(FaultIPv4BadHeaderLength)
	}
	h.IPVersion, h.Proto = 4, p[9]
	if headerLen > len(p) {
		return h.fail(FaultTruncatedIPv4)
	}
	h.L4 = int32(off + headerLen)
	h.Payload = h.L4
	total := int(binary.BigEndian.Uint16(p[2:]))
	if total < headerLen {
		return h.fail(FaultIPv4BadTotalLength)
	}
	if total <= len(p) {
		h.End = int32(off + total)
	} else if ext == whole {
		return h.fail(FaultTruncatedIPv4Packet)
	}
	if field := binary.BigEndian.Uint16(p[6:]); field&0x3fff != 0 { // more fragments, or an offset
		at := int(field&0x1fff) * 8
		if f := h.fragment(at, total-headerLen, headerLen, field&0x2000 != 0); f != FaultNone {
			return f
		}
		if h.Frag == FragLater {
			return FaultNone
		}
	}
	return h.parseL4(frame, ext)
}

// fragment checks one fragment: at is its offset in the original payload, size its payload, header what counts against
// the 65535 limit besides. It sets h.Frag.
func (h *Headers) fragment(at, size, header int, more bool) Fault {
	h.Frag = FragLater
	if at == 0 {
		h.Frag = FragFirst
	}
	if size == 0 || more && size%8 != 0 {
		return h.fail(FaultFragmentBadLength)
	}
	if header+at+size > 65535 {
		return h.fail(FaultFragmentTooLong)
	}
	if at == 8 && h.Proto == ProtoTCP {
		return h.fail(FaultTinyFragment) // RFC 1858 and 3128: it can only overwrite the flags the first one showed
	}
	return FaultNone
}

// parse6 parses the IPv6 packet that starts at off and may reach to end. h.L3 is off on entry.
func (h *Headers) parse6(frame []byte, off, end int, ext extent) Fault {
	if off+IPv6Len > end {
		return h.fail(FaultTruncatedIPv6)
	}
	p := frame[off:end]
	if p[0]>>4 != 6 {
		return h.fail(FaultIPv6BadVersion)
	}
	h.IPVersion, h.Proto = 6, p[6]
	h.L4 = int32(off + IPv6Len)
	h.Payload = h.L4
	length := int(binary.BigEndian.Uint16(p[4:]))
	if length == 0 && (p[6] == ProtoHopByHop || len(p) > IPv6Len+65535) {
		return h.fail(FaultIPv6Jumbogram)
	}
	if IPv6Len+length <= len(p) {
		h.End = int32(off + IPv6Len + length)
	} else if ext == whole {
		return h.fail(FaultTruncatedIPv6Packet)
	}
	switch p[6] {
	case ProtoHopByHop, ProtoRouting, ProtoFragment, ProtoDestOpts:
		// The declared end, for a quoted packet of which only a part is here.
		if done, f := h.walkExtensions(frame, off+IPv6Len+length); done {
			return f
		}
	}
	return h.parseL4(frame, ext)
}

// walkExtensions moves h.L4 and h.Proto over the IPv6 extension headers. done means that there is no transport header
// to look for: a fault, a later fragment, or a source route that has not ended.
func (h *Headers) walkExtensions(frame []byte, declaredEnd int) (done bool, f Fault) {
	pos, end := int(h.L4), int(h.End)
	fragmented := false
	for n := 0; ; n++ {
		switch h.Proto {
		case ProtoHopByHop, ProtoRouting, ProtoFragment, ProtoDestOpts:
		default:
			return false, FaultNone
		}
		if n == MaxExtensions {
			return true, h.fail(FaultIPv6TooManyExtensions)
		}
		if pos+8 > end {
			return true, h.fail(h.cutShort(FaultTruncatedIPv6Extension))
		}
		e := frame[pos:end]
		size := 8 + 8*int(e[1])
		switch h.Proto {
		case ProtoHopByHop:
			if n != 0 {
				return true, h.fail(FaultIPv6HopByHopNotFirst)
			}
		case ProtoRouting:
			if segmentsLeft := e[3]; segmentsLeft != 0 {
				if e[2] == 0 {
					return true, h.fail(FaultIPv6RoutingType0)
				}
				return true, FaultNone
			}
		case ProtoFragment:
			if fragmented {
				return true, h.fail(FaultIPv6RepeatedFragment)
			}
			fragmented, size = true, 8
		}
		if size > len(e) {
			return true, h.fail(h.cutShort(FaultTruncatedIPv6Extension))
		}
		isFragment := h.Proto == ProtoFragment
		h.Proto = e[0]
		pos += size
		h.L4, h.Payload = int32(pos), int32(pos)
		if !isFragment {
			continue
		}
		field := binary.BigEndian.Uint16(e[2:])
		if field&0xfff9 == 0 {
			continue // atomic: a whole packet
		}
		if f := h.fragment(int(field&0xfff8), declaredEnd-pos, 0, field&1 != 0); f != FaultNone {
			return true, f
		}
		if h.Frag == FragLater {
			return true, FaultNone
		}
	}
}

// parseL4 parses the transport header at h.L4; h.End bounds it.
func (h *Headers) parseL4(frame []byte, ext extent) Fault {
	seg := frame[h.L4:h.End]
	size := 0
	switch {
	case h.Proto == ProtoTCP:
		if ext == quoted && len(seg) >= 8 && len(seg) < TCPLen {
			size = len(seg)
			break
		}
		if len(seg) < TCPLen {
			return h.fail(h.cutShort(FaultTruncatedTCP))
		}
		size = int(seg[12]>>4) * 4
		if size < TCPLen {
			return h.fail(FaultTCPBadDataOffset)
		}
		if size > len(seg) {
			if ext == whole {
				return h.fail(h.cutShort(FaultTCPBadDataOffset))
			}
			size = len(seg)
		}
	case h.Proto == ProtoUDP:
		size = UDPLen
		if len(seg) < size {
			return h.fail(h.cutShort(FaultTruncatedUDP))
		}
		// A first fragment holds less than the whole datagram.
		n := int(binary.BigEndian.Uint16(seg[4:]))
		if n < UDPLen || n > len(seg) && h.Frag == FragNone && ext == whole {
			return h.fail(FaultUDPBadLength)
		}
	case h.Proto == ProtoICMP && h.IPVersion == 4, h.Proto == ProtoICMPv6 && h.IPVersion == 6:
		size = ICMPLen
		if len(seg) < size {
			return h.fail(h.cutShort(FaultTruncatedICMP))
		}
	default:
		return FaultNone
	}
	h.HasL4 = true
	h.Payload = h.L4 + int32(size)
	return FaultNone
}

// cutShort is f, or FaultTinyFragment where a first fragment ends before its headers do.
func (h *Headers) cutShort(f Fault) Fault {
	if h.Frag == FragFirst {
		return FaultTinyFragment
	}
	return f
}
