package bpf

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"penstock/internal/wire"
)

var answer = CookieAnswer{MSS4: 1460, MSS6: 1440, Window: 16000, Shift: 6}

// cookied is a newRig whose chain 1 takes all and has its SYNs answered, now and no longer.
func cookied(t testing.TB, change func(*Options)) *rig {
	t.Helper()
	r := newRig(t, func(o *Options) {
		o.Rules = []Rule{{From: -1, Action: ToChain, Chain: 1}}
		if change != nil {
			change(o)
		}
	})
	r.answer(1, &answer)
	t.Cleanup(func() { r.answer(1, nil); r.forgetCookies() })
	return r
}

func (r *rig) answer(chain int, a *CookieAnswer) {
	r.t.Helper()
	if err := r.AnswerSYNs(chain, a); err != nil {
		r.t.Fatal(err)
	}
}

// forgetCookies lets time pass until no cookie is good any more.
func (r *rig) forgetCookies() {
	for chain := range maxCookieChains + 1 {
		_, _ = r.cookies.memory.WriteAt(make([]byte, 8), int64(chain)*cookieChainSize+8)
	}
}

// opening is a client's SYN and what it knows of it.
type opening struct {
	name    string
	v6      bool
	tags    int
	options []byte
	payload int
	size    uint8 // number of the segment size that the cookie stands for, IPv4
	long    bool  // the answer has timestamps
	sack    bool
	scale   uint8 // 15: none
}

var stampOption = []byte{8, 10, 0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0}

func optionBytes(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	for len(b)%4 != 0 {
		b = append(b, 1)
	}
	return b
}

func mssOption(n uint16) []byte { return binary.BigEndian.AppendUint16([]byte{2, 4}, n) }

var openings = []opening{
	{name: "linux", options: optionBytes(mssOption(1460), []byte{4, 2}, stampOption, []byte{1, 3, 3, 7}), size: 3, long: true, sack: true, scale: 7},
	{name: "no timestamps", options: optionBytes(mssOption(1460), []byte{1, 3, 3, 8, 1, 1, 4, 2}), size: 3, scale: 15},
	{name: "no options", size: 0, scale: 15},
	{name: "no scale", options: optionBytes(mssOption(1400), []byte{4, 2}, stampOption), size: 1, long: true, sack: true, scale: 15},
	{name: "no sack", options: optionBytes(mssOption(1440), stampOption, []byte{3, 3, 14}), size: 2, long: true, scale: 14},
	{name: "scale beyond 14", options: optionBytes(mssOption(500), stampOption, []byte{3, 3, 200}), size: 0, long: true, scale: 14},
	{name: "end of list", options: optionBytes(mssOption(1460), []byte{0, 9, 9, 9}), size: 3, scale: 15},
	{name: "payload", options: mssOption(1460), payload: 700, size: 3, scale: 15},
}

func (o opening) packet(t testing.TB) []byte {
	var ip gopacket.SerializableLayer = ip4(layers.IPProtocolTCP)
	next := layers.EthernetTypeIPv4
	var network gopacket.NetworkLayer = ip.(*layers.IPv4)
	if o.v6 {
		v6 := ip6(layers.IPProtocolTCP)
		ip, network, next = v6, v6, layers.EthernetTypeIPv6
	}
	s := tcp(network, "S")
	s.Seq = 0xfffffff0
	list := []gopacket.SerializableLayer{}
	switch o.tags {
	case 0:
		list = append(list, eth(next))
	case 1:
		list = append(list, eth(layers.EthernetTypeDot1Q), &layers.Dot1Q{Priority: 5, VLANIdentifier: 100, Type: next})
	default:
		list = append(list, eth(layers.EthernetTypeQinQ), &layers.Dot1Q{VLANIdentifier: 200, Type: layers.EthernetTypeDot1Q}, vlan(100, next))
	}
	list = append(list, ip, s, payload(o.payload))
	b := build(t, list...)
	return o.insert(b)
}

// insert puts the options, as they are, into a packet without any.
func (o opening) insert(b []byte) []byte {
	var h wire.Headers
	if h.Parse(b) != wire.FaultNone {
		panic("the test's packet does not parse")
	}
	at := int(h.L4) + wire.TCPLen
	out := append(append(append([]byte(nil), b[:at]...), o.options...), b[at:h.End]...)
	if h.IPVersion == 4 {
		ip := wire.IPv4(out[h.L3:])
		ip.SetTotalLen(len(out) - int(h.L3))
		ip.FillChecksum()
	} else {
		wire.IPv6(out[h.L3:]).SetPayloadLen(len(out) - int(h.L3) - wire.IPv6Len)
	}
	wire.TCP(out[h.L4:]).SetDataOffset(wire.TCPLen + len(o.options))
	if h.Parse(out) != wire.FaultNone {
		panic("the test's packet does not parse")
	}
	wire.FillL4(out, &h)
	return out
}

