package hostname

import (
	"slices"
	"strings"
	"testing"

	"penstock/pipeline"
)

func TestNormal(t *testing.T) {
	long := strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "." + strings.Repeat("d", 61)
	for _, row := range []struct {
		in, want string
		ok       bool
	}{
		{"example.com", "example.com", true}, {"EXAMPLE.com.", "example.com", true}, {"a_b-c.9", "a_b-c.9", true},
		{"2001:db8::1", "2001:db8::1", true}, {"10.0.0.1", "10.0.0.1", true}, {long, long, true}, {long + ".", long, true},
		{long + "x", "", false}, {"", "", false}, {".", "", false}, {"a..b", "", false}, {".a", "", false}, {"a..", "", false},
		{"a b", "", false}, {"a/b", "", false}, {"a\x00b", "", false}, {"é.example", "", false}, {"*.example", "", false},
	} {
		if got, ok := Normal(row.in); ok != row.ok || ok && got != row.want {
			t.Errorf("Normal(%q): got %q, %v, want %q, %v", row.in, got, ok, row.want, row.ok)
		}
	}
}

func TestMatch(t *testing.T) {
	s := NewSet([]string{"Exact.example", "*.Wild.example.", "dot.example."})
	for name, want := range map[string]bool{
		"exact.example": true, "x.exact.example": false, "wild.example": false, "a.wild.example": true, "a.b.wild.example": true,
		"awild.example": false, "dot.example": true, "example": false, "": false,
	} {
		if got := s.Match(name); got != want {
			t.Errorf("%q: got %v, want %v", name, got, want)
		}
	}
	all := NewSet([]string{"*"})
	if !all.Match("") || !all.Match("x.y") {
		t.Error(`"*" does not match everything`)
	}
	if NewSet(nil).Match("") || NewSet(nil).Match("a") {
		t.Error("the empty set matches")
	}
	if n := testing.AllocsPerRun(100, func() { s.Match("a.b.c.d.example") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestValidPatterns(t *testing.T) {
	var issues pipeline.Issues
	ValidPatterns("deny", []string{"ok", "*.ok", "*", "ok.", "b ad", "", "*.*.x", "*.", "a..b", "*x"}, &issues)
	var got []string
	for _, i := range issues.List {
		got = append(got, i.Path)
	}
	if want := []string{"deny[4]", "deny[5]", "deny[6]", "deny[7]", "deny[8]", "deny[9]"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
