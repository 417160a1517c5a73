package pipeline

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"penstock/internal/wire"
)

// tcpFrame returns a TCP frame without payload whose source port tells packets apart.
func tcpFrame(srcPort uint16, flags wire.TCPFlags) []byte {
	f := make([]byte, 14+20+20)
	f[12], f[13] = 0x08, 0x00
	ip := f[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(ip[2:], 40)
	copy(ip[12:], []byte{10, 0, 0, 1})
	copy(ip[16:], []byte{10, 0, 0, 2})
	binary.BigEndian.PutUint16(ip[10:], wire.Checksum(ip[:20], 0))
	t := wire.TCP(ip[20:])
	t.SetSrcPort(srcPort)
	t.SetDstPort(80)
	t.SetDataOffset(20)
	t.SetFlags(flags)
	return f
}

// waking is a stage that notes what it sees, and what it is told.
type waking struct {
	woke, passed int
	saw          []uint16
}

func (s *waking) Process(b *Batch) {
	for p := range b.Live() {
		s.saw = append(s.saw, p.Flow.SrcPort)
		p.Continue()
	}
}

func (s *waking) Woke(passed func(wire.Flow) bool, _ int64) {
	s.woke++
	for port := range uint16(3000) {
		if passed(wire.Flow{SrcPort: port}) {
			s.passed++
		}
	}
}

// passer lets pass the connections from some ports.
type passer struct {
	past  bool
	ports []uint16
	asked int
}

func (p *passer) PastWorkers(int) bool { return p.past }
func (p *passer) Passed(f wire.Flow) bool {
	p.asked++
	return slices.Contains(p.ports, f.SrcPort)
}

// A worker that was silent asks what has gone past it before it works on what has
// waited, and lets the first packets of such connections go by.
func TestSilentWorkerLooksBack(t *testing.T) {
	const silence = 800 * time.Millisecond
	st, other := &waking{}, &waking{}
	a, err := NewArena(make([]byte, 128*2048), 2048, 128, 2)
	if err != nil {
		t.Fatal(err)
	}
	b, peer := newBenchOn(t, a, 0, spec(false, st)), newBenchOn(t, a, 1, spec(false, other))
	Link([]*Worker{b.Worker, peer.Worker})
	now, beats := int64(time.Hour), 0
	p := &passer{ports: []uint16{7}}
	inBeat := time.Duration(0)
	for _, w := range []*bench{b, peer} {
		w.clock = func() int64 { return now }
		w.o.Default, w.o.Passer, w.o.Silence = 0, p, silence
		w.o.Beat = func() {
			beats++
			now += int64(inBeat)
			inBeat = 0
		}
	}
	send := func(ports ...uint16) {
		t.Helper()
		for _, port := range ports {
			if !b.lan.Inject(tcpFrame(port, wire.FlagSYN)) {
				t.Fatal("no room")
			}
		}
		st.saw = nil
		b.turn(t)
		b.wan.Sent()
	}
	expect := func(when string, woke int, saw ...uint16) {
		t.Helper()
		if st.woke != woke || !slices.Equal(st.saw, saw) {
			t.Errorf("%s: woke %d times, want %d; saw %v, want %v", when, st.woke, woke, st.saw, saw)
		}
	}
	send(7, 8)
	expect("the first turn", 0, 7, 8)
	now += int64(silence)
	p.past = true
	send(7, 8)
	expect("in time", 0, 7, 8)
	now += int64(silence) + 1
	p.past = false
	send(7, 8)
	expect("nothing has gone past", 0, 7, 8)
	now += int64(silence) + 1
	p.past = true
	beats = 0
	send(7, 8)
	expect("too late", 1, 8)
	if st.passed != 1 || beats < 3 { // before, after, and while it asks thousands of times
		t.Errorf("%d connections have passed, want 1; %d signs of life", st.passed, beats)
	}
	peer.turn(t)
	if other.woke != 1 {
		t.Errorf("the other worker was told %d times, want once", other.woke)
	}
	now += int64(doubtTime) / 2
	send(8, 7)
	expect("soon after it", 1, 8)
	now += int64(doubtTime) / 2
	asked := p.asked
	send(8, 7)
	expect("later", 1, 8, 7)
	if p.asked != asked {
		t.Error("it still asks")
	}
	now += int64(BeatInterval)
	inBeat = silence
	send(7, 8)
	expect("let go of while it gives its sign of life", 2, 8)
	b.check(t)
}