// giveBack is the client's segment after a SYN-ACK, with payload bytes.
func giveBack(t testing.TB, synack []byte, flags wire.TCPFlags, n int) []byte {
	t.Helper()
	var h wire.Headers
	if f := h.Parse(synack); f != wire.FaultNone {
		t.Fatalf("the SYN-ACK does not parse: %v", f)
	}
	b := append([]byte(nil), synack[:h.L4]...)
	copy(b[:6], synack[6:12])
	copy(b[6:], synack[:6])
	was := wire.TCP(synack[h.L4:h.End])
	seg := make(wire.TCP, wire.TCPLen+12)
	seg.SetSrcPort(was.DstPort())
	seg.SetDstPort(was.SrcPort())
	seg.SetSeq(was.Ack())
	seg.SetAck(was.Seq() + 1)
	seg.SetFlags(flags)
	seg.SetWindow(500)
	size := wire.TCPLen
	it := was.OptionIter()
	for it.Next() {
		if val, ecr, ok := it.Timestamps(); ok {
			size += 12
			binary.BigEndian.PutUint32(seg[20:], 0x0101080a)
			binary.BigEndian.PutUint32(seg[24:], ecr+1)
			binary.BigEndian.PutUint32(seg[28:], val)
		}
	}
	seg.SetDataOffset(size)
	b = append(append(b, seg[:size]...), payload(n)...)
	if h.IPVersion == 4 {
		ip := wire.IPv4(b[h.L3:])
		src, dst := append([]byte(nil), ip.Src()...), append([]byte(nil), ip.Dst()...)
		copy(ip.Src(), dst)
		copy(ip.Dst(), src)
		ip.SetTotalLen(len(b) - int(h.L3))
		ip.FillChecksum()
	} else {
		ip := wire.IPv6(b[h.L3:])
		src, dst := append([]byte(nil), ip.Src()...), append([]byte(nil), ip.Dst()...)
		copy(ip.Src(), dst)
		copy(ip.Dst(), src)
		ip.SetPayloadLen(len(b) - int(h.L3) - wire.IPv6Len)
	}
	var back wire.Headers
	if f := back.Parse(b); f != wire.FaultNone {
		t.Fatalf("the test's ACK does not parse: %v", f)
	}
	wire.FillL4(b, &back)
	return b
}

var (
	answered = fate{VerdictTX, "syn_cookie_sent"}
	good     = fate{VerdictSocket, "syn_cookie_good"}
)

func TestCookies(t *testing.T) {
	r := cookied(t, nil)
	for _, o := range openings {
		for tags := range 3 {
			for _, v6 := range []bool{false, true} {
				o := o
				o.v6, o.tags = v6, tags
				if v6 { // the kernel's table for IPv6
					o.size = map[uint8]uint8{0: 0, 1: 0, 2: 2, 3: 2}[o.size]
				}
				syn := o.packet(t)
				got := r.rewritten(0, syn)
				if got.fate() != answered {
					t.Errorf("%s, v6 %t, %d tags: %v", o.name, v6, tags, got.fate())
					continue
				}
				o.check(t, syn, got.data)
				if len(r.entries()) != 0 {
					t.Fatalf("%s: something is remembered", o.name)
				}
				ack := r.run(0, giveBack(t, got.data, wire.FlagACK|wire.FlagPSH, 33))
				if ack.fate() != good {
					t.Errorf("%s, v6 %t, %d tags: the cookie comes back and is %v", o.name, v6, tags, ack.fate())
					continue
				}
				if ack.chain != 1 || !ack.cookie || ack.size != o.size {
					t.Errorf("%s, v6 %t: chain %d, cookie %t, size %d, want %d", o.name, v6, ack.chain, ack.cookie, ack.size, o.size)
				}
				// What follows is of a known flow, and so are a repeated SYN and the answers.
				next := r.run(0, giveBack(t, got.data, wire.FlagACK, 0))
				if next.fate() != (fate{VerdictSocket, "flow_known"}) || next.cookie || next.chain != 1 {
					t.Errorf("%s: the next segment: %v, cookie %t", o.name, next.fate(), next.cookie)
				}
				if again := r.run(0, syn); again.fate() != (fate{VerdictSocket, "flow_known"}) {
					t.Errorf("%s: the SYN again: %v", o.name, again.fate())
				}
				r.forget()
			}
		}
	}
	if sent, back := r.Cookies(1); sent != uint64(len(openings)*6) || back != sent {
		t.Errorf("%d sent, %d came back, want %d", sent, back, len(openings)*6)
	}
}

