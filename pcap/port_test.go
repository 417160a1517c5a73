package pcap_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pcap"
	"penstock/pipeline"
	pt "penstock/pipeline/pipelinetest"
)

// TestPortConforms runs the suite that all ports answer to.
func TestPortConforms(t *testing.T) {
	pt.Port(t, func(t *testing.T, in [][]byte) *pt.PortUnderTest {
		r, err := pcap.NewReader("in", bytes.NewReader(pt.Capture(time.Millisecond, in...)))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		w, err := pcap.NewWriter(&out, pcap.WriterOptions{Interfaces: []pcap.Interface{{Name: "client"}, {Name: "server"}}})
		if err != nil {
			t.Fatal(err)
		}
		arena, err := pcap.NewArena(1, 128)
		if err != nil {
			t.Fatal(err)
		}
		ports := pcap.NewFeed(pcap.FeedOptions{Reader: r, Writer: w, Pool: arena.Pool(0)}).Ports(0)
		return &pt.PortUnderTest{
			Port: ports[0], Pool: arena.Pool(0), Others: ports[1:], Ends: true, Waits: true,
			Sent: func() (frames [][]byte) {
				if err := w.Flush(); err != nil {
					t.Fatal(err)
				}
				list, err := readAll("out", bytes.NewReader(out.Bytes()))
				if err != io.EOF {
					t.Fatal(err)
				}
				for _, rec := range list {
					frames = append(frames, rec.Data)
				}
				return frames
			},
		}
	})
}

// TestDirections says by which port packets come in.
func TestDirections(t *testing.T) {
	const (
		syn, ack, rst = wire.FlagSYN, wire.FlagACK, wire.FlagRST
		c, s          = "10.0.0.1:1000", "10.0.0.2:80"
		c6, s6        = "[2001:db8::1]:1000", "[2001:db8::2]:80"
	)
	about := pt.TCP(c, s, syn, 1)
	fragments := pt.Fragments(pt.UDP("10.0.0.1:5", "10.0.0.2:5", pt.PayloadLen(100)), 64)
	replies := pt.Fragments(pt.UDP("10.0.0.2:5", "10.0.0.1:5", pt.PayloadLen(100)), 64)
	rows := []struct {
		name   string
		frames [][]byte
		want   []pipeline.PortID
	}{
		{"a handshake", [][]byte{about, pt.TCP(s, c, syn|ack, 9), pt.TCP(c, s, ack, 2)}, []pipeline.PortID{0, 1, 0}},
		{"a handshake over IPv6", [][]byte{pt.TCP(c6, s6, syn, 1), pt.TCP(s6, c6, syn|ack, 9), pt.TCP(c6, s6, ack, 2)}, []pipeline.PortID{0, 1, 0}},
		{"a SYN-ACK first", [][]byte{pt.TCP(s, c, syn|ack, 9), about, pt.TCP(s, c, ack, 9)}, []pipeline.PortID{1, 0, 1}},
		{"mid-stream", [][]byte{pt.TCP(s, c, ack, 9), pt.TCP(c, s, ack, 9)}, []pipeline.PortID{0, 1}},
		{"a flow the other way", [][]byte{about, pt.TCP("10.0.0.2:2000", "10.0.0.1:21", syn, 1)}, []pipeline.PortID{0, 0}},
		{"the same ports on another VLAN", [][]byte{about, pt.TCP(s, c, ack, 1, pt.VLAN(5)), pt.TCP(s, c, ack, 1)}, []pipeline.PortID{0, 0, 1}},
		{"UDP", [][]byte{pt.UDP(s, c), pt.UDP(c, s), pt.UDP(s, c)}, []pipeline.PortID{0, 1, 0}},
		{"ping", [][]byte{pt.Ping("10.0.0.9", "10.0.0.1", 1, 1), pt.Pong("10.0.0.1", "10.0.0.9", 1, 1)}, []pipeline.PortID{0, 1}},
		{"an error from the server's side", [][]byte{about, pt.ICMPError("10.9.9.9", 3, 1, [4]byte{}, about)}, []pipeline.PortID{0, 1}},
		{"an error from the client's side", [][]byte{about, pt.ICMPError("10.9.9.9", 11, 0, [4]byte{}, pt.TCP(s, c, syn|ack, 9))}, []pipeline.PortID{0, 0}},
		{"an error about nothing known", [][]byte{pt.ICMPError("10.9.9.9", 3, 1, [4]byte{}, about)}, []pipeline.PortID{0}},
		{"fragments", append(fragments, replies...), []pipeline.PortID{0, 0, 1, 1}},
		{"a later fragment of a known pair", [][]byte{about, replies[1]}, []pipeline.PortID{0, 1}},
		{"GRE", [][]byte{pt.IP("10.0.0.1", "10.0.0.2", 47), pt.IP("10.0.0.2", "10.0.0.1", 47)}, []pipeline.PortID{0, 1}},
		{"ARP", [][]byte{pt.ARP("10.0.0.1", "10.0.0.2"), pt.ARP("10.0.0.2", "10.0.0.1")}, []pipeline.PortID{0, 0}},
		{"malformed", [][]byte{about[:30], {}, about[:50]}, []pipeline.PortID{0, 0, 0}},
		{"an end and a beginning", [][]byte{about, pt.TCP(s, c, rst, 0), about, pt.TCP(s, c, syn|ack, 5)}, []pipeline.PortID{0, 1, 0, 1}},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			i := 0
			feed(t, pt.Capture(time.Millisecond, r.frames...), func(p *pipeline.Packet) {
				if p.In != r.want[i] {
					t.Errorf("packet %d (%s) came by port %d, want %d", i+1, wire.Summary(p.Bytes()), p.In, r.want[i])
				}
				i++
			})
			if i != len(r.want) {
				t.Errorf("%d packets, want %d", i, len(r.want))
			}
		})
	}
}

