package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	collectormetrics "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	collectortrace "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"penstock/internal/control"
	"penstock/internal/lab"
)

// ipfixElement is an information element: IANA's number, and 1<<15 for that of
// the reverse direction.
type ipfixElement struct{ id, len int }

// ipfixReader reads messages by the templates in them.
type ipfixReader struct {
	templates map[int][]ipfixElement
	records   []map[int][]byte // by element
	seq       uint64
}

func (r *ipfixReader) read(b []byte) error {
	if len(b) < 16 || number(b[:2]) != 10 || int(number(b[2:4])) != len(b) {
		return fmt.Errorf("a message of %d bytes: % x", len(b), b[:min(len(b), 16)])
	}
	if seq := number(b[8:12]); seq != r.seq {
		return fmt.Errorf("sequence number %d after %d records", seq, r.seq)
	}
	for b = b[16:]; len(b) > 0; {
		id, n := int(number(b[:2])), int(number(b[2:4]))
		set := b[4:n]
		b = b[n:]
		for id == 2 && len(set) > 0 {
			name, fields := int(number(set[:2])), int(number(set[2:4]))
			set = set[4:]
			r.templates[name] = nil
			for range fields {
				e := ipfixElement{int(number(set[:2])), int(number(set[2:4]))}
				set = set[4:]
				if e.id >= 1<<15 {
					if pen := number(set[:4]); pen != 29305 {
						return fmt.Errorf("an element of enterprise %d", pen)
					}
					set = set[4:]
				}
				r.templates[name] = append(r.templates[name], e)
			}
		}
		if id == 2 {
			continue
		}
		if r.templates[id] == nil {
			return fmt.Errorf("no template %d has come", id)
		}
		for len(set) > 0 {
			record := map[int][]byte{}
			for _, e := range r.templates[id] {
				record[e.id], set = set[:e.len], set[e.len:]
			}
			r.records = append(r.records, record)
			r.seq++
		}
	}
	return nil
}

func number(b []byte) (n uint64) {
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n
}

