package xsk_test

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"penstock/xsk"
)

// books checks that no frame is lost or doubled.
type books struct {
	pool    *xsk.Pool
	total   int
	sockets []*xsk.Socket
}

func (b *books) check(t testing.TB, held int) {
	t.Helper()
	sum := b.pool.Len() + held
	for _, s := range b.sockets {
		f, r, x, c := s.InKernel()
		if f < 0 || r < 0 || x < 0 || c < 0 {
			t.Fatalf("frames in rings: fill %d, rx %d, tx %d, completion %d", f, r, x, c)
		}
		sum += f + r + x + c
	}
	if sum != b.total || b.pool.Rejected() != 0 {
		t.Fatalf("%d frames of %d, %d rejected by the pool", sum, b.total, b.pool.Rejected())
	}
}

// noRefusals checks that neither side handed over a descriptor it should not.
func noRefusals(t testing.TB, s *xsk.Socket) xsk.Stats {
	t.Helper()
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if n := st.FillInvalid + st.TxInvalid + st.TxNotHeld + st.RxInvalid + st.CompletionInvalid +
		st.Kernel.RxInvalidDescs + st.Kernel.TxInvalidDescs; n != 0 {
		t.Errorf("%d descriptors refused: %+v", n, st)
	}
	return st
}

// take allocates n frames.
func take(t testing.TB, p *xsk.Pool, n int) []uint64 {
	t.Helper()
	a := make([]uint64, n)
	if got := p.Alloc(a); got != n {
		t.Fatalf("allocated %d frames, want %d", got, n)
	}
	return a
}

// TestEcho sends packets of all sizes to a socket and back, one by one, through
// the smallest and larger rings: each wraps many times.
func TestEcho(t *testing.T) {
	for _, c := range []struct {
		name string
		o    xsk.SocketOptions
		u    xsk.UMEMOptions
		n    int
	}{
		{"one entry", xsk.SocketOptions{RxSize: 1, TxSize: 1, FillSize: 1, CompletionSize: 1}, xsk.UMEMOptions{Frames: 4}, 500},
		{"rings of 64", xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 64}, xsk.UMEMOptions{Frames: 256}, 1500},
		{"4 KiB frames", xsk.SocketOptions{RxSize: 8, TxSize: 8, FillSize: 8}, xsk.UMEMOptions{Frames: 32, FrameSize: 4096, Headroom: 200}, 1000},
		{"no need_wakeup", xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 64, NoNeedWakeup: true}, xsk.UMEMOptions{Frames: 256}, 200},
		{"copy", xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 64, Mode: xsk.Copy}, xsk.UMEMOptions{Frames: 256}, 200},
		{"busy poll", xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 64, BusyPoll: xsk.BusyPoll{Duration: 20 * time.Microsecond}}, xsk.UMEMOptions{Frames: 256}, 200},
	} {
		t.Run(c.name, func(t *testing.T) { echo(t, newBed(t).wire(t, "a", 1), c.o, c.u, c.n, xsk.Copy) })
	}
}

