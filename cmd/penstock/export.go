package main

import (
	"fmt"
	"os"
	"time"

	"penstock/bpf"
	"penstock/internal/control"
	"penstock/internal/ipfix"
	"penstock/internal/otlp"
	"penstock/internal/wire"
	"penstock/pipeline"
)

func (a *appliance) openExporters() error {
	for _, c := range a.cfg.IPFIX {
		e, err := ipfix.Open(c.Spec, a.log, ipfix.Options{})
		if err != nil {
			return err
		}
		a.ipfix, a.ongoing = append(a.ipfix, e), append(a.ongoing, newOngoing(c.ActiveTimeout))
	}
	if a.cfg.OTLP == nil {
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find the host's name: %w", err)
	}
	a.otlp, err = otlp.Open(*a.cfg.OTLP, otlp.Resource{Name: a.cfg.Appliance.Name, Version: versionText(), Host: host, Started: a.started}, a.log, otlp.Options{})
	return err
}

// startMetrics sends metrics, now that there are any.
func (a *appliance) startMetrics() error {
	if a.otlp != nil {
		a.otlp.SendMetrics(control.Gatherer(a))
	}
	return nil
}

// recorder is where the stages of a worker record events.
func (a *appliance) recorder(worker int) pipeline.Recorder {
	if a.otlp == nil {
		return a.lanes[worker]
	}
	return recorders{a.lanes[worker], a.otlp}
}

// recorders are those of a worker and a collector that keeps events for a while.
type recorders struct{ own, keeper pipeline.Recorder }

func (r recorders) Enabled(event string) bool { return r.own.Enabled(event) || r.keeper.Enabled(event) }

func (r recorders) Record(event string, fields any) {
	r.own.Record(event, fields)
	if !r.keeper.Enabled(event) {
		return
	}
	if b, ok := fields.(pipeline.Borrowed); ok {
		fields = b.Keep()
	}
	r.keeper.Record(event, fields)
}

// closeExporters sends what is left. A collector that is not there must not
// make a stop fail.
func (a *appliance) closeExporters() {
	for _, e := range a.ipfix {
		if err := e.Close(); err != nil {
			a.log.Warn(err.Error())
		}
	}
	if a.otlp != nil {
		if err := a.otlp.Close(); err != nil {
			a.log.Warn(err.Error())
		}
	}
}

// export tells the collectors of a flow that has ended.
func (a *appliance) export(f *bpf.EndedFlow) {
	for i := range a.ipfix {
		a.exportTo(i, f, f.LastSeen)
	}
}

// exportTo tells a collector what it does not know yet of a flow.
func (a *appliance) exportTo(i int, all *bpf.EndedFlow, now time.Duration) {
	f, any := a.ongoing[i].since(all, now)
	if !any {
		return // with what it was told last, it had ended
	}
	flow := ipfix.Flow{
		Src: f.Key.Src, Dst: f.Key.Dst, Proto: f.Key.Proto, VLAN: f.Key.VLAN,
		Packets: f.Packets, Bytes: f.Bytes, ReversePackets: f.ReplyPackets, ReverseBytes: f.ReplyBytes,
		TCPFlags: f.TCPFlags, ReverseTCPFlags: f.ReplyTCPFlags,
		Start: wallClock(f.Start), End: wallClock(f.LastSeen),
	}
	// The ports of an ICMP flow are its identifier, which collectors would take
	// for type and code.
	if flow.Proto != wire.ProtoICMP && flow.Proto != wire.ProtoICMPv6 {
		flow.SrcPort, flow.DstPort = f.Key.SrcPort, f.Key.DstPort
	}
	switch f.Why {
	case bpf.EndIdle:
		flow.Reason = ipfix.EndIdle
	case bpf.EndEvicted:
		flow.Reason = ipfix.EndForced
	case bpf.EndActive:
		flow.Reason = ipfix.EndActive
	default:
		flow.Reason = ipfix.EndDetected
	}
	switch f.Action {
	case bpf.Drop:
		flow.Forwarding = ipfix.Dropped
	case bpf.Bypass, bpf.Passed:
		flow.Forwarding = ipfix.Forwarded
	}
	a.ipfix[i].Export(&flow)
}

// exportStatus shows the collectors.
func (a *appliance) exportStatus() (all []control.Export) {
	for _, e := range a.ipfix {
		s := e.Stats()
		all = append(all, control.Export{Kind: "ipfix", To: s.To, Sent: s.Sent, Dropped: s.Dropped, Failed: s.Failed, Queued: s.Queued, Up: s.Up, Error: s.Error})
	}
	if a.otlp != nil {
		for _, s := range a.otlp.Stats() {
			all = append(all, control.Export{
				Kind: s.Kind, To: s.To, Sent: s.Sent, Skipped: s.Skipped, Dropped: s.Dropped, Failed: s.Failed, Queued: s.Queued, Up: s.Up, Error: s.Error,
			})
		}
	}
	return all
}
