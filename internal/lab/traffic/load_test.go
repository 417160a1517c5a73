package traffic

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

func start(t *testing.T, server func(context.Context, net.Listener) error) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

func TestLoadCountsExactly(t *testing.T) {
	origin := start(t, ServeHTTP)
	raw := start(t, (&TCPServer{}).Serve)
	for _, c := range []struct {
		o    LoadOptions
		want LoadResult
	}{
		{LoadOptions{Kind: "http", Address: origin, KeepAlive: true, Conns: 4, Requests: 203}, LoadResult{Requests: 203, Bytes: 203 * 128}},
		{LoadOptions{Kind: "http", Address: origin, Conns: 4, Requests: 50, Path: "/bytes/5000"}, LoadResult{Requests: 50, Bytes: 50 * 5000}},
		{LoadOptions{Kind: "source", Address: raw, Conns: 2, Requests: 5, Bytes: 1<<20 + 1}, LoadResult{Requests: 5, Bytes: 5 * (1<<20 + 1)}},
		{LoadOptions{Kind: "sink", Address: raw, Conns: 2, Requests: 5, Bytes: 1<<20 + 1}, LoadResult{Requests: 5, Bytes: 5 * (1<<20 + 1)}},
		{LoadOptions{Kind: "http", Address: origin, KeepAlive: true, Path: "/status/404", Requests: 3}, LoadResult{Errors: 3, FirstError: "read status line"}},
		{LoadOptions{Kind: "http", Address: origin, KeepAlive: true, Path: "/bytes/1?chunked=1", Requests: 1}, LoadResult{Errors: 1, FirstError: "no content-length"}},
		{LoadOptions{Kind: "source", Address: origin, Requests: 2}, LoadResult{Errors: 2, FirstError: "after"}},
		{LoadOptions{Kind: "http", Address: "127.0.0.1:1", Duration: time.Minute}, LoadResult{Errors: maxLoadErrors, FirstError: "refused"}},
	} {
		r, err := Load(t.Context(), c.o)
		if err != nil {
			t.Fatal(err)
		}
		if r.Requests != c.want.Requests || r.Errors != c.want.Errors || c.want.Errors == 0 && r.Bytes != c.want.Bytes ||
			!strings.Contains(r.FirstError, c.want.FirstError) || c.want.Errors == 0 && r.FirstError != "" {
			t.Errorf("%+v: got %+v, want %+v", c.o, r, c.want)
		}
		if r.Requests > 0 && (r.P50 <= 0 || r.P99 < r.P50 || r.Seconds <= 0) {
			t.Errorf("%+v: p50 %d us, p99 %d us, %g s", c.o, r.P50, r.P99, r.Seconds)
		}
	}
}

// TestLoadEndsInTime runs loads that would go on for ever; the end is no error.
func TestLoadEndsInTime(t *testing.T) {
	origin := start(t, ServeHTTP)
	raw := start(t, (&TCPServer{}).Serve)
	silent := start(t, (&TCPServer{Mode: "hold 60000"}).Serve)
	for _, o := range []LoadOptions{
		{Kind: "http", Address: origin, KeepAlive: true, Conns: 2},
		{Kind: "http", Address: silent},
		{Kind: "source", Address: raw, Bytes: MaxBytes},
		{Kind: "sink", Address: raw, Bytes: MaxBytes},
	} {
		o.Duration = 100 * time.Millisecond
		r, err := Load(t.Context(), o)
		if err != nil || r.Errors != 0 || r.Seconds > 5 {
			t.Errorf("%+v: got %+v, %v", o, r, err)
		}
		if o.Address != silent && r.Bytes == 0 {
			t.Errorf("%+v: no bytes", o)
		}
	}
	for _, bad := range []LoadOptions{{Kind: "http", Address: origin}, {Kind: "dance", Requests: 1}} {
		if _, err := Load(t.Context(), bad); err == nil {
			t.Errorf("%+v: no error", bad)
		}
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	if got := h.quantile(0.5); got != 0 {
		t.Errorf("median of nothing is %d", got)
	}
	for us := 1; us <= 100_000; us++ {
		h.add(time.Duration(us) * time.Microsecond)
	}
	for q, want := range map[float64]float64{0.5: 50_000, 0.99: 99_000, 0.00001: 1, 1: 100_000} {
		if got := float64(h.quantile(q)); got > want || got < want*0.96 {
			t.Errorf("quantile %g is %g, want %g or up to 4 %% less", q, got, want)
		}
	}
	h.add(-time.Second)
	h.add(1 << 62)
}

func FuzzReadResponse(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
	f.Add("HTTP/1.1 200 OK\ncontent-length:0\n\n")
	f.Add("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n")
	f.Add("HTTP/1.1 404 Not Found\r\n\r\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, in string) {
		n, err := readResponse(bufio.NewReaderSize(strings.NewReader(in), 16))
		if err == nil && (n < 0 || n > int64(len(in))) {
			t.Errorf("a body of %d bytes from %d", n, len(in))
		}
	})
}

func FuzzParseVerb(f *testing.F) {
	for _, s := range []string{"echo", "source 5", "hold 60000", "reset -1", "source 99999999999999999999", " "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		verb, n, err := parseVerb(in)
		if err == nil && (n < 0 || n > MaxBytes || !strings.HasPrefix(in, verb)) {
			t.Errorf("%q is %q %d", in, verb, n)
		}
	})
}

func TestTailKeepsTheEnd(t *testing.T) {
	var tl tail
	for i := range 1000 {
		fmt.Fprintf(&tl, "line %d\n", i)
	}
	if got := tl.String(); len(got) > maxTail+2 || !strings.HasSuffix(got, "line 999") {
		t.Errorf("tail of %d bytes ends %q", len(got), got[max(0, len(got)-20):])
	}
	if got := (&tail{}).String(); got != "" {
		t.Errorf("empty tail says %q", got)
	}
}
