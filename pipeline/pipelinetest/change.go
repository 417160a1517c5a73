package pipelinetest

import (
	"encoding/binary"
	"fmt"

	"penstock/internal/wire"
)

// Tagged returns the frame with VLAN tags put in front of those it has, as
// VLAN does.
func Tagged(b []byte, tags ...uint16) []byte {
	f := frame{dstMAC: [6]byte(b[0:6]), srcMAC: [6]byte(b[6:12]), vlans: tags}
	return append(f.link(nil, binary.BigEndian.Uint16(b[12:])), b[14:]...)
}

// Fragments cuts the IP packet in the frame into fragments with at most size
// bytes of payload, a multiple of 8. All IPv6 extension headers go into the
// fragmentable part.
func Fragments(b []byte, size int) [][]byte {
	if size <= 0 || size%8 != 0 {
		panic(fmt.Sprintf("pipelinetest: fragments of %d bytes, want a multiple of 8", size))
	}
	var h wire.Headers
	h.Parse(b)
	switch h.IPVersion {
	case 4:
		return fragments4(b[:h.L3], b[h.L3:h.End], size)
	case 6:
		return fragments6(b[:h.L3], b[h.L3:h.End], size)
	}
	panic("pipelinetest: fragments of a packet that is not IP")
}

func fragments4(link, ip []byte, size int) (list [][]byte) {
	headerLen := int(ip[0]&15) * 4
	payload := ip[headerLen:]
	for at := 0; at < len(payload) || at == 0; at += size {
		part := payload[at:min(at+size, len(payload))]
		header := append([]byte(nil), ip[:headerLen]...)
		field := uint16(at / 8)
		if at+size < len(payload) {
			field |= 0x2000
		}
		binary.BigEndian.PutUint16(header[2:], uint16(headerLen+len(part)))
		binary.BigEndian.PutUint16(header[6:], field)
		header[10], header[11] = 0, 0
		binary.BigEndian.PutUint16(header[10:], checksum(header))
		list = append(list, join(link, header, part))
	}
	return list
}

func fragments6(link, ip []byte, size int) (list [][]byte) {
	payload := ip[40:]
	for at := 0; at < len(payload) || at == 0; at += size {
		part := payload[at:min(at+size, len(payload))]
		header := append([]byte(nil), ip[:40]...)
		next := header[6]
		header[6] = wire.ProtoFragment
		binary.BigEndian.PutUint16(header[4:], uint16(8+len(part)))
		field := uint16(at)
		if at+size < len(payload) {
			field |= 1
		}
		fragment := []byte{next, 0, byte(field >> 8), byte(field), 0xf0, 0x0d, 0xca, 0xfe}
		list = append(list, join(link, header, fragment, part))
	}
	return list
}

// checksum is RFC 1071's, spelled out.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func join(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}
