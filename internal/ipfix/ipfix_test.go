package ipfix

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// collector keeps the messages that arrive at a UDP socket.
type collector struct {
	t    *testing.T
	conn net.PacketConn
}

func listen(t *testing.T, addr string) *collector {
	t.Helper()
	conn, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &collector{t, conn}
}

func (c *collector) addr() string { return c.conn.LocalAddr().String() }

// next returns the next message.
func (c *collector) next() []byte {
	c.t.Helper()
	buf := make([]byte, 65536)
	_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, _, err := c.conn.ReadFrom(buf)
	if err != nil {
		c.t.Fatal(err)
	}
	return buf[:n]
}

// header is what a message says of itself.
type header struct{ length, seq, domain, records, templates int }

// parse reads a message as RFC 7011 has it, with the lengths of our templates.
func parse(t *testing.T, b []byte) (h header) {
	t.Helper()
	be := binary.BigEndian
	h.length, h.seq, h.domain = int(be.Uint16(b[2:])), int(be.Uint32(b[8:])), int(be.Uint32(b[12:]))
	if be.Uint16(b) != 10 || h.length != len(b) {
		t.Fatalf("a message of %d bytes begins with % x", len(b), b[:4])
	}
	for at := 16; at < len(b); {
		id, n := be.Uint16(b[at:]), int(be.Uint16(b[at+2:]))
		if n < 5 || at+n > len(b) {
			t.Fatalf("set %d of %d bytes at %d of %d", id, n, at, len(b))
		}
		size := map[uint16]int{2: n - 4, 256: 88, 257: 112}[id]
		if size == 0 || (n-4)%size != 0 {
			t.Fatalf("set %d has %d bytes", id, n)
		}
		if id == 2 {
			h.templates++
		} else {
			h.records += (n - 4) / size
		}
		at += n
	}
	return h
}

func open(t *testing.T, spec Spec, o Options) (*Exporter, *lockedBuffer) {
	t.Helper()
	if spec.Templates == 0 {
		spec.Templates = time.Hour
	}
	if spec.MessageSize == 0 {
		spec.MessageSize = 1400
	}
	var log lockedBuffer
	e, err := Open(spec, slog.New(slog.NewTextHandler(&log, nil)), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e, &log
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func eventually(t *testing.T, what string, fn func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !fn(); {
		if time.Now().After(end) {
			t.Fatalf("after 10 s still not: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func conserved(t *testing.T, e *Exporter, given uint64) {
	t.Helper()
	s := e.Stats()
	if s.Sent+s.Dropped+s.Failed+s.Queued != given {
		t.Errorf("%d flows were exported, %+v", given, s)
	}
}

var start = time.UnixMilli(1_790_000_000_123)

func flow4(n int) Flow {
	return Flow{
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("192.0.2.2"), SrcPort: uint16(n), DstPort: 443, Proto: 6,
		Packets: uint64(n) + 10, Bytes: uint64(n) + 5000, ReversePackets: 7, ReverseBytes: 70_000_000_000, TCPFlags: 0x1b, ReverseTCPFlags: 0x12,
		Start: start, End: start.Add(time.Duration(n) * time.Millisecond), Reason: EndDetected, Forwarding: Forwarded,
	}
}

// TestTshark has a foreign reader decode what was sent.
func TestTshark(t *testing.T) {
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Skip("tshark is not here; what was sent is not read by a foreign reader")
	}
	six := flow4(2)
	six.Src, six.Dst = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	six.VLAN, six.Forwarding, six.Reason = [2]uint16{100, 7}, Dropped, EndIdle
	udp := flow4(3)
	udp.Proto, udp.TCPFlags, udp.ReverseTCPFlags, udp.Forwarding, udp.Reason = 17, 0, 0, ForwardingUnknown, EndForced
	flows := []Flow{flow4(1), six, udp, flow4(4)}

	c := listen(t, "127.0.0.1:0")
	e, _ := open(t, Spec{To: "udp:" + c.addr(), Domain: 77}, Options{})
	for i := range flows {
		e.Export(&flows[i])
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	decoded := decode(t, c.next())
	if len(decoded) != len(flows) {
		t.Fatalf("%d records", len(decoded))
	}
	const layout = "Jan 2, 2006 15:04:05.000000000 MST"
	for _, f := range flows {
		header, src, dst, status, octets := uint64(14), "cflow.srcaddr", "cflow.dstaddr", "cflow.forwarding_status", []uint64{f.Bytes, f.ReverseBytes}
		if f.VLAN[0] != 0 {
			header = 22
		}
		octets[0] -= header * f.Packets
		octets[1] -= header * f.ReversePackets
		if f.Src.Is6() {
			src, dst = src+"v6", dst+"v6"
		}
		got := decoded[fmt.Sprint(f.SrcPort)]
		for name, want := range map[string]any{
			src: f.Src, dst: f.Dst, "cflow.dstport": f.DstPort, "cflow.protocol": f.Proto,
			"cflow.dot1q_vlan_id": f.VLAN[0], "cflow.dot1q_customer_vlan_id": f.VLAN[1],
			"cflow.abstimestart": f.Start.UTC().Format(layout), "cflow.abstimeend": f.End.UTC().Format(layout),
			"cflow.flow_end_reason": uint8(f.Reason), status: uint8(f.Forwarding) >> 6, "cflow.biflow_direction": 1,
			"cflow.packets": []uint64{f.Packets, f.ReversePackets}, "cflow.octets": octets,
			"cflow.layer2_octet_delta_count": []uint64{f.Bytes, f.ReverseBytes},
			"cflow.tcpflags":                 []string{fmt.Sprintf("0x%04x", f.TCPFlags), fmt.Sprintf("0x%04x", f.ReverseTCPFlags)},
		} {
			if fmt.Sprint(got[name]) != fmt.Sprint(want) {
				t.Errorf("flow from port %d: %s is %v, want %v", f.SrcPort, name, got[name], want)
			}
		}
	}
}

// decode has tshark read messages, and returns the fields of each record by its
// source port.
func decode(t *testing.T, messages ...[]byte) map[string]map[string]any {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ipfix.pcap")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := pcapgo.NewWriter(f)
	if err := w.WriteFileHeader(65536, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{10, 1, 1, 1}, DstIP: net.IP{10, 1, 1, 2}}
		udp := &layers.UDP{SrcPort: 40000, DstPort: 4739}
		_ = udp.SetNetworkLayerForChecksum(ip)
		buf := gopacket.NewSerializeBuffer()
		err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
			&layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload(m))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: start, CaptureLength: len(buf.Bytes()), Length: len(buf.Bytes())}, buf.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tshark", "-r", file, "-d", "udp.port==4739,cflow", "-T", "json", "--no-duplicate-keys")
	cmd.Env = append(os.Environ(), "HOME=/nonexistent", "TZ=UTC")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v: %s", err, stderr.String())
	}
	if !json.Valid(out) || bytes.Contains(out, []byte("_ws.expert")) || bytes.Contains(out, []byte("_ws.malformed")) {
		t.Errorf("tshark complains: %s", out)
	}
	var all any
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatal(err)
	}
	records := map[string]map[string]any{}
	var walk func(v any, into map[string]any)
	walk = func(v any, into map[string]any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e, into)
			}
		case map[string]any:
			if port, ok := v["cflow.srcport"].(string); ok {
				into = map[string]any{}
				records[port] = into
			}
			for name, e := range v {
				if into != nil {
					into[name] = e
				}
				walk(e, into)
			}
		}
	}
	walk(all, nil)
	return records
}

