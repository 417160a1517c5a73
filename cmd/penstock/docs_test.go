package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReplayPage runs the examples of docs/replay.md: each command, and each
// line of output that stands behind it.
func TestReplayPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/replay.md")
	if err != nil {
		t.Fatal(err)
	}
	capture, err := os.ReadFile("../../pcap/testdata/captures/zeek-http-qinq-0.pcap")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```([a-z]+)\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	dir := t.TempDir()
	put := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("http.pcap", capture)
	put("web.toml", []byte(blocks[0][2]))
	commands := 0
	for _, b := range blocks[1:] {
		if b[1] == "toml" {
			rest := "\n[[port]]\nname = \"lan\"\ninterface = \"eth1\"\n[[steer]]\nto = \"bypass\"\n"
			put("part.toml", []byte(b[2]+rest))
			if status, _, stderr := invoke(t, "check", filepath.Join(dir, "part.toml")); status != 0 || !strings.Contains(stderr, "FAULTS ARE ON") {
				t.Errorf("%s\nstatus %d, stderr %s", b[2], status, stderr)
			}
			continue
		}
		lines := strings.Split(strings.TrimRight(b[2], "\n"), "\n")
		args := strings.Fields(strings.TrimPrefix(lines[0], "$ penstock "))
		for i, a := range args {
			if strings.HasSuffix(a, ".toml") || strings.HasSuffix(a, ".pcap") || strings.HasSuffix(a, ".pcapng") {
				args[i] = filepath.Join(dir, a)
			}
		}
		status, stdout, stderr := invoke(t, args...)
		if status != 0 {
			t.Errorf("%s: status %d, %s", lines[0], status, stderr)
		}
		for _, want := range lines[1:] {
			if !strings.Contains("\n"+stdout, "\n"+want+"\n") {
				t.Errorf("%s\nhas no line %q:\n%s", lines[0], want, stdout)
			}
		}
		commands++
	}
	if commands < 4 {
		t.Errorf("%d commands on the page", commands)
	}
}

// TestExportPage checks the examples of docs/export.md.
func TestExportPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/export.md")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "part.toml")
	examples := 0
	for _, b := range regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		rest := "\n[[port]]\nname = \"lan\"\ninterface = \"eth1\"\n[[port]]\nname = \"wan\"\ninterface = \"eth2\"\n"
		if err := os.WriteFile(file, []byte(b[1]+rest), 0o600); err != nil {
			t.Fatal(err)
		}
		if status, _, stderr := invoke(t, "check", file); status != 0 {
			t.Errorf("%s\nstatus %d, stderr %s", b[1], status, stderr)
		}
		examples++
	}
	if examples < 4 {
		t.Errorf("%d examples on the page", examples)
	}
}
