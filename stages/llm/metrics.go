package llm

import (
	"strconv"
	"sync"

	"penstock/pipeline"
)

// counters are what the stage counts beside its histograms.
type counters struct {
	requests, streamed, other, denied, released, switched, broken, streamErrors, noUsageAsked *pipeline.Counter
	input, output, cached, reasoning, chunks                                                  *pipeline.Counter
	usage                                                                                     map[string]*pipeline.Counter
	unread                                                                                    [numUnread]*pipeline.Counter
}

func newCounters(set *pipeline.CounterSet) (n counters) {
	ctr := set.Counter
	n.requests = ctr("requests", "requests to language models that have ended")
	n.streamed = ctr("streamed", "of those, answered with a stream of events")
	n.other = ctr("other", "requests on the same connections that are for no language model")
	n.denied = ctr("denied", "connections that were refused by rules")
	n.released = ctr("released", "connections let go of because they are no HTTP/1")
	n.switched = ctr("switched", "connections that went on with another protocol (CONNECT, Upgrade)")
	n.broken = ctr("malformed_events", "events of streams that are no JSON")
	n.streamErrors = ctr("stream_errors", "errors inside of answers with a status of success")
	n.noUsageAsked = ctr("usage_not_asked", "streams without usage whose request did not ask for it (include_usage)")
	n.input = ctr("input_tokens", "tokens that servers say they were given, cached ones included")
	n.output = ctr("output_tokens", "tokens that servers say they made, reasoning included")
	n.cached = ctr("cached_tokens", "of the input tokens, those that came out of a cache")
	n.reasoning = ctr("reasoning_tokens", "of the output tokens, those of reasoning")
	n.chunks = ctr("output_chunks", "events of streams with content in them")
	n.usage = map[string]*pipeline.Counter{}
	for _, u := range []string{"complete", "partial", "failed", "missing"} {
		n.usage[u] = ctr("usage_"+u, "requests whose usage was that")
	}
	for i := readAll + 1; i < numUnread; i++ {
		n.unread[i] = ctr("unread_"+unreadNames[i].name, unreadNames[i].help)
	}
	return n
}

// Histograms of OpenTelemetry's semantic conventions for generative AI, as their
// exporters to Prometheus spell them: names, attributes and bounds.
const (
	nameTokens   = "gen_ai_client_token_usage"
	nameDuration = "gen_ai_server_request_duration_seconds"
	nameFirst    = "gen_ai_server_time_to_first_token_seconds"
	namePerToken = "gen_ai_server_time_per_output_token_seconds"
)

var (
	boundsTokens   = []float64{1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864}
	boundsDuration = []float64{0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92}
	boundsFirst    = []float64{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}
	boundsPerToken = []float64{0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5}
)

// metrics are the histograms of one worker.
type metrics struct {
	set    *pipeline.CounterSet
	models *models
	series map[seriesKey]*series
}

type seriesKey struct {
	dialect dialect
	model   string
}

// series are the histograms of one model in one dialect.
type series struct {
	labels                         []pipeline.Label
	input, output, first, perToken *pipeline.Histogram
	duration                       map[string]*pipeline.Histogram // by error
}

func newMetrics(env *pipeline.Env, maxModels int) metrics {
	shared := env.Shared.Get("models", func() any { return &models{max: maxModels, known: map[string]bool{}} }).(*models)
	return metrics{set: env.Counters, models: shared, series: map[seriesKey]*series{}}
}

// models are the names that metrics tell apart, on all workers.
type models struct {
	mu    sync.Mutex
	max   int
	known map[string]bool
}

const otherModel = "other"

// label returns the name that stands for a model: its own, as long as there are
// few enough, or "other".
func (m *models) label(model string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.known[model] {
		if len(m.known) >= m.max {
			return otherModel
		}
		m.known[model] = true
	}
	return model
}

func (m *metrics) of(d dialect, model string) *series {
	if s := m.series[seriesKey{d, model}]; s != nil {
		return s
	}
	key := seriesKey{d, m.models.label(model)}
	s := m.series[key]
	if s == nil {
		s = &series{duration: map[string]*pipeline.Histogram{}, labels: []pipeline.Label{
			{Name: "gen_ai_operation_name", Value: dialects[d].operation},
			{Name: "gen_ai_provider_name", Value: dialects[d].provider},
			{Name: "gen_ai_request_model", Value: key.model},
		}}
		s.input = m.histogram(s, nameTokens, "Tokens of a request, as the server reports them.", boundsTokens, "gen_ai_token_type", "input")
		s.output = m.histogram(s, nameTokens, "Tokens of a request, as the server reports them.", boundsTokens, "gen_ai_token_type", "output")
		s.first = m.histogram(s, nameFirst, "From the end of a request to the first content of its stream.", boundsFirst, "", "")
		s.perToken = m.histogram(s, namePerToken, "Time of a stream behind its first content, for each further token.", boundsPerToken, "", "")
		m.series[key] = s
	}
	return s
}

func (m *metrics) histogram(s *series, name, help string, bounds []float64, label, value string) *pipeline.Histogram {
	labels := append([]pipeline.Label(nil), s.labels...)
	if label != "" {
		labels = append(labels, pipeline.Label{Name: label, Value: value})
	}
	return m.set.Histogram(name, help, bounds, labels...)
}

// observe counts an exchange that is settled.
func (m *metrics) observe(e *exchange, usage string) {
	model := e.model
	if model == "" {
		model = e.answeredModel
	}
	s := m.of(e.dialect, model)
	if e.known[countInput] {
		s.input.Observe(float64(e.counts[countInput]))
	}
	if e.known[countOutput] {
		s.output.Observe(float64(e.counts[countOutput]))
	}
	if t, ok := e.timeToFirst(); ok && usage != "failed" {
		s.first.Observe(t)
	}
	if t, ok := e.timePerToken(); ok && usage == "complete" {
		s.perToken.Observe(t)
	}
	kind := e.errorLabel(usage)
	h := s.duration[kind]
	if h == nil {
		h = m.histogram(s, nameDuration, "From a request's head to the end of its response.", boundsDuration, "error_type", kind)
		s.duration[kind] = h
	}
	h.Observe(seconds(e.ended - e.started))
}

// errorLabel is the error as metrics tell them apart: few.
func (e *exchange) errorLabel(usage string) string {
	switch {
	case usage != "failed":
		return ""
	case e.status >= 400 && e.status < 600:
		return strconv.Itoa(e.status)
	}
	return "stream_error"
}

func seconds(ns int64) float64 { return float64(ns) / 1e9 }

// timeToFirst is from the end of the request to the first content of a stream,
// in seconds.
func (e *exchange) timeToFirst() (float64, bool) {
	if e.firstContent == 0 {
		return 0, false
	}
	from := e.asked
	if from == 0 || from > e.firstContent {
		from = e.started // the answer began before the request was complete
	}
	return seconds(e.firstContent - from), true
}

// timePerToken is (duration - time to first token) / (output tokens - 1).
func (e *exchange) timePerToken() (float64, bool) {
	if e.firstContent == 0 || e.counts[countOutput] < 2 {
		return 0, false
	}
	return seconds(e.ended-e.firstContent) / float64(e.counts[countOutput]-1), true
}
