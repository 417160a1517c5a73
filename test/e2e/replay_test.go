package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"penstock/internal/control"
	"penstock/internal/lab"
)

// replayCaptures are played: TLS, HTTP/1 and HTTP/2 of both IP versions, whole
// connections and cut ones, with retransmissions and resets.
var replayCaptures = []string{
	"stages/tls/testdata/captures/curl-enabled-tls13.pcap",
	"stages/tls/testdata/captures/https3-301-get.pcap",
	"stages/tls/testdata/captures/suricata-ja4-tls-quic.pcap",
	"stages/tls/testdata/captures/suricata-tls-ch-frag-mtu300.pcap",
	"stages/tls/testdata/captures/tls-split-client-hello.pcap",
	"stages/tls/testdata/captures/zeek-tls13-ech.pcap",
	"stages/http/testdata/captures/arkime-http-content-gzip.pcap",
	"stages/http/testdata/captures/arkime-websocket.pcap",
	"stages/http/testdata/captures/suricata-http-evader-010.pcap",
	"stages/http/testdata/captures/zeek-pipelined-requests.pcap",
	"stages/http/testdata/captures/zeek-smuggle-http-request.pcap",
	"internal/h2/testdata/http2-nghttp2.pcap",
}

const replayChain = `
[[steer]]
from = "lan"
proto = "tcp"
to = "all"
[[chain]]
name = "all"
  [[chain.stage]]
  kind = "tcp"
  [[chain.stage]]
  kind = "tls"
  [[chain.stage]]
  kind = "http"
  [[chain.stage]]
  kind = "llm"
  identity = "off"
[[record]]
to = "file:%s"
events = ["tls", "http", "llm", "flow"]
`

// TestReplayIsLive plays captures through the appliance, packet by packet from
// the sides that sent them, with one worker and with two, and replays the same
// packets offline through the same chain: the same records, but for times, numbers
// of connections and the order. Flows are recorded by XDP, which a replay has
// not: their figures are those of the capture.
func TestReplayIsLive(t *testing.T) {
	frames, flows := captured(t)
	dir := t.TempDir()
	capture := filepath.Join(dir, "all.pcap")
	writeCapture(t, capture, frames)
	var offline []string
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d workers", queues), func(t *testing.T) {
			r := newRig(t, lab.InlineOptions{Veth: lab.VethOptions{Queues: queues, NoMerge: true}})
			if offline == nil {
				again := filepath.Join(dir, "offline.json")
				r.config("closed", "", fmt.Sprintf(replayChain, again))
				r.run(r.Appliance, 30*time.Second, binary, "replay", "--in", capture, r.toml)
				offline = records(t, again, "tls", "http", "llm")
				for kind, want := range map[string]int{"tls": 7, "http": 12, "llm": 2} {
					if n := strings.Count(strings.Join(offline, "\n"), `"event_type":"`+kind+`"`); n < want {
						t.Fatalf("%d records %s offline, want at least %d:\n%s", n, kind, want, strings.Join(offline, "\n"))
					}
				}
			}
			log := filepath.Join(r.dir, "events.json")
			r.config("closed", "", fmt.Sprintf(replayChain, log))
			a := r.start()
			if n := len(a.status().Workers); n != queues {
				t.Fatalf("%d workers", n)
			}
			a.play(frames)
			client := control.NewClient(r.control())
			r.eventually("flows are forgotten, and recorded", func() error {
				list, err := client.Flows()
				if err != nil {
					return err
				}
				if _, err = client.Evict(list); err != nil {
					return err
				}
				if n := len(records(t, log, "flow")); n != len(flows) {
					return fmt.Errorf("%d flows are recorded, want %d", n, len(flows))
				}
				return nil
			})
			a.stop()
			if live := records(t, log, "tls", "http", "llm"); !slices.Equal(live, offline) {
				t.Errorf("live:\n%s\noffline:\n%s", strings.Join(live, "\n"), strings.Join(offline, "\n"))
			}
			if live := records(t, log, "flow"); !slices.Equal(live, flows) {
				t.Errorf("live:\n%s\nin the capture:\n%s", strings.Join(live, "\n"), strings.Join(flows, "\n"))
			}
		})
	}
}

// sided is a frame, and the side that it comes from.
type sided struct {
	fromServer bool
	b          []byte
}

