package stack_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"penstock/internal/lab"
	"penstock/internal/lab/labtest"
	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/stack"
)

// A stimulus is a script of segments that a test sends by hand to Linux's TCP:
// once over a plain wire, once through a Stack.
type stimulus struct {
	name string
	app  string // what the program at the other end does
	play func(p *peer)
}

// twin is a wire between the test's own segments and a Linux end.
type twin struct {
	t        *testing.T
	net      *lab.Inline
	linux    *lab.NS
	ready    func(port uint16) bool // the connection is open in between
	raw      *lab.Raw
	tap      *lab.Tap
	template frame

	mu    sync.Mutex
	peers map[uint16]*peer
}

// The station that the test plays: no kernel has its addresses.
var (
	playedMAC    = [6]byte{2, 0, 0, 0, 0x77, 0x64}
	playedClient = netip.MustParseAddr("10.77.0.100")
	playedServer = netip.MustParseAddr("10.77.0.101")
)

// newTwin plays the client, or the server, of connections over in.
func newTwin(t *testing.T, in *lab.Inline, client bool) *twin {
	t.Helper()
	w := &twin{t: t, net: in, peers: map[uint16]*peer{}}
	at, name, linux, linuxIf, mac, own, far := in.Client, in.ClientIf, in.Server, in.ServerIf, in.ServerMAC, playedClient, in.ServerIP4
	if !client {
		at, name, linux, linuxIf, mac, own, far = in.Server, in.ServerIf, in.Client, in.ClientIf, in.ClientMAC, playedServer, in.ClientIP4
	}
	w.linux = linux
	w.template = frame{srcMAC: playedMAC, dstMAC: [6]byte(mac), src: addr(own, 0), dst: addr(far, 0), window: 65535}
	err := linux.AddNeigh(linuxIf, own, playedMAC[:])
	if err == nil {
		w.raw, err = at.Raw(name)
	}
	if err == nil {
		w.tap, err = at.Tap(name, 1<<18)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.tap.Wait(ctx, func(f lab.Frame) bool { w.receive(f); return false })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func (w *twin) receive(f lab.Frame) {
	s := segment{frame: f.Data}
	if f.Outgoing || s.Parse(f.Data) != wire.FaultNone || !s.HasL4 || s.Proto != wire.ProtoTCP {
		return
	}
	s.flow, _ = s.Headers.Flow(f.Data)
	if s.flow.DstAddr().Addr() != w.template.src.Addr() {
		return
	}
	s.tcp = wire.TCP(f.Data[s.L4:s.End])
	w.mu.Lock()
	p := w.peers[s.flow.DstPort]
	w.mu.Unlock()
	if p == nil {
		return
	}
	p.mu.Lock()
	p.got = append(p.got, s)
	if val, _, ok := stampsOf(s.tcp); ok {
		p.echo = val
	}
	p.mu.Unlock()
	p.acknowledgeNow()
}

// acknowledgeNow acknowledges what has come, if the script has asked for it.
func (p *peer) acknowledgeNow() {
	p.mu.Lock()
	end := p.acked
	for _, s := range p.got {
		e := int(s.tcp.Seq()-p.isn) + len(s.tcp.Payload())
		if s.tcp.Flags()&wire.FlagFIN != 0 {
			e++
		}
		end = max(end, e)
	}
	more, next := p.acks && end > p.acked, p.next1
	if more {
		p.acked = end
	}
	p.mu.Unlock()
	if more {
		p.send(wire.FlagACK, next, end-1, "")
	}
}

func stampsOf(seg wire.TCP) (val, ecr uint32, ok bool) {
	for it := seg.OptionIter(); it.Next(); {
		if it.Kind == wire.OptTimestamps {
			return it.Timestamps()
		}
	}
	return 0, 0, false
}

// peer is the test's end of one connection.
type peer struct {
	*twin
	frame frame
	iss   uint32 // ours
	isn   uint32 // the other end's
	known bool   // isn is
	ts    bool   // our segments have timestamps
	stamp uint32
	app   *app
	want  []string // what the plain wire said, for how long to wait
	log   []string
	names []string

	mu    sync.Mutex
	got   []segment
	at    int
	echo  uint32
	acks  bool // what comes in is acknowledged at once
	acked int
	next1 int // sequence number of such an acknowledgment
}

// app is the program at the Linux end.
type app struct {
	mu    sync.Mutex
	conn  net.Conn
	read  []byte
	state string // how its reading ended, or its dial
}

func (a *app) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	text := string(a.read)
	if len(text) > 40 {
		text = fmt.Sprintf("%d bytes", len(text))
	}
	return fmt.Sprintf("%q %s", text, a.state)
}

func (a *app) set(state string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state = state
}

// run is what the program does with its connection.
func (a *app) run(c net.Conn, does string) {
	defer c.Close()
	a.mu.Lock()
	a.conn = c
	a.mu.Unlock()
	a.set("open")
	c.SetDeadline(time.Now().Add(20 * time.Second))
	switch does {
	case "closes":
		a.set("closed")
		return
	case "says hello":
		c.Write([]byte("hello"))
	case "sends 3000":
		c.Write(make([]byte, 3000))
	}
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		a.mu.Lock()
		a.read = append(a.read, b[:n]...)
		a.mu.Unlock()
		switch {
		case err == nil:
			continue
		case err == io.EOF:
			if does == "answers late" {
				c.Write([]byte("late"))
			}
			a.set("EOF")
		case errors.Is(err, syscall.ECONNRESET):
			a.set("reset")
		default:
			a.set("error")
		}
		return
	}
}

