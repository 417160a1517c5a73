package stack_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// frame describes an Ethernet frame with a TCP segment, for tests that play an
// end by hand.
type frame struct {
	srcMAC, dstMAC [6]byte
	vlan           []uint16
	src, dst       netip.AddrPort
	ttl, tos       uint8
	flags          wire.TCPFlags
	seq, ack       uint32
	window         uint16
	options        []byte // padded by build
	payload        []byte
}

// build returns the frame with right lengths and checksums.
func (f frame) build() []byte {
	b := append(f.dstMAC[:len(f.dstMAC):len(f.dstMAC)], f.srcMAC[:]...)
	for _, tag := range f.vlan {
		b = append(b, 0x81, 0, byte(tag>>8), byte(tag))
	}
	opts := f.options
	for len(opts)%4 != 0 {
		opts = append(opts[:len(opts):len(opts)], wire.OptEnd)
	}
	if f.ttl == 0 {
		f.ttl = 64
	}
	seg := make([]byte, wire.TCPLen, wire.TCPLen+len(opts)+len(f.payload))
	seg = append(append(seg, opts...), f.payload...)
	if f.src.Addr().Is4() {
		ip := make([]byte, wire.IPv4Len)
		ip[0], ip[6], ip[9] = 0x45, 0x40, wire.ProtoTCP
		h := wire.IPv4(ip)
		h.SetTOS(f.tos)
		h.SetTTL(f.ttl)
		h.SetSrc(f.src.Addr().As4())
		h.SetDst(f.dst.Addr().As4())
		h.SetTotalLen(len(ip) + len(seg))
		h.FillChecksum()
		b = append(append(b, 8, 0), ip...)
	} else {
		ip := make([]byte, wire.IPv6Len)
		ip[0] = 0x60
		h := wire.IPv6(ip)
		h.SetTrafficClass(f.tos)
		h.SetHopLimit(f.ttl)
		h.SetNextHeader(wire.ProtoTCP)
		h.SetPayloadLen(len(seg))
		h.SetSrc(f.src.Addr().As16())
		h.SetDst(f.dst.Addr().As16())
		b = append(append(b, 0x86, 0xdd), ip...)
	}
	t := wire.TCP(seg)
	t.SetDataOffset(wire.TCPLen + len(opts))
	t.SetSrcPort(f.src.Port())
	t.SetDstPort(f.dst.Port())
	t.SetSeq(f.seq)
	t.SetAck(f.ack)
	t.SetFlags(f.flags)
	t.SetWindow(f.window)
	b = append(b, seg...)
	var h wire.Headers
	h.Parse(b)
	wire.FillL4(b, &h)
	return b
}

// player is an end that a test plays by hand.
type player struct {
	t        testing.TB
	b        *bed
	port     pipeline.PortID
	template frame
	at       int // frames of the port's record that were looked at
}

// players returns both ends of a connection between two addresses.
func (b *bed) players(from, to netip.AddrPort, vlan ...uint16) (c, s *player) {
	f := frame{srcMAC: clientMAC, dstMAC: serverMAC, vlan: vlan, src: from, dst: to, window: 65535}
	c = &player{t: b.t, b: b, port: lan, template: f, at: len(b.ports[lan].frames())}
	f.srcMAC, f.dstMAC, f.src, f.dst = f.dstMAC, f.srcMAC, f.dst, f.src
	s = &player{t: b.t, b: b, port: wan, template: f, at: len(b.ports[wan].frames())}
	return c, s
}

// send sends a segment.
func (p *player) send(flags wire.TCPFlags, seq, ack uint32, options, payload []byte) {
	f := p.template
	f.flags, f.seq, f.ack, f.options, f.payload = flags, seq, ack, options, payload
	p.b.ports[p.port].send(f.build())
}

// expect waits for the next segment toward this end that has all of the flags,
// and skips others.
func (p *player) expect(flags wire.TCPFlags) segment {
	p.t.Helper()
	return p.expectWhere("a segment with flags "+flags.String(), func(s segment) bool { return s.tcp.Flags().Has(flags) })
}

func (p *player) expectWhere(what string, ok func(segment) bool) segment {
	p.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		frames := p.b.ports[p.port].frames()
		for ; p.at < len(frames); p.at++ {
			f := frames[p.at]
			if f.in {
				continue
			}
			s := segment{frame: f.frame}
			if s.Parse(f.frame) != wire.FaultNone || !s.HasL4 || s.Proto != wire.ProtoTCP {
				continue
			}
			s.flow, _ = s.Headers.Flow(f.frame)
			s.tcp = wire.TCP(f.frame[s.L4:s.End])
			if s.flow.SrcAddr() != p.template.dst || s.flow.DstAddr() != p.template.src {
				continue
			}
			if !wire.VerifyL4(f.frame, &s.Headers) || s.IPVersion == 4 && !wire.VerifyIPv4(f.frame[s.L3:]) {
				p.t.Fatalf("wrong checksum in %s", wire.Summary(f.frame))
			}
			if ok(s) {
				p.at++
				return s
			}
		}
		if time.Now().After(end) {
			for _, f := range frames[max(0, len(frames)-30):] {
				p.t.Logf("in=%v %s", f.in, wire.Summary(f.frame))
			}
			p.t.Fatalf("not within 5 s: %s", what)
		}
	}
}

// silent checks that nothing came toward this end since the last look. Call it
// when something else has shown that it would have.
func (p *player) silent(what string) {
	p.t.Helper()
	frames := p.b.ports[p.port].frames()
	for ; p.at < len(frames); p.at++ {
		if !frames[p.at].in {
			p.t.Errorf("%s: got %s", what, wire.Summary(frames[p.at].frame))
		}
	}
}

// Option bytes of a SYN.
func optMSS(v uint16) []byte { return binary.BigEndian.AppendUint16([]byte{wire.OptMSS, 4}, v) }
func optTS(val, ecr uint32) []byte {
	b := binary.BigEndian.AppendUint32([]byte{wire.OptTimestamps, 10}, val)
	return binary.BigEndian.AppendUint32(b, ecr)
}

var (
	optSACK  = []byte{wire.OptSACKPermitted, 2}
	optScale = []byte{wire.OptWindowScale, 3, 7}
)

func join(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}
