package config

import (
	"strings"
	"unicode/utf8"
)

// findIn returns the position of a character, from 0, of the string at path, or
// that of path if there is no string.
func (ix *index) findIn(path string, char int) (line, col int) {
	offset, ok := ix.strings[path]
	if !ok {
		return ix.find(path)
	}
	return ix.position(offset + charInString(ix.src[offset:], char))
}

// charInString returns the byte at which character n of the value begins of the
// TOML string that lit begins with, or, for one behind the last, where the string
// closes. lit is one that the TOML library accepts.
func charInString(lit string, n int) int {
	q := lit[:1]
	i, long := 1, strings.HasPrefix(lit, q+q+q)
	if long {
		i = 3
		// A line end right behind the opening quotes is not part of the value.
		if strings.HasPrefix(lit[i:], "\r\n") {
			i += 2
		} else if strings.HasPrefix(lit[i:], "\n") {
			i++
		}
	}
	for {
		i = skipContinuation(lit, i, long && q == `"`)
		if i >= len(lit) || closes(lit[i:], q, long) || n == 0 {
			return i
		}
		i += charSize(lit[i:], q == `"`)
		n--
	}
}

// closes reports whether rest begins with the end of the string. Up to two quotes
// may stand before the closing three.
func closes(rest, q string, long bool) bool {
	if !long {
		return strings.HasPrefix(rest, q)
	}
	return strings.HasPrefix(rest, q+q+q) && !strings.HasPrefix(rest, q+q+q+q)
}

// skipContinuation skips backslashes at the end of a line, with the white space
// behind them.
func skipContinuation(lit string, i int, may bool) int {
	for may && i < len(lit) && lit[i] == '\\' {
		rest := strings.TrimLeft(lit[i+1:], " \t\r")
		if !strings.HasPrefix(rest, "\n") {
			break
		}
		i = len(lit) - len(strings.TrimLeft(rest, " \t\r\n"))
	}
	return i
}

// charSize returns the bytes that write the next character of a string.
func charSize(rest string, escapes bool) int {
	if rest[0] == '\\' && escapes && len(rest) > 1 {
		switch rest[1] {
		case 'x':
			return min(4, len(rest))
		case 'u':
			return min(6, len(rest))
		case 'U':
			return min(10, len(rest))
		}
		return 2
	}
	_, size := utf8.DecodeRuneInString(rest)
	return size
}
