package stack_test

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/stack"
)

// BenchmarkTerminate runs a worker between two ends that answer by rote: what
// is measured is the worker and netstack, without a kernel. Run it with
// -cpu 1; cpu-ns/op is the process's CPU time, the ends included, which other load on the
// machine disturbs less than the wall clock.
func BenchmarkTerminate(b *testing.B) {
	for _, bc := range []struct {
		name  string
		conns int
		load  load
	}{
		{"keepalive", 64, load{request: 128, response: 384}},
		{"close", 64, load{request: 128, response: 384, close: true}},
		{"pingpong", 1, load{request: 128, response: 384}},
		{"download", 2, load{request: 128, response: 1 << 20}},
		{"upload", 2, load{request: 1 << 20, response: 128}},
	} {
		b.Run(bc.name, func(b *testing.B) { benchLoad(b, bc.conns, bc.load) })
	}
}

// load is what a connection carries: requests and answers in turns.
type load struct {
	request, response int
	close             bool // a connection for each
}

func benchLoad(b *testing.B, conns int, l load) {
	runtime.GC()
	r := newRote(b, l)
	for range conns {
		r.open()
	}
	r.until(func() bool { return r.done >= conns })
	b.SetBytes(int64(l.request + l.response))
	b.ReportAllocs()
	b.ResetTimer()
	before, frames := cpuTime(), r.frames()
	r.done = 0
	r.until(func() bool { return r.done >= b.N })
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(r.frames()-frames)/float64(b.N), "frames/op")
	b.StopTimer()
	r.bed.stage.Tick(time.Now().UnixNano())
	if n := r.bed.count("retransmits"); n > 0 {
		b.ReportMetric(float64(n)/float64(b.N), "retransmits/op")
	}
	r.over = true
	if err := r.worker.Close(); err != nil {
		b.Error(err)
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rote is a worker and both ends of its connections.
type rote struct {
	b      testing.TB
	load   load
	bed    *bed
	worker *pipeline.Worker
	ports  [2]*rotePort
	conns  map[uint16]*roteConn // by the client's port
	next   uint16
	done   int  // answers, or connections if each has only one
	reopen bool // a connection that is over is followed by another
	over   bool // the ends do nothing any more
}

// roteConn is a connection: what each end has sent and received.
type roteConn struct {
	r    *rote
	port uint16
	ends [2]roteEnd // client, server
}

type roteEnd struct {
	isn                   uint32
	nxt, una, rcv, toSend uint32 // sequence numbers; bytes still to be sent
	got                   int    // bytes of the current message
	acked                 uint32 // rcv when an ACK was last sent
	stamp                 uint32 // the other's last TSval
	window                uint32 // bytes that may be under way
	scale                 uint8  // of the other's windows
	closing               bool
	finSent, finGot       bool
}

// rotePort is a port whose other end is in the rote.
type rotePort struct {
	*pipeline.MemoryPort
	r    *rote
	side int // 0: the client's
	pool *pipeline.Pool
	in   [][]byte // to be received
	at   int
	free [][]byte
	sent int
}

func newRote(b testing.TB, l load, options ...func(*stack.Options)) *rote {
	const frameSize, frames = 2048, 8192
	arena, err := pipeline.NewArena(make([]byte, frames*frameSize), frameSize, 64, 1)
	if err != nil {
		b.Fatal(err)
	}
	r := &rote{b: b, load: l, conns: map[uint16]*roteConn{}, next: 10000, reopen: true}
	infos := []pipeline.PortInfo{{ID: lan, Name: "lan", MTU: 1500}, {ID: wan, Name: "wan", MTU: 1500}}
	ports := make([]pipeline.Port, 2)
	for i := range ports {
		r.ports[i] = &rotePort{MemoryPort: pipeline.NewMemoryPort(infos[i], arena.Pool(0), 1), r: r, side: i, pool: arena.Pool(0)}
		ports[i] = r.ports[i]
	}
	r.worker = pipeline.NewWorker(pipeline.WorkerOptions{Ports: ports, Infos: infos, Pool: arena.Pool(0)})
	r.bed = &bed{t: b, worker: r.worker}
	r.bed.build(func(o *stack.Options) {
		o.TimeWait = 50 * time.Millisecond
		for _, set := range options {
			set(o)
		}
	}, nil)
	return r
}

// until takes turns until cond is true.
func (r *rote) until(cond func() bool) {
	r.b.Helper()
	for end, last := time.Now().Add(60*time.Second), 0; !cond(); runtime.Gosched() {
		if _, err := r.worker.Turn(); err != nil {
			r.b.Fatal(err)
		}
		if r.done != last {
			last, end = r.done, time.Now().Add(60*time.Second)
		} else if time.Now().After(end) {
			r.b.Fatal("nothing happens any more")
		}
	}
}

// frames is how many frames the worker has sent.
func (r *rote) frames() int { return r.ports[0].sent + r.ports[1].sent }

// open begins a connection.
func (r *rote) open() {
	for r.conns[r.next] != nil || r.next < 10000 {
		r.next++
	}
	c := &roteConn{r: r, port: r.next}
	r.next++
	r.conns[c.port] = c
	c.ends[0].isn, c.ends[1].isn = uint32(c.port)<<12, uint32(c.port)<<8
	for i := range c.ends {
		c.ends[i].nxt = c.ends[i].isn
		c.ends[i].una = c.ends[i].isn
	}
	c.send(0, wire.FlagSYN, 0)
}

const roteMSS = 1448

// send puts a segment with n bytes onto the wire toward the worker.
func (c *roteConn) send(side int, flags wire.TCPFlags, n int) {
	p := c.r.ports[side]
	var f []byte
	if k := len(p.free); k > 0 {
		f, p.free = p.free[k-1], p.free[:k-1]
	} else {
		f = make([]byte, 1514)
	}
	e := &c.ends[side]
	options := 12
	if flags&wire.FlagSYN != 0 {
		options = 20
	}
	f = f[:wire.EthernetLen+wire.IPv4Len+wire.TCPLen+options+n]
	clear(f[:wire.EthernetLen+wire.IPv4Len+wire.TCPLen+options])
	f[5], f[11], f[12] = byte(2-side), byte(1+side), 8
	ip := wire.IPv4(f[wire.EthernetLen:])
	ip[0], ip[6], ip[9] = 0x45, 0x40, wire.ProtoTCP
	ip.SetTTL(64)
	src, dst, sport, dport := roteClient, roteServer, c.port, uint16(80)
	if side == 1 {
		src, dst, sport, dport = dst, src, dport, sport
	}
	ip.SetSrc(src)
	ip.SetDst(dst)
	ip.SetTotalLen(len(ip))
	ip.FillChecksum()
	t := wire.TCP(ip[wire.IPv4Len:])
	t.SetDataOffset(wire.TCPLen + options)
	t.SetSrcPort(sport)
	t.SetDstPort(dport)
	t.SetSeq(e.nxt)
	t.SetFlags(flags)
	t.SetWindow(4096)
	o := t.Options()
	if flags&wire.FlagSYN != 0 {
		copy(o, []byte{2, 4, 1460 >> 8, 1460 & 0xff, 4, 2, 1, 3, 3, 7})
		o = o[10:]
	} else {
		o[0], o[1], o = 1, 1, o[2:]
	}
	o[0], o[1] = 8, 10
	binary.BigEndian.PutUint32(o[2:], uint32(time.Now().UnixMilli()))
	binary.BigEndian.PutUint32(o[6:], e.stamp)
	if flags&wire.FlagACK != 0 {
		t.SetAck(e.rcv)
		e.acked = e.rcv
	}
	t.SetChecksum(0)
	t.SetChecksum(wire.Checksum(t, wire.PseudoHeader(ip.Src(), ip.Dst(), wire.ProtoTCP, len(t))))
	e.nxt += uint32(n)
	e.finSent = e.finSent || flags&wire.FlagFIN != 0
	if flags&(wire.FlagSYN|wire.FlagFIN) != 0 {
		e.nxt++
	}
	p.in = append(p.in, f)
}

var (
	roteClient = netip.MustParseAddr("10.0.0.1").As4()
	roteServer = netip.MustParseAddr("10.0.0.2").As4()
)

// receive is what an end does with a segment.
func (c *roteConn) receive(side int, t wire.TCP) {
	if c.r.over {
		return
	}
	e := &c.ends[side]
	flags := t.Flags()
	if flags&wire.FlagRST != 0 {
		c.r.b.Fatalf("reset at side %d: %v", side, flags)
	}
	if o := t.Options(); len(o) >= 12 && o[2] == 8 {
		e.stamp = binary.BigEndian.Uint32(o[4:])
	}
	if flags&wire.FlagSYN != 0 {
		e.rcv, e.window = t.Seq()+1, uint32(t.Window())
		for it := t.OptionIter(); it.Next(); {
			if v, ok := it.WindowScale(); ok && it.Kind == wire.OptWindowScale {
				e.scale = v
			}
		}
		if side == 1 {
			c.send(1, wire.FlagSYN|wire.FlagACK, 0)
			return
		}
		e.una = t.Ack()
		c.send(0, wire.FlagACK, 0)
		c.say(0, c.r.load.request)
		return
	}
	e.una, e.window = t.Ack(), min(uint32(t.Window())<<e.scale, 128<<10)
	if n := len(t.Payload()); n > 0 && t.Seq() == e.rcv {
		e.rcv += uint32(n)
		e.got += n
		if want := [2]int{c.r.load.response, c.r.load.request}[side]; e.got == want {
			e.got = 0
			c.complete(side)
		}
	}
	if flags&wire.FlagFIN != 0 && t.Seq()+uint32(len(t.Payload())) == e.rcv && !e.finGot {
		e.rcv++
		e.finGot = true
		if !e.finSent {
			c.send(side, wire.FlagFIN|wire.FlagACK, 0)
			return
		}
		c.send(side, wire.FlagACK, 0)
		delete(c.r.conns, c.port)
		c.r.done++
		if c.r.reopen {
			c.r.open()
		}
		return
	}
	c.push(side)
	if e.rcv-e.acked >= 2*roteMSS {
		c.send(side, wire.FlagACK, 0)
	}
}

// complete is called when an end has received a message.
func (c *roteConn) complete(side int) {
	switch {
	case side == 1:
		c.ends[1].closing = c.r.load.close
		c.say(1, c.r.load.response)
	case !c.r.load.close:
		c.r.done++
		c.say(0, c.r.load.request)
	}
}

func (c *roteConn) say(side, n int) {
	c.ends[side].toSend += uint32(n)
	c.push(side)
}

// push sends what there is to be sent and may be under way.
func (c *roteConn) push(side int) {
	e := &c.ends[side]
	for e.toSend > 0 && e.nxt-e.una+roteMSS <= e.window {
		n := min(e.toSend, roteMSS)
		e.toSend -= n
		flags := wire.FlagACK
		if e.toSend == 0 {
			flags |= wire.FlagPSH
		}
		if e.toSend == 0 && e.closing {
			flags |= wire.FlagFIN
		}
		c.send(side, flags, int(n))
	}
}

// Receive implements pipeline.Port.
func (p *rotePort) Receive(b *pipeline.Batch) (n int, err error) {
	for ; p.at < len(p.in) && b.Room() > 0; p.at++ {
		pk := p.pool.Get()
		if pk == nil {
			break
		}
		f := p.in[p.at]
		pk.SetView(pk.Offset(), len(f))
		copy(pk.Bytes(), f)
		p.free = append(p.free, f)
		b.Add(pk)
		n++
	}
	if p.at == len(p.in) {
		p.in, p.at = p.in[:0], 0
	}
	return n, nil
}

// Transmit implements pipeline.Port.
func (p *rotePort) Transmit(pkts []*pipeline.Packet) int {
	for _, pk := range pkts {
		t := wire.TCP(pk.Bytes()[wire.EthernetLen+wire.IPv4Len:])
		port := t.DstPort()
		if p.side == 1 {
			port = t.SrcPort()
		}
		if c := p.r.conns[port]; c != nil {
			c.receive(p.side, t)
		}
		p.pool.Put(pk)
	}
	p.sent += len(pkts)
	return len(pkts)
}
