package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"penstock/internal/record"
	"penstock/pcap/closedloop"
)

// closed replays in closed loop and prints the result. Connections that differ
// are an error.
func (f *replayFlags) closed(o closedloop.Options, rec *record.Recorder) error {
	res, err := runClosed(o, f.out)
	err = errors.Join(err, rec.Close())
	if f.asJSON {
		if perr := printJSON(res); perr != nil {
			return perr
		}
	} else {
		printClosed(&res)
	}
	if err == nil && res.Differs > 0 {
		err = fmt.Errorf("replay %s: %d of the %d connections that were played differ from the capture", f.in, res.Differs, res.Played)
	}
	return err
}

func runClosed(o closedloop.Options, out string) (res closedloop.Result, err error) {
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
		o.Progress = func(p closedloop.Progress) {
			fmt.Fprintf(os.Stderr, "\r\x1b[K%d packets read, %d connections played, %d under way, virtual time %s", p.Packets, p.Played, p.Active, p.Time.Format("15:04:05.000"))
		}
		defer fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	return closedloop.Run(ctx, o)
}

// mostLines is how many connections of one status are listed as text.
const mostLines = 20

func printClosed(r *closedloop.Result) {
	listed := map[string]int{}
	for i := range r.List {
		c := &r.List[i]
		if listed[c.Status]++; listed[c.Status] <= mostLines || c.Status == closedloop.Differs {
			printConnection(c)
		}
	}
	for _, status := range sortedKeys(listed) {
		if n := listed[status] - mostLines; n > 0 && status != closedloop.Differs {
			fmt.Printf("... and %d more that are %s; --json lists them all\n", n, status)
		}
	}
	fmt.Printf("connections %d: %d played, of them %d equal, %d differ, %d denied; %d not played\n", r.Flows, r.Played, r.Equal, r.Differs, r.Denied, r.NotPlayed)
	for _, why := range sortedKeys(r.WhyNot) {
		fmt.Printf("  not played: %-16s %d\n", why, r.WhyNot[why])
	}
	for _, why := range sortedKeys(r.DeniedBy) {
		fmt.Printf("  denied: %-20s %d\n", why, r.DeniedBy[why])
	}
	fmt.Printf("captured   %d packets, %d of TCP\n", r.Captured, r.TCP)
	fmt.Printf("received   %s by servers, %s by clients\n", size(r.BytesToServer), size(r.BytesToClient))
	fmt.Printf("packets    %d, %s\nforwarded  %d\nconsumed   %d\n", r.Packets, size(r.Bytes), r.Forwarded, r.Consumed)
	var dropped uint64
	for _, n := range r.Dropped {
		dropped += n
	}
	fmt.Printf("dropped    %d\n", dropped)
	for _, reason := range sortedKeys(r.Dropped) {
		fmt.Printf("  %-28s %d\n", reason, r.Dropped[reason])
	}
	fmt.Printf("made       %d packets by stages\n", r.Emitted)
	printFaults(r.Faults)
	fmt.Printf("took       %.3f s for %.3f s of virtual time\n", r.Seconds, r.VirtualSeconds)
}

func printConnection(c *closedloop.Flow) {
	fmt.Printf("%6d  %s -> %s  %s", c.Number, c.Client, c.Server, c.Status)
	if c.Why != "" {
		fmt.Printf(" (%s", c.Why)
		if c.By != "" {
			fmt.Printf(", stage %s", c.By)
		}
		fmt.Print(")")
	}
	if c.Status == closedloop.NotPlayed {
		fmt.Printf(": %s\n", c.Detail)
		return
	}
	fmt.Printf("  to server %s, to client %s", delivery(&c.ToServer), delivery(&c.ToClient))
	if c.Detail != "" {
		fmt.Printf("; %s", c.Detail)
	}
	fmt.Println()
}

// delivery says how much of what was captured has come, and where it differs.
func delivery(d *closedloop.Delivery) string {
	text := fmt.Sprintf("%d of %d bytes", d.Received, d.Captured)
	if d.Differs != nil && *d.Differs < int64(min(d.Received, d.Captured)) {
		text += fmt.Sprintf(" (others from offset %d on)", *d.Differs)
	}
	return text
}
