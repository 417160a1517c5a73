package tls

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"penstock/pipeline"
)

// segment is a piece of a connection, in the order of the capture.
type segment struct {
	client, server netip.AddrPort
	dir            pipeline.Direction
	data           string
}

// half is one direction of a connection of a capture.
type half struct {
	known   bool
	next    uint32
	waiting map[uint32][]byte
}

// add returns the bytes that are in order now.
func (h *half) add(seq uint32, b []byte) (data []byte) {
	if !h.known {
		h.known, h.next, h.waiting = true, seq, map[uint32][]byte{}
	}
	if len(b) > 0 && len(h.waiting[seq]) < len(b) {
		h.waiting[seq] = b
	}
	for again := true; again; {
		again = false
		for s, b := range h.waiting {
			if skip := int32(h.next - s); skip >= 0 {
				delete(h.waiting, s)
				if int(skip) < len(b) {
					data = append(data, b[skip:]...)
					h.next += uint32(len(b)) - uint32(skip)
					again = true
				}
			}
		}
	}
	return data
}

// segments reads the TCP connections of a capture.
func segments(t testing.TB, file string) (list []segment) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r, err := pcapgo.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	type key struct{ from, to netip.AddrPort }
	halves := map[key]*half{}
	clients := map[key]bool{}
	for p := range gopacket.NewPacketSource(r, r.LinkType()).Packets() {
		tcp, ok := p.TransportLayer().(*layers.TCP)
		if !ok {
			continue
		}
		src, dst := p.NetworkLayer().NetworkFlow().Endpoints()
		a, _ := netip.AddrFromSlice(src.Raw())
		z, _ := netip.AddrFromSlice(dst.Raw())
		k := key{netip.AddrPortFrom(a, uint16(tcp.SrcPort)), netip.AddrPortFrom(z, uint16(tcp.DstPort))}
		if clients[k] == clients[key{k.to, k.from}] { // the first packet
			clients[k] = tcp.SYN && !tcp.ACK || !tcp.SYN && tcp.SrcPort > tcp.DstPort
			clients[key{k.to, k.from}] = !clients[k]
		}
		h := halves[k]
		if h == nil {
			h = &half{}
			halves[k] = h
		}
		seq := tcp.Seq
		if tcp.SYN {
			seq++
		}
		s := segment{client: k.from, server: k.to, data: string(h.add(seq, tcp.Payload))}
		if !clients[k] {
			s.client, s.server, s.dir = k.to, k.from, pipeline.ToClient
		}
		if s.data != "" {
			list = append(list, s)
		}
	}
	return list
}

// play runs a capture through the stage and returns the records, by client port.
func play(t *testing.T, r *rig, name string, seed uint64) map[uint16]event {
	t.Helper()
	conns := map[netip.AddrPort]*conversation{}
	var order []*conversation
	sent := map[*conversation]*[2]string{}
	for _, s := range segments(t, filepath.Join("testdata", "captures", name+".pcap")) {
		c := conns[s.client]
		if c == nil {
			c = r.converse(&pipeline.Conn{ID: uint64(len(conns) + 1), Client: s.client, Server: s.server, Depth: pipeline.DepthTerminate})
			conns[s.client], sent[c] = c, &[2]string{}
			order = append(order, c)
		}
		for _, piece := range cut(s.data, seed) {
			c.send(s.dir, piece)
		}
		sent[c][s.dir] += s.data
	}
	for _, c := range order {
		c.finish(pipeline.ToServer)
		c.finish(pipeline.ToClient)
		c.s.Close(1)
		for d := range c.passed {
			if c.reason() == "" && string(c.passed[d]) != sent[c][d] {
				t.Errorf("%s: %v: %d bytes passed, %d were sent", name, pipeline.Direction(d), len(c.passed[d]), len(sent[c][d]))
			}
		}
	}
	byPort := map[uint16]event{}
	for _, e := range r.rec.events(t) {
		byPort[e.SrcPort] = e
	}
	return byPort
}

