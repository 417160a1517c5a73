// Package h2 reads the heads of requests and responses out of one direction of
// an HTTP/2 connection in clear (RFC 9113): frames, header blocks and their
// compression (RFC 7541). Bodies are stepped over, never kept.
//
// All of it is bounded and takes any bytes. Whatever two implementations need
// not agree on ends the direction with a fault.
//
// Its one trap: header compression has a state, so one block that was not read
// makes all later ones unreadable. A Reader that has failed stays so.
package h2

// Fault says why bytes cannot be followed as HTTP/2. The zero value is no fault.
type Fault uint8

// The faults.
const (
	FaultNone   Fault = iota
	NotHTTP2          // the client's preface, or the first frame that must be SETTINGS, is missing
	BadFrame          // a frame that is forbidden: its size, its stream, its place
	BadBlock          // a header block that cannot be decompressed, or that wants more dynamic table than the limit
	BadHead           // fields that RFC 9113 8 forbids, or that are missing
	TooLarge          // a header block, as it is sent, larger than the limit
	TooExpanded       // a head that decompresses to more than the limit
	TooManyCont       // more CONTINUATION frames in a block than the limit
)

var faultNames = [...]string{"none", "not_http2", "bad_frame", "bad_block", "bad_head", "too_large", "too_expanded", "too_many_continuations"}

// String returns a short name in lower_snake.
func (f Fault) String() string {
	if int(f) < len(faultNames) {
		return faultNames[f]
	}
	return "unknown"
}

// Preface is what a client sends first (RFC 9113 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Limits bounds a Reader.
type Limits struct {
	Block         int    // bytes of a compressed header block
	Head          int    // bytes of a head: names, values and 32 for each field, as SETTINGS_MAX_HEADER_LIST_SIZE counts
	Continuations int    // CONTINUATION frames of a block
	Table         uint32 // bytes of the dynamic table, whatever the ends agree on
}

// DefaultLimits are generous for browsers and tight for attacks.
var DefaultLimits = Limits{Block: 64 << 10, Head: 256 << 10, Continuations: 16, Table: 64 << 10}

// Direction is who sends.
type Direction uint8

// The directions.
const (
	FromClient Direction = iota
	FromServer
)

// Field is a field of a head.
type Field struct{ Name, Value string }

// Head is a request, a response, trailers, or a promised request.
type Head struct {
	Stream    uint32
	Promised  uint32 // PUSH_PROMISE: the stream that will have the response
	Trailers  bool
	EndStream bool // nothing follows on this stream

	// Of requests. Host is :authority, or the field Host where that is absent.
	Method, Scheme, Path, Host string
	// Of responses: three digits.
	Status string

	Fields []Field // the others, in their order
}

// Get returns the value of the first field of that name, in lower case, or "".
func (h *Head) Get(name string) string {
	for i := range h.Fields {
		if h.Fields[i].Name == name {
			return h.Fields[i].Value
		}
	}
	return ""
}
