package pipeline

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"penstock/internal/wire"
)

// noteTap keeps what it is shown, in records by number.
type noteTap struct {
	names   []string
	seen    []string // "point port" of each record
	outcome []Outcome
	turns   int
	holds   func(f *wire.Flow) bool
	held    map[wire.Flow]bool // to whether they are dropped
}

func (t *noteTap) Show(point int, p *Packet, now int64) int {
	if now == 0 {
		return -1
	}
	t.seen = append(t.seen, fmt.Sprintf("%s %d", t.names[point], p.Flow.SrcPort))
	t.outcome = append(t.outcome, Outcome{})
	return len(t.seen) - 1
}

func (t *noteTap) Decide(record int, o Outcome) { t.outcome[record] = o }
func (t *noteTap) EndTurn()                     { t.turns++ }

func (t *noteTap) Hold(f *wire.Flow, drop bool, _ int64) bool {
	if t.holds == nil || !t.holds(f) {
		return false
	}
	k, _ := f.Canonical()
	t.held[k] = drop
	return true
}

func (t *noteTap) Pass(p *Packet) (held, drop bool) {
	k, _ := p.Flow.Canonical()
	drop, held = t.held[k]
	return held, drop
}

// lines are the records, sorted.
func (t *noteTap) lines() []string {
	var l []string
	for i, s := range t.seen {
		o := t.outcome[i]
		s += " " + o.Verdict.String()
		if o.Verdict == Drop {
			s += " " + o.Reason.String()
		}
		if o.Chain != NoChain {
			s += fmt.Sprintf(" by %d", o.Stage)
		}
		if o.Held {
			s += " held"
		}
		if o.Made {
			s += " made"
		}
		l = append(l, s)
	}
	slices.Sort(l)
	t.seen, t.outcome = nil, nil
	return l
}

var everyPoint = []TapPoint{
	{Port: 0}, {Port: 0, Sent: true}, {Port: 1}, {Port: 1, Sent: true},
	{Port: NoPort, Chain: "test"}, {Port: NoPort, Chain: "test", After: true},
	{Port: NoPort, Chain: "test", Stage: 1}, {Port: NoPort, Chain: "test", Stage: 1, After: true},
}

var pointNames = []string{"lan:rx", "lan:tx", "wan:rx", "wan:tx", "0:before", "0:after", "1:before", "1:after"}

