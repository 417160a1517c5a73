package bpf

import (
	"context"
	"errors"
	"os"
	"reflect"
	"testing"
	"time"
)

// readEvents collects what is in the ring by now.
func (r *rig) readEvents() (list []Event) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	cancel2 := time.AfterFunc(2*eventPoll, cancel) // the ring is full already: this only bounds the reading
	defer cancel2.Stop()
	if err := r.ReadEvents(ctx, func(e *Event) { list = append(list, *e) }); err != nil {
		r.t.Fatal(err)
	}
	return list
}

func TestEventsOfFlows(t *testing.T) {
	r := ownRig(t, func(o *Options) {
		o.Rules = []Rule{{From: -1, Proto: ProtoUDP, Action: Drop}, {From: -1, Action: ToChain, Chain: 7}}
		o.Events = []EventKind{EventFlowBegan, EventDropped}
	})
	before := Now()
	for range 3 { // a flow begins once
		r.run(1, tcp4(t, "S", 0))
		r.run(0, tcp4Reply(t, "SA", 0))
	}
	r.run(0, tcp6(t, "S", 0))
	got := r.readEvents()
	if len(got) != 2 {
		t.Fatalf("%d events: %+v", len(got), got)
	}
	for i, want := range []Event{
		{Kind: EventFlowBegan, Key: flowOf(t, tcp4(t, "S", 0)), Port: 1, Chain: 7, Count: 1},
		{Kind: EventFlowBegan, Key: flowOf(t, tcp6(t, "S", 0)), Port: 0, Chain: 7, Count: 1},
	} {
		e := got[i]
		if age := e.Time - before; age < -20*time.Millisecond || age > time.Minute {
			t.Errorf("event %d is of %v, want just after %v", i, e.Time, before)
		}
		e.Time = 0
		if !reflect.DeepEqual(e, want) {
			t.Errorf("event %d is %+v, want %+v", i, e, want)
		}
	}
}

// What is told of changes while packets go by.
func TestSetEvents(t *testing.T) {
	r := ownRig(t, func(o *Options) {
		o.Rules = []Rule{{From: -1, Proto: ProtoUDP, Action: Drop}, {From: -1, Action: ToChain, Chain: 7}}
	})
	for _, c := range []struct {
		kinds []EventKind
		want  int
	}{{nil, 0}, {[]EventKind{EventFlowBegan}, 1}, {[]EventKind{EventDropped}, 1}, {[]EventKind{EventFlowBegan, EventDropped}, 2}, {nil, 0}} {
		if err := r.SetEvents(c.kinds); err != nil {
			t.Fatal(err)
		}
		r.run(0, tcp4(t, "S", 0))
		r.run(0, udp4(t, 0))
		if n, err := r.Evict([]FlowKey{flowOf(t, tcp4(t, "S", 0))}, func(*EndedFlow) {}); n != 1 || err != nil {
			t.Fatalf("%d flows are forgotten, %v", n, err)
		}
		if got := r.readEvents(); len(got) != c.want {
			t.Errorf("%v: %d events, want %d: %+v", c.kinds, len(got), c.want, got)
		}
	}
	_ = r.Close()
	if err := r.SetEvents(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// Drops are sampled: however many there are, few are told of, and they stand for the others.
func TestEventsOfDropsAreSampled(t *testing.T) {
	r := ownRig(t, func(o *Options) {
		o.Rules = []Rule{{From: -1, Proto: ProtoUDP, Action: Drop}, {From: -1, Action: ToChain}}
		o.Events = []EventKind{EventDropped}
	})
	const n = 2000
	start := time.Now()
	for range n {
		if got, want := r.run(0, udp4(t, 0)).fate(), (fate{VerdictDrop, "rule_drop"}); got != want {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	took := time.Since(start)
	got := r.readEvents()
	total := 0
	for _, e := range got {
		if e.Kind != EventDropped || e.Reason.String() != "rule_drop" || e.Key != flowOf(t, udp4(t, 0)) {
			t.Fatalf("got %+v", e)
		}
		total += int(e.Count)
	}
	// On some CPUs the last ones may not have been told of yet.
	if most := (int(took/(10*time.Millisecond)) + 2) * 64; len(got) == 0 || len(got) > most || total > n {
		t.Errorf("%d events in %v stand for %d drops of %d", len(got), took, total, n)
	}
	r.run(0, tcp4(t, "S", 0))
	for _, e := range r.readEvents() {
		if e.Kind == EventFlowBegan {
			t.Errorf("nobody wanted %+v", e)
		}
	}
}

// A ring that nobody reads loses events, counts them, and does no harm.
func TestEventsLost(t *testing.T) {
	r := ownRig(t, func(o *Options) {
		o.Rules, o.MaxFlows = all, 1<<15
		o.Events = []EventKind{EventFlowBegan}
	})
	packet := udp4(t, 0)
	const flows = 1 << 15 // 64 bytes and a header of 8 each: more than 1 MiB
	for i := range flows {
		packet[34], packet[35] = byte(i>>8), byte(i) // source port
		if got := r.run(0, packet).fate(); got != toSocket {
			t.Fatalf("flow %d: %v", i, got)
		}
	}
	lost, err := r.LostEvents()
	if err != nil {
		t.Fatal(err)
	}
	if got := len(r.readEvents()); lost == 0 || uint64(got)+lost != flows {
		t.Errorf("%d events were read and %d lost, want %d in all", got, lost, flows)
	}
}

func TestReadEventsOfClosed(t *testing.T) {
	r := ownRig(t, nil)
	r.Close()
	if err := r.ReadEvents(t.Context(), nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := r.LostEvents(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// What the gate drops is sampled as well.
func TestEventsOfTheGate(t *testing.T) {
	r := ownRig(t, func(o *Options) { o.Rules, o.Events = all, []EventKind{EventDropped} })
	packet := udp4(t, 0)
	r.change(GateChange{Add: deny(flowOf(t, packet).Src.String() + "/32")})
	if got, want := r.run(0, packet).fate(), (fate{VerdictDrop, "gate_denied"}); got != want {
		t.Fatalf("got %v, want %v", got, want)
	}
	got := r.readEvents()
	if len(got) != 1 || got[0].Reason.String() != "gate_denied" || got[0].Key != flowOf(t, packet) || got[0].Count != 1 {
		t.Errorf("got %+v", got)
	}
}
