package xsk_test

import (
	"math/rand/v2"
	"testing"

	"penstock/xsk"
)

func TestPool(t *testing.T) {
	u := newUMEM(t, xsk.UMEMOptions{Frames: 16})
	a, b := u.NewPool(0, 10), u.NewPool(10, 6)
	var got [12]uint64
	if n := a.Alloc(got[:]); n != 10 || a.Len() != 0 {
		t.Fatalf("allocated %d of 10, %d left", n, a.Len())
	}
	for i, addr := range got[:10] {
		if addr != uint64(i)*2048 {
			t.Errorf("frame %d at %d", i, addr)
		}
	}
	if n := a.Alloc(got[10:]); n != 0 {
		t.Errorf("allocated %d from an empty pool", n)
	}
	// Any address inside the frame names it, and frames may change pools.
	b.Free(got[3]+300, got[9]+2047)
	a.Free(got[0], got[1])
	if a.Len() != 2 || b.Len() != 8 || a.Rejected()+b.Rejected() != 0 {
		t.Errorf("%d and %d frames, %d rejected", a.Len(), b.Len(), a.Rejected()+b.Rejected())
	}
	// Last in, first out.
	var one [1]uint64
	if a.Alloc(one[:]); one[0] != got[1] {
		t.Errorf("got frame at %d, want the one freed last, at %d", one[0], got[1])
	}
	// Freed twice, in another pool, outside.
	a.Free(got[1])
	a.Free(got[1], got[3], 16*2048, 1<<63)
	if a.Len() != 2 || a.Rejected() != 4 {
		t.Errorf("%d frames, %d rejected; want 2 and 4", a.Len(), a.Rejected())
	}
}

func TestPoolRanges(t *testing.T) {
	u := newUMEM(t, xsk.UMEMOptions{Frames: 16})
	u.NewPool(4, 4)
	for _, c := range []struct{ first, n int }{{-1, 2}, {0, -1}, {0, 17}, {17, 0}, {16, 1}, {0, 5}, {7, 1}, {1 << 40, 1 << 62}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("pool of %d frames from %d: no panic", c.n, c.first)
				}
			}()
			u.NewPool(c.first, c.n)
		}()
	}
	if n := u.NewPool(16, 0).Len(); n != 0 {
		t.Errorf("empty pool has %d frames", n)
	}
}

// TestPoolsNeverShareAFrame moves frames at random between three pools and the
// caller, with many mistakes, against a model.
func TestPoolsNeverShareAFrame(t *testing.T) {
	const frames = 64
	rng := rand.New(rand.NewPCG(3, 4))
	u := newUMEM(t, xsk.UMEMOptions{Frames: frames})
	pools := []*xsk.Pool{u.NewPool(0, 20), u.NewPool(20, 20), u.NewPool(40, 24)}
	held := map[uint64]bool{} // the caller's
	var rejected uint64
	for range 20000 {
		p := pools[rng.IntN(len(pools))]
		if rng.IntN(2) == 0 {
			buf := make([]uint64, rng.IntN(8))
			for _, a := range buf[:p.Alloc(buf)] {
				if held[a] {
					t.Fatalf("frame at %d handed out twice", a)
				}
				held[a] = true
			}
		} else {
			a := uint64(rng.IntN(frames+2)) * 2048
			if !held[a] {
				rejected++
			}
			delete(held, a)
			p.Free(a)
		}
		sum, bad := len(held), uint64(0)
		for _, p := range pools {
			sum += p.Len()
			bad += p.Rejected()
		}
		if sum != frames || bad != rejected {
			t.Fatalf("%d frames of %d, %d rejected of %d", sum, frames, bad, rejected)
		}
	}
}
