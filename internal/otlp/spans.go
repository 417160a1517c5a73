package otlp

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
)

// record is what a span is made from: the fields of the records http, llm and
// tls that it needs.
type record struct {
	SrcIP    string   `json:"src_ip"`
	SrcPort  int64    `json:"src_port"`
	DestIP   string   `json:"dest_ip"`
	DestPort int64    `json:"dest_port"`
	Chain    string   `json:"chain"`
	Action   string   `json:"action"`
	Reason   string   `json:"reason"`
	Rules    []string `json:"rules"`
	Unseen   string   `json:"unseen"`

	HTTP *struct {
		Hostname     string  `json:"hostname"`
		URL          string  `json:"url"`
		UserAgent    string  `json:"http_user_agent"`
		Method       string  `json:"http_method"`
		Protocol     string  `json:"protocol"`
		Status       int64   `json:"status"`
		RequestBytes int64   `json:"request_bytes"`
		Length       int64   `json:"length"`
		Duration     float64 `json:"duration_seconds"`
		Traceparent  string  `json:"traceparent"`
		HTTP2        *struct {
			Reset string `json:"reset"`
			Error string `json:"error_code"`
		} `json:"http2"`
		GRPC *struct {
			Service string `json:"service"`
			Method  string `json:"method"`
			Status  *int64 `json:"status"`
		} `json:"grpc"`
	} `json:"http"`

	LLM *struct {
		Hostname      string   `json:"hostname"`
		Path          string   `json:"path"`
		Provider      string   `json:"provider"`
		Operation     string   `json:"operation"`
		Model         string   `json:"model"`
		ResponseModel string   `json:"response_model"`
		Status        int64    `json:"status"`
		FinishReason  string   `json:"finish_reason"`
		Error         string   `json:"error"`
		Input         *int64   `json:"input_tokens"`
		CacheRead     *int64   `json:"cached_tokens"`
		CacheWrite    *int64   `json:"cache_write_tokens"`
		Output        *int64   `json:"output_tokens"`
		FirstToken    *float64 `json:"time_to_first_token_seconds"`
		Duration      float64  `json:"duration_seconds"`
		Cut           bool     `json:"cut"`
	} `json:"llm"`

	TLS *struct {
		SNI           string `json:"sni"`
		Version       string `json:"version"`
		ClientVersion string `json:"client_version"`
		CipherSuite   string `json:"cipher_suite"`
		JA3           *hash  `json:"ja3"`
		JA3S          *hash  `json:"ja3s"`
		JA4           string `json:"ja4"`
		Alert         *int64 `json:"alert"`
	} `json:"tls"`
}

type hash struct {
	Hash string `json:"hash"`
}

// attributes collects those of a span. What is not known is left out.
type attributes []*commonpb.KeyValue

func (a *attributes) text(key, v string) {
	if v != "" {
		*a = append(*a, text(key, v))
	}
}

func (a *attributes) number(key string, v int64) {
	if v != 0 {
		a.count(key, &v)
	}
}

func (a *attributes) count(key string, v *int64) {
	if v != nil {
		*a = append(*a, &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: *v}}})
	}
}

func (a *attributes) texts(key string, list []string) {
	if len(list) == 0 {
		return
	}
	values := &commonpb.ArrayValue{}
	for _, v := range list {
		values.Values = append(values.Values, text("", v).Value)
	}
	*a = append(*a, &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: values}}})
}

// maxText is how long a value may be, in bytes.
const maxText = 4096

// text is an attribute. Bytes of the wire are not always UTF-8, which protobuf
// wants.
func text(key, v string) *commonpb.KeyValue {
	if len(v) > maxText {
		n := maxText
		for n > maxText-utf8.UTFMax && !utf8.RuneStart(v[n]) {
			n--
		}
		v = v[:n]
	}
	v = strings.ToValidUTF8(v, "\uFFFD")
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: v}}}
}

// describe gives a span its name, kind, attributes and status, as the semantic
// conventions for HTTP servers, RPC, generative AI and TLS have them.
func (r *record) describe(s *tracepb.Span, event string) {
	s.Name, s.Kind = event, tracepb.Span_SPAN_KIND_INTERNAL
	var a attributes
	var wrong string // error.type
	switch {
	case r.HTTP != nil:
		wrong = r.http(s, &a)
	case r.LLM != nil:
		wrong = r.llm(s, &a)
	case r.TLS != nil:
		wrong = r.tls(s, &a)
	}
	a.text("client.address", r.SrcIP)
	a.number("client.port", r.SrcPort)
	a.text("network.local.address", r.DestIP)
	a.number("network.local.port", r.DestPort)
	a.text("network.transport", "tcp")
	a.text("penstock.chain", r.Chain)
	a.text("penstock.action", r.Action)
	a.text("penstock.reason", r.Reason)
	a.text("penstock.unseen", r.Unseen)
	a.texts("penstock.rules", r.Rules)
	if r.Action == "denied" {
		wrong = cmp.Or(r.Reason, wrong)
	}
	if wrong != "" {
		a.text("error.type", wrong)
		s.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR}
	}
	s.Attributes = a
}

