package llm

import (
	"bytes"
	"strings"
)

// dialect is how a request, its answer and its usage are written.
type dialect uint8

const (
	noDialect dialect = iota
	openaiChat
	openaiCompletions
	openaiResponses
	openaiEmbeddings
	anthropicMessages
	ollamaChat
	ollamaGenerate
	ollamaEmbed
)

// dialects has, for each, its name in configurations and records, and what
// OpenTelemetry calls its provider and its operation.
var dialects = [...]struct{ name, provider, operation string }{
	openaiChat:        {"openai_chat", "openai", "chat"},
	openaiCompletions: {"openai_completions", "openai", "text_completion"},
	openaiResponses:   {"openai_responses", "openai", "chat"},
	openaiEmbeddings:  {"openai_embeddings", "openai", "embeddings"},
	anthropicMessages: {"anthropic_messages", "anthropic", "chat"},
	ollamaChat:        {"ollama_chat", "ollama", "chat"},
	ollamaGenerate:    {"ollama_generate", "ollama", "text_completion"},
	ollamaEmbed:       {"ollama_embed", "ollama", "embeddings"},
}

func dialectByName(name string) dialect {
	for d, v := range dialects {
		if d > 0 && v.name == name {
			return dialect(d)
		}
	}
	return noDialect
}

func dialectNames() (names []string) {
	for _, v := range dialects[1:] {
		names = append(names, v.name)
	}
	return names
}

// endpoint says which dialect is spoken at a path.
type endpoint struct {
	pattern string
	dialect dialect
}

// builtinEndpoints are where these are spoken everywhere; "*" stands for any
// bytes. The first that matches counts.
var builtinEndpoints = []endpoint{
	{"*/chat/completions", openaiChat},
	{"*/v1/completions", openaiCompletions}, {"*/openai/*/completions", openaiCompletions},
	{"*/v1/responses", openaiResponses}, {"*/openai/*/responses", openaiResponses}, {"*/openai/responses", openaiResponses},
	{"*/v1/embeddings", openaiEmbeddings}, {"*/openai/*/embeddings", openaiEmbeddings},
	{"*/v1/messages", anthropicMessages},
	{"/api/chat", ollamaChat}, {"/api/generate", ollamaGenerate}, {"/api/embed", ollamaEmbed}, {"/api/embeddings", ollamaEmbed},
}

// spokenAt returns the dialect at a request target, noDialect if none is.
func spokenAt(list []endpoint, target string) dialect {
	path := pathOf(target)
	for i := range list {
		if wild(list[i].pattern, path) {
			return list[i].dialect
		}
	}
	return noDialect
}

// pathOf returns the path of a request target.
func pathOf(target string) string {
	if _, after, ok := strings.Cut(target, "://"); ok && target[0] != '/' {
		target = "/"
		if i := strings.IndexByte(after, '/'); i >= 0 {
			target = after[i:]
		}
	}
	if i := strings.IndexAny(target, "?#"); i >= 0 {
		target = target[:i]
	}
	return target
}

// wild matches s against a pattern in which * stands for any bytes.
func wild(pattern, s string) bool {
	first, rest, more := strings.Cut(pattern, "*")
	if !more {
		return s == pattern
	}
	s, ok := strings.CutPrefix(s, first)
	if !ok {
		return false
	}
	for {
		part, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, part)
		}
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], after
	}
}

// significance says what an event's name tells of it, without its data.
type significance uint8

const (
	unknownEvent significance = iota // its data tells
	contentEvent                     // a part of the answer
	emptyEvent                       // neither content, usage nor an end
)

// byName judges an event of a dialect whose events have names. Most events of a
// stream are content, and nothing else of them is wanted.
func byName(d dialect, name []byte) significance {
	switch d {
	case anthropicMessages:
		switch string(name) {
		case "content_block_delta":
			return contentEvent
		case "ping", "content_block_start", "content_block_stop":
			return emptyEvent
		}
	case openaiResponses:
		switch {
		case bytes.HasSuffix(name, []byte(".delta")):
			return contentEvent
		case bytes.HasSuffix(name, []byte(".done")), bytes.HasSuffix(name, []byte(".added")):
			return emptyEvent
		}
	}
	return unknownEvent
}
