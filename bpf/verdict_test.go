package bpf

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/gopacket/gopacket/layers"
)

func TestMidstream(t *testing.T) {
	for _, c := range []struct {
		option Midstream
		want   fate // of every segment that is not a pure SYN
	}{
		{MidstreamBypass, fate{VerdictPeer, "midstream"}},
		{MidstreamInspect, fate{VerdictSocket, "flow_new"}},
		{MidstreamDrop, fate{VerdictDrop, "midstream"}},
	} {
		r := newRig(t, func(o *Options) { o.Rules, o.Midstream = all, c.option })
		for flags, want := range map[string]fate{
			"S": toSocket, "SP": toSocket, "SF": toSocket, "SR": toSocket, // begin a flow for some stack or other: seen
			"SA": c.want, "A": c.want, "PA": c.want, "FA": c.want, "R": c.want, "RA": c.want, "": c.want, "F": c.want, "FP": c.want,
		} {
			r.forget()
			if got := r.run(0, tcp4(t, flags, 0)).fate(); got != want {
				t.Errorf("midstream option %d, flags %q: got %v, want %v", c.option, flags, got, want)
			}
		}
		// Not TCP: no such thing as the middle.
		r.forget()
		if got := r.run(0, udp4(t, 0)).fate(); got != toSocket {
			t.Errorf("midstream option %d, UDP: got %v", c.option, got)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Options)
		want   fate
	}{
		{"open, bridge", func(o *Options) {}, fate{VerdictPeer, "no_socket_open"}},
		{"open, pass", func(o *Options) { o.Default = DefaultPass }, fate{VerdictPass, "no_socket_open"}},
		{"closed", func(o *Options) { o.OnExit = OnExitClosed }, fate{VerdictDrop, "no_socket_closed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Rules = all; c.change(o) })
			r.run(0, udp4(t, 0)) // a flow from the time when somebody listened
			for port := range 2 {
				for range 2 { // the second time there is nothing to remove
					if err := r.SetSocket(port, 0, -1); err != nil {
						t.Fatal(err)
					}
				}
			}
			for what, packet := range map[string][]byte{"known flow": udp4(t, 0), "new flow": tcp4(t, "S", 0)} {
				if got := r.run(0, packet).fate(); got != c.want {
					t.Errorf("%s: got %v, want %v", what, got, c.want)
				}
			}
			if n := len(r.entries()); n != 2 {
				t.Errorf("%d entries, want the 2 of the known flow: nobody saw the other one begin", n)
			}
			r.listen(0)
			if got := r.run(0, udp4(t, 0)).fate(); got.verdict != VerdictSocket {
				t.Errorf("somebody listens again: got %v", got)
			}
			if got := r.run(1, udp4(t, 0)).fate(); got != c.want {
				t.Errorf("nobody on the other port: got %v, want %v", got, c.want)
			}
		})
	}
}

