// Package wire finds and reads the headers of one packet: Ethernet with up to two VLAN tags, IPv4, IPv6 with its
// extension headers, TCP, UDP, ICMP and ICMPv6. It also computes, verifies and updates Internet checksums and says
// which flow a packet belongs to. Nothing here allocates, except the functions that return strings.
//
// [Headers.Parse] checks every length field against the bytes that are really there, once. Offsets it returns may
// be used to slice the frame without further checks; the views ([IPv4], [TCP], ...) rely on that.
//
// The trap: the views check nothing. IPv4(frame[14:]).TTL() on bytes that Parse has not accepted can panic. Parse
// first, and slice only at the offsets it gave.
package wire
