package llm

import (
	"fmt"
	"strings"
	"testing"

	"penstock/pipeline"
)

const sse = "text/event-stream; charset=utf-8"

// sample is a request and its answer as they stand on the wire, and the record.
type sample struct {
	name, path, request string
	contentType, answer string
	want                string
}

// The bodies follow the documents of the three dialects; values are our own.
var samples = []sample{
	{
		"openai chat", "/v1/chat/completions", `{"messages":[{"role":"user","content":"\"model\": \u00e9 \\","model":"inner"}],"model":"gpt-4o"}`,
		"application/json", `{"id":"x","object":"chat.completion","model":"gpt-4o-2024","choices":[{"index":0,"message":{"role":"assistant","content":"hi","usage":{"prompt_tokens":9999}},"finish_reason":"stop"}],` +
			`"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120,"prompt_tokens_details":{"cached_tokens":64},"completion_tokens_details":{"reasoning_tokens":7}},"error":null}`,
		`{"cached_tokens":64,"dialect":"openai_chat","finish_reason":"stop","input_tokens":100,"model":"gpt-4o","output_tokens":20,"path":"/v1/chat/completions","provider_total_tokens":120,"reasoning_tokens":7,"response_model":"gpt-4o-2024","status":200,"stream":false,"total_tokens":120,"usage":"complete"}`,
	}, {
		"openai chat stream", "/v1/chat/completions?a=b", `{"model":"gpt-4o","stream":true,"stream_options":{"include_usage":true}}`,
		sse, "data: {\"model\":\"gpt-4o\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n" +
			"data: {\"model\":\"gpt-4o\",\"choices\":[{\"delta\":{\"content\":\"Hel\"}}],\"usage\":null}\n\n: keep-alive\n\n" +
			"data: {\"model\":\"gpt-4o\",\"choices\":[{\"delta\":{\"content\":\"lo\"}}]}\n\n" +
			"data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n" +
			"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7}}\n\ndata: [DONE]\n\n",
		`{"dialect":"openai_chat","finish_reason":"length","input_tokens":5,"model":"gpt-4o","output_chunks":2,"output_tokens":2,"path":"/v1/chat/completions","provider_total_tokens":7,"response_model":"gpt-4o","status":200,"stream":true,"total_tokens":7,"usage":"complete"}`,
	}, {
		"openai chat stream without usage", "/v1/chat/completions", `{"model":"m","stream":true}`,
		sse, "data:{\"choices\":[{\"delta\":{\"reasoning_content\":\"x\"}}]}\r\rdata:{\"choices\":[{\"delta\":{\"tool_calls\":[{}]}}]}\r\n\r\ndata:[DONE]",
		`{"dialect":"openai_chat","model":"m","output_chunks":2,"path":"/v1/chat/completions","status":200,"stream":true,"usage":"missing"}`,
	}, {
		"cumulative usage, twice", "/v1/chat/completions", `{"model":"m","stream":true}`,
		sse, "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1}}\n\n" +
			"data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n" +
			"data: {\"choices\":null,\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":0}}\n\ndata: [DONE]\n\n",
		`{"dialect":"openai_chat","finish_reason":"stop","input_tokens":5,"model":"m","output_chunks":2,"output_tokens":2,"path":"/v1/chat/completions","status":200,"stream":true,"total_tokens":7,"usage":"complete"}`,
	}, {
		"openai error in stream", "/v1/chat/completions", `{"model":"m","stream":true}`,
		sse, "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"error\":{\"message\":\"x\",\"type\":\"server_error\",\"code\":null}}\n\n",
		`{"dialect":"openai_chat","error":"server_error","error_in_stream":true,"model":"m","output_chunks":1,"path":"/v1/chat/completions","status":200,"stream":true,"usage":"failed"}`,
	}, {
		"openai completions", "/openai/deployments/d/completions", `{"prompt":"x","stream":true}`,
		sse, "data: {\"model\":\"i\",\"choices\":[{\"text\":\"a\",\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0}}\n\ndata: [DONE]\n\n",
		`{"dialect":"openai_completions","finish_reason":"stop","input_tokens":0,"output_chunks":1,"output_tokens":0,"path":"/openai/deployments/d/completions","response_model":"i","status":200,"stream":true,"total_tokens":0,"usage":"complete"}`,
	}, {
		"openai embeddings", "/v1/embeddings", `{"input":["a","b"],"model":"e"}`,
		"application/json", `{"object":"list","data":[{"embedding":[0.1,-2e3,0]}],"model":"e","usage":{"prompt_tokens":8,"total_tokens":8}}`,
		`{"dialect":"openai_embeddings","input_tokens":8,"model":"e","path":"/v1/embeddings","provider_total_tokens":8,"response_model":"e","status":200,"stream":false,"total_tokens":8,"usage":"complete"}`,
	}, {
		"openai responses", "/v1/responses", `{"model":"o","input":"x"}`,
		"application/json", `{"id":"r","status":"completed","error":null,"incomplete_details":null,"model":"o-1","output":[{"type":"message","status":"in_progress"}],"usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":3},"output_tokens":87,"output_tokens_details":{"reasoning_tokens":9},"total_tokens":123}}`,
		`{"cached_tokens":3,"dialect":"openai_responses","finish_reason":"completed","input_tokens":36,"model":"o","output_tokens":87,"path":"/v1/responses","provider_total_tokens":123,"reasoning_tokens":9,"response_model":"o-1","status":200,"stream":false,"total_tokens":123,"usage":"complete"}`,
	}, {
		"openai responses stream", "/v1/responses", `{"model":"o","stream":true}`,
		sse, "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"model\":\"o-1\",\"status\":\"in_progress\",\"usage\":null}}\n\n" +
			"event: response.output_item.added\ndata: {not looked at}\n\n" +
			"event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n" +
			"data: {\"type\":\"response.output_text.delta\",\ndata: \"delta\":\"y\"}\n\n" +
			"event: response.output_text.done\ndata: {}\n\n" +
			"event: response.incomplete\ndata: {\"type\":\"response.incomplete\",\"response\":{\"incomplete_details\":{\"reason\":\"max_output_tokens\"},\"status\":\"incomplete\",\"usage\":{\"input_tokens\":3,\"output_tokens\":2,\"total_tokens\":5}}}\n\n",
		`{"dialect":"openai_responses","finish_reason":"max_output_tokens","input_tokens":3,"model":"o","output_chunks":2,"output_tokens":2,"path":"/v1/responses","provider_total_tokens":5,"response_model":"o-1","status":200,"stream":true,"total_tokens":5,"usage":"complete"}`,
	}, {
		"openai responses failed", "/v1/responses", `{"model":"o","stream":true}`,
		sse, "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\",\"error\":{\"code\":\"server_error\",\"message\":\"m\"},\"usage\":null}}\n\n",
		`{"dialect":"openai_responses","error":"server_error","error_in_stream":true,"finish_reason":"failed","model":"o","path":"/v1/responses","status":200,"stream":true,"usage":"failed"}`,
	}, {
		"anthropic", "/v1/messages", `{"model":"claude","max_tokens":5}`,
		"application/json", `{"id":"m","type":"message","model":"claude-1","content":[{"type":"text","text":"x"}],"stop_reason":"end_turn","usage":{"input_tokens":10,"cache_creation_input_tokens":200,"cache_read_input_tokens":3000,"output_tokens":5}}`,
		`{"cache_write_tokens":200,"cached_tokens":3000,"dialect":"anthropic_messages","finish_reason":"end_turn","input_tokens":3210,"model":"claude","output_tokens":5,"path":"/v1/messages","response_model":"claude-1","status":200,"stream":false,"total_tokens":3215,"usage":"complete"}`,
	}, {
		"anthropic stream", "/v1/messages", `{"model":"claude","stream":true}`,
		sse, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-1\",\"content\":[],\"usage\":{\"input_tokens\":25,\"cache_read_input_tokens\":4,\"output_tokens\":1}}}\n\n" +
			"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0}\n\nevent: ping\ndata: {\"type\": \"ping\"}\n\n" +
			"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\n\n" +
			"data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"!\"}}\n\n" +
			"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\n\n" +
			"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
		`{"cached_tokens":4,"dialect":"anthropic_messages","finish_reason":"end_turn","input_tokens":29,"model":"claude","output_chunks":2,"output_tokens":15,"path":"/v1/messages","response_model":"claude-1","status":200,"stream":true,"total_tokens":44,"usage":"complete"}`,
	}, {
		"anthropic overloaded", "/v1/messages", `{"model":"claude","stream":true}`,
		sse, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n" +
			"event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n",
		`{"dialect":"anthropic_messages","error":"overloaded_error","error_in_stream":true,"input_tokens":25,"model":"claude","output_tokens":1,"path":"/v1/messages","status":200,"stream":true,"total_tokens":26,"usage":"failed"}`,
	}, {
		"ollama chat", "/api/chat", `{"model":"llama3","messages":[]}`,
		"application/x-ndjson", "{\"model\":\"llama3\",\"message\":{\"role\":\"assistant\",\"content\":\"T\"},\"done\":false}\n{\"message\":{\"content\":\"\",\"thinking\":\"x\"},\"done\":false}\r\n\n" +
			"{\"message\":{\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"total_duration\":4883583458,\"prompt_eval_count\":26,\"eval_count\":282}\n",
		`{"dialect":"ollama_chat","finish_reason":"stop","input_tokens":26,"model":"llama3","output_chunks":2,"output_tokens":282,"path":"/api/chat","response_model":"llama3","status":200,"stream":true,"total_tokens":308,"usage":"complete"}`,
	}, {
		"ollama generate", "/api/generate", `{"model":"a\/b","stream":false}`,
		"application/json; charset=utf-8", `{"model":"a/b","response":"x","done":true,"prompt_eval_count":1,"eval_count":2}`,
		`{"dialect":"ollama_generate","input_tokens":1,"model":"a/b","output_tokens":2,"path":"/api/generate","response_model":"a/b","status":200,"stream":false,"total_tokens":3,"usage":"complete"}`,
	}, {
		"ollama error in stream", "/api/generate", `{"model":"m"}`,
		"application/x-ndjson", "{\"response\":\"x\",\"done\":false}\n{\"error\":\"out of memory\"}\n",
		`{"dialect":"ollama_generate","error":"error","error_in_stream":true,"model":"m","output_chunks":1,"path":"/api/generate","status":200,"stream":true,"usage":"failed"}`,
	}, {
		"ollama embed", "/api/embed", `{"model":"m","input":"x"}`,
		"application/json", `{"model":"m","embeddings":[[0.1,0.2]],"prompt_eval_count":3}`,
		`{"dialect":"ollama_embed","input_tokens":3,"model":"m","path":"/api/embed","response_model":"m","status":200,"stream":false,"total_tokens":3,"usage":"complete"}`,
	}, {
		"malformed events among others", "/v1/chat/completions", `{"model":"m","stream":true}`,
		sse, "\xef\xbb\xbfdata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\nid: 1\nretry\ndata: {\"choices\":[\ndata\n\ndata: nonsense\n\ndata: {\"choices\":[{\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n",
		`{"dialect":"openai_chat","finish_reason":"stop","input_tokens":1,"malformed_events":2,"model":"m","output_chunks":1,"output_tokens":1,"path":"/v1/chat/completions","status":200,"stream":true,"total_tokens":2,"usage":"complete"}`,
	}, {
		"malformed answer", "/v1/chat/completions", `{"model":"m"`,
		"application/json", `{"usage":{"prompt_tokens":1,}}`,
		`{"dialect":"openai_chat","input_tokens":1,"model":"m","path":"/v1/chat/completions","status":200,"stream":false,"total_tokens":1,"unread":"malformed_json","usage":"complete"}`,
	}, {
		"numbers that are none", "/v1/chat/completions", `{"model":{"a":1},"stream":"yes"}`,
		"application/json", `{"usage":{"prompt_tokens":-1,"completion_tokens":1.5,"total_tokens":99999999999999999999}}`,
		`{"dialect":"openai_chat","path":"/v1/chat/completions","status":200,"stream":false,"usage":"missing"}`,
	}, {
		"other content", "/v1/chat/completions", `{"model":"m"}`, "text/html", "<p>",
		`{"dialect":"openai_chat","model":"m","path":"/v1/chat/completions","status":200,"stream":false,"unread":"unknown_content_type","usage":"partial"}`,
	},
}

