package wire

import "encoding/binary"

// TCPFlags are the flag bits of a TCP header: the lower nine bits of its 13th and 14th byte.
type TCPFlags uint16

// The TCP flags (RFC 9293, RFC 3168; AE is RFC 9768's, the former NS).
const (
	FlagFIN TCPFlags = 1 << iota
	FlagSYN
	FlagRST
	FlagPSH
	FlagACK
	FlagURG
	FlagECE
	FlagCWR
	FlagAE
)

// Has reports whether all of the given flags are set.
func (f TCPFlags) Has(flags TCPFlags) bool { return f&flags == flags }

// TCP is a view of a TCP segment (RFC 9293), at least its header. Setters leave the checksum alone.
type TCP []byte

// SrcPort returns the source port.
func (t TCP) SrcPort() uint16 { return binary.BigEndian.Uint16(t) }

// DstPort returns the destination port.
func (t TCP) DstPort() uint16 { return binary.BigEndian.Uint16(t[2:]) }

// Seq returns the sequence number.
func (t TCP) Seq() uint32 { return binary.BigEndian.Uint32(t[4:]) }

// Ack returns the acknowledgment number, whether the ACK flag is set or not.
func (t TCP) Ack() uint32 { return binary.BigEndian.Uint32(t[8:]) }

// DataOffset returns the header length in bytes, options included.
func (t TCP) DataOffset() int { return int(t[12]>>4) * 4 }

// Flags returns the flags.
func (t TCP) Flags() TCPFlags { return TCPFlags(binary.BigEndian.Uint16(t[12:]) & 0x1ff) }

// Window returns the window field, not scaled.
func (t TCP) Window() uint16 { return binary.BigEndian.Uint16(t[14:]) }

// Checksum returns the checksum.
func (t TCP) Checksum() uint16 { return binary.BigEndian.Uint16(t[16:]) }

// Urgent returns the urgent pointer.
func (t TCP) Urgent() uint16 { return binary.BigEndian.Uint16(t[18:]) }

// Options returns the options, padding included (shared memory).
func (t TCP) Options() []byte { return t[TCPLen:t.DataOffset()] }

// Payload returns what follows the header (shared memory).
func (t TCP) Payload() []byte { return t[t.DataOffset():] }

// SetSrcPort sets the source port.
func (t TCP) SetSrcPort(v uint16) { binary.BigEndian.PutUint16(t, v) }

// SetDstPort sets the destination port.
func (t TCP) SetDstPort(v uint16) { binary.BigEndian.PutUint16(t[2:], v) }

// SetSeq sets the sequence number.
func (t TCP) SetSeq(v uint32) { binary.BigEndian.PutUint32(t[4:], v) }

// SetAck sets the acknowledgment number.
func (t TCP) SetAck(v uint32) { binary.BigEndian.PutUint32(t[8:], v) }

// SetDataOffset sets the header length in bytes, a multiple of 4.
func (t TCP) SetDataOffset(n int) { t[12] = t[12]&0x0f | uint8(n/4)<<4 }

// SetFlags sets all flags.
func (t TCP) SetFlags(f TCPFlags) {
	t[12] = t[12]&0xfe | uint8(f>>8)&1
	t[13] = uint8(f)
}

// SetWindow sets the window field.
func (t TCP) SetWindow(v uint16) { binary.BigEndian.PutUint16(t[14:], v) }

// SetChecksum sets the checksum.
func (t TCP) SetChecksum(v uint16) { binary.BigEndian.PutUint16(t[16:], v) }

// SetUrgent sets the urgent pointer.
func (t TCP) SetUrgent(v uint16) { binary.BigEndian.PutUint16(t[18:], v) }

// UDP is a view of a UDP datagram (RFC 768), at least its header. Setters leave the checksum alone.
type UDP []byte

// SrcPort returns the source port.
func (u UDP) SrcPort() uint16 { return binary.BigEndian.Uint16(u) }

// DstPort returns the destination port.
func (u UDP) DstPort() uint16 { return binary.BigEndian.Uint16(u[2:]) }

// Len returns the length field: header and payload, in bytes.
func (u UDP) Len() int { return int(binary.BigEndian.Uint16(u[4:])) }

// Checksum returns the checksum; 0 means none was computed.
func (u UDP) Checksum() uint16 { return binary.BigEndian.Uint16(u[6:]) }

// SetSrcPort sets the source port.
func (u UDP) SetSrcPort(v uint16) { binary.BigEndian.PutUint16(u, v) }

// SetDstPort sets the destination port.
func (u UDP) SetDstPort(v uint16) { binary.BigEndian.PutUint16(u[2:], v) }

// SetLen sets the length field.
func (u UDP) SetLen(n int) { binary.BigEndian.PutUint16(u[4:], uint16(n)) }

// SetChecksum sets the checksum. A computed sum of 0 is sent as 0xffff; see UDPChecksum.
func (u UDP) SetChecksum(v uint16) { binary.BigEndian.PutUint16(u[6:], v) }

// ICMP types that name a flow or quote a packet (RFC 792, RFC 4443).
const (
	ICMPEchoReply       = 0
	ICMPUnreachable     = 3
	ICMPSourceQuench    = 4
	ICMPRedirect        = 5
	ICMPEchoRequest     = 8
	ICMPTimeExceeded    = 11
	ICMPParamProblem    = 12
	ICMPv6Unreachable   = 1
	ICMPv6PacketTooBig  = 2
	ICMPv6TimeExceeded  = 3
	ICMPv6ParamProblem  = 4
	ICMPv6EchoRequest   = 128
	ICMPv6EchoReply     = 129
	ICMPCodeFragNeeded  = 4 // of ICMPUnreachable: the MTU is in the header
	ICMPCodePortUnreach = 3 // of ICMPUnreachable
)

// ICMP is a view of an ICMP or ICMPv6 message, at least its first ICMPLen bytes.
type ICMP []byte

// Type returns the type.
func (m ICMP) Type() uint8 { return m[0] }

// Code returns the code.
func (m ICMP) Code() uint8 { return m[1] }

// Checksum returns the checksum.
func (m ICMP) Checksum() uint16 { return binary.BigEndian.Uint16(m[2:]) }

// ID returns the identifier of an echo request or reply.
func (m ICMP) ID() uint16 { return binary.BigEndian.Uint16(m[4:]) }

// Seq returns the sequence number of an echo request or reply.
func (m ICMP) Seq() uint16 { return binary.BigEndian.Uint16(m[6:]) }

// MTU returns the next-hop MTU of an ICMP "fragmentation needed" (RFC 1191).
func (m ICMP) MTU() uint16 { return binary.BigEndian.Uint16(m[6:]) }

// MTU6 returns the MTU of an ICMPv6 "packet too big".
func (m ICMP) MTU6() uint32 { return binary.BigEndian.Uint32(m[4:]) }

// SetChecksum sets the checksum.
func (m ICMP) SetChecksum(v uint16) { binary.BigEndian.PutUint16(m[2:], v) }

// QuotesIPv4 reports whether m, as an ICMP message, is an error that quotes the packet it is about.
func (m ICMP) QuotesIPv4() bool {
	switch m[0] {
	case ICMPUnreachable, ICMPSourceQuench, ICMPRedirect, ICMPTimeExceeded, ICMPParamProblem:
		return true
	}
	return false
}

// QuotesIPv6 reports whether m, as an ICMPv6 message, is an error (RFC 4443: types below 128); they all quote.
func (m ICMP) QuotesIPv6() bool { return m[0] >= ICMPv6Unreachable && m[0] <= ICMPv6ParamProblem }
