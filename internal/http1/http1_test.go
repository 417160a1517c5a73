package http1

import (
	"bytes"
	"fmt"
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
	f.Add([]byte("\r\n\r\n"))
	f.Add([]byte("A\n\r\n\n\r\r\n\r\n\r\n"))
	kept := NewStrings()
	f.Fuzz(func(t *testing.T, in []byte) {
		want := bytes.Index(in, []byte("\r\n\r\n")) + 4
		if want == 3 {
			want = 0
		}
		if end := HeadEnd(in); end != want {
			t.Fatalf("the head ends at %d, want %d", end, want)
		}
		if end := HeadEnd(in); end > 0 {
			h, bad := ParseRequest(in[:end], &Rules{MaxFields: 100})
			for range 2 {
				if again, bad2 := ParseRequest(in[:end], &Rules{MaxFields: 100, Strings: kept}); again != h || bad2 != bad {
					t.Fatalf("%+v, %v with strings that are kept, %+v, %v without", again, bad2, h, bad)
				}
			}
			if bad == FaultNone && (h.Method == "" || h.Target == "" || bytes.ContainsAny([]byte(h.Target), " \r\n")) {
				t.Fatalf("%+v", h)
			}
			ParseResponse(in[:end], "GET", nil)
		}
	})
}

// TestValues: bytes that a field may not have are found at every place.
func TestValues(t *testing.T) {
	for n := range 20 {
		for at := range n {
			for c := range 256 {
				b := []byte("abcdefghijk\xff\x80\x20opqrst"[:n])
				b[at] = byte(c)
				if got, want := validValue(b), c == '\t' || c >= ' ' && c != 0x7f; got != want {
					t.Fatalf("%q: %v", b, got)
				}
			}
		}
	}
}

// TestStrings: strings that are kept are those that were written, and the second
// time they cost nothing.
func TestStrings(t *testing.T) {
	r := &Rules{Strings: NewStrings()}
	for i := range 2000 {
		head := fmt.Appendf(nil, "M%d /%d HTTP/1.1\r\nHost: H%d.example:80\r\nUser-Agent: a%d\r\n\r\n", i%3, i, i%700, i%5)
		h, bad := ParseRequest(head, r)
		if want, _ := ParseRequest(head, nil); bad != FaultNone || h != want {
			t.Fatalf("%+v, %v, want %+v", h, bad, want)
		}
	}
	head := []byte("PUT /a/b HTTP/1.1\r\nHost: WWW.example:80\r\nUser-Agent: a\r\nContent-Type: text/plain\r\nConnection: keep-alive\r\n\r\n")
	if got := testing.AllocsPerRun(100, func() {
		if _, bad := ParseRequest(head, r); bad != FaultNone {
			t.Fatal(bad)
		}
	}); got != 0 {
		t.Errorf("a head that came before costs %v allocations", got)
	}
}
