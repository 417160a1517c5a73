package config

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Nearest returns which of the known names is probably meant by name, or "" if
// none resembles it.
func Nearest(name string, known []string) string {
	best, least := "", 1<<30
	a := fold(nil, name)
	if len(a) > 64 {
		return ""
	}
	var b []rune
	var rows []int
	for _, k := range known {
		b = fold(b[:0], k)
		longest := max(len(a), len(b))
		most := max(1, longest/3)
		if len(a)-len(b) > most || len(b)-len(a) > most {
			continue
		}
		rows = append(rows[:0], make([]int, 3*(len(b)+1))...)
		if d := distance(a, b, rows); d < least && d < longest && d <= most {
			best, least = k, d
		}
	}
	return best
}

// fold appends s to to, so that names which differ only in case or in their
// dashes are equal.
func fold(to []rune, s string) []rune {
	for _, r := range s {
		if r == '-' {
			r = '_'
		}
		to = append(to, unicode.ToLower(r))
	}
	return to
}

// distance counts the letters to insert, delete, change or swap with their
// neighbour to get from a to b. rows is room for three times len(b)+1 numbers.
func distance(a, b []rune, rows []int) int {
	w := len(b) + 1
	before, prev, row := rows[:w], rows[w:2*w], rows[2*w:3*w]
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
