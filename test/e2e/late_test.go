package e2e

import (
	"context"
	"io"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/wire"
	"penstock/pcap"
)

// timerGap is what tells a segment that a retransmission timer has sent again
// from one that was sent again because its receiver reported a gap: no such timer
// of Linux or netstack is shorter than 200 ms, and a round trip here takes less than 10.
const timerGap = 190 * time.Millisecond

// tcpSegment is what of a captured segment tells whether it was sent before.
type tcpSegment struct {
	at       int64 // ns since the epoch
	from, to netip.AddrPort
	seq, ack uint32
	n        uint32 // bytes; SYN and FIN count 1
	acks     bool   // ack counts
	window   uint16 // as it stands in the header
}

// lateSegment is a segment that was sent again after timerGap or more.
type lateSegment struct {
	first, again int64 // when it was sent before, and now
	from, to     netip.AddrPort
}

// sentRange is what was sent and is not acknowledged yet.
type sentRange struct {
	begin, end uint32
	at         int64
}

// oneWire finds in the segments of one wire, given in their order, those that
// were sent again.
type oneWire struct {
	ways  map[[2]netip.AddrPort]*oneWay
	segs  int
	again int           // segments that were sent again
	late  []lateSegment // those of them that a timer has sent
}

type oneWay struct {
	out    []sentRange // in the order of their numbers
	max    uint32
	begun  bool
	closed bool // the receiver's window: what is sent then is a probe
}

func (o *oneWire) way(from, to netip.AddrPort) *oneWay {
	k := [2]netip.AddrPort{from, to}
	if o.ways[k] == nil {
		if o.ways == nil {
			o.ways = map[[2]netip.AddrPort]*oneWay{}
		}
		o.ways[k] = &oneWay{}
	}
	return o.ways[k]
}

func (o *oneWire) add(s tcpSegment) {
	o.segs++
	if s.acks {
		r := o.way(s.to, s.from)
		done := 0
		for done < len(r.out) && int32(r.out[done].end-s.ack) <= 0 {
			done++
		}
		r.out = r.out[done:]
		r.closed = s.window == 0
	}
	if s.n == 0 {
		return
	}
	w, end := o.way(s.from, s.to), s.seq+s.n
	if !w.begun || int32(s.seq-w.max) >= 0 {
		w.begun, w.max = true, end
		w.out = append(w.out, sentRange{s.seq, end, s.at})
		return
	}
	first := int64(-1)
	for i := range w.out {
		if r := &w.out[i]; int32(r.end-s.seq) > 0 && int32(end-r.begin) > 0 {
			if first < 0 {
				first = r.at
			}
			r.at = s.at
		}
	}
	if int32(end-w.max) > 0 { // and more
		w.out = append(w.out, sentRange{w.max, end, s.at})
		w.max = end
	}
	if first < 0 || w.closed {
		return // acknowledged meanwhile: a copy that came late
	}
	o.again++
	if s.at-first >= int64(timerGap) {
		o.late = append(o.late, lateSegment{first, s.at, s.from, s.to})
	}
}

func TestSentAgain(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2")
	const ms = int64(time.Millisecond)
	data := func(at int64, seq, n uint32) tcpSegment {
		return tcpSegment{at: at * ms, from: a, to: b, seq: seq, n: n, acks: true, window: 1}
	}
	ack := func(at int64, ack uint32, window uint16) tcpSegment {
		return tcpSegment{at: at * ms, from: b, to: a, ack: ack, acks: true, window: window}
	}
	top := uint32(0xffffff00) // numbers wrap
	for _, c := range []struct {
		name        string
		segs        []tcpSegment
		late, again int
	}{
		{"in order", []tcpSegment{data(0, top, 1000), ack(1, top+1000, 1), data(300, top+1000, 10)}, 0, 0},
		{"a gap that was reported", []tcpSegment{data(0, top, 1000), data(0, top+1000, 1000), ack(1, top, 1), data(2, top, 1000)}, 0, 1},
		{"a timer", []tcpSegment{data(0, top, 1000), data(0, top+1000, 1000), data(201, top, 1000)}, 1, 1},
		{"a timer, twice as long the second time", []tcpSegment{data(0, top, 1000), data(201, top, 1000), data(602, top, 1000)}, 2, 2},
		{"a timer, and new bytes with it", []tcpSegment{data(0, top, 1000), data(201, top, 2000), ack(202, top+2000, 1), data(500, top+2000, 1)}, 1, 1},
		{"a timer after a gap was mended in time", []tcpSegment{data(0, top, 1000), data(5, top, 1000), data(210, top, 1000)}, 1, 2},
		{"behind what was acknowledged", []tcpSegment{data(0, top, 1000), data(0, top+1000, 1000), ack(100, top+1000, 1), data(250, top+1000, 1000)}, 1, 1},
		{"a probe of a closed window", []tcpSegment{data(0, top, 1), ack(1, top, 0), data(300, top, 1)}, 0, 0},
		{"a copy of what was acknowledged", []tcpSegment{data(0, top, 10), ack(1, top+10, 1), data(300, top, 10)}, 0, 0},
	} {
		var w oneWire
		for _, s := range c.segs {
			w.add(s)
		}
		if len(w.late) != c.late || w.again != c.again {
			t.Errorf("%s: %d late of %d sent again, want %d of %d", c.name, len(w.late), w.again, c.late, c.again)
		}
	}
}

