// Package afxdp makes AF_XDP sockets ports of a pipeline worker.
//
// All sockets of an appliance share one UMEM, laid over a pipeline.Arena: a
// frame that came in by one port goes out by another without a copy of ours,
// by its descriptor. Its one trap: a port must be closed only after its worker
// has stopped, since a ring has a single thread on each end.
package afxdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"
	"time"

	"penstock/pipeline"
	"penstock/xsk"
)

// Memory is the packet memory of an appliance: a UMEM and the arena over it.
type Memory struct {
	UMEM  *xsk.UMEM
	Arena *pipeline.Arena
}

// MetadataLen is the number of bytes that the XDP program puts in front of a
// packet that it steers to a socket: magic, chain and flow hash, in host order
// (struct steer_meta in bpf/include).
const MetadataLen = 8

// MetadataMagic is the first field of the metadata.
const MetadataMagic = 0x5053

// metadataAnew is set in the field of the chain: the packet is a SYN, and the
// connection that had its addresses and ports has ended.
const metadataAnew = 0x8000

// metadataCookie is set there in a segment that gives back a SYN cookie, and two
// bits from metadataSize on say for which segment size. The chain has the rest.
const (
	metadataCookie = 0x4000
	metadataSize   = 12
	metadataChain  = 0x0fff
)

// NewMemory maps frames of frameSize bytes for the given number of workers,
// framesPerWorker for each. Close it after all ports.
func NewMemory(frameSize, framesPerWorker, workers int, huge xsk.HugePages) (*Memory, error) {
	u, err := xsk.NewUMEM(xsk.UMEMOptions{Frames: framesPerWorker * workers, FrameSize: frameSize, HugePages: huge})
	if err != nil {
		return nil, err
	}
	// Packets that stages make get the headroom that received ones have.
	a, err := pipeline.NewArena(u.Bytes(), frameSize, u.RxOffset(), workers)
	if err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return &Memory{UMEM: u, Arena: a}, nil
}

// Close unmaps the memory.
func (m *Memory) Close() error { return m.UMEM.Close() }

// RouteMetadataLen is the number of bytes that stand before them in router mode:
// magic, state, port, and the MTU of the route (struct route_meta).
const RouteMetadataLen = 8

const (
	routeMagic = 0x5054
	routeDone  = 1
	routeWait  = 3
)

// Options describe one queue of one port.
type Options struct {
	Info     pipeline.PortInfo // ID, Name, Interface, Queue, MTU; Mode is read back from the kernel
	Ifindex  int
	Worker   int // whose pool the frames come from
	Mode     xsk.Mode
	Router   *pipeline.Router // nil: bridge mode
	RingSize int              // entries of each ring; 0: 2048
	// FillTarget is how many frames wait for packets to come in; 0: half of
	// RingSize. More ride out longer bursts, fewer are left for sending.
	FillTarget int
	// Prefill are frames of Worker's pool to receive into first, from Prefill; nil:
	// Open takes them itself, and the worker must not run. If Open fails they are
	// the caller's still, for GiveBack.
	Prefill []uint64
}

func (o *Options) complete() {
	if o.RingSize == 0 {
		o.RingSize = 2048
	}
	if o.FillTarget == 0 {
		o.FillTarget = o.RingSize / 2
	}
	o.FillTarget = min(o.FillTarget, o.RingSize)
}

// Prefill takes the frames that Open with these options wants out of the worker's
// pool, fewer if there are not so many. Only on the worker's goroutine.
func (m *Memory) Prefill(o Options) []uint64 {
	o.complete()
	pool, addrs := m.Arena.Pool(o.Worker), make([]uint64, 0, o.FillTarget)
	for len(addrs) < o.FillTarget {
		p := pool.Get()
		if p == nil {
			break
		}
		addrs = append(addrs, uint64(p.Index())<<m.shift())
	}
	return addrs
}

// GiveBack returns frames of Prefill. Only on the worker's goroutine.
func (m *Memory) GiveBack(worker int, addrs []uint64) {
	for _, a := range addrs {
		m.Arena.Pool(worker).Put(m.Arena.At(a >> m.shift()))
	}
}

