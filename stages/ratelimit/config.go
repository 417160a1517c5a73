package ratelimit

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"penstock/internal/match"
	"penstock/internal/units"
	"penstock/pipeline"
)

// Config is the TOML of the stage.
type Config struct {
	// What a key may have in the long run: "2000pkt/s", "10Mbit/s".
	Rate units.Rate `toml:"rate"`
	// What a key that was quiet may have at once: "200pkt" with a rate of
	// packets, "64KiB" with one of bytes.
	Burst BurstConfig `toml:"burst"`
	// What has a bucket of its own: "src", "dst", "flow" or "all".
	By string `toml:"by"`
	// For src and dst: how many bits of an address make a network.
	V4Prefix int `toml:"v4_prefix"`
	V6Prefix int `toml:"v6_prefix"`
	// How many keys are remembered at a time.
	MaxEntries int `toml:"max_entries"`
	// What becomes of a packet with a new key while there is no place:
	// "continue" or "drop".
	OnFull string `toml:"on_full"`
	// If given, only packets that meet one of them are limited.
	Match []match.Fields `toml:"match"`
}

// BurstConfig is a number of packets ("200pkt") or of bytes ("64KiB"). The
// zero value stands for the default.
type BurstConfig struct {
	N       int64
	Packets bool
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *BurstConfig) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	if num, ok := strings.CutSuffix(s, "pkt"); ok {
		if n, err := strconv.ParseInt(strings.TrimSpace(num), 10, 64); err == nil && n > 0 {
			*b = BurstConfig{n, true}
			return nil
		}
	}
	var size units.Size
	if err := size.UnmarshalText([]byte(s)); err != nil || size <= 0 {
		return fmt.Errorf(`want a number of packets such as "200pkt" or a size such as "64KiB", above zero, got %q`, s)
	}
	*b = BurstConfig{int64(size), false}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (b BurstConfig) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// String writes the burst as it is read.
func (b BurstConfig) String() string {
	if b.Packets {
		return strconv.FormatInt(b.N, 10) + "pkt"
	}
	return units.Size(b.N).String()
}

const (
	bySrc  = "src"
	byDst  = "dst"
	byFlow = "flow"
	byAll  = "all"

	fullContinue = "continue"
	fullDrop     = "drop"
)

const (
	maxMaxEntries = 1 << 20
	// Beyond these the arithmetic of pace would overflow, or round.
	maxPerSecond    = 1e11
	minBytesPerSec  = 125
	maxRefill       = time.Hour
	minBurstPackets = 10
	minBurstBytes   = 15000 // ten full frames: what TCP sends first
)

func defaults() Config {
	return Config{By: bySrc, V4Prefix: 32, V6Prefix: 64, MaxEntries: 65536, OnFull: fullContinue}
}

// burst returns the burst as configured, or the default one: a tenth of a second's worth.
func (c *Config) burst() int64 {
	if c.Burst.N > 0 {
		return c.Burst.N
	}
	least := int64(minBurstBytes)
	if c.Rate.Packets {
		least = minBurstPackets
	}
	return max(least, int64(math.Ceil(c.Rate.PerSecond/10)))
}

func validate(c *Config, issues *pipeline.Issues) {
	validateRate(c, issues)
	switch c.By {
	case bySrc, byDst, byFlow, byAll:
	default:
		issues.Add("by", `must be "src", "dst", "flow" or "all", got %q`, c.By)
	}
	if c.V4Prefix < 1 || c.V4Prefix > 32 {
		issues.Add("v4_prefix", "must be from 1 to 32, got %d", c.V4Prefix)
	}
	if c.V6Prefix < 1 || c.V6Prefix > 128 {
		issues.Add("v6_prefix", "must be from 1 to 128, got %d", c.V6Prefix)
	}
	if c.MaxEntries < 1 || c.MaxEntries > maxMaxEntries {
		issues.Add("max_entries", "must be from 1 to %d, got %d", maxMaxEntries, c.MaxEntries)
	}
	if c.OnFull != fullContinue && c.OnFull != fullDrop {
		issues.Add("on_full", `must be "continue" or "drop", got %q`, c.OnFull)
	}
	before := len(issues.List)
	for i := range c.Match {
		c.Match[i].Validate(fmt.Sprintf("match[%d]", i), issues)
	}
	if len(issues.List) == before {
		match.Check(c.Match, "match", issues)
	}
}

func validateRate(c *Config, issues *pipeline.Issues) {
	rate, burst := c.Rate.PerSecond, float64(c.burst())
	switch {
	case rate == 0:
		issues.Add("rate", `is missing: want a rate such as "2000pkt/s" or "10Mbit/s"`)
		return
	case !(rate > 0 && rate <= maxPerSecond):
		issues.Add("rate", "must be above zero and at most %s, got %s", units.Rate{PerSecond: maxPerSecond, Packets: c.Rate.Packets}, c.Rate)
		return
	case !c.Rate.Packets && rate < minBytesPerSec:
		issues.Add("rate", "must be at least %s, got %s", units.Rate{PerSecond: minBytesPerSec}, c.Rate)
		return
	case c.Burst.N < 0:
		issues.Add("burst", "must be above zero, got %s", c.Burst)
		return
	case c.Burst.N > 0 && c.Burst.Packets != c.Rate.Packets:
		want := "a size, as the rate is one of bytes"
		if c.Rate.Packets {
			want = "a number of packets, as the rate is one of packets"
		}
		issues.Add("burst", "must be %s, got %q", want, c.Burst)
		return
	}
	if burst/rate > maxRefill.Seconds() {
		path := "burst"
		if c.Burst.N == 0 {
			path = "rate"
		}
		issues.Add(path, "must let a burst of %s be there again within an hour; at %s it takes %v", BurstConfig{c.burst(), c.Rate.Packets},
			c.Rate, time.Duration(min(burst/rate, 1e9)*1e9).Round(time.Second))
	}
}