// TestDirectionsAreBounded has more flows than are remembered: the newest are,
// the others are flows again. The memory grows up to its limit on the way.
func TestDirectionsAreBounded(t *testing.T) {
	const n, limit = 6000, 5000
	addr := func(i int) string { return fmt.Sprintf("10.0.0.1:%d", 1000+i) }
	var frames [][]byte
	for i := range n {
		frames = append(frames, pt.UDP(addr(i), "10.0.0.2:80"))
	}
	for _, i := range []int{n - 1, n - limit, n - limit - 1, 0} {
		frames = append(frames, pt.UDP("10.0.0.2:80", addr(i)))
	}
	r, err := pcap.NewReader("in", bytes.NewReader(pt.Capture(1, frames...)))
	if err != nil {
		t.Fatal(err)
	}
	arena, err := pcap.NewArena(1, n+4)
	if err != nil {
		t.Fatal(err)
	}
	f := pcap.NewFeed(pcap.FeedOptions{Reader: r, Pool: arena.Pool(0), Flows: limit})
	batch := pipeline.NewBatch(n + 4)
	if got, err := f.Ports(0)[0].Receive(batch); got != n+4 || err != nil {
		t.Fatal(got, err)
	}
	last := batch.All()[n:]
	for i, want := range []pipeline.PortID{1, 1, 0, 0} {
		if last[i].In != want {
			t.Errorf("reply %d came by port %d, want %d", i+1, last[i].In, want)
		}
	}
	if f.Flows() != n+2 {
		t.Errorf("%d flows, want %d", f.Flows(), n+2)
	}
}

