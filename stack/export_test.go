package stack

import (
	"fmt"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Describe says what is known of each connection, for tests that fail.
func (s *Stack) Describe() (out []string) {
	for _, p := range s.flows.All() {
		f := *p
		if f.state >= stateClosed {
			continue
		}
		text := fmt.Sprintf("%v: %v, queued %v, deadline %d", f.conn.Flow, f.state, f.queued.Load(), f.deadline)
		for _, l := range [...]*leg{&f.client, &f.server} {
			text += fmt.Sprintf("; %v gotFIN %v sentFIN %v sent %d acked %d written %d", l.state(), l.gotFIN, l.sentFIN, l.sndMax-l.iss, l.acked-l.iss, l.written)
		}
		for d := range f.dir {
			text += fmt.Sprintf("; dir %d kept %d eof %v cut %v", d, len(f.dir[d].buf), f.dir[d].eof, f.dir[d].cut)
		}
		out = append(out, text)
	}
	return out
}

// Endpoints returns how many endpoints netstack knows.
func (s *Stack) Endpoints() int { return len(s.net.RegisteredEndpoints()) }

// Reserved reports whether netstack keeps the port of an address.
func (s *Stack) Reserved(a netip.AddrPort) bool {
	res := ports.Reservation{
		Networks: []tcpip.NetworkProtocolNumber{netProto(a.Addr().Is6())}, Transport: tcp.ProtocolNumber,
		Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port(),
	}
	_, err := s.net.ReservePort(s.net.SecureRNG(), res, nil)
	if err == nil {
		s.net.ReleasePort(res)
	}
	return err != nil
}
