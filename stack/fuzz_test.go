package stack_test

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/stack"
)

// tryout plays a byte string as a conversation: every eight bytes are a segment
// of one of the ends, near enough to what would be right to get somewhere.
type tryout struct {
	b    *bed
	next [2]uint32 // by port: the sequence number its end would use
	last [2]wire.TCP
	done [2]int
	base uint16 // the client's lowest port
}

var tryOptions = [][]byte{
	nil, optMSS(1460), join(optMSS(1), optSACK), join(optMSS(65535), optSACK, optTS(1, 0), []byte{1}, optScale),
	{wire.OptMPTCP, 4, 0, 0}, {wire.OptMD5, 18}, {3, 3, 255}, {1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2},
	join([]byte{1, 1}, optTS(9, 9)), {0, 9, 9, 9}, {8, 11, 0}, {34, 2, 4, 2},
}

func (y *tryout) play(op []byte) {
	port := pipeline.PortID(op[0] & 1)
	from, to := addr(client4, y.base+uint16(op[0]>>1&1)), addr(server4, 80)
	f := frame{srcMAC: clientMAC, dstMAC: serverMAC, window: uint16(op[6]) << 8}
	if op[0]&4 != 0 {
		from, to = addr(client6, y.base), addr(server6, 80)
	}
	f.src, f.dst = from, to
	if port == wan {
		f.src, f.dst, f.srcMAC, f.dstMAC = to, from, serverMAC, clientMAC
	}
	if op[0]&8 != 0 {
		f.vlan = []uint16{uint16(op[0] >> 4)}
	}
	f.flags = wire.TCPFlags(op[1])
	f.seq = y.next[port] + uint32(int32(int8(op[2])))
	if l := y.last[port]; l != nil {
		f.ack = l.Seq() + uint32(len(l.Payload())) + uint32(int32(int8(op[3])))
		if l.Flags()&(wire.FlagSYN|wire.FlagFIN) != 0 {
			f.ack++
		}
	}
	f.options = tryOptions[int(op[4])%len(tryOptions)]
	f.payload = make([]byte, int(op[5])*5)
	if op[2] == 0 {
		y.next[port] = f.seq + uint32(len(f.payload))
		if f.flags&(wire.FlagSYN|wire.FlagFIN) != 0 {
			y.next[port]++
		}
	}
	b := f.build()
	switch op[7] >> 4 {
	case 1: // damaged
		b[int(op[7]&15)*5%len(b)] ^= op[6] | 1
	case 2: // in pieces
		if f.src.Addr().Is4() && len(b) > 80 {
			for _, piece := range fragments(b[:len(b)-len(f.vlan)*4], 24) {
				y.b.ports[port].send(piece)
			}
			return
		}
	case 3: // as what an ICMP error from the other side quotes
		var h wire.Headers
		if h.Parse(b) == wire.FaultNone {
			b = icmpMessage(f.dstMAC, f.srcMAC, f.dst.Addr(), f.src.Addr(), op[7]&7, op[6]&7, uint32(op[5])*6, b[h.L3:min(int(h.End), int(h.L3)+int(op[5]))])
			port = 1 - port
		}
	case 4:
		b = b[:int(op[6])%len(b)]
	}
	y.b.ports[port].send(b)
}

// turns lets the worker and netstack run, and looks at what came out.
func (y *tryout) turns(n int) {
	for idle := 0; n > 0 && idle < 4; n-- {
		busy, _ := y.b.worker.Turn()
		if runtime.Gosched(); busy {
			idle = 0
		} else {
			idle++
		}
	}
	for port, w := range y.b.ports {
		frames := w.frames()
		for _, f := range frames[y.done[port]:] {
			var h wire.Headers
			if !f.in && h.Parse(f.frame) == wire.FaultNone && h.HasL4 && h.Proto == wire.ProtoTCP {
				y.last[port] = wire.TCP(f.frame[h.L4:h.End])
			}
		}
		y.done[port] = len(frames)
	}
}

