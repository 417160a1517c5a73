package tap

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pcap"
	"penstock/pipeline"
)

var infos = []pipeline.PortInfo{{ID: 0, Name: "lan", Interface: "eth1"}, {ID: 1, Name: "wan", Interface: "eth2"}}

// loop delivers the same frame for ever, or none, and transmits to nowhere.
type loop struct {
	pool  *pipeline.Pool
	info  pipeline.PortInfo
	frame []byte
	n     int // that it delivers a turn
}

func (l *loop) Info() pipeline.PortInfo   { return l.info }
func (l *loop) Stats() pipeline.PortStats { return pipeline.PortStats{} }
func (l *loop) Flush()                    {}
func (l *loop) Close() error              { return nil }
func (l *loop) Receive(b *pipeline.Batch) (n int, err error) {
	for ; n < l.n && b.Room() > 0; n++ {
		p := l.pool.Get()
		p.SetView(p.Offset(), len(l.frame))
		copy(p.Bytes(), l.frame)
		b.Add(p)
	}
	return n, nil
}

func (l *loop) Transmit(pkts []*pipeline.Packet) int {
	for _, p := range pkts {
		l.pool.Put(p)
	}
	return len(pkts)
}

// segment is a TCP segment from 10.0.0.1:40000 to 10.0.0.2:443.
func segment(flags byte, payload int) []byte {
	f := make([]byte, 54+payload)
	copy(f[12:], []byte{8, 0, 0x45})
	binary.BigEndian.PutUint16(f[16:], uint16(40+payload))
	f[22], f[23] = 64, 6
	copy(f[26:], []byte{10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 1, 0xbb})
	f[46], f[47] = 0x50, flags
	return f
}

// newWorker is one between two ports, without a chain.
func newWorker(t testing.TB, frame []byte, n int) (*pipeline.Worker, *loop) {
	t.Helper()
	a, err := pipeline.NewArena(make([]byte, 512*2048), 2048, 128, 1)
	if err != nil {
		t.Fatal(err)
	}
	in := &loop{a.Pool(0), infos[0], frame, n}
	w := pipeline.NewWorker(pipeline.WorkerOptions{
		Ports: []pipeline.Port{in, &loop{pool: a.Pool(0), info: infos[1]}}, Infos: infos, Pool: a.Pool(0), Default: pipeline.NoChain,
	})
	return w, in
}