var playMAC = net.HardwareAddr{2, 0x77, 0, 0, 0, 1} // nobody's: the ends leave such frames alone

// play sends frames, each when the one before it has arrived or was dropped.
func (a *appliance) play(frames []sided) {
	r := a.r
	var raw [2]*lab.Raw
	var taps [2]*lab.Tap
	for i, end := range []*lab.NS{r.Client, r.Server} {
		var err error
		if raw[i], err = end.Raw("eth0"); err != nil {
			r.t.Fatal(err)
		}
		defer raw[i].Close()
		if taps[i], err = end.Tap("eth0", 1<<16); err != nil {
			r.t.Fatal(err)
		}
		defer taps[i].Close()
	}
	arrived := func() (n int) {
		for _, tap := range taps {
			for _, f := range tap.Frames() {
				if !f.Outgoing && len(f.Data) > 12 && bytes.Equal(f.Data[6:12], playMAC) {
					n++
				}
			}
		}
		return n
	}
	want, dropped := 0, uint64(0)
	for i, f := range frames {
		from := 0
		if f.fromServer {
			from = 1
		}
		if _, err := raw[from].Write(f.b); err != nil {
			r.t.Fatalf("frame %d: %v", i, err)
		}
		start := time.Now()
		for arrived() == want {
			if time.Since(start) > 50*time.Millisecond {
				now := uint64(0)
				for _, n := range a.status().Totals.Dropped {
					now += n
				}
				if now > dropped {
					dropped = now
					want--
					break
				}
			}
			if time.Since(start) > 5*time.Second {
				r.t.Fatalf("frame %d of %d bytes has not arrived, and was not dropped: %+v", i, len(f.b), a.status().Totals)
			}
			time.Sleep(100 * time.Microsecond)
		}
		want++
	}
}

