package tls

import (
	"penstock/internal/hostname"
	"penstock/internal/tlshello"
	"penstock/pipeline"
)

// stream follows one connection until its handshake is answered.
type stream struct {
	s    *stage
	conn *pipeline.Conn

	// By direction.
	reader [2]tlshello.Reader
	begun  [2]bool // the reader has a buffer
	fed    [2]int  // bytes that are held and that the reader has had
	hold   [2]bool // bytes wait until they are judged

	facts   facts    // for rules
	applied []string // rules that did

	logs   bool
	hellos int    // ClientHellos that were judged good
	name   string // of the server; "": none
	notes  notes
	retry  bool // the server wants a second ClientHello
	lost   bool // the server's side cannot be read
	done   bool // nothing more is wanted
}

var handshakeTypes = [2]byte{pipeline.ToServer: tlshello.TypeClientHello, pipeline.ToClient: tlshello.TypeServerHello}

var _ pipeline.SightLoser = (*stream)(nil)

var release = pipeline.StreamVerdict{Action: pipeline.StreamRelease}

// Data implements pipeline.Stream.
func (c *stream) Data(d pipeline.Direction, b []byte, now int64) (int, pipeline.StreamVerdict) {
	if c.done {
		return len(b), release
	}
	if d == pipeline.ToClient && c.hellos == 0 { // a server that speaks first
		c.lose()
		if c.requiresAnswer() {
			return 0, c.deny(reasonServerHello)
		}
	}
	if d == pipeline.ToClient && c.lost {
		return len(b), pipeline.StreamVerdict{}
	}
	r := &c.reader[d]
	if !c.begun[d] {
		c.begun[d] = true
		r.Reset(handshakeTypes[d], int(c.s.cfg.MaxHello), c.s.cfg.MaxRecords, c.s.buffer())
	}
	pos, safe := c.fed[d], 0
	for pos < len(b) {
		n, e := r.Next(b[pos:])
		pos += n
		v := c.event(d, r, e, now)
		switch {
		case v.Action == pipeline.StreamDeny:
			return safe, v
		case c.done:
			return len(b), release
		case c.lost && d == pipeline.ToClient:
			return len(b), pipeline.StreamVerdict{}
		case e != tlshello.More:
			safe = pos
		}
	}
	if r.Idle() || !c.hold[d] {
		safe = len(b)
	}
	c.fed[d] = len(b) - safe
	return safe, pipeline.StreamVerdict{}
}

// event is told what a reader has come to.
func (c *stream) event(d pipeline.Direction, r *tlshello.Reader, e tlshello.Event, now int64) pipeline.StreamVerdict {
	if d == pipeline.ToClient {
		return c.serverEvent(r, e)
	}
	switch e {
	case tlshello.Message:
		return c.clientHello(r.Message(), now)
	case tlshello.Failed:
		return c.bad(faultReasons[r.Fault()])
	case tlshello.Alert, tlshello.ChangeCipher, tlshello.Protected:
		// Behind the hello: early data, or a client that gives up.
		if c.hellos == 0 {
			return c.bad(reasonBadRecord)
		}
	}
	return pipeline.StreamVerdict{}
}

// clientHello judges a message of the client.
func (c *stream) clientHello(msg []byte, now int64) pipeline.StreamVerdict {
	s := c.s
	h := &s.hello
	if f := tlshello.ParseClientHello(msg, h); f != tlshello.FaultNone {
		return c.bad(faultReasons[f])
	}
	name := string(h.ServerName)
	if h.ServerName != nil {
		normal, ok := hostname.Normal(name)
		switch {
		case ok:
			name = normal
		case s.restrict:
			return c.bad(reasonBadHello)
		}
	}
	switch c.hellos {
	case 0:
		c.name = name
		s.hosts.Observe(name)
	case 1:
		if name != c.name {
			return c.bad(reasonSNIChanged)
		}
	default:
		return c.bad(reasonBadMessage)
	}
	s.hellos.Add(1)
	var ja4 []byte
	if c.hellos == 0 {
		if h.ECH || h.ESNI {
			s.ech.Add(1)
		}
		if c.logs || s.policy.asksJA4() || s.rules.Uses("tls.ja4") {
			s.ja4 = h.AppendJA4(s.ja4[:0])
			ja4 = s.ja4
		}
		if c.logs {
			c.notes.describe(h, name, ja4)
		}
	}
	if why := s.policy.judge(h, name, c.conn.Server.Addr(), ja4); why != pipeline.ReasonNone {
		return c.deny(why)
	}
	if why := c.askDNS(name, now); why != pipeline.ReasonNone {
		return c.deny(why)
	}
	if why := c.askRules(h, name); why != pipeline.ReasonNone {
		return c.deny(why)
	}
	c.hellos++
	// The server's answer is of interest for the record and its version, and
	// because a server of TLS 1.3 may ask for another hello.
	if c.lost || !c.logs && s.policy.minVersion == 0 && h.MaxVersion < tlshello.VersionTLS13 {
		c.finish()
	}
	return pipeline.StreamVerdict{}
}

