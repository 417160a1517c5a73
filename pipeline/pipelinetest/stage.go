package pipelinetest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// Stage is the conformance suite of packet stages. It runs the stage with each
// of the configs, or with its defaults if none is given, over Traffic, over
// every beginning of its packets and over damaged ones, and checks that
//
//   - every packet gets a verdict, and every drop one of the declared reasons;
//   - nothing panics and no packet disappears;
//   - Process, Observe and Poll do not allocate;
//   - no packet and none of its bytes are kept after the turn: overwriting all
//     frames between turns changes nothing, and nobody writes into them;
//   - what is sent has right checksums;
//   - the README has the required sections, its examples load, and its tables
//     name exactly the keys, reasons and counters that the code has (README).
func Stage[C any](t *testing.T, d pipeline.Descriptor[C], configs ...C) {
	t.Helper()
	reg := &pipeline.Registry{}
	pipeline.Register(reg, d)
	kind := reg.Lookup(d.Kind)
	if kind.Layer != pipeline.PacketLayer {
		t.Fatalf("pipelinetest.Stage is for packet stages; %s is not one", d.Kind)
	}
	t.Run("readme", func(t *testing.T) { README(t, reg, kind) })
	if len(configs) == 0 {
		configs = []C{*kind.NewConfig().(*C)}
	}
	for i := range configs {
		t.Run(fmt.Sprintf("config %d", i+1), func(t *testing.T) {
			var issues pipeline.Issues
			kind.Validate(&configs[i], &issues)
			for _, issue := range issues.List {
				t.Fatalf("the config is not valid: %s: %s", issue.Path, issue.Text)
			}
			conform(t, func() *pipeline.ChainSpec {
				return &pipeline.ChainSpec{Name: "test", Stages: []pipeline.StageSpec{
					{Kind: kind, Config: &configs[i], Shared: &pipeline.Shared{}},
				}}
			})
		})
	}
}

// conform runs the suite on a chain of packet stages.
func conform(t *testing.T, spec func() *pipeline.ChainSpec) {
	allowed := allowedReasons(spec())
	traffic := Traffic()
	t.Run("traffic", func(t *testing.T) {
		plain, figures := trace(t, spec(), traffic, allowed, false)
		checkSums(t, plain)
		poisoned, poisonedFigures := trace(t, spec(), traffic, allowed, true)
		if !reflect.DeepEqual(plain, poisoned) {
			t.Errorf("%d packets were sent, and %d others when frames are overwritten between turns: the stage keeps bytes", len(plain), len(poisoned))
		}
		if !reflect.DeepEqual(figures, poisonedFigures) {
			t.Errorf("figures differ when frames are overwritten between turns: the stage keeps bytes\n%+v\n%+v", figures, poisonedFigures)
		}
	})
	t.Run("writes into frames that are not its own", func(t *testing.T) {
		b := newBench(t, spec())
		b.run(traffic)
		b.record = true // notes which frames are used from here on
		b.poison()
		b.idle(20, 100e6)
		b.idle(20, 60e9)
		for i := range uint64(b.arena.Frames()) {
			p := b.arena.At(i)
			if !b.used[p.Index()] && !bytes.Equal(p.Frame(), poisoned) {
				t.Fatalf("frame %d was changed after the turn that it belonged to the stage", i)
			}
		}
		b.end()
	})
	t.Run("allocations", func(t *testing.T) {
		b := newBench(t, spec())
		for range 3 {
			b.run(traffic)
		}
		b.next = traffic[:min(len(traffic), pipeline.BatchSize)]
		if n := testing.AllocsPerRun(200, b.turn); n != 0 {
			t.Errorf("%v allocations a batch of %d packets, want 0", n, len(b.next))
		}
		b.next = nil
		b.end()
	})
	t.Run("every beginning of a packet", func(t *testing.T) {
		b := newBench(t, spec())
		for _, a := range traffic {
			var parts []Arrival
			for n := range min(len(a.Frame), 200) {
				parts = append(parts, Arrival{a.In, a.Frame[:n]})
			}
			b.run(parts)
		}
		b.end()
		b.check(allowed)
	})
	t.Run("damaged packets", func(t *testing.T) {
		b := newBench(t, spec())
		b.run(damaged(traffic, 5000))
		b.idle(10, 60e9)
		b.end()
		b.check(allowed)
	})
}

// trace runs the traffic twice, and time in between, and returns what was
// sent and the stage's figures.
func trace(t *testing.T, spec *pipeline.ChainSpec, traffic []Arrival, allowed map[string]bool, poison bool) ([]Arrival, []pipeline.ChainStats) {
	t.Helper()
	b := newBench(t, spec)
	b.record = true
	for range 2 {
		for rest := traffic; len(rest) > 0; {
			n := min(len(rest), 7)
			b.run(rest[:n])
			rest = rest[n:]
			if poison {
				b.poison()
			}
		}
		for range 20 {
			b.idle(1, 1e9)
			if poison {
				b.poison()
			}
		}
	}
	b.end()
	b.check(allowed)
	return b.sent, b.worker.Stats().Chains
}

func checkSums(t *testing.T, sent []Arrival) {
	t.Helper()
	for _, a := range sent {
		var h wire.Headers
		if h.Parse(a.Frame) != wire.FaultNone || h.IPVersion == 0 {
			continue
		}
		if h.IPVersion == 4 && !wire.VerifyIPv4(a.Frame[h.L3:]) {
			t.Errorf("sent with a wrong IPv4 header checksum: %s", wire.Summary(a.Frame))
		}
		if h.HasL4 && h.Frag == wire.FragNone && !wire.VerifyL4(a.Frame, &h) {
			t.Errorf("sent with a wrong checksum: %s", wire.Summary(a.Frame))
		}
	}
}

// damaged returns n packets of the traffic with bytes changed at random, or
// made of random bytes altogether. It returns the same ones every time.
func damaged(traffic []Arrival, n int) (list []Arrival) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range n {
		a := traffic[rnd.IntN(len(traffic))]
		f := bytes.Clone(a.Frame)
		if rnd.IntN(10) == 0 {
			f = make([]byte, rnd.IntN(200))
			for i := range f {
				f[i] = byte(rnd.Uint32())
			}
		}
		for range rnd.IntN(8) {
			if len(f) > 0 {
				f[rnd.IntN(min(len(f), 120))] = byte(rnd.Uint32())
			}
		}
		if rnd.IntN(4) == 0 {
			f = f[:rnd.IntN(len(f)+1)]
		}
		list = append(list, Arrival{pipeline.PortID(rnd.IntN(2)), f})
	}
	return list
}

// allowedReasons returns what the packets of the chain may be dropped for: the
// stages' reasons, and what the engine says of malformed packets.
func allowedReasons(spec *pipeline.ChainSpec) map[string]bool {
	m := map[string]bool{}
	for f := range wire.NumFaults {
		m[wire.Fault(f).String()] = true
	}
	for _, s := range spec.Stages {
		for _, r := range s.Kind.Reasons {
			m[r.String()] = true
		}
	}
	return m
}
