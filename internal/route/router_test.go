package route

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/pipeline/pipelinetest"
)

// kernel is a kernel of the test's making: its tables are asked by destination.
type kernel struct {
	mu       sync.Mutex
	ways     map[netip.Addr]Way
	used     map[Hop]int
	injected [][]byte
	hops     map[Hop]time.Duration
}

func (k *kernel) Route(_ int, frame []byte) (Way, error) {
	var h wire.Headers
	if h.Parse(frame) != wire.FaultNone {
		return Way{}, errors.New("malformed")
	}
	f, _ := h.Flow(frame)
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ways[f.DstAddr().Addr()], nil
}

func (k *kernel) Inject(_ int, frame []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.injected = append(k.injected, bytes.Clone(frame))
	return nil
}

func (k *kernel) SetMAC(int, net.HardwareAddr) error { return nil }

func (k *kernel) Hops(fn func(h Hop, unused time.Duration) bool) error {
	for h, d := range k.hops {
		if !fn(h, d) {
			delete(k.hops, h)
		}
	}
	return nil
}

func (k *kernel) Use(h Hop) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.used[h]++
	return nil
}

var (
	client, server = netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.1.0.1:80")
	hop            = Hop{netip.MustParseAddr("10.1.0.1"), 7}
)

type bed struct {
	*Router
	k    *kernel
	p    *Port
	pool *pipeline.Pool
}

func newBed(t testing.TB) *bed {
	t.Helper()
	const frame = 2048
	a, err := pipeline.NewArena(make([]byte, 4096*frame), frame, 256, 1)
	if err != nil {
		t.Fatal(err)
	}
	k := &kernel{ways: map[netip.Addr]Way{}, used: map[Hop]int{}, hops: map[Hop]time.Duration{}}
	b := &bed{k: k, pool: a.Pool(0), Router: New(Options{Tables: k, Neighbors: k, Ifindex: []int{6, 7}, Frame: frame}, 2)}
	b.macs[0] = net.HardwareAddr{2, 0, 0, 0, 0, 9}
	b.p = b.Port(0, b.pool, func() {})
	return b
}

// send transmits n packets as a worker does, and returns how many were taken.
func (b *bed) send(t testing.TB, n int, routing pipeline.Routing) int {
	t.Helper()
	raw := pipelinetest.TCP(client.String(), server.String(), wire.FlagSYN, 1)
	var pkts []*pipeline.Packet
	for range n {
		p := b.pool.Get()
		p.SetView(p.Offset(), len(raw))
		copy(p.Bytes(), raw)
		p.In, p.Out, p.Chain, p.Hash, p.Routing = 0, 2, 5, 77, routing
		pkts = append(pkts, p)
	}
	taken := b.p.Transmit(pkts)
	b.collect()
	return taken
}

func (b *bed) receive(t testing.TB) []*pipeline.Packet {
	t.Helper()
	batch := pipeline.NewBatch(pipeline.BatchSize)
	if _, err := b.p.Receive(batch); err != nil {
		t.Fatal(err)
	}
	return batch.All()
}

