package pipeline

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// passing is a stage that passes everything, counts it, and notes its end.
type passing struct {
	seen   atomic.Uint64
	ticks  int
	left   int
	closed int
}

func (s *passing) Process(b *Batch) {
	for p := range b.Live() {
		s.seen.Add(1)
		p.Continue()
	}
}
func (s *passing) Tick(int64)      { s.ticks++ }
func (s *passing) Drain(int64) int { return s.left }
func (s *passing) Close() error    { s.closed++; return nil }

func build(t testing.TB, b *bench, s *ChainSpec) *Chain {
	t.Helper()
	c, err := s.Build(b.Env())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestSwapChains: a new chain beside the old, the old one in the place of the
// new, and the old one's end.
func TestSwapChains(t *testing.T) {
	first, second := &passing{left: 3}, &passing{}
	b := newBench(t, 64, first)
	old := b.Chains()[0]
	send := func(id ChainID) {
		t.Helper()
		b.SetDefault(id)
		if !b.lan.Inject(udp(1, 10)) {
			t.Fatal("port is full")
		}
		b.turn(t)
	}
	send(0)
	next := build(t, b, spec(false, second))
	b.Call(func() { b.SetChains([]*Chain{old, next}, []bool{false, false}) })
	b.turn(t)
	send(0)
	send(1)
	if first.seen.Load() != 2 || second.seen.Load() != 1 {
		t.Errorf("old %d, new %d", first.seen.Load(), second.seen.Load())
	}
	if got := old.Drain(0); got != 3 {
		t.Errorf("left %d", got)
	}
	b.Call(func() {
		b.SetChains([]*Chain{next, next, nil}, []bool{false, false, false})
		if err := old.Close(); err != nil {
			t.Error(err)
		}
	})
	b.turn(t)
	send(0) // of the old chain's number
	send(1)
	send(2)
	if first.seen.Load() != 2 || second.seen.Load() != 3 || first.closed != 1 {
		t.Errorf("old %d, closed %d times; new %d", first.seen.Load(), first.closed, second.seen.Load())
	}
	s := b.Stats()
	if len(s.Chains) != 1 || s.Chains[0].Packets != 3 {
		t.Errorf("a chain that stands twice is shown as %+v", s.Chains)
	}
	second.ticks = 0
	b.lastTick = 0
	b.turn(t)
	if second.ticks != 1 {
		t.Errorf("it ticks %d times", second.ticks)
	}
	if tot := b.check(t); tot.Packets != 6 || tot.Forwarded != 5 || tot.Dropped["no_chain"] != 1 {
		t.Errorf("%+v", tot)
	}
	if err := b.Worker.Close(); err != nil {
		t.Error(err)
	}
	if second.closed != 1 || first.closed != 1 {
		t.Errorf("closed %d and %d times", first.closed, second.closed)
	}
}

// TestSwapWhileRunning changes the chains of a running worker, and reads its
// figures meanwhile.
func TestSwapWhileRunning(t *testing.T) {
	stages := []*passing{{}}
	b := newBench(t, 256, stages[0])
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	chains := slices.Clone(b.Chains())
	const swaps, each = 50, 20
	for range swaps {
		s := &passing{}
		stages = append(stages, s)
		next, old := build(t, b, spec(false, s)), chains[len(chains)-1]
		for i := range chains {
			chains[i] = next
		}
		chains = append(chains, next)
		for range each / 2 {
			b.lan.Inject(udp(1, 10))
		}
		set, closed := slices.Clone(chains), make(chan error, 1)
		b.Call(func() {
			b.SetChains(set, make([]bool, len(set)))
			b.SetDefault(ChainID(len(set) - 1))
			closed <- old.Close()
		})
		for range each / 2 {
			b.lan.Inject(udp(1, 10))
		}
		if n := len(b.Stats().Chains); n != 1 {
			t.Fatalf("%d chains are shown", n)
		}
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		b.wan.Sent()
	}
	for end := time.Now().Add(5 * time.Second); b.Stats().Totals.Packets < swaps*each; {
		if time.Now().After(end) {
			t.Fatalf("%+v", b.Stats().Totals)
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var seen uint64
	for i, s := range stages {
		seen += s.seen.Load()
		if last := i == len(stages)-1; last == (s.closed == 1) {
			t.Errorf("stage %d is closed %d times", i, s.closed)
		}
	}
	b.turn(t)
	if tot := b.check(t); tot.Packets != seen || tot.Forwarded != seen || seen != swaps*each {
		t.Errorf("stages saw %d of %+v", seen, tot)
	}
}

// TestAddFormer: figures go on where the stages are the same, and none of the
// packets is lost where they are not.
func TestAddFormer(t *testing.T) {
	stage := func(kind string, n uint64) StageStats {
		return StageStats{Kind: kind, Packets: n, Counters: map[string]uint64{"c": n}}
	}
	chain := func(n uint64, stages ...StageStats) ChainStats {
		return ChainStats{Name: "web", Packets: n, Bytes: 10 * n, Stages: stages}
	}
	for _, c := range []struct{ now, former, want ChainStats }{
		{chain(1, stage("acl", 1), stage("tcp", 2)), chain(5, stage("acl", 3), stage("tcp", 4)), chain(6, stage("acl", 4), stage("tcp", 6))},
		{chain(1, stage("tcp", 2)), chain(5, stage("acl", 3), stage("tcp", 4)), chain(6, stage("tcp", 6))},
		{chain(1, stage("acl", 1), stage("tcp", 2)), chain(5, stage("tcp", 4), stage("http", 3)), chain(6, stage("acl", 1), stage("tcp", 6))},
		{chain(1, stage("acl", 1), stage("acl", 2)), chain(5, stage("acl", 3)), chain(6, stage("acl", 4), stage("acl", 2))},
		{ChainStats{}, chain(5, stage("acl", 3)), chain(5, stage("acl", 3))},
		{chain(1, []StageStats{}...), chain(5, stage("acl", 3)), chain(6)},
	} {
		got := c.now
		got.AddFormer(c.former)
		if got.Packets != c.want.Packets || got.Bytes != c.want.Bytes || got.Name != "web" {
			t.Errorf("got %+v, want %+v", got, c.want)
		}
		for i, s := range c.want.Stages {
			if g := got.Stages[i]; g.Kind != s.Kind || g.Packets != s.Packets || g.Counters["c"] != s.Counters["c"] {
				t.Errorf("stage %d: got %+v, want %+v", i, g, s)
			}
		}
	}
}