func echo(t *testing.T, w *wire, o xsk.SocketOptions, uo xsk.UMEMOptions, packets int, want xsk.Mode) {
	u := newUMEM(t, uo)
	pool := u.NewPool(0, u.Frames())
	o.Prefill = take(t, pool, o.FillSize)
	s := w.open(t, u, 0, &o)
	if s.Mode() != want {
		t.Fatalf("mode: want %v, got %v", want, s.Mode())
	}
	if s.Ifindex() != w.near || s.Queue() != 0 || s.UMEM() != u || s.FD() < 0 {
		t.Errorf("interface %d, queue %d, descriptor %d", s.Ifindex(), s.Queue(), s.FD())
	}
	b := books{pool: pool, total: u.Frames(), sockets: []*xsk.Socket{s}}
	far := w.tap(t)
	var buf, got [2048]byte
	for i := range uint32(packets) {
		size := 60 + int(i*7)%1455
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
		if off := int(d[0].Addr) % u.FrameSize(); off != u.RxOffset() {
			t.Fatalf("packet at %d in its frame, want %d", off, u.RxOffset())
		}
		b.check(t, 1)
		// The same frame goes back where it came from.
		if s.Transmit(d[:]) != 1 {
			t.Fatal("the tx ring is full")
		}
		if err := s.Kick(); err != nil {
			t.Fatal(err)
		}
		if n, err := checkPacket(far.recv(got[:])); err != nil || n != i {
			t.Fatalf("packet %d came back as %d, %v", i, n, err)
		}
		var done [1]uint64
		until(t, "the frame is completed", func() bool {
			if err := s.Kick(); err != nil { // a zero-copy driver may want it
				t.Fatal(err)
			}
			return s.Complete(done[:]) == 1
		})
		if done[0]%uint64(u.FrameSize()) != 0 {
			t.Fatalf("completed %d, not the address of a frame", done[0])
		}
		if s.Fill(done[:]) != 1 {
			t.Fatal("the fill ring is full")
		}
		if err := s.WakeRx(); err != nil {
			t.Fatal(err)
		}
		b.check(t, 0)
	}
	st := noRefusals(t, s)
	n := uint64(packets)
	if st.Received != n || st.Transmitted != n || st.Completed != n || st.Filled != n+uint64(o.FillSize) || st.Kicks < n {
		t.Errorf("after %d packets: %+v", n, st)
	}
	if wake := o.BusyPoll.Duration > 0; wake != (st.Wakeups > 0) && want == xsk.Copy {
		t.Errorf("%d calls to wake the receiver, busy polling %v", st.Wakeups, wake)
	}
}

// TestRingsFull overfills each ring, and goes on afterwards.
func TestRingsFull(t *testing.T) {
	w := newBed(t).wire(t, "a", 1)
	u := newUMEM(t, xsk.UMEMOptions{Frames: 64})
	pool := u.NewPool(0, 64)
	s := w.open(t, u, 0, &xsk.SocketOptions{RxSize: 8, TxSize: 8, FillSize: 16, CompletionSize: 8, Prefill: take(t, pool, 12)})
	b := books{pool: pool, total: 64, sockets: []*xsk.Socket{s}}
	far := w.tap(t)
	var buf [2048]byte
	send := func(from, n int) {
		for i := range n {
			if err := far.send(packet(buf[:], uint32(from+i), 100)); err != nil {
				t.Fatal(err)
			}
		}
	}

	// Fill ring: 12 are in, 4 more fit.
	a := take(t, pool, 6)
	if n := s.Fill(a); n != 4 {
		t.Errorf("fill took %d, want 4", n)
	}
	pool.Free(a[4:]...)
	b.check(t, 0)

	// RX ring: 8 fit, the others are dropped and counted by the kernel.
	send(0, 20)
	until(t, "the kernel has dropped 12 packets", func() bool {
		st, _ := s.Stats()
		return st.Kernel.RxRingFull == 12
	})
	b.check(t, 0)
	var d [32]xsk.Desc
	if n := s.Receive(d[:3]); n != 3 {
		t.Fatalf("received %d, want 3", n)
	}
	if n := s.Receive(d[3:]); n != 5 {
		t.Fatalf("received %d, want the other 5", n)
	}
	for i := range 8 {
		if n, err := checkPacket(u.Data(d[i])); err != nil || n != uint32(i) {
			t.Errorf("packet %d: %d, %v", i, n, err)
		}
	}
	b.check(t, 8)

	// TX ring: 8 fit.
	for _, p := range d[:8] {
		pool.Free(p.Addr)
	}
	tx := make([]xsk.Desc, 12)
	for i, addr := range take(t, pool, 12) {
		packet(u.Frame(addr), uint32(i), 64)
		tx[i] = xsk.Desc{Addr: addr, Len: 64}
	}
	if n := s.Transmit(tx); n != 8 || s.Pending() != 8 {
		t.Errorf("transmit took %d, %d pending; want 8", n, s.Pending())
	}
	b.check(t, 4)
	// Completion ring: without Complete nothing more is sent than it has room for.
	if err := s.Kick(); err != nil || s.Pending() != 0 {
		t.Fatalf("kick: %v, %d pending", err, s.Pending())
	}
	if n := s.Transmit(tx[8:]); n != 4 {
		t.Fatalf("transmit took %d, want the other 4", n)
	}
	if err := s.Kick(); err != nil || s.Pending() != 4 {
		t.Errorf("kick with a full completion ring: %v, %d pending, want 4", err, s.Pending())
	}
	b.check(t, 0)
	var done [64]uint64
	if n := s.Complete(done[:]); n != 8 {
		t.Errorf("completed %d, want 8", n)
	}
	b.check(t, 8)
	pool.Free(done[:8]...)
	if err := s.Kick(); err != nil || s.Pending() != 0 {
		t.Errorf("kick: %v, %d pending", err, s.Pending())
	}
	for i := range 12 {
		if n, err := checkPacket(far.recv(buf[:])); err != nil || n != uint32(i) {
			t.Errorf("sent packet %d came as %d, %v", i, n, err)
		}
	}

	// Fill ring empty: 8 frames are left in it, or in the kernel's hand.
	send(100, 8)
	until(t, "8 packets have arrived", func() bool { _, rx, _, _ := s.InKernel(); return rx == 8 })
	if n := s.Receive(d[:]); n != 8 {
		t.Fatalf("received %d, want 8", n)
	}
	send(200, 5)
	until(t, "the kernel has missed 5 frames", func() bool {
		st, _ := s.Stats()
		return st.Kernel.FillRingEmpty+st.Kernel.RxDropped >= 5
	})
	b.check(t, 8+s.Complete(done[:]))
	for _, p := range d[:8] {
		if s.Fill([]uint64{p.Addr}) != 1 {
			t.Error("the fill ring is full")
		}
	}
	send(300, 1)
	until(t, "packets arrive again", func() bool { return s.Receive(d[:1]) == 1 })
	noRefusals(t, s)
}