// TestIPFIX: what a collector is told of flows is what is recorded of them.
func TestIPFIX(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	path := filepath.Join(r.dir, "events.json")
	collector, err := r.Appliance.ListenPacket("udp", "127.0.0.1:4739")
	if err != nil {
		t.Fatal(err)
	}
	defer collector.Close()
	r.config("closed", "", fmt.Sprintf(`
[[record]]
to = "file:%s"
events = ["flow"]
[[ipfix]]
to = "udp:127.0.0.1:4739"
domain = 7
[[ipfix]]
to = "tcp:127.0.0.1:1"
[[steer]]
proto = "icmp"
to = "filter"
`, path)+aclChain)
	r.tcpServer(7000)
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	const flows = 6
	for i := range flows {
		if err := r.client().TCPDiscard(ctx, r.addr(i%2 == 1, 7000), int64(i)<<10); err != nil {
			t.Fatal(err)
		}
	}
	got := ipfixReader{templates: map[int][]ipfixElement{}}
	buf := make([]byte, 65536)
	for len(got.records) < flows {
		_ = collector.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, _, err := collector.ReadFrom(buf)
		if err != nil {
			t.Fatalf("%d of %d flows: %v", len(got.records), flows, err)
		}
		b := append([]byte(nil), buf[:n]...)
		if err := got.read(b); err != nil {
			t.Fatal(err)
		}
		if domain := number(b[12:16]); domain != 7 {
			t.Errorf("observation domain %d", domain)
		}
	}
	type line struct {
		SrcIP    string `json:"src_ip"`
		SrcPort  int    `json:"src_port"`
		DestIP   string `json:"dest_ip"`
		DestPort int    `json:"dest_port"`
		Action   string `json:"action"`
		Flow     struct {
			PktsToServer  uint64    `json:"pkts_toserver"`
			PktsToClient  uint64    `json:"pkts_toclient"`
			BytesToServer uint64    `json:"bytes_toserver"`
			BytesToClient uint64    `json:"bytes_toclient"`
			Start         time.Time `json:"start"`
			End           time.Time `json:"end"`
			Reason        string    `json:"reason"`
		} `json:"flow"`
	}
	recorded := map[string]line{}
	r.eventually("the flows are recorded", func() error {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for l := range strings.Lines(string(text)) {
			var e line
			if json.Unmarshal([]byte(l), &e) == nil {
				recorded[net.JoinHostPort(e.SrcIP, fmt.Sprint(e.SrcPort))] = e
			}
		}
		if len(recorded) < flows {
			return fmt.Errorf("%d of %d", len(recorded), flows)
		}
		return nil
	})
	const reverse = 1 << 15
	for _, x := range got.records {
		src, dst := x[8], x[12]
		if src == nil {
			src, dst = x[27], x[28]
		}
		from, _ := netip.AddrFromSlice(src)
		to, _ := netip.AddrFromSlice(dst)
		name := netip.AddrPortFrom(from, uint16(number(x[7]))).String()
		e, there := recorded[name]
		f := e.Flow
		if !there || to.String() != e.DestIP || number(x[11]) != uint64(e.DestPort) || number(x[4]) != 6 {
			t.Errorf("%s to %s:%d is not recorded, or is %+v", name, to, number(x[11]), e)
			continue
		}
		for what, pair := range map[string][2]uint64{
			"packets to the server": {number(x[2]), f.PktsToServer}, "packets to the client": {number(x[2|reverse]), f.PktsToClient},
			"frame bytes to the server": {number(x[352]), f.BytesToServer}, "frame bytes to the client": {number(x[352|reverse]), f.BytesToClient},
			"bytes to the server": {number(x[1]), f.BytesToServer - 14*f.PktsToServer}, "bytes to the client": {number(x[1|reverse]), f.BytesToClient - 14*f.PktsToClient},
			"end reason": {number(x[136]), 3}, "VLAN": {number(x[243]), 0},
		} {
			if pair[0] != pair[1] {
				t.Errorf("%s: %s: %d, the record has %d", name, what, pair[0], pair[1])
			}
		}
		// The clocks of monotonic time and of the day are read once for each.
		for what, pair := range map[string][2]int64{"start": {int64(number(x[152])), f.Start.UnixMilli()}, "end": {int64(number(x[153])), f.End.UnixMilli()}} {
			if d := pair[0] - pair[1]; d < -2 || d > 2 {
				t.Errorf("%s: %s: %d, the record has %d", name, what, pair[0], pair[1])
			}
		}
		if flags := number(x[6]); flags&0x13 != 0x13 { // SYN, FIN, ACK
			t.Errorf("%s: TCP flags %#x", name, flags)
		}
		if e.Action == "forward" && number(x[89]) != 1<<6 {
			t.Errorf("%s: forwarding status %#x", name, number(x[89]))
		}
	}
	s := a.status()
	if len(s.Exports) != 2 || s.Exports[0].Sent != flows || s.Exports[0].Kind != "ipfix" || !s.Exports[0].Up {
		t.Errorf("%+v", s.Exports)
	}
	// One that is not there has it waiting, and nobody else notices.
	if x := s.Exports[1]; x.Sent != 0 || x.Queued != flows || x.Up || !strings.Contains(x.Error, "refused") {
		t.Errorf("%+v", x)
	}
	a.balanced()
	a.stop()
}

// TestIPFIXOngoing: a collector is told of a flow while it goes on, and what it is told
// adds up to the flow, over a change of instances too.
func TestIPFIXOngoing(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	path := filepath.Join(r.dir, "events.json")
	collector, err := r.Appliance.ListenPacket("udp", "127.0.0.1:4739")
	if err != nil {
		t.Fatal(err)
	}
	defer collector.Close()
	r.config("open", "", fmt.Sprintf(`
[[record]]
to = "file:%s"
events = ["flow"]
[[ipfix]]
to = "udp:127.0.0.1:4739"
active_timeout = "1s"
[[steer]]
proto = "icmp"
to = "filter"
`, path)+aclChain)
	r.tcpServer(7000)
	r.start()
	raw, err := r.Client.DialContext(t.Context(), "tcp", r.addr(false, 7000))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := io.WriteString(raw, "echo\n"); err != nil {
		t.Fatal(err)
	}
	readers := map[string]*ipfixReader{} // by instance
	sums, reasons := map[int]uint64{}, []uint64{}
	const reverse = 1 << 15
	hear := func(reason uint64) {
		t.Helper()
		buf := make([]byte, 65536)
		for {
			_ = collector.SetReadDeadline(time.Now().Add(30 * time.Second))
			n, from, err := collector.ReadFrom(buf)
			if err != nil {
				t.Fatalf("waiting for a record with end reason %d: %v; so far %v", reason, err, reasons)
			}
			reader := readers[from.String()]
			if reader == nil {
				reader = &ipfixReader{templates: map[int][]ipfixElement{}}
				readers[from.String()] = reader
			}
			known := len(reader.records)
			if err := reader.read(append([]byte(nil), buf[:n]...)); err != nil {
				t.Fatal(err)
			}
			found := false
			for _, x := range reader.records[known:] {
				for _, id := range []int{2, 2 | reverse, 352, 352 | reverse} {
					sums[id] += number(x[id])
				}
				if start, end := number(x[152]), number(x[153]); start > end {
					t.Errorf("a record from %d to %d", start, end)
				}
				reasons = append(reasons, number(x[136]))
				found = found || number(x[136]) == reason
			}
			if found {
				return
			}
		}
	}
	for range 3 {
		r.echo(raw, "hello")
		hear(2)
	}
	r.echo(raw, "more") // told of by then, or as the first one leaves
	second := r.start() // takes over
	r.eventually("the second one runs", func() error {
		s, err := control.NewClient(r.control()).Status()
		if err == nil && s.PID != second.cmd.Process.Pid {
			err = fmt.Errorf("process %d answers", s.PID)
		}
		return err
	})
	hear(2)
	r.echo(raw, "and more")
	hear(2)
	r.echo(raw, "the last")
	raw.Close()
	hear(3)
	var line struct {
		Flow struct {
			PktsToServer  uint64 `json:"pkts_toserver"`
			PktsToClient  uint64 `json:"pkts_toclient"`
			BytesToServer uint64 `json:"bytes_toserver"`
			BytesToClient uint64 `json:"bytes_toclient"`
		} `json:"flow"`
	}
	r.eventually("the flow is recorded", func() error {
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &line)
		}
		return err
	})
	if len(readers) != 2 {
		t.Errorf("%d instances have told of it, want 2", len(readers))
	}
	for id, want := range map[int]uint64{2: line.Flow.PktsToServer, 2 | reverse: line.Flow.PktsToClient, 352: line.Flow.BytesToServer, 352 | reverse: line.Flow.BytesToClient} {
		if sums[id] != want || want == 0 {
			t.Errorf("element %d adds up to %d, the record has %d (end reasons %v)", id, sums[id], want, reasons)
		}
	}
	second.stop()
}

