package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// report is a whole run.
type report struct {
	Conditions conditions  `json:"conditions"`
	Rounds     int         `json:"rounds"`
	Seconds    int         `json:"seconds_per_load"`
	Results    []result    `json:"results"`
	XSK        *xskResults `json:"xsk,omitempty"`
	Floors     []floor     `json:"floors"`
	Of         string      `json:"of,omitempty"` // the gateway that the tables compare with; "": what is usual for a workload
}

// peer is the gateway that the others are compared with.
func (r report) peer(w workload) string {
	switch {
	case r.Of != "":
		return r.Of
	case strings.HasPrefix(w.name, "tls-"):
		return tlsYardstick
	}
	return yardstick
}

// floor is something that must hold.
type floor struct {
	What string `json:"what"`
	Held bool   `json:"held"`
	Seen string `json:"seen"`
}

const (
	yardstick     = "haproxy-tcp"
	limit         = "redirect"
	judged        = "forward"
	floorWorkload = "keepalive"
	forwardFloor  = 1.2 // of HAProxy's requests for a CPU-second
)

// spread is several measurements of one thing.
type spread struct{ Median, Min, Max float64 }

func spreadOf(v []float64) spread {
	if len(v) == 0 {
		return spread{}
	}
	v = slices.Sorted(slices.Values(v))
	mid := len(v) / 2
	m := v[mid]
	if len(v)%2 == 0 {
		m = (v[mid-1] + v[mid]) / 2
	}
	return spread{m, v[0], v[len(v)-1]}
}

// of returns the rounds of a gateway and a workload that did not fail.
func (r report) of(gateway, workload string) (out []result) {
	for _, m := range r.Results {
		if m.Gateway == gateway && m.Workload == workload && m.Failed == "" {
			out = append(out, m)
		}
	}
	return out
}

// failed counts the rounds of a gateway and a workload that failed.
func (r report) failed(gateway, workload string) (n int) {
	for _, m := range r.Results {
		if m.Gateway == gateway && m.Workload == workload && m.Failed != "" {
			n++
		}
	}
	return n
}

// ratio compares two gateways round by round, so that what changes on the
// machine from one round to the next cancels out.
func (r report) ratio(gateway, to, workload string) (s spread, ok bool) {
	var v []float64
	for _, a := range r.of(gateway, workload) {
		for _, b := range r.of(to, workload) {
			if a.Round == b.Round {
				v = append(v, a.PerCPUSecond/b.PerCPUSecond)
			}
		}
	}
	return spreadOf(v), len(v) > 0
}

func (r report) gateways(workload string) (out []string) {
	for _, m := range r.Results {
		if m.Workload == workload && !slices.Contains(out, m.Gateway) {
			out = append(out, m.Gateway)
		}
	}
	return out
}

// failures returns what went wrong, gateways that are not installed left out.
func (r report) failures() (out []string) {
	for _, m := range r.Results {
		if m.Failed != "" && !m.Absent {
			out = append(out, fmt.Sprintf("%s, %s, round %d: %s", m.Gateway, m.Workload, m.Round+1, m.Failed))
		}
	}
	if r.XSK != nil && r.XSK.Failed != "" {
		out = append(out, r.XSK.Failed)
	}
	return out
}

func (r report) floors() (out []floor) {
	if s, ok := r.ratio(judged, yardstick, floorWorkload); ok {
		out = append(out, floor{
			What: fmt.Sprintf("%s does at least %.1f times the keep-alive requests of %s for a gateway CPU-second", judged, forwardFloor, yardstick),
			Held: s.Median >= forwardFloor, Seen: fmt.Sprintf("%.2f [%.2f-%.2f]", s.Median, s.Min, s.Max),
		})
	}
	if r.XSK != nil {
		f := floor{What: "package xsk moves more packets for a CPU-second than either of its peers", Held: len(r.XSK.Lines) > 0}
		var seen []string
		for _, l := range r.XSK.Lines {
			if l.Package == "penstock" {
				continue
			}
			seen = append(seen, fmt.Sprintf("%s at %s: %.2f of it", l.Package, l.Size, l.OfPenstocks))
			f.Held = f.Held && l.OfPenstocks > 0 && l.OfPenstocks < 1
		}
		f.Held, f.Seen = f.Held && len(seen) > 0, strings.Join(seen, ", ")
		out = append(out, f)
	}
	return out
}

func (r report) passed() bool {
	return len(r.failures()) == 0 && !slices.ContainsFunc(r.Floors, func(f floor) bool { return !f.Held })
}

