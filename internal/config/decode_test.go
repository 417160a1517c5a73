package config

import (
	"reflect"
	"testing"
	"time"

	"penstock/internal/units"
	"penstock/pipeline"
)

// TestTypes decodes a good value of every type; testdata/bad/types.txt has the
// bad ones.
func TestTypes(t *testing.T) {
	c := mustParse(t, "types.toml", ports+`
[[chain]]
name = "types"
[[chain.stage]]
kind = "types"
inner = "i"
i8 = -128
u16 = 65535
u64 = 9223372036854775807
f = 1
b = true
s = "s"
raw = { any = ["thing"] }
when = 2026-01-02T03:04:05Z
choosy = true
ptr = { headers = 7, body = "1KiB" }
limits.headers = 8
pair = [1, 2]
weights = { a = 1, "b c" = 2 }
backends."x.y".body = "2B"
rate = "10kpkt/s"
wait = "1m"
ports = [80, "90-91"]
max_url = 9
`)
	got := *c.Chains[0].Spec.Stages[0].Config.(*typesConfig)
	want := typesConfig{
		embedded: embedded{Inner: "i"}, I8: -128, U16: 65535, U64: 1<<63 - 1, F: 1, B: true, S: "s",
		Raw: map[string]any{"any": []any{"thing"}}, When: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Choosy: choosy{true},
		Ptr: &limits{7, 1024}, Limits: limits{Headers: 8}, Pair: [2]int{1, 2}, Weights: map[string]int{"a": 1, "b c": 2},
		Backends: map[string]limits{"x.y": {Body: 2}}, Rate: units.Rate{PerSecond: 1e4, Packets: true},
		Wait: units.Duration(time.Minute), Ports: []units.PortRange{{First: 80, Last: 80}, {First: 90, Last: 91}}, MaxURL: 9,
	}
	if !got.When.Equal(want.When) {
		t.Errorf("when is %v, want %v", got.When, want.When)
	}
	got.When = want.When
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
}

// TestStagesAreSeparate: two stages of a kind, and two loads of a file, share
// neither configuration nor state.
func TestStagesAreSeparate(t *testing.T) {
	src := ports + "[[chain]]\nname = \"c\"\n[[chain.stage]]\nkind = \"acl\"\n[[chain.stage]]\nkind = \"acl\"\ndefault = \"drop\"\n"
	a, b := mustParse(t, "a", src).Chains[0].Spec.Stages, mustParse(t, "b", src).Chains[0].Spec.Stages
	if a[0].Config.(*aclConfig).Default != "accept" || a[1].Config.(*aclConfig).Default != "drop" {
		t.Errorf("defaults are %+v and %+v", a[0].Config, a[1].Config)
	}
	if a[0].Config == a[1].Config || a[0].Shared == a[1].Shared || a[0].Config == b[0].Config || a[0].Shared == b[0].Shared {
		t.Error("stages share configuration or state")
	}
}

type badConfig struct{ C chan int }

// TestUnsupportedType: a stage whose configuration cannot be written in TOML is
// a bug that must not pass as a problem of the file.
func TestUnsupportedType(t *testing.T) {
	r := &pipeline.Registry{}
	pipeline.Register(r, pipeline.Descriptor[badConfig]{Kind: "bad", New: noStage[badConfig]})
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	Parse("x", []byte("[[chain]]\nname = \"c\"\n[[chain.stage]]\nkind = \"bad\"\nc = 1\n"), r)
}

// TestIssueText: whether or not the author of a stage says the key, the user
// reads it once.
func TestIssueText(t *testing.T) {
	for _, c := range []struct{ path, text, want string }{
		{"rate", "rate must be > 0", "rate must be > 0"},
		{"rate", "must be > 0", "rate: must be > 0"},
		{"rate", "rates are bad", "rate: rates are bad"},
		{"", "one of a and b is needed", "one of a and b is needed"},
		{"rules[2].action", "action must be x", "rules[2]: action must be x"},
		{"rules[2].action", "want x", "rules[2].action: want x"},
		{"rules[2].action", "rules[2].action must be x", "rules[2].action must be x"},
		{"rules[2]", "want x", "rules[2]: want x"},
		{"rules[2]", "two\nlines", "rules[2]: two lines"},
		{`hosts."a.b"`, "want x", `hosts."a.b": want x`},
		{"rules.", `"x" is bad`, `rules.: "x" is bad`},
		{"gone[7].x", "want x", "gone[7].x: want x"},
	} {
		src := "[[chain]]\nname = \"c\"\n[[chain.stage]]\nkind = \"acl\"\n"
		r := report{file: "f", ix: newIndex(src), bad: map[string]bool{}}
		r.root, _, _ = parseTOML(src)
		r.issue("chain[0].stage[0]", pipeline.Issue{Path: c.path, Text: c.text})
		if want := `f:3:1: chain "c", stage 1 (acl): ` + c.want; r.problems[0].String() != want {
			t.Errorf("%+v: got %s, want %s", c, r.problems[0], want)
		}
	}
}
