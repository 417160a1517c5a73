package pipeline

import "testing"

// TestPeer: ports are wires in pairs, and a port without another end is its own.
func TestPeer(t *testing.T) {
	for _, c := range []struct {
		ports    int
		of, want PortID
	}{{2, 0, 1}, {2, 1, 0}, {4, 2, 3}, {4, 3, 2}, {4, 0, 1}, {1, 0, 0}, {3, 2, 2}} {
		if got := peer(c.ports, c.of); got != c.want {
			t.Errorf("of %d ports, %d is the peer of %d, want %d", c.ports, got, c.of, c.want)
		}
	}
}

// late emits by a port, when it is told to, and counts whom it cuts.
type late struct {
	e   Emitter
	cut []PortID
}

func (s *late) Process(b *Batch) {
	for p := range b.Live() {
		p.Continue()
	}
}

func (s *late) emit(out PortID) {
	p := s.e.Alloc()
	p.SetView(p.Offset(), 60)
	p.Out = out
	s.e.Emit(p)
}

// CutPorts implements PortCutter: its last packet leaves by the port.
func (s *late) CutPorts(gone func(PortID) bool, _ int64) int {
	for id := range PortID(4) {
		if gone(id) {
			s.cut = append(s.cut, id)
			s.emit(id)
		}
	}
	return len(s.cut)
}

// TestSetPort: a worker gets a wire, and loses it again: what was for it has left, or
// is counted, and the other one goes on.
func TestSetPort(t *testing.T) {
	st := &late{}
	b := newBench(t, 256, st)
	st.e = b.Worker
	b.AddTap(&TapSpec{Tap: nothing{}, Points: []TapPoint{{Port: 0}}})
	b.o.Default = 0
	third, fourth := NewMemoryPort(PortInfo{ID: 2}, b.pool, 64), NewMemoryPort(PortInfo{ID: 3}, b.pool, 64)
	for range 3 {
		st.cut = nil
		b.Call(func() { b.SetPort(2, third); b.SetPort(3, fourth) })
		b.turn(t)
		third.Inject(udp(1, 1))
		b.lan.Inject(udp(2, 1))
		b.turn(t)
		if len(fourth.Sent()) != 1 || len(b.wan.Sent()) != 1 {
			t.Error("a packet has not come to the other end of its wire")
		}
		b.Call(func() {
			st.emit(3) // waits in the worker
			if n := b.CutPorts(func(id PortID) bool { return id >= 2 }); n != 2 {
				t.Errorf("%d were cut", n)
			}
			b.SetPort(2, nil)
			b.SetPort(3, nil)
			st.emit(2)
		})
		before := b.Stats().Totals
		b.turn(t)
		if n, m := len(third.Sent()), len(fourth.Sent()); n != 1 || m != 2 {
			t.Errorf("%d and %d packets have left by what is gone, want 1 and 2", n, m)
		}
		got := b.check(t)
		if got.EmitLost != before.EmitLost+1 || got.Emitted != before.Emitted+3 {
			t.Errorf("%+v, before %+v", got, before)
		}
	}
	p := b.pool.Get()
	p.SetView(p.Offset(), 60)
	p.Forward(3)
	b.packets.Add(1)
	b.finish(p)
	if got := b.check(t); got.Dropped[ReasonNoPort.String()] != 1 {
		t.Errorf("a packet for what is gone: %+v", got)
	}
}
