package main

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"penstock/bpf"
	"penstock/internal/control"
	"penstock/internal/record"
	"penstock/internal/wire"
	"penstock/pipeline"
)

// flowEvent is a record "flow" or "flow_start"; names are those of Suricata's EVE
// where it has the field.
type flowEvent struct {
	SrcIP    netip.Addr
	SrcPort  uint16
	DestIP   netip.Addr
	DestPort uint16
	Proto    string
	VLAN     [2]uint16 // the first n are there
	vlans    int
	Chain    string
	InIface  string
	Depth    string // where its packets went last
	Action   string // "forward" or "drop", if XDP has it
	ended    bool   // the rest is known
	Flow     flowRecord
}

type flowRecord struct {
	PktsToServer  uint64
	PktsToClient  uint64
	BytesToServer uint64 // frame lengths
	BytesToClient uint64
	Start         time.Time
	End           time.Time // last packet
	Reason        string    // idle, closed, reset, evicted
}

var (
	_ record.Appender = (*flowEvent)(nil)
	_ record.Appender = (*dropEvent)(nil)
)

// AppendMembers implements record.Appender.
func (e *flowEvent) AppendMembers(m *record.Members) {
	e.appendFlow(m)
	m.String("chain", e.Chain)
	m.Some("in_iface", e.InIface)
	m.Some("depth", e.Depth)
	m.Some("action", e.Action)
	if !e.ended {
		return
	}
	f := &e.Flow
	m.Open("flow")
	m.Uint("pkts_toserver", f.PktsToServer)
	m.Uint("pkts_toclient", f.PktsToClient)
	m.Uint("bytes_toserver", f.BytesToServer)
	m.Uint("bytes_toclient", f.BytesToClient)
	m.Time("start", f.Start)
	m.Time("end", f.End)
	m.Seconds("age_seconds", int64(f.End.Sub(f.Start)))
	m.String("reason", f.Reason)
	m.Close()
}

// appendFlow writes what names a flow.
func (e *flowEvent) appendFlow(m *record.Members) {
	m.Addr("src_ip", e.SrcIP)
	m.Uint("src_port", uint64(e.SrcPort))
	m.Addr("dest_ip", e.DestIP)
	m.Uint("dest_port", uint64(e.DestPort))
	m.String("proto", e.Proto)
	if e.vlans > 0 {
		m.Uints("vlan", e.VLAN[:e.vlans])
	}
}

// dropEvent is a record "drop": a sample of what XDP drops by itself.
type dropEvent struct {
	flow    flowEvent
	reason  string
	packets uint32 // that it stands for
}

// AppendMembers implements record.Appender.
func (e *dropEvent) AppendMembers(m *record.Members) {
	e.flow.appendFlow(m)
	m.String("in_iface", e.flow.InIface)
	m.String("reason", e.reason)
	m.Uint("packets", uint64(e.packets))
}

// xdpEvents are the events that somebody records.
func xdpEvents(specs []record.Spec) (kinds []bpf.EventKind) {
	for _, k := range []struct {
		name string
		kind bpf.EventKind
	}{{"flow_start", bpf.EventFlowBegan}, {"drop", bpf.EventDropped}} {
		for _, s := range specs {
			if s.Wants(k.name) {
				kinds = append(kinds, k.kind)
				break
			}
		}
	}
	return kinds
}

// readEvents records what XDP tells of, until ctx ends.
func (a *appliance) readEvents(ctx context.Context) {
	err := a.steerer.ReadEvents(ctx, func(e *bpf.Event) {
		at := wallClock(e.Time)
		switch e.Kind {
		case bpf.EventFlowBegan:
			f := a.flowEvent(e.Key, int(e.Chain), e.Port)
			a.record.RecordAt(at, "flow_start", &f)
		case bpf.EventDropped:
			f := a.flowEvent(e.Key, -1, e.Port)
			a.record.RecordAt(at, "drop", &dropEvent{flow: f, reason: e.Reason.String(), packets: e.Count})
		}
	})
	if err != nil && ctx.Err() == nil {
		a.log.Error("events of XDP are not recorded", "err", err)
	}
}

func (a *appliance) flowEvent(k bpf.FlowKey, chain, port int) flowEvent {
	e := flowEvent{
		SrcIP: k.Src, SrcPort: k.SrcPort, DestIP: k.Dst, DestPort: k.DstPort, Proto: eveProto(k.Proto),
	}
	for _, id := range k.VLAN {
		if id != 0 {
			e.VLAN[e.vlans] = id
			e.vlans++
		}
	}
	if p := a.placeOf(chain); p != nil {
		e.Chain = p.conf.Name
	}
	if p := a.portOf(port); p != nil {
		e.InIface = p.nic.name
	}
	return e
}

// eveProto is a protocol in EVE's words.
func eveProto(p uint8) string {
	switch p {
	case wire.ProtoTCP:
		return "TCP"
	case wire.ProtoUDP:
		return "UDP"
	case wire.ProtoICMP:
		return "ICMP"
	case wire.ProtoICMPv6:
		return "IPv6-ICMP"
	}
	return protoName(p)
}

