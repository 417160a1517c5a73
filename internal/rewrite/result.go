package rewrite

// Result says what became of a packet. Everything but Done means that it was left as it came, and why; where several
// reasons hold it is the first one in the order below, in which Apply and ApplySlow check.
type Result uint8

// The results.
const (
	Done Result = iota // changed as the rule says

	SlowMalformed      // the packet does not parse (Headers.Fault)
	SlowNoEthernet     // the rule sets MACs or VLAN ids, the packet has no Ethernet header
	SlowVLANCount      // the rule sets VLAN ids, the packet has another number of tags
	SlowNotIP          // the rule needs IP, the packet has none
	SlowTTL            // the TTL or hop limit would become 0
	SlowFamily         // the rule's address and the packet are not both IPv4 or both IPv6
	SlowFragment       // a fragment, the first one included
	SlowIPOptions      // IPv4 options or IPv6 extension headers before the transport header
	SlowNoTransport    // a transport protocol whose checksum and ports are not known here
	SlowNotTCP         // the rule has TCP fields, the packet is something else
	SlowNoPorts        // the rule sets ports, the packet is ICMP
	SlowICMP           // the rule sets addresses, the packet is ICMP other than an echo: it may quote addresses
	SlowSYN            // the rule has TCP fields, the packet is a SYN: it begins another connection
	SlowOddOptions     // an option list that is malformed, or has timestamps or SACK twice or of a wrong length
	SlowTooManyOptions // more than MaxOptions steps in the option list
	SlowNoQuote        // ApplyQuoted only: not an ICMP error, or what it quotes names no flow

	// NumResults is the size of an array indexed by Result.
	NumResults = int(iota)
)

var resultNames = [NumResults]string{
	Done:               "done",
	SlowMalformed:      "malformed",
	SlowNoEthernet:     "no_ethernet",
	SlowVLANCount:      "vlan_count",
	SlowNotIP:          "not_ip",
	SlowTTL:            "ttl",
	SlowFamily:         "family",
	SlowFragment:       "fragment",
	SlowIPOptions:      "ip_options",
	SlowNoTransport:    "no_transport",
	SlowNotTCP:         "not_tcp",
	SlowNoPorts:        "no_ports",
	SlowICMP:           "icmp",
	SlowSYN:            "syn",
	SlowOddOptions:     "odd_options",
	SlowTooManyOptions: "too_many_options",
	SlowNoQuote:        "no_quote",
}

// String returns the result's lower_snake name, as metrics show it.
func (r Result) String() string {
	if int(r) < NumResults {
		return resultNames[r]
	}
	return "unknown_result"
}
