package closedloop_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pcap"
	"penstock/pcap/closedloop"
	"penstock/pipeline"
	"penstock/pipeline/fault"
	"penstock/pipeline/pipelinetest"
	"penstock/stages/tcp"
)

const step = 100 * time.Millisecond

// dialogue returns a capture of one connection.
func dialogue(edit func(k *talk)) []byte {
	k := newTalk(0, pipelinetest.SACKPermitted())
	edit(k)
	return pipelinetest.Capture(step, k.frames...)
}

const ack, psh, fin, rst, syn = wire.FlagACK, wire.FlagPSH, wire.FlagFIN, wire.FlagRST, wire.FlagSYN

// TestStatuses: what becomes of connections that are not simply whole.
func TestStatuses(t *testing.T) {
	whole := func(k *talk) {
		k.send(0, ack|psh, 100)
		k.send(1, ack|psh, 2000%1400)
		k.ends(0)
	}
	cut := func(from, to int) func(k *talk) {
		return func(k *talk) { whole(k); k.frames = append(k.frames[:from:from], k.frames[min(to, len(k.frames)):]...) }
	}
	for _, tc := range []struct {
		name   string
		edit   func(k *talk)
		o      closedloop.Options
		status string
		why    string
		end    string
	}{
		{"whole", whole, closedloop.Options{}, closedloop.Equal, "", "fin"},
		{"no SYN", cut(0, 2), closedloop.Options{}, closedloop.NotPlayed, "no_syn", ""},
		{"SYN-ACK only", cut(0, 1), closedloop.Options{}, closedloop.Equal, "", "fin"},
		{"no SYN-ACK", cut(1, 2), closedloop.Options{}, closedloop.NotPlayed, "no_syn_ack", ""},
		{"no answer", cut(1, 99), closedloop.Options{}, closedloop.NotPlayed, "no_answer", ""},
		{"gap", cut(3, 4), closedloop.Options{}, closedloop.NotPlayed, "gap", ""},
		{"not to its end", cut(5, 99), closedloop.Options{}, closedloop.Equal, "", "fin"},
		{"too large", whole, closedloop.Options{MaxMemory: 50}, closedloop.NotPlayed, "memory_limit", ""},
		{"reset by the client", func(k *talk) { k.send(1, ack|psh, 900); k.send(0, rst|ack, 0) }, closedloop.Options{}, closedloop.Equal, "", "client_reset"},
		{"reset by the server", func(k *talk) { k.send(0, ack|psh, 900); k.send(1, rst|ack, 0) }, closedloop.Options{}, closedloop.Equal, "", "server_reset"},
		{"refused", func(k *talk) {
			k.frames = k.frames[:1]
			k.seq[1] = 0
			k.send(1, rst|ack, 0)
		}, closedloop.Options{}, closedloop.Equal, "", "refused"},
		{"bad checksum", func(k *talk) {
			whole(k)
			k.frames[3][len(k.frames[3])-1] ^= 1
		}, closedloop.Options{}, closedloop.NotPlayed, "bad_checksum", ""},
		{"bad checksum, accepted", func(k *talk) {
			whole(k)
			k.frames[3][len(k.frames[3])-1] ^= 1
		}, closedloop.Options{AcceptBadChecksums: true}, closedloop.Equal, "", "fin"},
		{"keep-alives", func(k *talk) {
			k.send(0, ack|psh, 100)
			k.seq[0]--
			k.send(0, ack, 1)
			k.ends(0)
		}, closedloop.Options{}, closedloop.Equal, "", "fin"},
		{"both at once", func(k *talk) {
			// Each end sends before it has heard the other.
			k.send(0, ack|psh, 700)
			k.frames[3] = pipelinetest.TCP(k.client, k.server, ack, k.seq[0]-700, pipelinetest.Ack(k.seq[1]), pipelinetest.PayloadLen(700))
			k.frames = append(k.frames, pipelinetest.TCP(k.server, k.client, ack, k.seq[1], pipelinetest.Ack(k.seq[0]-700), pipelinetest.PayloadLen(300)))
			k.seq[1] += 300
			k.ends(2)
		}, closedloop.Options{}, closedloop.Equal, "", "fin"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.o.Name, tc.o.In, tc.o.Chain = tc.name, bytes.NewReader(dialogue(tc.edit)), chain(t, "tcp")
			res, _ := run(t, tc.o)
			if len(res.List) != 1 {
				t.Fatalf("%d connections: %+v", len(res.List), res.List)
			}
			if f := res.List[0]; f.Status != tc.status || f.Why != tc.why || f.End != tc.end || f.Relaxed != 0 {
				t.Errorf("got %+v", f)
			}
		})
	}
}

