package tlshello

import "encoding/binary"

// vec8 and vec16 put the length in front of b.
func vec8(b ...byte) []byte { return append([]byte{byte(len(b))}, b...) }

func vec16(b ...byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }

func u16s(list ...uint16) (b []byte) {
	for _, v := range list {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

func cat(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func ext(typ uint16, body ...byte) []byte { return cat(u16s(typ), vec16(body...)) }

func sni(name string) []byte {
	return ext(extServerName, vec16(cat([]byte{0}, vec16([]byte(name)...))...)...)
}

func alpn(names ...string) []byte {
	var list []byte
	for _, n := range names {
		list = append(list, vec8([]byte(n)...)...)
	}
	return ext(extALPN, vec16(list...)...)
}

// clientHello returns the body of a ClientHello; without extensions there is no
// list of them.
func clientHello(ciphers []uint16, extensions ...[]byte) []byte {
	b := cat(u16s(VersionTLS12), make([]byte, 32), vec8(), vec16(u16s(ciphers...)...), vec8(0))
	if list := cat(extensions...); list != nil {
		b = append(b, vec16(list...)...)
	}
	return b
}

func serverHello(version, cipher uint16, random []byte, extensions ...[]byte) []byte {
	b := cat(u16s(version), random, vec8(), u16s(cipher), []byte{0})
	if list := cat(extensions...); list != nil {
		b = append(b, vec16(list...)...)
	}
	return b
}

// message puts the handshake header in front of a body.
func message(typ byte, body []byte) []byte {
	n := len(body)
	return append([]byte{typ, byte(n >> 16), byte(n >> 8), byte(n)}, body...)
}

// records puts b into records of a type, each with size bytes of it.
func records(typ byte, b []byte, size int) (out []byte) {
	for len(b) > 0 {
		n := min(size, len(b))
		out = cat(out, []byte{typ, 3, 1}, vec16(b[:n]...))
		b = b[n:]
	}
	return out
}

func record(typ byte, b ...byte) []byte { return cat([]byte{typ, 3, 3}, vec16(b...)) }
