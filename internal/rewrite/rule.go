package rewrite

import (
	"encoding/binary"

	"penstock/internal/wire"
)

// Flags say which fields of a Rule count.
type Flags uint16

// The flags. A field whose flag is not set is ignored, whatever its value.
const (
	SetSrcMAC   Flags = 1 << iota // SrcMAC
	SetDstMAC                     // DstMAC
	SetVLAN                       // VLAN and VLANs
	SetSrc                        // Src
	SetDst                        // Dst
	SetSrcPort                    // SrcPort
	SetDstPort                    // DstPort
	AddSeq                        // Seq
	AddAck                        // Ack
	AddTS                         // TSVal and TSEcr
	ShiftWindow                   // WindowShift
	DecTTL                        // no field: TTL or hop limit less by one, as a router does
)

// What a rule needs to find in a packet.
const (
	linkFields    = SetSrcMAC | SetDstMAC | SetVLAN
	addressFields = SetSrc | SetDst
	portFields    = SetSrcPort | SetDstPort
	tcpFields     = AddSeq | AddAck | AddTS | ShiftWindow
	optionFields  = AddAck | AddTS // those that ask for a walk over the TCP options

	transportFields = addressFields | portFields | tcpFields
	ipFields        = transportFields | DecTTL
)

// Rule says how the packets of one direction of a flow are changed, by constants only. It has no pointers, and many
// goroutines may use one rule at a time. The zero Rule changes nothing.
type Rule struct {
	Flags Flags

	SrcMAC, DstMAC [6]byte

	// VLAN holds the ids for the tags that are there, outermost first (12 bits; priority and DEI are kept). VLANs is
	// how many tags a packet must have; tags are neither added nor removed.
	VLAN  [wire.MaxVLANs]uint16
	VLANs uint8

	// Src and Dst are addresses of the packet's own family, IPv4 as v4-mapped (::ffff:a.b.c.d).
	Src, Dst         [16]byte
	SrcPort, DstPort uint16

	// Seq is added to the sequence number; Ack to the acknowledgment number and the edges of SACK blocks; TSVal and
	// TSEcr to the two halves of the timestamps option; all modulo 2^32. Ack and TSEcr count in segments with the ACK
	// flag only, TSEcr only where the segment's TSecr is not 0.
	Seq, Ack, TSVal, TSEcr uint32

	// WindowShift shifts the window to the left, or to the right if negative (-14..14; what lies beyond 16 counts as
	// 16). What overflows becomes 65535; a window that was not 0 becomes at least 1.
	WindowShift int8
}

// Inverse returns the rule that undoes r on packets which were those of flow f before r changed them. What r destroys
// is not in it: MAC addresses, TTL, and the VLAN ids where f has none. Nor does it bring back what the arithmetic loses:
// a window that was clamped or rounded, a TSecr that the addition turned into 0.
func (r *Rule) Inverse(f *wire.Flow) Rule {
	return Rule{
		Flags:       r.Flags &^ (SetSrcMAC | SetDstMAC | DecTTL),
		VLAN:        f.VLAN,
		VLANs:       r.VLANs,
		Src:         f.Src,
		Dst:         f.Dst,
		SrcPort:     f.SrcPort,
		DstPort:     f.DstPort,
		Seq:         -r.Seq,
		Ack:         -r.Ack,
		TSVal:       -r.TSVal,
		TSEcr:       -r.TSEcr,
		WindowShift: -r.WindowShift,
	}
}

// isV4 reports whether an address is v4-mapped.
func isV4(a *[16]byte) bool {
	return binary.BigEndian.Uint64(a[:]) == 0 && binary.BigEndian.Uint32(a[8:]) == 0xffff
}

// fits reports whether the addresses of r that count are of the given family.
func (r *Rule) fits(version uint8) bool {
	v4 := version == 4
	return (r.Flags&SetSrc == 0 || isV4(&r.Src) == v4) && (r.Flags&SetDst == 0 || isV4(&r.Dst) == v4)
}
