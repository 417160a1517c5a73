package gate

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"penstock/internal/units"
)

// Problem is what is wrong with a line of a list.
type Problem struct {
	Line, Col int // from 1, in characters
	Text      string
}

// maxProblems is how many problems of one list are worth reading.
const maxProblems = 20

// maxLine is in bytes: far more than the longest prefix with a long comment.
const maxLine = 4096

// ReadList reads a list of prefixes and addresses, one a line. What follows
// "#" or ";" is a comment. It returns the prefixes in order, or problems, the
// first 20 of them. err is of reading.
func ReadList(r io.Reader) (list []netip.Prefix, problems []Problem, err error) {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, maxLine), maxLine)
	line := 0
	for in.Scan() {
		line++
		text := in.Text()
		if line == 1 {
			text = strings.TrimPrefix(text, "\ufeff")
		}
		if i := strings.IndexAny(text, "#;"); i >= 0 {
			text = text[:i]
		}
		word := strings.TrimSpace(text)
		if word == "" {
			continue
		}
		var p units.Prefix
		if err := p.UnmarshalText([]byte(word)); err != nil {
			if len(problems) < maxProblems {
				col := len([]rune(text[:strings.Index(text, word)])) + 1
				problems = append(problems, Problem{line, col, err.Error()})
			}
			continue
		}
		list = append(list, Unmap(p.Prefix))
	}
	switch err := in.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		problems = append(problems, Problem{line + 1, 1, fmt.Sprintf("want a line of at most %d bytes", maxLine)})
	case err != nil:
		return nil, nil, err
	}
	if len(problems) > 0 {
		return nil, problems, nil
	}
	return list, nil, nil
}

// Unmap turns an IPv4 prefix that is written as IPv6 (::ffff:192.0.2.0/120)
// into IPv4, as which its packets come.
func Unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}
