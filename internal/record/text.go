package record

import (
	"encoding/json"
	"strconv"
	"time"
)

// Text is a string in memory that is used again: as JSON it is a string.
type Text []byte

// String returns a copy.
func (t Text) String() string { return string(t) }

// MarshalText implements encoding.TextMarshaler.
func (t Text) MarshalText() ([]byte, error) { return t, nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Text) UnmarshalText(b []byte) error {
	*t = append((*t)[:0], b...)
	return nil
}

// Text writes a string, unless it is empty.
func (m *Members) Text(key string, v Text) {
	if len(v) == 0 {
		return
	}
	m.key(key)
	if !plain(v) {
		quoted, _ := json.Marshal(string(v)) // a string always encodes
		*m = append(*m, quoted...)
		return
	}
	*m = append(append(append(*m, '"'), v...), '"')
}

// Uints writes a list of numbers.
func (m *Members) Uints(key string, v []uint16) {
	m.key(key)
	b := append(*m, '[')
	for i, n := range v {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(n), 10)
	}
	*m = append(b, ']')
}

// Time writes a moment as Timestamp does.
func (m *Members) Time(key string, t time.Time) {
	m.key(key)
	*m = append(t.UTC().AppendFormat(append(*m, '"'), timeFormat), '"')
}
