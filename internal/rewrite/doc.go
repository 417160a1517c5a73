// Package rewrite changes the headers of packets by constants: addresses, ports, VLAN ids, TTL, and the sequence
// numbers, timestamps and windows of a spliced TCP connection. It is the translator of flows that no stage wants any
// more, in Go; the XDP program has its twin, and both follow the table in README.md to the letter.
//
// [Rule.Apply] does what XDP can do, and leaves a packet alone that XDP leaves to user space; [Rule.ApplySlow] goes on
// where Apply stopped (fragments, IP options, odd option lists); [Rule.ApplyQuoted] is for ICMP errors that quote a
// packet of the flow. All of them check everything first and then write: a packet either is changed as a whole or
// keeps every byte. Checksums are updated, not recomputed, so that a wrong one stays as wrong as it was.
//
// The trap: a rule is for one direction of one flow, and nothing here looks whether the packet belongs to it.
package rewrite
