package pcap

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// FeedOptions configure a Feed.
type FeedOptions struct {
	Reader *Reader         // nil: nothing to receive
	Writer *Writer         // nil: what is transmitted goes nowhere; its interface i is port i
	Pool   *pipeline.Pool  // the packets' home; its frames hold any packet (NewArena)
	Names  [2]string       // of the ports; "client" and "server" if empty
	Flows  int             // how many flows' directions are remembered at a time; 65536 if 0
	Speed  float64         // 1: as captured, 2: twice as fast; 0: as fast as it is asked for
	Clock  func() int64    // ns, for Speed; the system's if nil
	Queues int             // how many workers share it; 1 if 0
	onEmit func(*outgoing) // sees the packets that stages made
}

// Feed makes a capture the two ports of a bridge: what is read comes in by one
// of them, and what leaves by either is written to another capture with the
// times of the first. The sender of a flow's first packet is the client and on
// port 0's side, unless that packet is a SYN-ACK; replies come in by port 1. An
// ICMP error comes from where the packet that it quotes went to. Packets
// without a flow follow the first packet between their two addresses, and what
// is not IP comes in by port 0.
//
// Packets leave in the order in which they were captured. All methods belong
// to one goroutine.
type Feed struct {
	o     FeedOptions
	ports [][]*Port // by queue, port
	dir   *directions

	rec    Record // read, and not delivered yet
	have   bool
	header [wire.EthernetLen]byte
	skip   int
	build  bool
	err    error // of reading; sticky
	outErr error // of writing; sticky

	meta    []frameMeta // by frame
	pending []outgoing
	order   int
	slice   []*pipeline.Packet // what the last fill delivered, in order
	auto    bool               // Receive reads by itself

	first, last int64 // times of the first packet, and of the latest so far
	number      uint64
	packets     uint64
	bytes       uint64 // on the wire
	short       uint64 // packets that the capture has cut
	running     bool
	begun       int64 // o.Clock when the first packet was due
}

// frameMeta is what of a packet does not travel in it.
type frameMeta struct {
	number uint64
	time   int64 // as captured, also where that goes back
}

// outgoing is a transmitted packet that is not written yet.
type outgoing struct {
	p      *pipeline.Packet
	port   *Port
	number uint64 // of the capture's packet, or of the latest one where a stage made it
	order  int
	time   int64
	made   bool // by a stage
}

// NewFeed returns a feed whose ports read and write by themselves: ports of one
// worker.
func NewFeed(o FeedOptions) *Feed {
	o.Queues = max(o.Queues, 1)
	if o.Names[0] == "" && o.Names[1] == "" {
		o.Names = [2]string{"client", "server"}
	}
	if o.Clock == nil {
		o.Clock = pipeline.Clock()
	}
	f := &Feed{o: o, auto: true, dir: newDirections(o.Flows), meta: make([]frameMeta, o.Pool.Arena().Frames())}
	name := ""
	if o.Reader != nil {
		name = o.Reader.Name()
	}
	for q := range o.Queues {
		var pair []*Port
		for i, n := range o.Names {
			pair = append(pair, &Port{
				feed: f, queue: q,
				info: pipeline.PortInfo{ID: pipeline.PortID(i), Name: n, Interface: name, Queue: q, Mode: "file"},
			})
		}
		f.ports = append(f.ports, pair)
	}
	return f
}

// Ports returns the two ports, in order of their IDs, of worker queue.
func (f *Feed) Ports(queue int) []pipeline.Port {
	return []pipeline.Port{f.ports[queue][0], f.ports[queue][1]}
}

// Flows returns how many flows were seen. A flow that was forgotten because too
// many others came in between counts again.
func (f *Feed) Flows() uint64 { return f.dir.seen }

// peek returns the time of the next packet: the capture's, but never before
// that of an earlier packet.
func (f *Feed) peek() (int64, error) {
	if f.err != nil {
		return 0, f.err
	}
	if !f.have {
		if f.err = f.load(); f.err != nil {
			return 0, f.err
		}
		f.have = true
	}
	if f.packets == 0 {
		f.first, f.last = f.rec.Time, f.rec.Time
	}
	return max(f.rec.Time, f.last), nil
}