// captured reads the TCP packets of the captures, and one conversation with a
// language model, as frames between two stations, checksums made right. The
// sender of a flow's first packet is the client. flows is what XDP is to record.
func captured(t *testing.T) (frames []sided, flows []string) {
	t.Helper()
	type ends struct{ src, dst gopacket.Endpoint }
	type flow struct{ net, port ends }
	clients := map[flow]bool{} // true: from the client
	type figures struct{ Pkts, Bytes [2]int }
	counts := map[flow]*figures{}
	var order []flow
	var add func(network gopacket.NetworkLayer, tcp *layers.TCP)
	add = func(network gopacket.NetworkLayer, tcp *layers.TCP) {
		if b := tcp.Payload; len(b) > 1400 { // some captures have what a NIC was to cut up
			first := *tcp
			first.Payload, first.FIN = b[:1400], false
			add(network, &first)
			rest := *tcp
			rest.Payload, rest.Seq = b[1400:], tcp.Seq+1400
			add(network, &rest)
			return
		}
		_ = tcp.SetNetworkLayerForChecksum(network)
		eth := &layers.Ethernet{SrcMAC: playMAC, DstMAC: net.HardwareAddr{2, 0x77, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
		if network.LayerType() == layers.LayerTypeIPv6 {
			eth.EthernetType = layers.EthernetTypeIPv6
		}
		buf := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{ComputeChecksums: true, FixLengths: true}, eth, network.(gopacket.SerializableLayer), tcp, gopacket.Payload(tcp.Payload)); err != nil {
			t.Fatal(err)
		}
		n := network.NetworkFlow()
		key := flow{ends{n.Src(), n.Dst()}, ends{layers.NewTCPPortEndpoint(tcp.SrcPort), layers.NewTCPPortEndpoint(tcp.DstPort)}}
		fromClient, known := clients[key]
		if !known && !tcp.SYN {
			return // XDP lets connections pass that began before it
		}
		if !known {
			back := flow{ends{n.Dst(), n.Src()}, ends{key.port.dst, key.port.src}}
			clients[key], clients[back], fromClient = true, false, true
			counts[key] = &figures{}
			counts[back] = counts[key]
			order = append(order, key)
		}
		c, d := counts[key], 1
		if fromClient {
			d = 0
		}
		c.Pkts[d]++
		c.Bytes[d] += len(buf.Bytes())
		frames = append(frames, sided{!fromClient, slices.Clone(buf.Bytes())})
	}
	for _, name := range replayCaptures {
		b, err := os.ReadFile("../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		reader, err := pcapgo.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		for {
			data, _, err := reader.ReadPacketData()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			p := gopacket.NewPacket(data, reader.LinkType(), gopacket.Default)
			if tcp, ok := p.TransportLayer().(*layers.TCP); ok {
				add(p.NetworkLayer(), tcp)
			}
		}
	}
	talk(add)
	for _, k := range order {
		c := counts[k]
		b, err := json.Marshal(map[string]any{
			"event_type": "flow", "src_ip": k.net.src.String(), "src_port": json.Number(k.port.src.String()), "dest_ip": k.net.dst.String(), "dest_port": json.Number(k.port.dst.String()),
			"proto": "TCP", "chain": "all", "flow": map[string]any{"pkts_toserver": c.Pkts[0], "pkts_toclient": c.Pkts[1], "bytes_toserver": c.Bytes[0], "bytes_toclient": c.Bytes[1]},
		})
		if err != nil {
			t.Fatal(err)
		}
		flows = append(flows, string(b))
	}
	slices.Sort(flows)
	return frames, flows
}

// talk is a keep-alive connection to a language model: a whole answer, and a
// stream in several segments.
func talk(add func(gopacket.NetworkLayer, *layers.TCP)) {
	seq := [2]uint32{1000, 5000}
	send := func(d int, syn, fin bool, payload string) {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{10, 9, 0, 1}, DstIP: net.IP{10, 9, 0, 2}}
		tcp := &layers.TCP{SrcPort: 41000, DstPort: 8000, Seq: seq[d], Ack: seq[1-d], ACK: !syn || d == 1, SYN: syn, FIN: fin, Window: 60000}
		if d == 1 {
			ip.SrcIP, ip.DstIP = ip.DstIP, ip.SrcIP
			tcp.SrcPort, tcp.DstPort = tcp.DstPort, tcp.SrcPort
		}
		tcp.Payload = []byte(payload)
		add(ip, tcp)
		seq[d] += uint32(len(payload))
		if syn || fin {
			seq[d]++
		}
	}
	send(0, true, false, "")
	send(1, true, false, "")
	send(0, false, false, "")
	ask := func(path, body string) {
		send(0, false, false, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: model.example\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body))
	}
	ask("/v1/messages", `{"model":"claude","messages":[]}`)
	whole := `{"type":"message","model":"claude","stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":4}}`
	send(1, false, false, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(whole), whole))
	send(0, false, false, "")
	ask("/v1/chat/completions", `{"model":"gpt","stream":true,"stream_options":{"include_usage":true},"messages":[]}`)
	send(1, false, false, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
	for _, e := range []string{`{"model":"gpt","choices":[{"delta":{"content":"a"}}]}`, `{"model":"gpt","choices":[{"delta":{"content":"b"},"finish_reason":"stop"}]}`,
		`{"model":"gpt","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}`, "[DONE]"} {
		e = "data: " + e + "\n\n"
		send(1, false, false, fmt.Sprintf("%x\r\n%s", len(e), e[:9]))
		send(1, false, false, e[9:]+"\r\n")
		send(0, false, false, "")
	}
	send(1, false, false, "0\r\n\r\n")
	send(0, false, true, "")
	send(1, false, true, "")
	send(0, false, false, "")
}

func writeCapture(t *testing.T, name string, frames []sided) {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriter(&b)
	if err := w.WriteFileHeader(1<<16, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1700000000, 0)
	for _, f := range frames {
		at = at.Add(time.Millisecond)
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(f.b), Length: len(f.b)}, f.b); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// records reads records of some kinds, sorted, without what differs between two
// looks at the same packets.
func records(t *testing.T, file string, kinds ...string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b = b[:bytes.LastIndexByte(b, '\n')+1] // the last line may be half written
	for line := range bytes.Lines(b) {
		var e map[string]any
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if !slices.Contains(kinds, e["event_type"].(string)) {
			continue
		}
		for _, k := range []string{"timestamp", "flow_id", "in_iface", "depth", "action"} {
			if k != "action" || e["event_type"] == "flow" {
				delete(e, k)
			}
		}
		for _, v := range e {
			if inner, ok := v.(map[string]any); ok {
				for k := range inner {
					if strings.HasSuffix(k, "_seconds") || k == "start" || k == "end" || k == "reason" && e["event_type"] == "flow" {
						delete(inner, k)
					}
				}
			}
		}
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, string(text))
	}
	slices.Sort(lines)
	return lines
}
