// Package tcp is the boundary stage: packets come in, stream stages behind it
// see connections. It looks into the TCP connections of its chain by way of
// package inspect, or terminates them by way of package stack, and leaves
// everything else alone.
//
// Its one trap: unless it is told otherwise it only takes connections whose SYN
// it has seen. What was open before it started passes through, unseen by the
// stream stages.
package tcp

import (
	_ "embed"
	"slices"
	"time"

	"penstock/inspect"
	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/stack"
)

//go:embed README.md
var readme string

// Descriptor describes the stage to the registry.
func Descriptor() pipeline.Descriptor[Config] {
	return pipeline.Descriptor[Config]{
		Kind:     "tcp",
		Summary:  "shows the bytes of TCP connections to the stream stages behind it; terminates them where a stage must change bytes",
		README:   readme,
		Reasons:  reasons(),
		Affinity: true,
		Holds: func(c Config) string {
			if c.Splice == "never" {
				return `splice = "never"`
			}
			return ""
		},
		Resumes:  func(c Config) bool { return c.Midstream == "inspect" },
		Default:  Default,
		Validate: Validate,
		Depth:    depth,
		Suits:    suits,
		NewBoundary: func(c Config, env *pipeline.Env, streams []pipeline.StreamStage, names []string) (pipeline.Stage, error) {
			if env.Depth == pipeline.DepthInspect {
				return inspect.New(env, c.inspectOptions(env, streams, names)), nil
			}
			return New(c, env, streams)
		},
	}
}

// reasons lists what packets and connections end for at either depth.
func reasons() []pipeline.Reason {
	list := stack.Reasons()
	for _, r := range inspect.Reasons() {
		if !slices.Contains(list, r) {
			list = append(list, r)
		}
	}
	return list
}

// Stage is a worker's instance that terminates connections.
type Stage struct {
	stack *stack.Stack
	now   func() int64
}

var (
	_ pipeline.Poller     = (*Stage)(nil)
	_ pipeline.Ticker     = (*Stage)(nil)
	_ pipeline.Drainer    = (*Stage)(nil)
	_ pipeline.FlowLister = (*Stage)(nil)
	_ pipeline.FlowEnder  = (*Stage)(nil)
	_ pipeline.Adopter    = (*Stage)(nil)
	_ pipeline.Waker      = (*Stage)(nil)
	_ pipeline.Closer     = (*Stage)(nil)
)

// New makes the stage and its netstack.
func New(c Config, env *pipeline.Env, streams []pipeline.StreamStage) (*Stage, error) {
	o := c.options()
	o.Streams = streams
	s, err := stack.New(env, o)
	if err != nil {
		return nil, err
	}
	return &Stage{stack: s, now: env.Now}, nil
}

// Process implements pipeline.Stage.
func (s *Stage) Process(b *pipeline.Batch) {
	now := s.now()
	for p := range b.Live() {
		s.stack.Input(p, now)
	}
	s.stack.Flush()
}

// Poll implements pipeline.Poller.
func (s *Stage) Poll(now int64) bool { return s.stack.Poll(now) }

// Tick implements pipeline.Ticker.
func (s *Stage) Tick(now int64) { s.stack.Tick(now) }

// Drain implements pipeline.Drainer.
func (s *Stage) Drain(now int64) int { return s.stack.Drain(now) }

// Flows implements pipeline.FlowLister.
func (s *Stage) Flows(yield func(pipeline.FlowInfo)) { s.stack.Flows(yield) }

// FlowEnded implements pipeline.FlowEnder.
func (s *Stage) FlowEnded(f wire.Flow, now int64) { s.stack.FlowEnded(f, now) }

// CutPorts implements pipeline.PortCutter.
func (s *Stage) CutPorts(gone func(pipeline.PortID) bool, now int64) int {
	return s.stack.CutPorts(gone, now)
}

// Adopt implements pipeline.Adopter.
func (s *Stage) Adopt(f pipeline.AdoptedFlow, now int64) { s.stack.Adopt(f, now) }

// Woke implements pipeline.Waker.
func (s *Stage) Woke(passed func(wire.Flow) bool, now int64) { s.stack.Woke(passed, now) }

// Close implements pipeline.Closer.
func (s *Stage) Close() error { return s.stack.Close() }

func (c *Config) options() stack.Options {
	refusal := map[string]stack.Refusal{"bypass": stack.Bypass, "drop": stack.Drop}
	return stack.Options{
		MaxFlows: c.MaxFlows, MaxPending: c.MaxPending, MaxFlowsPerClient: c.MaxPerClient, MSSClamp: uint16(c.MSSClamp),
		SYNCookies: map[string]stack.CookieMode{"auto": stack.CookiesAuto, "on": stack.CookiesOn, "off": stack.CookiesOff}[c.SYNCookies],
		OnLimit:    refusal[c.OnLimit], OnUnsupported: refusal[c.OnUnsupported],
		DialTimeout: time.Duration(c.DialTimeout), HandshakeTimeout: time.Duration(c.HandshakeTimeout),
		IdleTimeout: time.Duration(c.IdleTimeout), HalfClosedTimeout: time.Duration(c.HalfClosedTimeout),
		CloseTimeout: time.Duration(c.CloseTimeout), StallTimeout: time.Duration(c.StallTimeout), TimeWait: time.Duration(c.TimeWait),
		KeepAlive: time.Duration(c.KeepAlive), AckDelay: time.Duration(c.AckDelay),
		SendBuffer: int(c.SendBuffer), SendBufferMax: int(c.SendBufferMax),
		ReceiveBuffer: int(c.ReceiveBuffer), ReceiveBufferMax: int(c.ReceiveBufferMax),
		Splice:    c.Splice == "auto",
		HoldBytes: int(c.HoldBytes), RACK: c.LossDetection == "rack",
	}
}

func (c *Config) inspectOptions(env *pipeline.Env, streams []pipeline.StreamStage, names []string) inspect.Options {
	refusal := map[string]inspect.Refusal{"bypass": inspect.Bypass, "drop": inspect.Drop}
	midstream := map[string]inspect.Midstream{"bypass": inspect.MidstreamBypass, "inspect": inspect.MidstreamInspect, "drop": inspect.MidstreamDrop}
	enforces := env.Need >= pipeline.NeedDeny
	o := inspect.Options{
		Streams: streams, Names: names,
		MaxFlows: c.MaxFlows, OnLimit: refusal[c.OnLimit], OnUnsupported: refusal[c.OnUnsupported], Midstream: midstream[c.Midstream],
		Hold: c.Hold == "on" || c.Hold == "auto" && enforces, HoldBytes: int(c.HoldBytes), HoldTime: time.Duration(c.HoldTime),
		DenyConflict: c.OnConflict == "deny", DenyBlind: c.OnBlind == "deny" || c.OnBlind == "auto" && enforces,
		Memory: int(c.Memory), FlowMemory: int(c.FlowMemory),
		OpenTimeout: time.Duration(c.DialTimeout), IdleTimeout: time.Duration(c.IdleTimeout),
		HalfClosedTimeout: time.Duration(c.HalfClosedTimeout), CloseTimeout: time.Duration(c.CloseTimeout),
		ChecksumsSettled: env.ChecksumsSettled, Recorded: env.Recorded,
	}
	if o.Hold {
		o.HoldBytes = int(c.InspectHoldBytes)
	}
	return o
}
