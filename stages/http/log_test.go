package http

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"penstock/internal/record"
)

// TestEventWritesItself: the lines of the record are what encoding/json makes of
// it, whatever the ends say.
func TestEventWritesItself(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	texts := []string{"", "a", "GET", "/a?b=\"c\"\\", "\x00\x1f\x7f", "\xff\xfe", "Zoë\u2028", "<&>"}
	text := func() string { return texts[r.IntN(len(texts))] }
	number := func() int64 { return r.Int64() >> r.IntN(63) }
	for range 5000 {
		e := &event{
			FlowID: uint64(number()), SrcIP: netip.AddrFrom4([4]byte{10, 0, 0, byte(r.Int())}), SrcPort: uint16(r.Int()), DestPort: uint16(r.Int()),
			DestIP: netip.MustParseAddr("fe80::1"), Proto: text(), Chain: text(), Action: text(), Reason: text(), Unseen: text(),
			HTTP: httpRecord{
				Hostname: text(), URL: text(), UserAgent: text(), ContentType: text(), Method: text(), Protocol: text(), Traceparent: text(), Status: r.IntN(2) * int(number()>>32),
				RequestBytes: uint64(number()), Length: uint64(number()), FirstByte: seconds(number() >> 12), Duration: seconds(number() >> 12), ConnectionAge: -seconds(number() >> 12),
			},
		}
		for range r.IntN(3) {
			e.Rules = append(e.Rules, text())
		}
		if r.IntN(2) == 0 {
			e.HTTP.HTTP2 = &http2Record{Stream: r.Uint32(), Push: r.IntN(2) == 0, Reset: text(), Error: text()}
		}
		if status := r.IntN(20); r.IntN(2) == 0 {
			e.HTTP.GRPC = &grpcRecord{Service: text(), Method: text()}
			if r.IntN(2) == 0 {
				e.HTTP.GRPC.Status = &status
			}
		}
		want, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		m := record.Members("{")
		e.AppendMembers(&m)
		got := append(m, '}')
		var a, b any
		if err := json.Unmarshal(want, &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(got, &b); err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("got %s (%v)\nwant %s", got, err, want)
		}
	}
}

func BenchmarkEvent(b *testing.B) {
	e := &event{
		FlowID: 1, SrcIP: netip.MustParseAddr("10.0.0.1"), SrcPort: 40000, DestIP: netip.MustParseAddr("10.0.0.2"), DestPort: 80, Proto: "TCP", Chain: "web", Action: "allowed",
		HTTP: httpRecord{Hostname: "www.example.com", URL: "/index.html", UserAgent: "wrk/4", Method: "GET", Protocol: "HTTP/1.1", Status: 200, RequestBytes: 44, Length: 290, FirstByte: 123456, Duration: 234567, ConnectionAge: 1234567891},
	}
	b.Run("itself", func(b *testing.B) {
		b.ReportAllocs()
		var m record.Members
		for b.Loop() {
			m = m[:0]
			e.AppendMembers(&m)
		}
	})
	b.Run("encoding/json", func(b *testing.B) {
		b.ReportAllocs()
		var out bytes.Buffer
		enc := json.NewEncoder(&out)
		for b.Loop() {
			out.Reset()
			_ = enc.Encode(e)
		}
	})
}
