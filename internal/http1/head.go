package http1

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// Framing is how a message body ends (RFC 9112 6.3).
type Framing uint8

// The framings.
const (
	NoBody Framing = iota
	Sized
	Chunked
	UntilClose
)

// TraceparentLen is how long the field is in version 00 of W3C Trace Context.
const TraceparentLen = 55

// Head is a parsed request or response head.
type Head struct {
	Method, Target string // requests
	Host           string // normalised; "" if the request has none
	Status         int    // responses
	Minor          byte   // of HTTP/1.x
	Framing        Framing
	Length         uint64 // of a Sized body, bytes
	Close          bool   // the sender closes after this message
	Upgrade        bool   // asks for, or switches to, another protocol
	H2C            bool   // which is, or may be, cleartext HTTP/2
	HTTP2Settings  string // of a request for that, as it is sent (RFC 7540 3.2.1)
	UserAgent      string
	Traceparent    string // as it is written, if it has the length of one
	ContentType    string
}

// HeadEnd returns the length of the head at the start of b, its empty line
// included, or 0 if it is not complete.
func HeadEnd(b []byte) int {
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return 0
		}
		at += i + 1
		if at >= 4 && b[at-2] == '\r' && b[at-3] == '\n' && b[at-4] == '\r' {
			return at
		}
	}
}

// ParseRequest reads a complete request head, empty line included. With a fault,
// h is what was read before it.
func ParseRequest(b []byte, r *Rules) (h Head, bad Fault) {
	line, rest, ok := cutLine(b)
	if !ok {
		return h, BadLine
	}
	method, after, ok1 := bytes.Cut(line, []byte{' '})
	target, version, ok2 := bytes.Cut(after, []byte{' '})
	if !ok1 || !ok2 || !IsToken(method) || !validTarget(target) {
		return h, BadStartLine
	}
	if h.Minor, ok = httpVersion(version); !ok {
		return h, BadStartLine
	}
	keep := r.strings()
	h.Method, h.Target = keep.get(method), keep.get(target)
	f, bad := parseFields(rest, &h, r)
	if bad != FaultNone {
		return h, bad
	}
	if f.hosts > 1 || f.hosts == 0 && h.Minor >= 1 { // RFC 9112 3.2
		return h, BadHost
	}
	authority := f.host
	switch {
	case h.Method == "CONNECT":
		authority = target // RFC 9112 3.2.3
	case h.Target[0] != '/' && h.Target != "*":
		// Absolute form: it overrides Host (RFC 9112 3.2.2).
		scheme, after, ok := bytes.Cut(target, []byte("://"))
		if !ok || !EqualFold(scheme, "http") && !EqualFold(scheme, "https") {
			return h, BadStartLine
		}
		authority = after
		if i := bytes.IndexAny(after, "/?#"); i >= 0 {
			authority = after[:i]
		}
	}
	if len(authority) > 0 {
		if h.Host, ok = keep.host(authority); !ok {
			return h, BadHost
		}
	}
	switch {
	case f.chunked && f.lengths > 0: // RFC 9112 6.1, 6.3: what smuggling is made of
		return h, BothLengths
	case f.badFraming != FaultNone:
		return h, f.badFraming
	case f.chunked && h.Minor == 0:
		return h, BadCoding
	case r != nil && r.RefuseH2C && h.H2C:
		return h, UpgradeH2C
	case f.chunked:
		h.Framing = Chunked
	case f.lengths > 0 && h.Length > 0:
		h.Framing = Sized
	}
	h.Upgrade = h.Upgrade || h.Method == "CONNECT"
	h.Close = f.closes(h.Minor)
	return h, FaultNone
}