func (y *tryout) run(script []byte) {
	for len(script) >= 8 {
		y.play(script[:8])
		y.turns(12)
		script = script[8:]
	}
	if len(script) > 0 {
		y.b.ports[lan].send(script)
		y.turns(1)
	}
}

func newTryout(t testing.TB, flows int) *tryout {
	st := &script{data: func(_ *scripted, _ pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
		if len(b) > 500 && b[0] == 0 {
			return len(b) / 2, pipeline.StreamVerdict{}
		}
		return len(b), pipeline.StreamVerdict{}
	}}
	b := newBed(t, bedOptions{noHosts: true, noRun: true, frames: 256, streams: []pipeline.StreamStage{st}, options: func(o *stack.Options) {
		o.MaxFlows, o.MaxPending = flows, flows
		o.TimeWait, o.CloseTimeout, o.HandshakeTimeout, o.DialTimeout = 1, 1, time.Millisecond, time.Millisecond
		o.IdleTimeout = 100 * time.Millisecond
	}})
	return &tryout{b: b, next: [2]uint32{100, 200}, base: 5000}
}

// A whole connection, as play reads it: SYN, SYN-ACK, ACK, data both ways, FINs.
var wholeConnection = []byte{
	0, 0x02, 0, 0, 3, 0, 255, 0,
	1, 0x12, 0, 0, 3, 0, 255, 0,
	0, 0x10, 0, 0, 0, 0, 255, 0,
	0, 0x18, 0, 0, 8, 100, 255, 0,
	1, 0x18, 0, 0, 8, 200, 255, 0,
	0, 0x11, 0, 0, 8, 0, 255, 0,
	1, 0x11, 0, 0, 8, 0, 255, 0,
	0, 0x10, 0, 0, 8, 0, 255, 0,
	1, 0x10, 0, 0, 8, 0, 255, 0,
}

// FuzzInput: whatever comes in, nothing panics, no frame is lost, every packet
// has a verdict.
func FuzzInput(f *testing.F) {
	f.Add(wholeConnection)
	f.Add(append(wholeConnection[:24:24], 0, 0x04, 0, 0, 0, 0, 0, 0))
	f.Add([]byte{0, 0x02, 0, 0, 1, 0, 9, 0, 0, 0x02, 0, 0, 1, 90, 1, 0x30, 0, 0x02, 0, 0, 1, 90, 1, 0x33})
	f.Add([]byte{4, 0x02, 0, 0, 3, 0, 255, 0, 5, 0x14, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{8, 0x02, 0, 0, 3, 0, 255, 0, 8 + 16, 0x02, 0, 0, 3, 0, 255, 0, 0, 0x18, 0, 0, 0, 200, 9, 0x20})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 512 {
			return
		}
		y := newTryout(t, 2)
		y.run(script)
		y.b.stop()
	})
}

// TestGarbage is what FuzzInput does, at random and for a while, on one stage:
// what one conversation leaves behind, the next one finds.
func TestGarbage(t *testing.T) {
	y := newTryout(t, 50)
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 600 {
		y.base = 5000 + uint16(round)*2
		y.next, y.last = [2]uint32{rng.Uint32(), rng.Uint32()}, [2]wire.TCP{}
		script := append([]byte(nil), wholeConnection...)
		for range rng.IntN(12) {
			script[rng.IntN(len(script))] = byte(rng.IntN(256))
		}
		if rng.IntN(3) == 0 {
			at := rng.IntN(len(script)/8) * 8
			script = append(script[:at], script[min(at+8, len(script)):]...)
		}
		y.run(script)
	}
	st := y.b.worker.Stats()
	if st.Panics != 0 || !st.Totals.Balanced() {
		t.Errorf("panics %d, totals %+v", st.Panics, st.Totals)
	}
	if n := y.b.count("accepted"); n < 50 {
		t.Errorf("%d conversations got as far as a connection: the test tests little", n)
	}
}
