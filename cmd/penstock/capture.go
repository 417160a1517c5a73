package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"penstock/internal/control"
	"penstock/internal/tap"
	"penstock/internal/units"
)

const captureArgs = "[--filter EXPRESSION] [--at POINT,...] [--limit SIZE] [--count N] [--for TIME] [--snaplen SIZE] FILE | --list [--json] | --stop ID   (FILE: - for the standard output; --control PATH)"

func captureCommand(args []string) error {
	fs, path, asJSON := clientFlags("capture", captureArgs)
	var (
		ask           control.CaptureAsk
		limit, snap   units.Size
		hold          units.Duration
		list          = fs.Bool("list", false, "show the captures that run")
		stop          = fs.Int("stop", 0, "end the capture of this `id`")
		filter, count = fs.String("filter", "", "only packets that meet this `expression` in pcap filter syntax, inside of VLAN tags too"), fs.Uint64("count", 0, "end after this `number` of packets; 0: no limit")
	)
	fs.StringVar(&ask.At, "at", "", "where: a list of `points` PORT:rx, PORT:tx, CHAIN/STAGE:before, CHAIN/STAGE:after; none: every port, both ways")
	fs.TextVar(&limit, "limit", units.Size(0), "end before FILE is larger than this `size`, such as 100MB; 0B: no limit")
	fs.TextVar(&hold, "for", units.Duration(0), "end after this `time`, such as 30s; 0: when it is interrupted")
	fs.TextVar(&snap, "snaplen", units.Size(0), "how much is kept of each packet, a `size`, such as 128B; 0B: all")
	rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	c := control.NewClient(*path)
	switch {
	case *list || *stop != 0:
		if len(rest) > 0 || *list && *stop != 0 {
			return usagef("--list and --stop want no FILE and stand alone")
		}
		if *stop != 0 {
			return c.StopCapture(*stop)
		}
		return listCaptures(c, *asJSON)
	case len(rest) != 1:
		return usagef("want one FILE, or - for the standard output, got %q", rest)
	case limit != 0 && limit < tap.MinLimit:
		return usagef("--limit: want at least %s, got %s", units.Size(tap.MinLimit), limit)
	case rest[0] == "-" && isTerminal(os.Stdout):
		return usagef("the standard output is a terminal: pipe it into tcpdump -r - or tshark -r -, or name a FILE")
	}
	ask.Limit, ask.SnapLen, ask.Count, ask.ForSeconds = int64(limit), int(snap), *count, time.Duration(hold).Seconds()
	if ask.Filter = strings.TrimSpace(*filter); ask.Filter != "" {
		program, tagged, err := tap.Compile(context.Background(), ask.Filter)
		if err != nil {
			return usageError{err.Error()}
		}
		for _, i := range program {
			ask.Program = append(ask.Program, []uint32{uint32(i.Op), uint32(i.Jt), uint32(i.Jf), i.K})
		}
		ask.Tagged = tagged
	}
	r := &captureRun{client: c, path: rest[0]}
	return r.run(ask, *asJSON)
}

// captureRun is one capture, from its reader's side.
type captureRun struct {
	client *control.Client
	path   string
	file   *os.File
}

func (r *captureRun) run(ask control.CaptureAsk, asJSON bool) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	interrupts := make(chan os.Signal, 2)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupts)
	began := make(chan control.Capture, 1)
	go r.watch(ctx, cancel, interrupts, began)
	end, err := r.client.Capture(ctx, ask, func(c control.Capture) (io.Writer, error) {
		fmt.Fprintf(os.Stderr, "capture %d runs at %s; Ctrl-C ends it\n", c.ID, strings.Join(c.At, ", "))
		if c.PulledFlows > 0 {
			fmt.Fprintf(os.Stderr, "%d offloaded flows are in user space while it runs\n", c.PulledFlows)
		}
		if c.SplicedFlows > 0 {
			fmt.Fprintf(os.Stderr, "%d spliced connections may match and stay in XDP: they are not seen\n", c.SplicedFlows)
		}
		fmt.Fprintln(os.Stderr, "what is bypassed in XDP is not seen")
		began <- c
		if r.path == "-" {
			return os.Stdout, nil
		}
		var err error
		r.file, err = os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		return r.file, err
	})
	if r.file != nil {
		err = errors.Join(err, r.file.Close())
	}
	if isTerminal(os.Stderr) {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%d packets captured in %.1f s, %s; %d dropped by the capture", end.Packets, end.Seconds, size(end.Bytes), end.Dropped)
	if end.LostFlows > 0 {
		fmt.Fprintf(os.Stderr, "; %d flows were too many to be held, and are not seen whole", end.LostFlows)
	}
	fmt.Fprintf(os.Stderr, "; ended: %s\n", end.End)
	if asJSON && r.path != "-" {
		return printJSON(end)
	}
	return nil
}

// watch shows how far the capture is, and ends it in good order at the first
// interrupt, at once at the second.
func (r *captureRun) watch(ctx context.Context, cancel func(), interrupts <-chan os.Signal, began <-chan control.Capture) {
	var c control.Capture
	select {
	case <-ctx.Done():
		return
	case <-interrupts:
		cancel()
		return
	case c = <-began:
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	stopping := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-interrupts:
			if stopping || r.client.StopCapture(c.ID) != nil {
				cancel()
				return
			}
			stopping = true
		case <-tick.C:
			if isTerminal(os.Stderr) {
				r.progress(c.ID)
			}
		}
	}
}

func (r *captureRun) progress(id int) {
	all, err := r.client.Captures()
	if err != nil {
		return // the capture itself will say
	}
	for _, c := range all {
		if c.ID == id {
			fmt.Fprintf(os.Stderr, "\r\x1b[K%d packets, %s, %d dropped, %.0f s", c.Packets, size(c.Bytes), c.Dropped, c.Seconds)
		}
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func listCaptures(c *control.Client, asJSON bool) error {
	all, err := c.Captures()
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(all)
	}
	tw := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tFOR\tPACKETS\tBYTES\tDROPPED\tHELD FLOWS\tAT\tFILTER")
	for _, l := range all {
		fmt.Fprintf(tw, "%d\t%.0fs\t%d\t%s\t%d\t%d\t%s\t%s\n", l.ID, l.Seconds, l.Packets, size(l.Bytes), l.Dropped, l.HeldFlows, strings.Join(l.At, ","), l.Filter)
	}
	return tw.Flush()
}
