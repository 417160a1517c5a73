package stack_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"penstock/internal/rewrite"
	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/stack"
)

// modelXDP stands where XDP is: at the ports, before the worker. It translates
// and forwards the packets of flows that it has taken, by the same rules, and
// gives up a flow on a SYN.
type modelXDP struct {
	refuse bool
	ports  [2]*wirePort

	mu        sync.Mutex
	flows     map[wire.Flow]*[2]rewrite.Rule // from client to server
	took      int
	forwarded int
	slow      int
}

// Offload implements pipeline.Offloader.
func (x *modelXDP) Offload(flows []pipeline.ReleasedFlow) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range flows {
		f := &flows[i]
		if f.Rules == nil || x.refuse {
			continue
		}
		if x.flows == nil {
			x.flows = map[wire.Flow]*[2]rewrite.Rule{}
		}
		x.flows[f.Flow] = f.Rules
		f.Taken = true
		x.took++
	}
}

// forward reports whether it has dealt with a frame that arrived at a port.
func (x *modelXDP) forward(w *wirePort, frame []byte) bool {
	var h wire.Headers
	if h.Parse(frame) != wire.FaultNone || !h.HasL4 || h.Proto != wire.ProtoTCP {
		return false
	}
	f, ok := h.Flow(frame)
	if !ok {
		return false
	}
	x.mu.Lock()
	d, to := pipeline.ToServer, x.ports[wan]
	if w == to {
		d, to = pipeline.ToClient, x.ports[lan]
		f = f.Reverse()
	}
	rules := x.flows[f]
	if rules == nil {
		x.mu.Unlock()
		return false
	}
	if wire.TCP(frame[h.L4:]).Flags()&(wire.FlagSYN|wire.FlagACK) == wire.FlagSYN {
		delete(x.flows, f)
		x.mu.Unlock()
		return false
	}
	frame = bytes.Clone(frame)
	if rules[d].Apply(frame, &h) != rewrite.Done {
		x.slow++
		x.mu.Unlock()
		return false
	}
	x.forwarded++
	x.mu.Unlock()
	to.mu.Lock()
	deliver := to.deliver
	to.mu.Unlock()
	if !to.note(frame, false) {
		deliver(frame)
	}
	return true
}

func (x *modelXDP) counts() (took, forwarded int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.took, x.forwarded
}

// releaser is a stream stage that lets go of a connection after so many bytes.
type releaser struct{ after int }

func (r releaser) Open(*pipeline.Conn) pipeline.Stream { return &releasing{left: r.after} }

type releasing struct{ left int }

func (r *releasing) Data(_ pipeline.Direction, b []byte, _ int64) (int, pipeline.StreamVerdict) {
	if r.left -= len(b); r.left <= 0 {
		return len(b), pipeline.StreamVerdict{Action: pipeline.StreamRelease}
	}
	return len(b), pipeline.StreamVerdict{}
}
func (*releasing) End(pipeline.Direction, int64) pipeline.StreamVerdict {
	return pipeline.StreamVerdict{}
}
func (*releasing) Close(int64) {}

// TestSplice transfers both ways at once, and in turns, over connections that
// are spliced at the start, in the middle and near the end, by user space alone
// and by XDP.
func TestSplice(t *testing.T) {
	const size = 3 << 20
	for _, refuse := range []bool{false, true} {
		for _, after := range []int{-1, 1, 10_000, size / 2} {
			for _, v6 := range []bool{false, true} {
				t.Run(fmt.Sprintf("refuse %v, after %d, v6 %v", refuse, after, v6), func(t *testing.T) {
					x := &modelXDP{refuse: refuse}
					o := bedOptions{xdp: x, vlan: []uint16{100}}
					if after >= 0 {
						o.streams = []pipeline.StreamStage{releaser{after}}
					}
					b := newBed(t, o)
					cl, sv := client4, server4
					if v6 {
						cl, sv = client6, server6
					}
					transfer(t, b, cl, sv, size)
					b.wantCount("spliced", 1)
					took, forwarded := x.counts()
					switch {
					case refuse && (b.count("translated") == 0 || took > 0):
						t.Errorf("XDP refuses, and %d packets were translated in user space, %d flows taken", b.count("translated"), took)
					case !refuse && (took == 0 || forwarded < 10):
						t.Errorf("XDP took %d flows and forwarded %d packets", took, forwarded)
					}
					eventually(t, "no flow is counted as active", func() bool { return b.count("flows_active") == 0 })
				})
			}
		}
	}
}

