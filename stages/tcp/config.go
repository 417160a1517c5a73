package tcp

import (
	"time"

	"penstock/internal/units"
	"penstock/pipeline"
	"penstock/stack"
)

// Config is the stage's table in the configuration. Limits and buffers are
// those of one worker, and of one connection.
type Config struct {
	Depth         string `toml:"depth"`          // auto, terminate
	MaxFlows      int    `toml:"max_flows"`      // connections at once
	MaxPending    int    `toml:"max_pending"`    // connections being established at once
	OnLimit       string `toml:"on_limit"`       // bypass, drop: new connections beyond either
	OnUnsupported string `toml:"on_unsupported"` // bypass, drop: connections that cannot be terminated unchanged

	DialTimeout       units.Duration `toml:"dial_timeout"`
	HandshakeTimeout  units.Duration `toml:"handshake_timeout"`
	IdleTimeout       units.Duration `toml:"idle_timeout"`        // 0: never
	HalfClosedTimeout units.Duration `toml:"half_closed_timeout"` // 0: never
	CloseTimeout      units.Duration `toml:"close_timeout"`
	TimeWait          units.Duration `toml:"time_wait"`
	KeepAlive         units.Duration `toml:"keep_alive"` // 0: off
	AckDelay          units.Duration `toml:"ack_delay"`  // 0: none

	SendBuffer       units.Size `toml:"send_buffer"`
	SendBufferMax    units.Size `toml:"send_buffer_max"`
	ReceiveBuffer    units.Size `toml:"receive_buffer"`
	ReceiveBufferMax units.Size `toml:"receive_buffer_max"`
	HoldBytes        units.Size `toml:"hold_bytes"` // what stream stages may hold back in one direction

	LossDetection string `toml:"loss_detection"` // rack, sack
}

// Default returns the configuration that stands where nothing is written.
func Default() Config {
	o := stack.DefaultOptions()
	return Config{
		Depth: "auto", MaxFlows: o.MaxFlows, MaxPending: o.MaxPending,
		OnLimit: "bypass", OnUnsupported: "bypass",
		DialTimeout: units.Duration(o.DialTimeout), HandshakeTimeout: units.Duration(o.HandshakeTimeout),
		IdleTimeout: units.Duration(o.IdleTimeout), HalfClosedTimeout: units.Duration(o.HalfClosedTimeout),
		CloseTimeout: units.Duration(o.CloseTimeout), TimeWait: units.Duration(o.TimeWait),
		AckDelay:   units.Duration(o.AckDelay),
		SendBuffer: units.Size(o.SendBuffer), SendBufferMax: units.Size(o.SendBufferMax),
		ReceiveBuffer: units.Size(o.ReceiveBuffer), ReceiveBufferMax: units.Size(o.ReceiveBufferMax),
		HoldBytes: units.Size(o.HoldBytes), LossDetection: "rack",
	}
}

// The bounds of the configuration.
const (
	maxFlows   = 4 << 20
	maxPending = 65536
	minBuffer  = 16 << 10
	maxBuffer  = 256 << 20
	minHold    = 1 << 10
	maxHold    = 16 << 20
	maxWait    = units.Duration(4 * time.Minute)
	// RFC 1122, section 4.2.3.2.
	maxAckDelay = units.Duration(500 * time.Millisecond)
)

// Validate adds every problem of c.
func Validate(c *Config, issues *pipeline.Issues) {
	switch c.Depth {
	case "auto", "terminate":
	case "inspect":
		issues.Add("depth", `depth "inspect" is not built yet: want "auto" or "terminate"`)
	default:
		issues.Add("depth", `depth must be "auto" or "terminate", got %q`, c.Depth)
	}
	oneOf(issues, "on_limit", c.OnLimit, "bypass", "drop")
	oneOf(issues, "on_unsupported", c.OnUnsupported, "bypass", "drop")
	oneOf(issues, "loss_detection", c.LossDetection, "rack", "sack")
	within(issues, "max_flows", c.MaxFlows, 1, maxFlows)
	within(issues, "max_pending", c.MaxPending, 1, maxPending)
	within(issues, "send_buffer", c.SendBuffer, minBuffer, maxBuffer)
	within(issues, "send_buffer_max", c.SendBufferMax, max(minBuffer, c.SendBuffer), maxBuffer)
	within(issues, "receive_buffer", c.ReceiveBuffer, minBuffer, maxBuffer)
	within(issues, "receive_buffer_max", c.ReceiveBufferMax, max(minBuffer, c.ReceiveBuffer), maxBuffer)
	within(issues, "hold_bytes", c.HoldBytes, minHold, maxHold)
	positive(issues, "dial_timeout", c.DialTimeout)
	positive(issues, "handshake_timeout", c.HandshakeTimeout)
	positive(issues, "close_timeout", c.CloseTimeout)
	within(issues, "time_wait", c.TimeWait, 0, maxWait)
	within(issues, "ack_delay", c.AckDelay, 0, maxAckDelay)
}

func oneOf(issues *pipeline.Issues, key, got, a, b string) {
	if got != a && got != b {
		issues.Add(key, "%s must be %q or %q, got %q", key, a, b, got)
	}
}

func within[T int | units.Size | units.Duration](issues *pipeline.Issues, key string, got, least, most T) {
	if got < least || got > most {
		issues.Add(key, "%s must be from %v to %v, got %v", key, least, most, got)
	}
}

func positive(issues *pipeline.Issues, key string, got units.Duration) {
	if got <= 0 {
		issues.Add(key, "%s must be above 0, got %v", key, got)
	}
}

// depth says how deep the flows of a chain with this stage are.
func depth(c Config, _ pipeline.Need) (pipeline.Depth, string) {
	if c.Depth == "terminate" {
		return pipeline.DepthTerminate, `depth = "terminate"`
	}
	return pipeline.DepthTerminate, `depth = "auto", and inspecting without terminating is not built yet`
}
