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

const flowsArgs = "[--control PATH] [--json] [--evict] [--interval TIME] [--src PREFIX] [--port PORT] [--depth DEPTH] [--chain NAME]"

func flowsCommand(args []string) error {
	fs, path, asJSON := clientFlags("flows", flowsArgs)
	interval := fs.Duration("interval", 500*time.Millisecond, "`time` over which rates are measured; 0: over each flow's life")
	evict := fs.Bool("evict", false, "forget the flows that are listed: TCP flows that go on are midstream, and new ones are seen by their stages")
	var want flowFilter
	want.flags(fs)
	if err := parseAll(fs, args); err != nil {
		return err
	}
	if *interval < 0 || *interval > time.Hour {
		return usagef("--interval: want 0 to 1h, got %v", *interval)
	}
	if *evict && want == (flowFilter{}) {
		return usagef("--evict wants a filter: --src, --port, --depth or --chain; for all flows, --src 0.0.0.0/0 and --src ::/0")
	}
	client := control.NewClient(*path)
	flows, err := flowsWithRates(client, *interval)
	if err != nil {
		return err
	}
	flows = slices.DeleteFunc(flows, func(f ratedFlow) bool { return !want.match(f.Flow) })
	slices.SortFunc(flows, func(a, b ratedFlow) int { return strings.Compare(a.Client, b.Client) })
	if *evict {
		list := make([]control.Flow, len(flows))
		for i, f := range flows {
			list[i] = f.Flow
		}
		n, err := client.Evict(list)
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%d of %d flows were forgotten\n", n, len(list))
	}
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
	fmt.Fprintln(tw, "CLIENT\tSERVER\tPROTO\tCHAIN\tDEPTH\tSTATE\tAGE\tPACKETS\tBYTES\tPKT/S\tBIT/S\tWHY NOT HIGHER")
	for _, f := range flows {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%.0f\t%s\t%s\n", f.Client, f.Server, f.Proto, f.Chain, f.Depth, f.State,
			time.Duration(f.AgeSeconds*float64(time.Second)).Round(time.Second), f.Packets, size(f.Bytes),
			f.PacketsPerSecond, bitRate(8*f.BytesPerSecond), f.Why)
	}
	return tw.Flush()
}

// ratedFlow is a flow and how fast it goes.
type ratedFlow struct {
	control.Flow
	PacketsPerSecond float64 `json:"packets_per_second"`
	BytesPerSecond   float64 `json:"bytes_per_second"`
}

// flowsWithRates asks twice, interval apart, and returns the flows of the second
// answer. The rates of a flow that has begun in between, or of all flows if
// interval is 0, are those of its life.
func flowsWithRates(c *control.Client, interval time.Duration) ([]ratedFlow, error) {
	var before []control.Flow
	if interval > 0 {
		var err error
		if before, err = c.Flows(); err != nil {
			return nil, err
		}
		time.Sleep(interval)
	}
	flows, err := c.Flows()
	if err != nil {
		return nil, err
	}
	return rateAll(before, flows), nil
}

// rateAll compares flows with what they were before.
func rateAll(before, now []control.Flow) []ratedFlow {
	type key struct{ client, server, proto, vlan string }
	keyOf := func(f control.Flow) key { return key{f.Client, f.Server, f.Proto, fmt.Sprint(f.VLAN)} }
	were := make(map[key]control.Flow, len(before))
	for _, f := range before {
		were[keyOf(f)] = f
	}
	rated := make([]ratedFlow, len(now))
	for i, f := range now {
		rated[i] = rate(f, were[keyOf(f)])
	}
	return rated
}

// rate compares a flow with what it was before; the zero Flow: it was not there.
func rate(now, before control.Flow) ratedFlow {
	r := ratedFlow{Flow: now}
	if now.Packets < before.Packets || now.AgeSeconds < before.AgeSeconds {
		before = control.Flow{} // another flow of the same name
	}
	if seconds := now.AgeSeconds - before.AgeSeconds; seconds > 0 {
		r.PacketsPerSecond = float64(now.Packets-before.Packets) / seconds
		r.BytesPerSecond = float64(now.Bytes-before.Bytes) / seconds
	}
	return r
}

// bitRate is bits a second as a person reads them.
func bitRate(v float64) string {
	unit := 0
	for v >= 999.5 && unit < len(bitUnits)-1 {
		v /= 1000
		unit++
	}
	switch {
	case unit > 0 && v < 9.95:
		return fmt.Sprintf("%.1f%s", v, bitUnits[unit])
	default:
		return fmt.Sprintf("%.0f%s", v, bitUnits[unit])
	}
}

var bitUnits = [...]string{"", "k", "M", "G", "T"}

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
