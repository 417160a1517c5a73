package pcap

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// Interface describes one interface of a capture that is written.
type Interface struct {
	Name        string
	Description string
	SnapLen     int // most bytes kept of a packet; 0: no limit
}

// WriterOptions configure a Writer.
type WriterOptions struct {
	Application string      // "penstock" if empty
	Comment     string      // about the whole capture
	Interfaces  []Interface // at least one
	BufferSize  int         // bytes; 64 KiB if 0
}

// Writer writes a pcapng capture of Ethernet frames with times in nanoseconds:
// one section, little-endian, an interface for each port. It is not safe for
// concurrent use.
type Writer struct {
	buf     *bufio.Writer
	snap    []int
	size    int64
	packets uint64
	err     error // of the writer below: sticky
	head    [packetHead]byte
	zero    [4]byte
}

// packetHead is the length of an enhanced packet block up to the data.
const packetHead = 8 + packetLen

// maxComment is what an option can hold.
const maxComment = math.MaxUint16

// NewWriter writes the section header and the interfaces to w.
func NewWriter(w io.Writer, o WriterOptions) (*Writer, error) {
	if len(o.Interfaces) == 0 {
		return nil, errors.New("write capture: no interface is given, want at least one")
	}
	if o.Application == "" {
		o.Application = "penstock"
	}
	if o.BufferSize <= 0 {
		o.BufferSize = 64 << 10
	}
	wr := &Writer{buf: bufio.NewWriterSize(w, o.BufferSize)}
	le := binary.LittleEndian
	b := le.AppendUint32(nil, byteOrderMagic)
	b = le.AppendUint16(b, 1) // version 1.0
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, math.MaxUint64) // length of the section: not known
	b = appendText(b, 4, o.Application)
	b = appendText(b, optComment, o.Comment)
	wr.writeBlock(blockSection, appendOption(b, optEnd, nil))
	for _, i := range o.Interfaces {
		b = le.AppendUint16(b[:0], uint16(LinkEthernet))
		b = le.AppendUint16(b, 0)
		b = le.AppendUint32(b, uint32(max(i.SnapLen, 0)))
		b = appendText(b, 2, i.Name)
		b = appendText(b, 3, i.Description)
		b = appendOption(b, optIfTsresol, []byte{9})
		wr.writeBlock(blockInterface, appendOption(b, optEnd, nil))
		wr.snap = append(wr.snap, i.SnapLen)
	}
	return wr, wr.err
}

// WritePacket appends a packet that was seen on interface iface at ts (ns
// since the epoch) and had wire bytes, of which data is the beginning. The
// comment may be nil. Neither is kept. It does not allocate. After an error
// every further call returns that error.
func (w *Writer) WritePacket(iface int, ts int64, wire int, data, comment []byte) error {
	if iface < 0 || iface >= len(w.snap) {
		return fmt.Errorf("write capture: interface is %d, there are %d", iface, len(w.snap))
	}
	wire = max(wire, len(data))
	data = data[:min(len(data), MaxPacket)]
	if s := w.snap[iface]; s > 0 && len(data) > s {
		data = data[:s]
	}
	comment = comment[:min(len(comment), maxComment)]
	size := PacketSize(len(data), len(comment))
	ts = max(ts, 0)
	le := binary.LittleEndian
	h := w.head[:]
	le.PutUint32(h, blockEnhancedPacket)
	le.PutUint32(h[4:], uint32(size))
	le.PutUint32(h[8:], uint32(iface))
	le.PutUint32(h[12:], uint32(ts>>32))
	le.PutUint32(h[16:], uint32(ts))
	le.PutUint32(h[20:], uint32(len(data)))
	le.PutUint32(h[24:], uint32(wire))
	w.write(h)
	w.write(data)
	w.pad(len(data))
	if len(comment) > 0 {
		le.PutUint16(h, optComment)
		le.PutUint16(h[2:], uint16(len(comment)))
		w.write(h[:4])
		w.write(comment)
		w.pad(len(comment))
		clear(h[:4]) // end of options
		w.write(h[:4])
	}
	le.PutUint32(h, uint32(size))
	w.write(h[:4])
	if w.err == nil {
		w.packets++
	}
	return w.err
}

// StatisticsSize is what WriteStatistics writes, in bytes.
const StatisticsSize = blockFrame + 12 + 2*(4+8) + 4

// WriteStatistics says how many packets of interface iface were received until
// ts (ns since the epoch), and how many of those are missing for want of room.
func (w *Writer) WriteStatistics(iface int, ts int64, received, dropped uint64) error {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(iface))
	b = le.AppendUint32(b, uint32(ts>>32))
	b = le.AppendUint32(b, uint32(ts))
	b = appendOption(b, 4, le.AppendUint64(nil, received))
	b = appendOption(b, 5, le.AppendUint64(nil, dropped))
	w.writeBlock(blockStatistics, appendOption(b, optEnd, nil))
	return w.err
}

// PacketSize returns how many bytes WritePacket writes for a packet.
func PacketSize(data, comment int) int {
	n := packetHead + pad4(data) + 4
	if comment > 0 {
		n += 4 + pad4(comment) + 4
	}
	return n
}

// Size returns how many bytes the capture has so far, buffered ones included.
func (w *Writer) Size() int64 { return w.size }

// Packets returns how many packets were written.
func (w *Writer) Packets() uint64 { return w.packets }

// Flush passes buffered bytes on. The capture is complete, and may be closed,
// after it.
func (w *Writer) Flush() error {
	if w.err == nil {
		if err := w.buf.Flush(); err != nil {
			w.err = fmt.Errorf("write capture: %w", err)
		}
	}
	return w.err
}

func (w *Writer) write(b []byte) {
	if w.err != nil {
		return
	}
	n, err := w.buf.Write(b)
	w.size += int64(n)
	if err != nil {
		w.err = fmt.Errorf("write capture: %w", err)
	}
}

// pad fills up to the next multiple of 4 behind n bytes.
func (w *Writer) pad(n int) { w.write(w.zero[:pad4(n)-n]) }

func (w *Writer) writeBlock(kind uint32, body []byte) {
	le := binary.LittleEndian
	size := uint32(len(body) + blockFrame)
	w.write(le.AppendUint32(le.AppendUint32(nil, kind), size))
	w.write(body)
	w.write(le.AppendUint32(nil, size))
}

// appendText appends an option unless text is empty.
func appendText(b []byte, code uint16, text string) []byte {
	if text == "" {
		return b
	}
	return appendOption(b, code, []byte(text[:min(len(text), maxComment)]))
}

func appendOption(b []byte, code uint16, value []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	b = append(b, value...)
	return append(b, make([]byte, pad4(len(value))-len(value))...)
}

func pad4(n int) int { return (n + 3) &^ 3 }
