package wire

// VerifyIPv4 reports whether the header checksum of an IPv4 packet is right. packet starts at L3 and holds at least the
// header, as it does when Parse found IPVersion 4 and no fault.
func VerifyIPv4(packet []byte) bool {
	n := IPv4(packet).HeaderLen()
	return n >= IPv4Len && n <= len(packet) && Checksum(packet[:n], 0) == 0
}

// VerifyL4 reports whether the TCP, UDP or ICMP checksum is right. It is false where there is nothing to verify: no
// transport header, or a fragment, whose sum covers bytes that are elsewhere. A UDP checksum of 0 is right on IPv4
// (none was computed) and wrong on IPv6 (RFC 8200 8.1).
func VerifyL4(frame []byte, h *Headers) bool {
	if !h.HasL4 || h.Frag != FragNone {
		return false
	}
	seg := frame[h.L4:h.End]
	switch h.Proto {
	case ProtoICMP:
		return Checksum(seg, 0) == 0
	case ProtoUDP:
		u, ok := datagram(seg)
		if !ok {
			return false
		}
		if u.Checksum() == 0 {
			return h.IPVersion == 4
		}
		seg = u
	}
	return Checksum(seg, h.pseudoHeader(frame, len(seg))) == 0
}

// FillL4 computes the TCP, UDP or ICMP checksum and stores it; false where VerifyL4 has nothing to verify, and for a UDP
// length that does not fit the packet.
func FillL4(frame []byte, h *Headers) bool {
	if !h.HasL4 || h.Frag != FragNone {
		return false
	}
	seg := frame[h.L4:h.End]
	switch h.Proto {
	case ProtoICMP:
		ICMP(seg).SetChecksum(0)
		ICMP(seg).SetChecksum(Checksum(seg, 0))
	case ProtoICMPv6:
		ICMP(seg).SetChecksum(0)
		ICMP(seg).SetChecksum(Checksum(seg, h.pseudoHeader(frame, len(seg))))
	case ProtoUDP:
		u, ok := datagram(seg)
		if !ok {
			return false
		}
		u.SetChecksum(0)
		u.SetChecksum(UDPChecksum(Checksum(u, h.pseudoHeader(frame, len(u)))))
	case ProtoTCP:
		TCP(seg).SetChecksum(0)
		TCP(seg).SetChecksum(Checksum(seg, h.pseudoHeader(frame, len(seg))))
	}
	return true
}

// datagram returns what the UDP length covers. Parse checked it, but somebody may have written to it since.
func datagram(seg []byte) (u UDP, ok bool) {
	n := UDP(seg).Len()
	if n < UDPLen || n > len(seg) {
		return nil, false
	}
	return UDP(seg[:n]), true
}

func (h *Headers) pseudoHeader(frame []byte, length int) uint32 {
	if h.IPVersion == 4 {
		ip := frame[h.L3+12 : h.L3+20]
		return PseudoHeader(ip[:4], ip[4:], h.Proto, length)
	}
	ip := frame[h.L3+8 : h.L3+40]
	return PseudoHeader(ip[:16], ip[16:], h.Proto, length)
}