// server is who was asked: the name in the request, else the address.
func (r *record) server(a *attributes, name string) {
	host, port := name, r.DestPort
	if h, p, err := net.SplitHostPort(name); err == nil {
		host = h
		if n, err := strconv.ParseUint(p, 10, 16); err == nil {
			port = int64(n)
		}
	}
	a.text("server.address", cmp.Or(strings.Trim(host, "[]"), r.DestIP))
	a.number("server.port", port)
}

// methods are those that are written as they are (RFC 9110 and RFC 5789): any
// other would make names of spans and series without bound.
var methods = []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}

func (r *record) http(s *tracepb.Span, a *attributes) (wrong string) {
	h := r.HTTP
	s.Kind, s.Name = tracepb.Span_SPAN_KIND_SERVER, "HTTP"
	if slices.Contains(methods, h.Method) {
		s.Name = h.Method
		a.text("http.request.method", h.Method)
	} else if h.Method != "" {
		a.text("http.request.method", "_OTHER")
		a.text("http.request.method_original", h.Method)
	}
	a.text("url.path", path(h.URL))
	a.text("url.scheme", "http") // in plain text; who can see it otherwise has decrypted it
	r.server(a, h.Hostname)
	a.number("http.response.status_code", h.Status)
	a.text("user_agent.original", h.UserAgent)
	if name, v, ok := strings.Cut(h.Protocol, "/"); ok {
		a.text("network.protocol.name", strings.ToLower(name))
		a.text("network.protocol.version", v)
	}
	a.number("http.request.size", h.RequestBytes)
	a.number("http.response.size", h.Length)
	if h.Status >= 500 {
		wrong = strconv.FormatInt(h.Status, 10)
	}
	if h.HTTP2 != nil && h.HTTP2.Reset != "" && h.HTTP2.Error != "NO_ERROR" {
		wrong = cmp.Or(wrong, h.HTTP2.Error, "reset")
	}
	if g := h.GRPC; g != nil {
		s.Name = g.Service + "/" + g.Method
		a.text("rpc.system", "grpc")
		a.text("rpc.service", g.Service)
		a.text("rpc.method", g.Method)
		a.count("rpc.grpc.status_code", g.Status)
		// Those of the conventions for gRPC servers that are the server's fault.
		if g.Status != nil && slices.Contains([]int64{2, 4, 12, 13, 14, 15}, *g.Status) {
			wrong = strconv.FormatInt(*g.Status, 10)
		}
	}
	return wrong
}

// path is a request's target without scheme, authority and query. Queries stay
// out: they carry secrets.
func path(target string) string {
	if _, rest, ok := strings.Cut(target, "://"); ok && !strings.HasPrefix(target, "/") {
		_, rest, _ = strings.Cut(rest, "/")
		target = "/" + rest
	}
	target, _, _ = strings.Cut(target, "?")
	return target
}

func (r *record) llm(s *tracepb.Span, a *attributes) (wrong string) {
	l := r.LLM
	s.Kind, s.Name = tracepb.Span_SPAN_KIND_CLIENT, strings.ToValidUTF8(strings.TrimSpace(l.Operation+" "+l.Model), "\uFFFD")
	a.text("gen_ai.operation.name", l.Operation)
	a.text("gen_ai.provider.name", l.Provider)
	a.text("gen_ai.request.model", l.Model)
	a.text("gen_ai.response.model", l.ResponseModel)
	if l.FinishReason != "" {
		a.texts("gen_ai.response.finish_reasons", []string{l.FinishReason})
	}
	a.count("gen_ai.usage.input_tokens", l.Input)
	a.count("gen_ai.usage.output_tokens", l.Output)
	a.count("gen_ai.usage.cache_read.input_tokens", l.CacheRead)
	a.count("gen_ai.usage.cache_creation.input_tokens", l.CacheWrite)
	if l.FirstToken != nil {
		*a = append(*a, &commonpb.KeyValue{Key: "penstock.llm.time_to_first_token_seconds",
			Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: *l.FirstToken}}})
	}
	a.text("url.path", path(l.Path))
	r.server(a, l.Hostname)
	a.number("http.response.status_code", l.Status)
	switch {
	case l.Error != "":
		wrong = l.Error
	case l.Status >= 400:
		wrong = strconv.FormatInt(l.Status, 10)
	case l.Cut:
		wrong = "cut"
	}
	return wrong
}

func (r *record) tls(s *tracepb.Span, a *attributes) (wrong string) {
	t := r.TLS
	s.Name = "TLS handshake"
	r.server(a, t.SNI)
	if version := cmp.Or(t.Version, t.ClientVersion); version != "" {
		a.text("tls.protocol.name", "tls")
		a.text("tls.protocol.version", strings.TrimPrefix(strings.TrimPrefix(version, "TLS"), " "))
	}
	a.text("tls.cipher", t.CipherSuite)
	if t.JA3 != nil {
		a.text("tls.client.ja3", t.JA3.Hash)
	}
	if t.JA3S != nil {
		a.text("tls.server.ja3s", t.JA3S.Hash)
	}
	a.text("penstock.tls.client.ja4", t.JA4)
	if t.Alert != nil {
		wrong = "alert_" + strconv.FormatInt(*t.Alert, 10)
	}
	return wrong
}
