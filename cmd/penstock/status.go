package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"penstock/internal/control"
)

const defaultControl = "/run/penstock/control.sock"

// clientFlags returns the flag set of a command that talks to a running
// appliance, with the flags that all of them have.
func clientFlags(name, args string) (fs *flag.FlagSet, path *string, asJSON *bool) {
	fs = newFlags(name, args)
	path = fs.String("control", defaultControl, "control socket of the appliance")
	asJSON = fs.Bool("json", false, "print JSON")
	return fs, path, asJSON
}

// parseAll reads flags where no other arguments are allowed.
func parseAll(fs *flag.FlagSet, args []string) error {
	rest, err := parse(fs, args)
	if err == nil && len(rest) > 0 {
		err = usagef("want no arguments, got %q", rest)
	}
	return err
}

func statusCommand(args []string) error {
	fs, path, asJSON := clientFlags("status", "[--control PATH] [--json]")
	if err := parseAll(fs, args); err != nil {
		return err
	}
	s, err := control.NewClient(*path).Status()
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(s)
	}
	printStatus(os.Stdout, s)
	return nil
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// size writes a number of bytes for people.
func size(n uint64) string {
	const units = "kMGTP"
	if n < 1000 {
		return fmt.Sprintf("%dB", n)
	}
	f := float64(n)
	u := -1
	for f >= 1000 && u < len(units)-1 {
		f /= 1000
		u++
	}
	return fmt.Sprintf("%.1f%cB", f, units[u])
}