// TestOneWay: a socket with only one of the rings.
func TestOneWay(t *testing.T) {
	w := newBed(t).wire(t, "a", 2)
	u := newUMEM(t, xsk.UMEMOptions{Frames: 32})
	pool := u.NewPool(0, 32)
	in := w.open(t, u, 0, &xsk.SocketOptions{TxSize: xsk.NoRing, Prefill: take(t, pool, 8)})
	out := w.open(t, u, 1, &xsk.SocketOptions{RxSize: xsk.NoRing})
	var d [4]xsk.Desc
	if in.Transmit([]xsk.Desc{{Addr: 0, Len: 60}}) != 0 || in.Kick() != nil || in.Pending() != 0 || in.Complete(make([]uint64, 4)) != 0 {
		t.Error("a socket without a tx ring sends")
	}
	if out.Receive(d[:]) != 0 || out.WakeRx() != nil {
		t.Error("a socket without an rx ring receives")
	}
	far := w.tap(t)
	a := take(t, pool, 1)
	packet(u.Frame(a[0]), 9, 80)
	if out.Transmit([]xsk.Desc{{Addr: a[0], Len: 80}}) != 1 || out.Kick() != nil {
		t.Error("the socket without an rx ring does not send")
	}
	var buf [2048]byte
	if n, err := checkPacket(far.recv(buf[:])); err != nil || n != 9 {
		t.Errorf("got %d, %v", n, err)
	}
}