func (r report) writeJSON(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func (r report) print(out io.Writer) {
	r.printConditions(out)
	for _, w := range workloads() {
		if len(r.gateways(w.name)) > 0 {
			r.printWorkload(out, w)
		}
	}
	r.breakEvens(out)
	r.printMemory(out)
	r.printXSK(out)
	fmt.Fprintln(out)
	for _, f := range r.failures() {
		fmt.Fprintln(out, "FAILED ", f)
	}
	for _, f := range r.Floors {
		verdict := "PASS"
		if !f.Held {
			verdict = "FAIL"
		}
		fmt.Fprintf(out, "%s    %s: %s\n", verdict, f.What, f.Seen)
	}
	if len(r.Floors) == 0 {
		fmt.Fprintln(out, "no floor could be judged: what it compares was not run")
	}
}

func (r report) printConditions(out io.Writer) {
	c := r.Conditions
	fmt.Fprintf(out, "%s, Linux %s, %d CPUs (%s), load average %s before and %s after, %.0f s\n",
		c.Date, c.Kernel, c.CPUs, c.CPU, c.LoadBefore, c.LoadAfter, c.Took)
	fmt.Fprintf(out, "veth pairs (not a NIC: every packet is copied into XDP, no zero-copy), one queue, MTU %d, gateway on CPU %d, ends on CPU %d, %d rounds of %d s\n",
		c.MTU, gatewayCPU, endpointCPU, r.Rounds, r.Seconds)
	for _, at := range slices.Sorted(maps.Keys(c.Offloads)) {
		fmt.Fprintf(out, "  offloads of %-22s %s\n", at, c.Offloads[at])
	}
	for _, name := range slices.Sorted(maps.Keys(c.Versions)) {
		fmt.Fprintf(out, "  %s: %s\n", name, c.Versions[name])
	}
}

func (r report) printWorkload(out io.Writer, w workload) {
	fmt.Fprintf(out, "\n%s: %s\n", w.name, w.about)
	tw := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	head := "  GATEWAY\t" + strings.ToUpper(w.unit) + " PER GATEWAY CPU-S\tOF " + strings.ToUpper(r.peer(w)) + "\tOF " + strings.ToUpper(limit) + "\tPER SECOND\tCPU\tRETRANSMITS"
	if w.name == "pingpong" {
		head += "\tP50 US\tP99 US"
	}
	fmt.Fprintln(tw, head)
	for _, g := range r.gateways(w.name) {
		rounds := r.of(g, w.name)
		if len(rounds) == 0 {
			fmt.Fprintf(tw, "  %s\t%s\n", g, r.why(g, w.name))
			continue
		}
		var rate, wall, cpu, repeats, p50, p99 []float64
		for _, m := range rounds {
			rate, wall = append(rate, m.PerCPUSecond), append(wall, m.Work/m.Seconds)
			cpu, repeats = append(cpu, 100*m.CPUSeconds/m.Seconds), append(repeats, float64(m.Retransmits))
			p50, p99 = append(p50, m.P50), append(p99, m.P99)
		}
		s, n := spreadOf(rate), spreadOf(repeats)
		fmt.Fprintf(tw, "  %s\t%s [%s-%s]\t%s\t%s\t%s\t%.0f %%\t%.0f [%.0f-%.0f]", g, figure(s.Median), figure(s.Min), figure(s.Max),
			r.ratioText(g, r.peer(w), w.name), r.ratioText(g, limit, w.name), figure(spreadOf(wall).Median), spreadOf(cpu).Median, n.Median, n.Min, n.Max)
		if w.name == "pingpong" {
			fmt.Fprintf(tw, "\t%s\t%s", whole(spreadOf(p50)), whole(spreadOf(p99)))
		}
		if n := r.failed(g, w.name); n > 0 {
			fmt.Fprintf(tw, "\t%d of %d rounds failed", n, n+len(rounds))
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
	r.printSetup(out, w)
}

// printSetup says, where connections are short, how soon their flows were in
// XDP.
func (r report) printSetup(out io.Writer, w workload) {
	if w.name != "close" {
		return
	}
	for _, g := range r.gateways(w.name) {
		var p50, p99 []float64
		flows := uint64(0)
		for _, m := range r.of(g, w.name) {
			if m.Setup != nil && m.Setup.Count > 0 {
				p50, p99 = append(p50, 1e6*m.Setup.P50), append(p99, 1e6*m.Setup.P99)
				flows += m.Setup.Count
			}
		}
		if flows > 0 {
			fmt.Fprintf(out, "  %s: from the release of a flow to XDP having it %s us (p50), %s us (p99), %d flows\n",
				g, whole(spreadOf(p50)), whole(spreadOf(p99)), flows)
		}
	}
}

// why says what was wrong with a gateway's first failed round.
func (r report) why(gateway, workload string) string {
	for _, m := range r.Results {
		if m.Gateway == gateway && m.Workload == workload && m.Failed != "" {
			if m.Absent {
				return "absent: " + m.Failed
			}
			return "FAILED: " + m.Failed
		}
	}
	return ""
}

func (r report) ratioText(gateway, to, workload string) string {
	s, ok := r.ratio(gateway, to, workload)
	if !ok {
		return "-"
	}
	return fmt.Sprintf("%.2f [%.2f-%.2f]", s.Median, s.Min, s.Max)
}

// text is a result's main figure.
func (m result) text() string { return figure(m.PerCPUSecond) }

// figure writes a number with three digits or so.
func figure(v float64) string {
	switch {
	case v >= 1e4:
		return fmt.Sprintf("%.0fk", v/1e3)
	case v >= 1e3:
		return fmt.Sprintf("%.1fk", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r report) printXSK(out io.Writer) {
	if r.XSK == nil || len(r.XSK.Lines) == 0 {
		return
	}
	fmt.Fprintln(out, "\nxsk: package xsk beside its peers, receive on one veth and transmit on another (go test ./xsk -bench BenchmarkForward)")
	tw := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "  PACKETS\tPACKAGE\tKPKT PER CPU-S\tOF PENSTOCK\tKPKT PER SECOND")
	for _, l := range r.XSK.Lines {
		fmt.Fprintf(tw, "  %s\t%s\t%.0f\t%.2f\t%.0f\n", l.Size, l.Package, l.PerCPU, l.OfPenstocks, l.PerSecond)
	}
	tw.Flush()
}
