package inspect

import (
	"net/netip"
	"testing"

	"penstock/internal/wire"
	"penstock/pipeline"
	"penstock/pipeline/pipelinetest"
)

// FuzzSegments plays a byte string as the segments of both ends of a
// connection, eight bytes a segment: whatever comes, nothing panics, no frame,
// packet or chunk is lost, memory stays within its bounds, the streams are shown
// one content, and so is whoever receives (newBed checks what it can at the end).
func FuzzSegments(f *testing.F) {
	f.Add([]byte("\x00\x10\x00\x05\x00\x00\x10\x00\x01\x10\x00\x05\x05\x00\x10\x00\x00\x11\x05\x00\x05\x00\x10\x00\x01\x11\x05\x00\x06\x00\x10\x00"), byte(0))
	f.Add([]byte("\x00\x10\x10\x20\x00\x00\x10\x00\x00\x10\x00\x10\x00\x00\x10\x01\x00\x10\x08\x20\x00\x00\x10\x02\x01\x14\x00\x00\x30\x00\x10\x00"), byte(1))
	f.Add([]byte("\x00\x02\x00\x00\x00\x00\x10\x00\x01\x12\x00\x00\x00\x00\x10\x00\x00\x30\x00\x05\x00\x00\x10\x00"), byte(7))
	f.Fuzz(func(t *testing.T, segments []byte, mode byte) {
		sc := &script{}
		if mode&8 != 0 {
			sc.data = func(_ *scripted, _ pipeline.Direction, b []byte) (int, pipeline.StreamVerdict) {
				if n := len(b); n > 200 {
					return n, pipeline.StreamVerdict{Action: pipeline.StreamRelease}
				}
				return len(b) / 3, pipeline.StreamVerdict{}
			}
		}
		b := newBed(t, func(o *Options) {
			o.Hold, o.DenyConflict, o.DenyBlind, o.Recorded = mode&1 != 0, mode&2 != 0, mode&4 != 0, mode&16 != 0
			o.HoldBytes, o.Memory, o.FlowMemory = 1024, 16*chunkSize, 4*chunkSize
			if mode&32 != 0 {
				o.Midstream = MidstreamInspect
			}
		}, sc)
		c := &conn{bed: b, isn: [2]uint32{0xffffff00, 500}}
		if mode&64 == 0 {
			c = b.open(0xffffff00, 500)
		}
		var passed [2]map[uint32]byte // of the present connection, not acknowledged
		for n := 0; len(segments) >= 8 && n < 200; n++ {
			s := segments[:8]
			segments = segments[8:]
			d := pipeline.Direction(s[0] & 1)
			opts := []pipelinetest.Option{pipelinetest.Window(uint16(s[6])<<8 | 255), pipelinetest.Ack(c.isn[1-d] + 1 + uint32(s[4])*uint32(1+s[5]))}
			if s[0]&2 != 0 {
				opts = append(opts, pipelinetest.BadChecksum())
			}
			body := make([]byte, s[3])
			for i := range body {
				body[i] = truth(int(s[2])+i) + s[7]&3
			}
			src, dst := client, server
			if d == pipeline.ToClient {
				src, dst = dst, src
			}
			seq := c.isn[d] + 1 + uint32(s[2])
			if s[0]&4 != 0 {
				seq += uint32(s[7]) << 16
			}
			frame := pipelinetest.TCP(src, dst, wire.TCPFlags(s[1]), seq, append(opts, pipelinetest.Payload(string(body)))...)
			if s[0]&8 != 0 {
				b.now += int64(s[7]) * 1e9
			}
			opened := len(sc.opened)
			out := b.send(int(d), frame)
			if len(sc.opened) != opened {
				passed = [2]map[uint32]byte{}
			}
			if b.s.memory.used > b.s.memory.limit || b.s.heldLen > maxHeldAll {
				t.Fatalf("%d chunks, %d packets wait", b.s.memory.used, b.s.heldLen)
			}
			if len(sc.opened) == 0 || sc.opened[len(sc.opened)-1].closes > 0 {
				continue // nobody looks
			}
			v, ok := b.s.flows.Peek(theConnection())
			if !ok {
				continue
			}
			h := &(*v).half[d]
			for _, o := range out[1-d] {
				var hd wire.Headers
				if hd.Parse(o) != wire.FaultNone || !wire.VerifyL4(o, &hd) {
					t.Fatalf("a broken packet left: %s", wire.Summary(o))
				}
				seg := wire.TCP(o[hd.L4:hd.End])
				if seg.Flags()&(wire.FlagSYN|wire.FlagRST) != 0 {
					continue
				}
				for i, x := range seg.Payload() {
					at := seg.Seq() + uint32(i)
					if h.pos(at) < h.acked {
						continue // may differ: its receiver discards it
					}
					if first, have := passed[d][at]; have && first != x {
						t.Fatalf("%v: position %d passed as %q and as %q", d, at, first, x)
					}
					if passed[d] == nil {
						passed[d] = map[uint32]byte{}
					}
					passed[d][at] = x
				}
			}
		}
	})
}

// theConnection is the key of the connection between client and server.
func theConnection() wire.Flow {
	key, _ := wire.MakeFlow(wire.ProtoTCP, netip.MustParseAddrPort(client), netip.MustParseAddrPort(server)).Canonical()
	return key
}

// FuzzFrames gives arbitrary frames to both sides of an open connection.
func FuzzFrames(f *testing.F) {
	c := &conn{isn: [2]uint32{100, 500}}
	f.Add(c.frame(up, psh, 0, 0, "hello"), c.frame(down, fin, 0, 5, "bye"), true)
	f.Add(c.frame(up, wire.FlagSYN, 9, 0, "", pipelinetest.TCPOption(34, 1, 2)), c.frame(down, wire.FlagRST, 0, 0, ""), false)
	f.Fuzz(func(t *testing.T, one, two []byte, hold bool) {
		b := newBed(t, func(o *Options) { o.Hold, o.ChecksumsSettled, o.Midstream = hold, true, MidstreamInspect })
		b.open()
		for range 2 {
			b.send(0, one)
			b.send(1, two)
			b.send(0, two)
		}
	})
}
