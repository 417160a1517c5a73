package rewrite_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"penstock/internal/rewrite"
	"penstock/internal/rewrite/rewritetest"
	"penstock/internal/wire"
)

// ruleLen is how many bytes ruleOf reads.
const ruleLen = 74

// ruleOf reads a rule from bytes, and fits it to the packet a little.
func ruleOf(b []byte, h *wire.Headers) (r rewrite.Rule) {
	var raw [ruleLen]byte
	copy(raw[:], b)
	b = raw[:]
	r.Flags = rewrite.Flags(binary.BigEndian.Uint16(b)) // bits that mean nothing, too
	copy(r.SrcMAC[:], b[2:])
	copy(r.DstMAC[:], b[8:])
	r.VLAN = [2]uint16{binary.BigEndian.Uint16(b[14:]), binary.BigEndian.Uint16(b[16:])}
	r.VLANs = h.VLANs + b[18]>>6
	copy(r.Src[:], b[19:])
	copy(r.Dst[:], b[35:])
	if h.IPVersion == 4 && b[18]&1 == 0 {
		copy(r.Src[:], mappedPrefix)
		copy(r.Dst[:], mappedPrefix)
	}
	r.SrcPort, r.DstPort = binary.BigEndian.Uint16(b[51:]), binary.BigEndian.Uint16(b[53:])
	r.Seq, r.Ack = binary.BigEndian.Uint32(b[55:]), binary.BigEndian.Uint32(b[59:])
	r.TSVal, r.TSEcr = binary.BigEndian.Uint32(b[63:]), binary.BigEndian.Uint32(b[67:])
	r.WindowShift = int8(b[71])
	return r
}

var mappedPrefix = []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}

// FuzzApply: whatever the bytes, Apply does what the simple translation does, ApplySlow does no less, and neither of
// them nor ApplyQuoted panics, writes beside the headers or to a packet that it leaves alone.
func FuzzApply(f *testing.F) {
	g := rewritetest.New(4)
	for range 200 {
		rule := make([]byte, ruleLen)
		for i := range rule {
			rule[i] = byte(i * 37)
		}
		binary.BigEndian.PutUint16(rule, 0x7ff)
		f.Add(bytes.Clone(g.Frame()), rule)
	}
	for _, frames := range captures(f) {
		for _, frame := range frames[:min(len(frames), 20)] {
			if len(frame) < 300 {
				f.Add(frame, []byte{0xff, 0xff})
			}
		}
	}
	f.Fuzz(func(t *testing.T, frame, rule []byte) {
		var h wire.Headers
		h.Parse(frame)
		r := ruleOf(rule, &h)
		r.Flags &= 1<<12 - 1 // the other bits are for rules to come
		was := bytes.Clone(frame)
		want, wantWhy := rewritetest.Translate(frame, &h, &r)
		slow, quoted := bytes.Clone(frame), bytes.Clone(frame)
		sh, qh, back := h, h, h
		slowWhy := r.ApplySlow(slow, &sh)
		if why := r.Apply(frame, &back); why != wantWhy || !bytes.Equal(frame, want) {
			t.Fatalf("%+v\nwas  %x\ngot  %x %v\nwant %x %v", r, was, frame, why, want, wantWhy)
		} else if why == rewrite.Done && (slowWhy != why || !bytes.Equal(slow, frame)) {
			t.Fatalf("%+v\nwas  %x\ngot  %x\nslow %x %v", r, was, frame, slow, slowWhy)
		}
		if slowWhy != rewrite.Done && !bytes.Equal(slow, was) {
			t.Fatalf("%v, but written to", slowWhy)
		}
		if !bytes.Equal(slow[h.Payload:], was[h.Payload:]) && r.Flags>>7 != 0 && h.HasL4 {
			t.Fatalf("wrote beyond the headers:\nwas  %x\nslow %x", was, slow)
		}
		if r.ApplyQuoted(quoted, &qh, &r) == rewrite.Done {
			if h.IPVersion == 4 && wrongBy4(quoted, &qh) != wrongBy4(was, &h) || wrongByL4(quoted, &qh) != wrongByL4(was, &h) {
				t.Fatalf("%+v: checksums of the error\nwas %x\nnow %x", r, was, quoted)
			}
		} else if !bytes.Equal(quoted, was) {
			t.Fatalf("an error was written to, but left alone")
		}
	})
}
