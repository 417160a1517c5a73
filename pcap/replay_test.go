package pcap_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pcap"
	"penstock/pipeline"
	pt "penstock/pipeline/pipelinetest"
)

// probe is a stage that notes what it sees, drops UDP and answers SYNs to port
// 81 with a packet of its own.
type probe struct {
	env   *pipeline.Env
	notes *[]string
	flows map[wire.Flow]int
	do    string
}

var reasonProbe = pipeline.DefineReason("probe_udp", "the packet is UDP")

func (s *probe) note(format string, args ...any) {
	if s.notes != nil {
		*s.notes = append(*s.notes, fmt.Sprintf("%d: ", s.env.Worker)+fmt.Sprintf(format, args...))
	}
}

func (s *probe) Process(b *pipeline.Batch) {
	for p := range b.Live() {
		s.note("packet %d at %d", p.Time, s.env.Now())
		key, _ := p.Flow.Canonical()
		s.flows[key]++
		switch {
		case s.do == "panic":
			panic("a stage panics")
		case p.Proto == wire.ProtoUDP:
			p.Drop(reasonProbe)
		case p.HasL4 && p.Flow.DstPort == 81:
			p.Consume()
			if a := s.env.Emitter.Alloc(); a != nil {
				a.SetView(a.Offset(), p.Len())
				copy(a.Bytes(), p.Bytes())
				a.Out = p.In
				s.env.Emitter.Emit(a)
			}
		case p.Proto == wire.ProtoICMP:
			p.Forward(9)
		case s.flows[key]%3 == 0:
			p.Bytes()[0] ^= 0x10 // each flow's third packet is changed
			p.Continue()
		default:
			p.Continue()
		}
	}
	s.env.Recorder.Record("batch", s.env.Now())
}

func (s *probe) Tick(now int64) { s.note("tick %d", now) }
func (s *probe) Close() error   { s.note("close"); return nil }

// chain returns a chain of one probe. do is what it does wrong, or the depth
// of the chain.
func chain(do string, notes *[]string) *pipeline.ChainSpec {
	var reg pipeline.Registry
	if do == "terminate" {
		pipeline.Register(&reg, pipeline.Descriptor[struct{}]{
			Kind: "tcp",
			NewBoundary: func(struct{}, *pipeline.Env, []pipeline.StreamStage, []string) (pipeline.Stage, error) {
				return nil, errors.New("must not be built")
			},
			Depth: func(struct{}, pipeline.Need) (pipeline.Depth, string) {
				return pipeline.DepthTerminate, "it is told to"
			},
		})
		k := reg.Lookup("tcp")
		return &pipeline.ChainSpec{Name: "web", Stages: []pipeline.StageSpec{{Kind: k, Config: k.NewConfig()}}}
	}
	pipeline.Register(&reg, pipeline.Descriptor[struct{}]{
		Kind: "probe", Affinity: true, Reasons: []pipeline.Reason{reasonProbe},
		New: func(_ struct{}, e *pipeline.Env) (pipeline.Stage, error) {
			if do == "build" {
				return nil, errors.New("no probe today")
			}
			return &probe{env: e, notes: notes, flows: map[wire.Flow]int{}, do: do}, nil
		},
	})
	k := reg.Lookup("probe")
	return &pipeline.ChainSpec{Name: "probes", Stages: []pipeline.StageSpec{{Kind: k, Config: k.NewConfig(), Shared: &pipeline.Shared{}}}}
}

// connections returns a capture of n interleaved connections, all of them in
// the given number of rounds.
func connections(n, rounds int) []byte {
	var frames [][]byte
	for round := range rounds {
		for i := range n {
			c, s := fmt.Sprintf("10.0.%d.%d:%d", i/200, 1+i%200, 1000+i), "192.0.2.1:80"
			if i%7 == 6 {
				s = "192.0.2.1:81"
			}
			switch {
			case i%5 == 4:
				frames = append(frames, pt.UDP(c, s, pt.PayloadLen(i)))
			case round == 0:
				frames = append(frames, pt.TCP(c, s, wire.FlagSYN, 1))
			case round%2 == 1:
				frames = append(frames, pt.TCP(s, c, wire.FlagSYN|wire.FlagACK, 1, pt.PayloadLen(i)))
			default:
				frames = append(frames, pt.TCP(c, s, wire.FlagACK, 1, pt.PayloadLen(i)))
			}
		}
		frames = append(frames, pt.ARP("10.0.0.1", "10.0.0.2"), pt.Ping("10.0.0.1", "192.0.2.1", 1, uint16(round)), frames[0][:40])
	}
	return pt.Capture(7*time.Millisecond, frames...)
}