// everyCut is how far apart the places are at which texts are cut: with -short, as
// where the processor is emulated, not all of them.
func everyCut() int {
	if testing.Short() {
		return 17
	}
	return 1
}

// TestSamples plays each sample whole, and cut at every byte: the records are the
// same.
func TestSamples(t *testing.T) {
	for _, row := range samples {
		t.Run(row.name, func(t *testing.T) {
			request := post(row.path, row.request)
			answers := []string{
				answer(row.contentType, row.answer), chunked(row.contentType, row.answer, 1), chunked(row.contentType, row.answer, 50),
				chunked(row.contentType, squeeze(false, row.answer[:len(row.answer)/2], row.answer[len(row.answer)/2:]), 30, "Content-Encoding: gzip\r\n"),
				chunked(row.contentType, squeeze(true, row.answer), 30, "Content-Encoding: Deflate\r\n"),
			}
			for i, in := range answers {
				for _, n := range []int{1 << 20, 1, 7} {
					r := newRig(t, nil)
					c := r.open(t)
					c.inPieces(pipeline.ToServer, request, n)
					c.inPieces(pipeline.ToClient, in, n)
					c.close()
					if len(r.rec.lines) != 1 {
						t.Fatalf("answer %d in pieces of %d: %d records", i, n, len(r.rec.lines))
					}
					if got := plainRecord(t, r.rec.lines[0]); got != row.want {
						t.Errorf("answer %d in pieces of %d:\n got %s\nwant %s", i, n, got, row.want)
					}
					r.settled(t)
				}
			}
			for cut := 0; cut < len(request); cut += everyCut() {
				r := newRig(t, nil)
				c := r.open(t)
				c.send(pipeline.ToServer, request[:cut])
				c.send(pipeline.ToServer, request[cut:])
				for at, in := 0, answers[0]; at < len(in); at += 2 {
					c.send(pipeline.ToClient, in[at:min(at+2, len(in))])
				}
				c.close()
				if len(r.rec.lines) != 1 || plainRecord(t, r.rec.lines[0]) != row.want {
					t.Fatalf("request cut at %d: %q", cut, r.rec.lines)
				}
			}
			for cut := 0; cut < len(answers[0]); cut += everyCut() {
				r := newRig(t, nil)
				c := r.open(t)
				c.send(pipeline.ToServer, request)
				c.send(pipeline.ToClient, answers[0][:cut])
				c.send(pipeline.ToClient, answers[0][cut:])
				c.close()
				if len(r.rec.lines) != 1 || plainRecord(t, r.rec.lines[0]) != row.want {
					t.Fatalf("answer cut at %d: %q", cut, r.rec.lines)
				}
			}
		})
	}
}

