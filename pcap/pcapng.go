package pcap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// Block types and options of draft-ietf-opsawg-pcapng.
const (
	blockInterface      = 1
	blockPacket         = 2 // obsolete, still found
	blockSimplePacket   = 3
	blockStatistics     = 5
	blockEnhancedPacket = 6
	blockSection        = magicNg

	byteOrderMagic = 0x1a2b3c4d

	optEnd        = 0
	optComment    = 1
	optIfTsresol  = 9
	optIfTsoffset = 14
)

const (
	blockFrame       = 12 // type and length in front, length behind
	sectionHeaderLen = 16 // of the body, without options
	interfaceLen     = 8
	packetLen        = 20
)

// maxInterfaces bounds the interfaces of one section.
const maxInterfaces = 4096

// section is what is known of the section that is being read.
type section struct {
	known    bool // its version is; else its blocks are skipped
	anyKnown bool // a section with a known version has been seen
	major    uint16
	minor    uint16
	ifaces   []ngInterface
	last     int64 // time of the packet before
}

// ngInterface is what an interface description block says.
type ngInterface struct {
	link    LinkType
	snapLen uint32
	offset  int64  // s, added to every time
	mul     uint64 // ns = ts * mul / div, or ts * 1e9 >> shift
	div     uint64
	shift   uint
}

// firstSection reads the section header that a file begins with.
func (r *Reader) firstSection() error {
	kind, size, err := r.blockHead()
	if err != nil {
		return err
	}
	return r.readBlock(kind, size, nil)
}

// nextNg reads blocks until one has filled rec.
func (r *Reader) nextNg(rec *Record) error {
	rec.Data = nil
	for rec.Data == nil {
		kind, size, err := r.blockHead()
		if err == io.EOF && !r.ng.anyKnown {
			return fmt.Errorf("no section has a known version: found %d.%d, known is 1.0", r.ng.major, r.ng.minor)
		}
		if err != nil {
			return err
		}
		if err := r.readBlock(kind, size, rec); err != nil {
			return err
		}
	}
	return nil
}

// blockHead returns type and total length of the block that comes next, and
// io.EOF where the file ends. A section header sets the byte order.
func (r *Reader) blockHead() (kind, size uint32, err error) {
	r.start = r.offset
	b, err := r.peek(blockFrame)
	if len(b) == 0 && errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, 0, io.EOF
	}
	if err != nil {
		return 0, 0, err
	}
	kind = r.u32(b)
	least := uint32(blockFrame)
	if kind == blockSection {
		switch {
		case binary.LittleEndian.Uint32(b[8:]) == byteOrderMagic:
			r.big = false
		case binary.BigEndian.Uint32(b[8:]) == byteOrderMagic:
			r.big = true
		default:
			return 0, 0, fmt.Errorf("section header: byte-order magic is % x", b[8:12])
		}
		least += sectionHeaderLen
	}
	size = r.u32(b[4:])
	if size < least || size%4 != 0 {
		return 0, 0, fmt.Errorf("block of type %d: length is %d, want a multiple of 4 and at least %d", kind, size, least)
	}
	return kind, size, nil
}

// readBlock reads one block. It fills rec if there is a packet in it, and
// leaves rec.Data nil if not.
func (r *Reader) readBlock(kind, size uint32, rec *Record) error {
	wanted := kind == blockSection
	switch kind {
	case blockInterface, blockPacket, blockSimplePacket, blockEnhancedPacket:
		wanted = r.ng.known
	}
	if !wanted {
		return r.skipBlock(kind, size)
	}
	if size > readBuffer {
		return fmt.Errorf("block of type %d: length is %d, the limit is %d", kind, size, readBuffer)
	}
	b, err := r.peek(int(size))
	if err != nil {
		return err
	}
	if trailer := r.u32(b[size-4:]); trailer != size {
		return fmt.Errorf("block of type %d: its length is %d in front and %d behind", kind, size, trailer)
	}
	body := b[8 : size-4 : size-4]
	switch kind {
	case blockSection:
		return r.readSection(body, size)
	case blockInterface:
		err = r.readInterface(body)
	case blockSimplePacket:
		return r.readSimplePacket(body, size, rec)
	default:
		return r.readPacket(kind, body, size, rec)
	}
	if err != nil {
		return err
	}
	return r.skip(int64(size))
}

