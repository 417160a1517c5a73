package units

import (
	"fmt"
	"strconv"
	"strings"
)

// Share is a part of a whole, from 0 to 1, written "5%" or "0.1%".
type Share float64

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Share) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	if num, ok := strings.CutSuffix(text, "%"); ok {
		v, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
		if err == nil && v >= 0 && v <= 100 {
			*s = Share(v / 100)
			return nil
		}
	}
	return fmt.Errorf(`want a share from "0%%" to "100%%" such as "5%%" or "0.1%%", got %q`, text)
}

// MarshalText implements encoding.TextMarshaler.
func (s Share) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String writes the share in percent.
func (s Share) String() string { return strconv.FormatFloat(float64(s)*100, 'g', 12, 64) + "%" }