// TestTruncated ends the connection at every byte of an answer: there is one
// record, and it never claims more than it has seen.
func TestTruncated(t *testing.T) {
	for _, row := range samples {
		request, in := post(row.path, row.request), answer(row.contentType, row.answer)
		for cut := 0; cut < len(in); cut += everyCut() {
			r := newRig(t, nil)
			c := r.open(t)
			c.send(pipeline.ToServer, request)
			c.send(pipeline.ToClient, in[:cut])
			c.close()
			if len(r.rec.lines) != 1 {
				t.Fatalf("%s cut at %d: %d records", row.name, cut, len(r.rec.lines))
			}
			got := plainRecord(t, r.rec.lines[0])
			terminal := strings.Contains(in[:cut], "[DONE]") || strings.Contains(in[:cut], "message_stop") || strings.Contains(in[:cut], `"done":true`) || strings.Contains(in[:cut], "response.incomplete")
			if !strings.Contains(got, `"cut":true`) || strings.Contains(got, `"usage":"complete"`) && !terminal || strings.Contains(got, `"usage":"missing"`) && !terminal {
				t.Errorf("%s cut at %d: %s", row.name, cut, got)
			}
			r.settled(t)
		}
	}
}

func TestTimes(t *testing.T) {
	r := newRig(t, nil)
	c := r.open(t)
	body := `{"model":"m","stream":true}`
	c.send(pipeline.ToServer, post("/v1/chat/completions", body)[:150])                  // 1 ms
	c.send(pipeline.ToServer, post("/v1/chat/completions", body)[150:])                  // 2 ms: asked
	c.send(pipeline.ToClient, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")  // 3 ms: first byte
	c.send(pipeline.ToClient, "\r\n: wait\n\n")                                          // 4 ms
	c.send(pipeline.ToClient, "data: {\"choices\":[{\"delta\":{\"content\":\"a")         // 5 ms
	c.send(pipeline.ToClient, "\"}}]}\n\n")                                              // 6 ms: first token
	c.send(pipeline.ToClient, "data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n") // 7 ms
	c.send(pipeline.ToClient, "\ndata: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n")
	c.r.now += 1e6
	c.s.End(pipeline.ToClient, c.r.now) // 9 ms
	c.close()
	if len(r.rec.lines) != 1 {
		t.Fatal(r.rec.lines)
	}
	for _, want := range []string{`"time_to_first_token_seconds":0.004`, `"time_per_output_token_seconds":0.0015`, `"time_to_first_byte_seconds":0.00`, `"duration_seconds":0.00`, `"usage":"complete"`} {
		if !strings.Contains(r.rec.lines[0], want) {
			t.Errorf("no %s in %s", want, r.rec.lines[0])
		}
	}
	if strings.Contains(r.rec.lines[0], "cut") {
		t.Error("a response until the connection ends is whole")
	}
	got := map[string]uint64{}
	for _, h := range r.counters.Histograms() {
		got[h.Name] += h.Count()
		if len(h.Labels) < 3 || h.Labels[2].Value != "m" {
			t.Errorf("%+v", h)
		}
	}
	if fmt.Sprint(got) != "map[gen_ai_client_token_usage:2 gen_ai_server_request_duration_seconds:1 gen_ai_server_time_per_output_token_seconds:1 gen_ai_server_time_to_first_token_seconds:1]" {
		t.Error(got)
	}
}
