package http

import (
	"encoding/base64"
	"maps"
	"slices"
	"strconv"
	"strings"

	"penstock/internal/h2"
	"penstock/internal/http1"
	"penstock/pipeline"
)

// Of a connection in HTTP/2.
const (
	maxContinuations = 16
	maxTable         = 64 << 10 // the dynamic table of a direction
	maxKept          = 1 << 20  // of the strings of exchanges that are under way
	keptURL          = 256      // what is kept of a URL beyond
)

// http2 follows a connection in cleartext HTTP/2: by prior knowledge of the
// client, or after an upgrade.
type http2 struct {
	client, server *h2.Reader
	begun          bool // the client has sent its preface; it may come behind the server's first bytes
	greeted        bool // the server has sent its SETTINGS
	ahead          int  // of the client's bytes that are held, those that were read
	streams        map[uint32]*exchange
	last           uint32 // the highest stream that the client has opened
	kept           int    // bytes of strings of streams
	resets         int    // of streams without a response, by the client, in this second
	second         int64
}

func (s *stage) newHTTP2() *http2 {
	limits := h2.Limits{Block: int(s.cfg.MaxHead), Head: int(s.cfg.MaxHead), Continuations: maxContinuations, Table: maxTable}
	return &http2{client: h2.NewReader(h2.FromClient, limits), server: h2.NewReader(h2.FromServer, limits)}
}

// choose decides by the client's first bytes whether they are HTTP/2. It reports
// false as long as they are too few.
func (c *stream) choose(b []byte) bool {
	n := min(len(b), len(h2.Preface))
	switch {
	case string(b[:n]) != h2.Preface[:n]:
		c.chosen = true
		if c.two != nil { // the server's first bytes looked like it
			c.two = nil
			c.lose()
		}
	case n == len(h2.Preface):
		c.chosen = true
		c.beginHTTP2(nil)
	}
	return c.chosen
}

// beginHTTP2 is called when the client has begun to speak HTTP/2; e is the
// request that has asked for it, and whose response comes on stream 1.
func (c *stream) beginHTTP2(e *exchange) {
	if c.two == nil {
		c.two = c.s.newHTTP2()
	}
	t := c.two
	t.begun = true
	t.streams = map[uint32]*exchange{}
	c.s.http2.Add(1)
	if e == nil {
		return
	}
	t.client.OpenFirst()
	t.last = 1
	if b, err := base64.RawURLEncoding.DecodeString(e.settings); err == nil {
		if settings, ok := h2.ParseSettings(b); ok {
			t.server.Peer(settings)
		}
	}
	e.stream, e.status, e.requestDone = 1, 0, true
	t.streams[1] = e
}

// clientFrames reads what the client sends. Header blocks are held until their
// request is judged.
func (c *stream) clientFrames(b []byte, now int64) (pass int, v pipeline.StreamVerdict) {
	t := c.two
	for read := t.ahead; read < len(b); {
		n, event := t.client.Next(b[read:])
		read += n
		var e *exchange
		why := pipeline.ReasonNone
		switch event {
		case h2.HeadEnd:
			e, why = c.request(t.client.Head(), now)
		case h2.DataEnd:
			e, why = c.requestBody()
		case h2.Reset:
			why = c.clientReset(now)
		case h2.Settings:
			t.server.Peer(t.client.Settings())
		case h2.Failed:
			why = h2Reasons[t.client.Fault()]
		}
		if why != pipeline.ReasonNone {
			pass = max(read-t.client.Size(), 0)
			if e == nil {
				e = t.streams[t.client.Stream()]
			}
			if e == nil {
				e = &exchange{start: now, stream: t.client.Stream()}
			}
			if !byPolicy(why) {
				return c.badRequest(b, pass, e, why, now)
			}
			return c.refuse(e, pass, why, now)
		}
	}
	pass = len(b)
	if c.s.holds {
		pass = max(pass-t.client.Held(), 0)
	}
	t.ahead = len(b) - pass
	return pass, v
}

