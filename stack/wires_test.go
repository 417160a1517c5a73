package stack_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"penstock/internal/lab"
	"penstock/internal/wire"
)

// fieldsOf lists what a frame says, field by field. Lengths and checksums are
// not listed: they follow from the rest, and are verified.
func fieldsOf(t *testing.T, frame []byte) map[string]string {
	t.Helper()
	var h wire.Headers
	if fault := h.Parse(frame); fault != wire.FaultNone || !h.HasL4 {
		t.Fatalf("parse %x: %v", frame, fault)
	}
	m := map[string]string{}
	set := func(name string, v any) { m[name] = fmt.Sprint(v) }
	eth := wire.Ethernet(frame)
	set("eth.src", net.HardwareAddr(eth.Src()))
	set("eth.dst", net.HardwareAddr(eth.Dst()))
	for i := range int(h.VLANs) {
		set(fmt.Sprintf("vlan.%d", i), fmt.Sprintf("%#x", h.VLAN[i]))
	}
	ipFields(set, "", frame[h.L3:])
	if h.Proto == wire.ProtoTCP {
		tcpFields(set, "", wire.TCP(frame[h.L4:h.End]))
		return m
	}
	icmp := wire.ICMP(frame[h.L4:h.End])
	set("icmp.type", icmp.Type())
	set("icmp.code", icmp.Code())
	set("icmp.rest", fmt.Sprintf("%x", frame[h.L4+4:h.L4+8]))
	var q wire.Headers
	if !h.QuotedHeaders(frame, &q) {
		t.Fatalf("an ICMP error without a quotation: %x", frame)
	}
	ipFields(set, "icmp.quote.", frame[q.L3:])
	quoted := wire.TCP(frame[q.L4:h.End])
	if len(quoted) >= wire.TCPLen && len(quoted) >= quoted.DataOffset() {
		tcpFields(set, "icmp.quote.", quoted)
	} else {
		set("icmp.quote.tcp", fmt.Sprintf("%x", []byte(quoted)))
	}
	return m
}

func ipFields(set func(string, any), in string, b []byte) {
	if b[0]>>4 == 4 {
		p := wire.IPv4(b)
		set(in+"ip.src", netip.AddrFrom4([4]byte(p.Src())))
		set(in+"ip.dst", netip.AddrFrom4([4]byte(p.Dst())))
		set(in+"ip.dscp", p.TOS()>>2)
		set(in+"ip.ecn", p.TOS()&3)
		set(in+"ip.ttl", p.TTL())
		set(in+"ip.id", p.ID())
		set(in+"ip.df", p.DontFragment())
		set(in+"ip.mf", p.MoreFragments())
		set(in+"ip.offset", p.FragmentOffset())
		set(in+"ip.options", fmt.Sprintf("%x", p.Options()))
		return
	}
	p := wire.IPv6(b)
	set(in+"ip.src", netip.AddrFrom16([16]byte(p.Src())))
	set(in+"ip.dst", netip.AddrFrom16([16]byte(p.Dst())))
	set(in+"ip.dscp", p.TrafficClass()>>2)
	set(in+"ip.ecn", p.TrafficClass()&3)
	set(in+"ip.ttl", p.HopLimit())
	set(in+"ip.flow_label", p.FlowLabel())
	set(in+"ip.next_header", p.NextHeader())
}