// play runs every stimulus at once, each on a connection of its own, and
// returns what each has seen.
func (w *twin) play(list []stimulus, want map[string][]string) map[string]*peer {
	client := w.template.src.Addr() == playedClient
	peers := map[string]*peer{}
	var wg sync.WaitGroup
	for i, s := range list {
		port := uint16(20000 + i)
		p := &peer{twin: w, frame: w.template, iss: 1 << 20 * uint32(i+1), stamp: 1000, app: &app{}, want: want[s.name]}
		p.frame.src = addr(p.frame.src.Addr(), port)
		p.frame.dst = addr(p.frame.dst.Addr(), port)
		peers[s.name] = p
		w.mu.Lock()
		w.peers[port] = p
		w.mu.Unlock()
		if client {
			l, err := w.linux.Listen("tcp", p.frame.dst.String())
			if err != nil {
				w.t.Fatal(err)
			}
			w.t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go p.app.run(c, s.app)
				}
			}()
		} else {
			go func() {
				c, err := w.linux.DialFrom(context.Background(), "tcp", p.frame.dst.String(), p.frame.src.String())
				if err != nil {
					p.app.set("dial: " + errorName(err))
					return
				}
				p.app.run(c, s.app)
			}()
		}
	}
	for _, s := range list {
		wg.Go(func() { s.play(peers[s.name]) })
	}
	wg.Wait()
	for _, p := range peers { // nobody waits for its end
		p.app.mu.Lock()
		if p.app.conn != nil {
			p.app.conn.(*net.TCPConn).SetLinger(0)
			p.app.conn.Close()
		}
		p.app.mu.Unlock()
	}
	return peers
}

func errorName(err error) string {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no.Error()
	}
	return "error"
}

// send sends a segment: seq counts from the first byte behind our SYN, ack from
// that behind the other end's.
func (p *peer) send(flags wire.TCPFlags, seq, ack int, payload string, options ...[]byte) {
	f := p.frame
	f.flags, f.payload = flags, []byte(payload)
	f.seq = p.iss + 1 + uint32(seq)
	if flags&wire.FlagACK != 0 {
		f.ack = p.isn + 1 + uint32(ack)
	}
	f.options = join(options...)
	if p.ts {
		p.mu.Lock()
		p.stamp++
		f.options = join([]byte{wire.OptNop, wire.OptNop}, optTS(p.stamp, p.echo), f.options)
		p.mu.Unlock()
	}
	p.write(f.build())
}

