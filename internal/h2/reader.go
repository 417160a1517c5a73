package h2

import (
	"encoding/binary"

	"golang.org/x/net/http2/hpack"
)

// Frame types and flags (RFC 9113 6).
const (
	frameData         = 0
	frameHeaders      = 1
	framePriority     = 2
	frameRSTStream    = 3
	frameSettings     = 4
	framePushPromise  = 5
	framePing         = 6
	frameGoAway       = 7
	frameWindowUpdate = 8
	frameContinuation = 9

	flagEndStream  = 0x1 // DATA, HEADERS
	flagAck        = 0x1 // SETTINGS
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings that a Reader of the other direction must know (RFC 9113 6.5.2).
const (
	settingTableSize    = 1
	settingMaxFrameSize = 5

	defaultTable    = 4096
	defaultMaxFrame = 1 << 14
	largestMaxFrame = 1<<24 - 1

	frameHeader = 9
)

// Event is what Reader.Next came to.
type Event uint8

// The events.
const (
	More     Event = iota // all bytes are consumed, nothing is complete
	HeadEnd               // Reader.Head is complete
	DataEnd               // a DATA frame has passed: Reader.Data
	Reset                 // RST_STREAM: Reader.Stream, Reader.ErrorCode
	Settings              // Reader.Settings: tell the Reader of the other direction
	GoAway                // the sender takes no more streams
	Failed                // Reader.Fault says why; every further call returns the same
)

// PeerSettings is what one end allows the other. A value that was not said is 0.
type PeerSettings struct{ TableSize, MaxFrameSize uint32 }

// Reader follows one direction of a connection. What it answers does not depend
// on how the bytes are cut.
type Reader struct {
	dir      Direction
	limits   Limits
	maxFrame int
	dec      *hpack.Decoder

	preface int // bytes of the preface that were there
	header  [frameHeader]byte
	have    int
	left    int // bytes of the payload that are to come
	frames  bool
	keep    bool // the payload goes to buf

	unit   int    // bytes since the frame, or the header block, began
	buf    []byte // payload of a frame, or of a header block's frames so far
	block  bool   // a header block is under way: CONTINUATION must follow
	conts  int
	stream uint32 // of the last frame
	last   uint32 // the highest stream that the client has opened

	pad      int // bytes of padding of a DATA frame
	dataSize int
	dataEnd  bool

	head     *Head
	size     int
	over     bool
	settings PeerSettings
	code     uint32
	fault    Fault
}

// NewReader returns a Reader of the direction dir.
func NewReader(dir Direction, limits Limits) *Reader {
	r := &Reader{dir: dir, limits: limits, maxFrame: defaultMaxFrame}
	if dir == FromServer {
		r.preface = len(Preface)
	}
	r.dec = hpack.NewDecoder(defaultTable, r.field)
	r.dec.SetMaxStringLength(limits.Head)
	r.dec.SetAllowedMaxDynamicTableSize(min(defaultTable, limits.Table))
	return r
}

// Peer tells r what the receiver of its direction allows. A limit that is raised
// counts at once; one that is lowered does not, since the sender may not know.
func (r *Reader) Peer(s PeerSettings) {
	if s.MaxFrameSize >= defaultMaxFrame && s.MaxFrameSize <= largestMaxFrame {
		r.maxFrame = max(r.maxFrame, int(s.MaxFrameSize))
	}
	if s.TableSize > defaultTable {
		r.dec.SetAllowedMaxDynamicTableSize(min(s.TableSize, r.limits.Table))
	}
}

// Fault returns why r has failed.
func (r *Reader) Fault() Fault { return r.fault }

// Head returns the head of the last call. It is the caller's.
func (r *Reader) Head() *Head { return r.head }

// Stream returns the stream of the last event.
func (r *Reader) Stream() uint32 { return r.stream }

// Data returns how many bytes of a body the last DATA frame had, without
// padding, and whether they were the stream's last.
func (r *Reader) Data() (size int, end bool) { return r.dataSize, r.dataEnd }

// Settings returns what the last SETTINGS frame said.
func (r *Reader) Settings() PeerSettings { return r.settings }

// ErrorCode returns what the last RST_STREAM gave as its cause (RFC 9113 7).
func (r *Reader) ErrorCode() uint32 { return r.code }

// Size returns the bytes of the frame, or of all frames of the header block, that
// the last event ended, frame headers included.
func (r *Reader) Size() int { return r.unit }

// Held returns how many of the bytes so far, the last ones, belong to a header
// block or a frame whose meaning is not known yet. Bodies are never among them.
func (r *Reader) Held() int {
	if r.block || r.have > 0 || r.left > 0 && r.keep {
		return r.unit
	}
	return 0
}

// OpenFirst tells a Reader of a client that stream 1 is open: it was a request in
// HTTP/1.1 that asked for the upgrade (RFC 7540 3.2).
func (r *Reader) OpenFirst() { r.last = 1 }

// Idle reports whether the bytes so far end between two frames, and no header
// block is under way.
func (r *Reader) Idle() bool { return r.have == 0 && r.left == 0 && !r.block && r.fault == FaultNone }

// Next consumes bytes up to the next event and returns how many that were.
func (r *Reader) Next(b []byte) (n int, e Event) {
	if r.fault != FaultNone {
		return 0, Failed
	}
	for n < len(b) && r.preface < len(Preface) {
		if b[n] != Preface[r.preface] {
			return n, r.fail(NotHTTP2)
		}
		r.preface++
		n++
	}
	for n < len(b) {
		if r.left == 0 {
			if r.have == 0 && !r.block {
				r.unit = 0
			}
			k := copy(r.header[r.have:], b[n:])
			r.have += k
			r.unit += k
			n += k
			if r.have < frameHeader {
				return n, More
			}
			r.have = 0
			if f := r.beginFrame(); f != FaultNone {
				return n, r.fail(f)
			}
			if r.left > 0 {
				continue
			}
		} else {
			rest := b[n:min(len(b), n+r.left)]
			switch {
			case r.keep:
				r.buf = append(r.buf, rest...)
			case r.header[3] == frameData && r.pad < 0:
				r.pad = int(rest[0]) // the first byte of a padded frame
			}
			n += len(rest)
			r.unit += len(rest)
			if r.left -= len(rest); r.left > 0 {
				continue
			}
		}
		if e := r.endFrame(); e != More {
			return n, e
		}
	}
	return n, More
}

// beginFrame judges the header of a frame.
func (r *Reader) beginFrame() Fault {
	length := int(r.header[0])<<16 | int(r.header[1])<<8 | int(r.header[2])
	typ, flags := r.header[3], r.header[4]
	r.stream = binary.BigEndian.Uint32(r.header[5:]) & (1<<31 - 1)
	r.left = length
	if !r.frames && (typ != frameSettings || flags&flagAck != 0) {
		return NotHTTP2 // RFC 9113 3.4: SETTINGS come first
	}
	r.frames = true
	if length > r.maxFrame || r.block != (typ == frameContinuation) || r.block && r.stream != binary.BigEndian.Uint32(r.buf) {
		return BadFrame
	}
	r.keep = false
	switch typ {
	case frameData:
		r.pad, r.dataSize, r.dataEnd = 0, length, flags&flagEndStream != 0
		if flags&flagPadded != 0 {
			if length == 0 {
				return BadFrame
			}
			r.pad = -1
		}
	case frameHeaders, framePushPromise:
		if typ == framePushPromise && r.dir == FromClient {
			return BadFrame
		}
		// The block's buffer begins with its stream, and type and flags of its
		// first frame.
		r.buf = append(binary.BigEndian.AppendUint32(r.buf[:0], r.stream), typ, flags)
		r.keep, r.conts = true, 0
	case frameContinuation:
		if r.conts++; r.conts > r.limits.Continuations {
			return TooManyCont
		}
		r.keep = true
	case frameSettings:
		r.buf, r.keep = r.buf[:0], true
		if length%6 != 0 || flags&flagAck != 0 && length != 0 {
			return BadFrame
		}
	case framePriority, frameRSTStream, frameWindowUpdate, framePing, frameGoAway:
		want := [...]int{framePriority: 5, frameRSTStream: 4, framePing: 8, frameWindowUpdate: 4, frameGoAway: 8}[typ]
		if length != want && (typ != frameGoAway || length < want) {
			return BadFrame
		}
		if typ == frameRSTStream {
			r.buf, r.keep = r.buf[:0], true
		}
	}
	switch typ { // RFC 9113 6: frames of a stream, and of the connection
	case frameData, frameHeaders, framePriority, frameRSTStream, framePushPromise:
		if r.stream == 0 {
			return BadFrame
		}
	case frameSettings, framePing, frameGoAway:
		if r.stream != 0 {
			return BadFrame
		}
	}
	if r.dir == FromClient && (typ == frameData || typ == frameRSTStream && r.stream%2 == 1) && (r.stream > r.last || r.stream%2 == 0) {
		return BadFrame // RFC 9113 5.1: of a stream that was never opened
	}
	if r.keep && len(r.buf)+length > r.limits.Block+blockPrefix {
		return TooLarge
	}
	return FaultNone
}

// keepBuffer is the largest buffer that a Reader keeps between blocks.
const keepBuffer = 4 << 10

// blockPrefix is what the buffer of a block has in front of the payload.
const blockPrefix = 6

// endFrame is called when a payload is complete.
func (r *Reader) endFrame() Event {
	flags := r.header[4]
	switch r.header[3] {
	case frameData:
		if r.pad > 0 || flags&flagPadded != 0 {
			if r.dataSize -= 1 + r.pad; r.dataSize < 0 {
				return r.fail(BadFrame)
			}
		}
		return DataEnd
	case frameHeaders, framePushPromise:
		if f := r.stripBlock(); f != FaultNone {
			return r.fail(f)
		}
		r.block = true
	case frameRSTStream:
		r.code = binary.BigEndian.Uint32(r.buf)
		return Reset
	case frameGoAway:
		return GoAway
	case frameSettings:
		if flags&flagAck != 0 {
			return More
		}
		return r.readSettings()
	}
	if r.block && flags&flagEndHeaders != 0 {
		r.block = false
		return r.endBlock()
	}
	return More
}

// stripBlock takes padding and priority out of a block's first frame.
func (r *Reader) stripBlock() Fault {
	body, flags := r.buf[blockPrefix:], r.buf[5]
	pad := 0
	if flags&flagPadded != 0 {
		if len(body) == 0 {
			return BadFrame
		}
		pad, body = int(body[0]), body[1:]
	}
	if flags&flagPriority != 0 && r.buf[4] == frameHeaders {
		if len(body) < 5 {
			return BadFrame
		}
		body = body[5:]
	}
	if pad > len(body) {
		return BadFrame
	}
	body = body[:len(body)-pad]
	r.buf = append(r.buf[:blockPrefix], body...)
	return FaultNone
}

func (r *Reader) readSettings() Event {
	var ok bool
	if r.settings, ok = ParseSettings(r.buf); !ok {
		return r.fail(BadFrame)
	}
	return Settings
}

// ParseSettings reads the payload of a SETTINGS frame. It reports false for
// values that are forbidden.
func ParseSettings(b []byte) (s PeerSettings, ok bool) {
	for ; len(b) >= 6; b = b[6:] {
		v := binary.BigEndian.Uint32(b[2:])
		switch binary.BigEndian.Uint16(b) {
		case settingTableSize:
			s.TableSize = v
		case settingMaxFrameSize:
			if v < defaultMaxFrame || v > largestMaxFrame {
				return s, false
			}
			s.MaxFrameSize = v
		}
	}
	return s, len(b) == 0
}

// endBlock decompresses a block and judges the head.
func (r *Reader) endBlock() Event {
	h := &Head{Stream: binary.BigEndian.Uint32(r.buf), EndStream: r.buf[5]&flagEndStream != 0}
	body := r.buf[blockPrefix:]
	if r.buf[4] == framePushPromise {
		if len(body) < 4 {
			return r.fail(BadFrame)
		}
		h.Promised, h.EndStream = binary.BigEndian.Uint32(body)&(1<<31-1), false
		body = body[4:]
		if h.Promised == 0 || h.Promised%2 != 0 {
			return r.fail(BadFrame)
		}
	}
	r.head, r.size, r.over = h, 0, false
	r.stream = h.Stream
	_, err := r.dec.Write(body)
	if err == nil {
		err = r.dec.Close()
	}
	if cap(r.buf) > keepBuffer {
		r.buf = nil
	}
	switch {
	case r.over || err == hpack.ErrStringLength:
		return r.fail(TooExpanded)
	case err != nil:
		return r.fail(BadBlock)
	}
	if f := r.judge(h); f != FaultNone {
		return r.fail(f)
	}
	return HeadEnd
}

// field takes a field of the block from the decoder.
func (r *Reader) field(f hpack.HeaderField) {
	r.size += len(f.Name) + len(f.Value) + 32
	if r.size > r.limits.Head {
		r.over = true
		r.head.Fields = nil
		return
	}
	r.head.Fields = append(r.head.Fields, Field{f.Name, f.Value})
}

func (r *Reader) fail(f Fault) Event {
	r.fault, r.head = f, nil
	return Failed
}
