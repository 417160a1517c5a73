package llm

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"penstock/internal/policy"
	"penstock/internal/units"
	"penstock/pipeline"
)

// Config is the TOML of the stage.
type Config struct {
	// Where which dialect is spoken, beside the paths that are known.
	Endpoints []Endpoint `toml:"endpoints"`
	// Rules with expressions, asked in order about each request.
	Rules []policy.Rule `toml:"rules"`
	// Who asks: "credential", a keyed hash of it, or "off".
	Identity string `toml:"identity"`
	// A file with the key of that hash. Without one, a new key is made at each
	// start.
	IdentityKey string `toml:"identity_key"`
	// The largest head of a request or a response.
	MaxHead units.Size `toml:"max_head"`
	// The largest JSON body, and the largest event of a stream.
	MaxBody units.Size `toml:"max_body"`
	// What a compressed body may come to.
	MaxInflated units.Size `toml:"max_inflated"`
	// For all connections of a worker together.
	Memory units.Size `toml:"memory"`
	// The most names of models that metrics tell apart.
	MaxModels int `toml:"max_models"`
	// Whether requests are recorded, as events "llm".
	Log bool `toml:"log"`

	sets map[string][]netip.Prefix // that rules use
}

// Endpoint is a path and what is spoken there.
type Endpoint struct {
	Path    string `toml:"path"`    // "*" stands for any characters
	Dialect string `toml:"dialect"` // such as "openai_chat"
}

func defaults() Config {
	return Config{Identity: "credential", MaxHead: 64 << 10, MaxBody: 32 << 20, MaxInflated: 64 << 20, Memory: 64 << 20, MaxModels: 100, Log: true}
}

func validate(c *Config, issues *pipeline.Issues) {
	for i, e := range c.Endpoints {
		if e.Path == "" || e.Path[0] != '/' && e.Path[0] != '*' || strings.ContainsAny(e.Path, " ?#") {
			issues.Add(fmt.Sprintf("endpoints[%d].path", i), `want a path such as "/llm/chat", or "/llm/*/chat" with * for anything, without query, got %q`, e.Path)
		}
		if dialectByName(e.Dialect) == noDialect {
			issues.Add(fmt.Sprintf("endpoints[%d].dialect", i), "want one of %s, got %q", strings.Join(quoted(dialectNames()), ", "), e.Dialect)
		}
	}
	c.sets = policy.Check(ruleVars(c), c.Rules, "rules", issues)
	if c.Identity != "credential" && c.Identity != "off" {
		issues.Add("identity", `want "credential" or "off", got %q`, c.Identity)
	}
	if c.IdentityKey != "" && c.Identity == "off" {
		issues.Add("identity_key", `want none with identity = "off", got %q`, c.IdentityKey)
	}
	sizes := []struct {
		key      string
		got      units.Size
		min, max units.Size
		text     string
	}{
		{"max_head", c.MaxHead, 256, 1 << 20, `"256B" to "1MiB"`},
		{"max_body", c.MaxBody, 1 << 10, 1 << 30, `"1KiB" to "1GiB"`},
		{"max_inflated", c.MaxInflated, 1 << 10, 1 << 30, `"1KiB" to "1GiB"`},
		{"memory", c.Memory, 1 << 20, 64 << 30, `"1MiB" to "64GiB"`},
	}
	for _, s := range sizes {
		if s.got < s.min || s.got > s.max {
			issues.Add(s.key, "want a size from %s, got %q", s.text, s.got)
		}
	}
	if c.MaxModels < 1 || c.MaxModels > 10000 {
		issues.Add("max_models", "want a number from 1 to 10000, got %d", c.MaxModels)
	}
}

// needs says what the stage does with connections, and why.
func (c *Config) needs() (pipeline.Need, string) {
	if policy.Refuse(c.Rules) {
		return pipeline.NeedDeny, "refuses requests"
	}
	return pipeline.NeedObserve, "only watches"
}

func quoted(names []string) (list []string) {
	for _, n := range names {
		list = append(list, `"`+n+`"`)
	}
	return list
}

// endpointList returns the configured endpoints, and the known ones behind them.
func (c *Config) endpointList() (list []endpoint) {
	for _, e := range c.Endpoints {
		list = append(list, endpoint{e.Path, dialectByName(e.Dialect)})
	}
	return slices.Concat(list, builtinEndpoints)
}

const minKey = 16 // bytes

// readKey reads the file of the key.
func readKey(file string) ([]byte, error) {
	key, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read identity_key: %w", err)
	}
	if len(key) < minKey {
		return nil, fmt.Errorf("read identity_key: %s has %d bytes, want at least %d: make one with head -c 32 /dev/urandom", file, len(key), minKey)
	}
	return key, nil
}
