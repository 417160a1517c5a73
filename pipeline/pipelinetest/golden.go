package pipelinetest

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"penstock/internal/config"
	"penstock/internal/wire"
	"penstock/pcap"
	"penstock/pipeline"
)

var update = flag.Bool("update", false, "write golden files anew instead of comparing with them")

// Golden replays every case below dir, a directory each:
//
//	in.pcap      the packets (or in.pcapng)
//	stage.toml   a configuration with one chain; ports may be left out
//	want.txt     what became of each packet; written by -update
//
// A line "# replay: accept-bad-checksums" in stage.toml takes wrong checksums
// as they are; "# replay: one-worker" is for chains whose instances share
// state, so that the number of workers may change the result.
func Golden(t *testing.T, dir string, reg *pipeline.Registry) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "stage.toml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no case in %s: want CASE/stage.toml", dir)
	}
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text := string(src)
			if !strings.Contains(text, "[[port]]") {
				text = twoPorts + text
			}
			cfg, problems := config.Parse(file, []byte(text), reg)
			for _, p := range problems {
				t.Error(p)
			}
			if cfg == nil || len(cfg.Chains) != 1 {
				t.Fatal("want a configuration with one chain")
			}
			GoldenCase(t, filepath.Dir(file), pcap.ReplayOptions{
				Chain: &cfg.Chains[0].Spec, AcceptBadChecksums: strings.Contains(text, "# replay: accept-bad-checksums"),
			}, strings.Contains(text, "# replay: one-worker"))
		})
	}
}

// GoldenCase replays a capture as o says and compares what became of each
// packet with want.txt in dir. The capture is o.In, else in.pcap or in.pcapng
// in dir. Unless oneWorker is set it also checks that every packet fares the
// same with three workers as with one, and always that a second replay has the
// same result and the same output byte for byte.
func GoldenCase(t *testing.T, dir string, o pcap.ReplayOptions, oneWorker bool) {
	t.Helper()
	capture := readCapture(t, dir, o.In)
	bare := o
	bare.Chain, bare.AcceptBadChecksums = nil, true
	before := map[uint64][]byte{}
	for _, l := range replayLines(t, bare, capture, nil).packets {
		before[l.number] = l.bytes
	}
	first := replayLines(t, o, capture, before)
	second := replayLines(t, o, capture, before)
	if first.text() != second.text() || !bytes.Equal(first.out, second.out) {
		t.Errorf("two replays of the same capture differ:\n%s\n%s", first.text(), second.text())
	}
	if !oneWorker {
		o.Workers = 3
		several := replayLines(t, o, capture, before)
		if a, b := first.fates(), several.fates(); a != b {
			t.Errorf("with three workers packets fare otherwise than with one:\n%s", difference(a, b))
		}
	}
	compare(t, filepath.Join(dir, "want.txt"), first.text())
}

