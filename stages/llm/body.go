package llm

import (
	"errors"
	"io"

	"penstock/internal/http1"
)

// format is what a body is made of.
type format uint8

const (
	formatNone  format = iota // not read
	formatJSON                // one JSON text
	formatSSE                 // server-sent events with JSON in them
	formatLines               // one JSON text a line
)

// bodyReader reads one body at a time, content as it stands on the wire, into an
// exchange.
type bodyReader struct {
	s       *stage
	e       *exchange
	now     int64
	format  format
	scan    scanner
	sse     sseReader
	inflate *inflater
	size    uint64 // bytes of the text or the event that is read
	head    [6]byte
	headLen int
	skip    bool // the rest of the event is of no interest
	reply   bool // it is a response
}

var _ events = (*bodyReader)(nil)

// begin makes r ready for a body. encoding and contentType are the head's.
func (r *bodyReader) begin(s *stage, e *exchange, encoding, contentType string, reply bool) {
	r.s, r.e, r.reply = s, e, reply
	r.size, r.headLen, r.skip = 0, 0, false
	r.format = formatJSON
	if reply {
		r.format = formatOf(contentType)
		e.streamed = r.format == formatSSE || r.format == formatLines
	}
	if r.format == formatNone {
		r.fail(unreadType)
	}
	r.sse = sseReader{}
	r.scan.begin(r.tree(), e)
	switch encoding {
	case "", "identity":
	case "gzip", "x-gzip", "deflate":
		if r.format == formatNone {
			return
		}
		if r.inflate = s.inflater(); r.inflate == nil {
			r.fail(unreadMemory)
			return
		}
		r.inflate.open(encoding == "deflate", int64(s.cfg.MaxInflated))
	default:
		r.fail(unreadEncoding)
	}
}

func (r *bodyReader) tree() *tree {
	if r.reply {
		return responseTree
	}
	return requestTree
}

// formatOf reads a Content-Type.
func formatOf(contentType string) format {
	media := make([]byte, 0, 64)
	for i := 0; i < len(contentType) && len(media) < cap(media) && contentType[i] != ';'; i++ {
		if c := contentType[i]; c != ' ' && c != '\t' {
			media = append(media, c)
		}
	}
	switch {
	case http1.EqualFold(media, "text/event-stream"):
		return formatSSE
	case http1.EqualFold(media, "application/x-ndjson"), http1.EqualFold(media, "application/jsonl"), http1.EqualFold(media, "application/ndjson"):
		return formatLines
	case http1.EqualFold(media, "application/json"), len(media) > 5 && http1.EqualFold(media[len(media)-5:], "+json"):
		return formatJSON
	}
	return formatNone
}

// feed reads content.
func (r *bodyReader) feed(p []byte, now int64) {
	if r.format == formatNone {
		return
	}
	r.now = now
	if r.inflate == nil {
		r.text(p)
	} else {
		r.inflated(r.inflate.feed(p, r.text))
	}
	if r.format == formatNone {
		r.release()
	}
}

// inflated judges how decompressing went.
func (r *bodyReader) inflated(err error) {
	switch {
	case err == nil || errors.Is(err, io.EOF) || r.format == formatNone:
	case errors.Is(err, errInflated):
		r.fail(unreadInflated)
	default:
		r.fail(unreadCompressed)
	}
}

// text reads content that is not compressed, and reports whether it wants more.
func (r *bodyReader) text(p []byte) bool {
	switch r.format {
	case formatSSE:
		r.sse.feed(p, r)
	case formatLines:
		r.lines(p)
	case formatJSON:
		r.json(p)
		if r.scan.state == failed {
			r.fail(unreadJSON)
		}
	}
	return r.format != formatNone
}

// json reads a part of one text.
func (r *bodyReader) json(p []byte) {
	if r.size += uint64(len(p)); r.size > uint64(r.s.cfg.MaxBody) {
		r.scan.state = failed
		r.e.unread = unreadSize
		return
	}
	for len(p) > 0 && r.scan.state != failed {
		p = p[r.scan.feed(p):]
		if r.scan.state == done && len(p) > 0 { // only white space may follow
			if c := p[0]; c != ' ' && c != '\t' && c != '\r' && c != '\n' {
				r.scan.state = failed
			}
			p = p[1:]
		}
	}
}

// lines reads texts that are on a line each.
func (r *bodyReader) lines(p []byte) {
	for len(p) > 0 {
		n := either(p, '\n', '\n')
		r.json(p[:n])
		if n < len(p) {
			r.endLine()
			n++
		}
		p = p[n:]
	}
}

func (r *bodyReader) endLine() {
	if r.size > 0 && !(r.scan.state == wantValue && r.scan.depth == 0) { // not an empty line
		r.endText()
	}
	r.scan.begin(responseTree, r.e)
	r.size = 0
}

func (r *bodyReader) endText() {
	if !r.scan.end() {
		r.e.broken++
		r.s.n.broken.Add(1)
	}
	r.e.endEvent(r.now)
}

// payload implements events.
func (r *bodyReader) payload(name, data []byte) {
	e := r.e
	if r.size == 0 {
		r.scan.begin(responseTree, e)
		r.headLen = 0
		switch byName(e.dialect, name) {
		case contentEvent:
			e.content, r.skip = true, true
		case emptyEvent:
			r.skip = true
		}
	}
	if r.skip {
		r.size += uint64(len(data))
		return
	}
	if r.headLen < len(r.head) {
		r.headLen += copy(r.head[r.headLen:], data)
	}
	r.json(data)
}

// dispatch implements events.
func (r *bodyReader) dispatch(name []byte) {
	e := r.e
	switch {
	case r.skip:
		e.endEvent(r.now)
	case r.size == uint64(len(r.head)) && string(r.head[:]) == "[DONE]":
		e.terminal = true
	default:
		if string(name) == "error" {
			e.kind = errorEvent
		}
		r.endText()
	}
	r.size, r.skip = 0, false
}

// end is the end of the body, whole or not.
func (r *bodyReader) end(whole bool, now int64) {
	if r.format == formatNone {
		r.release()
		return
	}
	r.now = now
	if r.inflate != nil && whole {
		r.inflate.over = true
		r.inflated(r.inflate.feed(nil, r.text))
	}
	switch {
	case !whole:
	case r.format == formatSSE:
		r.sse.end(r)
	case r.format == formatLines:
		r.endLine()
	case r.format == formatJSON:
		if !r.scan.end() {
			r.fail(unreadJSON)
		}
	}
	r.format = formatNone
	r.release()
}

// whole reports whether one JSON text is complete: a server may act on it before
// the body has ended.
func (r *bodyReader) whole() bool { return r.format == formatJSON && r.scan.state == done }

// fail gives up on the body; release is due.
func (r *bodyReader) fail(why unread) {
	if r.e.unread == readAll {
		r.e.unread = why
	}
	r.e.requestUnread = r.e.requestUnread || !r.reply
	r.s.n.unread[r.e.unread].Add(1)
	r.format = formatNone
}

func (r *bodyReader) release() {
	if r.inflate != nil {
		r.s.putInflater(r.inflate)
		r.inflate = nil
	}
	r.e = nil
}