// ParseResponse reads a complete response head; method is the request's. r may be
// nil.
func ParseResponse(b []byte, method string, r *Rules) (h Head, bad Fault) {
	line, rest, ok := cutLine(b)
	if !ok {
		return h, BadLine
	}
	if len(line) < 12 || line[8] != ' ' {
		return h, BadStatus
	}
	if h.Minor, ok = httpVersion(line[:8]); !ok {
		return h, BadStatus
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return h, BadStatus
		}
		h.Status = h.Status*10 + int(c-'0')
	}
	if h.Status < 100 || len(line) > 12 && line[12] != ' ' {
		return h, BadStatus
	}
	f, bad := parseFields(rest, &h, r)
	switch {
	case bad != FaultNone:
		return h, bad
	case f.chunked && f.lengths > 0:
		return h, BothLengths
	case f.badFraming != FaultNone:
		return h, f.badFraming
	}
	// RFC 9112 6.3, in its order.
	switch {
	case method == "HEAD" || h.Status < 200 || h.Status == 204 || h.Status == 304:
		h.Framing = NoBody
	case method == "CONNECT" && h.Status < 300:
		h.Framing = NoBody
	case f.chunked:
		h.Framing = Chunked
	case f.lengths > 0:
		h.Framing = NoBody
		if h.Length > 0 {
			h.Framing = Sized
		}
	default:
		h.Framing = UntilClose
	}
	h.Upgrade = h.Status == 101 || method == "CONNECT" && h.Status >= 200 && h.Status < 300
	h.Close = f.closes(h.Minor)
	return h, FaultNone
}

// fields is what the field lines say that matters for framing.
type fields struct {
	host                  []byte
	hosts, lengths        int
	chunked               bool
	badFraming            Fault
	sawClose, sawKeep     bool
	connectionUpgrade, up bool
}

func (f *fields) closes(minor byte) bool { return f.sawClose || minor == 0 && !f.sawKeep }

// parseFields reads the field lines, up to and including the empty one.
func parseFields(b []byte, h *Head, r *Rules) (f fields, bad Fault) {
	keep := r.strings()
	for n := 0; ; n++ {
		end := bytes.IndexByte(b, '\n')
		if end < 1 || b[end-1] != '\r' {
			return f, BadLine
		}
		line := b[:end-1]
		b = b[end+1:]
		if len(line) == 0 {
			h.Upgrade = f.up && f.connectionUpgrade
			return f, FaultNone
		}
		colon := 0
		for colon < len(line) && tokenChar[line[colon]] {
			colon++
		}
		// A space before the colon, a folded line or a name that is no token:
		// parsers differ on all of them (RFC 9112 5.1, 5.2).
		if colon == 0 || colon == len(line) || line[colon] != ':' || !validValue(line[colon+1:]) {
			if bytes.IndexByte(line, '\r') >= 0 {
				return f, BadLine
			}
			return f, BadField
		}
		name, value := line[:colon], trim(line[colon+1:])
		if r != nil {
			if r.MaxFields > 0 && n >= r.MaxFields {
				return f, ManyFields
			}
			if r.Field != nil {
				r.Field(name, value)
			}
		}
		switch len(name) {
		case 2:
			if EqualFold(name, "te") {
				continue
			}
		case 4:
			if isName(name, "Host", "host") {
				f.hosts++
				f.host = value
			}
		case 7:
			if EqualFold(name, "upgrade") {
				f.up = true
				h.H2C = h.H2C || HasToken(value, "h2c")
			}
		case 10:
			if isName(name, "Connection", "connection") {
				if EqualFold(value, "keep-alive") { // alone, as it nearly always is
					f.sawKeep = true
					continue
				}
				f.sawClose = f.sawClose || HasToken(value, "close")
				f.sawKeep = f.sawKeep || HasToken(value, "keep-alive")
				f.connectionUpgrade = f.connectionUpgrade || HasToken(value, "upgrade")
			} else if isName(name, "User-Agent", "user-agent") {
				h.UserAgent = keep.get(value)
			}
		case 11:
			if EqualFold(name, "traceparent") && len(value) == TraceparentLen {
				h.Traceparent = string(value)
			}
		case 12:
			if isName(name, "Content-Type", "content-type") {
				h.ContentType = keep.get(value)
			}
		case 14:
			if isName(name, "Content-Length", "content-length") {
				f.lengths++
				n, ok := parseLength(value)
				switch {
				case f.lengths > 1 || bytes.IndexByte(value, ',') >= 0:
					f.badFraming = ManyLengths
				case !ok:
					f.badFraming = BadLength
				}
				h.Length = n
			} else if EqualFold(name, "http2-settings") {
				h.HTTP2Settings = string(value)
			}
		case 17:
			if isName(name, "Transfer-Encoding", "transfer-encoding") {
				// Only "chunked", once: other codings, and orders in which it is
				// not the last, are where implementations part.
				if f.chunked || !EqualFold(value, "chunked") {
					f.badFraming = BadCoding
				}
				f.chunked = true
			}
		}
	}
}

