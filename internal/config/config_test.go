package config

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"penstock/internal/units"
	"penstock/pipeline"
)

var update = flag.Bool("update", false, "write the golden files anew")

func mustParse(t *testing.T, name string, src string) *Config {
	t.Helper()
	c, problems := Parse(name, []byte(src), testRegistry())
	if problems != nil {
		t.Fatalf("parse %s:\n%v", name, problems.Error())
	}
	return c
}

func TestExample(t *testing.T) {
	c, problems := Load("testdata/example.toml", testRegistry())
	if problems != nil {
		t.Fatal(problems.Error())
	}
	if len(c.Warnings) != 0 {
		t.Errorf("warnings: %v", c.Warnings)
	}
	if want := defaultAppliance("penstock"); c.Appliance != want {
		t.Errorf("appliance is\n%+v, want\n%+v", c.Appliance, want)
	}
	wantPorts := []Port{
		{Name: "lan", Interface: "eth1", Queues: Queues{All: true}, XDP: "auto", ZeroCopy: "auto", Line: 7},
		{Name: "wan", Interface: "eth2", Queues: Queues{All: true}, XDP: "auto", ZeroCopy: "auto", Line: 13},
	}
	if !reflect.DeepEqual(c.Ports, wantPorts) {
		t.Errorf("ports are\n%+v, want\n%+v", c.Ports, wantPorts)
	}
	wantSteer := []Steer{{
		From: 0, Proto: "tcp", Line: 17,
		Src:     []units.Prefix{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}, {Prefix: netip.MustParsePrefix("fd00::/8")}},
		DstPort: []units.PortRange{{First: 80, Last: 80}, {First: 8000, Last: 8099}},
		To:      Target{Action: ToChain, Chain: 0},
	}}
	if !reflect.DeepEqual(c.Steer, wantSteer) {
		t.Errorf("steer is\n%+v, want\n%+v", c.Steer, wantSteer)
	}
	wantRecord := []Record{{To: "file:/var/log/penstock/events.json", Events: []string{"flow", "tls", "http", "llm"}, Line: 37}}
	if !reflect.DeepEqual(c.Record, wantRecord) {
		t.Errorf("record is\n%+v, want\n%+v", c.Record, wantRecord)
	}
	if len(c.Chains) != 1 || c.Chains[0].Name != "web" || c.Chains[0].Offload != "auto" || c.Chains[0].Spec.Name != "web" {
		t.Fatalf("chains are %+v", c.Chains)
	}
	var kinds []string
	for _, s := range c.Chains[0].Spec.Stages {
		kinds = append(kinds, s.Kind.Name)
		if s.Shared == nil {
			t.Errorf("stage %s has no shared state", s.Kind.Name)
		}
	}
	if got := strings.Join(kinds, " "); got != "acl tcp http" {
		t.Errorf("stages are %q", got)
	}
	acl := c.Chains[0].Spec.Stages[0].Config.(*aclConfig)
	if acl.Default != "accept" || len(acl.Rules) != 1 || acl.Rules[0].Action != "drop" {
		t.Errorf("acl is %+v", acl)
	}
	if hosts := c.Chains[0].Spec.Stages[2].Config.(*httpConfig).DenyHosts; !reflect.DeepEqual(hosts, []string{"*.ads.example"}) {
		t.Errorf("deny_hosts is %q", hosts)
	}
}

// golden runs check over each file of a pattern: TOML, a line "---", and the
// output that is expected.
func golden(t *testing.T, pattern string, output func(t *testing.T, name, src string) string) {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files match %s (%v)", pattern, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			src, want, found := strings.Cut(string(b), "\n---\n")
			if !found {
				src = strings.TrimSuffix(src, "\n---")
			}
			src += "\n"
			got := output(t, name+".toml", src)
			if *update {
				if err := os.WriteFile(file, []byte(src+"---\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestProblems(t *testing.T) {
	golden(t, "testdata/bad/*.txt", func(t *testing.T, name, src string) string {
		c, problems := Parse(name, []byte(src), testRegistry())
		if c != nil || len(problems) == 0 {
			t.Fatal("no problem was found")
		}
		return problems.Error() + "\n"
	})
}

func TestLoadUnreadable(t *testing.T) {
	dir := t.TempDir()
	for file, want := range map[string]string{
		dir + "/none.toml": dir + "/none.toml: open file: no such file or directory",
		dir:                dir + ": read file: is a directory",
	} {
		c, problems := Load(file, testRegistry())
		if c != nil || len(problems) != 1 || problems[0].String() != want {
			t.Errorf("load %s: got %v, want %q", file, problems, want)
		}
	}
}

func TestTooLarge(t *testing.T) {
	c, problems := Parse("big.toml", make([]byte, MaxSize+1), &pipeline.Registry{})
	if c != nil || len(problems) != 1 || !strings.Contains(problems[0].Text, "at most 1048576 bytes") {
		t.Errorf("got %v", problems)
	}
}

func TestExplain(t *testing.T) {
	golden(t, "testdata/explain/*.txt", func(t *testing.T, name, src string) string {
		c := mustParse(t, name, src)
		var b strings.Builder
		c.Explain(&b)
		if len(c.Warnings) > 0 {
			b.WriteString("\nwarnings\n" + c.Warnings.Error() + "\n")
		}
		return b.String()
	})
}
