package pipelinetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// PortUnderTest is a port with what the suite needs around it.
type PortUnderTest struct {
	Port pipeline.Port
	Pool *pipeline.Pool // the worker's, full before the port was opened

	// Others are further ports that hold frames of the pool. The suite closes
	// them too.
	Others []pipeline.Port

	// Sent returns the frames that have left by the port so far, oldest first,
	// as whoever is at the other end saw them.
	Sent func() [][]byte

	// Limit is how many frames Transmit takes before it refuses more, while
	// nobody calls Flush; 0 if it takes as many as the pool has.
	Limit int

	// Ends says that Receive returns io.EOF after the last packet.
	Ends bool

	// Waits says that packets that find no free frame wait for one. A NIC
	// drops them.
	Waits bool
}

// Port is the conformance suite of ports: ownership and conservation of
// frames, order, batches with little room, a full transmit ring, the end, and
// closing. open makes a new port that will receive the frames in, in order,
// and nothing that is UDP from 10.99.0.1; it is called once for each test.
func Port(t *testing.T, open func(t *testing.T, in [][]byte) *PortUnderTest) {
	t.Helper()
	start := func(t *testing.T, in [][]byte) *portBench {
		t.Helper()
		p := open(t, in)
		b := &portBench{t: t, PortUnderTest: p}
		t.Cleanup(b.close)
		return b
	}
	t.Run("info", func(t *testing.T) {
		b := start(t, nil)
		if i := b.Port.Info(); i.Name == "" || i.Mode == "" || i != b.Port.Info() {
			t.Errorf("info is %+v, want a name and a mode that do not change", i)
		}
	})
	t.Run("receive", func(t *testing.T) { testReceive(start(t, marked(200)), marked(200)) })
	t.Run("receive into little room", func(t *testing.T) {
		b := start(t, marked(30))
		full := pipeline.NewBatch(1)
		if n, err := b.receive(full); n > 1 || err != nil && !(b.Ends && errors.Is(err, io.EOF)) {
			t.Errorf("%d packets, %v", n, err)
		}
		if full.Len() == 1 {
			if n, err := b.Port.Receive(full); n != 0 || err != nil {
				t.Errorf("into a full batch: %d packets, %v", n, err)
			}
		}
		b.release(full)
	})
	t.Run("receive without free frames", func(t *testing.T) { testExhaustion(start(t, marked(40)), marked(40)) })
	t.Run("transmit", func(t *testing.T) { testTransmit(start(t, nil), marked(100)) })
	t.Run("transmit more than fits", func(t *testing.T) { testRefusal(start(t, nil)) })
	t.Run("send back what was received", func(t *testing.T) { testHairpin(start(t, marked(50)), marked(50)) })
	t.Run("close with frames in flight", func(t *testing.T) {
		b := start(t, marked(20))
		b.transmit(marked(10))
		b.close()
		if free, total := b.Pool.Free(), b.Pool.Total(); free != total {
			t.Errorf("%d of %d frames are free after Close", free, total)
		}
	})
}

// portBench is a port in one test.
type portBench struct {
	*PortUnderTest
	t      *testing.T
	held   int // packets that the test owns
	closed bool
}

// marked returns n frames that tell their number, between 60 and 1514 bytes
// long.
func marked(n int) (list [][]byte) {
	for i := range n {
		payload := make([]byte, 18+(i*97)%1455)
		binary.BigEndian.PutUint32(payload, uint32(i))
		list = append(list, UDP("10.99.0.1:9", "10.99.0.2:9", Payload(string(payload))))
	}
	return list
}

// isMarked reports whether a frame is one of the suite's: a real link carries
// others, too.
func isMarked(b []byte) bool {
	var h wire.Headers
	return h.Parse(b) == wire.FaultNone && h.IPVersion == 4 && h.Proto == wire.ProtoUDP &&
		bytes.Equal(b[h.L3+12:h.L3+16], []byte{10, 99, 0, 1})
}

func onlyMarked(list [][]byte) (out [][]byte) {
	for _, b := range list {
		if isMarked(b) {
			out = append(out, b)
		}
	}
	return out
}

const portPatience = 5 * time.Second

// receive polls until there is a packet, or the end, or the time is up.
func (b *portBench) receive(batch *pipeline.Batch) (n int, err error) {
	for end := time.Now().Add(portPatience); n == 0 && err == nil && time.Now().Before(end); {
		n, err = b.Port.Receive(batch)
		b.Port.Flush()
	}
	b.held += n
	return n, err
}

