package llm

import (
	"bytes"
	"strings"

	"penstock/internal/http1"
	"penstock/pipeline"
)

// stream follows one connection. It passes every byte at once.
type stream struct {
	s    *stage
	conn *pipeline.Conn

	req, resp message
	pending   []*exchange // requests whose response is not complete, oldest first
	current   *exchange   // the request whose body is passing
	seen      bool        // a request has been understood
	over      bool        // nothing more is looked at
	denied    pipeline.Reason
}

// message is where one direction stands.
type message struct {
	inBody bool
	body   http1.Body
	head   []byte      // the beginning of a head that came in pieces
	reader *bodyReader // nil: nobody wants the body
}

// read begins to read the body of a message of e.
func (m *message) read(s *stage, e *exchange, encoding, contentType string, reply bool) {
	if m.reader = s.bodyReader(); m.reader == nil {
		e.unread = unreadMemory
		e.requestUnread = e.requestUnread || !reply
		s.n.unread[unreadMemory].Add(1)
		return
	}
	m.reader.begin(s, e, encoding, contentType, reply)
}

func (m *message) feed(content []byte, now int64) {
	if m.reader != nil && len(content) > 0 {
		m.reader.feed(content, now)
	}
}

// endBody is the end of the body, whole or not.
func (m *message) endBody(s *stage, whole bool, now int64) {
	m.inBody = false
	if m.reader != nil {
		m.reader.end(whole, now)
		s.putBodyReader(m.reader)
		m.reader = nil
	}
}

var _ pipeline.SightLoser = (*stream)(nil)

var release = pipeline.StreamVerdict{Action: pipeline.StreamRelease}

// Data implements pipeline.Stream.
func (c *stream) Data(d pipeline.Direction, b []byte, now int64) (int, pipeline.StreamVerdict) {
	n := len(b)
	if d == pipeline.ToServer {
		for len(b) > 0 && !c.over {
			k := c.request(b, now)
			if c.denied != pipeline.ReasonNone {
				return n - len(b), c.deny(now)
			}
			b = b[k:]
		}
	} else {
		for len(b) > 0 && !c.over {
			k := c.response(b, now)
			if c.denied != pipeline.ReasonNone {
				return n - len(b), c.deny(now)
			}
			b = b[k:]
		}
	}
	if c.over {
		return n, release
	}
	return n, pipeline.StreamVerdict{}
}

// End implements pipeline.Stream.
func (c *stream) End(d pipeline.Direction, now int64) pipeline.StreamVerdict {
	if d == pipeline.ToClient && !c.over && c.resp.inBody && c.resp.body.Framing() == http1.UntilClose {
		c.finish(now)
	}
	return pipeline.StreamVerdict{}
}

// LoseSight implements pipeline.SightLoser.
func (c *stream) LoseSight(why pipeline.Reason, now int64) {
	for _, e := range c.pending {
		e.unseen = why
	}
	c.end(now)
}

// Close implements pipeline.Stream.
func (c *stream) Close(now int64) { c.end(now) }

// end records what is not complete, and gives everything back.
func (c *stream) end(now int64) {
	c.over = true
	c.resp.endBody(c.s, false, now)
	c.req.endBody(c.s, false, now)
	for _, e := range c.pending {
		e.ended = now
		c.s.settle(c.conn, e)
	}
	c.s.used -= exchangeCost * len(c.pending)
	c.pending, c.current = nil, nil
	c.s.putHead(&c.req.head)
	c.s.putHead(&c.resp.head)
}

// giveUp is the end of what can be followed of a connection.
func (c *stream) giveUp(why unread, now int64) {
	if c.s.refuses {
		c.denied = reasonLost // what follows could be anything
		if c.req.inBody {
			c.current.denied = reasonLost
		}
	}
	if c.seen || why != unreadHTTP {
		c.s.n.unread[why].Add(1)
	} else {
		c.s.n.released.Add(1)
	}
	for _, e := range c.pending {
		if e.unread == readAll {
			e.unread = why
		}
	}
	c.end(now)
}

