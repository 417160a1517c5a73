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
	"penstock/internal/units"
	"penstock/pcap"
	"penstock/pcap/closedloop"
	"penstock/pipeline"
	"penstock/pipeline/fault"
)

// replayFlags are what the command line of replay says.
type replayFlags struct {
	in, out, chain, speed, loop, faults string
	asJSON, accept                      bool
	workers, window                     int
	seed                                uint64
	memory                              units.Size
}

func replayCommand(args []string) error {
	fs := newFlags("replay", "--in A.pcap [--out B.pcapng] [--json] [--chain NAME] [--loop auto|open|closed] [--fault FAULTS] FILE")
	f := replayFlags{memory: 256 << 20}
	fs.StringVar(&f.in, "in", "", "capture to read: pcap or pcapng, - for standard input")
	fs.StringVar(&f.out, "out", "", "pcapng to write: the packets that left, by port; closed loop: both wires")
	fs.BoolVar(&f.asJSON, "json", false, "print the result as JSON")
	fs.StringVar(&f.chain, "chain", "", "which chain of the configuration; needed if it has several")
	fs.BoolVar(&f.accept, "accept-bad-checksums", false, "take packets with wrong checksums as they are (captures of hosts that leave them to the NIC)")
	fs.StringVar(&f.speed, "speed", "max", "max, or a factor of the capture's own timing: 1 is as it was (closed loop: the pauses within a connection, in virtual time)")
	fs.IntVar(&f.workers, "workers", 1, "how many workers share the flows, as on a NIC with as many queues (open loop)")
	fs.StringVar(&f.loop, "loop", "auto", "open: the capture's packets; closed: two ends play the capture's TCP connections; auto: closed if the chain terminates")
	fs.StringVar(&f.faults, "fault", "", "faults of both wires, such as loss=1%,duplicate=1%,reorder=1%,delay=5ms,jitter=1ms,corrupt=1%,mtu=1400,seed=7")
	fs.IntVar(&f.window, "window", 64, "connections played at once (closed loop)")
	fs.Uint64Var(&f.seed, "seed", 0, "of what the netstack leaves to chance (closed loop)")
	fs.TextVar(&f.memory, "memory", f.memory, "payload kept of connections that wait or have not ended (closed loop)")
	files, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return usagef("want one configuration file, got %d", len(files))
	}
	return f.run(files[0])
}

// run does what the flags say.
func (f *replayFlags) run(file string) error {
	if f.in == "" {
		return usagef("--in is missing: which capture?")
	}
	factor := 0.0
	if f.speed != "max" {
		if _, err := fmt.Sscanf(f.speed, "%g", &factor); err != nil || !(factor > 0) {
			return usagef("--speed: want max or a number above zero, got %q", f.speed)
		}
	}
	if f.loop != "auto" && f.loop != "open" && f.loop != "closed" {
		return usagef("--loop: want auto, open or closed, got %q", f.loop)
	}
	if f.window < 1 || f.memory < 1 {
		return usagef("--window and --memory: want more than 0, got %d and %v", f.window, f.memory)
	}
	var faults fault.Options
	if f.faults != "" {
		var err error
		if faults, err = fault.Parse(f.faults); err != nil {
			return usagef("--fault: %v", err)
		}
	}
	cfg, err := loadConfig(file)
	if err != nil {
		return err
	}
	c, err := chooseChain(cfg, f.chain)
	if err != nil {
		return err
	}
	depth, stage, _ := c.Spec.Depth()
	switch terminates := depth == pipeline.DepthTerminate; {
	case f.loop == "open" && terminates:
		return usagef("--loop open: chain %q terminates connections (stage %s): what it sends depends on what it is answered; want --loop closed", c.Name, stage)
	case f.loop == "auto" && terminates:
		f.loop = "closed"
	}
	if f.loop == "closed" && f.workers != 1 {
		return usagef("--workers: closed-loop replay has one worker, got %d", f.workers)
	}
	if faults.Active() {
		fmt.Fprintf(os.Stderr, "warning: FAULTS ARE ON: both wires harm traffic on purpose (%v)\n", faults)
	}
	clock := &pcap.Clock{}
	rec, err := openReplayRecords(cfg, clock)
	if err != nil {
		return err
	}
	var ports [2]string
	for i := range min(len(cfg.Ports), len(ports)) {
		ports[i] = cfg.Ports[i].Name
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if f.loop == "closed" {
		return f.closed(closedloop.Options{
			Name: f.in, Chain: &c.Spec, Ports: ports, AcceptBadChecksums: f.accept, Speed: factor, Window: f.window, MaxMemory: int64(f.memory),
			Seed: f.seed, Faults: faults, Clock: clock, Recorder: rec, Log: log,
		}, rec)
	}
	res, err := runReplay(pcap.ReplayOptions{
		Name: f.in, Chain: &c.Spec, Ports: ports, AcceptBadChecksums: f.accept, Speed: factor, Workers: f.workers, Faults: faults,
		Clock: clock, Recorder: rec, Log: log,
	}, f.out)
	err = errors.Join(err, rec.Close())
	if f.asJSON {
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
// Its records carry the capture's time.
func openReplayRecords(cfg *config.Config, clock *pcap.Clock) (*record.Recorder, error) {
	return record.OpenWith(recordSpecs(cfg), slog.New(slog.NewTextHandler(os.Stderr, nil)), record.Options{Wait: true, Now: clock.Now})
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
	w, done, err := createOutput(out)
	if err != nil {
		return res, err
	}
	if w != nil {
		o.Out = w
	}
	defer func() { err = errors.Join(err, done()) }()
	if onTerminal() {
		o.Progress = progressLine(o.Name)
		defer fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	return pcap.Replay(ctx, o)
}

// createOutput creates the capture that is written, if there is one; done closes
// it.
func createOutput(out string) (w *bufio.Writer, done func() error, err error) {
	if out == "" {
		return nil, func() error { return nil }, nil
	}
	f, err := os.Create(out)
	if err != nil {
		return nil, nil, fmt.Errorf("create output capture: %w", err)
	}
	w = bufio.NewWriterSize(f, 1<<20)
	return w, func() error { return errors.Join(w.Flush(), f.Close()) }, nil
}

// onTerminal reports whether somebody looks at standard error.
func onTerminal() bool {
	fi, err := os.Stderr.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
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

// printFaults says what faults did, by port.
func printFaults(faults map[string]map[string]uint64) {
	for _, port := range sortedKeys(faults) {
		fmt.Printf("faults of port %s\n", port)
		for _, name := range sortedKeys(faults[port]) {
			fmt.Printf("  %-28s %d\n", name, faults[port][name])
		}
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
	printFaults(r.Faults)
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