// skipBlock moves on over a block of any length.
func (r *Reader) skipBlock(kind, size uint32) error {
	if err := r.skip(int64(size) - 4); err != nil {
		return fmt.Errorf("block of type %d and length %d: %w", kind, size, err)
	}
	b, err := r.peek(4)
	if err != nil {
		return fmt.Errorf("block of type %d and length %d: %w", kind, size, err)
	}
	if trailer := r.u32(b); trailer != size {
		return fmt.Errorf("block of type %d: its length is %d in front and %d behind", kind, size, trailer)
	}
	return r.skip(4)
}

// readSection begins a section. One of an unknown version is skipped: by its
// length where that is given, else block by block.
func (r *Reader) readSection(body []byte, size uint32) error {
	major, minor := r.u16(body[4:]), r.u16(body[6:])
	length := int64(r.u64(body[8:]))
	r.ng = section{
		// Minor version 2 occurs and means 0.
		known: major == 1 && (minor == 0 || minor == 2), anyKnown: r.ng.anyKnown,
		major: major, minor: minor, ifaces: r.ng.ifaces[:0], last: r.ng.last,
	}
	if err := r.skip(int64(size)); err != nil {
		return err
	}
	if r.ng.known {
		r.ng.anyKnown = true
		return nil
	}
	if length > 0 {
		return r.skip(length)
	}
	return nil
}

func (r *Reader) readInterface(body []byte) error {
	if len(body) < interfaceLen {
		return fmt.Errorf("interface description: %d bytes, want %d", len(body), interfaceLen)
	}
	if len(r.ng.ifaces) == maxInterfaces {
		return fmt.Errorf("interface description: the section has more than %d", maxInterfaces)
	}
	i := ngInterface{link: LinkType(r.u16(body)), snapLen: r.u32(body[4:])}
	resolution := byte(6)
	for o := body[interfaceLen:]; len(o) > 0; {
		code, value, rest, ok := nextOption(o, r.big)
		if !ok {
			return errors.New("interface description: an option reaches beyond its block")
		}
		if code == optEnd {
			break
		}
		switch {
		case code == optIfTsresol && len(value) == 1:
			resolution = value[0]
		case code == optIfTsoffset && len(value) == 8:
			i.offset = min(max(int64(r.u64(value)), -maxTime/1e9), maxTime/1e9)
		case code == optIfTsresol || code == optIfTsoffset:
			return fmt.Errorf("interface description: option %d has %d bytes", code, len(value))
		}
		o = rest
	}
	i.setResolution(resolution)
	r.ng.ifaces = append(r.ng.ifaces, i)
	return nil
}

// readPacket reads an enhanced or an obsolete packet block.
func (r *Reader) readPacket(kind uint32, body []byte, size uint32, rec *Record) error {
	if len(body) < packetLen {
		return fmt.Errorf("packet block: %d bytes, want %d", len(body), packetLen)
	}
	id := int(r.u32(body))
	if kind == blockPacket {
		id = int(r.u16(body)) // the drop count follows
	}
	if id >= len(r.ng.ifaces) {
		return fmt.Errorf("packet block: interface is %d, the section has %d", id, len(r.ng.ifaces))
	}
	captured, wire := r.u32(body[12:]), r.u32(body[16:])
	if captured > MaxPacket {
		return fmt.Errorf("packet block: captured length is %d, the limit is %d", captured, MaxPacket)
	}
	n, padded := int(captured), pad4(int(captured))
	if padded > len(body)-packetLen {
		return fmt.Errorf("packet block: captured length is %d, the block has room for %d", captured, len(body)-packetLen)
	}
	i := &r.ng.ifaces[id]
	*rec = Record{
		Offset: r.start, Time: i.time(uint64(r.u32(body[4:]))<<32 | uint64(r.u32(body[8:]))),
		Wire: wireLength(wire, n), Link: i.link, Interface: id,
		Data: body[packetLen : packetLen+n : packetLen+n], options: body[packetLen+padded:], big: r.big,
	}
	r.ng.last = rec.Time
	r.pending = int(size)
	return nil
}

