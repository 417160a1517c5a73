package stack

import "penstock/internal/wire"

// clients counts the connections of each client: of an IPv4 address, or of an
// IPv6 /64, which is what one customer has.
type clients map[[16]byte]int

func clientKey(f *wire.Flow) (k [16]byte) {
	k = f.Src
	if f.V6 {
		clear(k[8:])
	}
	return k
}

// full reports whether a client has as many connections as it may.
func (s *Stack) full(f *wire.Flow) bool {
	return s.o.MaxFlowsPerClient > 0 && s.clients[clientKey(f)] >= s.o.MaxFlowsPerClient
}

// count adds n to the connections of a client. What has none is forgotten, so
// that there are no more clients than connections.
func (s *Stack) count(f *wire.Flow, n int) {
	if s.o.MaxFlowsPerClient <= 0 {
		return
	}
	k := clientKey(f)
	if left := s.clients[k] + n; left > 0 {
		s.clients[k] = left
	} else {
		delete(s.clients, k)
	}
}