func TestSilentWorker(t *testing.T) {
	const silence = time.Minute
	for _, c := range []struct {
		onExit OnExit
		want   fate
	}{
		{OnExitOpen, fate{VerdictPeer, "worker_silent_open"}},
		{OnExitClosed, fate{VerdictDrop, "worker_silent_closed"}},
	} {
		r := newRig(t, func(o *Options) { o.Rules, o.OnExit, o.Silence = all, c.onExit, silence })
		known, fresh := udp4(t, 0), changed(udp4(t, 0), 34, 1, 2)
		for _, step := range []struct {
			name        string
			age         time.Duration // of the last beat of port 0
			known, next fate
		}{
			{"it works", 0, fate{VerdictSocket, "flow_new"}, toSocket},
			{"its beat is in the future of a coarse clock", -time.Second, fate{VerdictSocket, "flow_known"}, fate{VerdictSocket, "flow_known"}},
			{"just in time", silence - 5*time.Second, fate{VerdictSocket, "flow_known"}, fate{VerdictSocket, "flow_known"}},
			{"too late", silence + time.Second, c.want, c.want},
			{"back again", 0, fate{VerdictSocket, "flow_known"}, fate{VerdictSocket, "flow_known"}},
		} {
			r.Beat(0, 0, Now()-step.age)
			if got := r.run(0, known).fate(); got != step.known {
				t.Errorf("%s: got %v, want %v", step.name, got, step.known)
			}
			if got := r.run(0, fresh).fate(); got != step.next {
				t.Errorf("%s: second flow: got %v, want %v", step.name, got, step.next)
			}
		}
		// A silent queue says nothing about the others, and no flow begins there.
		before := len(r.entries())
		r.Beat(1, 0, Now()-silence-time.Second)
		other := changed(udp4(t, 0), 34, 1, 1)
		if got := r.run(1, other).fate(); got != c.want {
			t.Errorf("new flow on a silent queue: got %v, want %v", got, c.want)
		}
		if n := len(r.entries()); n != before {
			t.Errorf("%d entries, want %d: nobody saw the silent flow begin", n, before)
		}
		if got := r.run(0, other).fate(); got != toSocket {
			t.Errorf("on the other port: got %v, want %v", got, toSocket)
		}
	}
	r := newRig(t, func(o *Options) { o.Silence = silence })
	if n := testing.AllocsPerRun(100, func() { r.Beat(1, 0, Now()) }); n != 0 {
		t.Errorf("Beat allocates %v times", n)
	}
}

// TestAnew: metadata tells a SYN that comes after the end of a connection from
// one that does not.
func TestAnew(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	for _, c := range []struct {
		name   string
		before []string // from the client, or, with a "<", from the server
		want   bool
	}{
		{"first", nil, false},
		{"repeated", []string{"S"}, false},
		{"in the middle", []string{"S", "<SA", "A"}, false},
		{"half closed", []string{"S", "<SA", "A", "FA"}, false},
		{"both finished", []string{"S", "<SA", "A", "FA", "<FA"}, true},
		{"the server resets", []string{"S", "<RA"}, true},
		{"the client resets", []string{"S", "<SA", "R"}, true},
		{"anew already", []string{"S", "<RA", "S"}, false},
	} {
		r.forget()
		for _, flags := range c.before {
			if flags[0] == '<' {
				r.run(1, tcp4Reply(t, flags[1:], 0))
			} else {
				r.run(0, tcp4(t, flags, 0))
			}
		}
		if got := r.run(0, tcp4(t, "S", 0)); got.anew != c.want || got.chain != 7 {
			t.Errorf("%s: anew is %t, chain %d", c.name, got.anew, got.chain)
		}
		if got := r.run(0, tcp4(t, "A", 0)); got.anew {
			t.Errorf("%s: a segment that is no SYN begins anew", c.name)
		}
	}
}

func TestDefaultAction(t *testing.T) {
	packets := map[string][]byte{
		"not_ip":     build(t, eth(layers.EthernetTypeARP), payload(46)),
		"no_rule":    udp4(t, 0),
		"midstream":  tcp4(t, "A", 0),
		"tcp_offset": changed(tcp4(t, "S", 0), 46, 0),
	}
	pass := newRig(t, func(o *Options) { o.Default = DefaultPass })
	bridge := ownRig(t, nil)
	for reason, packet := range packets {
		for port := range 2 {
			if got, want := pass.run(port, packet).fate(), (fate{VerdictPass, reason}); got != want {
				t.Errorf("pass: got %v, want %v", got, want)
			}
			if got, want := bridge.run(port, packet).fate(), (fate{VerdictPeer, reason}); got != want {
				t.Errorf("bridge: got %v, want %v", got, want)
			}
		}
	}
	if err := bridge.peers.Delete(uint32(0)); err != nil { // what the kernel does when the interface goes
		t.Fatal(err)
	}
	for reason, packet := range packets {
		if got, want := bridge.run(0, packet).fate(), (fate{VerdictDrop, "no_peer"}); got != want {
			t.Errorf("no peer: got %v, want %v", got, want)
		}
		if got, want := bridge.run(1, packet).fate(), (fate{VerdictPeer, reason}); got != want {
			t.Errorf("no peer on the other side: got %v, want %v", got, want)
		}
	}
}

