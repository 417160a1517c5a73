package http

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
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

// event is a record "http"; names are those of Suricata's EVE where it has the
// field.
type event struct {
	FlowID   uint64     `json:"flow_id"`
	SrcIP    netip.Addr `json:"src_ip"`
	SrcPort  uint16     `json:"src_port"`
	DestIP   netip.Addr `json:"dest_ip"`
	DestPort uint16     `json:"dest_port"`
	Proto    string     `json:"proto"`
	Chain    string     `json:"chain"`
	Action   string     `json:"action"` // "allowed" or "denied"
	Reason   string     `json:"reason,omitempty"`
	Rules    []string   `json:"rules,omitempty"`  // that applied
	Unseen   string     `json:"unseen,omitempty"` // why the record ends before the exchange does
	HTTP     httpRecord `json:"http"`

	ends record.Members // what appendEnds writes, if it has been written before
}

type httpRecord struct {
	Hostname      string  `json:"hostname,omitempty"`
	URL           string  `json:"url,omitempty"`
	UserAgent     string  `json:"http_user_agent,omitempty"`
	ContentType   string  `json:"http_content_type,omitempty"`
	Method        string  `json:"http_method,omitempty"`
	Protocol      string  `json:"protocol,omitempty"`
	Traceparent   string  `json:"traceparent,omitempty"` // W3C Trace Context, as the client sent it
	Status        int     `json:"status,omitempty"`      // absent: no response came
	RequestBytes  uint64  `json:"request_bytes"`         // head and body
	Length        uint64  `json:"length"`                // response, head and body
	FirstByte     seconds `json:"time_to_first_byte_seconds,omitempty"`
	Duration      seconds `json:"duration_seconds"` // from the request's head to the end of the response
	ConnectionAge seconds `json:"connection_age_seconds"`

	HTTP2 *http2Record `json:"http2,omitempty"`
	GRPC  *grpcRecord  `json:"grpc,omitempty"`
}

type http2Record struct {
	Stream uint32 `json:"stream_id"`
	Push   bool   `json:"push,omitempty"`       // the server sends it unasked
	Reset  string `json:"reset,omitempty"`      // "client" or "server": who has ended it before its end
	Error  string `json:"error_code,omitempty"` // and why
}

type grpcRecord struct {
	Service string `json:"service"`
	Method  string `json:"method"`
	Status  *int   `json:"status,omitempty"` // absent: it has not ended
}

func (s *stage) log(st *stream, e *exchange) {
	if !s.logs || !s.env.Recorder.Enabled("http") {
		return
	}
	c, ev := st.conn, &s.event
	*ev = event{
		FlowID: c.ID, SrcIP: c.Client.Addr(), SrcPort: c.Client.Port(),
		DestIP: c.Server.Addr(), DestPort: c.Server.Port(), Proto: "TCP", Chain: s.env.Chain, Action: "allowed", Rules: e.rules,
		HTTP: httpRecord{
			Hostname: e.host, URL: e.target, UserAgent: e.userAgent, ContentType: e.contentType, Method: e.method, Status: e.status, Traceparent: e.traceparent,
			RequestBytes: e.requestBytes, Length: e.responseBytes, Duration: seconds(e.end - e.start), ConnectionAge: seconds(e.start - c.Start),
		},
	}
	if len(st.ends) == 0 {
		ev.appendEnds(&st.ends)
	}
	ev.ends = st.ends
	if e.stream > 0 {
		ev.HTTP.Protocol = "HTTP/2"
		ev.HTTP.HTTP2 = &http2Record{Stream: e.stream, Push: e.push, Reset: e.reset}
		if e.reset != "" {
			ev.HTTP.HTTP2.Error = errorName(e.code)
		}
	} else if e.method != "" {
		ev.HTTP.Protocol = "HTTP/1.0"
		if e.minor == 1 {
			ev.HTTP.Protocol = "HTTP/1.1"
		}
	}
	if e.firstByte > 0 {
		ev.HTTP.FirstByte = seconds(e.firstByte - e.start)
	}
	if e.grpc {
		// "/package.Service/Method"
		path := strings.TrimPrefix(e.target, "/")
		i := strings.LastIndexByte(path, '/')
		ev.HTTP.GRPC = &grpcRecord{Service: path[:max(i, 0)], Method: path[i+1:]}
		if e.grpcEnded {
			status := e.grpcStatus
			ev.HTTP.GRPC.Status = &status
		}
	}
	if e.denied != pipeline.ReasonNone {
		ev.Action, ev.Reason = "denied", e.denied.String()
	}
	if e.lost != pipeline.ReasonNone {
		ev.Unseen = e.lost.String()
	}
	s.env.Recorder.Record("http", ev)
}

var _ pipeline.Borrowed = (*event)(nil)

// Keep implements pipeline.Borrowed: the stage has one event, which it fills again
// and again.
func (e *event) Keep() any {
	kept := *e
	kept.ends = nil
	return &kept
}

// AppendMembers implements record.Appender.
func (e *event) AppendMembers(m *record.Members) {
	if len(e.ends) > 0 {
		m.Written(e.ends)
	} else {
		e.appendEnds(m)
	}
	m.String("action", e.Action)
	m.Some("reason", e.Reason)
	if len(e.Rules) > 0 {
		m.Strings("rules", e.Rules)
	}
	m.Some("unseen", e.Unseen)
	h := &e.HTTP
	m.Open("http")
	m.Some("hostname", h.Hostname)
	m.Some("url", h.URL)
	m.Some("http_user_agent", h.UserAgent)
	m.Some("http_content_type", h.ContentType)
	m.Some("http_method", h.Method)
	m.Some("protocol", h.Protocol)
	m.Some("traceparent", h.Traceparent)
	if h.Status != 0 {
		m.Uint("status", uint64(h.Status))
	}
	m.Uint("request_bytes", h.RequestBytes)
	m.Uint("length", h.Length)
	if h.FirstByte != 0 {
		m.Seconds("time_to_first_byte_seconds", int64(h.FirstByte))
	}
	m.Seconds("duration_seconds", int64(h.Duration))
	m.Seconds("connection_age_seconds", int64(h.ConnectionAge))
	if h2 := h.HTTP2; h2 != nil {
		m.Open("http2")
		m.Uint("stream_id", uint64(h2.Stream))
		if h2.Push {
			m.Bool("push", true)
		}
		m.Some("reset", h2.Reset)
		m.Some("error_code", h2.Error)
		m.Close()
	}
	if g := h.GRPC; g != nil {
		m.Open("grpc")
		m.String("service", g.Service)
		m.String("method", g.Method)
		if g.Status != nil {
			m.Int("status", int64(*g.Status))
		}
		m.Close()
	}
	m.Close()
}

// appendEnds writes what is the same for all requests of a connection.
func (e *event) appendEnds(m *record.Members) {
	m.Uint("flow_id", e.FlowID)
	m.Addr("src_ip", e.SrcIP)
	m.Uint("src_port", uint64(e.SrcPort))
	m.Addr("dest_ip", e.DestIP)
	m.Uint("dest_port", uint64(e.DestPort))
	m.String("proto", e.Proto)
	m.String("chain", e.Chain)
}

// seconds are nanoseconds that are written as seconds.
type seconds int64

// MarshalJSON implements json.Marshaler.
func (s seconds) MarshalJSON() ([]byte, error) { return json.Marshal(float64(s) / 1e9) }

// UnmarshalJSON implements json.Unmarshaler.
func (s *seconds) UnmarshalJSON(b []byte) error {
	var v float64
	err := json.Unmarshal(b, &v)
	*s = seconds(math.Round(v * 1e9))
	return err
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
