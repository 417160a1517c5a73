package llm

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	maxDepth = 128 // of objects and arrays inside each other
	maxText  = 128 // bytes of a key or a string that are kept
)

// kind is what a value in JSON is.
type kind uint8

const (
	isString kind = iota
	isNumber
	isTrue
	isFalse
	isNull
	isObject // reported where it begins
	isArray
)

// values takes the values of the fields that a scanner looks for. text is a
// string's beginning, at most maxText bytes of it, without escapes, or a number
// as it stands; size is a string's length in the JSON. text is valid during the
// call.
type values interface {
	value(f field, k kind, text []byte, size int)
}

// scanner reads one JSON text (RFC 8259) that comes in pieces, and keeps none of
// it but the key or the value it is in. It knows where it is by a tree of the
// paths that matter. It is as strict as it must be to know that.
type scanner struct {
	tree  *tree
	to    values
	state scanState
	depth int
	stack [maxDepth]place
	node  uint8 // of the value that comes or is read
	key   bool  // the string is a key
	keep  bool  // the string or word is kept
	esc   uint8 // 0: no escape; 1: behind a backslash; 2 to 5: hex digits to come, and one more
	unit  rune  // of \u
	high  rune  // a high surrogate that awaits the low one
	size  int
	n     int
	text  [maxText]byte
}

// place is an object or an array that is open.
type place struct {
	node   uint8
	object bool
}

type scanState uint8

const (
	wantValue scanState = iota
	wantValueOrEnd
	wantKeyOrEnd
	wantKey
	wantColon
	wantNext // a comma, or the end of the object or array
	inString
	inWord // a number, true, false, null
	done
	failed
)

// begin makes ready for a new text.
func (s *scanner) begin(t *tree, to values) {
	s.tree, s.to = t, to
	s.state, s.depth, s.node, s.esc, s.n = wantValue, 0, 0, 0, 0
}

// feed reads p up to the end of the text, and returns what it has read of it. It
// stops at the first byte that is no JSON.
func (s *scanner) feed(p []byte) (n int) {
	for i := 0; i < len(p); {
		switch s.state {
		case inString:
			i += s.string(p[i:])
			continue
		case inWord:
			c := p[i]
			if wordChar[c] {
				s.add(c)
				s.size++
				i++
				continue
			}
			s.endWord() // c is read again, by the new state
			continue
		case done, failed:
			return i
		}
		c := p[i]
		i++
		if c == ' ' || c == '\t' || c == '\n' || c == '\r' {
			continue
		}
		s.step(c)
	}
	return len(p)
}

// end says that the text is over; it reports whether that was a whole one.
func (s *scanner) end() bool {
	if s.state == inWord && s.depth == 0 {
		s.endWord()
	}
	return s.state == done
}

// step takes a byte between strings and words that is no white space.
func (s *scanner) step(c byte) {
	switch s.state {
	case wantValueOrEnd:
		if c == ']' {
			s.pop()
			return
		}
		s.value(c)
	case wantValue:
		s.value(c)
	case wantKeyOrEnd, wantKey:
		switch {
		case c == '"':
			s.state, s.key, s.size, s.n = inString, true, 0, 0
			s.keep = s.tree.nodes[s.stack[s.depth-1].node].inner
		case c == '}' && s.state == wantKeyOrEnd:
			s.pop()
		default:
			s.state = failed
		}
	case wantColon:
		s.state = wantValue
		if c != ':' {
			s.state = failed
		}
	case wantNext:
		top := s.stack[s.depth-1]
		switch {
		case c == ',' && top.object:
			s.state = wantKey
		case c == ',':
			s.state, s.node = wantValue, s.tree.nodes[top.node].elem
		case c == '}' && top.object, c == ']' && !top.object:
			s.pop()
		default:
			s.state = failed
		}
	}
}

// value begins a value.
func (s *scanner) value(c byte) {
	f := s.tree.nodes[s.node].field
	switch {
	case c == '"':
		s.state, s.key, s.size, s.n, s.keep = inString, false, 0, 0, f != noField
	case c == '{' || c == '[':
		if s.depth == maxDepth {
			s.state = failed
			return
		}
		s.stack[s.depth] = place{s.node, c == '{'}
		s.depth++
		s.state = wantKeyOrEnd
		k := isObject
		if c == '[' {
			s.state, s.node, k = wantValueOrEnd, s.tree.nodes[s.node].elem, isArray
		}
		if f != noField {
			s.to.value(f, k, nil, 0)
		}
	case wordChar[c]:
		s.state, s.size, s.n, s.keep = inWord, 1, 0, true
		s.add(c)
	default:
		s.state = failed
	}
}

