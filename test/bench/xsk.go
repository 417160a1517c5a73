package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// xskResults are what the benchmark of package xsk printed.
type xskResults struct {
	Lines  []xskLine `json:"lines"`
	Failed string    `json:"failed,omitempty"`
}

// xskLine is one package at one packet size.
type xskLine struct {
	Size        string  `json:"size"` // "64B"
	Package     string  `json:"package"`
	PerCPU      float64 `json:"kpkt_per_cpu_second"`
	PerSecond   float64 `json:"kpkt_per_second"`
	OfPenstocks float64 `json:"of_penstock"`
}

const xskLimit = 2 * time.Minute

// measureXSK runs the benchmark that lives beside the package, on all CPUs.
func measureXSK(ctx context.Context, root string) *xskResults {
	ctx, cancel := context.WithTimeout(ctx, xskLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "taskset", "-c", fmt.Sprintf("%d,%d", endpointCPU, gatewayCPU),
		"go", "test", "./xsk", "-run", "^$", "-bench", "BenchmarkForward", "-benchtime", "1x")
	cmd.Dir = root
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	r := &xskResults{Lines: parseXSK(out.String())}
	switch {
	case err != nil:
		r.Failed = fmt.Sprintf("go test ./xsk: %v: %s", err, strings.TrimSpace(out.String()))
	case len(r.Lines) == 0:
		r.Failed = fmt.Sprintf("go test ./xsk: no result in %q", out.String())
	}
	return r
}

// parseXSK reads lines such as
//
//	BenchmarkForward/64B/penstock-2  1  1234 kpkt/cpu-s  987 kpkt/s  1.000 of-penstock
func parseXSK(text string) (lines []xskLine) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "BenchmarkForward/") {
			continue
		}
		parts := strings.Split(f[0], "/")
		if len(parts) != 3 {
			continue
		}
		l := xskLine{Size: parts[1], Package: parts[2]}
		if i := strings.LastIndex(l.Package, "-"); i > 0 {
			l.Package = l.Package[:i] // without GOMAXPROCS
		}
		for i := 2; i+1 < len(f); i += 2 {
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				continue
			}
			switch f[i+1] {
			case "kpkt/cpu-s":
				l.PerCPU = v
			case "kpkt/s":
				l.PerSecond = v
			case "of-penstock":
				l.OfPenstocks = v
			}
		}
		lines = append(lines, l)
	}
	return lines
}