// request judges a head that the client has sent. A reason says why it is
// refused.
func (c *stream) request(h *h2.Head, now int64) (e *exchange, why pipeline.Reason) {
	t := c.two
	size := uint64(t.client.Size())
	if h.Trailers {
		if e = t.streams[h.Stream]; e != nil {
			e.requestBytes += size
			return e, c.requestEnd(e)
		}
		return nil, pipeline.ReasonNone
	}
	t.last = h.Stream
	c.seen = true
	e = &exchange{start: now, stream: h.Stream, method: h.Method, target: h.Path, host: h.Host, userAgent: h.Get("user-agent"), requestBytes: size, length: -1}
	if p := h.Get("traceparent"); len(p) == http1.TraceparentLen {
		e.traceparent = p
	}
	r, why := c.s.policy.fromHTTP2(h, &e.length)
	e.host, e.target = r.Host, r.Target
	if why != pipeline.ReasonNone {
		return e, why
	}
	c.s.requests.Add(1)
	e.grpc = strings.HasPrefix(h.Get("content-type"), "application/grpc")
	c.s.hosts.Observe(r.Host)
	if why := c.judge(&r, e); why != pipeline.ReasonNone {
		return e, why
	}
	if c.lost {
		return e, pipeline.ReasonNone // nothing will end it
	}
	if len(t.streams) >= c.s.cfg.MaxStreams {
		return e, reasonStreams
	}
	t.add(e)
	if h.EndStream {
		return e, c.requestEnd(e)
	}
	return e, pipeline.ReasonNone
}

// add keeps an exchange until it is over. What is kept of all is bounded.
func (t *http2) add(e *exchange) {
	if t.kept+e.kept() > maxKept {
		e.target, e.userAgent = strings.Clone(e.target[:min(len(e.target), keptURL)]), ""
	}
	t.kept += e.kept()
	t.streams[e.stream] = e
}

// requestBody counts a DATA frame of the client, which is of e.
func (c *stream) requestBody() (e *exchange, why pipeline.Reason) {
	t := c.two
	if e = t.streams[t.client.Stream()]; e == nil || e.requestDone {
		return nil, pipeline.ReasonNone
	}
	n, end := t.client.Data()
	e.requestBytes += uint64(t.client.Size())
	e.body += int64(n)
	switch {
	case e.length >= 0 && e.body > e.length:
		return e, reasonH2Length
	case end:
		return e, c.requestEnd(e)
	}
	return e, pipeline.ReasonNone
}

// requestEnd is called when the client has sent all of a request.
func (c *stream) requestEnd(e *exchange) pipeline.Reason {
	if e.length >= 0 && e.body != e.length {
		return reasonH2Length // RFC 9113 8.1.1: another server may read it in another way
	}
	e.requestDone = true
	if e.responseDone {
		c.settle(e)
	}
	return pipeline.ReasonNone
}

// clientReset ends a stream that the client does not want any more.
func (c *stream) clientReset(now int64) pipeline.Reason {
	t := c.two
	e := t.streams[t.client.Stream()]
	switch {
	case e == nil && !c.lost:
		return pipeline.ReasonNone // it was over
	case e != nil && e.responseDone:
		c.settle(e)
		return pipeline.ReasonNone
	case e != nil:
		e.reset, e.code, e.end = "client", t.client.ErrorCode(), now
		c.settle(e)
	}
	c.s.resets.Add(1)
	if e != nil && e.push {
		return pipeline.ReasonNone // many clients want none
	}
	if second := now / 1e9; second != t.second {
		t.second, t.resets = second, 0
	}
	if t.resets++; t.resets > c.s.cfg.MaxResets {
		return reasonResets
	}
	return pipeline.ReasonNone
}

// serverFrames reads what the server sends; it always passes.
func (c *stream) serverFrames(b []byte, now int64) {
	t := c.two
	for len(b) > 0 && !c.lost {
		n, event := t.server.Next(b)
		b = b[n:]
		e := t.streams[t.server.Stream()]
		switch event {
		case h2.HeadEnd:
			c.response(e, t.server.Head(), now)
		case h2.DataEnd:
			if e != nil && !e.responseDone {
				_, end := t.server.Data()
				e.responseBytes += uint64(t.server.Size())
				if end {
					c.responseEnd(e, now)
				}
			}
		case h2.Reset:
			if e == nil {
				continue
			}
			if !e.responseDone {
				c.s.resets.Add(1)
				e.reset, e.code, e.end = "server", t.server.ErrorCode(), now
			}
			c.settle(e)
		case h2.Settings:
			t.greeted = true
			t.client.Peer(t.server.Settings())
		case h2.Failed:
			if !t.begun {
				c.two = nil
			}
			c.lose()
		}
	}
}

