package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"penstock/pipeline"
)

// Problem is one thing that is wrong, or for a warning doubtful, in a
// configuration.
type Problem struct {
	File  string `json:"file"`
	Line  int    `json:"line"`  // from 1; 0 if the file could not be read
	Col   int    `json:"col"`   // from 1, in characters
	Where string `json:"where"` // `chain "web", stage 2 (ratelimit)`, or "" for the file
	Text  string `json:"text"`  // what was expected, and what was found
}

// String returns "file:line:col: where: text".
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Col)
	}
	b.WriteString(": ")
	if p.Where != "" {
		b.WriteString(p.Where + ": ")
	}
	b.WriteString(p.Text)
	return b.String()
}

// Problems is a list of problems in the order of the file.
type Problems []Problem

// Error returns the problems, one a line.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].String()
	}
	return strings.Join(lines, "\n")
}

// Err returns p as an error, or nil if it is empty.
func (p Problems) Err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

// report collects problems by the path of what they are about.
type report struct {
	file     string
	ix       *index
	root     map[string]any
	problems Problems
	bad      map[string]bool // paths that have a problem
}

// add records a problem of what is at path.
func (r *report) add(path, format string, args ...any) {
	where, rel := r.where(path)
	text := fmt.Sprintf(format, args...)
	if rel != "" {
		text = rel + ": " + text
	}
	r.put(path, where, text)
}

// addIn records a problem that stands at path but belongs to the table around
// it: an unknown key.
func (r *report) addIn(path, table, format string, args ...any) {
	where, rel := r.where(table)
	text := fmt.Sprintf(format, args...)
	if rel != "" {
		text = rel + ": " + text
	}
	r.put(path, where, text)
}

// issue records a problem that a stage found in its own table, whose path is
// given. Authors write "rate must be > 0" for the path "rate", so the key is
// not said twice.
func (r *report) issue(stage string, is pipeline.Issue) {
	path := stage
	if is.Path != "" {
		path += "." + is.Path
	}
	if r.isBad(path) {
		return // decoding has said already what is wrong there
	}
	where, _ := r.where(stage)
	text, up := oneLine(is.Text), parent(is.Path)
	switch last := strings.TrimPrefix(is.Path[len(up):], "."); {
	case is.Path == "" || beginsWith(text, is.Path):
	case last != "" && last[0] != '[' && beginsWith(text, last):
		if up != "" {
			text = up + ": " + text
		}
	default:
		text = is.Path + ": " + text
	}
	r.put(path, where, text)
	if is.Char > 0 {
		p := &r.problems[len(r.problems)-1]
		p.Line, p.Col = r.ix.findIn(path, is.Char-1)
	}
}

// beginsWith reports whether text begins with the word, and not with a longer
// word.
func beginsWith(text, word string) bool {
	rest, ok := strings.CutPrefix(text, word)
	return ok && (rest == "" || !isBareByte(rest[0]) && rest[0] != '.' && rest[0] != '[')
}

// isBad reports whether path, or something around it, has a problem already.
func (r *report) isBad(path string) bool {
	for ; path != ""; path = parent(path) {
		if r.bad[path] {
			return true
		}
	}
	return false
}

func (r *report) put(path, where, text string) {
	line, col := r.ix.find(path)
	r.bad[path] = true
	r.problems = append(r.problems, Problem{File: r.file, Line: line, Col: col, Where: where, Text: text})
}

// sorted returns the problems in the order of the file, each once.
func (r *report) sorted() Problems {
	slices.SortFunc(r.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col), cmp.Compare(a.Where, b.Where), cmp.Compare(a.Text, b.Text))
	})
	return slices.Compact(r.problems)
}

// where splits a path into the words for the table it is in and the rest:
// "chain[0].stage[1].rules[2].src" into `chain "web", stage 2 (acl)` and
// "rules[2].src".
func (r *report) where(path string) (where, rel string) {
	kind, i, rest, ok := cutElement(path)
	if !ok {
		kind, rest, _ = strings.Cut(path, ".")
		if _, isTable := r.root[kind].(map[string]any); isTable && known[kind] {
			return kind, rest
		}
		return "", path
	}
	table := tableAt(r.root[kind], i)
	where = title(kind, i, table["name"])
	if kind != "chain" {
		return where, rest
	}
	list, j, rest2, ok := cutElement(rest)
	if !ok || list != "stage" {
		return where, rest
	}
	where += ", stage " + strconv.Itoa(j+1)
	if k, ok := tableAt(table["stage"], j)["kind"].(string); ok && k != "" {
		where += " (" + shorten(k) + ")"
	}
	return where, rest2
}

// title names element i of a list of tables: by its name if it has one.
func title(kind string, i int, name any) string {
	if s, ok := name.(string); ok && s != "" {
		return kind + " " + strconv.Quote(shorten(s))
	}
	return kind + " " + strconv.Itoa(i+1)
}

// cutElement splits "key[12].rest".
func cutElement(path string) (key string, i int, rest string, ok bool) {
	key, tail, ok := strings.Cut(path, "[")
	if !ok || !isBare(key) {
		return "", 0, "", false
	}
	num, rest, ok := strings.Cut(tail, "]")
	i, err := strconv.Atoi(num)
	if !ok || err != nil {
		return "", 0, "", false
	}
	return key, i, strings.TrimPrefix(rest, "."), true
}

// tableAt returns element i of a list of tables, or nil.
func tableAt(list any, i int) map[string]any {
	switch list := list.(type) {
	case []map[string]any:
		if i < len(list) {
			return list[i]
		}
	case []any:
		if i < len(list) {
			t, _ := list[i].(map[string]any)
			return t
		}
	}
	return nil
}

// shorten keeps a name from the file from filling the screen.
func shorten(s string) string {
	const most = 40
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "..."
	}
	return s
}
