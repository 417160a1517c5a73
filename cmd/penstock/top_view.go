package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"penstock/internal/control"
)

// topView is what top shows, and prints as JSON: rates between two looks.
type topView struct {
	Name          string         `json:"name"`
	Mode          string         `json:"mode"`
	UptimeSeconds float64        `json:"uptime_seconds"`
	Seconds       float64        `json:"seconds"` // between the looks
	BitsPerSecond float64        `json:"bits_per_second"`
	Packets       float64        `json:"packets_per_second"`
	InUserSpace   float64        `json:"packets_in_user_space_per_second"`
	Dropped       float64        `json:"dropped_per_second"`
	FlowCount     int            `json:"flow_count"`
	Depths        map[string]int `json:"flows_by_depth"`
	Queues        []topQueue     `json:"queues"`
	Chains        []topStage     `json:"chains"`
	Drops         []topDrop      `json:"drops"`
	Flows         []ratedFlow    `json:"flows"`
	FlowsRead     bool           `json:"flows_read"` // false: there are too many
	Warnings      []string       `json:"warnings,omitempty"`
}

type topQueue struct {
	Port   string         `json:"port"`
	Queue  int            `json:"queue"`
	LinkUp bool           `json:"link_up"`
	XDP    string         `json:"xdp"`
	Mode   string         `json:"mode"`
	Rx     float64        `json:"received_packets_per_second"`
	RxBits float64        `json:"received_bits_per_second"`
	Tx     float64        `json:"sent_packets_per_second"`
	Fill   map[string]int `json:"ring_fill_percent"`
	Lost   float64        `json:"lost_per_second"`
}

// topStage is a stage, or, without a Stage, its chain.
type topStage struct {
	Chain   string  `json:"chain"`
	Stage   string  `json:"stage,omitempty"`
	Index   int     `json:"index,omitempty"`
	Depth   string  `json:"depth,omitempty"`
	Packets float64 `json:"packets_per_second"`
	Bits    float64 `json:"bits_per_second,omitempty"`
	Nanos   float64 `json:"ns_per_packet,omitempty"`
	Dropped float64 `json:"dropped_per_second"`
	Stream  bool    `json:"in_tcp,omitempty"` // its time is in that of tcp
}

type topDrop struct {
	Reason string  `json:"reason"`
	Where  string  `json:"where"`
	Rate   float64 `json:"per_second"`
	Total  uint64  `json:"total"`
}

