// Package otlp sends metrics, and a span for each request that was recorded, to
// an OpenTelemetry collector: OTLP over HTTP, in protobuf
// (opentelemetry.io/docs/specs/otlp).
//
// Record never blocks: spans wait in a bounded queue, and what finds it full is
// dropped and counted. A collector that is not there costs a line in the log for
// each outage.
//
// Its one trap: a span is made from the JSON of a record, so that the packages
// that record requests need not know of spans. A field that is renamed there is
// missing here.
package otlp

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"
)

// Spec describes a collector and what it is sent.
type Spec struct {
	Endpoint string        // "http://HOST:PORT" or https; /v1/traces and /v1/metrics are added
	Headers  []string      // "NAME: VALUE", for each request
	Events   []string      // records that become spans, of Events; none: no traces
	Sample   float64       // part of the traces that begin here, 0 to 1
	Metrics  bool          // whether metrics are sent
	Interval time.Duration // between two sendings of metrics
	Timeout  time.Duration // of a request
}

// Events are the records that can become spans.
var Events = []string{"http", "llm", "tls"}

// CheckEndpoint says what is wrong with an endpoint.
func CheckEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf(`want "http://HOST:PORT" or "https://HOST:PORT", such as "http://127.0.0.1:4318", got %q`, endpoint)
	}
	return nil
}

// CheckHeader says what is wrong with a header, without its value: that may be a
// secret.
func CheckHeader(header string) error {
	name, value, ok := strings.Cut(header, ":")
	valid := ok && name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
	if !valid || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fmt.Errorf(`want "NAME: VALUE", in printable ASCII`)
	}
	return nil
}

// Resource says who sends.
type Resource struct {
	Name, Version string // of the appliance, of the program
	Host          string
	Started       time.Time
}

func (r Resource) proto() *resourcepb.Resource {
	return &resourcepb.Resource{Attributes: []*commonpb.KeyValue{
		text("service.name", "penstock"), text("service.version", r.Version), text("service.instance.id", r.Host+"/"+r.Name), text("host.name", r.Host),
	}}
}

// Gatherer gives the metrics there are, as prometheus.Gatherer does.
type Gatherer interface {
	Gather() ([]*dto.MetricFamily, error)
}

// Options are what tests change. The zero value is what an appliance runs with.
type Options struct {
	Queue     int           // records that wait; 0: 8192
	Batch     int           // spans in a request; 0: 512
	Linger    time.Duration // how long a batch waits for more; 0: 1 s
	Retry     time.Duration // first pause after a failure; 0: 500 ms; doubles up to 30 s
	GiveUp    time.Duration // how long a request is tried again; 0: 1 min
	CloseWait time.Duration // how long Close waits for what is queued; 0: 2 s
}

func (o *Options) defaults() {
	for _, d := range []struct {
		v     *time.Duration
		other time.Duration
	}{{&o.Linger, time.Second}, {&o.Retry, 500 * time.Millisecond}, {&o.GiveUp, time.Minute}, {&o.CloseWait, 2 * time.Second}} {
		if *d.v == 0 {
			*d.v = d.other
		}
	}
	if o.Queue == 0 {
		o.Queue = 8192
	}
	if o.Batch == 0 {
		o.Batch = 512
	}
}

// Exporter sends to one collector. Its methods may be called from any goroutine.
type Exporter struct {
	spec     Spec
	o        Options
	log      *slog.Logger
	resource Resource
	gather   Gatherer

	traces, metrics *sender // nil: not sent
	queue           chan entry
	quit            context.Context // done: send what is queued
	finish          context.CancelFunc
	end             context.Context // done: at once
	abort           context.CancelFunc
	running         sync.WaitGroup
	sample          context.Context // done: no more metrics
	still           context.CancelFunc
	sampling        sync.WaitGroup
}

// entry is a record on its way.
type entry struct {
	at     time.Time
	event  string
	fields any
}

// Open starts an exporter of traces. The collector may be absent.
func Open(spec Spec, r Resource, log *slog.Logger, o Options) (*Exporter, error) {
	if err := CheckEndpoint(spec.Endpoint); err != nil {
		return nil, fmt.Errorf("open OTLP exporter: %w", err)
	}
	o.defaults()
	e := &Exporter{spec: spec, o: o, log: log.With("collector", spec.Endpoint), resource: r, queue: make(chan entry, o.Queue)}
	e.end, e.abort = context.WithCancel(context.Background())
	e.quit, e.finish = context.WithCancel(e.end)
	e.sample, e.still = context.WithCancel(e.end)
	if len(spec.Events) > 0 {
		e.traces = e.newSender("otlp_traces", "/v1/traces", "spans")
		e.running.Go(e.sendTraces)
	}
	if spec.Metrics {
		e.metrics = e.newSender("otlp_metrics", "/v1/metrics", "metrics")
	}
	return e, nil
}

// SendMetrics begins to send metrics, if they are to be sent. It is called once
// at most, and not after Close.
func (e *Exporter) SendMetrics(from Gatherer) {
	if e.metrics != nil {
		e.gather = from
		e.sampling.Go(e.sendMetrics)
	}
}

// StopMetrics ends the sending of metrics. When it returns the gatherer is not
// used any more.
func (e *Exporter) StopMetrics() {
	e.still()
	e.sampling.Wait()
}

// Enabled implements pipeline.Recorder.
func (e *Exporter) Enabled(event string) bool { return slices.Contains(e.spec.Events, event) }

// Record implements pipeline.Recorder: fields must not change afterwards.
func (e *Exporter) Record(event string, fields any) {
	if !e.Enabled(event) {
		return
	}
	if e.quit.Err() != nil {
		e.traces.drops.Add(1)
		return
	}
	e.traces.accepted.Add(1)
	select {
	case e.queue <- entry{time.Now(), event, fields}:
	default:
		e.traces.accepted.Add(^uint64(0))
		e.traces.drops.Add(1)
	}
}

// Stats are the figures of what is sent. Whatever was to be sent is in one of
// Sent, Skipped, Dropped, Failed and Queued.
type Stats struct {
	Kind    string // "otlp_traces" counts spans, "otlp_metrics" data points
	To      string
	Sent    uint64
	Skipped uint64 // by sampling
	Dropped uint64 // the queue was full, or the exporter was closed
	Failed  uint64 // the collector did not take them
	Queued  uint64
	Up      bool
	Error   string // the last one
}

// Stats returns the figures of traces and metrics, where they are sent.
func (e *Exporter) Stats() (all []Stats) {
	for _, s := range []*sender{e.traces, e.metrics} {
		if s != nil {
			all = append(all, s.stats())
		}
	}
	return all
}

// Close sends the spans that are queued, for at most Options.CloseWait. Those that
// could not be sent in that time count as dropped, which is an error.
func (e *Exporter) Close() error {
	e.StopMetrics()
	e.finish()
	timer := time.AfterFunc(e.o.CloseWait, e.abort)
	defer timer.Stop()
	e.running.Wait()
	e.abort()
	if e.traces == nil {
		return nil
	}
	if n := e.traces.left; n > 0 {
		return fmt.Errorf("close OTLP exporter %q: %d spans were not sent in time", e.spec.Endpoint, n)
	}
	return nil
}
