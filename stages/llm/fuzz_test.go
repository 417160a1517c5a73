package llm

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"penstock/pipeline"
)

// FuzzConversation: any bytes of both ends pass, nothing is left behind, and the
// records do not depend on how the bytes are cut.
func FuzzConversation(f *testing.F) {
	for _, s := range samples {
		f.Add(post(s.path, s.request), answer(s.contentType, s.answer), uint8(5))
		f.Add(post(s.path, s.request), chunked(s.contentType, squeeze(false, s.answer), 40, "Content-Encoding: gzip\r\n"), uint8(1))
	}
	f.Fuzz(func(t *testing.T, up, down string, step uint8) {
		if len(up)+len(down) > 1<<16 {
			return
		}
		var lines [2][]string
		for i, n := range []int{1 << 20, int(step) + 1} {
			r := newRig(t, func(c *Config) { c.Identity, c.MaxInflated = "off", 1<<20 })
			c := r.open(t)
			c.inPieces(pipeline.ToServer, up, n)
			c.inPieces(pipeline.ToClient, down, n)
			c.close()
			r.settled(t)
			for _, l := range r.rec.lines {
				if !json.Valid([]byte(l)) {
					t.Fatalf("%q", l)
				}
				lines[i] = append(lines[i], plainRecord(t, l))
			}
		}
		// Bytes that cannot be decompressed may be noticed sooner in one piece.
		if !reflect.DeepEqual(lines[0], lines[1]) && !strings.Contains(fmt.Sprint(lines), "compress") && !strings.Contains(fmt.Sprint(lines), "inflates") {
			t.Fatalf("whole:\n%s\nin pieces of %d:\n%s", lines[0], int(step)+1, lines[1])
		}
	})
}

// noted writes down the values of one field.
type noted struct{ got []string }

func (n *noted) value(_ field, k kind, text []byte, size int) {
	n.got = append(n.got, fmt.Sprintf("%d %s", k, text))
}

// FuzzJSON compares the scanner with encoding/json: what that accepts, the scanner
// does, and both find the same model.
func FuzzJSON(f *testing.F) {
	for _, s := range samples {
		f.Add(s.request, uint8(3))
		f.Add(s.answer, uint8(3))
	}
	f.Add(`{"m\u006fdel":"\ud83d\ude00\n\/x","model":"y"}`, uint8(1))
	f.Fuzz(func(t *testing.T, in string, step uint8) {
		var whole noted
		var s scanner
		s.begin(requestTree, &whole)
		n := s.feed([]byte(in))
		ok := s.end() && strings.Trim(in[n:], " \t\r\n") == ""
		var parts noted
		var p scanner
		p.begin(requestTree, &parts)
		for b := []byte(in); len(b) > 0; {
			k := min(int(step)+1, len(b))
			if p.feed(b[:k]) < k {
				break
			}
			b = b[k:]
		}
		p.end()
		if !reflect.DeepEqual(whole.got, parts.got) {
			t.Fatalf("whole %q, in pieces %q", whole.got, parts.got)
		}
		if json.Valid([]byte(in)) && !ok && strings.Count(in, "{")+strings.Count(in, "[") < maxDepth {
			t.Fatalf("%q is JSON", in)
		}
	})
}

// eventLog writes events down.
type eventLog struct {
	b    strings.Builder
	data []byte
}

func (l *eventLog) payload(_, data []byte) { l.data = append(l.data, data...) }
func (l *eventLog) dispatch(name []byte) {
	fmt.Fprintf(&l.b, "%q %q\n", name, l.data)
	l.data = nil
}

// plainSSE reads events the simple way: all lines, then what they mean.
func plainSSE(in string) string {
	in = strings.TrimPrefix(in, bom)
	in = strings.ReplaceAll(strings.ReplaceAll(in, "\r\n", "\n"), "\r", "\n")
	lines := strings.Split(in, "\n")
	lines = lines[:len(lines)-1] // the last one has not ended
	l := &eventLog{}
	var data []string
	name := ""
	for _, line := range lines {
		if line == "" {
			if data != nil {
				l.payload(nil, []byte(strings.Join(data, "\n")))
				l.dispatch([]byte(name))
			}
			data, name = nil, ""
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "data":
			data = append(data, value)
		case "event":
			name = value[:min(len(value), maxName)]
		}
	}
	return l.b.String()
}

func FuzzSSE(f *testing.F) {
	for _, s := range samples {
		f.Add(s.answer, uint8(2))
	}
	f.Add("\xef\xbb\xbf:c\revent:a\r\ndata\ndata: x\n\n\r\r\ndata:  y\n\nevent: z\n\n", uint8(0))
	f.Fuzz(func(t *testing.T, in string, step uint8) {
		var r sseReader
		l := &eventLog{}
		for b := []byte(in); len(b) > 0; {
			k := min(int(step)+1, len(b))
			r.feed(b[:k], l)
			b = b[k:]
		}
		if got, want := l.b.String(), plainSSE(in); got != want {
			t.Fatalf("%q in pieces of %d:\n%s\nwant\n%s", in, int(step)+1, got, want)
		}
	})
}
