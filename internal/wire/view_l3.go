package wire

import "encoding/binary"

// Ethernet is a view of an Ethernet frame, at least EthernetLen bytes. It shares the frame's memory.
type Ethernet []byte

// Dst returns the destination address (shared memory, 6 bytes).
func (e Ethernet) Dst() []byte { return e[0:6:6] }

// Src returns the source address (shared memory, 6 bytes).
func (e Ethernet) Src() []byte { return e[6:12:12] }

// EtherType returns the outermost EtherType: a VLAN tag's where there is one.
func (e Ethernet) EtherType() uint16 { return binary.BigEndian.Uint16(e[12:]) }

// SetDst sets the destination address.
func (e Ethernet) SetDst(a [6]byte) { copy(e[0:6], a[:]) }

// SetSrc sets the source address.
func (e Ethernet) SetSrc(a [6]byte) { copy(e[6:12], a[:]) }

// SetEtherType sets the outermost EtherType.
func (e Ethernet) SetEtherType(t uint16) { binary.BigEndian.PutUint16(e[12:], t) }

// IPv4 is a view of an IPv4 packet (RFC 791), at least its header. Setters leave the checksum alone.
type IPv4 []byte

// HeaderLen returns the header length in bytes, options included.
func (p IPv4) HeaderLen() int { return int(p[0]&0x0f) * 4 }

// TOS returns the type of service byte: DSCP in the upper six bits, ECN in the lower two.
func (p IPv4) TOS() uint8 { return p[1] }

// TotalLen returns the length field: header and payload, in bytes.
func (p IPv4) TotalLen() int { return int(binary.BigEndian.Uint16(p[2:])) }

// ID returns the identification.
func (p IPv4) ID() uint16 { return binary.BigEndian.Uint16(p[4:]) }

// DontFragment returns the DF flag.
func (p IPv4) DontFragment() bool { return p[6]&0x40 != 0 }

// MoreFragments returns the MF flag.
func (p IPv4) MoreFragments() bool { return p[6]&0x20 != 0 }

// FragmentOffset returns the fragment offset in bytes.
func (p IPv4) FragmentOffset() int { return int(binary.BigEndian.Uint16(p[6:])&0x1fff) * 8 }

// TTL returns the time to live.
func (p IPv4) TTL() uint8 { return p[8] }

// Proto returns the protocol number.
func (p IPv4) Proto() uint8 { return p[9] }

// Checksum returns the header checksum.
func (p IPv4) Checksum() uint16 { return binary.BigEndian.Uint16(p[10:]) }

// Src returns the source address (shared memory, 4 bytes).
func (p IPv4) Src() []byte { return p[12:16:16] }

// Dst returns the destination address (shared memory, 4 bytes).
func (p IPv4) Dst() []byte { return p[16:20:20] }

// Options returns the options, padding included (shared memory).
func (p IPv4) Options() []byte { return p[IPv4Len:p.HeaderLen()] }

// SetTOS sets the type of service byte.
func (p IPv4) SetTOS(v uint8) { p[1] = v }

// SetTotalLen sets the length field.
func (p IPv4) SetTotalLen(n int) { binary.BigEndian.PutUint16(p[2:], uint16(n)) }

// SetID sets the identification.
func (p IPv4) SetID(v uint16) { binary.BigEndian.PutUint16(p[4:], v) }

// SetTTL sets the time to live.
func (p IPv4) SetTTL(v uint8) { p[8] = v }

// SetChecksum sets the header checksum.
func (p IPv4) SetChecksum(v uint16) { binary.BigEndian.PutUint16(p[10:], v) }

// SetSrc sets the source address.
func (p IPv4) SetSrc(a [4]byte) { copy(p[12:16], a[:]) }

// SetDst sets the destination address.
func (p IPv4) SetDst(a [4]byte) { copy(p[16:20], a[:]) }

// FillChecksum computes the header checksum and stores it.
func (p IPv4) FillChecksum() {
	p.SetChecksum(0)
	p.SetChecksum(Checksum(p[:p.HeaderLen()], 0))
}

// IPv6 is a view of an IPv6 packet (RFC 8200), at least its fixed header.
type IPv6 []byte

// TrafficClass returns DSCP (upper six bits) and ECN (lower two).
func (p IPv6) TrafficClass() uint8 { return p[0]<<4 | p[1]>>4 }

// FlowLabel returns the 20-bit flow label.
func (p IPv6) FlowLabel() uint32 { return binary.BigEndian.Uint32(p) & 0xfffff }

// PayloadLen returns the length field: what follows the fixed header, in bytes.
func (p IPv6) PayloadLen() int { return int(binary.BigEndian.Uint16(p[4:])) }

// NextHeader returns the type of what follows the fixed header.
func (p IPv6) NextHeader() uint8 { return p[6] }

// HopLimit returns the hop limit.
func (p IPv6) HopLimit() uint8 { return p[7] }

// Src returns the source address (shared memory, 16 bytes).
func (p IPv6) Src() []byte { return p[8:24:24] }

// Dst returns the destination address (shared memory, 16 bytes).
func (p IPv6) Dst() []byte { return p[24:40:40] }

// SetTrafficClass sets DSCP and ECN.
func (p IPv6) SetTrafficClass(v uint8) {
	p[0] = p[0]&0xf0 | v>>4
	p[1] = p[1]&0x0f | v<<4
}

// SetPayloadLen sets the length field.
func (p IPv6) SetPayloadLen(n int) { binary.BigEndian.PutUint16(p[4:], uint16(n)) }

// SetNextHeader sets the type of what follows the fixed header.
func (p IPv6) SetNextHeader(v uint8) { p[6] = v }

// SetHopLimit sets the hop limit.
func (p IPv6) SetHopLimit(v uint8) { p[7] = v }

// SetSrc sets the source address.
func (p IPv6) SetSrc(a [16]byte) { copy(p[8:24], a[:]) }

// SetDst sets the destination address.
func (p IPv6) SetDst(a [16]byte) { copy(p[24:40], a[:]) }