// readSimplePacket reads a packet without time and interface: it belongs to
// the first interface, and here has the time of the packet before it.
func (r *Reader) readSimplePacket(body []byte, size uint32, rec *Record) error {
	if len(r.ng.ifaces) == 0 {
		return errors.New("simple packet block: the section has no interface")
	}
	if len(body) < 4 {
		return fmt.Errorf("simple packet block: %d bytes, want 4", len(body))
	}
	i := &r.ng.ifaces[0]
	wire := r.u32(body)
	captured := wire
	if i.snapLen != 0 {
		captured = min(captured, i.snapLen)
	}
	if captured > MaxPacket {
		return fmt.Errorf("simple packet block: captured length is %d, the limit is %d", captured, MaxPacket)
	}
	n := int(captured)
	if n > len(body)-4 {
		return fmt.Errorf("simple packet block: captured length is %d, the block has room for %d", n, len(body)-4)
	}
	*rec = Record{Offset: r.start, Time: r.ng.last, Wire: wireLength(wire, n), Link: i.link, Data: body[4 : 4+n : 4+n]}
	r.pending = int(size)
	return nil
}

func (r *Reader) u64(b []byte) uint64 {
	if r.big {
		return binary.BigEndian.Uint64(b)
	}
	return binary.LittleEndian.Uint64(b)
}

// nextOption splits the first option off o; not ok where there is none or it
// reaches beyond o.
func nextOption(o []byte, big bool) (code uint16, value, rest []byte, ok bool) {
	if len(o) < 4 {
		return 0, nil, nil, false
	}
	var n int
	if big {
		code, n = binary.BigEndian.Uint16(o), int(binary.BigEndian.Uint16(o[2:]))
	} else {
		code, n = binary.LittleEndian.Uint16(o), int(binary.LittleEndian.Uint16(o[2:]))
	}
	padded := pad4(n)
	if padded > len(o)-4 {
		return 0, nil, nil, false
	}
	return code, o[4 : 4+n], o[4+padded:], true
}

// setResolution takes if_tsresol: the unit of the clock is 10^-v s, or 2^-v s
// if the highest bit is set.
func (i *ngInterface) setResolution(v byte) {
	i.mul, i.div, i.shift = 1, 1, 0
	exp := uint(v & 0x7f)
	switch {
	case v&0x80 != 0:
		i.mul, i.shift = 1e9, exp
	case exp <= 9:
		i.mul = pow10(9 - exp)
	case exp-9 <= 19:
		i.div = pow10(exp - 9)
	default:
		i.mul = 0 // 64 bits of it are less than a nanosecond
	}
}

func pow10(n uint) uint64 {
	v := uint64(1)
	for range n {
		v *= 10
	}
	return v
}

// time converts a timestamp of the interface to ns since the epoch.
func (i *ngInterface) time(ts uint64) int64 {
	hi, lo := bits.Mul64(ts, i.mul)
	switch {
	case i.shift >= 64:
		hi, lo = 0, hi>>(i.shift-64)
	case i.shift > 0:
		hi, lo = hi>>i.shift, hi<<(64-i.shift)|lo>>i.shift
	}
	ns := maxTime
	if hi == 0 && lo/i.div < uint64(maxTime) {
		ns = int64(lo / i.div)
	}
	return min(max(ns+i.offset*1e9, 0), maxTime)
}
