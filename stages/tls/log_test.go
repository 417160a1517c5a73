package tls

import (
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"penstock/internal/record"
	"penstock/pipeline"
)

// TestEventWritesItself: the lines of the record are what encoding/json makes of
// it, whatever the ends say, and of a copy that was kept.
func TestEventWritesItself(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	texts := []string{"", "a", "h2", "www.example.com", "771,4865-4866,0-23,29,0", "\"\\", "\x00\x1f\x7f", "\xff\xfe", "Zoë\u2028", "<&>"}
	text := func() string { return texts[r.IntN(len(texts))] }
	list := func() (l []string) {
		for range r.IntN(3) {
			l = append(l, text())
		}
		return l
	}
	print := func() *fingerprint {
		if r.IntN(3) == 0 {
			return nil
		}
		return &fingerprint{record.Text("x" + text()), record.Text("y" + text())}
	}
	for range 5000 {
		e := &event{
			FlowID: r.Uint64(), SrcIP: netip.AddrFrom4([4]byte{10, 0, 0, byte(r.Int())}), SrcPort: uint16(r.Int()), DestPort: uint16(r.Int()),
			DestIP: netip.MustParseAddr("fe80::1"), Proto: text(), Chain: text(), Action: text(), Reason: text(), Rules: list(),
			TLS: &tlsRecord{
				SNI: text(), Version: text(), ClientALPNs: list(), ServerALPNs: list(), JA3: print(), JA3S: print(), JA4: record.Text(text()), ClientVersion: text(),
				CipherSuite: record.Text(text()), ECH: r.IntN(2) == 0, ESNI: r.IntN(2) == 0, DNS: text(), HelloRetry: r.IntN(2) == 0,
			},
		}
		if alert := uint8(r.Int()); r.IntN(2) == 0 {
			e.TLS.Alert = &alert
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
		kept := e.Keep()
		for _, l := range [][]byte{e.TLS.JA4, e.TLS.CipherSuite} {
			clear(l)
		}
		for _, f := range []*fingerprint{e.TLS.JA3, e.TLS.JA3S} {
			if f != nil {
				clear(f.Hash)
				clear(f.String)
			}
		}
		clear(e.TLS.ClientALPNs)
		clear(e.TLS.ServerALPNs)
		*e.TLS = tlsRecord{}
		if again, err := json.Marshal(kept); err != nil || string(again) != string(want) {
			t.Fatalf("the copy that was kept is %s (%v)\nwant %s", again, err, want)
		}
	}
}

// handshakes returns a function that plays a handshake that is recorded in a file.
func handshakes(t testing.TB) func() {
	pieces := transcript(t, nil)
	hello, answer := []byte(pieces[0].data), []byte(pieces[1].data)
	r, err := record.Open([]record.Spec{{To: "file:/dev/null", Events: []string{"tls"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	c := defaults()
	c.DenySNI = []string{"*.ads.example"}
	s, err := newStage(c, &pipeline.Env{Chain: "tls", Recorder: r.Lane(), Counters: &pipeline.CounterSet{}})
	if err != nil {
		t.Fatal(err)
	}
	conn := &pipeline.Conn{ID: 7, Client: netip.MustParseAddrPort("10.0.0.1:40000"), Server: netip.MustParseAddrPort("192.0.2.10:443"), Start: 1, Depth: pipeline.DepthInspect}
	return func() {
		st := s.Open(conn)
		if _, v := st.Data(pipeline.ToServer, hello, 1); v.Action != pipeline.StreamContinue {
			t.Fatal(v)
		}
		if _, v := st.Data(pipeline.ToClient, answer, 1); v.Action != pipeline.StreamRelease {
			t.Fatal(v)
		}
		st.Close(1)
	}
}

// TestFewAllocations: a recorded handshake allocates its server name.
func TestFewAllocations(t *testing.T) {
	play := handshakes(t)
	// The sink's own are counted as well, a few for thousands of records.
	if got := testing.AllocsPerRun(20, func() {
		for range 1000 {
			play()
		}
	}); got > 1200 {
		t.Errorf("1000 handshakes cost %v allocations", got)
	}
}

func BenchmarkRecorded(b *testing.B) {
	play := handshakes(b)
	b.ReportAllocs()
	for b.Loop() {
		play()
	}
}
