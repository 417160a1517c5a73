package main

import (
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"penstock/internal/config"
	"penstock/pipeline"
	"penstock/stages"
)

func stagesCommand(args []string) error {
	fs := newFlags("stages", "[KIND]")
	rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	reg := stages.Builtin()
	switch len(rest) {
	case 0:
		tw := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
		fmt.Fprintln(tw, "KIND\tSEES\tWHAT IT DOES")
		for _, k := range reg.Kinds() {
			fmt.Fprintf(tw, "%s\t%s\t%s\n", k.Name, layerName(k.Layer), k.Summary)
		}
		return tw.Flush()
	case 1:
		k := reg.Lookup(rest[0])
		if k == nil {
			var names []string
			for _, k := range reg.Kinds() {
				names = append(names, k.Name)
			}
			hint := ""
			if near := config.Nearest(rest[0], names); near != "" {
				hint = fmt.Sprintf("; did you mean %q?", near)
			}
			return usagef("unknown stage %q; there are %s%s", rest[0], strings.Join(names, ", "), hint)
		}
		fmt.Println(strings.TrimSpace(k.README))
		return nil
	}
	return usagef("want at most one stage, got %q", rest)
}

func layerName(l pipeline.Layer) string {
	switch l {
	case pipeline.BoundaryLayer:
		return "packets, then streams"
	case pipeline.StreamLayer:
		return "streams"
	}
	return "packets"
}