// shift is the binary logarithm of the frames' size.
func (m *Memory) shift() uint { return uint(bits.Len(uint(m.Arena.FrameSize() - 1))) }

// Port is one queue of an interface.
type Port struct {
	info     pipeline.PortInfo
	sock     *xsk.Socket
	arena    *pipeline.Arena
	pool     *pipeline.Pool
	shift    uint
	fill     int // target
	ringSize int
	router   *pipeline.Router
	descs    []xsk.Desc
	addrs    []uint64
	inFill   int

	rxPackets, rxBytes, txPackets, txBytes, refused counter
	noFrames, badFrames                             counter
	inFlight                                        atomic.Int64
	rings                                           atomic.Uint64 // 16 bits each: rx, tx, fill, completion
	link                                            atomic.Int32  // a linkState
}

type linkState = int32

const (
	linkUp linkState = iota
	linkDown
	linkGone
)

// counter is written by the port's worker only.
type counter struct{ v atomic.Uint64 }

func (c *counter) add(n int) { c.v.Store(c.v.Load() + uint64(n)) }

var _ pipeline.Port = (*Port)(nil)

// Open binds a socket. The caller puts FD into the XSKMAP.
func Open(m *Memory, o Options) (*Port, error) {
	o.complete()
	p := &Port{
		info: o.Info, arena: m.Arena, pool: m.Arena.Pool(o.Worker), fill: o.FillTarget, shift: m.shift(), ringSize: o.RingSize, router: o.Router,
		descs: make([]xsk.Desc, 4*pipeline.BatchSize), addrs: make([]uint64, 0, 4*pipeline.BatchSize),
	}
	prefill := o.Prefill
	if prefill == nil {
		prefill = m.Prefill(o)
	}
	var err error
	p.sock, err = m.UMEM.Open(o.Ifindex, o.Info.Queue, &xsk.SocketOptions{
		RxSize: o.RingSize, TxSize: o.RingSize, FillSize: o.RingSize, CompletionSize: o.RingSize,
		Mode: o.Mode, Prefill: prefill,
	})
	if err != nil {
		if o.Prefill == nil {
			p.recycle(prefill)
		}
		return nil, fmt.Errorf("open queue %d of port %q (%s): %w", o.Info.Queue, o.Info.Name, o.Info.Interface, err)
	}
	p.info.Mode = "copy"
	if p.sock.Mode() == xsk.ZeroCopy {
		p.info.Mode = "zero_copy"
	}
	p.inFill = len(prefill)
	p.inFlight.Store(int64(p.inFill))
	return p, nil
}

// FD is the socket's descriptor, for the XSKMAP.
func (p *Port) FD() int { return p.sock.FD() }

// Info implements pipeline.Port.
func (p *Port) Info() pipeline.PortInfo { return p.info }

// Receive implements pipeline.Port.
func (p *Port) Receive(b *pipeline.Batch) (int, error) {
	n := p.sock.Receive(p.descs[:min(b.Room(), len(p.descs))])
	if n == 0 {
		return 0, nil
	}
	bytes, got := 0, 0
	mask := uint64(1)<<p.shift - 1
	for _, d := range p.descs[:n] {
		pk := p.arena.At(d.Addr >> p.shift)
		off := int(d.Addr & mask)
		if pk == nil || !pk.SetView(off, int(d.Len)) {
			p.badFrames.add(1) // xsk has checked it: not reached
			continue
		}
		if off >= MetadataLen {
			m := pk.Frame()[off-MetadataLen : off]
			if binary.NativeEndian.Uint16(m) == MetadataMagic {
				chain := binary.NativeEndian.Uint16(m[2:])
				pk.Chain = pipeline.ChainID(chain & metadataChain)
				pk.Anew = chain&metadataAnew != 0
				pk.Cookie, pk.CookieSize = chain&metadataCookie != 0, uint8(chain>>metadataSize&3)
				pk.Hash = binary.NativeEndian.Uint32(m[4:])
				// Frames are used again: what stands there now must not be
				// taken for the next packet's.
				binary.NativeEndian.PutUint16(m, 0)
			}
		}
		if p.router != nil {
			p.route(pk, off)
		}
		bytes += int(d.Len)
		b.Add(pk)
		got++
	}
	p.inFill -= n
	p.inFlight.Add(int64(-n))
	p.rxPackets.add(got)
	p.rxBytes.add(bytes)
	return got, nil
}

