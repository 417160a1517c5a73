package rewritetest

import (
	"bytes"
	"testing"

	"penstock/internal/wire"
)

// TestSameSeed: the same seed makes the same frames and rules, another one others.
func TestSameSeed(t *testing.T) {
	a, b, c := New(5), New(5), New(6)
	differ := 0
	for i := range 2000 {
		x, y, z := a.Frame(), b.Frame(), c.Frame()
		var h wire.Headers
		h.Parse(x)
		if !bytes.Equal(x, y) || a.Rule(&h) != b.Rule(&h) {
			t.Fatalf("frame %d: the same seed makes another one", i)
		}
		c.Rule(&h)
		if !bytes.Equal(x, z) {
			differ++
		}
	}
	if differ < 1900 {
		t.Errorf("only %d of 2000 frames differ between seeds", differ)
	}
}

// TestLayouts: what the generator promises is there, and most packets are sound.
func TestLayouts(t *testing.T) {
	const n = 20_000
	met := map[string]int{}
	g := New(7)
	for range n {
		frame := g.Frame()
		if len(frame) < 14 || len(frame) > 2048 {
			t.Fatalf("a frame of %d bytes", len(frame))
		}
		var h wire.Headers
		met["fault "+h.Parse(frame).String()]++
		met["frag "+h.Frag.String()]++
		if h.TooManyVLANs() {
			met["three tags"]++
		}
		if h.Fault != wire.FaultNone || !h.HasL4 || h.Frag != wire.FragNone {
			continue
		}
		if wire.VerifyL4(frame, &h) {
			met["right checksum"]++
		} else {
			met["wrong checksum"]++
		}
		if int(h.End) < len(frame) {
			met["padding"]++
		}
		if h.Proto != wire.ProtoTCP {
			met[wire.ProtoName(h.Proto)]++
			continue
		}
		it := wire.TCP(frame[h.L4:h.Payload]).OptionIter()
		for it.Next() {
			odd := ""
			if it.Offset%2 != 0 {
				odd = "odd "
			}
			if _, _, ok := it.Timestamps(); ok {
				met[odd+"timestamps"]++
			}
			if it.SACKBlocks() > 0 {
				met[odd+"sack"]++
			}
		}
		if it.Malformed {
			met["malformed options"]++
		}
	}
	for what, least := range map[string]int{
		"fault none": n * 9 / 10, "frag first": 100, "frag later": 100, "three tags": 50, "right checksum": n / 2, "wrong checksum": 100, "padding": 1000,
		"udp": 1000, "icmp": 500, "icmpv6": 500, "timestamps": 1000, "odd timestamps": 100, "sack": 1000, "odd sack": 100, "malformed options": 100,
	} {
		if met[what] < least {
			t.Errorf("%s: %d, want at least %d of %d frames", what, met[what], least, n)
		}
	}
}
