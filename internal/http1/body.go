package http1

import "math"

// Body walks over a message body without keeping it.
type Body struct {
	framing Framing
	left    uint64 // sized: bytes to come; chunked: bytes of this chunk to come
	state   chunkState
	digits  int
	line    int // bytes of this chunk-size or trailer line so far
}

type chunkState uint8

const (
	chunkSize      chunkState = iota // in the digits
	chunkExt                         // after them, up to CR
	chunkSizeLF                      // the LF of the size line
	chunkData                        //
	chunkDataCR                      // the line end behind the data
	chunkDataLF                      //
	trailerStart                     // at the start of a trailer line
	trailerLine                      // inside one
	trailerLineLF                    //
	trailerFinalLF                   // the LF of the empty line
)

// maxChunkLine bounds chunk extensions and trailer lines: padding there is a
// way to make a proxy work for nothing (CVE-2023-39326).
const maxChunkLine = 4096

// Begin makes b the body behind a head.
func (b *Body) Begin(h *Head) {
	*b = Body{framing: h.Framing}
	if h.Framing == Sized {
		b.left = h.Length
	}
}

// Framing returns how the body ends.
func (b *Body) Framing() Framing { return b.framing }

// Skip walks over p and returns how many of its bytes belong to the body, and
// whether the body is complete then. It reports false for malformed chunks.
func (b *Body) Skip(p []byte) (n int, done, ok bool) {
	for {
		var k int
		_, k, done, ok = b.Next(p[n:])
		n += k
		if done || !ok || n == len(p) {
			return n, done, ok
		}
	}
}

// Next is Skip up to the end of the first run of content, which it returns as a
// part of p: what stands between chunks is not content. n may be 0 only if p is
// empty or the body is complete.
func (b *Body) Next(p []byte) (content []byte, n int, done, ok bool) {
	switch b.framing {
	case NoBody:
		return nil, 0, true, true
	case UntilClose:
		return p, len(p), false, true
	case Sized:
		n = len(p)
		if uint64(n) > b.left {
			n = int(b.left)
		}
		b.left -= uint64(n)
		return p[:n], n, b.left == 0, true
	}
	for n < len(p) {
		if b.state == chunkData {
			k := len(p) - n
			if uint64(k) > b.left {
				k = int(b.left)
			}
			content = p[n : n+k]
			n += k
			b.left -= uint64(k)
			if b.left == 0 {
				b.state = chunkDataCR
			}
			return content, n, false, true
		}
		c := p[n]
		n++
		if done, ok = b.step(c); done || !ok {
			return nil, n, done, ok
		}
	}
	return nil, n, false, true
}

// step takes one byte that is not chunk data (RFC 9112 7.1).
func (b *Body) step(c byte) (done, ok bool) {
	b.line++
	if b.line > maxChunkLine {
		return false, false
	}
	switch b.state {
	case chunkSize:
		v := HexValue(c)
		switch {
		case v >= 0:
			if b.left > math.MaxUint64>>5 || b.digits > 16 {
				return false, false
			}
			b.left = b.left<<4 | uint64(v)
			b.digits++
			return false, true
		case b.digits == 0:
			return false, false
		case c == '\r':
			b.state = chunkSizeLF
			return false, true
		case c == ';' || c == ' ' || c == '\t':
			b.state = chunkExt
			return false, true
		}
		return false, false
	case chunkExt:
		if c == '\r' {
			b.state = chunkSizeLF
		}
		return false, c != '\n'
	case chunkSizeLF:
		b.line, b.digits = 0, 0
		b.state = chunkData
		if b.left == 0 {
			b.state = trailerStart
		}
		return false, c == '\n'
	case chunkDataCR:
		b.state = chunkDataLF
		return false, c == '\r'
	case chunkDataLF:
		b.state, b.line = chunkSize, 0
		return false, c == '\n'
	case trailerStart:
		b.state = trailerLine
		if c == '\r' {
			b.state = trailerFinalLF
		}
		return false, c != '\n'
	case trailerLine:
		if c == '\r' {
			b.state = trailerLineLF
		}
		return false, c != '\n'
	case trailerLineLF:
		b.state = trailerStart
		return false, c == '\n'
	}
	return c == '\n', c == '\n' // trailerFinalLF
}

// HexValue returns the value of a hexadecimal digit, or -1.
func HexValue(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
