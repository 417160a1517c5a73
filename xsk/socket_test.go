package xsk_test

import (
	"testing"
	"time"

	"penstock/xsk"
)

func TestBothDirections(t *testing.T) {
	w := newBed(t).wire(t, "a", 1)
	u := newUMEM(t, xsk.UMEMOptions{Frames: 256})
	pool := u.NewPool(0, 256)
	fill := make([]uint64, 64)
	pool.Alloc(fill)
	s := w.open(t, u, 0, &xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 64, Prefill: fill})
	if s.Mode() != xsk.Copy {
		t.Fatalf("mode: want copy on veth, got %v", s.Mode())
	}
	far := w.tap(t)
	var buf, got [2048]byte

	for i := range uint32(1000) {
		size := 60 + int(i)%1400
		if err := far.send(packet(buf[:], i, size)); err != nil {
			t.Fatal(err)
		}
		var d [1]xsk.Desc
		until(t, "the packet arrives", func() bool {
			if err := s.Poll(time.Second); err != nil {
				t.Fatal(err)
			}
			return s.Receive(d[:]) == 1
		})
		if n, err := checkPacket(u.Data(d[0])); err != nil || n != i {
			t.Fatalf("packet %d: got %d, %v", i, n, err)
		}
		// The same frame goes back where it came from.
		if s.Transmit(d[:]) != 1 {
			t.Fatal("the tx ring is full")
		}
		if err := s.Kick(); err != nil {
			t.Fatal(err)
		}
		b := far.recv(got[:])
		if n, err := checkPacket(b); err != nil || n != i {
			t.Fatalf("packet %d came back as %d, %v", i, n, err)
		}
		var done [1]uint64
		until(t, "the frame is completed", func() bool { return s.Complete(done[:]) == 1 })
		if s.Fill(done[:]) != 1 {
			t.Fatal("the fill ring is full")
		}
	}
	f, r, x, c := s.InKernel()
	if pool.Len()+f+r+x+c != 256 {
		t.Errorf("frames: pool %d, fill %d, rx %d, tx %d, completion %d; want 256 in all", pool.Len(), f, r, x, c)
	}
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	want := xsk.Stats{Filled: 1064, Received: 1000, Transmitted: 1000, Completed: 1000, Kicks: st.Kicks, Kernel: st.Kernel}
	if st != want {
		t.Errorf("stats: got %+v, want %+v", st, want)
	}
}