// TestWays: what becomes of a packet for each thing that the kernel's tables say.
func TestWays(t *testing.T) {
	for _, tt := range []struct {
		name     string
		routing  pipeline.Routing
		state    State
		injected int
		want     pipeline.Routing // of what comes back; Bridged: nothing does
		leaves   bool
	}{
		{"kernel's", pipeline.KernelRouted, Done, 1, pipeline.Bridged, false},
		{"found meanwhile", pipeline.Unresolved, Done, 0, pipeline.Routed, false},
		{"off port meanwhile", pipeline.Unresolved, Kernel, 0, pipeline.KernelRouted, false},
		{"gone meanwhile", pipeline.Unresolved, Pass, 1, pipeline.Bridged, false},
		{"a stage's", pipeline.Reroute, Done, 0, pipeline.Routed, true},
		{"a stage's, off port", pipeline.Reroute, Kernel, 1, pipeline.Bridged, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			b.k.ways[server.Addr()] = Way{State: tt.state, Port: 1, MTU: 1400}
			b.send(t, 1, tt.routing)
			back := b.receive(t)
			if len(b.k.injected) != tt.injected || len(back) != map[bool]int{true: 1}[tt.want != pipeline.Bridged] {
				t.Fatalf("%d to the kernel, %d back", len(b.k.injected), len(back))
			}
			for _, p := range back {
				out := pipeline.PortID(1)
				if tt.want == pipeline.KernelRouted {
					out = 2
				}
				v, _ := p.Verdict()
				if p.Routing != tt.want || p.Out != out || p.In != 0 || p.Chain != 5 || p.Hash != 77 || (v == pipeline.Forward) != tt.leaves {
					t.Errorf("%+v, verdict %s", p, v)
				}
			}
		})
	}
}

// TestWait holds packets until their next hop is known.
func TestWait(t *testing.T) {
	b := newBed(t)
	b.k.ways[server.Addr()] = Way{State: Wait, Hop: hop}
	if n := b.send(t, waitPerHop+10, pipeline.Unresolved); n != waitPerHop+10 {
		t.Fatalf("%d taken", n)
	}
	if b.k.used[hop] != 1 || b.Counters()["waited"] != waitPerHop || b.Counters()["wait_full"] != 10 {
		t.Fatalf("looked for %d times, %v", b.k.used[hop], b.Counters())
	}
	b.heard(news{hop, false}) // not yet: the tables still say so
	b.heard(news{hop, true})  // somebody has deleted the entry
	if len(b.receive(t)) != 0 || b.k.used[hop] != 2 {
		t.Fatalf("looked for %d times", b.k.used[hop])
	}
	b.k.ways[server.Addr()] = Way{State: Done, Port: 1}
	b.heard(news{hop, false})
	got := 0
	for pkts := b.receive(t); len(pkts) > 0; pkts = b.receive(t) {
		got += len(pkts)
	}
	if got != waitPerHop || b.parked != 0 || len(b.waiting) != 0 || len(b.k.injected) != 0 {
		t.Errorf("%d came back, %d are parked, %d to the kernel", got, b.parked, len(b.k.injected))
	}
}

// TestGiveUp: the kernel is to tell the sender, and the receiver is to take
// nothing.
func TestGiveUp(t *testing.T) {
	b := newBed(t)
	b.k.ways[server.Addr()] = Way{State: Wait, Hop: hop}
	b.send(t, 3, pipeline.Unresolved)
	b.send(t, 2, pipeline.Reroute)
	b.overdue(time.Now())
	if len(b.k.injected) != 0 {
		t.Fatal("too soon")
	}
	b.overdue(time.Now().Add(2 * waitTime))
	if len(b.k.injected) != 3 || b.Counters()["unreachable"] != 5 || b.parked != 0 {
		t.Fatalf("%d to the kernel, %v", len(b.k.injected), b.Counters())
	}
	for _, f := range b.k.injected {
		var h wire.Headers
		if h.Parse(f) != wire.FaultNone || !wire.VerifyIPv4(f[h.L3:]) || wire.VerifyL4(f, &h) {
			t.Errorf("%x can be received", f)
		}
	}
}