// TestBudget sends a full TX ring in one system call, if the kernel lets it.
func TestBudget(t *testing.T) {
	w := newBed(t).wire(t, "a", 1)
	u := newUMEM(t, xsk.UMEMOptions{Frames: 256})
	s := w.open(t, u, 0, &xsk.SocketOptions{TxSize: 256})
	d := make([]xsk.Desc, 256)
	for i, a := range take(t, u.NewPool(0, 256), 256) {
		packet(u.Frame(a), uint32(i), 1514)
		d[i] = xsk.Desc{Addr: a, Len: 1514}
	}
	far := w.tap(t)
	if n := s.Transmit(d); n != 256 {
		t.Fatalf("transmit took %d", n)
	}
	if err := s.Kick(); err != nil || s.Pending() != 0 {
		t.Fatalf("kick: %v, %d pending", err, s.Pending())
	}
	var buf [2048]byte
	for i := range 256 {
		if n, err := checkPacket(far.recv(buf[:])); err != nil || n != uint32(i) {
			t.Fatalf("packet %d: %d, %v", i, n, err)
		}
	}
	st := noRefusals(t, s)
	kicks := uint64(1)
	if err := unix.SetsockoptInt(s.FD(), unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, 1); errors.Is(err, unix.ENOPROTOOPT) {
		kicks = 256 / 32 // Linux before 6.17 has a fixed budget
	}
	if st.Kicks != kicks || st.KickAgain != kicks-1 {
		t.Errorf("256 packets in %d calls, %d of them again; want %d calls", st.Kicks, st.KickAgain, kicks)
	}
}

// TestRandomLoad drives both directions and every call at random, with a fixed
// seed, and counts the frames after each step.
func TestRandomLoad(t *testing.T) {
	b := newBed(t)
	w := [2]*wire{b.wire(t, "a", 1), b.wire(t, "b", 1)}
	const total = 300
	u := newUMEM(t, xsk.UMEMOptions{Frames: total})
	pool := u.NewPool(0, total)
	bk := books{pool: pool, total: total}
	var far [2]*tap
	for i := range w {
		bk.sockets = append(bk.sockets, w[i].open(t, u, 0, &xsk.SocketOptions{RxSize: 32, TxSize: 16, FillSize: 64, CompletionSize: 32}))
		far[i] = w[i].tap(t)
	}
	rng := rand.New(rand.NewPCG(5, 6))
	var held []xsk.Desc // received, or allocated and written
	var buf [2048]byte
	var addrs [64]uint64
	var descs [64]xsk.Desc
	var sent, received, arrived [2]int
	for step := range 20000 {
		i := rng.IntN(2)
		s := bk.sockets[i]
		n := 1 + rng.IntN(63)
		switch rng.IntN(8) {
		case 0:
			for range n / 4 {
				if far[i].send(packet(buf[:], uint32(step), 60+rng.IntN(1400))) == nil {
					sent[i]++
				}
			}
		case 1:
			k := pool.Alloc(addrs[:n])
			pool.Free(addrs[s.Fill(addrs[:k]):k]...)
		case 2:
			for _, d := range descs[:s.Receive(descs[:n])] {
				if _, err := checkPacket(u.Data(d)); err != nil {
					t.Fatal(err)
				}
				held = append(held, d)
				received[i]++
			}
		case 3, 4:
			k := min(n, len(held))
			k = s.Transmit(held[:k])
			held = held[k:]
		case 5:
			if err := s.Kick(); err != nil {
				t.Fatal(err)
			}
		case 6:
			pool.Free(addrs[:s.Complete(addrs[:n])]...)
		case 7:
			for range n {
				p := far[i].poll(buf[:])
				if p == nil {
					break
				}
				if _, err := checkPacket(p); err != nil {
					t.Fatal(err)
				}
				arrived[i]++
			}
		}
		bk.check(t, len(held))
	}
	for i, s := range bk.sockets {
		st := noRefusals(t, s)
		if received[i] == 0 || arrived[i] == 0 || st.Kernel.RxRingFull+st.Kernel.FillRingEmpty == 0 {
			t.Errorf("side %d: %d sent, %d received, %d came back; %+v", i, sent[i], received[i], arrived[i], st)
		}
	}
}