func begin(t testing.TB, o Options) *Capture {
	t.Helper()
	o.Workers, o.Ports = 1, infos
	o.Chain = func(pipeline.ChainID) (string, int) { return "", 0 }
	var err error
	if o.Points, err = ParsePoints("lan:rx,wan:tx", infos, nil); err != nil {
		t.Fatal(err)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestNobodyWrites: with a writer that does not, the buffer fills, packets are counted, nothing waits, and nothing allocates.
func TestNobodyWrites(t *testing.T) {
	w, _ := newWorker(t, segment(0x10, 1000), 64)
	c := begin(t, Options{Filter: compile(t, "host 10.0.0.1 and port 443")})
	w.AddTap(c.Spec(0))
	turn := func() {
		if _, err := w.Turn(); err != nil {
			t.Fatal(err)
		}
	}
	turn()
	if n := testing.AllocsPerRun(10, turn); n > 0 { // while there is room
		t.Errorf("%v allocations in a turn that captures", n)
	}
	if n := c.Stats().Dropped; n > 0 {
		t.Fatalf("%d dropped already", n)
	}
	for range 100 {
		turn()
	}
	if n := testing.AllocsPerRun(100, turn); n > 0 {
		t.Errorf("%v allocations in a turn that finds no room", n)
	}
	s, total := c.Stats(), w.Stats().Totals
	if s.Dropped == 0 || !total.Balanced() || total.Forwarded != total.Packets {
		t.Errorf("%+v, worker %+v", s, total)
	}
	// What there was room for is written, in order, with the drops of each point.
	var out bytes.Buffer
	c.Stop("enough")
	detached := 0
	if err := c.Write(t.Context(), &out, func() { detached++; c.GiveBack(0); w.RemoveTap(c.Spec(0)) }); err != nil || detached != 1 {
		t.Fatalf("%v, detached %d times", err, detached)
	}
	turn()
	packets, rx := read(t, &out)
	s = c.Stats()
	if uint64(len(packets)) != s.Packets || s.Packets+s.Dropped != 2*total.Packets || s.Why != "enough" {
		t.Errorf("%d read, %+v of %d at two points", len(packets), s, total.Packets)
	}
	if rx == 0 || packets[0] != "verdict=forward out=wan" {
		t.Errorf("%d at lan:rx, the first is %q", rx, packets[0])
	}
}

// read returns the comments of a capture's packets, and how many are of its first interface.
func read(t *testing.T, r io.Reader) (comments []string, first int) {
	t.Helper()
	in, err := pcap.NewReader("capture", r)
	if err != nil {
		t.Fatal(err)
	}
	var rec pcap.Record
	last := int64(0)
	for {
		err := in.Next(&rec)
		if errors.Is(err, io.EOF) {
			return comments, first
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Time < last {
			t.Errorf("packet %d is out of order", rec.Number)
		}
		last = rec.Time
		comments = append(comments, string(rec.Comment()))
		if rec.Interface == 0 {
			first++
		}
	}
}

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		o       Options
		packets int
		why     string
	}{
		{Options{Count: 5}, 5, "--count is reached"},
		{Options{Count: 64}, 64, "--count is reached"},
		{Options{Limit: MinLimit}, 0, "--limit is reached"},
		{Options{Limit: MinLimit, SnapLen: 60}, 0, "--limit is reached"},
	} {
		w, _ := newWorker(t, segment(0x10, 1000), 64)
		cap := begin(t, c.o)
		w.AddTap(cap.Spec(0))
		for range 10 {
			if _, err := w.Turn(); err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		if err := cap.Write(t.Context(), &out, func() { cap.GiveBack(0) }); err != nil {
			t.Fatal(err)
		}
		size := int64(out.Len())
		packets, _ := read(t, &out)
		s := cap.Stats()
		if c.packets != 0 && len(packets) != c.packets || len(packets) == 0 || s.Why != c.why || s.Bytes != uint64(size) {
			t.Errorf("%+v: %d packets, %d bytes, %+v", c.o, len(packets), size, s)
		}
		if c.o.Limit > 0 && (size > c.o.Limit || size < c.o.Limit-2000) {
			t.Errorf("%+v: %d bytes", c.o, size)
		}
	}
	if _, err := New(Options{Limit: 10}); err == nil {
		t.Error("a limit that holds nothing is accepted")
	}
}

type failing struct{ after int }

func (f *failing) Write(b []byte) (int, error) {
	if f.after--; f.after < 0 {
		return 0, errors.New("disk full")
	}
	return len(b), nil
}

// TestWriterEnds: a reader that goes, or fails, ends the capture, which is detached in any case.
func TestWriterEnds(t *testing.T) {
	w, _ := newWorker(t, segment(0x10, 1000), 64)
	c := begin(t, Options{})
	w.AddTap(c.Spec(0))
	for range 20 {
		if _, err := w.Turn(); err != nil {
			t.Fatal(err)
		}
	}
	detached := 0
	err := c.Write(t.Context(), &failing{3}, func() { detached++ })
	if err == nil || !strings.Contains(err.Error(), "disk full") || detached != 1 || c.Stats().Why == "" {
		t.Errorf("%v, detached %d times, %+v", err, detached, c.Stats())
	}
	c = begin(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Write(ctx, io.Discard, func() { detached++ }) }()
	cancel()
	select {
	case err := <-done:
		if err != nil || detached != 2 {
			t.Errorf("%v, detached %d times", err, detached)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the writer goes on")
	}
}

// TestHeldFlows: what a flow's table does, at its bound too.
func TestHeldFlows(t *testing.T) {
	c := begin(t, Options{Filter: compile(t, "port 443")})
	tap := c.taps[0]
	now := int64(time.Hour)
	flow := func(i int) *wire.Flow {
		return &wire.Flow{Src: [16]byte{10: 0xff, 11: 0xff, 12: 10, 14: byte(i >> 8), 15: byte(i)}, Dst: [16]byte{10: 0xff, 11: 0xff, 12: 11}, SrcPort: 40000, DstPort: 443, Proto: 6}
	}
	other := *flow(1)
	other.DstPort = 80
	if tap.Hold(&other, false, now) {
		t.Error("a flow that cannot match is held")
	}
	for i := range maxHeld {
		if !tap.Hold(flow(i), i == 7, now) {
			t.Fatalf("flow %d is not held", i)
		}
	}
	if tap.Hold(flow(maxHeld), false, now) || c.Stats().NotHeld != 1 || c.Stats().Held != maxHeld {
		t.Errorf("beyond the bound: %+v", c.Stats())
	}
	packet := func(i int, flags byte, reply bool) *pipeline.Packet {
		a, err := pipeline.NewArena(make([]byte, 2048), 2048, 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		p := a.Pool(0).Get()
		f := segment(flags, 0)
		p.SetView(0, len(f))
		copy(p.Bytes(), f)
		p.Parse()
		if p.Flow, p.Time = *flow(i), now; reply {
			p.Flow = p.Flow.Reverse()
		}
		return p
	}
	if held, drop := tap.Pass(packet(7, 0x10, true)); !held || !drop {
		t.Errorf("flow 7: %v, %v", held, drop)
	}
	// A connection that is over makes room; one with a FIN of one end is not.
	for _, p := range []*pipeline.Packet{packet(1, 0x11, false), packet(2, 0x11, false), packet(2, 0x11, true), packet(3, 0x04, false)} {
		if held, drop := tap.Pass(p); !held || drop {
			t.Error("not held")
		}
	}
	now += int64(overFor)
	room := 0
	for i := range 1000 { // a call looks at some of them
		if tap.Hold(flow(maxHeld+room), false, now) {
			room++
		} else if i == 999 && room != 2 {
			t.Errorf("two connections are over, there was room for %d", room)
		}
	}
	// A SYN begins another one, which the stages see.
	if held, _ := tap.Pass(packet(9, 0x02, false)); held {
		t.Error("a SYN is held")
	}
	if held, _ := tap.Pass(packet(9, 0x12, true)); held {
		t.Error("its answer is held")
	}
	again, late := *flow(20), packet(20, 0x10, false)
	if n := testing.AllocsPerRun(100, func() { tap.Hold(&again, false, now); tap.Pass(late) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	list := c.GiveBack(0)
	if len(list) != maxHeld-1 || tap.Hold(flow(9), false, now) {
		t.Errorf("%d are given back", len(list))
	}
	k, _ := flow(7).Canonical()
	if !slices.Contains(list, Flow{k, true, false}) {
		t.Error("flow 7 is not among them")
	}
	if held, _ := tap.Pass(packet(7, 0x10, false)); !held {
		t.Error("a late packet of a flow that was given back is not passed by")
	}
}

func TestPoints(t *testing.T) {
	chains := []Chain{
		{"web", []Stage{{"acl", false}, {"tcp", false}, {"tls", true}, {"http", true}}},
		{"plain", []Stage{{"acl", false}, {"acl", false}}},
	}
	for _, c := range []struct{ text, want string }{
		{"", "lan:rx lan:tx wan:rx wan:tx"},
		{"wan:tx, web/acl:before", "wan:tx web/acl:before=web 0 before stage 1 (acl) of chain web"},
		{"web/http:after", "web/http:after=web 1 after stage 2 (tcp) of chain web, behind which stage 4 (http) sees streams"},
		{"plain/2:after", "plain/2:after=plain 1 after stage 2 (acl) of chain plain"},
	} {
		points, err := ParsePoints(c.text, infos, chains)
		var got []string
		for _, p := range points {
			name := p.Name
			if p.Chain != "" {
				name += "=" + p.Chain + " " + string(rune('0'+p.Stage)) + " " + p.Description
			}
			got = append(got, name)
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%q: %q, %v", c.text, got, err)
		}
	}
	all := "there are lan:rx, lan:tx, wan:rx, wan:tx, web/acl:before, web/acl:after, web/tcp:before, web/tcp:after, web/tls:before, web/tls:after, " +
		"web/http:before, web/http:after, plain/1:before, plain/1:after, plain/2:before, plain/2:after"
	for _, c := range []struct{ text, want string }{
		{"lan", all}, {"lan:both", all}, {"web/http", all}, {"web/dns:before", all}, {"web/9:before", all}, {"x/acl:after", all}, {"lan:rx,,", all},
		{"plain/acl:before", "several stages acl: want plain/1 or plain/2"},
		{"web/tcp:before,web/http:before", "are the same place"},
		{"lan:rx,lan:rx", "are the same place"},
	} {
		if points, err := ParsePoints(c.text, infos, chains); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, %v", c.text, points, err)
		}
	}
}

// BenchmarkCapture is what a worker takes for a packet.
func BenchmarkCapture(b *testing.B) {
	for _, c := range []struct{ name, filter string }{{"off", ""}, {"other_packets", "host 10.9.9.9 and port 443"}, {"all", "host 10.0.0.1 and port 443"}} {
		b.Run(c.name, func(b *testing.B) {
			w, _ := newWorker(b, segment(0x10, 1000), 64)
			if c.filter != "" {
				cap := begin(b, Options{Filter: compile(b, c.filter)})
				w.AddTap(cap.Spec(0))
				done := make(chan error)
				go func() { done <- cap.Write(context.Background(), io.Discard, func() {}) }()
				defer func() { cap.Stop("done"); <-done }()
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.Turn(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(64*b.N), "ns/packet")
		})
	}
}
