package llm

// events takes the server-sent events that a sseReader reads.
type events interface {
	// payload is shown the data of an event in pieces, in order; name is its
	// "event" field as far as it is known by then. Several data fields have a
	// line feed between them.
	payload(name, data []byte)
	// dispatch says that an event is complete.
	dispatch(name []byte)
}

const maxName = 64 // bytes of an event's name that are kept

// sseReader reads server-sent events (WHATWG HTML 9.2.6) that come in pieces,
// and keeps nothing of them but the name of the event it is in.
type sseReader struct {
	state   sseState
	lf      bool // the line before ended with CR: a LF is part of that
	data    bool // the event has data
	n       int
	field   [8]byte // name of the field, as far as it can matter
	line    sseField
	nameLen int
	name    [maxName]byte
	started bool // something other than a byte order mark was read
}

type sseState uint8

const (
	sseName  sseState = iota // in a field's name, or at the start of a line
	sseSpace                 // behind the colon
	sseValue
)

type sseField uint8

const (
	sseOther sseField = iota
	sseData
	sseEvent
)

const bom = "\xef\xbb\xbf"

// feed reads p.
func (r *sseReader) feed(p []byte, to events) {
	for len(p) > 0 {
		if r.lf {
			r.lf = false
			if p[0] == '\n' {
				p = p[1:]
				continue
			}
		}
		switch r.state {
		case sseName:
			c := p[0]
			p = p[1:]
			switch c {
			case ':':
				r.startValue(to)
			case '\r', '\n':
				if r.n == 0 {
					r.dispatch(to)
				} else { // a field without a value
					r.startValue(to)
					r.endLine()
				}
				r.lf = c == '\r'
			default:
				if r.n < len(r.field) {
					r.field[r.n] = c
				}
				r.n = min(r.n+1, len(r.field)+1)
				if !r.started && r.n == len(bom) {
					r.started = true
					if string(r.field[:r.n]) == bom {
						r.n = 0
					}
				}
			}
		case sseSpace:
			r.state = sseValue
			if p[0] == ' ' {
				p = p[1:]
			}
		default:
			n := either(p, '\r', '\n')
			r.value(p[:n], to)
			if n < len(p) {
				r.lf = p[n] == '\r'
				r.endLine()
				n++
			}
			p = p[n:]
		}
	}
}

// startValue is called at the colon: the field's name is complete.
func (r *sseReader) startValue(to events) {
	r.started = true
	r.state, r.line = sseSpace, sseOther
	switch {
	case r.n == 4 && string(r.field[:4]) == "data":
		r.line = sseData
		if r.data {
			to.payload(r.name[:r.nameLen], newline)
		}
		r.data = true
	case r.n == 5 && string(r.field[:5]) == "event":
		r.line = sseEvent
		r.nameLen = 0
	}
	r.n = 0
}

var newline = []byte{'\n'}

func (r *sseReader) value(p []byte, to events) {
	switch {
	case len(p) == 0:
	case r.line == sseData:
		to.payload(r.name[:r.nameLen], p)
	case r.line == sseEvent:
		r.nameLen += copy(r.name[r.nameLen:], p)
	}
}

func (r *sseReader) endLine() { r.state = sseName }

// dispatch ends an event. One without data is none.
func (r *sseReader) dispatch(to events) {
	r.started = true
	if r.data {
		to.dispatch(r.name[:r.nameLen])
	}
	r.data, r.nameLen = false, 0
}

// end is the end of the stream: an event that is not complete is dispatched all
// the same, as some servers leave the last empty line out.
func (r *sseReader) end(to events) {
	if r.data {
		r.dispatch(to)
	}
}
