package http

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"penstock/internal/record"
	"penstock/pipeline"
)

// eve is a record "http" as encoding/json writes and reads it.
type eve struct {
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

// asEVE returns what the record of an exchange is to say.
func asEVE(st *stream, e *exchange) *eve {
	c := st.conn
	ev := eve{
		FlowID: c.ID, SrcIP: c.Client.Addr(), SrcPort: c.Client.Port(),
		DestIP: c.Server.Addr(), DestPort: c.Server.Port(), Proto: "TCP", Chain: st.s.env.Chain, Action: "allowed", Rules: e.rules,
		HTTP: httpRecord{
			Hostname: e.host, URL: e.target, UserAgent: e.userAgent, ContentType: e.contentType, Method: e.method, Status: e.status, Traceparent: e.traceparent,
			RequestBytes: e.requestBytes, Length: e.responseBytes, Duration: seconds(e.end - e.start), ConnectionAge: seconds(e.start - c.Start),
		},
	}
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
	return &ev
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

// TestEventWritesItself: the lines of records are what encoding/json makes of
// them, whatever the ends say, and whatever has been recorded before.
func TestEventWritesItself(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	texts := []string{"", "a", "GET", "/a?b=\"c\"\\", "\x00\x1f\x7f", "\xff\xfe", "Zoë\u2028", "<&>"}
	text := func() string { return texts[rnd.IntN(len(texts))] }
	number := func() int64 { return rnd.Int64() >> rnd.IntN(63) }
	r := newRig(nil)
	r.env.Chain = "a \"chain\""
	var streams []*stream
	for i := range 5 {
		streams = append(streams, r.Open(&pipeline.Conn{
			ID: uint64(number()), Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), uint16(rnd.Int())),
			Server: netip.AddrPortFrom(netip.MustParseAddr("fe80::1"), uint16(rnd.Int())), Start: number() >> 13,
		}).(*stream))
	}
	resource := func() exchange {
		return exchange{host: text(), target: text(), userAgent: text(), contentType: text(), method: text(), minor: byte(rnd.IntN(2)), status: rnd.IntN(2) * 200}
	}
	var resources []exchange
	for range 30 {
		resources = append(resources, resource())
	}
	resources[0].target = strings.Repeat("x", longestBeginning)
	briefs := 0
	for range 5000 {
		e := resources[rnd.IntN(len(resources))]
		if rnd.IntN(3) == 0 {
			e = resource()
		}
		e.requestBytes, e.responseBytes, e.start, e.end = uint64(number()), uint64(number()), number()>>13, number()>>13
		if rnd.IntN(2) == 0 {
			e.firstByte = number() >> 13
		}
		switch rnd.IntN(12) {
		case 0:
			e.denied = reasonHost
		case 1:
			e.lost = reasonChunk
		case 2:
			e.traceparent = text()
		case 3:
			e.rules = []string{text(), text()}
		case 4:
			e.stream, e.push = 1+rnd.Uint32()>>1, rnd.IntN(2) == 0
		case 5:
			e.stream, e.reset, e.code = 1+rnd.Uint32()>>1, "client", rnd.Uint32N(20)
		case 6:
			e.stream, e.grpc, e.grpcEnded, e.grpcStatus = 1, true, rnd.IntN(2) == 0, rnd.IntN(20)
		}
		st := streams[rnd.IntN(len(streams))]
		r.log(st, &e)
		want, err := json.Marshal(asEVE(st, &e))
		if err != nil {
			t.Fatal(err)
		}
		got := r.rec.lines[len(r.rec.lines)-1]
		var a, b any
		if json.Unmarshal(want, &a) != nil || json.Unmarshal([]byte(got), &b) != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("got %s\nwant %s", got, want)
		}
		if _, ok := r.rec.last.(*record.Brief); ok {
			briefs++
		}
	}
	if len(r.rec.lines) != 5000 || briefs < 1000 || briefs > 4000 {
		t.Errorf("%d events, %d of them brief", len(r.rec.lines), briefs)
	}
}

func BenchmarkEvent(b *testing.B) {
	s := newRig(nil).stage
	s.env.Recorder = noRecorder{}
	st := s.Open(&pipeline.Conn{ID: 1, Client: netip.MustParseAddrPort("10.0.0.1:40000"), Server: netip.MustParseAddrPort("10.0.0.2:80"), Start: 5}).(*stream)
	e := &exchange{
		host: "www.example.com", target: "/index.html", userAgent: "wrk/4", contentType: "text/plain", method: "GET", minor: 1, status: 200,
		requestBytes: 44, responseBytes: 290, start: 1234567896, firstByte: 1234567896 + 123456, end: 1234567896 + 234567,
	}
	s.log(st, e)
	s.log(st, e)
	for name, fields := range map[string]record.Appender{"brief": &s.brief, "whole": &event{st, e}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var m record.Members
			for b.Loop() {
				m = m[:0]
				fields.AppendMembers(&m)
			}
		})
	}
	b.Run("log", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.log(st, e)
		}
	})
	b.Run("encoding/json", func(b *testing.B) {
		b.ReportAllocs()
		var out bytes.Buffer
		enc := json.NewEncoder(&out)
		for b.Loop() {
			out.Reset()
			_ = enc.Encode(asEVE(st, e))
		}
	})
}

type noRecorder struct{}

func (noRecorder) Enabled(string) bool { return true }
func (noRecorder) Record(string, any)  {}