// cutLine splits off the line at the start of b. A line ends with CR LF; a bare
// CR or LF makes it malformed.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 1 || b[i-1] != '\r' {
		return nil, nil, false
	}
	line = b[:i-1]
	if bytes.IndexByte(line, '\r') >= 0 {
		return nil, nil, false
	}
	return line, b[i+1:], true
}

// parseLength reads a Content-Length: digits only, at most 18 of them.
func parseLength(b []byte) (n uint64, ok bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}

func httpVersion(b []byte) (minor byte, ok bool) {
	if len(b) == 8 && string(b[:7]) == "HTTP/1." && (b[7] == '0' || b[7] == '1') {
		return b[7] - '0', true
	}
	return 0, false
}

// tokenChar is true for tchar of RFC 9110 5.6.2.
var tokenChar = func() (t [256]bool) {
	for c := range t {
		t[c] = isAlnum(byte(c)) || c < 128 && strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0
	}
	return t
}()

// IsToken reports whether b is a token (RFC 9110 5.6.2).
func IsToken(b []byte) bool {
	for _, c := range b {
		if !tokenChar[c] {
			return false
		}
	}
	return len(b) > 0
}

func validTarget(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c == 0x7f {
			return false
		}
	}
	return len(b) > 0
}

func validValue(b []byte) bool {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	for ; len(b) >= 8; b = b[8:] {
		w := binary.LittleEndian.Uint64(b)
		del := w ^ 0x7f*ones
		// Of the bytes up to the first that is below a space or DEL, none has its high bit
		// set here, and that one has.
		if ((w-' '*ones)&^w|(del-ones)&^del)&high != 0 {
			break
		}
	}
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// isName compares a name, in any case, with one that is given as it is mostly
// written, and in lower case.
func isName(name []byte, written, lower string) bool {
	return string(name) == written || EqualFold(name, lower)
}

// trim takes spaces and tabs off both ends.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for n := len(b); n > 0 && (b[n-1] == ' ' || b[n-1] == '\t'); n-- {
		b = b[:n-1]
	}
	return b
}

// EqualFold compares b, in any case, with what is given in lower case.
func EqualFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// HasToken looks for an element, given in lower case, of a comma-separated list.
func HasToken(list []byte, lower string) bool {
	for len(list) > 0 {
		var elem []byte
		elem, list, _ = bytes.Cut(list, []byte{','})
		if EqualFold(bytes.Trim(elem, " \t"), lower) {
			return true
		}
	}
	return false
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// PlausibleStart reports whether b may be the beginning of a request line: it
// answers as soon as the bytes tell, so that another protocol is not held up
// until a head's worth of it has come.
func PlausibleStart(b []byte) bool {
	for i, c := range b {
		if c == ' ' {
			return i > 0
		}
		if i == 0 && c == '\n' {
			return true // an empty line that ends badly, whatever follows
		}
		if i == 0 && c == '\r' {
			return len(b) < 2 || b[1] == '\n'
		}
		if !tokenChar[c] || i > 32 {
			return false
		}
	}
	return true
}
