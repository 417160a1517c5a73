package config

import (
	"fmt"
	"strconv"
	"strings"
)

// Nearest returns which of the known names is probably meant by name, or "" if
// none resembles it.
func Nearest(name string, known []string) string {
	best, least := "", 1<<30
	a := fold(name)
	if len(a) > 64 {
		return ""
	}
	for _, k := range known {
		b := fold(k)
		longest := max(len(a), len(b))
		d := distance(a, b)
		if d < least && d < longest && d <= max(1, longest/3) {
			best, least = k, d
		}
	}
	return best
}

// fold makes names that differ only in case or in their dashes equal.
func fold(s string) []rune {
	return []rune(strings.ReplaceAll(strings.ToLower(s), "-", "_"))
}

// distance counts the letters to insert, delete, change or swap with their
// neighbour to get from a to b.
func distance(a, b []rune) int {
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := prev[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(prev[j]+1, row[j-1]+1, change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev, row = prev, row, before
	}
	return prev[len(b)]
}

// meant returns a hint for an unknown name: the nearest known one, or all.
func meant(name string, known []string) string {
	if n := Nearest(name, known); n != "" {
		return fmt.Sprintf("did you mean %q?", n)
	}
	if len(known) == 0 {
		return "there are none"
	}
	return "want " + choice(known)
}

// choice writes names as `"a", "b" or "c"`.
func choice(names []string) string {
	var b strings.Builder
	for i, n := range names {
		switch {
		case i > 0 && i == len(names)-1:
			b.WriteString(" or ")
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(strconv.Quote(n))
	}
	return b.String()
}