func TestFlowTableFull(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules, o.MaxFlows = all, 1 })
	if got := r.run(0, tcp4(t, "S", 0)).fate(); got != toSocket {
		t.Fatalf("first flow: got %v", got)
	}
	for range 3 {
		if got, want := r.run(0, udp4(t, 0)).fate(), (fate{VerdictPeer, "flow_table_full"}); got != want {
			t.Fatalf("second flow: got %v, want %v", got, want)
		}
	}
	if n := len(r.entries()); n != 2 {
		t.Errorf("%d entries, want 2: a half-installed flow was left behind", n)
	}

	// A datagram that finds no room stays together.
	first, later := frag4(t, 1, 0, true, isUDP, datagram(64)), frag4(t, 1, 32, false, isUDP, make([]byte, 40))
	if got, want := r.run(0, first).fate(), (fate{VerdictPeer, "flow_table_full"}); got != want {
		t.Errorf("first fragment: got %v, want %v", got, want)
	}
	if got, want := r.run(0, later).fate(), (fate{VerdictPeer, "fragment_known"}); got != want {
		t.Errorf("later fragment: got %v, want %v", got, want)
	}

	// Room for one entry only: none is written.
	r.forget()
	one := FlowKey{Src: flowOf(t, tcp6(t, "S", 0)).Src, Dst: flowOf(t, tcp6(t, "S", 0)).Dst, Proto: 99}
	raw := one.raw()
	if err := r.flows.Put(&raw, &steerFlow{}); err != nil {
		t.Fatal(err)
	}
	for _, packet := range [][]byte{udp4(t, 0), reversedUDP(t)} { // whichever direction is the lower one
		if got, want := r.run(0, packet).fate(), (fate{VerdictPeer, "flow_table_full"}); got != want {
			t.Errorf("room for one entry: got %v, want %v", got, want)
		}
		if n := len(r.entries()); n != 1 {
			t.Errorf("%d entries, want 1: half of a flow was left behind", n)
		}
	}
}

func reversedUDP(t testing.TB) []byte {
	ip := ip4(layers.IPProtocolUDP)
	ip.SrcIP, ip.DstIP = ip.DstIP, ip.SrcIP
	u := udp(ip)
	u.SrcPort, u.DstPort = u.DstPort, u.SrcPort
	return build(t, eth(layers.EthernetTypeIPv4), ip, u)
}

