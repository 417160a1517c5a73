// Command bench runs Penstock and its peers on the same work, in one run, in
// network namespaces of this machine, and prints how much work each did for one
// second of the gateway's CPU time.
//
//	CPU 0                        CPU 1                        CPU 0
//	client eth0 ---------- eth1 [ gateway ] eth2 ---------- eth0 server
//	wrk, bulk load         XDP, penstock, haproxy, ...       nginx, bulk server
//
// Its one trap: absolute figures of one run say little about another run, on a
// machine of two cores least of all. Only ratios within a run are results.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"penstock/internal/lab"
)

const (
	endpointCPU = 0 // clients, servers and the NAPI threads of their interfaces
	gatewayCPU  = 1 // the gateway and the NAPI threads of its two interfaces
)

type options struct {
	penstock, root     string
	json, markdown, of string
	gateways           []gateway
	workloads          []workload
	rounds, seconds    int
	xsk, plainPeers    bool
	profile            string
	cpuProfile         string
}

func main() {
	if status, child := runChild(os.Args[1:]); child {
		os.Exit(status)
	}
	o, err := parseOptions(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	ok, err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func parseOptions(args []string) (o options, err error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	quick := fs.Bool("quick", false, "one round of one second for each load: does it run at all")
	chosenGateways := fs.String("gateways", "", "which gateways, joined by commas, of "+strings.Join(names(gateways()), ", "))
	chosenWorkloads := fs.String("workloads", "", "which workloads, joined by commas, of "+strings.Join(names(workloads()), ", "))
	fs.IntVar(&o.rounds, "rounds", 3, "rounds; in each, every gateway does every workload")
	fs.IntVar(&o.seconds, "seconds", 2, "length of one load")
	fs.StringVar(&o.json, "json", "", "write all measurements and conditions to this file")
	fs.StringVar(&o.markdown, "markdown", "", "write the tables of docs/performance.md to this file")
	fs.StringVar(&o.penstock, "penstock", "bin/penstock", "the binary to measure")
	fs.StringVar(&o.of, "of", "", "the gateway that the tables compare with (default "+yardstick+"; "+tlsYardstick+" for tls-*)")
	other := fs.String("against", "", "another penstock binary, to compare with in the same run")
	fs.StringVar(&o.root, "root", ".", "root of the source tree, for the benchmark of package xsk")
	fs.BoolVar(&o.xsk, "xsk", true, "run the benchmark of package xsk beside its peers as well")
	fs.BoolVar(&o.plainPeers, "plain-peers", false, "turn GSO and TX checksums off at the kernel gateways' own interfaces too")
	fs.StringVar(&o.profile, "profile", "", "run perf record on the gateway's threads during each load and leave its files in this directory")
	fs.StringVar(&o.cpuProfile, "cpuprofile", "", "have penstock write a CPU profile of each of its runs into this directory, for go tool pprof")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("want no arguments, got %q", fs.Args())
	}
	if *quick {
		o.rounds, o.seconds = 1, 1
	}
	if o.rounds < 1 || o.rounds > 50 || o.seconds < 1 || o.seconds > 60 {
		return o, fmt.Errorf("want 1 to 50 rounds of 1 to 60 seconds, got %d of %d", o.rounds, o.seconds)
	}
	if o.gateways, err = choose(gateways(), *chosenGateways); err != nil {
		return o, err
	}
	if o.of != "" && !slices.ContainsFunc(o.gateways, func(g gateway) bool { return g.name == o.of }) {
		return o, fmt.Errorf("-of %s: want one of the gateways that are measured", o.of)
	}
	if *chosenGateways == "" {
		o.gateways = slices.DeleteFunc(o.gateways, func(g gateway) bool { return g.asked })
	}
	if o.workloads, err = choose(workloads(), *chosenWorkloads); err != nil {
		return o, err
	}
	if *chosenWorkloads == "" {
		o.workloads = slices.DeleteFunc(o.workloads, func(w workload) bool { return w.asked })
	}
	if o.penstock, err = filepath.Abs(o.penstock); err != nil {
		return o, err
	}
	if *other != "" {
		if *other, err = filepath.Abs(*other); err != nil {
			return o, err
		}
		o.gateways = against(o.gateways, *other)
	}
	for _, dir := range []*string{&o.profile, &o.cpuProfile} {
		if *dir == "" {
			continue
		}
		if *dir, err = filepath.Abs(*dir); err != nil {
			return o, err
		}
		if err := os.MkdirAll(*dir, 0o755); err != nil {
			return o, err
		}
	}
	return o, nil
}

type named interface{ Name() string }

func names[T named](list []T) (out []string) {
	for _, v := range list {
		out = append(out, v.Name())
	}
	return out
}

// choose returns those of all that a list joined by commas names, in all's order.
func choose[T named](all []T, list string) ([]T, error) {
	if list == "" {
		return all, nil
	}
	want := strings.Split(list, ",")
	for i, w := range want {
		want[i] = strings.TrimSpace(w)
		if !slices.Contains(names(all), want[i]) {
			return nil, fmt.Errorf("unknown name %q: want some of %s", want[i], strings.Join(names(all), ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(v T) bool { return !slices.Contains(want, v.Name()) }), nil
}

// run measures everything and prints it. ok: nothing failed and every floor held.
func run(ctx context.Context, o options) (ok bool, err error) {
	if err := lab.Privileged(); err != nil {
		return false, err
	}
	if runtime.NumCPU() <= max(gatewayCPU, endpointCPU) {
		return false, fmt.Errorf("want a CPU for the gateway and one for the endpoints, this machine has %d", runtime.NumCPU())
	}
	if _, err := os.Stat(o.penstock); err != nil {
		return false, fmt.Errorf("find the binary to measure: %w; make build", err)
	}
	for _, w := range o.workloads {
		for _, name := range w.needs {
			if _, err := exec.LookPath(name); err != nil {
				return false, fmt.Errorf("workload %s: %w; test/packages.sh bench installs what is needed", w.name, err)
			}
		}
	}
	// Whatever is started from here on inherits this; gateways are moved.
	if err := lab.PinProcess(os.Getpid(), endpointCPU); err != nil {
		return false, err
	}
	dir, err := os.MkdirTemp("", "penstock-bench")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	_ = os.Chmod(dir, 0o755) // nginx's worker reads it

	r := report{Conditions: readConditions(o), Rounds: o.rounds, Seconds: o.seconds, Of: o.of}
	b, err := newBed(ctx, dir, o)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	r.Conditions.Offloads = b.describeOffloads()
	began := time.Now()
	for round := range o.rounds {
		for _, g := range o.gateways {
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			r.Results = append(r.Results, b.measure(ctx, g, o.workloads, round, progress(began, round, o.rounds))...)
		}
	}
	r.Results = append(r.Results, b.measureFloor(ctx, began)...)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if o.xsk {
		fmt.Fprintf(os.Stderr, "%4.0fs  package xsk beside its peers\n", time.Since(began).Seconds())
		r.XSK = measureXSK(ctx, o.root)
	}
	r.Conditions.LoadAfter, r.Conditions.Took = loadAverage(), time.Since(began).Seconds()
	r.Floors = r.floors()
	if o.json != "" {
		if err := r.writeJSON(o.json); err != nil {
			return false, err
		}
	}
	if o.markdown != "" {
		if err := r.writeMarkdown(o.markdown); err != nil {
			return false, err
		}
	}
	r.print(os.Stdout)
	return r.passed(), nil
}

// floorRounds are added to those of the two gateways that a floor compares, if
// there is more than one: either may find a rhythm in which packets come in
// large or small batches and keep it for a round.
const floorRounds = 4

func (b *bed) measureFloor(ctx context.Context, began time.Time) (out []result) {
	pair := slices.DeleteFunc(slices.Clone(b.gateways), func(g gateway) bool { return g.name != judged && g.name != yardstick })
	load := slices.DeleteFunc(slices.Clone(b.workloads), func(w workload) bool { return w.name != floorWorkload })
	if b.rounds == 1 || len(pair) != 2 || len(load) == 0 {
		return nil
	}
	for round := range floorRounds {
		for _, g := range pair {
			if ctx.Err() == nil {
				out = append(out, b.measure(ctx, g, load, b.rounds+round, progress(began, b.rounds+round, b.rounds+floorRounds))...)
			}
		}
	}
	return out
}

// progress returns a function that says on standard error how far the run is.
func progress(began time.Time, round, rounds int) func(result) {
	return func(m result) {
		out := fmt.Sprintf("%s for each CPU-second, CPU %.0f %%", m.text(), 100*m.CPUSeconds/max(m.Seconds, 1e-9))
		if m.Failed != "" {
			out = "FAILED: " + m.Failed
		}
		fmt.Fprintf(os.Stderr, "%4.0fs  round %d of %d  %-22s %-10s %s\n", time.Since(began).Seconds(), round+1, rounds, m.Gateway, m.Workload, out)
	}
}