func captures(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob("testdata/captures/*.pcap")
	if err != nil || len(files) < 9 {
		t.Fatalf("%d captures, %v", len(files), err)
	}
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".pcap"))
	}
	return names
}

// rows reads a file of fields; lines that begin with # are comments.
func rows(t *testing.T, file, separator string) (list [][]string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSuffix(line, "\n"); line != "" && line[0] != '#' {
			list = append(list, strings.Split(line, separator))
		}
	}
	return list
}

// arkime is what Arkime says of a capture.
type arkime struct {
	Sessions []struct {
		Body struct {
			Source struct{ Port uint16 }
			TLS    struct{ JA3, JA3String, JA3S, JA3SString, JA4, Version []string }
		}
	} `json:"sessions3"`
}

// TestCapturesAgainstArkime compares with the results that Arkime publishes.
func TestCapturesAgainstArkime(t *testing.T) {
	compared := 0
	for _, name := range captures(t) {
		b, err := os.ReadFile("testdata/captures/" + name + ".arkime.json")
		if err != nil {
			continue
		}
		var want arkime
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
		got := play(t, newRig(t, nil), name, 0)
		for _, s := range want.Sessions {
			w := s.Body.TLS
			if len(w.JA4) == 0 {
				continue
			}
			e, ok := got[s.Body.Source.Port]
			if !ok {
				t.Errorf("%s: no record of port %d", name, s.Body.Source.Port)
				continue
			}
			compared++
			for _, f := range []struct {
				what, got string
				want      []string
			}{
				{"ja3", string(e.TLS.JA3.Hash), w.JA3}, {"ja3 string", string(e.TLS.JA3.String), w.JA3String}, {"ja3s", string(e.TLS.JA3S.Hash), w.JA3S},
				{"ja3s string", string(e.TLS.JA3S.String), w.JA3SString}, {"ja4", string(e.TLS.JA4), w.JA4},
				{"version", strings.ReplaceAll(e.TLS.Version, "TLS ", "TLSv"), w.Version},
			} {
				if !slices.Contains(f.want, f.got) {
					t.Errorf("%s: %s: got %q, Arkime has %q", name, f.what, f.got, f.want)
				}
			}
		}
	}
	if compared < 5 {
		t.Errorf("%d sessions compared, want at least 5", compared)
	}
}

// TestCapturesAgainstTshark compares names, protocols, versions, JA3 and JA3S.
func TestCapturesAgainstTshark(t *testing.T) {
	played := map[string]map[uint16]event{}
	hellos := 0
	for _, f := range rows(t, "tshark.txt", "|") {
		name, port, typ, sni, alpn, version, supported, ja3, ja3s := f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8]
		if played[name] == nil {
			played[name] = play(t, newRig(t, nil), name, 1)
		}
		var e event
		for p, candidate := range played[name] {
			if typ == "1" && strconv.Itoa(int(p)) == port || typ == "2" && candidate.TLS.JA3S != nil && string(candidate.TLS.JA3S.Hash) == ja3s {
				e = candidate
			}
		}
		if e.TLS == nil {
			t.Errorf("%s: no record for tshark's line %q", name, f)
			continue
		}
		hellos++
		chosen := map[string]string{"0x0301": "TLSv1", "0x0303": "TLS 1.2", "0x0304": "TLS 1.3"}
		switch typ {
		case "1":
			highest := version
			for v := range strings.SplitSeq(supported, ",") {
				if strings.HasPrefix(v, "0x03") {
					highest = max(highest, v)
				}
			}
			if e.TLS.SNI != sni || strings.Join(e.TLS.ClientALPNs, ",") != alpn || string(e.TLS.JA3.Hash) != ja3 || e.TLS.ClientVersion != chosen[highest] {
				t.Errorf("%s: got %+v, tshark has %q", name, e.TLS, f)
			}
		case "2":
			if supported != "" {
				version = supported
			}
			if strings.Join(e.TLS.ServerALPNs, ",") != alpn || e.TLS.Version != chosen[version] {
				t.Errorf("%s: got %+v, tshark has %q", name, e.TLS, f)
			}
		}
	}
	if hellos < 18 {
		t.Errorf("%d hellos compared, want at least 18", hellos)
	}
}

