package packetring

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"testing"

	"penstock/pipeline"
)

// packet returns a packet of n bytes whose content depends on id.
func packet(t testing.TB, id, n int) *pipeline.Packet {
	t.Helper()
	arena, err := pipeline.NewArena(make([]byte, n+1), n+1, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	p := arena.Pool(0).Get()
	p.SetView(0, n)
	fill(p.Bytes(), id)
	p.Time, p.In, p.Out = int64(id)*1000, pipeline.PortID(id%3), pipeline.PortID(id%2)
	return p
}

func fill(b []byte, id int) {
	for i := range b {
		b[i] = byte(id*7 + i)
	}
}

var reasonTest = pipeline.DefineReason("packetring_test", "used by the tests of this package")

func decided(p *pipeline.Packet) pipeline.Outcome {
	v, r := p.Verdict()
	return pipeline.Outcome{Verdict: v, Reason: r, Out: p.Out, Stage: p.Stage(), Chain: 300, Held: true}
}

// TestRingEqualsQueue puts and takes records of random sizes and compares with a queue.
func TestRingEqualsQueue(t *testing.T) {
	for _, size := range []int{64, 200, 1000, 4096} {
		r := rand.New(rand.NewPCG(1, uint64(size)))
		ring := New(size)
		type want struct{ id, n int }
		var queue []want
		id, refused := 0, 0
		for range 20000 {
			if r.IntN(2) == 0 {
				n := r.IntN(min(size-recHeader+1, 300))
				at, ok := ring.Reserve(n)
				if !ok {
					refused++
					if len(queue) == 0 && 2*Size(n) <= len(ring.buf) {
						t.Fatalf("size %d: an empty ring refuses %d bytes", size, n)
					}
					continue
				}
				id++
				p := packet(t, id, n)
				ring.Put(at, p, p.Bytes())
				p.Drop(reasonTest)
				ring.Decide(at, decided(p))
				ring.Publish()
				queue = append(queue, want{id, n})
				continue
			}
			var rec Record
			if ring.Peek(&rec) != (len(queue) > 0) {
				t.Fatalf("size %d: %d records are queued, the ring says otherwise", size, len(queue))
			}
			if len(queue) == 0 {
				continue
			}
			w := queue[0]
			data := make([]byte, w.n)
			fill(data, w.id)
			if !bytes.Equal(rec.Data, data) || rec.Time != int64(w.id)*1000 || rec.Wire != w.n || rec.In != pipeline.PortID(w.id%3) ||
				rec.Out != pipeline.PortID(w.id%2) || rec.Verdict != pipeline.Drop || rec.Reason != reasonTest || rec.Chain != 300 || !rec.Held || rec.Made {
				t.Fatalf("size %d: record %+v, want id %d with %d bytes", size, rec, w.id, w.n)
			}
			ring.Done(&rec)
			queue = queue[1:]
		}
		if refused == 0 || id < 1000 {
			t.Errorf("size %d: %d records, %d refused, which tests nothing", size, id, refused)
		}
	}
}

func TestUnpublishedRecordsAreNotSeen(t *testing.T) {
	ring := New(1024)
	p := packet(t, 1, 100)
	at, _ := ring.Reserve(100)
	ring.Put(at, p, p.Bytes())
	var rec Record
	if ring.Peek(&rec) {
		t.Error("the writer sees a record whose verdict is not known")
	}
	ring.Publish()
	if !ring.Peek(&rec) || rec.Verdict != 0 {
		t.Errorf("published: %+v", rec)
	}
}

// TestRingBetweenThreads has a worker and the writer use a small ring at once.
func TestRingBetweenThreads(t *testing.T) {
	const n = 20000
	ring := New(2000)
	go func() {
		p := packet(t, 0, 400)
		for id := 1; id <= n; {
			size := id % 400
			at, ok := ring.Reserve(size)
			if !ok {
				ring.Publish()
				runtime.Gosched()
				continue
			}
			p.SetView(0, size)
			fill(p.Bytes(), id)
			p.Time = int64(id)
			ring.Put(at, p, p.Bytes())
			ring.Decide(at, decided(p))
			if id%5 == 0 || id == n {
				ring.Publish()
			}
			id++
		}
	}()
	want := make([]byte, 400)
	for id := 1; id <= n; {
		var rec Record
		if !ring.Peek(&rec) {
			runtime.Gosched()
			continue
		}
		fill(want, id)
		if rec.Time != int64(id) || !bytes.Equal(rec.Data, want[:id%400]) {
			t.Fatalf("record %d: time %d, %d bytes", id, rec.Time, len(rec.Data))
		}
		ring.Done(&rec)
		id++
	}
}
