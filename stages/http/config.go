package http

import (
	"net/netip"

	"penstock/internal/hostname"
	rules "penstock/internal/policy"
	"penstock/internal/units"
	"penstock/pipeline"
)

// Config is the TOML of the stage.
type Config struct {
	// Hosts that are refused: names, or "*.example.com" for all names below
	// example.com (not itself).
	DenyHosts []string `toml:"deny_hosts"`
	// If set, every other host is refused. deny_hosts is asked first.
	AllowHosts []string `toml:"allow_hosts"`
	// Methods that are refused; if allow is set, every other one is.
	DenyMethods  []string `toml:"deny_methods"`
	AllowMethods []string `toml:"allow_methods"`
	// Paths that are refused, "/x/*" for all below /x; if allow is set, every
	// other one is.
	DenyPaths  []string `toml:"deny_paths"`
	AllowPaths []string `toml:"allow_paths"`
	// Headers that are refused: "Name", or "Name: pattern".
	DenyHeaders []string `toml:"deny_headers"`
	// Rules with expressions, asked in order after the lists.
	Rules []rules.Rule `toml:"rules"`
	// What a refused client sees: "403", a response, "reset", or "auto": a
	// response where the connection is terminated anyway, else a reset.
	Deny string `toml:"deny"`
	// What becomes of a connection that is no HTTP, or that two parsers
	// may read differently: "deny", "pass" (the stage lets go of it), or
	// "auto": deny if there are host lists, which could be evaded otherwise.
	OnBad string `toml:"on_bad"`
	// The largest request head.
	MaxHead units.Size `toml:"max_head"`
	// The most headers of a request.
	MaxHeaders int `toml:"max_headers"`
	// The most requests that wait for a response on one connection.
	MaxPipelined int `toml:"max_pipelined"`
	// Whether cleartext HTTP/2 is followed; if not, it is no HTTP.
	HTTP2 bool `toml:"http2"`
	// The most streams of a connection in HTTP/2 at a time, and the most that
	// the client resets within a second before their response is complete.
	MaxStreams int `toml:"max_streams"`
	MaxResets  int `toml:"max_resets"`
	// Whether requests are recorded, as events "http".
	Log bool `toml:"log"`

	sets map[string][]netip.Prefix // that rules use
}

func defaults() Config {
	return Config{Deny: "auto", OnBad: "auto", MaxHead: 64 << 10, MaxHeaders: 256, MaxPipelined: 128, HTTP2: true, MaxStreams: 1000, MaxResets: 200, Log: true}
}

const maxMaxHead = 1 << 20

func validate(c *Config, issues *pipeline.Issues) {
	hostname.ValidPatterns("deny_hosts", c.DenyHosts, issues)
	hostname.ValidPatterns("allow_hosts", c.AllowHosts, issues)
	if c.Deny != "auto" && c.Deny != "403" && c.Deny != "reset" {
		issues.Add("deny", `want "auto", "403" or "reset", got %q`, c.Deny)
	}
	if c.OnBad != "auto" && c.OnBad != "deny" && c.OnBad != "pass" {
		issues.Add("on_bad", `want "auto", "deny" or "pass", got %q`, c.OnBad)
	}
	if c.MaxHead < 256 || c.MaxHead > maxMaxHead {
		issues.Add("max_head", `want a size from "256B" to "1MiB", got %q`, c.MaxHead)
	}
	validateLists(c, issues)
	c.sets = rules.Check(ruleVars(c), c.Rules, "rules", issues)
	if c.MaxHeaders < 1 || c.MaxHeaders > 10000 {
		issues.Add("max_headers", "want a number from 1 to 10000, got %d", c.MaxHeaders)
	}
	if c.MaxPipelined < 1 || c.MaxPipelined > 10000 {
		issues.Add("max_pipelined", "want a number from 1 to 10000, got %d", c.MaxPipelined)
	}
	if c.MaxStreams < 1 || c.MaxStreams > 10000 {
		issues.Add("max_streams", "want a number from 1 to 10000, got %d", c.MaxStreams)
	}
	if c.MaxResets < 1 || c.MaxResets > 1000000 {
		issues.Add("max_resets", "want a number from 1 to 1000000, got %d", c.MaxResets)
	}
}

// enforces reports whether the stage must understand every request.
func (c *Config) enforces() bool {
	return c.OnBad == "deny" || c.OnBad == "auto" && c.refuses()
}

// refuses reports whether there are lists.
func (c *Config) refuses() bool {
	return len(c.DenyHosts)+len(c.AllowHosts)+len(c.DenyMethods)+len(c.AllowMethods)+len(c.DenyPaths)+len(c.AllowPaths)+len(c.DenyHeaders) > 0 || rules.Refuse(c.Rules)
}

// needs says what the stage does with connections, and why.
func (c *Config) needs() (pipeline.Need, string) {
	switch {
	case !c.enforces() && !c.refuses():
		return pipeline.NeedObserve, "follows requests and refuses none"
	case c.Deny == "403":
		return pipeline.NeedChange, `answers in the server's place: deny = "403"`
	}
	return pipeline.NeedDeny, "refuses requests"
}
