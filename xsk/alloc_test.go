package xsk_test

import (
	"testing"
	"time"

	"penstock/xsk"
)

// TestNoAllocations runs a whole turn, empty and full, and counts allocations.
func TestNoAllocations(t *testing.T) {
	w := newBed(t).wire(t, "a", 1)
	u := newUMEM(t, xsk.UMEMOptions{Frames: 256, TxMetadataLen: 24})
	pool := u.NewPool(0, 256)
	s := w.open(t, u, 0, &xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 64, Prefill: take(t, pool, 32),
		BusyPoll: xsk.BusyPoll{Duration: time.Microsecond}}) // so that WakeRx makes its call
	p, err := xsk.NewPoller(s)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	far := w.tap(t)
	var buf [2048]byte
	out := packet(buf[:], 1, 300)
	d := make([]xsk.Desc, 64)
	addrs := make([]uint64, 64)
	received := 0
	got := testing.AllocsPerRun(200, func() {
		if err := far.send(out); err != nil {
			t.Fatal(err)
		}
		if err := s.Poll(time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(time.Microsecond); err != nil {
			t.Fatal(err)
		}
		n := s.Receive(d)
		received += n
		u.RequestChecksum(&d[0], 14, 20)
		d[n] = xsk.Desc{Addr: 1 << 40} // refused
		s.Transmit(d[:n+1])
		if err := s.Kick(); err != nil {
			t.Fatal(err)
		}
		pool.Free(addrs[:s.Complete(addrs)]...)
		k := pool.Alloc(addrs[:n])
		s.Fill(addrs[:k])
		if err := s.WakeRx(); err != nil {
			t.Fatal(err)
		}
		s.InKernel()
		p.Wake()
	})
	if got != 0 {
		t.Errorf("%v allocations in a turn, want none", got)
	}
	if received == 0 {
		t.Error("nothing was received: the turns were empty")
	}
}
