package config

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"penstock/internal/units"
	"penstock/pipeline"
)

// The stages of the tests: one of each layer, and one whose configuration has
// a field of every type.

type aclConfig struct {
	Default string    `toml:"default"`
	Rules   []aclRule `toml:"rules"`
}

type aclRule struct {
	Action string         `toml:"action"`
	Src    []units.Prefix `toml:"src"`
}

func validateACL(c *aclConfig, is *pipeline.Issues) {
	for i, r := range c.Rules {
		path := element("rules", i)
		if r.Action != "drop" && r.Action != "accept" {
			is.Add(path+".action", `action must be "accept" or "drop", got %q`, r.Action)
		}
		if len(r.Src) == 0 {
			is.Add(path, "a rule needs src")
		}
	}
}

type ratelimitConfig struct {
	Rate  int           `toml:"rate"`
	Burst units.Size    `toml:"burst"`
	Per   time.Duration `toml:"per"`
}

func validateRatelimit(c *ratelimitConfig, is *pipeline.Issues) {
	if c.Rate <= 0 {
		is.Add("rate", "rate must be > 0, got %d", c.Rate)
	}
}

type tcpConfig struct {
	Depth string `toml:"depth" values:"auto|inspect|terminate"`
}

type httpConfig struct {
	DenyHosts []string `toml:"deny_hosts"`
}

type limits struct {
	Headers int        `toml:"headers" min:"1"`
	Body    units.Size // body
}

type embedded struct {
	Inner string `toml:"inner"`
}

type choosy struct{ got any }

func (c *choosy) UnmarshalTOML(v any) error {
	if _, ok := v.(bool); !ok {
		return errors.New("want a truth\nand nothing else")
	}
	c.got = v
	return nil
}

type typesConfig struct {
	embedded
	Hidden string `toml:"-"`
	//lint:ignore U1000 an unexported field is not a key
	secret   int
	I8       int8
	U16      uint16 `toml:"u16"`
	U64      uint64
	F        float64
	B        bool
	S        string
	Raw      any
	When     time.Time
	Choosy   choosy
	Ptr      *limits
	Limits   limits
	Pair     [2]int
	Weights  map[string]int
	Backends map[string]limits
	Rate     units.Rate
	Wait     units.Duration
	Ports    []units.PortRange
	MaxURL   int
}

func noStage[C any](C, *pipeline.Env) (pipeline.Stage, error) {
	return nil, errors.New("only for tests")
}
func noStream[C any](C, *pipeline.Env) (pipeline.StreamStage, error) {
	return nil, errors.New("only for tests")
}

func testRegistry() *pipeline.Registry {
	r := &pipeline.Registry{}
	pipeline.Register(r, pipeline.Descriptor[aclConfig]{
		Kind: "acl", Summary: "Allows or denies packets by their addresses.",
		Default: func() aclConfig { return aclConfig{Default: "accept"} }, Validate: validateACL, New: noStage[aclConfig],
	})
	pipeline.Register(r, pipeline.Descriptor[ratelimitConfig]{
		Kind: "ratelimit", Summary: "Bounds how fast flows begin.", Affinity: true,
		Default: func() ratelimitConfig { return ratelimitConfig{Rate: 100} }, Validate: validateRatelimit, New: noStage[ratelimitConfig],
	})
	pipeline.Register(r, pipeline.Descriptor[tcpConfig]{
		Kind: "tcp", Summary: "Turns packets into streams.", Affinity: true,
		Default: func() tcpConfig { return tcpConfig{Depth: "auto"} },
		NewBoundary: func(tcpConfig, *pipeline.Env, []pipeline.StreamStage, []string) (pipeline.Stage, error) {
			return nil, errors.New("only for tests")
		},
		Depth: func(c tcpConfig, n pipeline.Need) (pipeline.Depth, string) {
			if c.Depth != "auto" {
				return map[string]pipeline.Depth{"inspect": pipeline.DepthInspect, "terminate": pipeline.DepthTerminate}[c.Depth], fmt.Sprintf("depth is %q", c.Depth)
			}
			if n == pipeline.NeedChange {
				return pipeline.DepthTerminate, ""
			}
			return pipeline.DepthInspect, ""
		},
		Suits: func(c tcpConfig, n pipeline.Need, stage, why string, issues *pipeline.Issues) {
			if c.Depth == "inspect" && n == pipeline.NeedChange {
				issues.Add("depth", "%s needs more: %s", stage, why)
			}
		},
	})
	pipeline.Register(r, pipeline.Descriptor[httpConfig]{
		Kind: "http", Summary: "Reads HTTP/1.", NewStream: noStream[httpConfig],
		Needs: func(c httpConfig) (pipeline.Need, string) {
			switch {
			case slices.Contains(c.DenyHosts, "*"):
				return pipeline.NeedChange, "answers every request"
			case len(c.DenyHosts) > 0:
				return pipeline.NeedDeny, "refuses hosts"
			}
			return pipeline.NeedObserve, "logs requests"
		},
	})
	pipeline.Register(r, pipeline.Descriptor[struct{}]{Kind: "tls", Summary: "Reads TLS handshakes.", NewStream: noStream[struct{}]})
	pipeline.Register(r, pipeline.Descriptor[typesConfig]{Kind: "types", Summary: "Has a key of every type.", New: noStage[typesConfig]})
	return r
}
