package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"penstock/pcap/closedloop"
)

const terminating = head + `
[[chain.stage]]
kind = "tcp"
depth = "terminate"
[[record]]
to = "file:EVENTS"
`

// TestReplayClosed: a chain that terminates is replayed in closed loop; the
// JSON, the output and the exit status tell the same, run for run.
func TestReplayClosed(t *testing.T) {
	const capture = "../../pcap/testdata/captures/curl-enabled-tls13.pcap"
	file := write(t, strings.Replace(terminating, "EVENTS", filepath.Join(t.TempDir(), "events"), 1))
	var first []byte
	for range 2 {
		out := filepath.Join(t.TempDir(), "out.pcapng")
		status, stdout, stderr := invoke(t, "replay", "--json", "--accept-bad-checksums", "--in", capture, "--out", out, "--fault", "loss=5%,seed=3", file)
		if status != 0 || !strings.Contains(stderr, "FAULTS ARE ON") {
			t.Fatalf("status %d, %s", status, stderr)
		}
		var res closedloop.Result
		if err := json.Unmarshal([]byte(stdout), &res); err != nil {
			t.Fatal(err)
		}
		if res.Played != 1 || res.Equal != 1 || len(res.List) != 1 || res.List[0].Client == "" || !res.List[0].ToClient.Equal {
			t.Errorf("got %s", stdout)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if first != nil && !bytes.Equal(b, first) {
			t.Error("two runs write different output")
		}
		first = b
	}
}

// TestReplayUsage: what cannot be asked for, and the mend.
func TestReplayUsage(t *testing.T) {
	file := write(t, strings.Replace(terminating, "EVENTS", filepath.Join(t.TempDir(), "events"), 1))
	const capture = "../../pcap/testdata/captures/v6.pcap"
	for _, row := range []struct {
		args []string
		want string
	}{
		{[]string{"--loop", "open"}, "want --loop closed"},
		{[]string{"--loop", "round"}, "--loop: want auto, open or closed"},
		{[]string{"--workers", "2"}, "closed-loop replay has one worker"},
		{[]string{"--fault", "los=1%"}, `unknown key "los"`},
		{[]string{"--window", "0"}, "--window and --memory: want more than 0"},
		{[]string{"--memory", "1"}, `want a size such as`},
	} {
		status, _, stderr := invoke(t, append(append([]string{"replay", "--in", capture}, row.args...), file)...)
		if status != 2 || !strings.Contains(stderr, row.want) {
			t.Errorf("%v: status %d, %s", row.args, status, stderr)
		}
	}
}