// TestMessages: many flows of both versions, in messages that are not too long
// and are counted.
func TestMessages(t *testing.T) {
	for _, size := range []int{MinMessage, 1400, MaxMessage} {
		c := listen(t, "127.0.0.1:0")
		e, _ := open(t, Spec{To: "udp:" + c.addr(), Domain: 9, MessageSize: size}, Options{Linger: time.Millisecond})
		const n = 300
		for i := range n {
			f := flow4(i)
			if i%3 == 0 {
				f.Src, f.Dst = netip.IPv6Loopback(), netip.IPv6Unspecified()
			}
			e.Export(&f)
		}
		seen := 0
		for first := true; seen < n; first = false {
			h := parse(t, c.next())
			if h.length > size || h.seq != seen || h.domain != 9 || (h.templates == 1) != first {
				t.Fatalf("after %d of messages of at most %d bytes: %+v", seen, size, h)
			}
			seen += h.records
		}
		eventually(t, "all are sent", func() bool { return e.Stats().Sent == n })
		conserved(t, e, n)
	}
}

// TestTemplatesAgain: over UDP they are repeated.
func TestTemplatesAgain(t *testing.T) {
	c := listen(t, "[::1]:0")
	e, _ := open(t, Spec{To: "udp:" + c.addr(), Templates: 20 * time.Millisecond}, Options{Linger: time.Millisecond})
	f := flow4(1)
	e.Export(&f)
	if h := parse(t, c.next()); h.templates != 1 || h.records != 1 {
		t.Errorf("%+v", h)
	}
	for range 3 {
		if h := parse(t, c.next()); h.templates != 1 || h.records != 0 || h.seq != 1 {
			t.Errorf("%+v", h)
		}
	}
}

