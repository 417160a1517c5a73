package pipeline

import (
	"fmt"
	"net/netip"
)

// Issue is one problem of a configuration. Path says where, relative to the
// table that was validated: "rules[2].src[0]", or "" for the table itself.
type Issue struct {
	Path string
	Text string // what was expected, and what was found
	// Char is which character, from 1, of the string at Path it is about; 0: of
	// Path as a whole.
	Char int
}

// Issues collects problems, so that all of them are reported at once.
type Issues struct {
	List []Issue
	// Ports are the names of the ports there are, for stages that refer to
	// them; nil where that is not known.
	Ports []string
	// Sets are the named sets of prefixes that expressions may use.
	Sets map[string][]netip.Prefix
}

// Add records a problem at path. The text says what was expected and found:
// "rate must be > 0, got -5".
func (i *Issues) Add(path, format string, args ...any) {
	i.List = append(i.List, Issue{Path: path, Text: fmt.Sprintf(format, args...)})
}

// AddAt records a problem at a character, from 0, of the string at path.
func (i *Issues) AddAt(path string, char int, format string, args ...any) {
	i.List = append(i.List, Issue{Path: path, Text: fmt.Sprintf(format, args...), Char: char + 1})
}
