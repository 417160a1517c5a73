package inspect

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"penstock/pcap"
	"penstock/pipeline"
)

// renew is the flag of package pipelinetest that writes golden files anew.
func renew() bool { f := flag.Lookup("update"); return f != nil && f.Value.String() == "true" }

// TestCaptures shows a stream stage captures of connections that evade, are
// damaged, or are just unusual, and compares what it saw with what stood before.
// Where the projects that the captures come from say what is to be seen, it is
// the same:
//
//   - suricata-tcp-overlap-exact: the stream has GOOD, not EVIL;
//   - suricata-tcp-gap: "VERY", then four bytes are missing, then "DATA" — the
//     sight ends at the gap if the receiver acknowledges over it;
//   - suricata-tcp-rst-with-data: what the reset carries is not in the stream;
//   - suricata-tcp-urgent: the urgent byte stays in line, since the pointer is
//     taken out of the packet (their "inline" policy);
//   - suricata-split-handshake-4whs: no connection comes of it;
//   - zeek-rst-inject-rae: the injected reset does not answer the SYN;
//   - zeek-reassembly: sight ends at the first of the gaps, before the
//     retransmissions that differ;
//   - arkime-wireshark-retrans: 47 retransmissions add nothing.
func TestCaptures(t *testing.T) {
	files, err := filepath.Glob("testdata/captures/*.pcap")
	if err != nil || len(files) < 10 {
		t.Fatalf("%v, %v", files, err)
	}
	var b strings.Builder
	for _, file := range files {
		fmt.Fprintf(&b, "%s\n", filepath.Base(file))
		see(t, &b, file)
		b.WriteString("\n")
	}
	const golden = "testdata/captures.txt"
	if renew() {
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

// see replays a capture and writes down what a stream stage saw.
func see(t *testing.T, b *strings.Builder, file string) {
	sc := &script{}
	reg := &pipeline.Registry{}
	pipeline.Register(reg, pipeline.Descriptor[struct{}]{
		Kind: "inspect", Affinity: true, Reasons: Reasons(),
		New: func(_ struct{}, env *pipeline.Env) (pipeline.Stage, error) {
			o := DefaultOptions()
			o.Streams, o.Names = []pipeline.StreamStage{sc}, []string{"script"}
			o.DenyConflict, o.Midstream, o.ChecksumsSettled = false, MidstreamInspect, env.ChecksumsSettled
			return New(env, o), nil
		},
	})
	spec := &pipeline.ChainSpec{Name: "test", Stages: []pipeline.StageSpec{{Kind: reg.Lookup("inspect"), Config: &struct{}{}}}}
	res, err := pcap.Replay(context.Background(), pcap.ReplayOptions{Name: file, Chain: spec, AcceptBadChecksums: true})
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	fmt.Fprintf(b, "  %d packets, %d forwarded, dropped", res.Packets, res.Forwarded)
	for _, r := range slices.Sorted(maps.Keys(res.Dropped)) {
		if n := res.Dropped[r]; n > 0 {
			fmt.Fprintf(b, " %s %d", r, n)
		}
	}
	b.WriteString("\n ")
	counters := res.Chain.Stages[0].Counters
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		if n := counters[name]; n > 0 && !strings.HasPrefix(name, "bytes_") && name != "memory_used" && name != "flows_active" {
			fmt.Fprintf(b, " %s %d", name, n)
		}
	}
	b.WriteString("\n")
	for i, c := range sc.opened {
		for _, e := range c.errors {
			t.Errorf("%s: %s", file, e)
		}
		fmt.Fprintf(b, "  connection %d %v > %v midstream %v, ends %v, lost %v\n", i+1, c.conn.Client, c.conn.Server, c.conn.Midstream, c.ends, c.lost)
		for d, seen := range c.seen {
			text := fmt.Sprintf("%q", seen)
			if len(seen) > 60 {
				text = fmt.Sprintf("%q... sha256 %x", seen[:60], sha256.Sum256(seen))
			}
			fmt.Fprintf(b, "    %v: %d bytes %s\n", pipeline.Direction(d), len(seen), text)
		}
	}
}