// TestCapturesAgainstFoxIO compares with the authors' implementation of JA4.
func TestCapturesAgainstFoxIO(t *testing.T) {
	for _, f := range rows(t, "ja4.tsv", "\t") {
		port, _ := strconv.Atoi(f[1])
		e := play(t, newRig(t, nil), f[0], 0)[uint16(port)]
		if e.TLS == nil || string(e.TLS.JA4) != f[2] {
			t.Errorf("%s: got %+v, want %s", f[0], e.TLS, f[2])
		}
	}
}

// TestCapturesAgainstSuricataAndZeek takes the field that each expectation is
// about.
func TestCapturesAgainstSuricataAndZeek(t *testing.T) {
	for _, row := range []struct{ name, file, needle, field string }{
		{"suricata-ja4-tls-quic", "suricata-ja4-tls-quic.suricata.yaml", "tls.ja4: ", "ja4"},
		{"suricata-tls-ch-frag-mtu300", "suricata-tls-ch-frag-mtu300.suricata.yaml", "tls.sni: ", "sni"},
	} {
		b, err := os.ReadFile("testdata/captures/" + row.file)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, ok := strings.Cut(string(b), row.needle)
		want, _, _ := strings.Cut(rest, "\n")
		if !ok || want == "" {
			t.Fatalf("%s has no %q", row.file, row.needle)
		}
		found := false
		for _, e := range play(t, newRig(t, nil), row.name, 2) {
			found = found || map[string]string{"ja4": string(e.TLS.JA4), "sni": e.TLS.SNI}[row.field] == want
		}
		if !found {
			t.Errorf("%s: no record has %s %q", row.name, row.field, want)
		}
	}
	// One line of Zeek's for each hello with an encrypted one inside.
	b, err := os.ReadFile("testdata/captures/zeek-tls13-ech.zeek.txt")
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	for _, e := range play(t, newRig(t, nil), "zeek-tls13-ech", 0) {
		if e.TLS.ECH && e.TLS.SNI == "cloudflare-ech.com" {
			got++
		}
	}
	if want := strings.Count(string(b), "ssl_extension_encrypted_client_hello"); want == 0 || got != want {
		t.Errorf("%d hellos with ECH, Zeek has %d", got, want)
	}
}

// TestCapturesInPieces: however segments are cut, the records are the same, with
// and without a policy.
func TestCapturesInPieces(t *testing.T) {
	for _, name := range captures(t) {
		for _, change := range []func(*Config){nil, func(c *Config) {
			c.DenySNI, c.MinVersion = []string{"www.github.com"}, "1.0"
		}} {
			var want string
			for seed := range uint64(5) {
				r := newRig(t, change)
				play(t, r, name, seed)
				got := fmt.Sprint(r.rec.lines, r.denied.Load(), r.lost.Load(), r.unanswered.Load())
				if seed == 0 {
					want = got
				}
				if got != want {
					t.Errorf("%s, pieces %d: got %s\nwant %s", name, seed, got, want)
				}
			}
		}
	}
}

// TestCaptureOfAnotherProtocol: TLS inside SOCKS is not TLS to this stage.
func TestCaptureOfAnotherProtocol(t *testing.T) {
	r := newRig(t, func(c *Config) { c.OnBad = "deny" })
	got := play(t, r, "socks4-https", 0)
	if len(got) != 1 || r.denied.Load() != 1 {
		t.Fatalf("%d records, %d denied", len(got), r.denied.Load())
	}
	for _, e := range got {
		if e.Reason != "tls_not_tls" || e.Action != "denied" {
			t.Errorf("got %+v", e)
		}
	}
}
