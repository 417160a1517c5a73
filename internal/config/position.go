package config

import (
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of what is read. They are far above any real configuration and keep a
// hostile or broken file from exhausting the stack of the TOML library.
const (
	MaxSize     = 1 << 20 // bytes in a file
	maxNesting  = 32      // arrays and inline tables inside each other
	maxKeyParts = 16      // a.b.c has three
)

// index knows where each key and array element of a TOML document stands. It
// is not a parser: it trusts that the TOML library accepts the document, and
// on one that the library refuses it stops early or is wrong, never panics.
//
// Paths are written "chain[0].stage[1].rules[2].src": elements of arrays, and
// of arrays of tables, by number from 0; keys that are not bare are quoted.
type index struct {
	src     string
	at      map[string]int // byte offset by path
	strings map[string]int // byte offset of the opening quote, by the path of a string
	lines   []int          // byte offset of the beginning of each line
	tooDeep int            // offset of what exceeds the bounds, or -1
	twice   int            // offset of what is defined a second time, or -1
	first   string         // path of what it collides with
}

// newIndex indexes src, which must not begin with a byte order mark.
func newIndex(src string) *index {
	ix := &index{src: src, at: map[string]int{}, strings: map[string]int{}, lines: []int{0}, tooDeep: -1, twice: -1}
	for i := range len(src) {
		if src[i] == '\n' {
			ix.lines = append(ix.lines, i+1)
		}
	}
	s := scanner{ix: ix, src: src, tables: map[string]int{}, defined: map[string]definition{}}
	s.document()
	return ix
}

// position returns the line and column (in characters), both from 1, of a byte
// offset.
func (ix *index) position(offset int) (line, col int) {
	offset = min(max(offset, 0), len(ix.src))
	line = sort.Search(len(ix.lines), func(i int) bool { return ix.lines[i] > offset })
	return line, utf8.RuneCountInString(ix.src[ix.lines[line-1]:offset]) + 1
}

// find returns the position of path, or of the nearest table around it that
// stands in the document; 1:1 if none does.
func (ix *index) find(path string) (line, col int) {
	for {
		if offset, ok := ix.at[path]; ok {
			return ix.position(offset)
		}
		if path == "" {
			return 1, 1
		}
		path = parent(path)
	}
}

// line returns the line of path.
func (ix *index) line(path string) int {
	line, _ := ix.find(path)
	return line
}

// child returns the path of a key of the table at path.
func child(path, key string) string {
	if !isBare(key) {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// element returns the path of element i of the array at path.
func element(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// parent returns the path without its last key or element; "" for the last one.
func parent(path string) string {
	quoted, cut := false, 0
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case (c == '.' || c == '[') && !quoted:
			cut = i
		}
	}
	return path[:cut]
}

func isBare(key string) bool {
	for i := range len(key) {
		if !isBareByte(key[i]) {
			return false
		}
	}
	return key != ""
}

func isBareByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

// scanner walks over a document. Every method makes progress or reports false,
// after which the scan ends.
type scanner struct {
	ix      *index
	src     string
	i       int
	tables  map[string]int        // elements so far of each array of tables
	defined map[string]definition // by path
}

// definition says how a path came to be. The TOML library lets some second
// definitions pass and ignores one of the two; in a configuration that must
// not go unseen.
type definition uint8

const (
	byValue  definition = iota + 1 // key = value: complete, nothing may be added
	byHeader                       // [key]
	byArray                        // [[key]]
	byDots                         // key.x = value
	implied                        // [key.x]
)

// define notes how path is defined and reports whether it may be.
func (s *scanner) define(path string, how definition, offset int) bool {
	old := s.defined[path]
	ok := old == 0
	switch how {
	case byHeader:
		ok = ok || old == implied
	case byArray:
		ok = ok || old == byArray
	case byDots:
		ok = ok || old == byDots || old == implied
		how = max(how, old)
	case implied:
		ok = ok || old != byValue
		if old != 0 {
			how = old
		}
	}
	if !ok {
		s.ix.twice, s.ix.first = offset, path
		return false
	}
	s.defined[path] = how
	return true
}

func (s *scanner) note(path string, offset int) {
	if _, known := s.ix.at[path]; !known {
		s.ix.at[path] = offset
	}
}

func (s *scanner) deep() bool {
	s.ix.tooDeep = s.i
	return false
}

func (s *scanner) peek() byte {
	if s.i < len(s.src) {
		return s.src[s.i]
	}
	return 0
}

// blank skips spaces and tabs; space also line ends and comments.
func (s *scanner) blank() {
	for s.peek() == ' ' || s.peek() == '\t' {
		s.i++
	}
}

func (s *scanner) space() {
	for s.i < len(s.src) {
		switch s.src[s.i] {
		case ' ', '\t', '\r', '\n':
			s.i++
		case '#':
			n := strings.IndexByte(s.src[s.i:], '\n')
			if n < 0 {
				n = len(s.src) - s.i
			}
			s.i += n
		default:
			return
		}
	}
}

func (s *scanner) document() {
	table := ""
	for s.space(); s.i < len(s.src); s.space() {
		ok := false
		if s.peek() == '[' {
			table, ok = s.header()
		} else {
			ok = s.pair(table, 0)
		}
		if !ok {
			return
		}
	}
}

// header reads "[a.b]" or "[[a.b]]" and returns the path of the table that
// the following keys belong to.
func (s *scanner) header() (path string, ok bool) {
	start := s.i
	s.i++
	array := s.peek() == '['
	if array {
		s.i++
	}
	parts, _, ok := s.key()
	if !ok || s.peek() != ']' {
		return "", false
	}
	s.i++
	if array {
		s.i++ // the second bracket
	}
	for n, part := range parts {
		path = child(path, part)
		last, how := n == len(parts)-1, implied
		if last {
			how = byHeader
			if array {
				how = byArray
			}
		}
		if !s.define(path, how, start) {
			return "", false
		}
		s.note(path, start)
		if last && array {
			s.tables[path]++
		}
		if count := s.tables[path]; count > 0 && (array || !last) {
			path = element(path, count-1)
			s.note(path, start)
		}
	}
	return path, true
}

// pair reads "key = value" in the table at path.
func (s *scanner) pair(path string, depth int) bool {
	parts, offsets, ok := s.key()
	if !ok || s.peek() != '=' {
		return false
	}
	s.i++
	for n, part := range parts {
		path = child(path, part)
		how := byDots
		if n == len(parts)-1 {
			how = byValue
		}
		if !s.define(path, how, offsets[n]) {
			return false
		}
		s.note(path, offsets[n])
	}
	s.blank()
	return s.value(path, depth)
}

// key reads a dotted key and the blanks behind it.
func (s *scanner) key() (parts []string, offsets []int, ok bool) {
	for {
		s.blank()
		start := s.i
		switch s.peek() {
		case '"', '\'':
			if !s.str() {
				return nil, nil, false
			}
		default:
			for isBareByte(s.peek()) {
				s.i++
			}
		}
		if s.i == start {
			return nil, nil, false
		}
		if len(parts) == maxKeyParts {
			return nil, nil, s.deep()
		}
		parts, offsets = append(parts, unquoteKey(s.src[start:s.i])), append(offsets, start)
		s.blank()
		if s.peek() != '.' {
			return parts, offsets, true
		}
		s.i++
	}
}

// value reads any value, whose path is path.
func (s *scanner) value(path string, depth int) bool {
	if depth > maxNesting {
		return s.deep()
	}
	switch s.peek() {
	case '"', '\'':
		s.ix.strings[path] = s.i
		return s.str()
	case '[':
		return s.list(']', func(n int) bool {
			p := element(path, n)
			s.note(p, s.i)
			return s.value(p, depth+1)
		})
	case '{':
		return s.list('}', func(int) bool { return s.pair(path, depth+1) })
	}
	start := s.i
	for s.i < len(s.src) && !strings.ContainsRune(",]}#\r\n", rune(s.src[s.i])) {
		s.i++
	}
	return s.i > start
}

// list reads a bracket, what one reads between commas, and the bracket close.
func (s *scanner) list(end byte, one func(n int) bool) bool {
	s.i++
	for n := 0; ; n++ {
		s.space()
		if s.peek() == end {
			s.i++
			return true
		}
		if !one(n) {
			return false
		}
		s.space()
		switch s.peek() {
		case ',':
			s.i++
		case end:
		default:
			return false
		}
	}
}

// str reads a string of any of the four kinds.
func (s *scanner) str() bool {
	q := s.src[s.i]
	long := strings.Repeat(string(rune(q)), 3)
	if strings.HasPrefix(s.src[s.i:], long) {
		for s.i += 3; s.i < len(s.src); s.i++ {
			if s.src[s.i] == '\\' && q == '"' {
				s.i++
			} else if strings.HasPrefix(s.src[s.i:], long) {
				s.i += 3
				for n := 0; n < 2 && s.peek() == q; n++ {
					s.i++ // up to two quotes may stand before the closing three
				}
				return true
			}
		}
		return false
	}
	for s.i++; s.i < len(s.src) && s.src[s.i] != '\n'; s.i++ {
		switch {
		case s.src[s.i] == '\\' && q == '"':
			s.i++
		case s.src[s.i] == q:
			s.i++
			return true
		}
	}
	return false
}