// TestOTLP: a span for each request, and metrics, of an appliance whose collector
// comes late and goes away again.
func TestOTLP(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.InlineOptions{})
	r.config("closed", "", `
[otlp]
endpoint = "http://127.0.0.1:4318"
interval = "1s"
headers = ["x-key: k"]
[[steer]]
proto = "tcp"
dst_port = [80]
to = "web"
[[chain]]
name = "web"
  [[chain.stage]]
  kind = "tcp"
  [[chain.stage]]
  kind = "http"
  deny_hosts = ["denied.example"]
`)
	r.origin(80)
	a := r.start()
	const requests = 4
	for i := range requests {
		if err := r.request(i%2 == 1); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	spans, statuses, gauge := 0, map[int64]int{}, 0.0
	handler := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		mu.Lock()
		defer mu.Unlock()
		if err != nil || req.Header.Get("X-Key") != "k" {
			t.Errorf("%v, %v", err, req.Header)
		}
		switch req.URL.Path {
		case "/v1/traces":
			var m collectortrace.ExportTraceServiceRequest
			if err := proto.Unmarshal(body, &m); err != nil {
				t.Error(err)
			}
			for _, s := range m.ResourceSpans[0].ScopeSpans[0].Spans {
				spans++
				for _, kv := range s.Attributes {
					if kv.Key == "http.response.status_code" {
						statuses[kv.Value.GetIntValue()]++
					}
				}
			}
		case "/v1/metrics":
			var m collectormetrics.ExportMetricsServiceRequest
			if err := proto.Unmarshal(body, &m); err != nil {
				t.Error(err)
			}
			for _, x := range m.ResourceMetrics[0].ScopeMetrics[0].Metrics {
				if x.Name == "penstock_appliance_uptime_seconds" {
					gauge = x.GetGauge().DataPoints[0].GetAsDouble()
				}
			}
		}
	})
	for range 2 { // the collector is there, goes away, and comes back
		l, err := r.Appliance.Listen("tcp", "127.0.0.1:4318")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: handler}
		go func() { _ = srv.Serve(l) }()
		r.eventually("spans and metrics arrive", func() error {
			mu.Lock()
			defer mu.Unlock()
			if spans == 0 || spans%requests != 0 || spans != statuses[200] || gauge <= 0 {
				return fmt.Errorf("%d spans, statuses %v, uptime %v", spans, statuses, gauge)
			}
			return nil
		})
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		mu.Lock()
		spans, gauge = 0, 0
		clear(statuses)
		mu.Unlock()
		for i := range requests { // nobody hears of them yet
			if err := r.request(i%2 == 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, x := range a.status().Exports {
		if x.Dropped > 0 || x.Kind == "otlp_traces" && x.Sent != 2*requests {
			t.Errorf("%+v", x)
		}
	}
	a.balanced()
	a.stop()
}