func (f *Feed) load() (err error) {
	if f.o.Reader == nil {
		return io.EOF
	}
	if err = f.o.Reader.Next(&f.rec); err != nil {
		return err
	}
	f.skip, f.build, err = f.rec.Link.EthernetHeader(f.rec.Data, &f.header)
	if err != nil {
		return f.refuse(err)
	}
	room := f.o.Pool.Arena().FrameSize() - f.o.Pool.Headroom() - wire.EthernetLen
	if n := len(f.rec.Data); n > room {
		return f.refuse(fmt.Errorf("captured length is %d, a frame here has room for %d", n, room))
	}
	return nil
}

// refuse is the error for a record that reads well and cannot be used.
func (f *Feed) refuse(err error) error {
	return &ReadError{File: f.o.Reader.Name(), Packet: f.rec.Number, Offset: f.rec.Offset, Err: err}
}

// take moves the packet that peek has seen into p.
func (f *Feed) take(p *pipeline.Packet) {
	t := max(f.rec.Time, f.last)
	data, front := f.rec.Data[f.skip:], 0
	if f.build {
		front = wire.EthernetLen
	}
	p.SetView(p.Offset(), front+len(data)) // fits: load has checked
	b := p.Bytes()
	copy(b, f.header[:front])
	copy(b[front:], data)
	p.Wire = int32(min(f.rec.Wire-len(f.rec.Data)+p.Len(), 1<<31-1))
	p.Time = t
	p.Parse()
	p.In = f.dir.port(p)
	f.meta[p.Index()] = frameMeta{number: f.rec.Number, time: f.rec.Time}
	f.have, f.last, f.number = false, t, f.rec.Number
	f.packets++
	f.bytes += uint64(f.rec.Wire)
	if f.rec.Wire > len(f.rec.Data) {
		f.short++
	}
}

// due returns how many ns are left until a packet of time t is due.
func (f *Feed) due(t int64) int64 {
	if f.o.Speed <= 0 {
		return 0
	}
	now := f.o.Clock()
	if !f.running {
		f.running, f.begun = true, now
	}
	return int64(float64(t-f.first)/f.o.Speed) - (now - f.begun)
}

// fill delivers up to n packets whose time is below limit to the ports' queues
// and returns how many.
func (f *Feed) fill(n int, limit int64) int {
	f.slice = f.slice[:0]
	for len(f.slice) < n {
		if t, err := f.peek(); err != nil || t >= limit {
			break
		}
		p := f.o.Pool.Get()
		if p == nil {
			break
		}
		f.take(p)
		f.slice = append(f.slice, p)
		port := f.ports[f.queueOf(p)][0]
		port.queued = append(port.queued, p)
		port.inFlight.Add(1)
	}
	return len(f.slice)
}

// queueOf spreads flows over queues: both directions of one to the same.
func (f *Feed) queueOf(p *pipeline.Packet) int {
	switch {
	case f.o.Queues == 1 || p.IPVersion == 0:
		return 0
	case p.HasFlow:
		return int(p.Hash % uint32(f.o.Queues))
	}
	return int(addressPair(p).Hash() % uint32(f.o.Queues))
}

// send takes a packet that a worker transmits by port.
func (f *Feed) send(port *Port, p *pipeline.Packet) {
	o := outgoing{p: p, port: port, number: f.number, order: f.order, time: f.last}
	if p.In == pipeline.NoPort {
		o.made = true
	} else {
		if m := f.meta[p.Index()]; m.number != 0 {
			o.number, o.time = m.number, m.time
		}
	}
	f.order++
	f.pending = append(f.pending, o)
}

// copied makes a copy of a packet count as the packet does.
func (f *Feed) copied(original, twin *pipeline.Packet) {
	f.meta[twin.Index()] = f.meta[original.Index()]
}

// flush writes what was transmitted since the last call and gives the frames
// back.
func (f *Feed) flush() {
	if len(f.pending) == 0 {
		return
	}
	slices.SortFunc(f.pending, func(a, b outgoing) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.order, b.order))
	})
	for i := range f.pending {
		o := &f.pending[i]
		if o.made && f.o.onEmit != nil {
			f.o.onEmit(o)
		}
		if f.o.Writer != nil && f.outErr == nil {
			f.outErr = f.o.Writer.WritePacket(int(o.port.info.ID), o.time, int(o.p.Wire), o.p.Bytes(), nil)
		}
		f.meta[o.p.Index()] = frameMeta{}
		f.o.Pool.Put(o.p)
		o.port.inFlight.Add(-1)
		o.p = nil
	}
	f.pending, f.order = f.pending[:0], 0
}