func (p *peer) write(b []byte) {
	if _, err := p.raw.Write(b); err != nil {
		p.t.Errorf("send: %v", err)
	}
}

// bend sends a segment after fn has changed its header; the checksum is right
// again unless broken.
func (p *peer) bend(flags wire.TCPFlags, seq, ack int, payload string, broken bool, fn func(t wire.TCP)) {
	f := p.frame
	f.flags, f.seq, f.ack, f.payload = flags, p.iss+1+uint32(seq), p.isn+1+uint32(ack), []byte(payload)
	b := f.build()
	var h wire.Headers
	h.Parse(b)
	fn(wire.TCP(b[h.L4:h.End]))
	if !broken {
		wire.FillL4(b, &h)
	}
	p.write(b)
}

// next returns the next segment that has the flags.
func (p *peer) next(flags wire.TCPFlags) (s segment, ok bool) {
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		p.mu.Lock()
		for ; p.at < len(p.got); p.at++ {
			if s = p.got[p.at]; s.tcp.Flags().Has(flags) {
				p.at++
				p.mu.Unlock()
				return s, true
			}
		}
		p.mu.Unlock()
	}
	p.note("handshake", "nothing with flags "+flags.String())
	return s, false
}

// open shakes hands, as the client, and waits until the program has the
// connection.
func (p *peer) open(options ...[]byte) bool {
	stamps := p.ts
	p.ts = false
	if stamps {
		options = append(options, optTS(p.stamp, 0))
	}
	p.send(wire.FlagSYN, -1, 0, "", options...)
	s, ok := p.next(wire.FlagSYN | wire.FlagACK)
	if !ok {
		return false
	}
	p.isn, p.known, p.ts = s.tcp.Seq(), true, stamps
	p.send(wire.FlagACK, 0, 0, "")
	return p.settled()
}

// settled waits until the program has its connection.
func (p *peer) settled() bool {
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		p.app.mu.Lock()
		there := p.app.state != "" && (p.ready == nil || strings.HasPrefix(p.app.state, "dial") || p.ready(p.frame.src.Port()))
		p.app.mu.Unlock()
		if there {
			return true
		}
	}
	p.note("handshake", "not accepted")
	return false
}

// answer waits for the SYN of a client, and may complete the handshake.
func (p *peer) answer(complete bool, options ...[]byte) bool {
	s, ok := p.next(wire.FlagSYN)
	if !ok {
		return false
	}
	p.isn, p.known = s.tcp.Seq(), true
	if !complete {
		return true
	}
	if p.ts {
		p.ts = false
		val, _, _ := stampsOf(s.tcp)
		options = append(options, optTS(p.stamp, val))
		defer func() { p.ts = true }()
	}
	p.send(wire.FlagSYN|wire.FlagACK, -1, 0, "", options...)
	if _, ok = p.next(wire.FlagACK); !ok {
		return false
	}
	return p.settled()
}

const (
	quiet = 200 * time.Millisecond // nothing comes any more
	late  = 5 * time.Second        // nor anything that was expected
)

// hear notes what comes in until nothing does any more. If the plain wire had
// more to say, it waits for that too.
func (p *peer) hear(step string) {
	want := ""
	if len(p.log) < len(p.want) {
		want = p.want[len(p.log)]
	}
	begin, last, text := time.Now(), time.Now(), ""
	for ; ; time.Sleep(2 * time.Millisecond) {
		p.mu.Lock()
		now := p.text(p.at)
		p.mu.Unlock()
		if now != text {
			text, last = now, time.Now()
		}
		if time.Since(last) > quiet && (text == want || p.want == nil || time.Since(begin) > late) {
			break
		}
	}
	p.mu.Lock()
	p.at = len(p.got)
	p.mu.Unlock()
	p.note(step, text)
}