func replay(t testing.TB, o pcap.ReplayOptions) (pcap.Result, []byte, error) {
	t.Helper()
	var out bytes.Buffer
	o.Out = &out
	res, err := pcap.Replay(context.Background(), o)
	dropped := uint64(0)
	for _, n := range res.Dropped {
		dropped += n
	}
	if res.Packets != res.Forwarded+res.Consumed+dropped {
		t.Errorf("packets have disappeared: %+v", res)
	}
	return res, out.Bytes(), err
}

// TestReplayAccounts checks the whole result of one replay.
func TestReplayAccounts(t *testing.T) {
	in := connections(70, 4)
	outcomes := map[string]int{}
	res, out, err := replay(t, pcap.ReplayOptions{In: bytes.NewReader(in), Name: "in", Chain: chain("", nil), Outcome: func(o *pcap.Outcome) {
		outcomes[o.Verdict.String()]++
		if o.Verdict == pipeline.Drop {
			outcomes[o.Reason.String()]++
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	// Each of 4 rounds: 70 connections, 14 of them UDP (i%5 == 4), 8 others to
	// port 81 (i%7 == 6 and not UDP: 10 - 2), an ARP, a ping and a packet that
	// is cut in its IP header. Only half of the rounds go towards port 81.
	want := pcap.Result{
		Packets: 4 * 73, Forwarded: 4*(70-14-8) + 2*8 + 4, Consumed: 2 * 8, Emitted: 2 * 8, Flows: 70 + 1,
		Dropped: map[string]uint64{"probe_udp": 4 * 14, "no_port": 4, "truncated_ipv4_packet": 4},
	}
	if res.Packets != want.Packets || res.Forwarded != want.Forwarded || res.Consumed != want.Consumed || res.Emitted != want.Emitted ||
		res.Flows != want.Flows || !maps.Equal(res.Dropped, want.Dropped) {
		t.Errorf("%+v\nwant %+v", res, want)
	}
	if res.First != "2026-01-02T03:04:05Z" || res.Last != "2026-01-02T03:04:07.037Z" || res.SpanSeconds != 2.037 || res.Error != "" {
		t.Errorf("from %s to %s, %v s, error %q", res.First, res.Last, res.SpanSeconds, res.Error)
	}
	if s := res.Chain; s == nil || s.Name != "probes" || len(s.Stages) != 1 || s.Stages[0].Packets != 4*(70+1) {
		t.Errorf("chain %+v", s)
	}
	list, err := readAll("out", bytes.NewReader(out))
	if err != io.EOF || len(list) != int(res.Forwarded+res.Emitted) {
		t.Errorf("%d packets in the output (%v)", len(list), err)
	}
	wantOutcomes := map[string]int{
		"forward": int(res.Forwarded + res.Emitted), "consume": 16, "drop": 64, "probe_udp": 56, "no_port": 4, "truncated_ipv4_packet": 4,
	}
	if !maps.Equal(outcomes, wantOutcomes) {
		t.Errorf("outcomes %v, want %v", outcomes, wantOutcomes)
	}
	b, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{`"packets":292`, `"bytes":`, `"forwarded":212`, `"consumed":16`, `"dropped":{`, `"flows":71`, `"seconds":`} {
		if !bytes.Contains(b, []byte(key)) {
			t.Errorf("%s is not in %s", key, b)
		}
	}
}

// TestReplayIsDeterministic replays twice, at another speed, and with several
// workers: the result is the same, and so is each flow's output.
func TestReplayIsDeterministic(t *testing.T) {
	in := connections(70, 6)
	run := func(workers int, speed float64) (pcap.Result, []byte, []string) {
		var notes []string
		res, out, err := replay(t, pcap.ReplayOptions{
			In: bytes.NewReader(in), Name: "in", Chain: chain("", &notes), Workers: workers, Speed: speed,
		})
		if err != nil {
			t.Fatal(err)
		}
		res.Seconds = 0
		return res, out, notes
	}
	first, out, notes := run(1, 0)
	for _, speed := range []float64{0, 50} {
		again, outAgain, notesAgain := run(1, speed)
		if !reflect.DeepEqual(first, again) || !bytes.Equal(out, outAgain) || !slices.Equal(notes, notesAgain) {
			t.Errorf("at speed %v: %+v, before %+v; outputs equal: %v, notes equal: %v", speed, again, first, bytes.Equal(out, outAgain), slices.Equal(notes, notesAgain))
		}
	}
	for _, workers := range []int{2, 3, 8} {
		several, outSeveral, notesSeveral := run(workers, 0)
		if several.Chain.Stages[0].Packets != first.Chain.Stages[0].Packets || several.Forwarded != first.Forwarded ||
			several.Flows != first.Flows || !maps.Equal(several.Dropped, first.Dropped) {
			t.Errorf("%d workers: %+v, one: %+v", workers, several, first)
		}
		if a, b := byFlow(t, out), byFlow(t, outSeveral); !reflect.DeepEqual(a, b) {
			t.Errorf("%d workers: the output of a flow differs", workers)
		}
		used := map[byte]bool{}
		for _, n := range notesSeveral {
			if strings.Contains(n, "packet") {
				used[n[0]] = true
			}
		}
		if len(used) != workers {
			t.Errorf("%d of %d workers had packets", len(used), workers)
		}
		_, outAgain, notesAgain := run(workers, 0)
		if !bytes.Equal(outSeveral, outAgain) || !slices.Equal(notesSeveral, notesAgain) {
			t.Errorf("%d workers: two replays differ", workers)
		}
	}
}

// byFlow returns the packets of a capture by flow, and whether times go back.
func byFlow(t *testing.T, capture []byte) map[wire.Flow][]string {
	t.Helper()
	list, err := readAll("out", bytes.NewReader(capture))
	if err != io.EOF {
		t.Fatal(err)
	}
	flows := map[wire.Flow][]string{}
	last := int64(0)
	for _, rec := range list {
		if rec.Time < last {
			t.Errorf("packet %d: the time goes back", rec.Number)
		}
		last = rec.Time
		var h wire.Headers
		h.Parse(rec.Data)
		f, _ := h.Flow(rec.Data)
		f, _ = f.Canonical()
		flows[f] = append(flows[f], fmt.Sprintf("%d %d %x", rec.Time, rec.Interface, rec.Data))
	}
	return flows
}

// TestReplayClock says what time it is for the stages.
func TestReplayClock(t *testing.T) {
	frame := pt.TCP("10.0.0.1:1", "10.0.0.2:2", wire.FlagSYN, 1)
	capture := func(times ...int64) []byte {
		var b bytes.Buffer
		w, err := pcap.NewWriter(&b, pcap.WriterOptions{Interfaces: []pcap.Interface{{}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, ts := range times {
			if err := w.WritePacket(0, ts, len(frame), frame, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	const ms = int64(time.Millisecond)
	rows := []struct {
		name  string
		times []int64 // ms
		want  []string
	}{
		{"a tick every 100 ms", []int64{1000, 1050, 1120, 1330}, []string{
			"tick 1000", "packet 1000 at 1050", "packet 1050 at 1050",
			"tick 1100", "packet 1120 at 1120", "tick 1200", "tick 1300", "packet 1330 at 1330", "close",
		}},
		{"time that goes back", []int64{1000, 900, 1010}, []string{
			"tick 1000", "packet 1000 at 1010", "packet 1000 at 1010", "packet 1010 at 1010", "close",
		}},
		{"nothing", nil, []string{"close"}},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			var notes []string
			times := slices.Clone(r.times)
			for i := range times {
				times[i] *= ms
			}
			if _, _, err := replay(t, pcap.ReplayOptions{In: bytes.NewReader(capture(times...)), Chain: chain("", &notes)}); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, n := range notes {
				got = append(got, strings.ReplaceAll(n[3:], "000000", ""))
			}
			if !slices.Equal(got, r.want) {
				t.Errorf("got  %q\nwant %q", got, r.want)
			}
		})
	}
	t.Run("a year without packets", func(t *testing.T) {
		var notes []string
		year := int64(365 * 24 * time.Hour)
		if _, _, err := replay(t, pcap.ReplayOptions{In: bytes.NewReader(capture(ms, ms+year, 2*ms+year)), Chain: chain("", &notes)}); err != nil {
			t.Fatal(err)
		}
		var ticks []int64
		for _, n := range notes {
			var at int64
			if c, _ := fmt.Sscanf(n, "0: tick %d", &at); c == 1 {
				ticks = append(ticks, at)
			}
		}
		if len(ticks) < 10 || len(ticks) > 70 || !slices.IsSorted(ticks) || ticks[len(ticks)-1] < year-int64(time.Hour) {
			t.Errorf("%d ticks: %v", len(ticks), ticks)
		}
	})
}

// TestReplayRefuses lists what cannot be replayed, and why.
func TestReplayRefuses(t *testing.T) {
	in := connections(3, 1)
	rows := []struct {
		name string
		o    pcap.ReplayOptions
		want string
	}{
		{"terminate", pcap.ReplayOptions{Chain: chain("terminate", nil)}, `replay: chain "web" terminates connections (stage tcp): want closed-loop replay`},
		{"workers", pcap.ReplayOptions{Workers: 65}, "replay: workers must be 1 to 64, got 65"},
		{"no workers", pcap.ReplayOptions{Workers: -1}, "replay: workers must be 1 to 64, got -1"},
		{"speed", pcap.ReplayOptions{Speed: -1}, "replay: speed must be 0 or more, got -1"},
		{"no file", pcap.ReplayOptions{Name: "testdata/none.pcap"}, "open capture: open testdata/none.pcap: no such file or directory"},
		{"a directory", pcap.ReplayOptions{Name: "testdata"}, "read capture testdata: header: cut short: 0 of 4 bytes: read testdata: is a directory"},
		{"a stage that cannot be built", pcap.ReplayOptions{Chain: chain("build", nil)}, `replay: build chain "probes", stage 1 (probe): no probe today`},
		{"an output that fails", pcap.ReplayOptions{Out: &full{}}, "replay in: write capture: the disk is full"},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			if r.o.Name == "" {
				r.o.Name, r.o.In = "in", bytes.NewReader(in)
			}
			res, err := pcap.Replay(context.Background(), r.o)
			if err == nil || err.Error() != r.want {
				t.Errorf("got  %v\nwant %s", err, r.want)
			}
			if res.Dropped == nil || res.Error != fmt.Sprint(err) {
				t.Errorf("result %+v", res)
			}
		})
	}
}

// TestReplayOfCutCapture delivers what is whole and reports the rest.
func TestReplayOfCutCapture(t *testing.T) {
	in := connections(10, 2)
	res, _, err := replay(t, pcap.ReplayOptions{In: bytes.NewReader(in[:len(in)-50]), Name: "in", Chain: chain("", nil)})
	var re *pcap.ReadError
	if !errors.As(err, &re) || res.Packets != 25 || re.Packet != 26 || res.Error != err.Error() {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestReplayStops ends a replay from outside, also while it waits for time to
// pass.
func TestReplayStops(t *testing.T) {
	frame := pt.UDP("10.0.0.1:1", "10.0.0.2:2")
	in := pt.Capture(time.Hour, frame, frame, frame)
	ctx, cancel := context.WithCancelCause(context.Background())
	seen := 0
	res, err := pcap.Replay(ctx, pcap.ReplayOptions{In: bytes.NewReader(in), Name: "in", Speed: 1, Outcome: func(*pcap.Outcome) {
		seen++
		go cancel(errors.New("enough"))
	}})
	if err == nil || !strings.HasPrefix(err.Error(), "replay in: stopped after ") || !strings.HasSuffix(err.Error(), " packets: enough") {
		t.Error(err)
	}
	if int(res.Packets) != seen || seen == 0 || seen > 2 || res.Forwarded != res.Packets {
		t.Errorf("%d packets were seen, %+v", seen, res)
	}
}

// TestReplaySpeed waits for the capture's own time.
func TestReplaySpeed(t *testing.T) {
	frame := pt.UDP("10.0.0.1:1", "10.0.0.2:2")
	in := pt.Capture(100*time.Millisecond, frame, frame, frame, frame)
	res, err := pcap.Replay(context.Background(), pcap.ReplayOptions{In: bytes.NewReader(in), Name: "in", Speed: 2})
	if err != nil || res.Seconds < 0.15 || res.Seconds > 5 {
		t.Errorf("0.3 s at twice the speed took %v s (%v)", res.Seconds, err)
	}
}

// TestReplayPanic shows that a stage that panics costs packets, not the
// process, and that they are accounted for.
func TestReplayPanic(t *testing.T) {
	res, _, err := replay(t, pcap.ReplayOptions{In: bytes.NewReader(connections(10, 2)), Name: "in", Chain: chain("panic", nil)})
	if err != nil || res.Dropped["stage_panic"] != 22 {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestReplayHooks sees progress and events.
func TestReplayHooks(t *testing.T) {
	in := connections(40, 4)
	var rec recorder
	var last pcap.Progress
	res, err := pcap.Replay(context.Background(), pcap.ReplayOptions{
		In: bytes.NewReader(in), Name: "in", Chain: chain("", nil), Recorder: &rec, Progress: func(p pcap.Progress) { last = p },
	})
	if err != nil || rec < 3 {
		t.Errorf("%d events, %v", rec, err)
	}
	if last.Packets != res.Packets || last.Offset != int64(len(in)) || last.Time.Format(time.RFC3339Nano) != res.Last {
		t.Errorf("last progress %+v, result %+v", last, res)
	}
}

type recorder int

func (r *recorder) Enabled(string) bool { return true }
func (r *recorder) Record(string, any)  { *r++ }
