package xsk_test

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"penstock/xsk"
)

// TestCloseUnderTraffic opens and closes sockets while packets keep coming:
// every frame comes back, the queue can be taken again, and traffic resumes.
func TestCloseUnderTraffic(t *testing.T) {
	b := newBed(t)
	w := b.wire(t, "a", 1)
	const total = 256
	u := newUMEM(t, xsk.UMEMOptions{Frames: total})
	pool := u.NewPool(0, total)
	far := w.tap(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		var buf [2048]byte
		for i := uint32(0); ; i++ {
			select {
			case <-stop:
				return
			default:
				_ = far.send(packet(buf[:], i, 400))
			}
		}
	}()
	defer wg.Wait()
	defer close(stop)

	for round := range 6 {
		o := &xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 128, Prefill: take(t, pool, 128)}
		s, err := w.tryOpen(u, 0, o)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		w.steer(t, s)
		bk := books{pool: pool, total: total, sockets: []*xsk.Socket{s}}
		for got := 0; got < 200; {
			var d [16]xsk.Desc
			n := s.Receive(d[:])
			for _, p := range d[:n] {
				if _, err := checkPacket(u.Data(p)); err != nil {
					t.Fatal(err)
				}
			}
			got += n
			for _, p := range d[s.Transmit(d[:n]):n] {
				pool.Free(p.Addr)
			}
			if round%2 == 0 { // else leave them in the TX ring
				if err := s.Kick(); err != nil {
					t.Fatal(err)
				}
			}
			var addrs [64]uint64
			pool.Free(addrs[:s.Complete(addrs[:])]...)
			k := pool.Alloc(addrs[:])
			pool.Free(addrs[s.Fill(addrs[:k]):k]...)
			bk.check(t, 0)
			if n == 0 {
				_ = s.Poll(time.Millisecond)
			}
		}
		held := total - pool.Len()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		bk.check(t, 0) // InKernel goes on counting
		if n := reclaim(s, pool); n != held || pool.Len() != total {
			t.Fatalf("round %d: %d frames came back, want %d", round, n, held)
		}
		bk.check(t, 0)
		closedDoesNothing(t, s)
	}
}

func closedDoesNothing(t *testing.T, s *xsk.Socket) {
	t.Helper()
	var d [1]xsk.Desc
	var a [1]uint64
	if s.Fill(a[:])+s.Receive(d[:])+s.Transmit(d[:])+s.Complete(a[:])+s.Pending()+s.Reclaim(a[:]) != 0 {
		t.Error("a closed socket moves frames")
	}
	if err := s.Kick(); !errors.Is(err, xsk.ErrClosed) {
		t.Errorf("kick: %v, want ErrClosed", err)
	}
	if err := s.WakeRx(); !errors.Is(err, xsk.ErrClosed) {
		t.Errorf("wake: %v, want ErrClosed", err)
	}
	if err := s.Poll(time.Second); !errors.Is(err, xsk.ErrClosed) {
		t.Errorf("poll: %v, want ErrClosed", err)
	}
	if err := s.Err(); !errors.Is(err, xsk.ErrClosed) {
		t.Errorf("err: %v, want ErrClosed", err)
	}
	if err := s.Close(); !errors.Is(err, xsk.ErrClosed) {
		t.Errorf("close: %v, want ErrClosed", err)
	}
	st, err := s.Stats()
	if !errors.Is(err, xsk.ErrClosed) || st.Received == 0 || s.FD() != -1 {
		t.Errorf("stats: %+v, %v", st, err)
	}
}

// TestDoubleBind: the errors for a queue that is taken say what is the matter.
func TestDoubleBind(t *testing.T) {
	w := newBed(t).wire(t, "a", 2)
	u := newUMEM(t, xsk.UMEMOptions{Frames: 8})
	other := newUMEM(t, xsk.UMEMOptions{Frames: 8})
	w.open(t, u, 0, nil)
	for _, c := range []struct {
		name string
		u    *xsk.UMEM
		o    *xsk.SocketOptions
		q    int
		want string
	}{
		{"same umem", u, nil, 0, "queue 0: queue already has an AF_XDP socket: one of the same umem"},
		{"other umem", other, nil, 0, "queue 0: queue already has an AF_XDP socket: device or resource busy"},
		{"other mode", u, &xsk.SocketOptions{Mode: xsk.ZeroCopy}, 1, "asked for zero-copy, but the umem's open sockets are in copy mode"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := w.tryOpen(c.u, c.q, c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
			if busy := c.q == 0; errors.Is(err, xsk.ErrQueueBusy) != busy {
				t.Errorf("%v: ErrQueueBusy is %v, want %v", err, !busy, busy)
			}
		})
	}
	// The other one works where the queue is free.
	w.open(t, other, 1, nil)
}

// TestFirstSocketLeaves: the socket that registered the UMEM is closed first;
// the others live on, and new ones join through them.
func TestFirstSocketLeaves(t *testing.T) {
	b := newBed(t)
	w := b.wire(t, "a", 3)
	u := newUMEM(t, xsk.UMEMOptions{Frames: 64})
	pool := u.NewPool(0, 64)
	if err := w.open(t, u, 0, nil).Close(); err != nil { // registered, and unregistered
		t.Fatal(err)
	}
	first := w.open(t, u, 0, &xsk.SocketOptions{Prefill: take(t, pool, 10)})
	second := w.open(t, u, 1, nil)
	if err := u.Close(); err == nil || !strings.Contains(err.Error(), "2 sockets are still open") {
		t.Errorf("close of a umem in use: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	third := w.open(t, u, 2, &xsk.SocketOptions{Prefill: take(t, pool, 5)})
	// The frames of the first are told from those of the third.
	if n := reclaim(first, pool); n != 10 {
		t.Errorf("%d frames came back, want 10", n)
	}
	far := w.tap(t)
	var buf [2048]byte
	for i, s := range []*xsk.Socket{second, third, w.open(t, u, 0, nil)} {
		a := take(t, pool, 1)
		packet(u.Frame(a[0]), uint32(i), 64)
		if s.Transmit([]xsk.Desc{{Addr: a[0], Len: 64}}) != 1 || s.Kick() != nil {
			t.Errorf("socket %d cannot send", i)
		}
		if n, err := checkPacket(far.recv(buf[:])); err != nil || n != uint32(i) {
			t.Errorf("packet %d: %d, %v", i, n, err)
		}
	}
}

// TestOpenLeaksNothing: descriptors and mappings are back to what they were,
// also after failures.
func TestOpenLeaksNothing(t *testing.T) {
	w := newBed(t).wire(t, "a", 1)
	count := func() (fds, maps int) {
		e, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		m, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return len(e), strings.Count(string(m), "[xdp]") + strings.Count(string(m), "socket:[")
	}
	cycle := func() {
		u := newUMEM(t, xsk.UMEMOptions{Frames: 64})
		defer u.Close()
		if _, err := w.tryOpen(u, 0, &xsk.SocketOptions{Mode: xsk.ZeroCopy}); err == nil {
			t.Fatal("zero-copy on veth")
		}
		if _, err := w.tryOpen(u, 5, nil); err == nil {
			t.Fatal("queue 5 of 1")
		}
		s, err := w.tryOpen(u, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, mapped := count(); mapped == 0 {
			t.Fatal("the ring mappings cannot be seen in /proc/self/maps")
		}
		if err := s.Poll(0); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	cycle()
	fds, maps := count()
	for range 5 {
		cycle()
	}
	if f, m := count(); f != fds || m != maps || m != 0 {
		t.Errorf("%d descriptors and %d ring mappings before, %d and %d after", fds, maps, f, m)
	}
}
