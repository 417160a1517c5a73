package tcp

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"penstock/inspect"
	"penstock/internal/units"
	"penstock/pipeline"
	"penstock/stack"
)

// Config is the stage's table in the configuration. Limits and buffers are
// those of one worker, and of one connection.
type Config struct {
	Depth         string `toml:"depth"`                // auto, inspect, terminate
	Splice        string `toml:"splice"`               // auto, never: connections that no stream stage needs become one again
	MaxFlows      int    `toml:"max_flows"`            // connections at once
	MaxPending    int    `toml:"max_pending"`          // connections being established at once
	MaxPerClient  int    `toml:"max_flows_per_client"` // connections at once of an IPv4 address or an IPv6 /64; 0: any number
	MSSClamp      int    `toml:"mss_clamp"`            // bytes; 0: none
	SYNCookies    string `toml:"syn_cookies"`          // auto, on, off: SYNs are answered by XDP
	OnLimit       string `toml:"on_limit"`             // bypass, drop: new connections beyond either
	OnUnsupported string `toml:"on_unsupported"`       // bypass, drop: connections that cannot be terminated unchanged

	DialTimeout       units.Duration `toml:"dial_timeout"`
	HandshakeTimeout  units.Duration `toml:"handshake_timeout"`
	IdleTimeout       units.Duration `toml:"idle_timeout"`        // 0: never
	HalfClosedTimeout units.Duration `toml:"half_closed_timeout"` // 0: never
	StallTimeout      units.Duration `toml:"stall_timeout"`       // 0: never
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

	// At inspect depth.
	Hold             string         `toml:"hold"`               // auto, on, off: packets wait for the stream stages
	InspectHoldBytes units.Size     `toml:"inspect_hold_bytes"` // what waits in one direction
	HoldTime         units.Duration `toml:"hold_time"`
	OnConflict       string         `toml:"on_conflict"` // deny, drop: bytes that come again and are others
	OnBlind          string         `toml:"on_blind"`    // auto, deny, bypass: connections that can be followed no longer
	Midstream        string         `toml:"midstream"`   // bypass, inspect, drop: connections whose SYN was not seen
	Memory           units.Size     `toml:"memory"`      // for what is not acknowledged yet, of all connections
	FlowMemory       units.Size     `toml:"flow_memory"` // of one direction of one connection
}

// Default returns the configuration that stands where nothing is written.
func Default() Config {
	o, i := stack.DefaultOptions(), inspect.DefaultOptions()
	return Config{
		Depth: "auto", Splice: "auto", MaxFlows: o.MaxFlows, MaxPending: o.MaxPending,
		SYNCookies: "auto", OnLimit: "bypass", OnUnsupported: "bypass",
		DialTimeout: units.Duration(o.DialTimeout), HandshakeTimeout: units.Duration(o.HandshakeTimeout),
		IdleTimeout: units.Duration(o.IdleTimeout), HalfClosedTimeout: units.Duration(o.HalfClosedTimeout),
		StallTimeout: units.Duration(o.StallTimeout), CloseTimeout: units.Duration(o.CloseTimeout), TimeWait: units.Duration(o.TimeWait),
		AckDelay:   units.Duration(o.AckDelay),
		SendBuffer: units.Size(o.SendBuffer), SendBufferMax: units.Size(o.SendBufferMax),
		ReceiveBuffer: units.Size(o.ReceiveBuffer), ReceiveBufferMax: units.Size(o.ReceiveBufferMax),
		HoldBytes: units.Size(o.HoldBytes), LossDetection: "sack",
		Hold: "auto", InspectHoldBytes: units.Size(i.HoldBytes), HoldTime: units.Duration(i.HoldTime),
		OnConflict: "deny", OnBlind: "auto", Midstream: "bypass",
		Memory: units.Size(i.Memory), FlowMemory: units.Size(i.FlowMemory),
	}
}

