package http_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"penstock/internal/config"
	"penstock/pcap"
	"penstock/pipeline"
	"penstock/stages"
)

var update = flag.Bool("update", false, "write the golden file anew")

const chain = `
[[port]]
name = "lan"
interface = "eth1"
[[port]]
name = "wan"
interface = "eth2"
[[chain]]
name = "web"
  [[chain.stage]]
  kind = "tcp"
  midstream = "inspect"
  [[chain.stage]]
  kind = "http"
`

// events writes down what is recorded, without what differs between two runs.
type events struct{ b *strings.Builder }

func (events) Enabled(string) bool { return true }

func (e events) Record(_ string, fields any) {
	text, err := json.Marshal(fields.(pipeline.Borrowed).Keep())
	if err != nil {
		panic(err)
	}
	var m map[string]any
	if err := json.Unmarshal(text, &m); err != nil {
		panic(err)
	}
	delete(m, "flow_id")
	text, err = json.Marshal(m)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(e.b, "    %s\n", text)
}

// TestCaptures runs captures with ambiguous and smuggled requests, and plain
// ones, through the stage at inspect depth, once only recording and once
// refusing what is ambiguous. What the projects that they come from name is
// named here:
//
//	zeek-variant-01  HTTP_bad_chunk_size              http_bad_chunk
//	zeek-variant-03  HTTP_bad_content_length          http_bad_length
//	zeek-variant-04  HTTP_content_length_and_chunked  http_length_and_chunked
//	zeek-variant-08  HTTP_content_length_leading_zeros  http_bad_length
//	zeek-smuggle     is about what the bodies hold, not where they end: nothing
//	suricata-http-multiple-cl                         http_repeated_length
func TestCaptures(t *testing.T) {
	files, err := filepath.Glob("testdata/captures/*.pcap")
	if err != nil || len(files) < 10 {
		t.Fatalf("%v, %v", files, err)
	}
	files = append(files, "../../internal/h2/testdata/http2-nghttp2.pcap")
	var b strings.Builder
	for _, file := range files {
		fmt.Fprintf(&b, "%s\n", filepath.Base(file))
		for _, mode := range []string{"pass", "deny"} {
			fmt.Fprintf(&b, "  on_bad = %q", mode)
			replay(t, &b, file, chain+fmt.Sprintf("  on_bad = %q\n", mode))
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
	if got := b.String(); got != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func replay(t *testing.T, b *strings.Builder, file, text string) {
	cfg, problems := config.Parse("test.toml", []byte(text), stages.Builtin())
	for _, p := range problems {
		t.Fatal(p)
	}
	var rec strings.Builder
	res, err := pcap.Replay(context.Background(), pcap.ReplayOptions{
		Name: file, Chain: &cfg.Chains[0].Spec, AcceptBadChecksums: true, Recorder: events{&rec},
	})
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	fmt.Fprintf(b, ": %d packets, %d forwarded, %d consumed, dropped", res.Packets, res.Forwarded, res.Consumed)
	for _, r := range slices.Sorted(maps.Keys(res.Dropped)) {
		if n := res.Dropped[r]; n > 0 {
			fmt.Fprintf(b, " %s %d", r, n)
		}
	}
	b.WriteString("\n" + rec.String())
}