func tcpFields(set func(string, any), in string, seg wire.TCP) {
	set(in+"tcp.sport", seg.SrcPort())
	set(in+"tcp.dport", seg.DstPort())
	set(in+"tcp.seq", seg.Seq())
	set(in+"tcp.ack", seg.Ack())
	set(in+"tcp.window", seg.Window())
	set(in+"tcp.urgent", seg.Urgent())
	set(in+"tcp.reserved", seg[12]>>1&7)
	set(in+"tcp.payload", fmt.Sprintf("%q", seg.Payload()))
	for _, f := range []struct {
		name string
		flag wire.TCPFlags
	}{
		{"fin", wire.FlagFIN}, {"syn", wire.FlagSYN}, {"rst", wire.FlagRST}, {"psh", wire.FlagPSH},
		{"ack", wire.FlagACK}, {"urg", wire.FlagURG}, {"ece", wire.FlagECE}, {"cwr", wire.FlagCWR},
	} {
		set(in+"tcp.flag."+f.name, seg.Flags()&f.flag != 0)
	}
	var order []string
	it := seg.OptionIter()
	for it.Next() {
		name := optionNames[it.Kind]
		if it.Kind == 254 && strings.HasPrefix(string(it.Value), "\xf9\x89") { // RFC 7413, before it had a number
			name = "fast_open"
		}
		switch {
		case it.Kind == wire.OptNop || it.Kind == wire.OptEnd:
			order = append(order, "pad")
			continue
		case it.Kind == wire.OptTimestamps:
			val, ecr, _ := it.Timestamps()
			set(in+"tcp.option.timestamps", true)
			set(in+"tcp.option.timestamps.value", val)
			set(in+"tcp.option.timestamps.echo", ecr)
		case name == "":
			name = fmt.Sprint(it.Kind)
			fallthrough
		default:
			set(in+"tcp.option."+name, fmt.Sprintf("%x", it.Value))
		}
		// What is there or not shows by its own name.
		if name != "mptcp" && name != "fast_open" {
			order = append(order, name)
		}
	}
	set(in+"tcp.options_order", strings.Join(order, " "))
}

var optionNames = map[uint8]string{
	wire.OptMSS: "mss", wire.OptWindowScale: "scale", wire.OptSACKPermitted: "sack_permitted", 5: "sack",
	wire.OptTimestamps: "timestamps", 30: "mptcp", 34: "fast_open",
}

// wires are the taps at both ends.
type wires struct {
	t              *testing.T
	client, server *lab.Tap
	seen           map[string]map[string]string // field > segment > example
	compared       map[string]int               // segment > times
}

// segments of a connection that are compared: what is sent by one end, and what
// arrives at the other.
var wireSegments = []struct {
	name string
	is   func(h *wire.Headers, seg wire.TCP) bool
}{
	{"SYN", func(_ *wire.Headers, s wire.TCP) bool { return s.Flags()&(wire.FlagSYN|wire.FlagACK) == wire.FlagSYN }},
	{"SYN-ACK", func(_ *wire.Headers, s wire.TCP) bool { return s.Flags().Has(wire.FlagSYN | wire.FlagACK) }},
	{"ACK", func(_ *wire.Headers, s wire.TCP) bool { return s.Flags() == wire.FlagACK && len(s.Payload()) == 0 }},
	{"data", func(_ *wire.Headers, s wire.TCP) bool {
		return s.Flags()&wire.FlagSYN == 0 && len(s.Payload()) > 0 && s.Flags()&wire.FlagURG == 0
	}},
	{"urgent", func(_ *wire.Headers, s wire.TCP) bool { return len(s.Payload()) > 0 && s.Payload()[0] == 'U' }},
	{"FIN", func(_ *wire.Headers, s wire.TCP) bool { return s.Flags()&wire.FlagFIN != 0 }},
	{"RST", func(_ *wire.Headers, s wire.TCP) bool { return s.Flags()&wire.FlagRST != 0 && s.Seq() != 0 }},
	{"refusal", func(_ *wire.Headers, s wire.TCP) bool {
		return s.Flags().Has(wire.FlagRST|wire.FlagACK) && s.Seq() == 0
	}},
}

