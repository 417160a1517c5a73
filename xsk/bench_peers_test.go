package xsk_test

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	asavie "github.com/asavie/xdp"
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
	gvisor "gvisor.dev/gvisor/pkg/xdp"

	"penstock/xsk"
)

// The benchmark does the same work with three AF_XDP packages: receive on one
// veth, transmit on another, queue 0 of each.
//
//	CPU 0                              CPU 1
//	live frames -> inp=in => forwarder thread => out=outp -> counted, dropped
//
// The source is BPF_PROG_TEST_RUN with live frames, faster than any forwarder,
// so that these are always saturated. They take turns of a fraction of a
// second; figures are packets that reached outp per second of the
// forwarder thread's CPU time, which on veth includes the kernel's sending side.

const (
	benchTurn   = 20 * time.Millisecond
	benchRounds = 60
)

// A forwarder moves packets from the near end of in to the near end of out.
type forwarder interface {
	// step moves what there is now, and waits a moment if there is nothing.
	step()
	close()
}

var forwarders = []struct {
	name string
	open func(t testing.TB, in, out *wire) forwarder
}{
	{"penstock", openPenstock},
	{"asavie", openAsavie},
	{"gvisor", openGvisor},
}

func BenchmarkForward(b *testing.B) {
	for _, size := range []int{64, 1500} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			results := measure(b, size)
			for i, f := range forwarders {
				b.Run(f.name, func(b *testing.B) {
					r := results[i] // measured above, in turns
					b.ReportMetric(0, "ns/op")
					b.ReportMetric(float64(r.packets)/r.cpu.Seconds()/1e3, "kpkt/cpu-s")
					b.ReportMetric(float64(r.packets)/r.wall.Seconds()/1e3, "kpkt/s")
					b.ReportMetric(r.rate()/results[0].rate(), "of-penstock")
				})
			}
		})
	}
}

type turn struct {
	packets   uint64
	cpu, wall time.Duration
}

func (r turn) rate() float64 { return float64(r.packets) / r.cpu.Seconds() }

func measure(b *testing.B, size int) []turn {
	bed := newBed(b)
	// Each has wires of its own, kept open to the end: the peers' Close leaves
	// the rings mapped, which holds the queue until the process ends.
	var lanes []lane
	for i, f := range forwarders {
		l := lane{in: bed.wire(b, fmt.Sprintf("in%d", i), 1), out: bed.wire(b, fmt.Sprintf("out%d", i), 1)}
		// No NAPI at the sink: it would only cost the forwarder's CPU more.
		if err := bed.ns.SetOffload(l.out.farName, map[string]bool{"gro": false}); err != nil {
			b.Fatal(err)
		}
		l.f = f.open(b, l.in, l.out)
		defer l.f.close()
		lanes = append(lanes, l)
	}
	src := newSource(b, lanes[0].in, size)
	defer src.stop()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unpin, err := pin(runtime.NumCPU() - 1)
	if err != nil {
		b.Fatal(err)
	}
	defer unpin()
	results := make([]turn, len(lanes))
	for range benchRounds {
		for i, l := range lanes {
			r := l.turn(b, src)
			results[i].packets += r.packets
			results[i].cpu += r.cpu
			results[i].wall += r.wall
		}
	}
	return results
}

type lane struct {
	in, out *wire
	f       forwarder
}

// source makes packets of one size on CPU 0, as fast as the kernel can, and
// sends them into the far end of one wire at a time.
type source struct {
	target *ebpf.Map // [0] = interface index
	stop   func()
}

