package stack

import "gvisor.dev/gvisor/pkg/tcpip"

// NetStats returns netstack's own figures.
func (s *Stack) NetStats() tcpip.Stats { return s.net.Stats() }