func (c *stream) serverEvent(r *tlshello.Reader, e tlshello.Event) pipeline.StreamVerdict {
	s := c.s
	switch e {
	case tlshello.Message:
		h := &s.answer
		if f := tlshello.ParseServerHello(r.Message(), h); f != tlshello.FaultNone || h.Retry && c.retry {
			return c.badServer()
		}
		if h.Retry {
			s.retries.Add(1)
			c.retry = true
			c.notes.HelloRetry = true
			return pipeline.StreamVerdict{}
		}
		s.answers.Add(1)
		if c.notes.begun {
			c.notes.answer(h)
		}
		if h.Selected < s.policy.minVersion {
			return c.deny(reasonVersion)
		}
		c.finish()
	case tlshello.Alert:
		if level, description := r.Alert(); level == 2 {
			c.notes.alert = description
			c.notes.Alert = &c.notes.alert
			c.finish()
		}
	case tlshello.ChangeCipher:
		// It stands between a HelloRetryRequest and the ServerHello, for
		// middleboxes (RFC 8446 D.4).
		if !c.retry {
			return c.badServer()
		}
	case tlshello.Protected, tlshello.Failed:
		return c.badServer()
	}
	return pipeline.StreamVerdict{}
}

// badServer is the end of what can be read of a server. It only matters where
// its hello decides.
func (c *stream) badServer() pipeline.StreamVerdict {
	c.lose()
	if c.requiresAnswer() {
		return c.deny(reasonServerHello)
	}
	c.finish()
	return pipeline.StreamVerdict{}
}

// requiresAnswer reports whether nothing may pass without a ServerHello.
func (c *stream) requiresAnswer() bool { return c.s.policy.minVersion > 0 && c.s.enforce }

func (c *stream) lose() {
	if !c.lost {
		c.s.lost.Add(1)
		c.lost = true
	}
}

// bad is the end of what can be read of a client: by configuration the
// connection is denied, or let go of.
func (c *stream) bad(why pipeline.Reason) pipeline.StreamVerdict {
	if c.s.enforce {
		return c.deny(why)
	}
	c.s.released.Add(1)
	c.finish()
	return release
}

func (c *stream) deny(why pipeline.Reason) pipeline.StreamVerdict {
	c.s.denied.Add(1)
	c.notes.begun = c.logs
	c.log(why)
	c.end()
	v := pipeline.StreamVerdict{Action: pipeline.StreamDeny, Reason: why}
	if c.s.cfg.Deny == "alert" && c.conn.Depth == pipeline.DepthTerminate {
		v.Reply = alert(why)
	}
	return v
}

// finish is the end of what is wanted.
func (c *stream) finish() {
	c.log(pipeline.ReasonNone)
	c.end()
}

// end gives back what the stream needs as long as it reads.
func (c *stream) end() {
	c.done = true
	for d := range c.reader {
		c.s.keep(c.reader[d].Release())
	}
}

// End implements pipeline.Stream.
func (c *stream) End(d pipeline.Direction, _ int64) pipeline.StreamVerdict {
	if d == pipeline.ToServer && !c.done {
		if r := &c.reader[d]; r.Started() && (c.hellos == 0 || !r.Idle()) {
			return c.bad(reasonIncomplete)
		}
	}
	return pipeline.StreamVerdict{}
}

// LoseSight implements pipeline.SightLoser.
func (c *stream) LoseSight(pipeline.Reason, int64) {
	if !c.done {
		c.s.blind.Add(1)
		c.finish()
	}
}

// Close implements pipeline.Stream.
func (c *stream) Close(int64) {
	if !c.done && c.hellos > 0 {
		c.s.unanswered.Add(1)
		c.finish()
	}
	c.end()
	if s := c.s; len(s.spare) < keepStreams {
		n := c.notes
		n.reset()
		*c = stream{notes: n}
		s.spare = append(s.spare, c)
	}
}