func newSource(b *testing.B, w *wire, size int) *source {
	target, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		b.Fatal(err)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "Dual MIT/GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, target.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return().WithSymbol("exit"),
	}})
	if err != nil {
		b.Fatal(err)
	}
	type xdpMD struct{ Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32 }
	var buf [2048]byte
	run := &ebpf.RunOptions{
		Data:      packet(buf[:], 1, size),
		Repeat:    1 << 20, // about a second; starting one costs the kernel some 50 ms
		Flags:     unix.BPF_F_TEST_XDP_LIVE_FRAMES,
		BatchSize: 64,
		Context:   &xdpMD{DataEnd: uint32(size), IngressIfindex: uint32(w.far)},
	}
	var stopping atomic.Bool
	done := make(chan error, 1)
	go func() {
		done <- w.ns.Do(func() error {
			unpin, err := pin(0)
			if err != nil {
				return err
			}
			defer unpin()
			for !stopping.Load() {
				if _, err := prog.Run(run); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	return &source{target: target, stop: func() {
		stopping.Store(true)
		if err := <-done; err != nil {
			b.Error(err)
		}
		prog.Close()
		target.Close()
	}}
}

func (s *source) aim(b *testing.B, w *wire) {
	if err := s.target.Put(uint32(0), uint32(w.far)); err != nil {
		b.Fatal(err)
	}
}

// pin binds the calling thread, which must be locked, to a CPU.
func pin(cpu int) (unpin func(), err error) {
	var was, want unix.CPUSet
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		return nil, err
	}
	want.Set(cpu)
	if err := unix.SchedSetaffinity(0, &want); err != nil {
		return nil, err
	}
	return func() { _ = unix.SchedSetaffinity(0, &was) }, nil
}

func threadCPU() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}

func (l lane) turn(b *testing.B, src *source) turn {
	src.aim(b, l.in)
	for start := time.Now(); time.Since(start) < benchTurn/5; { // warm up
		l.f.step()
	}
	before := l.out.arrived(b)
	cpu, start := threadCPU(), time.Now()
	for time.Since(start) < benchTurn {
		for range 16 {
			l.f.step()
		}
	}
	r := turn{cpu: threadCPU() - cpu, wall: time.Since(start)}
	r.packets = l.out.arrived(b) - before
	return r
}

// arrived is the number of packets that reached the far end.
func (w *wire) arrived(b *testing.B) uint64 {
	st, err := w.ns.LinkStats(w.farName)
	if err != nil {
		b.Fatal(err)
	}
	return st.RxPackets
}

// waitReadable is poll(2) as the peers' own examples use it.
func waitReadable(fd int) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	_, _ = unix.Poll(fds, 10)
}

// readdress is the work on each packet: its Ethernet addresses are swapped.
func readdress(b []byte) {
	a := *(*[12]byte)(b)
	copy(b[:6], a[6:])
	copy(b[6:12], a[:6])
}

// penstock: one UMEM for both sockets; the received descriptor is transmitted.
type penstockForwarder struct {
	u       *xsk.UMEM
	pool    *xsk.Pool
	in, out *xsk.Socket
	descs   [64]xsk.Desc
	free    [256]uint64
}

func openPenstock(t testing.TB, in, out *wire) forwarder {
	f := &penstockForwarder{}
	var err error
	if f.u, err = xsk.NewUMEM(xsk.UMEMOptions{Frames: 4096}); err != nil {
		t.Fatal(err)
	}
	f.pool = f.u.NewPool(0, 4096)
	fill := make([]uint64, 2048)
	f.pool.Alloc(fill)
	if f.in, err = in.tryOpen(f.u, 0, &xsk.SocketOptions{Prefill: fill}); err != nil {
		t.Fatal(err)
	}
	if f.out, err = out.tryOpen(f.u, 0, nil); err != nil {
		t.Fatal(err)
	}
	in.steer(t, f.in)
	return f
}

func (f *penstockForwarder) step() {
	n := f.in.Receive(f.descs[:])
	if n == 0 {
		_ = f.in.Poll(10 * time.Millisecond)
		return
	}
	for _, d := range f.descs[:n] {
		readdress(f.u.Data(d))
	}
	sent := f.out.Transmit(f.descs[:n])
	for _, d := range f.descs[sent:n] {
		f.pool.Free(d.Addr)
	}
	_ = f.out.Kick()
	// The fill ring is as large as the TX ring and gave these frames: they fit.
	f.in.Fill(f.free[:f.out.Complete(f.free[:])])
}

