package main

import (
	"net/netip"
	"time"

	"penstock/bpf"
	"penstock/internal/config"
	"penstock/internal/units"
	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/xsk"
)

// The configuration's words, in those of the packages that carry them out.
var (
	xdpModes     = map[string]bpf.Mode{"auto": bpf.ModeAuto, "native": bpf.ModeNative, "generic": bpf.ModeGeneric}
	xskModes     = map[string]xsk.Mode{"auto": xsk.Auto, "on": xsk.ZeroCopy, "off": xsk.Copy}
	midstreams   = map[string]bpf.Midstream{config.MidstreamBypass: bpf.MidstreamBypass, config.MidstreamInspect: bpf.MidstreamInspect, config.MidstreamDrop: bpf.MidstreamDrop}
	malformed    = map[string]bpf.Malformed{config.MalformedForward: bpf.MalformedBypass, config.MalformedDrop: bpf.MalformedDrop}
	onExits      = map[string]bpf.OnExit{config.OnExitOpen: bpf.OnExitOpen, config.OnExitClosed: bpf.OnExitClosed}
	protocols    = map[string]uint8{"any": 0, "tcp": bpf.ProtoTCP, "udp": bpf.ProtoUDP, "icmp": bpf.ProtoICMP}
	ruleDepths   = map[pipeline.Depth]bpf.Depth{pipeline.DepthInspect: bpf.Inspects, pipeline.DepthTerminate: bpf.Terminates}
	steerActions = map[config.Action]bpf.Action{config.ToChain: bpf.ToChain, config.ToBypass: bpf.Bypass, config.ToDrop: bpf.Drop}
)

// steerOptions is the configuration as the XDP program takes it; interface
// indices are not known yet.
func steerOptions(cfg *config.Config) bpf.Options {
	a := cfg.Appliance
	o := bpf.Options{
		Name: a.Name, MaxFlows: uint32(a.MaxFlows), Midstream: midstreams[a.Midstream], Malformed: malformed[a.Malformed], OnExit: onExits[a.OnExit],
		Silence:     time.Duration(a.Heartbeat),
		GateEntries: uint32(cfg.Gate.MaxEntries), GateSources: uint32(cfg.Gate.MaxSources),
	}
	if a.Mode == config.ModeRouter {
		o.Default = bpf.DefaultRoute
	}
	o.PinRoot, o.LinksLate = a.Pins, !leavesXDP(cfg)
	for _, p := range cfg.Ports {
		o.Ports = append(o.Ports, bpf.Port{Name: p.Name, Mode: xdpModes[p.XDP]})
	}
	o.Rules = steerRules(cfg)
	for _, c := range cfg.Chains {
		depth, _, _ := c.Spec.Depth()
		o.Chains = append(o.Chains, bpf.Chain{Name: c.Spec.Name, Resume: c.Spec.Resumes(), Pass: depth == pipeline.DepthInspect})
	}
	return o
}

// steerRules are the rules with chains by their places in the configuration.
func steerRules(cfg *config.Config) (rules []bpf.Rule) {
	for _, s := range cfg.Steer {
		r := bpf.Rule{
			From: -1, Proto: protocols[s.Proto], Src: netPrefixes(s.Src), Dst: netPrefixes(s.Dst),
			SrcPorts: portRanges(s.SrcPort), DstPorts: portRanges(s.DstPort), Action: steerActions[s.To.Action],
		}
		if s.From != pipeline.NoPort {
			r.From = int(s.From)
		}
		if s.To.Action == config.ToChain {
			r.Chain = uint16(s.To.Chain)
			depth, _, _ := cfg.Chains[s.To.Chain].Spec.Depth()
			r.Depth = ruleDepths[depth]
		}
		rules = append(rules, r)
	}
	return rules
}

func netPrefixes(list []units.Prefix) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, p.Prefix)
	}
	return out
}

func portRanges(list []units.PortRange) (out []bpf.PortRange) {
	for _, r := range list {
		out = append(out, bpf.PortRange{Lo: r.First, Hi: r.Last})
	}
	return out
}

// bpfKey is a flow as the XDP program names it.
func bpfKey(f wire.Flow) bpf.FlowKey {
	return bpf.FlowKey{
		Src: f.SrcAddr().Addr(), Dst: f.DstAddr().Addr(), SrcPort: f.SrcPort, DstPort: f.DstPort, Proto: f.Proto, VLAN: f.VLAN,
	}
}
