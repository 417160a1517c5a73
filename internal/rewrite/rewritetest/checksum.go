package rewritetest

import "encoding/binary"

// sum adds b to initial in 16-bit words, an odd last byte as the upper half of one.
func sum(b []byte, initial uint64) uint64 {
	for ; len(b) >= 2; b = b[2:] {
		initial += uint64(b[0])<<8 | uint64(b[1])
	}
	if len(b) == 1 {
		initial += uint64(b[0]) << 8
	}
	return initial
}

// checksum returns the Internet checksum of b (RFC 1071), a pseudo-header's sum added: 0..0xfffe, since the sum of what
// is not all zeros is never 0.
func checksum(b []byte, initial uint64) uint16 {
	s := sum(b, initial)
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// pseudoHeader returns the sum of the pseudo-header of the IP packet.
func pseudoHeader(ip []byte, proto uint8, length int) uint64 {
	addresses := ip[12:20]
	if ip[0]>>4 == 6 {
		addresses = ip[8:40]
	}
	return sum(addresses, uint64(proto)+uint64(length))
}

// restore stores the checksum of out[from:to], for which the field lies at from+field. It is right by as much as that
// of the original was: computed anew, plus the stored one minus the right one of the original, modulo 0xffff. Where
// the right one is what it was, so is the stored one.
func restore(out, original []byte, from, to, field int, oldPseudo, newPseudo uint64) {
	right := func(packet []byte, pseudo uint64) uint64 {
		b := append([]byte(nil), packet[from:to]...)
		b[field], b[field+1] = 0, 0
		return uint64(checksum(b, pseudo))
	}
	at := from + field
	stored := uint64(binary.BigEndian.Uint16(original[at:]))
	was, is := right(original, oldPseudo), right(out, newPseudo)
	if was != is {
		stored = (is + stored + 0xffff - was) % 0xffff
	}
	binary.BigEndian.PutUint16(out[at:], uint16(stored))
}