// transfer moves bytes in turns, then both ways at once, then ends in order.
func transfer(t *testing.T, b *bed, cl, sv netip.Addr, size int) {
	t.Helper()
	up, down := noise(1, size), noise(2, size)
	to := addr(sv, 80)
	l := b.server.listen(t, to)
	var got []byte
	served := serveOnce(l, func(c net.Conn) {
		ping := make([]byte, 100)
		for range 20 {
			if _, err := io.ReadFull(c, ping); err != nil {
				return
			}
			c.Write(ping)
		}
		wrote := make(chan struct{})
		go func() { c.Write(down); c.(interface{ CloseWrite() error }).CloseWrite(); close(wrote) }()
		got, _ = io.ReadAll(c)
		<-wrote
	})
	c, err := b.client.dial(addr(cl, 0), to, dialTime)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	for i := range 20 {
		ping := noise(byte(i), 100)
		if _, err := c.Write(ping); err != nil {
			t.Fatal(err)
		}
		pong := make([]byte, 100)
		if _, err := io.ReadFull(c, pong); err != nil || !bytes.Equal(ping, pong) {
			t.Fatalf("ping %d: other bytes, or %v", i, err)
		}
	}
	go func() { c.Write(up); c.CloseWrite() }()
	back, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(got) != sha256.Sum256(up) {
		t.Errorf("the server got %d bytes that differ from the %d the client sent", len(got), len(up))
	}
	if sha256.Sum256(back) != sha256.Sum256(down) {
		t.Errorf("the client got %d bytes that differ from the %d the server sent", len(back), len(down))
	}
}

// TestSpliceUnderLoss: a cable that loses packets before, during and after the
// splice.
func TestSpliceUnderLoss(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		for _, oneIn := range []int{40, 150} {
			t.Run(fmt.Sprintf("refuse %v, one in %d", refuse, oneIn), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(uint64(oneIn), 1))
				x := &modelXDP{refuse: refuse}
				b := newBed(t, bedOptions{
					xdp: x, streams: []pipeline.StreamStage{releaser{100 << 10}},
					lose: func([]byte, bool) bool { return rng.IntN(oneIn) == 0 },
				})
				transfer(t, b, client4, server4, 400<<10)
				if b.count("spliced") > 1 {
					t.Errorf("spliced %d times", b.count("spliced"))
				}
			})
		}
	}
}

// badCable loses, repeats and delays frames: what is delayed comes behind others
// that were sent after it.
type badCable struct {
	mu    sync.Mutex
	rng   *rand.Rand
	held  [][]byte
	count struct{ lost, repeated, delayed int }
}

// pass hands on what comes through, now, of a frame that was sent.
func (c *badCable) pass(frame []byte, next func([]byte)) {
	c.mu.Lock()
	var out [][]byte
	switch n := c.rng.IntN(1000); {
	case n < 15:
		c.count.lost++
	case n < 25:
		c.count.repeated++
		out = append(out, frame, bytes.Clone(frame))
	case n < 55 && len(c.held) < 8:
		c.count.delayed++
		c.held = append(c.held, bytes.Clone(frame))
	default:
		out = append(out, frame)
	}
	for len(c.held) > 0 && c.rng.IntN(3) == 0 {
		out = append(out, c.held[0])
		c.held = c.held[1:]
	}
	c.mu.Unlock()
	for _, f := range out {
		next(f)
	}
}

