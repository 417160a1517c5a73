package rewritetest

import (
	"bytes"
	"encoding/binary"

	"penstock/internal/rewrite"
	"penstock/internal/wire"
)

// Translate is what Rule.Apply should do, by other means: it takes the packet apart, changes the parts, puts them
// together and computes every checksum anew. It returns the new frame, which shares nothing with the old one, and the
// result; where that is not Done, the frame is a copy. h is what wire.Headers.Parse made of the frame.
//
// A checksum that was wrong stays wrong by as much, which recomputing alone cannot do: see restore.
func Translate(frame []byte, h *wire.Headers, r *rewrite.Rule) ([]byte, rewrite.Result) {
	out := bytes.Clone(frame)
	has := func(f rewrite.Flags) bool { return r.Flags&f != 0 }
	overLink := has(rewrite.SetSrcMAC | rewrite.SetDstMAC | rewrite.SetVLAN)
	overTCP := has(rewrite.AddSeq | rewrite.AddAck | rewrite.AddTS | rewrite.ShiftWindow)
	overPorts := has(rewrite.SetSrcPort | rewrite.SetDstPort)
	overAddresses := has(rewrite.SetSrc | rewrite.SetDst)
	overTransport := overTCP || overPorts || overAddresses
	if r.Flags == 0 {
		return out, rewrite.Done
	}
	if h.Fault != wire.FaultNone {
		return out, rewrite.SlowMalformed
	}
	if overLink && int(h.L3) != wire.EthernetLen+4*int(h.VLANs) {
		return out, rewrite.SlowNoEthernet
	}

	// Link.
	tags, rest := [][]byte{}, out[12:]
	for isTag(rest) && len(rest) >= 4 {
		tags, rest = append(tags, rest[:4]), rest[4:]
	}
	tooMany := len(tags) > wire.MaxVLANs || isTag(rest)
	if has(rewrite.SetVLAN) {
		if tooMany || len(tags) != int(r.VLANs) {
			return out, rewrite.SlowVLANCount
		}
		for i, tag := range tags {
			tag[2] = tag[2]&0xf0 | byte(r.VLAN[i]>>8)&0x0f
			tag[3] = byte(r.VLAN[i])
		}
	}
	if has(rewrite.SetDstMAC) {
		copy(out[0:6], r.DstMAC[:])
	}
	if has(rewrite.SetSrcMAC) {
		copy(out[6:12], r.SrcMAC[:])
	}
	if !overTransport && !has(rewrite.DecTTL) {
		return out, rewrite.Done
	}
	slow := func(why rewrite.Result) ([]byte, rewrite.Result) { return bytes.Clone(frame), why }
	if tooMany || [2]byte(rest) != [2]byte{0x08, 0x00} && [2]byte(rest) != [2]byte{0x86, 0xdd} {
		return slow(rewrite.SlowNotIP)
	}

	// IP.
	version := out[h.L3] >> 4
	ip := out[h.L3:h.End]
	ttl, proto, options := &ip[8], ip[9], ip[0] != 0x45
	src, dst := ip[12:16], ip[16:20]
	if version == 6 {
		ttl, proto = &ip[7], ip[6]
		src, dst = ip[8:24], ip[24:40]
		options = bytes.IndexByte([]byte{0, 43, 44, 51, 60}, proto) >= 0
	}
	if has(rewrite.DecTTL) {
		if *ttl < 2 {
			return slow(rewrite.SlowTTL)
		}
		*ttl--
	}
	if has(rewrite.SetSrc) && !setAddress(src, r.Src) || has(rewrite.SetDst) && !setAddress(dst, r.Dst) {
		return slow(rewrite.SlowFamily)
	}
	if version == 4 {
		restore(out, frame, int(h.L3), int(h.L3)+4*int(ip[0]&0x0f), 10, 0, 0)
	}
	if !overTransport {
		return out, rewrite.Done
	}
	if h.Frag != wire.FragNone {
		return slow(rewrite.SlowFragment)
	}
	if options {
		return slow(rewrite.SlowIPOptions)
	}

	// Transport.
	at, end := int(h.L3)+20, int(h.End)
	if version == 6 {
		at = int(h.L3) + 40
	}
	seg := out[at:end]
	switch {
	case proto == wire.ProtoTCP:
		if overTCP {
			if why := translateTCP(seg, r); why != rewrite.Done {
				return slow(why)
			}
		}
	case overTCP && (proto == wire.ProtoUDP || proto == wire.ProtoICMP && version == 4 || proto == wire.ProtoICMPv6 && version == 6):
		return slow(rewrite.SlowNotTCP)
	case proto == wire.ProtoUDP:
	case proto == wire.ProtoICMP && version == 4, proto == wire.ProtoICMPv6 && version == 6:
		if overPorts {
			return slow(rewrite.SlowNoPorts)
		}
		echo := []byte{0, 8}
		if version == 6 {
			echo = []byte{128, 129}
		}
		if bytes.IndexByte(echo, seg[0]) < 0 {
			return slow(rewrite.SlowICMP)
		}
	default:
		return slow(rewrite.SlowNoTransport)
	}
	if has(rewrite.SetSrcPort) {
		binary.BigEndian.PutUint16(seg[0:], r.SrcPort)
	}
	if has(rewrite.SetDstPort) {
		binary.BigEndian.PutUint16(seg[2:], r.DstPort)
	}
	old, now := pseudoHeader(frame[h.L3:], proto, len(seg)), pseudoHeader(out[h.L3:], proto, len(seg))
	switch proto {
	case wire.ProtoTCP:
		restore(out, frame, at, end, 16, old, now)
	case wire.ProtoICMPv6:
		restore(out, frame, at, end, 2, old, now)
	case wire.ProtoUDP:
		if frame[at+6] != 0 || frame[at+7] != 0 {
			n := int(binary.BigEndian.Uint16(seg[4:]))
			old, now = pseudoHeader(frame[h.L3:], proto, n), pseudoHeader(out[h.L3:], proto, n)
			restore(out, frame, at, at+n, 6, old, now)
			if out[at+6] == 0 && out[at+7] == 0 {
				out[at+6], out[at+7] = 0xff, 0xff
			}
		}
	}
	return out, rewrite.Done
}

