package xsk_test

import (
	"errors"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"penstock/xsk"
)

// TestLinkFlap takes the link down and up, each end in turn, while packets are
// forwarded: no frame is lost, nothing fails for good, traffic resumes.
func TestLinkFlap(t *testing.T) {
	b := newBed(t)
	linkFlap(t, b.wire(t, "a", 1), b.wire(t, "b", 1), xsk.Auto)
}

func linkFlap(t *testing.T, wa, wb *wire, mode xsk.Mode) {
	const total = 2048 // zero-copy drivers keep as many as their receive ring is long
	u := newUMEM(t, xsk.UMEMOptions{Frames: total})
	pool := u.NewPool(0, total)
	o := xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 64, Mode: mode}
	in, out := wa.open(t, u, 0, &o), wb.open(t, u, 0, &o)
	bk := books{pool: pool, total: total, sockets: []*xsk.Socket{in, out}}
	from, to := wa.tap(t), wb.tap(t)
	forward(t, in, out, pool)

	var number uint32
	var buf [2048]byte
	// crosses sends packets until one arrives that was sent after the call.
	crosses := func(when string) {
		t.Helper()
		first := number
		until(t, "packets cross "+when, func() bool {
			_ = from.send(packet(buf[:], number, 300))
			number++
			forward(t, in, out, pool)
			bk.check(t, 0)
			for p := to.poll(buf[:]); p != nil; p = to.poll(buf[:]) {
				if n, err := checkPacket(p); err != nil {
					t.Fatal(err)
				} else if n >= first {
					return true
				}
			}
			return false
		})
	}
	// queue transmits two packets without Kick.
	queue := func() {
		t.Helper()
		for _, a := range take(t, pool, 2) {
			p := packet(u.Frame(a), number, 100)
			number++
			if out.Transmit([]xsk.Desc{{Addr: a, Len: uint32(len(p))}}) != 1 {
				t.Fatal("the tx ring is full")
			}
		}
	}
	crosses("at first")
	for round := range 3 {
		// Our own end is down: nothing can be sent, and Kick says so each time.
		wb.setLink(t, wb.name, false)
		queue()
		for range 3 {
			if err := out.Kick(); !errors.Is(err, xsk.ErrLinkDown) || errors.Is(err, xsk.ErrLinkGone) {
				t.Fatalf("round %d: kick with the link down: %v, want ErrLinkDown", round, err)
			}
		}
		if out.Pending() != 2 {
			t.Errorf("%d packets pending, want 2", out.Pending())
		}
		if err := out.Err(); err != nil {
			t.Errorf("a link that is down is not gone: %v", err)
		}
		bk.check(t, 0)
		wb.setLink(t, wb.name, true)
		until(t, "the two packets leave", func() bool {
			if err := out.Kick(); err != nil {
				t.Fatal(err)
			}
			return out.Pending() == 0
		})
		crosses("after our end was down")

		if wb.ns != nil { // only a veth loses its carrier with the far end
			before := noRefusals(t, out)
			wb.setLink(t, wb.farName, false)
			queue()
			until(t, "the packets are dropped", func() bool {
				if err := out.Kick(); err != nil {
					t.Fatal(err)
				}
				return out.Pending() == 0
			})
			bk.check(t, 0)
			if st := noRefusals(t, out); st.KickDrops == before.KickDrops {
				t.Error("packets sent without carrier are not counted as dropped")
			}
			wb.setLink(t, wb.farName, true)
			crosses("after the far end was down")
		}

		// The receiving side.
		wa.setLink(t, wa.name, false)
		if err := in.WakeRx(); err != nil && !errors.Is(err, xsk.ErrLinkDown) { // a zero-copy driver says so
			t.Errorf("wake with the link down: %v", err)
		}
		bk.check(t, 0)
		wa.setLink(t, wa.name, true)
		crosses("after the receiving end was down")
	}
	if st := noRefusals(t, out); st.LinkDowns < 9 {
		t.Errorf("%d calls found the link down, want 9 or more", st.LinkDowns)
	}
}

// TestLinkGone removes an interface under its socket. The other socket of the
// same UMEM goes on, and the frames come back.
func TestLinkGone(t *testing.T) {
	b := newBed(t)
	wa, wb := b.wire(t, "a", 1), b.wire(t, "b", 1)
	u := newUMEM(t, xsk.UMEMOptions{Frames: 128})
	pool := u.NewPool(0, 128)
	o := xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 64}
	oa := o
	oa.Prefill = take(t, pool, 40)
	a, c := wa.open(t, u, 0, &oa), wb.open(t, u, 0, &o)
	bk := books{pool: pool, total: 128, sockets: []*xsk.Socket{a, c}}
	far := wa.tap(t)
	var buf [2048]byte
	for i := range uint32(5) {
		if err := far.send(packet(buf[:], i, 100)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "they arrive", func() bool { _, rx, _, _ := a.InKernel(); return rx == 5 })
	x := take(t, pool, 1)
	packet(u.Frame(x[0]), 7, 100)
	if a.Transmit([]xsk.Desc{{Addr: x[0], Len: 100}}) != 1 {
		t.Fatal("the tx ring is full")
	}
	bk.check(t, 0)
	if err := a.Err(); err != nil {
		t.Errorf("before: %v", err)
	}

	b.do(t, func() error {
		l, err := netlink.LinkByName("a")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	for range 2 {
		if err := a.Err(); !errors.Is(err, xsk.ErrLinkGone) {
			t.Errorf("Err: %v, want ErrLinkGone", err)
		}
		if err := a.Kick(); !errors.Is(err, xsk.ErrLinkGone) || !errors.Is(err, xsk.ErrLinkDown) {
			t.Errorf("kick: %v, want ErrLinkGone", err)
		}
	}
	if err := a.Poll(time.Millisecond); err != nil {
		t.Errorf("poll: %v", err)
	}
	// What had arrived can still be read.
	var d [8]xsk.Desc
	if n := a.Receive(d[:]); n != 5 {
		t.Errorf("received %d, want 5", n)
	}
	bk.check(t, 5)
	for _, p := range d[:5] {
		pool.Free(p.Addr)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	reclaim(a, pool)
	if pool.Len() != 128 {
		t.Errorf("%d frames of 128 came back", pool.Len())
	}
	// The survivor.
	x = take(t, pool, 1)
	packet(u.Frame(x[0]), 8, 100)
	other := wb.tap(t)
	if c.Transmit([]xsk.Desc{{Addr: x[0], Len: 100}}) != 1 || c.Kick() != nil {
		t.Error("the other socket cannot send")
	}
	if n, err := checkPacket(other.recv(buf[:])); err != nil || n != 8 {
		t.Errorf("got %d, %v", n, err)
	}
}

// reclaim puts all frames of a closed socket into the pool.
func reclaim(s *xsk.Socket, pool *xsk.Pool) (n int) {
	var addrs [7]uint64
	for k := s.Reclaim(addrs[:]); k > 0; k = s.Reclaim(addrs[:]) {
		pool.Free(addrs[:k]...)
		n += k
	}
	return n
}
