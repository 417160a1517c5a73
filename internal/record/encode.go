package record

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// maxEvent bounds a line, in bytes. An event that is longer counts as failed.
const maxEvent = 1 << 20

// timeFormat is RFC 3339 with microseconds.
const timeFormat = "2006-01-02T15:04:05.000000Z07:00"

// Timestamp returns t as it stands in events: UTC, with microseconds.
func Timestamp(t time.Time) string { return t.UTC().Format(timeFormat) }

// entry is an event on its way to a sink.
type entry struct {
	time   time.Time
	event  string
	fields any
}

// encoded is a line, in place of the fields that it has been made of.
type encoded []byte

// encoder writes events as lines. Its buffers are reused.
type encoder struct {
	tmp bytes.Buffer
	enc *json.Encoder

	second int64  // of stamp
	stamp  []byte // JSON of the last timestamp
	event  string // of head
	head   []byte // how the last line of an Appender began; empty: it is of another second
	line   Members
}

func newEncoder() *encoder {
	e := &encoder{}
	e.enc = json.NewEncoder(&e.tmp)
	e.enc.SetEscapeHTML(false) // the lines are for programs, not for web pages
	return e
}

// appendLine appends the event and a line end to b. On an error b is returned
// as it was.
func (e *encoder) appendLine(b []byte, ev entry) (out []byte, err error) {
	if line, ok := ev.fields.(encoded); ok {
		return append(b, line...), nil
	}
	start := len(b)
	defer func() {
		// A MarshalJSON that panics is a bug in one kind of event. It costs that
		// event, not the appliance.
		if r := recover(); r != nil {
			out, err = b[:start], fmt.Errorf("encode event %q: panic: %v", ev.event, r)
		}
	}()
	if a, ok := ev.fields.(Appender); ok {
		second, ns := unix(ev.time)
		e.line = append(b, e.begin(second, ns, ev.event)...)
		a.AppendMembers(&e.line)
		return e.end(e.line, start, ev)
	}
	stamp, body, err := e.body(ev)
	if err != nil {
		return b[:start], fmt.Errorf("encode event %q: %w", ev.event, err)
	}
	b = append(b, `{"timestamp":`...)
	b = append(b, stamp...)
	b = append(b, `,"event_type":`...)
	name, _ := json.Marshal(ev.event) // a string always encodes
	b = append(b, name...)
	if len(body) > 0 {
		b = append(b, ',')
		b = append(b, body...)
	}
	return e.end(b, start, ev)
}

// end finishes the line that begins at start.
func (e *encoder) end(b []byte, start int, ev entry) ([]byte, error) {
	b = append(b, "}\n"...)
	if len(b)-start > maxEvent {
		return b[:start], fmt.Errorf("encode event %q: want at most %d bytes, got %d", ev.event, maxEvent, len(b)-start)
	}
	return b, nil
}

// Where the fraction of a second stands in a timestamp.
const (
	fraction  = len(`"2006-01-02T15:04:05.`)
	stampSize = fraction + len(`000000Z"`)
)

// timestamp returns what Timestamp does, as JSON. It is the encoder's until the
// next call.
func (e *encoder) timestamp(second int64, ns uint32) []byte {
	if second != e.second || len(e.stamp) != stampSize { // years have five digits one day
		e.second, e.head = second, e.head[:0]
		e.stamp = append(time.Unix(second, int64(ns)).UTC().AppendFormat(append(e.stamp[:0], '"'), timeFormat), '"')
		return e.stamp
	}
	six := digits(ns/1000) >> 16
	binary.LittleEndian.PutUint32(e.stamp[fraction:], uint32(six))
	binary.LittleEndian.PutUint16(e.stamp[fraction+4:], uint16(six>>32))
	return e.stamp
}

// begin returns how the line of an Appender begins, for as long as timestamp
// does. From one event to the next of a kind, six digits change.
func (e *encoder) begin(second int64, ns uint32, event string) []byte {
	const before = len(`{"timestamp":`)
	stamp := e.timestamp(second, ns)
	if len(e.head) == 0 || event != e.event {
		e.event = event
		e.head = append(append(append(e.head[:0], `{"timestamp":`...), stamp...), `,"event_type":`...)
		e.head = appendString(e.head, event)
		return e.head
	}
	copy(e.head[before+fraction:before+stampSize], stamp[fraction:])
	return e.head
}

// body encodes the fields and returns the members of their object, and the
// timestamp as JSON.
func (e *encoder) body(ev entry) (stamp, body []byte, err error) {
	stamp = e.timestamp(unix(ev.time))
	if ev.fields == nil {
		return stamp, nil, nil
	}
	e.tmp.Reset()
	if err := e.enc.Encode(ev.fields); err != nil {
		return nil, nil, err
	}
	b := bytes.TrimSpace(e.tmp.Bytes())
	if bytes.Equal(b, []byte("null")) {
		return stamp, nil, nil
	}
	if b[0] != '{' {
		return nil, nil, errors.New("want fields that encode to a JSON object, got " + string(b[:min(len(b), 40)]))
	}
	if bytes.Contains(b, []byte(`"timestamp":`)) || bytes.Contains(b, []byte(`"event_type":`)) {
		return unique(b, stamp)
	}
	return stamp, b[1 : len(b)-1], nil
}

// unique takes the two keys that the recorder writes itself out of an object,
// so that no key stands twice on a line. A timestamp replaces stamp.
func unique(object, stamp []byte) (newStamp, body []byte, err error) {
	dec := json.NewDecoder(bytes.NewReader(object))
	if _, err := dec.Token(); err != nil {
		return nil, nil, err
	}
	var out []byte
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, nil, err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, nil, err
		}
		switch key {
		case "timestamp":
			if value[0] == '"' {
				stamp = value
			}
			continue
		case "event_type":
			continue
		}
		if len(out) > 0 {
			out = append(out, ',')
		}
		name, err := json.Marshal(key)
		if err != nil {
			return nil, nil, err
		}
		out = append(append(append(out, name...), ':'), value...)
	}
	return stamp, out, nil
}
