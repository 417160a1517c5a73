package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"penstock/internal/config"
	"penstock/internal/record"
	"penstock/pcap"
)

func replayCommand(args []string) error {
	fs := newFlags("replay", "--in A.pcap [--out B.pcapng] [--json] [--chain NAME] FILE")
	in := fs.String("in", "", "capture to read: pcap or pcapng, - for standard input")
	out := fs.String("out", "", "pcapng to write: the packets that left, by port")
	asJSON := fs.Bool("json", false, "print the result as JSON")
	chain := fs.String("chain", "", "which chain of the configuration; needed if it has several")
	accept := fs.Bool("accept-bad-checksums", false, "take packets with wrong checksums as they are (captures of hosts that leave them to the NIC)")
	speed := fs.String("speed", "max", "max, or a factor of the capture's own timing: 1 is as it was")
	workers := fs.Int("workers", 1, "how many workers share the flows, as on a NIC with as many queues")
	files, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return usagef("want one configuration file, got %d", len(files))
	}
	if *in == "" {
		return usagef("--in is missing: which capture?")
	}
	factor := 0.0
	if *speed != "max" {
		if _, err := fmt.Sscanf(*speed, "%g", &factor); err != nil || !(factor > 0) {
			return usagef("--speed: want max or a number above zero, got %q", *speed)
		}
	}
	cfg, err := loadConfig(files[0])
	if err != nil {
		return err
	}
	c, err := chooseChain(cfg, *chain)
	if err != nil {
		return err
	}
	rec, err := openReplayRecords(cfg)
	if err != nil {
		return err
	}
	o := pcap.ReplayOptions{
		Name: *in, Chain: &c.Spec, AcceptBadChecksums: *accept, Speed: factor, Workers: *workers, Recorder: rec,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	for i := range min(len(cfg.Ports), len(o.Ports)) {
		o.Ports[i] = cfg.Ports[i].Name
	}
	res, err := runReplay(o, *out)
	err = errors.Join(err, rec.Close())
	if *asJSON {
		if perr := printJSON(res); perr != nil {
			return perr
		}
	} else {
		printReplay(res)
	}
	return err
}

func chooseChain(cfg *config.Config, name string) (*config.Chain, error) {
	var names []string
	for i := range cfg.Chains {
		if cfg.Chains[i].Name == name {
			return &cfg.Chains[i], nil
		}
		names = append(names, cfg.Chains[i].Name)
	}
	switch {
	case name != "":
		return nil, usagef("%s has no chain %q; it has %s", cfg.File, name, strings.Join(names, ", "))
	case len(cfg.Chains) != 1:
		return nil, usagef("%s has %d chains: choose one with --chain: %s", cfg.File, len(cfg.Chains), strings.Join(names, ", "))
	}
	return &cfg.Chains[0], nil
}

// openReplayRecords opens the sinks of a configuration. A replay waits for a
// slow one: it loses no event.
func openReplayRecords(cfg *config.Config) (*record.Recorder, error) {
	return record.OpenWith(recordSpecs(cfg), slog.New(slog.NewTextHandler(os.Stderr, nil)), record.Options{Wait: true})
}

func recordSpecs(cfg *config.Config) (specs []record.Spec) {
	for _, r := range cfg.Record {
		specs = append(specs, record.Spec{To: r.To, Events: r.Events})
	}
	return specs
}

// runReplay replays, with the output behind a buffer that is flushed also when
// the capture turns out to be damaged.
func runReplay(o pcap.ReplayOptions, out string) (res pcap.Result, err error) {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	if out != "" {
		f, err := os.Create(out)
		if err != nil {
			return res, fmt.Errorf("create output capture: %w", err)
		}
		w := bufio.NewWriterSize(f, 1<<20)
		o.Out = w
		defer func() { err = errors.Join(err, w.Flush(), f.Close()) }()
	}
	if fi, serr := os.Stderr.Stat(); serr == nil && fi.Mode()&os.ModeCharDevice != 0 {
		o.Progress = progressLine(o.Name)
		defer fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	return pcap.Replay(ctx, o)
}

// progressLine draws how far a replay is on the terminal.
func progressLine(name string) func(pcap.Progress) {
	total := int64(0)
	if fi, err := os.Stat(name); err == nil {
		total = fi.Size()
	}
	start := time.Now()
	return func(p pcap.Progress) {
		share := ""
		if total > 0 {
			share = fmt.Sprintf(" %3d%%", min(100, p.Offset*100/total))
		}
		rate := float64(p.Packets) / max(time.Since(start).Seconds(), 1e-3)
		fmt.Fprintf(os.Stderr, "\r\x1b[K%d packets%s, %.0f packets/s", p.Packets, share, rate)
	}
}

func printReplay(r pcap.Result) {
	fmt.Printf("packets    %d, %s, %d flows\n", r.Packets, size(r.Bytes), r.Flows)
	if r.First != "" {
		fmt.Printf("captured   %s, for %.3f s\n", r.First, r.SpanSeconds)
	}
	fmt.Printf("forwarded  %d\nconsumed   %d\n", r.Forwarded, r.Consumed)
	var dropped uint64
	for _, n := range r.Dropped {
		dropped += n
	}
	fmt.Printf("dropped    %d\n", dropped)
	for _, reason := range sortedKeys(r.Dropped) {
		fmt.Printf("  %-28s %d\n", reason, r.Dropped[reason])
	}
	if r.Emitted > 0 {
		fmt.Printf("made       %d packets by stages\n", r.Emitted)
	}
	if r.BadChecksums > 0 {
		fmt.Printf("%d packets had a wrong checksum; --accept-bad-checksums takes them as they are\n", r.BadChecksums)
	}
	if r.CapturedShort > 0 {
		fmt.Printf("%d packets were longer on the wire than the capture holds\n", r.CapturedShort)
	}
	if r.Chain != nil {
		for i, st := range r.Chain.Stages {
			fmt.Printf("stage %d    %-10s %d in, %d on, %d dropped, %d forwarded, %d consumed\n", i+1, st.Kind, st.Packets, st.Continued, st.Dropped, st.Forwarded, st.Consumed)
		}
	}
	fmt.Printf("took       %.3f s\n", r.Seconds)
}
