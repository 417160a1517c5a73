// Package http is the stream stage for HTTP/1.x and cleartext HTTP/2: it follows
// requests and responses on connections that carry many of them, refuses some, and
// records them. Bodies are skipped, never kept.
//
// Its one trap: a request is judged by its head alone, so bytes pass on as soon
// as the head has. Everything that two parsers could read differently must be
// refused before, in the packages http1 and h2.
package http

import (
	"bytes"
	_ "embed"
	"hash/maphash"

	"penstock/internal/http1"
	rules "penstock/internal/policy"
	"penstock/internal/record"
	"penstock/pipeline"
)

//go:embed README.md
var readme string

// Descriptor describes the stage to the registry.
func Descriptor() pipeline.Descriptor[Config] {
	return pipeline.Descriptor[Config]{
		Kind:      "http",
		Summary:   "follows requests of HTTP/1.x and cleartext HTTP/2, refuses and records them",
		README:    readme,
		Reasons:   reasons(),
		Default:   defaults,
		Validate:  validate,
		Needs:     func(c Config) (pipeline.Need, string) { return c.needs() },
		Describe:  func(c Config) []string { return rules.Describe(ruleVars(&c), c.Rules, c.sets) },
		Holds:     func(Config) string { return "" },
		Releases:  func(Config) string { return "when a connection is no HTTP or becomes another protocol, else never" },
		NewStream: func(c Config, env *pipeline.Env) (pipeline.StreamStage, error) { return newStage(c, env) },
	}
}

type stage struct {
	cfg           Config
	env           *pipeline.Env
	enforce       bool
	holds         bool // bytes of a request wait until it is judged
	policy        *policy
	rules         *rules.Judge[facts] // nil: none
	logs          bool
	request       request // the one that is being judged
	facts         facts   // of it, for rules
	event         event   // the one that is being recorded
	brief         record.Brief
	places        []place // of beginnings of records
	seed          maphash.Seed
	spare         []*exchange // for the next requests
	requests      *pipeline.Counter
	responses     *pipeline.Counter
	denied        *pipeline.Counter
	released      *pipeline.Counter
	responseLost  *pipeline.Counter
	switched      *pipeline.Counter
	unanswered    *pipeline.Counter
	http2         *pipeline.Counter
	resets        *pipeline.Counter
	statusClasses [6]*pipeline.Counter
	hosts         *pipeline.Top
}

func newStage(c Config, env *pipeline.Env) (*stage, error) {
	s := &stage{cfg: c, env: env, enforce: c.enforces(), policy: newPolicy(&c), logs: c.Log}
	var err error
	if s.rules, err = rules.Load(env, ruleVars(&c), c.Rules, c.sets); err != nil {
		return nil, err
	}
	if s.rules.Uses("http.headers") {
		s.policy.keepFields()
	}
	ctr := env.Counters.Counter
	need, _ := c.needs()
	s.holds = need != pipeline.NeedObserve
	s.requests = ctr("requests", "request heads that were understood")
	s.hosts = env.Counters.Top("hosts", "hosts of requests")
	s.responses = ctr("responses", "final response heads that were understood")
	s.denied = ctr("denied", "requests that were refused")
	s.released = ctr("released", "connections let go of because they are no HTTP or are malformed")
	s.responseLost = ctr("response_lost", "connections whose responses could not be followed; requests still are")
	s.switched = ctr("switched", "connections that went on with another protocol (CONNECT, Upgrade)")
	s.unanswered = ctr("unanswered", "requests without a response when the connection ended")
	s.http2 = ctr("http2_connections", "connections in HTTP/2")
	s.resets = ctr("http2_resets", "streams of HTTP/2 that an end has reset before their response was complete")
	for i, name := range []string{1: "status_1xx", 2: "status_2xx", 3: "status_3xx", 4: "status_4xx", 5: "status_5xx"} {
		if name != "" {
			s.statusClasses[i] = ctr(name, "responses with such a status")
		}
	}
	return s, nil
}

// Open implements pipeline.StreamStage.
func (s *stage) Open(c *pipeline.Conn) pipeline.Stream { return &stream{s: s, conn: c} }

// stream follows one connection.
type stream struct {
	s    *stage
	conn *pipeline.Conn

	req     message
	resp    message
	pending []*exchange    // requests without a final response, oldest first
	current *exchange      // the request whose body is passing
	seen    bool           // a request has been understood
	waiting bool           // for the response to CONNECT or Upgrade
	lost    bool           // responses cannot be followed any more
	raw     bool           // another protocol, or let go of
	chosen  bool           // the client's first bytes have told which HTTP it is
	two     *http2         // HTTP/2; nil: HTTP/1.x
	ends    record.Members // what records say of the connection; empty: not needed yet
	begun   *beginning     // of its last record; nil: none
}

// message is where one direction stands.
type message struct {
	inBody bool
	body   http1.Body
}