// heard notes what the program has read.
func (p *peer) heard() {
	want := ""
	if len(p.log) < len(p.want) {
		want = p.want[len(p.log)]
	}
	for begin := time.Now(); p.want != nil && p.app.String() != want && time.Since(begin) < late; {
		time.Sleep(2 * time.Millisecond)
	}
	p.note("the program reads", p.app.String())
}

func (p *peer) note(step, text string) {
	if slices.Contains(p.names, step) {
		step += " again"
	}
	p.names, p.log = append(p.names, step), append(p.log, text)
}

// text says what segments are from the one at on, relative to the connection's
// beginning. The same one again and again is one, and bytes that came before do
// not count: when they are repeated is a matter of time.
func (p *peer) text(at int) string {
	var out []string
	var list []segment
	for i, s := range p.got[at:] {
		repeated := slices.ContainsFunc(p.got[:at+i], func(o segment) bool {
			return o.tcp.Seq() == s.tcp.Seq() && o.tcp.Flags() == s.tcp.Flags() && len(o.tcp.Payload()) == len(s.tcp.Payload())
		})
		if repeated && s.tcp.Flags()&wire.FlagSYN == 0 && (len(s.tcp.Payload()) > 0 || s.tcp.Flags()&wire.FlagFIN != 0) {
			// But it may have taken the place of an acknowledgment.
			known := slices.ContainsFunc(p.got[:at+i], func(o segment) bool {
				return o.tcp.Flags()&wire.FlagACK != 0 && int32(o.tcp.Ack()-s.tcp.Ack()) >= 0
			})
			if fin := s.tcp.Flags()&wire.FlagFIN != 0; fin && !known {
				bare := wire.TCP(slices.Clone(s.tcp[:s.tcp.DataOffset()]))
				bare.SetFlags(wire.FlagACK)
				bare.SetSeq(s.tcp.Seq() + uint32(len(s.tcp.Payload())) + 1)
				out = append(out, p.describe(bare))
			}
			continue
		}
		list = append(list, s)
		out = append(out, p.describe(s.tcp))
	}
	out = slices.Compact(out)
	for i := 0; i+1 < len(list) && len(out) > 1; i++ { // whether data carries an acknowledgment is a matter of time
		a, b := list[i].tcp, list[i+1].tcp
		if a.Flags() == wire.FlagACK && len(a.Payload()) == 0 && a.Ack() == b.Ack() && (len(b.Payload()) > 0 || b.Flags()&(wire.FlagFIN|wire.FlagRST) != 0) {
			if at := slices.Index(out, p.describe(a)); at >= 0 {
				out = slices.Delete(out, at, at+1)
			}
		}
	}
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, "; ")
}

func (p *peer) describe(seg wire.TCP) string {
	flags := seg.Flags() &^ wire.FlagPSH
	isn := p.isn
	if !p.known && flags.Has(wire.FlagSYN) {
		isn = seg.Seq()
	}
	text := fmt.Sprintf("%s %d", flags, int32(seg.Seq()-isn))
	if flags&wire.FlagACK != 0 {
		text += fmt.Sprintf(" ack %d", int32(seg.Ack()-p.iss))
	}
	if n := len(seg.Payload()); n > 0 {
		text += fmt.Sprintf(" len %d", n)
	}
	if seg.Window() == 0 && flags&wire.FlagRST == 0 {
		text += " window 0"
	}
	it := seg.OptionIter()
	for it.Next() {
		switch {
		case it.Kind == 5:
			text += " sack"
			for i := 0; i+8 <= len(it.Value); i += 8 {
				text += fmt.Sprintf(" %d-%d", int32(binary.BigEndian.Uint32(it.Value[i:])-p.iss), int32(binary.BigEndian.Uint32(it.Value[i+4:])-p.iss))
			}
		case flags&wire.FlagSYN != 0 && optionNames[it.Kind] != "":
			text += " " + optionNames[it.Kind]
		}
	}
	return text
}

