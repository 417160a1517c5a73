package pipeline

import "fmt"

// Issue is one problem of a configuration. Path says where, relative to the
// table that was validated: "rules[2].src[0]", or "" for the table itself.
type Issue struct {
	Path string
	Text string // what was expected, and what was found
}

// Issues collects problems, so that all of them are reported at once.
type Issues struct {
	List []Issue
	// Ports are the names of the ports there are, for stages that refer to
	// them; nil where that is not known.
	Ports []string
}

// Add records a problem at path. The text says what was expected and found:
// "rate must be > 0, got -5".
func (i *Issues) Add(path, format string, args ...any) {
	i.List = append(i.List, Issue{Path: path, Text: fmt.Sprintf(format, args...)})
}
