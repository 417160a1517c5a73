package http

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"penstock/internal/config"
	"penstock/pipeline"
	"penstock/stages/tcp"
)

var tomlBlock = regexp.MustCompile("(?ms)^```toml\n(.*?)^```")

// TestExamples loads the examples of the stage's pages, builds the stage of each
// and sends it requests: nobody is to copy one that does not work.
func TestExamples(t *testing.T) {
	reg := &pipeline.Registry{}
	pipeline.Register(reg, Descriptor())
	pipeline.Register(reg, tcp.Descriptor())
	one := "GET / HTTP/1.1\r\nHost: www.good.example\r\n\r\n"
	ads := "GET / HTTP/1.1\r\nHost: x.ads.example\r\n\r\n"
	greet := start2 + ask(1, true, "POST", "www.good.example", "/pkg.Greeter/SayHello", "content-type: application/grpc")
	other := start2 + ask(1, true, "POST", "www.good.example", "/pkg.Other/Do", "content-type: application/grpc")
	type result struct{ in, reason string }
	want := map[string][][]result{ // of each example: what becomes of which requests
		"README.md": {
			{{one, ""}, {ads, "http_host_denied"}},
			{{one, "http_host_denied"}, {"GET / HTTP/1.1\r\nHost: v1.api.example.com\r\n\r\n", ""}},
			{{one, ""}, {"POST / HTTP/1.1\r\nHost: a\r\n\r\n", "http_method_denied"}, {"GET /.git/x HTTP/1.1\r\nHost: a\r\n\r\n", "http_path_denied"}},
			{{one, ""}, {"GET /admin/x HTTP/1.1\r\nHost: a\r\n\r\n", "http_rule_denied"}},
		},
		"../../docs/http.md": {
			{{one, ""}, {ads, ""}, {greet, ""}},
			{{one, ""}, {ads, "http_host_denied"}, {"SSH-2.0-x\r\n", "http_not_http"}},
			{{one, ""}, {ads, "http_host_denied"}},
			{{one, ""}, {ads, "http_host_denied"}, {greet, "http_method_denied"}, {"GET /x/../%61dmin HTTP/1.1\r\nHost: www.good.example\r\n\r\n", "http_path_denied"}},
			{{greet, ""}, {other, "http_path_denied"}},
			{{one, ""}, {greet, "http_bad_request"}},
		},
	}
	for file, examples := range want {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		blocks := tomlBlock.FindAllStringSubmatch(string(text), -1)
		if len(blocks) != len(examples) {
			t.Fatalf("%s has %d examples, want %d", file, len(blocks), len(examples))
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
			stages := cfg.Chains[0].Spec.Stages
			own := *stages[len(stages)-1].Config.(*Config)
			for _, want := range examples[i] {
				r := newRig(func(c *Config) { *c = own })
				c := r.open()
				c.send(pipeline.ToServer, want.in)
				got := ""
				if c.verdict.Action == pipeline.StreamDeny {
					got = c.verdict.Reason.String()
				}
				c.s.Close(r.now)
				if got != want.reason || len(r.rec.lines) != 1 {
					t.Errorf("%s, example %d: %q: got %q, want %q; records %q", file, i+1, want.in, got, want.reason, r.rec.lines)
				}
			}
		}
	}
}
