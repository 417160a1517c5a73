package pcap

import (
	"errors"
	"fmt"
	"io"
)

// The layout is draft-ietf-opsawg-pcap: a header of 24 bytes, then for each
// packet 16 bytes (seconds, fraction, captured length, original length) and
// the captured bytes.
const (
	classicHeaderLen = 24
	classicRecordLen = 16
)

type classicHeader struct {
	link     LinkType
	fraction int64 // ns in one unit of the timestamp's second half
}

func (r *Reader) readClassicHeader() error {
	b, err := r.peek(classicHeaderLen)
	if err != nil {
		return err
	}
	if major, minor := r.u16(b[4:]), r.u16(b[6:]); major != 2 || minor != 4 {
		return fmt.Errorf("pcap version is %d.%d, only 2.4 is known", major, minor)
	}
	// Above the 16 bits of the type stand facts about the frame check sequence.
	r.classic.link = LinkType(r.u32(b[20:]))
	return r.skip(classicHeaderLen)
}

func (r *Reader) nextClassic(rec *Record) error {
	r.start = r.offset
	b, err := r.peek(classicRecordLen)
	if len(b) == 0 && errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF // between two records is where a file ends
	}
	if err != nil {
		return err
	}
	captured, wire := r.u32(b[8:]), r.u32(b[12:])
	if captured > MaxPacket {
		return fmt.Errorf("captured length is %d, the limit is %d", captured, MaxPacket)
	}
	seconds, fraction := r.u32(b), r.u32(b[4:])
	size := classicRecordLen + int(captured)
	if b, err = r.peek(size); err != nil {
		return err
	}
	*rec = Record{
		Offset: r.start,
		// A fraction above a second (a writer's bug that occurs) counts on.
		Time: int64(seconds)*1e9 + int64(fraction)*r.classic.fraction,
		Wire: wireLength(wire, int(captured)),
		Link: r.classic.link,
		Data: b[classicRecordLen:size:size],
	}
	r.pending = size
	return nil
}

// wireLength returns the original length, which a few writers leave below the
// captured one.
func wireLength(wire uint32, captured int) int {
	return max(int(min(wire, 1<<31-1)), captured)
}