func TestTapPoints(t *testing.T) {
	first := stageFunc(func(b *Batch) {
		for p := range b.Live() {
			switch p.Flow.SrcPort {
			case 1:
				p.Drop(reasonTest)
			case 2:
				p.Consume()
			case 3:
				p.Forward(0)
			case 4:
				p.Forward(9)
			case 5: // no verdict
			case 6:
				p.Flow.SrcPort = 66 // as a stage that changes bytes
				p.Continue()
			default:
				p.Continue()
			}
		}
	})
	var b *bench
	second := stageFunc(func(batch *Batch) {
		for p := range batch.Live() {
			if p.Flow.SrcPort == 7 {
				made := b.Alloc()
				made.SetView(made.Offset(), 60)
				made.Out = 0
				b.Emit(made)
			}
			if p.Flow.SrcPort == 8 {
				panic("a bug")
			}
			p.Continue()
		}
	})
	b = newBench(t, 256, first, second)
	b.o.Default = 0
	tap := &noteTap{names: pointNames}
	spec := &TapSpec{Tap: tap, Points: everyPoint}
	b.AddTap(spec)
	b.SetChains(b.Chains(), []bool{false}) // as a reload does
	for port := uint16(1); port <= 7; port++ {
		b.lan.Inject(udp(port, 10))
	}
	b.lan.Inject(udp(20, 10)[:20])
	b.turn(t)
	want := `
0:after 1 drop test_only by 0
0:after 2 consume by 0
0:after 3 forward by 0
0:after 4 drop no_port by 0
0:after 5 drop no_verdict by 0
0:after 66 forward by 1
0:after 7 forward by 1
0:before 1 drop test_only by 0
0:before 2 consume by 0
0:before 3 forward by 0
0:before 4 drop no_port by 0
0:before 5 drop no_verdict by 0
0:before 6 forward by 1
0:before 7 forward by 1
1:after 66 forward by 1
1:after 7 forward by 1
1:before 66 forward by 1
1:before 7 forward by 1
lan:rx 0 drop truncated_ipv4
lan:rx 1 drop test_only by 0
lan:rx 2 consume by 0
lan:rx 3 forward by 0
lan:rx 4 drop no_port by 0
lan:rx 5 drop no_verdict by 0
lan:rx 6 forward by 1
lan:rx 7 forward by 1
lan:tx 0 forward made
lan:tx 3 forward by 0
wan:tx 66 forward by 1
wan:tx 7 forward by 1`
	if got := strings.Join(tap.lines(), "\n"); got != want[1:] {
		t.Errorf("got\n%s\nwant%s", got, want)
	}
	if tap.turns != 1 {
		t.Errorf("%d ends of a turn", tap.turns)
	}
	b.lan.Inject(udp(8, 10))
	b.turn(t)
	want = "0:after 8 drop stage_panic by 1\n0:before 8 drop stage_panic by 1\n1:before 8 drop stage_panic by 1\nlan:rx 8 drop stage_panic by 1"
	if got := strings.Join(tap.lines(), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// What a port refuses is dropped.
	b.wan.limit = 0
	b.lan.Inject(udp(9, 10))
	b.turn(t)
	if got := tap.lines(); !slices.Contains(got, "wan:tx 9 drop tx_full") {
		t.Errorf("got %q", got)
	}
	b.RemoveTap(spec)
	b.lan.Inject(udp(1, 10))
	b.turn(t)
	if len(tap.seen) > 0 || b.taps != nil || b.Chains()[0].taps != nil {
		t.Errorf("a tap that is gone has seen %q", tap.seen)
	}
	b.check(t)
}

// offloads keeps what it is handed.
type offloads struct{ flows []ReleasedFlow }

func (o *offloads) Offload(flows []ReleasedFlow) {
	for i := range flows {
		flows[i].Taken = true
	}
	o.flows = append(o.flows, flows...)
}

func TestTapHoldsFlows(t *testing.T) {
	shown := 0
	b := newBench(t, 64, stageFunc(func(b *Batch) {
		for p := range b.Live() {
			shown++
			if p.Continue(); p.Flow.SrcPort == 3 {
				p.Drop(reasonTest)
			}
			p.Release()
		}
	}))
	b.o.Default = 0
	off := &offloads{}
	b.releases = newReleases(off, b.clock)
	tap := &noteTap{names: pointNames, held: map[wire.Flow]bool{}, holds: func(f *wire.Flow) bool { return f.SrcPort != 1 }}
	spec := &TapSpec{Tap: tap, Points: everyPoint}
	b.AddTap(spec)
	for range 2 {
		for port := uint16(1); port <= 3; port++ {
			b.lan.Inject(udp(port, 10))
		}
		b.turn(t)
	}
	if len(off.flows) != 1 || off.flows[0].Flow.SrcPort != 1 || shown != 4 {
		t.Errorf("offloaded %+v, the stage was shown %d packets", off.flows, shown)
	}
	got := tap.lines()
	for _, want := range []string{"lan:rx 2 forward held", "wan:tx 2 forward held", "lan:rx 3 drop offloaded_drop held"} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is missing in %q", want, got)
		}
	}
	// Another tap takes a flow on; one that nobody holds leaves as ever.
	other := &noteTap{names: pointNames, held: map[wire.Flow]bool{}, holds: func(f *wire.Flow) bool { return f.SrcPort == 2 || f.DstPort == 2 }}
	b.AddTap(&TapSpec{Tap: other})
	for k, drop := range tap.held {
		if got, want := b.HandOn(spec, &k, drop), k.SrcPort == 2 || k.DstPort == 2; got != want {
			t.Errorf("%v handed on: %v", k, got)
		}
	}
	b.RemoveTap(spec)
	off.flows = nil
	for port := uint16(2); port <= 3; port++ {
		b.lan.Inject(udp(port, 10))
	}
	b.turn(t)
	if len(off.flows) != 0 { // released just now, within releaseAgain of nothing: 3 is new
		if off.flows[0].Flow.SrcPort != 3 || !off.flows[0].Drop {
			t.Errorf("offloaded %+v", off.flows)
		}
	} else {
		t.Error("a flow that is held no more stays in user space")
	}
	b.check(t)
}
