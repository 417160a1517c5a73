package inspect

import (
	"bytes"
	"math/bits"
)

const (
	chunkSize = 4096
	chunkMask = chunkSize - 1
	slabSize  = 64 // chunks allocated at once
)

// chunk holds the bytes of one aligned range of positions. A bit says that a
// byte is known; it counts only for positions that are not contiguous yet.
type chunk struct {
	at   int64  // position of data[0]
	next uint32 // the following chunk of the direction, or the next free one; 0: none
	some bool   // a bit is set
	bits [chunkSize / 64]uint64
	data [chunkSize]byte
}

// memory is the chunks of all connections. It grows by slabs up to its limit
// and never shrinks.
type memory struct {
	slabs [][]chunk
	free  uint32
	used  int // chunks
	limit int // chunks
}

// store is the chunks of one direction, by position. The zero value is empty.
type store struct {
	head, tail uint32
	hint       uint32 // where the last search ended
	chunks     int
	loose      int // known bytes beyond the contiguous ones
}

func (m *memory) get(i uint32) *chunk { return &m.slabs[(i-1)/slabSize][(i-1)%slabSize] }

// alloc returns a chunk, 0 if there is none.
func (m *memory) alloc(at int64) uint32 {
	if m.used >= m.limit {
		return 0
	}
	if m.free == 0 {
		slab := make([]chunk, slabSize)
		first := uint32(len(m.slabs))*slabSize + 1
		m.slabs = append(m.slabs, slab)
		for i := range slab[:slabSize-1] {
			slab[i].next = first + uint32(i) + 1
		}
		m.free = first
	}
	i := m.free
	c := m.get(i)
	m.free = c.next
	m.used++
	if c.some {
		c.bits = [chunkSize / 64]uint64{}
	}
	c.at, c.next, c.some = at, 0, false
	return i
}

// drop frees the chunks of st that end at or before pos; all of them if every is
// set.
func (m *memory) drop(st *store, pos int64, every bool) {
	for st.head != 0 {
		c := m.get(st.head)
		if !every && c.at+chunkSize > pos {
			return
		}
		i := st.head
		if st.hint == i {
			st.hint = 0
		}
		st.head = c.next
		c.next = m.free
		m.free = i
		m.used--
		st.chunks--
	}
	*st = store{loose: st.loose}
	if every {
		st.loose = 0
	}
}

// before returns the last chunk that begins at or before pos, 0 if there is
// none.
func (m *memory) before(st *store, pos int64) uint32 {
	if st.tail != 0 && m.get(st.tail).at <= pos {
		return st.tail
	}
	i := st.head
	if st.hint != 0 && m.get(st.hint).at <= pos {
		i = st.hint
	}
	if i == 0 || m.get(i).at > pos {
		return 0
	}
	for {
		n := m.get(i).next
		if n == 0 || m.get(n).at > pos {
			st.hint = i
			return i
		}
		i = n
	}
}

// find returns the chunk that holds pos, or nil.
func (m *memory) find(st *store, pos int64) *chunk {
	i := m.before(st, pos)
	if i == 0 {
		return nil
	}
	if c := m.get(i); pos < c.at+chunkSize {
		return c
	}
	return nil
}

// make returns the chunk that holds pos, made if need be; nil: no memory.
func (m *memory) make(st *store, pos int64, most int) *chunk {
	prev := m.before(st, pos)
	if prev != 0 {
		if c := m.get(prev); pos < c.at+chunkSize {
			return c
		}
	}
	if st.chunks >= most {
		return nil
	}
	i := m.alloc(pos &^ chunkMask)
	if i == 0 {
		return nil
	}
	c := m.get(i)
	if prev == 0 {
		c.next = st.head
		st.head = i
	} else {
		p := m.get(prev)
		c.next = p.next
		p.next = i
	}
	if c.next == 0 {
		st.tail = i
	}
	st.chunks++
	return c
}

// append adds contiguous bytes at pos, behind everything that st has. False: no
// memory.
func (m *memory) append(st *store, pos int64, b []byte, most int) bool {
	for len(b) > 0 {
		c := m.make(st, pos, most)
		if c == nil {
			return false
		}
		n := copy(c.data[pos-c.at:], b)
		b = b[n:]
		pos += int64(n)
	}
	return true
}

// equal reports whether the contiguous bytes at pos are b.
func (m *memory) equal(st *store, pos int64, b []byte) bool {
	for len(b) > 0 {
		c := m.find(st, pos)
		if c == nil {
			return false
		}
		n := min(len(b), int(c.at+chunkSize-pos))
		if !bytes.Equal(c.data[pos-c.at:][:n], b[:n]) {
			return false
		}
		b = b[n:]
		pos += int64(n)
	}
	return true
}

// agrees reports whether no byte that is known beyond the contiguous ones
// differs from b at pos.
func (m *memory) agrees(st *store, pos int64, b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), int(chunkSize-pos&chunkMask))
		if c := m.find(st, pos); c != nil {
			off := int(pos - c.at)
			for k := range n {
				if i := off + k; c.bits[i/64]>>(i%64)&1 != 0 && c.data[i] != b[k] {
					return false
				}
			}
		}
		b = b[n:]
		pos += int64(n)
	}
	return true
}

// put notes b at pos, which agrees with what is known there. False: no memory.
func (m *memory) put(st *store, pos int64, b []byte, most int) bool {
	for len(b) > 0 {
		c := m.make(st, pos, most)
		if c == nil {
			return false
		}
		off := int(pos - c.at)
		n := copy(c.data[off:], b)
		c.some = true
		for i := off; i < off+n; {
			// The bits of one word at a time.
			k := min(64-i%64, off+n-i)
			mask := ^uint64(0) >> (64 - k) << (i % 64)
			st.loose += bits.OnesCount64(mask &^ c.bits[i/64])
			c.bits[i/64] |= mask
			i += k
		}
		b = b[n:]
		pos += int64(n)
	}
	return true
}

// run returns where the known bytes from pos on end, and takes them out of the
// loose ones.
func (m *memory) run(st *store, pos int64) int64 {
	for {
		c := m.find(st, pos)
		if c == nil {
			return pos
		}
		for i := int(pos - c.at); i < chunkSize; {
			n := bits.TrailingZeros64(^(c.bits[i/64] >> (i % 64)))
			n = min(n, 64-i%64)
			st.loose -= n
			pos += int64(n)
			if i += n; n == 0 || i%64 != 0 {
				return pos
			}
		}
	}
}

// view returns the contiguous bytes from pos on, up to end or the chunk's end.
func (m *memory) view(st *store, pos, end int64) []byte {
	c := m.find(st, pos)
	if c == nil {
		return nil
	}
	return c.data[pos-c.at : min(end, c.at+chunkSize)-c.at]
}
