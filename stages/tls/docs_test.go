package tls

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"penstock/internal/config"
	"penstock/pipeline"
	"penstock/stages/dns"
	"penstock/stages/tcp"
)

var tomlBlock = regexp.MustCompile("(?ms)^```toml\n(.*?)^```")

// TestExamples loads the examples of the stage's pages, builds the stage of each
// and sends it a handshake: nobody is to copy one that does not work.
func TestExamples(t *testing.T) {
	reg := &pipeline.Registry{}
	pipeline.Register(reg, Descriptor())
	pipeline.Register(reg, tcp.Descriptor())
	pipeline.Register(reg, dns.Descriptor())
	hello := transcript(t, nil)
	want := map[string][]string{ // what the example does with a handshake for www.good.example
		"README.md":         {"", "", "tls_sni_mismatch", "", ""},
		"../../docs/tls.md": {"", "", "tls_sni_denied", "", "", ""},
	}
	for file, results := range want {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		blocks := tomlBlock.FindAllStringSubmatch(string(text), -1)
		if len(blocks) != len(results) {
			t.Fatalf("%s has %d examples, want %d", file, len(blocks), len(results))
		}
		for i, b := range blocks {
			src := "[[port]]\nname = \"lan\"\ninterface = \"eth1\"\n[[port]]\nname = \"wan\"\ninterface = \"eth2\"\n" + b[1]
			cfg, problems := config.Parse(file, []byte(src), reg)
			for _, p := range problems {
				t.Errorf("%s, example %d: %v", file, i+1, p)
			}
			if cfg == nil {
				continue
			}
			if strings.Contains(src, "[[steer]]") && len(cfg.Warnings) > 0 {
				t.Errorf("%s, example %d: %v", file, i+1, cfg.Warnings)
			}
			stages := cfg.Chains[len(cfg.Chains)-1].Spec.Stages
			c := *stages[len(stages)-1].Config.(*Config)
			r := newRig(t, func(own *Config) { *own = c })
			if got := r.run(server4, hello, 0).reason(); got != results[i] {
				t.Errorf("%s, example %d: got %q, want %q", file, i+1, got, results[i])
			}
			if len(r.rec.lines) != 1 {
				t.Errorf("%s, example %d: records %q", file, i+1, r.rec.lines)
			}
		}
	}
}
