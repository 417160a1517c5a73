package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"penstock/internal/control"
	"penstock/internal/gate"
	"penstock/internal/units"
)

const denyArgs = "add [--for TIME] [--why TEXT] PREFIX... | del PREFIX... | list [--json]   (PREFIX: also file:PATH, or - for the standard input; --control PATH)"

func denyCommand(args []string) error {
	fs, path, asJSON := clientFlags("deny", denyArgs)
	var hold units.Duration
	fs.TextVar(&hold, "for", units.Duration(0), "add: how `long`, such as 10m; 0: until it is deleted")
	why := fs.String("why", "", "add: a `text` that list shows")
	rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return usagef("want add, del or list")
	}
	do, words := rest[0], rest[1:]
	var given []string
	fs.Visit(func(f *flag.Flag) { given = append(given, f.Name) })
	for _, name := range given {
		if (name == "for" || name == "why") && do != "add" {
			return usagef("--%s goes with add", name)
		}
	}
	c := control.NewClient(*path)
	switch do {
	case "list":
		if len(words) > 0 {
			return usagef("want no arguments after list, got %q", words)
		}
		return denyList(c, *asJSON)
	case "add", "del":
	default:
		return usagef("want add, del or list, got %q", do)
	}
	prefixes, err := readPrefixes(words)
	if err != nil {
		return err
	}
	if do == "del" {
		if err := c.DenyDel(prefixes); err != nil {
			return err
		}
		return denyReport(*asJSON, "deleted", len(prefixes))
	}
	if len(*why) > gate.MaxWhy {
		return usagef("--why: want at most %d bytes, got %d", gate.MaxWhy, len(*why))
	}
	n, err := c.DenyAdd(control.DenyAdd{Prefixes: prefixes, ForSeconds: time.Duration(hold).Seconds(), Why: *why})
	if err != nil {
		return err
	}
	return denyReport(*asJSON, "added", n)
}

func denyReport(asJSON bool, what string, n int) error {
	if asJSON {
		return printJSON(map[string]int{what: n})
	}
	fmt.Println(what, n)
	return nil
}

// readPrefixes reads prefixes from the command line, from files and from the
// standard input.
func readPrefixes(words []string) (out []netip.Prefix, err error) {
	if len(words) == 0 {
		return nil, usagef("want at least one prefix, file:PATH, or - for the standard input")
	}
	for _, w := range words {
		if w == "-" {
			list, err := readPrefixList("standard input", os.Stdin)
			if err != nil {
				return nil, err
			}
			out = append(out, list...)
			continue
		}
		if name, ok := strings.CutPrefix(w, "file:"); ok {
			f, err := os.Open(name)
			if err != nil {
				return nil, fmt.Errorf("read prefixes: %w", err)
			}
			list, err := readPrefixList(name, f)
			if err = errors.Join(err, f.Close()); err != nil {
				return nil, err
			}
			out = append(out, list...)
			continue
		}
		var p units.Prefix
		if err := p.UnmarshalText([]byte(w)); err != nil {
			return nil, usageError{err.Error()}
		}
		out = append(out, gate.Unmap(p.Prefix))
	}
	return out, nil
}

func readPrefixList(name string, r io.Reader) ([]netip.Prefix, error) {
	list, problems, err := gate.ReadList(r)
	if err != nil {
		return nil, fmt.Errorf("read prefixes from %s: %w", name, err)
	}
	for _, p := range problems {
		fmt.Fprintf(os.Stderr, "%s:%d:%d: %s\n", name, p.Line, p.Col, p.Text)
	}
	if len(problems) > 0 {
		return nil, usageError{}
	}
	return list, nil
}

func denyList(c *control.Client, asJSON bool) error {
	list, err := c.DenyList()
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(list)
	}
	tw := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "PREFIX\tORIGIN\tEXPIRES IN\tHITS\tWHY")
	for _, d := range list {
		expires := "never"
		if d.ExpiresSeconds != 0 {
			expires = time.Duration(d.ExpiresSeconds * float64(time.Second)).Round(time.Second).String()
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%q\n", d.Prefix, d.Origin, expires, d.Hits, d.Why)
	}
	return tw.Flush()
}
