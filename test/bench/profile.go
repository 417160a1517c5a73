package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"penstock/internal/lab"
)

// startProfile samples the gateway's threads, those of its NAPI included, until
// the returned function is called. What it costs falls on the gateway: figures
// of a profiled run are no results.
func (b *bed) startProfile(ctx context.Context, g gateway, w workload, r *running, napi []int) (finish func()) {
	if b.profile == "" {
		return func() {}
	}
	var threads []string
	for _, pid := range r.pids {
		tids, _ := lab.Threads(pid) // none: it has ended, which others notice
		napi = append(tids, napi...)
	}
	for _, tid := range napi {
		threads = append(threads, strconv.Itoa(tid))
	}
	file := filepath.Join(b.profile, g.name+"-"+w.name+".perf")
	cmd := exec.CommandContext(ctx, "perf", "record", "-q", "-e", "cpu-clock", "-F", "2999", "-g", "-t", strings.Join(threads, ","), "-o", file)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: profile:", err)
		return func() {}
	}
	return func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // perf ends by the signal that was sent to it
	}
}
