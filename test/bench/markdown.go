package main

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// writeMarkdown writes the tables of docs/performance.md.
func (r report) writeMarkdown(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	r.markdown(f)
	return f.Close()
}

func (r report) markdown(out io.Writer) {
	c := r.Conditions
	fmt.Fprintf(out, "%s, source %s, Linux %s, %d CPUs (%s), load average %s before and %s after; %d rounds of %d s.\n%s, %s, %s.\n",
		c.Date, c.Versions["source"], c.Kernel, c.CPUs, c.CPU, c.LoadBefore, c.LoadAfter, r.Rounds, r.Seconds,
		c.Versions["haproxy"], c.Versions["nginx"], c.Versions["go"])
	for _, w := range workloads() {
		gateways := r.gateways(w.name)
		if len(gateways) == 0 {
			continue
		}
		columns := []string{"`" + w.name + "`", w.unit + " per gateway CPU-s", "of `" + r.peer(w) + "`", "of `" + limit + "`", "gateway CPU", "retransmits"}
		latency := w.name == "pingpong"
		if latency {
			columns = append(columns[:3], "p50, us", "p99, us")
		}
		fmt.Fprintf(out, "\n| %s |\n|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
		for _, g := range gateways {
			rounds := r.of(g, w.name)
			if len(rounds) == 0 {
				fmt.Fprintf(out, "| `%s` | %s |%s\n", g, r.why(g, w.name), strings.Repeat(" |", len(columns)-2))
				continue
			}
			each := func(of func(result) float64) spread {
				var v []float64
				for _, m := range rounds {
					v = append(v, of(m))
				}
				return spreadOf(v)
			}
			rate := each(func(m result) float64 { return m.PerCPUSecond })
			fmt.Fprintf(out, "| `%s` | %s [%s-%s] | %s | ", g, figure(rate.Median), figure(rate.Min), figure(rate.Max), r.ratioText(g, r.peer(w), w.name))
			if latency {
				fmt.Fprintf(out, "%s | %s |\n", whole(each(func(m result) float64 { return m.P50 })), whole(each(func(m result) float64 { return m.P99 })))
				continue
			}
			fmt.Fprintf(out, "%s | %.0f %% | %s |\n", r.ratioText(g, limit, w.name), each(func(m result) float64 { return 100 * m.CPUSeconds / m.Seconds }).Median,
				whole(each(func(m result) float64 { return float64(m.Retransmits) })))
		}
	}
	r.breakEvens(out)
	r.markdownMemory(out)
	if r.XSK != nil && len(r.XSK.Lines) > 0 {
		fmt.Fprint(out, "\n| AF_XDP package | packets | kpkt per CPU-s | of Penstock's |\n|---|---|---|---|\n")
		for _, l := range r.XSK.Lines {
			fmt.Fprintf(out, "| %s | %s | %.0f | %.2f |\n", l.Package, l.Size, l.PerCPU, l.OfPenstocks)
		}
	}
}

// whole writes a spread in whole numbers.
func whole(s spread) string { return fmt.Sprintf("%.0f [%.0f-%.0f]", s.Median, s.Min, s.Max) }