// compare matches the first segment of a kind that one end of a connection has
// sent with the first that arrived at the other.
func (w *wires) compare(client, server netip.AddrPort, kind string, toServer bool) {
	w.t.Helper()
	from, to, src, dst := w.client, w.server, client, server
	if !toServer {
		from, to, src, dst = to, from, dst, src
	}
	if kind == "ICMP" {
		src, dst = dst, src // what it quotes
	}
	var frames [2]lab.Frame
	for i, tap := range []*lab.Tap{from, to} {
		ctx, cancel := context.WithTimeout(context.Background(), dialTime)
		f, err := tap.Wait(ctx, func(f lab.Frame) bool {
			return f.Outgoing == (i == 0) && isSegment(f.Data, kind, src, dst)
		})
		cancel()
		if err != nil {
			w.t.Errorf("%s of %v > %v at %s: %v", kind, src, dst, []string{"its sender", "its receiver"}[i], err)
			return
		}
		frames[i] = f
	}
	var h wire.Headers
	h.Parse(frames[1].Data)
	if !wire.VerifyL4(frames[1].Data, &h) || h.IPVersion == 4 && !wire.VerifyIPv4(frames[1].Data[h.L3:]) {
		w.t.Errorf("%s of %v > %v arrives with a wrong checksum", kind, src, dst)
	}
	w.compared[kind]++
	sent, got := fieldsOf(w.t, frames[0].Data), fieldsOf(w.t, frames[1].Data)
	names := maps.Clone(sent)
	maps.Copy(names, got)
	for name := range names {
		if sent[name] == got[name] {
			continue
		}
		if w.seen[name] == nil {
			w.seen[name] = map[string]string{}
		}
		w.seen[name][kind] = fmt.Sprintf("%s, then %s", orNone(sent[name]), orNone(got[name]))
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func isSegment(frame []byte, kind string, src, dst netip.AddrPort) bool {
	var h wire.Headers
	if h.Parse(frame) != wire.FaultNone || !h.HasL4 {
		return false
	}
	if kind == "ICMP" {
		f, ok := h.QuotedFlow(frame)
		return ok && f.SrcAddr() == src && f.DstAddr() == dst
	}
	f, ok := h.Flow(frame)
	if !ok || h.Proto != wire.ProtoTCP || f.SrcAddr() != src || f.DstAddr() != dst {
		return false
	}
	for _, s := range wireSegments {
		if s.name == kind {
			return s.is(&h, wire.TCP(frame[h.L4:h.End]))
		}
	}
	panic("no segment " + kind)
}

// table reads the rows of a Markdown table that follows a line with the mark:
// the cells of each, without back-quotes around them.
func table(t *testing.T, file, mark string) (rows [][]string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(b), mark)
	if !ok {
		t.Fatalf("%s has no %q", file, mark)
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			if len(rows) > 0 {
				break
			}
			continue
		}
		var cells []string
		for _, c := range strings.Split(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.Trim(strings.TrimSpace(c), "`"))
		}
		rows = append(rows, cells)
	}
	if len(rows) < 3 {
		t.Fatalf("%s has no table behind %q", file, mark)
	}
	return rows[2:] // without head and rule
}

// connectWith opens a connection with socket options of the client's.
func connectWith(t *testing.T, ns *lab.NS, from, to netip.AddrPort, mptcp bool, set func(fd int)) (*net.TCPConn, error) {
	t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Timeout: dialTime, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { set(int(fd)) })
	}}
	d.SetMultipathTCP(mptcp)
	var conn net.Conn
	err := ns.Do(func() (err error) {
		conn, err = d.DialContext(context.Background(), "tcp", to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn), nil
}

// marks gives what a socket sends a DSCP and a hop limit that are not the usual
// ones.
func marks(v6 bool, tos, ttl int) func(fd int) {
	return func(fd int) {
		if v6 {
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos)
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl)
			return
		}
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, tos)
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, ttl)
	}
}

func control(t *testing.T, c *net.TCPConn, fn func(fd int)) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { fn(int(fd)) })
	}
	if err != nil {
		t.Error(err)
	}
}

func expectText(t *testing.T, c *net.TCPConn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Errorf("read %q, %v, want %q", b, err, want)
	}
}

