package xsk_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"penstock/xsk"
)

// forward moves what there is from one socket to another, and keeps the fill
// ring of in full.
func forward(t testing.TB, in, out *xsk.Socket, pool *xsk.Pool) {
	t.Helper()
	var d [64]xsk.Desc
	var addrs [64]uint64
	n := in.Receive(d[:])
	for _, p := range d[out.Transmit(d[:n]):n] {
		pool.Free(p.Addr)
	}
	if err := out.Kick(); err != nil {
		t.Fatal(err)
	}
	pool.Free(addrs[:out.Complete(addrs[:])]...)
	k := pool.Alloc(addrs[:])
	pool.Free(addrs[in.Fill(addrs[:k]):k]...)
	if err := in.WakeRx(); err != nil {
		t.Fatal(err)
	}
}

// TestForwardByDescriptor forwards both ways between two veths of one UMEM: not
// a byte is copied in user space, and each one is checked at the other end.
func TestForwardByDescriptor(t *testing.T) {
	b := newBed(t)
	forwardByDescriptor(t, b.wire(t, "a", 1), b.wire(t, "b", 1), xsk.Auto, 3000)
}

func forwardByDescriptor(t *testing.T, wa, wb *wire, mode xsk.Mode, packets uint32) {
	const total = 512
	u := newUMEM(t, xsk.UMEMOptions{Frames: total})
	pool := u.NewPool(0, total)
	o := xsk.SocketOptions{RxSize: 128, TxSize: 128, FillSize: 128, Mode: mode}
	a, c := wa.open(t, u, 0, &o), wb.open(t, u, 0, &o)
	bk := books{pool: pool, total: total, sockets: []*xsk.Socket{a, c}}
	far := [2]*tap{wa.tap(t), wb.tap(t)}
	forward(t, a, c, pool) // fills the fill rings
	forward(t, c, a, pool)

	const window = 50
	var sent, got [2]uint32
	var buf [2048]byte
	// A NIC may lose packets until its queues are set up.
	const early = 1 << 31
	var through [2]bool
	until(t, "first packets cross", func() bool {
		for i := range 2 {
			_ = far[i].send(packet(buf[:], early, 60))
		}
		forward(t, a, c, pool)
		forward(t, c, a, pool)
		for i := range 2 {
			through[i] = through[i] || far[i].poll(buf[:]) != nil
		}
		return through[0] && through[1]
	})
	until(t, "all packets are through", func() bool {
		for i := range 2 {
			for sent[i] < packets && sent[i]-got[1-i] < window {
				n := sent[i]<<1 | uint32(i)
				if err := far[i].send(packet(buf[:], n, 60+int(n*31)%1455)); err != nil {
					t.Fatal(err)
				}
				sent[i]++
			}
		}
		forward(t, a, c, pool)
		forward(t, c, a, pool)
		bk.check(t, 0)
		for i := range 2 {
			for {
				p := far[i].poll(buf[:])
				if p == nil {
					break
				}
				n, err := checkPacket(p)
				if n == early {
					continue
				}
				if err != nil || n != got[i]<<1|uint32(1-i) {
					t.Fatalf("side %d, packet %d: got %d, %v", i, got[i], n, err)
				}
				got[i]++
			}
		}
		return got[0] == packets && got[1] == packets
	})
	for _, s := range bk.sockets {
		noRefusals(t, s)
	}
}

// TestFourSockets: two veths of two queues each, one UMEM, four sockets; four
// more sockets of a second UMEM are the other ends. Each near socket has its own
// goroutine, pool and packets, as a worker has, and every packet comes back on
// the queue that it was sent on.
func TestFourSockets(t *testing.T) {
	b := newBed(t)
	near := newUMEM(t, xsk.UMEMOptions{Frames: 1024})
	away := newUMEM(t, xsk.UMEMOptions{Frames: 1024})
	o := xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 64}
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	var all [2][]*xsk.Socket
	slot := 0
	for _, name := range []string{"a", "b"} {
		w := b.wire(t, name, 2)
		back := b.existing(t, w.farName, w.name, 2)
		for q := range 2 {
			np, ap := near.NewPool(slot*256, 256), away.NewPool(slot*256, 256)
			slot++
			base := uint32(slot) << 24
			on, oa := o, o
			on.Prefill, oa.Prefill = take(t, np, 64), take(t, ap, 64)
			s, r := w.open(t, near, q, &on), back.open(t, away, q, &oa)
			all[0], all[1] = append(all[0], s), append(all[1], r)
			stop := make(chan struct{})
			wg.Add(2)
			go func() { // the far end echoes
				defer wg.Done()
				if err := echoUntil(r, ap, stop); err != nil {
					errs <- err
				}
			}()
			go func() {
				defer wg.Done()
				defer close(stop)
				if err := pingPong(s, np, base, 2000); err != nil {
					errs <- fmt.Errorf("%s queue %d: %w", name, q, err)
				}
			}()
		}
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	for _, half := range all {
		for _, s := range half {
			noRefusals(t, s)
		}
	}
}

