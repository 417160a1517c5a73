package closedloop

import "slices"

// stream puts the segments of one direction of a connection together. The first
// copy of a byte wins. Positions count from the sender's SYN: 0 is the SYN, 1
// the first byte.
type stream struct {
	known  bool   // isn is
	isn    uint32 //
	bytes  []byte // positions 1 to len(bytes)
	early  []piece
	high   uint64 // one behind the highest position seen
	fin    uint64 // position of the FIN; 0: not seen
	acked  uint64 // highest position that the other end has acknowledged
	syn    synOptions
	hasSYN bool
}

// piece is bytes behind a gap.
type piece struct {
	at   uint64
	data []byte
}

// position returns where a sequence number is in the stream, given that it is
// not far from what was seen.
func (s *stream) position(seq uint32) int64 {
	at := int64(s.next())
	return at + int64(int32(seq-(s.isn+uint32(at))))
}

// next returns the position behind the bytes that are there without a gap.
func (s *stream) next() uint64 { return uint64(len(s.bytes)) + 1 }

// add takes the payload of a segment and returns how many bytes are new.
func (s *stream) add(at int64, data []byte) (stored int) {
	if at < 1 { // a SYN's or a keep-alive's
		skip := min(1-at, int64(len(data)))
		data, at = data[skip:], at+skip
	}
	if len(data) == 0 || at < 1 {
		return 0
	}
	s.high = max(s.high, uint64(at)+uint64(len(data)))
	if next := int64(s.next()); at < next {
		skip := min(next-at, int64(len(data)))
		data, at = data[skip:], at+skip
	}
	if len(data) == 0 {
		return 0
	}
	if uint64(at) > s.next() {
		return s.keep(uint64(at), data)
	}
	// Where earlier segments have overtaken this one, theirs came first.
	before := len(s.bytes)
	waiting := 0
	for len(data) > 0 || len(s.early) > 0 && s.early[0].at <= s.next() {
		if len(s.early) == 0 || s.early[0].at > s.next() {
			n := len(data)
			if len(s.early) > 0 {
				n = min(n, int(s.early[0].at-s.next()))
			}
			s.bytes = append(s.bytes, data[:n]...)
			data = data[n:]
			continue
		}
		p := s.early[0]
		s.early = s.early[1:]
		waiting += len(p.data)
		if have := s.next() - p.at; have < uint64(len(p.data)) {
			s.bytes = append(s.bytes, p.data[have:]...)
			data = data[min(len(data), len(p.data)-int(have)):]
		}
	}
	return len(s.bytes) - before - waiting
}

// keep stores bytes behind a gap, but those that are there already.
func (s *stream) keep(at uint64, data []byte) (stored int) {
	for i := 0; i <= len(s.early) && len(data) > 0; i++ {
		if i < len(s.early) && s.early[i].at <= at {
			p := s.early[i]
			if have := p.at + uint64(len(p.data)); have > at {
				skip := min(have-at, uint64(len(data)))
				data, at = data[skip:], at+skip
			}
			continue
		}
		n := uint64(len(data))
		if i < len(s.early) {
			n = min(n, s.early[i].at-at)
		}
		if n == 0 {
			continue
		}
		s.early = slices.Insert(s.early, i, piece{at, slices.Clone(data[:n])})
		stored += int(n)
		data, at = data[n:], at+n
	}
	return stored
}

// gap returns where the first byte is missing that was sent; 0: none is.
func (s *stream) gap() uint64 {
	end := s.high
	if s.fin > 0 {
		end = max(end, s.fin)
	}
	if end > s.next() {
		return s.next()
	}
	return 0
}

// whole reports whether all is there up to the FIN.
func (s *stream) whole() bool { return s.fin > 0 && s.fin <= s.next() }

func (s *stream) forget() { s.bytes, s.early = nil, nil }
