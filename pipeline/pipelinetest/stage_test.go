package pipelinetest

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"penstock/internal/wire"
	"penstock/pipeline"
)

type toyConfig struct {
	Class int `toml:"class"`
}

var reasonToy = pipeline.DefineReason("toy_multicast", "the packet is to a group")

const toyReadme = `# toy

Sets the traffic class of IPv4 packets.

## What it reads and changes
One byte and the checksum.

## Configuration
| key | type | default | required | meaning |
|---|---|---|---|---|
| ` + "`class`" + ` | number | 0 | no | the class |

## Evaluation order
One after the other.

## Drop reasons
| reason | meaning |
|---|---|
| ` + "`toy_multicast`" + ` | to a group |

## Counters
` + "`changed`" + `

## Examples
` + "```toml" + `
[[chain]]
name = "toys"
  [[chain.stage]]
  kind = "toy"
  class = 4
` + "```" + `

## Limits
IPv4.
`

// toy is a stage that does right unless bad says what it is to do wrong.
type toy struct {
	bad     string
	class   uint8
	changed *pipeline.Counter
	kept    []*pipeline.Packet
	bytes   []byte
	sum     *pipeline.Counter
}

func (s *toy) Process(b *pipeline.Batch) {
	if s.bad == "writes later" {
		for _, p := range s.kept {
			p.Bytes()[0] = 1
		}
		s.kept = s.kept[:0]
	}
	for p := range b.Live() {
		f := p.Bytes()
		switch s.bad {
		case "no verdict":
			if p.Proto == wire.ProtoICMP {
				continue
			}
		case "panics":
			_ = f[p.L4+20]
		case "allocates":
			s.bytes = append([]byte(nil), f...)
		case "keeps bytes":
			if len(s.bytes) > 0 {
				s.sum.Add(uint64(s.bytes[0]))
			}
			s.bytes = f
		case "keeps packets", "writes later":
			s.kept = append(s.kept[:0], p)
		case "undeclared reason":
			if p.Proto == 47 {
				p.Drop(pipeline.ReasonNoPort)
				continue
			}
		}
		if p.IPVersion != 4 {
			p.Continue()
			continue
		}
		ip := wire.IPv4(f[p.L3:])
		if ip.Dst()[0]>>4 == 14 {
			p.Drop(reasonToy)
			continue
		}
		old := uint16(f[p.L3])<<8 | uint16(f[p.L3+1])
		f[p.L3+1] = s.class
		if s.bad != "wrong checksum" {
			ip.SetChecksum(wire.UpdateChecksum16(ip.Checksum(), old, old&0xff00|uint16(s.class)))
		}
		s.changed.Add(1)
		p.Continue()
	}
}

func (s *toy) Tick(int64) {
	if s.bad == "writes later" {
		for _, p := range s.kept {
			p.Frame()[0] = 1
		}
	}
}

func toyDescriptor(bad string) pipeline.Descriptor[toyConfig] {
	d := pipeline.Descriptor[toyConfig]{
		Kind: "toy", Summary: "sets the traffic class", README: toyReadme, Reasons: []pipeline.Reason{reasonToy},
		New: func(c toyConfig, e *pipeline.Env) (pipeline.Stage, error) {
			return &toy{
				bad: bad, class: uint8(c.Class),
				changed: e.Counters.Counter("changed", "packets changed"), sum: e.Counters.Counter("changed", ""),
			}, nil
		},
	}
	switch bad {
	case "no limits":
		d.README = strings.Replace(d.README, "## Limits", "", 1)
	case "wrong key":
		d.README = strings.Replace(d.README, "`class`", "`klass`", 1)
	case "wrong reason":
		d.README = strings.Replace(d.README, "`toy_multicast`", "`toy_unicast`", 1)
	case "wrong counter":
		d.README = strings.Replace(d.README, "`changed`", "`touched`", 1)
	case "wrong example":
		d.README = strings.Replace(d.README, "class = 4", "class = \"four\"", 1)
	}
	return d
}

func TestStageGood(t *testing.T) { Stage(t, toyDescriptor(""), toyConfig{}, toyConfig{Class: 0xb8}) }

// TestStageBad is run by TestStageCatches in a process of its own.
func TestStageBad(t *testing.T) {
	bad := os.Getenv("PIPELINETEST_BAD")
	if bad == "" {
		t.Skip("run by TestStageCatches")
	}
	Stage(t, toyDescriptor(bad))
}

// TestStageCatches shows that the suite can fail: each of these mistakes must
// be reported, in these words.
func TestStageCatches(t *testing.T) {
	for bad, want := range map[string]string{
		"no verdict":        `were dropped as "no_verdict"`,
		"panics":            "the stage panicked",
		"allocates":         "allocations a batch of",
		"keeps bytes":       "the stage keeps bytes",
		"writes later":      "was changed after the turn",
		"undeclared reason": `were dropped as "no_port"`,
		"wrong checksum":    "sent with a wrong IPv4 header checksum",
		"no limits":         `has no section "Limits"`,
		"wrong key":         `the section Configuration has a key "klass"`,
		"wrong reason":      `the section Drop reasons has "toy_unicast"`,
		"wrong counter":     `counter "changed" is not in the section Counters`,
		"wrong example":     "example 1",
	} {
		t.Run(bad, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestStageBad$")
			cmd.Env = append(os.Environ(), "PIPELINETEST_BAD="+bad)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatal("the suite passed")
			}
			if !strings.Contains(string(out), want) {
				t.Errorf("the suite does not say %q:\n%s", want, out)
			}
		})
	}
}