// wireCapture is a running dumpcap: the beginning of each frame of an interface.
type wireCapture struct {
	cmd  *lab.Cmd
	wire oneWire
	done chan error // closed when all is read
}

// captureEnds looks at what crosses the interfaces of both ends.
func (r *rig) captureEnds() (ends [2]*wireCapture) {
	r.t.Helper()
	for i, n := range []*lab.NS{r.Client, r.Server} {
		r.run(n, 10*time.Second, "dumpcap", "-v")
		c := &wireCapture{done: make(chan error, 1)}
		c.cmd = n.Command(context.Background(), "dumpcap", "-q", "-i", "eth0", "-s", "128", "-B", "64", "-f", "tcp", "-w", "-")
		out, err := c.cmd.StdoutPipe()
		if err != nil {
			r.t.Fatal(err)
		}
		if err := c.cmd.Start(); err != nil {
			r.t.Fatal(err)
		}
		// It writes the file's header when the interface is open.
		in, err := pcap.NewReader(n.Role(), out)
		if err != nil {
			r.t.Fatal(err)
		}
		go func() { c.done <- c.read(in) }()
		ends[i] = c
	}
	return ends
}

func (c *wireCapture) read(in *pcap.Reader) error {
	defer in.Close()
	for {
		var rec pcap.Record
		if err := in.Next(&rec); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if s, ok := segmentOf(&rec); ok {
			c.wire.add(s)
		}
	}
}

// stop ends the capture and returns what it has seen.
func (c *wireCapture) stop(t *testing.T) *oneWire {
	t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := <-c.done; err != nil {
		t.Error(err)
	}
	_ = c.cmd.Wait()
	return &c.wire
}

// segmentOf reads a frame of which the headers were captured.
func segmentOf(rec *pcap.Record) (s tcpSegment, ok bool) {
	b := rec.Data
	if len(b) < 54 {
		return s, false
	}
	var src, dst netip.Addr
	var tcp []byte
	var n int
	switch b[14] >> 4 {
	case 4:
		ip := wire.IPv4(b[14:])
		src, dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		head := int(ip[0]&15) * 4
		tcp, n = ip[head:], (int(ip[2])<<8|int(ip[3]))-head
	case 6:
		ip := b[14:]
		if len(ip) < 60 || ip[6] != wire.ProtoTCP {
			return s, false
		}
		src, dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
		tcp, n = ip[40:], int(ip[4])<<8|int(ip[5])
	default:
		return s, false
	}
	if len(tcp) < wire.TCPLen {
		return s, false
	}
	h := wire.TCP(tcp)
	s = tcpSegment{
		at: rec.Time, from: netip.AddrPortFrom(src, h.SrcPort()), to: netip.AddrPortFrom(dst, h.DstPort()),
		seq: h.Seq(), ack: h.Ack(), n: uint32(n - h.DataOffset()), acks: h.Flags()&wire.FlagACK != 0, window: h.Window(),
	}
	if h.Flags()&(wire.FlagSYN|wire.FlagFIN) != 0 {
		s.n++
	}
	return s, true
}
