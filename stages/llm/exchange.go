package llm

import (
	"bytes"
	"strconv"

	"penstock/pipeline"
)

// exchange is a request and what came back.
type exchange struct {
	dialect  dialect // noDialect: no request to a language model
	method   string
	host     string
	path     string
	identity string
	upgrade  bool

	model         string // that was asked for
	stream        bool   // was asked for
	streamSaid    bool
	modelSaid     bool
	again         bool // it says the model, or whether to stream, twice: servers may differ on which counts
	includeUsage  bool
	answeredModel string
	streamed      bool // is what came

	status        int
	started       int64 // ns: head of the request complete
	asked         int64 // all of the request seen; 0: not yet
	firstByte     int64 // of the response
	firstContent  int64
	lastContent   int64
	ended         int64
	requestBytes  uint64
	responseBytes uint64

	counts [numCounts]uint64
	known  [numCounts]bool
	chunks uint64 // events with content
	events uint64
	broken uint64 // events that are no JSON

	finish        string
	fromStatus    bool // finish is only a status
	errorType     string
	errorCode     string
	failed        bool            // the answer says that it is an error
	terminal      bool            // the dialect's last event has come
	whole         bool            // the response came to its end
	unread        unread          // why it could not be read
	requestUnread bool            // it was the request
	unseen        pipeline.Reason // why it could not be seen
	judged        bool            // by the rules
	rules         []string        // that applied
	denied        pipeline.Reason

	// Of the event that is being read.
	content bool
	kind    eventKind
}

// count is a number of tokens.
type count uint8

const (
	countInput count = iota
	countOutput
	countTotal
	countCacheRead
	countCacheWrite
	countReasoning
	numCounts
)

// eventKind is what an event's "type" says.
type eventKind uint8

const (
	plainEvent eventKind = iota
	deltaEvent
	lastEvent
	errorEvent
)

// unread says why a request or an answer could not be read.
type unread uint8

const (
	readAll unread = iota
	unreadJSON
	unreadSize
	unreadEncoding
	unreadCompressed
	unreadInflated
	unreadType
	unreadMemory
	unreadHTTP
	unreadPipelined
	numUnread
)

var unreadNames = [...]struct{ name, help string }{
	unreadJSON:       {"malformed_json", "a body that is no JSON"},
	unreadSize:       {"body_too_large", "a body, or an event of a stream, larger than max_body"},
	unreadEncoding:   {"unknown_content_encoding", "a body that is compressed with something else than gzip or deflate"},
	unreadCompressed: {"malformed_compression", "a compressed body that cannot be decompressed"},
	unreadInflated:   {"inflates_too_far", "a compressed body that comes to more than max_inflated"},
	unreadType:       {"unknown_content_type", "an answer that is no JSON and no stream of events"},
	unreadMemory:     {"memory_limit", "no memory was left to read it"},
	unreadHTTP:       {"malformed_http", "a connection that could not be followed as HTTP/1 any more"},
	unreadPipelined:  {"too_many_pipelined", "more requests without a response on one connection than are followed"},
}

var _ values = (*exchange)(nil)

// maxCount is beyond what a model can count: larger numbers are no tokens.
const maxCount = 1 << 40

