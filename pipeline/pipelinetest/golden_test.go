package pipelinetest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pcap"
	"penstock/pipeline"
)

func toyRegistry() *pipeline.Registry {
	reg := &pipeline.Registry{}
	pipeline.Register(reg, toyDescriptor(""))
	return reg
}

// TestGolden replays testdata. With -update it also builds the captures.
func TestGolden(t *testing.T) {
	if *update {
		const c, s = "10.0.0.1:1000", "10.0.0.2:80"
		frames := Capture(30*time.Millisecond,
			TCP(c, s, wire.FlagSYN, 1), TCP(s, c, wire.FlagSYN|wire.FlagACK, 9, Ack(2)), UDP("10.0.0.1:9", "224.0.0.1:9"),
			UDP("10.0.0.3:1", "10.0.0.2:2", BadChecksum()), ARP("10.0.0.1", "10.0.0.2"), TCP(c, s, wire.FlagACK, 2, Ack(10), TOS(4)),
			TCP("[2001:db8::1]:1", "[2001:db8::2]:2", wire.FlagSYN, 1)[:60],
		)
		if err := os.WriteFile("testdata/toy/in.pcapng", frames, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	Golden(t, "testdata", toyRegistry())
}

// TestGoldenCatches shows that a golden test can fail.
func TestGoldenCatches(t *testing.T) {
	if dir := os.Getenv("PIPELINETEST_GOLDEN"); dir != "" {
		Golden(t, dir, toyRegistry())
		return
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "toy", "want.txt")
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Replace(want, []byte("toy_multicast"), []byte("toy_unicast"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestGoldenCatches$")
	cmd.Env = append(os.Environ(), "PIPELINETEST_GOLDEN="+dir)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "drop toy_unicast") {
		t.Errorf("a wrong want.txt passes: %v\n%s", err, out)
	}
}

func TestGoldenCaseInGo(t *testing.T) {
	in := Capture(time.Second, TCP("10.0.0.1:1000", "10.0.0.2:80", wire.FlagSYN, 1))
	dir := t.TempDir()
	want := "    1     0.000000 0>1 forward IP 10.0.0.1.1000 > 10.0.0.2.80: Flags [S], seq 1, win 64240, length 0\n" +
		"packets 1, forwarded 1, consumed 0, flows 1, made 0\n"
	if err := os.WriteFile(filepath.Join(dir, "want.txt"), []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
	GoldenCase(t, dir, pcap.ReplayOptions{In: bytes.NewReader(in)}, false)
}
