package main

import (
	"sync"
	"time"

	"penstock/bpf"
)

// ongoing are the flows of which a collector has been told while they go on. The
// figures of what it is told next are those since (packetDeltaCount).
type ongoing struct {
	timeout time.Duration // after which a flow is told of, and again; 0: never
	mu      sync.Mutex
	told    map[bpf.FlowKey]*told
	scan    uint32
}

// told is what a collector knows of a flow.
type told struct {
	start                                    time.Duration // of the flow: another one may have its key
	at                                       time.Duration
	last                                     time.Duration // packet
	packets, bytes, replyPackets, replyBytes uint64
	scan                                     uint32 // that has seen it last
}

func newOngoing(timeout time.Duration) *ongoing {
	return &ongoing{timeout: timeout, told: map[bpf.FlowKey]*told{}}
}

// due reports whether the collector is to be told of a flow that goes on.
func (o *ongoing) due(k bpf.FlowKey, start, now time.Duration) bool {
	if o.timeout == 0 {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	since := start
	if t := o.told[k]; t != nil && t.start == start {
		t.scan = o.scan
		since = t.at
	}
	return now-since >= o.timeout
}

// since takes off a flow's figures what the collector was told before, and notes
// that it is told of the rest, at now. It reports whether there is any.
func (o *ongoing) since(f *bpf.EndedFlow, now time.Duration) (bpf.EndedFlow, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	rest, t := *f, o.told[f.Key]
	if t != nil && t.start == f.Start {
		rest.Packets -= min(t.packets, f.Packets)
		rest.Bytes -= min(t.bytes, f.Bytes)
		rest.ReplyPackets -= min(t.replyPackets, f.ReplyPackets)
		rest.ReplyBytes -= min(t.replyBytes, f.ReplyBytes)
		rest.Start = t.last
	}
	if f.Why != bpf.EndActive {
		delete(o.told, f.Key)
	} else {
		if t == nil {
			t = &told{}
			o.told[f.Key] = t
		}
		*t = told{f.Start, now, f.LastSeen, f.Packets, f.Bytes, f.ReplyPackets, f.ReplyBytes, o.scan}
	}
	return rest, rest.Packets+rest.ReplyPackets > 0
}

// scanned forgets flows that a look at all of them has not found.
func (o *ongoing) scanned() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for k, t := range o.told {
		if t.scan != o.scan {
			delete(o.told, k)
		}
	}
	o.scan++
}

// eachOngoing runs fn for each flow that goes on and each collector that wants to
// hear of such, at once or after its timeout.
func (a *appliance) eachOngoing(atOnce bool, fn func(collector int, f *bpf.EndedFlow, now time.Duration)) error {
	now := bpf.Now()
	wants := func(o *ongoing, k bpf.FlowKey, start time.Duration) bool {
		return o.due(k, start, now) || atOnce && o.timeout > 0
	}
	return a.steerer.Lasting(func(k bpf.FlowKey, start time.Duration) (due bool) {
		for _, o := range a.ongoing {
			due = wants(o, k, start) || due
		}
		return due
	}, func(f *bpf.EndedFlow) {
		for i, o := range a.ongoing {
			if wants(o, f.Key, f.Start) {
				fn(i, f, now)
			}
		}
	})
}

// tellOngoing tells the collectors of flows that go on.
func (a *appliance) tellOngoing() error {
	err := a.eachOngoing(false, a.exportTo)
	if err == nil {
		for _, o := range a.ongoing {
			o.scanned()
		}
	}
	return err
}

// inheritOngoing takes the collectors to know of what is there of an earlier instance:
// it has told them as it left. What one that died had not told is not told.
func (a *appliance) inheritOngoing() error {
	return a.eachOngoing(true, func(i int, f *bpf.EndedFlow, now time.Duration) { a.ongoing[i].since(f, now) })
}

// leaveOngoing tells the collectors of what they do not know yet: of flows that end with us,
// or else go on with a successor.
func (a *appliance) leaveOngoing(end bool) error {
	return a.eachOngoing(true, func(i int, f *bpf.EndedFlow, now time.Duration) {
		if end {
			last := *f
			last.Why = bpf.EndEvicted
			f = &last
		}
		a.exportTo(i, f, now)
	})
}

// ongoingInterval is how often flows that go on are looked for: they are told of a
// quarter of their timeout late at most, or a second. 0: nobody wants to know.
func (a *appliance) ongoingInterval() (d time.Duration) {
	for _, o := range a.ongoing {
		if every := max(o.timeout/4, time.Second); o.timeout > 0 && (d == 0 || every < d) {
			d = every
		}
	}
	return d
}
