package record

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"unicode/utf8"
)

// Appender are the fields of an event that come so often that they write
// themselves.
type Appender interface {
	// AppendMembers writes what encoding/json would make of the fields, but for
	// keys "timestamp" and "event_type", of which there are none.
	AppendMembers(m *Members)
}

// Members writes the members of a JSON object, one after the other.
type Members []byte

func (m *Members) key(name string) {
	b := *m
	if len(b) > 0 && b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	*m = append(append(append(b, '"'), name...), `":`...)
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
	*m = strconv.AppendUint(*m, v, 10)
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
	b := *m
	if ns < 0 {
		b, ns = append(b, '-'), -ns
	}
	b = strconv.AppendInt(b, ns/1e9, 10)
	if ns %= 1e9; ns > 0 {
		b = append(b, '.')
		for unit := int64(1e8); ns > 0; unit /= 10 {
			b = append(b, byte('0'+ns/unit))
			ns %= unit
		}
	}
	*m = b
}

func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			quoted, _ := json.Marshal(s) // a string always encodes
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
