package llm

import "penstock/pipeline"

// event is a record "llm".
type event struct {
	FlowID   uint64    `json:"flow_id"`
	SrcIP    string    `json:"src_ip"`
	SrcPort  uint16    `json:"src_port"`
	DestIP   string    `json:"dest_ip"`
	DestPort uint16    `json:"dest_port"`
	Proto    string    `json:"proto"`
	Chain    string    `json:"chain"`
	Action   string    `json:"action,omitempty"` // "allowed" or "denied"; absent: there are no rules
	Reason   string    `json:"reason,omitempty"`
	Rules    []string  `json:"rules,omitempty"` // that applied
	LLM      llmRecord `json:"llm"`
}

type llmRecord struct {
	Hostname  string `json:"hostname,omitempty"`
	Path      string `json:"path"`
	Dialect   string `json:"dialect"`
	Provider  string `json:"provider"`
	Operation string `json:"operation"`
	Identity  string `json:"identity,omitempty"`

	Model         string `json:"model,omitempty"`
	ResponseModel string `json:"response_model,omitempty"`
	Stream        bool   `json:"stream"`
	Status        int    `json:"status,omitempty"` // absent: no response came
	FinishReason  string `json:"finish_reason,omitempty"`
	Error         string `json:"error,omitempty"`
	ErrorInStream bool   `json:"error_in_stream,omitempty"` // under a status of success

	Usage         string  `json:"usage"`                  // "complete", "partial", "failed", "missing"
	Input         *uint64 `json:"input_tokens,omitempty"` // absent: the server has not said
	CacheRead     *uint64 `json:"cached_tokens,omitempty"`
	CacheWrite    *uint64 `json:"cache_write_tokens,omitempty"`
	Output        *uint64 `json:"output_tokens,omitempty"`
	Reasoning     *uint64 `json:"reasoning_tokens,omitempty"`
	Total         *uint64 `json:"total_tokens,omitempty"`          // input and output
	ProviderTotal *uint64 `json:"provider_total_tokens,omitempty"` // as the server says
	Chunks        uint64  `json:"output_chunks,omitempty"`         // events with content that went by

	FirstToken *float64 `json:"time_to_first_token_seconds,omitempty"`
	PerToken   *float64 `json:"time_per_output_token_seconds,omitempty"`
	FirstByte  float64  `json:"time_to_first_byte_seconds,omitempty"`
	Duration   float64  `json:"duration_seconds"`

	RequestBytes  uint64 `json:"request_bytes"`
	ResponseBytes uint64 `json:"response_bytes"`
	Cut           bool   `json:"cut,omitempty"`    // the connection ended before the response did
	Unread        string `json:"unread,omitempty"` // why bodies could not be read
	Unseen        string `json:"unseen,omitempty"` // why the record ends before the exchange does
	Malformed     uint64 `json:"malformed_events,omitempty"`
}

// settle counts and records an exchange that has ended.
func (s *stage) settle(c *pipeline.Conn, e *exchange) {
	if e.dialect == noDialect {
		return
	}
	e.settle()
	usage := e.usage()
	s.n.requests.Add(1)
	s.n.usage[usage].Add(1)
	if e.streamed {
		s.n.streamed.Add(1)
		if usage == "missing" && !e.includeUsage && (e.dialect == openaiChat || e.dialect == openaiCompletions) {
			s.n.noUsageAsked.Add(1)
		}
	}
	inside := e.failed && e.status < 400
	if inside {
		s.n.streamErrors.Add(1)
	}
	s.n.input.Add(e.counts[countInput])
	s.n.output.Add(e.counts[countOutput])
	s.n.cached.Add(e.counts[countCacheRead])
	s.n.reasoning.Add(e.counts[countReasoning])
	s.n.chunks.Add(e.chunks)
	s.metrics.observe(e, usage)
	if !s.logs || !s.env.Recorder.Enabled("llm") {
		return
	}
	d := &dialects[e.dialect]
	r := llmRecord{
		Hostname: e.host, Path: e.path, Dialect: d.name, Provider: d.provider, Operation: d.operation, Identity: e.identity,
		Model: e.model, ResponseModel: e.answeredModel, Stream: e.streamed, Status: e.status, FinishReason: e.finish,
		Error: e.errorName(), ErrorInStream: inside, Usage: usage, Chunks: e.chunks,
		Input: e.count(countInput), CacheRead: e.count(countCacheRead), CacheWrite: e.count(countCacheWrite),
		Output: e.count(countOutput), Reasoning: e.count(countReasoning), ProviderTotal: e.count(countTotal),
		Duration: seconds(e.ended - e.started), RequestBytes: e.requestBytes, ResponseBytes: e.responseBytes,
		Cut: !e.whole && e.unseen == pipeline.ReasonNone && e.unread != unreadHTTP, Unread: unreadNames[e.unread].name, Malformed: e.broken,
	}
	if e.status == 0 {
		r.Stream = e.wantsStream()
	}
	if e.known[countInput] || e.known[countOutput] {
		total := e.counts[countInput] + e.counts[countOutput]
		r.Total = &total
	}
	if t, ok := e.timeToFirst(); ok {
		r.FirstToken = &t
	}
	if t, ok := e.timePerToken(); ok && usage == "complete" {
		r.PerToken = &t
	}
	if e.firstByte > 0 {
		r.FirstByte = seconds(max(e.firstByte-e.started, 0))
	}
	if e.unseen != pipeline.ReasonNone {
		r.Unseen = e.unseen.String()
	}
	ev := event{
		FlowID: c.ID, SrcIP: c.Client.Addr().String(), SrcPort: c.Client.Port(),
		DestIP: c.Server.Addr().String(), DestPort: c.Server.Port(), Proto: "TCP", Chain: s.env.Chain, Rules: e.rules, LLM: r,
	}
	if s.rules != nil {
		ev.Action = "allowed"
	}
	if e.denied != pipeline.ReasonNone {
		ev.Action, ev.Reason = "denied", e.denied.String()
	}
	s.env.Recorder.Record("llm", ev)
}

// count returns a figure that the server has given, nil if it has not.
func (e *exchange) count(c count) *uint64 {
	if !e.known[c] {
		return nil
	}
	n := e.counts[c]
	return &n
}