func (f *penstockForwarder) close() {
	f.in.Close()
	f.out.Close()
	f.u.Close()
}

// asavie: a UMEM per socket, so the bytes are copied, as its l2fwd example does.
type asavieForwarder struct{ in, out *asavie.Socket }

func openAsavie(t testing.TB, in, out *wire) forwarder {
	f := &asavieForwarder{}
	open := func(w *wire) (s *asavie.Socket) {
		w.do(t, func() (err error) {
			s, err = asavie.NewSocket(w.near, 0, nil) // larger rings make it slower
			return err
		})
		return s
	}
	f.in, f.out = open(in), open(out)
	f.in.Fill(f.in.GetDescs(f.in.NumFreeFillSlots(), true))
	if err := in.xsks.Put(uint32(0), uint32(f.in.FD())); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *asavieForwarder) step() {
	if f.in.NumReceived() == 0 {
		waitReadable(f.in.FD())
	}
	got := f.in.Receive(min(f.in.NumReceived(), 64))
	f.out.Complete(f.out.NumCompleted())
	free := f.out.GetDescs(min(len(got), f.out.NumFreeTxSlots()), false)
	got = got[:min(len(got), len(free))]
	for i := range got {
		b := f.out.GetFrame(free[i])
		free[i].Len = uint32(copy(b, f.in.GetFrame(got[i])))
		readdress(b)
	}
	f.out.Transmit(free[:len(got)])
	f.in.Fill(f.in.GetDescs(f.in.NumFreeFillSlots(), true))
}

func (f *asavieForwarder) close() { f.in.Close(); f.out.Close() }

// gvisor: likewise a UMEM per socket.
type gvisorForwarder struct {
	in, out     *gvisor.ControlBlock
	inFD, outFD int
}

func openGvisor(t testing.TB, in, out *wire) forwarder {
	f := &gvisorForwarder{}
	o := gvisor.Opts{NFrames: 4096, FrameSize: 2048, NDescriptors: 2048, Bind: true, UseNeedWakeup: true}
	open := func(w *wire) (cb *gvisor.ControlBlock, fd int) {
		w.do(t, func() (err error) {
			if fd, err = unix.Socket(unix.AF_XDP, unix.SOCK_RAW, 0); err != nil {
				return err
			}
			cb, err = gvisor.NewFromSocket(fd, uint32(w.near), 0, o)
			return err
		})
		return cb, fd
	}
	f.in, f.inFD = open(in)
	f.out, f.outFD = open(out)
	f.in.Fill.FillAll(&f.in.UMEM)
	if err := in.xsks.Put(uint32(0), uint32(f.inFD)); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *gvisorForwarder) step() {
	n, at := f.in.RX.Peek()
	if n == 0 {
		waitReadable(f.inFD)
		return
	}
	for done := uint32(0); done < n; {
		k := min(n-done, 32) // what one of its kicks sends
		f.in.UMEM.Lock()
		f.out.UMEM.Lock()
		f.out.Completion.FreeAll(&f.out.UMEM)
		got, slot := f.out.TX.Reserve(&f.out.UMEM, k)
		for i := range k {
			d := f.in.RX.Get(at + done + i)
			if got > 0 {
				o := unix.XDPDesc{Addr: f.out.UMEM.AllocFrame(), Len: d.Len}
				b := f.out.UMEM.Get(o)
				copy(b, f.in.UMEM.Get(d))
				readdress(b)
				f.out.TX.Set(slot+i, o)
			}
			f.in.UMEM.FreeFrame(d.Addr)
		}
		f.in.Fill.FillAll(&f.in.UMEM)
		f.out.TX.Notify()
		f.out.UMEM.Unlock()
		f.in.UMEM.Unlock()
		done += k
	}
	f.in.RX.Release(n)
}

// close closes the sockets; the package has no way to unmap its memory.
func (f *gvisorForwarder) close() { unix.Close(f.inFD); unix.Close(f.outFD) }
