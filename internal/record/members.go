package record

import (
	"encoding/binary"
	"encoding/json"
	"math/bits"
	"net/netip"
	"strconv"
)

// Appender are the fields of an event that come so often that they write
// themselves.
type Appender interface {
	// AppendMembers writes what encoding/json would make of the fields, but for
	// keys "timestamp" and "event_type", of which there are none.
	AppendMembers(m *Members)
}

// Timed are fields that know when the event was.
type Timed interface {
	// At returns that time by the clock of the Lane, in ns.
	At() int64
}

// Members writes the members of a JSON object, one after the other.
type Members []byte

func (m *Members) key(name string) {
	b := *m
	if len(b) > 0 && b[len(b)-1] != '{' {
		b = append(b, ',', '"')
	} else {
		b = append(b, '"')
	}
	b = append(b, name...)
	*m = append(b, '"', ':')
}

// Open begins a member that is an object; Close ends it.
func (m *Members) Open(key string) {
	m.key(key)
	*m = append(*m, '{')
}

// Close ends what Open has begun.
func (m *Members) Close() { *m = append(*m, '}') }

// String writes a string; foreign bytes are welcome.
func (m *Members) String(key, v string) {
	m.key(key)
	*m = appendString(*m, v)
}

// Some writes a string unless it is empty.
func (m *Members) Some(key, v string) {
	if v != "" {
		m.String(key, v)
	}
}

// Strings writes a list of strings.
func (m *Members) Strings(key string, v []string) {
	m.key(key)
	*m = append(*m, '[')
	for i, s := range v {
		if i > 0 {
			*m = append(*m, ',')
		}
		*m = appendString(*m, s)
	}
	*m = append(*m, ']')
}

// Uint writes a number.
func (m *Members) Uint(key string, v uint64) {
	m.key(key)
	*m = appendUint(*m, v)
}

// Int writes a number.
func (m *Members) Int(key string, v int64) {
	m.key(key)
	*m = strconv.AppendInt(*m, v, 10)
}

// Bool writes true or false.
func (m *Members) Bool(key string, v bool) {
	m.key(key)
	*m = strconv.AppendBool(*m, v)
}

// Addr writes an address as a string.
func (m *Members) Addr(key string, v netip.Addr) {
	m.key(key)
	b := append(*m, '"')
	if v.IsValid() {
		b = v.AppendTo(b)
	}
	*m = append(b, '"')
}

// Seconds writes a time of ns nanoseconds in seconds.
func (m *Members) Seconds(key string, ns int64) {
	m.key(key)
	*m = appendSeconds(*m, ns)
}

func appendSeconds(b []byte, ns int64) []byte {
	n := uint64(ns)
	if ns < 0 {
		b, n = append(b, '-'), -n
	}
	b = appendUint(b, n/1e9)
	if n %= 1e9; n > 0 {
		d := digits(uint32(n % 1e8))
		b = binary.LittleEndian.AppendUint64(append(b, '.', '0'+byte(n/1e8)), d)
		b = b[:len(b)-bits.LeadingZeros64(d&^zeros)/8] // without zeros behind
	}
	return b
}

const zeros = '0' * ones

// digits returns the eight digits of v, the first in the lowest byte. It works on
// halves, pairs and single digits at once, and touches no memory.
func digits(v uint32) uint64 {
	x := uint64(v/1e4) | uint64(v%1e4)<<32
	hundreds := x * 5243 >> 19 & 0x7f_0000_007f // x/100, below 10000
	x = hundreds | (x-100*hundreds)<<16
	tens := x * 103 >> 10 & 0xf_000f_000f_000f // x/10, below 100
	return (tens | (x-10*tens)<<8) + zeros
}

func appendUint(b []byte, v uint64) []byte {
	switch {
	case v < 10:
		return append(b, '0'+byte(v))
	case v >= 1e8:
		return strconv.AppendUint(b, v, 10)
	}
	d := digits(uint32(v))
	skip := bits.TrailingZeros64(d&^zeros|1<<56) / 8 // zeros before it
	b = binary.LittleEndian.AppendUint64(b, d>>(8*skip))
	return b[:len(b)-skip]
}

// Written adds members that were written before, at least one of them.
func (m *Members) Written(members Members) {
	b := *m
	if len(b) > 0 && b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	*m = append(b, members...)
}

const (
	ones = 0x0101010101010101
	high = 0x8080808080808080
)

// plain reports whether a string of these bytes is its own JSON.
func plain(b []byte) bool {
	var odd uint64
	for ; len(b) >= 8; b = b[8:] {
		w := binary.LittleEndian.Uint64(b)
		quote, slash := w^'"'*ones, w^'\\'*ones
		// The high bit of a byte is set if it is below a space, a quote, a backslash or
		// no ASCII; of those above one that is, it may be set as well.
		odd |= w | (w-' '*ones)&^w | (quote-ones)&^quote | (slash-ones)&^slash
	}
	for _, c := range b {
		if c < ' ' || c == '"' || c == '\\' {
			return false
		}
		odd |= uint64(c)
	}
	return odd&high == 0
}

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := len(b)
	if b = append(b, s...); !plain(b[start:]) {
		quoted, _ := json.Marshal(s) // a string always encodes
		return append(b[:start-1], quoted...)
	}
	return append(b, '"')
}
