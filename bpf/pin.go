package bpf

// Close detaches the program from all ports and removes what Load pinned. What the wire was before it is again: in bridge mode
// nothing connects the ports any more.
func (s *Steerer) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.release()
	return nil
}

func (s *Steerer) pinMaps() error { return nil }
