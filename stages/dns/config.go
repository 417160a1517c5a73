package dns

import (
	"time"

	"penstock/internal/units"
	"penstock/pipeline"
)

// Config is the TOML of the stage.
type Config struct {
	// Servers whose answers are believed; none: all.
	Resolvers []units.Prefix `toml:"resolvers"`
	// How much longer than its TTL an answer is remembered.
	Grace units.Duration `toml:"grace"`
}

// maxKeep bounds TTL and grace together.
const maxKeep = 48 * time.Hour

func defaults() Config { return Config{Grace: units.Duration(time.Hour)} }

func validate(c *Config, issues *pipeline.Issues) {
	if c.Grace < 0 || time.Duration(c.Grace) > maxKeep {
		issues.Add("grace", `want a duration from "0s" to "48h", got %q`, c.Grace)
	}
}
