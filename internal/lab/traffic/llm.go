package traffic

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Headers with which a request tells the LLM server what to answer. All are
// optional.
const (
	LLMTokens = "X-Lab-Tokens" // how many tokens the answer has; 1
	LLMFirst  = "X-Lab-First"  // how long until the first one
	LLMEvery  = "X-Lab-Every"  // and between two
	LLMFail   = "X-Lab-Fail"   // a status to fail with; "stream": fail in the middle of the stream
)

// LLMEntry is what the server knows of a request.
type LLMEntry struct {
	Path                             string
	Input, Output, Cached, Reasoning uint64        // as it says, in the dialect of OpenAI: inclusive
	SaidUsage                        bool          // the answer had usage, and was written to its end
	Chunks                           int           // events with content that were written
	First                            time.Duration // from the end of the request to the first content being written; 0: not a stream
	Done                             bool          // the answer was written to its end
	Failed                           bool          // on purpose
}

// LLM is a server that speaks as servers of language models do: the dialects of
// OpenAI, Anthropic and Ollama, in one answer or as a stream. The name of the
// model identifies a request in its books. Answers are compressed for clients that
// accept gzip.
type LLM struct {
	mu    sync.Mutex
	books map[string]LLMEntry
}

// Book returns what the server knows of a request, by its model's name.
func (s *LLM) Book(model string) (LLMEntry, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.books[model]
	return e, ok
}

// Serve serves on ln until ctx ends; then it closes ln and all connections.
func (s *LLM) Serve(ctx context.Context, ln net.Listener) error {
	h := &http.Server{Handler: s, ReadHeaderTimeout: idleLimit, IdleTimeout: idleLimit, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { h.Close() })
	defer stop()
	if err := h.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve models on %s: %w", ln.Addr(), err)
	}
	return nil
}

// llmAnswer is one answer that is being written.
type llmAnswer struct {
	w     io.Writer
	flush func()
	r     *http.Request
	e     LLMEntry
	asked time.Time
	first time.Duration
	every time.Duration
	model string
	want  struct {
		Model         string
		Stream        *bool
		StreamOptions struct {
			IncludeUsage bool `json:"include_usage"`
		} `json:"stream_options"`
	}
}

// ServeHTTP implements http.Handler.
func (s *LLM) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<20))
	if err != nil {
		return
	}
	a := &llmAnswer{r: r, asked: time.Now()}
	if err := json.Unmarshal(body, &a.want); err != nil || r.Method != http.MethodPost {
		badRequest(w, "want a POST of JSON: %v", err)
		return
	}
	a.model = a.want.Model
	a.e = LLMEntry{Path: r.URL.Path, Input: uint64(len(body)), Cached: uint64(len(body) / 3), Output: 1}
	for name, d := range map[string]*time.Duration{LLMFirst: &a.first, LLMEvery: &a.every} {
		if v := r.Header.Get(name); v != "" {
			if *d, err = time.ParseDuration(v); err != nil || *d < 0 || *d > maxDelay {
				badRequest(w, "%s: %q: want a duration up to %v", name, v, maxDelay)
				return
			}
		}
	}
	if v := r.Header.Get(LLMTokens); v != "" {
		if a.e.Output, err = strconv.ParseUint(v, 10, 20); err != nil || a.e.Output == 0 {
			badRequest(w, "%s: %q: want 1 to 1048575", LLMTokens, v)
			return
		}
	}
	a.e.Reasoning = a.e.Output / 4
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.books == nil {
			s.books = map[string]LLMEntry{}
		}
		s.books[a.model] = a.e
	}()
	a.serve(w)
}