// Source and destination the same, a "land" packet: one entry is both directions.
func TestFlowToItself(t *testing.T) {
	ip := ip4(layers.IPProtocolTCP)
	ip.DstIP = ip.SrcIP
	s := tcp(ip, "S")
	s.DstPort = s.SrcPort
	packet := build(t, eth(layers.EthernetTypeIPv4), ip, s)
	r := newRig(t, func(o *Options) { o.Rules = all })
	for _, want := range []fate{toSocket, {VerdictSocket, "flow_known"}} {
		if got := r.run(0, packet).fate(); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if e := r.entries(); len(e) != 1 || e[flowOf(t, packet)].Packets != 2 {
		t.Errorf("flow table: %+v, want one entry with 2 packets", e)
	}
	if n, err := r.Expire(Now()+1e15, Timeouts{}, nil); n != 1 || err != nil || len(r.entries()) != 0 {
		t.Errorf("expire: %d, %v, %d entries left; want 1", n, err, len(r.entries()))
	}
}

// Half of a flow is left over from a removal: the next packet of either direction makes it whole.
func TestHalfAFlowIsMended(t *testing.T) {
	syn, reply := tcp4(t, "S", 0), tcp4Reply(t, "S", 0)
	r := newRig(t, nil)
	for _, lost := range []FlowKey{flowOf(t, syn), flowOf(t, reply)} {
		for _, again := range [][]byte{syn, reply} {
			r.forget()
			if err := r.SetRules(all); err != nil {
				t.Fatal(err)
			}
			r.run(0, syn)
			raw := lost.raw()
			if err := r.flows.Delete(&raw); err != nil {
				t.Fatal(err)
			}
			// The rules have changed: both halves keep the chain of the one that was there.
			if err := r.SetRules([]Rule{{From: -1, Action: ToChain, Chain: 8}}); err != nil {
				t.Fatal(err)
			}
			if o := r.run(0, again); o.verdict != VerdictSocket {
				t.Errorf("got %v", o.fate())
			}
			e := r.entries()
			if len(e) != 2 {
				t.Fatalf("%d entries, want 2", len(e))
			}
			if a, b := e[flowOf(t, syn)], e[flowOf(t, reply)]; a.Chain != b.Chain || a.Hash != b.Hash {
				t.Errorf("the directions disagree: %+v, %+v", a, b)
			}
		}
	}
}

func TestFlowCounts(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	before := Now()
	sent := []struct {
		port   int
		packet []byte
	}{
		{0, tcp4(t, "S", 0)}, {1, tcp4Reply(t, "SA", 0)}, {0, tcp4(t, "A", 0)}, {0, tcp4(t, "PA", 500)}, {1, tcp4Reply(t, "FA", 9)},
	}
	want := map[bool]FlowEntry{}
	for _, s := range sent {
		r.run(s.port, s.packet)
		e := want[s.port == 1]
		e.Packets++
		e.Bytes += uint64(len(s.packet))
		want[s.port == 1] = e
	}
	for _, e := range r.entries() {
		w := want[e.Reply]
		flags, port := uint8(0x02|0x10|0x08), 0
		if e.Reply {
			flags, port = 0x02|0x10|0x01, 1
		}
		if e.Packets != w.Packets || e.Bytes != w.Bytes || e.TCPFlags != flags || e.InPort != port {
			t.Errorf("reply %t: %d packets, %d bytes, flags %#x, port %d; want %d, %d, %#x, %d",
				e.Reply, e.Packets, e.Bytes, e.TCPFlags, e.InPort, w.Packets, w.Bytes, flags, port)
		}
		// The coarse clock lags by up to a tick, 10 ms at 100 Hz.
		if e.Start < before-20e6 || e.LastSeen < e.Start || e.LastSeen > Now() {
			t.Errorf("reply %t: start %v, last seen %v, now %v", e.Reply, e.Start, e.LastSeen, Now())
		}
	}
}

func TestLastSeenMoves(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	syn, reply := tcp4(t, "S", 0), tcp4Reply(t, "SA", 0)
	r.run(0, syn)
	for port, packet := range [][]byte{syn, reply} {
		for _, p := range [][]byte{syn, reply} {
			k := flowOf(t, p).raw()
			v, err := r.flow(&k)
			if err != nil {
				t.Fatal(err)
			}
			v.LastSeen = 1
			if err := r.flows.Put(&k, v); err != nil {
				t.Fatal(err)
			}
		}
		r.run(port, packet)
		e := r.entries()
		if now, seen := Now(), e[flowOf(t, packet)].LastSeen; seen > now || seen < now-time.Second {
			t.Errorf("port %d: last seen at %v, it is %v", port, seen, now)
		}
		if seen := e[flowOf(t, packet).Reverse()].LastSeen; seen != 1 {
			t.Errorf("port %d: the other direction was seen at %v", port, seen)
		}
	}
}

// The ports of a dead connection are used again: the new one is not expired as closed.
func TestSYNReopensAFlow(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Rules = all })
	for _, end := range []struct {
		port   int
		packet []byte
	}{{0, tcp4(t, "R", 0)}, {1, numbered(tcp4Reply(t, "RA", 0), 1001, 0)}, {0, tcp4(t, "FA", 0)}, {1, tcp4Reply(t, "FA", 0)}} {
		r.forget()
		r.run(0, tcp4(t, "S", 0))
		r.run(1, tcp4Reply(t, "SA", 0))
		r.run(end.port, end.packet)
		if o := r.run(0, tcp4(t, "S", 0)); o.reason.String() != "flow_known" || o.chain != 7 {
			t.Fatalf("got %v, chain %d", o.fate(), o.chain)
		}
		for _, e := range r.entries() {
			if e.TCPFlags&(tcpFIN|tcpRST) != 0 || e.Reply && e.Packets != 0 || !e.Reply && e.Packets != 1 {
				t.Errorf("after the SYN: %+v", e)
			}
		}
		// The server's end may begin the next one: roles change.
		r.run(0, tcp4(t, "FA", 0))
		r.run(1, tcp4Reply(t, "S", 0))
		if e := r.entries()[flowOf(t, tcp4Reply(t, "S", 0))]; e.Reply {
			t.Errorf("the beginner is marked as the reply: %+v", e)
		}
	}
	// One direction is left over from a dead connection.
	r.forget()
	r.run(0, tcp4(t, "S", 0))
	r.run(0, tcp4(t, "FA", 0))
	lost := flowOf(t, tcp4Reply(t, "SA", 0)).raw()
	if err := r.flows.Delete(&lost); err != nil {
		t.Fatal(err)
	}
	r.run(0, tcp4(t, "S", 0))
	if e := r.entries(); len(e) != 2 || e[flowOf(t, tcp4(t, "S", 0))].TCPFlags != 0x02 {
		t.Errorf("SYN on half of a dead flow: %+v", e)
	}

	// A SYN on a flow that is alive changes nothing but counts.
	r.forget()
	r.run(0, tcp4(t, "S", 0))
	r.run(0, tcp4(t, "A", 0))
	r.run(0, tcp4(t, "S", 0))
	if e := r.entries()[flowOf(t, tcp4(t, "S", 0))]; e.Packets != 3 || e.TCPFlags != 0x12 {
		t.Errorf("SYN on a living flow: %+v", e)
	}
}

