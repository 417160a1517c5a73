package otlp

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// maxBatch bounds the spans of a request by their size, in bytes; collectors
// refuse what is too long.
const maxBatch = 1 << 20

func scope(r Resource) *commonpb.InstrumentationScope {
	return &commonpb.InstrumentationScope{Name: "penstock", Version: r.Version}
}

// sendTraces is the body of the goroutine for spans.
func (e *Exporter) sendTraces() {
	for {
		var first entry
		select {
		case first = <-e.queue:
		case <-e.quit.Done():
			select {
			case first = <-e.queue:
			default:
				return
			}
		}
		if e.end.Err() != nil {
			e.dropRest(1)
			return
		}
		spans := e.batch(first)
		if len(spans) == 0 {
			continue
		}
		n := uint64(len(spans))
		req := &collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
			Resource: e.resource.proto(), ScopeSpans: []*tracepb.ScopeSpans{{Scope: scope(e.resource), Spans: spans}},
		}}}
		out := e.traces.send(e.end, e.quit, req, func(b []byte) (int64, string) {
			var r collectorpb.ExportTraceServiceResponse
			if proto.Unmarshal(b, &r) != nil { // whatever it is, it came with a status of success
				return 0, ""
			}
			return r.GetPartialSuccess().GetRejectedSpans(), r.GetPartialSuccess().GetErrorMessage()
		})
		switch {
		case out.err == nil:
			rejected := min(uint64(max(out.rejected, 0)), n)
			e.traces.failed.Add(rejected)
			e.traces.sent.Add(n - rejected)
		case e.end.Err() != nil:
			e.dropRest(n)
			return
		default:
			e.traces.failed.Add(n)
		}
	}
}

// dropRest counts what is left at the end, n of it out of the queue already.
func (e *Exporter) dropRest(n uint64) {
	for {
		select {
		case <-e.queue:
			n++
			continue
		default:
		}
		break
	}
	e.traces.accepted.Add(-n) // from queued to dropped
	e.traces.drops.Add(n)
	e.traces.left = n
}

// batch makes spans of a record and those that come soon behind it.
func (e *Exporter) batch(first entry) (spans []*tracepb.Span) {
	t := time.NewTimer(e.o.Linger)
	defer t.Stop()
	size := 0
	for en := first; ; {
		span, err := e.span(en)
		switch {
		case err != nil:
			e.traces.failed.Add(1)
			e.traces.setErr(err.Error())
		case span == nil:
			e.traces.skipped.Add(1)
		default:
			spans = append(spans, span)
			size += proto.Size(span)
		}
		if len(spans) >= e.o.Batch || size >= maxBatch {
			return spans
		}
		select {
		case en = <-e.queue:
			continue
		default:
		}
		select {
		case en = <-e.queue:
		case <-t.C:
			return spans
		case <-e.quit.Done():
			return spans
		}
	}
}

// span makes a span of a record; nil if sampling leaves it out.
func (e *Exporter) span(en entry) (s *tracepb.Span, err error) {
	defer func() {
		// A MarshalJSON that panics costs that record, not the appliance.
		if r := recover(); r != nil {
			s, err = nil, fmt.Errorf("make a span of record %q: panic: %v", en.event, r)
		}
	}()
	b, err := json.Marshal(en.fields)
	if err != nil {
		return nil, fmt.Errorf("make a span of record %q: %w", en.event, err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("make a span of record %q: %w", en.event, err)
	}
	var parent string
	if r.HTTP != nil {
		parent = r.HTTP.Traceparent
	}
	s = &tracepb.Span{}
	if p, ok := parseTraceparent(parent); ok {
		if !p.sampled {
			return nil, nil
		}
		s.TraceId, s.ParentSpanId, s.TraceState, s.Flags = p.trace[:], p.span[:], "", 1
	} else {
		if rand.Float64() >= e.spec.Sample {
			return nil, nil
		}
		s.TraceId, s.Flags = identifier(16), 1
	}
	s.SpanId = identifier(8)
	r.describe(s, en.event)
	var seconds float64
	switch {
	case r.HTTP != nil:
		seconds = r.HTTP.Duration
	case r.LLM != nil:
		seconds = r.LLM.Duration
	}
	s.EndTimeUnixNano = uint64(en.at.UnixNano())
	s.StartTimeUnixNano = uint64(en.at.Add(-time.Duration(max(seconds, 0) * 1e9)).UnixNano())
	return s, nil
}

// identifier returns a random one, of n bytes that are not all zero.
func identifier(n int) (b []byte) {
	for len(b) < n {
		b = binary.BigEndian.AppendUint64(b, rand.Uint64())
	}
	b[n-1] |= 1
	return b
}

// traceparent is what a request says of the trace that it belongs to.
type traceparent struct {
	trace   [16]byte
	span    [8]byte
	sampled bool
}

// parseTraceparent reads the field of W3C Trace Context, 3.2.2.
func parseTraceparent(s string) (p traceparent, ok bool) {
	const length = len("00-0123456789abcdef0123456789abcdef-0123456789abcdef-01")
	if len(s) < length || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return p, false
	}
	var version, flags [1]byte
	if !unhex(version[:], s[:2]) || !unhex(p.trace[:], s[3:35]) || !unhex(p.span[:], s[36:52]) || !unhex(flags[:], s[53:55]) {
		return p, false
	}
	if version[0] == 0xff || version[0] == 0 && len(s) != length || len(s) > length && s[length] != '-' {
		return p, false
	}
	if p.trace == [16]byte{} || p.span == [8]byte{} {
		return p, false
	}
	p.sampled = flags[0]&1 != 0
	return p, true
}

// unhex reads lower-case digits; upper case is not allowed there.
func unhex(to []byte, s string) bool {
	for i := range to {
		var n byte
		for _, c := range []byte(s[2*i : 2*i+2]) {
			switch {
			case c >= '0' && c <= '9':
				n = n<<4 | (c - '0')
			case c >= 'a' && c <= 'f':
				n = n<<4 | (c - 'a' + 10)
			default:
				return false
			}
		}
		to[i] = n
	}
	return true
}
