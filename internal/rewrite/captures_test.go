package rewrite_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"penstock/internal/rewrite"
	"penstock/internal/wire"
)

// captures returns the frames of the files in testdata/captures (ORIGIN.md), by file name.
func captures(t testing.TB) map[string][][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/captures/*.pcap")
	if err != nil || len(files) < 8 {
		t.Fatalf("list captures: found %d: %v", len(files), err)
	}
	all := map[string][][]byte{}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		r, err := pcapgo.NewReader(f)
		if err != nil {
			t.Fatalf("read %s: %v", file, err)
		}
		for {
			data, _, err := r.ReadPacketData()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("read %s: %v", file, err)
			}
			all[filepath.Base(file)] = append(all[filepath.Base(file)], data)
		}
		f.Close()
	}
	return all
}

// flowRule is the rule of one direction of a flow, the same one for each of its packets.
func flowRule(f *wire.Flow, h *wire.Headers) rewrite.Rule {
	r := rewrite.Rule{
		Flags:  rewrite.SetSrc | rewrite.SetDst | rewrite.SetSrcMAC | rewrite.SetDstMAC | rewrite.SetVLAN,
		SrcMAC: macs.SrcMAC, DstMAC: macs.DstMAC, VLANs: h.VLANs, VLAN: [2]uint16{0x123, 0x456},
		Src: f.Dst, Dst: f.Src, SrcPort: f.DstPort + 1, DstPort: f.SrcPort + 1,
		Seq: f.Hash() * 0x9e3779b1, Ack: f.Hash() * 0x85ebca6b, TSVal: f.Hash() * 3, TSEcr: f.Hash() * 5, WindowShift: 1,
	}
	r.Src[15], r.Dst[14] = r.Src[15]+1, r.Dst[14]+77
	switch f.Proto {
	case wire.ProtoTCP:
		r.Flags |= rewrite.SetSrcPort | rewrite.SetDstPort | rewrite.AddSeq | rewrite.AddAck | rewrite.AddTS | rewrite.ShiftWindow
	case wire.ProtoUDP:
		r.Flags |= rewrite.SetSrcPort | rewrite.SetDstPort
	}
	return r
}

// TestCaptures changes real packets and lets gopacket, which shares no code with this package, say what is in them.
func TestCaptures(t *testing.T) {
	var met [rewrite.NumResults]int
	var stamps, blocks int
	for name, frames := range captures(t) {
		for i, was := range frames {
			frame := bytes.Clone(was)
			var h wire.Headers
			if h.Parse(frame) != wire.FaultNone || !h.HasL4 {
				continue
			}
			var f wire.Flow
			h.ReadFlow(frame, &f)
			r := flowRule(&f, &h)
			before := h
			why := r.Apply(frame, &h)
			met[why]++
			if why != rewrite.Done {
				if !bytes.Equal(frame, was) {
					t.Fatalf("%s, packet %d: %v, and written to", name, i+1, why)
				}
				continue
			}
			a, b := decode(t, was), decode(t, frame)
			if x, y := a.wrong, b.wrong; !slices.Equal(x, y) {
				t.Errorf("%s, packet %d: checksums that gopacket calls wrong: %v before, %v after", name, i+1, x, y)
			}
			if got, want := b.src, netip.AddrFrom16(r.Src).Unmap(); got != want {
				t.Errorf("%s, packet %d: source %v, want %v", name, i+1, got, want)
			}
			if got, want := b.dst, netip.AddrFrom16(r.Dst).Unmap(); got != want {
				t.Errorf("%s, packet %d: destination %v, want %v", name, i+1, got, want)
			}
			if !bytes.Equal(a.payload, b.payload) {
				t.Errorf("%s, packet %d: another payload", name, i+1)
			}
			if len(b.vlans) != int(h.VLANs) || h.VLANs > 0 && b.vlans[0] != r.VLAN[0] || h.VLANs > 1 && b.vlans[1] != r.VLAN[1] {
				t.Errorf("%s, packet %d: tags %v", name, i+1, b.vlans)
			}
			if a.udp != nil && (b.udp == nil || b.udp.SrcPort != layers.UDPPort(r.SrcPort) || b.udp.DstPort != layers.UDPPort(r.DstPort)) {
				t.Errorf("%s, packet %d: ports", name, i+1)
			}
			if a.tcp != nil {
				n, m := compareTCP(t, name, i+1, a.tcp, b.tcp, &r)
				stamps, blocks = stamps+n, blocks+m
			}
			// And back.
			back := r.Inverse(&f)
			if back.Apply(frame, &h) != rewrite.Done {
				t.Fatalf("%s, packet %d: no way back", name, i+1)
			}
			copy(frame, was[:12])
			if invertible(was, &before, &r) && !bytes.Equal(frame, was) {
				t.Errorf("%s, packet %d: not brought back\nwas %x\nnow %x", name, i+1, was, frame)
			}
		}
	}
	t.Logf("results %v, %d timestamps, %d SACK edges", met, stamps, blocks)
	for why, least := range map[rewrite.Result]int{rewrite.Done: 150, rewrite.SlowSYN: 15, rewrite.SlowICMP: 30, rewrite.SlowIPOptions: 3} {
		if met[why] < least {
			t.Errorf("%v: only %d packets", why, met[why])
		}
	}
	if stamps < 80 || blocks < 4 {
		t.Errorf("only %d timestamps and %d SACK edges", stamps, blocks)
	}
}

// decoded is what gopacket finds in a frame.
type decoded struct {
	src, dst netip.Addr
	vlans    []uint16
	tcp      *layers.TCP
	udp      *layers.UDP
	payload  []byte
	wrong    []string // layers with wrong checksums
}

func decode(t testing.TB, frame []byte) (d decoded) {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.Dot1Q:
			d.vlans = append(d.vlans, l.VLANIdentifier)
		case *layers.IPv4:
			d.src, _ = netip.AddrFromSlice(l.SrcIP.To4())
			d.dst, _ = netip.AddrFromSlice(l.DstIP.To4())
		case *layers.IPv6:
			d.src, _ = netip.AddrFromSlice(l.SrcIP)
			d.dst, _ = netip.AddrFromSlice(l.DstIP)
		case *layers.TCP:
			d.tcp, d.payload = l, l.Payload
		case *layers.UDP:
			d.udp, d.payload = l, l.Payload
		case gopacket.ErrorLayer:
			continue
		}
		if c, ok := l.(gopacket.LayerWithChecksum); ok {
			if err, result := c.VerifyChecksum(); err == nil && !result.Valid {
				d.wrong = append(d.wrong, l.LayerType().String())
			}
		}
	}
	if !d.src.IsValid() {
		t.Fatalf("gopacket finds no addresses in %x", frame)
	}
	return d
}

// compareTCP compares a segment with the one it became; it returns how many timestamps and SACK edges it saw.
func compareTCP(t *testing.T, name string, packet int, a, b *layers.TCP, r *rewrite.Rule) (stamps, edges int) {
	t.Helper()
	want := *a
	want.SrcPort, want.DstPort = layers.TCPPort(r.SrcPort), layers.TCPPort(r.DstPort)
	want.Seq += r.Seq
	if a.ACK {
		want.Ack += r.Ack
	}
	want.Window = uint16(min(uint32(a.Window)*2, 65535))
	if b.SrcPort != want.SrcPort || b.DstPort != want.DstPort || b.Seq != want.Seq || b.Ack != want.Ack || b.Window != want.Window ||
		b.Urgent != want.Urgent || b.DataOffset != want.DataOffset || len(b.Options) != len(a.Options) ||
		[]bool{b.FIN, b.SYN, b.RST, b.PSH, b.ACK, b.URG, b.ECE, b.CWR, b.NS}[4] != a.ACK || b.FIN != a.FIN || b.RST != a.RST || b.PSH != a.PSH || b.URG != a.URG {
		t.Errorf("%s, packet %d:\n was %+v\n got %+v", name, packet, a, b)
		return 0, 0
	}
	for i, o := range a.Options {
		data := bytes.Clone(o.OptionData)
		add := func(at int, delta uint32) {
			binary.BigEndian.PutUint32(data[at:], binary.BigEndian.Uint32(data[at:])+delta)
		}
		switch o.OptionType {
		case layers.TCPOptionKindTimestamps:
			stamps++
			add(0, r.TSVal)
			if a.ACK && binary.BigEndian.Uint32(data[4:]) != 0 {
				add(4, r.TSEcr)
			}
		case layers.TCPOptionKindSACK:
			for at := 0; at < len(data) && a.ACK; at += 4 {
				edges++
				add(at, r.Ack)
			}
		}
		if got := b.Options[i]; got.OptionType != o.OptionType || !bytes.Equal(got.OptionData, data) {
			t.Errorf("%s, packet %d: option %v became %v", name, packet, o, got)
		}
	}
	return stamps, edges
}

// TestCapturedErrors changes the ICMPv6 errors of a real path trace, as if the probes had been changed on their way.
func TestCapturedErrors(t *testing.T) {
	did := 0
	for _, was := range captures(t)["arkime-v6.pcap"] {
		frame := bytes.Clone(was)
		h := parse(t, frame)
		quoted, ok := h.QuotedFlow(frame)
		if !ok {
			continue
		}
		own, _ := h.Flow(frame)
		probe := wire.Flow{Src: nat6.Src, Dst: nat6.Dst, SrcPort: 4711, DstPort: 4712}
		inner := rewrite.Rule{Flags: nat6.Flags, Src: probe.Src, Dst: probe.Dst, SrcPort: probe.SrcPort, DstPort: probe.DstPort}
		outer := rewrite.Rule{Flags: rewrite.SetDst | rewrite.SetDstPort | rewrite.AddSeq, Dst: probe.Src, DstPort: 1, Seq: 1}
		if why := outer.ApplyQuoted(frame, h, &inner); why != rewrite.Done {
			t.Fatalf("%s: %v", wire.Summary(was), why)
		}
		got, _ := h.QuotedFlow(frame)
		now, _ := h.Flow(frame)
		if got.Src != probe.Src || got.Dst != probe.Dst || got.SrcPort != 4711 || got.DstPort != 4712 || now.Src != own.Src || now.Dst != probe.Src {
			t.Errorf("%v about %v became %v about %v", own, quoted, now, got)
		}
		if d := decode(t, frame); len(d.wrong) != 0 {
			t.Errorf("%s: wrong checksums: %v", wire.Summary(frame), d.wrong)
		}
		did++
	}
	if did < 10 {
		t.Errorf("only %d errors", did)
	}
}