// request reads the beginning of b, which is not empty, and returns how much.
func (c *stream) request(b []byte, now int64) (n int) {
	m := &c.req
	if m.inBody {
		e := c.current
		content, n, done, ok := m.body.Next(b)
		e.requestBytes += uint64(n)
		m.feed(content, now)
		if !ok {
			c.giveUp(unreadHTTP, now)
			return n
		}
		whole := m.reader != nil && m.reader.whole()
		if done {
			m.endBody(c.s, true, now)
			e.asked = now
		}
		if done || whole || e.requestUnread {
			c.judge(e)
		}
		return n
	}
	if c.current != nil && c.current.upgrade {
		c.giveUp(unreadHTTP, now) // whose bytes these are depends on an answer that has not come
		return len(b)
	}
	if len(m.head) == 0 {
		if len(b) >= 2 && b[0] == '\r' && b[1] == '\n' { // RFC 9112 2.2
			return 2
		}
		if !c.seen && !http1.PlausibleStart(b) {
			c.giveUp(unreadHTTP, now)
			return len(b)
		}
	}
	head, n := c.takeHead(m, b, now)
	if head == nil {
		return n
	}
	s := c.s
	s.credential = s.credential[:0]
	s.encoding = ""
	h, bad := http1.ParseRequest(head, &s.requestRules)
	size := len(head)
	s.putHead(&m.head)
	if bad != http1.FaultNone {
		c.giveUp(unreadHTTP, now)
		return n
	}
	c.seen = true
	e := &exchange{started: now, upgrade: h.Upgrade, method: h.Method, requestBytes: uint64(size)}
	if h.Method == "POST" {
		e.dialect = spokenAt(s.endpoints, h.Target)
	}
	if e.dialect != noDialect {
		e.host, e.path = h.Host, strings.Clone(pathOf(h.Target))
		e.identity = s.identify()
	} else {
		s.n.other.Add(1)
	}
	switch {
	case len(c.pending) == maxPipelined:
		c.giveUp(unreadPipelined, now)
		return n
	case s.used+exchangeCost > int(s.cfg.Memory):
		c.giveUp(unreadMemory, now)
		return n
	}
	s.used += exchangeCost
	c.pending = append(c.pending, e)
	c.current = e
	m.body.Begin(&h)
	m.inBody = h.Framing != http1.NoBody
	switch {
	case !m.inBody:
		e.asked = now
		c.judge(e)
	case e.dialect != noDialect:
		m.read(s, e, s.encoding, "", false)
	}
	return n
}

// response reads the beginning of b, which is not empty, and returns how much.
func (c *stream) response(b []byte, now int64) (n int) {
	if len(c.pending) == 0 {
		c.giveUp(unreadHTTP, now) // a response that nobody asked for
		return len(b)
	}
	e := c.pending[0]
	m := &c.resp
	if e.firstByte == 0 {
		e.firstByte = now
	}
	if m.inBody {
		content, n, done, ok := m.body.Next(b)
		e.responseBytes += uint64(n)
		m.feed(content, now)
		if !ok {
			c.giveUp(unreadHTTP, now)
		} else if done {
			c.finish(now)
		}
		return n
	}
	head, n := c.takeHead(m, b, now)
	if head == nil {
		return n
	}
	s := c.s
	s.encoding = ""
	h, bad := http1.ParseResponse(head, e.method, &s.responseRules)
	e.responseBytes += uint64(len(head))
	s.putHead(&m.head)
	if bad != http1.FaultNone {
		c.giveUp(unreadHTTP, now)
		return n
	}
	if h.Status < 200 && h.Status != 101 {
		return n // interim: the final one follows
	}
	e.status = h.Status
	if h.Upgrade {
		e.whole = true
		c.s.n.switched.Add(1)
		c.end(now)
		return n
	}
	e.upgrade = false
	m.body.Begin(&h)
	m.inBody = h.Framing != http1.NoBody
	if m.inBody && e.dialect != noDialect {
		m.read(s, e, s.encoding, h.ContentType, true)
	}
	if !m.inBody {
		c.finish(now)
	}
	return n
}

// takeHead returns the head that b, or what is kept and b, begin with, and how
// much of b belongs to it; nil if it is not complete.
func (c *stream) takeHead(m *message, b []byte, now int64) (head []byte, n int) {
	limit := int(c.s.cfg.MaxHead)
	if len(m.head) == 0 {
		if end := http1.HeadEnd(b); end > 0 && end <= limit {
			return b[:end], end
		}
	}
	kept := len(m.head)
	// The end may lie across the seam, up to three bytes before it.
	from := max(kept-3, 0)
	part := b[:min(len(b), max(limit-kept, 0))]
	if !c.s.growHead(&m.head, len(part)) {
		c.giveUp(unreadMemory, now)
		return nil, len(b)
	}
	m.head = append(m.head, part...)
	if m == &c.req {
		if bytes.HasPrefix(m.head, []byte("\r\n")) { // RFC 9112 2.2, in two pieces
			c.s.putHead(&m.head)
			return nil, 2 - kept
		}
		if !c.seen && !http1.PlausibleStart(m.head) {
			c.giveUp(unreadHTTP, now)
			return nil, len(b)
		}
	}
	if i := bytes.Index(m.head[from:], []byte("\r\n\r\n")); i >= 0 {
		end := from + i + 4
		return m.head[:end], end - kept
	}
	if len(m.head) >= limit {
		c.giveUp(unreadHTTP, now)
	}
	return nil, len(b)
}

// finish ends the oldest exchange: its response is complete.
func (c *stream) finish(now int64) {
	e := c.pending[0]
	c.resp.endBody(c.s, true, now)
	e.whole, e.ended = true, now
	c.s.settle(c.conn, e)
	c.s.used -= exchangeCost
	c.pending[0] = nil
	c.pending = c.pending[1:]
	if len(c.pending) == 0 {
		c.pending = nil
	}
}
