package tlshello

// Content types (RFC 8446 5.1) and handshake types (RFC 8446 4).
const (
	typeChangeCipherSpec = 20
	typeAlert            = 21
	typeHandshake        = 22
	typeApplicationData  = 23

	TypeClientHello = 1
	TypeServerHello = 2
)

const (
	recordHeader  = 5
	messageHeader = 4
	// The longest payloads: plain (RFC 8446 5.1), and protected in the oldest
	// version that can occur (RFC 5246 6.2.3).
	maxPlain     = 1 << 14
	maxProtected = 1<<14 + 2048
)

// Event is what Reader.Next came to.
type Event uint8

// The events.
const (
	More         Event = iota // all bytes are consumed, nothing is complete
	Message                   // Reader.Message is complete
	Alert                     // a plain alert: Reader.Alert
	ChangeCipher              // a record of the type change_cipher_spec begins
	Protected                 // a record begins that only the ends can read
	Failed                    // Reader.Fault says why; every further call returns the same
)

// Reader takes the bytes of one direction, in pieces of any size, and puts
// handshake messages of one type together. What it answers does not depend on
// how the bytes are cut.
type Reader struct {
	want       byte
	maxMessage int
	maxRecords int

	header  [recordHeader]byte
	have    int // bytes of the header
	left    int // bytes of the payload that are to come
	records int
	msg     []byte
	done    bool // msg was complete at the last call
	alert   [2]byte
	fault   Fault
}

// Reset makes r a reader of messages of the type want, TypeClientHello or
// TypeServerHello. maxMessage bounds them, in bytes with their header;
// maxRecords bounds the records of the direction. buf becomes the reader's:
// messages are put together in its capacity, and beyond that in a new one.
func (r *Reader) Reset(want byte, maxMessage, maxRecords int, buf []byte) {
	*r = Reader{want: want, maxMessage: maxMessage, maxRecords: maxRecords, msg: buf[:0]}
}

// Release takes the buffer out of r, for another Reset.
func (r *Reader) Release() []byte {
	buf := r.msg
	r.msg = nil
	return buf[:0]
}

// Started reports whether any byte has come.
func (r *Reader) Started() bool { return r.records > 0 || r.have > 0 || r.fault != FaultNone }

// Idle reports whether the bytes so far end where no message and no record
// header is under way.
func (r *Reader) Idle() bool {
	return r.have == 0 && (r.done || len(r.msg) == 0) && (r.left == 0 || r.header[0] == typeApplicationData || r.header[0] == typeChangeCipherSpec)
}

// Fault returns why the reader has failed.
func (r *Reader) Fault() Fault { return r.fault }

// Message returns the message of the last call, without its header of 4 bytes.
// It is valid until the next call.
func (r *Reader) Message() []byte { return r.msg[messageHeader:] }

// Alert returns the level (1 warning, 2 fatal) and the description of an alert
// (RFC 8446 6).
func (r *Reader) Alert() (level, description byte) { return r.alert[0], r.alert[1] }

// Next consumes bytes up to the next event and returns how many that were.
func (r *Reader) Next(b []byte) (n int, e Event) {
	if r.fault != FaultNone {
		return 0, Failed
	}
	if r.done {
		r.msg, r.done = r.msg[:0], false
	}
	for n < len(b) {
		if r.left == 0 {
			k := copy(r.header[r.have:], b[n:])
			r.have += k
			n += k
			if f := r.checkHeader(); f != FaultNone {
				return r.fail(n, f)
			}
			if r.have < recordHeader {
				return n, More
			}
			r.have = 0
			if e := r.beginRecord(); e != More {
				return n, e
			}
			continue
		}
		rest := b[n:min(len(b), n+r.left)]
		switch r.header[0] {
		case typeHandshake:
			k, e := r.gather(rest)
			n += k
			r.left -= k
			if e != More {
				return n, e
			}
		case typeAlert:
			if k := int(r.header[4]); r.header[3] == 0 && k == len(r.alert) {
				r.alert[k-r.left] = rest[0]
				n++
				if r.left--; r.left == 0 {
					return n, Alert
				}
				continue
			}
			fallthrough // protected
		default:
			n += len(rest)
			r.left -= len(rest)
		}
	}
	return n, More
}

// checkHeader judges the bytes of a record header that are there: it answers at
// the same byte however they come.
func (r *Reader) checkHeader() Fault {
	h, have := &r.header, r.have
	if r.records == 0 {
		if h[0]&0x80 != 0 {
			return sslv2(h[:have])
		}
		if h[0] != typeHandshake && h[0] != typeAlert || have > 1 && h[1] != 3 {
			return NotTLS
		}
	}
	if h[0] < typeChangeCipherSpec || h[0] > typeApplicationData || have > 1 && h[1] != 3 {
		return BadRecord
	}
	return FaultNone
}

// sslv2 judges the first bytes of what may be an SSLv2 record: its length with
// the highest bit set, the type of a ClientHello, and a version.
func sslv2(h []byte) Fault {
	switch {
	case len(h) > 2 && h[2] != 1, len(h) > 3 && h[3] != 0 && h[3] != 3:
		return NotTLS
	case len(h) < recordHeader:
		return FaultNone
	case h[3] == 3 || h[4] == 2:
		return SSLv2
	}
	return NotTLS
}

func (r *Reader) beginRecord() Event {
	if r.records++; r.records > r.maxRecords {
		return r.failed(TooManyRecords)
	}
	r.left = int(r.header[3])<<8 | int(r.header[4])
	typ := r.header[0]
	if typ == typeHandshake {
		// RFC 8446 5.1: no empty fragments of handshake messages.
		if r.left == 0 || r.left > maxPlain {
			return r.failed(BadRecord)
		}
		return More
	}
	// RFC 8446 5.1: nothing stands between the fragments of a message.
	if r.left > maxProtected || len(r.msg) > 0 {
		return r.failed(BadRecord)
	}
	switch {
	case typ == typeAlert && r.left == len(r.alert):
		return More
	case typ == typeChangeCipherSpec:
		return ChangeCipher
	}
	return Protected
}

// gather adds bytes to the message, as many as belong to it.
func (r *Reader) gather(b []byte) (n int, e Event) {
	if k := messageHeader - len(r.msg); k > 0 {
		n = min(k, len(b))
		r.msg = append(r.msg, b[:n]...)
		if r.msg[0] != r.want {
			return n, r.failed(BadMessage)
		}
		if len(r.msg) < messageHeader {
			return n, More
		}
	}
	size := messageHeader + (int(r.msg[1])<<16 | int(r.msg[2])<<8 | int(r.msg[3]))
	if size > r.maxMessage {
		return n, r.failed(TooLarge)
	}
	k := min(size-len(r.msg), len(b)-n)
	r.msg = append(r.msg, b[n:n+k]...)
	if len(r.msg) == size {
		r.done = true
		return n + k, Message
	}
	return n + k, More
}

func (r *Reader) fail(n int, f Fault) (int, Event) { return n, r.failed(f) }

func (r *Reader) failed(f Fault) Event {
	r.fault = f
	return Failed
}
