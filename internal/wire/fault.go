package wire

// Fault says why a packet does not parse. The zero value is FaultNone: nothing is wrong.
// A packet with a fault belongs to no flow; the fault's name is the reason under which it is counted.
type Fault uint8

// The faults. Those named truncated_* mean that the bytes end before the header (or the packet) does, which is also
// what a capture cut by its snap length looks like. The others mean that a field contradicts another one.
const (
	FaultNone Fault = iota

	FaultTruncatedEthernet      // fewer than 14 bytes
	FaultTruncatedVLAN          // the frame ends inside a VLAN tag
	FaultTruncatedIP            // ParseIP on nothing at all
	FaultTruncatedIPv4          // the frame ends inside the IPv4 header or its options
	FaultTruncatedIPv4Packet    // total length says more than the frame holds
	FaultTruncatedIPv6          // fewer than 40 bytes
	FaultTruncatedIPv6Packet    // payload length says more than the frame holds
	FaultTruncatedIPv6Extension // the packet ends inside an extension header
	FaultTruncatedTCP           // the packet ends inside the first 20 bytes of TCP
	FaultTruncatedUDP           // the packet ends inside the UDP header
	FaultTruncatedICMP          // the packet ends inside the first 8 bytes of ICMP or ICMPv6

	FaultIPBadVersion          // ParseIP: the version is neither 4 nor 6
	FaultIPv4BadVersion        // the EtherType says IPv4, the version field does not
	FaultIPv4BadHeaderLength   // IHL below 5 (RFC 1122 3.2.1)
	FaultIPv4BadTotalLength    // total length below the header length; 0 is what BIG TCP and TSO captures show
	FaultIPv6BadVersion        // the EtherType says IPv6, the version field does not
	FaultIPv6Jumbogram         // payload length 0 with hop-by-hop options (RFC 2675), or with more than 65535 bytes (BIG TCP)
	FaultIPv6HopByHopNotFirst  // hop-by-hop options elsewhere than right after the fixed header (RFC 8200 4.1)
	FaultIPv6RoutingType0      // a type 0 routing header with segments left (RFC 5095)
	FaultIPv6RepeatedFragment  // more than one fragment header
	FaultIPv6TooManyExtensions // more than MaxExtensions extension headers

	FaultFragmentBadLength // empty, or not the last one and not a multiple of 8 bytes (RFC 791, RFC 8200 4.5)
	FaultFragmentTooLong   // it would end beyond 65535 bytes ("ping of death")
	FaultTinyFragment      // the transport header is split over fragments (RFC 1858, RFC 3128, RFC 7112)

	FaultTCPBadDataOffset // data offset below 5, or beyond the segment
	FaultUDPBadLength     // UDP length below 8, or beyond the packet

	// NumFaults is the number of faults, FaultNone included: the size of an array indexed by Fault.
	NumFaults = int(iota)
)

var faultNames = [NumFaults]string{
	FaultNone:                   "none",
	FaultTruncatedEthernet:      "truncated_ethernet",
	FaultTruncatedVLAN:          "truncated_vlan",
	FaultTruncatedIP:            "truncated_ip",
	FaultTruncatedIPv4:          "truncated_ipv4",
	FaultTruncatedIPv4Packet:    "truncated_ipv4_packet",
	FaultTruncatedIPv6:          "truncated_ipv6",
	FaultTruncatedIPv6Packet:    "truncated_ipv6_packet",
	FaultTruncatedIPv6Extension: "truncated_ipv6_extension",
	FaultTruncatedTCP:           "truncated_tcp",
	FaultTruncatedUDP:           "truncated_udp",
	FaultTruncatedICMP:          "truncated_icmp",
	FaultIPBadVersion:           "ip_bad_version",
	FaultIPv4BadVersion:         "ipv4_bad_version",
	FaultIPv4BadHeaderLength:    "ipv4_bad_header_length",
	FaultIPv4BadTotalLength:     "ipv4_bad_total_length",
	FaultIPv6BadVersion:         "ipv6_bad_version",
	FaultIPv6Jumbogram:          "ipv6_jumbogram",
	FaultIPv6HopByHopNotFirst:   "ipv6_hop_by_hop_not_first",
	FaultIPv6RoutingType0:       "ipv6_routing_type0",
	FaultIPv6RepeatedFragment:   "ipv6_repeated_fragment",
	FaultIPv6TooManyExtensions:  "ipv6_too_many_extensions",
	FaultFragmentBadLength:      "fragment_bad_length",
	FaultFragmentTooLong:        "fragment_too_long",
	FaultTinyFragment:           "tiny_fragment",
	FaultTCPBadDataOffset:       "tcp_bad_data_offset",
	FaultUDPBadLength:           "udp_bad_length",
}

// String returns the fault's lower_snake name, as metrics and drop reasons show it.
func (f Fault) String() string {
	if int(f) < NumFaults {
		return faultNames[f]
	}
	return "unknown_fault"
}
