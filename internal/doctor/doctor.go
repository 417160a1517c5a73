// Package doctor says what this machine and its interfaces can do for an
// appliance, what is in the way, why that matters, and which command mends it.
// What decides a start is checked here for `penstock run` as well, so that both
// say the same.
//
// Looking (Facts) is apart from judging (the checks): a check reads facts alone,
// and so can be shown a NIC that is not there.
//
// Its one trap: it sees the network namespace of the calling thread, and /sys may
// show another one. What /sys says of an interface is believed only if the index
// agrees.
package doctor

import (
	"errors"
	"fmt"
	"strings"

	"penstock/internal/config"
)

// Level is how a finding is to be taken.
type Level uint8

// The levels.
const (
	Fine    Level = iota
	Warning       // it works, and not as well as it could, or not for ever
	Wrong         // it does not work
)

var levels = []string{"fine", "warning", "wrong"}

// String returns "fine", "warning" or "wrong".
func (l Level) String() string { return levels[l] }

// MarshalText implements encoding.TextMarshaler.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Level) UnmarshalText(b []byte) error {
	for i, name := range levels {
		if name == string(b) {
			*l = Level(i)
			return nil
		}
	}
	return fmt.Errorf("read level: want fine, warning or wrong, got %q", b)
}

// Finding is what a check found. Mend is a command as it is to be typed, or a
// sentence where no command mends it; Safe says that Fix may run it.
type Finding struct {
	Check string `json:"check"`
	Port  string `json:"port,omitempty"`
	Level Level  `json:"level"`
	Found string `json:"found"`
	Why   string `json:"why,omitempty"`
	Mend  string `json:"mend,omitempty"`
	Safe  bool   `json:"fix,omitempty"`
	Start bool   `json:"start,omitempty"` // an appliance does not start with it, if it is wrong
}

// String is the finding in one line, as a refused start has it.
func (f Finding) String() string {
	var b strings.Builder
	if f.Port != "" {
		fmt.Fprintf(&b, "port %q: ", f.Port)
	}
	b.WriteString(f.Found)
	if f.Mend != "" {
		b.WriteString("; mend: " + f.Mend)
	}
	return b.String()
}

// Subject is what is looked at.
type Subject struct {
	Appliance config.Appliance
	Ports     []config.Port
	// File is the configuration; "": there is none, and Ports are interfaces that
	// are no ports of anything yet.
	File string
	// Lock is the lock file of the appliance's name.
	Lock string
}

// check is a row of the tables: what is looked at, and why it matters.
type check struct {
	name, why string
	start     bool // it decides a start
	run       func(f *Facts, r *report)
}

// report collects the findings of one check.
type report struct {
	check *check
	list  []Finding
}

func (r *report) add(l Level, p *Interface, safe bool, found, mend string) {
	f := Finding{Check: r.check.name, Level: l, Found: found}
	if p != nil {
		f.Port = p.Port.Name
	}
	if l != Fine {
		f.Why, f.Mend, f.Safe, f.Start = r.check.why, mend, safe && mend != "", r.check.start
	}
	r.list = append(r.list, f)
}

// p is nil where the finding is the machine's.
func (r *report) fine(p *Interface, format string, args ...any) {
	r.add(Fine, p, false, fmt.Sprintf(format, args...), "")
}

func (r *report) warn(p *Interface, found, mend string)  { r.add(Warning, p, false, found, mend) }
func (r *report) wrong(p *Interface, found, mend string) { r.add(Wrong, p, false, found, mend) }

// warnSafe and wrongSafe have mends that Fix may run.
func (r *report) warnSafe(p *Interface, found, mend string)  { r.add(Warning, p, true, found, mend) }
func (r *report) wrongSafe(p *Interface, found, mend string) { r.add(Wrong, p, true, found, mend) }

// Check judges facts by every check, in the order of the tables.
func Check(f *Facts) []Finding {
	var list []Finding
	for _, c := range checks() {
		r := &report{check: &c}
		c.run(f, r)
		list = append(list, r.list...)
	}
	return list
}

func checks() []check { return append(append([]check{}, machineChecks...), portChecks...) }

// Start judges by the checks that decide a start. The error has a line for
// each thing that is wrong, the warnings are sentences.
func Start(f *Facts) (warnings []string, err error) {
	var errs []error
	for _, c := range checks() {
		if !c.start {
			continue
		}
		r := &report{check: &c}
		c.run(f, r)
		for _, found := range r.list {
			switch found.Level {
			case Wrong:
				errs = append(errs, errors.New(found.String()))
			case Warning:
				warnings = append(warnings, found.String())
			}
		}
	}
	return warnings, errors.Join(errs...)
}

// Worst is the worst level of the findings.
func Worst(list []Finding) Level {
	worst := Fine
	for _, f := range list {
		worst = max(worst, f.Level)
	}
	return worst
}