// TestBounds: nothing grows, however many next hops are looked for.
func TestBounds(t *testing.T) {
	b := newBed(t)
	for i := range 2 * waitHops {
		b.k.ways[server.Addr()] = Way{State: Wait, Hop: Hop{netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), 7}}
		b.send(t, 8, pipeline.Unresolved)
	}
	c := b.Counters()
	if len(b.waiting) > waitHops || b.parked > waitAll || c["waited"] != uint64(b.parked) || c["waited"]+c["wait_full"] != 16*waitHops {
		t.Errorf("%d hops, %d parked, %v", len(b.waiting), b.parked, c)
	}
	if n := b.p.Transmit(nil); n != 0 {
		t.Errorf("%d", n)
	}
	// Without anybody to collect, a worker is refused, and keeps nothing.
	free := b.pool.Free()
	raw := pipelinetest.TCP(client.String(), server.String(), wire.FlagSYN, 1)
	for range 2 * queueLen {
		p := b.pool.Get()
		p.SetView(p.Offset(), len(raw))
		b.p.Transmit([]*pipeline.Packet{p})
	}
	if b.pool.Free() != free || b.p.Stats().TxRefused != queueLen {
		t.Errorf("%d free, want %d; %+v", b.pool.Free(), free, b.p.Stats())
	}
}

// TestTransmitAllocates nothing, and neither does Receive.
func TestTransmitAllocates(t *testing.T) {
	b := newBed(t)
	b.k.ways[server.Addr()] = Way{State: Done, Port: 1}
	raw := pipelinetest.TCP(client.String(), server.String(), wire.FlagSYN, 1)
	batch := pipeline.NewBatch(4)
	one := make([]*pipeline.Packet, 1)
	if n := testing.AllocsPerRun(100, func() {
		p := b.pool.Get()
		p.SetView(p.Offset(), len(raw))
		copy(p.Bytes(), raw)
		p.In, p.Out, p.Routing = 0, 2, pipeline.Unresolved
		one[0] = p
		b.p.Transmit(one)
	}); n != 0 {
		t.Errorf("Transmit allocates %v times", n)
	}
	b.collect()
	if n := testing.AllocsPerRun(50, func() {
		batch.Reset()
		_, _ = b.p.Receive(batch)
		for _, p := range batch.All() {
			b.pool.Put(p)
		}
	}); n != 0 {
		t.Errorf("Receive allocates %v times", n)
	}
}

// TestReaddress makes a frame look as it did before it was routed.
func TestReaddress(t *testing.T) {
	b := newBed(t)
	raw := pipelinetest.TCP(client.String(), server.String(), wire.FlagSYN, 1)
	from := &parcel{buf: bytes.Clone(raw), n: len(raw)}
	ttl := wire.IPv4(raw[14:]).TTL()
	if !b.readdress(from) || !bytes.Equal(from.buf[:6], b.macs[0]) || wire.IPv4(from.buf[14:]).TTL() != ttl+1 || !wire.VerifyIPv4(from.buf[14:]) {
		t.Errorf("%x", from.buf)
	}
	if from.in = 1; b.readdress(from) {
		t.Error("readdressed to a port without an address")
	}
}

// TestKeep uses the hops in use, and forgets those that are not.
func TestKeep(t *testing.T) {
	b := newBed(t)
	idle, gone := Hop{netip.MustParseAddr("10.1.0.2"), 7}, Hop{netip.MustParseAddr("10.1.0.3"), 7}
	b.k.hops = map[Hop]time.Duration{hop: time.Second, idle: 30 * time.Second, gone: 2 * time.Minute}
	b.keep()
	if b.k.used[hop] != 1 || len(b.k.used) != 1 || len(b.k.hops) != 2 {
		t.Errorf("used %v, left %v", b.k.used, b.k.hops)
	}
}

// TestRun answers on a goroutine of its own, and ends with its context.
func TestRun(t *testing.T) {
	b := newBed(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { b.Run(ctx); close(done) }()
	b.k.mu.Lock()
	b.k.ways[server.Addr()] = Way{State: Done, Port: 1}
	b.k.mu.Unlock()
	raw := pipelinetest.TCP(client.String(), server.String(), wire.FlagSYN, 1)
	p := b.pool.Get()
	p.SetView(p.Offset(), len(raw))
	copy(p.Bytes(), raw)
	p.In, p.Routing = 0, pipeline.Unresolved
	b.p.Transmit([]*pipeline.Packet{p})
	for deadline := time.Now().Add(10 * time.Second); len(b.receive(t)) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("no answer")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
}
