package http

import (
	"fmt"
	"hash/maphash"
	"strings"

	"penstock/internal/record"
	"penstock/pipeline"
)

// exchange is a request and what came back.
type exchange struct {
	method, target, host   string
	userAgent, contentType string
	traceparent            string
	minor                  byte
	upgrade                bool
	status                 int
	start, firstByte, end  int64 // ns; head complete, first byte of the response, last one
	requestBytes           uint64
	responseBytes          uint64
	denied                 pipeline.Reason
	rules                  []string        // that applied
	lost                   pipeline.Reason // why the rest could not be seen

	h2c      bool   // it asks for an upgrade to HTTP/2
	settings string // and says this about it

	// In HTTP/2.
	stream                    uint32 // 0: HTTP/1.x
	requestDone, responseDone bool
	push                      bool  // promised by the server
	length, body              int64 // of the request's body: as it is said, or -1, and as it came
	reset                     string
	code                      uint32 // of the reset
	grpc, grpcEnded           bool
	grpcStatus                int
}

// kept returns the bytes of its strings.
func (e *exchange) kept() int {
	return len(e.method) + len(e.target) + len(e.host) + len(e.userAgent) + len(e.traceparent)
}

// event is a record "http": an exchange that is over, and its connection. Names
// are those of Suricata's EVE where it has the field.
type event struct {
	stream *stream
	*exchange
}

var (
	_ record.Appender   = (*event)(nil)
	_ record.Timed      = (*event)(nil)
	_ pipeline.Borrowed = (*event)(nil)
)

// log records an exchange that is over. Most are like others, but for their figures.
func (s *stage) log(st *stream, e *exchange) {
	if !s.logs || !s.env.Recorder.Enabled("http") {
		return
	}
	if len(st.ends) == 0 {
		st.writeEnds()
	}
	if b := st.beginning(e); b != nil {
		s.brief = record.Brief{Form: form, Before: [2]*record.Members{&st.ends, &b.text}, When: e.end, Figures: st.figures(e)}
		s.env.Recorder.Record("http", &s.brief)
		return
	}
	s.event = event{st, e}
	s.env.Recorder.Record("http", &s.event)
	s.event = event{}
}

// At implements record.Timed.
func (ev *event) At() int64 { return ev.end }

// Keep implements pipeline.Borrowed: the stage has one event, which it fills again
// and again.
func (ev *event) Keep() any { return record.Keep(ev) }

// AppendMembers implements record.Appender.
func (ev *event) AppendMembers(m *record.Members) {
	e := ev.exchange
	m.Written(ev.stream.ends)
	e.appendBeginning(m)
	f := ev.stream.figures(e)
	m.Uint("request_bytes", uint64(f[0])) // head and body
	m.Uint("length", uint64(f[1]))        // likewise
	if f[2] != 0 {
		m.Seconds("time_to_first_byte_seconds", f[2])
	}
	m.Seconds("duration_seconds", f[3]) // from the request's head to the end of the response
	m.Seconds("connection_age_seconds", f[4])
	if e.stream > 0 {
		m.Open("http2")
		m.Uint("stream_id", uint64(e.stream))
		if e.push {
			m.Bool("push", true) // the server sends it unasked
		}
		if e.reset != "" {
			m.String("reset", e.reset) // "client" or "server": who has ended it before its end
			m.String("error_code", errorName(e.code))
		}
		m.Close()
	}
	if e.grpc {
		// "/package.Service/Method"
		path := strings.TrimPrefix(e.target, "/")
		i := strings.LastIndexByte(path, '/')
		m.Open("grpc")
		m.String("service", path[:max(i, 0)])
		m.String("method", path[i+1:])
		if e.grpcEnded { // absent: it has not ended
			m.Int("status", int64(e.grpcStatus))
		}
		m.Close()
	}
	m.Close()
}

// writeEnds writes what is the same for all requests of a connection.
func (st *stream) writeEnds() {
	st.ends = make(record.Members, 0, 192)
	c, m := st.conn, &st.ends
	m.Uint("flow_id", c.ID)
	m.Addr("src_ip", c.Client.Addr())
	m.Uint("src_port", uint64(c.Client.Port()))
	m.Addr("dest_ip", c.Server.Addr())
	m.Uint("dest_port", uint64(c.Server.Port()))
	m.String("proto", "TCP")
	m.String("chain", st.s.env.Chain)
}

