package record

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

type inner struct {
	A int `json:"a"`
}

type flowEvent struct {
	inner
	SrcIP string         `json:"src_ip"`
	Flow  map[string]int `json:"flow"`
	Skip  string         `json:"skip,omitempty"`
}

type panics struct{}

func (panics) MarshalJSON() ([]byte, error) { panic("a bug") }

type fails struct{}

func (fails) MarshalJSON() ([]byte, error) { return nil, errors.New("will not") }

type raw string

func (r raw) MarshalJSON() ([]byte, error) { return []byte(r), nil }

func TestAppendLine(t *testing.T) {
	const head = `{"timestamp":"2026-03-04T04:06:07.891234Z","event_type":"flow"`
	for name, c := range map[string]struct {
		fields any
		want   string // behind head
	}{
		"nil":           {nil, `}`},
		"nil map":       {map[string]int(nil), `}`},
		"nil pointer":   {(*flowEvent)(nil), `}`},
		"empty":         {struct{}{}, `}`},
		"struct":        {flowEvent{inner: inner{1}, SrcIP: "::1", Flow: map[string]int{"age": 2}}, `,"a":1,"src_ip":"::1","flow":{"age":2}}`},
		"pointer":       {&inner{2}, `,"a":2}`},
		"html":          {map[string]string{"x": "<&>"}, `,"x":"<&>"}`},
		"line ends":     {map[string]string{"x": "a\nb\r\u2028"}, `,"x":"a\nb\r\u2028"}`},
		"broken UTF-8":  {map[string]string{"x": "a\xffb"}, `,"x":"a\ufffdb"}`},
		"event_type":    {map[string]any{"event_type": "tls", "x": 1}, `,"x":1}`},
		"only ours":     {map[string]any{"event_type": "tls"}, `}`},
		"bad timestamp": {map[string]any{"timestamp": 5, "x": 1}, `,"x":1}`},
		"nested ours":   {map[string]any{"dns": map[string]any{"timestamp": "t", "event_type": "e"}}, `,"dns":{"event_type":"e","timestamp":"t"}}`},
		"spaces":        {raw(" { \"a\" : [ 1, 2 ] } "), `,"a":[1,2]}`},
		"raw ours":      {raw(`{"z":{"b":1},"timestamp":null,"y":[{}],"event_type":{}}`), `,"z":{"b":1},"y":[{}]}`},
	} {
		b, err := newEncoder().appendLine([]byte("x"), entry{time: epoch, event: "flow", fields: c.fields})
		if want := "x" + head + c.want + "\n"; err != nil || string(b) != want {
			t.Errorf("%s: got %q (%v), want %q", name, b, err, want)
		}
		if !json.Valid(b[1:]) {
			t.Errorf("%s: not JSON: %s", name, b[1:])
		}
	}
}

func TestTimestampReplaces(t *testing.T) {
	at := Timestamp(time.Unix(1, 2000))
	b, err := newEncoder().appendLine(nil, entry{time: epoch, event: "flow", fields: map[string]any{"timestamp": at, "x": 1}})
	if want := `{"timestamp":"1970-01-01T00:00:01.000002Z","event_type":"flow","x":1}` + "\n"; err != nil || string(b) != want {
		t.Errorf("got %s (%v), want %s", b, err, want)
	}
	if _, err := time.Parse(time.RFC3339Nano, at); err != nil {
		t.Errorf("%s is not RFC 3339: %v", at, err)
	}
}

// TestAppendLineErrors: an event that cannot be encoded leaves the batch as it
// was, and the encoder goes on working.
func TestAppendLineErrors(t *testing.T) {
	e := newEncoder()
	for name, c := range map[string]struct {
		fields any
		want   string
	}{
		"number":  {5, `encode event "flow": want fields that encode to a JSON object, got 5`},
		"list":    {[]int{1}, "got [1]"},
		"string":  {"x", `got "x"`},
		"channel": {map[string]any{"x": make(chan int)}, "unsupported type"},
		"NaN":     {map[string]any{"x": math.NaN()}, "unsupported value"},
		"fails":   {fails{}, "will not"},
		"panics":  {map[string]any{"x": panics{}}, "panic: a bug"},
		"long":    {map[string]any{"x": strings.Repeat("x", maxEvent)}, "want at most 1048576 bytes, got 10486"},
	} {
		b, err := e.appendLine([]byte("before\n"), entry{time: epoch, event: "flow", fields: c.fields})
		if err == nil || !strings.Contains(err.Error(), c.want) || string(b) != "before\n" {
			t.Errorf("%s: got %q and error %v, want %q", name, b, err, c.want)
		}
		if b, err := e.appendLine(nil, entry{time: epoch, event: "tls", fields: inner{1}}); err != nil || !strings.HasSuffix(string(b), `"tls","a":1}`+"\n") {
			t.Errorf("after %s: got %q, %v", name, b, err)
		}
	}
}

func FuzzUnique(f *testing.F) {
	f.Add(`{"timestamp":"x","a":{"timestamp":1},"event_type":[{}],"b":"\"timestamp\":"}`)
	f.Add(`{"a":1}`)
	f.Fuzz(func(t *testing.T, object string) {
		var want map[string]json.RawMessage
		if !json.Valid([]byte(object)) || json.Unmarshal([]byte(object), &want) != nil || want == nil {
			return
		}
		stamp, body, err := unique([]byte(object), []byte(`"now"`))
		if err != nil {
			t.Fatalf("%s: %v", object, err)
		}
		line := `{"timestamp":` + string(stamp) + `,"event_type":"e"`
		if len(body) > 0 {
			line += "," + string(body)
		}
		var got map[string]json.RawMessage
		if err := json.Unmarshal([]byte(line+"}"), &got); err != nil {
			t.Fatalf("%s became %s}: %v", object, line, err)
		}
		delete(want, "timestamp")
		delete(want, "event_type")
		if len(got) != len(want)+2 {
			t.Errorf("%s became %s}: want the same keys and two more", object, line)
		}
	})
}
