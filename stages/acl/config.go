package acl

import (
	"fmt"
	"strings"

	"penstock/internal/match"
	"penstock/pipeline"
)

// Config is the TOML of the stage.
type Config struct {
	// Rules, tried in order: the first one that a packet meets decides.
	Rules []RuleConfig `toml:"rules"`
	// What becomes of a packet that meets no rule: "continue" or "drop".
	Default string `toml:"default"`
}

// RuleConfig is one rule: what to do with a packet that meets all of Fields.
type RuleConfig struct {
	// What to do: "drop", "continue" (the next stage looks at the packet), or
	// "forward" (it leaves by the other port now; later stages do not see it).
	Action string `toml:"action"`
	// Gives the rule a counter, hits_NAME.
	Name string `toml:"name"`
	match.Fields
}

const (
	actionDrop     = "drop"
	actionContinue = "continue"
	actionForward  = "forward"
)

// Every named rule is a series of metrics.
const (
	maxNamed = 1000
	maxName  = 40 // bytes
)

func defaults() Config { return Config{Default: actionContinue} }

func validate(c *Config, issues *pipeline.Issues) {
	if c.Default != actionContinue && c.Default != actionDrop {
		issues.Add("default", `must be "continue" or "drop", got %q`, c.Default)
	}
	before := len(issues.List)
	names := map[string]int{}
	for i := range c.Rules {
		r := &c.Rules[i]
		path := fmt.Sprintf("rules[%d]", i)
		switch r.Action {
		case actionDrop, actionContinue, actionForward:
		case "":
			issues.Add(path, `action is missing: want "drop", "continue" or "forward"`)
		default:
			issues.Add(path+".action", `must be "drop", "continue" or "forward", got %q`, r.Action)
		}
		if r.Name != "" {
			validateName(r.Name, i, names, issues)
		}
		r.Validate(path, issues)
	}
	if len(names) > maxNamed {
		issues.Add("rules", "at most %d rules may have a name, got %d", maxNamed, len(names))
	}
	if len(issues.List) == before {
		match.Check(c.fields(), "rules", issues)
	}
}

func validateName(name string, i int, names map[string]int, issues *pipeline.Issues) {
	path := fmt.Sprintf("rules[%d].name", i)
	if len(name) > maxName || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		issues.Add(path, `must be up to %d lower-case letters, digits and "_", got %q`, maxName, name)
	} else if first, dup := names[name]; dup {
		issues.Add(path, "%q is taken already by rules[%d]", name, first)
	} else {
		names[name] = i
	}
}

// fields returns the rules without their actions.
func (c *Config) fields() []match.Fields {
	list := make([]match.Fields, len(c.Rules))
	for i := range c.Rules {
		list[i] = c.Rules[i].Fields
	}
	return list
}