func readCapture(t *testing.T, dir string, in io.Reader) []byte {
	t.Helper()
	var b []byte
	var err error
	if in != nil {
		b, err = io.ReadAll(in)
	} else if b, err = os.ReadFile(filepath.Join(dir, "in.pcap")); os.IsNotExist(err) {
		b, err = os.ReadFile(filepath.Join(dir, "in.pcapng"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// compare compares text with a golden file, or writes it with -update.
func compare(t *testing.T, file, text string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test -update writes it)", err)
	}
	if string(want) != text {
		t.Errorf("%s (- want, + got; go test -update writes it anew):\n%s", file, difference(string(want), text))
	}
}

// difference returns the lines that are in a or b only.
func difference(a, b string) string {
	var out strings.Builder
	la, lb := strings.Split(a, "\n"), strings.Split(b, "\n")
	for _, l := range la {
		if !slices.Contains(lb, l) {
			fmt.Fprintf(&out, "- %s\n", l)
		}
	}
	for _, l := range lb {
		if !slices.Contains(la, l) {
			fmt.Fprintf(&out, "+ %s\n", l)
		}
	}
	if out.Len() == 0 {
		return "the same lines in another order or number\n"
	}
	return out.String()
}

// replayText is a replay as text.
type replayText struct {
	packets []packetLine
	out     []byte
	summary string
}

type packetLine struct {
	number uint64
	line   string
	bytes  []byte
}

// text returns the packets in the order in which the replay told of them.
func (r *replayText) text() string {
	var b strings.Builder
	for _, p := range r.packets {
		b.WriteString(p.line)
	}
	b.WriteString(r.summary)
	return b.String()
}

// fates returns the packets of the capture in order, without those that
// stages made: whose turn comes first depends on the number of workers.
func (r *replayText) fates() string {
	list := slices.Clone(r.packets)
	slices.SortStableFunc(list, func(a, b packetLine) int { return int(a.number) - int(b.number) })
	var b strings.Builder
	for _, p := range list {
		if p.number > 0 {
			b.WriteString(p.line)
		}
	}
	return b.String()
}

// replayLines replays and writes a line for each packet:
//
//	number, seconds since the first packet, ports in>out, verdict, summary
//
// with lines below it for what a stage has changed.
func replayLines(t *testing.T, o pcap.ReplayOptions, capture []byte, before map[uint64][]byte) *replayText {
	t.Helper()
	r := &replayText{}
	var out bytes.Buffer
	o.In, o.Name, o.Out = bytes.NewReader(capture), "in.pcap", &out
	first := int64(-1)
	o.Outcome = func(c *pcap.Outcome) {
		if first < 0 {
			first = c.Time
		}
		p := c.Packet
		now := bytes.Clone(p.Bytes())
		number := fmt.Sprintf("%d", c.Number)
		in, verdict, egress := fmt.Sprintf("%d", p.In), c.Verdict.String(), ""
		switch {
		case c.Number == 0:
			number, in, verdict = "+", "", "made"
		case c.Verdict == pipeline.Drop:
			verdict = "drop " + c.Reason.String() + ":"
		}
		if c.Verdict == pipeline.Forward {
			egress = fmt.Sprintf("%d", p.Out)
		}
		summary := wire.Summary(now)
		if old, ok := before[c.Number]; ok && !bytes.Equal(old, now) {
			summary = wire.Summary(old) + changes(old, now)
		}
		line := fmt.Sprintf("%5s %12.6f %1s>%1s %s %s\n", number, float64(c.Time-first)/float64(time.Second), in, egress, verdict, summary)
		r.packets = append(r.packets, packetLine{c.Number, line, now})
	}
	res, err := pcap.Replay(context.Background(), o)
	if err != nil {
		r.summary = err.Error() + "\n"
	}
	r.out = out.Bytes()
	r.summary += fmt.Sprintf("packets %d, forwarded %d, consumed %d, flows %d, made %d\n",
		res.Packets, res.Forwarded, res.Consumed, res.Flows, res.Emitted)
	var reasons []string
	for name, n := range res.Dropped {
		reasons = append(reasons, fmt.Sprintf("dropped %s %d\n", name, n))
	}
	slices.Sort(reasons)
	r.summary += strings.Join(reasons, "")
	return r
}

// changes describes how now differs from old: the new summary, and the bytes.
func changes(old, now []byte) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n      now: %s\n      bytes:", wire.Summary(now))
	if len(old) != len(now) {
		fmt.Fprintf(&b, " % x", now)
		return b.String()
	}
	for i := 0; i < len(old); i++ {
		j := i
		for j < len(old) && old[j] != now[j] {
			j++
		}
		if j > i {
			fmt.Fprintf(&b, " [%d] %x > %x", i, old[i:j], now[i:j])
			i = j
		}
	}
	return b.String()
}

// Capture returns a pcapng capture of the frames, step apart, for
// pcap.ReplayOptions.In or for a file of test data.
func Capture(step time.Duration, frames ...[]byte) []byte {
	var b bytes.Buffer
	w, err := pcap.NewWriter(&b, pcap.WriterOptions{Interfaces: []pcap.Interface{{Name: "test"}}})
	must(err)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, f := range frames {
		must(w.WritePacket(0, at.UnixNano(), len(f), f, nil))
		at = at.Add(step)
	}
	must(w.Flush())
	return b.Bytes()
}