// TestSpliceMany: connections of all sizes at once, spliced at random moments
// while cables lose, repeat and reorder. SPLICE_CONNS says how many.
func TestSpliceMany(t *testing.T) {
	conns := 300
	if text := os.Getenv("SPLICE_CONNS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		conns = n
	}
	x := &modelXDP{}
	b := newBed(t, bedOptions{xdp: x, streams: []pipeline.StreamStage{randomReleaser{}}, frames: 16384})
	var cables [4]badCable
	for i := range cables {
		cables[i].rng = rand.New(rand.NewPCG(uint64(i), 99))
	}
	for i, h := range []*host{b.client, b.server} {
		send := h.link.out
		h.link.out = func(f []byte) { cables[i].pass(f, send) }
		port := b.ports[i]
		deliver := port.deliver
		port.mu.Lock()
		port.deliver = func(f []byte) { cables[2+i].pass(f, deliver) }
		port.mu.Unlock()
	}
	to := addr(server4, 80)
	l := b.server.listen(t, to)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 20)
	for i := range conns {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			c, err := b.client.dial(addr(client4, 0), to, 20*time.Second)
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(60 * time.Second))
			for range 1 + rng.IntN(6) {
				msg := noise(byte(i), 1+rng.IntN(20000))
				go c.Write(msg)
				got := make([]byte, len(msg))
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, msg) {
					t.Errorf("connection %d: other bytes, or %v", i, err)
					return
				}
			}
			c.CloseWrite()
			if n, err := io.Copy(io.Discard, c); n != 0 || err != nil {
				t.Errorf("connection %d: %d bytes more, %v", i, n, err)
			}
		})
	}
	wg.Wait()
	took, forwarded := x.counts()
	t.Logf("%d of %d connections spliced, %d tries given up, %d taken by XDP, which forwarded %d packets", b.count("spliced"), conns, b.count("splice_busy"), took, forwarded)
	if int(b.count("spliced")) < conns/4 || took < conns/4 || forwarded == 0 {
		t.Error("too few connections were spliced")
	}
	for i := range cables {
		if c := cables[i].count; c.lost < conns/10 || c.repeated < conns/10 || c.delayed < conns/10 {
			t.Errorf("cable %d was not bad enough: %+v", i, c)
		}
	}
}

type randomReleaser struct{}

func (randomReleaser) Open(*pipeline.Conn) pipeline.Stream { return &releasing{left: rand.IntN(30000)} }

// TestSpliceEnds: what ends a connection ends it after the splice as before.
func TestSpliceEnds(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		for _, who := range []string{"client resets", "server resets", "client half-closes first", "server half-closes first"} {
			t.Run(fmt.Sprintf("%s, refuse %v", who, refuse), func(t *testing.T) {
				b := newBed(t, bedOptions{xdp: &modelXDP{refuse: refuse}})
				to := addr(server4, 80)
				l := b.server.listen(t, to)
				accepted := make(chan net.Conn, 1)
				serveOnce(l, func(c net.Conn) { accepted <- c; <-t.Context().Done() })
				c, err := b.client.dial(addr(client4, 0), to, dialTime)
				if err != nil {
					t.Fatal(err)
				}
				v := <-accepted
				c.SetDeadline(time.Now().Add(10 * time.Second))
				v.SetDeadline(time.Now().Add(10 * time.Second))
				eventually(t, "spliced", func() bool { return b.count("spliced") == 1 })
				exchange := func(from, to net.Conn, text string) {
					t.Helper()
					if _, err := io.WriteString(from, text); err != nil {
						t.Fatal(err)
					}
					got := make([]byte, len(text))
					if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
						t.Fatalf("got %q, %v", got, err)
					}
				}
				exchange(c, v, "to the server")
				exchange(v, c, "to the client")
				first, second := net.Conn(c), v
				if who[:6] == "server" {
					first, second = v, c
				}
				if who[7:] == "resets" {
					io.WriteString(second, "unread") // which makes its close a reset
					side := lan
					if who[:6] == "server" {
						side = wan
					}
					eventually(t, "bytes lie there unread", func() bool {
						frames, end := b.ports[side].frames(), uint32(0)
						for _, s := range segments(frames, false, wire.FlagACK) {
							if string(s.tcp.Payload()) == "unread" {
								end = s.tcp.Seq() + 6
							}
						}
						for _, s := range segments(frames, true, wire.FlagACK) {
							if end != 0 && s.tcp.Ack() == end {
								return true
							}
						}
						return false
					})
					if err := first.Close(); err != nil { // with bytes unread: a RST
						t.Fatal(err)
					}
					if _, err := second.Read(make([]byte, 1)); err == nil || err == io.EOF {
						t.Errorf("the other end reads %v, want a reset", err)
					}
					return
				}
				first.(interface{ CloseWrite() error }).CloseWrite()
				if _, err := second.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("the other end reads %v, want the end", err)
				}
				exchange(second, first, "still open this way")
				second.(interface{ CloseWrite() error }).CloseWrite()
				if _, err := first.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("the first end reads %v, want the end", err)
				}
			})
		}
	}
}