// compare returns the rates between two looks at one process.
func compare(a, b look) topView {
	old, s := a.status, b.status
	gap := b.at.Sub(a.at).Seconds()
	per := func(before, now uint64) float64 {
		if gap <= 0 || now < before {
			return 0
		}
		return float64(now-before) / gap
	}
	v := topView{
		Name: s.Name, Mode: s.Mode, UptimeSeconds: s.UptimeSeconds, Seconds: gap, FlowCount: s.Flows.Steered, Depths: map[string]int{},
		InUserSpace: per(old.Totals.Packets, s.Totals.Packets), Warnings: s.Warnings, FlowsRead: b.few,
	}
	drops := map[[2]string]*topDrop{}
	drop := func(reason, where string, before, now uint64) {
		d := drops[[2]string{reason, where}]
		if d == nil {
			d = &topDrop{Reason: reason, Where: where}
			drops[[2]string{reason, where}] = d
		}
		d.Rate += per(before, now)
		d.Total += now
		v.Dropped += per(before, now)
	}
	for _, p := range s.Ports {
		var was control.Port
		if i := slices.IndexFunc(old.Ports, func(o control.Port) bool { return o.Name == p.Name }); i >= 0 {
			was = old.Ports[i]
		}
		for reason, c := range p.Reasons {
			v.Packets += per(was.Reasons[reason].Packets, c.Packets)
			v.BitsPerSecond += 8 * per(was.Reasons[reason].Bytes, c.Bytes)
		}
		for reason, c := range p.Verdicts["drop"] {
			drop(reason, "XDP", was.Verdicts["drop"][reason].Packets, c.Packets)
		}
		for j, q := range p.Queues {
			var o control.Queue
			if j < len(was.Queues) {
				o = was.Queues[j]
			}
			t := topQueue{Port: p.Name, Queue: q.Queue, LinkUp: p.LinkUp, XDP: p.XDP, Mode: q.Mode, Rx: per(o.RxPackets, q.RxPackets),
				RxBits: 8 * per(o.RxBytes, q.RxBytes), Tx: per(o.TxPackets, q.TxPackets), Fill: map[string]int{}, Lost: per(o.TxRefused, q.TxRefused)}
			for _, r := range q.Rings {
				t.Fill[r.Name] = 100 * r.Used / max(r.Size, 1)
			}
			for _, e := range []string{"rx_ring_full", "fill_ring_empty", "no_frames"} {
				t.Lost += per(o.Extra[e], q.Extra[e])
			}
			v.Queues = append(v.Queues, t)
		}
	}
	for reason, n := range s.Totals.Dropped {
		drop(reason, "user space", old.Totals.Dropped[reason], n)
	}
	for _, d := range drops {
		v.Drops = append(v.Drops, *d)
	}
	slices.SortFunc(v.Drops, func(a, b topDrop) int {
		return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(b.Total, a.Total), cmp.Compare(a.Reason, b.Reason))
	})
	for i, c := range s.Chains {
		var was control.Chain
		if i < len(old.Chains) {
			was = old.Chains[i]
		}
		for depth, n := range c.Flows {
			v.Depths[depth] += n
		}
		v.Chains = append(v.Chains, topStage{Chain: c.Name, Depth: c.Depth, Packets: per(was.Packets, c.Packets), Bits: 8 * per(was.Bytes, c.Bytes)})
		behind := false
		for j, st := range c.Stages {
			t := topStage{Chain: c.Name, Stage: st.Kind, Index: j + 1, Stream: behind}
			behind = behind || st.Kind == "tcp"
			if st.TimedPackets > 0 {
				t.Nanos = float64(st.TimedNanoseconds) / float64(st.TimedPackets)
			}
			if j < len(was.Stages) {
				o := was.Stages[j]
				t.Packets, t.Dropped = per(o.Packets, st.Packets), per(o.Dropped, st.Dropped)
				if n := st.TimedPackets - o.TimedPackets; n > 0 && st.TimedPackets > o.TimedPackets {
					t.Nanos = float64(st.TimedNanoseconds-o.TimedNanoseconds) / float64(n)
				}
			}
			v.Chains = append(v.Chains, t)
		}
	}
	v.Flows = rateAll(a.flows, b.flows)
	return v
}

var flowSorts = []struct {
	name string
	less func(a, b ratedFlow) int
}{
	{"bits", func(a, b ratedFlow) int { return cmp.Compare(b.BytesPerSecond, a.BytesPerSecond) }},
	{"packets", func(a, b ratedFlow) int { return cmp.Compare(b.PacketsPerSecond, a.PacketsPerSecond) }},
	{"age", func(a, b ratedFlow) int { return cmp.Compare(b.AgeSeconds, a.AgeSeconds) }},
	{"client", func(a, b ratedFlow) int { return strings.Compare(a.Client, b.Client) }},
}

