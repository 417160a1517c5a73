package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"penstock/internal/control"
)

const (
	reloadArgs = "[--control PATH] [--dry-run] [--json]"
	drainArgs  = "[--control PATH] [--chain NAME] [--undo] [--wait TIME] [--json]"
)

// reloadCommand has a running appliance read its configuration again.
func reloadCommand(args []string) error {
	fs, path, asJSON := clientFlags("reload", reloadArgs)
	dry := fs.Bool("dry-run", false, "say what would change, and change nothing")
	if err := parseAll(fs, args); err != nil {
		return err
	}
	r, err := control.NewClient(*path).Reload(*dry)
	if err != nil {
		return err
	}
	if *asJSON {
		if err := printJSON(r); err != nil {
			return err
		}
	} else {
		printReload(os.Stdout, r, *dry)
	}
	for _, p := range r.Problems {
		fmt.Fprintln(os.Stderr, p)
	}
	switch {
	case len(r.Problems) > 0:
		return usagef("%s is wrong: nothing has changed", r.Config)
	case r.Refused != "":
		return fmt.Errorf("reload %s: %s; nothing has changed", r.Config, r.Refused)
	}
	return nil
}

func printReload(out io.Writer, r control.Reload, dry bool) {
	for _, w := range r.Warnings {
		fmt.Fprintln(out, "warning:", w)
	}
	for _, c := range r.Changes {
		mark := " "
		if c.Restart {
			mark = "!"
		}
		fmt.Fprintln(out, mark, c.Text)
	}
	switch {
	case len(r.Problems) > 0:
	case len(r.Changes) == 0:
		fmt.Fprintln(out, "nothing is different in", r.Config)
	case r.Applied:
		fmt.Fprintf(out, "reloaded in %v: %s\n", time.Duration(r.Seconds*float64(time.Second)).Round(100*time.Microsecond), chainsText(r))
	case dry && r.Refused == "":
		fmt.Fprintln(out, "a reload would change this")
	}
}

func chainsText(r control.Reload) string {
	var parts []string
	for _, p := range []struct {
		what  string
		names []string
	}{{"built", r.Built}, {"kept", r.Kept}, {"leaving when their flows have ended", r.Leaving}} {
		if len(p.names) > 0 {
			parts = append(parts, fmt.Sprintf("chains %s: %s", p.what, strings.Join(p.names, ", ")))
		}
	}
	if len(parts) == 0 {
		return "no chains"
	}
	return strings.Join(parts, "; ")
}

// depthsText is how many flows there are, by depth.
func depthsText(d control.Depths) string {
	return fmt.Sprintf("%d forwarded, %d inspected, %d terminated, %d spliced, %d offloaded flows", d.Forwarded, d.Inspected, d.Terminated, d.Spliced, d.Offloaded)
}

// drainPoll is how often drain asks how far it is.
const drainPoll = 500 * time.Millisecond

// drainCommand has new flows bypassed, and waits for those in the chains.
func drainCommand(args []string) error {
	fs, path, asJSON := clientFlags("drain", drainArgs)
	var ask control.DrainAsk
	fs.StringVar(&ask.Chain, "chain", "", "`name` of the chain; absent: all")
	fs.BoolVar(&ask.Undo, "undo", false, "new flows go to the chain again")
	wait := fs.Duration("wait", 10*time.Minute, "wait for at most this `time` until no flow is left in user space; 0: do not")
	if err := parseAll(fs, args); err != nil {
		return err
	}
	if *wait < 0 {
		return usagef("--wait: want a time that is not negative, got %v", *wait)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	c := control.NewClient(*path)
	list, err := c.Drain(ask)
	if err != nil {
		return err
	}
	left := inUserSpace(list, ask.Chain)
	if !ask.Undo {
		for deadline := time.Now().Add(*wait); left > 0 && time.Now().Before(deadline); left = inUserSpace(list, ask.Chain) {
			if !*asJSON {
				fmt.Fprintf(os.Stderr, "%d flows are left in user space\n", left)
			}
			select {
			case <-ctx.Done():
				return errors.New("not waited for any longer; new flows stay bypassed until drain --undo")
			case <-time.After(min(drainPoll, time.Until(deadline))):
			}
			if list, err = c.Drains(); err != nil {
				return err
			}
		}
	}
	if err := printDrain(list, *asJSON); err != nil {
		return err
	}
	if left > 0 && !ask.Undo && *wait > 0 {
		return fmt.Errorf("%d flows are left in user space after %v; new flows stay bypassed until drain --undo", left, *wait)
	}
	return nil
}

func inUserSpace(list []control.Drain, chain string) (n int) {
	for _, d := range list {
		if chain == "" || chain == d.Chain {
			n += d.Flows.InUserSpace()
		}
	}
	return n
}

func printDrain(list []control.Drain, asJSON bool) error {
	if asJSON {
		return printJSON(list)
	}
	tw := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "CHAIN\tNEW FLOWS\tFORWARDED\tINSPECTED\tTERMINATED\tSPLICED\tOFFLOADED")
	for _, d := range list {
		state := "taken"
		if d.Drained {
			state = "bypassed"
		}
		f := d.Flows
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%d\t%d\n", d.Chain, state, f.Forwarded, f.Inspected, f.Terminated, f.Spliced, f.Offloaded)
	}
	return tw.Flush()
}