func isTag(b []byte) bool {
	return len(b) >= 2 && (b[0] == 0x81 && b[1] == 0 || b[0] == 0x88 && b[1] == 0xa8)
}

// setAddress sets an address of 4 or 16 bytes; false if it is of the other family.
func setAddress(field []byte, a [16]byte) bool {
	mapped := bytes.HasPrefix(a[:], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff})
	if mapped != (len(field) == 4) {
		return false
	}
	copy(field, a[16-len(field):])
	return true
}

// translateTCP changes the TCP fields of a segment, except ports and checksum. The segment is scrap if the result is not
// Done.
func translateTCP(seg []byte, r *rewrite.Rule) rewrite.Result {
	add := func(b []byte, delta uint32) { binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)+delta) }
	has := func(f rewrite.Flags) bool { return r.Flags&f != 0 }
	syn, ack := seg[13]&0x02 != 0, seg[13]&0x10 != 0
	if syn {
		return rewrite.SlowSYN
	}
	if has(rewrite.AddSeq) {
		add(seg[4:], r.Seq)
	}
	if has(rewrite.AddAck) && ack {
		add(seg[8:], r.Ack)
	}
	if has(rewrite.ShiftWindow) {
		w := uint64(binary.BigEndian.Uint16(seg[14:]))
		binary.BigEndian.PutUint16(seg[14:], window(w, int(r.WindowShift)))
	}
	if !has(rewrite.AddAck | rewrite.AddTS) {
		return rewrite.Done
	}
	opts := seg[20 : 4*int(seg[12]>>4)]
	var seen [256]bool
	for step := 0; len(opts) > 0; step++ {
		if step == rewrite.MaxOptions {
			return rewrite.SlowTooManyOptions
		}
		kind := opts[0]
		if kind == 0 {
			break
		}
		if kind == 1 {
			opts = opts[1:]
			continue
		}
		if len(opts) == 1 || opts[1] < 2 || int(opts[1]) > len(opts) {
			return rewrite.SlowOddOptions
		}
		size := opts[1]
		value := opts[2:size]
		opts = opts[size:]
		switch {
		case kind == 8 && (len(value) != 8 || seen[8]), kind == 5 && (len(value)%8 != 0 || seen[5]):
			return rewrite.SlowOddOptions
		case kind == 8 && has(rewrite.AddTS):
			add(value, r.TSVal)
			if ack && binary.BigEndian.Uint32(value[4:]) != 0 {
				add(value[4:], r.TSEcr)
			}
		case kind == 5 && has(rewrite.AddAck) && ack:
			for ; len(value) > 0; value = value[4:] {
				add(value, r.Ack)
			}
		}
		seen[kind] = true
	}
	return rewrite.Done
}

// window multiplies or divides by two, as often as the shift says.
func window(w uint64, shift int) uint16 {
	was := w
	for ; shift > 0; shift-- {
		w = min(2*w, 0xffff)
	}
	for ; shift < 0; shift++ {
		w /= 2
	}
	if was != 0 {
		w = max(w, 1)
	}
	return uint16(w)
}
