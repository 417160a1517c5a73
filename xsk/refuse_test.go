package xsk_test

import (
	"strings"
	"testing"

	"penstock/xsk"
)

// TestRefusals hands over what must not reach the kernel.
func TestRefusals(t *testing.T) {
	w := newBed(t).wire(t, "a", 1)
	u := newUMEM(t, xsk.UMEMOptions{Frames: 16})
	pool := u.NewPool(0, 16)
	s := w.open(t, u, 0, &xsk.SocketOptions{RxSize: 16, TxSize: 16, FillSize: 16})
	b := books{pool: pool, total: 16, sockets: []*xsk.Socket{s}}
	a := take(t, pool, 8)

	tx := []xsk.Desc{
		{Addr: a[0], Len: 60},
		{Addr: a[1], Len: 0},                    // empty
		{Addr: a[2] + 2000, Len: 60},            // beyond its frame
		{Addr: a[3], Len: 60, Options: 1},       // multi-buffer, not asked for
		{Addr: 16 * 2048, Len: 60},              // outside
		{Addr: 1<<64 - 1, Len: 1<<32 - 1},       // far outside
		{Addr: a[0], Len: 60},                   // queued already
		{Addr: 15 * 2048, Len: 60},              // in the pool
		{Addr: a[4] + 300, Len: 60, Options: 2}, // metadata, but the umem has none
		{Addr: a[5] + 1988, Len: 60},            // fits exactly
	}
	if n := s.Transmit(tx); n != len(tx) || s.Pending() != 2 {
		t.Errorf("transmit dealt with %d of %d, %d pending; want 2", n, len(tx), s.Pending())
	}
	b.check(t, 2) // a[6], a[7]
	if err := s.Kick(); err != nil {
		t.Error(err)
	}
	// All frames that were the caller's come back, once.
	var done [16]uint64
	seen := map[uint64]bool{}
	until(t, "six frames are completed", func() bool {
		// At most two at a time, to split the refused from the sent.
		for _, x := range done[:s.Complete(done[:2])] {
			if seen[x] {
				t.Fatalf("frame at %d came back twice", x)
			}
			seen[x] = true
		}
		return len(seen) == 6
	})
	for _, x := range a[:6] {
		if !seen[x] {
			t.Errorf("frame at %d did not come back", x)
		}
	}
	b.check(t, 8)

	fill := []uint64{a[0] + 77, a[0], 16 * 2048, 1 << 63, 15 * 2048, a[1]}
	if n := s.Fill(fill); n != len(fill) {
		t.Errorf("fill dealt with %d of %d", n, len(fill))
	}
	b.check(t, 6)
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if st.TxInvalid != 6 || st.TxNotHeld != 2 || st.FillInvalid != 4 || st.Filled != 2 {
		t.Errorf("refused: %+v", st)
	}
	if st.Kernel.TxInvalidDescs != 0 || st.Kernel.RxInvalidDescs != 0 {
		t.Errorf("bad descriptors reached the kernel: %+v", st.Kernel)
	}
}

// TestTransmitStopsAtManyRefusals: the list of refused frames is bounded.
func TestTransmitStopsAtManyRefusals(t *testing.T) {
	w := newBed(t).wire(t, "a", 1)
	u := newUMEM(t, xsk.UMEMOptions{Frames: 512})
	pool := u.NewPool(0, 512)
	s := w.open(t, u, 0, &xsk.SocketOptions{TxSize: 512})
	b := books{pool: pool, total: 512, sockets: []*xsk.Socket{s}}
	d := make([]xsk.Desc, 512)
	for i, a := range take(t, pool, 512) {
		d[i] = xsk.Desc{Addr: a}
	}
	n := s.Transmit(d)
	if n == 0 || n == 512 {
		t.Errorf("transmit dealt with %d of 512 empty packets", n)
	}
	b.check(t, 512-n)
	done := make([]uint64, 512)
	for left := 512; left > 0; {
		k := s.Complete(done)
		if k == 0 {
			t.Fatalf("%d frames did not come back", left)
		}
		pool.Free(done[:k]...)
		left -= k
		s.Transmit(d[512-left : min(512, 512-left+n)])
	}
	b.check(t, 0)
}

func TestOpenOptions(t *testing.T) {
	w := newBed(t).wire(t, "a", 2)
	for _, c := range []struct {
		name  string
		queue int
		o     xsk.SocketOptions
		want  string
	}{
		{"rx ring of 100", 0, xsk.SocketOptions{RxSize: 100}, "rx ring: size must be a power of two up to 1048576, got 100"},
		{"tx ring of -2", 0, xsk.SocketOptions{TxSize: -2}, "tx ring: size must be a power of two"},
		{"no fill ring", 0, xsk.SocketOptions{FillSize: xsk.NoRing}, "fill ring: size must be"},
		{"huge completion ring", 0, xsk.SocketOptions{CompletionSize: 1 << 21}, "completion ring: size must be"},
		{"no rings", 0, xsk.SocketOptions{RxSize: xsk.NoRing, TxSize: xsk.NoRing}, "needs an rx or a tx ring, got neither"},
		{"too many to prefill", 0, xsk.SocketOptions{FillSize: 2, Prefill: []uint64{0, 2048, 4096}}, "the fill ring takes 2 frames, got 3"},
		{"prefill outside", 0, xsk.SocketOptions{Prefill: []uint64{1 << 40}}, "1 not the caller's to give"},
		{"prefill twice", 0, xsk.SocketOptions{Prefill: []uint64{0, 0}}, "1 not the caller's to give"},
		{"no such mode", 0, xsk.SocketOptions{Mode: 7}, "mode must be Auto, Copy or ZeroCopy, got 7"},
		{"negative budget", 0, xsk.SocketOptions{TxBudget: -1}, "must not be negative"},
		{"zero-copy on veth", 0, xsk.SocketOptions{Mode: xsk.ZeroCopy}, "no zero-copy AF_XDP on this interface and queue"},
		{"queue 2 of 2", 2, xsk.SocketOptions{}, "is there a queue 2?"},
		{"rx only", 1, xsk.SocketOptions{TxSize: xsk.NoRing}, ""},
		{"tx only", 1, xsk.SocketOptions{RxSize: xsk.NoRing}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := newUMEM(t, xsk.UMEMOptions{Frames: 8})
			s, err := w.tryOpen(u, c.queue, &c.o)
			if err == nil {
				defer s.Close()
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("error %v, want %q in it", err, c.want)
			}
			// What Prefill named is the caller's again.
			if err != nil && u.NewPool(0, 8).Len() != 8 {
				t.Error("frames were lost")
			}
		})
	}
	u := newUMEM(t, xsk.UMEMOptions{Frames: 8})
	if _, err := u.Open(1<<30, 0, nil); err == nil || !strings.Contains(err.Error(), "no such interface") {
		t.Errorf("interface that is not there: %v", err)
	}
}