// TestPortTimes says what Time and Wire are, also where the capture's time
// goes back, and that the output keeps the capture's own.
func TestPortTimes(t *testing.T) {
	var in, out bytes.Buffer
	w, err := pcap.NewWriter(&in, pcap.WriterOptions{Interfaces: []pcap.Interface{{}}})
	if err != nil {
		t.Fatal(err)
	}
	frame := pt.UDP("10.0.0.1:1", "10.0.0.2:2", pt.PayloadLen(100))
	captured := []int64{5000, 4000, 6000, 100}
	for _, ts := range captured {
		if err := w.WritePacket(0, ts, 2000, frame, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	r, err := pcap.NewReader("in", &in)
	if err != nil {
		t.Fatal(err)
	}
	w, err = pcap.NewWriter(&out, pcap.WriterOptions{Interfaces: []pcap.Interface{{}, {}}})
	if err != nil {
		t.Fatal(err)
	}
	arena, err := pcap.NewArena(1, 16)
	if err != nil {
		t.Fatal(err)
	}
	ports := pcap.NewFeed(pcap.FeedOptions{Reader: r, Writer: w, Pool: arena.Pool(0)}).Ports(0)
	batch := pipeline.NewBatch(8)
	if n, err := ports[0].Receive(batch); n != 4 || err != nil {
		t.Fatal(n, err)
	}
	for i, want := range []int64{5000, 5000, 6000, 6000} {
		if p := batch.All()[i]; p.Time != want || p.Wire != 2000 {
			t.Errorf("packet %d: time %d, %d bytes on the wire, want %d, 2000", i+1, p.Time, p.Wire, want)
		}
	}
	made := arena.Pool(0).Get()
	made.SetView(made.Offset(), len(frame))
	ports[1].Transmit([]*pipeline.Packet{batch.All()[3], batch.All()[0], made, batch.All()[2], batch.All()[1]})
	for _, p := range ports {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	list, err := readAll("out", &out)
	if err != io.EOF || len(list) != 5 {
		t.Fatal(len(list), err)
	}
	for i, want := range append(captured, 6000) {
		if rec := list[i]; rec.Time != want || rec.Interface != 1 || i < 4 && rec.Wire != 2000 {
			t.Errorf("packet %d left as %+v, want time %d", i+1, rec, want)
		}
	}
}

// TestPortErrors has a capture with a link type that cannot be used, a frame
// too small, a capture cut short, and an output that fails.
func TestPortErrors(t *testing.T) {
	receive := func(o pcap.FeedOptions) (n int, err error) {
		port := pcap.NewFeed(o).Ports(0)[0]
		batch := pipeline.NewBatch(64)
		for err == nil {
			_, err = port.Receive(batch)
			port.Transmit(batch.All())
			port.Flush()
			n += batch.Len()
			batch.Reset()
		}
		if _, again := port.Receive(batch); again != err {
			t.Errorf("first %v, then %v", err, again)
		}
		return n, err
	}
	frame := pt.UDP("10.0.0.1:1", "10.0.0.2:2", pt.PayloadLen(1000))
	capture := pt.Capture(1, frame, frame, frame)
	wifi := little().section().iface().block(1, little().u16(105, 0).u32(0)).packet(0, 1, "ab").packet(1, 1, "ab")
	arena, err := pcap.NewArena(1, 16)
	if err != nil {
		t.Fatal(err)
	}
	small, err := pipeline.NewArena(make([]byte, 16*1024), 1024, 128, 1)
	if err != nil {
		t.Fatal(err)
	}
	rows := []struct {
		name    string
		capture []byte
		pool    *pipeline.Pool
		out     io.Writer
		packets int
		want    string
	}{
		{"link type", wifi.b, arena.Pool(0), nil, 1, "read capture F: packet 2 at byte 104: link type 105 (802.11) is not supported"},
		{"frame", capture, small.Pool(0), nil, 0, "read capture F: packet 1 at byte 84: captured length is 1042, a frame here has room for 882"},
		{"cut", capture[:len(capture)-1], arena.Pool(0), nil, 2, "read capture F: packet 3 at byte 2236: cut short: 1075 of 1076 bytes: unexpected EOF"},
		{"output", pt.Capture(1, make([][]byte, 9000)...), arena.Pool(0), &full{room: 2000}, 0, "write capture: the disk is full"},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			reader, err := pcap.NewReader("F", bytes.NewReader(r.capture))
			if err != nil {
				t.Fatal(err)
			}
			o := pcap.FeedOptions{Reader: reader, Pool: r.pool}
			if r.out != nil {
				if o.Writer, err = pcap.NewWriter(r.out, pcap.WriterOptions{Interfaces: []pcap.Interface{{}, {}}, BufferSize: 512}); err != nil {
					t.Fatal(err)
				}
			}
			n, err := receive(o)
			if err.Error() != r.want || r.packets > 0 && n != r.packets {
				t.Errorf("%d packets, then %v\nwant %d, then %s", n, err, r.packets, r.want)
			}
			if free := r.pool.Free(); free != r.pool.Total() {
				t.Errorf("%d of %d frames are free", free, r.pool.Total())
			}
		})
	}
}

// full is a disk with little room.
type full struct{ room int }

func (f *full) Write(p []byte) (int, error) {
	if len(p) > f.room {
		n := f.room
		f.room = 0
		return n, errors.New("the disk is full")
	}
	f.room -= len(p)
	return len(p), nil
}

// TestPortSpeed reads at the capture's own timing, on a clock of the test's.
func TestPortSpeed(t *testing.T) {
	frame := pt.UDP("10.0.0.1:1", "10.0.0.2:2")
	r, err := pcap.NewReader("in", bytes.NewReader(pt.Capture(time.Second, frame, frame, frame)))
	if err != nil {
		t.Fatal(err)
	}
	arena, err := pcap.NewArena(1, 16)
	if err != nil {
		t.Fatal(err)
	}
	now := int64(1000e9)
	port := pcap.NewFeed(pcap.FeedOptions{
		Reader: r, Pool: arena.Pool(0), Speed: 2, Clock: func() int64 { return now },
	}).Ports(0)[0]
	batch := pipeline.NewBatch(8)
	for i, want := range []int{1, 0, 1, 0, 1, 0} {
		n, err := port.Receive(batch)
		if n != want || err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("after %d quarters of a second: %d packets, %v, want %d", i, n, err, want)
		}
		now += 250e6
	}
}