// check holds an answer against the SYN: every field of it.
func (o opening) check(t *testing.T, syn, got []byte) {
	t.Helper()
	var was, is wire.Headers
	was.Parse(syn)
	if f := is.Parse(got); f != wire.FaultNone || int(is.End) != len(got) || is.L4 != was.L4 {
		t.Errorf("%s: the answer does not parse: %v, %x", o.name, f, got)
		return
	}
	if string(got[:6]) != string(syn[6:12]) || string(got[6:12]) != string(syn[:6]) || string(got[12:is.L3]) != string(syn[12:was.L3]) {
		t.Errorf("%s: link header % x, the SYN's was % x", o.name, got[:is.L3], syn[:was.L3])
	}
	if is.IPVersion == 4 && !wire.VerifyIPv4(got[is.L3:]) || !wire.VerifyL4(got, &is) {
		t.Errorf("%s: checksums of % x", o.name, got)
	}
	a, _ := was.Flow(syn)
	if b, _ := is.Flow(got); b != a.Reverse() {
		t.Errorf("%s: the answer is of %v, want %v", o.name, b, a.Reverse())
	}
	seg, old := wire.TCP(got[is.L4:is.End]), wire.TCP(syn[was.L4:was.End])
	if seg.Flags() != wire.FlagSYN|wire.FlagACK || seg.Ack() != old.Seq()+1 || seg.Window() != answer.Window || len(seg.Payload()) != 0 {
		t.Errorf("%s: flags %v, ack %d, window %d, %d bytes", o.name, seg.Flags(), seg.Ack(), seg.Window(), len(seg.Payload()))
	}
	mss := answer.MSS4
	if o.v6 {
		mss = answer.MSS6
	}
	var gotMSS uint16
	var sack, stamps, scale bool
	it := seg.OptionIter()
	for it.Next() {
		switch it.Kind {
		case wire.OptMSS:
			gotMSS, _ = it.MSS()
		case wire.OptSACKPermitted:
			sack = true
		case wire.OptTimestamps:
			val, ecr, _ := it.Timestamps()
			if stamps = true; ecr != 0x11223344 {
				t.Errorf("%s: echo %#x", o.name, ecr)
			}
			want := uint32(o.scale)
			if o.sack {
				want |= 16
			}
			if val&63 != want {
				t.Errorf("%s: timestamp says %#x, want %#x", o.name, val&63, want)
			}
		case wire.OptWindowScale:
			shift, _ := it.WindowScale()
			if scale = true; shift != answer.Shift {
				t.Errorf("%s: shift %d", o.name, shift)
			}
		}
	}
	if gotMSS != mss || sack != (o.sack && o.long) || stamps != o.long || scale != (o.long && o.scale != 15) || it.Malformed {
		t.Errorf("%s: mss %d, sack %t, timestamps %t, scale %t, malformed %t", o.name, gotMSS, sack, stamps, scale, it.Malformed)
	}
}

// Segments that give back no good cookie are midstream, as without cookies.
func TestCookieBad(t *testing.T) {
	for _, c := range []struct {
		option Midstream
		want   fate
	}{
		{MidstreamBypass, fate{VerdictPeer, "syn_cookie_bad"}},
		{MidstreamDrop, fate{VerdictDrop, "syn_cookie_bad"}},
		{MidstreamInspect, fate{VerdictSocket, "flow_new"}},
	} {
		r := cookied(t, func(o *Options) { o.Midstream = c.option })
		synack := r.rewritten(0, openings[0].packet(t)).data
		ack := giveBack(t, synack, wire.FlagACK, 0)
		for name, edit := range map[string]func(wire.TCP){
			"another cookie":   func(s wire.TCP) { s.SetAck(s.Ack() + 1<<24) },
			"another sequence": func(s wire.TCP) { s.SetSeq(s.Seq() + 8) },
			"another port":     func(s wire.TCP) { s.SetSrcPort(s.SrcPort() + 1) },
			"raised beyond":    func(s wire.TCP) { s.SetAck(s.Ack() + 4) },
			"zero":             func(s wire.TCP) { s.SetAck(0) },
		} {
			b := append([]byte(nil), ack...)
			var h wire.Headers
			h.Parse(b)
			edit(wire.TCP(b[h.L4:]))
			if got := r.run(0, b); got.fate() != c.want {
				t.Errorf("midstream %d, %s: %v, want %v", c.option, name, got.fate(), c.want)
			}
			r.forget()
		}
		// Not for cookies at all.
		if c.option != MidstreamInspect {
			want := fate{c.want.verdict, "midstream"}
			for _, flags := range []string{"R", "RA", "SA", "F", ""} {
				if got := r.run(0, tcp4(t, flags, 0)); got.fate() != want {
					t.Errorf("midstream %d, flags %s: %v, want %v", c.option, flags, got.fate(), want)
				}
			}
		}
		if got := r.run(0, ack); got.fate() != good {
			t.Errorf("midstream %d: %v", c.option, got.fate())
		}
	}
}