func echoUntil(s *xsk.Socket, pool *xsk.Pool, stop chan struct{}) error {
	var d [32]xsk.Desc
	var addrs [32]uint64
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		n := s.Receive(d[:])
		if n == 0 {
			if err := s.Poll(time.Millisecond); err != nil {
				return err
			}
		}
		for _, p := range d[s.Transmit(d[:n]):n] {
			pool.Free(p.Addr)
		}
		if err := s.Kick(); err != nil {
			return err
		}
		s.Fill(addrs[:s.Complete(addrs[:])])
	}
}

// pingPong sends packets, a few at a time, and wants each back, in order.
func pingPong(s *xsk.Socket, pool *xsk.Pool, base uint32, packets uint32) error {
	var d [16]xsk.Desc
	var addrs [16]uint64
	u := s.UMEM()
	deadline := time.Now().Add(15 * time.Second)
	for sent, got := uint32(0), uint32(0); got < packets; {
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d packets came back", got, packets)
		}
		k := 0
		for sent < packets && sent-got < 16 && pool.Alloc(addrs[:1]) == 1 {
			b := packet(u.Frame(addrs[0]), base+sent, 60+int(sent*13)%1400)
			d[k] = xsk.Desc{Addr: addrs[0], Len: uint32(len(b))}
			k++
			sent++
		}
		if n := s.Transmit(d[:k]); n != k {
			return fmt.Errorf("transmit took %d of %d", n, k)
		}
		if err := s.Kick(); err != nil {
			return err
		}
		n := s.Receive(d[:])
		if n == 0 {
			if err := s.Poll(time.Millisecond); err != nil {
				return err
			}
		}
		for i := range n {
			if num, err := checkPacket(u.Data(d[i])); err != nil || num != base+got {
				return fmt.Errorf("packet %d came back as %#x: %w", got, num, err)
			}
			got++
			addrs[i] = d[i].Addr
		}
		if s.Fill(addrs[:n]) != n {
			return fmt.Errorf("the fill ring is full")
		}
		pool.Free(addrs[:s.Complete(addrs[:])]...)
	}
	return nil
}

// TestTwoGoroutines uses the RX side and the TX side of one socket from two
// goroutines that hand frames over in channels.
func TestTwoGoroutines(t *testing.T) {
	w := newBed(t).wire(t, "a", 1)
	u := newUMEM(t, xsk.UMEMOptions{Frames: 256})
	pool := u.NewPool(0, 256)
	s := w.open(t, u, 0, &xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 64, Prefill: take(t, pool, 64)})
	far := w.tap(t)
	const packets = 2000
	toTx, toRx := make(chan xsk.Desc, 256), make(chan uint64, 256)
	errs := make(chan error, 2)
	var wg sync.WaitGroup
	wg.Add(2)
	go func() { // RX
		defer wg.Done()
		defer close(toTx)
		var d [8]xsk.Desc
		for got := 0; got < packets; {
			n := s.Receive(d[:])
			for _, p := range d[:n] {
				toTx <- p
			}
			got += n
			for more := true; more; {
				select {
				case a := <-toRx:
					s.Fill([]uint64{a})
				default:
					more = false
				}
			}
			if err := s.Poll(time.Millisecond); err != nil {
				errs <- err
				return
			}
		}
	}()
	go func() { // TX
		defer wg.Done()
		var a [8]uint64
		for p := range toTx {
			for s.Transmit([]xsk.Desc{p}) == 0 {
			}
			if err := s.Kick(); err != nil {
				errs <- err
			}
			for _, x := range a[:s.Complete(a[:])] {
				toRx <- x
			}
		}
	}()
	var buf [2048]byte
	for i, got := uint32(0), uint32(0); got < packets; {
		for ; i < packets && i-got < 16; i++ {
			if err := far.send(packet(buf[:], i, 200)); err != nil {
				t.Fatal(err)
			}
		}
		n, err := checkPacket(far.recv(buf[:]))
		if err != nil || n != got {
			t.Fatalf("packet %d: %d, %v", got, n, err)
		}
		got++
		if _, err := s.Stats(); err != nil { // from a third one
			t.Fatal(err)
		}
	}
	wg.Wait()
	select {
	case err := <-errs:
		t.Error(err)
	default:
	}
	noRefusals(t, s)
}