// form is that of the events that are like others.
var form = record.NewForm("http", 1, "request_bytes", "length", "time_to_first_byte_seconds:seconds?", "duration_seconds:seconds", "connection_age_seconds:seconds")

// figures returns what differs from one exchange to the next, as in form.
func (st *stream) figures(e *exchange) (f [5]int64) {
	f = [5]int64{int64(e.requestBytes), int64(e.responseBytes), 0, e.end - e.start, e.start - st.conn.Start}
	if e.firstByte > 0 {
		f[2] = e.firstByte - e.start
	}
	return f
}

// appendBeginning writes what comes before the figures; "http" is left open.
func (e *exchange) appendBeginning(m *record.Members) {
	if e.denied != pipeline.ReasonNone {
		m.String("action", "denied")
		m.String("reason", e.denied.String())
	} else {
		m.String("action", "allowed")
	}
	if len(e.rules) > 0 {
		m.Strings("rules", e.rules) // that applied
	}
	if e.lost != pipeline.ReasonNone {
		m.String("unseen", e.lost.String()) // why the record ends before the exchange does
	}
	m.Open("http")
	m.Some("hostname", e.host)
	m.Some("url", e.target)
	m.Some("http_user_agent", e.userAgent)
	m.Some("http_content_type", e.contentType)
	m.Some("http_method", e.method)
	m.Some("protocol", e.protocol())
	m.Some("traceparent", e.traceparent) // W3C Trace Context, as the client sent it
	if e.status != 0 {
		m.Uint("status", uint64(e.status)) // absent: no response came
	}
}

func (e *exchange) protocol() string {
	switch {
	case e.stream > 0:
		return "HTTP/2"
	case e.method == "":
		return ""
	case e.minor == 1:
		return "HTTP/1.1"
	}
	return "HTTP/1.0"
}

// beginning is how a record begins, from "action" on. It does not change. Most of them come
// again and again: the same resource, client and outcome.
type beginning struct {
	host, target, userAgent, contentType, method string
	minor                                        byte
	status                                       int
	text                                         record.Members
}

func (b *beginning) is(e *exchange) bool {
	return b.status == e.status && b.target == e.target && b.host == e.host && b.method == e.method &&
		b.contentType == e.contentType && b.userAgent == e.userAgent && b.minor == e.minor
}

// place is one of the beginnings that a stage keeps.
type place struct {
	hash       uint64 // of the last exchange
	*beginning        // of one before; nil: none
}

const (
	places           = 256
	longestBeginning = 1 << 10 // bytes of its strings; what is longer is written each time
)

// beginning returns that of the exchange's record, nil if there is none: it is worth
// being kept at the second time.
func (st *stream) beginning(e *exchange) *beginning {
	if e.stream > 0 || e.method == "" || e.denied != pipeline.ReasonNone || len(e.rules) > 0 || e.lost != pipeline.ReasonNone || e.traceparent != "" {
		return nil
	}
	if st.begun != nil && st.begun.is(e) { // as for the last one of the connection
		return st.begun
	}
	s := st.s
	if s.places == nil {
		s.places, s.seed = make([]place, places), maphash.MakeSeed()
	}
	hash := maphash.String(s.seed, e.target) ^ maphash.String(s.seed, e.host)<<1 ^ uint64(e.status)
	p := &s.places[hash%places]
	switch {
	case p.beginning != nil && p.is(e):
	case p.hash != hash || len(e.target)+len(e.host)+len(e.userAgent)+len(e.contentType)+len(e.method) > longestBeginning:
		p.hash = hash
		return nil
	default:
		b := &beginning{e.host, e.target, e.userAgent, e.contentType, e.method, e.minor, e.status, make(record.Members, 0, 384)}
		e.appendBeginning(&b.text)
		p.beginning = b
	}
	st.begun = p.beginning
	return p.beginning
}

// denial is the response to a request that is refused.
func denial(why pipeline.Reason) (reply []byte, status int) {
	status, phrase := 400, "Bad Request"
	switch why {
	case reasonHost, reasonMethod, reasonPath, reasonField, reasonRule, reasonRuleFailed:
		status, phrase = 403, "Forbidden"
	case reasonHeadSize, reasonFields:
		status, phrase = 431, "Request Header Fields Too Large"
	}
	text := "refused by policy: " + why.String() + "\n"
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, phrase, len(text), text), status
}
