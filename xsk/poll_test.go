package xsk_test

import (
	"errors"
	"testing"
	"time"

	"penstock/xsk"
)

// TestPollDoesNotSend: waiting leaves the TX ring alone while nothing arrives,
// unlike poll(2), and is short while there is something in it.
func TestPollDoesNotSend(t *testing.T) {
	w := newBed(t).wire(t, "a", 1)
	u := newUMEM(t, xsk.UMEMOptions{Frames: 16})
	pool := u.NewPool(0, 16)
	s := w.open(t, u, 0, &xsk.SocketOptions{Prefill: take(t, pool, 4)})
	if err := s.Poll(0); err != nil { // makes the poller
		t.Fatal(err)
	}
	a := take(t, pool, 1)
	packet(u.Frame(a[0]), 1, 64)
	if s.Transmit([]xsk.Desc{{Addr: a[0], Len: 64}}) != 1 {
		t.Fatal("the tx ring is full")
	}
	start := time.Now()
	for range 5 {
		if err := s.Poll(4 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("five waits with a packet pending took %v", d)
	}
	if s.Pending() != 1 {
		t.Error("waiting sent the packet")
	}
	if st := noRefusals(t, s); st.Kicks != 0 {
		t.Errorf("waiting made %d calls to send", st.Kicks)
	}
	if err := s.Kick(); err != nil || s.Pending() != 0 {
		t.Errorf("kick: %v, %d pending", err, s.Pending())
	}
}

func TestPoller(t *testing.T) {
	b := newBed(t)
	wa, wb := b.wire(t, "a", 1), b.wire(t, "b", 1)
	u := newUMEM(t, xsk.UMEMOptions{Frames: 64})
	pool := u.NewPool(0, 64)
	oa, ob := xsk.SocketOptions{Prefill: take(t, pool, 16)}, xsk.SocketOptions{Prefill: take(t, pool, 16)}
	a, c := wa.open(t, u, 0, &oa), wb.open(t, u, 0, &ob)
	p, err := xsk.NewPoller(a, c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()

	// Nothing happens: it ends with the timeout, not before and not long after.
	start := time.Now()
	if err := p.Wait(20 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 20*time.Millisecond || d > 5*time.Second {
		t.Errorf("a wait of 20 ms took %v", d)
	}
	// A packet on either socket ends it.
	var buf [2048]byte
	var d [4]xsk.Desc
	for i, far := range []*tap{wa.tap(t), wb.tap(t)} {
		for n := range uint32(20) {
			if err := far.send(packet(buf[:], n, 64)); err != nil {
				t.Fatal(err)
			}
			s := []*xsk.Socket{a, c}[i]
			until(t, "a packet ends the wait", func() bool {
				if err := p.Wait(time.Minute); err != nil {
					t.Fatal(err)
				}
				return s.Receive(d[:]) == 1
			})
			s.Fill([]uint64{d[0].Addr})
		}
	}
	// What is there already ends it at once.
	if err := wa.tap(t).send(packet(buf[:], 1, 64)); err != nil {
		t.Fatal(err)
	}
	until(t, "the packet is there", func() bool { _, rx, _, _ := a.InKernel(); return rx == 1 })
	for range 3 {
		if err := p.Wait(-1); err != nil {
			t.Fatal(err)
		}
	}
	a.Receive(d[:])
	// Wake, before and during.
	p.Wake()
	p.Wake()
	if err := p.Wait(-1); err != nil {
		t.Fatal(err)
	}
	woken := make(chan error)
	go func() { woken <- p.Wait(-1) }()
	p.Wake()
	if err := <-woken; err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Wait(-1); !errors.Is(err, xsk.ErrClosed) {
		t.Errorf("wait after close: %v, want ErrClosed", err)
	}
	// A poller of closed sockets, and closed sockets in a poller.
	q, err := xsk.NewPoller(a, c)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	if err := q.Wait(time.Millisecond); err != nil {
		t.Error(err)
	}
	q.Close()
	if _, err := xsk.NewPoller(a); err == nil {
		t.Error("a poller of a closed socket")
	}
}
