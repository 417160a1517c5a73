package stack

import (
	"encoding/binary"
	"time"

	"penstock/internal/wire"
	"penstock/pipeline"
)

const (
	// fragCapacity is how many datagrams may be in pieces at once; the oldest
	// make room for new ones. A TCP that finds its path's MTU sends none.
	fragCapacity = 256
	// fragTime is how long a datagram's later fragments are waited for.
	fragTime = 30 * time.Second
)

// fragKey names a datagram in pieces. The identification stands where a flow
// has its ports.
func fragKey(p *pipeline.Packet) wire.Flow {
	b := p.Bytes()
	k := wire.Flow{Proto: wire.ProtoTCP, V6: p.IPVersion == 6, VLAN: p.VLAN}
	var id uint32
	if k.V6 {
		ip := wire.IPv6(b[p.L3:])
		copy(k.Src[:], ip.Src())
		copy(k.Dst[:], ip.Dst())
		// Where the payload begins, the fragment header ends or has ended
		// before: its place is found by walking, as the parser did.
		id = fragmentID(b[p.L3:p.L4])
	} else {
		ip := wire.IPv4(b[p.L3:])
		copy(k.Src[12:], ip.Src())
		copy(k.Dst[12:], ip.Dst())
		id = uint32(ip.ID())
	}
	k.SrcPort, k.DstPort = uint16(id>>16), uint16(id)
	return k
}

// fragmentID returns the identification of an IPv6 packet that the parser found
// to be a fragment; headers are all up to the transport header.
func fragmentID(headers []byte) uint32 {
	next, at := headers[6], wire.IPv6Len
	for at+8 <= len(headers) {
		if next == wire.ProtoFragment {
			return binary.BigEndian.Uint32(headers[at+4:])
		}
		next, at = headers[at], at+8+8*int(headers[at+1])
	}
	return 0
}

// firstFragment takes the first fragment of a segment of a connection that is
// terminated. Netstack puts the datagram together and verifies it.
func (s *Stack) firstFragment(p *pipeline.Packet, now int64) {
	if _, ok := s.frags.Insert(fragKey(p), now); !ok {
		s.frags.EvictOldest(nil)
		s.frags.Insert(fragKey(p), now)
	}
	s.fragment(p)
}

// laterFragment takes the fragments whose first one was taken. Those that come
// before it continue, and are lost to the connection: TCP repeats them.
func (s *Stack) laterFragment(p *pipeline.Packet, now int64) {
	s.frags.Expire(now, func(*struct{}) time.Duration { return fragTime }, 8, nil)
	if _, ok := s.frags.Peek(fragKey(p)); !ok {
		p.Continue()
		return
	}
	s.fragment(p)
}

func (s *Stack) fragment(p *pipeline.Packet) {
	s.n.fragments.Add(1)
	s.inject(p.Bytes()[p.L3:p.End], p.IPVersion == 6, false)
	p.Consume()
}
