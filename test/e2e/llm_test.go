package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/traffic"
)

const llmChain = `
[[steer]]
from = "lan"
proto = "tcp"
to = "llm"
[[chain]]
name = "llm"
  [[chain.stage]]
  kind = "tcp"
  depth = "%s"
  [[chain.stage]]
  kind = "llm"
  max_models = 5
[[record]]
to = "file:%s"
events = ["llm"]
`

// llmServer runs the server of package traffic in the server's namespace.
func (r *rig) llmServer(port uint16) *traffic.LLM {
	r.t.Helper()
	s := &traffic.LLM{}
	for _, v6 := range []bool{false, true} {
		ln, err := r.Server.Listen("tcp", r.addr(v6, port))
		if err != nil {
			r.t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx, ln) }()
		r.t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				r.t.Error(err)
			}
		})
	}
	return s
}

// llmRequest is one request of the mix, and what came of it at the client.
type llmRequest struct {
	model, path, body string
	header            map[string]string
	leaveAfter        int // events, then the client goes; 0: it stays
	gotChunks         int
	left              bool
}

// newLLMRequest makes request i of a mix of dialects, streams, compressed
// answers, failures and clients that leave.
func newLLMRequest(i int) *llmRequest {
	rng := rand.New(rand.NewPCG(uint64(i), 7))
	q := &llmRequest{model: fmt.Sprintf("lab-%d", i), header: map[string]string{
		"Content-Type": "application/json", "Accept-Encoding": "identity", "Authorization": "Bearer sk-lab-" + strconv.Itoa(i%3),
		traffic.LLMTokens: strconv.Itoa(1 + rng.IntN(40)), traffic.LLMFirst: fmt.Sprintf("%dus", 1000+rng.IntN(20000)), traffic.LLMEvery: fmt.Sprintf("%dus", rng.IntN(1500)),
	}}
	q.path = []string{"/v1/chat/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat", "/v1/embeddings"}[i%6]
	stream := q.path != "/v1/embeddings" && rng.IntN(4) > 0
	prompt := strings.Repeat("a \"quoted\" prompt\n", rng.IntN(200))
	if rng.IntN(50) == 0 {
		prompt = strings.Repeat("long ", 40000)
	}
	body := map[string]any{"model": q.model, "stream": stream, "messages": []any{map[string]any{"role": "user", "content": prompt}}}
	switch q.path {
	case "/v1/chat/completions":
		if stream && rng.IntN(4) > 0 {
			body["stream_options"] = map[string]any{"include_usage": true}
		}
	case "/v1/messages":
		q.header["X-Api-Key"] = "sk-lab-" + strconv.Itoa(i%3)
		q.header["Anthropic-Version"] = "2023-06-01"
		delete(q.header, "Authorization")
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	q.body = string(b)
	switch rng.IntN(12) {
	case 0:
		q.header["Accept-Encoding"] = "gzip"
	case 1:
		q.header[traffic.LLMFail] = "529"
	case 2:
		q.header[traffic.LLMFail] = "stream"
	case 3:
		if stream {
			q.leaveAfter = 1 + rng.IntN(10)
			q.header[traffic.LLMTokens] = "60"
			q.header[traffic.LLMEvery] = "2ms"
		}
	}
	return q
}

// do sends the request and reads the answer, or a part of it.
func (q *llmRequest) do(client *http.Client, base string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", base+q.path, strings.NewReader(q.body))
	if err != nil {
		return err
	}
	for k, v := range q.header {
		req.Header.Set(k, v)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if q.leaveAfter == 0 {
		_, err := io.Copy(io.Discard, resp.Body)
		return err
	}
	var seen []byte
	buf := make([]byte, 4096)
	for {
		n, err := resp.Body.Read(buf)
		seen = append(seen, buf[:n]...)
		q.gotChunks = bytes.Count(seen, []byte("tok "))
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if q.gotChunks >= q.leaveAfter {
			q.left = true
			return nil // closing the body closes the connection
		}
	}
}

type llmEvent struct {
	LLM struct {
		Model, Path, Usage, Dialect, Identity, Error, Unread, Unseen string
		Stream, Cut                                                  bool
		Input                                                        uint64  `json:"input_tokens"`
		Output                                                       uint64  `json:"output_tokens"`
		Cached                                                       uint64  `json:"cached_tokens"`
		Reasoning                                                    uint64  `json:"reasoning_tokens"`
		Total                                                        uint64  `json:"total_tokens"`
		Chunks                                                       int     `json:"output_chunks"`
		First                                                        float64 `json:"time_to_first_token_seconds"`
		Duration                                                     float64 `json:"duration_seconds"`
	}
}

// TestLLM sends a mix of requests to a server of language models, through the
// appliance: what it records is what the server has in its books. LLM_REQUESTS
// sets how many.
func TestLLM(t *testing.T) {
	for _, depth := range []string{"auto", "terminate"} {
		t.Run(depth, func(t *testing.T) { testLLM(t, depth) })
	}
}

func testLLM(t *testing.T, depth string) {
	requests := 200
	if v := os.Getenv("LLM_REQUESTS"); v != "" {
		var err error
		if requests, err = strconv.Atoi(v); err != nil || requests < 1 || requests > 1000000 {
			t.Fatalf("LLM_REQUESTS=%q: want a number from 1 to 1000000", v)
		}
	}
	r := newRig(t, lab.InlineOptions{})
	log := filepath.Join(r.dir, "events.json")
	r.config("closed", "", fmt.Sprintf(llmChain, depth, log))
	server := r.llmServer(8000)
	a := r.start()
	if s := a.status(); s.Chains[0].Depth != map[string]string{"auto": "inspect", "terminate": "terminate"}[depth] {
		t.Fatalf("depth %s: %s", s.Chains[0].Depth, s.Chains[0].Why)
	}
	list := make([]*llmRequest, requests)
	var next atomic.Int64
	var workers sync.WaitGroup
	begin := time.Now()
	for w := range 24 {
		workers.Go(func() {
			transport := &http.Transport{DialContext: r.Client.DialContext, DisableCompression: true, MaxIdleConnsPerHost: 1}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport}
			base := "http://" + r.addr(w%2 == 1, 8000)
			for i := int(next.Add(1)) - 1; i < requests; i = int(next.Add(1)) - 1 {
				list[i] = newLLMRequest(i)
				if err := list[i].do(client, base); err != nil {
					t.Errorf("request %d: %v", i, err)
				}
			}
		})
	}
	workers.Wait()
	took := time.Since(begin)
	events := map[string]llmEvent{}
	r.eventually("the requests are recorded", func() error {
		b, err := os.ReadFile(log)
		if n := bytes.Count(b, []byte("\n")); err != nil || n != requests {
			return fmt.Errorf("%d records of %d, %v", n, requests, err)
		}
		for line := range bytes.Lines(b) {
			var e llmEvent
			if err := json.Unmarshal(line, &e); err != nil {
				return fmt.Errorf("%s: %w", line, err)
			}
			if bytes.Contains(line, []byte("sk-lab")) {
				return fmt.Errorf("a credential is in the record %s", line)
			}
			events[e.LLM.Model] = e
		}
		return nil
	})
	count := map[string]int{}
	identities := map[string]string{}
	var off []float64 // time to first token: the record's less the server's, seconds
	var input, output uint64
	for i, q := range list {
		book, ok := server.Book(q.model)
		e, recorded := events[q.model]
		if !ok || !recorded {
			t.Fatalf("request %d: in the server's books %v, recorded %v", i, ok, recorded)
		}
		got := e.LLM
		count[got.Usage]++
		input, output = input+got.Input, output+got.Output
		key := strconv.Itoa(i % 3)
		if identities[key] == "" {
			identities[key] = got.Identity
		}
		wrong := got.Path != q.path || got.Unread != "" || got.Unseen != "" || len(got.Identity) != 24 || got.Identity != identities[key]
		exact := got.Input == book.Input && got.Output == book.Output && got.Total == book.Input+book.Output
		if openai := strings.HasPrefix(got.Dialect, "openai_") && got.Dialect != "openai_embeddings"; openai {
			exact = exact && got.Reasoning == book.Reasoning && got.Cached == book.Cached
		} else if got.Dialect == "anthropic_messages" {
			exact = exact && got.Cached == book.Cached
		}
		switch {
		case book.Failed:
			wrong = wrong || got.Usage != "failed" || got.Error == "" || got.Chunks != book.Chunks && got.Stream
		case got.Usage == "complete":
			wrong = wrong || !exact || !book.SaidUsage || got.Stream && got.Chunks != book.Chunks
		case got.Usage == "missing":
			wrong = wrong || book.SaidUsage || !book.Done || got.Chunks != book.Chunks
		default:
			// Events that the server has written may not have gone by when the
			// client had left.
			wrong = wrong || got.Usage != "partial" || !q.left || got.Chunks < q.gotChunks || got.Chunks > book.Chunks+1
		}
		if !q.left && !book.Failed {
			wrong = wrong || book.SaidUsage != (got.Usage == "complete")
		}
		if wrong {
			t.Errorf("request %d (left %v after %d events):\nrecord %+v\nserver %+v", i, q.left, q.gotChunks, got, book)
		}
		if book.First > 0 && got.First > 0 {
			off = append(off, got.First-book.First.Seconds())
		}
	}
	if count["partial"] == 0 || count["failed"] == 0 || count["missing"] == 0 || count["complete"] < requests/2 {
		t.Errorf("the mix is none: %v", count)
	}
	slices.SortFunc(off, func(a, b float64) int {
		return int((max(a, -a) - max(b, -b)) * 1e9)
	})
	// The server's own time begins when it has been woken up: on a machine that
	// is busy with both ends and the appliance, that is late.
	if len(off) == 0 || max(off[len(off)/2], -off[len(off)/2]) > 0.1 || max(off[len(off)*99/100], -off[len(off)*99/100]) > 5 {
		t.Fatalf("times to the first token differ too much: %v s", off)
	}
	t.Logf("%d requests in %v: usage %v; times to the first token differ from the server's by %.3f ms in the median, %.3f ms in 99%%, %.3f ms at most (of %d)",
		requests, took.Round(time.Millisecond), count, off[len(off)/2]*1e3, off[len(off)*99/100]*1e3, off[len(off)-1]*1e3, len(off))
	st := a.status().Chains[0].Stages[1]
	if st.Counters["requests"] != uint64(requests) || st.Counters["input_tokens"] != input || st.Counters["output_tokens"] != output {
		t.Errorf("counters %v, want %d requests, %d and %d tokens", st.Counters, requests, input, output)
	}
	sums, models := map[string]float64{}, map[string]bool{}
	for _, h := range st.Histograms {
		for _, l := range h.Labels {
			if l.Name == "gen_ai_token_type" {
				sums[l.Value] += h.Sum
			}
			if l.Name == "gen_ai_request_model" {
				models[l.Value] = true
			}
		}
	}
	if sums["input"] != float64(input) || sums["output"] != float64(output) || len(models) != 6 || !models["other"] {
		t.Errorf("histograms: %v tokens of models %v, want %d and %d", sums, models, input, output)
	}
	a.stop()
}