// TestSpliceCapsWindow: a connection in full flow comes to rest, and goes on
// after the splice without waiting for a timer.
func TestSpliceCapsWindow(t *testing.T) {
	x := &modelXDP{}
	b := newBed(t, bedOptions{xdp: x, streams: []pipeline.StreamStage{releaser{1 << 20}}})
	to := addr(server4, 80)
	l := b.server.listen(t, to)
	serveOnce(l, func(c net.Conn) { c.Write(noise(3, 24<<20)) })
	c, err := b.client.dial(addr(client4, 0), to, dialTime)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	got := sha256.New()
	if n, err := io.Copy(got, c); n != 24<<20 || err != nil {
		t.Fatalf("got %d bytes, %v", n, err)
	}
	want := sha256.Sum256(noise(3, 24<<20))
	if !bytes.Equal(got.Sum(nil), want[:]) {
		t.Error("got other bytes than were sent")
	}
	took, forwarded := x.counts()
	if took != 1 || forwarded < 1000 {
		t.Errorf("XDP took %d flows and forwarded %d packets", took, forwarded)
	}
	b.wantCount("splice_busy", 0)
}

// TestSpliceGivesUp: an end that does not read keeps a connection from coming to
// rest; it is left alone, loses nothing, and is spliced when it reads again.
func TestSpliceGivesUp(t *testing.T) {
	b := newBed(t, bedOptions{xdp: &modelXDP{}, streams: []pipeline.StreamStage{upstreamReleaser{}}, options: func(o *stack.Options) {
		o.SendBuffer, o.SendBufferMax, o.ReceiveBuffer, o.ReceiveBufferMax = 64<<10, 64<<10, 64<<10, 64<<10
	}})
	to := addr(server4, 80)
	l := b.server.listen(t, to)
	const size = 24 << 20
	serveOnce(l, func(c net.Conn) { c.Write(noise(4, size)); io.CopyN(io.Discard, c, 3) })
	c, err := b.client.dial(addr(client4, 0), to, dialTime)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stalled := uint64(0)
	eventually(t, "the transfer stalls", func() bool {
		before := stalled
		time.Sleep(20 * time.Millisecond)
		stalled = b.count("bytes_to_client")
		return stalled > 0 && stalled == before
	})
	if _, err := io.WriteString(c, "now"); err != nil { // makes the stage let go
		t.Fatal(err)
	}
	eventually(t, "given up", func() bool { return b.count("splice_busy") > 0 })
	if n := b.count("spliced"); n != 0 {
		t.Fatalf("spliced %d times though bytes wait", n)
	}
	c.SetDeadline(time.Now().Add(30 * time.Second))
	got := sha256.New()
	if n, err := io.Copy(got, c); n != size || err != nil {
		t.Fatalf("got %d bytes, %v", n, err)
	}
	want := sha256.Sum256(noise(4, size))
	if !bytes.Equal(got.Sum(nil), want[:]) {
		t.Error("got other bytes than were sent")
	}
}

// upstreamReleaser lets go when the client says something.
type upstreamReleaser struct{}

func (upstreamReleaser) Open(*pipeline.Conn) pipeline.Stream { return upstreamReleasing{} }

type upstreamReleasing struct{}

func (upstreamReleasing) Data(d pipeline.Direction, b []byte, _ int64) (int, pipeline.StreamVerdict) {
	if d == pipeline.ToServer {
		return len(b), pipeline.StreamVerdict{Action: pipeline.StreamRelease}
	}
	return len(b), pipeline.StreamVerdict{}
}
func (upstreamReleasing) End(pipeline.Direction, int64) pipeline.StreamVerdict {
	return pipeline.StreamVerdict{}
}
func (upstreamReleasing) Close(int64) {}

