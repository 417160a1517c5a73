package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"penstock/internal/control"
	"penstock/internal/units"
	"penstock/pipeline"
)

const flowsArgs = "[--control PATH] [--json] [--src PREFIX] [--port PORT] [--depth DEPTH] [--chain NAME]"

func flowsCommand(args []string) error {
	fs, path, asJSON := clientFlags("flows", flowsArgs)
	var want flowFilter
	want.flags(fs)
	if err := parseAll(fs, args); err != nil {
		return err
	}
	flows, err := control.NewClient(*path).Flows()
	if err != nil {
		return err
	}
	flows = slices.DeleteFunc(flows, func(f control.Flow) bool { return !want.match(f) })
	slices.SortFunc(flows, func(a, b control.Flow) int { return strings.Compare(a.Client, b.Client) })
	if *asJSON {
		enc := json.NewEncoder(os.Stdout)
		for _, f := range flows {
			if err := enc.Encode(f); err != nil {
				return err
			}
		}
		return nil
	}
	tw := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "CLIENT\tSERVER\tPROTO\tCHAIN\tDEPTH\tSTATE\tAGE\tPACKETS\tBYTES\tWHY NOT HIGHER")
	for _, f := range flows {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", f.Client, f.Server, f.Proto, f.Chain, f.Depth, f.State,
			time.Duration(f.AgeSeconds*float64(time.Second)).Round(time.Second), f.Packets, size(f.Bytes), f.Why)
	}
	return tw.Flush()
}

// flowFilter says which flows are shown; its zero value: all.
type flowFilter struct {
	src   units.Prefix
	port  portFilter
	depth depthFilter
	chain string
}

func (w *flowFilter) flags(fs *flag.FlagSet) {
	fs.TextVar(&w.src, "src", units.Prefix{}, "only flows of clients in this `prefix`")
	fs.TextVar(&w.port, "port", portFilter{}, "only flows to this `port` of a server, or to a range: 8000-8099")
	fs.TextVar(&w.depth, "depth", depthFilter(""), "only flows of this `depth`: offload, forward, inspect or terminate")
	fs.StringVar(&w.chain, "chain", "", "only flows of the chain of this `name`")
}

func (w *flowFilter) match(f control.Flow) bool {
	if w.depth != "" && string(w.depth) != f.Depth || w.chain != "" && w.chain != f.Chain {
		return false
	}
	if w.src.IsValid() {
		client, err := netip.ParseAddrPort(f.Client)
		if err != nil || !w.src.Contains(client.Addr()) {
			return false
		}
	}
	if w.port.Last != 0 {
		server, err := netip.ParseAddrPort(f.Server)
		if err != nil || !w.port.Contains(server.Port()) {
			return false
		}
	}
	return true
}

// portFilter is a port or a range of ports on the command line.
type portFilter struct{ units.PortRange }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *portFilter) UnmarshalText(b []byte) error { return p.UnmarshalTOML(string(b)) }

// MarshalText implements encoding.TextMarshaler.
func (p portFilter) MarshalText() ([]byte, error) {
	if p.Last == 0 {
		return nil, nil
	}
	return []byte(p.String()), nil
}

// depthFilter is the name of a depth, or "".
type depthFilter string

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *depthFilter) UnmarshalText(b []byte) error {
	for depth := pipeline.DepthOffload; depth <= pipeline.DepthTerminate; depth++ {
		if string(b) == depth.String() {
			*d = depthFilter(b)
			return nil
		}
	}
	return fmt.Errorf("want offload, forward, inspect or terminate, got %q", b)
}

// MarshalText implements encoding.TextMarshaler.
func (d depthFilter) MarshalText() ([]byte, error) { return []byte(d), nil }
