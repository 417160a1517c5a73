package llm

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"penstock/pipeline"
)

// tokenEvents are what the dialects send for each token, a segment each.
var tokenEvents = []struct{ name, path, contentType, event string }{
	{"openai_chat", "/v1/chat/completions", sse, "data: {\"id\":\"chatcmpl-9aXk3\",\"object\":\"chat.completion.chunk\",\"created\":1765432100,\"model\":\"gpt-4o-2024-08-06\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_44709d6fcb\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n"},
	{"openai_responses", "/v1/responses", sse, "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"sequence_number\":17,\"item_id\":\"msg_67c9fdcf37fc8190ba82116e33fb28c5\",\"output_index\":0,\"content_index\":0,\"delta\":\" token\",\"logprobs\":[],\"obfuscation\":\"KvBTCWYbXv\"}\n\n"},
	{"anthropic_messages", "/v1/messages", sse, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" token\"}}\n\n"},
	{"ollama_chat", "/api/chat", "application/x-ndjson", "{\"model\":\"llama3.2\",\"created_at\":\"2025-08-04T08:52:19.385406455-07:00\",\"message\":{\"role\":\"assistant\",\"content\":\" token\"},\"done\":false}\n"},
}

// streaming opens a connection on which a stream is under way, and returns what
// shows the segment of one token.
func streaming(t testing.TB, path, contentType, event, encoding string) (r *rig, one func()) {
	r = newRig(t, nil)
	s := r.Open(&pipeline.Conn{Start: 1})
	head := "HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\n" + encoding + "Transfer-Encoding: chunked\r\n\r\n"
	s.Data(pipeline.ToServer, []byte(post(path, ask)), 1)
	s.Data(pipeline.ToClient, []byte(head), 2)
	segment := fmt.Appendf(nil, "%x\r\n%s\r\n", len(event), event)
	return r, func() { s.Data(pipeline.ToClient, segment, 3) }
}

func TestTokensDoNotAllocate(t *testing.T) {
	for _, e := range tokenEvents {
		r, one := streaming(t, e.path, e.contentType, e.event, "")
		one()
		if n := testing.AllocsPerRun(1000, one); n != 0 {
			t.Errorf("%s: %v allocations a token", e.name, n)
		}
		if r.counter("released") != 0 {
			t.Errorf("%s was let go of", e.name)
		}
	}
}

// cpuTime is what the process has used: on a machine that is shared, wall time
// tells of the others.
func cpuTime() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkToken is what the stage takes for a token of a stream: one segment
// with one chunk with one event.
func BenchmarkToken(b *testing.B) {
	for _, e := range tokenEvents {
		b.Run(e.name, func(b *testing.B) {
			_, one := streaming(b, e.path, e.contentType, e.event, "")
			b.SetBytes(int64(len(e.event)))
			b.ReportAllocs()
			before := cpuTime()
			for b.Loop() {
				one()
			}
			b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkTokenUnmarshal is a yardstick: encoding/json, told where all is, on the
// event of openai_chat.
func BenchmarkTokenUnmarshal(b *testing.B) {
	event := tokenEvents[0].event
	data := []byte(event[len("data: ") : len(event)-2])
	var v struct {
		Model   string
		Choices []struct {
			Delta        struct{ Content string }
			FinishReason string `json:"finish_reason"`
		}
		Usage *struct {
			PromptTokens int `json:"prompt_tokens"`
		}
	}
	b.ReportAllocs()
	before := cpuTime()
	for b.Loop() {
		if err := json.Unmarshal(data, &v); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
}

// BenchmarkPrompt is what it takes for a request of some size, with its answer.
func BenchmarkPrompt(b *testing.B) {
	for _, size := range []int{1 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			r := newRig(b, nil)
			r.logs = false
			up := []byte(post("/v1/chat/completions", `{"messages":[{"role":"user","content":"`+strings.Repeat(`some words\n`, size/12)+`"}],"model":"m"}`))
			down := []byte(answer("application/json", samples[0].answer))
			s := r.Open(&pipeline.Conn{Start: 1})
			b.SetBytes(int64(len(up)))
			b.ReportAllocs()
			for b.Loop() {
				for p := up; len(p) > 0; {
					n := min(1448, len(p))
					s.Data(pipeline.ToServer, p[:n], 1)
					p = p[n:]
				}
				s.Data(pipeline.ToClient, down, 2)
			}
		})
	}
}