// The bounds of the configuration.
const (
	maxFlows   = 4 << 20
	maxPending = 65536
	minBuffer  = 16 << 10
	minMSS     = 536 // RFC 9293 3.7.1
	maxMSS     = 65535
	maxBuffer  = 256 << 20
	minHold    = 1 << 10
	maxHold    = 16 << 20
	maxWait    = units.Duration(4 * time.Minute)
	// RFC 1122, section 4.2.3.2.
	maxAckDelay = units.Duration(500 * time.Millisecond)
	// Senders send this much before they await an acknowledgement (RFC 6928); a
	// hold that reaches it stops them for good.
	maxInspectHold = 12 << 10
	maxHoldTime    = units.Duration(time.Minute)
	minFlowMemory  = 64 << 10
	maxMemory      = 64 << 30
)

// Validate adds every problem of c.
func Validate(c *Config, issues *pipeline.Issues) {
	oneOf(issues, "depth", c.Depth, "auto", "inspect", "terminate")
	oneOf(issues, "splice", c.Splice, "auto", "never")
	oneOf(issues, "syn_cookies", c.SYNCookies, "auto", "on", "off")
	oneOf(issues, "on_limit", c.OnLimit, "bypass", "drop")
	oneOf(issues, "on_unsupported", c.OnUnsupported, "bypass", "drop")
	oneOf(issues, "loss_detection", c.LossDetection, "rack", "sack")
	within(issues, "max_flows", c.MaxFlows, 1, maxFlows)
	within(issues, "max_pending", c.MaxPending, 1, maxPending)
	within(issues, "max_flows_per_client", c.MaxPerClient, 0, maxFlows)
	if c.MSSClamp != 0 {
		within(issues, "mss_clamp", c.MSSClamp, minMSS, maxMSS)
	}
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
	oneOf(issues, "hold", c.Hold, "auto", "on", "off")
	oneOf(issues, "on_conflict", c.OnConflict, "deny", "drop")
	oneOf(issues, "on_blind", c.OnBlind, "auto", "deny", "bypass")
	oneOf(issues, "midstream", c.Midstream, "bypass", "inspect", "drop")
	within(issues, "inspect_hold_bytes", c.InspectHoldBytes, minHold, maxInspectHold)
	within(issues, "hold_time", c.HoldTime, units.Duration(100*time.Millisecond), maxHoldTime)
	within(issues, "flow_memory", c.FlowMemory, minFlowMemory, maxMemory)
	within(issues, "memory", c.Memory, c.FlowMemory, maxMemory)
}

func oneOf(issues *pipeline.Issues, key, got string, choice ...string) {
	if slices.Contains(choice, got) {
		return
	}
	var list strings.Builder
	for i, c := range choice {
		switch {
		case i > 0 && i == len(choice)-1:
			list.WriteString(" or ")
		case i > 0:
			list.WriteString(", ")
		}
		fmt.Fprintf(&list, "%q", c)
	}
	issues.Add(key, "%s must be %s, got %q", key, &list, got)
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
func depth(c Config, n pipeline.Need) (pipeline.Depth, string) {
	switch {
	case c.Depth == "terminate":
		return pipeline.DepthTerminate, `depth = "terminate"`
	case c.Depth == "inspect":
		return pipeline.DepthInspect, `depth = "inspect"`
	case n == pipeline.NeedChange:
		return pipeline.DepthTerminate, ""
	}
	return pipeline.DepthInspect, ""
}

// suits adds what the stages behind cannot live with.
func suits(c Config, n pipeline.Need, stage, why string, issues *pipeline.Issues) {
	d, _ := depth(c, n)
	switch {
	case d == pipeline.DepthInspect && n == pipeline.NeedChange:
		issues.Add("depth", `depth "inspect" cannot serve %s, which %s: want "auto" or "terminate"`, stage, why)
	case d == pipeline.DepthInspect && n == pipeline.NeedDeny && c.Hold == "off":
		issues.Add("hold", `hold "off" lets pass what %s may deny (it %s): want "auto" or "on"`, stage, why)
	case d == pipeline.DepthTerminate && c.Midstream != "bypass":
		issues.Add("midstream", `midstream %q needs depth "inspect": a connection under way cannot be terminated`, c.Midstream)
	}
}