func (s *scanner) pop() {
	s.depth--
	s.after()
}

// after is what follows a value.
func (s *scanner) after() {
	s.state = wantNext
	if s.depth == 0 {
		s.state = done
	}
}

func (s *scanner) add(c byte) {
	if s.n < maxText {
		s.text[s.n] = c
		s.n++
	}
}

// string reads inside a string.
func (s *scanner) string(p []byte) (n int) {
	if s.esc > 0 {
		s.escape(p[0])
		return 1
	}
	n = plain(p)
	s.size += n
	if s.keep && n > 0 {
		s.high = 0
		s.n += copy(s.text[s.n:], p[:n])
	}
	if n == len(p) {
		return n
	}
	if p[n] == '\\' {
		s.esc = 1
		s.size++
		return n + 1
	}
	s.high = 0
	switch {
	case s.key:
		s.state, s.node = wantColon, 0
		if s.keep {
			s.node = s.tree.child(s.stack[s.depth-1].node, s.text[:s.n])
		} else {
			s.node = nowhere
		}
	default:
		s.after()
		if f := s.tree.nodes[s.node].field; f != noField {
			s.to.value(f, isString, s.text[:s.n], s.size)
		}
	}
	return n + 1
}

// escape takes a byte behind a backslash (RFC 8259 7).
func (s *scanner) escape(c byte) {
	s.size++
	if s.esc == 1 {
		s.esc = 0
		switch c {
		case '"', '\\', '/':
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			s.esc, s.unit = 5, 0
			return
		default:
			s.state = failed
			return
		}
		s.high = 0
		s.add(c)
		return
	}
	v := rune(0)
	switch {
	case c >= '0' && c <= '9':
		v = rune(c - '0')
	case c >= 'a' && c <= 'f':
		v = rune(c-'a') + 10
	case c >= 'A' && c <= 'F':
		v = rune(c-'A') + 10
	default:
		s.state = failed
		return
	}
	s.unit = s.unit<<4 | v
	s.esc--
	if s.esc > 1 {
		return
	}
	s.esc = 0
	r := s.unit
	if utf16.IsSurrogate(r) {
		pair := utf16.DecodeRune(s.high, r)
		s.high = r
		if pair == utf8.RuneError {
			return // the first of two, or a stray one
		}
		r = pair
	}
	s.high = 0
	if s.keep && s.n+utf8.UTFMax <= maxText {
		s.n += utf8.EncodeRune(s.text[s.n:], r)
	}
}

func (s *scanner) endWord() {
	w := s.text[:s.n]
	k := isNumber
	switch {
	case w[0] == '-' || w[0] >= '0' && w[0] <= '9':
	case string(w) == "true":
		k = isTrue
	case string(w) == "false":
		k = isFalse
	case string(w) == "null":
		k = isNull
	default:
		s.state = failed
		return
	}
	s.after()
	if f := s.tree.nodes[s.node].field; f != noField {
		s.to.value(f, k, w, s.size)
	}
}

// wordChar is true for the bytes of numbers and of true, false and null.
var wordChar = func() (t [256]bool) {
	for _, c := range []byte("0123456789+-.eEtrufalsn") {
		t[c] = true
	}
	return t
}()

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// either returns where a or b first stands in p, len(p) if nowhere, eight bytes
// at a time: looking for each on its own would be quadratic where the other is
// frequent.
func either(p []byte, a, b byte) (n int) {
	wa, wb := ones*uint64(a), ones*uint64(b)
	for ; n+8 <= len(p); n += 8 {
		v := binary.LittleEndian.Uint64(p[n:])
		x, y := v^wa, v^wb
		if m := ((x-ones)&^x | (y-ones)&^y) & highs; m != 0 {
			return n + bits.TrailingZeros64(m)/8
		}
	}
	for ; n < len(p); n++ {
		if p[n] == a || p[n] == b {
			return n
		}
	}
	return n
}

// plain returns how many bytes of a string come before its end or an escape.
func plain(p []byte) int { return either(p, '"', '\\') }
