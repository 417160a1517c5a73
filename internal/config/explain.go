package config

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"penstock/internal/units"
	"penstock/pipeline"
)

// Explain writes the configuration as it will run, in words: the ports, where
// flows go, and each chain with its stages, its depth and why.
func (c *Config) Explain(w io.Writer) {
	var b strings.Builder
	c.explainAppliance(&b)
	c.explainPorts(&b)
	c.explainGate(&b)
	c.explainSteer(&b)
	for i := range c.Chains {
		c.explainChain(&b, pipeline.ChainID(i))
	}
	c.explainEvents(&b)
	_, _ = io.WriteString(w, b.String()) // for a screen: nobody is left to tell
}

var words = map[string]string{
	"on_exit.open":          "the wire stays connected without the appliance",
	"on_exit.closed":        "the wire is cut without the appliance",
	"on_exit.router.open":   "without the appliance the kernel routes what chains want",
	"on_exit.router.closed": "without the appliance packets that chains want are dropped",
	"midstream.bypass":      "TCP flows whose beginning nobody saw go past the chains",
	"midstream.inspect":     "TCP flows whose beginning nobody saw go to their chain all the same",
	"midstream.drop":        "TCP flows whose beginning nobody saw are dropped",
	"malformed.forward":     "packets that cannot be parsed go past the chains",
	"malformed.drop":        "packets that cannot be parsed are dropped",
	"offload.never":         "flows stay in user space",
}

