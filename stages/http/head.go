package http

import (
	"bytes"
	"strings"

	"penstock/pipeline"
)

// How a message body ends (RFC 9112 6.3).
type framing uint8

const (
	noBody framing = iota
	sized
	chunked
	untilClose
)

// head is a parsed request or response head.
type head struct {
	method, target string // requests
	host           string // normalised; "" if the request has none
	status         int    // responses
	minor          byte   // of HTTP/1.x
	framing        framing
	length         uint64
	close          bool // the sender closes after this message
	upgrade        bool // asks for, or switches to, another protocol
	userAgent      string
	contentType    string
	fieldDenied    bool // a rule refuses a header
}

// headEnd returns the length of the head at the start of b, its empty line
// included, or 0 if it is not complete.
func headEnd(b []byte) int {
	if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
		return i + 4
	}
	return 0
}

// parseRequest reads a complete request head. A reason other than ReasonNone
// says why it is refused.
func parseRequest(b []byte, p *policy) (h head, bad pipeline.Reason) {
	line, rest, ok := cutLine(b)
	if !ok {
		return h, reasonBadLine
	}
	method, after, ok1 := bytes.Cut(line, []byte{' '})
	target, version, ok2 := bytes.Cut(after, []byte{' '})
	if !ok1 || !ok2 || !isToken(method) || !validTarget(target) {
		return h, reasonBadHead
	}
	if h.minor, ok = httpVersion(version); !ok {
		return h, reasonBadHead
	}
	h.method, h.target = string(method), string(target)
	f, bad := parseFields(rest, &h, p)
	if bad != pipeline.ReasonNone {
		return h, bad
	}
	if f.hosts > 1 || f.hosts == 0 && h.minor >= 1 { // RFC 9112 3.2
		return h, reasonBadHost
	}
	authority := f.host
	switch {
	case h.method == "CONNECT":
		authority = h.target // RFC 9112 3.2.3
	case h.target[0] != '/' && h.target != "*":
		// Absolute form: it overrides Host (RFC 9112 3.2.2).
		scheme, after, ok := strings.Cut(h.target, "://")
		if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
			return h, reasonBadHead
		}
		authority = after
		if i := strings.IndexAny(after, "/?#"); i >= 0 {
			authority = after[:i]
		}
	}
	if authority != "" {
		if h.host, ok = normalHost(authority); !ok {
			return h, reasonBadHost
		}
	}
	switch {
	case f.chunked && f.lengths > 0: // RFC 9112 6.1, 6.3: what smuggling is made of
		return h, reasonSmuggle
	case f.badFraming != pipeline.ReasonNone:
		return h, f.badFraming
	case f.chunked && h.minor == 0:
		return h, reasonCoding
	case p.enforce && f.h2c:
		return h, reasonH2C
	case f.chunked:
		h.framing = chunked
	case f.lengths > 0 && h.length > 0:
		h.framing = sized
	}
	h.upgrade = h.upgrade || h.method == "CONNECT"
	h.close = f.closes(h.minor)
	return h, pipeline.ReasonNone
}

// parseResponse reads a complete response head; method is the request's.
func parseResponse(b []byte, method string) (h head, ok bool) {
	line, rest, ok := cutLine(b)
	if !ok || len(line) < 12 || line[8] != ' ' {
		return h, false
	}
	if h.minor, ok = httpVersion(line[:8]); !ok {
		return h, false
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return h, false
		}
		h.status = h.status*10 + int(c-'0')
	}
	if h.status < 100 || len(line) > 12 && line[12] != ' ' {
		return h, false
	}
	f, bad := parseFields(rest, &h, nil)
	if bad != pipeline.ReasonNone || f.badFraming != pipeline.ReasonNone || f.chunked && f.lengths > 0 {
		return h, false
	}
	// RFC 9112 6.3, in its order.
	switch {
	case method == "HEAD" || h.status < 200 || h.status == 204 || h.status == 304:
		h.framing = noBody
	case method == "CONNECT" && h.status < 300:
		h.framing = noBody
	case f.chunked:
		h.framing = chunked
	case f.lengths > 0:
		h.framing = noBody
		if h.length > 0 {
			h.framing = sized
		}
	default:
		h.framing = untilClose
	}
	h.upgrade = h.status == 101 || method == "CONNECT" && h.status >= 200 && h.status < 300
	h.close = f.closes(h.minor)
	return h, true
}

// fields is what the field lines say that matters for framing.
type fields struct {
	host                  string
	hosts, lengths        int
	chunked, h2c          bool
	badFraming            pipeline.Reason
	sawClose, sawKeep     bool
	connectionUpgrade, up bool
}

func (f *fields) closes(minor byte) bool { return f.sawClose || minor == 0 && !f.sawKeep }

// parseFields reads the field lines, up to and including the empty one. p is nil
// for those of a response.
func parseFields(b []byte, h *head, p *policy) (f fields, bad pipeline.Reason) {
	for n := 0; ; n++ {
		line, rest, ok := cutLine(b)
		if !ok {
			return f, reasonBadLine
		}
		b = rest
		if len(line) == 0 {
			h.upgrade = f.up && f.connectionUpgrade
			return f, pipeline.ReasonNone
		}
		name, value, ok := bytes.Cut(line, []byte{':'})
		// A space before the colon, a folded line or a name that is no token:
		// parsers differ on all of them (RFC 9112 5.1, 5.2).
		if !ok || !isToken(name) || !validValue(value) {
			return f, reasonBadField
		}
		value = bytes.Trim(value, " \t")
		if p != nil {
			if n >= p.maxFields {
				return f, reasonFields
			}
			h.fieldDenied = h.fieldDenied || len(p.fields) > 0 && p.deniesField(name, value)
		}
		switch len(name) {
		case 2:
			if equalFold(name, "te") {
				continue
			}
		case 4:
			if equalFold(name, "host") {
				f.hosts++
				f.host = string(value)
			}
		case 7:
			if equalFold(name, "upgrade") {
				f.up = true
				f.h2c = f.h2c || hasToken(value, "h2c")
			}
		case 10:
			if equalFold(name, "connection") {
				f.sawClose = f.sawClose || hasToken(value, "close")
				f.sawKeep = f.sawKeep || hasToken(value, "keep-alive")
				f.connectionUpgrade = f.connectionUpgrade || hasToken(value, "upgrade")
			} else if equalFold(name, "user-agent") {
				h.userAgent = string(value)
			}
		case 12:
			if equalFold(name, "content-type") {
				h.contentType = string(value)
			}
		case 14:
			if equalFold(name, "content-length") {
				f.lengths++
				n, ok := parseLength(value)
				switch {
				case f.lengths > 1 || bytes.IndexByte(value, ',') >= 0:
					f.badFraming = reasonLengths
				case !ok:
					f.badFraming = reasonLength
				}
				h.length = n
			}
		case 17:
			if equalFold(name, "transfer-encoding") {
				// Only "chunked", once: other codings, and orders in which it is
				// not the last, are where implementations part.
				if f.chunked || !equalFold(value, "chunked") {
					f.badFraming = reasonCoding
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

func isToken(b []byte) bool {
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
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func equalFold(b []byte, lower string) bool {
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

// hasToken looks for an element of a comma-separated list.
func hasToken(list []byte, lower string) bool {
	for len(list) > 0 {
		var elem []byte
		elem, list, _ = bytes.Cut(list, []byte{','})
		if equalFold(bytes.Trim(elem, " \t"), lower) {
			return true
		}
	}
	return false
}