// TestAbsentUDP: a collector that comes late gets templates first, and its
// absence is one line in the log.
func TestAbsentUDP(t *testing.T) {
	gone := listen(t, "127.0.0.1:0")
	addr := gone.addr()
	_ = gone.conn.Close()
	e, log := open(t, Spec{To: "udp:" + addr}, Options{Linger: time.Millisecond})
	given := uint64(0)
	export := func() {
		f := flow4(int(given))
		e.Export(&f)
		given++
	}
	eventually(t, "the refusal is noticed", func() bool { export(); return !e.Stats().Up })
	for range 50 {
		export()
	}
	eventually(t, "the queue is empty", func() bool { return e.Stats().Queued == 0 })
	c := listen(t, addr)
	export()
	if h := parse(t, c.next()); h.templates != 1 || h.records == 0 {
		t.Errorf("%+v", h)
	}
	if n := log.count("not exported"); n != 1 || !strings.Contains(e.Stats().Error, "refused") {
		t.Errorf("%d lines, %+v", n, e.Stats())
	}
	conserved(t, e, given)
}

// TestTCP: each connection is a session of its own; flows wait for one.
func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	e, log := open(t, Spec{To: "tcp:" + addr}, Options{Linger: time.Millisecond, Retry: time.Millisecond})
	next := func(r io.Reader) header {
		b := make([]byte, 16)
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatal(err)
		}
		b = append(b, make([]byte, binary.BigEndian.Uint16(b[2:])-16)...)
		if _, err := io.ReadFull(r, b[16:]); err != nil {
			t.Fatal(err)
		}
		return parse(t, b)
	}
	f := flow4(1)
	for session := range 3 {
		e.Export(&f) // in the second and third session: while there is nobody
		if session > 0 {
			if l, err = net.Listen("tcp", addr); err != nil {
				t.Fatal(err)
			}
		}
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if h := next(conn); h.templates != 1 || h.records != 1 || h.seq != 0 {
			t.Errorf("session %d: %+v", session, h)
		}
		e.Export(&f)
		if h := next(conn); h.templates != 0 || h.records != 1 || h.seq != 1 {
			t.Errorf("session %d: %+v", session, h)
		}
		_, _ = l.Close(), conn.Close()
		eventually(t, "the end is noticed", func() bool { return !e.Stats().Up })
	}
	if n := log.count("not exported"); n != 3 {
		t.Errorf("%d lines of 3 outages", n)
	}
	conserved(t, e, 6)
}

// TestStuck: nobody waits for a collector that does not read, or is not there,
// and the end is bounded.
func TestStuck(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never reads
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, to := range []string{"tcp:" + l.Addr().String(), "tcp:127.0.0.1:1", "udp:host.invalid:4739"} {
		e, _ := open(t, Spec{To: to, MessageSize: MaxMessage}, Options{CloseWait: 50 * time.Millisecond})
		given := uint64(0)
		f := flow4(1)
		var before Stats
		still := 0
		eventually(t, "nothing goes on", func() bool { // the kernel's buffers are full, and then the queue
			for range 1000 {
				e.Export(&f)
				given++
			}
			s := e.Stats()
			if still++; s.Sent != before.Sent || s.Dropped == 0 {
				still = 0
			}
			before = s
			return still > 20
		})
		if allocs := testing.AllocsPerRun(100, func() { e.Export(&f) }); allocs != 0 {
			t.Errorf("%s: Export allocates %v times", to, allocs)
		}
		given += 101
		conserved(t, e, given)
		began := time.Now()
		if err := e.Close(); err == nil || time.Since(began) > 3*time.Second {
			t.Errorf("%s: close took %v: %v", to, time.Since(began), err)
		}
		e.Export(&f)
		conserved(t, e, given+1)
		if s := e.Stats(); s.Queued != 0 || s.Dropped == 0 {
			t.Errorf("%s: %+v", to, s)
		}
	}
}

func TestTargets(t *testing.T) {
	for to, ok := range map[string]bool{
		"udp:192.0.2.9:4739": true, "tcp:[2001:db8::9]:4739": true, "udp:collector.example:4739": true,
		"": false, "udp": false, "udp:192.0.2.9": false, "udp::4739": false, "udp:192.0.2.9:0": false, "udp:192.0.2.9:65536": false,
		"sctp:192.0.2.9:4739": false, "192.0.2.9:4739": false, "udp:2001:db8::9:4739": false, "udp:a:ipfix": false,
	} {
		if err := CheckTarget(to); (err == nil) != ok {
			t.Errorf("%q: %v", to, err)
		}
	}
	for _, spec := range []Spec{{To: "x"}, {To: "udp:a:1", MessageSize: 511, Templates: 1}, {To: "udp:a:1", MessageSize: 70000, Templates: 1}, {To: "udp:a:1", MessageSize: 1400}} {
		if _, err := Open(spec, slog.Default(), Options{}); err == nil {
			t.Errorf("%+v is opened", spec)
		}
	}
}