// route reads what the XDP program found out about the way of a packet. Without
// it the kernel is to see to the packet.
func (p *Port) route(pk *pipeline.Packet, off int) {
	pk.Routing, pk.Out = pipeline.KernelRouted, p.router.Kernel
	if off < MetadataLen+RouteMetadataLen {
		return
	}
	m := pk.Frame()[off-MetadataLen-RouteMetadataLen : off-MetadataLen]
	if binary.NativeEndian.Uint16(m) != routeMagic {
		return
	}
	binary.NativeEndian.PutUint16(m, 0)
	switch m[2] {
	case routeDone:
		pk.Routing, pk.Out, pk.RouteMTU = pipeline.Routed, pipeline.PortID(m[3]), binary.NativeEndian.Uint16(m[4:])
	case routeWait:
		pk.Routing = pipeline.Unresolved
		pk.Forward(p.router.Kernel)
	}
}

// Transmit implements pipeline.Port.
func (p *Port) Transmit(pkts []*pipeline.Packet) (accepted int) {
	bytes := 0
	for len(pkts) > 0 && p.link.Load() != linkGone {
		n := min(len(pkts), len(p.descs))
		for i, pk := range pkts[:n] {
			p.descs[i] = xsk.Desc{Addr: uint64(pk.Index())<<p.shift + uint64(pk.Offset()), Len: uint32(pk.Len())}
		}
		taken := p.sock.Transmit(p.descs[:n])
		for _, d := range p.descs[:taken] {
			bytes += int(d.Len)
		}
		accepted += taken
		pkts = pkts[taken:]
		if taken == n {
			continue
		}
		// The ring is full: send what is there, and see what has come back.
		p.kick()
		if p.complete() == 0 {
			break
		}
	}
	p.inFlight.Add(int64(accepted))
	p.txPackets.add(accepted)
	p.txBytes.add(bytes)
	p.refused.add(len(pkts))
	for _, pk := range pkts {
		p.pool.Put(pk)
	}
	return accepted
}

// Flush implements pipeline.Port.
func (p *Port) Flush() {
	if p.sock.Pending() > 0 {
		p.kick()
	}
	p.complete()
	p.refill()
	fill, rx, tx, completion := p.sock.InKernel()
	p.inFlight.Store(int64(fill + rx + tx + completion))
	p.rings.Store(uint64(rx) | uint64(tx)<<16 | uint64(fill)<<32 | uint64(completion)<<48)
}

func (p *Port) kick() { p.note(p.sock.Kick()) }

// note keeps track of the link. A link that is down is no error: frames wait,
// and go when it is up again.
func (p *Port) note(err error) {
	state := linkUp
	switch {
	case err == nil:
	case errors.Is(err, xsk.ErrLinkGone):
		state = linkGone
	case errors.Is(err, xsk.ErrLinkDown):
		state = linkDown
	default:
		return
	}
	if p.link.Load() != state {
		p.link.Store(state)
	}
}

func (p *Port) complete() (n int) {
	for {
		got := p.sock.Complete(p.addrs[:cap(p.addrs)])
		n += got
		p.inFlight.Add(int64(-got))
		p.recycle(p.addrs[:got])
		if got < cap(p.addrs) {
			return n
		}
	}
}

func (p *Port) recycle(addrs []uint64) {
	for _, a := range addrs {
		if pk := p.arena.At(a >> p.shift); pk != nil {
			p.pool.Put(pk)
		}
	}
}