// render returns the lines of a screen; height 0: as many as there are.
func (v topView) render(width, height int, o topOptions) []string {
	state := "live"
	switch {
	case o.gone != "":
		state = fmt.Sprintf("NO ANSWER since %s (%v)", o.since.Format("15:04:05"), time.Since(o.since).Round(time.Second))
	case o.paused:
		state = "paused"
	}
	up := time.Duration(v.UptimeSeconds * float64(time.Second)).Round(time.Second)
	head := []string{
		fmt.Sprintf("%s  %s, up %v  %s", v.Name, v.Mode, up, state),
		fmt.Sprintf("%sbit/s  %spkt/s  in user space %s/s  dropped %s/s", bitRate(v.BitsPerSecond), bitRate(v.Packets), bitRate(v.InUserSpace), bitRate(v.Dropped)),
		"flows " + v.mix(),
	}
	if o.gone != "" {
		head = append(head, o.gone)
	}
	for _, w := range v.Warnings {
		head = append(head, "warning: "+w)
	}
	sections := [][]string{v.queueLines(width), v.chainLines(), v.dropLines(o), v.flowLines(width, o)}
	if height > 0 {
		share(sections, height-len(head)-1)
	}
	lines := head
	for _, s := range sections {
		lines = append(lines, s...)
	}
	if height > 0 {
		for len(lines) < height-1 {
			lines = append(lines, "")
		}
		help := "q quit  p pause  s sort: " + flowSorts[o.sort].name + "  / filter"
		switch {
		case o.typing:
			help = "filter: " + o.filter + "_  (Enter: done, Esc: none)"
		case o.filter != "":
			help += ": " + o.filter + "  c clear"
		}
		lines = append(lines[:max(0, min(len(lines), height-1))], help)
	}
	for i, l := range lines {
		lines[i] = cut(strings.TrimRight(l, " "), width)
	}
	return lines
}

func cut(l string, width int) string {
	if utf8.RuneCountInString(l) <= width {
		return l
	}
	return string([]rune(l)[:max(width-1, 0)]) + "…"
}

// share cuts sections so that they have room lines in all: each gets the same,
// and what one leaves is the others'.
func share(sections [][]string, room int) {
	want := make([]int, len(sections))
	for granted := true; granted && room > 0; {
		granted = false
		for i, s := range sections {
			if room > 0 && want[i] < len(s) {
				want[i]++
				room--
				granted = true
			}
		}
	}
	for i := range sections {
		sections[i] = sections[i][:want[i]]
	}
}

func (v topView) mix() string {
	parts := []string{fmt.Sprint(v.FlowCount)}
	all := 0
	for _, n := range v.Depths {
		all += n
	}
	for _, d := range []string{"offload", "forward", "inspect", "terminate", "drop"} {
		if n := v.Depths[d]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d (%.1f%%)", d, n, 100*float64(n)/float64(all)))
		}
	}
	return strings.Join(parts, "  ")
}

// wanted reports whether a line passes the filter.
func (o topOptions) wanted(l string) bool {
	return o.filter == "" || strings.Contains(strings.ToLower(l), strings.ToLower(o.filter))
}

// wideScreen is from how many columns on everything is shown.
const wideScreen = 110

func (v topView) queueLines(width int) []string {
	if width < wideScreen {
		lines := []string{fmt.Sprintf("%-12s %5s %-4s %8s %8s %8s %4s %4s %5s %7s", "PORT", "QUEUE", "LINK", "RX/S", "RX BIT/S", "TX/S", "RX%", "TX%", "FILL%", "LOST/S")}
		for _, q := range v.Queues {
			lines = append(lines, fmt.Sprintf("%-12s %5d %-4s %8s %8s %8s %4d %4d %5d %7s", cut(q.Port, 12), q.Queue, upOrDown(q.LinkUp),
				bitRate(q.Rx), bitRate(q.RxBits), bitRate(q.Tx), q.Fill["rx"], q.Fill["tx"], q.Fill["fill"], bitRate(q.Lost)))
		}
		return lines
	}
	lines := []string{fmt.Sprintf("%-12s %5s %-4s %-7s %-9s %8s %8s %8s %4s %4s %5s %7s", "PORT", "QUEUE", "LINK", "XDP", "SOCKET", "RX/S", "RX BIT/S", "TX/S", "RX%", "TX%", "FILL%", "LOST/S")}
	for _, q := range v.Queues {
		lines = append(lines, fmt.Sprintf("%-12s %5d %-4s %-7s %-9s %8s %8s %8s %4d %4d %5d %7s", cut(q.Port, 12), q.Queue, upOrDown(q.LinkUp), q.XDP, q.Mode,
			bitRate(q.Rx), bitRate(q.RxBits), bitRate(q.Tx), q.Fill["rx"], q.Fill["tx"], q.Fill["fill"], bitRate(q.Lost)))
	}
	return lines
}

func upOrDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

func (v topView) chainLines() []string {
	lines := []string{fmt.Sprintf("%-24s %-10s %8s %8s %9s %8s", "CHAIN, STAGE", "DEPTH", "PKT/S", "BIT/S", "NS/PKT", "DROP/S")}
	for _, c := range v.Chains {
		if c.Stage == "" {
			lines = append(lines, fmt.Sprintf("%-24s %-10s %8s %8s", cut(c.Chain, 24), c.Depth, bitRate(c.Packets), bitRate(c.Bits)))
			continue
		}
		packets, ns := bitRate(c.Packets), "-"
		switch {
		case c.Stream:
			packets, ns = "-", "in tcp"
		case c.Nanos > 0:
			ns = fmt.Sprintf("%.0f", c.Nanos)
		}
		lines = append(lines, fmt.Sprintf("%-24s %-10s %8s %8s %9s %8s", fmt.Sprintf("  %d %s", c.Index, c.Stage), "", packets, "", ns, bitRate(c.Dropped)))
	}
	return lines
}

func (v topView) dropLines(o topOptions) []string {
	lines := []string{fmt.Sprintf("%-28s %-10s %8s %12s", "DROPPED, REASON", "WHERE", "PKT/S", "IN ALL")}
	for _, d := range v.Drops {
		if l := fmt.Sprintf("%-28s %-10s %8s %12d", d.Reason, d.Where, bitRate(d.Rate), d.Total); o.wanted(l) {
			lines = append(lines, l)
		}
	}
	if len(v.Drops) == 0 {
		lines = append(lines, "nothing has been dropped")
	}
	return lines
}

func (v topView) flowLines(width int, o topOptions) []string {
	ends, chain := 21, 0 // of a narrow screen, which has no column for protocol and chain
	if width >= wideScreen {
		ends, chain = max(24, min(47, (width-64)/2)), 10
	}
	line := func(client, server, proto, name, depth, packets, bits, age string) string {
		l := fmt.Sprintf("%-*s %-*s ", ends, cut(client, ends), ends, cut(server, ends))
		if chain > 0 {
			l += fmt.Sprintf("%-5s %-*s ", proto, chain, cut(name, chain))
		}
		return l + fmt.Sprintf("%-9s %7s %7s %8s", depth, packets, bits, age)
	}
	lines := []string{line("CLIENT", "SERVER", "PROTO", "CHAIN", "DEPTH", "PKT/S", "BIT/S", "AGE")}
	flows := slices.Clone(v.Flows)
	slices.SortStableFunc(flows, flowSorts[o.sort].less)
	for _, f := range flows {
		if o.wanted(f.Client + " " + f.Server + " " + f.Proto + " " + f.Chain + " " + f.Depth) {
			lines = append(lines, line(f.Client, f.Server, f.Proto, f.Chain, f.Depth, bitRate(f.PacketsPerSecond), bitRate(8*f.BytesPerSecond),
				time.Duration(f.AgeSeconds*float64(time.Second)).Round(time.Second).String()))
		}
	}
	switch {
	case !v.FlowsRead:
		lines = append(lines, fmt.Sprintf("more than %d flows are not listed each second; penstock flows lists them", manyFlows))
	case len(lines) == 1 && o.filter != "":
		lines = append(lines, "no flow matches the filter")
	case len(lines) == 1:
		lines = append(lines, "no flow is steered to a chain")
	}
	return lines
}
