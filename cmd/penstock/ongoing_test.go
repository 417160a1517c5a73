package main

import (
	"net/netip"
	"testing"
	"time"

	"penstock/bpf"
)

// TestOngoing: what a collector is told of a flow adds up to the flow, however often it
// is told, and whatever comes in its place.
func TestOngoing(t *testing.T) {
	const s = time.Second
	o := newOngoing(10 * s)
	flow := bpf.EndedFlow{Key: bpf.FlowKey{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), SrcPort: 1, DstPort: 2, Proto: 6}, Start: 100 * s}
	var packets, bytes, replies, replyBytes uint64
	tell := func(now time.Duration, why bpf.EndReason, wantStart time.Duration, wantAny bool) {
		t.Helper()
		flow.Why = why
		before := flow
		rest, any := o.since(&flow, now)
		if flow != before {
			t.Error("the flow was changed")
		}
		if any != wantAny || any && (rest.Start != wantStart || rest.Why != why) {
			t.Errorf("at %v: told %v of %+v, want %v from %v", now, any, rest, wantAny, wantStart)
		}
		if any {
			packets, bytes, replies, replyBytes = packets+rest.Packets, bytes+rest.Bytes, replies+rest.ReplyPackets, replyBytes+rest.ReplyBytes
		}
	}
	passes := func(last time.Duration, n uint64) {
		flow.LastSeen, flow.Packets, flow.Bytes, flow.ReplyPackets, flow.ReplyBytes = last, flow.Packets+n, flow.Bytes+100*n, flow.ReplyPackets+2*n, flow.ReplyBytes+3000*n
	}
	due := func(now time.Duration, want bool) {
		t.Helper()
		if got := o.due(flow.Key, flow.Start, now); got != want {
			t.Errorf("at %v: due %v, want %v", now, got, want)
		}
	}
	passes(104*s, 5)
	due(109*s, false)
	due(110*s, true)
	tell(110*s, bpf.EndActive, 100*s, true)
	o.scanned()
	due(119*s, false)
	due(120*s, true)
	tell(120*s, bpf.EndActive, 104*s, false) // nothing has come
	o.scanned()
	passes(125*s, 7)
	due(130*s, true)
	tell(130*s, bpf.EndActive, 104*s, true)
	o.scanned()
	passes(131*s, 1)
	tell(131*s, bpf.EndClosed, 125*s, true)
	if packets != flow.Packets || bytes != flow.Bytes || replies != flow.ReplyPackets || replyBytes != flow.ReplyBytes {
		t.Errorf("told of %d, %d, %d, %d of %+v", packets, bytes, replies, replyBytes, flow)
	}
	if len(o.told) != 0 {
		t.Errorf("%d flows are kept that are over", len(o.told))
	}

	// Another one in its place, of whose predecessor nobody has told the end.
	tell(200*s, bpf.EndActive, 100*s, true)
	flow.Start, flow.Packets, flow.Bytes, flow.ReplyPackets, flow.ReplyBytes = 300*s, 1, 60, 0, 0
	due(309*s, false)
	tell(311*s, bpf.EndActive, 300*s, true)

	// What a look at all flows does not find is forgotten.
	o.scanned()
	due(312*s, false)
	o.scanned()
	if len(o.told) != 1 {
		t.Errorf("%d flows are kept", len(o.told))
	}
	o.scanned()
	if len(o.told) != 0 {
		t.Errorf("%d flows are kept that are gone", len(o.told))
	}

	// Of its end only.
	o = newOngoing(0)
	due(10000*s, false)
	tell(10000*s, bpf.EndIdle, 300*s, true)
}

func TestOngoingInterval(t *testing.T) {
	for _, tc := range []struct {
		timeouts []time.Duration
		want     time.Duration
	}{
		{nil, 0}, {[]time.Duration{0}, 0}, {[]time.Duration{time.Second}, time.Second}, {[]time.Duration{0, time.Minute, time.Hour}, 15 * time.Second},
	} {
		a := &appliance{}
		for _, d := range tc.timeouts {
			a.ongoing = append(a.ongoing, newOngoing(d))
		}
		if got := a.ongoingInterval(); got != tc.want {
			t.Errorf("%v: every %v, want %v", tc.timeouts, got, tc.want)
		}
	}
}
