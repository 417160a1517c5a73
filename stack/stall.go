package stack

// stallStep is how many connections one Tick looks at for ends that take
// nothing.
const stallStep = 4096

// owes notes that a leg has bytes for its end, whose progress Tick watches.
func (s *Stack) owes(f *flow) {
	if !f.owing && s.o.StallTimeout > 0 {
		f.owing = true
		s.owing = append(s.owing, f)
	}
}

// endStalled ends connections with an end that has acknowledged nothing for
// StallTimeout although there are bytes for it: its window is closed, and it
// answers every probe, so that neither netstack nor the idle time-out ever ends it.
func (s *Stack) endStalled(now int64) {
	for n := min(len(s.owing), stallStep); n > 0; n-- {
		if s.owingAt >= len(s.owing) {
			s.owingAt = 0
		}
		f := s.owing[s.owingAt]
		if f.state == stateOpen && f.resetting == nil {
			c, v := f.client.waits(now), f.server.waits(now)
			if max(c, v) > int64(s.o.StallTimeout) {
				s.n.stallTimeout.Add(1)
				s.kill(f, now)
			} else if c >= 0 || v >= 0 {
				s.owingAt++
				continue
			}
		}
		f.owing = false
		last := len(s.owing) - 1
		s.owing[s.owingAt], s.owing[last] = s.owing[last], nil
		s.owing = s.owing[:last]
		if last == 0 {
			return
		}
	}
}

// waits returns for how long the leg's end has acknowledged nothing, -1 if
// there is nothing for it.
func (l *leg) waits(now int64) int64 {
	if int32(l.iss+1+l.written-l.acked) <= 0 {
		l.waiting = false
		return -1
	}
	if !l.waiting || l.waitAcked != l.acked {
		l.waiting, l.waitAcked, l.waitFrom = true, l.acked, now
	}
	return now - l.waitFrom
}