// wallClock is the time of day of a moment of bpf.Now's clock.
func wallClock(at time.Duration) time.Time { return time.Now().Add(at - bpf.Now()) }

// ended collects flows that are over, to be recorded and told to the workers
// whose stages keep something of them.
type ended struct {
	a    *appliance
	logs bool
	wall time.Time           // when bpf.Now's clock was at 0
	flow flowEvent           // the one that is being recorded
	tell map[int][]endedFlow // by worker
}

type endedFlow struct {
	chain int
	flow  wire.Flow
}

func (a *appliance) newEnded() *ended {
	return &ended{a: a, logs: a.record.Enabled("flow"), wall: wallClock(0), tell: map[int][]endedFlow{}}
}

// add is a callback of bpf.Steerer, which tells of one flow at a time.
func (e *ended) add(f *bpf.EndedFlow) {
	if f.Chain == bpf.NoChain { // of no concern to anybody
		return
	}
	if e.logs {
		e.record(f)
	}
	if len(e.a.ipfix) > 0 {
		e.a.export(f)
	}
	chain := int(f.Chain)
	if p := e.a.placeOf(chain); p != nil && p.depth >= pipeline.DepthInspect {
		w := int(f.Hash % uint32(len(e.a.workers)))
		e.tell[w] = append(e.tell[w], endedFlow{chain, wireFlow(f.Key)})
	}
}

func (e *ended) record(f *bpf.EndedFlow) {
	ev := &e.flow
	*ev = e.a.flowEvent(f.Key, int(f.Chain), -1)
	switch {
	case f.Action == bpf.Drop:
		ev.Depth, ev.Action = pipeline.DepthOffload.String(), "drop"
	case f.Action == bpf.Bypass, f.Action == bpf.Passed:
		ev.Depth, ev.Action = pipeline.DepthOffload.String(), "forward"
	default:
		if p := e.a.placeOf(int(f.Chain)); p != nil {
			ev.Depth = p.depth.String()
		}
	}
	ev.ended, ev.Flow = true, flowRecord{
		PktsToServer: f.Packets, PktsToClient: f.ReplyPackets, BytesToServer: f.Bytes, BytesToClient: f.ReplyBytes,
		Start: e.wall.Add(f.Start), End: e.wall.Add(f.LastSeen), Reason: f.Why.String(),
	}
	e.a.endedLane.Record("flow", ev)
}

// done tells the workers.
func (e *ended) done() {
	for w, flows := range e.tell {
		worker := e.a.workers[w]
		worker.Call(func() {
			now := worker.Env().Now()
			for _, f := range flows {
				if chains := worker.Chains(); f.chain < len(chains) && chains[f.chain] != nil {
					chains[f.chain].FlowEnded(f.flow, now)
				}
			}
		})
	}
}

// Evict implements control.Source.
func (a *appliance) Evict(flows []control.Flow) (int, error) {
	keys := make([]bpf.FlowKey, len(flows))
	for i, f := range flows {
		var err error
		if keys[i], err = flowKey(f); err != nil {
			return 0, control.Wrong(fmt.Errorf("evict flow %d: %w; name flows as /v1/flows does", i, err))
		}
	}
	e := a.newEnded()
	n, err := a.steerer.Evict(keys, e.add)
	e.done()
	return n, err
}

// flowKey is a flow of Flows as XDP names it.
func flowKey(f control.Flow) (k bpf.FlowKey, err error) {
	client, err := netip.ParseAddrPort(f.Client)
	if err != nil {
		return k, fmt.Errorf("client: %w", err)
	}
	server, err := netip.ParseAddrPort(f.Server)
	if err != nil {
		return k, fmt.Errorf("server: %w", err)
	}
	if client.Addr().Is4() != server.Addr().Is4() || len(f.VLAN) > len(k.VLAN) {
		return k, fmt.Errorf("%s and %s, VLANs %v: no flow is like that", f.Client, f.Server, f.VLAN)
	}
	k = bpf.FlowKey{Src: client.Addr(), Dst: server.Addr(), SrcPort: client.Port(), DstPort: server.Port()}
	for i, id := range f.VLAN {
		k.VLAN[i] = uint16(id)
	}
	switch f.Proto {
	case "tcp":
		k.Proto = wire.ProtoTCP
	case "udp":
		k.Proto = wire.ProtoUDP
	case "icmp":
		k.Proto = wire.ProtoICMPv6
		if client.Addr().Is4() {
			k.Proto = wire.ProtoICMP
		}
	default:
		n, err := strconv.ParseUint(f.Proto, 10, 8)
		if err != nil {
			return k, fmt.Errorf("protocol %q: want tcp, udp, icmp or a number", f.Proto)
		}
		k.Proto = uint8(n)
	}
	return k, nil
}