// TestDenied: what a stage refuses is no difference, and the reason is told.
func TestDenied(t *testing.T) {
	capture := conversations(t, 4, 10)
	reg := streamRegistry(t)
	for _, kind := range []string{"deny", "reply", "deny without terminating"} {
		const reason = "closedloop_test_denied"
		spec := chain(t, "tcp")
		name, _, inspect := strings.Cut(kind, " ")
		if inspect {
			spec.Stages[0].Config.(*tcp.Config).Depth = "inspect"
		}
		k := reg.Lookup(name)
		spec.Stages = append(spec.Stages, pipeline.StageSpec{Kind: k, Config: k.NewConfig()})
		res, _ := run(t, closedloop.Options{Name: kind, In: bytes.NewReader(capture), Chain: spec})
		if res.Denied == 0 || res.Differs != 0 || res.DeniedBy[reason] != res.Denied {
			t.Errorf("%s: got %+v", kind, summary(res))
			describe(t, res, func(f *closedloop.Flow) bool { return f.Status == closedloop.Denied })
		}
	}
	k := reg.Lookup("wall")
	spec := &pipeline.ChainSpec{Name: "test", Stages: append([]pipeline.StageSpec{{Kind: k, Config: k.NewConfig()}}, chain(t, "tcp").Stages...)}
	res, _ := run(t, closedloop.Options{Name: "wall", In: bytes.NewReader(capture), Chain: spec})
	for _, f := range res.List {
		if f.Status != closedloop.Denied || f.Why != "closedloop_test_wall" || f.By != "wall" || f.Dropped == 0 {
			t.Errorf("got %+v", f)
		}
	}
	if res.Chain.Stages[0].Kind != "wall" || res.Dropped["closedloop_test_wall"] == 0 {
		t.Errorf("got %+v", res.Chain)
	}
}

// TestChanged: a stage that changes bytes makes a difference, and where is told.
func TestChanged(t *testing.T) {
	f := fault.Options{Corrupt: 1, FixChecksum: true, On: fault.OnReceive}
	res, _ := run(t, closedloop.Options{Name: "changed", In: bytes.NewReader(dialogue(func(k *talk) {
		k.send(0, ack|psh, 1000)
		k.ends(0)
	})), Chain: chain(t, "tcp"), Faults: f})
	c := res.List[0]
	if c.Status != closedloop.Differs || c.Why != "bytes" || c.ToServer.Differs == nil || c.ToServer.Received != 1000 {
		t.Errorf("got %+v", c)
	}
}

// TestMTU: the ends and the netstack adapt to wires with a smaller MTU that
// tell so.
func TestMTU(t *testing.T) {
	f := fault.Options{MTU: 900, PacketTooBig: true}
	res, _ := run(t, closedloop.Options{Name: "mtu", In: bytes.NewReader(dialogue(func(k *talk) {
		for range 5 {
			k.send(0, ack|psh, 1400)
			k.send(1, ack|psh, 1400)
		}
		k.ends(0)
	})), Chain: chain(t, "tcp"), Faults: f})
	if c := res.List[0]; c.Status != closedloop.Equal || res.Faults["client"]["rx_fault_mtu"] == 0 {
		t.Errorf("got %+v, %v", c, res.Faults)
	}
}

// TestSpeed: the pauses of the capture are kept, in virtual time, and its clock
// is what the stages see.
func TestSpeed(t *testing.T) {
	capture := dialogue(func(k *talk) {
		for range 10 {
			k.send(0, ack|psh, 10)
			k.send(1, ack|psh, 10)
		}
		k.ends(0)
	})
	for speed, want := range map[float64]float64{0: 0.1, 1: 2.3, 2: 1.15} {
		var clock pcap.Clock
		res, _ := run(t, closedloop.Options{Name: "speed", In: bytes.NewReader(capture), Chain: chain(t, "tcp"), Speed: speed, Clock: &clock})
		c := res.List[0]
		if c.Status != closedloop.Equal || c.Seconds > want+0.3 || speed > 0 && c.Seconds < want-0.3 {
			t.Errorf("speed %v: got %+v, want about %v s", speed, c, want)
		}
		if clock.Now().Year() == time.Now().Year() && res.First[:4] != time.Now().Format("2006") {
			t.Errorf("the clock shows %v, the capture begins at %s", clock.Now(), res.First)
		}
	}
}

