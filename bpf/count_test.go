package bpf

import (
	"fmt"
	"reflect"
	"testing"
	"time"
)

// TestCountFlows: what is counted at once, and what the walks of Expire count.
func TestCountFlows(t *testing.T) {
	r := ownRig(t, func(o *Options) { o.Rules, o.MaxFlows = all, 1000 })
	check := func(when string, want FlowCounts) {
		t.Helper()
		if got, err := r.CountFlows(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: counted %+v (%v), want %+v", when, got, err, want)
		}
	}
	walked := func(when string, want FlowCounts) {
		t.Helper()
		if _, err := r.Expire(Now(), Timeouts{UDP: time.Hour}, nil); err != nil {
			t.Fatal(err)
		}
		if got := r.LastCount(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the walk counted %+v, want %+v", when, got, want)
		}
	}
	check("empty", FlowCounts{})
	r.fill(10, Now(), uint64(Bypass))
	ten := FlowCounts{10, []ChainFlows{{Bypass: 10}}}
	check("before a walk", ten)
	walked("nobody has asked", FlowCounts{})
	walked("somebody has", ten)
	r.fill(15, Now(), uint64(Drop)) // the ten among them
	fifteen := FlowCounts{15, []ChainFlows{{Dropped: 15}}}
	if got := r.LastCount(); !reflect.DeepEqual(got, ten) {
		t.Errorf("between two walks: %+v", got)
	}
	walked("the next walk", fifteen)
	k := crowdKey(0).raw()
	v, err := r.flow(&k)
	if err != nil || v == nil {
		t.Fatal(v, err)
	}
	v.Chain, v.Decision = 7, uint64(ToChain)
	if err := r.flows.Put(&k, v); err != nil {
		t.Fatal(err)
	}
	byChain := FlowCounts{15, []ChainFlows{{Dropped: 14}, {Chain: 7, ToChain: 1}}}
	check("by chain", byChain)
	walked("by chain", byChain)
	if n, err := r.Expire(Now()+2*time.Hour, Timeouts{UDP: time.Hour}, nil); n != 15 || err != nil {
		t.Fatal(n, err)
	}
	walked("all gone", FlowCounts{})
}

// BenchmarkCountFlows is what a look at the number of flows costs: at what the last walk has counted, and a count of its own.
func BenchmarkCountFlows(b *testing.B) {
	for _, n := range []int{1000, 100_000, 1_000_000} {
		r := crowd(b, n, Now(), uint64(Bypass))
		r.LastCount()
		if _, err := r.Expire(Now(), Timeouts{UDP: time.Hour}, nil); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("last/flows-%d", n), func(b *testing.B) {
			for b.Loop() {
				if c := r.LastCount(); c.Flows != n {
					b.Fatal(c.Flows)
				}
			}
		})
		b.Run(fmt.Sprintf("now/flows-%d", n), func(b *testing.B) {
			for b.Loop() {
				if c, err := r.CountFlows(); err != nil || c.Flows != n {
					b.Fatal(c.Flows, err)
				}
			}
		})
	}
}
