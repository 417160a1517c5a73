package units

import (
	"strings"
	"testing"
)

func TestShare(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Share
		out  string
	}{
		{"0%", 0, "0%"}, {"5%", 0.05, "5%"}, {"0.1%", 0.001, "0.1%"}, {" 12.5 %", 0.125, "12.5%"}, {"100%", 1, "100%"}, {"7%", 0.07, "7%"},
	} {
		var s Share
		if err := s.UnmarshalText([]byte(tc.in)); err != nil || s != tc.want || s.String() != tc.out {
			t.Errorf("%q: got %v (%v), %v", tc.in, float64(s), s, err)
		}
	}
	for _, in := range []string{"", "5", "0.05", "-1%", "101%", "NaN%", "Inf%", "%", "five%"} {
		var s Share
		if err := s.UnmarshalText([]byte(in)); err == nil || !strings.Contains(err.Error(), `such as "5%"`) {
			t.Errorf("%q: got %v, %v", in, float64(s), err)
		}
	}
}
