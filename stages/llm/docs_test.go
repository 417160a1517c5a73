package llm

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"penstock/internal/config"
	"penstock/pipeline"
	"penstock/pipeline/pipelinetest"
	"penstock/stages/http"
	"penstock/stages/tcp"
)

func registry() *pipeline.Registry {
	reg := &pipeline.Registry{}
	pipeline.Register(reg, Descriptor())
	pipeline.Register(reg, tcp.Descriptor())
	pipeline.Register(reg, http.Descriptor())
	return reg
}

func TestREADME(t *testing.T) {
	reg := registry()
	pipelinetest.README(t, reg, reg.Lookup("llm"))
	r := newRig(t, nil)
	_, section, _ := strings.Cut(readme, "## Counters")
	section, _, _ = strings.Cut(section, "## Records")
	for _, c := range r.counters.All() {
		if !strings.Contains(section, "`"+c.Name+"`") {
			t.Errorf("counter %q is not in the section Counters", c.Name)
		}
	}
	r.metrics.of(openaiChat, "m")
	for _, h := range r.counters.Histograms() {
		if !strings.Contains(section, "`"+h.Name+"`") {
			t.Errorf("histogram %q is not in the section Counters", h.Name)
		}
	}
}

var tomlBlock = regexp.MustCompile("(?ms)^```toml\n(.*?)^```")

// TestExamples loads the examples of the stage's pages, builds the stage of each
// and shows it a request: nobody is to copy one that does not work.
func TestExamples(t *testing.T) {
	key := filepath.Join(t.TempDir(), "identity.key")
	if err := os.WriteFile(key, []byte("0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	paths := map[string][]string{ // where the example expects requests
		"README.md":         {"/v1/messages", "/claude", "/v1/messages"},
		"../../docs/llm.md": {"/v1/messages", "/v1/messages", "/team-a/claude", "/v1/messages"},
	}
	for file, list := range paths {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		blocks := tomlBlock.FindAllStringSubmatch(string(text), -1)
		if len(blocks) != len(list) {
			t.Fatalf("%s has %d examples, want %d", file, len(blocks), len(list))
		}
		for i, b := range blocks {
			src := "[[port]]\nname = \"lan\"\ninterface = \"eth1\"\n[[port]]\nname = \"wan\"\ninterface = \"eth2\"\n" + b[1]
			cfg, problems := config.Parse(file, []byte(src), registry())
			for _, p := range problems {
				t.Errorf("%s, example %d: %v", file, i+1, p)
			}
			if cfg == nil {
				continue
			}
			if strings.Contains(src, "[[steer]]") && len(cfg.Warnings) > 0 {
				t.Errorf("%s, example %d: %v", file, i+1, cfg.Warnings)
			}
			for _, s := range cfg.Chains[0].Spec.Stages {
				if s.Kind.Name != "llm" {
					continue
				}
				c := *s.Config.(*Config)
				if c.IdentityKey != "" {
					c.IdentityKey = key
				}
				r := newRig(t, func(own *Config) { *own = c })
				talk := r.open(t)
				talk.send(pipeline.ToServer, post(list[i], `{"model":"claude"}`))
				talk.send(pipeline.ToClient, answer("application/json", `{"usage":{"input_tokens":3,"output_tokens":4}}`))
				talk.close()
				if len(r.rec.lines) != 1 || !strings.Contains(r.rec.lines[0], `"input_tokens":3`) || !strings.Contains(r.rec.lines[0], `"anthropic_messages"`) {
					t.Errorf("%s, example %d: records %q", file, i+1, r.rec.lines)
				}
				if had := strings.Contains(r.rec.lines[0], `"identity"`); had != (c.Identity == "credential") {
					t.Errorf("%s, example %d: %s", file, i+1, r.rec.lines[0])
				}
			}
		}
	}
}
