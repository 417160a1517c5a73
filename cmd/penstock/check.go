package main

import (
	"fmt"
	"os"

	"penstock/internal/config"
	"penstock/stages"
)

func checkCommand(args []string) error {
	fs := newFlags("check", "FILE...")
	quiet := fs.Bool("quiet", false, "print problems only")
	files, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return usagef("want a configuration file")
	}
	bad := false
	for i, file := range files {
		cfg, err := loadConfig(file)
		if err != nil {
			bad = true
			continue
		}
		if *quiet {
			continue
		}
		if i > 0 {
			fmt.Println()
		}
		cfg.Explain(os.Stdout)
	}
	if bad {
		return usageError{}
	}
	return nil
}

// loadConfig reads a configuration and prints its problems and warnings, a
// line each.
func loadConfig(file string) (*config.Config, error) {
	cfg, problems := config.Load(file, stages.Builtin())
	for _, p := range problems {
		fmt.Fprintln(os.Stderr, p)
	}
	if len(problems) > 0 {
		return nil, usageError{}
	}
	for _, w := range cfg.Warnings {
		fmt.Fprintln(os.Stderr, "warning:", w)
	}
	return cfg, nil
}
