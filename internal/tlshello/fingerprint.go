package tlshello

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
)

// JA4Size is the length of a JA4, in characters.
const JA4Size = 36

// ja4Hash is the length of a hash in a JA4.
const ja4Hash = 12

// ja4Nothing stands for the hash of an empty list.
const ja4Nothing = "000000000000"

// AppendJA4 appends the JA4 of a client that speaks TLS over TCP: what is
// offered, sorted and hashed, GREASE aside (FoxIO, "JA4: TLS Client
// Fingerprinting").
func (h *ClientHello) AppendJA4(dst []byte) []byte {
	dst = append(dst, 't')
	dst = append(dst, ja4Version(h.MaxVersion)...)
	if slices.Contains(h.extensions, extServerName) {
		dst = append(dst, 'd')
	} else {
		dst = append(dst, 'i')
	}
	h.sorted = h.sorted[:0]
	for v := range pairs(h.ciphers) {
		h.sorted = append(h.sorted, v)
	}
	dst = appendCount(dst, len(h.sorted))
	n := 0
	for _, v := range h.extensions {
		if !grease(v) {
			n++
		}
	}
	dst = appendCount(dst, n)
	dst = appendALPN(dst, h.alpn)

	dst = append(dst, '_')
	slices.Sort(h.sorted)
	h.text = appendHex(h.text[:0], h.sorted)
	dst = appendHash(dst, h.text)

	dst = append(dst, '_')
	h.sorted = h.sorted[:0]
	for _, v := range h.extensions {
		if !grease(v) && v != extServerName && v != extALPN {
			h.sorted = append(h.sorted, v)
		}
	}
	slices.Sort(h.sorted)
	h.text = appendHex(h.text[:0], h.sorted)
	if len(h.text) == 0 {
		return append(dst, ja4Nothing...)
	}
	h.sorted = h.sorted[:0]
	for v := range pairs(h.signatures) {
		h.sorted = append(h.sorted, v)
	}
	if len(h.sorted) > 0 {
		h.text = append(h.text, '_')
		h.text = appendHex(h.text, h.sorted)
	}
	return appendHash(dst, h.text)
}

func ja4Version(v uint16) string {
	switch v {
	case VersionTLS13:
		return "13"
	case VersionTLS12:
		return "12"
	case VersionTLS11:
		return "11"
	case VersionTLS10:
		return "10"
	case VersionSSL30:
		return "s3"
	case 0x0002:
		return "s2"
	}
	return "00"
}

// pairs goes over a list of 16-bit numbers, without GREASE.
func pairs(b []byte) func(yield func(uint16) bool) {
	return func(yield func(uint16) bool) {
		for ; len(b) > 1; b = b[2:] {
			if v := uint16(b[0])<<8 | uint16(b[1]); !grease(v) && !yield(v) {
				return
			}
		}
	}
}

func appendCount(dst []byte, n int) []byte {
	n = min(n, 99)
	return append(dst, '0'+byte(n/10), '0'+byte(n%10))
}

// appendALPN appends the first and the last character of the first name, or of
// its hexadecimal form if either is no letter or digit.
func appendALPN(dst, list []byte) []byte {
	for name := range protocols(list) {
		first, last := name[0], name[len(name)-1]
		if !alphanumeric(first) || !alphanumeric(last) {
			first, last = digits[first>>4], digits[last&15]
		}
		return append(dst, first, last)
	}
	return append(dst, "00"...)
}

func alphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

const digits = "0123456789abcdef"

func appendHex(dst []byte, list []uint16) []byte {
	for i, v := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, digits[v>>12], digits[v>>8&15], digits[v>>4&15], digits[v&15])
	}
	return dst
}

func appendHash(dst, text []byte) []byte {
	if len(text) == 0 {
		return append(dst, ja4Nothing...)
	}
	sum := sha256.Sum256(text)
	return hex.AppendEncode(dst, sum[:ja4Hash/2])
}

// AppendJA3 appends the JA3 string of a client: version, ciphers, extensions,
// groups and point formats in its own order, as decimals, GREASE aside. The
// fingerprint is the MD5 of it (AppendMD5).
func (h *ClientHello) AppendJA3(dst []byte) []byte {
	dst = strconv.AppendUint(dst, uint64(h.Version), 10)
	dst = appendDecimals(append(dst, ','), h.ciphers)
	dst = append(dst, ',')
	first := true
	for _, v := range h.extensions {
		if grease(v) {
			continue
		}
		if !first {
			dst = append(dst, '-')
		}
		first = false
		dst = strconv.AppendUint(dst, uint64(v), 10)
	}
	dst = appendDecimals(append(dst, ','), h.groups)
	dst = append(dst, ',')
	for i, v := range h.pointFormats {
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = strconv.AppendUint(dst, uint64(v), 10)
	}
	return dst
}

func appendDecimals(dst, list []byte) []byte {
	first := true
	for v := range pairs(list) {
		if !first {
			dst = append(dst, '-')
		}
		first = false
		dst = strconv.AppendUint(dst, uint64(v), 10)
	}
	return dst
}

// AppendJA3S appends the JA3S string of a server: version, cipher, extensions.
func (h *ServerHello) AppendJA3S(dst []byte) []byte {
	dst = strconv.AppendUint(dst, uint64(h.Version), 10)
	dst = strconv.AppendUint(append(dst, ','), uint64(h.Cipher), 10)
	dst = append(dst, ',')
	for i, v := range h.extensions {
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = strconv.AppendUint(dst, uint64(v), 10)
	}
	return dst
}

// AppendMD5 appends the MD5 of a JA3 or JA3S string in hexadecimal.
func AppendMD5(dst, text []byte) []byte {
	sum := md5.Sum(text)
	return hex.AppendEncode(dst, sum[:])
}

// VersionName returns the name of a version as Suricata writes it.
func VersionName(v uint16) string {
	switch v {
	case VersionTLS13:
		return "TLS 1.3"
	case VersionTLS12:
		return "TLS 1.2"
	case VersionTLS11:
		return "TLS 1.1"
	case VersionTLS10:
		return "TLSv1"
	case VersionSSL30:
		return "SSLv3"
	}
	return Hex(v)
}

// Hex returns v as IANA's registries write numbers: "0x1301".
func Hex(v uint16) string { return string(AppendHexNumber(nil, v)) }

// AppendHexNumber appends Hex of v.
func AppendHexNumber(dst []byte, v uint16) []byte {
	return append(dst, '0', 'x', digits[v>>12], digits[v>>8&15], digits[v>>4&15], digits[v&15])
}
