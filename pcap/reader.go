package pcap

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// MaxPacket is the largest number of bytes of one packet that is read or
// written. It is libpcap's limit (MAXIMUM_SNAPLEN for all but USB and D-Bus).
const MaxPacket = 262144

// readBuffer holds the largest record: a block with a packet of MaxPacket
// bytes and as much again for its options.
const readBuffer = 2 * MaxPacket

// maxTime bounds the times that come out of a capture (year 2116), so that
// adding a timeout to one never overflows.
const maxTime = int64(1) << 62

// Record is one captured packet as it stands in the file.
type Record struct {
	Number    uint64   // of the packet in the file, from 1
	Offset    int64    // of its record or block in the file, bytes, after gunzip
	Time      int64    // ns since the epoch, 0 <= Time <= 1<<62
	Wire      int      // length on the wire, bytes; never below len(Data)
	Link      LinkType // what Data begins with
	Interface int      // index among the interfaces of its section; 0 in a pcap file
	Data      []byte   // the bytes that were captured; valid until the next call of Next

	options []byte // of an enhanced packet block
	big     bool
}

// Comment returns the first opt_comment of the packet, or nil. Like Data it is
// valid until the next call of Next.
func (r *Record) Comment() []byte {
	for o := r.options; ; {
		code, value, rest, ok := nextOption(o, r.big)
		if !ok || code == optEnd {
			return nil
		}
		if code == optComment {
			return value
		}
		o = rest
	}
}

// ReadError says where in a capture reading ended. Everything before was
// delivered.
type ReadError struct {
	File   string
	Packet uint64 // number of the packet that could not be read; 0: the file's header
	Offset int64  // where its record begins, bytes
	Err    error
}

// Error implements error.
func (e *ReadError) Error() string {
	if e.Packet == 0 {
		return fmt.Sprintf("read capture %s: header: %v", e.File, e.Err)
	}
	return fmt.Sprintf("read capture %s: packet %d at byte %d: %v", e.File, e.Packet, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *ReadError) Unwrap() error { return e.Err }

// Reader reads a capture: pcap in both byte orders, in micro- and nanoseconds,
// and pcapng, either of them gzipped or not. The format is told by the first
// bytes and never by the name. Its memory does not depend on what the file
// says: records above MaxPacket bytes are refused before they are read.
type Reader struct {
	name   string
	buf    *bufio.Reader
	closer io.Closer
	next   func(*Reader, *Record) error
	format string

	big     bool  // byte order of the file, or of the section
	offset  int64 // where buf stands
	start   int64 // where the record that is being read begins
	pending int   // bytes of the last record, still in buf because Data is there
	packets uint64
	err     error // sticky

	classic classicHeader
	ng      section
}

// Open opens the capture file of that name; "-" is the standard input.
func Open(name string) (*Reader, error) {
	if name == "-" {
		return NewReader("standard input", os.Stdin)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open capture: %w", err)
	}
	r, err := NewReader(name, f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r.closer = f
	return r, nil
}

// NewReader reads the header of the capture in src. The name is for errors.
func NewReader(name string, src io.Reader) (*Reader, error) {
	r := &Reader{name: name, buf: bufio.NewReaderSize(src, readBuffer)}
	if magic, _ := r.buf.Peek(2); len(magic) == 2 && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(r.buf)
		if err != nil {
			return nil, &ReadError{File: name, Err: fmt.Errorf("gunzip: %w", err)}
		}
		r.buf = bufio.NewReaderSize(z, readBuffer)
	}
	if err := r.sniff(); err != nil {
		return nil, &ReadError{File: name, Err: err}
	}
	return r, nil
}

// The first four bytes of a file, read as a little-endian number.
const (
	magicMicros    = 0xa1b2c3d4
	magicMicrosBig = 0xd4c3b2a1
	magicNanos     = 0xa1b23c4d
	magicNanosBig  = 0x4d3cb2a1
	magicNg        = 0x0a0d0d0a // reads the same from both ends
)

func (r *Reader) sniff() error {
	b, err := r.buf.Peek(4)
	if len(b) == 0 && errors.Is(err, io.EOF) {
		return errors.New("the file is empty")
	}
	if len(b) < 4 {
		return shortOf(4, len(b), err)
	}
	switch magic := binary.LittleEndian.Uint32(b); magic {
	case magicNg:
		r.format, r.next = "pcapng", (*Reader).nextNg
		return r.firstSection()
	case magicMicros, magicMicrosBig, magicNanos, magicNanosBig:
		r.format, r.next = "pcap", (*Reader).nextClassic
		r.big = magic == magicMicrosBig || magic == magicNanosBig
		r.classic.fraction = 1000
		if magic == magicNanos || magic == magicNanosBig {
			r.classic.fraction = 1
		}
		return r.readClassicHeader()
	}
	return fmt.Errorf("neither pcap nor pcapng: it begins with % x", b)
}

// Name returns the name that the reader was made with.
func (r *Reader) Name() string { return r.name }

// Format returns "pcap" or "pcapng".
func (r *Reader) Format() string { return r.format }

// Offset returns how many bytes of the file have been read so far.
func (r *Reader) Offset() int64 { return r.offset + int64(r.pending) }

// Next fills rec with the next packet. At the end of the capture it returns
// io.EOF, and where the file is damaged or cut a *ReadError; from then on it
// returns the same error again.
func (r *Reader) Next(rec *Record) error {
	if r.err != nil {
		return r.err
	}
	r.settle()
	if err := r.next(r, rec); err != nil {
		if err != io.EOF {
			err = &ReadError{File: r.name, Packet: r.packets + 1, Offset: r.start, Err: err}
		}
		r.err = err
		return err
	}
	r.packets++
	rec.Number = r.packets
	return nil
}

// Close closes the file if Open has opened it.
func (r *Reader) Close() error {
	if r.closer == nil {
		return nil
	}
	err := r.closer.Close()
	r.closer = nil
	return err
}

// peek returns the n bytes that come next without moving on, or what there is
// of them and the cause. n <= readBuffer.
func (r *Reader) peek(n int) ([]byte, error) {
	b, err := r.buf.Peek(n)
	if len(b) < n {
		return b, shortOf(n, len(b), err)
	}
	return b, nil
}

// skip moves on by n bytes, however many.
func (r *Reader) skip(n int64) error {
	for n > 0 {
		step := int(min(n, 1<<30))
		got, err := r.buf.Discard(step)
		r.offset += int64(got)
		n -= int64(got)
		if err != nil {
			return fmt.Errorf("cut short: %w", noEOF(err))
		}
	}
	return nil
}

// settle moves on over the record that the last call of Next returned.
func (r *Reader) settle() {
	_ = r.skip(int64(r.pending)) // cannot fail: the bytes are in the buffer
	r.pending = 0
}

func (r *Reader) u16(b []byte) uint16 {
	if r.big {
		return binary.BigEndian.Uint16(b)
	}
	return binary.LittleEndian.Uint16(b)
}

func (r *Reader) u32(b []byte) uint32 {
	if r.big {
		return binary.BigEndian.Uint32(b)
	}
	return binary.LittleEndian.Uint32(b)
}

// shortOf describes a record of which only got of want bytes could be read.
func shortOf(want, got int, cause error) error {
	return fmt.Errorf("cut short: %d of %d bytes: %w", got, want, noEOF(cause))
}

// noEOF turns an end inside a record into what it is: unexpected.
func noEOF(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