// A driver without room for metadata: the packet goes to the socket all the same. The kernel's helper is replaced by its refusal.
func TestNoMetadata(t *testing.T) {
	r := ownRig(t, func(o *Options) { o.Rules = all })
	spec, err := loadSteer()
	if err != nil {
		t.Fatal(err)
	}
	replaced := 0
	for i, ins := range spec.Programs["steer"].Instructions {
		if ins.IsBuiltinCall() && asm.BuiltinFunc(ins.Constant) == asm.FnXdpAdjustMeta {
			refuse := asm.Mov.Imm(asm.R0, -95)
			refuse.Metadata = ins.Metadata
			spec.Programs["steer"].Instructions[i] = refuse
			replaced++
		}
	}
	if replaced == 0 {
		t.Fatal("the program does not call bpf_xdp_adjust_meta")
	}
	for name, m := range r.maps() {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	var obj steerObjects
	if err := spec.LoadAndAssign(&obj, &ebpf.CollectionOptions{MapReplacements: r.maps()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { obj.Close() })
	r.ports[0].prog.Close()
	r.ports[0].prog, obj.Steer = obj.Steer, nil
	for range 2 {
		if got, want := r.run(0, tcp4(t, "S", 0)).fate(), (fate{VerdictSocket, "no_metadata"}); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

func TestSetSocketErrors(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct{ port, queue, fd int }{{-1, 0, 0}, {2, 0, 0}, {0, -1, 0}, {0, MaxQueues, 0}, {0, 0, 1 << 20}, {0, 0, 0}} {
		if err := r.SetSocket(c.port, c.queue, c.fd); err == nil {
			t.Errorf("port %d, queue %d, descriptor %d: no error", c.port, c.queue, c.fd)
		}
	}
}