// Data implements pipeline.Stream.
func (c *stream) Data(d pipeline.Direction, b []byte, now int64) (int, pipeline.StreamVerdict) {
	if c.raw {
		return len(b), pipeline.StreamVerdict{Action: pipeline.StreamRelease}
	}
	if d == pipeline.ToServer {
		switch {
		case c.s.cfg.HTTP2 && !c.chosen && !c.choose(b):
			return 0, pipeline.StreamVerdict{}
		case c.two != nil:
			return c.clientFrames(b, now)
		}
		return c.requestData(b, now)
	}
	pass := c.responseData(b, now)
	if c.raw {
		return pass, pipeline.StreamVerdict{Action: pipeline.StreamRelease}
	}
	return pass, pipeline.StreamVerdict{}
}

// End implements pipeline.Stream.
func (c *stream) End(d pipeline.Direction, now int64) pipeline.StreamVerdict {
	if d == pipeline.ToClient && !c.lost && len(c.pending) > 0 && c.resp.inBody && c.resp.body.Framing() == http1.UntilClose {
		c.finish(now)
	}
	return pipeline.StreamVerdict{}
}

// LoseSight implements pipeline.SightLoser.
func (c *stream) LoseSight(why pipeline.Reason, _ int64) {
	for _, e := range c.pending {
		e.lost = why
	}
	if c.two != nil {
		for _, e := range c.two.streams {
			e.lost = why
		}
	}
}

// Close implements pipeline.Stream.
func (c *stream) Close(now int64) {
	for _, e := range c.pending {
		if e.status == 0 {
			c.s.unanswered.Add(1)
		}
		e.end = now
		c.s.log(c, e)
		c.s.putExchange(e)
	}
	c.pending, c.current = nil, nil
	if c.two != nil {
		c.two.close(c, now)
	}
}

func (c *stream) requestData(b []byte, now int64) (pass int, v pipeline.StreamVerdict) {
	for pass < len(b) {
		rest := b[pass:]
		if c.waiting {
			return pass, v // what follows belongs to whichever protocol the server chooses
		}
		if c.req.inBody {
			n, done, ok := c.req.body.Skip(rest)
			pass += n
			c.current.requestBytes += uint64(n)
			if !ok {
				// These bytes have not passed yet: the chunk that cannot be
				// read must not reach the server.
				return c.bad(b, pass-n, reasonChunk, now)
			}
			if done {
				c.req.inBody = false
				c.waiting = c.current.upgrade
			}
			continue
		}
		if !c.seen && !http1.PlausibleStart(rest) {
			return c.bad(b, pass, reasonNotHTTP, now)
		}
		// RFC 9112 2.2: an empty line before a request is ignored.
		if len(rest) >= 2 && rest[0] == '\r' && rest[1] == '\n' {
			pass += 2
			continue
		}
		// A head whose lines end with a bare LF would never be complete.
		if i := bytes.IndexByte(rest, '\n'); i == 0 || i > 0 && rest[i-1] != '\r' {
			return c.bad(b, pass, reasonBadLine, now)
		}
		end := http1.HeadEnd(rest)
		if end == 0 || end > int(c.s.cfg.MaxHead) {
			if end > 0 || len(rest) > int(c.s.cfg.MaxHead) {
				return c.bad(b, pass, reasonHeadSize, now)
			}
			return pass, v
		}
		if len(c.pending) >= c.s.cfg.MaxPipelined {
			if !c.lost {
				return c.bad(b, pass, reasonPipelined, now)
			}
			c.pending = c.pending[:0] // nothing will ever answer them
		}
		h := &c.s.request
		why := c.s.policy.parse(rest[:end], h)
		if why != pipeline.ReasonNone {
			return c.badRequest(b, pass, &exchange{start: now, method: h.Method, target: h.Target, host: h.Host, minor: h.Minor, userAgent: h.UserAgent, traceparent: h.Traceparent}, why, now)
		}
		c.seen = true
		c.s.requests.Add(1)
		c.s.hosts.Observe(h.Host)
		e := c.s.newExchange()
		e.start, e.minor, e.upgrade, e.requestBytes, e.length = now, h.Minor, h.Upgrade, uint64(end), -1
		e.method, e.target, e.host, e.userAgent, e.traceparent = h.Method, h.Target, h.Host, h.UserAgent, h.Traceparent
		if e.h2c = h.Upgrade && h.H2C && c.s.cfg.HTTP2; e.h2c {
			e.settings = h.HTTP2Settings
		}
		if why := c.judge(h, e); why != pipeline.ReasonNone {
			if !byPolicy(why) && !c.s.enforce {
				return c.badRequest(b, pass, e, why, now)
			}
			return c.refuse(e, pass, why, now)
		}
		c.current = e
		if !c.lost {
			c.pending = append(c.pending, e)
		}
		pass += end
		c.req.body.Begin(&h.Head)
		c.req.inBody = h.Framing != http1.NoBody
		c.waiting = h.Upgrade && !c.req.inBody
	}
	return pass, v
}

