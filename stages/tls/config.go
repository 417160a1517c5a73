package tls

import (
	"fmt"
	"net/netip"
	"strings"

	"penstock/internal/hostname"
	"penstock/internal/policy"
	"penstock/internal/tlshello"
	"penstock/internal/units"
	"penstock/pipeline"
)

// Config is the TOML of the stage.
type Config struct {
	// Server names that are refused: names, or "*.example.com" for all names
	// below example.com (not itself), or "*".
	DenySNI []string `toml:"deny_sni"`
	// If set, every other server name is refused, and a hello without one.
	// deny_sni is asked first.
	AllowSNI []string `toml:"allow_sni"`
	// JA4 fingerprints of clients that are refused; * stands for any run of
	// characters.
	DenyJA4 []string `toml:"deny_ja4"`
	// If set, every other client is refused. deny_ja4 is asked first.
	AllowJA4 []string `toml:"allow_ja4"`
	// If set, the first entry that has the server name must have the
	// destination too, and there must be one.
	RequireSNIMatch []SNIMatch `toml:"require_sni_match"`
	// Whether the server name must be one that led to the destination in DNS, as
	// the stage dns has seen it: "off", "log" or "deny".
	RequireDNS string `toml:"require_dns"`
	// What require_dns makes of a destination that it knows nothing of: "allow" or
	// "deny".
	DNSUnknown string `toml:"dns_unknown"`
	// The oldest version that may be spoken: "1.0" to "1.3", or "".
	MinVersion string `toml:"min_version"`
	// Refuse hellos with an encrypted ClientHello or server name.
	DenyECH bool `toml:"deny_ech"`
	// Rules with expressions, asked in order after everything above.
	Rules []policy.Rule `toml:"rules"`
	// What a refused client sees: "alert", or "reset".
	Deny string `toml:"deny"`
	// What becomes of a connection whose beginning cannot be read: "deny",
	// "pass" (the stage lets go of it), or "auto": deny if anything is refused
	// by policy, which could be evaded otherwise.
	OnBad string `toml:"on_bad"`
	// The largest hello, in bytes without record headers.
	MaxHello units.Size `toml:"max_hello"`
	// The most records of one direction until the handshake is encrypted.
	MaxRecords int `toml:"max_records"`
	// Whether handshakes are recorded, as events "tls".
	Log bool `toml:"log"`

	sets map[string][]netip.Prefix // that rules use
}

// SNIMatch says where servers of some names are.
type SNIMatch struct {
	SNI []string       `toml:"sni"` // as in deny_sni
	Dst []units.Prefix `toml:"dst"` // where they are
}

func defaults() Config {
	return Config{RequireDNS: "off", DNSUnknown: "allow", Deny: "alert", OnBad: "auto", MaxHello: 32 << 10, MaxRecords: 4096, Log: true}
}

const (
	minMaxHello = 1 << 10
	maxMaxHello = 1 << 20
	maxRecords  = 1 << 20
)

var versions = map[string]uint16{
	"": 0, "1.0": tlshello.VersionTLS10, "1.1": tlshello.VersionTLS11, "1.2": tlshello.VersionTLS12, "1.3": tlshello.VersionTLS13,
}

func validate(c *Config, issues *pipeline.Issues) {
	hostname.ValidPatterns("deny_sni", c.DenySNI, issues)
	hostname.ValidPatterns("allow_sni", c.AllowSNI, issues)
	validateJA4("deny_ja4", c.DenyJA4, issues)
	validateJA4("allow_ja4", c.AllowJA4, issues)
	for i, m := range c.RequireSNIMatch {
		at := fmt.Sprintf("require_sni_match[%d]", i)
		hostname.ValidPatterns(at+".sni", m.SNI, issues)
		if len(m.SNI) == 0 {
			issues.Add(at, `sni must name at least one server, such as ["www.example.com"], got none`)
		}
		if len(m.Dst) == 0 {
			issues.Add(at, `dst must have at least one prefix, such as ["192.0.2.0/24"], got none`)
		}
	}
	if c.RequireDNS != "off" && c.RequireDNS != "log" && c.RequireDNS != "deny" {
		issues.Add("require_dns", `want "off", "log" or "deny", got %q`, c.RequireDNS)
	}
	if c.DNSUnknown != "allow" && c.DNSUnknown != "deny" {
		issues.Add("dns_unknown", `want "allow" or "deny", got %q`, c.DNSUnknown)
	}
	c.sets = policy.Check(ruleVars, c.Rules, "rules", issues)
	if _, ok := versions[c.MinVersion]; !ok {
		issues.Add("min_version", `want "1.0", "1.1", "1.2", "1.3", or "" for any, got %q`, c.MinVersion)
	}
	if c.Deny != "alert" && c.Deny != "reset" {
		issues.Add("deny", `want "alert" or "reset", got %q`, c.Deny)
	}
	if c.OnBad != "auto" && c.OnBad != "deny" && c.OnBad != "pass" {
		issues.Add("on_bad", `want "auto", "deny" or "pass", got %q`, c.OnBad)
	}
	if c.MaxHello < minMaxHello || c.MaxHello > maxMaxHello {
		issues.Add("max_hello", `want a size from "1KiB" to "1MiB", got %q`, c.MaxHello)
	}
	if c.MaxRecords < 1 || c.MaxRecords > maxRecords {
		issues.Add("max_records", "want a number from 1 to %d, got %d", maxRecords, c.MaxRecords)
	}
}

// validateJA4 judges patterns of fingerprints: one must be able to match.
func validateJA4(key string, patterns []string, issues *pipeline.Issues) {
	for i, p := range patterns {
		if !validJA4(p) {
			issues.Add(fmt.Sprintf("%s[%d]", key, i), `want a JA4 such as "t13d1516h2_8daaf6152771_e5627efa2ab1", or a part with * for the rest such as "t13d*", got %q`, p)
		}
	}
}

func validJA4(p string) bool {
	fixed := strings.ReplaceAll(p, "*", "")
	for _, c := range fixed {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_') {
			return false
		}
	}
	if fixed == p { // no wildcard
		return len(p) == tlshello.JA4Size && p[10] == '_' && p[23] == '_' && strings.Count(p, "_") == 2
	}
	return len(fixed) <= tlshello.JA4Size && strings.Count(fixed, "_") <= 2
}

// restricts reports whether anything is refused by policy.
func (c *Config) restricts() bool {
	return len(c.DenySNI)+len(c.AllowSNI)+len(c.DenyJA4)+len(c.AllowJA4)+len(c.RequireSNIMatch) > 0 || versions[c.MinVersion] > 0 || c.DenyECH || c.RequireDNS == "deny" || policy.Refuse(c.Rules)
}

// denies reports whether connections that cannot be read are refused.
func (c *Config) denies() bool { return c.OnBad == "deny" || c.OnBad == "auto" && c.restricts() }