// release gives the packets of the batch back.
func (b *portBench) release(batch *pipeline.Batch) {
	for _, p := range batch.All() {
		b.Pool.Put(p)
		b.held--
	}
	batch.Reset()
}

// conserve fails the test if a frame is nowhere.
func (b *portBench) conserve(when string) {
	b.t.Helper()
	inFlight := b.Port.Stats().InFlight
	for _, o := range b.Others {
		inFlight += o.Stats().InFlight
	}
	if free := b.Pool.Free(); free+inFlight+b.held != b.Pool.Total() {
		b.t.Errorf("%s: %d frames free, %d in flight, %d held by the test: %d, and not %d",
			when, free, inFlight, b.held, free+inFlight+b.held, b.Pool.Total())
	}
	if n := b.Pool.Stats().DoubleFrees; n > 0 {
		b.t.Errorf("%s: %d frames were given back twice", when, n)
	}
}

// collect receives until all of want have come, in batches of changing size,
// and checks what each packet must be like.
func (b *portBench) collect(want [][]byte, each func(p *pipeline.Packet)) {
	b.t.Helper()
	got := 0
	sizes := []int{1, 3, 64, 2, 17}
	for end := time.Now().Add(portPatience); got < len(want); {
		batch := pipeline.NewBatch(sizes[got%len(sizes)])
		n, err := b.receive(batch)
		if n != batch.Len() {
			b.t.Fatalf("Receive says %d packets, the batch has %d", n, batch.Len())
		}
		if err != nil || time.Now().After(end) {
			b.t.Fatalf("after %d of %d packets: %v", got, len(want), err)
		}
		b.conserve("after Receive")
		for _, p := range batch.All() {
			if !isMarked(p.Bytes()) {
				continue
			}
			if got == len(want) || !bytes.Equal(p.Bytes(), want[got]) {
				b.t.Fatalf("packet %d is\n% x", got, p.Bytes())
			}
			if !p.Live() || int(p.Wire) != p.Len() {
				v, _ := p.Verdict()
				b.t.Errorf("packet %d: verdict %v, length %d, %d on the wire", got, v, p.Len(), p.Wire)
			}
			if b.Pool.Arena().At(uint64(p.Index())) != p {
				b.t.Errorf("packet %d is not one of the arena", got)
			}
			got++
		}
		if each == nil {
			b.release(batch)
			continue
		}
		for _, p := range batch.All() {
			each(p)
		}
	}
}

func testReceive(b *portBench, want [][]byte) {
	b.conserve("before")
	b.collect(want, nil)
	b.conserve("at the end")
	if s := b.Port.Stats(); s.RxPackets < uint64(len(want)) || s.RxBytes < uint64(totalLen(want)) {
		b.t.Errorf("stats say %d packets and %d bytes were received, they were %d and %d", s.RxPackets, s.RxBytes, len(want), totalLen(want))
	}
	if !b.Ends {
		return
	}
	for range 2 {
		if n, err := b.Port.Receive(pipeline.NewBatch(4)); n != 0 || !errors.Is(err, io.EOF) {
			b.t.Errorf("behind the end: %d packets, %v", n, err)
		}
	}
}

// testExhaustion takes all frames away from the port and gives them back.
func testExhaustion(b *portBench, want [][]byte) {
	var taken []*pipeline.Packet
	for p := b.Pool.Get(); p != nil; p = b.Pool.Get() {
		taken = append(taken, p)
	}
	b.held = len(taken)
	batch := pipeline.NewBatch(pipeline.BatchSize)
	for range 3 {
		n, err := b.Port.Receive(batch)
		b.held += n
		if err != nil {
			b.t.Errorf("without a free frame: %v", err)
		}
		b.Port.Flush()
		b.conserve("without a free frame")
	}
	arrived := len(onlyMarked(frames(batch.All())))
	if b.Waits && arrived != 0 {
		b.t.Errorf("%d packets came where no frame was free", arrived)
	}
	b.release(batch)
	for _, p := range taken {
		b.Pool.Put(p)
		b.held--
	}
	if b.Waits {
		b.collect(want, nil)
	}
	b.conserve("with all frames back")
}

func frames(pkts []*pipeline.Packet) (list [][]byte) {
	for _, p := range pkts {
		list = append(list, p.Bytes())
	}
	return list
}

