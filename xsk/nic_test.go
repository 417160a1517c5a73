package xsk_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"penstock/internal/lab/labtest"
	"penstock/xsk"
)

// TestOnNIC runs on real interfaces, which veth cannot stand in for: zero-copy.
// XSK_TEST_NICS names two cables, as NEAR:FAR,NEAR:FAR: an AF_XDP driver at the
// near ends, one queue each; anything at the far ends. With XSK_TEST_ZEROCOPY=1
// the near ends must be in zero-copy mode by default. It takes the interfaces
// down and up and sends packets of ether type 0x88b5.
func TestOnNIC(t *testing.T) {
	nics := os.Getenv("XSK_TEST_NICS")
	if nics == "" {
		t.Skip("SKIPPED: XSK_TEST_NICS names no interfaces (NEAR:FAR,NEAR:FAR)")
	}
	labtest.NeedRoot(t)
	var names [][2]string
	for _, cable := range strings.Split(nics, ",") {
		near, far, ok := strings.Cut(cable, ":")
		if !ok {
			t.Fatalf("XSK_TEST_NICS: want NEAR:FAR, got %q", cable)
		}
		names = append(names, [2]string{near, far})
	}
	if len(names) != 2 {
		t.Fatalf("XSK_TEST_NICS: want two cables, got %d", len(names))
	}
	wires := func(t *testing.T) (w [2]*wire) {
		b := &bed{}
		for i, n := range names {
			w[i] = b.existing(t, n[0], n[1], 1)
		}
		return w
	}
	for _, c := range []struct {
		name       string
		mode, want xsk.Mode
	}{{"auto", xsk.Auto, xsk.ZeroCopy}, {"copy", xsk.Copy, xsk.Copy}} {
		if c.mode == xsk.Auto && os.Getenv("XSK_TEST_ZEROCOPY") != "1" {
			c.want = xsk.Copy
		}
		t.Run(c.name, func(t *testing.T) {
			t.Run("echo", func(t *testing.T) {
				o := xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 64, Mode: c.mode}
				echo(t, wires(t)[0], o, xsk.UMEMOptions{Frames: 256}, 300, c.want)
			})
			t.Run("forward", func(t *testing.T) {
				w := wires(t)
				forwardByDescriptor(t, w[0], w[1], c.mode, 500)
			})
			t.Run("flap", func(t *testing.T) {
				w := wires(t)
				linkFlap(t, w[0], w[1], c.mode)
			})
			t.Run("close", func(t *testing.T) { closeAndReclaim(t, wires(t)[0], c.mode) })
		})
	}
}

// closeAndReclaim closes a socket that holds frames on both sides, and gets all
// of them back: in zero-copy mode only after the queue has been taken again.
func closeAndReclaim(t *testing.T, w *wire, mode xsk.Mode) {
	u := newUMEM(t, xsk.UMEMOptions{Frames: 256})
	pool := u.NewPool(0, 256)
	var last *xsk.Socket
	for round := range 4 {
		s, err := w.tryOpen(u, 0, &xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 64, Mode: mode, Prefill: take(t, pool, 60)})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		t.Cleanup(func() { s.Close() })
		w.steer(t, s)
		if last != nil {
			if n := reclaim(last, pool); last.Mode() == xsk.ZeroCopy && n != 62 {
				t.Errorf("round %d: %d frames came back, want 62", round, n)
			}
		}
		d := make([]xsk.Desc, 2)
		for i, a := range take(t, pool, 2) {
			packet(u.Frame(a), uint32(i), 64)
			d[i] = xsk.Desc{Addr: a, Len: 64}
		}
		s.Transmit(d)
		if round%2 == 0 {
			if err := s.Kick(); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		n := reclaim(s, pool)
		if want := map[xsk.Mode]int{xsk.Copy: 62, xsk.ZeroCopy: 0}[s.Mode()]; n != want {
			t.Errorf("round %d: %d frames came back at once in %v mode, want %d", round, n, s.Mode(), want)
		}
		last = s
	}
	s := w.open(t, u, 0, &xsk.SocketOptions{RxSize: 64, TxSize: 64, FillSize: 64, Mode: mode})
	reclaim(last, pool)
	bk := books{pool: pool, total: 256, sockets: []*xsk.Socket{s}}
	bk.check(t, 0)
	if pool.Len() != 256 {
		t.Errorf("%d frames of 256", pool.Len())
	}
	// And it works.
	far := w.tap(t)
	if s.Fill(take(t, pool, 30)) != 30 || s.WakeRx() != nil {
		t.Error("fill")
	}
	var buf [2048]byte
	var got [8]xsk.Desc
	until(t, "a packet arrives", func() bool {
		_ = far.send(packet(buf[:], 1, 200))
		_ = s.Poll(10 * time.Millisecond)
		return s.Receive(got[:]) > 0
	})
}
