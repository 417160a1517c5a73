package ratelimit

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"testing"
	"time"

	"penstock/internal/units"
	"penstock/internal/wire"
	"penstock/pipeline/pipelinetest"
)

func TestConformance(t *testing.T) {
	with := func(change func(c *Config)) Config {
		c := defaults()
		c.Rate = units.Rate{PerSecond: 100, Packets: true}
		change(&c)
		return c
	}
	pipelinetest.Stage(t, Descriptor(),
		with(func(c *Config) {}),
		with(func(c *Config) { c.By, c.Burst = byFlow, BurstConfig{1, true} }),
		with(func(c *Config) { c.By, c.Rate = byDst, units.Rate{PerSecond: 1000} }),
		with(func(c *Config) { c.By, c.Burst = byAll, BurstConfig{5, true} }),
		with(func(c *Config) { c.MaxEntries, c.OnFull = 1, fullDrop }),
	)
}

// TestGolden replays testdata. With -update it also builds the captures.
func TestGolden(t *testing.T) {
	if flag.Lookup("update").Value.String() == "true" {
		var frames [][]byte
		for i := range 60 {
			src := fmt.Sprintf("10.0.0.%d:1000", 1+i%2)
			frames = append(frames, pipelinetest.TCP(src, "192.0.2.1:80", wire.FlagSYN, uint32(i)))
			if i%4 == 0 {
				frames = append(frames, pipelinetest.TCP("192.0.2.1:80", src, wire.FlagSYN|wire.FlagACK, 9, pipelinetest.Ack(uint32(i+1))))
			}
		}
		for name, step := range map[string]time.Duration{"source": 10 * time.Millisecond, "flow": 10 * time.Millisecond} {
			if err := os.WriteFile("testdata/"+name+"/in.pcapng", pipelinetest.Capture(step, frames...), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	pipelinetest.Golden(t, "testdata", registry())
}

var tomlBlock = regexp.MustCompile("(?ms)^```toml\n(.*?)^```")

// TestExamples runs the examples of the manual.
func TestExamples(t *testing.T) {
	syn := func(src, dst string) []byte { return pipelinetest.TCP(src, dst, wire.FlagSYN, 1) }
	ack := pipelinetest.TCP("10.0.0.1:1000", "10.9.0.1:53", wire.FlagACK, 1)
	answer := func(dst string) []byte { return pipelinetest.UDP("10.9.0.1:53", dst, pipelinetest.PayloadLen(1400)) } // 1,442 bytes
	type step struct {
		in, n, passed int
		frame         []byte
	}
	cases := [][]step{
		{{0, 600, 500, ack}, {1, 600, 500, syn("10.7.0.1:1000", "10.0.0.1:53")}},
		{{1, 50, 10, syn("10.0.0.1:1000", "10.9.0.1:53")}, {1, 50, 0, syn("10.0.0.2:1000", "10.9.0.1:53")}, {1, 50, 50, ack}, {0, 50, 50, syn("10.0.0.1:1000", "10.9.0.1:53")}},
		{{0, 100, 43, answer("10.1.1.1:99")}, {0, 100, 0, answer("10.1.1.2:99")}, {0, 100, 43, answer("10.1.2.1:99")}, {0, 100, 100, ack}},
	}
	blocks := tomlBlock.FindAllStringSubmatch(readme, -1)
	if len(blocks) != len(cases) {
		t.Fatalf("the manual has %d examples, %d are tested", len(blocks), len(cases))
	}
	for i, steps := range cases {
		t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			r := newRig(t, blocks[i][1])
			for _, s := range steps {
				if passed, dropped := r.send(t, s.in, s.n, s.frame); passed != s.passed {
					t.Errorf("%s: %d of %d passed (%s), want %d", wire.Summary(s.frame), passed, s.n, dropped, s.passed)
				}
			}
		})
	}
}
