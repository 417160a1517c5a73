package capture

import (
	"encoding/binary"
	"sync/atomic"

	"penstock/pipeline"
)

// ring holds packets on their way from one worker to the writer: one producer, one consumer, a fixed number of bytes.
//
// A record is a header and the packet's bytes, in one piece; where one does not fit before the end of the buffer, the
// rest of it is skipped. The worker reserves records while it processes a batch, fills in the verdicts when they are
// final, and publishes all of them at once.
type ring struct {
	buf  []byte
	next uint64 // behind the records that are reserved; the worker's
	seen uint64 // tail as the worker last saw it

	_    [64]byte
	head atomic.Uint64 // behind the records that are published; the worker stores it
	_    [64]byte
	tail atomic.Uint64 // behind the records that are written; the writer stores it
	_    [64]byte

	lost *pipeline.Counter
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
	recHeader  = 32
)

func recordSize(n int) int { return (recHeader + n + 7) &^ 7 }

func newRing(size int, lost *pipeline.Counter) *ring {
	return &ring{buf: make([]byte, (size+7)&^7), lost: lost}
}

// reserve returns the place for a packet of n bytes, or ok = false while there is none.
func (r *ring) reserve(n int) (at uint64, ok bool) {
	size, total := uint64(recordSize(n)), uint64(len(r.buf))
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

// put writes a record at a reserved place.
func (r *ring) put(at uint64, p *pipeline.Packet, data []byte) {
	b := r.buf[at:]
	binary.LittleEndian.PutUint32(b[recSize:], uint32(recordSize(len(data))))
	binary.LittleEndian.PutUint32(b[recLen:], uint32(len(data)))
	binary.LittleEndian.PutUint64(b[recTime:], uint64(p.Time))
	binary.LittleEndian.PutUint32(b[recWire:], uint32(max(int(p.Wire), p.Len())))
	b[recIn] = uint8(p.In)
	b[recVerdict] = 0
	copy(b[recHeader:], data)
}

// decide fills in what became of the packet of a record.
func (r *ring) decide(at uint64, p *pipeline.Packet) {
	b := r.buf[at:]
	verdict, reason := p.Verdict()
	b[recVerdict], b[recStage], b[recOut] = uint8(verdict), uint8(p.Stage()), uint8(p.Out)
	binary.LittleEndian.PutUint16(b[recReason:], uint16(reason))
}

// publish lets the writer have the records that were reserved.
func (r *ring) publish() { r.head.Store(r.next) }

// record is a published record; data lies in the ring.
type record struct {
	time    int64
	wire    int
	in, out pipeline.PortID
	verdict pipeline.Verdict
	reason  pipeline.Reason
	stage   int
	data    []byte
	end     uint64
}

// peek returns the oldest published record; the writer calls it, and then done.
func (r *ring) peek(rec *record) bool {
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
	*rec = record{
		time: int64(binary.LittleEndian.Uint64(b[recTime:])), wire: int(binary.LittleEndian.Uint32(b[recWire:])),
		in: pipeline.PortID(b[recIn]), out: pipeline.PortID(b[recOut]), verdict: pipeline.Verdict(b[recVerdict]),
		reason: pipeline.Reason(binary.LittleEndian.Uint16(b[recReason:])), stage: int(b[recStage]),
		data: b[recHeader : recHeader+n : recHeader+n], end: at + size,
	}
	return true
}

// done gives the record's place back to the worker.
func (r *ring) done(rec *record) { r.tail.Store(rec.end) }
