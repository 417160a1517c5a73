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
	SrcIP    string      `json:"src_ip"`
	SrcPort  uint16      `json:"src_port"`
	DestIP   string      `json:"dest_ip"`
	DestPort uint16      `json:"dest_port"`
	Proto    string      `json:"proto"`
	VLAN     []uint16    `json:"vlan,omitempty"`
	Chain    string      `json:"chain"`
	InIface  string      `json:"in_iface,omitempty"`
	Depth    string      `json:"depth,omitempty"`  // where its packets went last
	Action   string      `json:"action,omitempty"` // "forward" or "drop", if XDP has it
	Flow     *flowRecord `json:"flow,omitempty"`
}

type flowRecord struct {
	PktsToServer  uint64  `json:"pkts_toserver"`
	PktsToClient  uint64  `json:"pkts_toclient"`
	BytesToServer uint64  `json:"bytes_toserver"` // frame lengths
	BytesToClient uint64  `json:"bytes_toclient"`
	Start         string  `json:"start"`
	End           string  `json:"end"` // last packet
	Age           float64 `json:"age_seconds"`
	Reason        string  `json:"reason"` // idle, closed, reset, evicted
}

// dropEvent is a record "drop": a sample of what XDP drops by itself.
type dropEvent struct {
	SrcIP    string   `json:"src_ip"`
	SrcPort  uint16   `json:"src_port"`
	DestIP   string   `json:"dest_ip"`
	DestPort uint16   `json:"dest_port"`
	Proto    string   `json:"proto"`
	VLAN     []uint16 `json:"vlan,omitempty"`
	InIface  string   `json:"in_iface"`
	Reason   string   `json:"reason"`
	Packets  uint32   `json:"packets"` // that it stands for
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
			a.record.RecordAt(at, "flow_start", f)
		case bpf.EventDropped:
			f := a.flowEvent(e.Key, -1, e.Port)
			a.record.RecordAt(at, "drop", dropEvent{
				SrcIP: f.SrcIP, SrcPort: f.SrcPort, DestIP: f.DestIP, DestPort: f.DestPort, Proto: f.Proto, VLAN: f.VLAN,
				InIface: f.InIface, Reason: e.Reason.String(), Packets: e.Count,
			})
		}
	})
	if err != nil && ctx.Err() == nil {
		a.log.Error("events of XDP are not recorded", "err", err)
	}
}

func (a *appliance) flowEvent(k bpf.FlowKey, chain, port int) flowEvent {
	e := flowEvent{
		SrcIP: k.Src.String(), SrcPort: k.SrcPort, DestIP: k.Dst.String(), DestPort: k.DstPort, Proto: eveProto(k.Proto),
	}
	for _, id := range k.VLAN {
		if id != 0 {
			e.VLAN = append(e.VLAN, id)
		}
	}
	if p := a.placeOf(chain); p != nil {
		e.Chain = p.conf.Name
	}
	if port >= 0 && port < len(a.nics) {
		e.InIface = a.nics[port].name
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
	tell map[int][]endedFlow // by worker
}

type endedFlow struct {
	chain int
	flow  wire.Flow
}

func (a *appliance) newEnded() *ended {
	return &ended{a: a, logs: a.record.Enabled("flow"), tell: map[int][]endedFlow{}}
}

// add is a callback of bpf.Steerer.
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
	ev := e.a.flowEvent(f.Key, int(f.Chain), -1)
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
	ev.Flow = &flowRecord{
		PktsToServer: f.Packets, PktsToClient: f.ReplyPackets, BytesToServer: f.Bytes, BytesToClient: f.ReplyBytes,
		Start: record.Timestamp(wallClock(f.Start)), End: record.Timestamp(wallClock(f.LastSeen)),
		Age: (f.LastSeen - f.Start).Seconds(), Reason: f.Why.String(),
	}
	e.a.record.Record("flow", ev)
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
