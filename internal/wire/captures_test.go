package wire_test

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"penstock/internal/wire"
)

var update = flag.Bool("update", false, "write testdata/captures.txt anew")

// capture is one file of testdata/captures (see ORIGIN.md there).
type capture struct {
	name   string
	frames [][]byte
	rawIP  bool
}

// summary is Summary or SummaryIP, after the capture's link type.
func (c *capture) summary(frame []byte) string {
	if c.rawIP {
		return wire.SummaryIP(frame)
	}
	return wire.Summary(frame)
}

func (c *capture) parse(h *wire.Headers, frame []byte) wire.Fault {
	if c.rawIP {
		return h.ParseIP(frame)
	}
	return h.Parse(frame)
}

func captures(t testing.TB) []capture {
	t.Helper()
	files, err := filepath.Glob("testdata/captures/*.pcap")
	if err != nil || len(files) == 0 {
		t.Fatalf("list captures: found %d: %v", len(files), err)
	}
	var all []capture
	for _, file := range files {
		c := capture{name: strings.TrimSuffix(filepath.Base(file), ".pcap")}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		r, err := pcapgo.NewReader(f)
		if err != nil {
			t.Fatalf("read %s: %v", file, err)
		}
		c.rawIP = r.LinkType() != layers.LinkTypeEthernet
		for {
			data, _, err := r.ReadPacketData()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("read %s: %v", file, err)
			}
			c.frames = append(c.frames, data)
		}
		f.Close()
		all = append(all, c)
	}
	return all
}

// TestCaptures keeps what we say about each packet of the captures in testdata/captures.txt.
func TestCaptures(t *testing.T) {
	var b strings.Builder
	for _, c := range captures(t) {
		fmt.Fprintf(&b, "== %s\n", c.name)
		for _, frame := range c.frames {
			var h wire.Headers
			checkHeaders(t, frame, &h, c.parse(&h, frame))
			sums := ""
			if h.IPVersion == 4 && h.Fault == wire.FaultNone && !wire.VerifyIPv4(frame[h.L3:]) {
				sums += " (bad IP checksum)"
			}
			if h.HasL4 && h.Frag == wire.FragNone && !wire.VerifyL4(frame, &h) {
				sums += " (bad L4 checksum)"
			}
			fmt.Fprintf(&b, "%s%s\n", c.summary(frame), sums)
		}
	}
	const golden = "testdata/captures.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	gotLines, wantLines := strings.Split(b.String(), "\n"), strings.Split(string(want), "\n")
	name := ""
	for i := range max(len(gotLines), len(wantLines)) {
		var g, w string
		if i < len(gotLines) {
			g = gotLines[i]
		}
		if i < len(wantLines) {
			w = wantLines[i]
		}
		if strings.HasPrefix(w, "== ") {
			name = w[3:]
		}
		if g != w {
			t.Errorf("%s, line %d of %s:\n got %s\nwant %s", name, i+1, golden, g, w)
		}
	}
}

// TestSummaryLikeTcpdump compares with what tcpdump printed for the same captures (testdata/tcpdump.sh). tcpdump goes
// on about the payload, and has its own words for extension headers and for what is broken: those lines are left out.
func TestSummaryLikeTcpdump(t *testing.T) {
	text, err := os.ReadFile("testdata/tcpdump.txt")
	if err != nil {
		t.Fatal(err)
	}
	said := map[string][]string{}
	name := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if n, ok := strings.CutPrefix(line, "== "); ok {
			name = n
		} else {
			said[name] = append(said[name], line)
		}
	}
	compared := 0
	for _, c := range captures(t) {
		lines := said[c.name]
		if len(lines) != len(c.frames) {
			// tcpdump needs two lines for some broken packets.
			if !strings.HasPrefix(c.name, "tcpdump-") {
				t.Errorf("%s: %d packets, %d lines by tcpdump", c.name, len(c.frames), len(lines))
			}
			continue
		}
		for i, frame := range c.frames {
			want := lines[i]
			if !strings.Contains(want, ": Flags [") && !strings.Contains(want, ": UDP, length") && !strings.Contains(want, "ARP, ") ||
				strings.Contains(want, "[bad ") || strings.Contains(want, ": DSTOPT") || strings.Contains(want, ": HBH") || strings.Contains(want, ": RT6") || strings.Contains(want, ": frag") {
				continue
			}
			got := strings.Replace(c.summary(frame), ".e], ", ".], ", 1) // AE came with tcpdump 5
			for rest, ok := got, true; ok; {                             // tcpdump shows tags with -e only
				if rest, ok = strings.CutPrefix(got, "vlan "); ok {
					_, got, _ = strings.Cut(rest, ": ")
				}
			}
			got = strings.TrimSuffix(got, ", first fragment")
			if want != got && !strings.HasPrefix(want, got+":") {
				t.Errorf("%s, packet %d:\n    got %s\ntcpdump %s", c.name, i+1, got, want)
			}
			compared++
		}
	}
	if compared < 60 {
		t.Errorf("only %d packets compared", compared)
	}
}
