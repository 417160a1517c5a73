package wire_test

import (
	"testing"

	"penstock/internal/wire"
)

// checkHeaders asserts what Headers promises about any bytes whatever, and that everything that takes a parsed frame
// can be called with it. frame's capacity is cut, so that a read beyond its end panics.
func checkHeaders(t *testing.T, frame []byte, h *wire.Headers, ret wire.Fault) {
	t.Helper()
	frame = frame[:len(frame):len(frame)]
	if ret != h.Fault {
		t.Fatalf("Parse returned %v, h.Fault is %v", ret, h.Fault)
	}
	if !(0 <= h.L3 && h.L3 <= h.L4 && h.L4 <= h.Payload && h.Payload <= h.End && int(h.End) <= len(frame)) {
		t.Fatalf("offsets out of order: L3 %d, L4 %d, Payload %d, End %d, frame %d (%v)", h.L3, h.L4, h.Payload, h.End, len(frame), h.Fault)
	}
	if h.HasL4 && (h.Fault != wire.FaultNone || h.IPVersion == 0 || h.Frag == wire.FragLater) {
		t.Fatalf("HasL4 with fault %v, IP version %d, fragment %v", h.Fault, h.IPVersion, h.Frag)
	}
	if !h.HasL4 && h.Payload != h.L4 {
		t.Fatalf("no L4, but Payload %d is not L4 %d", h.Payload, h.L4)
	}
	if h.VLANs > wire.MaxVLANs || h.IPVersion != 0 && h.IPVersion != 4 && h.IPVersion != 6 {
		t.Fatalf("%d VLANs, IP version %d", h.VLANs, h.IPVersion)
	}
	f, ok := h.Flow(frame)
	if ok != h.HasL4 {
		t.Fatalf("Flow ok = %v, HasL4 = %v", ok, h.HasL4)
	}
	if !ok && f != (wire.Flow{}) {
		t.Fatalf("Flow not ok, but %v", f)
	}
	if h.HasL4 {
		min := map[uint8]int32{wire.ProtoTCP: 20, wire.ProtoUDP: 8, wire.ProtoICMP: 8, wire.ProtoICMPv6: 8}[h.Proto]
		if min == 0 || h.Payload-h.L4 < min {
			t.Fatalf("protocol %d with a header of %d bytes", h.Proto, h.Payload-h.L4)
		}
		checkFlow(t, f)
	}
	if q, ok := h.QuotedFlow(frame); ok {
		if !h.HasL4 {
			t.Fatalf("a quoted flow %v without an ICMP header", q)
		}
		checkFlow(t, q)
	}
	var q wire.Headers
	if h.QuotedHeaders(frame, &q) && (q.L3 != h.L4+8 || q.Payload > q.End || q.End > h.End || q.Payload < q.L4+8) {
		t.Fatalf("quoted headers out of order: %+v in %+v", q, *h)
	}
	if wire.VerifyL4(frame, h) && !h.HasL4 {
		t.Fatal("VerifyL4 is true without L4")
	}
	if h.IPVersion == 4 && h.Fault == wire.FaultNone {
		wire.VerifyIPv4(frame[h.L3:])
	}
}

func checkFlow(t *testing.T, f wire.Flow) {
	t.Helper()
	r := f.Reverse()
	if r.Reverse() != f {
		t.Fatalf("Reverse of Reverse of %v is %v", f, r.Reverse())
	}
	if f.Hash() != r.Hash() {
		t.Fatalf("Hash of %v is %#x, of its reverse %#x", f, f.Hash(), r.Hash())
	}
	a, ar := f.Canonical()
	b, br := r.Canonical()
	if a != b {
		t.Fatalf("Canonical of %v is %v, of its reverse %v", f, a, b)
	}
	if ar == br && f != r {
		t.Fatalf("Canonical says reversed = %v for both directions of %v", ar, f)
	}
	if ar && a != r || !ar && a != f {
		t.Fatalf("Canonical of %v is %v, reversed = %v", f, a, ar)
	}
}