func (a *llmAnswer) serve(w http.ResponseWriter) {
	status := http.StatusOK
	if v, err := strconv.Atoi(a.r.Header.Get(LLMFail)); err == nil && v >= 400 && v < 600 {
		status, a.e.Failed = v, true
	}
	ollama := strings.HasPrefix(a.r.URL.Path, "/api/")
	stream := ollama && a.want.Stream == nil || a.want.Stream != nil && *a.want.Stream
	switch {
	case !stream || a.e.Failed:
		w.Header().Set("Content-Type", "application/json")
	case ollama:
		w.Header().Set("Content-Type", "application/x-ndjson")
	default:
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	}
	rc := http.NewResponseController(w)
	a.w, a.flush = w, func() { _ = rc.Flush() } // an error shows at the next write
	if strings.Contains(a.r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		defer z.Close()
		a.w, a.flush = z, func() { _, _ = z.Flush(), rc.Flush() }
	}
	w.WriteHeader(status)
	var err error
	switch {
	case a.e.Failed:
		err = a.say(`{"type":"error","error":{"type":"overloaded_error","message":"on purpose"}}`)
	case !stream:
		if err = a.wait(a.first + time.Duration(a.e.Output)*a.every); err == nil {
			err = a.say(a.whole())
			a.e.SaidUsage = err == nil
		}
	case ollama:
		err = a.stream("", `{"model":%q,"message":{"role":"assistant","content":"tok "},"done":false}`+"\n", `{"error":"on purpose"}`+"\n",
			fmt.Sprintf(`{"model":%q,"message":{"content":""},"done":true,"done_reason":"stop","prompt_eval_count":%d,"eval_count":%d}`+"\n", a.model, a.e.Input, a.e.Output))
	case strings.HasSuffix(a.r.URL.Path, "/messages"):
		err = a.stream("event: message_start\ndata: "+fmt.Sprintf(`{"type":"message_start","message":{"model":%q,"content":[],"usage":{"input_tokens":%d,"cache_read_input_tokens":%d,"output_tokens":1}}}`, a.model, a.e.Input-a.e.Cached, a.e.Cached)+"\n\nevent: ping\ndata: {\"type\": \"ping\"}\n\n",
			"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"tok \"}}\n\n",
			"event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"on purpose\"}}\n\n",
			fmt.Sprintf("event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":%d}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", a.e.Output))
	case strings.HasSuffix(a.r.URL.Path, "/responses"):
		err = a.stream("event: response.created\ndata: "+fmt.Sprintf(`{"type":"response.created","response":{"model":%q,"status":"in_progress","usage":null}}`, a.model)+"\n\n",
			"event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"tok \"}\n\n",
			"event: error\ndata: {\"type\":\"error\",\"code\":\"server_error\",\"message\":\"on purpose\"}\n\n",
			"event: response.completed\ndata: "+fmt.Sprintf(`{"type":"response.completed","response":{"model":%q,"status":"completed","usage":%s}}`, a.model, a.usage("input", "output"))+"\n\n")
	default:
		last := "data: " + fmt.Sprintf(`{"model":%q,"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`, a.model) + "\n\n"
		if a.want.StreamOptions.IncludeUsage {
			last += "data: " + fmt.Sprintf(`{"model":%q,"choices":[],"usage":%s}`, a.model, a.usage("prompt", "completion")) + "\n\n"
		}
		err = a.stream(": keep-alive\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
			"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":%q,\"choices\":[{\"index\":0,\"delta\":{\"content\":\"tok \"},\"finish_reason\":null}],\"usage\":null}\n\n",
			"data: {\"error\":{\"message\":\"on purpose\",\"type\":\"server_error\"}}\n\n", last+"data: [DONE]\n\n")
		a.e.SaidUsage = a.e.SaidUsage && a.want.StreamOptions.IncludeUsage
	}
	a.e.Done = err == nil
}

// stream writes what comes before the tokens, each token, and what comes behind
// them. An error is what a client's leaving shows as.
func (a *llmAnswer) stream(before, token, failure, behind string) error {
	if err := a.say(before); err != nil {
		return err
	}
	if strings.Contains(token, "%q") {
		token = fmt.Sprintf(token, a.model)
	}
	for i := range a.e.Output {
		wait := a.every
		if i == 0 {
			wait = a.first
		}
		if err := a.wait(wait); err != nil {
			return err
		}
		if err := a.say(token); err != nil {
			return err
		}
		if i == 0 {
			a.e.First = time.Since(a.asked)
		}
		a.e.Chunks++
		if i == a.e.Output/2 && a.r.Header.Get(LLMFail) == "stream" {
			a.e.Failed = true
			return a.say(failure)
		}
	}
	err := a.say(behind)
	a.e.SaidUsage = err == nil
	return err
}

func (a *llmAnswer) say(text string) error {
	if _, err := io.WriteString(a.w, text); err != nil {
		return err
	}
	a.flush()
	return a.r.Context().Err()
}

func (a *llmAnswer) wait(d time.Duration) error {
	if d <= 0 {
		return a.r.Context().Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-a.r.Context().Done():
		return a.r.Context().Err()
	}
}

// usage is the figures as OpenAI writes them, in the words of one of its dialects.
func (a *llmAnswer) usage(in, out string) string {
	return fmt.Sprintf(`{"%s_tokens":%d,"%s_tokens_details":{"cached_tokens":%d},"%s_tokens":%d,"%s_tokens_details":{"reasoning_tokens":%d},"total_tokens":%d}`,
		in, a.e.Input, in, a.e.Cached, out, a.e.Output, out, a.e.Reasoning, a.e.Input+a.e.Output)
}

// whole is an answer that is no stream.
func (a *llmAnswer) whole() string {
	text := strings.Repeat("tok ", int(a.e.Output))
	switch path := a.r.URL.Path; {
	case strings.HasSuffix(path, "/embeddings"):
		a.e.Output = 0
		return fmt.Sprintf(`{"object":"list","model":%q,"data":[{"object":"embedding","index":0,"embedding":[0.1,-0.2]}],"usage":{"prompt_tokens":%d,"total_tokens":%d}}`, a.model, a.e.Input, a.e.Input)
	case strings.HasPrefix(path, "/api/"):
		return fmt.Sprintf(`{"model":%q,"message":{"role":"assistant","content":%q},"done":true,"done_reason":"stop","prompt_eval_count":%d,"eval_count":%d}`, a.model, text, a.e.Input, a.e.Output)
	case strings.HasSuffix(path, "/messages"):
		return fmt.Sprintf(`{"type":"message","model":%q,"content":[{"type":"text","text":%q}],"stop_reason":"end_turn","usage":{"input_tokens":%d,"cache_read_input_tokens":%d,"output_tokens":%d}}`, a.model, text, a.e.Input-a.e.Cached, a.e.Cached, a.e.Output)
	case strings.HasSuffix(path, "/responses"):
		return fmt.Sprintf(`{"object":"response","status":"completed","error":null,"model":%q,"output":[{"type":"message","content":[{"type":"output_text","text":%q}]}],"usage":%s}`, a.model, text, a.usage("input", "output"))
	}
	return fmt.Sprintf(`{"object":"chat.completion","model":%q,"choices":[{"index":0,"message":{"role":"assistant","content":%q},"finish_reason":"stop"}],"usage":%s}`, a.model, text, a.usage("prompt", "completion"))
}
