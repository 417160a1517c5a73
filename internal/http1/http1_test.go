package http1

import (
	"bytes"
	"testing"
)

func TestHeads(t *testing.T) {
	var seen []string
	r := &Rules{MaxFields: 3, Field: func(n, v []byte) { seen = append(seen, string(n)+"="+string(v)) }}
	h, bad := ParseRequest([]byte("POST /v1/x?y HTTP/1.1\r\nHost: A.example:80\r\nX-Key:  s \r\nContent-Length: 7\r\n\r\n"), r)
	if bad != FaultNone || h.Method != "POST" || h.Target != "/v1/x?y" || h.Host != "a.example" || h.Framing != Sized || h.Length != 7 || len(seen) != 3 || seen[1] != "X-Key=s" {
		t.Errorf("%+v, %v, %q", h, bad, seen)
	}
	for in, want := range map[string]Fault{
		"GET /\r\n\r\n":                                             BadStartLine,
		"GET / HTTP/1.1\n\n":                                        BadLine,
		"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n":                   BadField,
		"GET / HTTP/1.1\r\n\r\n":                                    BadHost,
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n":    BadLength,
		"GET / HTTP/1.1\r\nA: 1\r\nB: 2\r\nC: 3\r\nHost: a\r\n\r\n": ManyFields,
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n": BothLengths,
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n":                         BadCoding,
	} {
		if _, bad := ParseRequest([]byte(in), r); bad != want {
			t.Errorf("%q: %v, want %v", in, bad, want)
		}
	}
	for in, want := range map[string]Fault{
		"HTTP/1.1 200\r\n\r\n":    FaultNone,
		"HTTP/2.0 200 OK\r\n\r\n": BadStatus,
		"HTTP/1.1 2x0 OK\r\n\r\n": BadStatus,
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n":          ManyLengths,
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n": BothLengths,
	} {
		if _, bad := ParseResponse([]byte(in), "GET", nil); bad != want {
			t.Errorf("%q: %v, want %v", in, bad, want)
		}
	}
}

// TestNext cuts a chunked body at every place: the content is the same.
func TestNext(t *testing.T) {
	const in = "5;x=y\r\nhello\r\n1\r\n \r\nA\r\n0123456789\r\n0\r\nT: x\r\n\r\nGET /"
	for cut := range len(in) {
		var b Body
		b.Begin(&Head{Framing: Chunked})
		var got []byte
		used, over := 0, false
		for _, part := range []string{in[:cut], in[cut:]} {
			for p := []byte(part); len(p) > 0 && !over; {
				content, n, done, ok := b.Next(p)
				if !ok || n == 0 {
					t.Fatalf("cut at %d: %d bytes, %v", cut, n, ok)
				}
				got = append(got, content...)
				p, used, over = p[n:], used+n, done
			}
		}
		if !over || string(got) != "hello 0123456789" || used != len(in)-5 {
			t.Errorf("cut at %d: %q, %d bytes, %v", cut, got, used, over)
		}
	}
}

func FuzzBody(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\n\r\n"), uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		var whole, parts Body
		whole.Begin(&Head{Framing: Chunked})
		parts.Begin(&Head{Framing: Chunked})
		n, done, ok := whole.Skip(in)
		m, done2, ok2 := 0, false, true
		for m < len(in) && !done2 && ok2 {
			var k int
			_, k, done2, ok2 = parts.Next(in[m:min(m+int(step)+1, len(in))])
			m += k
		}
		if n != m || done != done2 || ok != ok2 {
			t.Fatalf("%d %v %v whole, %d %v %v in parts", n, done, ok, m, done2, ok2)
		}
	})
}

func FuzzHeads(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if end := HeadEnd(in); end > 0 {
			h, bad := ParseRequest(in[:end], &Rules{MaxFields: 100})
			if bad == FaultNone && (h.Method == "" || h.Target == "" || bytes.ContainsAny([]byte(h.Target), " \r\n")) {
				t.Fatalf("%+v", h)
			}
			ParseResponse(in[:end], "GET", nil)
		}
	})
}