// value implements values.
func (e *exchange) value(f field, k kind, text []byte, size int) {
	switch f {
	case fieldModel:
		e.again, e.modelSaid = e.again || e.modelSaid, true
		if k == isString {
			e.model = keepString(e.model, text)
		}
	case fieldAnsweredModel:
		if k == isString {
			e.answeredModel = keepString(e.answeredModel, text)
		}
	case fieldStream:
		e.again = e.again || e.streamSaid
		e.stream, e.streamSaid = k == isTrue, k == isTrue || k == isFalse
	case fieldIncludeUsage:
		e.includeUsage = k == isTrue
	case fieldInput, fieldOutput, fieldTotal, fieldCacheRead, fieldCacheWrite, fieldReasoning:
		n, ok := number(text)
		if k != isNumber || !ok {
			return
		}
		// Figures of a stream are cumulative, and may come more than once.
		c := countInput + count(f-fieldInput)
		e.counts[c] = max(e.counts[c], n)
		e.known[c] = true
	case fieldFinish:
		if k == isString {
			e.finish, e.fromStatus = keepString(e.finish, text), false
		}
	case fieldStatus:
		if k == isString && (e.finish == "" || e.fromStatus) && string(text) != "in_progress" && string(text) != "queued" {
			e.finish, e.fromStatus = keepString(e.finish, text), true
			if string(text) == "failed" {
				e.failed = true
			}
		}
	case fieldType:
		if k == isString {
			e.kind = kindOf(text)
			if e.status >= 400 && e.errorType == "" {
				e.errorType = keepString("", text) // of servers that wrap errors into nothing
			}
		}
	case fieldError:
		e.failed = e.failed || k == isObject || k == isString && size > 0
	case fieldErrorType:
		if k == isString {
			e.errorType = keepString(e.errorType, text)
		}
	case fieldErrorCode:
		if k == isString || k == isNumber {
			e.errorCode = keepString(e.errorCode, text)
		}
	case fieldDone:
		e.terminal = e.terminal || k == isTrue
	case fieldContent:
		e.content = e.content || k == isString && size > 0
	case fieldPart:
		e.content = e.content || k == isObject || k == isArray
	}
}

// keepString returns text as a string, the old one if that is the same: a stream
// says the model's name in each event.
func keepString(old string, text []byte) string {
	if old == string(text) {
		return old
	}
	return string(text)
}

// number reads a count.
func number(text []byte) (uint64, bool) {
	var n uint64
	for _, c := range text {
		if c < '0' || c > '9' || n > maxCount {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, n <= maxCount
}

// kindOf reads the "type" of an event.
func kindOf(t []byte) eventKind {
	switch string(t) {
	case "error":
		return errorEvent
	case "content_block_delta":
		return deltaEvent
	case "message_stop", "response.completed", "response.incomplete", "response.failed":
		return lastEvent
	}
	if bytes.HasPrefix(t, []byte("response.")) && bytes.HasSuffix(t, []byte(".delta")) {
		return deltaEvent
	}
	return plainEvent
}

// endEvent is the end of an event of a stream.
func (e *exchange) endEvent(now int64) {
	e.events++
	switch e.kind {
	case deltaEvent:
		e.content = true
	case lastEvent:
		e.terminal = true
	case errorEvent:
		e.failed = true
	}
	if e.content {
		e.chunks++
		if e.firstContent == 0 {
			e.firstContent = now
		}
		e.lastContent = now
	}
	e.content, e.kind = false, plainEvent
}

// settle makes the figures those of all dialects: input with what was cached,
// output with what was thought (docs/llm.md).
func (e *exchange) settle() {
	if e.dialect == anthropicMessages && e.known[countInput] {
		e.counts[countInput] += e.counts[countCacheRead] + e.counts[countCacheWrite]
	}
}

// usage says what the figures are worth.
func (e *exchange) usage() string {
	reported := e.known[countInput] || e.known[countOutput]
	switch {
	case e.failed || e.status >= 400:
		return "failed"
	case !e.whole && !e.terminal:
		return "partial"
	case e.streamed && !e.terminal && e.finish == "":
		// A server whose client is gone may end the response in good order,
		// in the middle of the stream.
		return "partial"
	case !reported && e.unread != readAll:
		return "partial"
	case !reported:
		return "missing"
	}
	return "complete"
}

// errorName is what metrics and records call the error, "" if there is none.
func (e *exchange) errorName() string {
	switch {
	case e.usage() != "failed":
		return ""
	case e.errorType != "" && e.errorType != "error":
		return e.errorType
	case e.errorCode != "":
		return e.errorCode
	case e.status >= 400:
		return strconv.Itoa(e.status)
	}
	return "error"
}
