package wire

import (
	"encoding/binary"
	"math/bits"
)

// Sum adds b, as big-endian 16-bit words, to initial in ones' complement and returns the sum folded to 16 bits
// (RFC 1071). An odd last byte counts as if a zero byte followed, so only the last part of a chain may be odd:
// Sum(b, Sum(a, 0)) is the sum of a and b if len(a) is even.
func Sum(b []byte, initial uint32) uint32 {
	// Ones' complement addition does not care about byte order, nor about how wide the words are: sum 64-bit
	// little-endian words with end-around carry, fold, and swap the bytes at the end. (A second chain of additions
	// beside this one, or more unrolling, measured no better: an add-with-carry a cycle is the limit.)
	var sum, carry uint64
	for len(b) >= 64 {
		p := (*[64]byte)(b)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[0:]), 0)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[8:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[16:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[24:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[32:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[40:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[48:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[56:]), carry)
		sum += carry // cannot overflow: a sum that carried is at most 2^64-2
		b = b[64:]
	}
	if len(b) >= 32 {
		p := (*[32]byte)(b)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[0:]), 0)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[8:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[16:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[24:]), carry)
		sum += carry
		b = b[32:]
	}
	if len(b) >= 16 {
		p := (*[16]byte)(b)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[0:]), 0)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(p[8:]), carry)
		sum += carry
		b = b[16:]
	}
	if len(b) >= 8 {
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b), 0)
		sum += carry
		b = b[8:]
	}
	var tail uint64 // of the last 0..7 bytes: too short to overflow
	if len(b) >= 4 {
		tail = uint64(binary.LittleEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		tail += uint64(binary.LittleEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		tail += uint64(b[0])
	}
	sum, carry = bits.Add64(sum, tail, 0)
	sum += carry
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	s := uint32(bits.ReverseBytes16(fold(uint32(sum))))
	return uint32(fold(s + uint32(fold(initial))))
}

// fold reduces a 32-bit ones' complement sum to 16 bits.
func fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// Checksum returns the Internet checksum of b with initial (a pseudo-header's sum) added: the value to store in a
// header whose checksum field is zero in b. Over bytes that hold their right checksum already it is 0.
func Checksum(b []byte, initial uint32) uint16 { return ^uint16(Sum(b, initial)) }

// PseudoHeader returns the sum of the pseudo-header that TCP, UDP and ICMPv6 put before their bytes (RFC 9293 3.1,
// RFC 8200 8.1). src and dst have 4 or 16 bytes; length is that of the transport header and payload.
func PseudoHeader(src, dst []byte, proto uint8, length int) uint32 {
	s := Sum(dst, Sum(src, 0))
	return s + uint32(proto) + uint32(length)>>16 + uint32(length)&0xffff
}

// UpdateChecksum16 returns the checksum after a 16-bit word at an even offset changed from old to new (RFC 1624,
// eqn. 3). It is exact for a checksum that was right; a wrong one stays wrong by as much. For a UDP checksum: do not
// update one that is 0 (none), and store 0xffff where 0 comes out (UDPChecksum).
func UpdateChecksum16(sum, old, new uint16) uint16 {
	return ^fold(uint32(^sum) + uint32(^old) + uint32(new))
}

// UpdateChecksum32 is UpdateChecksum16 for a 32-bit word at an even offset.
func UpdateChecksum32(sum uint16, old, new uint32) uint16 {
	return ^fold(uint32(^sum) + (^old)>>16 + (^old)&0xffff + new>>16 + new&0xffff)
}

// UpdateChecksum16Odd is UpdateChecksum16 for a word at an odd offset, as in TCP options: its bytes fall into the
// other halves of the words that are summed.
func UpdateChecksum16Odd(sum, old, new uint16) uint16 {
	return UpdateChecksum16(sum, bits.ReverseBytes16(old), bits.ReverseBytes16(new))
}

// UpdateChecksum32Odd is UpdateChecksum32 for a word at an odd offset.
func UpdateChecksum32Odd(sum uint16, old, new uint32) uint16 {
	return bits.ReverseBytes16(UpdateChecksum32(bits.ReverseBytes16(sum), old, new))
}

// UDPChecksum returns the sum as UDP sends it: 0xffff for 0, because 0 means that there is none (RFC 768).
func UDPChecksum(sum uint16) uint16 {
	if sum == 0 {
		return 0xffff
	}
	return sum
}
