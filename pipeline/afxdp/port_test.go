package afxdp_test

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
	"penstock/pipeline"
	"penstock/pipeline/afxdp"
	"penstock/pipeline/pipelinetest"
	"penstock/xsk"
)

// wire is a veth pair with an AF_XDP port on one end and a raw socket and a tap
// on the other:
//
//	far: raw, tap ---- near: XDP, port
type wire struct {
	far, near *lab.NS
	raw       *lab.Raw
	tap       *lab.Tap
	mem       *afxdp.Memory
	port      *afxdp.Port
}

// newWire opens a port on a veth of its own. With metadata the program puts the
// eight bytes before the packet that Penstock's own one does.
func newWire(t *testing.T, metadata bool) *wire {
	t.Helper()
	l := labtest.NewForTest(t)
	w := &wire{}
	var err error
	for role, at := range map[string]**lab.NS{"far": &w.far, "near": &w.near} {
		if *at, err = l.NS(role); err != nil {
			t.Fatal(err)
		}
	}
	err = l.Veth(lab.End{NS: w.far, Name: "eth0", NoIPv6: true}, lab.End{NS: w.near, Name: "eth0", NoIPv6: true}, lab.VethOptions{NoMerge: true})
	if err != nil {
		t.Fatal(err)
	}
	if w.raw, err = w.far.Raw("eth0"); err != nil {
		t.Fatal(err)
	}
	if w.tap, err = w.far.Tap("eth0", 100000); err != nil {
		t.Fatal(err)
	}
	index, err := w.near.LinkIndex("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if w.mem, err = afxdp.NewMemory(2048, 4096, 1, xsk.HugeOff); err != nil {
		t.Fatal(err)
	}
	err = w.near.Do(func() error {
		w.port, err = afxdp.Open(w.mem, afxdp.Options{
			Info: pipeline.PortInfo{ID: 0, Name: "near", Interface: "eth0", MTU: 1500}, Ifindex: index, Mode: xsk.Copy, RingSize: 1024,
		})
		if err != nil {
			return err
		}
		return attach(t, index, w.port.FD(), metadata)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.raw.Close()
		w.tap.Close()
		_ = w.port.Close() // the test has closed it, or failed
		if err := w.mem.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// attach puts a program on the interface that sends everything to the socket.
func attach(t *testing.T, index, fd int, metadata bool) error {
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return err
	}
	if err := sockets.Put(uint32(0), uint32(fd)); err != nil {
		return err
	}
	code := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	if metadata {
		code = append(code,
			asm.Mov.Imm(asm.R2, -afxdp.MetadataLen), asm.FnXdpAdjustMeta.Call(),
			asm.LoadMem(asm.R2, asm.R6, 0, asm.Word), // data
			asm.LoadMem(asm.R3, asm.R6, 8, asm.Word), // data_meta
			asm.Mov.Reg(asm.R4, asm.R3), asm.Add.Imm(asm.R4, afxdp.MetadataLen),
			asm.JGT.Reg(asm.R4, asm.R2, "out"),
			asm.StoreImm(asm.R3, 0, afxdp.MetadataMagic|7<<16, asm.Word),
			asm.StoreImm(asm.R3, 4, 0x1234567, asm.Word),
		)
	}
	code = append(code,
		asm.LoadMapPtr(asm.R1, sockets.FD()).WithSymbol("out"), asm.Mov.Imm(asm.R2, 0), asm.Mov.Imm(asm.R3, 1),
		asm.FnRedirectMap.Call(), asm.Return())
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: code})
	if err != nil {
		return err
	}
	lnk, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: index, Flags: link.XDPDriverMode})
	if err != nil {
		return err
	}
	t.Cleanup(func() {
		lnk.Close()
		prog.Close()
		sockets.Close()
	})
	return nil
}

func TestPort(t *testing.T) {
	pipelinetest.Port(t, func(t *testing.T, in [][]byte) *pipelinetest.PortUnderTest {
		w := newWire(t, false)
		for _, f := range in {
			if _, err := w.raw.Write(f); err != nil {
				t.Fatal(err)
			}
		}
		return &pipelinetest.PortUnderTest{
			Port: w.port, Pool: w.mem.Arena.Pool(0),
			Sent: func() (frames [][]byte) {
				for _, f := range w.tap.Frames() {
					if !f.Outgoing {
						frames = append(frames, f.Data)
					}
				}
				return frames
			},
		}
	})
}

// receive polls until the port has delivered n packets or the time is over.
func receive(t *testing.T, p *afxdp.Port, b *pipeline.Batch, n int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); b.Len() < n; {
		if _, err := p.Receive(b); err != nil {
			t.Fatal(err)
		}
		p.Flush()
		if time.Now().After(deadline) {
			t.Fatalf("%d packets of %d", b.Len(), n)
		}
	}
}

