package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"penstock/internal/control"
	"penstock/pcap"
	"penstock/xsk"
)

// invoke runs the command line and returns what a shell would see.
func invoke(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	oldOut, oldErr := os.Stdout, os.Stderr
	defer func() { os.Stdout, os.Stderr = oldOut, oldErr }()
	capture := func(f **os.File) func() string {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		*f = w
		done := make(chan string)
		go func() {
			b, _ := io.ReadAll(r)
			done <- string(b)
		}()
		return func() string { w.Close(); return <-done }
	}
	out, errs := capture(&os.Stdout), capture(&os.Stderr)
	status = dispatch(args, os.Stderr)
	return status, out(), errs()
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "test.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const head = `
[[port]]
name = "lan"
interface = "eth1"
[[port]]
name = "wan"
interface = "eth2"
[[steer]]
to = "a"
[[chain]]
name = "a"
`

func TestExitStatus(t *testing.T) {
	good := write(t, head)
	bad := write(t, head+"nmae = 1\n[appliance]\nmode = \"switch\"\n")
	for _, row := range []struct {
		name   string
		args   []string
		status int
		out    []string // in stdout
		err    []string // in stderr
	}{
		{"nothing", nil, 2, nil, []string{"usage:"}},
		{"help", []string{"help"}, 0, []string{"usage:", "replay"}, nil},
		{"unknown command", []string{"rum"}, 2, nil, []string{`unknown command "rum"`}},
		{"unknown flag", []string{"check", "--loud", good}, 2, nil, []string{"--loud", "loud"}[1:]},
		{"flag help", []string{"replay", "-h"}, 0, []string{"--in A.pcap", "accept-bad-checksums"}, nil},
		{"check without file", []string{"check"}, 2, nil, []string{"want a configuration file"}},
		{"check", []string{"check", good}, 0, []string{"chain a"}, nil},
		{"check, every problem", []string{"check", bad}, 2, nil, []string{":12:", "nmae", ":14:", `"switch"`}},
		{"check, missing file", []string{"check", good + "x"}, 2, nil, []string{"no such file"}},
		{"check several", []string{"check", good, bad}, 2, []string{"chain a"}, []string{"switch"}},
		{"stages", []string{"stages"}, 0, []string{"acl", "http", "tcp"}, nil},
		{"stages acl", []string{"stages", "acl"}, 0, []string{"# acl", "## Configuration"}, nil},
		{"stages unknown", []string{"stages", "alc"}, 2, nil, []string{`did you mean "acl"?`}},
		{"status, nobody there", []string{"status", "--control", "/nonexistent/socket"}, 1, nil, []string{"is an appliance running"}},
		{"status, argument", []string{"status", "now"}, 2, nil, []string{"want no arguments"}},
		{"reload, nobody there", []string{"reload", "--control", "/nonexistent/socket"}, 1, nil, []string{"is an appliance running"}},
		{"reload, argument", []string{"reload", good}, 2, nil, []string{"want no arguments"}},
		{"drain, nobody there", []string{"drain", "--chain", "a", "--control", "/nonexistent/socket"}, 1, nil, []string{"is an appliance running"}},
		{"drain, wait", []string{"drain", "--wait", "-1s"}, 2, nil, []string{"--wait"}},
		{"drain help", []string{"drain", "--help"}, 0, []string{"-chain", "-undo"}, nil},
		{"flows, prefix", []string{"flows", "--src", "10.0.0.1/8"}, 2, nil, []string{"bits beyond its length"}},
		{"flows, port", []string{"flows", "--port", "http"}, 2, nil, []string{"want a port"}},
		{"flows, depth", []string{"flows", "--depth", "deep"}, 2, nil, []string{"want offload, forward"}},
		{"flows help", []string{"flows", "--help"}, 0, []string{"-depth", "-src"}, nil},
		{"run without file", []string{"run"}, 2, nil, []string{"want one configuration file"}},
		{"run, level", []string{"run", "--log-level", "loud", good}, 2, nil, []string{"want debug, info, warn or error"}},
		{"run, bad config", []string{"run", bad}, 2, nil, []string{"switch"}},
		{"replay without in", []string{"replay", good}, 2, nil, []string{"--in is missing"}},
		{"replay, missing capture", []string{"replay", "--in", "/nonexistent/x.pcap", good}, 1, nil, []string{"/nonexistent/x.pcap"}},
		{"replay, speed", []string{"replay", "--in", "x", "--speed", "-1", good}, 2, nil, []string{"--speed"}},
		{"replay, chain", []string{"replay", "--in", "x", "--chain", "b", good}, 2, nil, []string{`no chain "b"`}},
		{"version", []string{"version"}, 0, []string{"penstock"}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			status, out, errs := invoke(t, row.args...)
			if status != row.status {
				t.Errorf("status %d, want %d\n%s%s", status, row.status, out, errs)
			}
			for _, w := range row.out {
				if !strings.Contains(out, w) {
					t.Errorf("no %q on stdout: %q", w, out)
				}
			}
			for _, w := range row.err {
				if !strings.Contains(errs, w) {
					t.Errorf("no %q on stderr: %q", w, errs)
				}
			}
			if row.status == 0 && errs != "" {
				t.Errorf("stderr: %q", errs)
			}
		})
	}
}

// TestReplay replays a capture of the repository through a shipped
// configuration and checks what the command prints.
func TestReplay(t *testing.T) {
	captures, err := filepath.Glob("../../pcap/testdata/*/*.pcap")
	if more, _ := filepath.Glob("../../pcap/testdata/*.pcap"); err != nil || len(captures)+len(more) == 0 {
		t.Fatalf("no captures: %v", err)
	} else {
		captures = append(captures, more...)
	}
	for _, capture := range captures {
		out := filepath.Join(t.TempDir(), "out.pcapng")
		args := []string{"replay", "--in", capture, "--out", out, "--json", "--accept-bad-checksums", "../../configs/packet-filter.toml"}
		status, text, errs := invoke(t, args...)
		var res pcap.Result
		if err := json.Unmarshal([]byte(text), &res); err != nil {
			t.Errorf("%s: status %d, %v: %q %q", capture, status, err, text, errs)
			continue
		}
		sum := res.Forwarded + res.Consumed
		for _, n := range res.Dropped {
			sum += n
		}
		if sum != res.Packets {
			t.Errorf("%s: packets disappeared: %+v", capture, res)
		}
		if status != 0 && (res.Error == "" || !strings.Contains(errs, "read capture")) {
			t.Errorf("%s: status %d without a reason: %q", capture, status, errs)
		}
		first, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		invoke(t, args...)
		if again, err := os.ReadFile(out); err != nil || !bytes.Equal(first, again) {
			t.Errorf("%s: two replays differ (%d and %d bytes, %v)", capture, len(first), len(again), err)
		}
	}
}

func TestFlowFilter(t *testing.T) {
	f := control.Flow{Client: "10.0.0.1:4000", Server: "[fd00::1]:8080", Chain: "web", Depth: "offload"}
	for _, row := range []struct {
		name string
		args []string
		want bool
	}{
		{"none", nil, true},
		{"src", []string{"--src", "10.0.0.0/8"}, true},
		{"other src", []string{"--src", "10.0.0.2"}, false},
		{"port", []string{"--port", "8080"}, true},
		{"range", []string{"--port", "8000-8099"}, true},
		{"other port", []string{"--port", "4000"}, false},
		{"depth", []string{"--depth", "offload"}, true},
		{"other depth", []string{"--depth", "terminate"}, false},
		{"chain", []string{"--chain", "web"}, true},
		{"other chain", []string{"--chain", "we"}, false},
		{"all of it", []string{"--chain", "web", "--depth", "offload", "--port", "8080", "--src", "10.0.0.1"}, true},
	} {
		var want flowFilter
		fs := newFlags("flows", "")
		want.flags(fs)
		if err := fs.Parse(row.args); err != nil {
			t.Fatal(err)
		}
		if got := want.match(f); got != row.want {
			t.Errorf("%s: %v", row.name, got)
		}
	}
}

func TestRate(t *testing.T) {
	at := func(age float64, packets, bytes uint64) control.Flow {
		return control.Flow{AgeSeconds: age, Packets: packets, Bytes: bytes}
	}
	for _, c := range []struct {
		name           string
		now, before    control.Flow
		packets, bytes float64
	}{
		{"between two looks", at(10.5, 1100, 3000), at(10, 1000, 2000), 200, 2000},
		{"new since the first", at(0.25, 5, 1000), control.Flow{}, 20, 4000},
		{"of its life", at(100, 500, 1000), control.Flow{}, 5, 10},
		{"quiet", at(11, 7, 70), at(10, 7, 70), 0, 0},
		{"another one on the same ports", at(0.5, 3, 300), at(50, 1000, 2000), 6, 600},
		{"just begun", at(0, 1, 60), control.Flow{}, 0, 0},
	} {
		if got := rate(c.now, c.before); got.PacketsPerSecond != c.packets || got.BytesPerSecond != c.bytes {
			t.Errorf("%s: got %v and %v, want %v and %v", c.name, got.PacketsPerSecond, got.BytesPerSecond, c.packets, c.bytes)
		}
	}
	for v, want := range map[float64]string{
		0: "0", 12: "12", 999.4: "999", 999.6: "1.0k", 1234: "1.2k", 9940: "9.9k", 9960: "10k", 123456: "123k", 999600: "1.0M", 2.5e9: "2.5G", 4e15: "4000T",
	} {
		if got := bitRate(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}

func TestSocketMode(t *testing.T) {
	for _, c := range []struct {
		driver, want string
		mode         xsk.Mode
	}{
		{"ice", "auto", xsk.Auto}, {"", "auto", xsk.Auto}, {"virtio_net", "auto", xsk.Copy},
		{"virtio_net", "on", xsk.ZeroCopy}, {"ice", "off", xsk.Copy},
	} {
		n := &nic{driver: c.driver}
		if got := n.socketMode(c.want); got != c.mode {
			t.Errorf("%q with zero_copy = %q: mode %v, want %v", c.driver, c.want, got, c.mode)
		}
	}
}