// TestRelaxed: a stage that holds back what an end sent before it knew of the
// other's bytes does not stop the connection.
func TestRelaxed(t *testing.T) {
	reg := streamRegistry(t)
	k := reg.Lookup("hold")
	spec := chain(t, "tcp")
	spec.Stages = append(spec.Stages, pipeline.StageSpec{Kind: k, Config: k.NewConfig()})
	res, _ := run(t, closedloop.Options{Name: "hold", In: bytes.NewReader(dialogue(func(k *talk) {
		k.send(0, ack|psh, 10)
		k.send(1, ack|psh, 10)
		k.send(0, ack|psh, 10)
		k.ends(0)
	})), Chain: spec})
	if f := res.List[0]; f.Status != closedloop.Equal || f.Relaxed != 1 {
		t.Errorf("got %+v", f)
	}
}

// TestStops: a run that is cancelled tells what it has done, and leaves nothing.
func TestStops(t *testing.T) {
	before, _ := resting()
	ctx, cancel := context.WithCancel(context.Background())
	played := 0
	res, err := closedloop.Run(ctx, closedloop.Options{
		Name: "stops", In: bytes.NewReader(conversations(t, 5, 200)), Chain: chain(t, "tcp"), Window: 10,
		Flow: func(*closedloop.Flow) {
			if played++; played == 50 {
				cancel()
			}
		},
	})
	if !errors.Is(err, context.Canceled) || res.Played < 50 || res.Played > 100 || res.Error == "" {
		t.Errorf("got %v, %+v", err, summary(res))
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if n, _ := resting(); n <= before {
			return
		}
	}
	t.Error("goroutines are left")
}

// TestBounds: with little room connections are given up, with the reason, and
// the rest is played.
func TestBounds(t *testing.T) {
	capture := conversations(t, 6, 100)
	res, _ := run(t, closedloop.Options{Name: "bounds", In: bytes.NewReader(capture), Chain: chain(t, "tcp"), Window: 3, MaxFlows: 8})
	if res.WhyNot["flow_limit"] == 0 || res.Equal == 0 || res.Differs != 0 {
		t.Errorf("few flows: got %+v", summary(res))
	}
	res, _ = run(t, closedloop.Options{Name: "bounds", In: bytes.NewReader(capture), Chain: chain(t, "tcp"), Window: 3, MaxMemory: 100 << 10})
	if res.WhyNot["memory_limit"] == 0 || res.Equal == 0 || res.Differs != 0 {
		t.Errorf("little memory: got %+v", summary(res))
	}
	for _, o := range []closedloop.Options{{Speed: -1}, {Window: -1}, {Name: "testdata/none.pcap"}} {
		if _, err := closedloop.Run(context.Background(), o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}

// TestWires: the output has both wires, with right checksums, and the
// addresses, VLANs and sequence numbers of the capture on the client's side.
func TestWires(t *testing.T) {
	capture := pipelinetest.Capture(step, func() [][]byte {
		k := newTalk(0, pipelinetest.VLAN(7))
		for i, f := range k.frames[2:] {
			k.frames[2+i] = pipelinetest.Tagged(f, 7)
		}
		return k.frames
	}()...)
	_, out := run(t, closedloop.Options{Name: "wires", In: bytes.NewReader(capture), Chain: chain(t, "tcp"), Ports: [2]string{"lan", "wan"}})
	r, err := pcap.NewReader("out", bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	var rec pcap.Record
	seen := [2]int{}
	last := int64(0)
	for r.Next(&rec) == nil {
		var h wire.Headers
		if h.Parse(rec.Data) != wire.FaultNone || !wire.VerifyL4(rec.Data, &h) || h.VLANs != 1 || h.VLAN[0]&0xfff != 7 {
			t.Fatalf("malformed: %s", wire.Summary(rec.Data))
		}
		if rec.Time < last {
			t.Error("time goes back")
		}
		last = rec.Time
		if seen[rec.Interface]++; seen[0]+seen[1] == 1 && wire.TCP(rec.Data[h.L4:]).Seq() != 0 {
			t.Errorf("the client's SYN: %s", wire.Summary(rec.Data))
		}
	}
	if seen[0] < 5 || seen[1] < 5 {
		t.Errorf("%d and %d packets", seen[0], seen[1])
	}
}