func TestMetadata(t *testing.T) {
	for _, metadata := range []bool{true, false} {
		w := newWire(t, metadata)
		if _, err := w.raw.Write(pipelinetest.UDP("10.0.0.1:1", "10.0.0.2:2")); err != nil {
			t.Fatal(err)
		}
		b := pipeline.NewBatch(4)
		receive(t, w.port, b, 1)
		p := b.All()[0]
		chain, hash := pipeline.ChainID(pipeline.NoChain), uint32(0)
		if metadata {
			chain, hash = 7, 0x1234567
		}
		if p.Chain != chain || p.Hash != hash {
			t.Errorf("metadata %v: chain %d, hash %#x", metadata, p.Chain, p.Hash)
		}
		// The next packet in the same frame must not inherit it.
		if m := p.Frame()[p.Offset()-afxdp.MetadataLen:]; metadata && binary.NativeEndian.Uint16(m) == afxdp.MetadataMagic {
			t.Error("the metadata was not cleared")
		}
		w.mem.Arena.Pool(0).Put(p)
		if err := w.port.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWaiter(t *testing.T) {
	w := newWire(t, false)
	waiter, err := afxdp.NewWaiter([]*afxdp.Port{w.port})
	if err != nil {
		t.Fatal(err)
	}
	defer waiter.Close()
	within := func(what string, least, most time.Duration, fn func()) {
		t.Helper()
		begin := time.Now()
		fn()
		if d := time.Since(begin); d < least || d > most {
			t.Errorf("%s took %v, want %v to %v", what, d, least, most)
		}
	}
	// These are bounds of a state (asleep, awake), not a measurement: the upper
	// ones are far above what a loaded machine needs.
	within("a timeout", 45*time.Millisecond, 5*time.Second, func() { waiter.Wait(int64(50 * time.Millisecond)) })
	within("a wake before the wait", 0, 5*time.Second, func() { waiter.Wake(); waiter.Wait(int64(30 * time.Second)) })
	for range 1000 {
		go waiter.Wake()
		within("a wake beside the wait", 0, 5*time.Second, func() { waiter.Wait(-1) })
	}
	within("a late wake is no wake for ever", 40*time.Millisecond, 5*time.Second, func() {
		for range 20 { // early returns are allowed, but not without end
			waiter.Wait(int64(50 * time.Millisecond))
		}
	})
	if _, err := w.raw.Write(pipelinetest.UDP("10.0.0.1:1", "10.0.0.2:2")); err != nil {
		t.Fatal(err)
	}
	within("a packet", 0, 5*time.Second, func() { waiter.Wait(-1) })
	b := pipeline.NewBatch(1)
	receive(t, w.port, b, 1)
	w.mem.Arena.Pool(0).Put(b.All()[0])
	// A packet that comes while asleep.
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		waiter.Wait(-1)
	}()
	for range 3 {
		if _, err := w.raw.Write(pipelinetest.UDP("10.0.0.1:1", "10.0.0.2:2")); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	if err := w.port.Close(); err != nil {
		t.Error(err)
	}
	if free := w.mem.Arena.Pool(0).Free(); free != 4096 {
		t.Errorf("%d frames free of 4096", free)
	}
}

func TestDoesNotAllocate(t *testing.T) {
	w := newWire(t, false)
	w.tap.Close() // it allocates for every frame
	b := pipeline.NewBatch(pipeline.BatchSize)
	frame := pipelinetest.UDP("10.0.0.1:1", "10.0.0.2:2")
	pool := w.mem.Arena.Pool(0)
	n := testing.AllocsPerRun(200, func() {
		b.Reset()
		for b.Room() > 0 {
			p := pool.Get()
			p.SetView(p.Offset(), len(frame))
			copy(p.Bytes(), frame)
			b.Add(p)
		}
		w.port.Transmit(b.All())
		w.port.Flush()
		b.Reset()
		_, _ = w.port.Receive(b)
		for _, p := range b.All() {
			pool.Put(p)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations in a turn", n)
	}
}

// TestLinkGone unplugs the interface under the port.
func TestLinkGone(t *testing.T) {
	w := newWire(t, false)
	if err := w.near.SetLink("eth0", false); err != nil {
		t.Fatal(err)
	}
	pool := w.mem.Arena.Pool(0)
	send := func() int {
		p := pool.Get()
		p.SetView(p.Offset(), 60)
		n := w.port.Transmit([]*pipeline.Packet{p})
		w.port.Flush()
		return n
	}
	send()
	if w.port.Stats().LinkUp {
		t.Error("the port says that its link is up")
	}
	if err := w.near.SetLink("eth0", true); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for !w.port.Stats().LinkUp {
		send()
		if time.Now().After(deadline) {
			t.Fatal("the port does not notice that its link is up again")
		}
	}
	if err := w.port.Close(); err != nil {
		t.Error(err)
	}
	if free := pool.Free(); free != pool.Total() {
		t.Errorf("%d frames free of %d", free, pool.Total())
	}
}

func TestOpenErrors(t *testing.T) {
	labtest.NeedRoot(t)
	m, err := afxdp.NewMemory(2048, 1024, 1, xsk.HugeOff)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	_, err = afxdp.Open(m, afxdp.Options{Info: pipeline.PortInfo{Name: "lan", Interface: "none0"}, Ifindex: 1 << 30, RingSize: 256})
	if err == nil || errors.Is(err, os.ErrClosed) {
		t.Errorf("an interface that does not exist: %v", err)
	}
	if free := m.Arena.Pool(0).Free(); free != 1024 {
		t.Errorf("after the failure %d frames are free of 1024", free)
	}
}
