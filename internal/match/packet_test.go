package match

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"penstock/internal/wire"
	"penstock/pipeline"
)

// pkt describes a packet of the tests.
type pkt struct {
	src, dst         string
	proto            uint8
	srcPort, dstPort uint16
	flags            wire.TCPFlags
	vlan             []uint16 // TCIs, outermost first
	in               pipeline.PortID
	frag             wire.Frag
	etherType        uint16 // instead of IP
}

// bytes encodes the packet as an Ethernet frame.
func (k pkt) bytes() []byte {
	f := make([]byte, 12, 128)
	for _, tci := range k.vlan {
		f = binary.BigEndian.AppendUint16(f, wire.EtherTypeVLAN)
		f = binary.BigEndian.AppendUint16(f, tci)
	}
	if k.etherType != 0 {
		return append(binary.BigEndian.AppendUint16(f, k.etherType), make([]byte, 46)...)
	}
	src, dst := netip.MustParseAddr(k.src), netip.MustParseAddr(k.dst)
	var l4 []byte
	switch k.proto {
	case wire.ProtoTCP:
		l4 = make([]byte, 24)
		binary.BigEndian.PutUint16(l4[12:], 5<<12|uint16(k.flags))
	case wire.ProtoUDP:
		l4 = make([]byte, 24)
		l4[5] = 24
	default:
		l4 = make([]byte, 24)
		l4[0] = 8
	}
	if k.proto == wire.ProtoTCP || k.proto == wire.ProtoUDP {
		binary.BigEndian.PutUint16(l4, k.srcPort)
		binary.BigEndian.PutUint16(l4[2:], k.dstPort)
	}
	if src.Is4() {
		f = binary.BigEndian.AppendUint16(f, wire.EtherTypeIPv4)
		ip := make([]byte, 20)
		ip[0], ip[3], ip[8], ip[9] = 0x45, 44, 64, k.proto
		switch k.frag {
		case wire.FragFirst:
			ip[6] = 0x20
		case wire.FragLater:
			ip[7] = 3
		}
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
		return append(append(f, ip...), l4...)
	}
	f = binary.BigEndian.AppendUint16(f, wire.EtherTypeIPv6)
	ip := make([]byte, 40)
	ip[0], ip[5], ip[6], ip[7] = 0x60, 24, k.proto, 64
	copy(ip[8:], src.AsSlice())
	copy(ip[24:], dst.AsSlice())
	if k.frag != wire.FragNone {
		ip[5], ip[6] = 32, wire.ProtoFragment
		ip = append(ip, k.proto, 0, 0, 1, 0, 0, 0, 9)
		if k.frag == wire.FragLater {
			ip[43] = 24
		}
	}
	return append(append(f, ip...), l4...)
}

// packets parses frames into packets of their own.
func packets(t testing.TB, ks ...pkt) []*pipeline.Packet {
	t.Helper()
	arena, err := pipeline.NewArena(make([]byte, 512*len(ks)), 512, 128, 1)
	if err != nil {
		t.Fatal(err)
	}
	list := make([]*pipeline.Packet, len(ks))
	for i, k := range ks {
		p, b := arena.Pool(0).Get(), k.bytes()
		p.SetView(p.Offset(), len(b))
		copy(p.Bytes(), b)
		p.In = k.in
		if f := p.Parse(); f != wire.FaultNone || p.Frag != k.frag {
			t.Fatalf("packet %+v parses with %v, fragment %v", k, f, p.Frag)
		}
		list[i] = p
	}
	return list
}

// meets tries one rule by the words of its documentation: the reference for the compiled set.
func meets(f *Fields, k pkt, ports []pipeline.PortInfo) bool {
	if f.From != "" && (int(k.in) >= len(ports) || ports[k.in].Name != f.From) {
		return false
	}
	if len(f.VLAN) > 0 {
		id, hit := uint16(0), false
		if len(k.vlan) > 0 {
			id = k.vlan[0] & 0xfff
		}
		for _, r := range f.VLAN {
			hit = hit || id >= r.First && id <= r.Last
		}
		if !hit {
			return false
		}
	}
	isIP := k.etherType == 0
	for _, c := range []struct {
		list []netip.Prefix
		addr string
	}{{plain(f.Src), k.src}, {plain(f.Dst), k.dst}} {
		hit := len(c.list) == 0
		for _, p := range c.list {
			hit = hit || isIP && p.Contains(netip.MustParseAddr(c.addr))
		}
		if !hit {
			return false
		}
	}
	if f.Proto.Set && (!isIP || f.Proto.Number != k.proto) {
		return false
	}
	if f.Fragment != nil && (!isIP || *f.Fragment != (k.frag == wire.FragLater)) {
		return false
	}
	tcp := isIP && k.proto == wire.ProtoTCP && k.frag != wire.FragLater
	udp := isIP && k.proto == wire.ProtoUDP && k.frag != wire.FragLater
	if !f.Flags.any() && !(tcp && k.flags.Has(f.Flags.Set) && k.flags&f.Flags.Clear == 0) {
		return false
	}
	if len(f.SrcPort) > 0 {
		hit := false
		for _, r := range f.SrcPort {
			hit = hit || (tcp || udp) && r.Contains(k.srcPort)
		}
		if !hit {
			return false
		}
	}
	if len(f.DstPort) > 0 {
		hit := false
		for _, r := range f.DstPort {
			hit = hit || (tcp || udp) && r.Contains(k.dstPort)
		}
		if !hit {
			return false
		}
	}
	return true
}

// linear returns the first rule that the packet meets, or -1.
func linear(rules []Fields, k pkt, ports []pipeline.PortInfo) int {
	for i := range rules {
		if meets(&rules[i], k, ports) {
			return i
		}
	}
	return -1
}