// TestSpliceSYN: a SYN on a spliced connection is the server's to answer.
func TestSpliceSYN(t *testing.T) {
	b := newBed(t, bedOptions{xdp: &modelXDP{refuse: true}})
	to := addr(server4, 80)
	l := b.server.listen(t, to)
	serveOnce(l, func(c net.Conn) { io.Copy(c, c) })
	from := addr(client4, 4000)
	c, err := b.client.dial(from, to, dialTime)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	eventually(t, "spliced", func() bool { return b.count("spliced") == 1 })
	echo := func(text string) {
		t.Helper()
		io.WriteString(c, text)
		got := make([]byte, len(text))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	echo("before")
	syns := segments(b.ports[lan].frames(), true, wire.FlagSYN)
	forged := bytes.Clone(syns[0].frame)
	wire.TCP(forged[syns[0].L4:]).SetSeq(rand.Uint32())
	var h wire.Headers
	h.Parse(forged)
	wire.FillL4(forged, &h)
	before := len(segments(b.ports[wan].frames(), false, wire.FlagSYN))
	b.ports[lan].Inject(forged)
	eventually(t, "the server is asked", func() bool {
		return len(segments(b.ports[wan].frames(), false, wire.FlagSYN)) == before+1
	})
	echo("after")
	b.wantCount("reused", 0)
}

// TestSpliceForgedEnds: who sees nothing of a spliced connection cannot make it
// seem to be over, so that what goes on is not translated any more.
func TestSpliceForgedEnds(t *testing.T) {
	b := newBed(t, bedOptions{xdp: &modelXDP{refuse: true}})
	to := addr(server4, 80)
	l := b.server.listen(t, to)
	serveOnce(l, func(c net.Conn) { io.Copy(c, c) })
	c, err := b.client.dial(addr(client4, 4000), to, dialTime)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	eventually(t, "spliced", func() bool { return b.count("spliced") == 1 })
	echo := func(text string) {
		t.Helper()
		io.WriteString(c, text)
		got := make([]byte, len(text))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	echo("before")
	forge := func(side pipeline.PortID, flags wire.TCPFlags, passes bool) {
		t.Helper()
		heard := segments(b.ports[side].frames(), true, wire.FlagACK)
		h := heard[len(heard)-1].Headers
		forged := bytes.Clone(heard[len(heard)-1].frame[:h.Payload])
		binary.BigEndian.PutUint16(forged[h.L3+2:], uint16(h.Payload-h.L3))
		clear(forged[h.L3+10 : h.L3+12])
		binary.BigEndian.PutUint16(forged[h.L3+10:], wire.Checksum(forged[h.L3:h.L4], 0))
		tcp := wire.TCP(forged[h.L4:])
		tcp.SetSeq(tcp.Seq() + 1<<30 + rand.Uint32N(1<<20))
		tcp.SetAck(tcp.Ack() + 1<<30)
		tcp.SetFlags(flags)
		h.Parse(forged)
		wire.FillL4(forged, &h)
		forgeries := func() int { return len(segments(b.ports[lan+wan-side].frames(), false, flags)) }
		before := forgeries()
		b.ports[side].Inject(forged)
		if passes {
			eventually(t, "it has passed", func() bool { return forgeries() > before })
		}
	}
	for _, flags := range []wire.TCPFlags{wire.FlagRST, wire.FlagRST | wire.FlagACK, wire.FlagFIN | wire.FlagACK} {
		forge(wan, flags, true)
		forge(lan, flags, true)
	}
	forge(lan, wire.FlagSYN, true) // it would begin anew, had the connection ended
	forge(wan, wire.FlagSYN|wire.FlagACK, false)
	echo("between")
	forge(lan, wire.FlagSYN, true)
	echo("after")
	b.wantCount("reused", 0)
}

// TestSpliceTranslates: with timestamps the constants differ, and a sequence number
// that wraps is no matter.
func TestSpliceTranslates(t *testing.T) {
	b := newBed(t, bedOptions{xdp: &modelXDP{refuse: true}})
	transfer(t, b, client4, server4, 64<<10)
	ins, outs := segments(b.ports[lan].frames(), true, wire.FlagACK), segments(b.ports[wan].frames(), false, wire.FlagACK)
	// The last segments with data, as they came and as they left.
	last := func(list []segment) (s segment) {
		for _, x := range list {
			if len(x.tcp.Payload()) > 0 {
				s = x
			}
		}
		return s
	}
	in, out := last(ins), last(outs)
	if !bytes.Equal(in.tcp.Payload(), out.tcp.Payload()) {
		t.Fatal("the last segments hold other bytes")
	}
	if in.tcp.Seq() == out.tcp.Seq() {
		t.Error("the sequence number is the same: nothing was translated")
	}
	if !wire.VerifyL4(out.frame, &out.Headers) {
		t.Error("the translated segment has a wrong checksum")
	}
	if binary.BigEndian.Uint16(in.frame[in.L3+4:]) != binary.BigEndian.Uint16(out.frame[out.L3+4:]) {
		t.Error("the IP identifier has changed: the packet is not the one that came")
	}
}
