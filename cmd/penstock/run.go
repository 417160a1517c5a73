package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"penstock/internal/config"
	"penstock/internal/control"
	"penstock/pipeline"
)

func runCommand(args []string) error {
	fs := newFlags("run", "[--log-level LEVEL] [--cpuprofile PROFILE] FILE")
	level := fs.String("log-level", "info", "debug, info, warn or error")
	profile := fs.String("cpuprofile", "", "write a CPU profile of the run to this file, for go tool pprof")
	files, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return usagef("want one configuration file, got %d", len(files))
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(*level)); err != nil {
		return usagef("--log-level: want debug, info, warn or error, got %q", *level)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l}))

	// From here on a signal ends the start as well as the run.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	cfg, err := loadConfig(files[0])
	if err != nil {
		return notStarted(err, signals)
	}
	defer keepHeap()()
	if *profile != "" {
		stop, err := startCPUProfile(*profile)
		if err != nil {
			return err
		}
		defer func() {
			if err := stop(); err != nil {
				log.Error("the CPU profile is not whole", "err", err)
			}
		}()
	}
	a, err := startAppliance(cfg, log)
	if err != nil {
		return notStarted(err, signals)
	}
	for p := range a.eachPort() {
		p.tell(log)
	}
	log.Info("appliance runs", "name", cfg.Appliance.Name, "config", cfg.File, "workers", len(a.workers), "control", cfg.Appliance.Control)

	a.dropPrivileges()
	service := startService(a)
	defer service.close()
	for {
		select {
		case err := <-service.stuck:
			return err
		case err := <-a.failed:
			service.stopping(err.Error())
			return fmt.Errorf("run: %w", joinClose(err, a.close(!leavesXDP(cfg) || !a.pinned, nil)))
		case <-a.handover:
			service.stopping("handover")
			return a.shutdown("handover", true, signals)
		case <-a.reloaded:
			service.ready() // its status may be another
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				service.reloading()
				r, err := a.reload(false)
				a.Audited(control.AuditOfReload(control.Signal("SIGHUP"), r, err))
				service.ready()
				continue
			}
			service.stopping(sig.String())
			return a.shutdown(sig.String(), leavesXDP(cfg) && a.pinned, signals)
		}
	}
}

// leavesXDP reports whether XDP stays attached without the process: to keep the
// wire connected, or, where the kernel would route what a chain wants, cut.
func leavesXDP(cfg *config.Config) bool {
	return cfg.Appliance.OnExit == config.OnExitOpen || cfg.Appliance.Mode == config.ModeRouter
}

// wireText says what becomes of packets when the process is gone.
func (a *appliance) wireText(leaves bool) string {
	c := &a.cfg.Appliance
	switch {
	case c.Mode == config.ModeRouter && !leaves:
		return "connected: the kernel routes everything"
	case c.Mode == config.ModeRouter && c.OnExit == config.OnExitOpen:
		return "connected: XDP goes on routing, and the kernel what chains want"
	case c.Mode == config.ModeRouter:
		return "cut for packets that chains want: XDP drops them"
	case leaves:
		return "connected: XDP goes on bridging"
	}
	return "cut: XDP is detached"
}

// shutdown drains and leaves XDP attached, or detaches it. A signal ends the
// draining.
func (a *appliance) shutdown(why string, leaves bool, signals <-chan os.Signal) error {
	timeout := time.Duration(a.live().Appliance.DrainTimeout)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	go func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	a.log.Info("draining", "why", why, "for_at_most", timeout)
	x := control.Exit{PID: os.Getpid(), Why: why, Wire: a.wireText(leaves)}
	_, x.Flows, _ = a.depths()
	start := time.Now()
	x.Cut = a.drain(ctx)
	x.Finished = max(x.Flows.Terminated-x.Cut, 0)
	x.Seconds = time.Since(start).Seconds()
	err := a.close(!leaves, &x)
	f := x.Flows
	a.log.Info("appliance has stopped", "wire", x.Wire, "terminated_finished", x.Finished, "connections_cut", x.Cut,
		"inspected", f.Inspected, "forwarded_by_chains", f.Forwarded, "offloaded", f.Offloaded, "spliced", f.Spliced,
		"packets", x.Packets, "forwarded", x.Forwarded, "consumed", x.Consumed, "dropped", sumOf(x.Dropped), "balanced", x.Balanced)
	return err
}

// account puts the last figures of the packets into the report. The workers have
// stopped, and given back what they held.
func (a *appliance) account(x *control.Exit) {
	var t pipeline.Totals
	for _, w := range a.workers {
		t.Add(w.Stats().Totals)
	}
	x.Packets, x.Forwarded, x.Consumed, x.Dropped, x.Balanced = t.Packets, t.Forwarded, t.Consumed, t.Dropped, t.Balanced()
}

func sumOf(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

func joinClose(err, closing error) error {
	if closing != nil {
		return fmt.Errorf("%w; and on closing: %w", err, closing)
	}
	return err
}
