package main

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// conditions are what a figure depends on besides the gateways.
type conditions struct {
	Date       string            `json:"date"`
	Kernel     string            `json:"kernel"`
	CPU        string            `json:"cpu"`
	CPUs       int               `json:"cpus"`
	MTU        int               `json:"mtu"`
	Offloads   map[string]string `json:"offloads"`
	Versions   map[string]string `json:"versions"`
	LoadBefore string            `json:"load_average_before"`
	LoadAfter  string            `json:"load_average_after"`
	Took       float64           `json:"seconds"`
}

func readConditions(o options) conditions {
	c := conditions{
		Date: time.Now().UTC().Format("2006-01-02 15:04 UTC"), CPUs: runtime.NumCPU(), MTU: 1500, LoadBefore: loadAverage(),
		CPU: cpuModel(), Versions: map[string]string{"go": runtime.Version()},
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		c.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	for name, args := range map[string][]string{
		"penstock": {o.penstock, "version"}, "source": {"git", "-C", o.root, "describe", "--always", "--dirty", "--abbrev=12"}, "haproxy": {"haproxy", "-v"}, "nginx": {"nginx", "-v"}, "wrk": {"wrk", "-v"},
	} {
		c.Versions[name] = versionOf(args...)
	}
	return c
}

// versionOf returns the first line that a program prints about itself.
func versionOf(args ...string) string {
	if _, err := exec.LookPath(args[0]); err != nil {
		return "not installed"
	}
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil && args[0] != "wrk" { // which exits with 1 after it has said its version
		return "unknown"
	}
	line, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n"))
	text := string(line)
	for _, tail := range []string{" - https://", " https://", " [epoll]"} {
		text, _, _ = strings.Cut(text, tail)
	}
	return text
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(b))[:3], " ")
}