// transmit sends frames and returns how many were accepted.
func (b *portBench) transmit(list [][]byte) int {
	b.t.Helper()
	pkts := make([]*pipeline.Packet, 0, len(list))
	for _, f := range list {
		p := b.Pool.Get()
		if p == nil || !p.SetView(p.Offset(), len(f)) {
			b.t.Fatalf("frame %d of %d: none is free, or it does not fit", len(pkts), len(list))
		}
		copy(p.Bytes(), f)
		pkts = append(pkts, p)
	}
	n := b.Port.Transmit(pkts)
	if n < 0 || n > len(list) {
		b.t.Fatalf("Transmit says that it accepted %d of %d", n, len(list))
	}
	return n
}

// sent polls until n of the suite's frames have left.
func (b *portBench) sent(n int) [][]byte {
	b.t.Helper()
	var list [][]byte
	for end := time.Now().Add(portPatience); ; {
		b.Port.Flush()
		if list = onlyMarked(b.Sent()); len(list) >= n || time.Now().After(end) {
			return list
		}
	}
}

func testTransmit(b *portBench, want [][]byte) {
	for at, size := 0, 1; at < len(want); size += 3 {
		part := want[at:min(at+size, len(want))]
		if b.Limit > 0 {
			part = part[:min(len(part), b.Limit)]
		}
		if n := b.transmit(part); n != len(part) {
			b.t.Fatalf("%d of %d packets were accepted", n, len(part))
		}
		b.conserve("after Transmit")
		at += len(part)
		b.sameFrames(b.sent(at), want[:at])
	}
	b.settled()
	if s := b.Port.Stats(); s.TxPackets != uint64(len(want)) || s.TxBytes != uint64(totalLen(want)) || s.TxRefused != 0 {
		b.t.Errorf("stats say %d packets and %d bytes were sent and %d refused, they were %d, %d and 0",
			s.TxPackets, s.TxBytes, s.TxRefused, len(want), totalLen(want))
	}
	if n := b.Port.Transmit(nil); n != 0 {
		b.t.Errorf("of no packets %d were accepted", n)
	}
}

// testRefusal sends more than there is room for.
func testRefusal(b *portBench) {
	if b.Limit == 0 {
		b.t.Skip("this port takes as many packets as there are frames")
	}
	want := marked(b.Limit + 50)
	n := b.transmit(want)
	if n != b.Limit {
		b.t.Errorf("%d packets were accepted, there is room for %d", n, b.Limit)
	}
	b.conserve("after Transmit")
	b.sameFrames(b.sent(n), want[:n])
	if s := b.Port.Stats(); s.TxPackets != uint64(n) || s.TxRefused != uint64(len(want)-n) {
		b.t.Errorf("stats say %d packets were sent and %d refused, they were %d and %d", s.TxPackets, s.TxRefused, n, len(want)-n)
	}
	b.conserve("at the end")
}

// testHairpin changes what was received and sends the same packets back.
func testHairpin(b *portBench, in [][]byte) {
	var want [][]byte
	for _, f := range in {
		changed := bytes.Clone(f)
		changed[0] ^= 0x04
		want = append(want, changed)
	}
	b.collect(in, func(p *pipeline.Packet) {
		b.held--
		if !isMarked(p.Bytes()) {
			b.Pool.Put(p)
			return
		}
		p.Bytes()[0] ^= 0x04
		if n := b.Port.Transmit([]*pipeline.Packet{p}); n != 1 {
			b.t.Errorf("%d of 1 packets was accepted", n)
		}
		b.Port.Flush()
	})
	b.sameFrames(b.sent(len(want)), want)
	b.settled()
}

// settled waits until the port has given back the frames that it sent.
func (b *portBench) settled() {
	b.t.Helper()
	b.Port.Flush()
	b.conserve("at the end")
}

func (b *portBench) sameFrames(got, want [][]byte) {
	b.t.Helper()
	if len(got) != len(want) {
		b.t.Fatalf("%d packets left, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			b.t.Fatalf("packet %d left as\n% x, want\n% x", i, got[i], want[i])
		}
	}
}

func (b *portBench) close() {
	if b.closed {
		return
	}
	b.closed = true
	var errs []error
	for _, p := range append([]pipeline.Port{b.Port}, b.Others...) {
		if err := p.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", p.Info().Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		b.t.Error(err)
	}
	if n := b.Pool.Stats().DoubleFrees; n > 0 {
		b.t.Errorf("after Close: %d frames were given back twice", n)
	}
}

func totalLen(list [][]byte) (n int) {
	for _, b := range list {
		n += len(b)
	}
	return n
}