func printStatus(out io.Writer, s control.Status) {
	fmt.Fprintf(out, "%s: %s mode, up %s, process %d, version %s\n", s.Name, s.Mode,
		time.Duration(s.UptimeSeconds*float64(time.Second)).Round(time.Second), s.PID, s.Version)
	fmt.Fprintf(out, "config %s, on exit the wire stays %s\n", s.Config, s.OnExit)
	if s.Draining {
		fmt.Fprintln(out, "draining: no new connections are terminated")
	}
	if r := s.Reloads; r.Applied+r.Refused > 0 {
		fmt.Fprintf(out, "reloads: %d applied, %d refused, the last at %s\n", r.Applied, r.Refused, r.At.Format(time.RFC3339))
		if r.LastError != "" {
			fmt.Fprintln(out, "  the last one was refused:", r.LastError)
		}
	}
	for _, l := range s.Leaving {
		fmt.Fprintf(out, "chain %q of an earlier configuration (number %d) still has %s, for %s at most\n", l.Chain, l.ID, depthsText(l.Flows),
			time.Duration(l.LeftSeconds*float64(time.Second)).Round(time.Second))
	}
	if i := s.Inherited; i != nil {
		fmt.Fprintf(out, "taken over: %d flows stayed offloaded, %d went on in chains, %d were bypassed, %d forgotten\n", i.Offloaded, i.Resumed, i.Bypassed, i.Forgotten)
		if x := i.Before; x != nil {
			fmt.Fprintf(out, "  the instance before finished %d terminated connections in %.1f s and cut %d\n", x.Finished, x.Seconds, x.Cut)
		}
		if i.Refused != "" {
			fmt.Fprintln(out, "  nothing was taken over:", i.Refused)
		}
	}
	for _, w := range s.Warnings {
		fmt.Fprintln(out, "warning:", w)
	}

	tw := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "\nPORT\tINTERFACE\tLINK\tXDP\tQUEUE\tSOCKET\tRECEIVED\tSENT\tREFUSED\tFRAMES HELD")
	for _, p := range s.Ports {
		for i, q := range p.Queues {
			name, ifc, link, xdp := p.Name, p.Interface, "down", p.XDP
			if p.LinkUp {
				link = "up"
			}
			if p.Leaving {
				link += ", leaves"
			}
			if i > 0 {
				name, ifc, link, xdp = "", "", "", ""
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\t%s\t%d pkt, %s\t%d pkt, %s\t%d\t%d\n", name, ifc, link, xdp, q.Queue, q.Mode,
				q.RxPackets, size(q.RxBytes), q.TxPackets, size(q.TxBytes), q.TxRefused, q.InFlight)
		}
	}
	tw.Flush()

	fmt.Fprintln(tw, "\nIN XDP\tREASON\tPACKETS\tBYTES")
	for _, p := range s.Ports {
		for i, reason := range sortedKeys(p.Reasons) {
			name := p.Name
			if i > 0 {
				name = ""
			}
			c := p.Reasons[reason]
			fmt.Fprintf(tw, "%s\t%s\t%d\t%s\n", name, reason, c.Packets, size(c.Bytes))
		}
	}
	tw.Flush()

	if s.Router != nil {
		fmt.Fprintln(tw, "\nROUTER\tCOUNT")
		for _, name := range sortedKeys(s.Router) {
			fmt.Fprintf(tw, "%s\t%d\n", name, s.Router[name])
		}
		tw.Flush()
	}

	fmt.Fprintln(tw, "\nCHAIN\tDEPTH\tSTAGE\tPACKETS\tCONTINUE\tDROP\tFORWARD\tCONSUME\tCOUNTERS")
	for _, c := range s.Chains {
		note := ""
		if c.Drained {
			note = "drained: new flows are bypassed"
		}
		fmt.Fprintf(tw, "%s\t%s\t\t%d\t\t\t\t\t%s\n", c.Name, c.Depth, c.Packets, note)
		for _, st := range c.Stages {
			var counters []string
			for _, name := range sortedKeys(st.Counters) {
				if n := st.Counters[name]; n > 0 {
					counters = append(counters, fmt.Sprintf("%s=%d", name, n))
				}
			}
			fmt.Fprintf(tw, "\t\t%s\t%d\t%d\t%d\t%d\t%d\t%s\n", st.Kind, st.Packets, st.Continued, st.Dropped, st.Forwarded, st.Consumed,
				strings.Join(counters, " "))
		}
	}
	tw.Flush()

	t := s.Totals
	fmt.Fprintf(out, "\nin user space: %d packets = %d forwarded + %d consumed + %d dropped; %d made by stages, %d of them lost\n",
		t.Packets, t.Forwarded, t.Consumed, t.DroppedTotal(), t.Emitted+t.EmitLost, t.EmitLost)
	for _, reason := range sortedKeys(t.Dropped) {
		fmt.Fprintf(out, "  dropped, %s: %d\n", reason, t.Dropped[reason])
	}
	f := s.Frames
	fmt.Fprintf(out, "frames: %d = %d free + %d in the kernel + %d in hand, of %d bytes\n", f.Total, f.Free, f.InFlight, f.Total-f.Free-f.InFlight, f.Size)
	fmt.Fprintf(out, "flows: %d steered (of at most %d), %d of them offloaded, %d terminated\n", s.Flows.Steered, s.Flows.Limit, s.Flows.Offloaded, s.Flows.Terminated)
	for _, w := range s.Workers {
		if d := w.OffloadDelay; d.Count > 0 {
			fmt.Fprintf(out, "offload by worker %d: %d flows, from release to XDP %s (p50), %s (p99)\n", w.ID, w.Offloaded, micros(d.P50), micros(d.P99))
		}
	}
	for _, r := range s.Records {
		fmt.Fprintf(out, "records to %s: %d written, %d dropped, %d failed, %d queued\n", r.To, r.Written, r.Dropped, r.Failed, r.Queued)
		if r.Error != "" {
			fmt.Fprintf(out, "  last error: %s\n", r.Error)
		}
	}
	if r := s.RemovedRecords; r != nil {
		fmt.Fprintf(out, "records to what reloads have removed: %d written, %d dropped, %d failed, %d queued\n", r.Written, r.Dropped, r.Failed, r.Queued)
	}
	for _, e := range s.Exports {
		fmt.Fprintf(out, "%s to %s: %d sent, %d dropped, %d failed, %d queued\n", e.Kind, e.To, e.Sent, e.Dropped, e.Failed, e.Queued)
		if e.Error != "" {
			fmt.Fprintf(out, "  last error: %s\n", e.Error)
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// micros is a short time.
func micros(seconds float64) time.Duration {
	return time.Duration(seconds * 1e9).Round(100 * time.Nanosecond)
}