// response takes a head that the server has sent, for e.
func (c *stream) response(e *exchange, h *h2.Head, now int64) {
	t := c.two
	if e == nil || e.responseDone {
		return // the client has reset the stream meanwhile
	}
	if h.Promised > 0 {
		if len(t.streams) < c.s.cfg.MaxStreams {
			host, ok := http1.NormalHost(h.Host)
			if !ok {
				host = h.Host
			}
			t.add(&exchange{start: now, stream: h.Promised, push: true, requestDone: true, method: h.Method, target: h.Path, host: host,
				userAgent: h.Get("user-agent"), requestBytes: uint64(t.server.Size()), length: -1})
		}
		return
	}
	if e.firstByte == 0 {
		e.firstByte = now
	}
	e.responseBytes += uint64(t.server.Size())
	if !h.Trailers {
		status, _ := strconv.Atoi(h.Status)
		c.s.statusClasses[min(status/100, 5)].Add(1)
		if status < 200 {
			return // interim: the final one follows
		}
		c.s.responses.Add(1)
		e.status = status
		if e.contentType = h.Get("content-type"); len(e.contentType) > keptURL {
			e.contentType = strings.Clone(e.contentType[:keptURL])
		}
	}
	if e.grpc {
		if n, err := strconv.ParseUint(h.Get("grpc-status"), 10, 16); err == nil {
			e.grpcStatus, e.grpcEnded = int(n), true
		}
	}
	if h.EndStream {
		c.responseEnd(e, now)
	}
}

func (c *stream) responseEnd(e *exchange, now int64) {
	e.responseDone, e.end = true, now
	if e.requestDone {
		c.settle(e)
	}
}

// settle records an exchange that is over.
func (c *stream) settle(e *exchange) {
	c.s.log(c, e)
	c.two.kept -= e.kept()
	delete(c.two.streams, e.stream)
}

// close records what is not over when the connection is.
func (t *http2) close(c *stream, now int64) {
	for _, id := range slices.Sorted(maps.Keys(t.streams)) {
		e := t.streams[id]
		if e.status == 0 {
			c.s.unanswered.Add(1)
		}
		if !e.responseDone {
			e.end = now
		}
		c.settle(e)
	}
}

// fromHTTP2 makes of a head what the lists judge.
func (p *policy) fromHTTP2(h *h2.Head, length *int64) (r request, why pipeline.Reason) {
	r.Head = http1.Head{Method: h.Method, Target: h.Path, Host: h.Host, UserAgent: h.Get("user-agent"), ContentType: h.Get("content-type")}
	if h.Method == "CONNECT" {
		r.Target = h.Host
	}
	if p.rules.MaxFields > 0 && len(h.Fields) > p.rules.MaxFields {
		return r, reasonFields
	}
	if h.Host != "" {
		host, ok := http1.NormalHost(h.Host)
		if !ok {
			return r, reasonBadHost
		}
		r.Host = host
	}
	p.denied, p.kept = false, p.kept[:0]
	seen := false
	for _, f := range h.Fields {
		switch f.Name {
		case "host":
			seen = true
		case "content-length":
			n, err := strconv.ParseInt(f.Value, 10, 64)
			if err != nil || len(f.Value) > 18 || f.Value[0] < '0' || f.Value[0] > '9' {
				return r, reasonLength
			}
			if *length >= 0 {
				return r, reasonLengths
			}
			*length = n
		}
		if p.rules.Field != nil {
			p.rules.Field([]byte(f.Name), []byte(f.Value))
		}
	}
	if p.rules.Field != nil && !seen && h.Host != "" {
		p.rules.Field([]byte("host"), []byte(h.Host))
	}
	r.fieldDenied, r.fields = p.denied, p.kept
	return r, pipeline.ReasonNone
}

// h2Reasons are the reasons of what cannot be read.
var h2Reasons = [...]pipeline.Reason{
	h2.FaultNone:   pipeline.ReasonNone,
	h2.NotHTTP2:    reasonPreface,
	h2.BadFrame:    reasonFrame,
	h2.BadBlock:    reasonBlock,
	h2.BadHead:     reasonH2Head,
	h2.TooLarge:    reasonHeadSize,
	h2.TooExpanded: reasonExpands,
	h2.TooManyCont: reasonContinuations,
}