// TestWires: of what one end sends and what arrives at the other, exactly those
// fields differ that docs/transparent.md lists.
func TestWires(t *testing.T) {
	b := newLinuxBed(t, nil)
	for _, ns := range []*lab.NS{b.net.Client, b.net.Server} {
		for key, value := range map[string]string{"tcp_ecn": "1", "tcp_fastopen": "3"} {
			if err := ns.Sysctl("net/ipv4/"+key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	w := &wires{t: t, seen: map[string]map[string]string{}, compared: map[string]int{}}
	var err error
	if w.client, err = b.net.Client.Tap(b.net.ClientIf, 1<<16); err != nil {
		t.Fatal(err)
	}
	if w.server, err = b.net.Server.Tap(b.net.ServerIf, 1<<16); err != nil {
		t.Fatal(err)
	}
	for _, v6 := range []bool{false, true} {
		for run := range uint16(2) { // a field that is random may be the same once
			cl, sv := b.ends(v6)
			port := 100 + 10*run
			w.inOrder(b, v6, addr(cl, 41000+run), addr(sv, port))
			w.resets(b, v6, addr(cl, 42000+run), addr(sv, port+1), true)
			w.resets(b, v6, addr(cl, 43000+run), addr(sv, port+2), false)
			w.refused(b, v6, addr(cl, 44000+run), addr(sv, port+3))
			w.options(b, v6, addr(cl, 45000+run), addr(sv, port+4))
			w.urgent(b, v6, addr(cl, 46000+run), addr(sv, port+5))
		}
		w.unreachable(b, v6)
	}
	for _, s := range append(slices.Collect(func(yield func(string) bool) {
		for _, s := range wireSegments {
			if !yield(s.name) {
				return
			}
		}
	}), "ICMP") {
		if w.compared[s] < 2 {
			t.Errorf("segment %s was compared %d times", s, w.compared[s])
		}
	}
	listed := map[string]bool{}
	for _, row := range table(t, "../docs/transparent.md", "<!-- wires -->") {
		if len(row) != 3 || row[2] == "" {
			t.Errorf("row %q: want a field, segments and a reason", row)
			continue
		}
		for _, s := range strings.Split(row[1], ", ") {
			listed[row[0]+" in "+s] = true
			if _, ok := w.seen[row[0]][s]; !ok {
				t.Errorf("%s in %s: listed as different, and is the same", row[0], s)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.seen)) {
		for _, s := range slices.Sorted(maps.Keys(w.seen[name])) {
			if !listed[name+" in "+s] {
				t.Errorf("%s in %s: differs (%s), and is not listed", name, s, w.seen[name][s])
			}
		}
	}
}

// inOrder has each end send, and finish.
func (w *wires) inOrder(b *linuxBed, v6 bool, client, server netip.AddrPort) {
	t := w.t
	var wg sync.WaitGroup
	wg.Add(1)
	b.serve(server, func(c *net.TCPConn) {
		defer wg.Done()
		control(t, c, marks(v6, 0x28, 99))
		expectText(t, c, "hello")
		c.Write([]byte("world"))
		io.Copy(io.Discard, c)
		c.Close()
	})
	c, err := connectWith(t, b.net.Client, client, server, false, marks(v6, 0xb8, 37))
	if err != nil {
		t.Error(err)
		return
	}
	c.Write([]byte("hello"))
	expectText(t, c, "world")
	c.CloseWrite()
	io.Copy(io.Discard, c)
	wg.Wait()
	w.compare(client, server, "SYN", true)
	w.compare(client, server, "SYN-ACK", false)
	w.compare(client, server, "ACK", true)
	w.compare(client, server, "data", true)
	w.compare(client, server, "data", false)
	w.compare(client, server, "FIN", true)
	w.compare(client, server, "FIN", false)
}

// resets has one end reset the connection.
func (w *wires) resets(b *linuxBed, v6 bool, client, server netip.AddrPort, byClient bool) {
	t := w.t
	end := func(c *net.TCPConn, reset bool) {
		if reset {
			c.SetLinger(0)
			c.Close()
			return
		}
		io.Copy(io.Discard, c)
	}
	done := make(chan struct{})
	b.serve(server, func(c *net.TCPConn) {
		expectText(t, c, "hello")
		c.Write([]byte("world"))
		end(c, !byClient)
		close(done)
	})
	c, err := connectWith(t, b.net.Client, client, server, false, marks(v6, 0xb8, 37))
	if err != nil {
		t.Error(err)
		return
	}
	c.Write([]byte("hello"))
	if byClient {
		expectText(t, c, "world")
	}
	end(c, byClient)
	<-done
	w.compare(client, server, "RST", byClient)
}

func (w *wires) refused(b *linuxBed, v6 bool, client, server netip.AddrPort) {
	if _, err := connectWith(w.t, b.net.Client, client, server, false, marks(v6, 0xb8, 37)); err == nil {
		w.t.Error("a closed port has answered")
		return
	}
	w.compare(client, server, "SYN", true)
	w.compare(client, server, "refusal", false)
}

// options has the client offer Multipath TCP and Fast Open.
func (w *wires) options(b *linuxBed, v6 bool, client, server netip.AddrPort) {
	t := w.t
	b.serve(server, func(c *net.TCPConn) { io.Copy(c, c) })
	for _, mptcp := range []bool{true, false} {
		c, err := connectWith(t, b.net.Client, client, server, mptcp, func(fd int) {
			if !mptcp {
				unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
			}
		})
		if err != nil {
			t.Error(err)
			return
		}
		c.Write([]byte("hello")) // Fast Open dials now
		expectText(t, c, "hello")
		w.compare(client, server, "SYN", true)
		w.compare(client, server, "SYN-ACK", false)
		c.Close()
		client = netip.AddrPortFrom(client.Addr(), client.Port()+100)
	}
}

// urgent has the client send urgent data.
func (w *wires) urgent(b *linuxBed, v6 bool, client, server netip.AddrPort) {
	t := w.t
	got := make(chan string, 1)
	b.serve(server, func(c *net.TCPConn) {
		all, _ := io.ReadAll(c)
		got <- string(all)
	})
	c, err := connectWith(t, b.net.Client, client, server, false, marks(v6, 0xb8, 37))
	if err != nil {
		t.Error(err)
		return
	}
	control(t, c, func(fd int) {
		if err := unix.Sendto(fd, []byte("Urgent"), unix.MSG_OOB, nil); err != nil {
			t.Error(err)
		}
	})
	c.CloseWrite()
	if s := <-got; s != "Urgent" {
		t.Errorf("urgent data in line: got %q", s)
	}
	w.compare(client, server, "urgent", true)
}

// unreachable has the server, as a router, answer a SYN by an ICMP error.
func (w *wires) unreachable(b *linuxBed, v6 bool) {
	t := w.t
	client, beyond, ip := b.net.ClientIP4, netip.MustParseAddr("10.77.0.200"), "-4"
	if v6 {
		client, beyond, ip = b.net.ClientIP6, netip.MustParseAddr("fd77::200"), "-6"
	}
	if err := b.net.Client.AddNeigh(b.net.ClientIf, beyond, b.net.ServerMAC); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"} {
		if err := b.net.Server.Sysctl("net/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := b.net.Server.Command(context.Background(), "ip", ip, "route", "add", "unreachable", beyond.String()).CombinedOutput(); err != nil {
		t.Fatalf("ip route: %v: %s", err, out)
	}
	from, to := addr(client, 47000), addr(beyond, 80)
	_, err := connectWith(t, b.net.Client, from, to, false, marks(v6, 0xb8, 37))
	if err == nil {
		t.Error("an unreachable host has answered")
		return
	}
	w.compare(from, to, "ICMP", false)
	// What the client is told quotes its own SYN.
	ctx, cancel := context.WithTimeout(context.Background(), dialTime)
	defer cancel()
	f, err := w.client.Wait(ctx, func(f lab.Frame) bool { return !f.Outgoing && isSegment(f.Data, "ICMP", from, to) })
	if err != nil {
		t.Error(err)
		return
	}
	var h, q wire.Headers
	h.Parse(f.Data)
	if !h.QuotedHeaders(f.Data, &q) {
		t.Fatal("no quotation")
	}
	syn, err := w.client.Wait(ctx, func(f lab.Frame) bool { return f.Outgoing && isSegment(f.Data, "SYN", from, to) })
	if err != nil {
		t.Error(err)
		return
	}
	var s wire.Headers
	s.Parse(syn.Data)
	if quoted, want := binary.BigEndian.Uint32(f.Data[q.L4+4:]), wire.TCP(syn.Data[s.L4:]).Seq(); quoted != want {
		t.Errorf("the quoted sequence number is %d, the client sent %d", quoted, want)
	}
}