// What cannot be answered with a cookie goes to the chain, as without; and so does everything while the switch is off.
func TestCookiesNotFor(t *testing.T) {
	r := cookied(t, nil)
	toChain := fate{VerdictSocket, "flow_new"}
	options := ip4(layers.IPProtocolTCP)
	options.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
	withOptions := build(t, eth(layers.EthernetTypeIPv4), options, tcp(options, "S"))
	for name, packet := range map[string][]byte{
		"md5":           opening{options: optionBytes(append([]byte{19, 18}, make([]byte, 16)...))}.packet(t),
		"ao":            opening{options: []byte{29, 4, 1, 1}}.packet(t),
		"malformed":     opening{options: []byte{2, 9, 5, 0xb4}}.packet(t),
		"no length":     opening{options: []byte{1, 1, 1, 2}}.packet(t),
		"too many nops": opening{options: []byte{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}}.packet(t),
		"ip options":    withOptions,
		"fin":           tcp4(t, "SF", 0),
		"rst":           tcp4(t, "SR", 0),
		"udp":           udp4(t, 10),
	} {
		if got := r.run(0, packet); got.fate() != toChain || got.cookie {
			t.Errorf("%s: %v, cookie %t", name, got.fate(), got.cookie)
		}
		r.forget()
	}

	synack := r.rewritten(0, openings[0].packet(t)).data
	r.answer(1, nil)
	r.answer(2, &answer) // another chain's are no concern of this one
	if got := r.run(0, openings[0].packet(t)); got.fate() != toChain {
		t.Errorf("off: %v", got.fate())
	}
	r.forget()
	// A cookie that was given out is good for a while.
	if got := r.run(0, giveBack(t, synack, wire.FlagACK, 0)); got.fate() != good || !got.cookie {
		t.Errorf("off, and a cookie comes back: %v", got.fate())
	}
	r.forget()
	r.answer(2, nil)
	r.forgetCookies()
	if got := r.run(0, giveBack(t, synack, wire.FlagACK, 0)); got.fate() != (fate{VerdictPeer, "midstream"}) {
		t.Errorf("off for long, and a cookie comes back: %v", got.fate())
	}
	if err := r.AnswerSYNs(maxCookieChains, &answer); err == nil {
		t.Error("a chain that does not exist is answered for")
	}
}

// Where the kernel lacks the functions, the program is loaded without a call of them, and asking for cookies is an error with a mend.
func TestWithoutCookieHelpers(t *testing.T) {
	r := newRig(t, nil)
	if !r.cookies.usable {
		t.Fatal("this kernel lacks them: nothing is proved")
	}
	r.cookies.usable = false
	err := r.AnswerSYNs(0, &answer)
	r.cookies.usable = true
	if !errors.Is(err, ErrNoCookies) {
		t.Errorf("got %v", err)
	}
	for _, usable := range []bool{false, true} {
		spec, err := loadSteer()
		if err != nil {
			t.Fatal(err)
		}
		ins := spec.Programs["steer"].Instructions
		calls := 0
		for i := range ins {
			if f := asm.BuiltinFunc(ins[i].Constant); ins[i].IsBuiltinCall() && f >= asm.FnTcpRawGenSyncookieIpv4 && f <= asm.FnTcpRawCheckSyncookieIpv6 {
				ins[i].Constant = 999_999 // what no kernel has
				calls++
			}
		}
		if calls < 4 {
			t.Fatalf("%d calls in the object", calls)
		}
		if err := spec.Variables["cookie_helpers"].Set((&cookies{usable: usable}).constant()); err != nil {
			t.Fatal(err)
		}
		var obj struct {
			Steer *ebpf.Program `ebpf:"steer"`
		}
		spec.Maps["flows"].MaxEntries = 16
		if err := spec.LoadAndAssign(&obj, nil); (err != nil) != usable {
			t.Errorf("usable %t: %v", usable, err)
		}
		obj.Steer.Close()
	}
}