// TestTwin: what Linux answers over a plain wire is what comes back through the
// Stack, but for what docs/transparent.md lists.
func TestTwin(t *testing.T) {
	for _, tc := range []struct {
		name   string
		client bool
		list   []stimulus
	}{{"client", true, fromClient}, {"server", false, fromServer}} {
		t.Run(tc.name, func(t *testing.T) {
			l := labtest.NewForTest(t)
			plain, err := l.Inline(lab.InlineOptions{Veth: lab.VethOptions{NoMerge: true, Backpressure: true}, StaticNeigh: true, Bridge: true})
			if err != nil {
				t.Fatal(err)
			}
			linux := newTwin(t, plain, tc.client).play(tc.list, nil)
			accepted := acceptedAnswers(t, tc.name)
			want := map[string][]string{}
			for name, p := range linux {
				want[name] = slices.Clone(p.log)
				for i, step := range p.names {
					if row := accepted[name+": "+step]; row != nil {
						want[name][i] = row[3]
					}
				}
			}
			b := newLinuxBed(t, func(o *stack.Options) { o.TimeWait = 20 * time.Second })
			w := newTwin(t, b.net, tc.client)
			w.ready = b.established
			ours := w.play(tc.list, want)
			compareTwins(t, tc.list, linux, ours, accepted)
		})
	}
}

// established reports whether the stage has an open connection with that port at
// both ends.
func (b *linuxBed) established(port uint16) (ok bool) {
	done := make(chan struct{})
	b.worker.Call(func() {
		b.worker.Chains()[0].Flows(func(f pipeline.FlowInfo) {
			ok = ok || f.State == "established" && (f.Flow.SrcPort == port || f.Flow.DstPort == port)
		})
		close(done)
	})
	<-done
	return ok
}

// acceptedAnswers reads the table of answers that may differ: stimulus and step,
// and its row.
func acceptedAnswers(t *testing.T, end string) map[string][]string {
	t.Helper()
	accepted := map[string][]string{}
	for _, row := range table(t, "../docs/transparent.md", "<!-- twin "+end+" -->") {
		if len(row) != 5 || row[4] == "" {
			t.Errorf("row %q: want a stimulus, a step, two answers and a reason", row)
			continue
		}
		accepted[row[0]+": "+row[1]] = row
	}
	return accepted
}

func compareTwins(t *testing.T, list []stimulus, linux, ours map[string]*peer, accepted map[string][]string) {
	t.Helper()
	steps := 0
	for _, s := range list {
		l, o := linux[s.name], ours[s.name]
		for i := range max(len(l.log), len(o.log)) {
			steps++
			at, lt, ot := "", "nothing more", "nothing more"
			if i < len(l.log) {
				at, lt = s.name+": "+l.names[i], l.log[i]
			}
			if i < len(o.log) {
				at, ot = s.name+": "+o.names[i], o.log[i]
			}
			row, listed := accepted[at]
			delete(accepted, at)
			switch {
			case lt == ot && listed:
				t.Errorf("%s: listed as different, and both say: %s", at, lt)
			case lt != ot && !listed:
				t.Errorf("%s\n\tLinux     %s\n\tPenstock  %s", at, lt, ot)
			case listed && (row[2] != lt || row[3] != ot):
				t.Errorf("%s: listed are other answers:\n\tLinux     %s\n\tlisted    %s\n\tPenstock  %s\n\tlisted    %s", at, lt, row[2], ot, row[3])
			}
		}
	}
	for at := range accepted {
		t.Errorf("%s: listed, and not played", at)
	}
	t.Logf("%d stimuli, %d answers", len(list), steps)
}