// bad is the end of what can be followed: by configuration the connection is
// denied, or let go of.
func (c *stream) bad(b []byte, pass int, why pipeline.Reason, now int64) (int, pipeline.StreamVerdict) {
	return c.badRequest(b, pass, &exchange{start: now}, why, now)
}

// badRequest is bad for a request of which something is known.
func (c *stream) badRequest(b []byte, pass int, e *exchange, why pipeline.Reason, now int64) (int, pipeline.StreamVerdict) {
	if !c.s.enforce {
		c.s.released.Add(1)
		c.raw = true
		return len(b), pipeline.StreamVerdict{Action: pipeline.StreamRelease}
	}
	return c.refuse(e, pass, why, now)
}

// refuse denies e and with it the connection: requests behind it could not be
// told apart from its body.
func (c *stream) refuse(e *exchange, pass int, why pipeline.Reason, now int64) (int, pipeline.StreamVerdict) {
	c.s.denied.Add(1)
	e.denied, e.end = why, now
	v := pipeline.StreamVerdict{Action: pipeline.StreamDeny, Reason: why}
	if c.conn.Depth == pipeline.DepthTerminate && c.s.cfg.Deny != "reset" {
		switch {
		case c.two != nil:
			v.Reply = c.denialHTTP2(e, why)
		case len(c.pending) == 0 && why != reasonNotHTTP: // in the middle of earlier responses it would be taken for theirs
			v.Reply, e.status = denial(why)
		}
	}
	if c.two != nil {
		delete(c.two.streams, e.stream)
	}
	c.pending = append(c.pending, e)
	return pass, v
}

func (c *stream) responseData(b []byte, now int64) (pass int) {
	for pass < len(b) && !c.lost && !c.raw {
		rest := b[pass:]
		// A server may send its SETTINGS before it has read anything; their
		// first byte is no letter.
		if c.two == nil && !c.chosen && c.s.cfg.HTTP2 && rest[0] == 0 {
			c.two = c.s.newHTTP2()
		}
		if c.two != nil {
			c.serverFrames(rest, now)
			break
		}
		if len(c.pending) == 0 {
			c.lose() // a response that nobody asked for
			break
		}
		e := c.pending[0]
		if e.firstByte == 0 {
			e.firstByte = now
		}
		if c.resp.inBody {
			n, done, ok := c.resp.body.Skip(rest)
			pass += n
			e.responseBytes += uint64(n)
			if !ok {
				c.lose()
			} else if done {
				c.finish(now)
			}
			continue
		}
		end := http1.HeadEnd(rest)
		if end == 0 {
			if len(rest) > int(c.s.cfg.MaxHead) {
				c.lose()
				break
			}
			return pass // the rest of the head is to come; it is short
		}
		h, bad := http1.ParseResponse(rest[:end], e.method, &c.s.policy.responses)
		if bad != http1.FaultNone {
			c.lose()
			break
		}
		pass += end
		e.responseBytes += uint64(end)
		c.s.statusClasses[min(h.Status/100, 5)].Add(1)
		if h.Status < 200 && h.Status != 101 {
			continue // interim: the final one follows
		}
		if e.h2c && h.Upgrade && h.H2C {
			c.waiting, c.pending = false, nil
			c.beginHTTP2(e)
			continue
		}
		c.s.responses.Add(1)
		e.status, e.contentType = h.Status, h.ContentType
		if e.upgrade {
			c.waiting = false
			if h.Upgrade {
				c.s.switched.Add(1)
				c.finish(now)
				c.raw = true
				break
			}
		}
		c.resp.body.Begin(&h)
		c.resp.inBody = h.Framing != http1.NoBody
		if !c.resp.inBody {
			c.finish(now)
		}
	}
	return len(b)
}

// finish ends the oldest exchange.
func (c *stream) finish(now int64) {
	e := c.pending[0]
	e.end = now
	c.s.log(c, e)
	n := copy(c.pending, c.pending[1:])
	c.pending[n] = nil
	c.pending = c.pending[:n]
	c.resp.inBody = false
	if c.current == e {
		if c.req.inBody {
			return // the rest of the request is counted in it
		}
		c.current = nil
	}
	c.s.putExchange(e)
}

// spareExchanges bounds how many are kept.
const spareExchanges = 1024

func (s *stage) newExchange() *exchange {
	n := len(s.spare)
	if n == 0 {
		return &exchange{}
	}
	e := s.spare[n-1]
	s.spare = s.spare[:n-1]
	return e
}

// putExchange takes back an exchange that nothing points to any more.
func (s *stage) putExchange(e *exchange) {
	if len(s.spare) < spareExchanges {
		*e = exchange{}
		s.spare = append(s.spare, e)
	}
}

// lose gives up on the responses: requests are judged as before, and recorded
// without what came back.
func (c *stream) lose() {
	c.s.responseLost.Add(1)
	c.lost = true
	c.waiting = false
}