func (c *Config) explainAppliance(b *strings.Builder) {
	a := &c.Appliance
	names := make([]string, len(c.Ports))
	for i, p := range c.Ports {
		names[i] = p.Name
	}
	place := "between"
	if len(names) == 1 {
		place = "on"
	}
	fmt.Fprintf(b, "%s: appliance %q, a %s %s %s\n", c.File, a.Name, a.Mode, place, strings.Join(names, " and "))
	rows := table{
		{"on_exit", a.OnExit + ": " + words["on_exit."+c.mode()+a.OnExit]},
		{"heartbeat", fmt.Sprintf("a worker that is silent for %v counts as gone", a.Heartbeat)},
		{"stuck_timeout", fmt.Sprintf("a worker that makes no progress for %v ends the process", a.StuckTimeout)},
		{"midstream", a.Midstream + ": " + words["midstream."+a.Midstream]},
		{"malformed", a.Malformed + ": " + words["malformed."+a.Malformed]},
		{"control", orNone(a.Control)},
		{"metrics", orNone(a.Metrics)},
		{"pins", orNone(a.Pins)},
		{"memory", fmt.Sprintf("%d frames of %v for each queue (%v), rings of %d", a.FramesPerQueue, a.FrameSize, units.Size(a.FramesPerQueue)*a.FrameSize, a.RingSize)},
		{"max_flows", strconv.Itoa(a.MaxFlows)},
		{"drain", a.Drain.String()},
		{"drain_timeout", a.DrainTimeout.String()},
	}
	rows.write(b)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func (c *Config) explainPorts(b *strings.Builder) {
	b.WriteString("\nports\n")
	var rows table
	for _, p := range c.Ports {
		rows = append(rows, []string{p.Name, "on " + p.Interface, p.Queues.String(), "xdp " + p.XDP, "zero_copy " + p.ZeroCopy})
		if p.Fault != nil {
			rows[len(rows)-1] = append(rows[len(rows)-1], "FAULTS ARE ON: "+p.Fault.String())
		}
	}
	rows.write(b)
}

// mode distinguishes words that mean something else for a router.
func (c *Config) mode() string {
	if c.Appliance.Mode == ModeRouter {
		return "router."
	}
	return ""
}

// bypass is where goes what no chain takes.
func (c *Config) bypass() string {
	if c.Appliance.Mode == ModeRouter {
		return "bypass: the kernel routes it"
	}
	return "bypass"
}

// String returns "all queues" or "queues 0, 2".
func (q Queues) String() string {
	if q.All {
		return "all queues"
	}
	s := make([]string, len(q.List))
	for i, n := range q.List {
		s[i] = strconv.Itoa(n)
	}
	if len(s) == 1 {
		return "queue " + s[0]
	}
	return "queues " + strings.Join(s, ", ")
}

func (c *Config) explainSteer(b *strings.Builder) {
	b.WriteString("\nsteer: the first match wins\n")
	var rows table
	for i := range c.Steer {
		s := &c.Steer[i]
		rows = append(rows, []string{strconv.Itoa(i + 1), c.Match(s), "-> " + c.TargetName(s.To)})
	}
	rest := "everything"
	if len(rows) > 0 {
		rest = "everything else"
	}
	rows = append(rows, []string{"", rest, "-> " + c.bypass()})
	rows.write(b)
}

// Match returns what a steer rule matches, in words.
func (c *Config) Match(s *Steer) string {
	proto := s.Proto
	if proto == "any" {
		proto = "anything"
		if s.SrcPort != nil || s.DstPort != nil {
			proto = "tcp or udp" // the protocols that have ports
		}
	}
	parts := []string{proto}
	if int(s.From) < len(c.Ports) {
		parts[0] += " from port " + c.Ports[s.From].Name
	}
	add := func(what string, n int, at func(i int) string) {
		if n == 0 {
			return
		}
		const most = 4
		some := make([]string, min(n, most))
		for i := range some {
			some[i] = at(i)
		}
		text := strings.Join(some, " or ")
		if n > most {
			text += fmt.Sprintf(" or %d more", n-most)
		}
		parts = append(parts, what+" "+text)
	}
	add("src", len(s.Src), func(i int) string { return s.Src[i].String() })
	add("dst", len(s.Dst), func(i int) string { return s.Dst[i].String() })
	add("src_port", len(s.SrcPort), func(i int) string { return s.SrcPort[i].String() })
	add("dst_port", len(s.DstPort), func(i int) string { return s.DstPort[i].String() })
	return strings.Join(parts, ", ")
}

// TargetName returns "chain NAME", "bypass" or "drop".
func (c *Config) TargetName(t Target) string {
	switch {
	case t.Action == ToBypass:
		return "bypass"
	case t.Action == ToChain && int(t.Chain) < len(c.Chains):
		return "chain " + c.Chains[t.Chain].Name
	}
	return "drop"
}

var layers = map[pipeline.Layer]string{
	pipeline.PacketLayer:   "packets",
	pipeline.BoundaryLayer: "packets to streams",
	pipeline.StreamLayer:   "streams",
}

func (c *Config) explainChain(b *strings.Builder, id pipeline.ChainID) {
	ch := &c.Chains[id]
	fmt.Fprintf(b, "\nchain %s\n", ch.Name)
	var rows table
	for i, st := range ch.Spec.Stages {
		rows = append(rows, []string{strconv.Itoa(i + 1), st.Kind.Name, layers[st.Kind.Layer], st.Kind.Summary})
	}
	if len(rows) == 0 {
		rows = table{{"no stages: every packet is forwarded"}}
	}
	rows.write(b)
	for _, st := range ch.Spec.Stages {
		for _, line := range st.Kind.Describe(st.Config) {
			fmt.Fprintf(b, "     %s %s\n", st.Kind.Name, line)
		}
	}

	depth, stage, why := ch.Spec.Depth()
	if stage != "" {
		why = stage + ": " + why
	}
	var from []string
	for i, s := range c.Steer {
		if s.To.Action == ToChain && s.To.Chain == id {
			from = append(from, strconv.Itoa(i+1))
		}
	}
	flows := "none: no steer rule leads here"
	if len(from) > 0 {
		flows = "steer " + strings.Join(from, ", ")
	}
	affinity := "each packet is handled where it arrives"
	if ch.Spec.Affinity() {
		affinity = "both directions of a flow meet in one worker"
	}
	table{
		{"depth", fmt.Sprintf("%v (%s)", depth, why)},
		{"offload", ch.Offload + ": " + offload(&ch.Spec)},
		{"flows", flows},
		{"workers", affinity},
	}.write(b)
}

// offload says when the flows of a chain leave user space, or what keeps them.
func offload(spec *pipeline.ChainSpec) string {
	switch stage, why := spec.Holder(); {
	case spec.KeepFlows:
		return words["offload.never"]
	case stage != "":
		return fmt.Sprintf("flows stay in user space: %s %s", stage, why)
	case len(spec.Stages) == 0:
		return "flows leave user space with their first packet: there is no stage"
	}
	var when []string
	for _, st := range spec.Stages {
		if text := st.Kind.Releases(st.Config); text != "" {
			when = append(when, st.Kind.Name+" "+text)
		}
	}
	text := "flows leave user space as soon as every stage has let go of them"
	if d, _, _ := spec.Depth(); d == pipeline.DepthTerminate {
		text += " and nothing is on its way: they are spliced"
	}
	if len(when) > 0 {
		text += " (" + strings.Join(when, "; ") + ")"
	}
	return text
}

func (c *Config) explainEvents(b *strings.Builder) {
	if len(c.Record) == 0 {
		return
	}
	b.WriteString("\nevents\n")
	var rows table
	for _, r := range c.Record {
		rows = append(rows, []string{strings.Join(r.Events, ", "), "-> " + r.To})
	}
	rows.write(b)
}

// table is rows of cells that are written in columns.
type table [][]string

func (t table) write(b *strings.Builder) {
	var widths []int
	for _, row := range t {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range t {
		var line strings.Builder
		for i, cell := range row {
			fmt.Fprintf(&line, "  %-*s", widths[i], cell)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}
