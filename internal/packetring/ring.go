// Package packetring carries copies of packets from a worker to a goroutine that writes them: one producer, one
// consumer, a fixed number of bytes, nothing that blocks or allocates.
//
// Its one trap: what became of a packet is known later than its bytes, so a record is reserved and put, then decided, and
// nobody sees it before Publish.
package packetring

import (
	"encoding/binary"
	"sync/atomic"

	"penstock/pipeline"
)

// Ring holds packets on their way from one worker to the writer.
//
// A record is a header and the packet's bytes, in one piece; where one does not fit before the end of the buffer, the
// rest of it is skipped. The worker reserves records while it processes a batch, fills in the verdicts when they are
// final, and publishes all of them at once.
type Ring struct {
	buf  []byte
	next uint64 // behind the records that are reserved; the worker's
	seen uint64 // tail as the worker last saw it

	_    [64]byte
	head atomic.Uint64 // behind the records that are published; the worker stores it
	_    [64]byte
	tail atomic.Uint64 // behind the records that are written; the writer stores it
	_    [64]byte
}

// Layout of a record's header. Sizes are multiples of 8, so that a header fits wherever anything does.
const (
	recSize    = 0  // uint32: of the record; 0: skip to the end of the buffer
	recLen     = 4  // uint32: bytes kept
	recTime    = 8  // int64
	recWire    = 16 // uint32: bytes on the wire
	recReason  = 20 // uint16
	recIn      = 22 // uint8
	recOut     = 23 // uint8
	recVerdict = 24 // uint8
	recStage   = 25 // uint8
	recPoint   = 26 // uint8
	recFlags   = 27 // uint8: 1 made, 2 held
	recChain   = 28 // uint16
	recHeader  = 32
)

// Size returns what a packet of n bytes takes of a ring.
func Size(n int) int { return (recHeader + n + 7) &^ 7 }

// New returns a ring of size bytes.
func New(size int) *Ring { return &Ring{buf: make([]byte, (size+7)&^7)} }

// Empty reports whether everything that was published has been taken.
func (r *Ring) Empty() bool { return r.tail.Load() == r.head.Load() }

// Reserve returns the place for a packet of n bytes, or ok = false while there is none.
func (r *Ring) Reserve(n int) (at uint64, ok bool) {
	size, total := uint64(Size(n)), uint64(len(r.buf))
	off := r.next % total
	skip := uint64(0)
	if off+size > total {
		skip = total - off
	}
	if r.next+skip+size-r.seen > total {
		r.seen = r.tail.Load()
		if r.next+skip+size-r.seen > total {
			return 0, false
		}
	}
	if skip > 0 {
		binary.LittleEndian.PutUint32(r.buf[off:], 0)
		r.next += skip
		off = 0
	}
	r.next += size
	return off, true
}

// Put writes data, the beginning of p, at a reserved place.
func (r *Ring) Put(at uint64, p *pipeline.Packet, data []byte) { r.PutAt(at, p, data, p.Time, 0) }

// PutAt does the same for a packet that is seen at a point and a time of its own.
func (r *Ring) PutAt(at uint64, p *pipeline.Packet, data []byte, time int64, point int) {
	b := r.buf[at:]
	binary.LittleEndian.PutUint32(b[recSize:], uint32(Size(len(data))))
	binary.LittleEndian.PutUint32(b[recLen:], uint32(len(data)))
	binary.LittleEndian.PutUint64(b[recTime:], uint64(time))
	binary.LittleEndian.PutUint32(b[recWire:], uint32(max(int(p.Wire), p.Len())))
	b[recIn], b[recPoint] = uint8(p.In), uint8(point)
	b[recVerdict] = 0
	copy(b[recHeader:], data)
}

// Decide fills in what became of the packet of a record.
func (r *Ring) Decide(at uint64, o pipeline.Outcome) {
	b := r.buf[at:]
	b[recVerdict], b[recStage], b[recOut], b[recFlags] = uint8(o.Verdict), uint8(o.Stage), uint8(o.Out), 0
	if o.Made {
		b[recFlags] |= 1
	}
	if o.Held {
		b[recFlags] |= 2
	}
	binary.LittleEndian.PutUint16(b[recReason:], uint16(o.Reason))
	binary.LittleEndian.PutUint16(b[recChain:], uint16(o.Chain))
}

// Publish lets the writer have the records that were reserved.
func (r *Ring) Publish() { r.head.Store(r.next) }

// Record is a published record; Data lies in the ring.
type Record struct {
	pipeline.Outcome
	Time  int64
	Wire  int // bytes on the wire
	In    pipeline.PortID
	Point int
	Data  []byte
	end   uint64
}

// Peek returns the oldest published record; the writer calls it, and then done.
func (r *Ring) Peek(rec *Record) bool {
	at, head, total := r.tail.Load(), r.head.Load(), uint64(len(r.buf))
	if at == head {
		return false
	}
	b := r.buf[at%total:]
	size := uint64(binary.LittleEndian.Uint32(b[recSize:]))
	if size == 0 {
		at += uint64(len(b))
		b = r.buf
		size = uint64(binary.LittleEndian.Uint32(b[recSize:]))
	}
	n := binary.LittleEndian.Uint32(b[recLen:])
	*rec = Record{
		Outcome: pipeline.Outcome{
			Verdict: pipeline.Verdict(b[recVerdict]), Reason: pipeline.Reason(binary.LittleEndian.Uint16(b[recReason:])),
			Out: pipeline.PortID(b[recOut]), Chain: pipeline.ChainID(binary.LittleEndian.Uint16(b[recChain:])), Stage: int(b[recStage]),
			Made: b[recFlags]&1 != 0, Held: b[recFlags]&2 != 0,
		},
		Time: int64(binary.LittleEndian.Uint64(b[recTime:])), Wire: int(binary.LittleEndian.Uint32(b[recWire:])),
		In: pipeline.PortID(b[recIn]), Point: int(b[recPoint]),
		Data: b[recHeader : recHeader+n : recHeader+n], end: at + size,
	}
	return true
}

// Done gives the record's place back to the worker.
func (r *Ring) Done(rec *Record) { r.tail.Store(rec.end) }
