package wire

import "encoding/binary"

// EtherTypes (IEEE 802 numbers).
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeARP  = 0x0806
	EtherTypeVLAN = 0x8100 // 802.1Q
	EtherTypeIPv6 = 0x86dd
	EtherTypeQinQ = 0x88a8 // 802.1ad service tag
)

// IP protocol and IPv6 next-header numbers (IANA).
const (
	ProtoHopByHop = 0
	ProtoICMP     = 1
	ProtoTCP      = 6
	ProtoUDP      = 17
	ProtoRouting  = 43
	ProtoFragment = 44
	ProtoESP      = 50
	ProtoAH       = 51
	ProtoICMPv6   = 58
	ProtoNone     = 59
	ProtoDestOpts = 60
)

// Header sizes in bytes, without options.
const (
	EthernetLen = 14
	VLANTagLen  = 4
	IPv4Len     = 20
	IPv6Len     = 40
	TCPLen      = 20
	UDPLen      = 8
	ICMPLen     = 8
)

const (
	// MaxVLANs is how many VLAN tags Parse reads. A frame with more is not IP for us: its EtherType is the next tag's.
	MaxVLANs = 2
	// MaxExtensions is how many IPv6 extension headers Parse walks. RFC 8200 4.1 foresees at most seven.
	MaxExtensions = 8
)

// Frag says what part of a fragmented IP packet a packet is. An IPv6 atomic fragment (RFC 6946) is a whole packet: FragNone.
type Frag uint8

// The kinds of fragment.
const (
	FragNone  Frag = iota // a whole packet
	FragFirst             // the first fragment: the transport header is here
	FragLater             // a later fragment: no transport header
)

// String returns "none", "first" or "later".
func (f Frag) String() string {
	switch f {
	case FragFirst:
		return "first"
	case FragLater:
		return "later"
	default:
		return "none"
	}
}

// Headers says where each header of one packet starts. Offsets are bytes from the start of the frame (Parse) or of
// the IP packet (ParseIP). Whatever the fault,
//
//	0 <= L3 <= L4 <= Payload <= End <= len(frame)
//
// so slicing at them never panics; what they mean is said at each field. The zero value describes nothing.
type Headers struct {
	EtherType uint16           // of the innermost header, after VLAN tags; ParseIP sets it too
	VLANs     uint8            // number of tags parsed, 0..2
	VLAN      [MaxVLANs]uint16 // tag control information (priority, DEI, id), outermost first
	IPVersion uint8            // 0 (not IP, or its fixed header does not parse), 4, 6
	Proto     uint8            // the last header's protocol number; valid iff IPVersion != 0
	Frag      Frag

	L3      int32 // start of what follows the link header
	L4      int32 // start of the TCP, UDP or ICMP header iff HasL4; else where parsing stopped
	Payload int32 // start of the transport payload iff HasL4, of a later fragment's data; else equal to L4
	End     int32 // end of the IP packet (Ethernet padding lies beyond); len(frame) if not IP

	HasL4 bool // a TCP, UDP or ICMP header was parsed and is inside the packet; never for later fragments
	Fault Fault
}

// Parse fills h from an Ethernet frame (without FCS, shorter than 2 GiB) and returns h.Fault. An unknown EtherType is
// not a fault, it is just not IP. The frame is only read, and not retained.
//
// What it does not check: checksums (VerifyIPv4, VerifyL4) and anything that needs more than one packet.
//
// An IPv6 packet that still has to visit other nodes (a routing header with segments left) stops there with
// Proto = ProtoRouting and no L4: its transport header belongs to a destination that the fixed header does not show.
// The same holds for AH, ESP and protocols unknown here.
func (h *Headers) Parse(frame []byte) Fault {
	*h = Headers{}
	if len(frame) < EthernetLen {
		h.stopAt(0, len(frame))
		return h.fail(FaultTruncatedEthernet)
	}
	etherType := binary.BigEndian.Uint16(frame[12:])
	off := EthernetLen
	for (etherType == EtherTypeVLAN || etherType == EtherTypeQinQ) && h.VLANs < MaxVLANs {
		if len(frame) < off+VLANTagLen {
			h.EtherType = etherType
			h.stopAt(off, len(frame))
			return h.fail(FaultTruncatedVLAN)
		}
		h.VLAN[h.VLANs] = binary.BigEndian.Uint16(frame[off:])
		h.VLANs++
		etherType = binary.BigEndian.Uint16(frame[off+2:])
		off += VLANTagLen
	}
	h.EtherType = etherType
	h.stopAt(off, len(frame))
	switch etherType {
	case EtherTypeIPv4:
		return h.parse4(frame, off, len(frame), whole)
	case EtherTypeIPv6:
		return h.parse6(frame, off, len(frame), whole)
	}
	return FaultNone
}

// ParseIP fills h from an IP packet without a link header (link type RAW, TUN) and returns h.Fault.
func (h *Headers) ParseIP(packet []byte) Fault {
	*h = Headers{}
	h.stopAt(0, len(packet))
	if len(packet) == 0 {
		return h.fail(FaultTruncatedIP)
	}
	switch packet[0] >> 4 {
	case 4:
		h.EtherType = EtherTypeIPv4
		return h.parse4(packet, 0, len(packet), whole)
	case 6:
		h.EtherType = EtherTypeIPv6
		return h.parse6(packet, 0, len(packet), whole)
	}
	return h.fail(FaultIPBadVersion)
}

// TooManyVLANs reports whether Parse stopped at a VLAN tag beyond MaxVLANs.
func (h *Headers) TooManyVLANs() bool {
	return h.EtherType == EtherTypeVLAN || h.EtherType == EtherTypeQinQ
}

// fail records f and returns it.
func (h *Headers) fail(f Fault) Fault {
	h.Fault = f
	return f
}

// stopAt sets all offsets to "nothing known beyond off".
func (h *Headers) stopAt(off, end int) {
	h.L3, h.L4, h.Payload, h.End = int32(off), int32(off), int32(off), int32(end)
}