// refill keeps the fill ring at its target, in steps that are worth it.
func (p *Port) refill() {
	for missing := p.fill - p.inFill; missing >= pipeline.BatchSize/2 || missing > 0 && p.inFill < p.fill/2; missing = p.fill - p.inFill {
		addrs := p.addrs[:0]
		for len(addrs) < min(missing, cap(addrs)) {
			pk := p.pool.Get()
			if pk == nil {
				p.noFrames.add(1)
				break
			}
			addrs = append(addrs, uint64(pk.Index())<<p.shift)
		}
		if len(addrs) == 0 {
			return
		}
		n := p.sock.Fill(addrs)
		p.inFill += n
		p.recycle(addrs[n:])
		if n < len(addrs) {
			break
		}
	}
	p.note2(p.sock.WakeRx())
}

// note2 notes only bad news: WakeRx makes no system call, and so knows nothing
// of the link, unless the driver asked for it.
func (p *Port) note2(err error) {
	if err != nil {
		p.note(err)
	}
}

// ready reports whether there is something to receive.
func (p *Port) ready() bool {
	_, rx, _, _ := p.sock.InKernel()
	return rx > 0
}

// Stats implements pipeline.Port.
func (p *Port) Stats() pipeline.PortStats {
	s := pipeline.PortStats{
		RxPackets: p.rxPackets.v.Load(), RxBytes: p.rxBytes.v.Load(),
		TxPackets: p.txPackets.v.Load(), TxBytes: p.txBytes.v.Load(), TxRefused: p.refused.v.Load(),
		InFlight: int(p.inFlight.Load()), LinkUp: p.link.Load() == linkUp,
	}
	used := p.rings.Load()
	for i, name := range [...]string{"rx", "tx", "fill", "completion"} {
		s.Rings = append(s.Rings, pipeline.RingStats{Name: name, Used: int(used >> (16 * i) & 0xffff), Size: p.ringSize})
	}
	x, err := p.sock.Stats()
	if err != nil {
		return s // closed: what we counted ourselves stands
	}
	s.Extra = map[string]uint64{
		"no_frames": p.noFrames.v.Load(), "bad_frames": p.badFrames.v.Load() + x.FillInvalid + x.RxInvalid + x.TxInvalid + x.TxNotHeld + x.CompletionInvalid,
		"kicks": x.Kicks, "kick_again": x.KickAgain, "kick_drops": x.KickDrops, "kick_fails": x.KickFails,
		"no_buffers": x.NoBuffers, "wakeups": x.Wakeups, "link_downs": x.LinkDowns,
		"rx_dropped": x.Kernel.RxDropped, "rx_ring_full": x.Kernel.RxRingFull, "fill_ring_empty": x.Kernel.FillRingEmpty,
		"tx_invalid": x.Kernel.TxInvalidDescs,
	}
	return s
}

// Progress is what has gone through a port's socket.
type Progress struct {
	Sent, Returned uint64 // frames for the driver to send, refused ones included; those that it gave back
	Received, Lost uint64 // packets that arrived; those that the kernel had no room for, or that were broken
}

// Progress reads the counts, from any goroutine.
func (p *Port) Progress() Progress {
	x, _ := p.sock.Stats() // closed: our own counts stand
	return Progress{
		Sent: x.Transmitted + p.refused.v.Load(), Returned: x.Completed,
		Received: x.Received, Lost: x.RxInvalid + x.Kernel.RxDropped + x.Kernel.RxRingFull + x.Kernel.FillRingEmpty,
	}
}

// Detach is the part of Close that takes its time, the kernel's to let go of the
// queue: it may run on any goroutine, after the worker has let go of the port. Close
// must follow, on the worker's.
func (p *Port) Detach() error { return p.sock.Close() }

// Close implements pipeline.Port. In zero-copy mode the frames that the NIC
// holds do not come back: the UMEM is closed next.
func (p *Port) Close() error {
	p.complete()
	err := p.sock.Close()
	if errors.Is(err, xsk.ErrClosed) {
		err = nil // by Detach
	}
	for {
		n := p.sock.Reclaim(p.addrs[:cap(p.addrs)])
		if n == 0 {
			break
		}
		p.recycle(p.addrs[:n])
	}
	fill, rx, tx, completion := p.sock.InKernel()
	p.inFlight.Store(int64(fill + rx + tx + completion))
	return err
}

// txRetry bounds a wait while packets are still to be sent: nothing wakes the
// worker when the device has room again.
const txRetry = time.Millisecond
