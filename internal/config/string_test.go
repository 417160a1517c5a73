package config

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// TestCharInString puts a mark in the place of each character of strings in turn:
// the character that is found must be the one that the mark replaces.
func TestCharInString(t *testing.T) {
	for _, lit := range []string{
		`"abc"`, `'abc'`, `"aé\tb\u00e9\U0001F600c\\d\"e"`, `'a\b"c'`, `"""abc"""`, "\"\"\"\na\nb\n\"\"\"", "\"\"\"\r\na\r\nb\"\"\"", "'''\na\n  b'''",
		"\"\"\"a \\\n   b\\\n\n  c\"\"\"", `"""a"b""c"""`, `"""a"""""`, `'''a''''`, `""`, `''''''`, "\"\"\"\\\n  a\"\"\"",
	} {
		root, _, problem := parseTOML("k = " + lit)
		if problem != "" {
			t.Fatalf("%s: %s", lit, problem)
		}
		value := []rune(root["k"].(string))
		for n, want := range value {
			at := charInString(lit, n)
			got, _ := utf8.DecodeRuneInString(lit[at:])
			if got == '\\' && strings.HasPrefix(lit, `"`) {
				part := lit[at : at+charSize(lit[at:], true)]
				root, _, problem := parseTOML(`k = "` + part + `"`)
				if problem != "" {
					t.Errorf("%q, character %d: %q is none: %s", lit, n, part, problem)
					continue
				}
				got, _ = utf8.DecodeRuneInString(root["k"].(string))
			}
			if got != want {
				t.Errorf("%q, character %d: got %q at %d, want %q", lit, n, got, at, want)
			}
		}
		q := lit[:1]
		if at := charInString(lit, len(value)); strings.Trim(lit[at:], q) != "" || lit[at:] == "" {
			t.Errorf("%q: the end is at %d", lit, at)
		}
	}
}
