package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"penstock/internal/config"
	"penstock/internal/doctor"
)

const doctorArgs = "[--json] [--fix] [--quiet] [CONFIG]"

// doctorCommand says what is in the way of an appliance. Without a configuration
// it looks at the machine and every interface that could be a port.
func doctorCommand(args []string) error {
	fs := newFlags("doctor", doctorArgs)
	asJSON := fs.Bool("json", false, "print JSON")
	fix := fs.Bool("fix", false, "run the mends that are safe: they cut no wire and change no configuration")
	quiet := fs.Bool("quiet", false, "print warnings and what is wrong only")
	files, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(files) > 1 {
		return usagef("want one configuration file at most, got %d", len(files))
	}
	s := doctor.Subject{Appliance: config.Defaults(), Ports: doctor.Interfaces()}
	if len(files) == 1 {
		cfg, err := loadConfig(files[0])
		if err != nil {
			return err
		}
		s = subject(cfg)
	}
	list := doctor.Check(doctor.Look(s))
	if *fix && mend(list) {
		list = doctor.Check(doctor.Look(s))
	}
	if *asJSON {
		if err := printJSON(list); err != nil {
			return err
		}
	} else {
		printFindings(os.Stdout, list, *quiet)
	}
	wrong := 0
	for _, f := range list {
		if f.Level == doctor.Wrong {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d findings are wrong", wrong, len(list))
	}
	return nil
}

// subject is a configuration as the doctor looks at it.
func subject(cfg *config.Config) doctor.Subject {
	return doctor.Subject{Appliance: cfg.Appliance, Ports: cfg.Ports, File: cfg.File, Lock: lockPath(cfg.Appliance.Name)}
}

// mend runs what is safe, and says whether it ran anything.
func mend(list []doctor.Finding) (ran bool) {
	for _, f := range list {
		if !f.Safe {
			continue
		}
		ran = true
		fmt.Fprintln(os.Stderr, "mending:", f.Mend)
		if err := doctor.Fix(f); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return ran
}

// printFindings prints a line for each finding, and why it matters and what
// mends it below those that are not fine.
func printFindings(out io.Writer, list []doctor.Finding, quiet bool) {
	counts := map[doctor.Level]int{}
	for _, f := range list {
		counts[f.Level]++
		if quiet && f.Level == doctor.Fine {
			continue
		}
		where := ""
		if f.Port != "" {
			where = f.Port + ": "
		}
		fmt.Fprintf(out, "%-8s %-11s %s%s\n", f.Level, f.Check, where, f.Found)
		indent := strings.Repeat(" ", 21)
		if f.Why != "" {
			fmt.Fprintf(out, "%swhy:  %s\n", indent, f.Why)
		}
		if f.Mend != "" {
			safe := ""
			if f.Safe {
				safe = "   (--fix runs it)"
			}
			fmt.Fprintf(out, "%smend: %s%s\n", indent, f.Mend, safe)
		}
	}
	fmt.Fprintf(out, "%d fine, %d warnings, %d wrong\n", counts[doctor.Fine], counts[doctor.Warning], counts[doctor.Wrong])
}
